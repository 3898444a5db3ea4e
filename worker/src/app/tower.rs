//! Services of the tower world, such as a router of axum: `http` 1.x requests in, responses out, bodies as streams both ways.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use phalanx_shared::error;
use tower_service::Service;

use super::tunnel::{self, Open};
use super::{Caller, Incoming};
use crate::http::Head;
use crate::http::reply::{Body, Flow, Response, Source};

/// Header fields whose values are copied one by one.
const FEW: usize = 3;

/// What a request comes to, once it is polled.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// … of a handler of Phalanx's own.
pub(crate) type Beginning = Pin<Box<dyn Future<Output = super::Response> + Send>>;

/// Such a handler.
pub(crate) type Begin = dyn Fn(http::Request<Incoming>) -> Beginning + Send + Sync;

/// Errors of services and bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is done to a request before its service gets it.
type Prepare = dyn Fn(&mut http::request::Parts, &Caller) + Send + Sync;

type Call = dyn Fn(http::Request<Incoming>) -> Answering + Send + Sync;
type OpenFor = dyn Fn(Incoming, Prepared) -> Pin<Box<dyn Flow>> + Send + Sync;

/// A service, to be called for each request: see [`Tower::new`].
pub struct Tower {
    call: Box<Call>,
    open: Box<OpenFor>,
    prepare: Option<Arc<Prepare>>,
}

/// What is to be done to a request, and who makes it.
type Prepared = Option<(Arc<Prepare>, Caller)>;

impl std::fmt::Debug for Tower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tower")
    }
}

impl Tower {
    /// Has `service` answer: a router of axum, or any service of tower that takes a request of `http` 1.x with an [`Incoming`] body.
    /// It is cloned for each request. It runs under the model `coroutine`, on a runtime of tokio with time and I/O, one for each
    /// worker.
    ///
    /// When the client goes, or the worker is to answer otherwise, the future of the request is dropped where it stands. A response
    /// that has no `Content-Length` and is not at hand is sent in chunks, each as soon as it is there.
    pub fn new<S, B>(service: S) -> Tower
    where
        S: Service<http::Request<Incoming>, Response = http::Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: HttpBody + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let of_tunnels = service.clone();
        let open = move |incoming: Incoming, prepared: Prepared| {
            let service = of_tunnels.clone();
            let answer = move |request: http::Request<Incoming>| {
                let (mut service, request) = (service.clone(), prepare_for(request, &prepared));
                async move {
                    poll_fn(|cx| service.poll_ready(cx)).await?;
                    service.call(request).await
                }
            };
            tunnel::open(incoming, answer)
        };
        let call = move |request: http::Request<Incoming>| -> Answering {
            let (mut service, is_head) = (service.clone(), request.method() == Method::HEAD);
            // Nearly all services are always ready; those have no need of a future that remembers the request.
            match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => {
                    let answered = service.call(request);
                    Box::pin(async move { reply_to(answered.await, is_head) })
                }
                Poll::Ready(Err(error)) => {
                    let answered = Err::<http::Response<B>, S::Error>(error);
                    Box::pin(std::future::ready(reply_to(answered, is_head)))
                }
                Poll::Pending => Box::pin(async move {
                    let answered = async {
                        poll_fn(|cx| service.poll_ready(cx)).await?;
                        service.call(request).await
                    };
                    reply_to(answered.await, is_head)
                }),
            }
        };
        Tower { call: Box::new(call), open: Box::new(open), prepare: None }
    }

    /// Has `prepare` look at each request, and add to it, before the service gets it: for instance who asks, as an extension.
    #[must_use]
    pub fn prepare(self, prepare: impl Fn(&mut http::request::Parts, &Caller) + Send + Sync + 'static) -> Tower {
        Tower { prepare: Some(Arc::new(prepare)), ..self }
    }

    /// Tells each request who its peer is as axum does it: `axum::extract::ConnectInfo<SocketAddr>`. Where a proxy is trusted by the
    /// listener, it is the client's address, with port 0. Connections of a Unix socket have none.
    #[cfg(feature = "axum")]
    #[must_use]
    pub fn connect_info(self) -> Tower {
        self.prepare(|parts, caller| {
            let client = match (caller.peer, caller.client) {
                (Some(peer), Some(client)) if peer.ip().to_canonical() != client => Some((client, 0).into()),
                (peer, _) => peer,
            };
            if let Some(client) = client {
                parts.extensions.insert(axum::extract::ConnectInfo::<std::net::SocketAddr>(client));
            }
        })
    }

    /// Begins to answer; none when there is no such request in `http`.
    pub(crate) fn begin(
        &self,
        head: &Head<'_>,
        bytes: &[u8],
        body: Incoming,
        caller: &dyn Fn() -> Caller,
    ) -> Option<Answering> {
        let request = request_of(head, bytes, body)?;
        Some((self.call)(prepare_for(request, &self.prepared(caller))))
    }

    fn prepared(&self, caller: &dyn Fn() -> Caller) -> Prepared {
        self.prepare.as_ref().map(|prepare| (prepare.clone(), caller()))
    }

    /// Has a request answered that may leave HTTP with its connection.
    pub(crate) fn tunnel(self: &Arc<Tower>, caller: &dyn Fn() -> Caller) -> Open {
        let (tower, prepared) = (self.clone(), self.prepared(caller));
        Box::new(move |incoming| (tower.open)(incoming, prepared))
    }
}

