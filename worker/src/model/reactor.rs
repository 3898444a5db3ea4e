//! The model `reactor`: one thread, one event loop; accept, read, answer, write. Costs nothing that the others do not cost
//! too, and suits handlers that never wait. Known from nginx and Redis.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockFlag, accept4, shutdown};
use phalanx_shared::config::{OnMasterDeath, Workers};
use phalanx_shared::ipc::{Closing, Incarnation, ToWorker, Word};
use phalanx_shared::ledger::LANES;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::{error, info, warn};

use crate::conn::{Connection, Context, Fate};
use crate::crash_point::{self, Point};
use crate::duty::Duty;
use crate::enter::{Inheritance, Listener};
use crate::event::epoll::Epoll;
use crate::event::timers::{Span, Timers};
use crate::event::{Event, Interest, Poller};
use crate::rescue;

/// Connections accepted from one listener in a turn, before those that are there get their turn.
const ACCEPT_BATCH: usize = 64;
/// How long accepting pauses when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a draining worker waits for requests on idle connections before it closes them.
const IDLE_GRACE: Duration = Duration::from_millis(150);

/// Where a worker stands between boot and exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Ready; the predecessor still serves.
    Waiting,
    Serving,
    /// A successor serves; what is in flight here is ended here.
    Retiring,
    /// Nobody serves after this.
    Draining {
        idle_until: Instant,
        deadline: Instant,
    },
    Gone,
}

/// The loop and what it loops over.
pub(crate) struct Reactor {
    poller: Epoll,
    cx: Context,
    /// By descriptor number.
    connections: Vec<Option<Box<Connection>>>,
    count: u32,
    timers: Timers,
    /// Connections with more to do than one turn gave them time for.
    backlog: Vec<RawFd>,
    accepting: bool,
    accept_again: Option<Instant>,
    stage: Stage,
    duty: Duty,
    inheritance: &'static Inheritance,
    drain_timeout: Duration,
    on_master_death: OnMasterDeath,
}

impl Reactor {
    pub(crate) fn new(
        cx: Context,
        duty: Duty,
        inheritance: &'static Inheritance,
        workers: &Workers,
    ) -> io::Result<Reactor> {
        let mut poller = Epoll::new()?;
        for fd in [duty.bell(), duty.signal(), duty.lifeline()].into_iter().chain(cx.pool.bell()) {
            poller.add(fd, Interest::Read)?;
        }
        let timers = Timers::new(cx.clock.now());
        Ok(Reactor {
            poller,
            cx,
            connections: Vec::new(),
            count: 0,
            timers,
            backlog: Vec::new(),
            accepting: false,
            accept_again: None,
            stage: Stage::Waiting,
            duty,
            inheritance,
            drain_timeout: workers.drain_timeout,
            on_master_death: workers.on_master_death,
        })
    }

    /// The loop: wait, sort out what happened, act, tidy up. Returns the exit code.
    pub(crate) fn run(mut self) -> i32 {
        let mut events = Vec::new();
        while self.stage != Stage::Gone {
            if let Err(error) = self.poller.wait(&mut events, self.next_wait()) {
                error!("wait for events: {error}");
                return 1;
            }
            self.cx.clock.tick();
            self.cx.setting.next_turn();
            self.timers.advance(self.cx.clock.now());
            for event in &events {
                self.react(event);
            }
            self.go_on_with_backlog();
            self.expire();
            self.tidy_up();
        }
        info!("incarnation {} leaves", self.cx.incarnation.0);
        // What was noted is closed by what owns it, from here on.
        self.cx.lane.forget_notes();
        0
    }

    fn next_wait(&self) -> Option<Duration> {
        if !self.backlog.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = self.cx.clock.now();
        let stage = match self.stage {
            Stage::Draining { idle_until, deadline } => {
                Some(if idle_until > now { idle_until } else { deadline.min(now + IDLE_GRACE) })
            }
            _ => None,
        };
        let instants = [stage, self.accept_again].into_iter().flatten().map(|at| at.saturating_duration_since(now));
        instants.chain(self.timers.next_wait(now)).min()
    }

