//! The threads of a worker that do what may block: reading from a cold disk, compressing. The loop hands them jobs and goes on;
//! an eventfd tells it that results are there. None is started before the first job.
//!
//! Knows neither connections nor what a job does. Equal jobs in flight are done once for all who wait. A thread that faults is
//! blamed on one of those it works for.

mod watch;

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use phalanx_shared::sys::crash_signal::{NOBODY, Prepared};
use phalanx_shared::{error, warn};

use crate::in_handler;
use watch::Watch;

/// Jobs that wait for a thread; with more, the work is refused. Each may hold a file open and a buffer.
const MAX_QUEUED: usize = 1024;

/// What a job comes to, for whoever asked.
pub type Done = Result<Box<dyn Any + Send>, Failure>;

/// Why nothing came of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It panicked.
    Panicked,
    /// It did not end.
    GaveUp,
}

/// What a job does.
type Work = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// Something that may block.
pub struct Job {
    /// Equal keys mean equal results: such jobs are shared. The result must then be an `Arc`, see [`Job::shared`].
    key: Option<String>,
    turn: u64,
    work: Work,
    share: fn(&(dyn Any + Send)) -> Option<Box<dyn Any + Send>>,
}

impl Job {
    /// A job for one.
    pub fn new<T: Any + Send>(work: impl FnOnce() -> T + Send + 'static) -> Job {
        Job { key: None, turn: 0, work: Box::new(|| Box::new(work())), share: |_| None }
    }

    /// A job whose result is the same for everybody who asks for `key` before a thread has begun with it, or in the same `turn`
    /// of the loop: whoever asks later may know of something that its work did not see.
    pub fn shared<T: Any + Send + Sync>(key: String, turn: u64, work: impl FnOnce() -> Arc<T> + Send + 'static) -> Job {
        let share = |done: &(dyn Any + Send)| {
            let result = done.downcast_ref::<Arc<T>>()?;
            Some(Box::new(result.clone()) as Box<dyn Any + Send>)
        };
        Job { key: Some(key), turn, work: Box::new(|| Box::new(work())), share }
    }

    /// Does it here and now, however long that takes.
    pub fn run(self) -> Done {
        run(self.work)
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job {:?}", self.key)
    }
}

/// Tells the result of one job from that of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    number: u64,
    flight: u64,
}

/// Whom a result is for.
struct Waiter {
    fd: RawFd,
    ticket: Ticket,
}

/// A job in flight.
struct Flight {
    /// At least one. The first is to blame if the job faults.
    waiters: Vec<Waiter>,
    share: fn(&(dyn Any + Send)) -> Option<Box<dyn Any + Send>>,
    key: Option<String>,
    turn: u64,
}

/// The pool as its loop sees it.
pub struct Pool {
    most_threads: usize,
    threads: usize,
    next: u64,
    flights: HashMap<u64, Flight>,
    /// The last flight that does the work of a key.
    by_key: HashMap<String, u64>,
    watch: Watch,
    shared: Arc<Shared>,
}

/// What the loop and the threads share.
struct Shared {
    state: Mutex<State>,
    work_is_there: Condvar,
    bell: OnceLock<EventFd>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    running: Vec<Running>,
    done: Vec<(u64, Done)>,
    idle: usize,
    /// How long threads have worked since the loop last asked.
    worked: Duration,
    /// The pool is gone: nobody is left to work for.
    closed: bool,
}

/// A job that a thread is at.
struct Running {
    flight: u64,
    /// The thread's word on whom it works for.
    works_for: Arc<AtomicI32>,
    thread: Pid,
    begun: Instant,
}

/// A job that no thread has begun with.
struct Queued {
    flight: u64,
    /// Whom it is to be done for.
    fd: RawFd,
    work: Work,
}

impl State {
    /// The place of a job that no thread has begun with: the queue is in the order of the numbers.
    fn place(&self, flight: u64) -> Option<usize> {
        self.queue.binary_search_by_key(&flight, |queued| queued.flight).ok()
    }

