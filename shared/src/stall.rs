//! What keeps a silent worker from answering, or a thread from ending its job: the time since it fell silent, told apart by what the scheduler says. Only time that
//! it spent on a processor or asleep by its own doing counts towards a hang; an overloaded or suspended host is none.

use std::fmt;
use std::time::{Duration, Instant};

use syscalls::Sysno;

use crate::sys::rest::Scheduling;

/// What a worker does instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It computes.
    Spinning,
    /// It sleeps in this system call.
    Blocked(Option<u32>),
    /// It waits for a disk, which no signal ends.
    Disk,
    /// Somebody has stopped it.
    Stopped,
    /// It could run and gets no processor.
    Starved,
}

impl Class {
    /// Whether what it does is told by its stack: it is where it is by its own doing.
    pub fn has_own_stack(self) -> bool {
        matches!(self, Class::Spinning | Class::Blocked(_))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Class::Spinning => f.write_str("spinning"),
            Class::Blocked(None) => f.write_str("blocked"),
            Class::Blocked(Some(number)) => match Sysno::new(number as usize) {
                Some(name) => write!(f, "blocked in {name}"),
                None => write!(f, "blocked in system call {number}"),
            },
            Class::Disk => f.write_str("waiting for a disk"),
            Class::Stopped => f.write_str("stopped"),
            Class::Starved => f.write_str("starved of processor time"),
        }
    }
}

/// A silence.
#[derive(Debug, Clone)]
pub struct Stall {
    asked: Option<Instant>,
    looked: Option<(Instant, Scheduling)>,
    spinning: Duration,
    blocked: Duration,
    disk: Duration,
    stopped: Duration,
    starved: Duration,
    syscall: Option<u32>,
    /// It has been written down, and other slots do its accepting.
    pub suspected: bool,
    /// It has been written down that it is spared.
    pub spared: bool,
}

impl Stall {
    /// One that begins.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Stall {
        let none = Duration::ZERO;
        let (spinning, blocked, disk, stopped, starved) = (none, none, none, none, none);
        let (suspected, spared) = (false, false);
        Stall { asked: None, looked: None, spinning, blocked, disk, stopped, starved, syscall: None, suspected, spared }
    }

    /// Whether it is time to look, `every` so long; then the next time is after that.
    pub fn is_due(&mut self, now: Instant, every: Duration) -> bool {
        let due = self.asked.is_none_or(|asked| now - asked >= every);
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// Counts the time since the last look, of which there should be one `every` so long. More than some of these is time that
    /// the master itself had no processor, and who knows who else.
    pub fn look(&mut self, now: Instant, every: Duration, scheduling: Scheduling) {
        if let Some((before, last)) = &self.looked {
            let whole = now.saturating_duration_since(*before);
            let passed = whole.min(every * 4);
            self.starved += whole - passed;
            let on_cpu = scheduling.on_cpu.saturating_sub(last.on_cpu).min(passed);
            let waited = scheduling.waited.saturating_sub(last.waited).min(passed - on_cpu);
            let rest = passed - on_cpu - waited;
            self.spinning += on_cpu;
            self.starved += waited;
            match scheduling.state {
                // A group over its quota is taken off the processor without being counted as waiting.
                'R' => self.starved += rest,
                'T' | 't' => self.stopped += rest,
                'D' => self.disk += rest,
                _ => self.blocked += rest,
            }
        }
        // What was interrupted (somebody looked at its stack) goes on under another name.
        let goes_on = scheduling.syscall == Some(Sysno::restart_syscall as u32) && self.syscall.is_some();
        if scheduling.state == 'S' && !goes_on {
            self.syscall = scheduling.syscall;
        }
        self.looked = Some((now, scheduling));
    }

    /// How much of the silence is its own.
    pub fn own(&self) -> Duration {
        self.spinning + self.blocked + self.disk
    }

    /// What it did most of the time.
    pub fn class(&self) -> Class {
        let classes = [
            (self.spinning, Class::Spinning),
            (self.blocked, Class::Blocked(self.syscall)),
            (self.disk, Class::Disk),
            (self.stopped, Class::Stopped),
            (self.starved, Class::Starved),
        ];
        classes.into_iter().max_by_key(|(time, _)| *time).map_or(Class::Spinning, |(_, class)| class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One second a look: state, milliseconds on a processor, milliseconds waiting for one.
    fn stall(looks: &[(char, u64, u64)]) -> Stall {
        let every = Duration::from_secs(1);
        let (mut stall, mut now, none) = (Stall::new(), Instant::now(), Duration::ZERO);
        let mut scheduling = Scheduling { state: 'S', on_cpu: none, waited: none, private_bytes: 0, syscall: Some(0) };
        stall.look(now, every, scheduling.clone());
        for (state, on_cpu, waited) in looks {
            now += Duration::from_secs(1);
            scheduling.state = *state;
            scheduling.on_cpu += Duration::from_millis(*on_cpu);
            scheduling.waited += Duration::from_millis(*waited);
            stall.look(now, every, scheduling.clone());
        }
        stall
    }

    #[test]
    fn each_kind_of_silence_is_called_what_it_is() {
        let seconds = Duration::from_secs;
        for (looks, class, own) in [
            ([('R', 1000, 0); 3], Class::Spinning, seconds(3)),
            ([('S', 0, 0); 3], Class::Blocked(Some(0)), seconds(3)),
            ([('D', 0, 0); 3], Class::Disk, seconds(3)),
            ([('T', 0, 0); 3], Class::Stopped, seconds(0)),
            ([('t', 0, 0); 3], Class::Stopped, seconds(0)),
            ([('R', 100, 900); 3], Class::Starved, Duration::from_millis(300)),
            ([('R', 100, 0); 3], Class::Starved, Duration::from_millis(300)),
            // Half of a processor is enough to answer with.
            ([('R', 600, 400); 3], Class::Spinning, Duration::from_millis(1800)),
        ] {
            let stall = stall(&looks);
            assert_eq!((stall.class(), stall.own()), (class, own), "{looks:?}");
        }
    }

    #[test]
    fn a_blocked_worker_is_told_with_the_call_that_it_sleeps_in() {
        assert_eq!(stall(&[('S', 0, 0)]).class().to_string(), "blocked in read");
        assert_eq!(Class::Blocked(None).to_string(), "blocked");
        assert_eq!(Class::Blocked(Some(100_000)).to_string(), "blocked in system call 100000");
    }

    #[test]
    fn a_pause_of_the_whole_host_is_nobodys_hang() {
        let mut stall = stall(&[('S', 0, 0)]);
        let (at, last) = stall.looked.clone().unwrap();
        stall.look(at + Duration::from_secs(60), Duration::from_secs(1), last);
        assert_eq!((stall.own(), stall.class()), (Duration::from_secs(5), Class::Starved));
    }

    #[test]
    fn figures_that_run_backwards_count_nothing() {
        let mut stall = stall(&[('R', 1000, 0)]);
        let (at, last) = stall.looked.clone().unwrap();
        stall.look(at, Duration::from_secs(1), Scheduling { on_cpu: Duration::ZERO, ..last });
        assert_eq!(stall.own(), Duration::from_secs(1));
    }
}
