//! Processes that serve one connection each: those that this worker has started, and those that one before it has left. They share
//! the table of the slot and write a track of the ledger, as a thread would, but have their own memory, and live on when their worker
//! dies.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{Pid, getpid, getppid};
use phalanx_shared::config::{OnMasterDeath, Workers};
use phalanx_shared::ledger::Track;
use phalanx_shared::ledger::record::{Guilt, Owner};
use phalanx_shared::ledger::words::Order;
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::sys::region::Buffer;
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::sys::{crash_signal, title};
use phalanx_shared::{error, warn};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};

use crate::conn::{Connection, Context};
use crate::enter::Inheritance;
use crate::event::{Interest, poll};
use crate::event_loop::{EventLoop, Stuck};
use crate::isolator::Isolator;
use crate::rescue;
use crate::solo::{Caller, Solo};
use crate::watch::{AtWork, Endless, Watch};

/// Buffers that a process has: one for its connection, one to move that to.
const BUFFERS: usize = 2;
/// How long the end of a process that was told to end is waited for.
const PATIENCE: Duration = Duration::from_millis(50);
/// The exit code of a process that could not begin.
const UNFIT: i32 = 75;
/// Comes when there are orders. Nobody else sends it to such a process.
const CALL: Signal = Signal::SIGUSR1;

/// The processes.
pub(crate) struct Children {
    /// Numbers of tracks that no process writes; empty when none are to be started.
    free: Vec<u16>,
    starts: bool,
    /// By their descriptor.
    serving: HashMap<RawFd, Child>,
    watch: Watch,
    inheritance: &'static Inheritance,
    exits_with_master: bool,
}

/// A process, as its worker sees it.
struct Child {
    /// Its connection.
    fd: RawFd,
    pid: Pid,
    owner: Owner,
    lane: usize,
    number: u16,
    track: Track,
    /// Held here so that nobody else gets them; which of them it uses only the child knows, or its record.
    lent: Vec<Buffer>,
    /// Another worker has cloned it.
    adopted: bool,
}

/// A process that has ended.
pub(crate) struct Ended {
    /// Its connection, if it left one that can be kept.
    pub(crate) left: Option<Connection>,
    /// It could not begin: another would not either.
    pub(crate) unfit: bool,
}

impl Children {
    /// None, and at most `most` at once are to be started.
    pub(crate) fn new(inheritance: &'static Inheritance, cx: &Context, workers: &Workers, most: usize) -> Children {
        let most = most.min(usize::from(u16::MAX) - 1) as u16;
        let is_free = |number: &u16| {
            let track = cx.ledger.table().track(cx.lane_number, usize::from(*number));
            // One that has died is still looked after by whoever watches it.
            track.is_some_and(|track| track.child().is_none())
        };
        Children {
            free: (1..=most).rev().filter(is_free).collect(),
            starts: most > 0,
            serving: HashMap::new(),
            watch: Watch::default(),
            inheritance,
            exits_with_master: workers.on_master_death == OnMasterDeath::Exit,
        }
    }

