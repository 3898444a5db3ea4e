//! The main loop of a worker, whatever its model: supervision, listeners, and the connections that nobody else of the worker has.

mod accept;
mod crew;
mod gate;
mod words;

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use phalanx_shared::config::OnMasterDeath;
use phalanx_shared::ipc::Word;
use phalanx_shared::sys::process;
use phalanx_shared::{error, info, warn};

use accept::Door;
pub(crate) use crew::{Crew, Nobody};
use gate::Gate;

use crate::app::WorkerInfo;
use crate::children::{Children, Ended};
use crate::conn::cohort;
use crate::duty::Duty;
use crate::enter::{Booted, Inheritance};
use crate::event::{Event, Interest};
use crate::event_loop::{EventLoop, Stuck};
use crate::isolator::Isolator;
use crate::pool::Pool;
use crate::rescue::fetch::Formers;
use crate::rescue::giver::answer_fetches;
use crate::rescue::strangers::Strangers;
use crate::tasks::Tasks;

/// How often it looks then which are idle by now.
const IDLE_LOOK: Duration = Duration::from_millis(20);

/// How long a slot that closes lets in who had begun to connect to it.
const SLOT_GRACE: Duration = Duration::from_secs(1);

/// How often a worker that only holds what it gave looks whether all of that has been fetched.
const HELD_LOOK: Duration = Duration::from_millis(20);

/// A worker that lacks something is not replaced before: its successor may lack the same.
const LEAST_LIFE: Duration = Duration::from_secs(1);

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

/// The loop, and what it supervises.
pub(crate) struct MainLoop {
    /// Its own connections.
    own: EventLoop,
    /// Who has the others.
    crew: Box<dyn Crew>,
    /// Processes that have one each.
    children: Children,
    door: Door,
    gate: Gate,
    stage: Stage,
    /// What this worker gives is held here until another table has fetched it.
    yielding: bool,
    /// The program knows that it gets no new work any more.
    told_drain: bool,
    /// The listeners are shut when the grace of the drain is over.
    closes_listeners: bool,
    formers: Formers,
    /// What the program opened in workers before this one.
    strangers: Strangers,
    /// When to ask for a successor, since this worker lacks something that only a new one has.
    replaced_at: Option<Instant>,
    born: Instant,
    /// More descriptors of this worker's own, of whoever runs the loop.
    more: Vec<RawFd>,
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

impl MainLoop {
    /// Takes in what the worker has taken over, and tells the master that it is ready.
    ///
    /// # Errors
    /// Why it cannot wait for events.
    pub(crate) fn new(booted: Booted) -> Result<MainLoop, String> {
        MainLoop::with_crew(booted, Box::new(Nobody))
    }

    /// As [`MainLoop::new`], for a worker in which others have connections too.
    pub(crate) fn with_crew(booted: Booted, crew: Box<dyn Crew>) -> Result<MainLoop, String> {
        MainLoop::with(booted, crew, 0)
    }

    /// As [`MainLoop::new`], for a worker that starts at most `most` processes for connections.
    pub(crate) fn with_children(booted: Booted, most: usize) -> Result<MainLoop, String> {
        MainLoop::with(booted, Box::new(Nobody), most)
    }

    fn with(booted: Booted, crew: Box<dyn Crew>, most_children: usize) -> Result<MainLoop, String> {
        let Booted { cx, duty, formers, strangers, inheritance, workers, connections, serve_at_once, .. } = booted;
        let fail = |error: std::io::Error| format!("wait for events: {error}");
        let mut own = EventLoop::new(cx, workers.poller).map_err(fail)?;
        let isolator = own.cx.isolator.as_ref().map(Isolator::descriptor);
        let words = [duty.bell(), duty.signal(), duty.lifeline()];
        for fd in words.into_iter().chain(isolator).chain(strangers.descriptors()).chain(crew.watched()) {
            own.poller.add(fd, Interest::Read).map_err(fail)?;
        }
        let children = Children::new(inheritance, &own.cx, &workers, most_children);
        let mut main = MainLoop {
            own,
            crew,
            children,
            door: Door::new(),
            gate: Gate::None,
            stage: Stage::Waiting,
            yielding: false,
            told_drain: false,
            closes_listeners: false,
            formers,
            strangers,
            replaced_at: None,
            born: Instant::now(),
            more: Vec::new(),
            assisted: Vec::new(),
            to_assist: Vec::new(),
            duty,
            inheritance,
            drain_timeout: workers.drain_timeout,
            request_timeout: workers.request_timeout,
            on_master_death: workers.on_master_death,
        };
        main.adopt(connections);
        main.children.adopt_orphans(&mut main.own);
        if serve_at_once {
            main.begin_to_serve();
        }
        main.ready();
        Ok(main)
    }

