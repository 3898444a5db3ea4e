//! The threads of a pool and what they share with the loops that they work for: one queue of jobs, and for each loop a heap of
//! results with a bell.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ledger::record::Mark;
use phalanx_shared::sys::crash_signal::{Prepared, Word, works_for};
use phalanx_shared::warn;

use super::job::{Done, Failure, Work, run};
use crate::in_handler;
use crate::lock::lock;

/// How long the results of short jobs may wait for one another.
const HELD_BACK: Duration = Duration::from_micros(50);

/// How a pool works.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    /// What its threads are called.
    pub name: &'static str,
    /// The most threads; none is started before there is a job for it.
    pub threads: usize,
    /// Jobs that may wait for a thread; with more, the work is refused.
    pub queue: usize,
    /// Jobs are short, as a rule: results of several are told at once, which costs fewer turns of the loop.
    pub short: bool,
}

/// The threads, and what waits for them.
pub(super) struct Threads {
    pub(super) manners: Manners,
    pub(super) state: Mutex<State>,
    work_is_there: Condvar,
    /// Jobs given and not begun, those included that a loop has not handed over yet.
    waiting: AtomicUsize,
    /// Jobs that threads are at.
    at_work: AtomicUsize,
    /// Some thread was given up.
    has_given_up: AtomicBool,
    /// Changed under the lock.
    count: AtomicUsize,
    next: AtomicU64,
    /// Loops that have these threads.
    loops: AtomicUsize,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<Queued>,
    pub(super) running: Vec<Running>,
    idle: usize,
    /// Nobody is left to work for.
    closed: bool,
}

/// A job that a thread is at.
pub(super) struct Running {
    pub(super) flight: u64,
    /// The thread's word on whom it works for.
    pub(super) works_for: Arc<AtomicU64>,
    pub(super) thread: Pid,
    pub(super) begun: Instant,
    returns: Arc<Returns>,
}

/// A job that no thread has begun with.
pub(super) struct Queued {
    pub(super) flight: u64,
    /// Whom it is to be done for.
    pub(super) fd: RawFd,
    pub(super) work: Work,
    pub(super) begins: Option<Mark>,
    pub(super) returns: Arc<Returns>,
}

/// Where one loop finds what its jobs came to.
#[derive(Default)]
pub(super) struct Returns {
    state: Mutex<Returned>,
    bell: OnceLock<Doorbell>,
}

#[derive(Default)]
struct Returned {
    done: Vec<(u64, Done)>,
    /// How long threads have worked since the loop last asked.
    worked: Duration,
    /// The loop knows that there is something, and has not looked since.
    rung: bool,
}

impl Returns {
    /// Hangs the bell up; its descriptor is readable when results are there.
    pub(super) fn hang_bell(&self) -> io::Result<RawFd> {
        let bell = Doorbell::new()?;
        Ok(self.bell.get_or_init(|| bell).as_fd().as_raw_fd())
    }

    pub(super) fn bell(&self) -> Option<RawFd> {
        self.bell.get().map(|bell| bell.as_fd().as_raw_fd())
    }

    pub(super) fn take(&self) -> (Vec<(u64, Done)>, Duration) {
        let mut state = lock(&self.state);
        // Under the lock, as the ring: a ring that came in between would be silenced with its result still there.
        if std::mem::take(&mut state.rung)
            && let Some(bell) = self.bell.get()
        {
            bell.silence();
        }
        (std::mem::take(&mut state.done), std::mem::take(&mut state.worked))
    }

    pub(super) fn put(&self, flight: u64, done: Done) {
        lock(&self.state).done.push((flight, done));
    }

    fn worked(&self, worked: Duration) {
        lock(&self.state).worked += worked;
    }

    /// Tells the loop that there is something, if it does not know that already.
    pub(super) fn ring(&self) {
        let mut state = lock(&self.state);
        if !std::mem::replace(&mut state.rung, true)
            && let Some(bell) = self.bell.get()
        {
            bell.ring();
        }
    }
}

impl State {
    /// The place of a job that no thread has begun with.
    pub(super) fn place(&self, flight: u64) -> Option<usize> {
        self.queue.iter().position(|queued| queued.flight == flight)
    }

    fn of_flight(&self, flight: u64) -> Option<usize> {
        self.running.iter().position(|running| running.flight == flight)
    }
}

impl Threads {
    pub(super) fn new(manners: Manners) -> Threads {
        Threads {
            manners,
            state: Mutex::default(),
            work_is_there: Condvar::new(),
            waiting: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            has_given_up: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            loops: AtomicUsize::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Counts one more job that waits; false, and nothing counted, when as many do as may.
    pub(super) fn admit(&self) -> bool {
        let most = self.most_waiting();
        let admit = |waiting: usize| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, admit).is_ok()
    }

    /// Whether as many jobs wait as may.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Acquire) >= self.most_waiting()
    }

    /// As many as the queue holds, and one for each thread that has, or would have, nothing to do.
    fn most_waiting(&self) -> usize {
        self.manners.queue + self.manners.threads.saturating_sub(self.at_work.load(Ordering::Acquire))
    }

