//! Reload as a transaction: successors of the new generation boot beside those who serve; when all are ready they take over,
//! and until then anything that goes wrong leaves everything as it was.

use std::time::Instant;

use nix::sys::signal::Signal;
use phalanx_shared::config::{Config, Count};
use phalanx_shared::ipc::{Generation, ToWorker};

use super::event::Action;
use super::handover::LANE_PATIENCE;
use super::roster::Roster;
use super::slot::{Place, Slot, Stage, Worker};
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::upgrade::state::Fixed;

/// A reload under way.
pub(crate) struct Reload {
    pub(super) generation: Generation,
    blueprint: usize,
    config: Box<Config>,
    client: Option<ClientId>,
    since: Instant,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// What it brings to listen on is being bound.
    Seating,
    /// Its workers boot.
    Booting,
    /// They are ready; what it brings is to listen.
    Listening,
}

impl Roster {
    pub(super) fn reload(&mut self, client: Option<ClientId>, read: Result<Box<Config>, String>) {
        if self.is_stopping() {
            return self.reply(client, Answer::refused("the service is stopping"));
        }
        if self.reload.is_some() || self.is_scaling() || self.is_losing_listeners() {
            // The file is read again when the one under way is through, once for all signals that came meanwhile.
            let again = self.reload_again.get_or_insert_default();
            if client.is_some() || !again.contains(&None) {
                again.push(client);
            }
            return;
        }
        let config = match read.and_then(|config| self.check_reloadable(&config).map(|()| config)) {
            Ok(config) => config,
            Err(why) => {
                self.act(Action::Warn(format!("reload refused, nothing changes: {why}")));
                return self.reply(client, Answer::misconfigured(why));
            }
        };
        self.last_generation.0 += 1;
        let (generation, blueprint) = (self.last_generation, 1 - self.blueprint);
        self.act(Action::Seat(config.clone()));
        let (since, phase) = (self.now, Phase::Seating);
        self.reload = Some(Reload { generation, blueprint, config, client, since, phase });
    }

    pub(super) fn seated(&mut self, outcome: Result<Box<Config>, String>) {
        let Some(reload) = self.reload.as_mut().filter(|reload| reload.phase == Phase::Seating) else {
            return self.act(Action::Unseat);
        };
        match outcome {
            Ok(config) => {
                reload.phase = Phase::Booting;
                reload.config = config;
                let (blueprint, config) = (reload.blueprint, reload.config.clone());
                self.act(Action::Publish(blueprint, config));
            }
            Err(why) => {
                let client = reload.client;
                self.reload = None;
                self.act(Action::Warn(format!("reload refused, nothing changes: {why}")));
                self.reply(client, Answer::refused(format!("reload refused, nothing changes: {why}")));
            }
        }
    }

    pub(super) fn listening(&mut self, outcome: Result<(), String>) {
        match outcome {
            // One may have died at this very moment.
            Ok(()) if self.every_successor_waits() => self.commit(),
            Ok(()) => self.roll_back("a worker of the new generation died"),
            Err(why) => self.roll_back(&why),
        }
    }

    fn every_successor_waits(&self) -> bool {
        let Some(reload) = &self.reload else { return false };
        let is_successor = |worker: &Worker| worker.generation == reload.generation && worker.stage == Stage::Waiting;
        let is_ready = |slot: &Slot| slot.place == Place::Open && slot.workers.iter().any(is_successor);
        self.slots.values().all(is_ready)
    }

    /// What a running service cannot change.
    fn check_reloadable(&self, new: &Config) -> Result<(), String> {
        let old = &self.config;
        let more = [
            ("log.access", old.log.access != new.log.access),
            ("log.error", old.log.error != new.log.error),
            ("limits.connections (upwards)", old.limits.connections < new.limits.connections),
        ];
        Fixed::of(old).refuse(&Fixed::of(new), &more)
    }