    /// The loop: wait, sort out what happened, act, tidy up. Returns the exit code.
    pub(crate) fn run(mut self) -> i32 {
        let mut events = Vec::new();
        while !self.is_over() {
            let limit = self.next_wait();
            if let Err(error) = self.own.wait(&mut events, limit) {
                error!("wait for events: {error}");
                return 1;
            }
            self.turn(&events);
        }
        self.leave()
    }

    /// One turn of the loop, with the events that have happened.
    pub(crate) fn turn(&mut self, events: &[Event]) {
        self.own.begin_turn();
        self.own.cx.lane.begin_turn(self.own.cx.clock.since_boot());
        self.own.cx.crowded = self.others_wait();
        for cohort in events.chunks(cohort::MOST) {
            self.own.begin_cohort(cohort);
            for event in cohort {
                self.react(event);
            }
            self.own.end_cohort();
        }
        self.own.end_turn();
        self.tidy_up();
    }

    /// The worker is to leave.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Gone
    }

    /// Ends the loop, and tells the exit code.
    pub(crate) fn leave(mut self) -> i32 {
        self.crew.check(&mut self.own);
        info!("incarnation {} leaves", self.own.cx.incarnation.0);
        self.inheritance.application.hooks.exits(&self.info());
        if let Err(error) = self.own.flush() {
            warn!("submit what was begun: {error}");
        }
        if self.own.cx.by_ring && self.own.count() > 0 {
            // What the ring has received by now is its heir's.
            process::exit_now(0);
        }
        // Its number may be another's soon.
        self.own.cx.lane.set_ring(None);
        if self.crew.may_be_at_work() || self.own.cx.pools().any(Pool::is_at_work) {
            // Threads that use what was noted end with the process; whoever buries this worker closes it then.
            process::exit_now(0);
        }
        // What was noted is closed by what owns it, from here on.
        self.own.cx.ledger.table().forget_notes(self.own.cx.lane_number);
        0
    }

    /// This worker, for hooks.
    fn info(&self) -> WorkerInfo {
        WorkerInfo { slot: self.inheritance.slot.0, incarnation: self.own.cx.incarnation.0 }
    }

    // ---- for who runs the loop within another ----

    /// What is readable when there are events.
    pub(crate) fn poller_descriptor(&self) -> Option<RawFd> {
        self.own.poller.descriptor()
    }

    /// Notes a descriptor as the worker's own.
    pub(crate) fn note_more(&mut self, fd: RawFd) {
        self.more.push(fd);
        self.note_own();
    }

    /// Waits for a task that is done.
    pub(crate) fn task_bell(&self) -> impl Future<Output = ()> + use<> {
        let bell = self.own.cx.tasks.as_ref().map(Tasks::bell);
        async move {
            match bell {
                Some(bell) => bell.await,
                None => std::future::pending().await,
            }
        }
    }

    /// See [`EventLoop::hand_over`].
    pub(crate) fn hand_over(&mut self) {
        self.own.hand_over();
    }

    /// The events that have happened, without waiting for any.
    pub(crate) fn take_events(&mut self, events: &mut Vec<Event>) -> std::io::Result<()> {
        self.own.wait(events, Some(Duration::ZERO))
    }

    /// Connections that this worker has.
    fn count(&self) -> u32 {
        self.own.count() + self.crew.count() + self.children.count()
    }

    /// How long to wait for events at most; none: for ever.
    pub(crate) fn next_wait(&self) -> Option<Duration> {
        let now = self.own.now();
        let stage = match self.stage {
            Stage::Draining { idle_until, deadline } => {
                Some(if idle_until > now { idle_until } else { deadline.min(now + IDLE_LOOK) })
            }
            // Who fetched the last of it may have told the keeper, which has this table too.
            Stage::Retiring if self.yielding && self.count() == 0 => Some(now + HELD_LOOK),
            // Nobody tells when the last one of others is gone.
            Stage::Retiring if self.crew.count() > 0 => Some(now + HELD_LOOK),
            _ => None,
        };
        let assist = (!self.to_assist.is_empty()).then(|| now + HELD_LOOK);
        let formers = match self.stage {
            Stage::Serving | Stage::Draining { .. } => self.formers.next_look(),
            _ => None,
        };
        let (crew, children) =
            (self.crew.next_look(self.request_timeout), self.children.next_look(self.request_timeout));
        let instants = [stage, assist, formers, crew, children, self.door.again(), self.replaced_at]
            .into_iter()
            .flatten()
            .map(|at| at.saturating_duration_since(now));
        instants.chain(self.next_room()).chain(self.own.next_wait(self.request_timeout)).min()
    }

