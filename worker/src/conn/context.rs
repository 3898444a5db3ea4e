//! What all connections of a worker share.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use phalanx_shared::clients::{Client, Clients, Verdict};
use phalanx_shared::clock::{Clock, since_boot};
use phalanx_shared::config::{Config, Limits, Listen, Rescue};
use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ledger::lane::Stats;
use phalanx_shared::ledger::record::Peer;
use phalanx_shared::ledger::words::Order;
use phalanx_shared::ledger::{Lane, Ledger, Record, Track};

use super::Patience;
use super::buffers::Buffers;
use super::cohort::HeldBack;
use crate::access_log::AccessLog;
use crate::app::{Caller, RequestId};
use crate::event::uring::Uring;
use crate::http::DateCache;
use crate::http::{Head, forwarded};
use crate::isolator::Isolator;
use crate::nudge::Nudges;
use crate::pool::{Manners, Pool};
use crate::service::router::{Limit, Router};
use crate::service::{Asker, NotReady, Setting};
use crate::tasks::Tasks;

/// Memory of responses that is kept to be used again.
const MOST_SPARE: usize = 256;
/// The longest of it.
const SPARE_BYTES: usize = 32 * 1024;

/// Stands for the peer of a Unix socket where its word is taken.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The worker as its connections see it.
pub struct Context {
    /// Who this worker is.
    pub incarnation: Incarnation,
    /// The slot's ledger.
    pub ledger: Ledger,
    /// Descriptors that are the slot's own: never closed, whatever a dead worker left in the ledger about them.
    pub infrastructure: &'static [RawFd],
    /// The number of the lane this worker writes.
    pub lane_number: usize,
    /// That lane.
    pub lane: Lane,
    /// The track of that lane that this thread writes.
    pub track: Track,
    /// That track's counters.
    pub stats: Stats,
    /// Free request buffers.
    pub buffers: Buffers,
    /// What the slot's listeners make of what peers say about themselves, by seat. A connection may have come in by one that is
    /// no more.
    pub listens: Arc<[Option<Listen>]>,
    /// What the service knows of its clients.
    pub clients: Clients,
    /// What services have from the worker.
    pub setting: Setting,
    /// What answers.
    pub router: Arc<Router>,
    /// Does what may block.
    pub pool: Pool,
    /// Runs handlers; none: the loop does.
    pub handlers: Option<Pool>,
    /// Hears of what connections wait for, where handlers take bodies as they come.
    pub nudges: Option<Nudges>,
    /// Makes processes for handlers that are to have one.
    pub isolator: Option<Isolator>,
    /// It runs all of them, else those only that want that.
    pub all_pooled: bool,
    /// Runs handlers that wait; none: they hold up their thread.
    pub tasks: Option<Tasks>,
    /// How long a handler may take; zero: as long as it likes.
    pub request_timeout: Duration,
    /// Bounds on what a peer may send.
    pub limits: Limits,
    /// Bounds on how long it may take.
    pub patience: Arc<Patience>,
    /// Bounds on replays.
    pub rescue: Rescue,
    /// The time of this turn.
    pub clock: Clock,
    /// The text of this second.
    pub date: DateCache,
    /// Where answered requests are written down.
    pub access_log: AccessLog,
    /// Responses of the connection at hand, before they are written. Kept to be used again.
    pub out: Vec<u8>,
    /// The same, of sends that are complete.
    pub spare: Vec<Vec<u8>>,
    /// What `limits.connections` is bounded by, as the operator knows it.
    pub bound_by: &'static str,
    /// Others wait for a connection to end: every response is its connection's last.
    pub crowded: bool,
    /// This process serves one connection for the worker, and may outlive it.
    pub is_child: bool,
    /// The ring by which connections are received from, until the loop has it.
    pub ring: Option<Uring>,
    /// Buffers that hold what a ring has received ahead.
    pub held: usize,
    /// A ring receives and sends: connections read what it brings.
    pub by_ring: bool,
    /// Nothing else waits for this thread: what may block is done here and now.
    pub blocking: bool,
    /// Connections of processes whose worker has died, found by the one that takes over.
    pub orphans: Vec<RawFd>,
    /// Connections that are being told that there is no room for them.
    pub turned_away: u32,
    /// Answers that wait for those of others.
    pub held_back: HeldBack,
}

/// The address of a connection's peer; a Unix socket has none.
pub(super) fn address_of(record: &Record) -> Option<IpAddr> {
    match record.peer() {
        Peer::Ip(address) => Some(address.ip().to_canonical()),
        Peer::Unix => None,
    }
}

/// The address of the client that a request comes from: that of the peer or, if that is a proxy whose word is taken on its
/// listener, the one that it names.
pub(super) fn client_of(listens: &[Option<Listen>], record: &Record, head: &Head<'_>) -> Option<IpAddr> {
    let peer = address_of(record);
    let Some(Some(listen)) = listens.get(usize::from(record.listener())) else { return peer };
    if peer.is_some() {
        return forwarded::client_of(head, peer, |address| listen.trusted.contains(address));
    }
    if !listen.trusted.unix {
        return None;
    }
    let trusts = |address| address == NO_ADDRESS || listen.trusted.contains(address);
    forwarded::client_of(head, Some(NO_ADDRESS), trusts).filter(|client| *client != NO_ADDRESS)
}

/// Jobs that wait for a disk or a compressor; with more, requests are refused. Each may hold a file open and a buffer.
const MAX_QUEUED: usize = 1024;