    fn react(&mut self, event: &Event) {
        if let Some(Some(_)) = self.connections.get(event.fd as usize) {
            return self.connection_event(event);
        }
        self.cx.lane.set_current(None);
        if let Some(index) = self.inheritance.listeners.iter().position(|listener| listener.fd == event.fd) {
            return self.accept(index);
        }
        match event.fd {
            fd if fd == self.duty.bell() => self.hear(),
            fd if fd == self.duty.signal() => self.duty.terminated(),
            fd if fd == self.duty.lifeline() => self.master_died(),
            fd if Some(fd) == self.cx.pool.bell() => self.take_results(),
            fd if fd == self.inheritance.handover.as_fd().as_raw_fd() => self.take_given(),
            _ => {}
        }
    }

    fn connection_event(&mut self, event: &Event) {
        if event.readable || event.peer_finished || event.hung_up || event.error {
            self.with(event.fd, Connection::readable);
        }
        if event.writable || event.hung_up || event.error {
            self.with(event.fd, Connection::writable);
        }
        if event.hung_up || event.error {
            self.broken(event.fd);
        }
    }

    /// An error or a hang-up leaves nothing to wait for: whatever the reads and writes above said, it ends here.
    fn broken(&mut self, fd: RawFd) {
        self.with(fd, |_, _| Fate::Close);
    }

    /// Runs `act` on a connection and does what becomes of it.
    fn with(&mut self, fd: RawFd, act: impl FnOnce(&mut Connection, &mut Context) -> Fate) {
        let Some(slot) = self.connections.get_mut(fd as usize) else { return };
        let Some(connection) = slot.as_mut() else { return };
        self.cx.lane.set_current(Some(fd));
        let mut fate = act(connection, &mut self.cx);
        if let Some(interest) = connection.new_interest()
            && self.poller.change(fd, interest).is_err()
        {
            fate = Fate::Close;
        }
        match fate {
            Fate::Close => {
                if let Some(connection) = slot.take() {
                    self.count -= 1;
                    connection.close(&mut self.cx);
                }
                return;
            }
            Fate::GoOn if connection.ask_to_go_on() => self.backlog.push(fd),
            Fate::GoOn | Fate::Stay => {}
        }
        if let Some(tick) = connection.reschedule(&self.cx.patience, self.timers.now()) {
            connection.set_scheduled(self.timers.schedule(fd, tick));
        }
        if self.stage == Stage::Retiring && fate == Fate::Stay {
            self.give_if_quiet(fd);
        }
    }

    /// Threads of the pool have done what connections wait for.
    fn take_results(&mut self) {
        for (fd, ticket, done) in self.cx.pool.results() {
            self.with(fd, |connection, cx| connection.arrived(cx, ticket, done));
        }
    }

    fn go_on_with_backlog(&mut self) {
        for fd in std::mem::take(&mut self.backlog) {
            self.with(fd, Connection::go_on);
        }
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

    fn tidy_up(&mut self) {
        self.cx.access_log.flush();
        self.cx.lane.set_current(None);
        self.cx.lane.beat();
        self.cx.stats.set(Counter::Connections, self.count.into());
        let now = self.cx.clock.now();
        if self.accept_again.is_some_and(|at| at <= now) {
            if self.count < self.cx.limits.connections {
                self.accept_again = None;
                self.start_accepting();
            } else {
                self.accept_again = Some(now + ACCEPT_PAUSE);
            }
        }
        match self.stage {
            Stage::Retiring if self.count == 0 => self.stage = Stage::Gone,
            Stage::Draining { idle_until, deadline } => self.drain(now, idle_until, deadline),
            _ => {}
        }
    }

    // ---- connections come and go ----

    fn accept(&mut self, index: usize) {
        let listener = &self.inheritance.listeners[index];
        for _ in 0..ACCEPT_BATCH {
            if self.count >= self.cx.limits.connections {
                return self.pause_accepting();
            }
            self.cx.lane.set_accepting(true);
            match accept4(borrow(listener.fd), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC) {
                Ok(fd) => self.accepted(fd.into_raw_fd(), index as u8),
                // Nobody is queued, or the service stops and the socket is shut down.
                Err(Errno::EAGAIN | Errno::EINVAL) => return self.cx.lane.set_accepting(false),
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    warn!("out of descriptors or memory: accepting pauses for {ACCEPT_PAUSE:?}");
                    self.cx.lane.set_accepting(false);
                    return self.pause_accepting();
                }
                // The client went away while it was queued, or the call was interrupted.
                Err(_) => {}
            }
            self.cx.lane.set_accepting(false);
        }
    }

