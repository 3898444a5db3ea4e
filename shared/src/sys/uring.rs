//! A ring of `io_uring(7)` as a server uses it: multishot accept, multishot receive into buffers that stand in the ledger, sends
//! that own what they send, polls. What a dead process's ring had completed and nobody saw can be read by whoever shares its
//! descriptor table.
//!
//! Safe by ownership: a buffer that the kernel may write into belongs to the ring until a completion names it, bytes that it may
//! read belong to it until their send is complete, and both are leaked rather than freed when the ring goes first.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::region::Buffer;
use super::table::borrow;

/// Submissions that fit before a call is needed to make room.
const SUBMISSIONS: u32 = 4096;
/// Completions that fit. More than a ring can have at the same time: each that brings bytes holds a provided buffer, the rest are
/// a few for each descriptor.
const COMPLETIONS: u32 = 65_536;
/// Buffers that can be provided at the same time; a power of two.
pub const MOST_PROVIDED: u16 = 8192;
/// The one group of provided buffers.
const GROUP: u16 = 0;
/// Completions that one wait tells.
const BATCH: usize = 1024;

/// What an operation is, told back with its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A poll that ends with its first event.
    Poll = 1,
    /// Accepts until it fails.
    Accept = 2,
    /// Receives until it fails.
    Receive = 3,
    /// Sends once.
    Send = 4,
    /// Ends another one.
    Cancel = 5,
}

/// The name of an operation: what it is, the descriptor it is about, and a tag that tells it from others of the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// What it is.
    pub kind: Kind,
    /// The descriptor.
    pub fd: RawFd,
    /// 24 bits of the caller's choice.
    pub tag: u32,
}

impl Name {
    fn to_word(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.tag & 0xff_ffff) << 32 | u64::from(self.fd as u32)
    }

    fn from_word(word: u64) -> Option<Name> {
        let kind = match word >> 56 {
            1 => Kind::Poll,
            2 => Kind::Accept,
            3 => Kind::Receive,
            4 => Kind::Send,
            5 => Kind::Cancel,
            _ => return None,
        };
        Some(Name { kind, fd: word as u32 as RawFd, tag: (word >> 32) as u32 & 0xff_ffff })
    }
}

/// What an operation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Which it was.
    pub name: Name,
    /// What the call of that kind would have returned; negative: an errno.
    pub result: i32,
    /// It goes on, and there will be more.
    pub more: bool,
}

impl Told {
    fn of(entry: &cqueue::Entry) -> Option<Told> {
        let name = Name::from_word(entry.user_data())?;
        Some(Told { name, result: entry.result(), more: cqueue::more(entry.flags()) })
    }
}

/// What an operation came to, with what the ring had for it.
pub struct Completion {
    /// What it came to.
    pub told: Told,
    /// The provided buffer that bytes were received into, from its first byte on.
    pub buffer: Option<Buffer>,
    /// The bytes of a send.
    pub bytes: Option<Vec<u8>>,
}

/// A ring of this thread's own.
pub struct Ring {
    io: IoUring,
    provided: Provided,
    /// Bytes on their way, by the tag of their send.
    sends: Vec<Option<Vec<u8>>>,
    free_sends: Vec<u32>,
    /// Completions that have been told by the last wait and not taken.
    told: VecDeque<cqueue::Entry>,
    /// Completions that have been taken and can be overwritten.
    taken: usize,
}

/// The buffers that the kernel may receive into.
struct Provided {
    /// Where the kernel finds them: [`MOST_PROVIDED`] entries.
    entries: NonNull<BufRingEntry>,
    tail: u16,
    /// The buffers by their numbers; the index of number 0 in the arena is `first`.
    held: Vec<Option<Buffer>>,
    count: usize,
    first: usize,
}

// SAFETY: the mapping behind `entries` belongs to the ring alone, and a ring is used by one thread at a time; that the kernel wants
// one and the same thread to submit is checked by the kernel.
unsafe impl Send for Provided {}

