//! The configuration as resolved: defaults filled in, paths absolute, units gone. All that the rest of the program sees.
//! Values keep the names of their keys; the keys themselves are documented where they are declared, in `written.rs`. What
//! listens is in `resolved/listen.rs`, what is served in `resolved/site.rs`, the rest here.

mod listen;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) use listen::first_bits;
pub use listen::{Listen, ListenAddress, MOST_LISTENERS, Network, Trusted};
pub use site::{Action, Effort, Fault, FaultKind, FilesAction, Health, Rate, Route, RoutePath, Site};

/// A whole configuration, checked. Serialised to JSON, it is the blueprint that a worker boots from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The supervising process.
    pub master: Master,
    /// The processes that serve.
    pub workers: Workers,
    /// How a reload tries a configuration on one slot first.
    pub canary: Canary,
    /// What becomes of requests whose worker died.
    pub rescue: Rescue,
    /// What becomes of requests that kill workers.
    pub quarantine: Quarantine,
    /// What a peer may make a worker hold.
    pub limits: Limits,
    /// How long a peer may keep a worker waiting.
    pub timeouts: Timeouts,
    /// What a worker keeps at hand of the files it serves.
    pub cache: Cache,
    /// Never empty; no address twice.
    pub listen: Vec<Listen>,
    /// In the order of the file. A request goes to the first site whose `hosts` match, exact names before wildcards
    /// before sites without `hosts`.
    pub sites: Vec<Site>,
    /// What is written down.
    pub log: Log,
}

/// The supervising process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Master {
    /// Holds the master's process id while it runs; none: nowhere.
    pub pid_file: Option<PathBuf>,
    /// The Unix socket of the master's control protocol; at most 107 bytes. None: nobody can ask.
    pub control_socket: Option<PathBuf>,
    /// Whom workers run as, a user of this system; none: whoever the master is.
    pub user: Option<String>,
    /// Whose group workers run in: the user's own unless the file names another; none: the master's.
    pub group: Option<String>,
    /// Where crash reports go; none: they are only logged.
    pub crash_dir: Option<PathBuf>,
    /// How many crash reports the directory keeps.
    pub crash_reports: u32,
    /// How long after an upgrade a worker that dies of itself brings the program before it back.
    pub probation: Duration,
}

/// The processes that serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workers {
    /// How many slots there are.
    pub count: Count,
    /// How a worker turns events into answers.
    pub model: Model,
    /// How a worker waits for events.
    pub poller: Poller,
    /// How long a worker may take from its clone to READY.
    pub boot_timeout: Duration,
    /// How long a worker's loop may stay silent before the worker is killed and replaced.
    pub hang_timeout: Duration,
    /// How long a thread may work on one request; zero: as long as it likes.
    pub request_timeout: Duration,
    /// How long a graceful stop serves on while it tells load balancers to go elsewhere; zero: not at all.
    pub unready_delay: Duration,
    /// How long a stop or a recycle waits for what is in flight.
    pub drain_timeout: Duration,
    /// How long after a reload a worker that dies of itself brings the configuration before it back; zero: not at all.
    pub probation: Duration,
    /// Predecessors of a slot's worker that may still end what they had, 1 to 2.
    pub max_old_generations: u32,
    /// 0: never recycled for it.
    pub max_requests: u64,
    /// How long it serves; zero: never recycled for it.
    pub max_age: Duration,
    /// Bytes of private memory; 0: never recycled for it.
    pub max_memory: u64,
    /// Bytes of private memory at which it is killed; 0: never.
    pub hard_memory: u64,
    /// Deaths in a row in every slot after which the service ends; 0: never.
    pub give_up_after: u32,
    /// What a worker does when it finds the master gone.
    pub on_master_death: OnMasterDeath,
    /// Threads that run handlers, or that have a connection each, or processes that do, 1 to 16384; none: as the model chooses.
    pub threads: Option<u32>,
    /// Event loops of a worker that has several, 1 to 64.
    pub loops: u16,
    /// Requests that may wait for a thread that runs handlers, 1 to 65536; with more, one is answered 503.
    pub queue: u32,
    /// Threads of a worker that do what may block, such as reads from a cold disk and compression; 1 to 64.
    pub io_threads: u16,
    /// Whether there may be [`Action::Fault`] routes.
    pub allow_faults: bool,
}

/// How many slots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Count {
    /// As many as the affinity mask and the cgroup quota allow processors.
    Auto,
    /// This many, 1 to 1024.
    Fixed(u16),
}

/// How a worker turns events into answers: the name of one of the models that the program has, which the reader of a
/// configuration is told and this crate does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model(pub String);

