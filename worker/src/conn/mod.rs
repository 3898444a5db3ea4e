//! Data copying: a connection as two half-machines, what it reads and what it writes, over one record in the ledger.
//!
//! Owns the descriptor by its number: it is closed in [`Connection::close`] and nowhere else, never by a drop. Leaves the
//! meaning of bytes to `http`, answers to `service`, waiting to `event`.

mod ask;
pub mod buffers;
mod by_ring;
mod call;
pub mod cohort;
pub mod context;
mod input;
mod output;
mod patience;
mod proxied;
mod resume;
mod serve;
mod stream;
mod tail;
mod upload;
mod waiting;

use std::io;
use std::os::fd::RawFd;

use nix::sys::socket::{MsgFlags, Shutdown, send};
use phalanx_shared::clients::Client;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Owner, Peer, Phase, Record, State};
use phalanx_shared::ledger::{MAX_PENDING, Pending};
use phalanx_shared::sys::region::Buffer;
use phalanx_shared::sys::table::{self, borrow};

use crate::crash_point::{self, Point};
use crate::event::Interest;
use crate::event::timers::Tick;
use crate::pool::Job;
use by_ring::Mail;
use cohort::Place;
pub use context::Context;
use input::Filled;
use output::Output;
pub use patience::{Patience, Waits};
use upload::Upload;
use waiting::{Waiting, Whose, Why};

/// What becomes of a connection after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It waits for its next event.
    Stay,
    /// It has more to do, but others come first: call [`Connection::go_on`] in the next turn.
    GoOn,
    /// It is to be closed.
    Close,
}

/// What a connection gets that there is no room for: a 503 that says when to come again (RFC 9110, 10.2.3 and 15.6.4).
pub const TURNED_AWAY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nServer: phalanx\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Connections that are turned away and given time to read why; more are closed at once, or else who is turned away would take
/// the room of others.
const LEAVING: u32 = 64;

/// One connection of this worker.
pub struct Connection {
    /// Its descriptor's number.
    pub fd: RawFd,
    /// The turn of the loop in which it came to this worker.
    pub came_in: u32,
    pub(crate) record: Record,
    unix: bool,
    /// The peer has finished sending and all it sent has been read.
    finished: bool,
    /// The reactor will call [`Connection::go_on`]: until then nothing more is read.
    goes_on: bool,
    waits: Waits,
    /// The request in the buffer has its head, not its body.
    wants_body: bool,
    /// Counted in [`Context::turned_away`].
    turned_away: bool,
    interest: Interest,
    /// The last read took all that there was.
    drained: bool,
    /// A read that shows the end of what there is may not show all: the peer has finished, say.
    is_last: bool,
    /// Requests answered on it.
    served: u64,
    /// Requests before this position run again because a worker died.
    pub(crate) replayed_until: u64,
    /// When it began to wait for what it waits for, and how far that had come.
    paced_from: Tick,
    paced_at: u64,
    /// When the last event was, and its number among all of the worker's: ticks are too coarse to tell who is the oldest.
    touched: Tick,
    last_event: u64,
    deadline: Tick,
    scheduled: Tick,
    buffer: Option<Buffer>,
    output: Option<Box<Output>>,
    /// A ring sends for it, or its cohort will.
    in_flight: bool,
    /// Where its answer is held back; 0: none is.
    held_back: Place,
    /// What was read before it was told that there is something.
    ahead: Option<io::Result<Filled>>,
    mail: Option<Box<Mail>>,
    upload: Option<Box<Upload>>,
    waiting: Option<Box<Waiting>>,
    /// The handler of the next request has begun; it is waited for when what stands before it has left.
    begun: Option<Box<(Job, Why)>>,
}

impl Connection {
    /// A connection over a record that is this worker's.
    pub fn new(fd: RawFd, record: Record, buffer: Option<Buffer>) -> Connection {
        Connection {
            fd,
            came_in: 0,
            record,
            unix: record.peer() == Peer::Unix,
            finished: false,
            goes_on: false,
            waits: Waits::Idle,
            wants_body: false,
            turned_away: false,
            interest: Interest::More,
            drained: true,
            is_last: false,
            served: 0,
            replayed_until: 0,
            paced_from: Tick::default(),
            paced_at: 0,
            touched: Tick::default(),
            last_event: 0,
            deadline: Tick::default(),
            scheduled: Tick(u32::MAX),
            buffer,
            output: None,
            in_flight: false,
            held_back: 0,
            ahead: None,
            mail: None,
            upload: None,
            waiting: None,
            begun: None,
        }
    }