impl Ring {
    /// A ring whose buffers come from a part of an arena that begins with buffer `first`.
    ///
    /// # Errors
    /// What `io_uring_setup(2)` and `io_uring_register(2)` say: ENOSYS or EPERM where the system denies it, EINVAL where it is
    /// older than Linux 6.1.
    pub fn new(first: usize) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(COMPLETIONS);
        let io: IoUring = builder.build(SUBMISSIONS)?;
        let provided = Provided::new(first)?;
        let address = provided.entries.as_ptr() as u64;
        // SAFETY: the address is a mapping of MOST_PROVIDED entries, which lives until the ring is dropped.
        unsafe { io.submitter().register_buf_ring_with_flags(address, MOST_PROVIDED, GROUP, 0) }?;
        Ok(Ring { io, provided, sends: Vec::new(), free_sends: Vec::new(), told: VecDeque::new(), taken: 0 })
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.io.as_raw_fd()
    }

    // ---- buffers ----

    /// Buffers that are provided now.
    pub fn provided(&self) -> usize {
        self.provided.count
    }

    /// Provides a buffer; given back: there is no room for it, or it is none of those that the ring has numbers for.
    pub fn provide(&mut self, buffer: Buffer) -> Result<(), Buffer> {
        self.provided.add(buffer)
    }

    // ---- operations ----

    /// Begins to accept connections, close-on-exec and non-blocking.
    pub fn accept(&mut self, fd: RawFd, tag: u32) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).build();
        self.push(entry, Name { kind: Kind::Accept, fd, tag })
    }

    /// Begins to receive into provided buffers.
    pub fn receive(&mut self, fd: RawFd, tag: u32) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(Fd(fd), GROUP).build(), Name { kind: Kind::Receive, fd, tag })
    }

    /// Waits for one of `events` (poll(2)).
    pub fn poll(&mut self, fd: RawFd, tag: u32, events: u32) -> io::Result<()> {
        self.push(opcode::PollAdd::new(Fd(fd), events).build(), Name { kind: Kind::Poll, fd, tag })
    }

    /// Sends the first `count` of `bytes`, which come back with the completion. Returns the tag.
    pub fn send(&mut self, fd: RawFd, bytes: Vec<u8>, count: usize) -> io::Result<u32> {
        let tag = self.free_sends.pop().unwrap_or(self.sends.len() as u32);
        let len = u32::try_from(count.min(bytes.len())).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(fd), bytes.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build();
        match self.sends.get_mut(tag as usize) {
            Some(slot) => *slot = Some(bytes),
            None => self.sends.push(Some(bytes)),
        }
        self.push(entry, Name { kind: Kind::Send, fd, tag })?;
        Ok(tag)
    }

    /// Ends an operation with the next wait. What it does before shows as it would.
    pub fn cancel(&mut self, name: Name) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(name.to_word()).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(entry, Name { kind: Kind::Cancel, ..name })
    }

    /// Ends an operation: after the call it does nothing any more. What it did before is found by [`Ring::has_untaken`].
    ///
    /// # Errors
    /// That the operation was not under way.
    pub fn cancel_now(&mut self, name: Name) -> io::Result<()> {
        // One that has not been submitted yet cannot be found.
        if !self.io.submission().is_empty() {
            self.io.submit()?;
        }
        self.io.submitter().register_sync_cancel(None, CancelBuilder::user_data(name.to_word()))
    }

    fn push(&mut self, entry: squeue::Entry, name: Name) -> io::Result<()> {
        let entry = entry.user_data(name.to_word());
        for _ in 0..2 {
            // SAFETY: what the entry points to lives until its completion has been taken: buffers and bytes to be sent are the
            // ring's own, and descriptors are numbers.
            if unsafe { self.io.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.io.submit()?;
        }
        Err(io::Error::other("the submission queue stays full"))
    }

    // ---- completions ----

    /// Submits what was begun, and waits until something is complete, at most for `limit` (none: for ever). All that the wait before
    /// told counts as taken.
    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.taken += self.told.len();
        self.told.clear();
        self.forget_taken();
        let waited = match limit {
            Some(Duration::ZERO) => self.look(),
            Some(limit) => {
                let limit = Timespec::new().sec(limit.as_secs()).nsec(limit.subsec_nanos());
                self.io.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
            None => self.io.submit_and_wait(1),
        };
        match waited {
            Ok(_) => {}
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(error) => return Err(error),
        }
        let mut queue = self.io.completion();
        self.told.extend((&mut queue).take(BATCH));
        // Dropped, it would give them back to the kernel.
        std::mem::forget(queue);
        Ok(())
    }

    /// Submits, and has the kernel do what it left for this thread to do, without waiting.
    fn look(&mut self) -> io::Result<usize> {
        let count = self.io.submission().len() as u32;
        // SAFETY: as many entries as there are, each pushed by `push`, and no argument.
        unsafe { self.io.submitter().enter::<libc::sigset_t>(count, 0, ENTER_GETEVENTS, None) }
    }

    /// Completion `at` of those that the last wait told and that have not been taken.
    pub fn told(&self, at: usize) -> Option<Told> {
        Told::of(self.told.get(at)?)
    }

    /// The next completion that the last wait told.
    pub fn take(&mut self) -> Option<Completion> {
        let entry = self.told.pop_front()?;
        self.taken += 1;
        let told = Told::of(&entry)?;
        let buffer = cqueue::buffer_select(entry.flags()).and_then(|number| self.provided.take(number));
        let bytes = if told.name.kind == Kind::Send { self.take_sent(told.name.tag) } else { None };
        Some(Completion { told, buffer, bytes })
    }

    fn take_sent(&mut self, tag: u32) -> Option<Vec<u8>> {
        let bytes = self.sends.get_mut(tag as usize)?.take()?;
        self.free_sends.push(tag);
        Some(bytes)
    }

    /// Gives the room of what has been taken back to the kernel: from here on nobody can find it in the ring.
    pub fn forget_taken(&mut self) {
        if let Some(last) = std::mem::take(&mut self.taken).checked_sub(1) {
            let mut queue = self.io.completion();
            let _overwritten_from_now_on = queue.nth(last);
        }
    }

    /// Whether the operation has brought something that has not been taken.
    pub fn has_untaken(&mut self, operation: Name) -> bool {
        self.untaken(|name| name == operation)
    }

    /// Whether there are completions that have not been taken and that brought a connection.
    pub fn has_accepted(&mut self) -> bool {
        self.untaken(|name| name.kind == Kind::Accept)
    }

    fn untaken(&mut self, is_meant: impl Fn(Name) -> bool) -> bool {
        let (mut queue, skip) = (self.io.completion(), self.taken);
        let found = (&mut queue)
            .skip(skip)
            .filter_map(|entry| Told::of(&entry))
            .any(|told| told.result > 0 && is_meant(told.name));
        std::mem::forget(queue);
        found
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still read them.
        std::mem::forget(std::mem::take(&mut self.sends));
    }
}

