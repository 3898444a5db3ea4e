//! A lane: the part of a ledger that one living worker writes; its first thread, but for the [tracks](super::track) of others.
//! Predecessor and successor use different lanes, so neither needs a lock.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::journal::Journal;
use super::track::{self, Track};
use super::words::{Notes, Orders};
use crate::ipc::Incarnation;
use crate::stats::Snapshot;
use crate::sys::crash_signal::{self, Suspect};

/// Words of a lane.
pub const WORDS: usize = 256;
/// Bytes of a lane.
pub const BYTES: usize = WORDS * 8;

const ORDERS: usize = 0;
const HIGH_WATER: usize = 1;
const TURNS: usize = 2;
const TRACKS: usize = 3;
const ACCEPTING: usize = 4;
const WISH: usize = 5;
const TURN_BEGAN: usize = 6;
const FETCHING: usize = 7;
const CRASH_POINTS: usize = 8;
const TRACK: usize = 40;
const NOTES: usize = 80;
const LAST_WORDS: usize = 128;
const RING: usize = 192;
/// Descriptors that a worker can note as its own.
const MAX_NOTES: usize = LAST_WORDS - NOTES;

/// What can be wished of a worker by its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `ToWorker::Yield`.
    Yield = 1,
    /// `ToWorker::Drain` of this worker alone.
    Drain = 2,
    /// `ToWorker::Drain` of the whole service.
    Stop = 3,
    /// `ToWorker::Unready`.
    Unready = 4,
}

/// What is counted. Totals never go back: they stay when the worker goes. `Connections` is the one gauge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Requests answered to their last byte.
    Requests,
    /// Connections accepted.
    Accepted,
    /// Bytes read.
    BytesIn,
    /// Bytes written.
    BytesOut,
    /// Responses by class: 1xx (never), 2xx, 3xx, 4xx, 5xx.
    Status2xx,
    /// See above.
    Status3xx,
    /// See above.
    Status4xx,
    /// See above.
    Status5xx,
    /// Connections that outlived their worker's death.
    Rescued,
    /// Requests run again after a death.
    Replayed,
    /// Responses continued at the exact byte after a death.
    Continued,
    /// Requests answered 500 or 504 because their worker died of them or they cannot be run again.
    Failed,
    /// Connections that a rescue had to close.
    Closed,
    /// Connections open now.
    Connections,
    /// Nanoseconds that the loop and the threads of the pool have worked.
    Busy,
}

/// How many counters there are.
pub const COUNTERS: usize = Counter::Busy as usize + 1;

/// One lane; a view of shared words.
#[derive(Clone, Copy)]
pub struct Lane {
    words: &'static [AtomicU64],
}

impl Lane {
    pub(super) fn new(words: &'static [AtomicU64]) -> Lane {
        Lane { words }
    }

    /// The track of the worker's first thread.
    pub fn track(&self) -> Track {
        Track::new(&self.words[TRACK..TRACK + track::WORDS])
    }

    /// One more than the highest number of a track that is or was in use, the first being number 0.
    pub fn tracks(&self) -> usize {
        (self.words[TRACKS].load(Ordering::Acquire) as usize).min(track::MOST) + 1
    }

    /// Raises [`Lane::tracks`] so that it covers track `number`.
    pub fn use_track(&self, number: usize) {
        self.words[TRACKS].fetch_max(number as u64, Ordering::AcqRel);
    }

    /// The connection that the worker's first thread is busy with, the suspect if it dies of itself now.
    pub fn current(&self) -> Option<RawFd> {
        self.track().current()
    }

    /// Sets [`Lane::current`].
    pub fn set_current(&self, fd: Option<RawFd>) {
        self.track().set_current(fd);
    }

    /// What the thread that spoke the last words was busy with; that of the loop if there were none.
    pub fn suspect(&self) -> Suspect {
        crash_signal::suspect(self.last_words()[crash_signal::SUSPECT].load(Ordering::Acquire))
    }

    /// The connection that was being worked on when the worker died.
    pub fn accused(&self) -> Option<RawFd> {
        match self.suspect() {
            Suspect::OfTheLoop => self.current(),
            Suspect::Connection(fd) => Some(fd),
            Suspect::Nobody => None,
        }
    }

    /// Whether the worker is between an accept and the record of what it accepted.
    pub fn is_accepting(&self) -> bool {
        self.words[ACCEPTING].load(Ordering::Acquire) != 0
    }

    /// Sets [`Lane::is_accepting`].
    pub fn set_accepting(&self, accepting: bool) {
        self.words[ACCEPTING].store(accepting.into(), Ordering::Release);
    }

    /// Whether the worker is between receiving descriptors from a former table and their records.
    pub fn is_fetching(&self) -> bool {
        self.words[FETCHING].load(Ordering::Acquire) != 0
    }

    /// Sets [`Lane::is_fetching`].
    pub fn set_fetching(&self, fetching: bool) {
        self.words[FETCHING].store(fetching.into(), Ordering::Release);
    }

    /// The worker's own descriptors, but for those that its threads have in their tracks.
    pub fn notes(&self) -> Notes {
        Notes(&self.words[NOTES..][..MAX_NOTES])
    }

    /// The orders that stand for the worker.
    pub fn orders(&self) -> Orders {
        Orders(&self.words[ORDERS])
    }

