//! Taking over what a predecessor left: each record is compared with the kernel's own account of its socket. The difference
//! is what the dying system call did; with it every connection is put where its client believes it to be, or closed.
//!
//! The ledger is untrusted here: a crashing worker may have written anything into it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getpeername, getsockname};
use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ledger::journal::Retire;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Guilt, Owner, Peer, Phase, Record, State};
use phalanx_shared::ledger::response::Entry;
use phalanx_shared::ledger::{BUFFER_BYTES, LANES, Pending};
use phalanx_shared::sys::region::Buffer;
use phalanx_shared::sys::socket::{cookie, counters};
use phalanx_shared::sys::table::{self, borrow, open_descriptors};
use phalanx_shared::{debug, info, warn};

use crate::conn::{Connection, Context, plausible};
use crate::enter::{Address, Inheritance};

/// Why a connection is closed instead of kept.
type Refusal = &'static str;

/// Takes over every connection whose owner is dead: neither this worker nor one of `alive`.
pub(crate) fn take_over(cx: &mut Context, alive: &[Incarnation]) -> Vec<Connection> {
    let recorded: Vec<(RawFd, Record)> = cx.ledger.recorded().collect();
    let (mut kept, mut lost) = (Vec::new(), Lost::default());
    for (fd, record) in recorded {
        let Some(Owner::Worker(owner)) = record.owner() else { continue };
        if owner == cx.incarnation || alive.contains(&owner) {
            continue;
        }
        // What the rescue of a connection runs can kill this worker too: the blame is to fall on the right one.
        cx.lane.set_current(Some(fd));
        match rescue(cx, fd, record) {
            Ok(connection) => kept.push(connection),
            Err(why) => {
                lost.note(why);
                close(cx, fd, &record, why);
            }
        }
    }
    cx.lane.set_current(None);
    lost.tell(kept.len());
    kept
}

/// Connections that a rescue could not keep, for one line in the log.
#[derive(Default)]
struct Lost {
    count: usize,
    why: Refusal,
}

impl Lost {
    fn note(&mut self, why: Refusal) {
        self.count += 1;
        self.why = why;
    }

    fn tell(&self, kept: usize) {
        if self.count > 0 {
            warn!("took over {kept} connections, had to close {}, the last because {}", self.count, self.why);
        }
    }
}

/// Takes what a predecessor has given. Only for a worker that serves.
pub(crate) fn take_given(cx: &mut Context) -> Vec<Connection> {
    let recorded: Vec<(RawFd, Record)> = cx.ledger.recorded().collect();
    let mut kept = Vec::new();
    for (fd, record) in recorded {
        if !record.claim_given(cx.incarnation) {
            continue;
        }
        match adopt(cx, fd, record) {
            Ok(connection) => kept.push(connection),
            Err(why) => close(cx, fd, &record, why),
        }
    }
    kept
}

/// Carries out what the journals of dead lanes had begun. `alive_lane` belongs to a living worker.
pub(crate) fn settle(ledger: &phalanx_shared::ledger::Ledger, alive_lane: Option<usize>) {
    for lane in (0..LANES).filter(|&lane| Some(lane) != alive_lane).map(|lane| ledger.lane(lane)) {
        lane.journal().settle(&lane.stats(), |fd| ledger.record(fd));
        lane.set_current(None);
        lane.stats().set(Counter::Connections, 0);
    }
}

/// Closes what is in the table and in no record, except sockets that a dead worker had accepted and not yet recorded: those
/// are recorded now and returned. Only for a worker that is alone in its slot, before it opens anything of its own.
pub(crate) fn sweep(cx: &mut Context, inheritance: &Inheritance) -> Vec<Connection> {
    let closing: Vec<RawFd> = (0..LANES).filter_map(|lane| cx.ledger.lane(lane).closing()).collect();
    let mut adopted = Vec::new();
    for fd in open_descriptors().unwrap_or_default() {
        let recorded = cx.ledger.record(fd).is_some_and(|record| record.owner().is_some());
        if fd <= 2 || recorded || inheritance.infrastructure.contains(&fd) {
            continue;
        }
        let fresh = if closing.contains(&fd) { None } else { just_accepted(fd, inheritance) };
        match fresh.and_then(|(peer, listener)| Connection::record(cx, fd, peer, listener).ok().flatten()) {
            Some(connection) => adopted.push(connection),
            None => table::close(fd),
        }
    }
    for lane in 0..LANES {
        cx.ledger.lane(lane).set_closing(None);
    }
    adopted
}

