//! Workers are asked all the time, and ended when they do not answer or do not go.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::ipc::{SlotId, ToMaster, ToWorker, Word};

use super::event::Action;
use super::roster::{DRAIN_MARGIN, PING_EVERY, Roster};
use super::slot::{Post, Stage};

/// How long a worker that was told to leave may take.
const LEAVE_GRACE: Duration = Duration::from_secs(2);
/// How often threads of a worker are looked at while it lives.
const MOST_SHOWN: u32 = 64;
/// How long a hung worker gets to show its stack.
const ABORT_GRACE: Duration = Duration::from_secs(1);

impl Roster {
    pub(super) fn heard(&mut self, id: SlotId, message: ToMaster) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(worker) = slot.worker(message.from) else { return slot.heard_from_former(&message, now) };
        match message.word {
            Word::Buried(dead) => self.buried(id, dead),
            Word::Failed(why) => worker.complaint = Some(why),
            Word::Ready => self.ready(id, message.from),
            Word::Stuck(thread) => {
                // It may say anything, as often as it likes.
                if let Some(pid) = worker.pid.filter(|_| worker.shown < MOST_SHOWN) {
                    worker.shown += 1;
                    self.out.push(Action::ShowStack(id, pid, Pid::from_raw(thread)));
                }
            }
            Word::Pong(pong) => {
                if worker.ping.outstanding.is_none() || pong.number != worker.ping.number {
                    return;
                }
                let owed = worker.ping.outstanding.take();
                if let (Some(since), Some(stall)) = (owed, worker.stall.take().filter(|stall| stall.suspected)) {
                    let (pid, class) = (worker.pid.map_or(0, |pid| pid.as_raw()), stall.class());
                    let text =
                        format!("worker {} (pid {pid}) answers again after {:?}: it was {class}", id.0, now - since);
                    self.out.push(Action::Warn(text));
                }
                self.weigh(id, message.from, &pong);
            }
        }
    }

    pub(super) fn ping(&mut self, id: SlotId) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            let due = worker.ping.next.is_some_and(|at| at <= now) && worker.ping.outstanding.is_none();
            if due && !matches!(worker.stage, Stage::Leaving | Stage::Booting { .. }) {
                worker.ping.number += 1;
                worker.ping.outstanding = Some(now);
                worker.ping.next = Some(now + PING_EVERY);
                actions.push(worker.told(ToWorker::Ping(worker.ping.number)));
            }
        }
        self.out.append(&mut actions);
    }

    pub(super) fn knocked(&mut self, post: Post) {
        let now = self.now;
        let Some(slot) = self.slots.get_mut(&post.slot) else { return };
        for worker in slot.workers.iter_mut().filter(|worker| worker.post == post) {
            if worker.ping.next.is_some() {
                worker.ping.next = Some(now);
            }
        }
    }

    pub(super) fn end_what_is_overdue(&mut self, id: SlotId) {
        let (now, workers) = (self.now, self.config.workers.clone());
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let mut actions = Vec::new();
        for worker in &mut slot.workers {
            let age = now - worker.since;
            let Some(pid) = worker.pid else {
                // A keeper that does not answer is stopped or worse: the slot gets another.
                if age > workers.boot_timeout {
                    worker.since = now;
                    actions.extend(slot.keeper.map(|keeper| Action::Kill(keeper, Signal::SIGKILL)));
                }
                continue;
            };
            match worker.stage {
                Stage::Booting { .. } if age > workers.boot_timeout => {
                    worker.complaint = Some(format!("not ready within boot_timeout ({:?})", workers.boot_timeout));
                    actions.push(Action::Kill(pid, Signal::SIGKILL));
                    worker.hung = Some(now);
                    worker.since = now;
                }
                Stage::Retiring | Stage::Draining if age > workers.drain_timeout + DRAIN_MARGIN => {
                    actions.push(Action::Kill(pid, Signal::SIGKILL));
                    worker.since = now;
                }
                Stage::Leaving if age > LEAVE_GRACE => {
                    actions.push(Action::Kill(pid, Signal::SIGKILL));
                    worker.since = now;
                }
                _ => {}
            }
            if worker.hung.is_some_and(|since| now - since > ABORT_GRACE) {
                worker.hung = Some(now);
                actions.push(Action::Kill(pid, Signal::SIGKILL));
            }
        }
        self.out.append(&mut actions);
    }
}
