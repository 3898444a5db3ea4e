//! The model `reactor`: one thread, one event loop; accept, read, answer, write. Costs nothing that the others do not cost
//! too, and suits handlers that never wait. Known from nginx and Redis.

mod accept;
mod words;

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use phalanx_shared::config::{OnMasterDeath, Workers};
use phalanx_shared::ipc::Word;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::{error, info, warn};

use accept::Door;

use crate::conn::{Connection, Context, Fate};
use crate::duty::Duty;
use crate::enter::Inheritance;
use crate::event::epoll::Epoll;
use crate::event::timers::Timers;
use crate::event::{Event, Interest, Poller};
use crate::rescue::fetch::Formers;
use crate::rescue::giver::answer_fetches;

/// How long a draining worker waits for requests on idle connections before it closes them.
const IDLE_GRACE: Duration = Duration::from_millis(100);

/// How often it looks then which are idle by now.
const IDLE_LOOK: Duration = Duration::from_millis(20);

/// How long a slot that closes lets in who had begun to connect to it.
const SLOT_GRACE: Duration = Duration::from_secs(1);

/// How often a worker that only holds what it gave looks whether all of that has been fetched.
const HELD_LOOK: Duration = Duration::from_millis(20);

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

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
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
    door: Door,
    /// Counts turns of the loop.
    turn: u32,
    /// Counts events of connections.
    events: u64,
    stage: Stage,
    /// What this worker gives is held here until another table has fetched it.
    yielding: bool,
    /// The listeners are shut when the grace of the drain is over.
    closes_listeners: bool,
    formers: Formers,
    /// Sockets of another slot that are accepted from.
    assisted: Vec<(RawFd, u8)>,
    /// Seats and cookies of those that are to be.
    to_assist: Vec<(u8, u64)>,
    duty: Duty,
    inheritance: &'static Inheritance,
    drain_timeout: Duration,
    request_timeout: Duration,
    on_master_death: OnMasterDeath,
}

impl Reactor {
    pub(crate) fn new(
        cx: Context,
        duty: Duty,
        formers: Formers,
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
            door: Door::new(),
            turn: 0,
            events: 0,
            stage: Stage::Waiting,
            yielding: false,
            closes_listeners: false,
            formers,
            assisted: Vec::new(),
            to_assist: Vec::new(),
            duty,
            inheritance,
            drain_timeout: workers.drain_timeout,
            request_timeout: workers.request_timeout,
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
            self.turn = self.turn.wrapping_add(1);
            self.cx.clock.tick();
            self.cx.lane.begin_turn(self.cx.clock.since_boot());
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
                Some(if idle_until > now { idle_until } else { deadline.min(now + IDLE_LOOK) })
            }
            // Who fetched the last of it may have told the keeper, which has this table too.
            Stage::Retiring if self.yielding && self.count == 0 => Some(now + HELD_LOOK),
            _ => None,
        };
        let assist = (!self.to_assist.is_empty()).then(|| now + HELD_LOOK);
        let formers = match self.stage {
            Stage::Serving | Stage::Draining { .. } => self.formers.next_look(),
            _ => None,
        };
        let job = self.cx.pool.next_look(self.request_timeout);
        let instants = [stage, assist, formers, job, self.door.again()]
            .into_iter()
            .flatten()
            .map(|at| at.saturating_duration_since(now));
        instants.chain(self.timers.next_wait(now)).min()
    }

    fn react(&mut self, event: &Event) {
        if let Some(Some(connection)) = self.connections.get(event.fd as usize) {
            // What was polled before a connection came is about one that had its number and was closed in this turn.
            if connection.came_in != self.turn {
                self.connection_event(event);
            }
            return;
        }
        self.cx.lane.set_current(None);
        if let Some(seat) = self.inheritance.seats.iter().position(|fd| *fd == event.fd) {
            return self.accept_from(event.fd, seat as u8);
        }
        match event.fd {
            fd if fd == self.duty.bell() => self.hear(),
            fd if fd == self.duty.signal() => self.duty.terminated(),
            fd if fd == self.duty.lifeline() => self.master_died(),
            fd if Some(fd) == self.cx.pool.bell() => self.take_results(),
            fd if fd == self.inheritance.handover.as_fd().as_raw_fd() => self.take_given(),
            fd if fd == self.inheritance.giving => {
                answer_fetches(self.inheritance);
                if event.hung_up {
                    let _nobody_asks = self.poller.remove(fd);
                }
            }
            fd => match self.assisted.iter().find(|(assisted, _)| *assisted == fd) {
                Some(&(fd, seat)) => self.accept_from(fd, seat),
                None => self.fetched(fd),
            },
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
        self.events += 1;
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
        if let Some(tick) = connection.reschedule(&self.cx.patience, self.timers.now(), self.events) {
            connection.set_scheduled(self.timers.schedule(fd, tick));
        }
        if self.stage == Stage::Retiring && fate == Fate::Stay {
            self.give_if_quiet(fd);
        }
    }

    /// Threads of the pool have done what connections wait for.
    fn take_results(&mut self) {
        let (results, worked) = self.cx.pool.results();
        for (fd, ticket, done) in results {
            self.with(fd, |connection, cx| connection.arrived(cx, ticket, done));
        }
        self.cx.stats.add(Counter::Busy, nanoseconds(worked));
    }

    /// A thread that does not end its job is given up, and with it this worker: nothing else ends a thread.
    fn watch_pool(&mut self) {
        for stuck in self.cx.pool.watch(self.cx.clock.now(), self.request_timeout) {
            let waits = usize::try_from(stuck.fd).ok().and_then(|fd| self.connections.get(fd)?.as_ref());
            let request = waits.and_then(|connection| connection.describe());
            let (request, age, class) =
                (request.unwrap_or_else(|| "what nobody waits for".to_owned()), stuck.age, stuck.class);
            if stuck.given_up {
                warn!(
                    "a thread has worked for {age:.1?} on {request}, {class}: given up, this worker is to be replaced"
                );
                self.duty.ask_for_successor();
            } else {
                warn!("a thread has worked for {age:.1?} on {request}, {class}");
                if class.has_own_stack() {
                    self.duty.say(Word::Stuck(stuck.thread.as_raw()));
                }
            }
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
        self.accept_again();
        self.begin_to_assist();
        self.watch_pool();
        if matches!(self.stage, Stage::Serving | Stage::Draining { .. }) {
            self.formers.look().into_iter().for_each(|dead| self.duty.say(Word::Buried(dead)));
        }
        self.cx.stats.add(Counter::Busy, nanoseconds(now.elapsed()));
        match self.stage {
            Stage::Retiring if self.count == 0 && !self.holds_what_it_gave() => self.stage = Stage::Gone,
            Stage::Draining { idle_until, deadline } => self.drain(now, idle_until, deadline),
            _ => {}
        }
    }
}
