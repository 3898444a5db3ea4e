//! A succession played for a fuzzer: a worker serves a client for some events and dies, words of its ledger are overwritten,
//! and a successor does with it what successors do.
//!
//! What must hold: the successor does not panic, does not work for ever and closes nothing that is the slot's. If nothing was
//! overwritten, the client gets, to the byte, what one worker alone would have sent. Only with the feature `fuzzing`.

mod client;
mod plan;

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use phalanx_shared::clients::Clients;
use phalanx_shared::clock::Clock;
use phalanx_shared::config::{self, Action, Config, Effort, Level, Route, RoutePath};
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ipc::{Incarnation, SlotId};
use phalanx_shared::ledger::record::{Owner, Peer, Phase};
use phalanx_shared::ledger::{LANES, Ledger};
use phalanx_shared::log;
use phalanx_shared::quarantine::Quarantine;
use phalanx_shared::sys::process;
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::{self, borrow};

use crate::conn::{Connection, Context, Fate};
use crate::enter::Inheritance;
use crate::http::{Framing, HeaderScratch, Progress, head};
use crate::open_file::OpenFiles;
use crate::pool::{Manners, Pool};
use crate::rescue::{self, sweep};
use crate::service::{Router, Setting};

use client::Client;
use plan::{Heir, Plan, Transport};

const DEAD: Incarnation = Incarnation(1);
const HEIR: Incarnation = Incarnation(2);
const LIVING: Incarnation = Incarnation(3);

/// Descriptors that the ledger has records for.
const DESCRIPTORS: usize = 128;
/// Connections that a lane has buffers for.
const CONNECTIONS: usize = 4;
/// Larger than what the sockets between server and client hold: its response breaks off in the middle.
const LARGE_FILE: usize = 300_000;
/// Turns that a connection may ask for before it counts as running for ever. A buffer holds no more requests than this.
const MOST_TURNS: usize = 2000;

/// A slot, ready for one succession after the other.
pub struct Succession {
    ledger: Ledger,
    config: Config,
    inheritance: &'static Inheritance,
    listener: TcpListener,
    client: Client,
    clock: Clock,
    _memory: OwnedFd,
}

impl Succession {
    /// Makes the ledger, the listener, a root with a large file. Every descriptor open by then is the slot's own.
    pub fn prepare() -> io::Result<Succession> {
        log::configure(2, Level::Error);
        // As a worker does: a peer that is gone is an error of the call, not the end of the process.
        process::ignore(Signal::SIGPIPE)?;
        let (ledger, memory) = Ledger::create("fuzz", DESCRIPTORS, CONNECTIONS)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        client::shrink_buffers(&listener)?;
        let client = Client::new()?;
        let inheritance = Box::leak(Box::new(inheritance(&ledger, &listener)?));
        inheritance.infrastructure = table::open_descriptors()?;
        let config = configuration()?;
        Ok(Succession { ledger, config, inheritance, listener, client, clock: Clock::default(), _memory: memory })
    }

    /// Plays what `input` means. Panics when something does not hold.
    pub fn play(&mut self, input: &[u8]) {
        let Some(plan) = Plan::read(input) else { return };
        let comparable = plan.stores.is_empty() && plan.transport == Transport::Tcp && !plan.gone;
        let expected = (comparable && is_replayable(plan.sent)).then(|| self.uninterrupted(&plan));
        let got = self.interrupted(&plan);
        if let Some(expected) = expected {
            assert!(got == expected, "the client got {} bytes instead of {}", got.len(), expected.len());
        }
        self.assert_untouched(&self.inheritance.infrastructure);
        self.clear();
    }

    /// What one worker alone answers.
    fn uninterrupted(&mut self, plan: &Plan<'_>) -> Vec<u8> {
        let mut cx = self.context(DEAD, 0);
        cx.router = Arc::new(self.router(&cx.setting));
        if let Some(connection) = self.connect(&cx, plan) {
            self.serve_to_the_end(&mut cx, connection);
        }
        drop(cx);
        self.clear();
        self.client.take_read()
    }

    /// What the client gets with a death in between.
    fn interrupted(&mut self, plan: &Plan<'_>) -> Vec<u8> {
        if let Some(fd) = self.live_and_die(plan) {
            self.scribble(plan, fd);
            if plan.gone {
                self.client.hang_up();
            }
            let lane = if plan.heir == Heir::Alone { 0 } else { 1 };
            let mut cx = self.context(HEIR, lane);
            for connection in self.inherit(&mut cx, plan.heir) {
                self.serve_to_the_end(&mut cx, connection);
            }
            self.assert_untouched(&cx.router.descriptors());
        }
        self.client.read_all();
        self.client.take_read()
    }

