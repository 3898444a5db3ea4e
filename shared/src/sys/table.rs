//! The descriptor table as numbers. Connections outlive the process that accepted them, so no Rust owner may close them by
//! being dropped: they are numbers in the ledger, closed by name and in one place.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// The numbers open in this process's table, ascending, without the one that the reading itself used.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let mut directory = nix::dir::Dir::open(
        "/proc/self/fd",
        nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    let own = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let mut numbers = Vec::new();
    for entry in directory.iter() {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok());
        numbers.extend(number.filter(|number| *number != own));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Borrows a number of this table for one call. The number stands in the ledger or was inherited; if it has been closed
/// meanwhile, the call answers EBADF.
pub fn borrow<'fd>(number: RawFd) -> BorrowedFd<'fd> {
    debug_assert!(number >= 0);
    // SAFETY: not -1. The table is shared with the keeper, which closes nothing of ours; that a number stays open between
    // two calls is the ledger's protocol, and breaking it yields EBADF or the cookie check's refusal, not memory unsafety.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Closes a number. Errors are ignored: the number is free afterwards whatever close said (close(2), Linux).
pub fn close(number: RawFd) {
    // SAFETY: closing a number has no memory effect; the caller is the one place that closes this number.
    unsafe { libc::close(number) };
}

/// Whether two numbers of this table mean the same open file, by kcmp(2); false too where that is not allowed.
pub fn is_same(one: RawFd, other: RawFd) -> bool {
    const KCMP_FILE: libc::c_long = 0;
    let pid = libc::c_long::from(std::process::id() as i32);
    let (one, other) = (libc::c_long::from(one), libc::c_long::from(other));
    // SAFETY: five numbers, and the kernel only compares.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one, other) == 0 }
}

/// Takes ownership of a number that no owner in this process has.
pub fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: the caller has just found or inherited the number and hands it to this owner alone.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// What stays open in every process of this program, whatever that closes.
static KEPT: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// These stay open in every process of this program: what it has opened for all of them.
pub fn keep(numbers: impl IntoIterator<Item = RawFd>) {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).extend(numbers);
}

/// The numbers from 3 on that this program has opened: what it was born with is not close-on-exec (execve(2)).
pub fn own_descriptors() -> io::Result<Vec<RawFd>> {
    let mut found = open_descriptors()?;
    let flags = |number: RawFd| fcntl(borrow(number), FcntlArg::F_GETFD).map(FdFlag::from_bits_truncate);
    found.retain(|&number| number > 2 && flags(number).is_ok_and(|flags| flags.contains(FdFlag::FD_CLOEXEC)));
    Ok(found)
}

/// Closes every descriptor from 3 on that `except` does not name, and that is not kept.
pub fn close_all_but(except: &[RawFd]) -> io::Result<()> {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    for number in open_descriptors()? {
        if number > 2 && !except.contains(&number) && !kept.contains(&number) {
            close(number);
        }
    }
    Ok(())
}
