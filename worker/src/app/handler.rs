//! Handlers, where they run, and what they may return.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use phalanx_shared::error;

use super::{Request, Response};

/// Answers requests. Any `Fn(&Request) -> R` is one whose `R` can become a response.
///
/// It may be run by several threads at once, in several processes. When a worker dies in a handler, a request whose method is
/// idempotent (RFC 9110, 9.2.2) and not to blame for it is handled again, from the beginning, by another process; any other is
/// answered 500. A panic is answered 500, and its connection lives on.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: &Request<'_>) -> Response;
}

impl<F, R> Handler for F
where
    F: Fn(&Request<'_>) -> R + Send + Sync + 'static,
    R: IntoResponse,
{
    fn handle(&self, request: &Request<'_>) -> Response {
        self(request).into_response()
    }
}

/// What a handler may return.
pub trait IntoResponse {
    /// The response that it stands for.
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

/// 200 with a text.
impl IntoResponse for &'static str {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// 200 with a text.
impl IntoResponse for String {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// 200 with a text.
impl IntoResponse for Cow<'static, str> {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// The same with that status.
impl<R: IntoResponse> IntoResponse for (u16, R) {
    fn into_response(self) -> Response {
        self.1.into_response().status(self.0)
    }
}

impl<R: IntoResponse, E: IntoResponse> IntoResponse for Result<R, E> {
    fn into_response(self) -> Response {
        self.map_or_else(E::into_response, R::into_response)
    }
}

/// The peer's fault is a 400 (`InvalidData`, `UnexpectedEof`), what is not there a 404 (`NotFound`); any other is a 500, and a line of
/// the log tells what it was.
impl IntoResponse for io::Error {
    fn into_response(self) -> Response {
        match self.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Response::text(format!("{self}\n")).status(400)
            }
            io::ErrorKind::NotFound => Response::text("404 Not Found\n").status(404),
            _ => {
                error!("a handler failed, its request is answered 500: {self}");
                Response::text("500 Internal Server Error\n").status(500)
            }
        }
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
    pub(super) streamed: bool,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} handler", self.place)
    }
}

impl<H: Handler> From<H> for Endpoint {
    fn from(handler: H) -> Endpoint {
        Endpoint { handler: Arc::new(handler), place: Place::Inline, streamed: false }
    }
}

/// A handler that runs in a thread of the pool, so that it may block: see [`Place::Pooled`].
pub fn pooled(handler: impl Handler) -> Endpoint {
    Endpoint { handler: Arc::new(handler), place: Place::Pooled, streamed: false }
}

impl Endpoint {
    /// Has the handler begin before the body is complete, where that does not fit into a buffer (16 KiB with the head), and read it
    /// as it comes. It must be [`pooled`], since it will wait. The connection reads on only as the handler does. Such a request is
    /// not handled again after a death: it is answered 500.
    ///
    /// Under the models that have a thread or a process for each connection (`thread`, `process`, `sync`), the body is kept in
    /// memory until it is complete all the same.
    #[must_use]
    pub fn streamed(self) -> Endpoint {
        Endpoint { streamed: true, ..self }
    }

    pub(crate) fn handle(&self, request: &Request<'_>) -> Response {
        self.handler.handle(request)
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn is_streamed(&self) -> bool {
        self.streamed && self.place == Place::Pooled
    }
}
