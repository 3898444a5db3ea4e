//! Request rates by GCRA: an entry holds the theoretical arrival time, when its client has paid for all that was admitted.
//!
//! Word: 19 bits of tag, a bit that says *entering*, 44 bits of time in microseconds, modulo 203 days. What lies further
//! ahead than a debt may last, or behind, is no debt.
//!
//! A client has one entry, though there is no lock. It enters in two steps: an entering word, which counts nothing and
//! holds a number never used twice in place of the time; then, if the client has no other word in the set, that word
//! becomes its entry, with the first request counted in it. Whoever comes across an entering word takes the second step, so
//! that a death between the two holds nobody up. Why there is never a second entry: who takes the second step has looked at
//! every way after the word was there. Of two entering words the one that came last is looked for by someone who sees the
//! other, and takes its place from it or leaves it to be the entry; the compare-exchange of the second step fails for a word
//! that has lost its place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Verdict;
use super::set::{FREE, Place};

/// See [`super::Clients::MOST_DEBT`].
pub(super) const MOST_DEBT: Duration = Duration::from_micros(MOST_DEBT_TICKS);

const TAG_BITS: u32 = 19;
const ENTERING: u64 = 1 << 44;
const TIME: u64 = ENTERING - 1;
const TAG: u64 = !(ENTERING | TIME);
/// The future is half of what the clock can tell; a debt lasts at most half of the future.
const MOST_DEBT_TICKS: u64 = (TIME + 1) / 4;
/// How late another process's clock may be: its turn may have begun long ago. More than a worker may hang.
const SLACK: u64 = 60_000_000;
/// How often a request is tried again before it is refused; each failure is another's success.
const MOST_TRIES: usize = 4096;

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

    /// What the entry `word` still owes at `now`.
    fn debt(self, word: u64, now: u64) -> u64 {
        Some(ahead(word, now)).filter(|debt| *debt <= self.credit + SLACK).unwrap_or(0)
    }
}

/// How far the time in `word` lies ahead of `now`; the past comes out as a large number.
fn ahead(word: u64, now: u64) -> u64 {
    word.wrapping_sub(now) & TIME
}

fn is_entering(word: u64) -> bool {
    word & ENTERING != 0
}

/// Whether `word` is nobody's, or an entry that owes nothing by any rate.
fn is_paid(word: u64, now: u64) -> bool {
    word == FREE || !is_entering(word) && !(1..=MOST_DEBT_TICKS + SLACK).contains(&ahead(word, now))
}

/// Where a client stands in its set.
enum Standing {
    Entered(usize, u64),
    Entering(usize, u64),
    Absent,
}

impl Standing {
    fn of(place: &Place, tag: u64) -> Standing {
        let mut standing = Standing::Absent;
        for (way, word) in place.words().filter(|(_, word)| word & TAG == tag) {
            match standing {
                _ if !is_entering(word) => return Standing::Entered(way, word),
                Standing::Absent => standing = Standing::Entering(way, word),
                _ => {}
            }
        }
        standing
    }
}

/// See [`super::Clients::admit`]. `entries` counts the words that ever began to enter.
pub(super) fn admit(place: &Place, entries: &AtomicU64, rate: Rate, now: Duration) -> Verdict {
    let now = now.as_micros() as u64 & TIME;
    let tag = place.tag(TAG_BITS);
    for _ in 0..MOST_TRIES {
        match Standing::of(place, tag) {
            Standing::Entered(way, word) => {
                let owed = rate.debt(word, now) + rate.cost;
                if owed > rate.credit {
                    return Verdict::Refused { retry_after: Duration::from_micros(owed - rate.credit) };
                }
                if place.replace(way, word, tag | (now + owed) & TIME) {
                    return Verdict::Admitted;
                }
            }
            Standing::Entering(way, word) => {
                if is_alone(place, tag, way) && place.replace(way, word, tag | (now + rate.cost) & TIME) {
                    return Verdict::Admitted;
                }
            }
            Standing::Absent => {
                let (way, old) = victim(place, now);
                let number = entries.fetch_add(1, Ordering::Relaxed) & TIME;
                place.replace(way, old, tag | ENTERING | number);
            }
        }
    }
    Verdict::Refused { retry_after: Duration::from_micros(rate.cost) }
}

/// Whether the client has no word but that of `way`; other words of its that are entering lose their place for it.
fn is_alone(place: &Place, tag: u64, way: usize) -> bool {
    let mut others = place.words().filter(|(other, word)| *other != way && word & TAG == tag);
    others.all(|(other, word)| is_entering(word) && place.replace(other, word, FREE))
}

/// The word that a new client takes the place of: the first that is paid, or one that is entering, or the one that will be
/// paid first.
fn victim(place: &Place, now: u64) -> (usize, u64) {
    let (mut best, mut least) = ((0, FREE), u64::MAX);
    for (way, word) in place.words() {
        if is_paid(word, now) {
            return (way, word);
        }
        let rank = if is_entering(word) { 0 } else { ahead(word, now) };
        if rank < least {
            (best, least) = ((way, word), rank);
        }
    }
    best
}
