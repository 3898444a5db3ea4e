//! Workers are replaced before they do harm: after so many requests, so long, with so much memory, or because somebody asks. One
//! slot at a time, the worst first.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use nix::sys::signal::Signal;
use phalanx_shared::config::Workers;
use phalanx_shared::ipc::{Incarnation, Pong, SlotId};
use phalanx_shared::ledger::record::Guilt;

use super::event::Action;
use super::handover::LANE_PATIENCE;
use super::roster::Roster;
use super::slot::{Place, Slot, Stage, Worker};
use crate::control::Answer;
use crate::control::server::ClientId;

/// How old a worker is before its memory counts, if it had too much from its birth: that must not recycle without end.
const LEAST_AGE: Duration = Duration::from_secs(10);
/// Deaths at boot in a row after which nobody waits for a successor any longer.
pub(super) const ENOUGH_DEATHS: u32 = 3;

/// Why a worker is to be replaced; the greater, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// It has answered so many requests.
    Requests(u64),
    /// It has served so long.
    Age(Duration),
    /// It has so many bytes of its own.
    Memory(u64),
    /// Somebody asks for it.
    Asked,
}

/// Somebody waits for these workers to be replaced.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) client: Option<ClientId>,
    workers: Vec<(SlotId, Incarnation)>,
}

/// A share of a limit, up to a tenth of it, that is taken off at random: workers born together are not replaced together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Haste(u32);

impl Haste {
    /// Another one each time.
    pub(crate) fn random() -> Haste {
        Haste(RandomState::new().build_hasher().finish() as u32 % 1024)
    }

    fn off(self, limit: u64) -> u64 {
        limit - (u128::from(limit) * u128::from(self.0) / 10_240) as u64
    }
}

impl Worker {
    /// Whether what it has come to is a reason to replace it.
    fn weigh(&self, age: Duration, requests: u64, bytes: u64, limits: &Workers) -> Option<Reason> {
        let reached = |value: u64, limit: u64| limit > 0 && value >= self.haste.off(limit);
        let fresh_is_below = self.at_birth.is_some_and(|(_, bytes)| !reached(bytes, limits.max_memory));
        let grown = fresh_is_below || age > LEAST_AGE;
        let max_age = u64::try_from(limits.max_age.as_millis()).unwrap_or(u64::MAX);
        let old = reached(u64::try_from(age.as_millis()).unwrap_or(u64::MAX), max_age);
        [
            (grown && reached(bytes, limits.max_memory)).then_some(Reason::Memory(bytes)),
            old.then_some(Reason::Age(age)),
            reached(requests, limits.max_requests).then_some(Reason::Requests(requests)),
        ]
        .into_iter()
        .flatten()
        .max()
    }
}

impl Roster {
    /// What a worker tells of itself in a pong.
    pub(super) fn weigh(&mut self, id: SlotId, incarnation: Incarnation, pong: &Pong) {
        let (now, limits) = (self.now, self.config.workers.clone());
        let Some(worker) = self.slots.get_mut(&id).and_then(|slot| slot.worker(incarnation)) else { return };
        worker.private_bytes = pong.private_bytes;
        worker.count(&pong.stats);
        if worker.stage != Stage::Serving {
            return;
        }
        let (before, _) = *worker.at_birth.get_or_insert((pong.stats.requests, pong.private_bytes));
        let requests = pong.stats.requests.saturating_sub(before);
        let found = worker.weigh(now - worker.since, requests, pong.private_bytes, &limits);
        let asked = pong.wants_successor.then_some(Reason::Asked);
        worker.reason = worker.reason.max(found).max(asked);
        self.check_hard_limit(id, incarnation, pong.private_bytes, None);
    }

    /// Ends a worker that has more memory of its own than it may ever have. In the middle of a request that is the request's
    /// fault.
    pub(super) fn check_hard_limit(&mut self, id: SlotId, incarnation: Incarnation, bytes: u64, guilt: Option<Guilt>) {
        let limit = self.config.workers.hard_memory;
        let Some(worker) = self.slots.get_mut(&id).and_then(|slot| slot.worker(incarnation)) else { return };
        if limit == 0 || bytes <= limit || worker.sentence.is_some() {
            return;
        }
        let Some(pid) = worker.pid else { return };
        worker.private_bytes = bytes;
        let mebibytes = bytes >> 20;
        let text = format!("killed for its memory: {mebibytes} MiB of its own are more than workers.hard_memory");
        worker.sentence = Some((text, guilt));
        self.act(Action::Kill(pid, Signal::SIGKILL));
    }

