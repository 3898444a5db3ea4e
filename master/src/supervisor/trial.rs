//! A configuration on trial: on one slot first, if that is wished, where its answers are compared with those of the others; and
//! in all slots for a moment, in which a worker that dies of itself brings the configuration before it back.

use std::time::{Duration, Instant};

use phalanx_shared::config::{Canary, Config};
use phalanx_shared::ipc::{Generation, Incarnation, SlotId};
use phalanx_shared::stats::Snapshot;

use super::event::Action;
use super::reload::{Reload, WayBack};
use super::roster::Roster;
use super::slot::{Slot, Worker};
use crate::control::Answer;
use crate::control::server::ClientId;

/// Requests that both sides must have answered before they are compared: of fewer, one says too much.
const ENOUGH_REQUESTS: u64 = 20;
/// Work on a request below which no comparison is made: noise.
const LEAST_WORK: Duration = Duration::from_millis(1);

/// The configuration in force, as long as it has to show that it can serve.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) generation: Generation,
    pub(super) since: Instant,
    pub(super) client: Option<ClientId>,
    /// What is told when it is over.
    pub(super) text: String,
    /// What was in force before.
    pub(super) before: (Generation, Box<Config>),
}

/// What some workers have done since the canary serves.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    requests: u64,
    errors: u64,
    work: Duration,
}

impl Figures {
    fn of<'a>(workers: impl Iterator<Item = &'a Worker>) -> Figures {
        let mut figures = Figures::default();
        for (mark, last) in workers.filter_map(|worker| worker.since_mark) {
            let requests = last.requests.saturating_sub(mark.requests);
            figures.requests += requests;
            figures.errors += last.status_5xx.saturating_sub(mark.status_5xx);
            figures.work += Duration::from_nanos(last.busy_ns.saturating_sub(mark.busy_ns));
        }
        figures
    }

    fn percent_of_errors(&self) -> f64 {
        self.errors as f64 * 100.0 / self.requests.max(1) as f64
    }

    fn work_on_one(&self) -> Duration {
        self.work / u32::try_from(self.requests.max(1)).unwrap_or(u32::MAX)
    }

    /// What is wrong with these, the canary's, beside those of the others.
    fn compare(&self, others: &Figures, bounds: &Canary) -> Result<(), String> {
        // Without others nobody is better.
        let comparable = others.requests >= ENOUGH_REQUESTS;
        if self.requests < ENOUGH_REQUESTS {
            return Ok(());
        }
        let (errors, usual) = (self.percent_of_errors(), if comparable { others.percent_of_errors() } else { 0.0 });
        if errors > usual + f64::from(bounds.errors) {
            return Err(format!("{errors:.1} % of the canary's answers are 5xx, {usual:.1} % of the others'"));
        }
        let (work, usual) = (self.work_on_one(), others.work_on_one());
        if comparable && bounds.latency > 0 && work > LEAST_WORK && work > usual * bounds.latency {
            return Err(format!("the canary works {work:.1?} on a request, the others {usual:.1?}"));
        }
        Ok(())
    }
}

impl Worker {
    /// What it has counted, told with a pong.
    pub(super) fn count(&mut self, stats: &Snapshot) {
        let (mark, _) = self.since_mark.unwrap_or((*stats, *stats));
        self.since_mark = Some((mark, *stats));
    }
}

impl Roster {
    /// The slot that a canary serves in.
    fn canary_slot(&self) -> Option<SlotId> {
        self.slots.keys().next().copied()
    }

    /// Has one slot serve by the configuration of the reload under way.
    pub(super) fn release_canary(&mut self) {
        for worker in self.slots.values_mut().flat_map(|slot| &mut slot.workers) {
            worker.since_mark = None;
        }
        let Some(id) = self.canary_slot() else { return };
        let successor = self.successor_in(id);
        successor.into_iter().for_each(|incarnation| self.promote(id, incarnation));
    }

    pub(super) fn successor_in(&self, id: SlotId) -> Option<Incarnation> {
        let generation = self.reload.as_ref()?.generation;
        let slot = self.slots.get(&id)?;
        slot.workers.iter().find(|worker| worker.generation == generation).map(|worker| worker.incarnation)
    }

    /// Whether the canary does as well as the others so far.
    pub(super) fn judge_canary(&self, reload: &Reload) -> Result<(), String> {
        let (canary, others) = self.canary_figures(reload);
        canary.compare(&others, &reload.config.canary)
    }

    /// What is told of a canary that did well.
    pub(super) fn praise_canary(&self, reload: &Reload) -> String {
        let (canary, others) = self.canary_figures(reload);
        let tell = |figures: &Figures| {
            let (errors, work) = (figures.percent_of_errors(), figures.work_on_one());
            format!("{} requests, {errors:.1} % of them 5xx, {work:.1?} of work on each", figures.requests)
        };
        format!("canary: {}; the others: {}", tell(&canary), tell(&others))
    }

    fn canary_figures(&self, reload: &Reload) -> (Figures, Figures) {
        let serving = || self.slots.values().filter_map(Slot::serving);
        let canary = Figures::of(serving().filter(|worker| worker.generation == reload.generation));
        let others = Figures::of(serving().filter(|worker| worker.generation != reload.generation));
        (canary, others)
    }

    /// Whether a worker of this generation that dies of itself brings the configuration before it back.
    pub(super) fn is_on_trial(&self, generation: Generation) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.generation == generation)
    }

    pub(super) fn go_on_with_trial(&mut self) {
        let over = |trial: &mut Trial| self.now - trial.since >= self.config.workers.probation;
        if let Some(trial) = self.trial.take_if(over) {
            self.act(Action::Say(format!("reloaded: {}", trial.text)));
            self.reply(trial.client, Answer::done(trial.text));
        }
    }

    /// The service goes on without an answer to the question whether the configuration can serve.
    pub(super) fn end_trial(&mut self, why: &str) {
        if let Some(trial) = self.trial.take() {
            self.reply(trial.client, Answer::refused(format!("{}, on probation; {why}", trial.text)));
        }
    }

    /// A worker has died of the configuration in force: what was in force before is taken up again, by successors that boot beside
    /// those who serve.
    pub(super) fn fail_trial(&mut self, why: &str) {
        let Some(trial) = self.trial.take() else { return };
        self.act(Action::Warn(format!("generation {} fails, going back: {why}", trial.generation.0)));
        let (to, config) = trial.before;
        // Bounds that kill are no longer those that failed.
        let workers = std::mem::replace(&mut self.config.workers, config.workers.clone());
        let why = format!("generation {} failed: {why}", trial.generation.0);
        let failed = (self.generation, self.blueprint, workers);
        self.begin_to_reload(trial.client, config, Some(WayBack { why, to, failed }));
        if let Some(reload) = &self.reload {
            // Who succeeds a dead worker from now on is of the configuration that is known to serve.
            (self.generation, self.blueprint) = (reload.generation, reload.blueprint);
        }
    }
}
