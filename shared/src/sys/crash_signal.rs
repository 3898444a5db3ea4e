//! The last words of a worker, before a fatal signal or an exit of its own: a handler, on a stack of its own, that writes who was to blame and where
//! into shared memory and lets the signal kill the process.
//!
//! The handler is async-signal-safe: it stores words in the ledger and walks the stack (libgcc's unwinder, which finds frame
//! tables without locks since glibc 2.35), and the thread's own word is constant-initialised and needs no destructor, so that
//! reading it allocates nothing. An alarm ends a walk that hangs. The first thread that faults speaks; others wait for it to end
//! the process.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Words of the block that the handler fills; see the constants below for their order.
pub const WORDS: usize = 64;
/// The signal's number; 0: no last words. Written last.
pub const SIGNAL: usize = 0;
/// 1 when the process did it to itself (a fault, abort), 0 when another process sent the signal.
pub const OWN_FAULT: usize = 1;
/// The address that faulted, or the sender's process id.
pub const DETAIL: usize = 2;
/// How many frames follow.
pub const FRAMES: usize = 3;
/// Whom the thread that died worked for, see [`suspect`].
pub const SUSPECT: usize = 4;
/// The first frame's instruction address.
pub const FIRST_FRAME: usize = 5;
const MAX_FRAMES: usize = WORDS - FIRST_FRAME;

const FATAL: [Signal; 7] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGTRAP, Signal::SIGSYS];

/// The word by which a thread says that it works for a connection, or for none.
pub fn works_for(fd: Option<RawFd>) -> u64 {
    fd.and_then(|fd| u64::try_from(fd).ok()).map_or(0, |fd| fd + 1)
}

/// What such a word says.
pub fn worked_for(word: u64) -> Option<RawFd> {
    RawFd::try_from(word.checked_sub(1)?).ok()
}

static BLOCK: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());
/// The thread that speaks, by its id; 0: none yet.
static SPEAKER: AtomicI32 = AtomicI32::new(0);

thread_local! {
    /// Whom this thread works for, as [`works_for`] says it; null on the loop.
    static WORKS_FOR: Cell<*const AtomicU64> = const { Cell::new(std::ptr::null()) };
}

/// Whom a fault is to be blamed on, by the word [`SUSPECT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspect {
    /// The connection that the loop is busy with.
    OfTheLoop,
    /// This one: the thread that died worked for it.
    Connection(RawFd),
    /// The thread worked for a connection that is gone.
    Nobody,
}

/// Reads the word [`SUSPECT`]. Any word means something: the dead may have written anything.
pub fn suspect(word: u64) -> Suspect {
    match word {
        0 => Suspect::OfTheLoop,
        1 => Suspect::Nobody,
        _ => RawFd::try_from(word - 2).map_or(Suspect::Nobody, Suspect::Connection),
    }
}

/// What a thread that is not the loop needs to die in order. To be held by it to its end.
#[derive(Debug)]
pub struct Prepared {
    /// What [`WORKS_FOR`] points to.
    _word: Word,
    _stack: AlternateStack,
}

