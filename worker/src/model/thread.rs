//! The model `thread`: each connection has a thread of its own, which waits for it and for nothing else. Handlers may block as they
//! like. What it costs is a stack for each connection, idle ones included, and a change of threads for each request; above
//! `workers.threads` who comes is refused. Suits few connections that are mostly at work. Known from MySQL and the Java servers of
//! old.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::Pid;
use phalanx_shared::config::{Poller, Workers};
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ledger::Track;
use phalanx_shared::ledger::lane::Lane;
use phalanx_shared::ledger::words::Order;
use phalanx_shared::ledger::record::Guilt;
use phalanx_shared::sys::crash_signal::{Prepared, Word};
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::borrow;
use phalanx_shared::warn;

use super::Model;
use crate::conn::{Connection, Context};
use crate::enter::Booted;
use crate::event_loop::{EventLoop, Stuck};
use crate::in_handler;
use crate::lock::lock;
use crate::main_loop::{Crew, MainLoop};
use crate::solo::{Caller, Solo};
use crate::watch::{AtWork, Endless, Watch};

/// Threads where the configuration names no number.
const THREADS: u32 = 1024;
/// Bytes of a thread's stack: only what is used of it takes memory.
const STACK: usize = 256 * 1024;
/// How long the end of a thread that was told to end is waited for.
const PATIENCE: Duration = Duration::from_millis(20);

pub(super) const MODEL: Model = Model { pollers: Poller::ALL, equip, serve };

fn equip(cx: &mut Context, workers: &Workers) -> Result<(), String> {
    cx.blocking = true;
    cx.bound_connections(workers.threads.unwrap_or(THREADS), "workers.threads");
    Ok(())
}

fn serve(booted: Booted) -> Result<i32, String> {
    let threads = Threads::new(&booted).map_err(|error| format!("eventfd: {error}"))?;
    Ok(MainLoop::with_crew(booted, Box::new(threads))?.run())
}

/// The threads, by the number of their track.
struct Threads {
    /// Numbers that no thread has.
    free: Vec<usize>,
    serving: Vec<Option<Serving>>,
    count: Arc<AtomicU32>,
    /// Numbers of threads that have ended.
    ended: Arc<Mutex<Vec<usize>>>,
    /// Readable once there are orders.
    curtain: Arc<Doorbell>,
    lane: Lane,
    handover: &'static Doorbell,
    watch: Watch,
    /// Numbers of those that do not end what they are at.
    given_up: HashSet<usize>,
}

/// A thread, as the main loop sees it.
struct Serving {
    fd: RawFd,
    track: Track,
}

impl Threads {
    fn new(booted: &Booted) -> io::Result<Threads> {
        let most = (booted.workers.threads.unwrap_or(THREADS) as usize).min(booted.cx.ledger.connections());
        Ok(Threads {
            free: (1..=most).rev().collect(),
            serving: Vec::new(),
            count: Arc::default(),
            ended: Arc::default(),
            curtain: Arc::new(Doorbell::new()?),
            lane: booted.cx.lane,
            handover: &booted.inheritance.handover,
            watch: Watch::default(),
            given_up: HashSet::new(),
        })
    }

    /// Takes note of the threads that have ended.
    fn collect(&mut self) {
        let ended = std::mem::take(&mut *lock(&self.ended));
        for number in ended {
            self.serving[number] = None;
            self.given_up.remove(&number);
            self.free.push(number);
        }
    }

    fn order(&self, order: Order) {
        self.lane.orders().give(order);
        // Never silenced: it stays up.
        self.curtain.ring();
    }

    /// Starts a thread for a connection; gives it back when that is not possible.
    fn start(&self, number: usize, cx: Context, connection: Connection) -> Option<Connection> {
        let (count, ended) = (self.count.clone(), self.ended.clone());
        let (curtain, handover) = (self.curtain.clone(), self.handover);
        // A thread that could not be started takes with it what it was to have.
        let cell = Arc::new(Mutex::new(Some((cx, connection))));
        let of_thread = cell.clone();
        count.fetch_add(1, Ordering::AcqRel);
        let serve = move || {
            in_handler::own_connections();
            let taken = lock(&of_thread).take();
            if let Some((cx, connection)) = taken {
                let word = Word::Shared(cx.track.current_word());
                let _to_die_in_order = Prepared::this_thread(word)
                    .inspect_err(|error| warn!("a stack for the signals of a thread: {error}"));
                Solo::new(cx, connection, Caller::Curtain(curtain.as_fd()), handover).serve();
            }
            lock(&ended).push(number);
            count.fetch_sub(1, Ordering::AcqRel);
        };
        let started = std::thread::Builder::new().name("phalanx-conn".to_owned()).stack_size(STACK).spawn(serve);
        let Err(error) = started else { return None };
        self.count.fetch_sub(1, Ordering::AcqRel);
        warn!("start a thread for a connection: {error}");
        lock(&cell).take().map(|(_, connection)| connection)
    }