    /// Records a connection just accepted and makes it this worker's; none when the ledger has no room for its number.
    pub fn record(cx: &Context, fd: RawFd, peer: Peer, listener: u8) -> io::Result<Option<Connection>> {
        let Some(record) = cx.ledger.record(fd) else { return Ok(None) };
        record.fill(phalanx_shared::sys::socket::cookie(borrow(fd))?, peer, listener);
        crash_point::pass(Point::Recording);
        cx.lane.raise_high_water(fd);
        record.set_owner(Owner::Worker(cx.incarnation));
        Ok(Some(Connection::new(fd, record, None)))
    }

    /// What it waits for.
    pub fn wanted(&self) -> Interest {
        match (&self.waiting, &self.output) {
            _ if self.upload.is_some() && self.is_open() => self.wanted_early(),
            _ if self.in_flight => Interest::Nothing,
            (Some(waiting), _) if waiting.whose == Whose::Tasks => Interest::Finish,
            (Some(_), _) => Interest::Nothing,
            (None, Some(_)) => Interest::Write,
            (None, None) if self.drained && self.record.state().phase == Phase::Open => Interest::More,
            (None, None) => Interest::Read,
        }
    }

    /// The same, while a response may leave before its request has come.
    fn wanted_early(&self) -> Interest {
        let writes = self.output.is_some() && self.waiting.is_none() && !self.in_flight;
        match (self.takes_in(), writes) {
            (true, true) => Interest::Both,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (false, false) => Interest::Nothing,
        }
    }

    /// What the poller is to watch for now, if that has changed.
    pub fn new_interest(&mut self) -> Option<Interest> {
        let interest = self.wanted();
        (interest != std::mem::replace(&mut self.interest, interest)).then_some(interest)
    }

    /// The poller tells that there is something to read. `is_last`: it tells more than that, which one read does not show the end of.
    pub fn told(&mut self, cx: &mut Context, is_last: bool) -> Fate {
        // A read ahead has told already.
        self.drained &= self.ahead.is_some();
        self.is_last |= is_last;
        self.readable(cx)
    }

    /// The peer has something for us, or has finished sending.
    pub fn readable(&mut self, cx: &mut Context) -> Fate {
        if self.is_open() {
            return self.go_on_upload(cx);
        }
        // Who sends no more while a task waits for it counts as gone, as with others who have coroutines: nobody could tell.
        if self.waiting.as_ref().is_some_and(|waiting| waiting.whose == Whose::Tasks) {
            return Fate::Close;
        }
        if self.is_busy() {
            return Fate::Stay;
        }
        match self.record.state().phase {
            Phase::Lingering => self.discard(),
            _ if self.upload.is_some() => self.go_on_upload(cx),
            _ => match self.ahead.take().unwrap_or_else(|| self.fill(cx)) {
                Ok(Filled::Some) => self.serve(cx),
                Ok(Filled::Nothing) => Fate::Stay,
                Ok(Filled::End) => self.end_of_input(cx),
                Err(_) => Fate::Close,
            },
        }
    }

    /// Something comes first, before it reads on.
    pub(crate) fn is_busy(&self) -> bool {
        let busy = self.has_output() || self.goes_on || self.waiting.is_some();
        busy && !self.takes_in()
    }

    /// Its peer sends no more, and all that it sent has been read.
    pub(crate) fn has_finished(&self) -> bool {
        self.finished
    }

    /// The peer has room for us.
    pub fn writable(&mut self, cx: &mut Context) -> Fate {
        if self.output.is_none() || self.in_flight || self.waiting.is_some() {
            return Fate::Stay;
        }
        match self.resume_output(cx) {
            Fate::Stay if self.is_done() => self.after_response(cx),
            fate => fate,
        }
    }

    /// Does what [`Fate::GoOn`] left for later.
    pub fn go_on(&mut self, cx: &mut Context) -> Fate {
        self.goes_on = false;
        if self.is_open() {
            match self.go_on_upload(cx) {
                Fate::Stay => {}
                fate => return fate,
            }
        }
        if self.waiting.is_some() || self.in_flight {
            return Fate::Stay;
        }
        if self.output.is_some() {
            return self.writable(cx);
        }
        if self.record.state().phase == Phase::Lingering {
            return self.linger();
        }
        if self.upload.is_some() {
            return self.go_on_upload(cx);
        }
        match self.serve(cx) {
            Fate::Stay if self.has_more() => self.readable(cx),
            fate => fate,
        }
    }

    /// A thread of the pool works for it.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// A response is on its way.
    pub fn has_output(&self) -> bool {
        self.output.is_some() || self.in_flight
    }

