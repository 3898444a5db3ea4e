//! The number of slots: slots open and close until there are as many as wanted.

use nix::unistd::Pid;
use phalanx_shared::ipc::{Closing, SlotId};

use super::backoff;
use super::event::Action;
use super::roster::Roster;
use super::slot::{Place, Slot};
use crate::control::Answer;
use crate::control::server::ClientId;

/// Deaths at boot in a row after which nobody waits for a slot any longer; it goes on trying.
const ENOUGH_DEATHS: u32 = 3;

/// A change of the number of slots under way.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    clients: Vec<ClientId>,
    pub(super) active: bool,
}

impl Roster {
    pub(super) fn open_and_close_slots(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let open = self.slots.values().filter(|slot| slot.place != Place::Closing).count() as u32;
        // Numbers are used again only when the slot that had them is gone: the order of listeners in the kernel is theirs.
        let closing = self.slots.len() as u32 - open;
        // Nor while listeners come or go: it would have none of those.
        let settled = self.reload.is_none() && !self.is_losing_listeners();
        if open < self.target && closing == 0 && settled {
            for number in open..self.target {
                self.last_ground += 1;
                self.slots.insert(SlotId(number), Slot::new(self.last_ground));
                self.act(Action::Open(SlotId(number)));
            }
        }
        let surplus: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(id, slot)| id.0 >= self.target && slot.place == Place::Open)
            .map(|(id, _)| *id)
            .collect();
        for id in &surplus {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.place = Place::Closing;
            }
        }
        // No new connection comes before they drain.
        self.steer();
        for id in surplus {
            self.close_slot(id);
        }
    }

    fn close_slot(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if slot.workers.is_empty() {
            slot.clone_at = None;
        }
        self.drain_workers(id, Closing::Slot);
    }

    pub(super) fn opened(&mut self, id: SlotId, outcome: Result<Pid, String>) {
        let (now, taking_over) = (self.now, self.is_taking_over());
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match outcome {
            Ok(keeper) => {
                slot.keeper = Some(keeper);
                if slot.place == Place::Opening {
                    slot.place = Place::Open;
                }
                slot.clone_at = Some(now);
            }
            Err(why) if taking_over => {
                slot.open_at = Some(now + backoff::jittered(1));
                self.go_back(&why);
            }
            Err(why) if !self.started => self.stop(true, None, Some(why)),
            Err(why) if slot.restarts == 0 => {
                // A slot that never was: the others are what there is.
                self.slots.remove(&id);
                self.target = self.target.min(id.0).max(1);
                self.fail_scaling(&format!("slot {}: {why}", id.0));
            }
            Err(why) => {
                slot.deaths_at_boot += 1;
                slot.open_at = Some(now + backoff::jittered(slot.deaths_at_boot));
                self.act(Action::Warn(format!("slot {} has no keeper yet: {why}", id.0)));
            }
        }
    }

    /// A slot that could not get a new keeper tries again.
    pub(super) fn reopen_if_due(&mut self) {
        let now = self.now;
        let due: Vec<SlotId> = self
            .slots
            .iter_mut()
            .filter(|(_, slot)| slot.open_at.is_some_and(|at| at <= now))
            .map(|(id, slot)| {
                slot.open_at = None;
                *id
            })
            .collect();
        due.into_iter().for_each(|id| self.act(Action::Open(id)));
    }

    /// A slot whose last worker has gone while it was closing is closed.
    pub(crate) fn emptied(&mut self) -> Vec<SlotId> {
        let gone: Vec<SlotId> = self.slots.iter().filter(|(_, slot)| slot.is_empty()).map(|(id, _)| *id).collect();
        if self.stopping.is_none() {
            gone.iter().for_each(|id| drop(self.slots.remove(id)));
            gone
        } else {
            Vec::new()
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

    pub(super) fn fail_scaling(&mut self, why: &str) {
        self.scaling.active = false;
        self.act(Action::Warn(format!("scale: {why}")));
        for client in std::mem::take(&mut self.scaling.clients) {
            self.reply(Some(client), Answer::refused(why));
        }
    }

    pub(super) fn finish_scaling(&mut self) {
        let failing = self.slots.iter().find(|(_, slot)| slot.deaths_at_boot >= ENOUGH_DEATHS);
        if let (true, Some((id, slot))) = (self.scaling.active, failing) {
            let cause = slot.cause_of_last_death.as_deref().unwrap_or("its worker dies at boot");
            return self.fail_scaling(&format!("slot {} does not become ready: {cause}", id.0));
        }
        let there = self.slots.len() as u32 == self.target;
        if !self.scaling.active || !there || !self.slots.values().all(|slot| slot.serving().is_some()) {
            return;
        }
        self.scaling.active = false;
        self.act(Action::Say(format!("{} slots serve", self.target)));
        let text = match self.target {
            1 => "1 worker serves".to_owned(),
            count => format!("{count} workers serve"),
        };
        for client in std::mem::take(&mut self.scaling.clients) {
            self.reply(Some(client), Answer::done(text.clone()));
        }
    }
}
