//! Bytes that a ring has received ahead of what its connection could take: buffers in a chain, the first one named by the record.
//! What links them stands where a connection's buffer has its list of responses, which these have none of.

use std::sync::atomic::{AtomicU64, Ordering};

use super::BUFFER_BYTES;

const NEXT: usize = 0;
const POSITION: usize = 1;
const LEN: usize = 2;

/// A link of a chain; a view of shared words.
#[derive(Clone, Copy)]
pub struct Held {
    words: &'static [AtomicU64],
}

impl Held {
    pub(super) fn new(words: &'static [AtomicU64]) -> Held {
        Held { words }
    }

    /// Fills the link of a buffer whose first `len` bytes begin at stream position `position`; the last of its chain.
    pub fn fill(&self, position: u64, len: usize) {
        self.words[NEXT].store(0, Ordering::Release);
        self.words[POSITION].store(position, Ordering::Release);
        self.words[LEN].store(len as u64, Ordering::Release);
    }

    /// The stream position of the buffer's first byte.
    pub fn position(&self) -> u64 {
        self.words[POSITION].load(Ordering::Acquire)
    }

    /// How many bytes stand in it, whatever a dying worker has written: no more than a buffer has room for.
    pub fn filled(&self) -> usize {
        (self.words[LEN].load(Ordering::Acquire) as usize).min(BUFFER_BYTES)
    }

    /// The stream position behind its last byte.
    pub fn end(&self) -> u64 {
        self.position().saturating_add(self.filled() as u64)
    }

    /// The number of the buffer that follows.
    pub fn next(&self) -> Option<usize> {
        (self.words[NEXT].load(Ordering::Acquire) as usize).checked_sub(1)
    }

    /// Has buffer `next` follow.
    pub fn set_next(&self, next: usize) {
        self.words[NEXT].store((next as u64).saturating_add(1), Ordering::Release);
    }
}
