//! What a process becomes instead of dying: another program, executed where the signal that ends it is handled, or by
//! `exit(3)`. As over any `execve(2)` the process id, the children and chosen descriptors stay.
//!
//! The handler is async-signal-safe: it makes system calls (nix's functions that it calls are nothing else), and all that it passes to
//! them was allocated before. SIGKILL cannot be
//! handled: who gets that dies.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{alarm, fchdir, getpid};

use super::table::borrow;

/// Why a process does not go on as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It would have ended by this signal; SIGALRM: it did not say for too long that it goes on.
    Signal(Signal),
    /// It called `exit(3)`.
    Exit,
    /// It panicked.
    Panic,
}

const SIGNALS: [Signal; 8] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
    Signal::SIGALRM,
];

/// The program to become, and how it is executed.
#[derive(Debug)]
pub struct Fallback {
    program: RawFd,
    directory: Option<RawFd>,
    _texts: Vec<CString>,
    arguments: Vec<AtomicPtr<c_char>>,
    /// The last but one is for the reason.
    environment: Vec<AtomicPtr<c_char>>,
    /// By code, the environment's word for the reason.
    reasons: Vec<(i32, CString)>,
    /// What is done before all else.
    before: fn(),
    passed: Vec<RawFd>,
    _state: OwnedFd,
}

static CURRENT: AtomicPtr<Fallback> = AtomicPtr::new(std::ptr::null_mut());
/// The process that has it: not those that it forks.
static OWNER: AtomicI32 = AtomicI32::new(0);

impl Reason {
    /// Every reason there is.
    fn all() -> impl Iterator<Item = Reason> {
        SIGNALS.into_iter().map(Reason::Signal).chain([Reason::Exit, Reason::Panic])
    }

    fn code(self) -> i32 {
        match self {
            Reason::Signal(signal) => signal as i32,
            Reason::Exit => 0,
            Reason::Panic => -1,
        }
    }
}

impl Fallback {
    /// `program` by its descriptor, in `directory`. `say` makes the word of the environment (`NAME=value`) that tells the
    /// reason. `passed` stay open over the execve, and so does `state`.
    pub fn new(
        program: RawFd,
        directory: Option<RawFd>,
        arguments: Vec<CString>,
        environment: Vec<CString>,
        say: impl Fn(Reason) -> CString,
        mut passed: Vec<RawFd>,
        state: OwnedFd,
    ) -> Fallback {
        use std::os::fd::AsRawFd;
        let point = |texts: &[CString]| -> Vec<AtomicPtr<c_char>> {
            texts.iter().map(|text| AtomicPtr::new(text.as_ptr().cast_mut())).collect()
        };
        let end = || AtomicPtr::new(std::ptr::null_mut());
        let (mut argument_words, mut words) = (point(&arguments), point(&environment));
        argument_words.push(end());
        words.extend([end(), end()]);
        passed.push(state.as_raw_fd());
        Fallback {
            program,
            directory,
            _texts: arguments.into_iter().chain(environment).collect(),
            arguments: argument_words,
            environment: words,
            reasons: Reason::all().map(|reason| (reason.code(), say(reason))).collect(),
            passed,
            before: || (),
            _state: state,
        }
    }

    /// Has `before`, which is async-signal-safe, done first.
    #[must_use]
    pub fn before(self, before: fn()) -> Fallback {
        Fallback { before, ..self }
    }

    /// Does it; returns if that fails. Async-signal-safe.
    fn execute(&self, code: i32) {
        // Nobody's signal meets the other program before it is prepared.
        let _as_it_was = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
        // Alarms would go on over the execve, and so would one that waits.
        alarm::cancel();
        for disposition in [libc::SIG_IGN, libc::SIG_DFL] {
            // SAFETY: async-signal-safe; ignoring a signal takes one that waits away.
            unsafe { libc::signal(libc::SIGALRM, disposition) };
        }
        (self.before)();
        // A number that is closed by now yields EBADF.
        for number in &self.passed {
            let _closed = fcntl(borrow(*number), FcntlArg::F_SETFD(FdFlag::empty()));
        }
        if let Some(directory) = self.directory {
            let _stays = fchdir(borrow(directory));
        }
        if let Some((_, word)) = self.reasons.iter().find(|(known, _)| *known == code)
            && let Some(place) = self.environment.len().checked_sub(2)
        {
            self.environment[place].store(word.as_ptr().cast_mut(), Ordering::Relaxed);
        }
        let nothing: &CStr = c"";
        // SAFETY: an atomic pointer is represented as the pointer; both arrays end with null, and what they point to lives as
        // long as `self`. By number, since the C library's function may allocate.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                nothing.as_ptr(),
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
    }
}

/// From now on this process becomes `fallback` when it would die, and when it does not [`go_on`] within `patience`
/// (whole seconds). The caller is the process's only thread.
pub fn arm(fallback: Fallback, patience: Duration) -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    OWNER.store(std::process::id() as i32, Ordering::Release);
    replace(Box::into_raw(Box::new(fallback)));
    let mut installed = Ok(());
    INSTALLED.call_once(|| installed = install());
    go_on(patience);
    installed
}

/// Begins `patience` anew, if there is something to become.
pub fn go_on(patience: Duration) {
    if is_armed() {
        alarm::set(patience.as_secs().clamp(1, 3600) as u32);
    }
}

/// From now on it dies as others do; the alarm of a program before this one is taken back too.
pub fn disarm() {
    alarm::cancel();
    replace(std::ptr::null_mut());
}

/// Whether there is something to become.
pub fn is_armed() -> bool {
    !CURRENT.load(Ordering::Acquire).is_null()
}

/// Becomes it now, if there is one and this is the process that has it.
pub fn become_it(reason: Reason) {
    fall(reason.code());
}

fn replace(fallback: *mut Fallback) {
    let before = CURRENT.swap(fallback, Ordering::AcqRel);
    if !before.is_null() {
        // SAFETY: made by `arm`, and taken out of the only place that had it. The process has one thread: no handler uses it.
        drop(unsafe { Box::from_raw(before) });
    }
}

fn install() -> io::Result<()> {
    let flags = SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::Handler(on_signal), flags, SigSet::all());
    let mut handled = SigSet::empty();
    for signal in SIGNALS {
        // SAFETY: `on_signal` is async-signal-safe, as the module says.
        unsafe { sigaction(signal, &action) }?;
        handled.add(signal);
    }
    // A fault whose signal is blocked kills whatever its handler is.
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&handled), None)?;
    // SAFETY: the function is one of this program's, which is never unloaded.
    match unsafe { libc::atexit(on_exit) } {
        0 => Ok(()),
        _ => Err(io::Error::other("atexit: no room")),
    }
}

/// Async-signal-safe. Returns if there is nothing to become.
fn fall(code: i32) {
    if getpid().as_raw() != OWNER.load(Ordering::Acquire) {
        return;
    }
    // Once: what goes wrong from here on is a death.
    let fallback = CURRENT.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: made by `arm`, and lost rather than freed when this returns.
    if let Some(fallback) = unsafe { fallback.as_ref() } {
        fallback.execute(code);
    }
}

extern "C" fn on_signal(signal: libc::c_int) {
    fall(signal);
    // SAFETY: signal is async-signal-safe, and the default runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: raise is async-signal-safe; the default of each of these signals ends the process.
    unsafe { libc::raise(signal) };
}

extern "C" fn on_exit() {
    fall(Reason::Exit.code());
}
