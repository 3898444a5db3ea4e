//! Workers come: at once after a death, or beside the one they are to succeed.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::ipc::{Closing, Generation, Incarnation, SlotId, ToWorker};

use super::event::Action;
use super::roster::Roster;
use super::slot::{Grave, Place, Post, Stage};
use crate::verdict::{Cause, Ending};

/// How long a predecessor may keep the lane that a further successor needs.
pub(super) const LANE_PATIENCE: Duration = Duration::from_secs(2);

impl Roster {
    pub(super) fn clone_if_due(&mut self, id: SlotId) {
        let (generation, blueprint, now) = (self.generation, self.blueprint, self.now);
        let stopping = self.is_draining();
        // What it would boot from is not written yet: it is in a moment.
        if self.is_seating() {
            return;
        }
        let at_once = !self.is_taking_over();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.keeper.is_none() && (stopping || slot.place == Place::Closing) {
            // Nobody is left who could clone, and nobody will be.
            slot.clone_at = None;
        }
        if slot.keeper.is_none() || slot.clone_at.is_none_or(|at| at > now) {
            return;
        }
        if slot.serves_or_will() {
            slot.clone_at = None;
            return;
        }
        let Some(birth) = slot.conceive(generation, blueprint, at_once) else { return };
        slot.clone_at = None;
        slot.bear(&birth, id, now);
        self.act(Action::Clone(id, Box::new(birth)));
    }

    pub(super) fn born(&mut self, id: SlotId, incarnation: Incarnation, outcome: Result<Pid, String>) {
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
                let cause = Cause { ending: Ending::Exited(1), own_fault: false, out_of_memory: None };
                self.worker_ended(id, incarnation, cause);
            }
        }
    }

    pub(super) fn ready(&mut self, id: SlotId, incarnation: Incarnation) {
        let now = self.now;
        let generation_of_reload = self.reload.as_ref().map(|reload| reload.generation);
        let (unready, stopping) = (self.is_unready(), self.is_draining());
        let taking_over = self.is_taking_over();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let closing = slot.place == Place::Closing;
        let Some(worker) = slot.worker(incarnation) else { return };
        // Asked at once: what it is like when it is fresh is what it is compared with later.
        worker.ping.next = Some(now);
        let (lane, generation) = (worker.post.lane, worker.generation);
        worker.heir_of.clear();
        match worker.stage {
            Stage::Booting { serve_at_once: true } => {
                worker.enter(Stage::Serving, now);
                slot.deaths_at_boot = 0;
                self.bury_the_dead(id);
                if unready {
                    self.tell_unready();
                }
                if stopping || closing {
                    let what = if stopping { Closing::Service } else { Closing::Slot };
                    self.drain_workers(id, what);
                }
            }
            Stage::Booting { serve_at_once: false } => {
                worker.enter(Stage::Waiting, now);
                slot.deaths_at_boot = 0;
                if generation_of_reload != Some(generation) && !taking_over {
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
                // How it does is asked at once.
                worker.ping.next = Some(now);
                actions.push(worker.told(ToWorker::Serve));
            }
        }
        for worker in slot.workers.iter_mut().filter(|worker| worker.incarnation != incarnation) {
            if worker.stage == Stage::Serving {
                worker.enter(Stage::Retiring, now);
                actions.push(worker.told(ToWorker::Retire));
            }
        }
        self.out.append(&mut actions);
        if self.is_unready() {
            self.tell_unready();
        }
        self.bury_the_dead(id);
    }

    /// Has the worker that serves take over from those who died beside it.
    pub(super) fn bury_the_dead(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(survivor) =
            slot.workers.iter().find(|worker| matches!(worker.stage, Stage::Serving | Stage::Draining))
        else {
            return;
        };
        let (mut actions, ground) = (Vec::new(), slot.ground);
        // Nobody is to be cloned any more who would settle them.
        let orphans = std::mem::take(&mut slot.orphans).into_iter();
        slot.graves.extend(orphans.map(|(dead, lane)| {
            let post = Post { slot: id, ground, lane };
            Grave { dead, post, told: None }
        }));
        for grave in slot.graves.iter_mut().filter(|grave| grave.told.is_none()) {
            grave.told = Some(survivor.incarnation);
            let Post { ground, lane, .. } = grave.post;
            let former = (ground != survivor.post.ground).then_some(ground);
            actions.push(survivor.told(ToWorker::Bury { dead: grave.dead, lane, former }));
        }
        self.out.append(&mut actions);
    }

    pub(super) fn buried(&mut self, id: SlotId, dead: Incarnation) {
        if let Some(slot) = self.slots.get_mut(&id) {
            // One lane of it: there may be more.
            let buried = slot.graves.iter().position(|grave| grave.dead == dead && grave.told.is_some());
            if let Some(at) = buried {
                slot.graves.remove(at);
            }
        }
    }

    /// Clones a successor beside the worker that serves.
    pub(super) fn clone_successor(&mut self, id: SlotId, generation: Generation, blueprint: usize) -> bool {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        let Some(birth) = slot.conceive(generation, blueprint, false) else { return false };
        slot.bear(&birth, id, now);
        self.act(Action::Clone(id, Box::new(birth)));
        true
    }
}
