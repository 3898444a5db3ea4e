//! An event loop over connections: one thread, which waits for all of them and works for one at a time. A worker has one at
//! least; where there are several, a connection belongs to one of them.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use phalanx_shared::config;
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::stall::Class;
use phalanx_shared::sys::region::Buffer;
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::borrow;
use phalanx_shared::warn;

use crate::conn::buffers::Buffers;
use crate::conn::{Connection, Context, Fate};
use crate::crash_point;
use crate::event::timers::{Span, Timers};
use crate::event::uring::{Done, Uring};
use crate::event::{Event, Interest, Poller, poller};
use crate::isolator::Isolator;
use crate::nudge::Nudges;
use crate::pool::{self, Pool};
use crate::tasks::Tasks;

/// How long an idle connection is kept that is to be closed: a request may be on its way.
pub(crate) const IDLE_GRACE: Duration = Duration::from_millis(100);

/// The loop's connections, and what it waits for them with.
pub(crate) struct EventLoop {
    pub(crate) poller: Box<dyn Poller>,
    pub(crate) cx: Context,
    /// By descriptor number.
    connections: Vec<Option<Box<Connection>>>,
    count: Count,
    timers: Timers,
    /// Connections with more to do than one turn gave them time for.
    backlog: Vec<RawFd>,
    /// Counts turns of the loop.
    turn: u32,
    /// The number of the last event of a connection. Those of all loops of a machine are in the order of their time, a turn's
    /// events apart.
    events: u64,
    /// Rung for each connection that is given to another worker, which each is as soon as it is quiet; none: they are kept.
    gives: Option<&'static Doorbell>,
}

/// How many connections a loop has, for whoever hands it more.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<Counted>);

#[derive(Default)]
struct Counted {
    here: AtomicU32,
    coming: AtomicU32,
}

impl Count {
    /// Those that it has, and those on their way to it.
    pub(crate) fn get(&self) -> u32 {
        self.0.coming.load(Ordering::Acquire) + self.0.here.load(Ordering::Acquire)
    }

    /// One more is on its way.
    pub(crate) fn add_coming(&self) {
        self.0.coming.fetch_add(1, Ordering::AcqRel);
    }

    fn add(&self) {
        self.0.here.fetch_add(1, Ordering::AcqRel);
    }

    fn subtract(&self) {
        self.0.here.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Something that has been worked on for long.
pub(crate) struct Stuck {
    /// What it is, in words.
    pub(crate) request: String,
    pub(crate) thread: Pid,
    pub(crate) age: Duration,
    /// What the thread does.
    pub(crate) class: Class,
    /// Nothing will come of it any more; else it may yet end.
    pub(crate) given_up: bool,
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl EventLoop {
    /// A loop without connections, which waits for the pools of `cx` too.
    pub(crate) fn new(mut cx: Context, which: config::Poller) -> io::Result<EventLoop> {
        let mut poller = match cx.ring.take() {
            Some(ring) => Box::new(ring),
            None => poller(which)?,
        };
        for bell in cx.pools().filter_map(Pool::bell).chain(cx.nudges.as_ref().map(Nudges::bell)) {
            poller.add(bell, Interest::Read)?;
        }
        let timers = Timers::new(cx.clock.now());
        Ok(EventLoop {
            poller,
            cx,
            connections: Vec::new(),
            count: Count::default(),
            timers,
            backlog: Vec::new(),
            turn: 0,
            events: 0,
            gives: None,
        })
    }

    /// Connections that it has.
    pub(crate) fn count(&self) -> u32 {
        self.count.get()
    }

    /// Counts them, for others.
    pub(crate) fn counter(&self) -> Count {
        self.count.clone()
    }

    /// The descriptors of its own.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let bells = self.cx.pools().filter_map(Pool::bell).chain(self.cx.nudges.as_ref().map(Nudges::bell));
        let isolator = self.cx.isolator.as_ref().map(Isolator::descriptor);
        self.poller.descriptor().into_iter().chain(bells).chain(isolator).collect()
    }

    /// The connection of a number.
    pub(crate) fn connection(&self, fd: RawFd) -> Option<&Connection> {
        self.connections.get(usize::try_from(fd).ok()?)?.as_deref()
    }

    // ---- a turn ----

    /// How long to wait for events at most, as far as connections are concerned, where a thread may work on one request for
    /// `limit`; none: for ever.
    pub(crate) fn next_wait(&self, limit: Duration) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = self.now();
        let results = self.cx.pools().filter_map(Pool::next_results);
        let looks =
            self.cx.pools().filter_map(|pool| pool.next_look(limit)).map(|at| at.saturating_duration_since(now));
        results.chain(looks).chain(self.timers.next_wait(now)).min()
    }

    /// Waits for events, at most for `limit`; none: for ever.
    pub(crate) fn wait(&mut self, events: &mut Vec<Event>, limit: Option<Duration>) -> io::Result<()> {
        self.hand_over();
        if let Some(ring) = self.poller.completing() {
            provide(ring, &mut self.cx.buffers);
        }
        self.poller.wait(events, limit)
    }

    /// Hands the jobs of the turn over to those who do them.
    pub(crate) fn hand_over(&mut self) {
        self.cx.pools_mut().for_each(Pool::hand_over);
    }

    /// The wait is over.
    pub(crate) fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.cx.clock.tick();
        self.cx.setting.next_turn();
        self.timers.advance(self.cx.clock.now());
        self.events = self.events.max(nanoseconds(self.cx.clock.since_boot()));
    }

