//! The end of the service: everything drains, or is ended at once.

use std::time::Instant;

use nix::sys::signal::Signal;
use phalanx_shared::ipc::{Closing, SlotId, ToWorker};

use super::event::Action;
use super::roster::{DRAIN_MARGIN, Roster};
use super::slot::{Slot, Stage};
use crate::control::Answer;
use crate::control::server::ClientId;

/// The service is on its way out.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) fast: bool,
    /// Until when it serves on and tells load balancers to go elsewhere.
    unready_until: Option<Instant>,
    deadline: Instant,
    clients: Vec<ClientId>,
    /// Why, if it is a failure.
    failure: Option<String>,
}

impl Roster {
    pub(super) fn stop(&mut self, fast: bool, client: Option<ClientId>, failure: Option<String>) {
        let delay = self.config.workers.unready_delay;
        let unready_until = (!delay.is_zero() && self.started).then(|| self.now + delay);
        let deadline = self.now + delay + self.config.workers.drain_timeout + 2 * DRAIN_MARGIN;
        if self.reload.is_some() {
            self.roll_back("the service stops");
        }
        self.end_trial("the service stops");
        for client in self.reload_again.take().unwrap_or_default() {
            self.reply(client, Answer::refused("the service stops"));
        }
        if self.is_scaling() {
            self.fail_scaling("the service stops");
        }
        self.end_upgrade();
        let before = self.stopping.is_some();
        let stopping = self.stopping.get_or_insert(Stopping {
            fast: false,
            unready_until,
            deadline,
            clients: Vec::new(),
            failure: None,
        });
        stopping.clients.extend(client);
        stopping.failure = stopping.failure.take().or(failure);
        stopping.fast |= fast || before && client.is_none();
        if stopping.fast {
            self.kill_all();
        } else if self.is_unready() {
            self.tell_unready();
        } else {
            for id in self.slots.keys().copied().collect::<Vec<_>>() {
                self.drain_workers(id, Closing::Service);
            }
        }
    }

    /// The service stops, and serves on for a while.
    pub(super) fn is_unready(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| !stopping.fast && stopping.unready_until.is_some())
    }

    /// The service stops, and ends what it has.
    pub(super) fn is_draining(&self) -> bool {
        self.is_stopping() && !self.is_unready()
    }

    /// Has load balancers told to go elsewhere.
    pub(super) fn tell_unready(&mut self) {
        let workers = self.slots.values().flat_map(Slot::every_worker);
        let serve = workers.filter(|worker| matches!(worker.stage, Stage::Serving | Stage::Retiring));
        let mut actions: Vec<Action> = serve.map(|worker| worker.told(ToWorker::Unready)).collect();
        self.out.append(&mut actions);
    }

    /// Enough was said: what is announced begins.
    pub(super) fn begin_to_drain_when_due(&mut self) {
        let now = self.now;
        let Some(stopping) = &mut self.stopping else { return };
        if !stopping.fast && stopping.unready_until.take_if(|until| *until <= now).is_some() {
            for id in self.slots.keys().copied().collect::<Vec<_>>() {
                self.drain_workers(id, Closing::Service);
            }
        }
    }

    pub(super) fn drain_workers(&mut self, id: SlotId, closing: Closing) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            match worker.stage {
                Stage::Serving => {
                    worker.enter(Stage::Draining, now);
                    actions.push(worker.told(ToWorker::Drain(closing)));
                }
                Stage::Retiring => {
                    // Its successor goes too: what it still has ends here.
                    worker.enter(Stage::Draining, now);
                    actions.push(worker.told(ToWorker::Drain(Closing::Worker)));
                }
                Stage::Waiting => {
                    worker.enter(Stage::Leaving, now);
                    actions.push(worker.told(ToWorker::Leave));
                }
                Stage::Booting { serve_at_once: false } => {
                    // One that is not born yet is ended when it is.
                    worker.enter(Stage::Leaving, now);
                    actions.extend(worker.pid.map(|pid| Action::Kill(pid, Signal::SIGKILL)));
                }
                _ => {}
            }
        }
        self.out.append(&mut actions);
        self.drain_formers(id);
    }

    fn kill_all(&mut self) {
        let now = self.now;
        let mut actions = Vec::new();
        for slot in self.slots.values_mut() {
            slot.clone_at = None;
            for worker in slot.all_workers() {
                worker.enter(Stage::Leaving, now);
                actions.extend(worker.pid.map(|pid| Action::Kill(pid, Signal::SIGKILL)));
            }
        }
        self.out.append(&mut actions);
    }

    pub(super) fn finish_stopping(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if !stopping.fast && self.now > stopping.deadline {
            stopping.fast = true;
            self.kill_all();
        }
        let Some(stopping) = &mut self.stopping else { return };
        // Of a worker whose keeper never told its number there is nothing to wait for: it goes when the master has gone.
        let over = |slot: &Slot| match stopping.fast {
            true => slot.every_worker().all(|worker| worker.pid.is_none()),
            false => slot.workers.is_empty() && slot.formers.is_empty() && slot.clone_at.is_none(),
        };
        let empty = self.slots.values().all(over);
        if !empty {
            return;
        }
        let clients = std::mem::take(&mut stopping.clients);
        let outcome = stopping.failure.take().map_or(Ok(()), Err);
        // Who has the answer finds nothing left.
        self.act(Action::Leave(outcome));
        for client in clients {
            self.reply(Some(client), Answer::done("stopped"));
        }
    }
}
