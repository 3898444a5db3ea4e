//! Another program takes this one's place, or this one that of another: what is written down, executed, and found.

use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::rest::children;
use phalanx_shared::sys::{process, table};
use phalanx_shared::{info, warn};

use super::event::Event;
use super::ground::{self, Common, FormerGround, Ground, Strangers};
use super::roster::Roster;
use super::slot::{Post, Slot};
use super::{Premises, Supervisor, end};
use crate::control::server::{ClientId, Server};
use crate::daemonize::Herald;
use crate::pid_file::PidFile;
use crate::signals::Wish;
use crate::upgrade::origin::{Manner, Origin};
use crate::upgrade::rehearsal::Rehearsal;
use crate::upgrade::state::{self, Fixed, State};
use crate::upgrade::{fault, inherited, pass_on, way_back};
use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ipc::keeper::Order;

/// The program to execute.
pub(super) enum Departure {
    /// The one that was rehearsed.
    Onward(Option<ClientId>),
    /// The one before this one: why.
    Back(Option<ClientId>, String),
}

/// The program before this one, and what it was executed with.
pub(super) struct Predecessor {
    program: OwnedFd,
    manner: Manner,
    /// The configuration that was in force, as it writes it: this program's may be one that it does not know.
    config: serde_json::Value,
    /// The last state that it would go on with, by [`Supervisor::essence`].
    knows: Option<u64>,
    /// It is of another version.
    foreign: bool,
    /// What it has handed over, if that is of another version and as long as it can go on with it.
    untouched: Option<Untouched>,
}

/// A service of another version as it was handed over, with every descriptor that it names.
struct Untouched {
    state: Box<State>,
    _useless: Vec<OwnedFd>,
    _clients: Vec<Rc<UnixStream>>,
    strangers: Vec<Strangers>,
}

/// Why no other program was executed.
enum Stay {
    /// A signal came that it would not have heard of.
    Signal,
    Failed(String),
}

/// How long a way back waits for keepers to tell whom they have cloned.
const BIRTH_PATIENCE: Duration = Duration::from_secs(1);

impl Untouched {
    fn to_return(&self, why: &str) -> State {
        let mut state = State::clone(&self.state);
        state.turn_back(why);
        state
    }
}

impl Predecessor {
    /// The page is the one that it wrote itself.
    fn keep_untouched(&mut self, origin: &Origin) {
        let Some(untouched) = self.untouched.as_ref().filter(|_| self.knows.is_none()) else {
            return way_back::go_on();
        };
        let armed = way_back::arm(origin, &self.manner, &untouched.to_return("its master died"));
        self.knows = armed.then_some(0);
    }
}

impl Supervisor {
    /// Goes on with the service that the program before this one has written down.
    pub(crate) fn inherit(premises: Premises, state: &State) -> Result<Supervisor, String> {
        let now = Instant::now();
        let shared = way_back::or_return(ground::inherit_shared(state))?;
        let common = Common::new(&premises, Vec::new(), Some(shared));
        let roster = Roster::inherit(premises.config.clone(), state, now);
        let mut supervisor = Supervisor::of(premises, Herald::silent(), roster, common);
        supervisor.retired = match state.foreign {
            None => state.retired,
            Some(_) => Snapshot { connections: 0, ..state.totals },
        };
        supervisor.reporters.keep(state.crashes.clone());
        supervisor.look_for_the_dead = true;
        supervisor.started = now.checked_sub(Duration::from_millis(state.uptime_ms)).unwrap_or(now);
        supervisor.predecessor = Some(Predecessor {
            program: inherited(state.program)?,
            manner: state.manner.clone(),
            config: state.config.clone(),
            knows: None,
            foreign: state.foreign.is_some(),
            untouched: None,
        });
        if state.executed != state.program {
            drop(inherited(state.executed)?);
        }
        for slot in &state.slots {
            // Before anything is dropped that the other program needs.
            way_back::or_return(supervisor.inherit_slot(slot, state.foreign.is_some()))?;
        }
        if state.foreign.is_some() {
            supervisor.inherit_foreign(state);
        }
        if state.rolled_back.is_some() {
            supervisor.end_unborn(state);
            supervisor.end_unknown_children();
        }
        if let Some(why) = &state.foreign {
            warn!("the workers of the program before are to drain: {why}");
        }
        info!("was {}, pid {}: {} slots are handed over", state.program_version, std::process::id(), state.slots.len());
        Ok(supervisor)
    }

