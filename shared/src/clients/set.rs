//! Sets of eight words, a cache line each, and where a hash has its place among them.
//!
//! It owns how a hash is split into set, order and tag. What the words below their tags mean is left to the tables.

use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a set: 64 bytes, one cache line, so that to look at all of them costs one.
pub(super) const WAYS: usize = 8;
/// The most sets that the low bits of a hash tell apart, so that no bit counts for the order or the tag as well.
pub(super) const MOST_SETS: usize = 1 << SET_BITS;
/// A word that is no entry.
pub(super) const FREE: u64 = 0;

const SET_BITS: u32 = 21;
const ORDER_BITS: u32 = WAYS.trailing_zeros();

/// Where a client has its entry: one of eight words.
pub(super) struct Place {
    ways: &'static [AtomicU64],
    /// The way that is looked at first.
    home: usize,
    hash: u64,
}

impl Place {
    /// The place of `hash` in `table`, whose length is a power of two, at least [`WAYS`].
    pub(super) fn new(table: &'static [AtomicU64], hash: u64) -> Place {
        let sets = table.len() / WAYS;
        let set = hash as usize & (sets - 1);
        Place { ways: &table[set * WAYS..][..WAYS], home: (hash >> SET_BITS) as usize & ((1 << ORDER_BITS) - 1), hash }
    }

    /// The highest `bits` (at most 40) of the hash, in place; never those of [`FREE`].
    pub(super) fn tag(&self, bits: u32) -> u64 {
        let unit = 1 << (64 - bits);
        (self.hash & !(unit - 1)).max(unit)
    }

    /// Every way with its word, the home way first: who looks for the same client looks in the same order, so that two
    /// who enter it at the same time meet at the same word.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        (0..WAYS).map(|step| (self.home + step) % WAYS).map(|way| (way, self.ways[way].load(Ordering::SeqCst)))
    }

    /// Puts `new` in place of `old`; false when `old` is no longer there.
    pub(super) fn replace(&self, way: usize, old: u64, new: u64) -> bool {
        self.ways[way].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
