//! What numbers, sizes and durations may be, and why.

use super::problem::Refusal;
use super::units::{show_duration, show_size};

/// A range with its reason, which the operator is told.
pub(super) struct Bounds {
    pub(super) least: u64,
    pub(super) most: u64,
    show: fn(u64) -> String,
    why: &'static str,
}

/// In milliseconds.
const DAY: u64 = 24 * 60 * 60 * 1000;

/// `workers.count`.
pub(super) const COUNT: Bounds = plain(1, 1024, "each slot has a keeper, a worker and a ledger");
/// `master.crash_reports`.
pub(super) const CRASH_REPORTS: Bounds = plain(1, 100_000, "to keep no reports, leave crash_dir out");
/// `workers.max_requests`: TOML has no larger whole number.
pub(super) const REQUESTS: Bounds = plain(0, i64::MAX as u64, "0 means that no worker is recycled for it");
/// `workers.max_old_generations`.
pub(super) const OLD_GENERATIONS: Bounds = plain(1, 2, "each holds memory until its last response has ended");
/// `quarantine.crashes`.
pub(super) const CRASHES: Bounds = plain(1, 1000, "who kills a thousand workers has been known for long");
/// `rescue.max_attempts`.
pub(super) const ATTEMPTS: Bounds = plain(0, 10, "a request that outlives ten workers is likely what kills them");
/// `limits.connections`.
pub(super) const CONNECTIONS: Bounds = plain(1, 1_000_000, "each connection has a record in its slot's ledger");
/// `limits.connections_per_client`: a slot holds no more of them.
pub(super) const CONNECTIONS_PER_CLIENT: Bounds = plain(0, 1_000_000, "0 means as many as the client likes");
/// `limits.requests_per_connection`: TOML has no larger whole number.
pub(super) const REQUESTS_PER_CONNECTION: Bounds =
    plain(0, i64::MAX as u64, "0 means that no connection is closed for it");
/// `workers.threads`.
pub(super) const THREADS: Bounds = plain(1, 16_384, "each has a stack, and a process may have no more than so many");
/// `workers.loops`.
pub(super) const LOOPS: Bounds = plain(1, 64, "more loops than processors only take turns");
/// `workers.queue`.
pub(super) const QUEUE: Bounds = plain(1, 65_536, "who waits behind so many has gone by then");
/// `workers.io_threads`.
pub(super) const IO_THREADS: Bounds = plain(1, 64, "a disk serves a few reads at once, and every worker has as many");
/// `cache.open_files`.
pub(super) const OPEN_FILES: Bounds =
    plain(0, 4096, "they come out of the descriptors that a worker has for its connections");
/// `limit.burst`: the longest interval times this fits 63 bits of nanoseconds.
pub(super) const BURST: Bounds = plain(1, 100_000, "this many requests may come at once");
/// `respond.status`: a 1xx is not a final answer.
pub(super) const STATUS: Bounds = plain(200, 599, "final answers have these (RFC 9110, section 15)");
/// `limits.head`, in bytes: the ledger's request buffer must hold a head with room to read on.
pub(super) const HEAD: Bounds =
    size(1 << 10, 14 << 10, "a head must fit its buffer in the ledger, and browsers fill 1KiB");
/// Other sizes, in bytes: a file offset is no larger.
pub(super) const SIZE: Bounds = size(0, i64::MAX as u64, "no file or process is larger");
/// Rates that a peer must keep up, in bytes a second.
pub(super) const RATE: Bounds = size(0, 1 << 30, "as bytes a second; 0 means that no peer is too slow");
/// How long a worker serves, in milliseconds.
pub(super) const AGE: Bounds = time(0, 10 * 365 * DAY, "0s means that no worker is too old");
/// How long a configuration is tried, in milliseconds.
pub(super) const TRIAL: Bounds = time(0, DAY, "0s means that it is not tried, and nobody waits longer than a day");
/// How long a request may be worked on, in milliseconds.
pub(super) const REQUEST_TIME: Bounds = time(0, DAY, "0s means that a request may take any time");
/// What a `respond` route costs, in milliseconds.
pub(super) const EFFORT: Bounds = time(0, 60 * 1000, "0s means nothing, and what takes longer is a fault route");
/// How long a stop is announced, in milliseconds.
pub(super) const UNREADY: Bounds = time(0, DAY / 24, "0s means that a stop begins at once");
/// `workers.give_up_after`.
pub(super) const DEATHS: Bounds = plain(0, 1_000_000, "0 means that the service never gives up");
/// `canary.errors`.
pub(super) const PERCENT: Bounds = plain(0, 100, "percentage points");
/// `canary.latency`.
pub(super) const FACTOR: Bounds = plain(0, 1000, "0 means that the time does not count");
/// Every timeout, in milliseconds: none would wait for ever, and a day is for ever.
pub(super) const TIMEOUT: Bounds = time(1, DAY, "a timeout is more than zero, at most a day");

const fn plain(least: u64, most: u64, why: &'static str) -> Bounds {
    Bounds { least, most, show: show_plain, why }
}

const fn size(least: u64, most: u64, why: &'static str) -> Bounds {
    Bounds { least, most, show: show_size, why }
}

/// In milliseconds.
const fn time(least: u64, most: u64, why: &'static str) -> Bounds {
    Bounds { least, most, show: show_duration, why }
}

fn show_plain(number: u64) -> String {
    number.to_string()
}

impl Bounds {
    /// The number as a `T`, if it is within the bounds.
    ///
    /// `T` must be able to hold the upper bound; what it cannot hold is refused as too large.
    pub(super) fn check<T: TryFrom<u64>>(&self, number: impl Into<i128>) -> Result<T, Refusal> {
        let number = number.into();
        if number < i128::from(self.least) {
            return Err(self.refusal(number, "less than", self.least));
        }
        let within = u64::try_from(number).ok().filter(|number| *number <= self.most);
        within.and_then(|number| T::try_from(number).ok()).ok_or_else(|| self.refusal(number, "more than", self.most))
    }

    fn refusal(&self, number: i128, compared: &str, bound: u64) -> Refusal {
        let shown = u64::try_from(number).map_or_else(|_| number.to_string(), self.show);
        let Self { least, most, show, why } = self;
        let text = format!("{shown} is {compared} {}", show(bound));
        Refusal::new(text, format!("use {} to {}: {why}", show(*least), show(*most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_the_bounds_are_within_and_numbers_beyond_are_told_why() {
        assert_eq!(COUNT.check(1), Ok(1_u16));
        assert_eq!(COUNT.check(1024), Ok(1024_u16));
        assert_eq!(COUNT.check::<u16>(-1).unwrap_err().text, "-1 is less than 1");
        assert_eq!(HEAD.check::<u16>(15 << 10).unwrap_err().text, "15KiB is more than 14KiB");
        let hint = TIMEOUT.check::<u64>(0).unwrap_err().hint;
        assert_eq!(hint, "use 1ms to 24h: a timeout is more than zero, at most a day");
    }
}
