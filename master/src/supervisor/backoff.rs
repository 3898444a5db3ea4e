//! How long a slot waits before it tries again when its workers keep dying before they are ready.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// The pause after `deaths` deaths in a row (from 1), before jitter.
fn pause(deaths: u32) -> Duration {
    FIRST.saturating_mul(1 << deaths.saturating_sub(1).min(16)).min(LONGEST)
}

/// The pause with up to a quarter added at random, so that slots that fail together do not try together for ever.
pub(crate) fn jittered(deaths: u32) -> Duration {
    let pause = pause(deaths);
    let random = RandomState::new().build_hasher().finish() % 256;
    pause + pause / 4 * random as u32 / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_jitter_stays_within_a_quarter() {
        assert_eq!(pause(1), Duration::from_millis(100));
        assert_eq!(pause(3), Duration::from_millis(400));
        assert_eq!(pause(u32::MAX), Duration::from_secs(10));
        for _ in 0..100 {
            let jittered = jittered(2);
            assert!(jittered >= pause(2) && jittered <= pause(2) * 5 / 4);
        }
    }
}