    /// The job is done for another from now on, or for nobody: then it need not begin, and is given back if it has not.
    fn hand_over(&mut self, flight: u64, heir: Option<RawFd>) -> Option<Queued> {
        if let Some(running) = self.running.iter().find(|running| running.flight == flight) {
            running.works_for.store(heir.unwrap_or(NOBODY), Ordering::Release);
        }
        let place = self.place(flight)?;
        let Some(fd) = heir else { return self.queue.remove(place) };
        self.queue[place].fd = fd;
        None
    }
}

impl Pool {
    /// A pool of at most `most_threads` threads, none of them started yet, and without a bell.
    pub fn new(most_threads: usize) -> Pool {
        let shared = Shared { state: Mutex::default(), work_is_there: Condvar::new(), bell: OnceLock::new() };
        let (flights, by_key, watch) = (HashMap::new(), HashMap::new(), Watch::default());
        Pool { most_threads, threads: 0, next: 0, flights, by_key, watch, shared: Arc::new(shared) }
    }

    /// Hangs the bell up; its descriptor is readable when results are there.
    pub fn hang_bell(&self) -> io::Result<RawFd> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(self.shared.bell.get_or_init(|| bell).as_fd().as_raw_fd())
    }

    /// The bell's descriptor.
    pub fn bell(&self) -> Option<RawFd> {
        self.shared.bell.get().map(|bell| bell.as_fd().as_raw_fd())
    }

    /// Whether too much waits already for another job of a new request.
    pub fn is_full(&self) -> bool {
        self.flights.len() >= MAX_QUEUED
    }

    /// Has `job` done for connection `fd`. Gives the job back when too much waits already, or no thread can be started.
    pub fn submit(&mut self, fd: RawFd, job: Job) -> Result<Ticket, Job> {
        self.next += 1;
        let number = self.next;
        let state = self.shared.lock();
        if let Some(of_key) = job.key.as_ref().and_then(|key| self.by_key.get(key))
            && let Some(flight) = self.flights.get_mut(of_key)
            && (flight.turn == job.turn || state.place(*of_key).is_some())
        {
            let ticket = Ticket { number, flight: *of_key };
            flight.waiters.push(Waiter { fd, ticket });
            return Ok(ticket);
        }
        if state.queue.len() >= MAX_QUEUED {
            return Err(job);
        }
        let busy = state.idle <= state.queue.len();
        drop(state);
        if busy && !self.add_thread() {
            return Err(job);
        }
        let mut state = self.shared.lock();
        state.queue.push_back(Queued { flight: number, fd, work: job.work });
        drop(state);
        self.shared.work_is_there.notify_one();
        if let Some(key) = &job.key {
            self.by_key.insert(key.clone(), number);
        }
        let ticket = Ticket { number, flight: number };
        let waiters = vec![Waiter { fd, ticket }];
        self.flights.insert(number, Flight { waiters, share: job.share, key: job.key, turn: job.turn });
        Ok(ticket)
    }

    /// One thread more, if there may be one more; false when there is none at all.
    fn add_thread(&mut self) -> bool {
        if self.threads < self.most_threads {
            match start_thread(&self.shared) {
                Ok(()) => self.threads += 1,
                Err(error) if self.threads == 0 => warn!("start a thread: {error}"),
                Err(_) => {}
            }
        }
        self.threads > 0
    }

    /// Whoever has this ticket waits no longer. What nobody else waits for either is not begun any more.
    pub fn forget(&mut self, ticket: Ticket) {
        let Some(flight) = self.flights.get_mut(&ticket.flight) else { return };
        // They came in the order of their numbers.
        if let Ok(at) = flight.waiters.binary_search_by_key(&ticket.number, |waiter| waiter.ticket.number) {
            flight.waiters.remove(at);
        }
        let heir = flight.waiters.first().map(|waiter| waiter.fd);
        if heir.is_none() {
            self.remove(ticket.flight);
        }
        let not_begun = self.shared.lock().hand_over(ticket.flight, heir);
        // Without the lock: a job may hold the last descriptor of a file, which takes its time to close.
        drop(not_begun);
    }

    fn remove(&mut self, number: u64) -> Option<Flight> {
        let flight = self.flights.remove(&number)?;
        if let Some(key) = &flight.key
            && self.by_key.get(key) == Some(&number)
        {
            self.by_key.remove(key);
        }
        Some(flight)
    }

    /// The results that have come, each with the connection and the ticket it is for; and how long threads have worked since this
    /// was last asked.
    pub fn results(&mut self) -> (Vec<(RawFd, Ticket, Done)>, Duration) {
        if let Some(bell) = self.shared.bell.get() {
            let _silent = bell.read();
        }
        let mut state = self.shared.lock();
        let (done, worked) = (std::mem::take(&mut state.done), std::mem::take(&mut state.worked));
        drop(state);
        let mut results = Vec::new();
        for (number, done) in done {
            let Some(mut flight) = self.remove(number) else { continue };
            let Some(last) = flight.waiters.pop() else { continue };
            for waiter in flight.waiters {
                let shared = match &done {
                    Ok(done) => (flight.share)(&**done).ok_or(Failure::Panicked),
                    Err(failure) => Err(*failure),
                };
                results.push((waiter.fd, waiter.ticket, shared));
            }
            results.push((last.fd, last.ticket, done));
        }
        (results, worked)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        // Jobs hold files open.
        state.queue.clear();
        drop(state);
        self.shared.work_is_there.notify_all();
    }
}

