//! The threads of a worker that do what may block, as one of its loops sees them: the loop hands them jobs and goes on; an eventfd
//! tells it that results are there. None is started before the first job.
//!
//! Knows neither connections nor what a job does. Equal jobs in flight are done once for all who wait. A thread that faults is
//! blamed on one of those it works for. Several loops can have the same threads.

mod job;
mod threads;

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use phalanx_shared::stall::Class;
use phalanx_shared::sys::crash_signal::worked_for;

pub use job::{Done, Failure, Job};
pub use threads::Manners;
use threads::{Queued, Returns, Threads};

use crate::watch::{AtWork, Endless, Watch};

/// How long a result may be held back behind a job that was thought to be short.
const HELD_BACK_AT_MOST: Duration = Duration::from_millis(1);

/// Tickets of all pools of the process have numbers of their own.
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

/// Tells the result of one job from that of another, of whichever pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    number: u64,
    flight: u64,
}

impl Ticket {
    /// One that nobody has, for what no pool does.
    pub fn fresh() -> Ticket {
        Ticket { number: NEXT_TICKET.fetch_add(1, Ordering::Relaxed), flight: 0 }
    }
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
    share: job::Share,
    key: Option<String>,
    turn: u64,
}

/// The pool as a loop sees it.
pub struct Pool {
    threads: Arc<Threads>,
    returns: Arc<Returns>,
    flights: HashMap<u64, Flight>,
    /// The last flight that does the work of a key.
    by_key: HashMap<String, u64>,
    /// Jobs of this turn, which are handed over at its end.
    outbox: Vec<Queued>,
    watch: Watch,
}

impl Pool {
    /// A pool of threads of its own, none of them started yet, and without a bell.
    pub fn new(manners: Manners) -> Pool {
        Pool::of(Arc::new(Threads::new(manners)))
    }

    fn of(threads: Arc<Threads>) -> Pool {
        threads.join();
        Pool {
            threads,
            returns: Arc::default(),
            flights: HashMap::new(),
            by_key: HashMap::new(),
            outbox: Vec::new(),
            watch: Watch::default(),
        }
    }

    /// The same threads, for another loop.
    pub fn for_another_loop(&self) -> Pool {
        Pool::of(self.threads.clone())
    }

    /// Hangs the bell up; its descriptor is readable when results are there.
    pub fn hang_bell(&self) -> io::Result<RawFd> {
        self.returns.hang_bell()
    }

    /// The bell's descriptor.
    pub fn bell(&self) -> Option<RawFd> {
        self.returns.bell()
    }

    /// Whether too much waits already for another job of a new request.
    pub fn is_full(&self) -> bool {
        self.threads.is_full()
    }

    /// Has `job` done for connection `fd`. Gives the job back when too much waits already, or no thread can be started.
    pub fn submit(&mut self, fd: RawFd, job: Job) -> Result<Ticket, Job> {
        let number = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
        if let Some(ticket) = self.join(fd, number, &job) {
            return Ok(ticket);
        }
        if !self.threads.admit() {
            return Err(job);
        }
        if !self.threads.has_threads() {
            self.threads.dismiss(1);
            return Err(job);
        }
        let flight = self.threads.number();
        self.outbox.push(Queued { flight, fd, work: job.work, begins: job.begins, returns: self.returns.clone() });
        if let Some(key) = &job.key {
            self.by_key.insert(key.clone(), flight);
        }
        let ticket = Ticket { number, flight };
        let waiters = vec![Waiter { fd, ticket }];
        self.flights.insert(flight, Flight { waiters, share: job.share, key: job.key, turn: job.turn });
        Ok(ticket)
    }

    /// Waits with others for an equal job, if its result may be shared.
    fn join(&mut self, fd: RawFd, number: u64, job: &Job) -> Option<Ticket> {
        let of_key = *self.by_key.get(job.key.as_ref()?)?;
        let not_begun =
            || self.outbox.iter().any(|queued| queued.flight == of_key) || self.threads.lock().place(of_key).is_some();
        if self.flights.get(&of_key)?.turn != job.turn && !not_begun() {
            return None;
        }
        let ticket = Ticket { number, flight: of_key };
        self.flights.get_mut(&of_key)?.waiters.push(Waiter { fd, ticket });
        Some(ticket)
    }

    /// How long a loop may wait for anything else while results may be held back; none: for ever.
    pub fn next_results(&self) -> Option<Duration> {
        (self.threads.manners.short && !self.flights.is_empty()).then_some(HELD_BACK_AT_MOST)
    }

    /// Whether a thread is at work, or was given up and may be at work for ever.
    pub fn is_at_work(&self) -> bool {
        self.threads.is_at_work()
    }

