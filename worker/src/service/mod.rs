//! The services: what answers a request.
//!
//! A service is handed a checked head and a decoded path and gives a reply; it knows no connection and no protocol
//! detail. Which one is asked is the router's decision. One kind of service, one file; `Service` is the registry.

mod application;
mod dress;
pub(crate) mod effort;
pub(crate) mod fault;
pub mod files;
mod redirect;
mod respond;
pub mod router;

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use phalanx_shared::config::{Action, Cache, Effort, Fault, Health, Route};
use phalanx_shared::ledger::record::Owner;
use phalanx_shared::quarantine::Quarantine;

use crate::app;
use crate::http::reply::{Flow, Prepared};
use crate::http::{Head, Reply};
use crate::open_file::OpenFiles;
use crate::pool::Job;
use dress::Dress;
use files::Shelf;

use application::Application;
pub use files::{Files, OpenRootError};
pub(crate) use redirect::Redirect;
pub(crate) use respond::Respond;
pub use router::Router;

/// What services have from their worker.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Where they note what they open.
    pub(crate) open_files: OpenFiles,
    /// What is at hand of files.
    pub(crate) shelf: Arc<Shelf>,
    /// How much of it.
    pub(crate) cache: Cache,
    /// Requests that are not run.
    pub(crate) quarantine: Option<Quarantine>,
    /// What the program brings.
    pub(crate) application: app::Application,
}

impl Setting {
    /// That of a worker with an empty shelf.
    pub fn new(open_files: OpenFiles, cache: &Cache) -> Setting {
        let shelf = Arc::new(Shelf::new(cache));
        let application = app::Application::new();
        Setting { open_files, shelf, cache: cache.clone(), quarantine: None, application }
    }

    /// With requests that are not run.
    #[must_use]
    pub fn with_quarantine(self, quarantine: Quarantine) -> Setting {
        Setting { quarantine: Some(quarantine), ..self }
    }

    /// With what the program brings.
    #[must_use]
    pub fn with_application(self, application: app::Application) -> Setting {
        Setting { application, ..self }
    }

    /// This process is a copy of the worker's from now on, and `owner`, an [`Owner::ChildFile`], has what it opens. What the worker
    /// holds open is closed when that likes.
    pub(crate) fn become_of(&self, owner: Owner) {
        self.open_files.become_of(owner);
        self.shelf.forget_open_files();
    }

    /// The turn at hand.
    pub fn turn(&self) -> u64 {
        self.shelf.turn()
    }

    /// A turn of the loop begins.
    pub fn next_turn(&self) {
        self.shelf.next_turn();
    }
}

/// A request as services see it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'b, 'h> {
    /// The head as parsed.
    pub head: &'h Head<'b>,
    /// The path, decoded and normalised by [`path::decode`](crate::http::path::decode).
    pub path: &'h str,
    /// The second that the response's Date names, since the epoch: the same when a successor asks again.
    pub date: u64,
}

/// A request as it is put to the router.
pub struct Asked<'a> {
    /// The head as parsed.
    pub head: &'a Head<'a>,
    /// Its bytes, and maybe more behind them.
    #[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "services of tower alone copy them"))]
    pub(crate) bytes: &'a [u8],
    /// What followed it.
    pub(crate) body: app::Payload<'a>,
    /// The second that the response's Date names, since the epoch: the same when a successor asks again.
    pub date: u64,
    /// Who asks: made out for those alone who want to know.
    pub(crate) caller: &'a app::AskCaller<'a>,
    /// Who asks.
    pub asker: Asker,
}

/// Who asks, and what he can bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A loop, which has others to serve.
    Loop,
    /// A thread that has time.
    Thread,
    /// A process that is to be thrown away.
    Isolated,
}

/// What becomes of a body that is larger than its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// Nobody looks at it.
    Discard,
    /// It is kept until it is complete.
    Collect,
    /// Its handler takes it as it comes.
    Stream,
}

