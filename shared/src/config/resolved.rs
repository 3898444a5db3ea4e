//! The configuration as resolved: defaults filled in, paths absolute, units gone. All that the rest of the program sees.
//! Values keep the names of their keys; the keys themselves are documented where they are declared, in `written.rs`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A whole configuration, checked. Serialised to JSON, it is the blueprint that a worker boots from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The supervising process.
    pub master: Master,
    /// The processes that serve.
    pub workers: Workers,
    /// What becomes of requests whose worker died.
    pub rescue: Rescue,
    /// What a peer may make a worker hold.
    pub limits: Limits,
    /// How long a peer may keep a worker waiting.
    pub timeouts: Timeouts,
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
    /// How long a stop or a recycle waits for what is in flight.
    pub drain_timeout: Duration,
    /// 0: never recycled for it.
    pub max_requests: u64,
    /// Bytes of private memory; 0: never recycled for it.
    pub max_memory: u64,
    /// What a worker does when it finds the master gone.
    pub on_master_death: OnMasterDeath,
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

/// How a worker turns events into answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Model {
    /// One event loop per worker: accept, read, answer, write.
    Reactor,
}

/// How a worker waits for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Poller {
    /// epoll(7).
    Epoll,
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

/// What a peer may make a worker hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of a request's head, request line and final CRLF included; 1 to 14 KiB, so that the ledger buffer holds it.
    pub head: usize,
    /// Bytes of a request's body.
    pub body: u64,
    /// Connections a slot holds at once.
    pub connections: u32,
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
}

/// An address to listen on. Displays as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Listen {
    /// An IP address with its port; port 0 is any free one.
    Tcp(SocketAddr),
    /// The path of a Unix socket, absolute, at most 107 bytes.
    Unix(PathBuf),
}

/// What is served for some hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Lower case, without port. Empty: every host.
    pub hosts: Vec<String>,
    /// In the order of the file; no path twice.
    pub routes: Vec<Route>,
}

/// A part of a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Which requests it answers.
    pub path: RoutePath,
    /// How it answers them.
    pub action: Action,
}

/// The request paths that a route answers; both start with "/". Displays as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RoutePath {
    /// Every path that begins so; the longest wins.
    Prefix(String),
    /// This path and no other; it wins over every prefix.
    Exact(String),
}

/// What answers a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Serves the files below a directory.
    Files {
        /// Absolute; a directory when the configuration was read.
        root: PathBuf,
        /// The file names tried, in order, when a directory is asked for; may be empty.
        index: Vec<String>,
    },
    /// Gives a fixed answer.
    Respond {
        /// 200 to 599.
        status: u16,
        /// Empty where the status allows none.
        body: String,
        /// A sound header value.
        content_type: String,
    },
    /// Sends the client elsewhere.
    Redirect {
        /// A sound header value: a path or a URL.
        to: String,
        /// 301, 302, 303, 307 or 308.
        status: u16,
    },
    /// Breaks the worker on purpose.
    Fault(Fault),
}

/// What a `fault` route does to the worker that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// A segmentation fault.
    Segv,
    /// `abort()`.
    Abort,
    /// A panic inside the handler.
    Panic,
    /// A stack overflow.
    Overflow,
    /// Never returns to the event loop.
    Hang,
    /// Takes memory and keeps it.
    Leak,
    /// Leaves the process without a word.
    Exit,
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

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for RoutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(path) => write!(f, "{path}"),
            Self::Exact(path) => write!(f, "= {path}"),
        }
    }
}
