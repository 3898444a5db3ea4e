//! The ledger: shared memory of one slot, created by the master, written by the slot's workers, read by their successors.
//! It holds what must survive a worker: one record per connection, the bytes not yet answered, the responses begun, counters,
//! and the last words of a crash.
//!
//! Everything here may have been scribbled on by a dying worker: readers check every index and length. Each change that
//! matters is one store of one word, the *commit*; what spans several words goes through a journal entry that a successor
//! can carry out again.

pub mod held;
pub mod journal;
pub mod lane;
#[cfg(feature = "fuzzing")]
pub mod raw;
pub mod record;
pub mod response;
pub mod track;
pub mod words;

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use crate::sys::region::{Arena, Buffer, Region};
pub use held::Held;
pub use lane::Lane;
pub use record::Record;
pub use response::Pending;
pub use track::Track;

/// The version of all that stands in a ledger and where. It changes with every change of that which a program of the version
/// before would misread: an upgrade hands connections over between programs of one version, and lets them end otherwise.
pub const LAYOUT: u32 = 3;
/// The largest number of descriptors or connections that a ledger of another program is believed to have.
const MOST: usize = 1 << 24;
/// Workers that can live in a slot at the same time: one that serves, its successor, and predecessors that still end what they
/// had; each has a lane of the ledger to itself.
pub const LANES: usize = 4;
/// Bytes of a connection's request buffer.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Responses of one connection that can be on their way at the same time: what is answered of a pipeline in one turn.
pub const MAX_PENDING: usize = 32;
/// Buffers that hold what was received ahead on one connection are followed so far, whatever a dying worker has written: more than
/// a ring has at the same time.
pub const MOST_HELD: usize = 8192;
/// Parts begin on a page, so that touching one does not make another resident.
const PAGE: usize = 4096;

/// Where everything stands in the region; derived from two numbers that the master chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    descriptors: usize,
    connections: usize,
}

impl Layout {
    fn lane(&self, lane: usize) -> usize {
        lane * lane::BYTES
    }

    /// One for each connection, and one for each to move to.
    fn buffers_per_lane(&self) -> usize {
        2 * self.connections
    }

    /// Tracks of a lane beside the first: no thread or process is without a connection.
    fn tracks_per_lane(&self) -> usize {
        self.connections.min(track::MOST)
    }

    fn tracks(&self) -> usize {
        (LANES * lane::BYTES).next_multiple_of(PAGE)
    }

    fn records(&self) -> usize {
        (self.tracks() + LANES * self.tracks_per_lane() * track::BYTES).next_multiple_of(PAGE)
    }

    fn pending(&self) -> usize {
        (self.records() + self.descriptors * record::BYTES).next_multiple_of(PAGE)
    }

    fn buffers(&self) -> usize {
        (self.pending() + self.buffer_count() * response::LIST_BYTES).next_multiple_of(PAGE)
    }

    fn buffer_count(&self) -> usize {
        LANES * self.buffers_per_lane()
    }

    fn bytes(&self) -> usize {
        self.buffers() + self.buffer_count() * BUFFER_BYTES
    }
}

/// One slot's ledger, as mapped by a process.
#[derive(Clone)]
pub struct Ledger {
    table: Table,
    arena: Arena,
}

/// Lanes and records alone, without the buffers: what the threads of a worker may have too.
#[derive(Clone, Copy)]
pub struct Table {
    region: Region,
    layout: Layout,
}

impl Table {
    /// Lane `lane` (below [`LANES`]).
    pub fn lane(&self, lane: usize) -> Lane {
        Lane::new(self.region.words(self.layout.lane(lane), lane::WORDS))
    }

    /// Track `number` of lane `lane`; none when the ledger has no room for that number. Number 0 is the lane's own.
    pub fn track(&self, lane: usize, number: usize) -> Option<Track> {
        if lane >= LANES {
            return None;
        }
        let Some(index) = number.checked_sub(1) else { return Some(self.lane(lane).track()) };
        let per_lane = self.layout.tracks_per_lane();
        let offset = self.layout.tracks() + (lane * per_lane + index) * track::BYTES;
        (index < per_lane).then(|| Track::new(self.region.words(offset, track::OWN_WORDS)))
    }

    /// The tracks of a lane that are or were in use.
    pub fn tracks_of(&self, lane: usize) -> impl Iterator<Item = Track> {
        (0..self.lane(lane).tracks()).map_while(move |number| self.track(lane, number))
    }