    fn inherit_slot(&mut self, written: &state::Slot, foreign: bool) -> Result<(), String> {
        let slot = phalanx_shared::ipc::SlotId(written.slot);
        let listeners = self.premises.listeners.inherit_slot(&written.sockets)?;
        for ground in &written.grounds {
            match &ground.known {
                Some(known) => {
                    let ground = Ground::inherit(ground.number, known, &ground.lane_bells, listeners.clone())?;
                    self.formers.push(FormerGround { slot, ground });
                }
                None => self.strangers.push(Strangers::inherit(slot, ground)?),
            }
            for worker in &ground.workers {
                let post = Post { slot, ground: ground.number, lane: worker.lane };
                self.posts.insert(Pid::from_raw(worker.pid), post);
            }
        }
        if foreign {
            self.handed_over.insert(slot, listeners);
        }
        Ok(())
    }

    /// What the program before has that this one makes nothing of: kept as long as that may yet go on with all of it.
    fn inherit_foreign(&mut self, state: &State) {
        self.drained = state.drained + state.totals.connections;
        let useless: Vec<OwnedFd> = state.useless().into_iter().filter_map(|number| inherited(number).ok()).collect();
        if state.rolled_back.is_none()
            && let Some(predecessor) = &mut self.predecessor
        {
            let clients = self.premises.control.as_ref().map(Server::streams).unwrap_or_default();
            predecessor.untouched = Some(Untouched {
                state: Box::new(state.clone()),
                _useless: useless,
                _clients: clients,
                strangers: Vec::new(),
            });
        }
        // Else they close here: the keepers before, which nobody needs any more, hear of it.
    }

    /// Shows nothing but that it could serve; returns the exit code.
    pub(crate) fn rehearse(mut self) -> u8 {
        self.rehearses = true;
        self.run()
    }

    /// As long as this program's death is to be the return to the one before: writes down what that has to know. What it learned
    /// of later than this never served: workers serve when they are told to, which is done after it is written.
    pub(super) fn keep_way_back(&mut self) {
        if self.predecessor.is_none() {
            return;
        }
        if !self.roster.dies_back() || self.leaving.is_some() {
            self.predecessor.iter_mut().for_each(|predecessor| predecessor.untouched = None);
            return way_back::forget();
        }
        // Nothing of a foreign service is touched before the first worker of this one is told to serve.
        let serves = |slot: &Slot| slot.serving().is_some() || slot.formers.iter().any(|former| former.is_yielding());
        if let Some(predecessor) = self.predecessor.as_mut().filter(|predecessor| predecessor.untouched.is_some()) {
            if !self.roster.slots.values().any(serves) {
                return predecessor.keep_untouched(&self.premises.origin);
            }
            predecessor.knows = None;
        }
        let essence = self.essence();
        if self.predecessor.as_ref().is_some_and(|predecessor| predecessor.knows == Some(essence)) {
            return way_back::go_on();
        }
        let state = self.state_to_return("its master died");
        match (state, &mut self.predecessor) {
            (Ok(state), Some(predecessor)) => {
                let armed = way_back::arm(&self.premises.origin, &predecessor.manner, &state);
                predecessor.knows = armed.then_some(essence);
                // Of no use from here on.
                predecessor.untouched = None;
            }
            (Err(why), _) => way_back::not_ready(&why),
            _ => {}
        }
    }

    /// Tells states of the service apart that the program before this one has to tell apart.
    fn essence(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let slots = self.roster.slots.iter().filter_map(|(id, slot)| self.slot_state(*id, slot));
        slots.for_each(|slot| slot.hash(&mut hasher));
        self.premises.control.as_ref().map(Server::clients_known).hash(&mut hasher);
        (self.roster.upgrades_for().map(|client| client.0), self.retired, self.reporters.latest()).hash(&mut hasher);
        // Another version cannot read counters in a ledger.
        let foreign = self.predecessor.as_ref().is_some_and(|predecessor| predecessor.foreign);
        foreign.then(|| self.started.elapsed().as_secs()).hash(&mut hasher);
        hasher.finish()
    }

