//! Completions instead of readiness, on `io_uring(7)`: connections that have been accepted, bytes that have been received into buffers
//! of the ledger, bytes that have been sent; for all other descriptors the events of a poller. What is begun in a turn is submitted
//! by the one call that waits for the next.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use phalanx_shared::sys::region::Buffer;
use phalanx_shared::sys::uring::{Completion, Kind, MOST_PROVIDED, Name, Ring, Told};

use super::{Event, Interest, Poller};

/// Buffers provided at first; twice as many each time that they did not suffice.
const FEW_BUFFERS: usize = 128;
const READ: u32 = (libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP) as u32;
const WRITE: u32 = libc::POLLOUT as u32;
const FINISH: u32 = libc::POLLRDHUP as u32;

/// What an operation came to.
pub enum Done {
    /// A connection has come, or accepting has failed.
    Accepted(io::Result<RawFd>),
    /// So many bytes have been received, into this buffer; none: the peer has finished sending, or the connection is broken.
    Received(io::Result<usize>, Option<Buffer>),
    /// So many of these bytes have been sent.
    Sent(io::Result<usize>, Vec<u8>),
    /// Nobody waits for what stands in it.
    Unwanted(Buffer),
}

/// What is watched about a descriptor.
#[derive(Default)]
struct Watched {
    what: What,
    /// Tells the operation of this watch from those of an earlier one of the number.
    tag: u32,
    /// The operation that accepts or receives is to be under way …
    wanted: bool,
    /// … and is.
    armed: bool,
    /// It is to be polled for these events (poll(2)); 0: not at all.
    events: u32,
    /// The poll that is under way: its tag, its events.
    poll: Option<(u32, u32)>,
    /// The send that is under way.
    send: Option<u32>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum What {
    #[default]
    Nothing,
    Events,
    Listener,
    Connection,
}

/// The poller on a ring.
pub struct Uring {
    ring: Ring,
    /// By descriptor number.
    watched: Vec<Watched>,
    /// Descriptors for which something may have to be begun before the next wait.
    due: Vec<RawFd>,
    /// Connections for which there was no buffer.
    starved: Vec<RawFd>,
    /// Buffers to be provided at the same time.
    buffers: usize,
    /// … at most.
    most_buffers: usize,
    /// Sends of this turn: connection, the tag of its watch, bytes, how many of them.
    outgoing: Vec<(RawFd, u32, Vec<u8>, usize)>,
    /// Counts operations, to tell them apart.
    tags: u32,
}

impl Uring {
    /// Over a ring that has nothing under way yet and is to have at most so many buffers.
    pub fn new(ring: Ring, most_buffers: usize) -> Uring {
        let most_buffers = most_buffers.clamp(1, MOST_PROVIDED.into());
        Uring {
            ring,
            watched: Vec::new(),
            due: Vec::new(),
            starved: Vec::new(),
            buffers: FEW_BUFFERS.min(most_buffers),
            most_buffers,
            outgoing: Vec::new(),
            tags: 0,
        }
    }

    /// Watches a listener: connections are accepted as they come. It is polled beside: the kernel wakes one of those who accept for
    /// each connection that comes (EPOLLEXCLUSIVE), and that one may be busy, or dead; those who poll are woken all.
    pub fn add_listener(&mut self, fd: RawFd) -> io::Result<()> {
        self.watch(fd, What::Listener, READ).map(|_| ())
    }

    /// Watches a connection: what it sends is received. Returns the tag of the operation that does so.
    pub fn add_connection(&mut self, fd: RawFd) -> io::Result<u32> {
        self.watch(fd, What::Connection, 0)
    }

    /// Sends the first `count` of `bytes` on a connection; one send at a time.
    pub fn send(&mut self, fd: RawFd, bytes: Vec<u8>, count: usize) -> io::Result<()> {
        // Named when nothing can close it any more before it is submitted: its number could be another's by then.
        let tag = self.at(fd)?.tag;
        self.outgoing.push((fd, tag, bytes, count));
        Ok(())
    }

    /// Has the receiving on a connection end for now, or go on.
    pub fn receive(&mut self, fd: RawFd, wanted: bool) -> io::Result<()> {
        let watched = self.at(fd)?;
        if std::mem::replace(&mut watched.wanted, wanted) == wanted {
            return Ok(());
        }
        let (tag, armed) = (watched.tag, watched.armed);
        match wanted {
            true => self.due.push(fd),
            false if armed => self.ring.cancel(Name { kind: Kind::Receive, fd, tag })?,
            false => {}
        }
        Ok(())
    }