    /// The own descriptors of all threads of a lane's worker.
    pub fn noted(&self, lane: usize) -> Vec<RawFd> {
        self.lane(lane).notes().get().chain(self.tracks_of(lane).flat_map(|track| track.notes().get())).collect()
    }

    /// Takes back what those have noted.
    pub fn forget_notes(&self, lane: usize) {
        self.lane(lane).notes().forget();
        self.tracks_of(lane).for_each(|track| track.notes().forget());
    }

    /// The counters of a lane, those of its tracks added up.
    pub fn stats_of(&self, lane: usize) -> crate::stats::Snapshot {
        let mut sum = crate::stats::Snapshot::default();
        self.tracks_of(lane).for_each(|track| sum.add(&track.stats().snapshot()));
        sum
    }

    /// The record of descriptor `fd`; none when the ledger has no room for that number.
    pub fn record(&self, fd: RawFd) -> Option<Record> {
        let index = usize::try_from(fd).ok().filter(|&index| index < self.layout.descriptors)?;
        Some(Record::new(self.region.words(self.layout.records() + index * record::BYTES, record::WORDS)))
    }
}

impl Ledger {
    /// A fresh ledger for descriptors below `descriptors` and at most `connections` connections at once. Returns the memfd
    /// too; the mapping does not need it.
    pub fn create(name: &str, descriptors: usize, connections: usize) -> io::Result<(Ledger, OwnedFd)> {
        let layout = Layout { descriptors, connections };
        let (region, fd) = Region::create(name, layout.bytes())?;
        Ok((Ledger::of(region, layout), fd))
    }

    /// Maps a ledger that another program created with the same numbers and the same [`LAYOUT`], by its descriptor. Fails when
    /// its size says otherwise.
    pub fn open(fd: &OwnedFd, descriptors: usize, connections: usize) -> io::Result<Ledger> {
        let bounded = descriptors <= MOST && connections <= MOST;
        let layout = Layout { descriptors, connections };
        if !bounded {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ledger is too large"));
        }
        Ok(Ledger::of(Region::open(fd, layout.bytes())?, layout))
    }

    fn of(region: Region, layout: Layout) -> Ledger {
        let arena = Arena::new(region, layout.buffers(), BUFFER_BYTES, layout.buffer_count());
        Ledger { table: Table { region, layout }, arena }
    }

    /// The most connections at once.
    pub fn connections(&self) -> usize {
        self.table.layout.connections
    }

    /// Gives the memory back in this process: it is not this ledger's slot, or the slot is gone. Touching it from then on is a
    /// fault.
    pub fn seal_off(&self) -> io::Result<()> {
        self.table.region.seal_off()
    }

    /// Descriptors at or above this number have no record.
    pub fn descriptors(&self) -> usize {
        self.table.layout.descriptors
    }

    /// Its lanes and records.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Lane `lane` (below [`LANES`]).
    pub fn lane(&self, lane: usize) -> Lane {
        self.table.lane(lane)
    }

