//! The rank: slots, their workers, and what is under way. Deciding is pure: an event and the time come in, actions go out, no
//! system call is made, so that a table of cases can test it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use phalanx_shared::config::Config;
use phalanx_shared::ipc::{Generation, SlotId};

use super::event::{Action, Event};
use super::recycling;
use super::reload::Reload;
use super::scaling::Scaling;
use super::slot::{Slot, Worker};
use super::stopping::Stopping;
use super::trial::Trial;
use super::upgrade::Upgrade;
use crate::control::Answer;
use crate::control::server::ClientId;

/// How often a worker is asked. With what it takes to look at one that does not answer, a hang is known within a second after
/// `hang_timeout`.
pub(super) const PING_EVERY: Duration = Duration::from_millis(600);
/// How much longer than the workers' own deadline the master waits for them to go.
pub(super) const DRAIN_MARGIN: Duration = Duration::from_millis(500);
/// How often the roster looks again while something is under way.
const IMPATIENCE: Duration = Duration::from_millis(50);

/// The rank.
pub(crate) struct Roster {
    pub(crate) slots: BTreeMap<SlotId, Slot>,
    pub(crate) config: Config,
    /// Since when that is in force.
    pub(super) adopted: Instant,
    /// What that has no more is shut already.
    pub(super) leaving_is_shut: bool,
    /// The generation in force, and the blueprint that holds it.
    pub(crate) generation: Generation,
    pub(crate) blueprint: usize,
    pub(super) last_generation: Generation,
    /// Grounds are numbered in the order in which they are made.
    pub(super) last_ground: u32,
    pub(super) reload: Option<Reload>,
    pub(super) trial: Option<Trial>,
    /// Asked for while one was under way.
    pub(super) reload_again: Option<Vec<Option<ClientId>>>,
    pub(super) upgrade: Option<Upgrade>,
    pub(crate) target: u32,
    /// What the configuration in force came to when it was last taken up.
    pub(super) automatic: Option<u32>,
    pub(super) scaling: Scaling,
    pub(super) recycling: Vec<recycling::Waiting>,
    /// The slots that new connections go to, if not to all.
    pub(super) steered: Option<Vec<u32>>,
    pub(super) stopping: Option<Stopping>,
    pub(super) started: bool,
    /// Its workers have died too often.
    pub(crate) gave_up: bool,
    pub(super) out: Vec<Action>,
    pub(super) now: Instant,
}

impl Roster {
    /// A rank of `count` slots to be opened.
    pub(crate) fn new(config: Config, count: u32, now: Instant) -> Roster {
        Roster {
            slots: BTreeMap::new(),
            config,
            adopted: now,
            leaving_is_shut: false,
            generation: Generation(1),
            blueprint: 0,
            last_generation: Generation(1),
            last_ground: 0,
            reload: None,
            trial: None,
            reload_again: None,
            upgrade: None,
            target: count,
            automatic: Some(count),
            scaling: Scaling::default(),
            recycling: Vec::new(),
            steered: None,
            stopping: None,
            started: false,
            gave_up: false,
            out: Vec::new(),
            now,
        }
    }

    /// What to do about `event`.
    pub(crate) fn react(&mut self, event: Event, now: Instant) -> Vec<Action> {
        self.now = now;
        match event {
            Event::Opened(slot, outcome) => self.opened(slot, outcome),
            Event::Born(slot, incarnation, outcome) => self.born(slot, incarnation, outcome),
            Event::Ended(pid, cause) => self.ended(pid, cause),
            Event::Heard(slot, message) => self.heard(slot, message),
            Event::Knocked(post) => self.knocked(post),
            Event::Examined(slot, incarnation, scheduling) => self.examined(slot, incarnation, scheduling),
            Event::Stop { fast, client } => self.stop(fast, client, None),
            Event::Reload { client, read } => self.reload(client, read),
            Event::Seated(outcome) => self.seated(outcome),
            Event::Listening(outcome) => self.listening(outcome),
            Event::Upgrade { client, program } => self.upgrade(client, program),
            Event::Rehearsed(outcome) => self.rehearsed(outcome),
            Event::NotExecuted(why) => self.not_executed(&why),
            Event::NotReturned(why) => self.not_returned(&why),
            Event::Deserted(slot, ground) => self.deserted_former(slot, ground),
            Event::Emptied(slot, ground) => self.emptied_former(slot, ground),
            Event::Scale { client, count } => self.scale(client, count),
            Event::Recycle { client, slot } => self.ask_for_recycling(client, slot),
            Event::ScaleBy(by) => self.scale(None, self.target.saturating_add_signed(by).max(1)),
            Event::LogsReopened => self.slots.values_mut().for_each(|slot| slot.wants_logs = true),
            Event::Tick => {}
        }
        self.follow_up();
        std::mem::take(&mut self.out)
    }

    /// When to send a `Tick` if nothing else happens.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let busy = self.stopping.is_some()
            || self.is_reloading()
            || self.upgrade.is_some()
            || self.scaling.active
            || self.slots.values().any(|slot| !slot.is_quiet() || slot.wants_logs || !slot.formers.is_empty());
        if busy {
            return Some(self.now + IMPATIENCE);
        }
        let mut workers = self.slots.values().flat_map(|slot| &slot.workers);
        if workers.clone().any(|worker| worker.hung.is_some()) {
            return Some(self.now + IMPATIENCE);
        }
        if workers.clone().any(|worker| worker.ping.outstanding.is_some()) {
            return Some(self.now + self.look_every());
        }
        let next =
            workers.by_ref().filter(|worker| worker.ping.outstanding.is_none()).filter_map(|worker| worker.ping.next);
        Some(next.chain([self.now + PING_EVERY]).min().unwrap_or(self.now))
    }

    pub(super) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    pub(super) fn is_scaling(&self) -> bool {
        self.scaling.active
    }

    /// What follows from where things stand, whatever has just happened.
    fn follow_up(&mut self) {
        self.open_and_close_slots();
        self.reopen_if_due();
        for id in self.slots.keys().copied().collect::<Vec<_>>() {
            self.clone_if_due(id);
            self.ping(id);
            self.end_what_is_overdue(id);
            self.watch_silence(id);
            self.install_logs(id);
            self.empty_formers(id);
        }
        self.look_for_crash_loops();
        self.recycle();
        self.finish_recycling();
        self.steer();
        self.assist();
        self.finish_losing_listeners();
        self.go_on_with_trial();
        self.go_on_reloading();
        self.go_on_upgrading();
        self.report_start();
        self.finish_scaling();
        self.begin_to_drain_when_due();
        self.finish_stopping();
    }

    fn install_logs(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        // A worker that boots alone closes what it does not know: a descriptor on its way would be among it.
        if slot.wants_logs && slot.keeper.is_some() && !slot.workers.iter().any(Worker::is_booting) {
            slot.wants_logs = false;
            self.act(Action::InstallLogs(id));
        }
    }

    fn report_start(&mut self) {
        if self.started || self.stopping.is_some() {
            return;
        }
        if self.slots.len() as u32 == self.target && self.slots.values().all(|slot| slot.serving().is_some()) {
            self.started = true;
            self.act(Action::Ready);
        }
    }

    pub(super) fn reply(&mut self, client: Option<ClientId>, answer: Answer) {
        if let Some(client) = client {
            self.act(Action::Reply(client, Box::new(answer)));
        }
    }
}