impl Shared {
    /// A thread that panicked holds no invariant of the state open.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, for a thread that tells in `works_for` whom it works for; none when the pool is gone.
    fn next_job(&self, works_for: &Arc<AtomicI32>, thread: Pid) -> Option<(u64, Work)> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(Queued { flight, fd, work }) = state.queue.pop_front() {
                works_for.store(fd, Ordering::Release);
                let (works_for, begun) = (works_for.clone(), Instant::now());
                state.running.push(Running { flight, works_for, thread, begun });
                return Some((flight, work));
            }
            state.idle += 1;
            state = self.work_is_there.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// A thread has done a job; false when it has been given up, and is to end.
    fn finished(&self, number: u64, done: Done, worked: Duration) -> bool {
        let mut state = self.lock();
        state.worked += worked;
        let Some(at) = state.running.iter().position(|running| running.flight == number) else { return false };
        state.running.swap_remove(at).works_for.store(NOBODY, Ordering::Release);
        state.done.push((number, done));
        drop(state);
        self.ring();
        true
    }

    fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            // It cannot be full: the loop reads it.
            let _rung = bell.write(1);
        }
    }
}

fn start_thread(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = shared.clone();
    let work = move || {
        let works_for = Arc::new(AtomicI32::new(NOBODY));
        let _to_die_in_order = Prepared::this_thread(works_for.clone())
            .inspect_err(|error| warn!("a stack for the signals of a thread: {error}"));
        let thread = nix::unistd::gettid();
        while let Some((number, work)) = shared.next_job(&works_for, thread) {
            let begun = Instant::now();
            let done = run(work);
            if !shared.finished(number, done, begun.elapsed()) {
                return;
            }
        }
    };
    std::thread::Builder::new().name("phalanx-io".to_owned()).spawn(work).map(drop)
}

