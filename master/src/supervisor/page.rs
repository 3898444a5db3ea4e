//! The page: what is written down of the service for another program, and kept ready for the one before as long as the death of this
//! one is to be the return to it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use phalanx_shared::ipc::SlotId;
use phalanx_shared::state::heritage;
use phalanx_shared::stats::Snapshot;

use super::Supervisor;
use super::ground::{self, Ground, Strangers};
use super::slot::{Slot, Worker};
use crate::control::server::Server;
use crate::pid_file::PidFile;
use crate::upgrade::origin::{Manner, Origin};
use crate::upgrade::state::{self, Fixed, State};
use crate::upgrade::{fault, way_back};

/// The program before this one, and what it was executed with.
pub(super) struct Predecessor {
    pub(super) program: OwnedFd,
    pub(super) manner: Manner,
    /// The configuration that was in force, as it writes it: this program's may be one that it does not know.
    pub(super) config: serde_json::Value,
    /// The last state that it would go on with, by [`Supervisor::essence`].
    pub(super) knows: Option<u64>,
    /// It is of another version.
    pub(super) foreign: bool,
    /// What it has handed over, if that is of another version and as long as it can go on with it.
    pub(super) untouched: Option<Untouched>,
}

/// A service of another version as it was handed over, with every descriptor that it names.
pub(super) struct Untouched {
    pub(super) state: Box<State>,
    pub(super) _useless: Vec<OwnedFd>,
    pub(super) _clients: Vec<Rc<UnixStream>>,
    pub(super) strangers: Vec<Strangers>,
}

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
        let untouched = self.untouched().is_some();
        if let Some(predecessor) = self.predecessor.as_mut().filter(|predecessor| predecessor.untouched.is_some()) {
            if untouched {
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

    /// The service as a program of another version handed it over, if nothing of that is touched: none of this one's workers has been
    /// told to serve.
    fn untouched(&self) -> Option<&Untouched> {
        let serves = self.roster.slots.values().any(|slot| slot.serving().is_some());
        self.predecessor.as_ref()?.untouched.as_ref().filter(|_| !serves)
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
    pub(super) fn state_to_return(&self, why: &str) -> Result<State, String> {
        let nothing = || "there is no program to go back to".to_owned();
        let predecessor = self.predecessor.as_ref().ok_or_else(nothing)?;
        if let Some(untouched) = self.untouched() {
            return Ok(untouched.to_return(why));
        }
        let config = predecessor.config.clone();
        let mut state = self.state(predecessor.program.as_raw_fd(), config, Some(why.to_owned()))?;
        state.client = self.roster.upgrades_for().map(|client| client.0);
        for slot in &mut state.slots {
            let known = self.roster.slots.get(&SlotId(slot.slot));
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

    /// The service, written down for the program behind `executed`.
    pub(super) fn state(
        &self,
        executed: RawFd,
        config: serde_json::Value,
        rolled_back: Option<String>,
    ) -> Result<State, String> {
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
            shared: heritage::estate(),
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
            let slot = self.roster.slots.get(&former.slot);
            if !slot.is_some_and(|slot| slot.stands_or_stood_on(former.ground.number)) {
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
    pub(super) fn own_config(&self) -> Result<serde_json::Value, String> {
        serde_json::to_value(&self.roster.config).map_err(|error| error.to_string())
    }

    /// Nothing of a slot that never had a ground.
    fn slot_state(&self, id: SlotId, slot: &Slot) -> Option<state::Slot> {
        let of_ground = |number: u32| {
            let former = slot.formers.iter().find(|former| former.ground == number);
            let (keeper, workers) = match former {
                Some(former) => (former.keeper, &former.workers),
                None if number == slot.ground => (slot.keeper, &slot.workers),
                // About to be dismissed.
                None => return None,
            };
            Some((keeper, workers.iter().filter_map(Worker::state).collect()))
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
