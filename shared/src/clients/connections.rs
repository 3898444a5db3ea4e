//! Connections by client. Word: 40 bits of tag, 24 bits of count; a count of zero is a free word.
//!
//! A client counted in two words (two entered it at the same time, at different ways) has their sum. A word with a count is
//! given to nobody else.

use super::set::{FREE, Place};

const TAG_BITS: u32 = 40;
const COUNT: u64 = (1 << (64 - TAG_BITS)) - 1;
/// How often a change is tried again; each failure is another's success.
const MOST_TRIES: usize = 4096;

/// See [`super::Clients::connect`].
pub(super) fn connect(place: &Place, most: u32) -> bool {
    let tag = place.tag(TAG_BITS);
    let most = u64::from(most).min(COUNT);
    for _ in 0..MOST_TRIES {
        if sum(place, tag) >= most {
            return false;
        }
        let Some((way, old)) = first(place, tag).or_else(|| place.words().find(|(_, word)| word & COUNT == 0)) else {
            return true;
        };
        if !place.replace(way, old, tag | ((old & COUNT) + 1)) {
            continue;
        }
        // One word moves in steps of one; only a second word can have taken the sum too far.
        if sum(place, tag) <= most {
            return true;
        }
        less(place, tag);
    }
    false
}

/// See [`super::Clients::disconnect`].
pub(super) fn disconnect(place: &Place) {
    less(place, place.tag(TAG_BITS));
}

/// See [`super::Clients::connections`].
pub(super) fn count(place: &Place) -> u32 {
    sum(place, place.tag(TAG_BITS)) as u32
}

fn less(place: &Place, tag: u64) {
    for _ in 0..MOST_TRIES {
        let Some((way, old)) = first(place, tag) else { return };
        let new = if old & COUNT == 1 { FREE } else { old - 1 };
        if place.replace(way, old, new) {
            return;
        }
    }
}

/// The first word with this tag and a count.
fn first(place: &Place, tag: u64) -> Option<(usize, u64)> {
    place.words().find(|(_, word)| word & !COUNT == tag && word & COUNT > 0)
}

fn sum(place: &Place, tag: u64) -> u64 {
    let counts = place.words().filter(|(_, word)| word & !COUNT == tag).map(|(_, word)| word & COUNT);
    counts.sum::<u64>().min(COUNT)
}