    fn accepted(&mut self, fd: RawFd, listener: u8) {
        crash_point::pass(Point::AfterAccept);
        let connection =
            rescue::sweep::peer_of(fd).and_then(|peer| Connection::record(&self.cx, fd, peer, listener).ok().flatten());
        match connection {
            Some(connection) => {
                self.cx.stats.add(Counter::Accepted, 1);
                self.insert(connection);
            }
            None => table::close(fd),
        }
    }

    fn insert(&mut self, connection: Connection) {
        let fd = connection.fd;
        let index = fd as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        self.connections[index] = Some(Box::new(connection));
        self.count += 1;
        if let Err(error) = self.poller.add(fd, Interest::Read) {
            warn!("watch connection {fd}: {error}");
            return self.broken(fd);
        }
        self.with(fd, |_, _| Fate::Stay);
    }

    /// Takes connections of a predecessor in; each goes on where it stood.
    pub(crate) fn adopt(&mut self, connections: Vec<Connection>) {
        for connection in connections {
            let fd = connection.fd;
            self.insert(connection);
            self.with(fd, |_, _| Fate::GoOn);
        }
    }

    fn start_accepting(&mut self) {
        self.accepting = true;
        for listener in &self.inheritance.listeners {
            if let Err(error) = self.poller.add(listener.fd, Interest::Read) {
                error!("watch {:?}: {error}", listener.address);
            }
        }
    }

    fn stop_accepting(&mut self) {
        self.stop_accepting_from(|_| true);
        self.accepting = false;
        self.accept_again = None;
    }

    fn stop_accepting_from(&mut self, which: impl Fn(&Listener) -> bool) {
        for listener in self.inheritance.listeners.iter().filter(|listener| which(listener)) {
            let _not_watched = self.poller.remove(listener.fd);
        }
    }

    fn pause_accepting(&mut self) {
        self.stop_accepting();
        self.accept_again = Some(self.cx.clock.now() + ACCEPT_PAUSE);
    }

    // ---- what the master says ----

    pub(crate) fn ready(&self) {
        let mut own = vec![self.poller.as_raw_fd(), self.duty.signal()];
        own.extend(self.cx.pool.bell());
        own.extend(self.cx.router.descriptors());
        self.cx.lane.note(&own);
        self.duty.say(Word::Ready);
    }

    fn hear(&mut self) {
        for word in self.duty.hear(&self.cx.stats) {
            match word {
                ToWorker::Ping(_) => {}
                ToWorker::Serve => self.begin_to_serve(),
                ToWorker::Retire => self.retire(),
                ToWorker::Bury { dead, lane } => self.bury(dead, lane),
                ToWorker::Drain(closing) => self.begin_to_drain(closing),
                ToWorker::Leave => self.stage = Stage::Gone,
            }
        }
    }

