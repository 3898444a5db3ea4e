//! Reload as a transaction: successors of the new generation boot beside those who serve; when all are ready they take over,
//! and until then anything that goes wrong leaves everything as it was.

use std::time::Instant;

use nix::sys::signal::Signal;
use phalanx_shared::config::{Config, Count, Poller, Workers, differences};
use phalanx_shared::ipc::{Generation, ToWorker};

use super::event::Action;
use super::handover::LANE_PATIENCE;
use super::recycling::Reason;
use super::roster::Roster;
use super::slot::{Place, Slot, Stage, Worker};
use super::trial::Trial;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::memory_group;
use crate::upgrade::state::Fixed;

/// A reload under way.
pub(crate) struct Reload {
    pub(super) generation: Generation,
    pub(super) blueprint: usize,
    pub(super) config: Box<Config>,
    client: Option<ClientId>,
    since: Instant,
    phase: Phase,
    /// What the canary did.
    praise: Option<String>,
    way_back: Option<WayBack>,
}

/// A reload to the configuration before, since the one after it has failed.
pub(super) struct WayBack {
    pub(super) why: String,
    /// Whose configuration it is.
    pub(super) to: Generation,
    /// Which failed: it stays if the way back fails too.
    pub(super) failed: (Generation, usize, Workers),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// What it brings to listen on is being bound.
    Seating,
    /// Its workers boot.
    Booting,
    /// They are ready, and one of them serves since.
    Canary(Instant),
    /// All are to serve; what it brings is to listen.
    Listening,
}

impl Roster {
    pub(super) fn reload(&mut self, client: Option<ClientId>, read: Result<Box<Config>, String>) {
        if self.is_stopping() {
            return self.reply(client, Answer::refused("the service is stopping"));
        }
        if self.is_reloading() || self.is_scaling() || self.may_be_taken_back() {
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
        self.begin_to_reload(client, config, None);
    }

    /// Whether a worker of this generation is one that the reload under way brings.
    pub(super) fn is_of_reload(&self, generation: Generation) -> bool {
        self.reload.as_ref().is_some_and(|reload| reload.generation == generation)
    }

    pub(super) fn is_on_the_way_back(&self) -> bool {
        self.reload.as_ref().is_some_and(|reload| reload.way_back.is_some())
    }

    /// A reload is under way, or has left something to be watched or cleared away.
    pub(super) fn is_reloading(&self) -> bool {
        self.reload.is_some() || self.trial.is_some() || self.is_losing_listeners()
    }

    /// What a reload brings to listen on is being bound.
    pub(super) fn is_seating(&self) -> bool {
        self.reload.as_ref().is_some_and(|reload| reload.phase == Phase::Seating)
    }

    pub(super) fn begin_to_reload(&mut self, client: Option<ClientId>, config: Box<Config>, way_back: Option<WayBack>) {
        self.last_generation.0 += 1;
        let (generation, blueprint) = (self.last_generation, 1 - self.blueprint);
        self.act(Action::Seat(config.clone()));
        let (since, phase, praise) = (self.now, Phase::Seating, None);
        self.reload = Some(Reload { generation, blueprint, config, client, since, phase, praise, way_back });
    }

    /// What a running service cannot change.
    pub(crate) fn check_reloadable(&self, new: &Config) -> Result<(), String> {
        let old = &self.config;
        let more = [
            ("log.access", old.log.access != new.log.access),
            ("log.error", old.log.error != new.log.error),
            ("limits.connections (upwards)", old.limits.connections < new.limits.connections),
            // Connections may have numbers by now that select cannot watch.
            (
                "workers.poller (to select)",
                old.workers.poller != new.workers.poller && new.workers.poller == Poller::Select,
            ),
        ];
        Fixed::of(old).check_keys(&Fixed::of(new), &more)
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
            Err(why) if reload.way_back.is_some() => self.roll_back(&why),
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
            Ok(()) if self.every_successor_is_ready() => self.commit(),
            Ok(()) => self.roll_back("a worker of the new generation died"),
            Err(why) => self.roll_back(&why),
        }
    }