    fn react(&mut self, event: &Event) {
        if event.completed {
            if let Some(accepted) = self.own.complete(event) {
                self.own.cx.track.set_current(None);
                self.accepted_by_ring(event.fd, accepted);
            }
            return;
        }
        if self.own.react(event) || self.crew.react(event) {
            return;
        }
        self.own.cx.track.set_current(None);
        if self.strangers.descriptors().any(|fd| fd == event.fd) {
            return self.neighbour_gone(event.fd);
        }
        if let Some(Ended { left, unfit }) = self.children.ended(&mut self.own, event.fd) {
            self.strangers.close(&self.own.cx, self.children.has_adopted());
            return match left {
                Some(connection) if unfit => self.own.adopt(connection),
                left => self.adopt(left.into_iter().collect()),
            };
        }
        if let Some(seat) = self.inheritance.seats.iter().position(|fd| *fd == event.fd) {
            return self.accept_from(event.fd, seat as u8);
        }
        match event.fd {
            fd if fd == self.duty.bell() => self.hear(),
            fd if fd == self.duty.signal() => self.duty.terminated(),
            fd if fd == self.duty.lifeline() => self.master_died(),
            fd if self.own.cx.isolator.as_ref().map(Isolator::descriptor) == Some(fd) => self.lost_isolator(fd),
            fd if fd == self.inheritance.handover.as_fd().as_raw_fd() => self.take_given(),
            fd if fd == self.inheritance.giving => {
                answer_fetches(self.inheritance);
                if event.hung_up {
                    let _nobody_asks = self.own.poller.remove(fd);
                }
            }
            fd => match self.assisted.iter().find(|(assisted, _)| *assisted == fd) {
                Some(&(fd, seat)) => self.accept_from(fd, seat),
                None => self.fetched(fd),
            },
        }
    }

    /// A worker has gone that lived when this one was born.
    fn neighbour_gone(&mut self, fd: RawFd) {
        let _told_once = self.own.poller.remove(fd);
        if self.strangers.has_gone(fd) {
            self.strangers.close(&self.own.cx, self.children.has_adopted());
            self.note_own();
        }
    }

    /// The isolator has ended, and only a worker without threads can have one: the next.
    fn lost_isolator(&mut self, fd: RawFd) {
        let _told_once = self.own.poller.remove(fd);
        warn!("the isolator has ended: this worker is to be replaced");
        self.replaced_at = Some(self.born + LEAST_LIFE);
    }

    /// A thread that does not end its job is given up, and with it this worker: nothing else ends a thread.
    fn watch_pool(&mut self) {
        let mut found = self.own.watch(self.request_timeout);
        found.append(&mut self.crew.stuck(&self.own, self.request_timeout));
        found.append(&mut self.children.stuck(&self.own, self.request_timeout));
        for Stuck { request, thread, age, class, given_up } in found {
            if given_up {
                warn!(
                    "a thread has worked for {age:.1?} on {request}, {class}: given up, this worker is to be replaced"
                );
                self.duty.ask_for_successor();
            } else {
                warn!("a thread has worked for {age:.1?} on {request}, {class}");
                if class.has_own_stack() {
                    self.duty.say(Word::Stuck(thread.as_raw()));
                }
            }
        }
    }

    fn tidy_up(&mut self) {
        self.own.cx.lane.beat();
        let now = self.own.now();
        self.accept_again();
        self.mind_the_gate();
        self.begin_to_assist();
        self.watch_pool();
        if self.replaced_at.is_some_and(|at| at <= now) {
            self.replaced_at = None;
            self.duty.ask_for_successor();
        }
        if matches!(self.stage, Stage::Serving | Stage::Draining { .. }) {
            self.formers.look().into_iter().for_each(|dead| self.duty.say(Word::Buried(dead)));
        }
        self.own.tidy_up();
        match self.stage {
            Stage::Retiring if self.count() == 0 && !self.holds_what_it_gave() && !self.own.has_accepted() => {
                self.stage = Stage::Gone;
            }
            Stage::Draining { idle_until, deadline } => self.drain(now, idle_until, deadline),
            _ => {}
        }
    }
}
