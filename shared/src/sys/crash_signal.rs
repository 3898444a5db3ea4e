//! The last words of a worker: a handler for fatal signals, on a stack of its own, that writes who was to blame and where
//! into shared memory and lets the signal kill the process.
//!
//! The handler is async-signal-safe: it stores words in the ledger and walks the stack (libgcc's unwinder, which finds frame
//! tables without locks since glibc 2.35). An alarm ends a walk that hangs.

use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

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
/// The first frame's instruction address.
pub const FIRST_FRAME: usize = 4;
const MAX_FRAMES: usize = WORDS - FIRST_FRAME;

const FATAL: [Signal; 7] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGTRAP, Signal::SIGSYS];

static BLOCK: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Installs the handler for this process; `block` (at least [`WORDS`] long) receives the last words.
pub fn install(block: &'static [AtomicU64]) -> io::Result<()> {
    assert!(block.len() >= WORDS);
    BLOCK.store(block.as_ptr().cast_mut(), Ordering::Release);
    use_alternate_stack()?;
    let action = SigAction::new(
        SigHandler::SigAction(last_words),
        SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO | SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER,
        SigSet::empty(),
    );
    for signal in FATAL {
        // SAFETY: `last_words` is async-signal-safe, as the module says.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Gives this thread 64 KiB to handle a signal on, so that a stack overflow can still speak.
fn use_alternate_stack() -> io::Result<()> {
    let stack = Box::leak(vec![0u8; 64 * 1024].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the memory is leaked, so it outlives every signal.
    let result = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn last_words(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let start = BLOCK.load(Ordering::Acquire);
    if !start.is_null() && !info.is_null() {
        // SAFETY: `install` stored the start of a block of WORDS words that lives as long as the process.
        let block = unsafe { std::slice::from_raw_parts(start, WORDS) };
        // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo.
        record(block, signal, unsafe { &*info });
    }
    // SAFETY: raise is async-signal-safe; SA_RESETHAND has restored the default, which ends the process.
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
    set(SIGNAL, signal as u64);
    // The master sends SIGABRT to a hung worker in order to see this stack.
    if own || sender == nix::unistd::getppid().as_raw() {
        walk_stack(block);
    }
}

fn walk_stack(block: &[AtomicU64]) {
    // SAFETY: alarm is async-signal-safe; SIGALRM's default ends a process whose unwinder hangs on a broken stack.
    unsafe { libc::alarm(1) };
    let mut count = 0;
    // SAFETY: no other thread of this process unwinds: the worker's loop is this thread.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            block[FIRST_FRAME + count].store(frame.ip() as u64, Ordering::Release);
            count += 1;
            block[FRAMES].store(count as u64, Ordering::Release);
            count < MAX_FRAMES
        });
    }
}