    /// Who comes gets a process, or is refused.
    pub(crate) fn takes_all(&self) -> bool {
        self.starts
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.serving.len()).unwrap_or(u32::MAX)
    }

    /// Starts a process for a connection; gives it back when that is not possible.
    pub(crate) fn take(&mut self, own: &mut EventLoop, connection: Connection) -> Option<Connection> {
        let Some(number) = self.free.pop() else { return Some(connection) };
        let back = self.start(own, number, connection);
        if back.is_some() {
            self.free.push(number);
        }
        back
    }

    fn start(&mut self, own: &mut EventLoop, number: u16, connection: Connection) -> Option<Connection> {
        let Some(mut cx) = own.cx.share(usize::from(number), 0) else { return Some(connection) };
        let has = usize::from(connection.record.buffer().is_some());
        let mut lent: Vec<Buffer> = std::iter::from_fn(|| own.cx.buffers.take()).take(BUFFERS - has).collect();
        if lent.is_empty() {
            return Some(connection);
        }
        let (fd, lane, track, record) = (connection.fd, cx.lane_number, cx.track, connection.record);
        track.orders().forget();
        track.set_child(None);
        track.set_thread(None);
        standing_orders(own).for_each(|order| track.orders().give(order));
        track.last_words().into_iter().flatten().for_each(|word| word.store(0, Ordering::Release));
        track.set_lent(lent.iter().map(Buffer::index).chain(connection.record.buffer()));
        let owner = Owner::Child { of: cx.incarnation, lane: lane as u8, track: number };
        record.set_owner(owner);
        let worker = getpid();
        let cloned = process::block_signals().and_then(|mask| {
            let born = process::clone_child_sharing_files();
            if !matches!(born, Ok((Born::Child, _))) {
                process::set_signal_mask(&mask)?;
            }
            born
        });
        match cloned {
            Ok((Born::Child, _)) => {
                cx.is_child = true;
                cx.buffers = own.cx.buffers.only(lent);
                self.live(cx, number, connection, worker)
            }
            Ok((Born::Parent(pid), pidfd)) => {
                track.set_thread(Some(pid.as_raw()));
                // From here on the child counts as alive for whoever finds it, and begins.
                track.set_child(Some(pidfd));
                // Its copy of the connection has it.
                lent.extend(connection.into_buffer());
                self.serving.insert(pidfd, Child { fd, pid, owner, lane, number, track, lent, adopted: false });
                if let Err(error) = own.poller.add(pidfd, Interest::Read) {
                    warn!("watch process {pid}: {error}");
                }
                None
            }
            Err(error) => {
                warn!("start a process for a connection: {error}");
                record.set_owner(Owner::Worker(cx.incarnation));
                lent.into_iter().for_each(|buffer| own.cx.buffers.put(buffer));
                Some(connection)
            }
        }
    }

    /// The life of the child.
    fn live(&self, mut cx: Context, number: u16, connection: Connection, worker: Pid) -> ! {
        title::set(&format!("{}{} of worker {}", title::CONNECTION, connection.fd, self.inheritance.slot.0));
        phalanx_shared::state::begin_process();
        let files = Owner::ChildFile { of: cx.incarnation, lane: cx.lane_number as u8, track: number };
        if let Err(error) = take_stand(&mut cx, files) {
            error!("a process for a connection: {error}");
            process::exit_now(UNFIT);
        }
        // What it has copied was the worker's at that time, or may have been another's.
        if getppid() != worker {
            process::exit_now(UNFIT);
        }
        // Whoever finds this process on record may not take it for dead. Should the worker die before it could write it down,
        // nobody ever heard of this process.
        let (track, own) = (cx.track, getpid().as_raw());
        let is_written_down = || track.child().is_some() && track.thread() == Some(own);
        while !is_written_down() {
            if getppid() != worker && !is_written_down() {
                process::exit_now(UNFIT);
            }
            std::thread::yield_now();
        }
        let let_in = SigSet::empty();
        let lifeline = self.inheritance.lifeline;
        let caller = Caller::Signal { let_in: &let_in, lifeline, exits_with_master: self.exits_with_master };
        let (router, table) = (cx.router.clone(), cx.ledger.table());
        let isolator = cx.isolator.as_ref().map(Isolator::descriptor);
        // Closed by number below.
        std::mem::forget(cx.isolator.clone());
        Solo::new(cx, connection, caller, &self.inheritance.handover).serve();
        // The table outlives this process.
        for fd in router.descriptors().into_iter().chain(isolator) {
            table.record(fd).into_iter().for_each(|record| record.free());
            table::close(fd);
        }
        process::exit_now(0)
    }

    /// Takes in processes whose worker has died.
    pub(crate) fn adopt_orphans(&mut self, own: &mut EventLoop) {
        for fd in std::mem::take(&mut own.cx.orphans) {
            let record = own.cx.ledger.record(fd);
            let adopted = record.and_then(|record| record.adopt_child(record.owner()?, own.cx.incarnation));
            // It may have given its connection, or closed it, since it was found.
            let Some(owner @ Owner::Child { lane, track: number, .. }) = adopted else { continue };
            let lane = usize::from(lane);
            let Some(track) = own.cx.ledger.table().track(lane, usize::from(number)) else { continue };
            let (Some(pidfd), Some(pid)) = (track.child(), track.thread()) else { continue };
            let lent = track.lent().filter_map(|index| own.cx.ledger.buffer(index)).collect();
            let (pid, adopted) = (Pid::from_raw(pid), true);
            let child = Child { fd, pid, owner, lane, number, track, lent, adopted };
            self.serving.insert(pidfd, child);
            standing_orders(own).for_each(|order| track.orders().give(order));
            if own.cx.isolator.is_some() {
                // Its isolator has gone with its worker: whoever takes the connection over has another.
                track.orders().give(Order::Give);
            }
            call(pidfd, CALL);
            if let Err(error) = own.poller.add(pidfd, Interest::Read) {
                warn!("watch process {pid}: {error}");
            }
        }
    }

    /// Whether processes that another worker has cloned are among them.
    pub(crate) fn has_adopted(&self) -> bool {
        self.serving.values().any(|child| child.adopted)
    }

    /// A process has ended, if `pidfd` is one's; else none.
    pub(crate) fn ended(&mut self, own: &mut EventLoop, pidfd: RawFd) -> Option<Ended> {
        // An event may be about one that had the number before, in the same turn.
        if self.serving.contains_key(&pidfd) && !poll::is_any_readable([pidfd], Duration::ZERO) {
            return None;
        }
        let child = self.serving.remove(&pidfd)?;
        let _closed_anyway = own.poller.remove(pidfd);
        // One that another worker started is nobody's child here.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(borrow(pidfd)), options).ok().flatten();
        child.track.settle(|fd| own.cx.ledger.record(fd));
        rescue::sweep::close_what_a_track_was_closing(&own.cx.ledger, &child.track, self.inheritance);
        child.track.set_child(None);
        table::close(pidfd);
        let record = own.cx.ledger.record(child.fd);
        let left = record.filter(|record| record.owner() == Some(child.owner));
        if record.is_some_and(|record| record.owner() == Some(Owner::Given)) {
            // It may have died before it could ring.
            self.inheritance.handover.ring();
        }
        let still: Vec<usize> = child.track.lent().collect();
        let (pid, fd) = (child.pid, child.fd);
        let (own_doing, child_track) = (died_of_itself(status.as_ref(), &child.track), child.track);
        let code = status.as_ref().and_then(WaitIdStatus::exit_status);
        if code != Some(0) {
            rescue::close_files_of(&mut own.cx, child.lane, child.number);
        }
        if child.lane == own.cx.lane_number {
            self.free.push(child.number);
        }
        drop(child.lent);
        let connection = left.and_then(|record| {
            let how = status.as_ref().map_or_else(|| "died".to_owned(), describe);
            warn!(
                "process {pid}, which served connection {fd}, {how}{}",
                if own_doing { " by its own fault" } else { "" }
            );
            if own_doing {
                record.condemn(Guilt::Fault);
            }
            rescue::take_over_one(&mut own.cx, fd, record)
        });
        let kept = connection.as_ref().and_then(|connection| connection.record.buffer());
        child_track.set_lent([]);
        // One that it has given away with its connection is no longer named.
        for index in still.into_iter().filter(|index| Some(*index) != kept) {
            let free = own.cx.ledger.buffer(index);
            free.into_iter().for_each(|buffer| own.cx.buffers.put(buffer));
        }
        Some(Ended { left: connection, unfit: code == Some(UNFIT) })
    }

    /// Gives all of them an order, and calls them.
    pub(crate) fn order(&self, order: Order) {
        for (pidfd, child) in &self.serving {
            if !child.track.orders().stands(order) {
                child.track.orders().give(order);
                call(*pidfd, CALL);
            }
        }
    }

    /// Ends them all.
    pub(crate) fn end(&self) {
        self.serving.keys().for_each(|pidfd| call(*pidfd, Signal::SIGKILL));
    }

    /// As [`EventLoop::oldest_idle`].
    pub(crate) fn oldest_idle(&self) -> impl Iterator<Item = (RawFd, u64)> {
        self.serving.values().filter_map(|child| Some((child.fd, child.track.idle()?)))
    }

    /// As [`EventLoop::close_if_idle_since`]; the process is gone then.
    pub(crate) fn close_if_idle_since(&mut self, own: &mut EventLoop, fd: RawFd, event: u64) -> bool {
        let is_it = |child: &Child| child.fd == fd && child.track.idle() == Some(event);
        let Some(pidfd) = self.serving.iter().find_map(|(pidfd, child)| is_it(child).then_some(*pidfd)) else {
            return false;
        };
        // A request that has come since is answered first. To the process it looks as if the peer had finished.
        if has_unread(borrow(fd)) || shutdown(fd, Shutdown::Read).is_err() {
            return false;
        }
        if !poll::is_any_readable([pidfd], PATIENCE) {
            return false;
        }
        let ended = self.ended(own, pidfd);
        let left = ended.and_then(|ended| ended.left);
        left.into_iter().for_each(|connection| connection.close(&mut own.cx));
        true
    }

    /// When to look after them; none: there are none.
    pub(crate) fn next_look(&self, limit: Duration) -> Option<Instant> {
        (!self.serving.is_empty() && !limit.is_zero()).then(|| self.watch.next_look(limit))
    }

    /// Ends those that have worked on one request for `limit`, and tells of them, and of what may come to that.
    pub(crate) fn stuck(&mut self, own: &EventLoop, limit: Duration) -> Vec<Stuck> {
        let now = own.now();
        if self.serving.is_empty() || !self.watch.is_due(now, limit) {
            return Vec::new();
        }
        let at_work = |(pidfd, child): (&RawFd, &Child)| {
            let at_work = AtWork::of_track(&child.track, *pidfd as u32, child.pid, &own.cx.clock)?;
            Some(AtWork { is_process: true, ..at_work })
        };
        let found = self.watch.look(now, limit, self.serving.iter().filter_map(at_work));
        let tell = |endless: Endless| {
            let pidfd = endless.tag() as RawFd;
            let Endless { thread, age, class, given_up, .. } = endless;
            let child = self.serving.get(&pidfd)?;
            let record = own.cx.ledger.record(child.fd)?;
            let is_at_it = || child.track.busy_since().is_some() && record.owner() == Some(child.owner);
            if given_up && is_at_it() {
                record.condemn(Guilt::Hang);
                call(pidfd, Signal::SIGKILL);
            }
            // Ended, unlike a thread: nothing is left of it that the worker would have to be replaced for.
            let request = format!("a request of {:?}", record.peer());
            Some(Stuck { request, thread, age, class, given_up: false })
        };
        found.into_iter().filter_map(tell).collect()
    }
}

