//! Tables that a slot had before its present one. Their workers serve on until one of the new table does; then they give what
//! they have to that one, end the rest, and leave.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::ipc::{Closing, SlotId, ToMaster, ToWorker, Word};
use phalanx_shared::ledger::record::Guilt;

use super::event::Action;
use super::roster::{DRAIN_MARGIN, Roster};
use super::slot::{Grave, Place, Post, Slot, Stage, Worker};
use crate::verdict::{Cause, Ending};

/// How long what is left in a former table may take to be fetched when its workers are gone.
const FETCH_PATIENCE: Duration = Duration::from_secs(10);

/// A former table and who has it. When the last of them has gone, it is gone too.
#[derive(Debug)]
pub(crate) struct FormerTable {
    /// The number of the ground it belonged to.
    pub(crate) ground: u32,
    /// None when it is dead, which is how most tables become former ones.
    pub(crate) keeper: Option<Pid>,
    pub(crate) workers: Vec<Worker>,
    /// Its ledger is of another version's: nothing of what its workers have can be taken over.
    foreign: bool,
    /// Since when its workers give.
    yielding: Option<Instant>,
    /// When was last looked who has it, or what is left in its ledger.
    looked: Option<Instant>,
}

/// How often a former table is looked at. Its ledger is when its workers are gone: that goes over all of its records.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl FormerTable {
    /// Nobody has it any more.
    fn is_gone(&self) -> bool {
        self.workers.is_empty() && self.keeper.is_none()
    }

    /// One that the program before this one made.
    pub(crate) fn inherit(ground: u32, keeper: Option<Pid>, workers: Vec<Worker>, foreign: bool) -> FormerTable {
        FormerTable { ground, keeper, workers, foreign, yielding: None, looked: None }
    }
}

impl Slot {
    /// The slot's keeper is dead: what it stood on becomes a former table, and another ground is made.
    pub(super) fn stand_on(&mut self, ground: u32, now: Instant) {
        let mut workers: Vec<Worker> = self.workers.drain(..).collect();
        // How long they have stood where they stand matters no longer.
        workers.iter_mut().for_each(|worker| worker.since = now);
        self.formers.push(FormerTable::inherit(self.ground, None, workers, false));
        self.graves.iter_mut().for_each(|grave| grave.told = None);
        self.orphans.clear();
        self.ground = ground;
    }

    /// Whether the ground of that number is its present one or one that still holds something of it.
    pub(super) fn stands_or_stood_on(&self, ground: u32) -> bool {
        self.ground == ground || self.formers.iter().any(|former| former.ground == ground)
    }

    /// The keepers of former tables that live.
    pub(super) fn former_keepers(&self) -> impl Iterator<Item = Pid> + '_ {
        self.formers.iter().filter_map(|former| former.keeper)
    }

    /// As [`Slot::all_workers`].
    pub(super) fn every_worker(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().chain(self.formers.iter().flat_map(|former| &former.workers))
    }

    /// Every worker of the slot, those of former tables too.
    pub(super) fn all_workers(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.workers.iter_mut().chain(self.formers.iter_mut().flat_map(|former| &mut former.workers))
    }

    /// A worker of a former table has said something.
    pub(super) fn heard_from_former(&mut self, message: &ToMaster, now: Instant) {
        let mut workers = self.formers.iter_mut().flat_map(|former| &mut former.workers);
        let Some(worker) = workers.find(|worker| worker.incarnation == message.from) else { return };
        match message.word {
            Word::Ready if worker.is_booting() => {
                worker.heir_of.clear();
                worker.enter(Stage::Serving, now);
            }
            Word::Buried(dead) => self.graves.retain(|grave| grave.dead != dead),
            _ => {}
        }
    }
}

impl Roster {
    /// A worker of a former table has ended, or nobody whom the roster knows.
    pub(super) fn former_ended(&mut self, pid: Pid, cause: Cause) {
        let mut found = None;
        for (id, slot) in &mut self.slots {
            for former in &mut slot.formers {
                if former.keeper == Some(pid) {
                    former.keeper = None;
                }
                if let Some(index) = former.workers.iter().position(|worker| worker.pid == Some(pid)) {
                    let worker = former.workers.remove(index);
                    found = Some((*id, worker, former.is_gone(), former.foreign));
                }
            }
        }
        let Some((id, worker, gone, foreign)) = found else { return };
        if foreign && cause.ending != Ending::Exited(0) {
            self.act(Action::Warn(format!(
                "worker {} (pid {pid}) of the program before died: {cause}; what it had is lost, its ledger is of another version",
                id.0
            )));
        }
        if worker.stage == Stage::Leaving {
            return;
        }
        if cause.ending != Ending::Exited(0) {
            if cause.own_fault {
                self.act(Action::Condemn(worker.post, Guilt::Fault));
            }
            let obituary = worker.obituary(cause.to_string(), cause.own_fault, self.now);
            self.out.extend(obituary.map(|obituary| Action::Report(worker.post, Box::new(obituary))));
        }
        let lanes = worker.lanes().map(|(dead, lane)| Grave { dead, post: Post { lane, ..worker.post }, told: None });
        // The table went with its last process, and all that was in it.
        let graves = lanes.filter(|_| !gone && !foreign).collect();
        self.left_alone(id, graves);
    }

