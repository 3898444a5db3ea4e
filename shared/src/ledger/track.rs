//! A track: the part of a lane that one thread of a worker writes, or one process that serves a connection for it. The first is that of
//! the worker's first thread and stands in the lane itself; the others stand behind the lanes.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::journal::{self, Journal};
use super::lane::{COUNTERS, Counter, Stats};
use super::words::{Notes, Orders};
use crate::sys::crash_signal;

/// Words of a track that stands in a lane.
pub(super) const WORDS: usize = 40;
/// Words of one that stands for itself: last words follow.
pub(super) const OWN_WORDS: usize = WORDS + crash_signal::WORDS;
/// Bytes of one that stands for itself.
pub const BYTES: usize = OWN_WORDS * 8;
/// The most tracks of a lane beside the first.
pub const MOST: usize = 16_384;

const CURRENT: usize = 0;
const CLOSING: usize = 1;
const NOTES: usize = 2;
/// Descriptors that a thread can note as its own.
const MAX_NOTES: usize = IDLE - NOTES;
const IDLE: usize = 8;
const BUSY_SINCE: usize = 9;
const THREAD: usize = 10;
const ORDERS: usize = 11;
const CHILD: usize = 12;
const LENT: usize = 13;
/// Buffers that a process of its own can have.
pub const MAX_LENT: usize = JOURNAL - LENT;
const JOURNAL: usize = 16;
const STATS: usize = 24;

/// One track; a view of shared words.
#[derive(Clone, Copy)]
pub struct Track {
    words: &'static [AtomicU64],
}

impl Track {
    pub(super) fn new(words: &'static [AtomicU64]) -> Track {
        Track { words }
    }

    /// The connection that is being worked on, the suspect if the worker dies of itself now.
    pub fn current(&self) -> Option<RawFd> {
        self.descriptor(CURRENT)
    }

    /// Sets [`Track::current`].
    pub fn set_current(&self, fd: Option<RawFd>) {
        self.set_descriptor(CURRENT, fd);
    }

    /// The word of [`Track::current`], as [`works_for`](crash_signal::works_for) writes it.
    pub fn current_word(&self) -> &'static AtomicU64 {
        &self.words[CURRENT]
    }

    /// The thread's own descriptors, at most six.
    pub fn notes(&self) -> Notes {
        Notes(&self.words[NOTES..][..MAX_NOTES])
    }

    /// The orders that stand for the process that writes the track.
    pub fn orders(&self) -> Orders {
        Orders(&self.words[ORDERS])
    }

    /// The number of the last event of the one connection that is served here, if that is idle.
    pub fn idle(&self) -> Option<u64> {
        Some(self.words[IDLE].load(Ordering::Acquire)).filter(|event| *event != 0)
    }

    /// Sets [`Track::idle`]; no event has the number 0.
    pub fn set_idle(&self, event: Option<u64>) {
        self.words[IDLE].store(event.unwrap_or(0), Ordering::Release);
    }

    /// Since when, on the clock of [`since_boot`](crate::clock::since_boot), the one connection that is served here is worked on.
    pub fn busy_since(&self) -> Option<Duration> {
        Some(self.words[BUSY_SINCE].load(Ordering::Acquire)).filter(|since| *since != 0).map(Duration::from_nanos)
    }

    /// Sets [`Track::busy_since`].
    pub fn set_busy_since(&self, since: Option<Duration>) {
        let word = since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1));
        self.words[BUSY_SINCE].store(word, Ordering::Release);
    }

    /// The thread that serves here; none: nobody does.
    pub fn thread(&self) -> Option<i32> {
        i32::try_from(self.words[THREAD].load(Ordering::Acquire)).ok().filter(|thread| *thread > 0)
    }

    /// Sets [`Track::thread`].
    pub fn set_thread(&self, thread: Option<i32>) {
        self.words[THREAD].store(thread.and_then(|it| u64::try_from(it).ok()).unwrap_or(0), Ordering::Release);
    }

    /// The descriptor of the process that writes the track (a pidfd), if it is one of its own; it stands in the table of the slot.
    pub fn child(&self) -> Option<RawFd> {
        self.descriptor(CHILD)
    }

    /// Sets [`Track::child`].
    pub fn set_child(&self, pidfd: Option<RawFd>) {
        self.set_descriptor(CHILD, pidfd);
    }

    /// The numbers of the buffers that this process has, whether a record names them or not.
    pub fn lent(&self) -> impl Iterator<Item = usize> + use<> {
        let words = &self.words[LENT..][..MAX_LENT];
        words.iter().filter_map(|word| (word.load(Ordering::Acquire) as usize).checked_sub(1))
    }

    /// Sets [`Track::lent`], at most [`MAX_LENT`].
    pub fn set_lent(&self, buffers: impl IntoIterator<Item = usize>) {
        let numbers = buffers.into_iter().map(|number| number as u64 + 1).chain(std::iter::repeat(0));
        for (word, number) in self.words[LENT..][..MAX_LENT].iter().zip(numbers) {
            word.store(number, Ordering::Release);
        }
    }

    /// Where the fatal-signal handler of such a process writes; none in a track that stands in its lane.
    pub fn last_words(&self) -> Option<&'static [AtomicU64]> {
        self.words.get(WORDS..WORDS + crash_signal::WORDS)
    }

    /// The connection whose record was freed in order to close it: a descriptor of that number without a record is not a
    /// connection just accepted.
    pub fn closing(&self) -> Option<RawFd> {
        self.descriptor(CLOSING)
    }

    /// Sets [`Track::closing`].
    pub fn set_closing(&self, fd: Option<RawFd>) {
        self.set_descriptor(CLOSING, fd);
    }

    /// The journal.
    pub fn journal(&self) -> Journal {
        Journal::new(&self.words[JOURNAL..JOURNAL + journal::WORDS])
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        Stats::new(&self.words[STATS..STATS + COUNTERS])
    }

    /// Carries out what a dead writer had begun. `record` finds the record of a descriptor.
    pub fn settle(&self, record: impl Fn(RawFd) -> Option<super::Record>) {
        self.journal().settle(&self.stats(), record);
        self.set_current(None);
        self.set_idle(None);
        self.set_busy_since(None);
        self.set_thread(None);
        self.stats().set(Counter::Connections, 0);
    }

    fn descriptor(&self, index: usize) -> Option<RawFd> {
        RawFd::try_from(self.words[index].load(Ordering::Acquire).checked_sub(1)?).ok()
    }

    fn set_descriptor(&self, index: usize, fd: Option<RawFd>) {
        self.words[index].store(fd.map_or(0, |fd| fd as u64 + 1), Ordering::Release);
    }
}
