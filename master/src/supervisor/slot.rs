//! A slot as the roster sees it: its keeper, its workers, and what it is waiting for.

use std::time::Instant;

use nix::unistd::Pid;
use phalanx_shared::ipc::keeper::Birth;
use phalanx_shared::ipc::{Generation, Incarnation, SlotId, ToWorker};
use phalanx_shared::ledger::LANES;
use phalanx_shared::ledger::record::Guilt;
use phalanx_shared::stall::Stall;
use phalanx_shared::stats::Snapshot;

use super::event::Action;
use super::former::FormerTable;
use super::recycling::{Haste, Reason};
use crate::verdict::Obituary;

/// A worker's place: the lane that it writes, of the ledger of a ground that its slot stands on or stood on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Post {
    pub(crate) slot: SlotId,
    /// The number of the ground.
    pub(crate) ground: u32,
    pub(crate) lane: usize,
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Cloned, or being cloned. Serves as soon as it is ready, or waits to be told.
    Booting {
        serve_at_once: bool,
    },
    /// Ready; its predecessor still serves.
    Waiting,
    Serving,
    /// Its successor serves.
    Retiring,
    /// Nobody serves after it.
    Draining,
    /// Told to leave or killed on purpose: its end is expected.
    Leaving,
}

/// A worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) incarnation: Incarnation,
    pub(crate) generation: Generation,
    pub(crate) post: Post,
    /// None until the keeper has told it.
    pub(crate) pid: Option<Pid>,
    pub(crate) stage: Stage,
    /// When it came to its stage.
    pub(crate) since: Instant,
    /// When it was cloned.
    pub(crate) born: Instant,
    /// Bytes of its own memory when it was last asked.
    pub(crate) private_bytes: u64,
    pub(crate) ping: Ping,
    /// It owes an answer for longer than usual.
    pub(crate) stall: Option<Stall>,
    /// How often it has had a thread's stack shown.
    pub(crate) shown: u32,
    /// Killed because it hung, and what it was seen doing.
    pub(crate) hung: Option<Instant>,
    /// Why it cannot boot, in its own words.
    pub(crate) complaint: Option<String>,
    /// Why it is to be replaced.
    pub(crate) reason: Option<Reason>,
    pub(super) haste: Haste,
    /// Lanes of the dead that it settles as long as it boots.
    pub(super) heir_of: Vec<(Incarnation, usize)>,
    /// Killed on purpose: why, and whose fault it is.
    pub(crate) sentence: Option<(String, Option<Guilt>)>,
    /// What its lane had counted when it was first asked, since the last canary was released, and when it was last asked.
    pub(super) since_mark: Option<(Snapshot, Snapshot)>,
    /// What its lane had counted, and its memory, when it was first asked.
    pub(crate) at_birth: Option<(u64, u64)>,
}

/// The master's question to a worker.
#[derive(Debug, Default)]
pub(crate) struct Ping {
    pub(crate) number: u64,
    /// Since when the answer is due.
    pub(crate) outstanding: Option<Instant>,
    /// When to ask next.
    pub(crate) next: Option<Instant>,
}

impl Worker {
    pub(crate) fn new(birth: &Birth, slot: SlotId, ground: u32, now: Instant) -> Worker {
        let post = Post { slot, ground, lane: birth.lane };
        let stage = Stage::Booting { serve_at_once: birth.serve_at_once };
        Worker { stage, ..Worker::at(post, birth.incarnation, birth.generation, now) }
    }

    /// One that boots.
    pub(crate) fn at(post: Post, incarnation: Incarnation, generation: Generation, now: Instant) -> Worker {
        Worker {
            incarnation,
            generation,
            post,
            pid: None,
            stage: Stage::Booting { serve_at_once: false },
            since: now,
            born: now,
            private_bytes: 0,
            ping: Ping::default(),
            stall: None,
            shown: 0,
            hung: None,
            complaint: None,
            reason: None,
            haste: Haste::random(),
            heir_of: Vec::new(),
            sentence: None,
            since_mark: None,
            at_birth: None,
        }
    }