fn close(cx: &mut Context, fd: RawFd, record: &Record, why: Refusal) {
    debug!("connection {fd} of {:?} could not be taken over: {why}", record.peer());
    cx.stats.add(Counter::Closed, 1);
    let ours = cookie(borrow(fd)).is_ok_and(|cookie| cookie == record.cookie());
    record.free();
    if ours {
        reset(fd);
    }
}

/// Closes so that the peer sees a reset, not an orderly end: it must not take what it has for a whole response.
fn reset(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _best_effort = nix::sys::socket::setsockopt(&borrow(fd), nix::sys::socket::sockopt::Linger, &linger);
    table::close(fd);
}

fn adopt(cx: &mut Context, fd: RawFd, record: Record) -> Result<Connection, Refusal> {
    check_cookie(fd, &record)?;
    let buffer = claim_buffer(cx, &record)?;
    check_positions(&record, buffer.as_ref())?;
    cx.lane.raise_high_water(fd);
    Ok(Connection::new(fd, record, buffer))
}

fn rescue(cx: &mut Context, fd: RawFd, record: Record) -> Result<Connection, Refusal> {
    if !cx.rescue.enabled {
        return Err("rescue is switched off");
    }
    check_cookie(fd, &record)?;
    let state = record.state();
    if !plausible(state) {
        return Err("its record is damaged");
    }
    let buffer = claim_buffer(cx, &record)?;
    if state.phase != Phase::Lingering {
        reconcile(fd, &record, state, buffer.is_some())?;
    }
    if state.phase == Phase::Open {
        check_positions(&record, buffer.as_ref())?;
    }
    let mut connection = Connection::new(fd, record, buffer);
    connection.place(cx)?;
    record.absolve();
    record.set_owner(Owner::Worker(cx.incarnation));
    cx.lane.raise_high_water(fd);
    cx.stats.add(Counter::Rescued, 1);
    Ok(connection)
}

fn check_cookie(fd: RawFd, record: &Record) -> Result<(), Refusal> {
    match cookie(borrow(fd)) {
        Ok(cookie) if cookie == record.cookie() => Ok(()),
        Ok(_) => Err("the socket is another than the recorded one"),
        Err(_) => Err("the recorded descriptor is no socket"),
    }
}

fn claim_buffer(cx: &Context, record: &Record) -> Result<Option<Buffer>, Refusal> {
    match record.buffer() {
        None => Ok(None),
        Some(index) => cx.buffers.claim(index).map(Some).ok_or("its buffer is out of range or another's"),
    }
}

/// Brings the record up to what the kernel says has been read and written.
fn reconcile(fd: RawFd, record: &Record, state: State, has_buffer: bool) -> Result<(), Refusal> {
    if record.peer() == Peer::Unix {
        // Unix sockets count nothing: what an interrupted call did cannot be known, and is not guessed.
        return if state.in_call { Err("a Unix socket was inside a call whose effect nobody knows") } else { Ok(()) };
    }
    let kernel = counters(borrow(fd)).map_err(|_| "the kernel does not tell its counters")?;
    if kernel.gone {
        return Err("the peer has reset it");
    }
    if kernel.consumed < record.consumed() || kernel.written < record.sent() {
        return Err("the record claims more than the kernel has seen");
    }
    if kernel.consumed > record.consumed() && !has_buffer {
        return Err("bytes were read into no buffer");
    }
    record.set_consumed(kernel.consumed);
    record.set_sent(kernel.written);
    Ok(())
}