/// A model that the program has.
#[derive(Debug)]
pub struct KnownModel {
    /// Its name.
    pub name: &'static str,
    /// How its workers can wait for events.
    pub pollers: &'static [Poller],
}

/// An app that the program has: handlers of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownApp {
    /// Its name.
    pub name: String,
    /// The model that it runs under, if not under every one.
    pub model: Option<&'static str>,
}

/// What the program has that a configuration may name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// Its models, the default first.
    pub models: &'a [KnownModel],
    /// Its apps. The first answers what no route of a configuration is about.
    pub apps: &'a [KnownApp],
}

impl Known<'_> {
    /// The model of a configuration that names none.
    #[must_use]
    pub fn default_model(&self) -> Model {
        self.apps.iter().find_map(|app| app.model).map_or_else(Model::default, |model| Model(model.to_owned()))
    }
}

impl Default for Model {
    /// One event loop per worker.
    fn default() -> Model {
        Model("reactor".to_owned())
    }
}

/// Descriptors that select(2) can watch (FD_SETSIZE).
pub const SELECT_DESCRIPTORS: usize = 1024;

/// The most connections of a slot whose workers wait by select(2): the rest of the descriptors is left to the slot's own needs and
/// to files.
pub const SELECT_CONNECTIONS: u32 = 900;

/// How a worker waits for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Poller {
    /// epoll(7).
    Epoll,
    /// poll(2).
    Poll,
    /// select(2), for descriptors below [`SELECT_DESCRIPTORS`].
    Select,
}

impl Poller {
    /// All, the default first.
    pub const ALL: &'static [Poller] = &[Poller::Epoll, Poller::Poll, Poller::Select];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Poller::Epoll => "epoll",
            Poller::Poll => "poll",
            Poller::Select => "select",
        }
    }
}

/// What a worker does when it finds the master gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnMasterDeath {
    /// End what is in flight, within `drain_timeout`, then exit.
    Drain,
    /// Exit at once.
    Exit,
}

/// What becomes of the connections of a worker that died.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rescue {
    /// Whether a successor takes them over; otherwise they are closed.
    pub enabled: bool,
    /// How often one request may be replayed after a death that was not its fault.
    pub max_attempts: u8,
}

/// How a reload tries a configuration on one slot first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// How long; zero: not at all.
    pub time: Duration,
    /// Percentage points, 0 to 100.
    pub errors: u32,
    /// A factor, 0 to 1000; 0: any.
    pub latency: u32,
}

/// What becomes of requests that kill workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Whether they are held at all.
    pub enabled: bool,
    /// After so many faults, 1 to 1000.
    pub crashes: u32,
    /// Within so long.
    pub window: Duration,
    /// They are answered 503 for so long.
    pub time: Duration,
}

/// What a peer may make a worker hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of a request's head, request line and final CRLF included; 1 to 14 KiB, so that the ledger buffer holds it.
    pub head: usize,
    /// Bytes of a request's body.
    pub body: u64,
    /// Connections a slot holds at once.
    pub connections: u32,
    /// Connections one client address may have at once; 0: no bound.
    pub connections_per_client: u32,
    /// Requests answered on a connection before it is closed; 0: no bound.
    pub requests_per_connection: u64,
}

/// How long a peer may keep a worker waiting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Between two reads of a body.
    pub body: Duration,
    /// A kept-alive connection without a request.
    pub idle: Duration,
    /// Between two writes of a response that the peer does not read.
    pub write: Duration,
    /// Bytes a second at which a body must come at least, over its whole time; 0: no bound.
    pub body_rate: u64,
    /// Bytes a second at which a peer must read its answer at least, over its whole time; 0: no bound.
    pub write_rate: u64,
}

/// What a worker keeps at hand of the files it serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cache {
    /// Bytes of content in a worker's memory; 0: none is kept there.
    pub memory: u64,
    /// Bytes of the largest file kept in memory; at most `memory`, unless that is 0.
    pub file: u64,
    /// Descriptors of files that a worker keeps open; 0 to 4096.
    pub open_files: u32,
}

/// What is written down, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// A line for each request.
    pub access: Sink,
    /// What these lines look like.
    pub format: Format,
    /// The log of the processes themselves.
    pub error: Sink,
    /// The lightest lines that the error log takes.
    pub level: Level,
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sink {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The end of this file, absolute; its directory exists.
    File(PathBuf),
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// The combined log format of Apache and nginx.
    Combined,
    /// One JSON object a line.
    Json,
}

/// The weight of a log line; the heaviest is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Something failed and somebody must act.
    Error,
    /// Something is not as it should be, and service goes on.
    Warn,
    /// The life of the service: starts, handovers, stops.
    Info,
    /// What a developer wants to see.
    Debug,
}