    /// What the program before this one would go on with.
    fn state_to_return(&self, why: &str) -> Result<State, String> {
        let nothing = || "there is no program to go back to".to_owned();
        let predecessor = self.predecessor.as_ref().ok_or_else(nothing)?;
        if let Some(untouched) = &predecessor.untouched
            && !self.roster.slots.values().any(|slot| slot.serving().is_some())
        {
            return Ok(untouched.to_return(why));
        }
        let config = predecessor.config.clone();
        let mut state = self.state(predecessor.program.as_raw_fd(), config, Some(why.to_owned()))?;
        state.client = self.roster.upgrades_for().map(|client| client.0);
        for slot in &mut state.slots {
            let known = self.roster.slots.get(&phalanx_shared::ipc::SlotId(slot.slot));
            // Whoever is on its way is ended by the program that is returned to, and what it may have rescued is settled.
            let unborn = known.into_iter().flat_map(Slot::every_worker).filter(|worker| worker.pid.is_none());
            for worker in unborn {
                let ground = slot.grounds.iter_mut().find(|ground| ground.number == worker.post.ground);
                ground.into_iter().for_each(|ground| ground.unborn.push(worker.incarnation.0));
                let ground = worker.post.ground;
                slot.graves.extend(worker.lanes().map(|(dead, lane)| state::Grave { dead: dead.0, ground, lane }));
            }
        }
        Ok(state)
    }

