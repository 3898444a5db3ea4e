//! What an embedding program brings: its handlers, and where each of them runs.
//!
//! This is the face that a Rust program sees of a worker; the package `phalanx` hands it on. A handler is given a [`Request`] that
//! borrows what the peer sent and returns a [`Response`]; it knows nothing of connections, of the ledger or of supervision. A
//! worker that dies in it answers that request with an error, and nobody else notices.

mod body;
mod handler;
mod hooks;
mod incoming;
mod request;
mod response;
mod routes;
#[cfg(feature = "tower")]
pub(crate) mod tower;
#[cfg(feature = "tower")]
pub(crate) mod tunnel;

use std::sync::Arc;

use phalanx_shared::config::KnownApp;

pub use body::Body;
#[cfg(feature = "tower")]
pub use handler::task;
pub use handler::{Endpoint, Handler, IntoResponse, Limits, PathParams, Place, isolated, pooled};
pub use hooks::{Background, Crash, HookError, Hooks, WorkerInfo};
pub use incoming::Incoming;
pub use request::{Caller, Request, RequestId};
pub use response::{InvalidField, Response};
pub use routes::{Conflict, Routes};

pub(crate) use body::{Handed, Payload};
pub(crate) use incoming::{Feed, pipe};
pub(crate) use request::AskCaller;
pub(crate) use routes::Found;
#[cfg(feature = "tower")]
pub use tower::{BoxError, Tower};

/// Something that answers requests: handlers, by method and path.
#[derive(Debug, Clone)]
pub struct App(pub(crate) Kind);

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Routes(Arc<Routes>),
    #[cfg(feature = "tower")]
    Tower(Arc<Tower>),
}

impl From<Routes> for App {
    fn from(routes: Routes) -> App {
        App(Kind::Routes(Arc::new(routes)))
    }
}

#[cfg(feature = "tower")]
impl From<Tower> for App {
    fn from(tower: Tower) -> App {
        App(Kind::Tower(Arc::new(tower)))
    }
}

/// One handler for every method and every path.
impl<H: Handler> From<H> for App {
    fn from(handler: H) -> App {
        Routes::new().fallback(handler).into()
    }
}

impl App {
    /// What of it cannot be.
    pub fn problems(&self) -> Vec<String> {
        match &self.0 {
            Kind::Routes(routes) => routes.conflicts().iter().map(ToString::to_string).collect(),
            #[cfg(feature = "tower")]
            Kind::Tower(_) => Vec::new(),
        }
    }

    /// What its handlers need of the worker.
    pub(crate) fn needs(&self) -> Needs {
        match &self.0 {
            Kind::Routes(routes) => Needs {
                threads: routes.any_is(|endpoint| matches!(endpoint.place(), Place::Pooled | Place::Isolated)),
                isolator: routes.any_is(|endpoint| endpoint.place() == Place::Isolated),
                streams: routes.any_is(Endpoint::is_streamed),
            },
            #[cfg(feature = "tower")]
            Kind::Tower(_) => Needs { streams: true, ..Needs::default() },
        }
    }

    /// The model that it runs under, if not under every one.
    pub fn model(&self) -> Option<&'static str> {
        match &self.0 {
            Kind::Routes(routes) if routes.any_is(|endpoint| endpoint.place() == Place::Task) => Some("coroutine"),
            Kind::Routes(_) => None,
            #[cfg(feature = "tower")]
            Kind::Tower(_) => Some("coroutine"),
        }
    }
}

/// What handlers need of their worker.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    /// Threads to run in.
    pub(crate) threads: bool,
    /// Processes of their own.
    pub(crate) isolator: bool,
    /// Bodies as they come.
    pub(crate) streams: bool,
}

impl Needs {
    pub(crate) fn and(self, other: Needs) -> Needs {
        Needs {
            threads: self.threads || other.threads,
            isolator: self.isolator || other.isolator,
            streams: self.streams || other.streams,
        }
    }
}

/// All that a program brings.
#[derive(Debug, Clone, Default)]
pub struct Application {
    apps: Vec<(String, App)>,
    /// What it wants to be told.
    pub hooks: Hooks,
}

impl Application {
    /// One that brings nothing.
    #[must_use]
    pub fn new() -> Application {
        Application::default()
    }

    /// Adds an app under a name. The first is the one that answers what no route of a configuration is about.
    #[must_use]
    pub fn with(mut self, name: &str, app: App) -> Application {
        self.apps.push((name.to_owned(), app));
        self
    }

    /// What a configuration may name of it.
    pub fn known(&self) -> Vec<KnownApp> {
        self.apps.iter().map(|(name, app)| KnownApp { name: name.clone(), model: app.model() }).collect()
    }

    /// The app of a name.
    pub(crate) fn find(&self, name: &str) -> Option<&App> {
        self.apps.iter().find_map(|(known, app)| (known == name).then_some(app))
    }
}