/// base ≤ start ≤ consumed ≤ base + room.
fn check_positions(record: &Record, buffer: Option<&Buffer>) -> Result<(), Refusal> {
    if buffer.is_none() {
        return Ok(());
    }
    let (base, start, consumed) = (record.base(), record.start(), record.consumed());
    let sound = base <= start && start <= consumed && consumed - base <= BUFFER_BYTES as u64;
    if sound { Ok(()) } else { Err("its stream positions are damaged") }
}

impl Connection {
    /// Puts the connection where its client believes it to be.
    fn place(&mut self, cx: &mut Context) -> Result<(), Refusal> {
        let (record, state) = (self.record, self.record.state());
        let guilt = record.guilt();
        let Some(list) = self.pending(cx) else {
            return Ok(());
        };
        let first = skip_sent(&record, list, state)?;
        if first > state.first {
            self.retire_sent(cx, list, state, first)?;
        }
        if state.phase == Phase::Lingering {
            return Ok(());
        }
        if first == state.pending {
            self.after_all_sent(cx, state, guilt);
            return Ok(());
        }
        let entry = list.get(first.into()).ok_or("its record is damaged")?;
        if entry.response_end != 0 && record.sent() > entry.response_start {
            return self.break_in_the_middle(cx, &entry, first, guilt);
        }
        if record.sent() != entry.response_start {
            return Err("more was sent than any response had");
        }
        match state.phase {
            Phase::Streaming => self.doom_upload(),
            _ => self.replay(cx, list, State { first, ..state }, guilt),
        }
        Ok(())
    }

    /// A request whose body was handed on in part. Where its head and the pieces stand in the buffer died with the worker: all
    /// that was read counts as gone, and an error ends the connection.
    fn doom_upload(&mut self) {
        let at = self.record.consumed();
        self.record.set_base(at);
        self.record.set_start(at);
        self.doom(at, 500);
        self.record.set_state(State::default());
    }

    /// Takes requests `state.first..first`, whose responses have left whole, off the record.
    fn retire_sent(&mut self, cx: &mut Context, list: Pending, state: State, first: u8) -> Result<(), Refusal> {
        let entries = || (state.first..first).filter_map(|index| list.get(index.into()));
        let last = entries().next_back().ok_or("its record is damaged")?;
        let answered = entries().filter(|entry| !entry.kind.interim).count() as u64;
        let all = first == state.pending;
        let phase = if all && last.kind.last { Phase::Lingering } else { Phase::Open };
        let next = State {
            first: if all { 0 } else { first },
            pending: if all { 0 } else { state.pending },
            continued: last.kind.interim,
            phase,
            in_call: false,
        };
        let (base, consumed) = (self.record.base(), self.record.consumed());
        let sound = base <= last.request_end && last.request_end <= consumed && consumed - base <= BUFFER_BYTES as u64;
        if !sound {
            return Err("its stream positions are damaged");
        }
        let retire = Retire { fd: self.fd, start: last.request_end, state: next, answered };
        cx.lane.journal().retire(&self.record, &retire, &cx.stats, || ());
        Ok(())
    }

    /// Nothing is on its way. What had been read is still there to be answered, unless answering it is what killed.
    fn after_all_sent(&mut self, cx: &mut Context, state: State, guilt: Option<Guilt>) {
        let record = self.record;
        if record.state().phase == Phase::Lingering {
            return;
        }
        let unanswered = record.start() < record.consumed();
        if state.phase == Phase::Streaming && state.pending == 0 {
            self.doom_upload();
        } else if unanswered && let Some(guilt) = guilt {
            self.doom(record.start(), status_of(guilt));
        } else if !unanswered {
            self.release_buffer(cx);
        }
    }

    /// A response was cut in the middle: goes on at the exact byte if it can be made again, else the peer must see the cut.
    fn break_in_the_middle(
        &mut self,
        cx: &mut Context,
        entry: &Entry,
        first: u8,
        guilt: Option<Guilt>,
    ) -> Result<(), Refusal> {
        let (record, state) = (self.record, self.record.state());
        if guilt.is_some() || state.phase == Phase::Streaming || !entry.kind.idempotent {
            return Err("its response was partly sent and cannot be made again");
        }
        // Responses begun after this one are dropped: their requests are answered again.
        record.set_state(State { first, pending: first + 1, in_call: false, ..state });
        if !self.resume(cx, entry, record.sent()) {
            return Err("its response was partly sent and would now be another");
        }
        cx.stats.add(Counter::Continued, 1);
        Ok(())
    }