    /// Does what an event calls for; false when it is about neither a connection nor a pool.
    pub(crate) fn react(&mut self, event: &Event) -> bool {
        let Some(connection) = self.connection(event.fd) else {
            // Nobody knows how long that takes, or whom it is about.
            self.end_cohort();
            return self.take_results(Some(event.fd)) || self.take_nudges(event.fd);
        };
        // What was polled before a connection came is about one that had its number and was closed in this turn.
        if connection.came_in != self.turn {
            self.connection_event(event);
        }
        if self.cx.held_back.is_late() {
            self.end_cohort();
            self.cx.held_back.begin();
        }
        true
    }

    /// Begins to serve those connections together that `events` are about: what each has to say is read. To be ended by
    /// [`EventLoop::end_cohort`] when there has been a reaction to each event.
    pub(crate) fn begin_cohort(&mut self, events: &[Event]) {
        if events.len() < 2 || self.cx.by_ring {
            return;
        }
        self.cx.track.set_current(None);
        for event in events.iter().filter(|event| event.is_just_readable()) {
            if let Some(Some(connection)) = self.connections.get_mut(event.fd as usize)
                && connection.came_in != self.turn
            {
                connection.read_ahead(&mut self.cx);
            }
        }
        self.cx.held_back.begin();
    }

    /// Sends the answers that were held back. None is any more, unless another cohort begins.
    pub(crate) fn end_cohort(&mut self) {
        let mut answers = self.cx.held_back.end();
        for answer in answers.drain(..) {
            self.with(answer.fd, |connection, cx| connection.send_held_back(cx, answer));
        }
        self.cx.held_back.reuse(answers);
    }

    /// Does what an operation calls for that is complete; told: a connection has come, or could not.
    pub(crate) fn complete(&mut self, event: &Event) -> Option<io::Result<RawFd>> {
        let ring = self.poller.completing()?;
        match ring.done()? {
            Done::Accepted(accepted) => {
                self.cx.lane.set_accepting(true);
                ring.forget_taken();
                return Some(accepted);
            }
            Done::Received(outcome, buffer) => self.received(event.fd, &outcome, buffer),
            Done::Sent(outcome, bytes) => self.with(event.fd, |connection, cx| connection.sent(cx, &outcome, bytes)),
            Done::Unwanted(buffer) => self.cx.buffers.put(buffer),
        }
        None
    }

    fn received(&mut self, fd: RawFd, outcome: &io::Result<usize>, buffer: Option<Buffer>) {
        let Some(Some(connection)) = self.connections.get_mut(fd as usize) else { return };
        let mut fate = Fate::Stay;
        if let (Some(buffer), Ok(len)) = (buffer, outcome) {
            self.cx.track.set_current(Some(fd));
            fate = connection.take_received(&mut self.cx, buffer, *len);
        }
        if let Some(ring) = self.poller.completing() {
            ring.forget_taken();
        }
        self.with(fd, |connection, cx| match fate {
            Fate::Stay => connection.received(cx, outcome),
            fate => fate,
        });
    }

