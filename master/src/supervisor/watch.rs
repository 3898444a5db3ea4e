//! Where the master sleeps, and what has happened when it wakes.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use phalanx_shared::ipc::SlotId;
use phalanx_shared::sys::process;
use phalanx_shared::warn;

use super::Supervisor;
use super::event::Event;
use super::slot::Post;
use crate::upgrade::rehearsal::Rehearsal;
use crate::verdict::Ending;

/// How long an end waits for the keeper's word whose worker it was: some are never claimed, and numbers are used again.
const CLAIM_LIMIT: Duration = Duration::from_secs(5);

/// What woke the master.
#[derive(Debug, Clone, Copy)]
enum Source {
    Signals,
    Control,
    Keeper(SlotId),
    Bell(Post),
    Rehearsal,
}

impl Supervisor {
    /// Sleeps until something happens or is due, and tells what.
    pub(super) fn next_events(&mut self) -> Vec<Event> {
        let woken = self.sleep();
        let mut events = Vec::new();
        // Births before words before deaths: a worker that has died had been born, and may have said why.
        for source in &woken {
            if let Source::Keeper(slot) = *source {
                self.births(slot, &mut events);
            }
        }
        let signalled = woken.iter().any(|source| matches!(source, Source::Signals));
        for source in &woken {
            if let Source::Bell(post) = *source {
                self.words(post, &mut events);
            }
        }
        if let (true, Some(rehearsal)) = (woken.iter().any(|it| matches!(it, Source::Rehearsal)), &mut self.rehearsal) {
            rehearsal.hear();
        }
        if woken.iter().any(|source| matches!(source, Source::Control)) {
            self.commands(&mut events);
        }
        let look = std::mem::take(&mut self.look_for_the_dead);
        let unseen = if look { self.ended_unseen() } else { Vec::new() };
        if look || signalled || !self.unheard.is_empty() {
            self.signals(&mut events);
        }
        for (pid, ending) in unseen {
            events.push(self.ended(pid, ending));
        }
        events.extend(self.rehearsal.as_ref().and_then(Rehearsal::verdict).map(Event::Rehearsed));
        events
    }

    fn sleep(&self) -> Vec<Source> {
        let read = PollFlags::POLLIN;
        let mut sources = vec![(self.premises.signals.descriptor(), Source::Signals, read)];
        if let Some(control) = &self.premises.control {
            sources.extend(control.descriptors().map(|(fd, flags)| (fd, Source::Control, flags)));
        }
        for (slot, ground) in &self.grounds {
            if !ground.hung_up.get() {
                sources.push((ground.orders.as_fd(), Source::Keeper(*slot), read));
            }
        }
        sources.extend(self.rehearsal.iter().filter_map(Rehearsal::descriptor).map(|fd| (fd, Source::Rehearsal, read)));
        for (slot, ground) in self.all_grounds() {
            for (lane, end) in ground.ends.iter().enumerate() {
                let post = Post { slot, ground: ground.number, lane };
                sources.push((AsFd::as_fd(&*end.bell), Source::Bell(post), read));
            }
        }
        let mut polled: Vec<PollFd<'_>> = sources.iter().map(|(fd, _, flags)| PollFd::new(*fd, *flags)).collect();
        // An interrupted poll has seen nothing; the pipe of the signal that interrupted it wakes the next.
        let _interrupted = poll(&mut polled, self.timeout());
        let woken = polled.iter().zip(&sources).filter(|(polled, _)| polled.any().unwrap_or(false));
        woken.map(|(_, (_, source, _))| *source).collect()
    }

    fn timeout(&self) -> PollTimeout {
        let due = self.roster.next_deadline().into_iter().chain(self.backgrounds.next_deadline()).min();
        let wait = due.map_or(Duration::from_secs(1), |at| at.saturating_duration_since(Instant::now()));
        PollTimeout::from(wait.as_micros().div_ceil(1000).min(1000) as u16)
    }

    fn births(&mut self, slot: SlotId, events: &mut Vec<Event>) {
        let Some(ground) = self.grounds.get(&slot) else { return };
        for (incarnation, outcome) in ground.births() {
            if let Ok(pid) = outcome {
                // Who has been reaped is a child no more; but a later process may have its number.
                let is_child = process::is_child(pid);
                let reaped = self.unclaimed.remove(&pid).filter(|_| !is_child);
                if reaped.is_none() && !is_child {
                    warn!("a keeper tells of pid {pid}, which is no child");
                    continue;
                }
                let known = self.roster.slots.get_mut(&slot).and_then(|slot| slot.worker(incarnation));
                let known = known.filter(|worker| worker.pid.is_none());
                let Some(post) = known.map(|worker| worker.post) else { continue };
                if self.posts.contains_key(&pid) || self.is_keeper(pid) {
                    continue;
                }
                self.posts.insert(pid, post);
                events.push(Event::Born(slot, incarnation, Ok(pid)));
                if let Some((ending, _)) = reaped {
                    self.all_words(slot, events);
                    events.push(self.ended(pid, ending));
                }
            } else {
                events.push(Event::Born(slot, incarnation, outcome));
            }
        }
    }

    fn words(&mut self, post: Post, events: &mut Vec<Event>) {
        let Some(end) = self.ground(post).and_then(|ground| ground.ends.get(post.lane)) else { return };
        end.bell.silence();
        let mut said_nothing = true;
        while let Some(message) = end.hear() {
            said_nothing = false;
            events.push(Event::Heard(post.slot, message));
        }
        if said_nothing {
            events.push(Event::Knocked(post));
        }
    }

    fn all_words(&mut self, slot: SlotId, events: &mut Vec<Event>) {
        let grounds = self.all_grounds().filter(|(of, _)| *of == slot);
        for end in grounds.flat_map(|(_, ground)| &ground.ends) {
            while let Some(message) = end.hear() {
                events.push(Event::Heard(slot, message));
            }
        }
    }

    fn commands(&mut self, events: &mut Vec<Event>) {
        let Some(control) = &mut self.premises.control else { return };
        for (client, command) in control.turn() {
            events.extend(self.command(client, command));
        }
    }

    fn signals(&mut self, events: &mut Vec<Event>) {
        let mut wishes = std::mem::take(&mut self.unheard);
        wishes.extend(self.premises.signals.wishes());
        for (wish, name) in wishes {
            events.extend(self.wish(wish, name));
        }
        let mut ended = self.reap();
        // A worker may be dead before its keeper has told its number, or before that was read.
        ended.retain(|(pid, ending)| {
            let known = self.posts.contains_key(pid) || self.is_keeper(*pid);
            if !known {
                self.leave_unclaimed(*pid, *ending);
            }
            known
        });
        if ended.iter().any(|(pid, _)| self.is_keeper(*pid)) || !self.unclaimed.is_empty() {
            // What keepers have still to tell comes first.
            for slot in self.grounds.keys().copied().collect::<Vec<_>>() {
                self.births(slot, events);
            }
        }
        for (pid, ending) in ended {
            if let Some(post) = self.posts.get(&pid) {
                let slot = post.slot;
                self.all_words(slot, events);
            }
            events.push(self.ended(pid, ending));
        }
    }

    fn leave_unclaimed(&mut self, pid: Pid, ending: Ending) {
        let now = Instant::now();
        self.unclaimed.retain(|_, (_, since)| now - *since < CLAIM_LIMIT);
        self.unclaimed.insert(pid, (ending, now));
    }
}
