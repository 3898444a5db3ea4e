//! How connections come to a worker, and what becomes of those it has no room for: idle ones make room, the oldest first; who
//! comes then is told 503 at once. A descriptor held in reserve lets it say so when there is none left.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, SockFlag, accept4, getsockopt, send, shutdown, sockopt};
use phalanx_shared::config::ListenAddress;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::sys::socket::cookie;
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::{error, warn};

use super::{MainLoop, Stage};
use crate::conn::{Connection, TURNED_AWAY};
use crate::crash_point::{self, Point};
use crate::rescue;

/// Connections accepted from one listener in a turn, before those that are there get their turn.
pub(super) const ACCEPT_BATCH: usize = 64;
/// How long accepting pauses when not even the reserve helps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Idle connections that are found in one look at all of them, to be closed when room is needed.
const FOUND: usize = 256;
/// How long a look that found nothing idle stands: under a flood it would be in vain each time.
const IN_VAIN: Duration = Duration::from_millis(50);
/// How often overload is written down at most.
const SAID_EVERY: Duration = Duration::from_secs(5);

/// What a worker needs to know to accept.
pub(super) struct Door {
    pub(super) open: bool,
    again: Option<Instant>,
    /// Given up so that a connection can be told that there is no descriptor for it.
    reserve: Option<File>,
    /// The oldest idle connections of the last look, the oldest last.
    idle: Vec<(RawFd, u64)>,
    in_vain_until: Option<Instant>,
    said: Option<Instant>,
}

impl Door {
    pub(super) fn new() -> Door {
        Door { open: false, again: None, reserve: reserve(), idle: Vec::new(), in_vain_until: None, said: None }
    }

    /// When accepting is to be tried again.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// The reserve's descriptor.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.reserve.as_ref().map(AsRawFd::as_raw_fd)
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

impl MainLoop {
    /// Accepts what is queued at the slot's own listeners, [`ACCEPT_BATCH`] from each at most. Whether there may be more.
    pub(super) fn accept_from_all(&mut self) -> bool {
        let listeners = self.listeners().into_iter();
        listeners.fold(false, |more, (seat, fd, _)| self.accept_batch(fd, seat) || more)
    }

    /// Accepts what is queued at a socket that is, or is another slot's counterpart of, the one on `seat`.
    pub(super) fn accept_from(&mut self, socket: RawFd, seat: u8) {
        let _rest_is_told_again = self.accept_batch(socket, seat);
    }

    fn accept_batch(&mut self, socket: RawFd, seat: u8) -> bool {
        for _ in 0..ACCEPT_BATCH {
            if !self.is_let_in() {
                return false;
            }
            self.own.cx.lane.set_accepting(true);
            let accepted = accept4(borrow(socket), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC);
            let accepted = accepted.map(|fd| self.accepted(fd.into_raw_fd(), seat));
            self.own.cx.lane.set_accepting(false);
            match accepted.err() {
                // Nobody is queued.
                Some(Errno::EAGAIN) => return false,
                // The service stops, or this listener does.
                Some(Errno::EINVAL | Errno::ENOTSOCK) => {
                    let _not_watched = self.own.poller.remove(socket);
                    return false;
                }
                Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    if !self.make_room() && !self.turn_away_by_reserve(socket) {
                        self.pause_accepting();
                        return true;
                    }
                }
                // The client went away while it was queued, or the call was interrupted.
                Some(_) | None => {}
            }
        }
        true
    }

    /// A ring has accepted a connection from `socket`, or has not been able to.
    pub(super) fn accepted_by_ring(&mut self, socket: RawFd, accepted: io::Result<RawFd>) {
        let seat =
            self.inheritance.seats.iter().position(|seat| *seat == socket).and_then(|seat| u8::try_from(seat).ok());
        let assisted = || self.assisted.iter().find(|(assisted, _)| *assisted == socket).map(|(_, seat)| *seat);
        match (accepted, seat.or_else(assisted)) {
            (Ok(fd), seat) => match seat.or_else(|| rescue::sweep::seat_of(fd, self.inheritance)) {
                Some(seat) => self.accepted(fd, seat),
                None => table::close(fd),
            },
            // A call tells the reason again, and does what it calls for.
            (Err(_), Some(seat)) => self.accept_from(socket, seat),
            (Err(_), None) => {}
        }
        self.own.cx.lane.set_accepting(false);
    }