    /// Replaces the worker that has the best reason, unless a successor is on its way somewhere: it takes memory and processor
    /// time from those who serve.
    pub(super) fn recycle(&mut self) {
        let now = self.now;
        if self.stopping.is_some() || self.reload.is_some() || self.slots.values().any(Slot::has_successor_booting) {
            return;
        }
        let reason = |slot: &Slot| slot.serving().and_then(|worker| worker.reason);
        let ripe = |slot: &Slot| slot.place == Place::Open && slot.clone_at.is_none_or(|at| at <= now);
        let wanted =
            self.slots.iter().filter(|(_, slot)| ripe(slot)).filter_map(|(id, slot)| Some((reason(slot)?, *id)));
        let mut wanted: Vec<(Reason, SlotId)> = wanted.collect();
        wanted.sort_by_key(|(reason, id)| (std::cmp::Reverse(*reason), *id));
        for (_, id) in wanted {
            if self.replace_worker(id) {
                return;
            }
        }
    }

    /// Clones a successor; false when the slot is not ready for one.
    fn replace_worker(&mut self, id: SlotId) -> bool {
        let (generation, blueprint, now) = (self.generation, self.blueprint, self.now);
        let most = self.config.workers.max_old_generations as usize;
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        if slot.serving().is_none() || slot.has_successor_booting() {
            return false;
        }
        let retiring = || slot.workers.iter().filter(|worker| worker.stage == Stage::Retiring);
        if retiring().count() < most {
            slot.clone_at = None;
            return self.clone_successor(id, generation, blueprint);
        }
        // The oldest has had its time, and its connections will be rescued.
        let oldest = retiring().min_by_key(|worker| worker.incarnation);
        let overdue = oldest.filter(|worker| now - worker.since > LANE_PATIENCE).and_then(|worker| worker.pid);
        if let Some(pid) = overdue {
            self.act(Action::Kill(pid, Signal::SIGKILL));
        }
        false
    }

    /// Somebody wants the worker of a slot, or all workers, replaced.
    pub(super) fn ask_for_recycling(&mut self, client: Option<ClientId>, slot: Option<u32>) {
        if self.is_stopping() {
            return self.reply(client, Answer::refused("the service is stopping"));
        }
        if let Some(number) = slot.filter(|number| !self.slots.contains_key(&SlotId(*number))) {
            let last = self.slots.len().saturating_sub(1);
            return self.reply(client, Answer::refused(format!("there is no slot {number}: they are 0 to {last}")));
        }
        let mut workers = Vec::new();
        for (id, slot) in self.slots.iter_mut().filter(|(id, _)| slot.is_none_or(|number| id.0 == number)) {
            if let Some(worker) = slot.workers.iter_mut().find(|worker| worker.stage == Stage::Serving) {
                worker.reason = Some(Reason::Asked);
                workers.push((*id, worker.incarnation));
            }
        }
        self.recycling.push(Waiting { client, workers });
    }

    /// Tells who waits that nothing is to be waited for any more.
    pub(super) fn finish_recycling(&mut self) {
        for waiting in std::mem::take(&mut self.recycling) {
            let serving = |id: &SlotId| self.slots.get(id).and_then(Slot::serving);
            let replaced = |(id, old): &(SlotId, Incarnation)| match self.slots.get(id) {
                None => true,
                Some(_) => serving(id).is_some_and(|worker| worker.incarnation != *old),
            };
            let fails = |(id, _): &(SlotId, Incarnation)| {
                let slot = self.slots.get(id)?;
                let text = slot.cause_of_last_death.as_deref().unwrap_or("it dies at boot");
                (slot.deaths_at_boot >= ENOUGH_DEATHS)
                    .then(|| format!("the successor in slot {} does not become ready: {text}", id.0))
            };
            if let Some(why) = waiting.workers.iter().find_map(fails) {
                self.reply(waiting.client, Answer::refused(why));
            } else if waiting.workers.iter().all(replaced) {
                let text = match waiting.workers.len() {
                    1 => "1 worker is replaced".to_owned(),
                    count => format!("{count} workers are replaced"),
                };
                self.act(Action::Say(format!("recycle: {text}")));
                self.reply(waiting.client, Answer::done(text));
            } else if self.is_stopping() {
                self.reply(waiting.client, Answer::refused("the service stops"));
            } else {
                self.recycling.push(waiting);
            }
        }
    }
}
