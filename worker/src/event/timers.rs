//! Deadlines of connections: a wheel of ticks, each with the descriptors that may be due then. Moving a deadline later costs
//! nothing: the wheel looks again when the old tick comes.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// The wheel's resolution.
const TICK: Duration = Duration::from_millis(100);
/// Ticks in one round; a deadline further away is looked at once a round.
const SLOTS: u64 = 1024;

/// A length of time in ticks, rounded up: what is due after it is never due early, and at most two ticks late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(u32);

impl Span {
    /// That of `time`, at most a hundred years.
    pub fn of(time: Duration) -> Span {
        Span(time.as_millis().div_ceil(TICK.as_millis()).min(u128::from(u32::MAX / 2)) as u32)
    }
}

impl Span {
    /// This and `time`.
    #[must_use]
    pub fn plus(self, time: Duration) -> Span {
        Span(self.0.saturating_add(Span::of(time).0))
    }
}

/// A point in time in ticks since the wheel was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u32);

/// Counts ticks from a point in time on.
#[derive(Debug, Clone, Copy)]
pub struct Ticks(Instant);

impl Ticks {
    /// From `start` on.
    pub fn since(start: Instant) -> Ticks {
        Ticks(start)
    }

    /// The tick of a point in time.
    pub fn at(self, now: Instant) -> Tick {
        Tick(((now - self.0).as_millis() / TICK.as_millis()).min(u128::from(u32::MAX / 2)) as u32)
    }

    /// When `tick` has passed.
    pub fn end_of(self, tick: Tick) -> Instant {
        self.0 + TICK * tick.0.saturating_add(1).min(u32::MAX / 2)
    }
}

/// The wheel.
pub struct Timers {
    start: Instant,
    now: Tick,
    slots: Vec<Vec<RawFd>>,
    /// All ticks before this one have been looked at.
    next: u64,
    /// No slot before this tick has anything in it.
    earliest: u64,
    waiting: usize,
}

impl Tick {
    /// The tick at which what may last `span` from this one on is overdue.
    pub fn after(self, span: Span) -> Tick {
        Tick(self.0.saturating_add(span.0))
    }

    /// The tick `span` ago; none: nobody counted then.
    pub fn before(self, span: Span) -> Option<Tick> {
        self.0.checked_sub(span.0).map(Tick)
    }
}

impl Timers {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Instant) -> Timers {
        Timers {
            start: now,
            now: Tick::default(),
            slots: vec![Vec::new(); SLOTS as usize],
            next: 0,
            earliest: 0,
            waiting: 0,
        }
    }

    /// Takes note of the time, once a turn.
    pub fn advance(&mut self, now: Instant) {
        self.now = Ticks(self.start).at(now);
    }

    /// The tick of the last [`Timers::advance`].
    pub fn now(&self) -> Tick {
        self.now
    }

    /// Looks at `fd` again when `tick` comes, or a round from now if that is sooner. Returns the tick it will be.
    pub fn schedule(&mut self, fd: RawFd, tick: Tick) -> Tick {
        let at = u64::from(tick.0).clamp(self.next, self.next + SLOTS - 1);
        self.slots[(at % SLOTS) as usize].push(fd);
        self.earliest = if self.waiting == 0 { at } else { self.earliest.min(at) };
        self.waiting += 1;
        Tick(at as u32)
    }

    /// How long until the next tick with anything in it: a bound for the poller's wait; none when nothing is scheduled.
    pub fn next_wait(&self, now: Instant) -> Option<Duration> {
        (self.waiting > 0).then(|| (self.start + TICK * (self.earliest + 1) as u32).saturating_duration_since(now))
    }

    /// Takes the descriptors whose tick has passed, with that tick.
    pub fn due(&mut self, now: Instant) -> Vec<(RawFd, Tick)> {
        let mut due = Vec::new();
        let passed = (now - self.start).as_millis() as u64 / TICK.as_millis() as u64;
        if self.waiting == 0 || self.earliest >= passed {
            self.next = self.next.max(passed);
            return due;
        }
        // At most one round: a slot later than that has been emptied by then.
        for tick in self.earliest..passed.min(self.earliest + SLOTS) {
            let fds = std::mem::take(&mut self.slots[(tick % SLOTS) as usize]);
            self.waiting -= fds.len();
            due.extend(fds.into_iter().map(|fd| (fd, Tick(tick as u32))));
        }
        self.next = passed;
        self.earliest =
            (passed..passed + SLOTS).find(|at| !self.slots[(at % SLOTS) as usize].is_empty()).unwrap_or(passed);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_due_neither_early_nor_much_late() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        let tick = timers.now().after(Span::of(Duration::from_millis(250)));
        timers.schedule(7, tick);
        assert!(timers.due(start + Duration::from_millis(249)).is_empty());
        let wait = timers.next_wait(start).unwrap();
        assert!(wait >= Duration::from_millis(250) && wait <= Duration::from_millis(450), "{wait:?}");
        assert_eq!(timers.due(start + wait), [(7, tick)]);
        assert_eq!(timers.next_wait(start + wait), None);
    }

    #[test]
    fn a_deadline_beyond_the_round_is_looked_at_within_it() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        let far = timers.now().after(Span::of(Duration::from_secs(3600)));
        let scheduled = timers.schedule(1, far);
        assert!(scheduled < far);
        assert_eq!(timers.due(start + Duration::from_secs(104)), [(1, scheduled)]);
    }

    #[test]
    fn a_wheel_that_slept_for_rounds_still_schedules_right() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        let later = start + Duration::from_secs(1000);
        assert!(timers.due(later).is_empty());
        timers.advance(later);
        let tick = timers.now().after(Span::of(Duration::from_secs(1)));
        assert_eq!(timers.schedule(3, tick), tick);
        assert_eq!(timers.due(later + Duration::from_millis(1200)), [(3, tick)]);
    }
}