/// What the child makes of the descriptors, signals and handlers that it has from its worker.
fn take_stand(cx: &mut Context, files: Owner) -> io::Result<()> {
    cx.setting.become_of(files);
    if let Some(isolator) = cx.isolator.take() {
        let own = isolator.own();
        // The number is the worker's.
        std::mem::forget(isolator);
        cx.isolator = Some(own?);
    }
    cx.router.take_own_descriptors(|fd| cx.setting.open_files.note_descriptor(fd))?;
    process::interrupt_waits_by(CALL)?;
    if let Some(words) = cx.track.last_words() {
        crash_signal::install(words)?;
    }
    let mut blocked = SigSet::empty();
    blocked.add(CALL);
    process::set_signal_mask(&blocked)
}

/// What the worker has ordered those who serve for it.
fn standing_orders(own: &EventLoop) -> impl Iterator<Item = Order> {
    let lane = own.cx.lane;
    [Order::Unready, Order::Give, Order::CloseIdle].into_iter().filter(move |order| lane.orders().stands(*order))
}

/// Calls the process that writes a track of another table, where its descriptor says nothing.
pub(crate) fn call_by_pid(track: &Track) {
    if let Some(pid) = track.thread() {
        let _ended = nix::sys::signal::kill(Pid::from_raw(pid), CALL);
    }
}

/// It has ended already, or has had the call: either will do.
fn call(pidfd: RawFd, signal: Signal) {
    let signal = if signal == Signal::SIGKILL { rustix::process::Signal::KILL } else { rustix::process::Signal::USR1 };
    let _ended = pidfd_send_signal(borrow(pidfd), signal);
}

/// Whether a process that left its connection did that to itself: by a fault, or by an exit in the middle of a request.
fn died_of_itself(status: Option<&WaitIdStatus>, track: &Track) -> bool {
    match status {
        Some(status) if status.exited() => status.exit_status() != Some(UNFIT),
        _ => rescue::fell_by_own_fault(track),
    }
}

fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(signal)) => {
            let name = Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |it| it.to_string());
            format!("was killed by {name}")
        }
        _ => "died".to_owned(),
    }
}