    /// Every slot has a worker of the reload's generation that is ready, and nobody boots.
    fn every_successor_is_ready(&self) -> bool {
        let Some(reload) = &self.reload else { return false };
        let is_successor = |worker: &Worker| {
            worker.generation == reload.generation && matches!(worker.stage, Stage::Waiting | Stage::Serving)
        };
        let is_steady = |slot: &Slot| slot.place == Place::Open && !slot.workers.iter().any(Worker::is_booting);
        let stay = self.slots.values().filter(|slot| slot.place != Place::Closing);
        stay.into_iter().all(|slot| is_steady(slot) && slot.workers.iter().any(is_successor))
    }

    pub(super) fn go_on_reloading(&mut self) {
        let Some(reload) = &self.reload else { return self.reload_again_if_wanted() };
        match reload.phase {
            Phase::Seating | Phase::Listening => {}
            Phase::Booting => self.go_on_booting(),
            Phase::Canary(since) => self.go_on_with_canary(since),
        }
    }

    /// Has a successor cloned in every slot that has none.
    fn boot_successors(&mut self) {
        let Some(reload) = &self.reload else { return };
        let (generation, blueprint, since) = (reload.generation, reload.blueprint, reload.since);
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            let Some(slot) = self.slots.get(&id) else { continue };
            if slot.place != Place::Open || slot.workers.iter().any(|worker| worker.generation == generation) {
                continue;
            }
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

    fn go_on_booting(&mut self) {
        self.boot_successors();
        let Some(reload) = &self.reload else { return };
        let since = reload.since;
        let canary = reload.way_back.is_none() && !reload.config.canary.time.is_zero();
        if self.every_successor_is_ready() {
            if canary { self.begin_with_canary() } else { self.begin_to_listen() }
        } else if self.now - since > self.config.workers.boot_timeout * 2 {
            self.roll_back("not every worker of the new generation became ready in twice boot_timeout");
        }
    }

    fn begin_to_listen(&mut self) {
        if let Some(reload) = &mut self.reload {
            reload.phase = Phase::Listening;
            self.act(Action::Listen);
        }
    }

    fn begin_with_canary(&mut self) {
        if let Some(reload) = &mut self.reload {
            reload.phase = Phase::Canary(self.now);
            self.release_canary();
        }
    }

    fn go_on_with_canary(&mut self, since: Instant) {
        let Some(reload) = &self.reload else { return };
        if let Err(why) = self.judge_canary(reload) {
            return self.roll_back(&why);
        }
        let (age, time) = (self.now - since, reload.config.canary.time);
        if age < time {
            return;
        }
        let praise = self.praise_canary(reload);
        // A slot may have come meanwhile.
        self.boot_successors();
        if self.every_successor_is_ready() {
            if let Some(reload) = &mut self.reload {
                reload.praise = Some(praise);
            }
            self.begin_to_listen();
        } else if age > time + self.config.workers.boot_timeout * 2 {
            self.roll_back("not every worker of the new generation is ready");
        }
    }

    fn commit(&mut self) {
        let Some(reload) = self.reload.take() else { return };
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            let is_successor = |worker: &&Worker| worker.generation == reload.generation;
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            if let Some(incarnation) = slot.workers.iter().find(is_successor).map(|worker| worker.incarnation) {
                slot.clone_at = None;
                self.promote(id, incarnation);
            }
        }
        self.end_old_generations();
        let before = (self.generation, Box::new(self.config.clone()));
        self.generation = reload.generation;
        self.blueprint = reload.blueprint;
        // What "auto" comes to may have changed with the machine; what an operator has scaled to stays otherwise.
        let count_before = self.automatic.unwrap_or_else(|| count_of(&self.config));
        let count_changed = count_before != count_of(&reload.config);
        self.config = *reload.config.clone();
        self.adopted = self.now;
        self.act(Action::Adopt(reload.config));
        // A fresh group of sockets knows nothing of who is to be spared.
        if self.steered.is_some() {
            self.act(Action::Steer(self.steered.clone()));
        }
        let count = count_of(&self.config);
        self.automatic = Some(count);
        if count_changed {
            self.scale(None, count);
        }
        if let Some(WayBack { why, to: Generation(before), .. }) = reload.way_back {
            self.act(Action::Warn(format!("reload rolled back: {why}")));
            let text = format!(
                "rolled back, the configuration of generation {before} serves again as generation {}: {why}",
                self.generation.0
            );
            return self.reply(reload.client, Answer::refused(text));
        }
        let text = self.tell_change(&before.1, reload.praise);
        let (generation, since, client) = (self.generation, self.now, reload.client);
        self.trial = Some(Trial { generation, since, client, text, before });
    }