    /// The highest descriptor that ever had a record here.
    pub fn high_water(&self) -> RawFd {
        RawFd::try_from(self.words[HIGH_WATER].load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Raises [`Lane::high_water`].
    pub fn raise_high_water(&self, fd: RawFd) {
        // The threads of a worker open files too.
        if fd > self.high_water() {
            self.words[HIGH_WATER].fetch_max(fd as u64, Ordering::AcqRel);
        }
    }

    /// Counts a turn of the loop: the lane's heartbeat.
    pub fn beat(&self) {
        let turns = self.turns();
        self.words[TURNS].store(turns.wrapping_add(1), Ordering::Release);
    }

    /// When the loop began its last turn, on the clock that all processes share ([`since_boot`](crate::clock::since_boot)); zero before the first.
    pub fn turn_began(&self) -> Duration {
        Duration::from_millis(self.words[TURN_BEGAN].load(Ordering::Acquire))
    }

    /// Sets [`Lane::turn_began`].
    pub fn begin_turn(&self, now: Duration) {
        self.words[TURN_BEGAN].store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Turns of the loop so far.
    pub fn turns(&self) -> u64 {
        self.words[TURNS].load(Ordering::Acquire)
    }

    /// The journal of the worker's first thread.
    pub fn journal(&self) -> Journal {
        self.track().journal()
    }

    /// The counters of the worker's first thread.
    pub fn stats(&self) -> Stats {
        self.track().stats()
    }

    /// The descriptor of the ring that a worker receives by, and that worker: what the ring has completed and the worker has not seen
    /// is there after its death.
    pub fn ring(&self) -> Option<(RawFd, Incarnation)> {
        let word = self.words[RING].load(Ordering::Acquire);
        let fd = (word as u32).checked_sub(1)?;
        Some((RawFd::try_from(fd).ok()?, Incarnation((word >> 32) as u32)))
    }

    /// Sets [`Lane::ring`].
    pub fn set_ring(&self, ring: Option<(RawFd, Incarnation)>) {
        let word = ring.map_or(0, |(fd, owner)| u64::from(owner.0) << 32 | (u64::from(fd as u32) + 1));
        self.words[RING].store(word, Ordering::Release);
    }

    /// Where the fatal-signal handler writes.
    pub fn last_words(&self) -> &'static [AtomicU64] {
        &self.words[LAST_WORDS..LAST_WORDS + crash_signal::WORDS]
    }

    /// What the program that replaced the master wishes of the lane's worker: it has no channel to it. The bell of the lane rings
    /// with it.
    pub fn wish(&self) -> Option<Wish> {
        match self.words[WISH].load(Ordering::Acquire) {
            1 => Some(Wish::Yield),
            2 => Some(Wish::Drain),
            3 => Some(Wish::Stop),
            4 => Some(Wish::Unready),
            _ => None,
        }
    }

    /// Sets [`Lane::wish`].
    pub fn set_wish(&self, wish: Option<Wish>) {
        self.words[WISH].store(wish.map_or(0, |wish| wish as u64), Ordering::Release);
    }

    /// How often crash point `index` (below 32) has been passed in this slot, this time included.
    pub fn pass_crash_point(&self, index: usize) -> u64 {
        self.words[CRASH_POINTS + index].fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// A track's counters. One writer at a time: the track's thread, or after its death who succeeds it.
#[derive(Clone, Copy)]
pub struct Stats {
    words: &'static [AtomicU64],
}

impl Stats {
    pub(super) fn new(words: &'static [AtomicU64]) -> Stats {
        Stats { words }
    }

    /// A counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.words[counter as usize].load(Ordering::Acquire)
    }

    /// Sets a counter.
    pub fn set(&self, counter: Counter, value: u64) {
        self.words[counter as usize].store(value, Ordering::Release);
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, amount: u64) {
        // One writer: no need for an atomic read-modify-write, which costs a locked instruction a request.
        self.set(counter, self.get(counter).wrapping_add(amount));
    }

    /// Counts a response by its class.
    pub fn count_status(&self, status: u16) {
        let class = match status {
            200..=299 => Counter::Status2xx,
            300..=399 => Counter::Status3xx,
            400..=499 => Counter::Status4xx,
            500..=599 => Counter::Status5xx,
            _ => return,
        };
        self.add(class, 1);
    }

    /// All counters at once.
    pub fn snapshot(&self) -> Snapshot {
        let get = |counter| self.get(counter);
        Snapshot {
            requests: get(Counter::Requests),
            accepted: get(Counter::Accepted),
            bytes_in: get(Counter::BytesIn),
            bytes_out: get(Counter::BytesOut),
            status_2xx: get(Counter::Status2xx),
            status_3xx: get(Counter::Status3xx),
            status_4xx: get(Counter::Status4xx),
            status_5xx: get(Counter::Status5xx),
            rescued: get(Counter::Rescued),
            replayed: get(Counter::Replayed),
            continued: get(Counter::Continued),
            failed: get(Counter::Failed),
            closed: get(Counter::Closed),
            connections: get(Counter::Connections),
            busy_ns: get(Counter::Busy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn every_wish_is_heard() {
        let lane = Ledger::create("test", 8, 1).unwrap().0.lane(0);
        for wish in [None, Some(Wish::Yield), Some(Wish::Drain), Some(Wish::Stop), Some(Wish::Unready)] {
            lane.set_wish(wish);
            assert_eq!(lane.wish(), wish);
        }
    }
}
