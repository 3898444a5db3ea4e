//! Workers and keepers end: who was to blame, and what follows.

use nix::unistd::Pid;
use phalanx_shared::ipc::{Incarnation, SlotId};
use phalanx_shared::ledger::record::Guilt;

use super::backoff;
use super::crash_loop::SETTLED;
use super::event::Action;
use super::recycling::ENOUGH_DEATHS;
use super::roster::Roster;
use super::slot::{Grave, Place, Stage, Worker};
use crate::verdict::{Cause, Ending};

impl Roster {
    pub(super) fn ended(&mut self, pid: Pid, cause: Cause) {
        let found = self.slots.iter().find_map(|(id, slot)| {
            let worker = slot.workers.iter().find(|worker| worker.pid == Some(pid))?;
            Some((*id, worker.incarnation))
        });
        if let Some((id, incarnation)) = found {
            return self.worker_ended(id, incarnation, cause);
        }
        let keeper = self.slots.iter().find(|(_, slot)| slot.keeper == Some(pid)).map(|(id, _)| *id);
        if let Some(id) = keeper {
            return self.keeper_ended(id, cause);
        }
        self.former_ended(pid, cause);
    }

    pub(super) fn worker_ended(&mut self, id: SlotId, incarnation: Incarnation, cause: Cause) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(index) = slot.workers.iter().position(|worker| worker.incarnation == incarnation) else { return };
        let worker = slot.workers.remove(index);
        for grave in slot.graves.iter_mut().filter(|grave| grave.told == Some(incarnation)) {
            grave.told = None;
        }
        let expected = match worker.stage {
            Stage::Leaving => true,
            Stage::Retiring | Stage::Draining => cause.ending == Ending::Exited(0),
            _ => false,
        };
        if expected {
            // One that left before it served may have rescued connections while it booted; one that retired leaves what its
            // threads still used, and what a thread that was given up did not let go of.
            if matches!(worker.stage, Stage::Leaving | Stage::Retiring) {
                slot.mourn(&worker);
            }
            return self.bury_the_dead(id);
        }
        let sentence = worker.sentence.as_ref().map(|(text, _)| text.clone());
        let text = worker.complaint.clone().or(sentence).unwrap_or_else(|| cause.to_string());
        slot.cause_of_last_death = Some(text.clone());
        let guilt = match (&worker.sentence, worker.hung, cause.own_fault) {
            (Some((_, guilt)), ..) => *guilt,
            (None, Some(_), _) => Some(Guilt::Hang),
            (None, None, own_fault) => own_fault.then_some(Guilt::Fault),
        };
        if let Some(guilt) = guilt {
            self.act(Action::Condemn(worker.post, guilt));
        }
        let obituary = worker.obituary(text.clone(), guilt.is_some(), self.now);
        self.out.extend(obituary.map(|obituary| Action::Report(worker.post, Box::new(obituary))));
        if guilt.is_some() && self.is_on_probation() && !worker.is_booting() {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.graves.push(Grave { dead: incarnation, post: worker.post, told: None });
            }
            return self.go_back(&format!("worker {} died: {text}", id.0));
        }
        if self.is_of_reload(worker.generation)
            && worker.stage == Stage::Serving
            && self.generation != worker.generation
        {
            self.roll_back(&format!("the canary, worker {}, died: {text}", id.0));
        } else if self.is_on_trial(worker.generation) && worker.died_of_itself(guilt.is_some()) {
            self.fail_trial(&format!("worker {} died: {text}", id.0));
        }
        match worker.stage {
            Stage::Booting { .. } | Stage::Waiting => self.died_at_boot(id, &worker, &text, guilt.is_some()),
            _ => self.died_serving(id, &worker, worker.died_of_itself(guilt.is_some())),
        }
    }

    fn died_at_boot(&mut self, id: SlotId, worker: &Worker, why: &str, own_doing: bool) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let deaths = slot.deaths_at_boot;
        slot.mourn(worker);
        self.bury_the_dead(id);
        // One that somebody killed says nothing of the new program, unless that goes on.
        if self.is_taking_over() && (own_doing || worker.complaint.is_some() || deaths >= ENOUGH_DEATHS) {
            self.go_back(&format!("worker {} did not become ready: {why}", id.0));
        }
        if !self.started && self.stopping.is_none() {
            return self.stop(true, None, Some(format!("worker {} did not become ready: {why}", id.0)));
        }
        // On the way back one may succeed a dead one at once: that is tried again.
        let is_rescuer = worker.stage == Stage::Booting { serve_at_once: true };
        if self.is_of_reload(worker.generation) && !is_rescuer {
            return self.roll_back(&format!("worker {} of the new generation died: {why}", id.0));
        }
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.place == Place::Closing {
            slot.clone_at = None;
            return;
        }
        slot.deaths_at_boot += 1;
        slot.count_death(true);
        let pause = backoff::jittered(slot.deaths_at_boot);
        slot.clone_at = Some(now + pause);
        let serving = slot.serving().is_some();
        if serving {
            // A successor that was not needed: its predecessor serves on and asks again.
            return;
        }
        self.act(Action::Warn(format!("slot {}: next attempt in {pause:?}", id.0)));
    }

    fn died_serving(&mut self, id: SlotId, dead: &Worker, of_itself: bool) {
        let now = self.now;
        let of_reload = self.reload.as_ref().map(|reload| reload.generation);
        let fast_stop = self.stopping.as_ref().is_some_and(|stopping| stopping.fast);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.restarts += 1;
        let pause = slot.count_death(of_itself && now - dead.since < SETTLED);
        if fast_stop {
            return;
        }
        let is_successor = |worker: &&Worker| {
            matches!(worker.stage, Stage::Waiting | Stage::Booting { serve_at_once: false })
                && of_reload != Some(worker.generation)
        };
        let successor = slot.workers.iter().find(is_successor).map(|worker| (worker.incarnation, worker.stage));
        if !slot.serves_or_will() && successor.is_none() {
            slot.orphan(dead);
            slot.clone_at = Some(now + pause);
            if !pause.is_zero() {
                self.act(Action::Warn(format!("slot {}: its workers die at once; next attempt in {pause:?}", id.0)));
            }
            return;
        }
        slot.graves.push(Grave { dead: dead.incarnation, post: dead.post, told: None });
        match successor {
            Some((successor, Stage::Waiting)) if !slot.serves_or_will() => self.promote(id, successor),
            _ => self.bury_the_dead(id),
        }
    }

    fn keeper_ended(&mut self, id: SlotId, cause: Cause) {
        let stopping = self.is_draining();
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.keeper = None;
        if stopping || slot.place == Place::Closing {
            // Who lives ends what it has; who is not born will not be.
            slot.clone_at = None;
            slot.workers.retain(|worker| worker.pid.is_some());
            return;
        }
        self.last_ground += 1;
        slot.stand_on(self.last_ground, self.now);
        slot.place = Place::Opening;
        slot.clone_at = None;
        slot.restarts += 1;
        slot.cause_of_last_death = Some(format!("its keeper died: {cause}"));
        self.act(Action::Warn(format!("keeper {} died ({cause}): the slot gets a new one", id.0)));
        self.act(Action::Open(id));
        // On the way back there is nothing better than to go on.
        if self.reload.is_some() && !self.is_on_the_way_back() {
            self.roll_back(&format!("keeper {} died", id.0));
        }
    }
}
