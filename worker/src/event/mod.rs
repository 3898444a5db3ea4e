//! Event listening: what a worker waits for, told apart by name. Knows descriptors and tokens, nothing of what they carry.

pub mod epoll;
pub mod poll;
pub mod select;
pub mod timers;
pub mod uring;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use phalanx_shared::config;
use rustix::event::Timespec;

/// What a descriptor is watched for. Errors and hang-ups are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the peer has finished sending.
    Read,
    /// The same, where what there was has been read: only more of it need be told, and that once. To watch so again, or otherwise, tells
    /// what there is by then. epoll(7) spares itself a look at each turn; others tell it as `Read`.
    More,
    /// Room to write.
    Write,
    /// As `Read` and as `Write`.
    Both,
    /// The end of what the peer sends alone; select(2) does not tell that apart, and tells nothing then.
    Finish,
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
    /// There is urgent data (out of band, RFC 6093). It stands in line with all other: a server's sockets have SO_OOBINLINE.
    pub urgent: bool,
    /// The peer has finished sending.
    pub peer_finished: bool,
    /// Both directions are closed.
    pub hung_up: bool,
    /// The socket has an error, a reset for instance.
    pub error: bool,
    /// An operation is complete that was begun before: what it came to is to be asked for ([`uring::Uring::done`]).
    pub completed: bool,
}

impl Event {
    /// Nothing yet.
    fn of(fd: RawFd) -> Event {
        Event {
            fd,
            readable: false,
            writable: false,
            urgent: false,
            peer_finished: false,
            hung_up: false,
            error: false,
            completed: false,
        }
    }

    /// There is something to read, and nothing else has happened.
    pub fn is_just_readable(&self) -> bool {
        *self == Event { readable: true, ..Event::of(self.fd) }
    }

    /// There is something that a read will tell.
    pub fn wants_read(&self) -> bool {
        self.readable || self.urgent || self.peer_finished || self.is_broken()
    }

    /// A write will tell something: there is room, or it fails.
    pub fn wants_write(&self) -> bool {
        self.writable || self.is_broken()
    }

    /// Nothing more will come, and nothing can be sent.
    pub fn is_broken(&self) -> bool {
        self.hung_up || self.error
    }
}

/// A readiness interface of the system, level-triggered but for [`Interest::More`].
pub trait Poller: Send {
    /// Watches `fd` from now on.
    fn add(&mut self, fd: RawFd, interest: Interest) -> io::Result<()>;
    /// Watches `fd` for something else.
    fn change(&mut self, fd: RawFd, interest: Interest) -> io::Result<()>;
    /// Forgets `fd`, which is open and stays so.
    fn remove(&mut self, fd: RawFd) -> io::Result<()>;
    /// `fd` is about to be closed, or is closed already: its number may be another's soon.
    fn closed(&mut self, fd: RawFd);
    /// The descriptor of its own that it has, if it has one.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }
    /// What it does beside, if it tells of completions.
    fn completing(&mut self) -> Option<&mut uring::Uring> {
        None
    }
    /// Replaces `events` by what happened, waiting at most `limit` (none: for ever) for something to happen.
    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()>;
}

/// The poller of a name.
///
/// # Errors
/// That it could not be made, which only want of descriptors can cause.
pub fn poller(which: config::Poller) -> io::Result<Box<dyn Poller>> {
    Ok(match which {
        config::Poller::Epoll => Box::new(epoll::Epoll::new()?),
        config::Poller::Poll => Box::new(poll::Poll::default()),
        config::Poller::Select => Box::new(select::Select::default()),
    })
}

/// A limit as the system takes it; a day at most, which is for ever to whoever waits.
pub(crate) fn time_limit(limit: Option<Duration>) -> Option<Timespec> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let limit = limit?.min(DAY);
    Some(Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) })
}

#[cfg(test)]
mod tests;