/// A reply that is under way.
pub struct Answering(pub(crate) Pin<Box<dyn Future<Output = crate::http::Response> + Send>>);

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answering")
    }
}

/// Takes what a peer sends from the head of its request on, and tells what is sent.
pub struct Tunnel(pub(crate) Box<dyn FnOnce(app::Incoming) -> Pin<Box<dyn Flow>> + Send>);

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tunnel")
    }
}

/// What the router decided.
#[derive(Debug)]
pub enum Answer<'r> {
    /// To be encoded and sent.
    Reply(Reply<'r>),
    /// Ask again, with what this comes to.
    Later(Job),
    /// Ask again in a thread.
    Call,
    /// Have a process of its own ask again.
    Isolate(app::Limits),
    /// What this comes to, which is under way.
    #[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "services of tower alone are under way"))]
    Task(Answering),
    /// All that the connection carries from this request on is this one's.
    #[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "services of tower alone leave HTTP"))]
    Tunnel(Tunnel),
    /// The first while the worker is to get new work, then the second.
    Health(&'r Prepared, &'r Prepared),
    /// To be given when the caller has made this effort.
    Effort(Effort, Reply<'r>),
    /// To be carried out by the caller: the route breaks the worker on purpose.
    Fault(Fault),
}

/// Why a route cannot be made ready.
#[derive(Debug)]
pub enum NotReady {
    /// The directory that it serves cannot be opened.
    Root(OpenRootError),
    /// The program has no app of this name.
    NoApp(String),
}

impl std::fmt::Display for NotReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotReady::Root(error) => error.fmt(f),
            NotReady::NoApp(name) => write!(f, "there is no app {name:?} in this program"),
        }
    }
}

impl std::error::Error for NotReady {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            NotReady::Root(error) => error.source(),
            NotReady::NoApp(_) => None,
        }
    }
}

impl From<OpenRootError> for NotReady {
    fn from(error: OpenRootError) -> NotReady {
        NotReady::Root(error)
    }
}

/// What a route does, ready to do it.
#[derive(Debug)]
pub(crate) enum Service {
    Files(Box<Files>),
    Respond(Respond, Effort, Dress),
    Redirect(Redirect, Dress),
    App(Box<Application>),
    Health(Respond, Respond, Dress),
    Fault(Fault, Dress),
}

impl Service {
    /// Makes ready what a route's action needs: opens its root, encodes its reply. `number` tells it from all others.
    fn new(number: usize, route: &Route, setting: &Setting) -> Result<Service, NotReady> {
        let dress = Dress::new(route, std::collections::HashMap::new());
        Ok(match &route.action {
            Action::Files(action) => Service::Files(Box::new(Files::new(number, route, action, setting)?)),
            Action::Respond { status, body, content_type, effort } => {
                Service::Respond(Respond::new(*status, content_type, body, &dress.lines()), *effort, dress)
            }
            Action::App(name) => {
                let app = Application::new(name, dress, setting).ok_or_else(|| NotReady::NoApp(name.clone()))?;
                Service::App(Box::new(app))
            }
            Action::Redirect { to, status } => Service::Redirect(Redirect::new(to, *status, &dress.lines()), dress),
            Action::Health(health) => {
                let lines = format!("{}Cache-Control: no-store\r\n", dress.lines());
                let ready = || Respond::new(200, "text/plain", "ready\n", &lines);
                let unready = || Respond::new(503, "text/plain", "not ready\n", &lines);
                let later = if *health == Health::Readiness { unready() } else { ready() };
                Service::Health(ready(), later, dress)
            }
            Action::Fault(fault) => Service::Fault(*fault, dress),
        })
    }

    fn take_own_descriptor(&self) -> std::io::Result<()> {
        match self {
            Service::Files(files) => files.take_own_descriptor(),
            _ => Ok(()),
        }
    }

    fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        match self {
            Service::Files(files) => Some(files.descriptor()),
            _ => None,
        }
    }

    /// Files are not written to: what would be the body of that is refused before it comes.
    fn wants_body(&self, head: &Head<'_>, path: &str) -> bool {
        match self {
            Service::Files(_) => matches!(head.method, "GET" | "HEAD"),
            Service::App(app) => app.wants_body(head, path),
            _ => true,
        }
    }

    /// What becomes of a body that is larger than its buffer.
    fn intake(&self, head: &Head<'_>, path: &str) -> Intake {
        match self {
            Service::App(app) => app.intake(head, path),
            _ => Intake::Discard,
        }
    }

    /// What its handlers need of the worker.
    fn needs(&self) -> app::Needs {
        match self {
            Service::App(app) => app.needs(),
            _ => app::Needs::default(),
        }
    }

    /// What the route adds to its answers.
    fn dress(&self) -> &Dress {
        match self {
            Service::Files(files) => files.dress(),
            Service::App(app) => app.dress(),
            Service::Respond(_, _, dress)
            | Service::Redirect(_, dress)
            | Service::Health(_, _, dress)
            | Service::Fault(_, dress) => dress,
        }
    }

    /// Answers; `done` is what it had to wait for.
    #[inline]
    fn answer(&self, asked: &Asked<'_>, path: &str, done: Option<Box<dyn Any + Send>>) -> Answer<'_> {
        match self {
            Service::Respond(respond, effort, _) if effort.is_none() => Answer::Reply(respond.answer()),
            Service::Respond(respond, effort, _) => Answer::Effort(*effort, respond.answer()),
            Service::App(app) => app.answer(asked, path),
            Service::Files(files) => files.answer(&Request { head: asked.head, path, date: asked.date }, done),
            Service::Redirect(redirect, _) => Answer::Reply(redirect.answer()),
            Service::Health(ready, unready, _) => Answer::Health(ready.prepared(), unready.prepared()),
            Service::Fault(fault, _) => Answer::Fault(*fault),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Requests for the tests of services.

    use phalanx_shared::config;
    use phalanx_shared::ipc::Incarnation;
    use phalanx_shared::ledger::Ledger;

    use super::{Asked, Asker, OpenFiles, Request, Setting};
    use crate::app::{Caller, Payload, RequestId};
    use crate::http::{Head, HeaderScratch, Progress, parse, path};

    /// Parses `line`, a request line without version, with `fields`, complete lines; hands the head to `look`.
    pub(crate) fn with_head<T>(line: &str, fields: &str, look: impl FnOnce(&Head<'_>) -> T) -> T {
        let host = if fields.contains("Host:") { "" } else { "Host: example.org\r\n" };
        let text = format!("{line} HTTP/1.1\r\n{host}{fields}\r\n");
        let mut scratch = HeaderScratch::new();
        match parse(text.as_bytes(), 4096, &mut scratch) {
            Ok(Progress::Done(head)) => look(&head),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    /// The same, with the path decoded.
    pub(crate) fn with_request<T>(line: &str, fields: &str, look: impl FnOnce(&Request<'_, '_>) -> T) -> T {
        with_head(line, fields, |head| {
            let path = path::decode(head.path).unwrap();
            look(&Request { head, path: &path, date: 2_000_000_000 })
        })
    }

    /// The request of a head alone.
    pub(crate) fn asked<'a>(head: &'a Head<'a>) -> Asked<'a> {
        let caller = &|| Caller { peer: None, client: None, id: RequestId { cookie: 0, position: 0 }, deadline: None };
        Asked { head, bytes: &[], body: Payload::None, date: 0, caller, asker: Asker::Loop }
    }

    /// The setting of a worker with a ledger of its own.
    pub(crate) fn setting() -> Setting {
        let (ledger, _fd) = Ledger::create("test", 64, 1).unwrap();
        let cache = config::serve_defaults("/".into(), vec![]).cache;
        Setting::new(OpenFiles::new(ledger.table(), 0, Incarnation(1)), &cache)
    }
}