    /// Asks for its turn to go on; false when it has asked already.
    pub fn ask_to_go_on(&mut self) -> bool {
        !std::mem::replace(&mut self.goes_on, true)
    }

    /// The peer has been waited for long enough.
    pub fn overdue(&mut self, cx: &mut Context) -> Fate {
        match self.waits {
            Waits::Idle | Waits::Write | Waits::Linger => Fate::Close,
            Waits::Head => self.refuse(cx, 408),
            Waits::Body if self.upload.is_some() => self.give_up_upload(cx, 408),
            Waits::Body => self.refuse(cx, 408),
            Waits::Pool => Fate::Stay,
        }
    }

    /// The number of the last event on it, if nothing is under way.
    pub fn idle_since_event(&self) -> Option<u64> {
        self.is_idle().then_some(self.last_event)
    }

    fn is_idle(&self) -> bool {
        self.waits == Waits::Idle && self.is_quiet()
    }

    /// Whether a request was answered on it by this worker.
    pub fn has_served(&self) -> bool {
        self.served > 0
    }

    /// Whether nothing has happened on it since `tick`, and nothing is under way.
    pub fn is_idle_since(&self, tick: Tick) -> bool {
        self.is_idle() && self.touched <= tick
    }

    /// Counts it among the connections of its client; false when that client has as many as it may.
    pub fn count_client(&mut self, cx: &Context) -> bool {
        let most = cx.limits.connections_per_client;
        let (true, Peer::Ip(address)) = (most > 0, self.record.peer()) else { return true };
        // Marked first: a death in between makes the count too low for a while, never too high for ever.
        self.record.set_counted(true);
        let welcome = cx.clients.connect(Client::from(address.ip()), most);
        self.record.set_counted(welcome);
        welcome
    }

    /// There is no room for it: says so without having been asked, and ends it.
    pub fn turn_away(&mut self, cx: &mut Context) -> Fate {
        let state = self.record.state();
        self.record.set_state(State { phase: Phase::Lingering, ..state });
        match send(self.fd, TURNED_AWAY, MsgFlags::MSG_NOSIGNAL) {
            Ok(count) if count == TURNED_AWAY.len() => {}
            _ => return Fate::Close,
        }
        self.record.set_sent(self.record.sent() + TURNED_AWAY.len() as u64);
        cx.stats.add(Counter::BytesOut, TURNED_AWAY.len() as u64);
        cx.stats.count_status(503);
        cx.access_log.add_refused(context::address_of(&self.record), 503, 0, cx.clock.epoch_seconds());
        if cx.turned_away >= LEAVING {
            // What has come by now is read, so that it does not turn the close into a reset.
            let _gone = nix::sys::socket::shutdown(self.fd, Shutdown::Write);
            self.discard();
            return Fate::Close;
        }
        cx.turned_away += 1;
        self.turned_away = true;
        self.linger()
    }

    /// All that there is to know of it stands in its record: it can be given to another worker.
    pub fn is_quiet(&self) -> bool {
        self.is_done()
            && self.ahead.is_none()
            && self.upload.is_none()
            && !self.has_more()
            && self.record.state().phase == Phase::Open
    }

    /// Gives the connection to whoever takes it. The poller has forgotten it already.
    pub fn give(mut self) {
        drop(self.buffer.take());
        self.record.set_ring(None);
        self.record.set_owner(Owner::Given);
    }

    /// Its buffer, of one that another process has from now on.
    pub fn into_buffer(self) -> Option<Buffer> {
        self.buffer
    }

    /// Closes it: the record first, since the number is used again by whoever shares the table.
    pub fn close(mut self, cx: &mut Context) {
        // Its peer may have read answers that the end of the batch never came to count.
        self.retire_sent(cx);
        self.forget_waiting(cx);
        drop(self.output.take());
        self.drop_held(cx);
        if let Some(buffer) = self.buffer.take() {
            cx.buffers.put(buffer);
        }
        uncount(cx, &self.record);
        cx.turned_away -= u32::from(self.turned_away);
        cx.track.set_closing(Some(self.fd));
        self.record.free();
        crash_point::pass(Point::Closing);
        table::close(self.fd);
        cx.track.set_closing(None);
    }

    /// What it waited for has become possible.
    pub(crate) fn nudged(&mut self, _cx: &mut Context) -> Fate {
        if self.has_more() { Fate::GoOn } else { Fate::Stay }
    }