    pub(crate) fn begin_to_serve(&mut self) {
        if matches!(self.stage, Stage::Draining { .. }) {
            // The master died between its word to the predecessor and this one.
            return self.take_given();
        }
        if self.stage != Stage::Waiting {
            return;
        }
        self.stage = Stage::Serving;
        self.start_accepting();
        if let Err(error) = self.poller.add(self.inheritance.handover.as_fd().as_raw_fd(), Interest::Read) {
            error!("watch the handover bell: {error}");
        }
        self.take_given();
    }

    fn take_given(&mut self) {
        if !matches!(self.stage, Stage::Serving | Stage::Draining { .. }) {
            return;
        }
        self.inheritance.handover.silence();
        let given = rescue::take_given(&mut self.cx);
        self.adopt(given);
    }

    fn bury(&mut self, dead: Incarnation, lane: usize) {
        if lane < LANES && lane != self.cx.lane_number {
            let taken = rescue::bury(&mut self.cx, dead, lane, self.inheritance);
            info!("incarnation {} is dead: took over {} connections", dead.0, taken.len());
            self.adopt(taken);
        }
        self.duty.say(Word::Buried(dead));
    }

    /// Gives over what is quiet; the rest when it becomes so.
    fn retire(&mut self) {
        self.stop_accepting();
        let _not_watched = self.poller.remove(self.inheritance.handover.as_fd().as_raw_fd());
        self.stage = Stage::Retiring;
        for fd in 0..self.connections.len() {
            self.give_if_quiet(fd as RawFd);
        }
    }

    fn give_if_quiet(&mut self, fd: RawFd) {
        let Some(slot) = self.connections.get_mut(fd as usize) else { return };
        if !slot.as_ref().is_some_and(|connection| connection.is_quiet()) {
            return;
        }
        let Some(connection) = slot.take() else { return };
        let _closed_already = self.poller.remove(fd);
        self.count -= 1;
        connection.give();
        self.inheritance.handover.ring();
    }

    fn begin_to_drain(&mut self, closing: Closing) {
        if matches!(self.stage, Stage::Draining { .. }) {
            return;
        }
        match closing {
            Closing::Service => {
                // Everybody who is queued, within the bound on connections.
                for _round in 0..self.cx.limits.connections / ACCEPT_BATCH as u32 + 1 {
                    (0..self.inheritance.listeners.len()).for_each(|index| self.accept(index));
                }
                self.stop_accepting();
                for listener in &self.inheritance.listeners {
                    let _closed_by_another = shutdown(listener.fd, Shutdown::Both);
                }
            }
            // Sockets of this slot alone are emptied to the last connection; what is shared, others accept from.
            Closing::Slot => self.stop_accepting_from(Listener::is_shared),
            Closing::Worker => self.stop_accepting(),
        }
        let now = self.cx.clock.now();
        self.cx.draining = true;
        self.stage = Stage::Draining { idle_until: now + IDLE_GRACE, deadline: now + self.drain_timeout };
    }

    fn drain(&mut self, now: Instant, idle_until: Instant, deadline: Instant) {
        if now >= idle_until {
            let idle_since = self.timers.now().before(Span::of(IDLE_GRACE));
            for fd in 0..self.connections.len() {
                let idle = self.connections[fd].as_ref().is_some_and(|connection| connection.is_idle_since(idle_since));
                // A request that has come since the poll is answered first.
                if idle && !has_unread(borrow(fd as RawFd)) {
                    self.with(fd as RawFd, |_, _| Fate::Close);
                }
            }
        }
        if self.count == 0 && (now >= idle_until || !self.accepting) {
            self.stage = Stage::Gone;
        } else if now >= deadline {
            warn!("{} connections did not end within drain_timeout: closed", self.count);
            self.stage = Stage::Gone;
        }
    }

    fn master_died(&mut self) {
        let _reported_once = self.poller.remove(self.duty.lifeline());
        warn!("the master is gone");
        match self.on_master_death {
            OnMasterDeath::Exit => self.stage = Stage::Gone,
            OnMasterDeath::Drain => self.begin_to_drain(Closing::Service),
        }
    }
}
