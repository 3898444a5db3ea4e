//! Handlers, where they run, and what they may return.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

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
    /// In a process of its own, made for the request and thrown away, with limits: costs a fork(2) and a copy of request and response.
    /// A crash in it, or an overrun, is a 502 that tells why, and nothing else notices. For code that cannot be trusted to return.
    ///
    /// The process is a copy of the worker from before its first request: it sees what the program made before the server started,
    /// shared state too, and nothing that a worker made later. Under the model `sync` its worker does nothing else meanwhile, and under
    /// `process` its connection's process: there `wall` is to be below `workers.hang_timeout` and `workers.request_timeout`.
    Isolated,
    /// As a task of the worker's runtime: for handlers that wait for other servers. See `task`.
    Task,
}

/// What an isolated handler may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Time on a processor, in whole seconds, rounded up.
    pub cpu: Duration,
    /// Bytes of memory that it may allocate, those included that it was born with (RLIMIT_DATA, getrlimit(2)).
    pub memory: u64,
    /// Time in all.
    pub wall: Duration,
}

impl Default for Limits {
    /// 10 s of processor time, 256 MiB, 30 s in all.
    fn default() -> Limits {
        Limits { cpu: Duration::from_secs(10), memory: 256 << 20, wall: Duration::from_secs(30) }
    }
}

/// What answers.
#[derive(Clone)]
pub(super) enum Work {
    /// It returns when it has.
    Called(Arc<dyn Handler>),
    /// It begins, and is waited for.
    #[cfg(feature = "tower")]
    Begun(Arc<super::tower::Begin>),
}

/// A handler, and where it runs.
#[derive(Clone)]
pub struct Endpoint {
    pub(super) work: Work,
    pub(super) place: Place,
    pub(super) limits: Limits,
    pub(super) streamed: bool,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} handler", self.place)
    }
}

impl<H: Handler> From<H> for Endpoint {
    fn from(handler: H) -> Endpoint {
        Endpoint::at(Place::Inline, handler)
    }
}

/// A handler that runs in a thread of the pool, so that it may block: see [`Place::Pooled`].
pub fn pooled(handler: impl Handler) -> Endpoint {
    Endpoint::at(Place::Pooled, handler)
}

/// A handler that runs in a process of its own, which is thrown away afterwards: see [`Place::Isolated`]. The answer is kept whole
/// before it is sent, at most 64 MiB.
pub fn isolated(handler: impl Handler) -> Endpoint {
    Endpoint::at(Place::Isolated, handler)
}

/// An asynchronous handler: it runs as a task of the worker's runtime (tokio, with time and I/O), so the program's model is
/// `coroutine`. It is given the request in the types of the crate `http`, with a body that comes as it comes, and the [`PathParams`]
/// of its route among the extensions. When the client goes, it is dropped where it stands.
#[cfg(feature = "tower")]
pub fn task<F, A, R>(handler: F) -> Endpoint
where
    F: Fn(http::Request<super::Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = R> + Send + 'static,
    R: IntoResponse,
{
    let begin = move |request| -> super::tower::Beginning {
        let answering = handler(request);
        Box::pin(async move { answering.await.into_response() })
    };
    Endpoint { work: Work::Begun(Arc::new(begin)), place: Place::Task, limits: Limits::default(), streamed: true }
}

/// What stands in the path for the parameters of a route, decoded: an extension of the requests of [`task`].
#[derive(Debug, Clone, Default)]
pub struct PathParams(pub(crate) Vec<(String, String)>);

impl PathParams {
    /// What stands for `{name}`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }
}

impl Endpoint {
    fn at(place: Place, handler: impl Handler) -> Endpoint {
        Endpoint { work: Work::Called(Arc::new(handler)), place, limits: Limits::default(), streamed: false }
    }

    /// Bounds the time on a processor of an [`isolated`] handler.
    #[must_use]
    pub fn cpu(mut self, most: Duration) -> Endpoint {
        self.limits.cpu = most;
        self
    }

    /// Bounds the bytes that an [`isolated`] handler may allocate.
    #[must_use]
    pub fn memory(mut self, most: u64) -> Endpoint {
        self.limits.memory = most;
        self
    }

    /// Bounds the time that an [`isolated`] handler may take in all.
    #[must_use]
    pub fn wall(mut self, most: Duration) -> Endpoint {
        self.limits.wall = most;
        self
    }

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

    /// Has it answer, here and now; what begins elsewhere has nothing to say.
    pub(crate) fn handle(&self, request: &Request<'_>) -> Response {
        match &self.work {
            Work::Called(handler) => handler.handle(request),
            #[cfg(feature = "tower")]
            Work::Begun(_) => Response::new(500),
        }
    }

    /// Has it begin.
    #[cfg(feature = "tower")]
    pub(crate) fn begin(&self, request: http::Request<super::Incoming>) -> Option<super::tower::Beginning> {
        match &self.work {
            Work::Called(_) => None,
            Work::Begun(begin) => Some(begin(request)),
        }
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn is_streamed(&self) -> bool {
        self.place == Place::Task || (self.streamed && self.place == Place::Pooled)
    }
}
