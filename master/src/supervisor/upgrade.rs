//! An upgrade as the roster sees it. In the program that is replaced: the other one is rehearsed, then executed when nothing else
//! is under way. In the one that replaces it: successors boot beside those who serve, take over when all are ready, and are
//! watched for a while.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use phalanx_shared::config::Config;
use phalanx_shared::ipc::{Generation, Incarnation, SlotId};

use super::event::Action;
use super::former::FormerTable;
use super::roster::Roster;
use super::slot::{Grave, Place, Post, Slot, Stage, Worker};
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::upgrade::fault;
use crate::upgrade::state::{self, State};

/// How long an upgrade waits for what else is under way.
const CALM_PATIENCE: Duration = Duration::from_secs(30);

/// An upgrade under way.
#[derive(Debug)]
pub(crate) struct Upgrade {
    phase: Phase,
    since: Instant,
    client: Option<ClientId>,
    /// This is the way back, and why.
    rolled_back: Option<String>,
    /// What becomes of connections that cannot be taken over; empty where all can.
    ends: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The other program shows whether it could take over.
    Rehearsing,
    /// It could; nothing else may be under way when it does.
    Waiting,
    /// This is the other program, and its workers boot.
    TakingOver,
    /// Its workers serve.
    Probation,
}

impl Roster {
    /// The rank of a service that another program has handed over.
    pub(crate) fn inherit(config: Config, state: &State, now: Instant) -> Roster {
        let mut roster = Roster::new(config, state.target, now);
        roster.generation = Generation(state.generation + 1);
        roster.last_generation = roster.generation;
        roster.last_ground = state.last_ground;
        roster.started = true;
        for written in &state.slots {
            roster.last_ground += 1;
            let slot = Slot::inherit(written, roster.last_ground, now);
            roster.slots.insert(SlotId(written.slot), slot);
        }
        for id in roster.slots.keys().copied().collect::<Vec<_>>() {
            roster.act(Action::Open(id));
        }
        // The program before may have steered new connections away from a worker that was silent.
        roster.act(Action::Steer(None));
        let client = state.client.map(ClientId);
        let rolled_back = state.rolled_back.clone();
        let ends = state.foreign.as_ref().map(|why| {
            let count = state.drained + state.totals.connections;
            format!("; up to {count} connections are ended by their workers, within drain_timeout, and not taken over: {why}")
        });
        let ends = ends.unwrap_or_default();
        roster.upgrade = Some(Upgrade { phase: Phase::TakingOver, since: now, client, rolled_back, ends });
        roster
    }

    pub(super) fn upgrade(&mut self, client: Option<ClientId>, program: Option<PathBuf>) {
        if self.is_stopping() {
            return self.reply(client, Answer::refused("the service is stopping"));
        }
        if self.upgrade.is_some() {
            return self.reply(client, Answer::refused("an upgrade is under way already"));
        }
        self.upgrade =
            Some(Upgrade { phase: Phase::Rehearsing, since: self.now, client, rolled_back: None, ends: String::new() });
        self.act(Action::Rehearse(program));
    }

    pub(super) fn rehearsed(&mut self, outcome: Result<(), String>) {
        match (outcome, &mut self.upgrade) {
            (Ok(()), Some(upgrade)) if upgrade.phase == Phase::Rehearsing => {
                (upgrade.phase, upgrade.since) = (Phase::Waiting, self.now);
            }
            (Err(why), _) => self.not_executed(&why),
            _ => {}
        }
    }

    /// The upgrade ends in the program that it was asked of.
    pub(super) fn not_executed(&mut self, why: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        self.act(Action::EndRehearsal);
        self.act(Action::Warn(format!("upgrade refused, nothing changes: {why}")));
        self.reply(upgrade.client, Answer::refused(format!("upgrade refused, nothing changes: {why}")));
    }

