//! The responses that a connection has begun: a list beside its request buffer, written before the first byte of each leaves,
//! so that a successor can tell from the kernel's count of bytes sent which are done and where one broke off.

use std::sync::atomic::{AtomicU64, Ordering};

use super::MAX_PENDING;

const WORDS: usize = 6;
/// Bytes of a list.
pub const LIST_BYTES: usize = MAX_PENDING * WORDS * 8;

/// One response begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Stream position (of what was read) one past the request.
    pub request_end: u64,
    /// Stream position (of what is written) of the response's first byte.
    pub response_start: u64,
    /// One past its last byte; 0 while the handler runs.
    pub response_end: u64,
    /// What decides the response's bytes, hashed; 0: they cannot be made again.
    pub validator: u64,
    /// The second that the response's Date names, since the epoch.
    pub date: u64,
    /// What kind of request and response this is.
    pub kind: Kind,
}

/// What a successor must know of a response before it looks at the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kind {
    /// The request may be run again (RFC 9110 section 9.2.2).
    pub idempotent: bool,
    /// An interim `100 Continue`: it answers nothing and is not counted.
    pub interim: bool,
    /// The connection ends with this response.
    pub last: bool,
    /// The status, for the counters.
    pub status: u16,
}

impl Kind {
    fn to_word(self) -> u64 {
        u64::from(self.idempotent)
            | u64::from(self.interim) << 1
            | u64::from(self.last) << 2
            | u64::from(self.status) << 16
    }

    fn from_word(word: u64) -> Kind {
        Kind { idempotent: word & 1 != 0, interim: word & 2 != 0, last: word & 4 != 0, status: (word >> 16) as u16 }
    }
}

/// A connection's list; a view of shared words.
#[derive(Clone, Copy)]
pub struct Pending {
    words: &'static [AtomicU64],
}

impl Pending {
    pub(super) fn new(words: &'static [AtomicU64]) -> Pending {
        Pending { words }
    }

    /// Writes entry `index` (below [`MAX_PENDING`]). It counts once the record's state says so.
    pub fn set(&self, index: usize, entry: &Entry) {
        let words = &self.words[index * WORDS..][..WORDS];
        let values = [
            entry.request_end,
            entry.response_start,
            entry.response_end,
            entry.validator,
            entry.date,
            entry.kind.to_word(),
        ];
        for (word, value) in words.iter().zip(values) {
            word.store(value, Ordering::Release);
        }
    }

    /// Copies another list, that of the same connection in another ledger.
    pub fn copy(&self, other: &Pending) {
        for (word, value) in self.words.iter().zip(other.words) {
            word.store(value.load(Ordering::Acquire), Ordering::Release);
        }
    }

    /// Reads entry `index`; none beyond the list.
    pub fn get(&self, index: usize) -> Option<Entry> {
        let words = self.words.get(index * WORDS..)?.get(..WORDS)?;
        let value = |index: usize| words[index].load(Ordering::Acquire);
        Some(Entry {
            request_end: value(0),
            response_start: value(1),
            response_end: value(2),
            validator: value(3),
            date: value(4),
            kind: Kind::from_word(value(5)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let (ledger, _fd) = Ledger::create("test", 8, 1).unwrap();
        let pending = ledger.pending(&ledger.buffer(0).unwrap());
        let kind = Kind { idempotent: true, interim: false, last: true, status: 206 };
        let entry = Entry { request_end: 1, response_start: 2, response_end: 3, validator: 4, date: 5, kind };
        pending.set(MAX_PENDING - 1, &entry);
        assert_eq!(pending.get(MAX_PENDING - 1), Some(entry));
        assert_eq!(pending.get(MAX_PENDING), None);
    }
}