fn run(work: Work) -> Done {
    in_handler::enter();
    let done = catch_unwind(AssertUnwindSafe(work));
    in_handler::leave();
    if done.is_err() {
        error!("a job of the pool panicked: whoever waits for it gets an error");
    }
    done.map_err(|_| Failure::Panicked)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn wait_for(pool: &mut Pool, count: usize) -> Vec<(RawFd, Ticket, Done)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut results = Vec::new();
        while results.len() < count && Instant::now() < deadline {
            results.append(&mut pool.results().0);
            std::thread::yield_now();
        }
        results
    }

    #[test]
    fn equal_jobs_are_done_once_for_all_who_wait() {
        let mut pool = Pool::new(2);
        let runs = Arc::new(AtomicUsize::new(0));
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        let opened = Arc::new(Mutex::new(opened));
        for fd in 3..6 {
            let (runs, opened) = (runs.clone(), opened.clone());
            let job = Job::shared("key".to_owned(), 1, move || {
                let _open = opened.lock().unwrap().recv();
                Arc::new(runs.fetch_add(1, Ordering::SeqCst))
            });
            pool.submit(fd, job).unwrap();
        }
        gate.send(()).unwrap();
        let mut results = wait_for(&mut pool, 3);
        results.sort_by_key(|(fd, ..)| *fd);
        assert_eq!(results.iter().map(|(fd, ..)| *fd).collect::<Vec<_>>(), [3, 4, 5]);
        for (_, _, done) in results {
            assert_eq!(**done.unwrap().downcast_ref::<Arc<usize>>().unwrap(), 0);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn jobs_of_later_turns_are_shared_until_a_thread_has_begun() {
        let mut pool = Pool::new(1);
        let runs = Arc::new(AtomicUsize::new(0));
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        let opened = Arc::new(Mutex::new(opened));
        let (begun, has_begun) = std::sync::mpsc::channel::<()>();
        for turn in 1..=4 {
            let (runs, opened, begun) = (runs.clone(), opened.clone(), begun.clone());
            let job = Job::shared("key".to_owned(), turn, move || {
                begun.send(()).unwrap();
                let _open = opened.lock().unwrap().recv();
                Arc::new(runs.fetch_add(1, Ordering::SeqCst))
            });
            pool.submit(turn as RawFd, job).unwrap();
            if turn == 1 {
                has_begun.recv().unwrap();
            }
        }
        drop(gate);
        let mut results = wait_for(&mut pool, 4);
        results.sort_by_key(|(fd, ..)| *fd);
        let run = |done: &Done| **done.as_ref().unwrap().downcast_ref::<Arc<usize>>().unwrap();
        assert_eq!(results.iter().map(|(.., done)| run(done)).collect::<Vec<_>>(), [0, 1, 1, 1]);
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        assert!(pool.by_key.is_empty() && pool.flights.is_empty());
    }

    #[test]
    fn a_job_that_panics_has_no_result_and_its_thread_lives_on() {
        let mut pool = Pool::new(1);
        pool.submit(1, Job::new(|| -> u8 { panic!("on purpose") })).unwrap();
        pool.submit(2, Job::new(|| 7u8)).unwrap();
        let results = wait_for(&mut pool, 2);
        assert!(results[0].2.is_err());
        assert_eq!(results[1].2.as_ref().unwrap().downcast_ref::<u8>(), Some(&7));
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_begun() {
        let mut pool = Pool::new(1);
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel::<()>();
        let first = move || {
            begun.send(()).unwrap();
            opened.recv().is_ok()
        };
        let running = pool.submit(3, Job::new(first)).unwrap();
        has_begun.recv().unwrap();
        let runs = Arc::new(AtomicUsize::new(0));
        let mut shared = |fd| {
            let runs = runs.clone();
            let job = Job::shared("key".to_owned(), 1, move || Arc::new(runs.fetch_add(1, Ordering::SeqCst)));
            pool.submit(fd, job).unwrap()
        };
        let (one, other) = (shared(4), shared(5));
        let works_for = |pool: &Pool| pool.shared.lock().running[0].works_for.load(Ordering::SeqCst);
        let queued_for = |pool: &Pool| pool.shared.lock().queue.iter().map(|queued| queued.fd).collect::<Vec<_>>();
        assert_eq!((works_for(&pool), queued_for(&pool)), (3, vec![4]));
        pool.forget(one);
        assert_eq!(queued_for(&pool), [5], "done for who is left");
        pool.forget(running);
        assert_eq!(works_for(&pool), NOBODY);
        pool.forget(other);
        assert!(queued_for(&pool).is_empty() && pool.flights.is_empty() && pool.by_key.is_empty());
        drop(gate);
        pool.submit(6, Job::new(|| 1u8)).unwrap();
        assert_eq!(wait_for(&mut pool, 1)[0].0, 6);
        assert_eq!(runs.load(Ordering::SeqCst), 0);
        assert!(pool.shared.lock().running.is_empty());
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let mut pool = Pool::new(1);
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        pool.submit(0, Job::new(move || opened.recv().is_ok())).unwrap();
        let mut given_back = None;
        for fd in 0..=MAX_QUEUED as RawFd + 1 {
            if let Err(job) = pool.submit(fd, Job::new(|| 1u8)) {
                given_back = Some(job);
                break;
            }
        }
        assert!(given_back.unwrap().run().is_ok());
        drop(gate);
    }
}
