//! Workers that do not answer: looked at, written down, relieved of what is queued for them, and ended if it is their own doing.

use std::time::Duration;

use nix::sys::signal::Signal;
use phalanx_shared::ipc::{Incarnation, SlotId, ToWorker};
use phalanx_shared::ledger::record::Guilt;
use phalanx_shared::stall::{Class, Stall};
use phalanx_shared::sys::rest::Scheduling;

use super::event::Action;
use super::roster::Roster;
use super::slot::{Place, Slot, Stage};

/// How long an answer may take before anybody looks.
const USUAL: Duration = Duration::from_millis(100);

impl Roster {
    /// How often a silent worker is looked at.
    pub(super) fn look_every(&self) -> Duration {
        (self.config.workers.hang_timeout / 20).clamp(Duration::from_millis(50), Duration::from_millis(200))
    }

    pub(super) fn watch_silence(&mut self, id: SlotId) {
        let (now, every) = (self.now, self.look_every());
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in slot.workers.iter_mut().filter(|worker| worker.hung.is_none()) {
            let silent = worker.ping.outstanding.is_some_and(|since| now - since >= USUAL);
            let (true, Some(pid)) = (silent, worker.pid) else { continue };
            // Noted before: who cannot be looked at is not asked for again and again.
            let stall = worker.stall.get_or_insert_with(Stall::new);
            if stall.is_due(now, every) {
                actions.push(Action::Examine(id, worker.incarnation, pid));
            }
        }
        self.out.append(&mut actions);
    }

    pub(super) fn examined(&mut self, id: SlotId, incarnation: Incarnation, scheduling: Option<Scheduling>) {
        let (now, limit, every) = (self.now, self.config.workers.hang_timeout, self.look_every());
        let Some(worker) = self.slots.get_mut(&id).and_then(|slot| slot.worker(incarnation)) else { return };
        let (Some(since), Some(pid), Some(scheduling)) = (worker.ping.outstanding, worker.pid, scheduling) else {
            return;
        };
        let bytes = scheduling.private_bytes;
        let Some(stall) = &mut worker.stall else { return };
        stall.look(now, every, scheduling);
        let (silent, class) = (now - since, stall.class());
        let who = format!("worker {} (pid {pid})", id.0);
        if stall.own() >= limit {
            worker.hung = Some(now);
            worker.sentence = Some((format!("killed because it hung, {class}"), Some(Guilt::Hang)));
            self.act(Action::Warn(format!("{who} has hung for {silent:.1?}, {class}: ending it")));
            return self.act(Action::Kill(pid, Signal::SIGABRT));
        }
        if silent >= limit / 2 && !stall.suspected {
            stall.suspected = true;
            let text = format!("{who} has not answered for {silent:.1?}, {class}: others do its accepting");
            self.act(Action::Warn(text));
            self.act(Action::DescribeSuspect(id, incarnation));
            if class.has_own_stack() {
                self.act(Action::ShowStack(id, pid, pid));
            }
        } else if silent >= limit && matches!(class, Class::Stopped | Class::Starved) && !stall.spared {
            stall.spared = true;
            self.act(Action::Warn(format!(
                "{who} has not answered for {silent:.1?}, {class}: it is not hung, and lives on"
            )));
        }
        self.check_hard_limit(id, incarnation, bytes, Some(Guilt::Fault));
    }

    /// Sends new connections to those who take them.
    pub(super) fn steer(&mut self) {
        let takes = |slot: &Slot| slot.place != Place::Closing && !slot.needs_relief();
        let taking: Vec<u32> = self.slots.iter().filter(|(_, slot)| takes(slot)).map(|(id, _)| id.0).collect();
        let all = taking.len() == self.slots.len() || taking.is_empty();
        let wanted = (!all).then_some(taking);
        if self.steered != wanted {
            self.steered.clone_from(&wanted);
            self.act(Action::Steer(wanted));
        }
    }

    /// Has somebody accept what is queued for each slot whose worker does not answer, or that gets none.
    pub(super) fn assist(&mut self) {
        let ids: Vec<SlotId> = self.slots.keys().copied().collect();
        for id in ids {
            let Some(slot) = self.slots.get(&id) else { continue };
            let needs = slot.place == Place::Open && slot.needs_relief();
            match (slot.assistant, needs) {
                (None, false) => {}
                (Some((assistant, incarnation)), true) if self.can_assist(assistant, Some(incarnation)) => {}
                (Some(assistant), needs) => {
                    self.dismiss_assistant(id, assistant);
                    if needs {
                        self.find_assistant(id);
                    }
                }
                (None, true) => self.find_assistant(id),
            }
        }
    }

    /// Whether the slot's worker answers and serves, and is still that one.
    fn can_assist(&self, id: SlotId, incarnation: Option<Incarnation>) -> bool {
        let Some(slot) = self.slots.get(&id).filter(|slot| slot.place == Place::Open) else { return false };
        let worker = slot.serving().filter(|worker| !worker.is_suspected() && worker.hung.is_none());
        worker.is_some_and(|worker| incarnation.is_none_or(|incarnation| incarnation == worker.incarnation))
    }

    fn find_assistant(&mut self, id: SlotId) {
        let busy: Vec<SlotId> = self.slots.values().filter_map(|slot| slot.assistant).map(|(slot, _)| slot).collect();
        let free = |other: &SlotId| *other != id && !busy.contains(other) && self.can_assist(*other, None);
        let Some(assistant) = self.slots.keys().copied().find(free) else { return };
        let incarnation = self.slots.get(&assistant).and_then(Slot::serving).map(|worker| worker.incarnation);
        if let (Some(incarnation), Some(slot)) = (incarnation, self.slots.get_mut(&id)) {
            slot.assistant = Some((assistant, incarnation));
            self.act(Action::Lend(id, assistant, incarnation));
        }
    }

    fn dismiss_assistant(&mut self, id: SlotId, (assistant, incarnation): (SlotId, Incarnation)) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.assistant = None;
        }
        let worker = self.slots.get_mut(&assistant).and_then(|slot| slot.worker(incarnation));
        if let Some(told) =
            worker.filter(|it| it.stage == Stage::Serving).map(|it| it.told(ToWorker::Assist(Vec::new())))
        {
            self.act(told);
        }
    }
}