    /// When to look at this connection, if the timers have to be told: it was scheduled later, or not at all.
    pub fn reschedule(&mut self, patience: &Patience, now: Tick, event: u64) -> Option<Tick> {
        let waits = self.waits_for();
        // A head and a goodbye have a limit from first to last, the rest from event to event.
        let since_before = waits == self.waits && matches!(waits, Waits::Head | Waits::Linger);
        if waits != self.waits {
            (self.paced_from, self.paced_at) = (now, self.position(waits));
        }
        self.waits = waits;
        (self.touched, self.last_event) = (now, event);
        if !since_before {
            let slowest = patience.with_rate(waits, self.position(waits).saturating_sub(self.paced_at));
            let at_all = slowest.map_or(Tick(u32::MAX), |span| self.paced_from.after(span));
            self.deadline = now.after(patience.with(waits)).min(at_all);
        }
        (self.scheduled > self.deadline).then_some(self.deadline)
    }

    /// How far that has come which `waits` is about.
    fn position(&self, waits: Waits) -> u64 {
        match waits {
            Waits::Write => self.record.sent(),
            _ => self.record.consumed(),
        }
    }

    /// The timers will look at it at `tick`.
    pub fn set_scheduled(&mut self, tick: Tick) {
        self.scheduled = tick;
    }

    /// The timers look at it at `tick`: none when that entry is stale, else whether it is overdue.
    pub fn looked_at(&mut self, tick: Tick) -> Option<bool> {
        if tick != self.scheduled {
            return None;
        }
        self.scheduled = Tick(u32::MAX);
        Some(tick >= self.deadline)
    }

    /// The tick at which it will be overdue.
    pub fn deadline(&self) -> Tick {
        self.deadline
    }

    fn waits_for(&self) -> Waits {
        // A peer that does not read what has been written has its own limit.
        if self.upload.is_some() && self.awaits_body() && (!self.has_output() || self.waiting.is_some()) {
            return Waits::Body;
        }
        if self.waiting.is_some() {
            return Waits::Pool;
        }
        if self.has_output() {
            return Waits::Write;
        }
        match self.record.state().phase {
            Phase::Lingering => Waits::Linger,
            Phase::Streaming => Waits::Body,
            Phase::Open if self.buffer.is_none() => Waits::Idle,
            Phase::Open if self.wants_body => Waits::Body,
            Phase::Open => Waits::Head,
        }
    }

    /// Nothing is on its way: neither output nor a result of the pool.
    fn is_done(&self) -> bool {
        !self.has_output() && self.waiting.is_none() && !self.is_open()
    }

    /// What comes after a response that is fully sent.
    pub(super) fn after_response(&mut self, cx: &mut Context) -> Fate {
        if self.record.state().phase == Phase::Lingering {
            return self.linger();
        }
        if let Some(begun) = self.begun.take() {
            return self.wait_for(cx, begun.0, begun.1);
        }
        if self.buffer.is_some() || self.finished { self.serve(cx) } else { Fate::Stay }
    }

    /// Shuts the sending half and waits for the peer to close, so that what it still sends does not become a reset that
    /// destroys the last response on its way (RFC 9112 section 9.6).
    pub(crate) fn linger(&mut self) -> Fate {
        if self.finished || nix::sys::socket::shutdown(self.fd, Shutdown::Write).is_err() {
            return Fate::Close;
        }
        Fate::Stay
    }

    fn discard(&mut self) -> Fate {
        let mut bytes = [0; 16 * 1024];
        // Bounded: a peer that never stops gets its next turn, until the linger limit ends it.
        for _ in 0..16 {
            match nix::unistd::read(borrow(self.fd), &mut bytes) {
                Ok(0) => return Fate::Close,
                Ok(_) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(_) => return Fate::Close,
            }
        }
        Fate::Stay
    }

    fn end_of_input(&mut self, cx: &mut Context) -> Fate {
        self.finished = true;
        match self.serve(cx) {
            Fate::Stay if self.is_done() => Fate::Close,
            fate => fate,
        }
    }

    /// The list of responses begun; only a connection with a buffer has one.
    pub(crate) fn pending(&self, cx: &Context) -> Option<Pending> {
        self.buffer.as_ref().map(|buffer| cx.ledger.pending(buffer))
    }
}

/// Takes a connection off those of its client.
pub(crate) fn uncount(cx: &Context, record: &Record) {
    if record.is_counted() {
        if let Peer::Ip(address) = record.peer() {
            cx.clients.disconnect(Client::from(address.ip()));
        }
        record.set_counted(false);
    }
}

/// Whether `state` is one that a worker could have written.
pub(crate) fn plausible(state: State) -> bool {
    state.first <= state.pending && usize::from(state.pending) <= MAX_PENDING
}
