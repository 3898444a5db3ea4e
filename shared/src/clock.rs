//! The clock of a loop: read once a turn, asked as often as one likes. The calendar is looked at when it may have turned a page.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// The time of a turn.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    now: Instant,
    /// An instant, and the time since boot at it.
    origin: (Instant, Duration),
    epoch_seconds: u64,
    /// When the calendar is looked at again.
    calendar_at: Instant,
}

/// How late a second may be told; not more, since the calendar may be set.
const CALENDAR: Duration = Duration::from_millis(20);

impl Default for Clock {
    fn default() -> Clock {
        let now = Instant::now();
        Clock { now, origin: (now, since_boot()), epoch_seconds: epoch_seconds(), calendar_at: now + CALENDAR }
    }
}

impl Clock {
    /// Reads the time.
    pub fn tick(&mut self) {
        self.now = Instant::now();
        if self.now >= self.calendar_at {
            self.epoch_seconds = epoch_seconds();
            self.calendar_at = self.now + CALENDAR;
        }
    }

    /// The instant of the last tick.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The time since the machine booted, at the last tick: see [`since_boot`].
    pub fn since_boot(&self) -> Duration {
        self.origin.1 + self.now.saturating_duration_since(self.origin.0)
    }

    /// Seconds since 1970, at the last tick.
    pub fn epoch_seconds(&self) -> u64 {
        self.epoch_seconds
    }
}

/// The time since the machine booted, now: the same in all processes (clock_gettime(2), CLOCK_MONOTONIC).
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn epoch_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