    fn serving(&self) -> impl Iterator<Item = (usize, &Serving)> {
        self.serving.iter().enumerate().filter_map(|(number, serving)| Some((number, serving.as_ref()?)))
    }
}

impl Crew for Threads {
    fn take(&mut self, own: &mut EventLoop, connection: Connection) -> Option<Connection> {
        self.collect();
        let Some(number) = self.free.pop() else { return Some(connection) };
        let Some(cx) = own.cx.share(number, 1) else {
            self.free.push(number);
            return Some(connection);
        };
        let serving = Serving { fd: connection.fd, track: cx.track };
        if let Some(connection) = self.start(number, cx, connection) {
            self.free.push(number);
            return Some(connection);
        }
        if self.serving.len() <= number {
            self.serving.resize_with(number + 1, || None);
        }
        self.serving[number] = Some(serving);
        None
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn count(&self) -> u32 {
        let given_up = u32::try_from(self.given_up.len()).unwrap_or(u32::MAX);
        self.count.load(Ordering::Acquire).saturating_sub(given_up)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.curtain.as_fd().as_raw_fd()]
    }

    fn give(&mut self, _bell: &'static Doorbell) {
        self.order(Order::Give);
    }

    fn close_idle(&mut self, _grace: Duration) {
        if !self.lane.orders().stands(Order::CloseIdle) {
            self.order(Order::CloseIdle);
        }
    }

    fn oldest_idle(&mut self, most: usize) -> Vec<(RawFd, u64)> {
        self.collect();
        let mut idle: Vec<(RawFd, u64)> =
            self.serving().filter_map(|(_, serving)| Some((serving.fd, serving.track.idle()?))).collect();
        idle.sort_unstable_by_key(|&(_, event)| std::cmp::Reverse(event));
        let from = idle.len().saturating_sub(most);
        idle.split_off(from)
    }

    fn close_if_idle_since(&mut self, fd: RawFd, event: u64) -> bool {
        self.collect();
        let found = self.serving().find(|(_, serving)| serving.fd == fd && serving.track.idle() == Some(event));
        let Some((number, _)) = found else { return false };
        // A request that has come since is answered first. To its thread it looks as if the peer had finished.
        if has_unread(borrow(fd)) || shutdown(fd, Shutdown::Read).is_err() {
            return false;
        }
        let late = Instant::now() + PATIENCE;
        while self.serving[number].is_some() && Instant::now() < late {
            std::thread::yield_now();
            self.collect();
        }
        true
    }

    fn next_look(&self, limit: Duration) -> Option<Instant> {
        (self.count() > 0 && !limit.is_zero()).then(|| self.watch.next_look(limit))
    }

    fn stuck(&mut self, own: &EventLoop, limit: Duration) -> Vec<Stuck> {
        let now = own.now();
        if self.count() == 0 || !self.watch.is_due(now, limit) {
            return Vec::new();
        }
        self.collect();
        let at_work = |(number, serving): (usize, &Serving)| {
            let thread = Pid::from_raw(serving.track.thread()?);
            AtWork::of_track(&serving.track, number as u32, thread, &own.cx.clock)
        };
        let at_work: Vec<AtWork> =
            self.serving().filter(|(number, _)| !self.given_up.contains(number)).filter_map(at_work).collect();
        let found = self.watch.look(now, limit, at_work.into_iter());
        found.into_iter().filter_map(|endless| self.tell(own, endless)).collect()
    }
}

impl Threads {
    fn tell(&mut self, own: &EventLoop, endless: Endless) -> Option<Stuck> {
        let number = endless.tag() as usize;
        let Endless { thread, age, class, given_up, .. } = endless;
        let fd = self.serving.get(number)?.as_ref()?.fd;
        let record = own.cx.ledger.record(fd)?;
        if given_up && self.serving.get(number)?.as_ref()?.track.busy_since().is_some() {
            // Nothing ends a thread but the end of its process: whoever takes its connection over then answers for it.
            record.condemn(Guilt::Hang);
            self.given_up.insert(number);
        }
        Some(Stuck { request: format!("a request of {:?}", record.peer()), thread, age, class, given_up })
    }
}