    /// Has keepers that were told to clone clone all that they were told to, and ends what they tell of. What they have told
    /// the program that died is found among the children.
    fn end_unborn(&self, state: &State) {
        /// No worker's.
        const NOBODY: Incarnation = Incarnation(u32::MAX);
        let late = Instant::now() + BIRTH_PATIENCE;
        for (slot, written) in state.slots.iter().flat_map(|slot| slot.grounds.iter().map(move |it| (slot, it))) {
            let post = Post { slot: phalanx_shared::ipc::SlotId(slot.slot), ground: written.number, lane: 0 };
            let Some(ground) = self.ground(post) else { continue };
            let asked = !written.unborn.is_empty() && ground.order(&Order::Answer(NOBODY), None).is_ok();
            let mut answered = false;
            while asked && !answered && !ground.hung_up.get() && Instant::now() < late {
                for (incarnation, outcome) in ground.births() {
                    answered |= incarnation == NOBODY;
                    let pid = outcome.ok().filter(|pid| !self.posts.contains_key(pid) && !self.is_keeper(*pid));
                    pid.into_iter().for_each(|pid| end(pid, Signal::SIGKILL));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if let Some(keeper) = written.keeper.filter(|_| asked && !answered) {
                // Whom it would clone later nobody would know of.
                warn!("keeper {} (pid {keeper}) does not say whom it has cloned, and is ended", slot.slot);
                end(Pid::from_raw(keeper), Signal::SIGKILL);
            }
        }
    }

    /// Ends workers and keepers that were on their way when the program before this one died.
    fn end_unknown_children(&self) {
        for child in children() {
            let known = self.posts.contains_key(&child) || self.is_keeper(child);
            let title = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            // One that is cloned this moment has its keeper's title yet.
            if !known && ["phalanx: worker", "phalanx: keeper"].iter().any(|own| title.starts_with(own)) {
                warn!("pid {child} was on its way when the other program died, and is ended");
                end(child, Signal::SIGKILL);
            }
        }
    }

    /// Has a program, or the file that this one was executed from, show in a child that it could take over.
    pub(super) fn begin_rehearsal(&mut self, program: Option<PathBuf>) -> Result<(), String> {
        let path = program.unwrap_or_else(|| self.premises.origin.path().to_owned());
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(&path);
        let program = OwnedFd::from(opened.map_err(|error| format!("{}: {error}", path.display()))?);
        info!("rehearsing {}", path.display());
        let state = self.state(program.as_raw_fd(), self.own_config()?, None)?;
        let patience = self.roster.config.workers.boot_timeout;
        self.rehearsal = Some(Rehearsal::begin(&self.premises.origin, &program, &state, patience)?);
        self.successor = Some(program);
        Ok(())
    }

    /// Executes another program if that is due and nothing stands against it.
    pub(super) fn depart(&mut self) {
        let unborn = self.roster.slots.values().flat_map(|slot| &slot.workers).filter(|worker| worker.pid.is_none());
        let unborn = unborn.filter(|worker| worker.since.elapsed() < BIRTH_PATIENCE).count();
        // Who stops has no need of another program.
        let departure = self.departure.take().filter(|_| !self.roster.is_stopping() && self.leaving.is_none());
        match departure {
            // Who is not ready for it now is asked again.
            Some(Departure::Onward(client)) if self.roster.is_calm() => match self.hand_over(client) {
                Ok(()) => {}
                // Asked for again when the signal is dealt with.
                Err(Stay::Signal) => {}
                Err(Stay::Failed(why)) => self.handle(Event::NotExecuted(why)),
            },
            Some(back @ Departure::Back(..)) if unborn > 0 => self.departure = Some(back),
            Some(Departure::Back(client, why)) => match self.go_back(client, &why) {
                Ok(()) => {}
                Err(Stay::Signal) => self.departure = Some(Departure::Back(client, why)),
                Err(Stay::Failed(error)) => self.handle(Event::NotReturned(error)),
            },
            _ => {}
        }
    }

    /// Executes the program that was rehearsed; returns if that fails, and then nothing has changed.
    fn hand_over(&mut self, client: Option<ClientId>) -> Result<(), Stay> {
        self.rehearsal = None;
        let program = self.successor.take().ok_or_else(|| Stay::Failed("there is no program to execute".to_owned()))?;
        let config = self.own_config().map_err(Stay::Failed)?;
        let mut state = self.state(program.as_raw_fd(), config, None).map_err(Stay::Failed)?;
        state.client = client.map(|client| client.0);
        info!("handing over");
        let stay = self.execute(&program, &state);
        self.successor = Some(program);
        Err(stay)
    }

    /// Executes the program before this one again.
    fn go_back(&mut self, client: Option<ClientId>, why: &str) -> Result<(), Stay> {
        let mut state = self.state_to_return(why).map_err(Stay::Failed)?;
        state.client = client.map(|client| client.0);
        let Some(mut predecessor) = self.predecessor.take() else { return Ok(()) };
        let own = self.premises.origin.set_manner(&predecessor.manner);
        way_back::forget();
        let stay = self.execute(&predecessor.program, &state);
        self.premises.origin.set_manner(&own);
        predecessor.knows = None;
        self.predecessor = Some(predecessor);
        Err(stay)
    }

    /// Returns only why this program goes on.
    fn execute(&mut self, program: &OwnedFd, state: &State) -> Stay {
        let memory = match state.write() {
            Ok(memory) => memory,
            Err(error) => return Stay::Failed(format!("write the state of the service: {error}")),
        };
        let passed = || state.passed.iter().copied().chain([memory.as_raw_fd()]);
        let pass = |pass| passed().try_for_each(|number| pass_on(&table::borrow(number), pass));
        // No signal meets the other program before it is prepared: what comes waits.
        let mask = match process::block_signals() {
            Ok(mask) => mask,
            Err(error) => return Stay::Failed(error.to_string()),
        };
        // What came before that nobody would hear of any more.
        self.unheard = self.premises.signals.wishes();
        if self.unheard.iter().any(|(wish, _)| *wish != Wish::Reap) {
            let _as_before = process::set_signal_mask(&mask);
            return Stay::Signal;
        }
        let executed = pass(true).and_then(|()| self.premises.origin.execute_to_take_over(program, memory.as_raw_fd()));
        let Err(error) = executed;
        let _close_on_exec_as_before = pass(false);
        let _as_before = process::set_signal_mask(&mask);
        Stay::Failed(format!("execute the program: {error}"))
    }

    /// The service, written down for the program behind `executed`.
    fn state(&self, executed: RawFd, config: serde_json::Value, rolled_back: Option<String>) -> Result<State, String> {
        let program = self.premises.origin.program().ok_or("the file of the running program cannot be read")?;
        let (lifeline, clients) = self.common.shared();
        let mut state = State {
            version: fault::version(),
            ledger_layout: fault::layout(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            program: program.as_raw_fd(),
            manner: self.premises.origin.manner().clone(),
            executed,
            fixed: Fixed::of(&self.roster.config),
            config,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            generation: self.roster.last_generation.0,
            last_ground: self.roster.last_ground,
            target: self.roster.target,
            retired: self.retired_by_now(),
            crashes: self.reporters.kept(),
            totals: self.totals(),
            drained: self.drained,
            lifeline,
            clients: Some(clients),
            ward: Some(self.common.ward.state()),
            pid_file: self.premises.pid_file.as_ref().map(PidFile::descriptor),
            control: self.premises.control.as_ref().map(Server::state),
            listeners: self.premises.listeners.state(),
            slots: self.roster.slots.iter().filter_map(|(id, slot)| self.slot_state(*id, slot)).collect(),
            passed: Vec::new(),
            foreign: None,
            original: None,
            client: None,
            rolled_back,
        };
        state.passed = state.used();
        Ok(state)
    }

    /// With the grounds that are about to be dismissed, which the page does not have any more.
    fn retired_by_now(&self) -> Snapshot {
        let mut retired = self.retired;
        for former in &self.formers {
            let known = self.roster.slots.get(&former.slot).is_some_and(|slot| {
                let number = former.ground.number;
                slot.ground == number || slot.formers.iter().any(|known| known.ground == number)
            });
            if !known {
                retired.add(&ground::final_stats(&former.ground.ledger));
            }
        }
        retired
    }

    /// Bells of strangers that are gone: as long as the page before is the one that holds, their numbers stay.
    pub(super) fn put_aside(&mut self, gone: Vec<Strangers>) {
        if let Some(untouched) = self.predecessor.as_mut().and_then(|predecessor| predecessor.untouched.as_mut()) {
            untouched.strangers.extend(gone);
        }
    }

    /// The configuration in force, as this program writes it.
    fn own_config(&self) -> Result<serde_json::Value, String> {
        serde_json::to_value(&self.roster.config).map_err(|error| error.to_string())
    }

    /// Nothing of a slot that never had a ground.
    fn slot_state(&self, id: phalanx_shared::ipc::SlotId, slot: &Slot) -> Option<state::Slot> {
        let of_ground = |number: u32| {
            let former = slot.formers.iter().find(|former| former.ground == number);
            let (keeper, workers) = match former {
                Some(former) => (former.keeper, &former.workers),
                None if number == slot.ground => (slot.keeper, &slot.workers),
                // About to be dismissed.
                None => return None,
            };
            Some((keeper, workers.iter().filter_map(super::slot::Worker::state).collect()))
        };
        let own = || self.all_grounds().filter(|(of, _)| *of == id).map(|(_, ground)| ground);
        let known = own().filter_map(|ground| {
            let (keeper, workers) = of_ground(ground.number)?;
            Some(ground.state(keeper, workers))
        });
        let strangers = self.strangers.iter().filter(|it| it.slot == id).filter_map(|strangers| {
            let (keeper, workers) = of_ground(strangers.ground)?;
            Some(strangers.state(keeper, workers))
        });
        let grounds: Vec<state::Ground> = known.chain(strangers).collect();
        let waiting = self.handed_over.get(&id).map(|listeners| ground::sockets(listeners));
        let sockets = waiting.or_else(|| own().next().map(Ground::sockets));
        let sockets = if grounds.is_empty() { sockets? } else { sockets.unwrap_or_default() };
        Some(state::Slot {
            slot: id.0,
            last_incarnation: slot.last_incarnation,
            restarts: slot.restarts,
            cause_of_last_death: slot.cause_of_last_death.clone(),
            sockets,
            graves: slot.graves_state(),
            grounds,
        })
    }
}