    /// Stops to watch a connection that another process is to have: after this nothing is received on it here. False when something has
    /// been, which a coming event tells; then it goes on to be watched.
    pub fn let_go(&mut self, fd: RawFd) -> bool {
        let Ok(watched) = self.at(fd) else { return true };
        let (name, armed) = (Name { kind: Kind::Receive, fd, tag: watched.tag }, watched.armed);
        if self.ring.has_untaken(name) {
            return false;
        }
        if armed {
            let _it_may_have_ended = self.ring.cancel_now(name);
            if self.ring.has_untaken(name) {
                return false;
            }
        }
        let _watched_no_more = self.remove(fd);
        true
    }

    /// Whether something has been received on a connection that no event has told yet.
    pub fn has_untold(&mut self, fd: RawFd) -> bool {
        let tag = self.at(fd).ok().map(|watched| watched.tag);
        tag.is_some_and(|tag| self.ring.has_untaken(Name { kind: Kind::Receive, fd, tag }))
    }

    /// Whether connections have come that no event has told yet.
    pub fn has_accepted(&mut self) -> bool {
        self.ring.has_accepted()
    }

    /// Buffers that it could do with.
    pub fn lacks_buffers(&self) -> usize {
        self.buffers.saturating_sub(self.ring.provided())
    }

    /// Provides a buffer to receive into; given back: it cannot be used.
    pub fn provide(&mut self, buffer: Buffer) -> Result<(), Buffer> {
        self.ring.provide(buffer)
    }

    /// What the operation came to that the event of the turn is about; none: nothing that anybody waits for. To be asked for in the
    /// order of the events.
    pub fn done(&mut self) -> Option<Done> {
        // Polls have been told by their events.
        let Completion { told, buffer, bytes } = loop {
            let completion = self.ring.take()?;
            if completion.told.name.kind != Kind::Poll {
                break completion;
            }
        };
        let Name { kind, fd, tag } = told.name;
        let watched = usize::try_from(fd).ok().and_then(|index| self.watched.get_mut(index));
        match kind {
            Kind::Send => {
                let watched = watched.filter(|watched| watched.send == Some(tag))?;
                watched.send = None;
                return Some(Done::Sent(outcome(&told), bytes?));
            }
            Kind::Poll | Kind::Cancel => return None,
            Kind::Accept | Kind::Receive => {}
        }
        let Some(watched) = watched.filter(|watched| watched.tag == tag && watched.what != What::Nothing) else {
            // A connection has come, whether it is still waited for or not.
            let accepted = (kind == Kind::Accept && told.result >= 0).then_some(Done::Accepted(Ok(told.result)));
            return accepted.or(buffer.map(Done::Unwanted));
        };
        if !told.more {
            watched.armed = false;
            if kind == Kind::Receive && told.result == -libc::ENOBUFS {
                self.starved.push(fd);
                return None;
            }
            self.due.push(fd);
        }
        if told.result == -libc::ECANCELED {
            return None;
        }
        if kind == Kind::Accept {
            return Some(Done::Accepted(outcome(&told).map(|_| told.result)));
        }
        if buffer.is_none() {
            watched.wanted = false;
        }
        Some(Done::Received(outcome(&told), buffer))
    }

    /// What has been asked for is the asker's: nobody finds it in the ring any more.
    pub fn forget_taken(&mut self) {
        self.ring.forget_taken();
    }

    fn at(&mut self, fd: RawFd) -> io::Result<&mut Watched> {
        let index = usize::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput)?;
        if self.watched.len() <= index {
            self.watched.resize_with(index + 1, Watched::default);
        }
        Ok(&mut self.watched[index])
    }

    fn next_tag(&mut self) -> u32 {
        self.tags = self.tags.wrapping_add(1) & 0xff_ffff;
        self.tags
    }