    /// The descriptor of the connection that the dead worker leaves; none when it came to its end before.
    fn live_and_die(&mut self, plan: &Plan<'_>) -> Option<RawFd> {
        let mut cx = self.context(DEAD, 0);
        cx.router = Arc::new(self.router(&cx.setting));
        if plan.transport == Transport::File {
            return self.record_a_file(&cx);
        }
        let mut connection = self.connect(&cx, plan)?;
        let fd = connection.fd;
        if self.serve(&mut cx, &mut connection, plan.events.into(), plan.reads, plan.holds_back) == End::Over {
            connection.close(&mut cx);
            return None;
        }
        if plan.heir == Heir::Takes && connection.is_quiet() {
            connection.give();
        }
        Some(fd)
    }

    /// Does what a worker does before its loop, or when it is told to, with what the dead one left.
    fn inherit(&self, cx: &mut Context, heir: Heir) -> Vec<Connection> {
        match heir {
            Heir::Alone => {
                rescue::settle(&self.ledger, 0..LANES);
                let mut taken = sweep::sweep(cx, self.inheritance);
                self.open_routes(cx);
                taken.append(&mut rescue::take_over(cx, &[], true));
                taken
            }
            Heir::Beside => {
                rescue::settle(&self.ledger, 1..2);
                sweep::close_noted(cx, 1);
                let mut taken = sweep::unrecorded(cx, 1, self.inheritance);
                self.open_routes(cx);
                taken.append(&mut rescue::take_over(cx, &[LIVING], false));
                taken
            }
            Heir::Buries | Heir::Takes => {
                self.open_routes(cx);
                let mut taken = rescue::take_given(cx);
                taken.append(&mut rescue::bury(cx, DEAD, 0, self.inheritance));
                taken
            }
        }
    }

    fn open_routes(&self, cx: &mut Context) {
        cx.router = Arc::new(self.router(&cx.setting));
        cx.lane.notes().set(&cx.router.descriptors());
    }

    fn serve_to_the_end(&mut self, cx: &mut Context, mut connection: Connection) {
        let end = self.serve(cx, &mut connection, MOST_TURNS, true, false);
        assert_ne!(end, End::OutOfTurns, "a connection that runs for ever");
        connection.close(cx);
        self.client.read_to_end();
    }

    /// Lets a connection handle `turns` events at most; if it `holds_back`, as one of several.
    fn serve(
        &mut self,
        cx: &mut Context,
        connection: &mut Connection,
        turns: usize,
        reads: bool,
        holds_back: bool,
    ) -> End {
        for _turn in 0..turns {
            if reads {
                self.client.read_all();
            }
            let mut fate = Fate::Stay;
            for answer in cx.held_back.end() {
                fate = connection.send_held_back(cx, answer);
            }
            if holds_back {
                connection.read_ahead(cx);
                cx.held_back.begin();
            }
            for act in [Connection::go_on, Connection::writable, Connection::readable] {
                if fate == Fate::Stay {
                    fate = act(connection, cx);
                }
            }
            let fate = self.await_pool(cx, connection, fate);
            match fate {
                Fate::Close => return End::Over,
                Fate::Stay if reads && !self.goes_on(connection) => return End::Settled,
                Fate::Stay | Fate::GoOn => {}
            }
        }
        End::OutOfTurns
    }

    /// Gives the connection what threads do for it.
    fn await_pool(&self, cx: &mut Context, connection: &mut Connection, mut fate: Fate) -> Fate {
        while fate != Fate::Close && connection.is_waiting() {
            cx.pool.hand_over();
            for (_, ticket, done) in cx.pool.results().0 {
                fate = connection.arrived(cx, ticket, done);
            }
            std::thread::yield_now();
        }
        fate
    }

    /// Whether more will happen on a connection that waits, since there is something to read or room to write.
    fn goes_on(&self, connection: &Connection) -> bool {
        let phase = connection.record.state().phase;
        let unread = phase != Phase::Lingering && has_unread(borrow(connection.fd));
        unread || phase == Phase::Open && !connection.is_quiet() && self.client.awaits(connection.fd)
    }