    /// Requests `state.first..state.pending` were in a handler, or behind it, and nothing of their responses has left: those
    /// that may run again do, the first that may not is answered with an error and ends the connection.
    fn replay(&mut self, cx: &mut Context, list: Pending, state: State, guilt: Option<Guilt>) {
        let record = self.record;
        let mut at = record.start();
        for index in state.first..state.pending {
            let Some(entry) = list.get(index.into()) else { break };
            if let Some(status) = self.fate_of(cx, &entry, at, guilt) {
                self.doom(at, status);
                break;
            }
            cx.stats.add(Counter::Replayed, u64::from(!entry.kind.interim));
            at = entry.request_end;
        }
        record.set_state(State { continued: record.state().continued, ..State::default() });
    }

    /// The error status of a request that may not run again; none: it may.
    fn fate_of(&self, cx: &Context, entry: &Entry, at: u64, guilt: Option<Guilt>) -> Option<u16> {
        let in_handler = entry.response_end == 0;
        if entry.kind.interim {
            return None;
        }
        if in_handler && let Some(guilt) = guilt {
            return Some(status_of(guilt));
        }
        if !entry.kind.idempotent {
            return Some(500);
        }
        if !in_handler {
            return None;
        }
        let attempts = if self.record.attempt_at() == at { self.record.attempts().saturating_add(1) } else { 1 };
        self.record.set_attempt_at(at);
        self.record.set_attempts(attempts);
        (attempts > u64::from(cx.rescue.max_attempts)).then_some(500)
    }

    fn doom(&self, at: u64, status: u16) {
        self.record.set_doom(at, status);
    }
}

/// The first entry that is not sent whole.
fn skip_sent(record: &Record, list: Pending, state: State) -> Result<u8, Refusal> {
    let mut first = state.first;
    while first < state.pending {
        let entry = list.get(first.into()).ok_or("its record is damaged")?;
        if entry.response_end == 0 || entry.response_end > record.sent() {
            break;
        }
        first += 1;
    }
    Ok(first)
}

fn status_of(guilt: Guilt) -> u16 {
    match guilt {
        Guilt::Fault => 500,
        Guilt::Hang => 504,
    }
}

/// Whether `fd` is a connection that came in by one of the listeners and on which nothing has happened yet.
fn just_accepted(fd: RawFd, inheritance: &Inheritance) -> Option<(Peer, u8)> {
    let local = getsockname::<SockaddrStorage>(fd).ok()?;
    let peer = peer_of(fd)?;
    let position = inheritance.listeners.iter().position(|listener| came_by(&local, &listener.address))?;
    if peer != Peer::Unix {
        let kernel = counters(borrow(fd)).ok()?;
        if kernel.gone || kernel.consumed != 0 || kernel.written != 0 {
            return None;
        }
    }
    info!("connection {fd} had been accepted and not recorded: adopted");
    Some((peer, position as u8))
}

/// The peer of a connected socket; none when it is not connected (any more).
pub(crate) fn peer_of(fd: RawFd) -> Option<Peer> {
    let address = getpeername::<SockaddrStorage>(fd).ok()?;
    match address.family()? {
        AddressFamily::Unix => Some(Peer::Unix),
        _ => ip_of(&address).map(Peer::Ip),
    }
}

fn ip_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from(std::net::SocketAddrV4::from(*v4)));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6)))
}

fn came_by(local: &SockaddrStorage, listener: &Address) -> bool {
    match listener {
        Address::Unix(path) => local.as_unix_addr().and_then(|unix| unix.path()).is_some_and(|local| local == path),
        Address::Tcp(bound) => ip_of(local).is_some_and(|local| {
            let same_ip = |a: IpAddr, b: IpAddr| a.to_canonical() == b.to_canonical();
            local.port() == bound.port() && (bound.ip().is_unspecified() || same_ip(local.ip(), bound.ip()))
        }),
    }
}

#[cfg(test)]
mod tests;