    fn connection_event(&mut self, event: &Event) {
        if event.wants_read() {
            let is_last = event.peer_finished || event.is_broken() || event.urgent;
            self.with(event.fd, |connection, cx| connection.told(cx, is_last));
        }
        if event.wants_write() {
            self.with(event.fd, Connection::writable);
        }
        // Nothing is left to wait for: whatever the reads and writes above said, it ends here.
        if event.is_broken() {
            self.close(event.fd);
        }
    }

    /// Threads have done what connections wait for: those of the pool whose `bell` it is, or of any that may hold results back.
    /// False when it is no pool's.
    fn take_results(&mut self, bell: Option<RawFd>) -> bool {
        let mut known = false;
        for of_handlers in [false, true] {
            let pool = if of_handlers { self.cx.handlers.as_mut() } else { Some(&mut self.cx.pool) };
            let is_meant = |pool: &Pool| bell.map_or(pool.next_results().is_some(), |bell| pool.bell() == Some(bell));
            let Some(pool) = pool.filter(|pool| is_meant(pool)) else { continue };
            known = true;
            let (results, worked) = pool.results();
            for (fd, ticket, done) in results {
                self.with(fd, |connection, cx| connection.arrived(cx, ticket, done));
            }
            self.cx.stats.add(Counter::Busy, nanoseconds(worked));
        }
        known
    }

    /// Connections are nudged, if `bell` tells of that; else false.
    fn take_nudges(&mut self, bell: RawFd) -> bool {
        let nudged = self.cx.nudges.as_ref().filter(|nudges| nudges.bell() == bell).map(Nudges::take);
        for (fd, cookie) in nudged.iter().flatten() {
            if self.connection(*fd).is_some_and(|connection| connection.record.cookie() == *cookie) {
                self.with(*fd, Connection::nudged);
            }
        }
        nudged.is_some()
    }

    /// What follows the events of a turn: connections that have more to do, and those whose time is over.
    pub(crate) fn end_turn(&mut self) {
        self.take_results(None);
        let done = self.cx.tasks.as_mut().map(Tasks::results).unwrap_or_default();
        for (fd, ticket, done) in done {
            self.with(fd, |connection, cx| connection.arrived(cx, ticket, done));
        }
        for fd in std::mem::take(&mut self.backlog) {
            self.with(fd, Connection::go_on);
        }
        self.expire();
    }

    /// Gives up what threads have worked on for longer than `limit`, and tells of it, and of what may come to that.
    pub(crate) fn watch(&mut self, limit: Duration) -> Vec<Stuck> {
        let now = self.now();
        let found: Vec<pool::Stuck> = self.cx.pools_mut().flat_map(|pool| pool.watch(now, limit)).collect();
        let named = |stuck: pool::Stuck| {
            let request = stuck.fd.and_then(|fd| self.connection(fd)).and_then(Connection::describe);
            let request = request.unwrap_or_else(|| "what nobody waits for".to_owned());
            let pool::Stuck { thread, age, class, given_up, .. } = stuck;
            Stuck { request, thread, age, class, given_up }
        };
        found.into_iter().map(named).collect()
    }

    /// Ends a turn for whoever looks on: lines of the log, counters.
    pub(crate) fn tidy_up(&mut self) {
        self.cx.access_log.flush();
        self.cx.track.set_current(None);
        self.cx.stats.set(Counter::Connections, self.count().into());
        self.cx.stats.add(Counter::Busy, nanoseconds(self.now().elapsed()));
    }

    fn expire(&mut self) {
        for (fd, tick) in self.timers.due(self.cx.clock.now()) {
            let Some(Some(connection)) = self.connections.get_mut(fd as usize) else { continue };
            match connection.looked_at(tick) {
                Some(true) => self.with(fd, Connection::overdue),
                Some(false) => {
                    let tick = self.timers.schedule(fd, connection.deadline());
                    connection.set_scheduled(tick);
                }
                None => {}
            }
        }
    }