    pub(crate) fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.since = now;
    }

    /// The action that says `word` to it.
    pub(crate) fn told(&self, word: ToWorker) -> Action {
        Action::Tell(self.post, self.incarnation, word)
    }

    /// What is to be written down of its death; nothing of one that was never heard of.
    pub(crate) fn obituary(&self, cause: String, serious: bool, now: Instant) -> Option<Obituary> {
        let (incarnation, private_bytes) = (self.incarnation, self.private_bytes);
        let pid = self.pid?.as_raw();
        Some(Obituary { pid, incarnation, cause, serious, uptime: now - self.born, private_bytes })
    }

    /// The lanes that are not settled when it dies.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (Incarnation, usize)> + '_ {
        self.heir_of.iter().copied().chain([(self.incarnation, self.post.lane)])
    }

    /// Whether what it is made of, its program or its configuration, may be to blame for its end.
    pub(crate) fn died_of_itself(&self, guilty: bool) -> bool {
        guilty || self.complaint.is_some() || self.sentence.is_some()
    }

    /// It does not answer, whatever the reason, and others do its accepting.
    pub(crate) fn is_suspected(&self) -> bool {
        self.stall.as_ref().is_some_and(|stall| stall.suspected)
    }

    pub(crate) fn is_booting(&self) -> bool {
        matches!(self.stage, Stage::Booting { .. })
    }
}

/// A dead worker of which a living one has yet to take over; until then its lane is not free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grave {
    pub(crate) dead: Incarnation,
    pub(crate) post: Post,
    /// Who has been told to.
    pub(crate) told: Option<Incarnation>,
}

/// Where a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its keeper is being made.
    Opening,
    Open,
    /// It is going away.
    Closing,
}

/// A slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) place: Place,
    /// The number of the ground that it stands on.
    pub(crate) ground: u32,
    /// Those that it stood on before and that still hold connections.
    pub(crate) formers: Vec<FormerTable>,
    pub(crate) keeper: Option<Pid>,
    pub(crate) workers: Vec<Worker>,
    pub(super) last_incarnation: u32,
    /// Deaths in a row before READY.
    pub(crate) deaths_at_boot: u32,
    /// Deaths in a row of workers that had not come to serve.
    pub(super) hasty_deaths: u32,
    /// When to clone a worker again.
    pub(crate) clone_at: Option<Instant>,
    /// When to try again to give the slot a keeper.
    pub(crate) open_at: Option<Instant>,
    pub(crate) restarts: u64,
    pub(crate) cause_of_last_death: Option<String>,
    /// The dead whose connections a living worker is to take over.
    pub(crate) graves: Vec<Grave>,
    /// Lanes of the dead that the next worker settles: nobody who lives has been told to.
    pub(super) orphans: Vec<(Incarnation, usize)>,
    /// Who accepts for it while its worker does not answer.
    pub(crate) assistant: Option<(SlotId, Incarnation)>,
    /// The reopened log files are not in the keeper's table yet.
    pub(crate) wants_logs: bool,
}

impl Slot {
    pub(crate) fn new(ground: u32) -> Slot {
        Slot {
            place: Place::Opening,
            ground,
            formers: Vec::new(),
            keeper: None,
            workers: Vec::new(),
            last_incarnation: 0,
            deaths_at_boot: 0,
            hasty_deaths: 0,
            clone_at: None,
            open_at: None,
            restarts: 0,
            cause_of_last_death: None,
            graves: Vec::new(),
            orphans: Vec::new(),
            assistant: None,
            wants_logs: false,
        }
    }

