//! Work that does not end: a thread that works on one request for longer than it may is given up, with the request. What counts is
//! time that it computes or sleeps by its own doing; a thread that gets no processor, or waits for a peer, is spared.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use nix::unistd::{Pid, gettid};
use phalanx_shared::clock::Clock;
use phalanx_shared::ledger::Track;
use phalanx_shared::stall::{Class, Stall};
use phalanx_shared::sys::rest::{scheduling, thread_scheduling};

use crate::lock::lock;

/// Threads that wait for what is not theirs to bring about.
static SPARED: LazyLock<Mutex<HashSet<i32>>> = LazyLock::new(Mutex::default);

/// Waits, by `wait`, for somebody else: a peer that sends its body, a process that has limits of its own. It is no time of the
/// thread's.
pub(crate) fn spared<T>(wait: impl FnOnce() -> T) -> T {
    struct Back(i32);
    impl Drop for Back {
        fn drop(&mut self) {
            lock(&SPARED).remove(&self.0);
        }
    }
    let own = gettid().as_raw();
    lock(&SPARED).insert(own);
    let _back = Back(own);
    wait()
}

/// What is known of the threads that have been at one thing for long.
#[derive(Default)]
pub(crate) struct Watch {
    /// By what they are at.
    stalls: HashMap<u64, Stall>,
    looked: Option<Instant>,
}

/// A thread that is at something.
pub(crate) struct AtWork {
    /// Tells what it is at from all else.
    pub(crate) number: u64,
    pub(crate) thread: Pid,
    /// The thread is a process of its own.
    pub(crate) is_process: bool,
    pub(crate) begun: Instant,
}

/// Work that does not end.
pub(crate) struct Endless {
    pub(crate) number: u64,
    pub(crate) thread: Pid,
    /// How long the thread has been at it.
    pub(crate) age: Duration,
    /// What the thread does.
    pub(crate) class: Class,
    /// It has worked for as long as it may; else it may yet end.
    pub(crate) given_up: bool,
}

/// Bits of a number that tell whose work it is.
const TAG: u32 = 20;

impl AtWork {
    /// What a thread is at with the one connection that it serves and tells of in its track. It is told from what the same thread was
    /// at before by when it began, and from what others are at by `tag`, which is below 2^20.
    pub(crate) fn of_track(track: &Track, tag: u32, thread: Pid, clock: &Clock) -> Option<AtWork> {
        let since = track.busy_since()?;
        let number = (since.as_nanos() as u64) << TAG | u64::from(tag);
        let begun = clock.now() - clock.since_boot().saturating_sub(since);
        Some(AtWork { number, thread, is_process: false, begun })
    }
}

impl Endless {
    /// That of [`AtWork::of_track`].
    pub(crate) fn tag(&self) -> u32 {
        (self.number & ((1 << TAG) - 1)) as u32
    }
}

/// How often work is looked at that may last for `limit`.
fn every(limit: Duration) -> Duration {
    (limit / 20).clamp(Duration::from_millis(50), Duration::from_millis(500))
}

impl Watch {
    /// Some that were looked at may be at it still.
    pub(crate) fn is_watching(&self) -> bool {
        !self.stalls.is_empty()
    }

    /// When to look again.
    pub(crate) fn next_look(&self, limit: Duration) -> Instant {
        self.looked.map_or_else(Instant::now, |looked| looked + every(limit))
    }

    /// Whether it is time to look.
    pub(crate) fn is_due(&self, now: Instant, limit: Duration) -> bool {
        !limit.is_zero() && self.looked.is_none_or(|looked| now >= looked + every(limit))
    }

    /// Looks at all who are `at_work`, and tells of those who have worked for `limit`, each once, and once at half of that.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        limit: Duration,
        at_work: impl Iterator<Item = AtWork>,
    ) -> Vec<Endless> {
        self.looked = Some(now);
        let every = every(limit);
        let age = |it: &AtWork| now.saturating_duration_since(it.begun);
        let long: Vec<AtWork> = at_work.filter(|it| age(it) >= every).collect();
        self.stalls.retain(|number, _| long.iter().any(|it| it.number == *number));
        let mut found = Vec::new();
        for it in long {
            if lock(&SPARED).contains(&it.thread.as_raw()) {
                // It begins anew when the wait is over.
                self.stalls.insert(it.number, Stall::new());
                continue;
            }
            let looked_at = if it.is_process { scheduling(it.thread) } else { thread_scheduling(it.thread) };
            let Some(looked_at) = looked_at else { continue };
            let stall = self.stalls.entry(it.number).or_insert_with(Stall::new);
            stall.look(now, every, looked_at);
            let given_up = stall.own() >= limit;
            if given_up || age(&it) >= limit / 2 && !stall.suspected {
                stall.suspected = true;
                let class = stall.class();
                found.push(Endless { number: it.number, thread: it.thread, age: age(&it), class, given_up });
            }
            if given_up {
                self.stalls.remove(&it.number);
            }
        }
        found
    }
}
