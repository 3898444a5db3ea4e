//! The poller on `select(2)`, the oldest: three sets of bits, copied and looked through in every turn, with room for the numbers
//! below 1,024 and no others. It tells an error, a hang-up or the end of what a peer sends as something to read, and the read
//! then says which; who is watched for nothing is told of nothing.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::select::{FdSet, select};
use nix::sys::time::{TimeVal, TimeValLike};
use phalanx_shared::config::SELECT_DESCRIPTORS;
use phalanx_shared::sys::table::borrow;

use super::{Event, Interest, Poller};

/// The sets.
pub struct Select {
    watched: [bool; SELECT_DESCRIPTORS],
    read: FdSet<'static>,
    write: FdSet<'static>,
    /// One more than the highest number.
    end: usize,
}

impl Default for Select {
    fn default() -> Select {
        Select { watched: [false; SELECT_DESCRIPTORS], read: FdSet::new(), write: FdSet::new(), end: 0 }
    }
}

impl Select {
    fn set(&mut self, fd: RawFd, interest: Interest) {
        let fd = borrow(fd);
        match interest {
            Interest::Read | Interest::More | Interest::Both => self.read.insert(fd),
            _ => self.read.remove(fd),
        }
        match interest {
            Interest::Write | Interest::Both => self.write.insert(fd),
            _ => self.write.remove(fd),
        }
    }

    /// The place of a number that is watched.
    fn place(&self, fd: RawFd) -> io::Result<usize> {
        let place = usize::try_from(fd).ok().filter(|place| self.watched.get(*place).is_some_and(|watched| *watched));
        place.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Forgets what another who has the table has closed: the call fails for all as long as it is there.
    fn forget_bad(&mut self) {
        for fd in (0..self.end).filter(|fd| self.watched[*fd]).map(|fd| fd as RawFd).collect::<Vec<_>>() {
            if nix::fcntl::fcntl(borrow(fd), nix::fcntl::FcntlArg::F_GETFD).is_err() {
                self.closed(fd);
            }
        }
    }
}

impl Poller for Select {
    fn add(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        let place = usize::try_from(fd).ok().filter(|place| *place < SELECT_DESCRIPTORS).ok_or_else(|| {
            let why = format!("descriptor {fd} is beyond the {SELECT_DESCRIPTORS} that select can watch");
            io::Error::new(io::ErrorKind::InvalidInput, why)
        })?;
        if std::mem::replace(&mut self.watched[place], true) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.set(fd, interest);
        self.end = self.end.max(place + 1);
        Ok(())
    }

    fn change(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        self.place(fd)?;
        self.set(fd, interest);
        Ok(())
    }

    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        let place = self.place(fd)?;
        self.watched[place] = false;
        self.set(fd, Interest::Nothing);
        while self.end > 0 && !self.watched[self.end - 1] {
            self.end -= 1;
        }
        Ok(())
    }

    fn closed(&mut self, fd: RawFd) {
        let _was_not_watched = self.remove(fd);
    }

    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()> {
        events.clear();
        let (mut read, mut write, mut urgent) = (self.read, self.write, self.read);
        // Rounded up, so that a timer is due when the wait ends.
        let mut limit =
            limit.map(|limit| TimeVal::microseconds(limit.as_nanos().div_ceil(1000).min(60_000_000) as i64));
        let told = select(self.end as RawFd, &mut read, &mut write, &mut urgent, limit.as_mut());
        match told {
            Ok(0) | Err(Errno::EINTR) => return Ok(()),
            Ok(_) => {}
            Err(Errno::EBADF) => {
                self.forget_bad();
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        for fd in (0..self.end).filter(|fd| self.watched[*fd]) {
            let (number, fd) = (fd as RawFd, borrow(fd as RawFd));
            let event = Event {
                readable: read.contains(fd),
                writable: write.contains(fd),
                urgent: urgent.contains(fd),
                ..Event::of(number)
            };
            if event.readable || event.writable || event.urgent {
                events.push(event);
            }
        }
        Ok(())
    }
}
