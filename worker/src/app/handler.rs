//! Handlers, and where they run.

use std::sync::Arc;

use super::{Request, Response};

/// Answers requests. Any `Fn(&Request) -> Response` is one.
///
/// It may be run by several threads at once, in several processes. When a worker dies in a handler, a request whose method is
/// idempotent (RFC 9110, 9.2.2) and not to blame for it is handled again, from the beginning, by another process; any other is
/// answered 500. A panic is answered 500, and its connection lives on.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: &Request<'_>) -> Response;
}

impl<F: Fn(&Request<'_>) -> Response + Send + Sync + 'static> Handler for F {
    fn handle(&self, request: &Request<'_>) -> Response {
        self(request)
    }
}

/// Where a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// In the event loop of its connection: costs nothing more, and holds up every other connection of the loop while it runs. For
    /// handlers that neither wait nor compute for long.
    Inline,
    /// In a thread of the worker's pool (`workers.threads`): costs two changes of threads, and holds up nobody. For handlers that
    /// block.
    Pooled,
}

/// A handler, and where it runs.
#[derive(Clone)]
pub struct Endpoint {
    pub(super) handler: Arc<dyn Handler>,
    pub(super) place: Place,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} handler", self.place)
    }
}

impl<H: Handler> From<H> for Endpoint {
    fn from(handler: H) -> Endpoint {
        Endpoint { handler: Arc::new(handler), place: Place::Inline }
    }
}

/// A handler that runs in a thread of the pool, so that it may block: see [`Place::Pooled`].
pub fn pooled(handler: impl Handler) -> Endpoint {
    Endpoint { handler: Arc::new(handler), place: Place::Pooled }
}