    /// Whether successors of the other program are on their way and do not serve yet.
    pub(super) fn is_taking_over(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.phase == Phase::TakingOver)
    }

    /// Whether the program before this one may yet be returned to: what it cannot know of is not to be begun.
    pub(super) fn may_be_taken_back(&self) -> bool {
        let begun = |upgrade: &Upgrade| matches!(upgrade.phase, Phase::TakingOver | Phase::Probation);
        self.upgrade.as_ref().is_some_and(begun)
    }

    /// Whether a worker that dies of itself now is the new program's fault.
    pub(super) fn is_on_probation(&self) -> bool {
        let is_new = |upgrade: &Upgrade| upgrade.phase == Phase::Probation && upgrade.rolled_back.is_none();
        self.upgrade.as_ref().is_some_and(is_new)
    }

    /// Whether the master's death is to be the return to the program before this one.
    pub(super) fn dies_back(&self) -> bool {
        let is_new = |upgrade: &Upgrade| upgrade.rolled_back.is_none();
        self.may_be_taken_back() && self.upgrade.as_ref().is_some_and(is_new) && !self.is_stopping()
    }

    /// Who waits for the outcome of the upgrade.
    pub(super) fn upgrades_for(&self) -> Option<ClientId> {
        self.upgrade.as_ref()?.client
    }

    pub(super) fn go_on_upgrading(&mut self) {
        let Some(upgrade) = &self.upgrade else { return };
        let age = self.now - upgrade.since;
        match upgrade.phase {
            Phase::Rehearsing => {}
            Phase::Waiting if self.is_calm() => {
                let client = upgrade.client;
                self.act(Action::TakeOver(client));
            }
            Phase::Waiting if age > CALM_PATIENCE => {
                self.not_executed("handovers and changes of the number of workers do not come to an end");
            }
            Phase::Waiting => {}
            Phase::TakingOver => self.go_on_taking_over(age),
            Phase::Probation if age >= self.config.master.probation => self.confirm(),
            Phase::Probation => fault::pass("probation"),
        }
    }

    /// Every slot is served by one worker, besides those that retire, and nothing is to follow.
    pub(crate) fn is_calm(&self) -> bool {
        let is_calm = |slot: &Slot| {
            let settled = |worker: &Worker| {
                let stands = matches!(worker.stage, Stage::Serving | Stage::Retiring);
                stands && worker.pid.is_some() && !worker.is_suspected() && worker.hung.is_none()
            };
            let stands = slot.place == Place::Open && slot.keeper.is_some() && slot.serving().is_some();
            stands && slot.graves.is_empty() && slot.formers.is_empty() && slot.workers.iter().all(settled)
        };
        let nothing_follows =
            !self.is_reloading() && self.reload_again.is_none() && !self.is_scaling() && self.recycling.is_empty();
        nothing_follows && self.started && !self.is_stopping() && self.slots.values().all(is_calm)
    }

    fn go_on_taking_over(&mut self, age: Duration) {
        // Where the worker of the program before has died, the new one's serves already.
        let is_ready = |slot: &Slot| slot.serving().is_some() || slot.at_stage(Stage::Waiting).is_some();
        if self.slots.values().filter(|slot| slot.place != Place::Closing).all(is_ready) {
            self.promote_all_that_wait();
            if let Some(upgrade) = &mut self.upgrade {
                (upgrade.phase, upgrade.since) = (Phase::Probation, self.now);
            }
            fault::pass("serving");
            let whole = self.upgrade.as_ref().is_some_and(|upgrade| upgrade.rolled_back.is_some());
            if whole {
                self.confirm();
            }
        } else if age > self.config.workers.boot_timeout * 2 {
            self.go_back("not every worker of the new program became ready in twice boot_timeout");
        }
    }

    /// The new program has failed.
    pub(super) fn go_back(&mut self, why: &str) {
        let Some(upgrade) = &mut self.upgrade else { return };
        if upgrade.rolled_back.is_none() {
            let client = upgrade.client;
            self.act(Action::Warn(format!("the new program failed, going back to the one before: {why}")));
            self.end_what_is_asked("the program before this one is returned to");
            return self.act(Action::GoBack(client, why.to_owned()));
        }
        // There is nothing to go back to: as after any other death, workers are cloned until they serve.
        upgrade.phase = Phase::Probation;
        self.act(Action::Warn(format!("a worker of the program that was returned to does not boot: {why}")));
        self.promote_all_that_wait();
    }

    /// There is no going back: what this program has serves on.
    pub(super) fn not_returned(&mut self, why: &str) {
        let text = format!("the program before this one could not be executed, this one serves on: {why}");
        self.act(Action::Warn(text.clone()));
        self.act(Action::Confirm);
        if let Some(upgrade) = self.upgrade.take() {
            self.reply(upgrade.client, Answer::refused(text));
        }
        self.promote_all_that_wait();
        let now = self.now;
        for slot in self.slots.values_mut().filter(|slot| slot.place == Place::Open && !slot.serves_or_will()) {
            slot.clone_at.get_or_insert(now);
        }
    }

    fn promote_all_that_wait(&mut self) {
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            let waiting = self.slots.get(&id).and_then(|slot| slot.at_stage(Stage::Waiting)).map(|it| it.incarnation);
            waiting.into_iter().for_each(|incarnation| self.promote(id, incarnation));
        }
    }

    /// Whoever waits for an outcome is told that there will be none.
    fn end_what_is_asked(&mut self, why: &str) {
        self.roll_back(why);
        self.end_trial(why);
        for client in self.reload_again.take().unwrap_or_default() {
            self.reply(client, Answer::refused(why));
        }
        if self.is_scaling() {
            self.fail_scaling(why);
        }
        for waiting in std::mem::take(&mut self.recycling) {
            self.reply(waiting.client, Answer::refused(why));
        }
    }

    fn confirm(&mut self) {
        let Some(upgrade) = self.upgrade.take() else { return };
        self.act(Action::Confirm);
        let version = env!("CARGO_PKG_VERSION");
        match upgrade.rolled_back {
            None => {
                let text = format!("phalanx {version} serves, generation {}{}", self.generation.0, upgrade.ends);
                self.act(Action::Say(format!("upgraded: {text}")));
                self.reply(upgrade.client, Answer::done(format!("upgraded: {text}")));
            }
            Some(why) => {
                self.act(Action::Warn(format!("upgrade rolled back: {why}{}", upgrade.ends)));
                let text = format!("rolled back, the program before serves on: {why}{}", upgrade.ends);
                self.reply(upgrade.client, Answer::refused(text));
            }
        }
    }

    /// The service stops: whoever waits for an upgrade is told.
    pub(super) fn end_upgrade(&mut self) {
        let Some(upgrade) = self.upgrade.take() else { return };
        self.act(Action::EndRehearsal);
        self.reply(upgrade.client, Answer::refused("the service stops"));
    }
}

