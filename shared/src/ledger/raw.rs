//! The ledger as bare words, the way a process that scribbles on it has it. Only for those who test what its readers make of
//! that.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BUFFER_BYTES, LANES, Ledger, lane, record, response, track};

/// A part of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A lane, below [`LANES`].
    Lane(usize),
    /// A track that stands behind the lanes, of all of them one after the other.
    Track(usize),
    /// The record of a descriptor.
    Record(RawFd),
    /// The list of responses begun beside a buffer.
    Pending(usize),
    /// A buffer.
    Buffer(usize),
}

impl Ledger {
    /// The words of a part; none when there is no such part.
    pub fn words(&self, part: Part) -> Option<&'static [AtomicU64]> {
        let (at, index, count, bytes) = match part {
            Part::Lane(lane) => (0, lane, LANES, lane::BYTES),
            Part::Track(track) => {
                let layout = self.table.layout;
                (layout.tracks(), track, LANES * layout.tracks_per_lane(), track::BYTES)
            }
            Part::Record(fd) => {
                (self.table.layout.records(), usize::try_from(fd).ok()?, self.table.layout.descriptors, record::BYTES)
            }
            Part::Pending(buffer) => {
                (self.table.layout.pending(), buffer, self.table.layout.buffer_count(), response::LIST_BYTES)
            }
            Part::Buffer(buffer) => {
                (self.table.layout.buffers(), buffer, self.table.layout.buffer_count(), BUFFER_BYTES)
            }
        };
        (index < count).then(|| self.table.region.words(at + index * bytes, bytes / 8))
    }

    /// Makes the ledger as it was when it was created.
    pub fn wipe(&self) {
        for word in self.table.region.words(0, self.table.layout.bytes() / 8) {
            // Reading first leaves pages alone that nobody has written to.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }
}