    /// See [`Table::tracks_of`].
    pub fn tracks_of(&self, lane: usize) -> impl Iterator<Item = Track> + '_ {
        self.table.tracks_of(lane)
    }

    /// See [`Table::stats_of`].
    pub fn stats_of(&self, lane: usize) -> crate::stats::Snapshot {
        self.table.stats_of(lane)
    }

    /// The record of descriptor `fd`; none when the ledger has no room for that number.
    pub fn record(&self, fd: RawFd) -> Option<Record> {
        self.table.record(fd)
    }

    /// Descriptors whose records are in use, ascending.
    pub fn recorded(&self) -> impl Iterator<Item = (RawFd, Record)> + '_ {
        // The mark may have been scribbled on: never beyond the table.
        let last = self.table.layout.descriptors.saturating_sub(1) as RawFd;
        let end = (0..LANES).map(|lane| self.lane(lane).high_water()).max().unwrap_or(0).min(last);
        (0..=end).filter_map(|fd| Some((fd, self.record(fd)?))).filter(|(_, record)| record.owner().is_some())
    }

    /// Takes buffer `index` for this process; none when it does not exist or is taken.
    pub fn buffer(&self, index: usize) -> Option<Buffer> {
        self.arena.take(index)
    }

    /// The responses begun for the requests in buffer `index`, which exists because a [`Buffer`] has it.
    pub fn pending(&self, buffer: &Buffer) -> Pending {
        let offset = self.table.layout.pending() + buffer.index() * response::LIST_BYTES;
        Pending::new(self.table.region.words(offset, response::LIST_BYTES / 8))
    }

    /// What stands beside buffer `index` while that holds bytes received ahead; none when there is no such buffer.
    pub fn held(&self, index: usize) -> Option<Held> {
        if index >= self.table.layout.buffer_count() {
            return None;
        }
        let offset = self.table.layout.pending() + index * response::LIST_BYTES;
        Some(Held::new(self.table.region.words(offset, response::LIST_BYTES / 8)))
    }

    /// The numbers of the buffers that hold what was received ahead on a connection, in order. The chain may have been scribbled on:
    /// it ends after [`MOST_HELD`].
    pub fn chain(&self, record: &Record) -> Vec<usize> {
        let mut chain = Vec::new();
        let mut next = record.held();
        while let Some(held) = next.and_then(|index| self.held(index)).filter(|_| chain.len() < MOST_HELD) {
            chain.extend(next);
            next = held.next();
        }
        chain
    }

    /// The numbers of the buffers that workers on `lane` take fresh ones from.
    pub fn buffers_of_lane(&self, lane: usize) -> std::ops::Range<usize> {
        let per_lane = self.table.layout.buffers_per_lane();
        lane * per_lane..(lane + 1) * per_lane
    }

    /// The counters of all lanes, added up.
    pub fn stats(&self) -> crate::stats::Snapshot {
        let mut sum = crate::stats::Snapshot::default();
        (0..LANES).for_each(|lane| sum.add(&self.table.stats_of(lane)));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_layout_do_not_overlap() {
        let layout = Layout { descriptors: 20_000, connections: 16_384 };
        assert!(layout.lane(LANES) <= layout.tracks());
        assert!(layout.tracks() + LANES * layout.tracks_per_lane() * track::BYTES <= layout.records());
        assert!(layout.records() + 20_000 * record::BYTES <= layout.pending());
        assert!(layout.pending() + LANES * 2 * 16_384 * response::LIST_BYTES <= layout.buffers());
        assert_eq!(layout.bytes(), layout.buffers() + LANES * 2 * 16_384 * BUFFER_BYTES);
    }

    #[test]
    fn a_buffer_is_held_once_and_comes_back_when_dropped() {
        let (ledger, _fd) = Ledger::create("test", 64, 4).unwrap();
        let buffer = ledger.buffer(3).unwrap();
        assert!(ledger.buffer(3).is_none());
        drop(buffer);
        assert!(ledger.buffer(3).is_some());
        assert!(ledger.buffer(LANES * 8).is_none(), "the lanes have eight buffers each");
    }

    /// Whoever changes one of these figures makes another layout, and has to raise [`LAYOUT`].
    #[test]
    fn the_layout_is_what_its_version_says() {
        let layout = Layout { descriptors: 1000, connections: 100 };
        let parts = [layout.tracks(), layout.records(), layout.pending(), layout.buffers()];
        let figures = [lane::BYTES, track::BYTES, record::BYTES, response::LIST_BYTES];
        assert_eq!((LAYOUT, LANES, BUFFER_BYTES), (3, 4, 16_384));
        assert_eq!(figures, [2048, 832, 160, 1536]);
        assert_eq!(parts, [8192, 344_064, 507_904, 1_736_704]);
        assert_eq!(layout.bytes(), 1_736_704 + 800 * 16_384);
    }

    #[test]
    fn a_ledger_is_opened_by_its_descriptor_and_by_its_own_numbers_only() {
        let (ledger, fd) = Ledger::create("test", 64, 4).unwrap();
        ledger.record(5).unwrap().set_consumed(17);
        let same = Ledger::open(&fd, ledger.descriptors(), ledger.connections()).unwrap();
        assert_eq!(same.record(5).unwrap().consumed(), 17);
        assert!(Ledger::open(&fd, 64, 5).is_err());
        assert!(Ledger::open(&fd, usize::MAX, 4).is_err());
    }

    #[test]
    fn a_descriptor_beyond_the_table_has_no_record() {
        let (ledger, _fd) = Ledger::create("test", 64, 4).unwrap();
        assert!(ledger.record(63).is_some());
        assert!(ledger.record(64).is_none());
        assert!(ledger.record(-1).is_none());
    }
}