/// See `io_uring_enter(2)`.
const ENTER_GETEVENTS: u32 = 1;

impl Provided {
    fn new(first: usize) -> io::Result<Provided> {
        let bytes = usize::from(MOST_PROVIDED) * size_of::<BufRingEntry>();
        let size = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Provided { entries: start.cast(), tail: 0, held: Vec::new(), count: 0, first })
    }

    fn add(&mut self, mut buffer: Buffer) -> Result<(), Buffer> {
        let number = buffer.index().checked_sub(self.first).and_then(|number| u16::try_from(number).ok());
        let (Some(number), true) = (number, self.count < usize::from(MOST_PROVIDED)) else { return Err(buffer) };
        let (address, len) = (buffer.bytes_mut().as_mut_ptr() as u64, buffer.bytes().len() as u32);
        let place = usize::from(self.tail % MOST_PROVIDED);
        // SAFETY: below MOST_PROVIDED, which is how many there are.
        let mut entry = unsafe { self.entries.add(place) };
        // SAFETY: mapped, zero at first, and written by nobody else; the kernel reads it once the tail is beyond it.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address);
        entry.set_len(len);
        entry.set_bid(number);
        let index = usize::from(number);
        if self.held.len() <= index {
            self.held.resize_with(index + 1, || None);
        }
        self.held[index] = Some(buffer);
        self.count += 1;
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail stands in the first entry, which exists.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: aligned, and the kernel only reads it.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
        Ok(())
    }

    fn take(&mut self, number: u16) -> Option<Buffer> {
        let buffer = self.held.get_mut(usize::from(number))?.take()?;
        self.count -= 1;
        Some(buffer)
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // A receive that was under way may write into them until the kernel has ended it: nobody else gets them in this process.
        std::mem::forget(std::mem::take(&mut self.held));
    }
}

