//! Event listening: what a worker waits for, told apart by name. Knows descriptors and tokens, nothing of what they carry.

pub mod epoll;
pub mod timers;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// What a descriptor is watched for. Errors and hang-ups are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the peer has finished sending.
    Read,
    /// Room to write.
    Write,
    /// Errors and hang-ups alone.
    Nothing,
}

/// What happened to a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The descriptor.
    pub fd: RawFd,
    /// There is something to read, end-of-file included.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer has finished sending.
    pub peer_finished: bool,
    /// Both directions are closed.
    pub hung_up: bool,
    /// The socket has an error, a reset for instance.
    pub error: bool,
}

/// A readiness interface of the system, level-triggered.
pub trait Poller {
    /// Watches `fd` from now on.
    fn add(&mut self, fd: RawFd, interest: Interest) -> io::Result<()>;
    /// Watches `fd` for something else.
    fn change(&mut self, fd: RawFd, interest: Interest) -> io::Result<()>;
    /// Forgets `fd`. A descriptor that is closed is forgotten by itself, unless its socket lives on elsewhere.
    fn remove(&mut self, fd: RawFd) -> io::Result<()>;
    /// Replaces `events` by what happened, waiting at most `limit` (none: for ever) for something to happen.
    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()>;
}
