//! Making and ending processes: fork, the keeper's clone, signal masks and dispositions around them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{ForkResult, Pid};

/// What a fork or clone returns, once in each process.
pub enum Born {
    /// In the process that called; the child's id.
    Parent(Pid),
    /// In the new process.
    Child,
}

/// Not in `libc` for this target; `prctl(2)`, since Linux 3.5 with CONFIG_CHECKPOINT_RESTORE.
const PR_GET_TID_ADDRESS: libc::c_int = 40;

/// Forks. The caller is single-threaded ([`thread_names`] says so before the first fork), so the child may do all that the
/// parent could.
pub fn fork() -> io::Result<Born> {
    // SAFETY: the process has one thread, so no lock can be held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Born::Parent(child)),
        ForkResult::Child => Ok(Born::Child),
    }
}

/// Clones the caller into a sibling that shares its descriptor table and nothing else: the child has a copy of the memory,
/// and the caller's parent is the child's parent and gets its SIGCHLD (`clone(2)`: CLONE_FILES, CLONE_PARENT).
///
/// The caller is single-threaded. Without `PR_GET_TID_ADDRESS` glibc keeps the parent's thread id in the child; then
/// `pthread_*` calls that compare thread ids (recursive and robust mutexes) misbehave in C code that the worker runs.
pub fn clone_sharing_files() -> io::Result<Born> {
    let tid_address = thread_id_address();
    let mut flags = libc::CLONE_FILES | libc::CLONE_PARENT | libc::SIGCHLD;
    if tid_address != 0 {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    compile_error!("the order of clone's arguments is known for x86_64 and aarch64 only");
    #[cfg(target_arch = "x86_64")]
    let last = (tid_address, 0);
    #[cfg(target_arch = "aarch64")]
    let last = (0, tid_address);
    // SAFETY: no CLONE_VM, so the child runs on its own copy of this stack; the process has one thread; the child's id is
    // written to its own copy of glibc's own thread descriptor, where set_tid_address had the kernel write it before.
    let id = unsafe { libc::syscall(libc::SYS_clone, flags as usize, 0usize, 0usize, last.0, last.1) };
    match id {
        0 => Ok(Born::Child),
        id if id > 0 => Ok(Born::Parent(Pid::from_raw(id as libc::pid_t))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Clones the caller into a child that shares its descriptor table and nothing else, and returns to the caller a descriptor of the
/// child (`pidfd_open(2)`), which both have and which is close-on-exec. The caller is single-threaded; see
/// [`clone_sharing_files`].
pub fn clone_child_sharing_files() -> io::Result<(Born, RawFd)> {
    let tid_address = thread_id_address();
    let mut flags = libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD;
    if tid_address != 0 {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    let mut pidfd: libc::c_int = -1;
    #[cfg(target_arch = "x86_64")]
    let last = (tid_address, 0);
    #[cfg(target_arch = "aarch64")]
    let last = (0, tid_address);
    // SAFETY: as in `clone_sharing_files`; the kernel writes the descriptor to a live c_int before it returns to the caller.
    let id = unsafe { libc::syscall(libc::SYS_clone, flags as usize, 0usize, &raw mut pidfd, last.0, last.1) };
    match id {
        0 => Ok((Born::Child, -1)),
        id if id > 0 => Ok((Born::Parent(Pid::from_raw(id as libc::pid_t)), pidfd)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has `signal` end a wait that lets it in, and do nothing else, in this process.
pub fn interrupt_waits_by(signal: Signal) -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Where glibc keeps this thread's id; 0 when the kernel does not tell.
fn thread_id_address() -> usize {
    let mut address: usize = 0;
    // SAFETY: the kernel writes one pointer to the address of a live usize.
    let result = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address) };
    if result == 0 { address } else { 0 }
}

/// Whether `pid` is a child of this process that has not been reaped. (nix's waitid takes one that a realtime signal has killed for
/// none.)
pub fn is_child(pid: Pid) -> bool {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT | WaitIdOptions::EXITED;
    Pid::from_raw(pid.as_raw()).is_some_and(|pid| waitid(WaitId::Pid(pid), options).is_ok())
}

/// Ends the process without running destructors or exit handlers: they belong to the process it was copied from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// The names of this process's threads, the calling one first.
pub fn thread_names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let name = std::fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        names.push(name.trim_end().to_owned());
    }
    Ok(names)
}

/// Takes a variable out of this process's environment, and so out of that of whatever it executes. Before it has a second thread.
pub fn forget_variable(name: &str) {
    debug_assert!(thread_names().map_or(1, |names| names.len()) == 1);
    // SAFETY: nobody else reads the environment meanwhile: there is no other thread, by the contract above.
    unsafe { std::env::remove_var(name) };
}

/// Blocks every signal and returns the mask from before. Around fork and clone, so that a child gets none before it has
/// taken its own stand on them.
pub fn block_signals() -> io::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

/// Sets the signal mask.
pub fn set_signal_mask(mask: &SigSet) -> io::Result<()> {
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?)
}

/// Forgets every handler inherited from the parent: each signal gets its default, those in `ignored` are ignored.
/// A handler of the master's that ran in a child would write to the master's own signal pipe.
pub fn reset_dispositions(ignored: &[Signal]) -> io::Result<()> {
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        dispose(signal, if ignored.contains(&signal) { SigHandler::SigIgn } else { SigHandler::SigDfl })?;
    }
    Ok(())
}

/// Ignores `signal` from now on, in this process.
pub fn ignore(signal: Signal) -> io::Result<()> {
    dispose(signal, SigHandler::SigIgn)
}

fn dispose(signal: Signal, handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: both callers pass default or ignore, which run no code of ours.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Reads zeroed-or-written machine words from address 0: a real segmentation fault, for `fault = "segv"`.
pub fn segfault() -> ! {
    // SAFETY: none; this is the fault that the operator asked for with workers.allow_faults. It never returns.
    unsafe { std::ptr::null_mut::<u64>().write_volatile(1) };
    std::process::abort()
}

/// Duplicates `source` onto the number `target`, close-on-exec, replacing what stood there in one step (`dup3(2)`).
pub fn install(source: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: dup3 takes any two numbers; the caller owns the number `target` in this table and nothing in Rust owns it.
    let result = unsafe { libc::dup3(source.as_raw_fd(), target, libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
