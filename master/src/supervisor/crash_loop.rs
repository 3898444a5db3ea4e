//! Workers that die again and again: a slot whose workers do not come to serve waits longer each time, the service says how it
//! is, and in the end gives up, if that is wished.

use std::time::Duration;

use phalanx_shared::ipc::SlotId;

use super::backoff;
use super::roster::Roster;
use super::slot::{Slot, Worker};

/// Who has served so long has come to serve.
pub(super) const SETTLED: Duration = Duration::from_secs(1);
/// So many are succeeded at once, one after the other: clients wait.
const FREE: u32 = 5;
/// Those who are connected wait no longer than this.
const LONGEST: Duration = Duration::from_secs(1);
/// With so many the slot is in a crash loop.
const LOOP: u32 = 3;

impl Slot {
    /// A worker has died; in haste: of itself, or before it came to serve. How long its successor is to wait.
    pub(super) fn count_death(&mut self, hasty: bool) -> Duration {
        self.hasty_deaths = if hasty { self.hasty_deaths.saturating_add(1) } else { 0 };
        match self.hasty_deaths.checked_sub(FREE) {
            None | Some(0) => Duration::ZERO,
            Some(more) => backoff::jittered(more).min(LONGEST),
        }
    }

    /// Others have to do its accepting: its worker does not answer, or it gets none.
    pub(super) fn needs_relief(&self) -> bool {
        match self.serving() {
            Some(worker) => worker.is_suspected(),
            None => self.is_in_crash_loop(),
        }
    }

    fn is_in_crash_loop(&self) -> bool {
        self.hasty_deaths >= LOOP
    }
}

impl Roster {
    pub(super) fn look_for_crash_loops(&mut self) {
        let now = self.now;
        for slot in self.slots.values_mut() {
            if slot.serving().is_some_and(|worker| now - worker.since >= SETTLED) {
                slot.hasty_deaths = 0;
            }
        }
        let most = self.config.workers.give_up_after;
        let over = |slot: &Slot| slot.hasty_deaths >= most && slot.formers.is_empty();
        if most == 0 || !self.started || self.is_stopping() || !self.slots.values().all(over) {
            return;
        }
        let cause = self.slots.get(&SlotId(0)).and_then(|slot| slot.cause_of_last_death.as_deref());
        let cause = cause.unwrap_or("workers die before they serve");
        self.gave_up = true;
        self.stop(true, None, Some(format!("gave up after {most} deaths in a row in every slot, the last: {cause}")));
    }

    /// How the service is, in one word.
    pub(crate) fn health(&self) -> &'static str {
        let serves = |slot: &Slot| slot.serving().is_some() && !slot.is_in_crash_loop();
        let well = |slot: &Slot| serves(slot) && !slot.serving().is_some_and(Worker::is_suspected);
        if self.is_stopping() {
            "stopping"
        } else if !self.started {
            "starting"
        } else if !self.slots.values().any(serves) {
            "failing"
        } else if !self.slots.values().all(well) {
            "degraded"
        } else {
            "ok"
        }
    }
}