    fn watch(&mut self, fd: RawFd, what: What, events: u32) -> io::Result<u32> {
        let tag = self.next_tag();
        let watched = self.at(fd)?;
        if watched.what != What::Nothing {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        *watched = Watched { what, tag, wanted: what != What::Events, events, ..Watched::default() };
        self.due.push(fd);
        Ok(tag)
    }

    /// Begins what is to be under way for a descriptor and is not.
    fn begin(&mut self, fd: RawFd) -> io::Result<()> {
        let tag = self.next_tag();
        let Some(watched) = usize::try_from(fd).ok().and_then(|fd| self.watched.get_mut(fd)) else { return Ok(()) };
        if watched.wanted && !watched.armed {
            watched.armed = true;
            match watched.what {
                What::Listener => self.ring.accept(fd, watched.tag)?,
                What::Connection => self.ring.receive(fd, watched.tag)?,
                What::Events | What::Nothing => {}
            }
        }
        if let Some((tag, _)) = watched.poll.take_if(|(_, events)| *events != watched.events) {
            self.ring.cancel(Name { kind: Kind::Poll, fd, tag })?;
        }
        if watched.events != 0 && watched.poll.is_none() {
            watched.poll = Some((tag, watched.events));
            self.ring.poll(fd, tag, watched.events)?;
        }
        Ok(())
    }

    /// Stops to watch a descriptor, and tells what that has left under way.
    fn forget(&mut self, fd: RawFd) -> io::Result<Watched> {
        let watched = std::mem::take(self.at(fd)?);
        if watched.what == What::Nothing { Err(io::ErrorKind::NotFound.into()) } else { Ok(watched) }
    }

    /// The event of a completion; none: one that nobody waits for.
    fn event(&mut self, completion: &Told) -> Option<Event> {
        let Name { kind, fd, tag } = completion.name;
        if kind != Kind::Poll {
            return Some(Event { completed: true, ..Event::of(fd) });
        }
        let index = usize::try_from(fd).ok()?;
        self.watched.get_mut(index)?.poll.take_if(|(known, _)| *known == tag)?;
        self.due.push(fd);
        let told = u32::try_from(completion.result).unwrap_or(libc::POLLERR as u32) as libc::c_int;
        let has = |flag: i16| told & libc::c_int::from(flag) != 0;
        Some(Event {
            readable: has(libc::POLLIN),
            writable: has(libc::POLLOUT),
            urgent: has(libc::POLLPRI),
            peer_finished: has(libc::POLLRDHUP),
            hung_up: has(libc::POLLHUP),
            error: has(libc::POLLERR),
            ..Event::of(fd)
        })
    }
}

impl Poller for Uring {
    fn add(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        self.watch(fd, What::Events, events(interest)).map(|_| ())
    }

    fn change(&mut self, fd: RawFd, interest: Interest) -> io::Result<()> {
        let watched = self.at(fd)?;
        // What a connection sends is received whatever else it waits for.
        let events = match (watched.what, interest) {
            (What::Connection, Interest::Write | Interest::Both) => WRITE,
            (What::Connection, _) => 0,
            _ => events(interest),
        };
        if std::mem::replace(&mut watched.events, events) != events {
            self.due.push(fd);
        }
        Ok(())
    }

    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        let watched = self.forget(fd)?;
        if let Some((tag, _)) = watched.poll {
            self.ring.cancel(Name { kind: Kind::Poll, fd, tag })?;
        }
        if watched.what == What::Listener && watched.armed {
            // Whoever comes after this is somebody else's.
            let _it_may_have_ended = self.ring.cancel_now(Name { kind: Kind::Accept, fd, tag: watched.tag });
        }
        Ok(())
    }

    fn closed(&mut self, fd: RawFd) {
        let Ok(watched) = self.forget(fd) else { return };
        let receive = (watched.what == What::Connection && watched.armed).then_some((Kind::Receive, watched.tag));
        let poll = watched.poll.map(|(tag, _)| (Kind::Poll, tag));
        let send = watched.send.map(|tag| (Kind::Send, tag));
        for (kind, tag) in [receive, poll, send].into_iter().flatten() {
            // They hold the connection open until they end.
            let _no_room_is_no_reason = self.ring.cancel(Name { kind, fd, tag });
        }
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.ring.descriptor())
    }

    fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()> {
        events.clear();
        if !self.starved.is_empty() {
            self.buffers = (self.buffers * 2).min(self.most_buffers);
        }
        if self.ring.provided() > 0 {
            self.due.append(&mut self.starved);
        }
        let mut due = std::mem::take(&mut self.due);
        for fd in due.drain(..) {
            self.begin(fd)?;
        }
        self.due = due;
        let mut outgoing = std::mem::take(&mut self.outgoing);
        for (fd, tag, bytes, count) in outgoing.drain(..) {
            let watched = usize::try_from(fd).ok().and_then(|index| self.watched.get_mut(index));
            if let Some(watched) = watched.filter(|watched| watched.tag == tag && watched.what == What::Connection) {
                watched.send = Some(self.ring.send(fd, bytes, count)?);
            }
        }
        self.outgoing = outgoing;
        self.ring.wait(limit)?;
        for at in 0.. {
            let Some(completion) = self.ring.told(at) else { break };
            events.extend(self.event(&completion));
        }
        Ok(())
    }

    fn completing(&mut self) -> Option<&mut Uring> {
        Some(self)
    }
}

fn events(interest: Interest) -> u32 {
    match interest {
        Interest::Read | Interest::More => READ,
        Interest::Write => WRITE,
        Interest::Both => READ | WRITE,
        Interest::Finish => FINISH,
        Interest::Nothing => 0,
    }
}

fn outcome(completion: &Told) -> io::Result<usize> {
    usize::try_from(completion.result).map_err(|_| io::Error::from_raw_os_error(-completion.result))
}
