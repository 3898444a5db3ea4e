//! The client of a played connection. It lives under one descriptor number for good, so that this number can be told from
//! those that a successor may close.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, connect, setsockopt, shutdown, socket, sockopt,
};
use phalanx_shared::sys::table;

/// Bytes that a socket holds, about: little, so that responses break off.
const SOCKET_BYTES: usize = 32 * 1024;
/// Segments as on an Ethernet: loopback's own fill such a socket with one, and its window opens late.
const SEGMENT_BYTES: u32 = 1400;
/// What has been sent over loopback is there by then. Nobody else is awaited.
const LOOPBACK_DELAY: Duration = Duration::from_secs(1);

/// The client, and all it has read.
pub(super) struct Client {
    socket: OwnedFd,
    nothing: OwnedFd,
    read: Vec<u8>,
}

/// Has the sockets that `listener` accepts hold little.
pub(super) fn shrink_buffers(listener: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(listener, sockopt::SndBuf, &SOCKET_BYTES)?)
}

impl Client {
    /// A client without a connection.
    pub(super) fn new() -> io::Result<Client> {
        let nothing = OwnedFd::from(std::fs::File::open("/dev/null")?);
        Ok(Client { socket: nothing.try_clone()?, nothing, read: Vec::new() })
    }

    /// Connects to `address`. Closing will be a reset: nothing of the connection stays in the kernel.
    pub(super) fn connect(&mut self, address: SocketAddr) -> io::Result<()> {
        let fresh = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fresh, sockopt::RcvBuf, &SOCKET_BYTES)?;
        setsockopt(&fresh, sockopt::TcpMaxSeg, &SEGMENT_BYTES)?;
        setsockopt(&fresh, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        connect(fresh.as_raw_fd(), &SockaddrStorage::from(address))?;
        self.take(fresh)
    }

    /// Is the peer of a connected socket.
    pub(super) fn take(&mut self, connected: OwnedFd) -> io::Result<()> {
        let flags = nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&connected, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        nix::unistd::dup2(&connected, &mut self.socket)?;
        Ok(())
    }

    /// Sends what the socket takes, and then perhaps its end.
    pub(super) fn send(&self, bytes: &[u8], finished: bool) {
        let _what_fits = nix::unistd::write(&self.socket, bytes);
        if finished {
            let _no_socket = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Reads all that has come; true at the end of it.
    pub(super) fn read_all(&mut self) -> bool {
        let mut bytes = [0; 64 * 1024];
        loop {
            match nix::unistd::read(&self.socket, &mut bytes) {
                Ok(0) => return true,
                Ok(count) => self.read.extend_from_slice(&bytes[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Reads what a server that has closed had sent.
    pub(super) fn read_to_end(&mut self) {
        while !self.read_all() && about_now(&mut [self.readable()]) {}
    }

    /// Waits until the server, on `fd`, can send more or the client has something to read; false when neither happens.
    pub(super) fn awaits(&self, fd: RawFd) -> bool {
        about_now(&mut [self.readable(), PollFd::new(table::borrow(fd), PollFlags::POLLOUT)])
    }

    fn readable(&self) -> PollFd<'_> {
        PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)
    }

    /// Closes.
    pub(super) fn hang_up(&mut self) {
        let _harmless = nix::unistd::dup2(&self.nothing, &mut self.socket);
    }

    /// All that it has read; it forgets it.
    pub(super) fn take_read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }
}

fn about_now(fds: &mut [PollFd<'_>]) -> bool {
    poll(fds, PollTimeout::try_from(LOOPBACK_DELAY).unwrap_or(PollTimeout::ZERO)).is_ok_and(|count| count > 0)
}