impl Context {
    /// That of a worker on its own which writes lane `lane_number`: without routes, and with nothing that is its slot's.
    ///
    /// # Errors
    /// What keeps the router from being made.
    pub fn new(
        ledger: &Ledger,
        lane_number: usize,
        incarnation: Incarnation,
        config: &Config,
        clients: Clients,
        setting: Setting,
    ) -> Result<Context, NotReady> {
        let nothing = Config { sites: Vec::new(), ..config.clone() };
        let lane = ledger.lane(lane_number);
        Ok(Context {
            incarnation,
            ledger: ledger.clone(),
            infrastructure: &[],
            lane_number,
            lane,
            track: lane.track(),
            stats: lane.stats(),
            buffers: Buffers::new(ledger, lane_number),
            router: Arc::new(Router::new(&nothing, &setting)?),
            pool: Pool::new(Manners {
                name: "phalanx-io",
                threads: config.workers.io_threads.into(),
                queue: MAX_QUEUED,
                short: false,
            }),
            handlers: None,
            nudges: None,
            isolator: None,
            all_pooled: false,
            request_timeout: config.workers.request_timeout,
            tasks: None,
            listens: Arc::new([]),
            clients,
            setting,
            limits: config.limits.clone(),
            patience: Arc::new(Patience::new(&config.timeouts)),
            rescue: config.rescue.clone(),
            clock: Clock::default(),
            date: DateCache::new(),
            access_log: AccessLog::new(None, config.log.format),
            out: Vec::new(),
            spare: Vec::new(),
            bound_by: "limits.connections",
            crowded: false,
            is_child: false,
            ring: None,
            held: 0,
            by_ring: false,
            blocking: false,
            orphans: Vec::new(),
            turned_away: 0,
            held_back: HeldBack::default(),
        })
    }

    /// The worker as another of its threads has it, which writes track `number` of the lane and keeps at most `buffers` free ones to
    /// itself; none when the ledger has no such track.
    pub fn share(&mut self, number: usize, buffers: usize) -> Option<Context> {
        let track = self.ledger.table().track(self.lane_number, number)?;
        self.lane.use_track(number);
        Some(Context {
            ledger: self.ledger.clone(),
            track,
            stats: track.stats(),
            buffers: self.buffers.share(buffers),
            listens: self.listens.clone(),
            setting: self.setting.clone(),
            router: self.router.clone(),
            pool: self.pool.for_another_loop(),
            handlers: self.handlers.as_ref().map(Pool::for_another_loop),
            isolator: self.isolator.clone(),
            nudges: self.nudges.as_ref().and_then(|_| Nudges::new().ok()),
            tasks: None,
            limits: self.limits.clone(),
            patience: self.patience.clone(),
            rescue: self.rescue.clone(),
            date: DateCache::new(),
            access_log: self.access_log.for_another_thread(),
            out: Vec::new(),
            spare: Vec::new(),
            orphans: Vec::new(),
            turned_away: 0,
            ring: None,
            held_back: HeldBack::default(),
            ..*self
        })
    }

    /// The worker is to get no new work soon: every response from now on is its connection's last.
    pub fn is_unready(&self) -> bool {
        self.is_ordered(Order::Unready)
    }

    /// Whether an order stands for this thread, or this process.
    pub fn is_ordered(&self, order: Order) -> bool {
        if self.is_child { self.track.orders().stands(order) } else { self.lane.orders().stands(order) }
    }

    /// Bounds the number of connections by another key of the configuration.
    pub fn bound_connections(&mut self, most: u32, key: &'static str) {
        if most < self.limits.connections {
            self.limits.connections = most;
            self.bound_by = key;
        }
    }

    /// The pools that its connections have things done by.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        [&self.pool].into_iter().chain(&self.handlers)
    }

    /// See [`Context::pools`].
    pub fn pools_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        [&mut self.pool].into_iter().chain(&mut self.handlers)
    }

    /// Whether connections of a listener begin with the word of a proxy.
    pub fn speaks_for_proxy(&self, seat: u8) -> bool {
        self.listen(seat).is_some_and(|listen| listen.proxy_protocol)
    }

    /// The listener on a seat.
    pub fn listen(&self, seat: u8) -> Option<&Listen> {
        self.listens.get(usize::from(seat))?.as_ref()
    }

    /// Keeps the memory of a response for another.
    pub(super) fn keep_spare(&mut self, out: Vec<u8>) {
        if self.spare.len() < MOST_SPARE && out.capacity() <= SPARE_BYTES {
            self.spare.push(out);
        }
    }

    /// How it asks handlers.
    pub(super) fn asker(&self) -> Asker {
        if self.blocking { Asker::Thread } else { Asker::Loop }
    }

    /// Tells who makes the request that begins at stream position `position` of a connection.
    pub(super) fn caller<'a>(
        &'a self,
        record: Record,
        head: &'a Head<'a>,
        position: u64,
    ) -> impl Fn() -> Caller + Sync + use<'a> {
        let (listens, now, timeout) = (&*self.listens, self.clock.now(), self.request_timeout);
        move || {
            let peer = match record.peer() {
                Peer::Ip(address) => Some(address),
                Peer::Unix => None,
            };
            let deadline = (!timeout.is_zero()).then(|| now + timeout);
            let id = RequestId { cookie: record.cookie(), position };
            Caller { peer, client: client_of(listens, &record, head), id, deadline }
        }
    }

    /// Whether a client may make one more request of a route. Those without an address may.
    pub fn admits(&self, record: &Record, head: &Head<'_>, limit: &Limit) -> bool {
        let Some(address) = client_of(&self.listens, record, head) else { return true };
        let (rate, now) = (&limit.rate, since_boot());
        let verdict = self.clients.admit(limit.id, Client::from(address), rate.interval, rate.burst, now);
        verdict == Verdict::Admitted
    }
}
