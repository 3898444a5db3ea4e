//! Who else of a worker has connections: threads with loops of their own, or threads and processes with one connection each. The
//! main loop accepts, hands over, and says when to end.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use phalanx_shared::ipc::channel::Doorbell;

use crate::conn::Connection;
use crate::event::Event;
use crate::event_loop::{EventLoop, Stuck};

/// The others. A worker without has [`Nobody`].
pub(crate) trait Crew {
    /// Takes a connection in; it goes on where it stands. Gives it back when the main loop is to have it.
    fn take(&mut self, own: &mut EventLoop, connection: Connection) -> Option<Connection>;

    /// Who comes is theirs: the main loop serves only what it would lose otherwise.
    fn takes_all(&self) -> bool {
        false
    }

    /// Connections that they have.
    fn count(&self) -> u32;

    /// What is theirs in the table, and stands in no track.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Which of those the main loop is to watch for them.
    fn watched(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Something has happened on one of those descriptors; false when it is none of theirs.
    fn react(&mut self, _event: &Event) -> bool {
        false
    }

    /// Gives to another worker what is quiet, and the rest when it becomes so; `bell` is rung for each.
    fn give(&mut self, bell: &'static Doorbell);

    /// Closes what has been idle for `grace`.
    fn close_idle(&mut self, grace: Duration);

    /// As [`EventLoop::oldest_idle`].
    fn oldest_idle(&mut self, most: usize) -> Vec<(RawFd, u64)>;

    /// As [`EventLoop::close_if_idle_since`].
    fn close_if_idle_since(&mut self, fd: RawFd, event: u64) -> bool;

    /// When the main loop is to look after them, where one request may be worked on for `limit`; none: no need.
    fn next_look(&self, _limit: Duration) -> Option<Instant> {
        None
    }

    /// Some of their threads may be at work, or wait for it.
    fn may_be_at_work(&self) -> bool {
        true
    }

    /// Returns when each has shown that it goes on, and has written down what it had to write. Whoever never does is what the main
    /// loop hangs at from then on. Those that show it by themselves are not waited for.
    fn check(&mut self, _own: &mut EventLoop) {}

    /// What has been worked on for long, where that may last for `limit`.
    fn stuck(&mut self, _own: &EventLoop, _limit: Duration) -> Vec<Stuck> {
        Vec::new()
    }
}

/// A worker of one thread.
pub(crate) struct Nobody;

impl Crew for Nobody {
    fn take(&mut self, _own: &mut EventLoop, connection: Connection) -> Option<Connection> {
        Some(connection)
    }

    fn count(&self) -> u32 {
        0
    }

    fn give(&mut self, _bell: &'static Doorbell) {}

    fn close_idle(&mut self, _grace: Duration) {}

    fn oldest_idle(&mut self, _most: usize) -> Vec<(RawFd, u64)> {
        Vec::new()
    }

    fn close_if_idle_since(&mut self, _fd: RawFd, _event: u64) -> bool {
        false
    }

    fn may_be_at_work(&self) -> bool {
        false
    }
}
