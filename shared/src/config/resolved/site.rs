//! What is served: sites, their routes, and what a route does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    /// Fields added to its answers: sound names, none that the server sets itself, none twice in whatever case, and sound
    /// values. At most 32, with 4 KiB in all.
    pub headers: Vec<(String, String)>,
    /// The Cache-Control of its answers, a sound header value.
    pub cache_control: Option<String>,
    /// How many requests a client address may make; none: as many as it likes.
    pub limit: Option<Rate>,
}

/// The request paths that a route answers; both start with "/". Displays as it is written in the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RoutePath {
    /// Every path that begins so; the longest wins.
    Prefix(String),
    /// This path and no other; it wins over every prefix.
    Exact(String),
}

/// A number of requests in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// The time between two requests in the long run, 1 µs to a day: 2 s for `30/m`.
    pub interval: Duration,
    /// Requests that may come at once, 1 to 100,000. So `interval * burst` in nanoseconds fits an `i64`.
    pub burst: u32,
}

/// What a handler costs, for comparisons of models: first its processor, then its patience.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effort {
    /// Time on a processor; zero: none.
    pub work: Duration,
    /// Time asleep; zero: none.
    pub wait: Duration,
}

impl Effort {
    /// It costs nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Effort::default()
    }
}

/// What answers a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Serves the files below a directory.
    Files(FilesAction),
    /// Gives a fixed answer.
    Respond {
        /// 200 to 599.
        status: u16,
        /// Empty where the status allows none.
        body: String,
        /// A sound header value.
        content_type: String,
        /// What the handler does before.
        effort: Effort,
    },
    /// Sends the client elsewhere.
    Redirect {
        /// A sound header value: a path or a URL.
        to: String,
        /// 301, 302, 303, 307 or 308.
        status: u16,
    },
    /// Has the program's app of this name answer.
    App(String),
    /// Tells load balancers and the like whether to send requests here.
    Health(Health),
    /// Breaks the worker on purpose.
    Fault(Fault),
}

/// What a `health` route tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// 200, and 503 as soon as the worker is to get no new work.
    Readiness,
    /// 200 as long as there is somebody to say so.
    Liveness,
}

/// How files are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesAction {
    /// Absolute; a directory when the configuration was read.
    pub root: PathBuf,
    /// The file names tried, in order, when a directory is asked for; may be empty.
    pub index: Vec<String>,
    /// Whether a directory without an index file is answered with its list of files.
    pub listing: bool,
    /// The path below the root that answers for what is not there: begins with "/", decoded, without "..".
    pub fallback: Option<String>,
    /// Whether what is worth it is compressed on the way.
    pub compress: bool,
    /// Whether a file's sibling with `.br`, `.zst` or `.gz` added is sent in its place to clients that take it.
    pub precompressed: bool,
    /// The charset that types of text are sent with, a token; none: they are sent without.
    pub charset: Option<String>,
    /// Patterns of paths that are answered as if nothing were there; not empty strings, at most 64. One that begins with
    /// "/" is held against the whole path, any other has no "/" in it and is held against each segment of the path. `*`
    /// stands for any run of bytes, in a pattern for segments within its segment; `?` stands for one byte.
    pub deny: Vec<String>,
    /// By status, 400 to 599, the path of the page below the root that is sent with it: as `fallback`.
    pub error_pages: BTreeMap<u16, String>,
}

/// What a `fault` route does to the worker that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// A thread of the pool does it, and the loop goes on.
    pub pooled: bool,
}

/// Ways to break a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
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
    /// Take more and more memory, without end.
    Hoard,
    /// Loop without end.
    Spin,
    /// Wait for what nobody does.
    Deadlock,
    /// Read from a pipe that nobody writes to.
    Read,
    /// Takes memory and keeps it.
    Leak,
    /// Leaves the process without a word.
    Exit,
}

impl Route {
    /// A route with nothing but a path and an action.
    #[must_use]
    pub fn new(path: RoutePath, action: Action) -> Self {
        Self { path, action, headers: Vec::new(), cache_control: None, limit: None }
    }
}

impl FilesAction {
    /// The files below `root`, all else at its default.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            index: vec!["index.html".to_owned()],
            listing: false,
            fallback: None,
            compress: true,
            precompressed: true,
            charset: Some("utf-8".to_owned()),
            deny: vec![".*".to_owned()],
            error_pages: BTreeMap::new(),
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
