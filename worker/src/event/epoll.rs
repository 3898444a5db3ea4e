//! The poller on `epoll(7)`, level-triggered.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Instance, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Event, Interest, Poller};
use phalanx_shared::sys::table::borrow;

/// Events taken in one turn.
const BATCH: usize = 256;

/// An epoll instance of this worker's own.
pub struct Epoll {
    instance: Instance,
    ready: Vec<EpollEvent>,
}

impl Epoll {
    /// A fresh instance, close-on-exec.
    pub fn new() -> io::Result<Epoll> {
        Ok(Epoll { instance: Instance::new(EpollCreateFlags::EPOLL_CLOEXEC)?, ready: vec![EpollEvent::empty(); BATCH] })
    }
}

impl Poller for Epoll {
    fn add(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        Ok(self.instance.add(borrow(fd), EpollEvent::new(flags(interest), fd as u64))?)
    }

    fn change(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        Ok(self.instance.modify(borrow(fd), &mut EpollEvent::new(flags(interest), fd as u64))?)
    }

    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        Ok(self.instance.delete(borrow(fd))?)
    }

    /// The kernel forgets it by itself only once nobody has its socket any more; and a process that was forked a moment ago (the isolator,
    /// or what a handler has started) has one yet. What that tells would be taken for news of who has the number next.
    fn closed(&mut self, fd: RawFd) {
        let _never_watched = self.instance.delete(borrow(fd));
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.instance.0.as_raw_fd())
    }

    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()> {
        events.clear();
        let count = match self.instance.wait(&mut self.ready, timeout(limit)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        events.extend(self.ready[..count].iter().map(event));
        Ok(())
    }
}

fn flags(interest: Interest) -> EpollFlags {
    match interest {
        Interest::Read => EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI | EpollFlags::EPOLLRDHUP,
        Interest::More => flags(Interest::Read) | EpollFlags::EPOLLET,
        Interest::Write => EpollFlags::EPOLLOUT,
        Interest::Both => flags(Interest::Read) | flags(Interest::Write),
        Interest::Finish => EpollFlags::EPOLLRDHUP,
        Interest::Nothing => EpollFlags::empty(),
    }
}

fn event(ready: &EpollEvent) -> Event {
    let flags = ready.events();
    Event {
        fd: ready.data() as RawFd,
        readable: flags.contains(EpollFlags::EPOLLIN),
        writable: flags.contains(EpollFlags::EPOLLOUT),
        urgent: flags.contains(EpollFlags::EPOLLPRI),
        peer_finished: flags.contains(EpollFlags::EPOLLRDHUP),
        hung_up: flags.contains(EpollFlags::EPOLLHUP),
        error: flags.contains(EpollFlags::EPOLLERR),
        completed: false,
    }
}

/// Rounded up, so that a timer is due when the wait ends.
fn timeout(limit: Option<Duration>) -> EpollTimeout {
    match limit {
        None => EpollTimeout::NONE,
        Some(limit) => {
            let milliseconds = limit.as_nanos().div_ceil(1_000_000).min(60_000) as u16;
            EpollTimeout::from(milliseconds)
        }
    }
}
