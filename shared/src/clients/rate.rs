//! Request rates by GCRA: an entry holds the theoretical arrival time, when its client has paid for all that was admitted.
//!
//! Word: 20 bits of tag, 44 bits of time in microseconds, modulo 203 days. What lies further ahead than a debt may last, or
//! behind, is no debt.
//!
//! A client has one entry, though there is no lock. Whoever counted a request looks again before it says so: if the client
//! meanwhile has a second entry (two entered it at the same time, at different ways since these changed in between), it
//! takes its count back and begins anew. Of two who entered, the one who looks last sees both. So no request is admitted
//! that is not in the one entry which all others see.

use std::time::Duration;

use super::Verdict;
use super::set::{FREE, Place};

/// See [`super::Clients::MOST_DEBT`].
pub(super) const MOST_DEBT: Duration = Duration::from_micros(MOST_DEBT_TICKS);

const TAG_BITS: u32 = 20;
const TIME: u64 = (1 << (64 - TAG_BITS)) - 1;
/// The future is half of what the clock can tell; a debt lasts at most half of the future.
const MOST_DEBT_TICKS: u64 = (TIME + 1) / 4;
/// How late another process's clock may be: its turn may have begun long ago. More than a worker may hang.
const SLACK: u64 = 60_000_000;
/// How often a count is tried again before it is refused; each failure is another's success.
const MOST_TRIES: usize = 4096;
/// How often a second entry is looked at before it counts as left behind by a death; its maker takes it back at once.
const PATIENCE: usize = 256;

/// A rate in ticks of a microsecond.
#[derive(Clone, Copy)]
pub(super) struct Rate {
    /// What a request costs.
    cost: u64,
    /// The most that may be owed.
    credit: u64,
}

impl Rate {
    /// None: everything is admitted.
    pub(super) fn new(interval: Duration, burst: u32) -> Option<Rate> {
        // Rounded up: a little less than asked for is admitted, never more.
        let cost = u64::try_from(interval.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX).min(MOST_DEBT_TICKS);
        let credit = cost.saturating_mul(burst.max(1).into()).min(MOST_DEBT_TICKS);
        (cost > 0).then_some(Rate { cost, credit })
    }

    /// What `word` still owes at `now`.
    fn debt(self, word: u64, now: u64) -> u64 {
        Some(ahead(word, now)).filter(|debt| *debt <= self.credit + SLACK).unwrap_or(0)
    }
}

/// How far the time in `word` lies ahead of `now`; the past comes out as a large number.
fn ahead(word: u64, now: u64) -> u64 {
    word.wrapping_sub(now) & TIME
}

/// Whether `word` owes nothing by any rate.
fn is_paid(word: u64, now: u64) -> bool {
    word == FREE || !(1..=MOST_DEBT_TICKS + SLACK).contains(&ahead(word, now))
}

/// See [`super::Clients::admit`].
pub(super) fn admit(place: &Place, rate: Rate, now: Duration) -> Verdict {
    let now = now.as_micros() as u64 & TIME;
    let tag = place.tag(TAG_BITS);
    for turn in 0..MOST_TRIES {
        let (mine, second) = find(place, tag);
        if let (Some(mine), Some(second)) = (mine, second) {
            match turn < PATIENCE {
                true => std::hint::spin_loop(),
                false => join(place, rate, now, mine, second),
            }
            continue;
        }
        let debt = mine.map_or(0, |(_, word)| rate.debt(word, now));
        if let Some(wait) = (debt + rate.cost).checked_sub(rate.credit).filter(|wait| *wait > 0) {
            return Verdict::Refused { retry_after: Duration::from_micros(wait) };
        }
        let (way, old) = mine.unwrap_or_else(|| victim(place, now));
        let new = tag | (now + debt + rate.cost) & TIME;
        if !place.replace(way, old, new) {
            continue;
        }
        if find(place, tag).1.is_none() {
            return Verdict::Admitted;
        }
        // A word that another client had is not given back to it: it may have a new one by now.
        place.replace(way, new, if mine.is_some() { old } else { FREE });
    }
    Verdict::Refused { retry_after: Duration::from_micros(rate.cost) }
}

type Entry = (usize, u64);

/// The first and the second entry with this tag.
fn find(place: &Place, tag: u64) -> (Option<Entry>, Option<Entry>) {
    let mut entries = place.words().filter(|(_, word)| word & !TIME == tag);
    (entries.next(), entries.next())
}

/// The word that a new client gets: the first that is paid, or the one that will be paid first.
fn victim(place: &Place, now: u64) -> Entry {
    let mut soonest = None;
    for (way, word) in place.words() {
        if is_paid(word, now) {
            return (way, word);
        }
        if soonest.is_none_or(|(_, least)| ahead(word, now) < ahead(least, now)) {
            soonest = Some((way, word));
        }
    }
    soonest.unwrap_or((0, FREE))
}

/// Adds the debt of `second` to `mine` and frees it. In this order: a death in between leaves too much debt, not too little.
fn join(place: &Place, rate: Rate, now: u64, mine: Entry, second: Entry) {
    let debt = (rate.debt(mine.1, now) + rate.debt(second.1, now)).min(rate.credit);
    if place.replace(mine.0, mine.1, mine.1 & !TIME | (now + debt) & TIME) {
        place.replace(second.0, second.1, FREE);
    }
}