    // ---- connections ----

    /// Takes a connection in.
    pub(crate) fn insert(&mut self, mut connection: Connection) {
        connection.came_in = self.turn;
        let fd = connection.fd;
        let index = fd as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        self.connections[index] = Some(Box::new(connection));
        self.count.add();
        if let Err(error) = self.begin_to_watch(fd) {
            warn!("watch connection {fd}: {error}");
            return self.close(fd);
        }
        self.with(fd, |_, _| Fate::Stay);
    }

    fn begin_to_watch(&mut self, fd: RawFd) -> io::Result<()> {
        match self.poller.completing() {
            None => self.poller.add(fd, Interest::More),
            Some(ring) => {
                let tag = ring.add_connection(fd)?;
                // Before anything is received.
                self.connection(fd).inspect(|connection| connection.record.set_ring(Some(tag)));
                Ok(())
            }
        }
    }

    /// Watches a listener.
    pub(crate) fn listen(&mut self, fd: RawFd) -> io::Result<()> {
        match self.poller.completing() {
            None => self.poller.add(fd, Interest::Read),
            Some(ring) => ring.add_listener(fd),
        }
    }

    /// Has what was begun in the turn leave, if a call is needed for that.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut left_for_others = Vec::new();
        match self.poller.completing() {
            Some(ring) => ring.wait(&mut left_for_others, Some(Duration::ZERO)),
            None => Ok(()),
        }
    }

    /// Whether connections have come that no event has told yet.
    pub(crate) fn has_accepted(&mut self) -> bool {
        self.poller.completing().is_some_and(Uring::has_accepted)
    }

    /// Takes a connection in that another had; it goes on where it stood.
    pub(crate) fn adopt(&mut self, connection: Connection) {
        let fd = connection.fd;
        self.insert(connection);
        self.with(fd, |_, _| Fate::GoOn);
    }

    /// As [`EventLoop::adopt`], for one that was counted as coming.
    pub(crate) fn take_coming(&mut self, connection: Connection) {
        self.adopt(connection);
        self.count.0.coming.fetch_sub(1, Ordering::AcqRel);
    }

    /// Runs `act` on a connection and does what becomes of it.
    pub(crate) fn with(&mut self, fd: RawFd, act: impl FnOnce(&mut Connection, &mut Context) -> Fate) {
        let Some(slot) = self.connections.get_mut(fd as usize) else { return };
        let Some(connection) = slot.as_mut() else { return };
        self.events += 1;
        self.cx.track.set_current(Some(fd));
        let mut fate = act(connection, &mut self.cx);
        // What it waits for, and what more it has to do, is asked when its answer has left.
        if connection.is_held_back() && fate != Fate::Close {
            return;
        }
        if let Some(interest) = connection.new_interest()
            && self.poller.change(fd, interest).is_err()
        {
            fate = Fate::Close;
        }
        fate = connection.with_mail(&mut self.cx, fate);
        if let Some(ring) = self.poller.completing()
            && go_on_by_ring(ring, connection).is_err()
        {
            fate = Fate::Close;
        }
        match fate {
            Fate::Close => {
                if let Some(connection) = slot.take() {
                    self.count.subtract();
                    self.poller.closed(fd);
                    connection.close(&mut self.cx);
                }
                return;
            }
            Fate::GoOn if connection.ask_to_go_on() => self.backlog.push(fd),
            Fate::GoOn | Fate::Stay => {}
        }
        if let Some(tick) = connection.reschedule(&self.cx.patience, self.timers.now(), self.events) {
            connection.set_scheduled(self.timers.schedule(fd, tick));
        }
        if self.gives.is_some() && fate == Fate::Stay {
            self.give_if_quiet(fd);
        }
    }

    pub(crate) fn close(&mut self, fd: RawFd) {
        self.with(fd, |_, _| Fate::Close);
    }

    // ---- the end ----

    /// Gives to another worker what is quiet, and the rest when it becomes so; `bell` is rung for each.
    pub(crate) fn give(&mut self, bell: &'static Doorbell) {
        self.gives = Some(bell);
        for fd in 0..self.connections.len() {
            self.give_if_quiet(fd as RawFd);
        }
    }

    fn give_if_quiet(&mut self, fd: RawFd) {
        let Some(bell) = self.gives else { return };
        let Some(slot) = self.connections.get_mut(fd as usize) else { return };
        if !slot.as_ref().is_some_and(|connection| connection.is_quiet()) {
            return;
        }
        let is_let_go = match self.poller.completing() {
            Some(ring) => ring.let_go(fd),
            None => {
                let _closed_already = self.poller.remove(fd);
                true
            }
        };
        let Some(connection) = slot.take_if(|_| is_let_go) else { return };
        self.count.subtract();
        connection.give();
        bell.ring();
    }

    /// It has connections, and all have been idle for `time`; those on which nothing was ever asked, for `fresh`.
    pub(crate) fn is_idle_for(&self, time: Duration, fresh: Duration) -> bool {
        let since = |time| self.timers.now().before(Span::of(time));
        let (since, since_fresh) = (since(time), since(fresh));
        let idle = |connection: &Connection| {
            let since = if connection.has_served() { since } else { since_fresh };
            since.is_some_and(|since| connection.is_idle_since(since))
        };
        self.count() > 0 && self.connections.iter().flatten().all(|connection| idle(connection))
    }

    /// Closes what has been idle for `grace`.
    pub(crate) fn close_idle(&mut self, grace: Duration) {
        let Some(since) = self.timers.now().before(Span::of(grace)) else { return };
        for fd in 0..self.connections.len() {
            let idle = self.connections[fd].as_ref().is_some_and(|connection| connection.is_idle_since(since));
            // A request that has come since the poll is answered first.
            if idle && !self.has_unread(fd as RawFd) {
                self.close(fd as RawFd);
            }
        }
    }

    /// The connections that have been idle for longest, at most `most`, the oldest last, each with the number of its last event.
    pub(crate) fn oldest_idle(&self, most: usize) -> Vec<(RawFd, u64)> {
        let idle = |connection: &Connection| Some((connection.fd, connection.idle_since_event()?));
        let mut found: Vec<(RawFd, u64)> = self.connections.iter().flatten().filter_map(|it| idle(it)).collect();
        if found.len() > most {
            found.select_nth_unstable_by_key(most, |&(_, event)| event);
            found.truncate(most);
        }
        found.sort_unstable_by_key(|&(_, event)| std::cmp::Reverse(event));
        found
    }

    /// Closes a connection if nothing has happened on it since that event; false when something has.
    pub(crate) fn close_if_idle_since(&mut self, fd: RawFd, event: u64) -> bool {
        // A request that has come since the poll is answered first.
        let idle = self.connection(fd).is_some_and(|connection| connection.idle_since_event() == Some(event));
        if !idle || self.has_unread(fd) {
            return false;
        }
        self.close(fd);
        true
    }

    fn has_unread(&mut self, fd: RawFd) -> bool {
        self.poller.completing().is_some_and(|ring| ring.has_untold(fd)) || has_unread(borrow(fd))
    }

    /// The time of this turn.
    pub(crate) fn now(&self) -> Instant {
        self.cx.clock.now()
    }
}

/// Hands to the ring what a connection has for it, and has it receive as long as there is room for what comes.
fn go_on_by_ring(ring: &mut Uring, connection: &mut Connection) -> io::Result<()> {
    if let Some(bytes) = connection.take_outgoing() {
        let count = crash_point::cut(bytes.len());
        ring.send(connection.fd, bytes, count)?;
    }
    if connection.holds_enough() {
        ring.receive(connection.fd, false)?;
    } else if !connection.has_more() && !connection.has_finished() {
        ring.receive(connection.fd, true)?;
    }
    Ok(())
}

/// Sees to it that a ring has buffers to receive into.
fn provide(ring: &mut Uring, buffers: &mut Buffers) {
    for _ in 0..ring.lacks_buffers() {
        // Connections need some too.
        let Some(buffer) = buffers.take_spare() else { return };
        if let Err(buffer) = ring.provide(buffer) {
            return buffers.put(buffer);
        }
    }
}
