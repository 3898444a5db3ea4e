//! Files that a worker holds open. Each is noted in the ledger under its descriptor, so that whoever buries the worker closes
//! it: the table is shared, and nobody else would.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ledger::record::Owner;
use phalanx_shared::ledger::{Lane, Record, Table};

use crate::lock::lock;

/// Where a worker notes what it opens. Any of its threads may.
#[derive(Clone)]
pub struct OpenFiles {
    table: Table,
    lane: Lane,
    owner: Arc<Mutex<Owner>>,
}

/// An open file. Its note goes before its descriptor does.
pub struct OpenFile {
    file: File,
    record: Option<Record>,
    /// The turn of the loop in which its first bytes were last found in the page cache, and how many. The loop alone asks.
    warm: (AtomicU64, AtomicU64),
}

impl OpenFile {
    /// Whether its first `count` bytes can be read without waiting for a disk, as `look` tells, which is asked once in a `turn`
    /// however many connections send the file.
    pub fn is_warm(&self, count: u64, turn: u64, look: impl FnOnce() -> bool) -> bool {
        let (then, known) = (&self.warm.0, &self.warm.1);
        if then.load(Ordering::Relaxed) == turn && known.load(Ordering::Relaxed) >= count {
            return true;
        }
        let warm = look();
        if warm {
            known.store(count, Ordering::Relaxed);
            then.store(turn, Ordering::Relaxed);
        }
        warm
    }
}

impl OpenFiles {
    /// The notes of the worker `owner`, which writes the lane of number `lane`.
    pub fn new(table: Table, lane: usize, owner: Incarnation) -> OpenFiles {
        OpenFiles { table, lane: table.lane(lane), owner: Arc::new(Mutex::new(Owner::File(owner))) }
    }

    /// What is opened from now on is that of `owner`, an [`Owner::ChildFile`]: this is its process, a copy of the worker's.
    pub fn become_of(&self, owner: Owner) {
        *lock(&self.owner) = owner;
    }

    fn owner(&self) -> Owner {
        *lock(&self.owner)
    }

    /// Notes the descriptor of something that is none of a connection's.
    pub fn note_descriptor(&self, fd: RawFd) {
        if let Some(record) = self.table.record(fd) {
            self.lane.raise_high_water(fd);
            record.fill_file(self.owner());
        }
    }

    /// Notes a file just opened. A descriptor beyond the ledger has no note; then a death leaves it to the sweep of the next
    /// worker that boots alone.
    pub fn note(&self, file: File) -> OpenFile {
        let record = self.table.record(file.as_raw_fd());
        if let Some(record) = record {
            self.lane.raise_high_water(file.as_raw_fd());
            record.fill_file(self.owner());
        }
        OpenFile { file, record, warm: (AtomicU64::new(0), AtomicU64::new(0)) }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(record) = self.record {
            record.free();
        }
    }
}

impl Deref for OpenFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl std::fmt::Debug for OpenFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenFiles of {:?}", self.owner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_shared::ledger::Ledger;

    #[test]
    fn an_open_file_is_on_record_until_it_is_closed() {
        let (ledger, _fd) = Ledger::create("test", 4096, 1).unwrap();
        let files = OpenFiles::new(ledger.table(), 0, Incarnation(5));
        let file = files.note(File::open("/proc/self/exe").unwrap());
        let fd = file.as_raw_fd();
        assert_eq!(
            ledger.recorded().map(|(fd, record)| (fd, record.owner())).collect::<Vec<_>>(),
            [(fd, Some(Owner::File(Incarnation(5))))]
        );
        drop(file);
        assert_eq!(ledger.recorded().count(), 0);
    }
}
