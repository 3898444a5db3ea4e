//! The poller on `poll(2)`: one list of all descriptors, handed to the kernel and looked through in every turn. Known to every
//! Unix; costs in proportion to what is watched, not to what happens.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::sys::signal::SigSet;
use phalanx_shared::sys::table::borrow;
use rustix::event::{PollFd, PollFlags};

use super::{Event, Interest, Poller, time_limit};

/// The list.
#[derive(Default)]
pub struct Poll {
    watched: Vec<PollFd<'static>>,
    /// By place in the list.
    numbers: Vec<RawFd>,
    /// By number: the place in the list.
    places: Vec<Option<u32>>,
}

impl Poll {
    fn place(&self, fd: RawFd) -> io::Result<usize> {
        let place = usize::try_from(fd).ok().and_then(|index| *self.places.get(index)?);
        place.map(|place| place as usize).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Poller for Poll {
    fn add(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        let index = usize::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
        if self.place(fd).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let place = u32::try_from(self.watched.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if self.places.len() <= index {
            self.places.resize(index + 1, None);
        }
        self.places[index] = Some(place);
        self.watched.push(watched(fd, interest));
        self.numbers.push(fd);
        Ok(())
    }

    fn change(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        let place = self.place(fd)?;
        self.watched[place] = watched(fd, interest);
        Ok(())
    }

    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        let place = self.place(fd)?;
        self.places[fd as usize] = None;
        self.watched.swap_remove(place);
        self.numbers.swap_remove(place);
        if let Some(moved) = self.numbers.get(place) {
            self.places[*moved as usize] = Some(place as u32);
        }
        Ok(())
    }

    fn closed(&mut self, fd: RawFd) {
        let _was_not_watched = self.remove(fd);
    }

    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()> {
        events.clear();
        let count = match rustix::event::poll(&mut self.watched, time_limit(limit).as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut gone = Vec::new();
        for (watched, fd) in self.watched.iter().zip(&self.numbers) {
            if events.len() + gone.len() == count {
                break;
            }
            let flags = watched.revents();
            if flags.contains(PollFlags::NVAL) {
                gone.push(*fd);
            } else if !flags.is_empty() {
                events.push(event(*fd, flags));
            }
        }
        // Another who has the table has closed it: it would be told for ever.
        gone.into_iter().for_each(|fd| self.closed(fd));
        Ok(())
    }
}

/// Whether one of `fds` has something to be read, waiting at most `limit` for it. None of them is closed meanwhile.
pub(crate) fn is_any_readable(fds: impl IntoIterator<Item = RawFd>, limit: Duration) -> bool {
    let mut watched: Vec<PollFd<'_>> = fds.into_iter().map(|fd| watched(fd, Interest::Read)).collect();
    rustix::event::poll(&mut watched, time_limit(Some(limit)).as_ref()).is_ok_and(|told| told > 0)
}

/// A descriptor that is watched for `interest`.
pub(crate) fn watched(fd: RawFd, interest: Interest) -> PollFd<'static> {
    PollFd::from_borrowed_fd(borrow(fd), flags(interest))
}

/// What a call has told of descriptor `fd`; none: nothing. One that is closed is broken.
pub(crate) fn told(fd: RawFd, watched: &PollFd<'_>) -> Option<Event> {
    let flags = watched.revents();
    let mut event = event(fd, flags);
    event.error |= flags.contains(PollFlags::NVAL);
    (!flags.is_empty()).then_some(event)
}

fn flags(interest: Interest) -> PollFlags {
    match interest {
        Interest::Read | Interest::More => PollFlags::IN | PollFlags::PRI | PollFlags::RDHUP,
        Interest::Write => PollFlags::OUT,
        Interest::Both => flags(Interest::Read) | flags(Interest::Write),
        Interest::Finish => PollFlags::RDHUP,
        Interest::Nothing => PollFlags::empty(),
    }
}

fn event(fd: RawFd, flags: PollFlags) -> Event {
    Event {
        fd,
        readable: flags.contains(PollFlags::IN),
        writable: flags.contains(PollFlags::OUT),
        urgent: flags.contains(PollFlags::PRI),
        peer_finished: flags.contains(PollFlags::RDHUP),
        hung_up: flags.contains(PollFlags::HUP),
        error: flags.contains(PollFlags::ERR),
        completed: false,
    }
}

/// Waits for one descriptor with the signals of `let_in` not blocked meanwhile; one that comes ends the wait, and so does a hang-up
/// of `lifeline` (ppoll(2)). None: nothing has happened to the descriptor.
pub(crate) fn wait_for_one(
    fd: RawFd,
    interest: Interest,
    lifeline: Option<RawFd>,
    let_in: &SigSet,
    limit: Duration,
) -> io::Result<Option<Event>> {
    use nix::poll::{PollFd, PollFlags};
    let wanted = match interest {
        Interest::Read | Interest::More => PollFlags::POLLIN | PollFlags::POLLPRI,
        Interest::Write => PollFlags::POLLOUT,
        Interest::Both => PollFlags::POLLIN | PollFlags::POLLPRI | PollFlags::POLLOUT,
        Interest::Finish | Interest::Nothing => PollFlags::empty(),
    };
    let mut watched =
        [PollFd::new(borrow(fd), wanted), PollFd::new(borrow(lifeline.unwrap_or(fd)), PollFlags::empty())];
    let count = if lifeline.is_some() { 2 } else { 1 };
    match nix::poll::ppoll(&mut watched[..count], Some(limit.into()), Some(*let_in)) {
        Ok(_) => {}
        Err(nix::errno::Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let flags = watched[0].revents().unwrap_or(PollFlags::empty());
    let told = |flag| flags.contains(flag);
    // The end of what the peer sends is told as something to read, which then says so.
    let event = Event {
        fd,
        readable: told(PollFlags::POLLIN),
        writable: told(PollFlags::POLLOUT),
        urgent: told(PollFlags::POLLPRI),
        peer_finished: false,
        hung_up: told(PollFlags::POLLHUP),
        error: told(PollFlags::POLLERR) || told(PollFlags::POLLNVAL),
        completed: false,
    };
    Ok((!flags.is_empty()).then_some(event))
}
