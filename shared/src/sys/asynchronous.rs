//! A descriptor that an asynchronous runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime that is running wait for `fd` to be readable. It has to be one that can be waited for: a socket, a pipe, an epoll
/// instance.
///
/// # Errors
/// What epoll_ctl(2) says.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open for as long as it lives, which is as long as the AsyncFd that owns it, and its number never changes.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}