    /// Jobs that were admitted will not be done.
    pub(super) fn dismiss(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::AcqRel);
    }

    /// A number that no other job has.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sees to it that there is a thread at all; false when none can be started.
    pub(super) fn has_threads(self: &Arc<Threads>) -> bool {
        self.count.load(Ordering::Acquire) > 0 || {
            let _state = self.lock();
            self.add_thread()
        }
    }

    /// Hands jobs over that were admitted.
    pub(super) fn hand_over(self: &Arc<Threads>, jobs: &mut Vec<Queued>) {
        if jobs.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.queue.extend(jobs.drain(..));
        let wanted = (state.queue.len() + state.running.len()).min(self.manners.threads);
        while self.count.load(Ordering::Acquire) < wanted && self.add_thread() {}
        let wake = state.idle > 0;
        drop(state);
        // Who wakes and finds more wakes the next: where jobs are short, one thread does them all meanwhile.
        if wake {
            self.work_is_there.notify_one();
        }
    }

    /// Starts one more thread; false when that is not possible. Under the lock.
    fn add_thread(self: &Arc<Threads>) -> bool {
        let threads = self.clone();
        let started = std::thread::Builder::new().name(self.manners.name.to_owned()).spawn(move || {
            in_handler::own_connections();
            threads.work();
        });
        if let Err(error) = started {
            if self.count.load(Ordering::Acquire) == 0 {
                warn!("start a thread: {error}");
            }
            return false;
        }
        self.count.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// A thread's life.
    fn work(&self) {
        let word = Arc::new(AtomicU64::new(works_for(None)));
        let _to_die_in_order = Prepared::this_thread(Word::Own(word.clone()))
            .inspect_err(|error| warn!("a stack for the signals of a thread: {error}"));
        let thread = nix::unistd::gettid();
        // Whose results have not been told, and since when.
        let mut untold: Option<(Arc<Returns>, Instant)> = None;
        while let Some((flight, work, returns)) = self.next_job(&word, thread, &mut untold) {
            let begun = Instant::now();
            let done = run(work);
            let worked = begun.elapsed();
            returns.worked(worked);
            if !self.finished(flight, done, &returns) {
                return;
            }
            let since = match untold.take() {
                Some((before, since)) if Arc::ptr_eq(&before, &returns) => since,
                Some((before, _)) => {
                    before.ring();
                    begun
                }
                None => begun,
            };
            if self.manners.short && since.elapsed() < HELD_BACK {
                untold = Some((returns, since));
            } else {
                returns.ring();
            }
        }
    }

    /// The next job, for a thread that tells in `word` whom it works for; none when the pool is gone. Before it waits, what is
    /// `untold` is told.
    fn next_job(
        &self,
        word: &Arc<AtomicU64>,
        thread: Pid,
        untold: &mut Option<(Arc<Returns>, Instant)>,
    ) -> Option<(u64, Work, Arc<Returns>)> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(Queued { flight, fd, work, begins, returns }) = state.queue.pop_front() {
                // Under the lock: whoever waited for it may be forgotten at any moment, and its record be another's.
                begins.into_iter().for_each(Mark::set);
                word.store(works_for(Some(fd)), Ordering::Release);
                let begun = Instant::now();
                let (word, of) = (word.clone(), returns.clone());
                state.running.push(Running { flight, works_for: word, thread, begun, returns: of });
                let more = !state.queue.is_empty() && state.idle > 0;
                drop(state);
                self.at_work.fetch_add(1, Ordering::AcqRel);
                self.dismiss(1);
                if more {
                    self.work_is_there.notify_one();
                }
                return Some((flight, work, returns));
            }
            if let Some((returns, _)) = untold.take() {
                drop(state);
                returns.ring();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            state = self.work_is_there.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// A thread has done a job; false when it has been given up, and is to end.
    fn finished(&self, flight: u64, done: Done, returns: &Returns) -> bool {
        let mut state = self.lock();
        let Some(at) = state.of_flight(flight) else { return false };
        state.running.swap_remove(at).works_for.store(works_for(None), Ordering::Release);
        drop(state);
        self.at_work.fetch_sub(1, Ordering::AcqRel);
        returns.put(flight, done);
        true
    }

    /// The thread that is at a job is no longer the pool's; whoever waits for it learns that nothing comes of it.
    pub(super) fn give_up(self: &Arc<Threads>, flight: u64) {
        let mut state = self.lock();
        let Some(at) = state.of_flight(flight) else { return };
        let given_up = state.running.swap_remove(at);
        given_up.works_for.store(works_for(None), Ordering::Release);
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.at_work.fetch_sub(1, Ordering::AcqRel);
        self.has_given_up.store(true, Ordering::Release);
        if !state.queue.is_empty() {
            self.add_thread();
        }
        drop(state);
        given_up.returns.put(flight, Err(Failure::GaveUp));
        given_up.returns.ring();
    }

    pub(super) fn is_at_work(&self) -> bool {
        self.at_work.load(Ordering::Acquire) > 0 || self.has_given_up.load(Ordering::Acquire)
    }

    /// A job is done for another from now on, or for nobody: then it need not begin, and is given back if it has not.
    pub(super) fn bequeath(&self, flight: u64, heir: Option<RawFd>) -> Option<Queued> {
        let mut state = self.lock();
        if let Some(at) = state.of_flight(flight) {
            state.running[at].works_for.store(works_for(heir), Ordering::Release);
        }
        let place = state.place(flight)?;
        let Some(fd) = heir else {
            let queued = state.queue.remove(place);
            drop(state);
            self.dismiss(1);
            return queued;
        };
        state.queue[place].fd = fd;
        None
    }

    /// One loop more has these threads.
    pub(super) fn join(&self) {
        self.loops.fetch_add(1, Ordering::AcqRel);
    }

    /// One loop less has these threads; after the last there is nobody left to work for.
    pub(super) fn leave(&self) {
        if self.loops.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let mut state = self.lock();
        state.closed = true;
        // Jobs hold files open.
        let left = std::mem::take(&mut state.queue);
        drop(state);
        self.dismiss(left.len());
        self.work_is_there.notify_all();
    }
}

impl Running {
    /// Whether it is a job of the loop with these results.
    pub(super) fn is_of(&self, returns: &Arc<Returns>) -> bool {
        Arc::ptr_eq(&self.returns, returns)
    }
}