/// What a ring had completed that nobody saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unseen {
    /// Of which operation.
    pub name: Name,
    /// As of [`Told`].
    pub result: i32,
    /// The number of the provided buffer.
    pub buffer: Option<u16>,
}

/// What the ring behind a descriptor, which a dead process of this table made with [`Ring::new`], had completed and not been asked
/// for, the oldest first. The ring is untrusted: its process may have written anything into it.
///
/// # Errors
/// That it is no such ring, or cannot be mapped.
pub fn unseen(fd: RawFd) -> io::Result<Vec<Unseen>> {
    if !is_ring(fd) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no ring of this program"));
    }
    let offsets = completion_offsets()?;
    let entries = offsets.cqes as usize;
    let bytes = entries + COMPLETIONS as usize * size_of::<RawCompletion>();
    let size = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing; that the ring is as large was checked.
    let start = unsafe {
        mmap(
            None,
            size,
            ProtFlags::PROT_READ,
            MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
            borrow(fd),
            OFFSET_OF_RING,
        )
    }?;
    let word = |offset: u32| {
        // SAFETY: the offsets are the kernel's own, and lie before the entries.
        let word = unsafe { start.as_ptr().byte_add(offset as usize) };
        // SAFETY: aligned and mapped; nobody writes any more.
        unsafe { AtomicU32::from_ptr(word.cast()) }.load(Ordering::Acquire)
    };
    let (head, tail) = (word(offsets.head), word(offsets.tail));
    let count = tail.wrapping_sub(head).min(COMPLETIONS);
    let mut unseen = Vec::new();
    for at in 0..count {
        let index = (head.wrapping_add(at) % COMPLETIONS) as usize;
        // SAFETY: below COMPLETIONS, which is how many entries were mapped.
        let entry = unsafe { start.as_ptr().byte_add(entries + index * size_of::<RawCompletion>()) };
        // SAFETY: aligned and mapped, and any bytes make one.
        let entry = unsafe { entry.cast::<RawCompletion>().read_volatile() };
        if let Some(name) = Name::from_word(entry.user_data) {
            unseen.push(Unseen { name, result: entry.result, buffer: cqueue::buffer_select(entry.flags) });
        }
    }
    // SAFETY: nothing refers to the mapping any more.
    unsafe { munmap(start, bytes) }?;
    Ok(unseen)
}

/// As the kernel writes it (`struct io_uring_cqe`).
#[derive(Clone, Copy)]
#[repr(C)]
struct RawCompletion {
    user_data: u64,
    result: i32,
    flags: u32,
}

/// Where a ring is mapped from (`IORING_OFF_SQ_RING`, io_uring_setup(2)).
const OFFSET_OF_RING: libc::off_t = 0;

/// Whether a descriptor is a ring with as many completions as those of this program.
fn is_ring(fd: RawFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let mask = info.lines().find_map(|line| line.strip_prefix("CqMask:")).map(str::trim);
    let mask = mask.and_then(|mask| u32::from_str_radix(mask.trim_start_matches("0x"), 16).ok());
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]") && mask == Some(COMPLETIONS - 1)
}

/// `struct io_uring_params` (io_uring_setup(2)), as much of it as is looked at.
#[derive(Default)]
#[repr(C)]
struct Parameters {
    sizes_and_flags: [u32; 10],
    submission: [u64; 5],
    completion: CompletionOffsets,
}

/// `struct io_cqring_offsets`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CompletionOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    reserved: u32,
    user_address: u64,
}

/// Where the parts of a ring stand: what the kernel says of one made for the question.
fn completion_offsets() -> io::Result<CompletionOffsets> {
    let mut parameters = Parameters::default();
    // SAFETY: the kernel reads and writes one structure of 120 bytes, which this is.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    super::table::close(fd as RawFd);
    Ok(parameters.completion)
}

#[cfg(test)]
mod tests;