    /// Which generation serves where, and what is new.
    fn tell_change(&self, before: &Config, praise: Option<String>) -> String {
        let slots: Vec<String> = self.slots.keys().map(|id| id.0.to_string()).collect();
        let slots = if slots.len() == 1 { "slot 0".to_owned() } else { format!("slots {}", slots.join(", ")) };
        let mut lines = vec![format!("generation {} serves in {slots}", self.generation.0)];
        lines.extend(praise);
        lines.extend(differences(before, &self.config));
        lines.join("\n  ")
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
                    // It serves on until one of the generation in force has succeeded it.
                    (Stage::Serving, _) => {
                        worker.reason = Some(Reason::Asked);
                        continue;
                    }
                    // It succeeds a dead one.
                    (Stage::Booting { serve_at_once: true }, _) => {
                        worker.reason = Some(Reason::Asked);
                        continue;
                    }
                    (Stage::Waiting, _) => actions.push(worker.told(ToWorker::Leave)),
                    (_, Some(pid)) => actions.push(Action::Kill(pid, Signal::SIGKILL)),
                    (_, None) => {}
                }
                worker.enter(Stage::Leaving, now);
            }
        }
        self.out.append(&mut actions);
        self.act(Action::Unseat);
        if let Some(WayBack { why: first, failed, .. }) = reload.way_back {
            (self.generation, self.blueprint, self.config.workers) = failed;
            let text = format!("{first}; and the configuration before cannot be returned to: {why}");
            self.act(Action::Warn(text.clone()));
            return self.reply(reload.client, Answer::refused(text));
        }
        self.act(Action::Warn(format!("reload rolled back: {why}")));
        let text = format!("rolled back, generation {} serves on: {why}", self.generation.0);
        self.reply(reload.client, Answer::refused(text));
    }

    fn reload_again_if_wanted(&mut self) {
        if self.is_stopping() || self.is_scaling() || self.is_reloading() || self.may_be_taken_back() {
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
        Count::Auto => {
            let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
            automatic_count(processors, memory_group::limit(), &config.workers)
        }
    }
}

/// A slot for each processor, as long as there is memory for its worker: what that may have, or else what it has with a full cache.
fn automatic_count(processors: u32, memory: Option<u64>, workers: &Workers) -> u32 {
    const USUAL: u64 = 64 << 20;
    let bounds = [workers.max_memory, workers.hard_memory];
    let each = bounds.into_iter().filter(|bytes| *bytes > 0).min().unwrap_or(USUAL);
    let most = memory.map_or(u64::MAX, |bytes| bytes / each);
    processors.min(u32::try_from(most).unwrap_or(u32::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_slots_than_processors_and_memory_for_them() {
        let workers = phalanx_shared::config::serve_defaults("/".into(), Vec::new()).workers;
        let with_bound = Workers { max_memory: 512 << 20, ..workers.clone() };
        assert_eq!(automatic_count(8, None, &workers), 8);
        assert_eq!(automatic_count(8, Some(1 << 30), &workers), 8);
        assert_eq!(automatic_count(8, Some(256 << 20), &workers), 4);
        assert_eq!(automatic_count(8, Some(1 << 30), &with_bound), 2);
        assert_eq!(automatic_count(8, Some(1), &with_bound), 1);
    }
}
