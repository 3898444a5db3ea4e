//! Shared memory that outlives the processes that write it: a memfd mapping seen as machine words and as byte buffers.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

/// A shared mapping of fixed size, zero at first. Children made by fork or clone see the same memory. It is never unmapped:
/// the master keeps it for the life of the slot, workers end by `_exit`.
#[derive(Clone, Copy)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
}

impl Region {
    /// Creates a region of `len` bytes named `name` (it shows in /proc/PID/maps) and the descriptor it lives in. Pages cost
    /// memory only once they are touched.
    pub fn create(name: &str, len: usize) -> io::Result<(Region, OwnedFd)> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&fd, len as i64)?;
        Ok((Region::map(&fd, len)?, fd))
    }

    /// Maps a region that another program created, by the descriptor it lives in. Fails when that is not `len` bytes long.
    pub fn open(fd: &impl AsFd, len: usize) -> io::Result<Region> {
        if fstat(fd)?.st_size as u64 != len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the region has another size"));
        }
        Region::map(fd, len)
    }

    fn map(fd: &impl AsFd, len: usize) -> io::Result<Region> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing; the file has `len` bytes and is
        // sealed against shrinking by nobody having a reason to: only this crate holds the descriptor, and for a moment, over an
        // execve, whatever the next program executes before it takes it up.
        let start =
            unsafe { mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Region { start: start.cast(), len })
    }

    /// Replaces the mapping by one that nobody may touch: the memory is given back and a stale reference faults, since the
    /// addresses are never used for anything else.
    pub fn seal_off(&self) -> io::Result<()> {
        let length = NonZeroUsize::new(self.len).ok_or(io::ErrorKind::InvalidInput)?;
        let address = NonZeroUsize::new(self.start.as_ptr() as usize);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        // SAFETY: exactly this region's own mapping is replaced; references into it stay within a mapped range, and an access
        // through one ends the process instead of meeting other memory.
        unsafe { mmap_anonymous(address, length, ProtFlags::PROT_NONE, flags) }?;
        Ok(())
    }

    /// The `count` words from byte `offset` on. Panics when they are not inside the region or not aligned: offsets come from
    /// the layout, never from the region's content.
    pub fn words(&self, offset: usize, count: usize) -> &'static [AtomicU64] {
        assert!(offset.is_multiple_of(8) && offset + count * 8 <= self.len, "words outside the region");
        // SAFETY: in bounds by the assertion above.
        let start = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: aligned (mappings are page-aligned, offset is a multiple of 8), mapped for the process's life, and atomics
        // may be shared with other processes; every bit pattern is a valid AtomicU64.
        unsafe { std::slice::from_raw_parts(start.cast(), count) }
    }
}

// SAFETY: the mapping belongs to no thread; what it is seen through is atomics, or buffers that `Arena` hands out once.
unsafe impl Send for Region {}
// SAFETY: as above: a shared Region gives out atomics only.
unsafe impl Sync for Region {}

/// The part of a region that is cut into byte buffers of one size. Hands each buffer out at most once per process.
#[derive(Clone)]
pub struct Arena(Arc<Cut>);

struct Cut {
    region: Region,
    offset: usize,
    stride: usize,
    count: usize,
    /// A bit a buffer: held by this process.
    taken: Box<[AtomicU64]>,
}

impl Arena {
    /// `count` buffers of `stride` bytes from byte `offset` of `region` on. Panics when they do not fit.
    pub fn new(region: Region, offset: usize, stride: usize, count: usize) -> Arena {
        assert!(offset + stride * count <= region.len, "buffers outside the region");
        let taken = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Arena(Arc::new(Cut { region, offset, stride, count, taken }))
    }

    /// Buffer `index`, or none when there is no such buffer or this process already holds it.
    ///
    /// Across processes a buffer belongs to the worker that owns the record naming it; a worker takes over a dead or
    /// handed-over connection's buffer only after that owner is gone or has given it.
    pub fn take(&self, index: usize) -> Option<Buffer> {
        if index >= self.0.count {
            return None;
        }
        let bit = 1 << (index % 64);
        if self.0.taken[index / 64].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return None;
        }
        Some(Buffer { arena: self.clone(), index })
    }
}

/// One byte buffer in shared memory, held by one owner in this process. Dropping it makes it takeable again.
pub struct Buffer {
    arena: Arena,
    index: usize,
}

impl Buffer {
    /// Its number in the arena.
    pub fn index(&self) -> usize {
        self.index
    }

    fn start(&self) -> *mut u8 {
        let cut = &self.arena.0;
        // SAFETY: `Arena::new` checked that all buffers lie inside the region, `take` that the index is one of them.
        unsafe { cut.region.start.as_ptr().add(cut.offset + self.index * cut.stride) }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: in bounds; no other Buffer of this process has this index; by the ownership protocol of the ledger no other
        // process writes it while this one holds it (a process that broke the protocol could at worst tear bytes, which are
        // parsed as untrusted input).
        unsafe { std::slice::from_raw_parts(self.start(), self.arena.0.stride) }
    }

    /// Its bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference of this process.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.arena.0.stride) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.arena.0.taken[self.index / 64].fetch_and(!(1 << (self.index % 64)), Ordering::AcqRel);
    }
}
