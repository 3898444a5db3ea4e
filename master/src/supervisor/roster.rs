//! The rank: slots, their workers, and what is under way. Deciding is pure: an event and the time come in, actions go out, no
//! system call is made, so that a table of cases can test it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::config::Config;
use phalanx_shared::ipc::{Closing, Generation, Incarnation, SlotId, ToMaster, ToWorker, Word};
use phalanx_shared::ledger::record::Guilt;

use super::backoff;
use super::event::{Action, Event};
use super::reload::Reload;
use super::slot::{Place, Slot, Stage, Worker};
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::verdict::{Cause, Ending};

/// How often a worker is asked.
const PING_EVERY: Duration = Duration::from_secs(1);
/// How long a hung worker gets to show its stack.
const ABORT_GRACE: Duration = Duration::from_secs(1);
/// How long a predecessor may keep the lane that a further successor needs.
const LANE_PATIENCE: Duration = Duration::from_secs(2);
/// How much longer than the workers' own deadline the master waits for them to go.
const DRAIN_MARGIN: Duration = Duration::from_millis(500);
/// How often the roster looks again while something is under way.
const IMPATIENCE: Duration = Duration::from_millis(50);

/// The service is on its way out.
#[derive(Debug)]
struct Stopping {
    fast: bool,
    deadline: Instant,
    clients: Vec<ClientId>,
    /// Why, if it is a failure.
    failure: Option<String>,
}

/// A change of the number of slots under way.
#[derive(Debug, Default)]
struct Scaling {
    clients: Vec<ClientId>,
    steered: bool,
    active: bool,
}

/// The rank.
pub(crate) struct Roster {
    pub(crate) slots: BTreeMap<SlotId, Slot>,
    pub(crate) config: Config,
    /// The generation in force, and the blueprint that holds it.
    pub(crate) generation: Generation,
    pub(crate) blueprint: usize,
    pub(super) last_generation: Generation,
    pub(super) reload: Option<Reload>,
    /// Asked for while one was under way.
    pub(super) reload_again: Option<Vec<Option<ClientId>>>,
    pub(crate) target: u32,
    scaling: Scaling,
    stopping: Option<Stopping>,
    started: bool,
    pub(super) out: Vec<Action>,
    pub(super) now: Instant,
}

impl Roster {
    /// A rank of `count` slots to be opened.
    pub(crate) fn new(config: Config, count: u32, now: Instant) -> Roster {
        Roster {
            slots: BTreeMap::new(),
            config,
            generation: Generation(1),
            blueprint: 0,
            last_generation: Generation(1),
            reload: None,
            reload_again: None,
            target: count,
            scaling: Scaling::default(),
            stopping: None,
            started: false,
            out: Vec::new(),
            now,
        }
    }

    /// What to do about `event`.
    pub(crate) fn react(&mut self, event: Event, now: Instant) -> Vec<Action> {
        self.now = now;
        match event {
            Event::Opened(slot, outcome) => self.opened(slot, outcome),
            Event::Born(slot, incarnation, outcome) => self.born(slot, incarnation, outcome),
            Event::Ended(pid, cause) => self.ended(pid, cause),
            Event::Heard(slot, message) => self.heard(slot, message),
            Event::Knocked(slot, lane) => self.knocked(slot, lane),
            Event::Excused(slot, incarnation) => self.excused(slot, incarnation),
            Event::Stop { fast, client } => self.stop(fast, client, None),
            Event::Reload { client, read } => self.reload(client, read),
            Event::Scale { client, count } => self.scale(client, count),
            Event::ScaleBy(by) => self.scale(None, self.target.saturating_add_signed(by).max(1)),
            Event::LogsReopened => self.slots.values_mut().for_each(|slot| slot.wants_logs = true),
            Event::Tick => {}
        }
        self.follow_up();
        std::mem::take(&mut self.out)
    }