    /// The next worker's particulars; none while every lane is in use. One that will be alone takes over from all the dead.
    pub(crate) fn conceive(&mut self, generation: Generation, blueprint: usize, serve_at_once: bool) -> Option<Birth> {
        if self.workers.is_empty() {
            self.graves.retain(|grave| grave.post.ground != self.ground);
            self.orphans.clear();
        }
        let here = |grave: &&Grave| grave.post.ground == self.ground;
        let in_use = |lane| {
            self.workers
                .iter()
                .any(|worker| worker.post.lane == lane || worker.heir_of.iter().any(|(_, heir)| *heir == lane))
                || self.graves.iter().filter(here).any(|grave| grave.post.lane == lane)
        };
        let orphan = self.orphans.first().map(|(_, lane)| *lane);
        let lane = orphan.or_else(|| (0..LANES).find(|lane| !in_use(*lane)))?;
        let lanes: std::collections::BTreeSet<usize> = self.orphans.iter().map(|(_, lane)| *lane).collect();
        let orphans = lanes.into_iter().collect();
        self.last_incarnation += 1;
        let incarnation = Incarnation(self.last_incarnation);
        let formers = self.formers.iter().flat_map(|former| &former.workers);
        let living = self.workers.iter().chain(formers).map(|worker| worker.incarnation);
        let alone = self.workers.is_empty();
        let alive = living.chain(self.graves.iter().map(|grave| grave.dead)).collect();
        let pids = self.workers.iter().map(|worker| worker.pid.map(Pid::as_raw));
        let neighbours = pids.collect::<Option<_>>().unwrap_or_default();
        Some(Birth { incarnation, generation, blueprint, lane, orphans, alive, neighbours, alone, serve_at_once })
    }

    /// The worker is on its way, and takes the orphans along.
    pub(super) fn bear(&mut self, birth: &Birth, id: SlotId, now: Instant) {
        let mut worker = Worker::new(birth, id, self.ground, now);
        worker.heir_of = std::mem::take(&mut self.orphans);
        self.workers.push(worker);
    }

    /// A worker that did not serve has ended: who serves is to bury it, or who is cloned next.
    pub(super) fn mourn(&mut self, dead: &Worker) {
        let survives = |worker: &Worker| matches!(worker.stage, Stage::Serving | Stage::Draining);
        if !self.workers.iter().any(survives) {
            return self.orphan(dead);
        }
        let graves = dead.lanes().map(|(whose, lane)| (whose, Post { lane, ..dead.post }));
        self.graves.extend(graves.map(|(whose, post)| Grave { dead: whose, post, told: None }));
    }

    /// A worker has died and no living one is told to bury it: whoever is cloned next settles what it has left.
    pub(super) fn orphan(&mut self, dead: &Worker) {
        for orphan in dead.lanes() {
            if !self.orphans.contains(&orphan) {
                self.orphans.push(orphan);
            }
        }
    }

    /// A worker on the slot's present ground.
    pub(crate) fn worker(&mut self, incarnation: Incarnation) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.incarnation == incarnation)
    }

    pub(crate) fn at_stage(&self, stage: Stage) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.stage == stage)
    }

    pub(crate) fn serving(&self) -> Option<&Worker> {
        self.at_stage(Stage::Serving)
    }

    /// One worker, which serves, and nothing under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.place == Place::Open && self.workers.len() == 1 && self.serving().is_some()
    }

    /// A slot that was closing and has nobody left.
    pub(crate) fn is_empty(&self) -> bool {
        let nobody = self.workers.is_empty() && self.formers.is_empty();
        self.place == Place::Closing && nobody && self.clone_at.is_none()
    }

    /// A worker serves, or will as soon as it is ready.
    pub(crate) fn serves_or_will(&self) -> bool {
        self.workers.iter().any(|worker| {
            matches!(worker.stage, Stage::Serving | Stage::Draining | Stage::Booting { serve_at_once: true })
        })
    }

    /// A successor is on its way beside the worker that serves.
    pub(crate) fn has_successor_booting(&self) -> bool {
        self.serving().is_some()
            && self.workers.iter().any(|worker| worker.is_booting() || worker.stage == Stage::Waiting)
    }

    /// The state as `status` names it.
    pub(crate) fn state(&self) -> &'static str {
        match self.place {
            Place::Closing => "draining",
            _ if self.at_stage(Stage::Draining).is_some() => "draining",
            _ if self.serving().is_some_and(Worker::is_suspected) => "stalled",
            _ if self.serving().is_some() && self.workers.len() > 1 => "handover",
            _ if self.serving().is_some() => "serving",
            _ if self.deaths_at_boot > 0 => "failing",
            _ => "booting",
        }
    }
}