    /// Hands the jobs of this turn over.
    pub fn hand_over(&mut self) {
        self.threads.hand_over(&mut self.outbox);
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
        if let Some(at) = self.outbox.iter().position(|queued| queued.flight == ticket.flight) {
            match heir {
                Some(fd) => self.outbox[at].fd = fd,
                None => {
                    self.outbox.remove(at);
                    self.threads.dismiss(1);
                }
            }
            return;
        }
        let not_begun = self.threads.bequeath(ticket.flight, heir);
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
        let (done, worked) = self.returns.take();
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

impl Pool {
    /// When [`Pool::watch`] is to be asked again; none while no thread is at work.
    pub fn next_look(&self, limit: Duration) -> Option<Instant> {
        (!limit.is_zero() && self.is_working()).then(|| self.watch.next_look(limit))
    }

    /// Jobs in flight, or threads that nobody waits for any more.
    fn is_working(&self) -> bool {
        !self.flights.is_empty() || self.watch.is_watching()
    }

    /// Looks at jobs that have run for long, and gives up those that have worked for `limit`; zero: never. Tells each of them at
    /// half of that, and when it is given up.
    pub fn watch(&mut self, now: Instant, limit: Duration) -> Vec<Stuck> {
        if !self.is_working() || !self.watch.is_due(now, limit) {
            return Vec::new();
        }
        let mut works_for = HashMap::new();
        let mut at_work = Vec::new();
        for running in self.threads.lock().running.iter().filter(|running| running.is_of(&self.returns)) {
            works_for.insert(running.flight, worked_for(running.works_for.load(Ordering::Acquire)));
            at_work.push(AtWork {
                number: running.flight,
                thread: running.thread,
                is_process: false,
                begun: running.begun,
            });
        }
        let found = self.watch.look(now, limit, at_work.into_iter());
        let stuck = |Endless { number, thread, age, class, given_up }: Endless| {
            if given_up {
                self.threads.give_up(number);
            }
            Stuck { fd: works_for.get(&number).copied().flatten(), thread, age, class, given_up }
        };
        found.into_iter().map(stuck).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.threads.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn pool_of(threads: usize) -> Pool {
        Pool::new(Manners { name: "test", threads, queue: 1024, short: false })
    }

    fn wait_for(pool: &mut Pool, count: usize) -> Vec<(RawFd, Ticket, Done)> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut results = Vec::new();
        while results.len() < count && Instant::now() < deadline {
            pool.hand_over();
            results.append(&mut pool.results().0);
            std::thread::yield_now();
        }
        results
    }

    #[test]
    fn equal_jobs_are_done_once_for_all_who_wait() {
        let mut pool = pool_of(2);
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
        let mut pool = pool_of(1);
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
            pool.hand_over();
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
        let mut pool = pool_of(1);
        pool.submit(1, Job::new(|| -> u8 { panic!("on purpose") })).unwrap();
        pool.submit(2, Job::new(|| 7u8)).unwrap();
        let results = wait_for(&mut pool, 2);
        assert!(results[0].2.is_err());
        assert_eq!(results[1].2.as_ref().unwrap().downcast_ref::<u8>(), Some(&7));
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_begun() {
        let mut pool = pool_of(1);
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel::<()>();
        let first = move || {
            begun.send(()).unwrap();
            opened.recv().is_ok()
        };
        let running = pool.submit(3, Job::new(first)).unwrap();
        pool.hand_over();
        has_begun.recv().unwrap();
        let runs = Arc::new(AtomicUsize::new(0));
        let mut shared = |fd| {
            let runs = runs.clone();
            let job = Job::shared("key".to_owned(), 1, move || Arc::new(runs.fetch_add(1, Ordering::SeqCst)));
            let ticket = pool.submit(fd, job).unwrap();
            pool.hand_over();
            ticket
        };
        let (one, other) = (shared(4), shared(5));
        let running_for = |pool: &Pool| worked_for(pool.threads.lock().running[0].works_for.load(Ordering::SeqCst));
        let queued_for = |pool: &Pool| pool.threads.lock().queue.iter().map(|queued| queued.fd).collect::<Vec<_>>();
        assert_eq!((running_for(&pool), queued_for(&pool)), (Some(3), vec![4]));
        pool.forget(one);
        assert_eq!(queued_for(&pool), [5], "done for who is left");
        pool.forget(running);
        assert_eq!(running_for(&pool), None);
        pool.forget(other);
        assert!(queued_for(&pool).is_empty() && pool.flights.is_empty() && pool.by_key.is_empty());
        drop(gate);
        pool.submit(6, Job::new(|| 1u8)).unwrap();
        assert_eq!(wait_for(&mut pool, 1)[0].0, 6);
        assert_eq!(runs.load(Ordering::SeqCst), 0);
        assert!(pool.threads.lock().running.is_empty());
    }

    /// A ring that came between the look and the silencing of the bell was silenced with it, and its result never looked at.
    #[test]
    fn whoever_waits_for_the_bell_alone_gets_every_result() {
        for short in [false, true] {
            let mut pool = Pool::new(Manners { name: "test", threads: 4, queue: 1024, short });
            let bell = pool.hang_bell().unwrap();
            let (mut given, mut taken) = (0, 0);
            while taken < 20_000 {
                while given < 20_000 && given - taken < 16 {
                    pool.submit(given, Job::new(|| 1u8)).unwrap();
                    given += 1;
                }
                pool.hand_over();
                let mut watched = [crate::event::poll::watched(bell, crate::event::Interest::Read)];
                let long = crate::event::time_limit(Some(Duration::from_secs(10)));
                assert_eq!(rustix::event::poll(&mut watched, long.as_ref()).unwrap(), 1, "{taken} of {given}");
                taken += pool.results().0.len() as RawFd;
            }
            assert!(pool.flights.is_empty());
        }
    }

    #[test]
    fn a_full_queue_gives_the_job_back() {
        let mut pool = pool_of(1);
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        pool.submit(0, Job::new(move || opened.recv().is_ok())).unwrap();
        let mut given_back = None;
        for fd in 0..=1026 {
            if let Err(job) = pool.submit(fd, Job::new(|| 1u8)) {
                given_back = Some(job);
                break;
            }
        }
        assert!(given_back.unwrap().run().is_ok());
        drop(gate);
    }
}
