//! Jobs that do not end: a thread that works on one for longer than it may is given up, with the request that it works for. What
//! counts is time that it computes or sleeps by its own doing; a thread that gets no processor is spared.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use phalanx_shared::stall::{Class, Stall};
use phalanx_shared::sys::crash_signal::worked_for;
use phalanx_shared::sys::rest::thread_scheduling;

use super::Pool;
use super::threads::Running;

/// What a pool knows of the threads that have been at one job for long.
#[derive(Default)]
pub(super) struct Watch {
    /// By flight.
    stalls: HashMap<u64, Stall>,
    looked: Option<Instant>,
}

/// A job that does not end.
#[derive(Debug)]
pub struct Stuck {
    /// Whom it is done for; none: nobody any more.
    pub fd: Option<RawFd>,
    /// The thread.
    pub thread: Pid,
    /// How long it has been at it.
    pub age: Duration,
    /// What the thread does.
    pub class: Class,
    /// Whether the thread was given up, and a failure is among the results; else it may yet end.
    pub given_up: bool,
}

/// How often a job is looked at that may work for `limit`.
fn every(limit: Duration) -> Duration {
    (limit / 20).clamp(Duration::from_millis(50), Duration::from_millis(500))
}

impl Pool {
    /// When [`Pool::watch`] is to be asked again; none while no thread is at work.
    pub fn next_look(&self, limit: Duration) -> Option<Instant> {
        if limit.is_zero() || !self.is_working() {
            return None;
        }
        Some(self.watch.looked.map_or_else(Instant::now, |looked| looked + every(limit)))
    }

    /// Jobs in flight, or threads that nobody waits for any more.
    fn is_working(&self) -> bool {
        !self.flights.is_empty() || !self.watch.stalls.is_empty()
    }

    /// Looks at jobs that have run for long, and gives up those that have worked for `limit`; zero: never. Tells each of them at
    /// half of that, and when it is given up.
    pub fn watch(&mut self, now: Instant, limit: Duration) -> Vec<Stuck> {
        let every = every(limit);
        if limit.is_zero() || !self.is_working() || self.watch.looked.is_some_and(|looked| now < looked + every) {
            return Vec::new();
        }
        self.watch.looked = Some(now);
        let mut found = Vec::new();
        let running = |running: &Running| {
            let age = now.saturating_duration_since(running.begun);
            (age >= every)
                .then(|| (running.flight, running.thread, age, worked_for(running.works_for.load(Ordering::Acquire))))
        };
        let long: Vec<(u64, Pid, Duration, Option<RawFd>)> = {
            let state = self.threads.lock();
            state.running.iter().filter(|it| it.is_of(&self.returns)).filter_map(running).collect()
        };
        self.watch.stalls.retain(|flight, _| long.iter().any(|(running, ..)| running == flight));
        for (flight, thread, age, fd) in long {
            let Some(scheduling) = thread_scheduling(thread) else { continue };
            let stall = self.watch.stalls.entry(flight).or_insert_with(Stall::new);
            stall.look(now, every, scheduling);
            let (own, class) = (stall.own(), stall.class());
            if own >= limit {
                self.watch.stalls.remove(&flight);
                self.threads.give_up(flight);
                found.push(Stuck { fd, thread, age, class, given_up: true });
            } else if age >= limit / 2 && !stall.suspected {
                stall.suspected = true;
                found.push(Stuck { fd, thread, age, class, given_up: false });
            }
        }
        found
    }
}