    /// A connection just accepted, with what the client sends on its way.
    fn connect(&mut self, cx: &Context, plan: &Plan<'_>) -> Option<Connection> {
        let (fd, peer) = match plan.transport {
            Transport::Unix => {
                let (client, server) = UnixStream::pair().ok()?;
                self.client.take(client.into()).ok()?;
                server.set_nonblocking(true).ok()?;
                (server.into_raw_fd(), Peer::Unix)
            }
            _ => {
                self.client.connect(self.listener.local_addr().ok()?).ok()?;
                let (server, peer) = self.listener.accept().ok()?;
                server.set_nonblocking(true).ok()?;
                (server.into_raw_fd(), Peer::Ip(peer))
            }
        };
        self.client.send(plan.sent, plan.finished);
        Connection::record(cx, fd, peer, 0).ok().flatten()
    }

    /// A record whose descriptor is no socket.
    fn record_a_file(&self, cx: &Context) -> Option<RawFd> {
        let fd = std::fs::File::open("/dev/null").ok()?.into_raw_fd();
        let record = self.ledger.record(fd)?;
        record.fill(1, Peer::Unix, 0);
        cx.lane.raise_high_water(fd);
        record.set_owner(Owner::Worker(DEAD));
        Some(fd)
    }

    fn scribble(&self, plan: &Plan<'_>, fd: RawFd) {
        for store in &plan.stores {
            let Some(words) = self.ledger.words(store.part(fd)) else { continue };
            let word = &words[usize::from(store.index) % words.len()];
            word.store(store.applied_to(word.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    #[track_caller]
    fn assert_untouched(&self, descriptors: &[RawFd]) {
        for fd in descriptors {
            assert!(fcntl(borrow(*fd), FcntlArg::F_GETFD).is_ok(), "descriptor {fd} has been closed by a successor");
        }
    }

    /// Makes the slot as it was: a lost connection may be left, when the scribbling hid its record.
    fn clear(&mut self) {
        self.client.hang_up();
        let _unreadable = table::close_all_but(&self.inheritance.infrastructure);
        self.ledger.wipe();
    }

    fn router(&self, setting: &Setting) -> Router {
        Router::new(&self.config, setting).expect("the root is there")
    }

    /// A worker's context, without its routes.
    fn context(&self, incarnation: Incarnation, lane_number: usize) -> Context {
        let setting = Setting::new(OpenFiles::new(self.ledger.table(), lane_number, incarnation), &self.config.cache);
        let clients = self.inheritance.clients;
        let bare = Context::new(&self.ledger, lane_number, incarnation, &self.config, clients, setting);
        Context {
            infrastructure: &self.inheritance.infrastructure,
            pool: Pool::new(Manners { name: "test", threads: 1, queue: 1024, short: false }),
            clock: self.clock,
            ..bare.expect("no routes, nothing to open")
        }
    }
}

/// How the serving of a connection came to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is to be closed.
    Over,
    /// It waits for its client, who has nothing more for it.
    Settled,
    /// Its turns are used up.
    OutOfTurns,
}

/// Whether `sent` is nothing but requests that may run again; what is no request is refused, and that is so each time.
fn is_replayable(sent: &[u8]) -> bool {
    let mut rest = sent;
    loop {
        let mut scratch = HeaderScratch::new();
        match head::parse(rest, rest.len().max(1), &mut scratch) {
            Ok(Progress::Done(head)) if head.idempotent() && head.framing == Framing::None => rest = &rest[head.len..],
            Ok(Progress::Done(_)) => return false,
            Ok(Progress::NeedMore) | Err(_) => return true,
        }
    }
}

fn inheritance(ledger: &Ledger, listener: &TcpListener) -> io::Result<Inheritance> {
    Ok(Inheritance {
        slot: SlotId(0),
        ledger: ledger.clone(),
        seats: vec![listener.as_raw_fd()],
        assisting: Vec::new(),
        lanes: Vec::new(),
        handover: Doorbell::new()?,
        giving: -1,
        formers: Vec::new(),
        blueprints: [-1, -1],
        access_log: None,
        clients: Clients::create(64)?.0,
        quarantine: Quarantine::create()?.0,
        lifeline: -1,
        infrastructure: Vec::new(),
        application: crate::app::Application::new(),
    })
}

/// `/` is a fixed response, `/f` a large file.
fn configuration() -> io::Result<Config> {
    let root = std::env::temp_dir().join(format!("phalanx-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&root)?;
    let content: Vec<u8> = (0..LARGE_FILE).map(|at| (at % 251) as u8).collect();
    std::fs::write(root.join("f"), content)?;
    let mut config = config::serve_defaults(root, vec![]);
    let action = Action::Respond {
        status: 200,
        body: "Hello".to_owned(),
        content_type: "text/plain".to_owned(),
        effort: Effort::default(),
    };
    config.sites[0].routes.push(Route::new(RoutePath::Exact("/".to_owned()), action));
    Ok(config)
}