    pub(super) fn go_on_reloading(&mut self) {
        let Some(reload) = &self.reload else { return self.reload_again_if_wanted() };
        let (generation, blueprint, since) = (reload.generation, reload.blueprint, reload.since);
        if reload.phase != Phase::Booting {
            return;
        }
        let mut all_ready = true;
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            let Some(slot) = self.slots.get(&id) else { continue };
            if slot.place != Place::Open {
                continue;
            }
            let successor = slot.workers.iter().find(|worker| worker.generation == generation);
            match successor.map(|worker| worker.stage) {
                Some(Stage::Waiting) => {}
                Some(_) => all_ready = false,
                None => {
                    all_ready = false;
                    let retiring = slot.workers.iter().filter(|worker| worker.stage == Stage::Retiring);
                    let retiring = retiring.min_by_key(|worker| worker.incarnation).and_then(|worker| worker.pid);
                    // A slot that cannot boot the old configuration may be what the new one is to mend.
                    let ripe = slot.serving().is_some() || slot.workers.is_empty();
                    if ripe && slot.keeper.is_some() && self.clone_successor(id, generation, blueprint) {
                        continue;
                    }
                    // No lane is free: what retires has had its time, and its connections will be rescued.
                    if let Some(pid) = retiring.filter(|_| self.now - since > LANE_PATIENCE) {
                        self.act(Action::Kill(pid, Signal::SIGKILL));
                    }
                }
            }
        }
        let steady = |slot: &Slot| !slot.workers.iter().any(Worker::is_booting);
        if all_ready && self.slots.values().all(|slot| slot.place == Place::Open && steady(slot)) {
            if let Some(reload) = &mut self.reload {
                reload.phase = Phase::Listening;
            }
            self.act(Action::Listen);
        } else if self.now - since > self.config.workers.boot_timeout * 2 {
            self.roll_back("not every worker of the new generation became ready in twice boot_timeout");
        }
    }

    fn commit(&mut self) {
        let Some(reload) = self.reload.take() else { return };
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            let successor = self.slots.get(&id).and_then(|slot| {
                slot.workers
                    .iter()
                    .find(|worker| worker.generation == reload.generation)
                    .map(|worker| worker.incarnation)
            });
            if let Some(incarnation) = successor {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.clone_at = None;
                }
                self.promote(id, incarnation);
            }
        }
        self.end_old_generations();
        self.generation = reload.generation;
        self.blueprint = reload.blueprint;
        // What "auto" comes to may have changed with the machine; what an operator has scaled to stays otherwise.
        let before = self.automatic.unwrap_or_else(|| count_of(&self.config));
        let count_changed = before != count_of(&reload.config);
        self.config = *reload.config.clone();
        self.adopted = self.now;
        self.act(Action::Adopt(reload.config));
        // A fresh group of sockets knows nothing of who is to be spared.
        if self.steered.is_some() {
            self.act(Action::Steer(self.steered.clone()));
        }
        let text = format!("generation {} serves", self.generation.0);
        self.act(Action::Say(format!("reloaded: {text}")));
        self.reply(reload.client, Answer::done(text));
        let count = count_of(&self.config);
        self.automatic = Some(count);
        if count_changed {
            self.scale(None, count);
        }
    }

    /// Ends predecessors past `max_old_generations`, the oldest first. Their connections are rescued.
    fn end_old_generations(&mut self) {
        let most = self.config.workers.max_old_generations as usize;
        let mut actions = Vec::new();
        for slot in self.slots.values_mut() {
            let old = |worker: &&mut Worker| worker.stage == Stage::Retiring;
            let mut old: Vec<&mut Worker> = slot.workers.iter_mut().filter(old).collect();
            old.sort_by_key(|worker| worker.incarnation);
            let surplus = old.len().saturating_sub(most);
            actions
                .extend(old.iter().take(surplus).filter_map(|it| it.pid).map(|pid| Action::Kill(pid, Signal::SIGKILL)));
        }
        self.out.append(&mut actions);
    }

    /// Nothing has changed for anybody: the successors leave.
    pub(super) fn roll_back(&mut self, why: &str) {
        let Some(reload) = self.reload.take() else { return };
        let now = self.now;
        let mut actions = Vec::new();
        for slot in self.slots.values_mut() {
            for worker in slot.workers.iter_mut().filter(|worker| worker.generation == reload.generation) {
                match (worker.stage, worker.pid) {
                    (Stage::Waiting, _) => actions.push(worker.told(ToWorker::Leave)),
                    (_, Some(pid)) => actions.push(Action::Kill(pid, Signal::SIGKILL)),
                    (_, None) => {}
                }
                worker.enter(Stage::Leaving, now);
            }
        }
        self.out.append(&mut actions);
        self.act(Action::Unseat);
        self.act(Action::Warn(format!("reload rolled back: {why}")));
        self.reply(reload.client, Answer::refused(format!("rolled back, the old generation serves on: {why}")));
    }

    fn reload_again_if_wanted(&mut self) {
        if self.is_stopping() || self.is_scaling() || self.is_losing_listeners() {
            return;
        }
        for client in self.reload_again.take().unwrap_or_default() {
            self.act(Action::ReadConfig(client));
        }
    }
}

/// How many slots a configuration asks for.
pub(crate) fn count_of(config: &Config) -> u32 {
    match config.workers.count {
        Count::Fixed(count) => count.into(),
        Count::Auto => std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
    }
}