impl Slot {
    fn inherit(written: &state::Slot, ground: u32, now: Instant) -> Slot {
        let id = SlotId(written.slot);
        let mut slot = Slot::new(ground);
        slot.last_incarnation = written.last_incarnation;
        slot.restarts = written.restarts;
        slot.cause_of_last_death = written.cause_of_last_death.clone();
        for former in &written.grounds {
            let post = |lane| Post { slot: id, ground: former.number, lane };
            let workers = former.workers.iter().map(|worker| Worker::inherit(worker, post(worker.lane), now));
            let keeper = former.keeper.map(Pid::from_raw);
            slot.formers.push(FormerTable::inherit(former.number, keeper, workers.collect(), former.known.is_none()));
        }
        let graves = written.graves.iter().map(|grave| {
            let post = Post { slot: id, ground: grave.ground, lane: grave.lane };
            Grave { dead: Incarnation(grave.dead), post, told: None }
        });
        slot.graves.extend(graves);
        slot
    }

    /// What another program goes on with.
    pub(crate) fn graves_state(&self) -> Vec<state::Grave> {
        let graves = self.graves.iter().map(|grave| (grave.dead, grave.post.ground, grave.post.lane));
        // The next one of this program would settle them at its boot.
        let orphans = self.orphans.iter().map(|(dead, lane)| (*dead, self.ground, *lane));
        graves.chain(orphans).map(|(dead, ground, lane)| state::Grave { dead: dead.0, ground, lane }).collect()
    }
}

impl Worker {
    fn inherit(written: &state::Worker, post: Post, now: Instant) -> Worker {
        let (incarnation, generation) = (Incarnation(written.incarnation), Generation(written.generation));
        let mut worker = Worker::at(post, incarnation, generation, now);
        worker.pid = Some(Pid::from_raw(written.pid));
        worker.enter(Stage::Serving, now);
        worker.heir_of = written.heir_of.iter().map(|(dead, lane)| (Incarnation(*dead), *lane)).collect();
        worker
    }

    /// What another program goes on with; nothing of one that was never heard of.
    pub(crate) fn state(&self) -> Option<state::Worker> {
        let pid = self.pid?.as_raw();
        let (incarnation, generation, lane) = (self.incarnation.0, self.generation.0, self.post.lane);
        let heir_of = self.heir_of.iter().map(|(dead, lane)| (dead.0, *lane)).collect();
        Some(state::Worker { pid, incarnation, generation, lane, heir_of })
    }
}
