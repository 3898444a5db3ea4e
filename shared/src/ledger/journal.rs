//! Changes that span several words, written down before they are carried out: a worker that dies half-way leaves an entry
//! that its successor carries out again, with the same result. Two kinds: the *retire* of answered requests (so that each is
//! counted exactly once) and the *move* of a connection to another buffer.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lane::{Counter, Stats};
use super::record::{Record, State};

/// Words of a journal.
pub const WORDS: usize = 8;
const RETIRE_FD: usize = 0;
const RETIRE_TOTAL: usize = 1;
const RETIRE_START: usize = 2;
const RETIRE_STATE: usize = 3;
const MOVE_FD: usize = 4;
const MOVE_BUFFER: usize = 5;
const MOVE_BASE: usize = 6;

/// Requests that are answered to the last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retire {
    /// The connection.
    pub fd: RawFd,
    /// The record's `start` from then on.
    pub start: u64,
    /// The record's state from then on.
    pub state: State,
    /// How many to count.
    pub answered: u64,
}

/// A lane's journal; a view of shared words.
#[derive(Clone, Copy)]
pub struct Journal {
    words: &'static [AtomicU64],
}

impl Journal {
    pub(super) fn new(words: &'static [AtomicU64]) -> Journal {
        Journal { words }
    }

    fn get(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }

    fn set(&self, index: usize, value: u64) {
        self.words[index].store(value, Ordering::Release);
    }

    /// Takes answered requests off the connection of `record` and counts them in the lane's `stats`. `between` runs after the
    /// commit and between the steps (crash points).
    pub fn retire(&self, record: &Record, retire: &Retire, stats: &Stats, between: fn()) {
        self.set(RETIRE_TOTAL, stats.get(Counter::Requests) + retire.answered);
        self.set(RETIRE_START, retire.start);
        self.set(RETIRE_STATE, retire.state.to_word());
        self.set(RETIRE_FD, retire.fd as u64 + 1);
        between();
        self.finish_retire(record, stats, between);
    }

    fn finish_retire(&self, record: &Record, stats: &Stats, between: fn()) {
        record.set_start(self.get(RETIRE_START));
        record.set_state(State::from_word(self.get(RETIRE_STATE)));
        between();
        stats.set(Counter::Requests, self.get(RETIRE_TOTAL));
        self.set(RETIRE_FD, 0);
    }

    /// Moves a connection's unanswered bytes, already copied, to `buffer`, whose first byte has stream position `base`.
    pub fn relocate(&self, fd: RawFd, record: &Record, buffer: usize, base: u64) {
        self.set(MOVE_BUFFER, buffer as u64);
        self.set(MOVE_BASE, base);
        self.set(MOVE_FD, fd as u64 + 1);
        self.finish_relocate(record);
    }

    fn finish_relocate(&self, record: &Record) {
        record.set_base(self.get(MOVE_BASE));
        record.set_buffer(Some(self.get(MOVE_BUFFER) as usize));
        self.set(MOVE_FD, 0);
    }

    /// Carries out what a dead worker had begun. `record` finds the record of a descriptor.
    pub fn settle(&self, stats: &Stats, record: impl Fn(RawFd) -> Option<Record>) {
        if let Some(record) = self.descriptor(RETIRE_FD).and_then(&record) {
            self.finish_retire(&record, stats, || ());
        }
        if let Some(record) = self.descriptor(MOVE_FD).and_then(&record) {
            self.finish_relocate(&record);
        }
        self.set(RETIRE_FD, 0);
        self.set(MOVE_FD, 0);
    }

    fn descriptor(&self, index: usize) -> Option<RawFd> {
        RawFd::try_from(self.get(index).checked_sub(1)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::ledger::record::Peer;

    /// A worker that dies at the commit, then one that dies just before the entry is cleared: each is settled to the same end.
    #[test]
    fn a_retire_cut_short_counts_each_request_once() {
        for die_at in [1, 2] {
            let (ledger, _fd) = Ledger::create("test", 8, 1).unwrap();
            let (lane, record) = (ledger.lane(0), ledger.record(5).unwrap());
            record.fill(1, Peer::Unix, 0);
            record.set_state(State { pending: 3, ..State::default() });
            lane.stats().add(Counter::Requests, 10);
            std::thread_local!(static CALLS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
            std::thread_local!(static DIE_AT: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
            CALLS.set(0);
            DIE_AT.set(die_at);
            let died = std::panic::catch_unwind(|| {
                let retire = Retire { fd: 5, start: 300, state: State::default(), answered: 3 };
                lane.journal().retire(&record, &retire, &lane.stats(), || {
                    CALLS.set(CALLS.get() + 1);
                    assert!(CALLS.get() != DIE_AT.get(), "dies here");
                });
            });
            assert!(died.is_err());
            for _ in 0..2 {
                lane.journal().settle(&lane.stats(), |fd| ledger.record(fd));
                assert_eq!(lane.stats().get(Counter::Requests), 13);
                assert_eq!((record.start(), record.state()), (300, State::default()));
            }
        }
    }

    #[test]
    fn a_journal_full_of_noise_is_settled_without_harm() {
        let (ledger, _fd) = Ledger::create("test", 8, 1).unwrap();
        let lane = ledger.lane(0);
        for word in 0..WORDS {
            lane.journal().set(word, u64::MAX - word as u64);
        }
        lane.journal().settle(&lane.stats(), |fd| ledger.record(fd));
        assert_eq!(lane.stats().get(Counter::Requests), 0);
    }
    /// Found by fuzzing: the number after the last made "no buffer", and the bytes in it forgotten.
    #[test]
    fn a_move_to_a_buffer_that_cannot_be_stays_one() {
        let (ledger, _fd) = Ledger::create("test", 8, 1).unwrap();
        let (lane, record) = (ledger.lane(0), ledger.record(5).unwrap());
        lane.journal().set(MOVE_BUFFER, u64::MAX);
        lane.journal().set(MOVE_FD, 6);
        lane.journal().settle(&lane.stats(), |fd| ledger.record(fd));
        assert!(record.buffer().is_some_and(|index| ledger.buffer(index).is_none()));
    }
}