/// Where a thread says whom it works for, in the words of [`works_for`].
#[derive(Debug, Clone)]
pub enum Word {
    /// In this process.
    Own(Arc<AtomicU64>),
    /// In shared memory.
    Shared(&'static AtomicU64),
}

impl Word {
    fn pointer(&self) -> *const AtomicU64 {
        match self {
            Word::Own(word) => Arc::as_ptr(word),
            Word::Shared(word) => std::ptr::from_ref(*word),
        }
    }
}

impl Prepared {
    /// Gives this thread a stack to handle signals on and, in `word`, the connection that is to blame if it faults, whoever
    /// writes it.
    pub fn this_thread(word: Word) -> io::Result<Prepared> {
        let stack = AlternateStack::new()?;
        WORKS_FOR.set(word.pointer());
        Ok(Prepared { _word: word, _stack: stack })
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        WORKS_FOR.set(std::ptr::null());
    }
}

/// Installs the handler for this process; `block` (at least [`WORDS`] long) receives the last words.
pub fn install(block: &'static [AtomicU64]) -> io::Result<()> {
    assert!(block.len() >= WORDS);
    BLOCK.store(block.as_ptr().cast_mut(), Ordering::Release);
    // Held for as long as the process lives.
    std::mem::forget(AlternateStack::new()?);
    let action = SigAction::new(
        SigHandler::SigAction(last_words),
        SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO | SaFlags::SA_NODEFER,
        SigSet::empty(),
    );
    // SAFETY: the function is one of this program's, which is never unloaded.
    if unsafe { libc::atexit(on_exit) } != 0 {
        return Err(io::Error::other("atexit: no room"));
    }
    for signal in FATAL {
        // SAFETY: `last_words` is async-signal-safe, as the module says.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// This process has no last words to say from now on: it is a copy of one that has. Its signals are to be disposed of otherwise.
pub fn withdraw() {
    BLOCK.store(std::ptr::null_mut(), Ordering::Release);
}

/// The process exits of itself: says whom the thread worked for that has it exit.
extern "C" fn on_exit() {
    let start = BLOCK.load(Ordering::Acquire);
    if !start.is_null() {
        // SAFETY: `install` stored the start of a block of WORDS words that lives as long as the process.
        let block = unsafe { std::slice::from_raw_parts(start, WORDS) };
        block[SUSPECT].store(suspect_word(), Ordering::Release);
    }
}

/// What a thread handles signals on, so that a stack overflow can still speak.
#[derive(Debug)]
pub struct AlternateStack {
    memory: Box<[u8]>,
    /// It belongs to the thread that made it.
    _of_thread: PhantomData<*mut u8>,
}

impl AlternateStack {
    /// Gives this thread 64 KiB.
    fn new() -> io::Result<AlternateStack> {
        let mut stack = AlternateStack { memory: vec![0u8; 64 * 1024].into_boxed_slice(), _of_thread: PhantomData };
        stack.set(0)?;
        Ok(stack)
    }

    fn set(&mut self, flags: libc::c_int) -> io::Result<()> {
        let stack =
            libc::stack_t { ss_sp: self.memory.as_mut_ptr().cast(), ss_flags: flags, ss_size: self.memory.len() };
        // SAFETY: the memory lives until `drop` has taken it back from this same thread, or for ever.
        let result = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        if self.set(libc::SS_DISABLE).is_err() {
            // Still in use then: rather lost than freed.
            std::mem::forget(std::mem::take(&mut self.memory));
        }
    }
}

extern "C" fn last_words(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let (start, own) = (BLOCK.load(Ordering::Acquire), nix::unistd::gettid().as_raw());
    match SPEAKER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) if !start.is_null() && !info.is_null() => {
            // SAFETY: `install` stored the start of a block of WORDS words that lives as long as the process.
            let block = unsafe { std::slice::from_raw_parts(start, WORDS) };
            // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo.
            record(block, signal, unsafe { &*info });
        }
        Err(speaker) if speaker != own => loop {
            // SAFETY: pause is async-signal-safe; the thread that speaks ends the process.
            unsafe { libc::pause() };
        },
        // The words themselves faulted: what stands of them has to do.
        _ => {}
    }
    // SAFETY: signal is async-signal-safe, and the default runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: raise is async-signal-safe; the default of a fatal signal ends the process.
    unsafe { libc::raise(signal) };
}

fn record(block: &[AtomicU64], signal: libc::c_int, info: &libc::siginfo_t) {
    let set = |index: usize, value: u64| block[index].store(value, Ordering::Release);
    // SAFETY: si_pid is meaningful for signals that were sent, which is when it is used.
    let sender = unsafe { info.si_pid() };
    // A positive code is the kernel's own verdict on an instruction; abort() and raise() send from the process itself.
    let own = info.si_code > 0 || sender == std::process::id() as libc::pid_t;
    // SAFETY: si_addr is a plain field of the union; for sent signals it holds other bytes, never dereferenced.
    let address = unsafe { info.si_addr() } as u64;
    set(OWN_FAULT, u64::from(own));
    set(DETAIL, if info.si_code > 0 { address } else { sender as u64 });
    set(FRAMES, 0);
    set(SUSPECT, suspect_word());
    set(SIGNAL, signal as u64);
    // The master sends SIGABRT to a hung worker in order to see this stack.
    if own || sender == nix::unistd::getppid().as_raw() {
        walk_stack(block);
        // The loop has run on meanwhile: the connection may be gone, and its number another's.
        set(SUSPECT, suspect_word());
    }
}

/// The word [`SUSPECT`] of this thread.
fn suspect_word() -> u64 {
    // SAFETY: not null, it points into what this thread's `Prepared` holds or into shared memory that is never unmapped; `Prepared`
    // makes it null before it lets go.
    let word = unsafe { WORKS_FOR.get().as_ref() };
    word.map_or(0, |word| word.load(Ordering::Acquire).saturating_add(1))
}

fn walk_stack(block: &[AtomicU64]) {
    // SAFETY: alarm is async-signal-safe; SIGALRM's default ends a process whose unwinder hangs on a broken stack.
    unsafe { libc::alarm(1) };
    let mut count = 0;
    // SAFETY: what is unsynchronized is the crate's own state on other systems; libgcc's unwinder, which is called here, lets
    // threads unwind at once.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            block[FIRST_FRAME + count].store(frame.ip() as u64, Ordering::Release);
            count += 1;
            block[FRAMES].store(count as u64, Ordering::Release);
            count < MAX_FRAMES
        });
    }
}
