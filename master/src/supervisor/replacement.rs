//! Another program takes this one's place, or this one that of another: what is written down, executed, and found.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::ipc::keeper::Order;
use phalanx_shared::ipc::{Incarnation, SlotId};
use phalanx_shared::state::heritage::{self, Estate};
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::rest::children;
use phalanx_shared::sys::{process, table};
use phalanx_shared::{info, warn};

use super::background;
use super::event::Event;
use super::ground::{self, Common, FormerGround, Ground, Strangers};
use super::page::{Predecessor, Untouched};
use super::roster::Roster;
use super::slot::Post;
use super::{Premises, Supervisor, end};
use crate::control::server::{ClientId, Server};
use crate::daemonize::Herald;
use crate::signals::Wish;
use crate::upgrade::rehearsal::Rehearsal;
use crate::upgrade::state::{self, State};
use crate::upgrade::{inherited, pass_on, way_back};

/// The program to execute.
pub(super) enum Departure {
    /// The one that was rehearsed.
    Onward(Option<ClientId>),
    /// The one before this one: why.
    Back(Option<ClientId>, String),
}

/// Why no other program was executed.
enum Stay {
    /// A signal came that it would not have heard of.
    Signal,
    Failed(String),
}

/// How long a way back waits for keepers to tell whom they have cloned.
const BIRTH_PATIENCE: Duration = Duration::from_secs(1);

/// What this program's workers share has been taken up where it was made: from here on it is this program's alone.
fn inherit_shared(shared: &Estate) -> Result<(), String> {
    for memory in shared.memory() {
        let closed = pass_on(&table::borrow(memory), false);
        way_back::or_return(closed.map_err(|error| format!("the memory of shared state, {memory}: {error}")))?;
    }
    let known: Vec<_> = heritage::estate().memory().collect();
    if shared.memory().any(|memory| !known.contains(&memory)) {
        warn!("shared state of the program before could not be read, and begins empty");
    }
    heritage::tell_what_is_fresh();
    Ok(())
}

impl Supervisor {
    /// Goes on with the service that the program before this one has written down.
    pub(crate) fn inherit(premises: Premises, state: &State) -> Result<Supervisor, String> {
        let now = Instant::now();
        let shared = ground::inherit_shared(state)?;
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
        inherit_shared(&state.shared)?;
        for slot in &state.slots {
            supervisor.inherit_slot(slot, state.foreign.is_some())?;
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
        let slot = SlotId(written.slot);
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

    /// Has keepers that were told to clone clone all that they were told to, and ends what they tell of. What they have told
    /// the program that died is found among the children.
    fn end_unborn(&self, state: &State) {
        /// No worker's.
        const NOBODY: Incarnation = Incarnation(u32::MAX);
        let late = Instant::now() + BIRTH_PATIENCE;
        for (slot, written) in state.slots.iter().flat_map(|slot| slot.grounds.iter().map(move |it| (slot, it))) {
            let post = Post { slot: SlotId(slot.slot), ground: written.number, lane: 0 };
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
            if !known
                && ["phalanx: worker", "phalanx: keeper", "phalanx: background"]
                    .iter()
                    .any(|own| title.starts_with(own))
            {
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
        // The other program has its own.
        self.backgrounds.end(background::HASTE);
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
}
