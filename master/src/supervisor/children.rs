//! The master's children: who has ended and why, and how those that live are.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::ledger::record::Owner;
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::process;
use phalanx_shared::sys::rest::resident_bytes;
use rustix::process::{WaitOptions, wait};

use super::Supervisor;
use super::event::Event;
use super::ground::Ground;
use super::slot::{Slot, Stage, Worker};
use crate::status::{self, Status};
use crate::verdict::{self, Cause, Ending};

impl Supervisor {
    pub(super) fn reap(&mut self) -> Vec<(Pid, Ending)> {
        let mut ended = Vec::new();
        // Not nix's: that reaps whom a realtime signal has killed, and tells nothing but an error.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let ending = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ending::Exited(code),
                (None, Some(signal)) => Ending::Killed(signal),
                (None, None) => continue,
            };
            let pid = Pid::from_raw(pid.as_raw_nonzero().get());
            let rehearsed = self.rehearsal.as_mut().is_some_and(|rehearsal| rehearsal.ended(pid, ending));
            let of_reporters = self.reporters.ended(pid, &self.roster.config.master);
            if rehearsed || of_reporters || self.backgrounds.ended(pid, ending) {
                continue;
            }
            ended.push((pid, ending));
        }
        ended
    }

    /// Known processes that are no children any more: a program that died before it could write that down has reaped them. A
    /// worker that has left nothing did what it was told to.
    pub(super) fn ended_unseen(&self) -> Vec<(Pid, Ending)> {
        let slots = || self.roster.slots.values();
        let keepers = slots().flat_map(|slot| slot.keeper.into_iter().chain(slot.former_keepers()));
        let mut unseen: Vec<_> = keepers.map(|pid| (pid, Ending::Unseen)).collect();
        for worker in slots().flat_map(Slot::every_worker) {
            let is_left = |owner| worker.lanes().any(|(whose, _)| owner == Some(Owner::Worker(whose)));
            let has_left = |ground: &Ground| ground.ledger.recorded().any(|(_, record)| is_left(record.owner()));
            let left = self.ground(worker.post).is_some_and(has_left);
            unseen.extend(worker.pid.map(|pid| (pid, if left { Ending::Unseen } else { Ending::Exited(0) })));
        }
        unseen.retain(|(pid, _)| !process::is_child(*pid));
        unseen
    }

    pub(super) fn is_keeper(&self, pid: Pid) -> bool {
        let keeps_former = |slot: &Slot| slot.formers.iter().any(|former| former.keeper == Some(pid));
        self.roster.slots.values().any(|slot| slot.keeper == Some(pid) || keeps_former(slot))
    }

    pub(super) fn ended(&mut self, pid: Pid, ending: Ending) -> Event {
        let post = self.posts.remove(&pid);
        let cause = match post.and_then(|post| Some((post, self.ground(post)?))) {
            Some((post, ground)) => verdict::cause(&ground.ledger, post.lane, ending),
            None => Cause { ending, own_fault: false, out_of_memory: None },
        };
        let out_of_memory =
            (ending == Ending::Killed(Signal::SIGKILL as i32)).then(|| self.memory_kills.look()).flatten();
        Event::Ended(pid, Cause { out_of_memory, ..cause })
    }

    /// Workers that only end what they have, and whom they wait for.
    pub(super) fn draining(&self) -> Vec<status::Draining> {
        let (now, limit) = (Instant::now(), self.roster.config.workers.drain_timeout);
        let ends = |worker: &&Worker| matches!(worker.stage, Stage::Retiring | Stage::Draining);
        let of_slots = self.roster.slots.values().flat_map(Slot::every_worker).filter(ends);
        let tell = |worker: &Worker| {
            let ledger = self.ground(worker.post).map(|ground| &ground.ledger);
            let owner = Some(Owner::Worker(worker.incarnation));
            let records =
                ledger.into_iter().flat_map(|ledger| ledger.recorded().map(move |(_, record)| (ledger, record)));
            let own: Vec<_> = records.filter(|(_, record)| record.owner() == owner).collect();
            let since = now.saturating_duration_since(worker.since);
            status::Draining {
                slot: worker.post.slot.0,
                pid: worker.pid.map(Pid::as_raw),
                incarnation: worker.incarnation.0,
                generation: worker.generation.0,
                since_ms: since.as_millis() as u64,
                left_ms: limit.saturating_sub(since).as_millis() as u64,
                connections: own.len(),
                waits_for: own
                    .iter()
                    .filter_map(|(ledger, record)| verdict::in_flight(ledger, record))
                    .take(64)
                    .collect(),
            }
        };
        of_slots.map(tell).collect()
    }

    pub(super) fn status(&self) -> Status {
        let mut slots = Vec::new();
        for (id, slot) in &self.roster.slots {
            let stats = self.grounds.get(id).map(|ground| ground.ledger.stats()).unwrap_or_default();
            let worker = slot.serving().or(slot.workers.last());
            let pid = worker.and_then(|worker| worker.pid);
            slots.push(status::Slot {
                slot: id.0,
                pid: pid.map(Pid::as_raw),
                keeper_pid: slot.keeper.map(Pid::as_raw),
                incarnation: worker.map_or(0, |worker| worker.incarnation.0),
                state: slot.state().to_owned(),
                generation: worker.map_or(self.roster.generation.0, |worker| worker.generation.0),
                cause_of_last_death: slot.cause_of_last_death.clone(),
                connections: stats.connections,
                requests: stats.requests,
                restarts: slot.restarts,
                rss_bytes: pid.and_then(resident_bytes).unwrap_or(0),
            });
        }
        let master = status::Master {
            pid: std::process::id() as i32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.roster.generation.0,
            uptime_s: self.started.elapsed().as_secs(),
            state: self.roster.health().to_owned(),
        };
        Status {
            master,
            listeners: self.premises.listeners.addresses(),
            slots,
            quarantined: self.common.ward.held(),
            figures: phalanx_shared::state::metrics::values().into_iter().collect(),
            totals: self.totals(),
        }
    }

    /// Counters since the service exists.
    pub(super) fn totals(&self) -> Snapshot {
        let mut totals = self.retired;
        self.all_grounds().for_each(|(_, ground)| totals.add(&ground.ledger.stats()));
        totals
    }
}