    /// When to send a `Tick` if nothing else happens.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let busy = self.stopping.is_some()
            || self.reload.is_some()
            || self.scaling.active
            || self.slots.values().any(|slot| !slot.is_quiet() || slot.wants_logs);
        if busy {
            return Some(self.now + IMPATIENCE);
        }
        let workers = self.slots.values().flat_map(|slot| &slot.workers);
        workers.filter_map(|worker| worker.ping.next).min().or(Some(self.now + PING_EVERY))
    }

    pub(super) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    pub(super) fn is_scaling(&self) -> bool {
        self.scaling.active
    }

    /// What follows from where things stand, whatever has just happened.
    fn follow_up(&mut self) {
        self.open_and_close_slots();
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            self.clone_if_due(id);
            self.ping(id);
            self.end_what_is_overdue(id);
            self.recycle_if_wanted(id);
            self.install_logs(id);
        }
        self.go_on_reloading();
        self.report_start();
        self.finish_scaling();
        self.finish_stopping();
    }

    // ---- slots open and close ----

    fn open_and_close_slots(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let open = self.slots.values().filter(|slot| slot.place != Place::Closing).count() as u32;
        // Numbers are used again only when the slot that had them is gone: the order of listeners in the kernel is theirs.
        let closing = self.slots.len() as u32 - open;
        if open < self.target && closing == 0 {
            for number in open..self.target {
                self.slots.insert(SlotId(number), Slot::new());
                self.act(Action::Open(SlotId(number)));
            }
        }
        let surplus: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(id, slot)| id.0 >= self.target && slot.place == Place::Open)
            .map(|(id, _)| *id)
            .collect();
        if !surplus.is_empty() {
            self.act(Action::Steer(Some(self.target)));
            self.scaling.steered = true;
        }
        for id in surplus {
            self.close_slot(id);
        }
    }

    fn close_slot(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.place = Place::Closing;
        self.drain_workers(id, Closing::Slot);
    }

    fn opened(&mut self, id: SlotId, outcome: Result<Pid, String>) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match outcome {
            Ok(keeper) => {
                slot.keeper = Some(keeper);
                if slot.place == Place::Opening {
                    slot.place = Place::Open;
                }
                slot.clone_at = Some(now);
            }
            Err(why) => {
                self.slots.remove(&id);
                if self.started {
                    self.target = self.target.min(id.0).max(1);
                    self.fail_scaling(&format!("slot {}: {why}", id.0));
                } else {
                    self.stop(true, None, Some(why));
                }
            }
        }
    }

    fn drain_workers(&mut self, id: SlotId, closing: Closing) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            match worker.stage {
                Stage::Serving => {
                    worker.enter(Stage::Draining, now);
                    actions.push(Action::Tell(id, worker.lane, ToWorker::Drain(closing)));
                }
                Stage::Waiting => {
                    worker.enter(Stage::Leaving, now);
                    actions.push(Action::Tell(id, worker.lane, ToWorker::Leave));
                }
                Stage::Booting { serve_at_once: false } => {
                    if let Some(pid) = worker.pid {
                        worker.enter(Stage::Leaving, now);
                        actions.push(Action::Kill(pid, Signal::SIGKILL));
                    }
                }
                _ => {}
            }
        }
        self.out.append(&mut actions);
    }

    // ---- workers come ----

    fn clone_if_due(&mut self, id: SlotId) {
        let (generation, blueprint, now) = (self.generation, self.blueprint, self.now);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.keeper.is_none() || slot.clone_at.is_none_or(|at| at > now) {
            return;
        }
        let Some(birth) = slot.conceive(generation, blueprint, true) else { return };
        slot.clone_at = None;
        slot.workers.push(Worker::new(&birth, now));
        self.act(Action::Clone(id, birth));
    }

    fn born(&mut self, id: SlotId, incarnation: Incarnation, outcome: Result<Pid, String>) {
        let Some(worker) = self.slots.get_mut(&id).and_then(|slot| slot.worker(incarnation)) else { return };
        match outcome {
            Ok(pid) => {
                worker.pid = Some(pid);
                if worker.stage == Stage::Leaving {
                    self.act(Action::Kill(pid, Signal::SIGKILL));
                }
            }
            Err(why) => {
                worker.complaint = Some(why);
                let cause = Cause { ending: Ending::Exited(1), own_fault: false };
                self.worker_ended(id, incarnation, cause);
            }
        }
    }

    fn heard(&mut self, id: SlotId, message: ToMaster) {
        let now = self.now;
        let (max_requests, max_memory) = (self.config.workers.max_requests, self.config.workers.max_memory);
        let Some(worker) = self.slots.get_mut(&id).and_then(|slot| slot.worker(message.from)) else { return };
        match message.word {
            Word::Failed(why) => worker.complaint = Some(why),
            Word::Ready => self.ready(id, message.from),
            Word::Pong(pong) => {
                if worker.ping.outstanding.is_none() || pong.number != worker.ping.number {
                    return;
                }
                worker.ping.outstanding = None;
                worker.wants_successor |= pong.wants_successor;
                let before = *worker.requests_at_birth.get_or_insert(pong.stats.requests);
                worker.requests = pong.stats.requests.saturating_sub(before);
                worker.wants_successor |= max_requests > 0 && worker.requests >= max_requests;
                let _measured_by_the_performer = (max_memory, now);
            }
        }
    }

    fn ready(&mut self, id: SlotId, incarnation: Incarnation) {
        let now = self.now;
        let generation_of_reload = self.reload.as_ref().map(|reload| reload.generation);
        let stopping = self.stopping.is_some();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let closing = slot.place == Place::Closing;
        let Some(worker) = slot.worker(incarnation) else { return };
        worker.ping.next = Some(now + PING_EVERY);
        let (lane, generation) = (worker.lane, worker.generation);
        match worker.stage {
            Stage::Booting { serve_at_once: true } => {
                worker.enter(Stage::Serving, now);
                slot.deaths_at_boot = 0;
                if stopping || closing {
                    let what = if stopping { Closing::Service } else { Closing::Slot };
                    self.drain_workers(id, what);
                }
            }
            Stage::Booting { serve_at_once: false } => {
                worker.enter(Stage::Waiting, now);
                slot.deaths_at_boot = 0;
                if generation_of_reload != Some(generation) {
                    self.promote(id, incarnation);
                }
            }
            _ => self.act(Action::Warn(format!("slot {}: lane {lane} was ready twice", id.0))),
        }
    }

    /// The successor takes over: it serves, its predecessor retires.
    pub(super) fn promote(&mut self, id: SlotId, incarnation: Incarnation) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            if worker.incarnation == incarnation {
                worker.enter(Stage::Serving, now);
                actions.push(Action::Tell(id, worker.lane, ToWorker::Serve));
                for dead in slot.unburied.drain(..) {
                    actions.push(Action::Tell(id, worker.lane, ToWorker::Bury(dead)));
                }
            }
        }
        for worker in slot.workers.iter_mut().filter(|worker| worker.incarnation != incarnation) {
            if worker.stage == Stage::Serving {
                worker.enter(Stage::Retiring, now);
                actions.push(Action::Tell(id, worker.lane, ToWorker::Retire));
            }
        }
        self.out.append(&mut actions);
    }

    /// Clones a successor beside the worker that serves.
    pub(super) fn clone_successor(&mut self, id: SlotId, generation: Generation, blueprint: usize) -> bool {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        let Some(birth) = slot.conceive(generation, blueprint, false) else { return false };
        slot.workers.push(Worker::new(&birth, now));
        self.act(Action::Clone(id, birth));
        true
    }

    fn recycle_if_wanted(&mut self, id: SlotId) {
        if self.stopping.is_some() || self.reload.is_some() {
            return;
        }
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let wanted = slot.serving().is_some_and(|worker| worker.wants_successor);
        if !wanted || slot.clone_at.is_some_and(|at| at > self.now) {
            return;
        }
        let retiring_long =
            slot.at_stage(Stage::Retiring).filter(|worker| self.now - worker.since > LANE_PATIENCE).and_then(|w| w.pid);
        match (slot.is_quiet(), retiring_long) {
            (true, _) => {
                let (generation, blueprint) = (self.generation, self.blueprint);
                slot.clone_at = None;
                self.clone_successor(id, generation, blueprint);
            }
            (false, Some(pid)) => self.act(Action::Kill(pid, Signal::SIGKILL)),
            (false, None) => {}
        }
    }

    // ---- workers are asked, and end ----

    fn ping(&mut self, id: SlotId) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            let due = worker.ping.next.is_some_and(|at| at <= now) && worker.ping.outstanding.is_none();
            if due && !matches!(worker.stage, Stage::Leaving | Stage::Booting { .. }) {
                worker.ping.number += 1;
                worker.ping.outstanding = Some(now);
                worker.ping.next = Some(now + PING_EVERY);
                actions.push(Action::Tell(id, worker.lane, ToWorker::Ping(worker.ping.number)));
            }
        }
        self.out.append(&mut actions);
    }

    fn knocked(&mut self, id: SlotId, lane: usize) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        for worker in slot.workers.iter_mut().filter(|worker| worker.lane == lane) {
            if worker.ping.next.is_some() {
                worker.ping.next = Some(now);
            }
        }
    }

    fn excused(&mut self, id: SlotId, incarnation: Incarnation) {
        let now = self.now;
        if let Some(worker) = self.slots.get_mut(&id).and_then(|slot| slot.worker(incarnation)) {
            worker.hung = None;
            worker.ping.outstanding = worker.ping.outstanding.map(|_| now);
        }
    }

    fn end_what_is_overdue(&mut self, id: SlotId) {
        let (now, workers) = (self.now, self.config.workers.clone());
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            let Some(pid) = worker.pid else { continue };
            let age = now - worker.since;
            match worker.stage {
                Stage::Booting { .. } if age > workers.boot_timeout => {
                    worker.complaint = Some(format!("not ready within boot_timeout ({:?})", workers.boot_timeout));
                    actions.push(Action::Kill(pid, Signal::SIGKILL));
                    worker.since = now;
                }
                Stage::Retiring | Stage::Draining if age > workers.drain_timeout + DRAIN_MARGIN => {
                    actions.push(Action::Kill(pid, Signal::SIGKILL));
                    worker.since = now;
                }
                _ => {}
            }
            let silent = worker.ping.outstanding.is_some_and(|since| now - since > workers.hang_timeout);
            match worker.hung {
                None if silent => {
                    worker.hung = Some(now);
                    actions.push(Action::EndHung(id, worker.incarnation, pid));
                }
                Some(since) if now - since > ABORT_GRACE => {
                    worker.hung = Some(now);
                    actions.push(Action::Kill(pid, Signal::SIGKILL));
                }
                _ => {}
            }
        }
        self.out.append(&mut actions);
    }

    fn ended(&mut self, pid: Pid, cause: Cause) {
        let found = self.slots.iter().find_map(|(id, slot)| {
            let worker = slot.workers.iter().find(|worker| worker.pid == Some(pid))?;
            Some((*id, worker.incarnation))
        });
        if let Some((id, incarnation)) = found {
            return self.worker_ended(id, incarnation, cause);
        }
        let keeper = self.slots.iter().find(|(_, slot)| slot.keeper == Some(pid)).map(|(id, _)| *id);
        if let Some(id) = keeper {
            self.keeper_ended(id, cause);
        }
    }

    fn worker_ended(&mut self, id: SlotId, incarnation: Incarnation, cause: Cause) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(index) = slot.workers.iter().position(|worker| worker.incarnation == incarnation) else { return };
        let worker = slot.workers.remove(index);
        let expected = match worker.stage {
            Stage::Leaving => true,
            Stage::Retiring | Stage::Draining => cause.ending == Ending::Exited(0),
            _ => false,
        };
        if expected {
            return;
        }
        let text = match (worker.hung, &worker.complaint) {
            (Some(_), _) => "killed because it hung".to_owned(),
            (None, Some(complaint)) => complaint.clone(),
            (None, None) => cause.to_string(),
        };
        slot.cause_of_last_death = Some(text.clone());
        let guilt = match (worker.hung, cause.own_fault) {
            (Some(_), _) => Some(Guilt::Hang),
            (None, true) => Some(Guilt::Fault),
            (None, false) => None,
        };
        if let Some(guilt) = guilt {
            self.act(Action::Condemn(id, worker.lane, incarnation, guilt));
        }
        if let Some(pid) = worker.pid {
            let (cause, serious) = (text.clone(), guilt.is_some());
            self.act(Action::Report { slot: id, lane: worker.lane, pid, incarnation, cause, serious });
        }
        match worker.stage {
            Stage::Booting { .. } | Stage::Waiting => self.died_at_boot(id, &worker, &text),
            _ => self.died_serving(id, incarnation),
        }
    }

    fn died_at_boot(&mut self, id: SlotId, worker: &Worker, why: &str) {
        if !self.started && self.stopping.is_none() {
            return self.stop(true, None, Some(format!("worker {} did not become ready: {why}", id.0)));
        }
        if self.reload.as_ref().is_some_and(|reload| reload.generation == worker.generation) {
            return self.roll_back(&format!("worker {} of the new generation died: {why}", id.0));
        }
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.deaths_at_boot += 1;
        let pause = backoff::jittered(slot.deaths_at_boot);
        slot.clone_at = Some(now + pause);
        let serving = slot.serving().is_some();
        if serving {
            // A successor that was not needed: its predecessor serves on and asks again.
            return;
        }
        self.act(Action::Warn(format!("slot {}: next attempt in {pause:?}", id.0)));
    }

    fn died_serving(&mut self, id: SlotId, incarnation: Incarnation) {
        let now = self.now;
        let of_reload = self.reload.as_ref().map(|reload| reload.generation);
        let fast_stop = self.stopping.as_ref().is_some_and(|stopping| stopping.fast);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.restarts += 1;
        if fast_stop {
            return;
        }
        if let Some(survivor) =
            slot.workers.iter().find(|worker| matches!(worker.stage, Stage::Serving | Stage::Draining))
        {
            let lane = survivor.lane;
            return self.act(Action::Tell(id, lane, ToWorker::Bury(incarnation)));
        }
        let successor = slot
            .workers
            .iter()
            .find(|worker| {
                matches!(worker.stage, Stage::Waiting | Stage::Booting { serve_at_once: false })
                    && of_reload != Some(worker.generation)
            })
            .map(|worker| (worker.incarnation, worker.stage));
        match successor {
            Some((successor, stage)) => {
                slot.unburied.push(incarnation);
                if stage == Stage::Waiting {
                    self.promote(id, successor);
                }
            }
            None if slot.workers.iter().any(Worker::is_booting) && of_reload.is_none() => {
                slot.unburied.push(incarnation)
            }
            None => slot.clone_at = Some(now),
        }
    }

    fn keeper_ended(&mut self, id: SlotId, cause: Cause) {
        let stopping = self.stopping.is_some();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.keeper = None;
        if stopping || slot.place == Place::Closing {
            return;
        }
        slot.workers.clear();
        slot.place = Place::Opening;
        slot.clone_at = None;
        slot.restarts += 1;
        slot.cause_of_last_death = Some(format!("its keeper died: {cause}"));
        self.act(Action::Warn(format!("keeper {} died ({cause}): the slot gets a new one", id.0)));
        self.act(Action::Replace(id));
        if self.reload.is_some() {
            self.roll_back(&format!("keeper {} died", id.0));
        }
    }

    // ---- the service changes as a whole ----

    fn install_logs(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        // A worker that boots alone closes what it does not know: a descriptor on its way would be among it.
        if slot.wants_logs && slot.keeper.is_some() && !slot.workers.iter().any(Worker::is_booting) {
            slot.wants_logs = false;
            self.act(Action::InstallLogs(id));
        }
    }

    fn report_start(&mut self) {
        if self.started || self.stopping.is_some() {
            return;
        }
        if self.slots.len() as u32 == self.target && self.slots.values().all(|slot| slot.serving().is_some()) {
            self.started = true;
            self.act(Action::Ready);
        }
    }

    pub(super) fn scale(&mut self, client: Option<ClientId>, count: u32) {
        if self.stopping.is_some() {
            return self.reply(client, Answer::refused("the service is stopping"));
        }
        self.target = count;
        self.scaling.active = true;
        self.scaling.clients.extend(client);
    }

    fn fail_scaling(&mut self, why: &str) {
        self.act(Action::Warn(format!("scale: {why}")));
        for client in std::mem::take(&mut self.scaling.clients) {
            self.reply(Some(client), Answer::refused(why));
        }
    }

    fn finish_scaling(&mut self) {
        let there = self.slots.len() as u32 == self.target;
        if !self.scaling.active || !there || !self.slots.values().all(|slot| slot.serving().is_some()) {
            return;
        }
        self.scaling.active = false;
        if std::mem::take(&mut self.scaling.steered) {
            self.act(Action::Steer(None));
        }
        self.act(Action::Say(format!("{} slots serve", self.target)));
        for client in std::mem::take(&mut self.scaling.clients) {
            self.reply(Some(client), Answer::done(format!("{} workers serve", self.target)));
        }
    }

    pub(super) fn stop(&mut self, fast: bool, client: Option<ClientId>, failure: Option<String>) {
        let deadline = self.now + self.config.workers.drain_timeout + 2 * DRAIN_MARGIN;
        if self.reload.is_some() {
            self.roll_back("the service stops");
        }
        let before = self.stopping.is_some();
        let stopping =
            self.stopping.get_or_insert(Stopping { fast: false, deadline, clients: Vec::new(), failure: None });
        stopping.clients.extend(client);
        stopping.failure = stopping.failure.take().or(failure);
        stopping.fast |= fast || before && client.is_none();
        if stopping.fast {
            self.kill_all();
        } else {
            for id in self.slots.keys().copied().collect::<Vec<_>>() {
                self.drain_workers(id, Closing::Service);
            }
        }
    }

    fn kill_all(&mut self) {
        let now = self.now;
        let mut actions = Vec::new();
        for slot in self.slots.values_mut() {
            slot.clone_at = None;
            for worker in &mut slot.workers {
                worker.enter(Stage::Leaving, now);
                actions.extend(worker.pid.map(|pid| Action::Kill(pid, Signal::SIGKILL)));
            }
        }
        self.out.append(&mut actions);
    }

    fn finish_stopping(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if !stopping.fast && self.now > stopping.deadline {
            stopping.fast = true;
            self.kill_all();
        }
        let Some(stopping) = &mut self.stopping else { return };
        let empty =
            self.slots.values().all(|slot| slot.workers.is_empty() && (stopping.fast || slot.clone_at.is_none()));
        if !empty {
            return;
        }
        let clients = std::mem::take(&mut stopping.clients);
        let outcome = stopping.failure.take().map_or(Ok(()), Err);
        for client in clients {
            self.reply(Some(client), Answer::done("stopped"));
        }
        self.act(Action::Leave(outcome));
    }

    /// A slot whose last worker has gone while it was closing is closed.
    pub(crate) fn emptied(&mut self) -> Vec<SlotId> {
        let gone: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.place == Place::Closing && slot.workers.is_empty() && slot.clone_at.is_none())
            .map(|(id, _)| *id)
            .collect();
        if self.stopping.is_none() {
            gone.iter().for_each(|id| drop(self.slots.remove(id)));
            gone
        } else {
            Vec::new()
        }
    }

    pub(super) fn reply(&mut self, client: Option<ClientId>, answer: Answer) {
        if let Some(client) = client {
            self.act(Action::Reply(client, answer));
        }
    }
}
