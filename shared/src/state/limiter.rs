//! An exact rate limiter for any key, in shared memory (GCRA, ITU-T I.371, annex A).

use std::time::Duration;

use super::table::{Change, Table, TooLarge};
use super::{Error, check_name};
use crate::clock::since_boot;

/// How often a key may come, counted over all workers: at most `burst` at once, and one more each `interval`. In any span of time no
/// more than `burst + span / interval` are admitted, whoever asks in whichever process, and whoever dies meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct RateLimiter {
    /// When a key will have paid for all that it was admitted: nanoseconds since boot.
    debts: Table,
    interval: Duration,
    burst: u32,
}

/// Whether something is within its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is, and has been counted.
    Admitted,
    /// It is not, and has not been counted.
    Refused {
        /// When it would be admitted, if nothing else comes before.
        retry_after: Duration,
    },
}

impl RateLimiter {
    /// One of that name, for about `entries` keys of at most `key` bytes that are in debt at the same time: a key that has paid costs
    /// nothing. When there is no room for one more, the one that will have paid first is forgotten. Make it before the server starts.
    /// What keys owe is not forgotten by an upgrade, as [`Table::new`] says of keys and values; rate and burst may be others by then.
    ///
    /// # Errors
    /// As [`Table::new`].
    pub fn new(name: &str, interval: Duration, burst: u32, entries: usize, key: usize) -> Result<RateLimiter, Error> {
        check_name(name)?;
        let debts = Table::of(&format!("rate limiter {name}"), entries, key, 8)?;
        Ok(RateLimiter { debts, interval, burst: burst.max(1) })
    }

    /// One more of `key`, now.
    ///
    /// # Errors
    /// The key is too large.
    pub fn admit(&self, key: &[u8]) -> Result<Verdict, TooLarge> {
        self.admit_at(key, since_boot)
    }

    /// `clock` is asked while nobody else can change what the key owes.
    fn admit_at(&self, key: &[u8], clock: impl FnOnce() -> Duration) -> Result<Verdict, TooLarge> {
        let mut verdict = Verdict::Admitted;
        self.debts.update(key, |old| {
            let now = clock();
            let paid =
                old.and_then(|old| Some(u64::from_le_bytes(old.try_into().ok()?))).map_or(now, Duration::from_nanos);
            // All but one of the burst may be owed already.
            let most = now.saturating_add(self.interval.saturating_mul(self.burst - 1));
            // No more is ever owed; what says otherwise has been scribbled over.
            let paid = paid.clamp(now, now.saturating_add(self.interval.saturating_mul(self.burst)));
            if paid > most {
                verdict = Verdict::Refused { retry_after: paid - most };
                return Change::Keep;
            }
            let paid = paid.saturating_add(self.interval);
            let nanoseconds = u64::try_from(paid.as_nanos()).unwrap_or(u64::MAX);
            // Expiry is told in milliseconds, rounded down.
            let lasts = paid.saturating_sub(now).saturating_add(Duration::from_millis(2));
            Change::Set(nanoseconds.to_le_bytes().to_vec(), Some(lasts))
        })?;
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_at_once_and_then_one_each_interval() {
        let limiter = RateLimiter::new("alone", Duration::from_secs(10), 3, 100, 16).unwrap();
        let start = since_boot();
        let at = |key: &[u8], seconds: u64| limiter.admit_at(key, || start + Duration::from_secs(seconds)).unwrap();
        let refused = |seconds| Verdict::Refused { retry_after: Duration::from_secs(seconds) };
        assert_eq!(
            [(); 4].map(|()| at(b"a", 0)),
            [Verdict::Admitted, Verdict::Admitted, Verdict::Admitted, refused(10)]
        );
        assert_eq!(at(b"b", 0), Verdict::Admitted, "another key");
        assert_eq!((at(b"a", 4), at(b"a", 10), at(b"a", 10)), (refused(6), Verdict::Admitted, refused(10)));
        assert_eq!(
            [(); 4].map(|()| at(b"a", 60)),
            [Verdict::Admitted, Verdict::Admitted, Verdict::Admitted, refused(10)]
        );
        assert!(limiter.admit(&[0; 17]).is_err());
    }

    #[test]
    fn threads_together_get_no_more_than_one_would() {
        let limiter = RateLimiter::new("together", Duration::from_secs(100), 500, 10, 8).unwrap();
        let admitted = || (0..1000).filter(|_| limiter.admit(b"all") == Ok(Verdict::Admitted)).count();
        let threads = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(admitted)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
        assert_eq!(threads, 500);
    }
}