    fn accepted(&mut self, fd: RawFd, listener: u8) {
        crash_point::pass(Point::AfterAccept);
        if self.count() >= self.own.cx.limits.connections && !self.make_room() {
            return self.turn_away(fd, listener);
        }
        let Some(mut connection) = self.record(fd, listener) else { return table::close(fd) };
        let welcome = self.own.cx.speaks_for_proxy(listener) || connection.count_client(&self.own.cx);
        self.own.cx.stats.add(Counter::Accepted, 1);
        if !welcome {
            self.own.insert(connection);
            return self.own.with(fd, Connection::turn_away);
        }
        let Some(connection) = self.place(connection) else { return };
        self.own.insert(connection);
        if self.crew.takes_all() || self.children.takes_all() {
            // A handler would hold up this loop, which has others to look after.
            self.say_overload("no thread or process can be started for a connection");
            self.own.with(fd, Connection::turn_away);
        }
    }

    fn record(&self, fd: RawFd, listener: u8) -> Option<Connection> {
        let peer = rescue::sweep::peer_of(fd)?;
        Connection::record(&self.own.cx, fd, peer, listener).ok().flatten()
    }

    /// Takes connections of a predecessor in; each goes on where it stood.
    pub(crate) fn adopt(&mut self, connections: Vec<Connection>) {
        for connection in connections {
            // What a pool does for it comes back to this loop.
            // … and what it sends from is open here.
            let stays = connection.is_waiting() || connection.has_output();
            let left = if stays { Some(connection) } else { self.place(connection) };
            left.into_iter().for_each(|connection| self.own.adopt(connection));
        }
    }

    /// Gives a connection to whoever is to have it; returned: this loop.
    fn place(&mut self, connection: Connection) -> Option<Connection> {
        // What comes to a worker that leaves is not worth a thread or a process.
        if self.stage == Stage::Retiring {
            return Some(connection);
        }
        let left = self.children.take(&mut self.own, connection)?;
        self.crew.take(&mut self.own, left)
    }

    // ---- no room ----

    /// Closes the connection that has been idle for longest; false when none is.
    fn make_room(&mut self) -> bool {
        let now = self.own.now();
        if self.door.in_vain_until.is_some_and(|until| now < until) {
            return false;
        }
        for _look in 0..2 {
            while let Some((fd, event)) = self.door.idle.pop() {
                if self.own.close_if_idle_since(fd, event)
                    || self.crew.close_if_idle_since(fd, event)
                    || self.children.close_if_idle_since(&mut self.own, fd, event)
                {
                    return true;
                }
            }
            self.door.idle = self.own.oldest_idle(FOUND);
            self.door.idle.append(&mut self.crew.oldest_idle(FOUND));
            self.door.idle.extend(self.children.oldest_idle());
            self.door.idle.sort_unstable_by_key(|&(_, event)| std::cmp::Reverse(event));
        }
        self.door.in_vain_until = Some(now + IN_VAIN);
        false
    }

    /// Tells a connection over the limit so.
    fn turn_away(&mut self, fd: RawFd, listener: u8) {
        self.say_overload(&format!("as many connections as {} allows", self.own.cx.bound_by));
        match self.record(fd, listener) {
            Some(connection) => {
                self.own.insert(connection);
                self.own.with(fd, Connection::turn_away);
            }
            None => say_no(fd),
        }
    }

    /// Without a descriptor left: uses the reserve to tell one connection so. False when even that cannot be had.
    fn turn_away_by_reserve(&mut self, socket: RawFd) -> bool {
        self.say_overload("out of descriptors or memory");
        drop(self.door.reserve.take());
        let accepted = accept4(borrow(socket), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC);
        let accepted = accepted.map(|fd| say_no(fd.into_raw_fd()));
        self.door.reserve = reserve();
        self.note_own();
        accepted_or_nobody(accepted) && self.door.reserve.is_some()
    }

    fn say_overload(&mut self, why: &str) {
        let now = self.own.now();
        if self.door.said.is_none_or(|said| now >= said + SAID_EVERY) {
            self.door.said = Some(now);
            warn!("{why}: closing idle connections, answering new ones 503");
        }
    }

