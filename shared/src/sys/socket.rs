//! What a TCP socket knows about itself that nobody else can tell after its process is dead: exact byte counters, its cookie.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The kernel's account of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that reads have taken from the socket since it was accepted.
    pub consumed: u64,
    /// Bytes that writes have put into it.
    pub written: u64,
    /// The peer has finished sending; what is left to read ends with end-of-file.
    pub finished: bool,
    /// The connection is gone (reset, or closed both ways).
    pub gone: bool,
}

/// States of `tcp(7)` as in linux/tcp_states.h, after the peer's FIN.
const AFTER_FIN: [u8; 4] =
    [6 /* TIME_WAIT */, 8 /* CLOSE_WAIT */, 9 /* LAST_ACK */, 11 /* CLOSING */];
const CLOSED: u8 = 7;

/// Reads the counters. Exact while nobody reads from or writes to the socket: `tcpi_bytes_received - SIOCINQ` and
/// `tcpi_bytes_acked + SIOCOUTQ`, each taken again until no segment arrived between the calls.
pub fn counters(socket: BorrowedFd<'_>) -> io::Result<Counters> {
    for _ in 0..1000 {
        let (unread, unacked) = (unread_bytes(socket)?, unacked_bytes(socket)?);
        let info = tcp_info(socket)?;
        // Arrivals only add to what is unread, acknowledgements only take from what is unacked: equal means that none came.
        if unread_bytes(socket)? != unread || unacked_bytes(socket)? != unacked {
            continue;
        }
        let finished = AFTER_FIN.contains(&info.tcpi_state);
        let received = info.tcpi_bytes_received.saturating_sub(u64::from(finished));
        return Ok(Counters {
            consumed: received.saturating_sub(unread),
            written: info.tcpi_bytes_acked + unacked,
            finished,
            gone: info.tcpi_state == CLOSED,
        });
    }
    Err(io::Error::other("the counters did not hold still"))
}

/// Whether something has been received that nobody has read.
pub fn has_unread(socket: BorrowedFd<'_>) -> bool {
    unread_bytes(socket).is_ok_and(|count| count > 0)
}

/// Bytes received and not yet read (`tcp(7)` SIOCINQ).
fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    ioctl_count(socket, libc::FIONREAD)
}

/// Bytes written and not yet acknowledged by the peer (`tcp(7)` SIOCOUTQ).
fn unacked_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    ioctl_count(socket, libc::TIOCOUTQ)
}

fn ioctl_count(socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one int to the address given.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut count) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::try_from(count).unwrap_or(0)) }
}

fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<libc::tcp_info> {
    option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)
}

/// The kernel's number for this socket, unique for the life of the network namespace (`SO_COOKIE`, socket(7)).
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, libc::SO_COOKIE)
}

/// Types that any bytes the kernel writes make a valid value of.
trait Plain: Copy {}
impl Plain for u64 {}
impl Plain for libc::tcp_info {}

fn option<T: Plain>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the address given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then perhaps partly overwritten; a Plain type is valid with any content.
    Ok(unsafe { value.assume_init() })
}