    /// No process has a former table any more: workers that its keeper never told of were never cloned, or are dead.
    pub(super) fn deserted_former(&mut self, id: SlotId, ground: u32) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        for former in slot.formers.iter_mut().filter(|former| former.ground == ground) {
            former.workers.retain(|worker| worker.pid.is_some());
        }
        self.left_alone(id, Vec::new());
    }

    /// A former table has fewer workers.
    fn left_alone(&mut self, id: SlotId, graves: Vec<Grave>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.graves.extend(graves);
        // Whoever waits for the others of the new program is needed now. One that a reload brings has its own time.
        let waiting = slot.at_stage(Stage::Waiting).map(|worker| (worker.incarnation, worker.generation));
        let nobody = slot.serving().is_none() && slot.formers.iter().all(|former| former.workers.is_empty());
        match waiting.filter(|(_, generation)| nobody && !self.is_of_reload(*generation)) {
            Some((waiting, _)) => self.promote(id, waiting),
            None => self.bury_the_dead(id),
        }
    }

    /// Has the workers of former tables give as soon as somebody is there to take, and ends those that do not end.
    pub(super) fn empty_formers(&mut self, id: SlotId) {
        let (now, workers, stopping) = (self.now, self.config.workers.clone(), self.is_stopping());
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let somebody_serves = slot.serving().is_some();
        let (mut actions, mut given_up) = (Vec::new(), false);
        for former in &mut slot.formers {
            if former.yielding.is_none() && somebody_serves {
                former.yielding = Some(now);
                for worker in former.workers.iter_mut().filter(|worker| !is_ending(worker)) {
                    worker.enter(Stage::Retiring, now);
                    actions.push(worker.told(ToWorker::Yield));
                }
            }
            let overdue = former.yielding.is_some_and(|since| now - since > workers.drain_timeout + DRAIN_MARGIN);
            // What it still has is rescued, if its keeper lives.
            for worker in former.workers.iter_mut().filter(|worker| overdue && worker.since != now) {
                let Some(pid) = worker.pid else { continue };
                worker.since = now;
                actions.push(Action::Kill(pid, Signal::SIGKILL));
            }
            // One that its keeper never told of may never have been.
            let patient = |worker: &Worker| worker.stage != Stage::Leaving && now - worker.since < workers.boot_timeout;
            let before = former.workers.len();
            former.workers.retain(|worker| worker.pid.is_some() || patient(worker));
            given_up |= former.workers.len() < before;
        }
        let is_due = |former: &FormerTable| former.looked.is_none_or(|looked| now - looked >= LOOK_EVERY);
        let unborn = |former: &FormerTable| former.workers.iter().any(|worker| worker.pid.is_none());
        for former in slot.formers.iter_mut().filter(|former| unborn(former) && is_due(former)) {
            former.looked = Some(now);
            actions.push(Action::LookForAnybody(id, former.ground));
        }
        let graves = &slot.graves;
        let is_buried = |former: &FormerTable| !graves.iter().any(|grave| grave.post.ground == former.ground);
        // What it stood on last is the slot's for as long as there is no other ground.
        let is_stood_on = slot.place == Place::Opening && !stopping;
        let is_left = |former: &FormerTable| !is_stood_on && former.workers.is_empty() && !former.is_gone();
        let left = slot.formers.iter_mut().filter(|former| is_left(former));
        for former in left.filter(|former| is_buried(former) && is_due(former)) {
            former.looked = Some(now);
            actions.push(Action::LookInto(id, former.ground));
        }
        let limit = workers.drain_timeout + FETCH_PATIENCE;
        let is_over = |former: &mut FormerTable| {
            let overdue = former.yielding.is_some_and(|since| now - since > limit);
            !is_stood_on && (former.is_gone() || overdue && former.workers.is_empty())
        };
        for former in slot.formers.extract_if(.., is_over) {
            slot.graves.retain(|grave| grave.post.ground != former.ground);
            actions.push(Action::Dismiss(id, former.ground));
        }
        self.out.append(&mut actions);
        if given_up {
            self.left_alone(id, Vec::new());
        }
    }

    /// No connection is left in a former table whose workers have gone.
    pub(super) fn emptied_former(&mut self, id: SlotId, ground: u32) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let is_over = |former: &mut FormerTable| former.ground == ground && former.workers.is_empty();
        if slot.formers.extract_if(.., is_over).next().is_some() {
            slot.graves.retain(|grave| grave.post.ground != ground);
            self.act(Action::Dismiss(id, ground));
        }
    }

    /// The slot or the service ends: workers of former tables end what they have.
    pub(super) fn drain_formers(&mut self, id: SlotId) {
        let now = self.now;
        let stopping = self.is_stopping();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        // Without one of the present table nobody else takes what is queued.
        let alone = !slot.workers.iter().any(|worker| matches!(worker.stage, Stage::Serving | Stage::Draining));
        let closing = if alone && stopping { Closing::Service } else { Closing::Worker };
        for former in &mut slot.formers {
            former.yielding.get_or_insert(now);
            for worker in former.workers.iter_mut().filter(|worker| !is_ending(worker)) {
                worker.enter(Stage::Draining, now);
                actions.push(worker.told(ToWorker::Drain(closing)));
            }
        }
        self.out.append(&mut actions);
    }
}

fn is_ending(worker: &Worker) -> bool {
    matches!(worker.stage, Stage::Draining | Stage::Leaving)
}