    // ---- the listeners ----

    pub(super) fn start_accepting(&mut self) {
        self.door.open = true;
        if self.is_shut() {
            return;
        }
        for (_, fd, address) in self.listeners() {
            match self.own.listen(fd) {
                Ok(()) => {}
                // A canary has watched it all along.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => error!("watch {address}: {error}"),
            }
        }
    }

    /// The slot's listeners, those that the configuration knows: seat, number, address. What it has taken away and what a reload
    /// has yet to bring does not listen.
    pub(super) fn listeners(&self) -> Vec<(u8, RawFd, ListenAddress)> {
        let configured = self.own.cx.listens.iter().flatten();
        let seated = configured.filter_map(|listen| {
            let fd = *self.inheritance.seats.get(usize::from(listen.seat))?;
            Some((listen.seat, fd, listen.address.clone()))
        });
        seated.filter(|(_, fd, _)| is_listening(*fd)).collect()
    }

    /// Accepts from another slot's sockets as soon as they are where they are to be.
    pub(super) fn assist(&mut self, cookies: Vec<(u8, u64)>) {
        for (fd, _) in std::mem::take(&mut self.assisted) {
            let _not_watched = self.own.poller.remove(fd);
            table::close(fd);
        }
        self.note_own();
        self.to_assist = cookies;
        self.begin_to_assist();
    }

    pub(super) fn begin_to_assist(&mut self) {
        if self.to_assist.is_empty() || !self.door.open {
            return;
        }
        let number =
            |(seat, wanted): &(u8, u64)| Some((*seat, *self.inheritance.assisting.get(usize::from(*seat))?, *wanted));
        let places: Vec<(u8, RawFd, u64)> = self.to_assist.iter().filter_map(number).collect();
        if places.iter().all(|(_, fd, wanted)| cookie(borrow(*fd)).is_ok_and(|cookie| cookie == *wanted)) {
            // Watched by descriptors of this worker's own: the master may put others into the places at any time.
            for (seat, fd, _) in places {
                match borrow(fd).try_clone_to_owned().map(IntoRawFd::into_raw_fd) {
                    Ok(own) => match self.own.listen(own) {
                        Ok(()) => self.assisted.push((own, seat)),
                        Err(error) => {
                            warn!("watch another slot's socket: {error}");
                            table::close(own);
                        }
                    },
                    Err(error) => warn!("accept from another slot's socket: {error}"),
                }
            }
            self.to_assist.clear();
            self.note_own();
        }
    }

    pub(super) fn stop_accepting(&mut self) {
        self.assist(Vec::new());
        self.stop_accepting_from(|_| true);
        self.door.open = false;
        self.door.again = None;
    }

    pub(super) fn stop_accepting_from(&mut self, which: impl Fn(&ListenAddress) -> bool) {
        for (_, fd, _) in self.listeners().iter().filter(|(.., address)| which(address)) {
            let _not_watched = self.own.poller.remove(*fd);
        }
    }

    fn pause_accepting(&mut self) {
        self.stop_accepting();
        self.door.again = Some(self.own.now() + ACCEPT_PAUSE);
    }

    /// Ends a pause that is over.
    pub(super) fn accept_again(&mut self) {
        if self.door.again.is_some_and(|at| at <= self.own.now()) {
            self.door.again = None;
            if self.door.reserve.is_none() {
                self.door.reserve = reserve();
                self.note_own();
            }
            self.start_accepting();
        }
    }
}

/// An accept that failed for want of nothing but a connection is no reason to pause.
fn accepted_or_nobody(accepted: nix::Result<()>) -> bool {
    !matches!(accepted, Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// Whether `fd` is a socket that listens (socket(7) SO_ACCEPTCONN).
fn is_listening(fd: RawFd) -> bool {
    getsockopt(&borrow(fd), sockopt::AcceptConn).unwrap_or(false)
}

/// Says 503 and closes. What the peer has sent by now is read, so that it does not turn the close into a reset.
fn say_no(fd: RawFd) {
    let socket = table::adopt(fd);
    let _best_effort = send(fd, TURNED_AWAY, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    let _best_effort = shutdown(fd, Shutdown::Write);
    let _best_effort = File::from(socket).read(&mut [0; 4096]);
}
