//! What a `respond` route is told to cost, so that models can be compared: time on a processor, and time asleep.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use phalanx_shared::config::Effort;

/// Turns between two looks at the clock, which is a system call.
const TURNS: u32 = 200;

/// Works for so long on a processor. Time that the thread does not get one does not count (clock_gettime(2),
/// CLOCK_THREAD_CPUTIME_ID).
pub(crate) fn work(time: Duration) {
    let Some(end) = on_processor().map(|now| now + time) else { return };
    while on_processor().is_some_and(|now| now < end) {
        for turn in 0..TURNS {
            std::hint::black_box(turn);
            std::hint::spin_loop();
        }
    }
}

/// Works, and then sleeps, and the thread with it.
pub(crate) fn make(effort: Effort) {
    work(effort.work);
    if !effort.wait.is_zero() {
        std::thread::sleep(effort.wait);
    }
}

fn on_processor() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok().map(Duration::from)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_is_time_on_a_processor_and_waiting_is_none() {
        let begun = on_processor().unwrap();
        work(Duration::from_millis(5));
        let worked = on_processor().unwrap();
        assert!(worked - begun >= Duration::from_millis(5), "{:?}", worked - begun);
        let (asleep, since) = (Duration::from_millis(20), Instant::now());
        make(Effort { work: Duration::ZERO, wait: asleep });
        assert!(since.elapsed() >= asleep);
        assert!(on_processor().unwrap() - worked < asleep / 2);
    }
}