fn prepare_for(request: http::Request<Incoming>, prepared: &Prepared) -> http::Request<Incoming> {
    let Some((prepare, caller)) = prepared else { return request };
    let (mut parts, body) = request.into_parts();
    prepare(&mut parts, caller);
    http::Request::from_parts(parts, body)
}

/// The request whose head stands at the front of `bytes`.
pub(crate) fn request_of(head: &Head<'_>, bytes: &[u8], body: Incoming) -> Option<http::Request<Incoming>> {
    let is_short = head.headers.len() <= FEW;
    // One copy, which all values share. To share costs more than to copy where there are few.
    let copy = if is_short { Bytes::new() } else { Bytes::copy_from_slice(bytes.get(..head.len)?) };
    let origin = bytes.as_ptr() as usize;
    let share = |part: &[u8]| {
        let at = (part.as_ptr() as usize).checked_sub(origin)?;
        (at + part.len() <= copy.len()).then(|| copy.slice(at..at + part.len()))
    };
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = match is_short {
            true => HeaderValue::from_bytes(field.value),
            false => HeaderValue::from_maybe_shared(share(field.value)?),
        };
        headers.append(name, value.ok()?);
    }
    let mut request = http::Request::new(body);
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    let uri = match is_short {
        true => Uri::try_from(head.target),
        false => Uri::from_maybe_shared(share(head.target.as_bytes())?),
    };
    *request.uri_mut() = uri.ok()?;
    *request.version_mut() = if head.minor_version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    *request.headers_mut() = headers;
    Some(request)
}

/// Fields that the server itself has the say of.
fn is_of_the_server(name: &HeaderName) -> bool {
    name == header::CONTENT_LENGTH
        || name == header::CONNECTION
        || name == header::DATE
        || name == header::SERVER
        || name == header::TRANSFER_ENCODING
        || name == header::UPGRADE
        || name == header::TE
        || name == header::TRAILER
}

/// What is to be sent of what a service came to.
fn reply_to<B, E>(answered: Result<http::Response<B>, E>, is_head: bool) -> Response
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    match answered {
        Ok(response) => reply_of(response, is_head),
        Err(error) => {
            error!("a service failed, its request is answered 500: {}", error.into());
            Response::new(500)
        }
    }
}

/// What is to be sent of a response.
fn reply_of<B>(response: http::Response<B>, is_head: bool) -> Response
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let status = parts.status.as_u16();
    if parts.status < StatusCode::OK || status > 599 {
        error!("a service answered {status}, which is no final status: its request is answered 500");
        return Response::new(500);
    }
    let mut lines = Vec::with_capacity(64 * parts.headers.len());
    for (name, value) in parts.headers.iter().filter(|(name, _)| !is_of_the_server(name)) {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    // Who is to come again by another protocol is told which (RFC 9110, 15.5.22 and 7.8).
    if let Some(protocols) = parts.headers.get(header::UPGRADE).filter(|_| status == 426) {
        for part in [b"Connection: upgrade\r\nUpgrade: ", protocols.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    let stated = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    Response { headers: lines, body: body_of(body, stated, is_head), ..Response::new(status) }
}

/// The body, at hand as far as it is.
fn body_of<B>(body: B, stated: Option<u64>, is_head: bool) -> Body
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError>,
{
    if is_head {
        // Nothing of it is sent but its length, if the service tells that.
        return Body::Stream { source: Source::Awaited(Box::pin(Nothing)), len: stated };
    }
    let len = stated.or_else(|| body.size_hint().exact());
    let mut flowing = Flowing { first: None, body: Some(Box::pin(body)) };
    let mut cx = Context::from_waker(Waker::noop());
    match flowing.look(&mut cx) {
        Poll::Ready(None) if stated.is_none_or(|stated| stated == 0) => Body::Empty,
        Poll::Ready(Some(Ok(bytes))) if flowing.is_over() && stated.is_none_or(|it| it == bytes.len() as u64) => {
            Body::Bytes(bytes)
        }
        Poll::Ready(first) => {
            flowing.first = first;
            Body::Stream { source: Source::Awaited(Box::pin(flowing)), len }
        }
        Poll::Pending => Body::Stream { source: Source::Awaited(Box::pin(flowing)), len },
    }
}

struct Nothing;

impl Flow for Nothing {
    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        Poll::Ready(None)
    }
}

/// A body on its way to the client.
struct Flowing<B> {
    /// Came before it was known what would follow.
    first: Option<io::Result<Bytes>>,
    /// None: it is over.
    body: Option<Pin<Box<B>>>,
}

impl<B> Flowing<B>
where
    B: HttpBody,
    B::Error: Into<BoxError>,
{
    /// The next bytes, at least one.
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
            let frame = match body.as_mut().poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            // Trailers have nobody who asked for them.
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(mut data))) if data.has_remaining() => {
                    let bytes = data.copy_to_bytes(data.remaining());
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.body = None;
                    let error = error.into();
                    error!("the body of a response broke off: {error}");
                    return Poll::Ready(Some(Err(io::Error::other(error))));
                }
                None => {
                    self.body = None;
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Whether it is known that nothing follows.
    fn is_over(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }
}

impl<B> Flow for Flowing<B>
where
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
{
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.look(cx),
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.poll_next(cx).map(|next| next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
