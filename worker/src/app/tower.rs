//! Services of the tower world, such as a router of axum: `http` 1.x requests in, responses out, bodies as streams both ways.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use phalanx_shared::error;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::tunnel::{self, Open};
use super::{AskCaller, Caller, Incoming};
use crate::http::Head;
use crate::http::reply::{self, Body, Flow, Response, Source};

/// Fields that a map which is kept has room for at most.
const ROOM: usize = 64;

/// Bytes for heads, at a time: a value that somebody keeps keeps so many.
const SHEET: usize = 8 * 1024;

thread_local! {
    /// The map of the fields of a response that has left, for the next request.
    static SPARE: Cell<Option<HeaderMap>> = const { Cell::new(None) };
    /// Where the heads of the next requests are copied to, one behind the other.
    static PAPER: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(SHEET));
}

/// What a request to a handler of Phalanx's own comes to, once it is polled.
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
                let mut service = service.clone();
                let request = match &prepared {
                    Some((prepare, caller)) => prepare_for(request, &**prepare, caller),
                    None => request,
                };
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
                Poll::Ready(Ok(())) => Answering::new(service.call(request), is_head),
                Poll::Ready(Err(error)) => {
                    let answered = Err::<http::Response<B>, BoxError>(error.into());
                    Answering::new(std::future::ready(answered), is_head)
                }
                Poll::Pending => {
                    let answered = async move {
                        poll_fn(|cx| service.poll_ready(cx)).await?;
                        service.call(request).await
                    };
                    Answering::new(answered, is_head)
                }
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
        caller: &AskCaller<'_>,
    ) -> Option<Answering> {
        let mut request = http::Request::new(body);
        fill(&mut request, head, bytes)?;
        Some(match &self.prepare {
            Some(prepare) => (self.call)(prepare_for(request, &**prepare, &caller())),
            None => (self.call)(request),
        })
    }

    /// Has a request answered that may leave HTTP with its connection.
    pub(crate) fn tunnel(self: &Arc<Tower>, caller: &AskCaller<'_>) -> Open {
        let (tower, prepared) = (self.clone(), self.prepare.as_ref().map(|prepare| (prepare.clone(), caller())));
        Box::new(move |incoming| (tower.open)(incoming, prepared))
    }
}

fn prepare_for(request: http::Request<Incoming>, prepare: &Prepare, caller: &Caller) -> http::Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    prepare(&mut parts, caller);
    http::Request::from_parts(parts, body)
}

/// Makes `request` that whose head stands at the front of `bytes`; none when there is no such request in `http`.
pub(crate) fn fill(request: &mut http::Request<Incoming>, head: &Head<'_>, bytes: &[u8]) -> Option<()> {
    // One copy, which all values share.
    let copy = copy_of(bytes.get(..head.len)?);
    let origin = bytes.as_ptr() as usize;
    let share = |part: &[u8]| {
        let at = (part.as_ptr() as usize).checked_sub(origin)?;
        (at + part.len() <= copy.len()).then(|| copy.slice(at..at + part.len()))
    };
    let headers = request.headers_mut();
    if let Some(spare) = SPARE.take() {
        *headers = spare;
    }
    headers.reserve(head.headers.len());
    for field in head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(share(field.value)?).ok()?);
    }
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_maybe_shared(share(head.target.as_bytes())?).ok()?;
    *request.version_mut() = if head.minor_version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    Some(())
}

/// A copy that costs no allocation of its own, nearly always.
fn copy_of(head: &[u8]) -> Bytes {
    PAPER.with_borrow_mut(|paper| {
        paper.extend_from_slice(head);
        paper.split().freeze()
    })
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

pin_project! {
    /// A request that a service has, from its call to the last byte of its body, in one place.
    #[project = At]
    enum Exchange<F, B> {
        Asked { #[pin] answered: F, is_head: bool },
        /// `first` came before it was known what would follow.
        Answered { #[pin] body: B, first: Option<io::Result<Bytes>> },
        Over { first: Option<io::Result<Bytes>> },
    }
}

/// An [`Exchange`], whatever the service.
trait Exchanging: Flow {
    /// What the service has answered. The body is in it if it is at hand; otherwise it follows, of that length if that is known.
    fn poll_response(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Response, Rest)>;
}

enum Rest {
    Nothing,
    Follows(Option<u64>),
}

/// What a request comes to, once it is polled.
pub(crate) struct Answering(Option<Pin<Box<dyn Exchanging>>>);

impl Answering {
    fn new<F, B, E>(answered: F, is_head: bool) -> Answering
    where
        F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError>,
        E: Into<BoxError>,
    {
        Answering(Some(Box::pin(Exchange::Asked { answered, is_head })))
    }
}

impl Future for Answering {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let Some(exchange) = &mut self.0 else { return Poll::Pending };
        let (mut response, rest) = ready!(exchange.as_mut().poll_response(cx));
        if let (Rest::Follows(len), Some(exchange)) = (rest, self.0.take()) {
            response.body = Body::Stream { source: Source::Awaited(exchange), len };
        }
        Poll::Ready(response)
    }
}

impl<F, B, E> Exchanging for Exchange<F, B>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send,
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    fn poll_response(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Response, Rest)> {
        let At::Asked { answered, is_head } = self.as_mut().project() else { return Poll::Pending };
        let is_head = *is_head;
        let (response, body, stated) = match ready!(answered.poll(cx)) {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let told = response_of(&parts);
                keep(parts.headers);
                let Some((response, stated)) = told else {
                    return Poll::Ready((Response::new(500), Rest::Nothing));
                };
                (response, body, stated)
            }
            Err(error) => {
                error!("a service failed, its request is answered 500: {}", error.into());
                return Poll::Ready((Response::new(500), Rest::Nothing));
            }
        };
        if is_head {
            // Nothing of it is sent but its length, if the service tells that.
            self.set(Exchange::Over { first: None });
            return Poll::Ready((response, Rest::Follows(stated)));
        }
        let len = stated.or_else(|| body.size_hint().exact());
        self.set(Exchange::Answered { body, first: None });
        // As far as it is at hand.
        let found = match self.as_mut().look(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) if stated.is_none_or(|stated| stated == 0) => Body::Empty,
            Poll::Ready(Some(Ok(bytes))) if self.is_over() && stated.is_none_or(|it| it == bytes.len() as u64) => {
                Body::Bytes(bytes)
            }
            found => {
                if let (Poll::Ready(found), At::Answered { first, .. } | At::Over { first }) = (found, self.project()) {
                    *first = found;
                }
                return Poll::Ready((response, Rest::Follows(len)));
            }
        };
        Poll::Ready((Response { body: found, ..response }, Rest::Nothing))
    }
}

impl<F, B> Exchange<F, B>
where
    B: HttpBody,
    B::Error: Into<BoxError>,
{
    /// The next bytes of the body, at least one.
    fn look(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let At::Answered { body, .. } = self.as_mut().project() else { return Poll::Ready(None) };
            // Trailers have nobody who asked for them.
            match ready!(body.poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(mut data))) if data.has_remaining() => {
                    let bytes = data.copy_to_bytes(data.remaining());
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.set(Exchange::Over { first: None });
                    let error = error.into();
                    error!("the body of a response broke off: {error}");
                    return Poll::Ready(Some(Err(io::Error::other(error))));
                }
                None => {
                    self.set(Exchange::Over { first: None });
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Whether it is known that nothing follows.
    fn is_over(&self) -> bool {
        match self {
            Exchange::Asked { .. } => false,
            Exchange::Answered { body, .. } => body.is_end_stream(),
            Exchange::Over { .. } => true,
        }
    }
}

impl<F, B, E> Flow for Exchange<F, B>
where
    F: Future<Output = Result<http::Response<B>, E>> + Send,
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
{
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self.as_mut().project() {
            At::Answered { first, .. } | At::Over { first } if first.is_some() => Poll::Ready(first.take()),
            _ => self.look(cx),
        }
    }
}

/// What is to be sent of the head of a response, without its body, and what it says of the length of that; none when it is no
/// response.
fn response_of(parts: &http::response::Parts) -> Option<(Response, Option<u64>)> {
    let status = parts.status.as_u16();
    if parts.status < StatusCode::OK || status > 599 {
        error!("a service answered {status}, which is no final status: its request is answered 500");
        return None;
    }
    let (mut lines, mut stated) = (reply::room_for_lines(64 * parts.headers.len()), None);
    for (name, value) in &parts.headers {
        if is_of_the_server(name) {
            if name == header::CONTENT_LENGTH && stated.is_none() {
                stated = value.to_str().ok().and_then(|value| value.parse().ok());
            }
            continue;
        }
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    // Who is to come again by another protocol is told which (RFC 9110, 15.5.22 and 7.8).
    if status == 426
        && let Some(protocols) = parts.headers.get(header::UPGRADE)
    {
        for part in [b"Connection: upgrade\r\nUpgrade: ", protocols.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    Some((Response { headers: lines, ..Response::new(status) }, stated))
}

/// Keeps the memory of `fields` for the next request, and nothing of what stood in it.
fn keep(mut fields: HeaderMap) {
    if fields.capacity() <= ROOM {
        fields.clear();
        SPARE.set(Some(fields));
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::http::{HeaderScratch, Progress, parse};
    use crate::service::testing::asked;

    /// A body of these steps; none: it is waited for.
    struct Steps(VecDeque<Step>);

    type Step = Option<Result<&'static str, &'static str>>;

    impl HttpBody for Steps {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(None) => Poll::Pending,
                Some(Some(step)) => Poll::Ready(Some(step.map(|data| Frame::data(data.into())).map_err(Into::into))),
            }
        }
    }

    /// What is at hand of the response to `method`, or what follows, up to its end or what is waited for.
    fn answered(method: Method, stated: Option<&str>, steps: &[Step]) -> (Response, Vec<Result<Bytes, String>>) {
        let mut response = http::Response::builder().header("x-a", "b");
        if let Some(stated) = stated {
            response = response.header(header::CONTENT_LENGTH, stated);
        }
        let response = response.body(Steps(steps.iter().copied().collect())).unwrap();
        let answered = std::future::ready(Ok::<_, BoxError>(response));
        let mut cx = Context::from_waker(Waker::noop());
        let mut answering = Answering::new(answered, method == Method::HEAD);
        let Poll::Ready(mut response) = Pin::new(&mut answering).poll(&mut cx) else { panic!() };
        let mut followed = Vec::new();
        if let Body::Stream { source: Source::Awaited(flow), .. } = &mut response.body {
            while let Poll::Ready(Some(next)) = flow.as_mut().poll_next(&mut cx) {
                followed.push(next.map_err(|error| error.to_string()));
            }
        }
        (response, followed)
    }

    #[test]
    fn what_is_at_hand_is_no_stream() {
        for (stated, steps) in [(None, &[][..]), (Some("0"), &[][..]), (None, &[Some(Ok(""))][..])] {
            let (response, followed) = answered(Method::GET, stated, steps);
            assert!(matches!(response.body, Body::Empty) && followed.is_empty());
            assert_eq!((response.status, &response.headers[..]), (200, &b"x-a: b\r\n"[..]));
        }
        // That nothing follows is not known.
        let (response, followed) = answered(Method::GET, None, &[Some(Ok("abc"))]);
        assert!(matches!(response.body, Body::Stream { len: None, .. }));
        assert_eq!(followed, [Ok("abc".into())]);
    }

    #[test]
    fn what_follows_comes_whole_and_how_it_ends_shows() {
        let broken = |error: &str| Err(error.to_owned());
        let wait = None;
        for (stated, steps, len, comes) in [
            (None, &[Some(Ok("a")), Some(Ok("b"))][..], None, vec![Ok("a".into()), Ok("b".into())]),
            (Some("2"), &[Some(Ok("a")), Some(Ok("b"))][..], Some(2), vec![Ok("a".into()), Ok("b".into())]),
            // Before the first byte, after it, and where it says less or more than comes.
            (None, &[Some(Err("no")), Some(Ok("a"))][..], None, vec![broken("no")]),
            (None, &[Some(Ok("a")), Some(Err("no")), Some(Ok("b"))][..], None, vec![Ok("a".into()), broken("no")]),
            (Some("2"), &[][..], Some(2), vec![]),
            (Some("9"), &[Some(Ok("a"))][..], Some(9), vec![Ok("a".into())]),
            (None, &[wait, Some(Ok("a"))][..], None, vec![Ok("a".into())]),
        ] {
            let (response, followed) = answered(Method::GET, stated, steps);
            let Body::Stream { len: told, .. } = response.body else { panic!("{stated:?} {steps:?}") };
            assert_eq!((told, followed), (len, comes), "{stated:?} {steps:?}");
        }
    }

    #[test]
    fn of_a_head_nothing_is_sent_but_its_length() {
        for (stated, len) in [(None, None), (Some("7"), Some(7)), (Some("x"), None)] {
            let (response, followed) = answered(Method::HEAD, stated, &[Some(Ok("abc"))]);
            let Body::Stream { len: told, .. } = response.body else { panic!() };
            assert_eq!((told, followed), (len, vec![]));
        }
    }

    /// Tells what fields it has got, and answers with so many of its own.
    #[derive(Clone)]
    struct Echo(usize);

    impl Service<http::Request<Incoming>> for Echo {
        type Response = http::Response<String>;
        type Error = BoxError;
        type Future = std::future::Ready<Result<http::Response<String>, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
            let heard = request.headers().iter().map(|(name, value)| format!("{name}={} ", value.to_str().unwrap()));
            let mut response = http::Response::new(heard.collect());
            for number in 0..self.0 {
                let name = HeaderName::from_bytes(format!("x-secret-{number}").as_bytes()).unwrap();
                response.headers_mut().append(name, HeaderValue::from_static("of-another"));
            }
            std::future::ready(Ok(response))
        }
    }

    fn with_bytes<T>(fields: &str, look: impl FnOnce(&Head<'_>, &[u8]) -> T) -> T {
        let text = format!("GET / HTTP/1.1\r\nHost: example.org\r\n{fields}\r\n");
        let mut scratch = HeaderScratch::new();
        match parse(text.as_bytes(), 64 * 1024, &mut scratch) {
            Ok(Progress::Done(head)) => look(&head, text.as_bytes()),
            other => panic!("{other:?}"),
        }
    }

    fn heard_by(service: Echo, fields: &str) -> String {
        let tower = Tower::new(service);
        with_bytes(fields, |head, bytes| {
            let mut answering = tower.begin(head, bytes, Incoming::whole(Bytes::new()), asked(head).caller).unwrap();
            match Pin::new(&mut answering).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Response { body: Body::Bytes(body), .. }) => String::from_utf8(body.to_vec()).unwrap(),
                _ => panic!("no answer at hand"),
            }
        })
    }

    /// Their heads stand one behind the other in memory that is used on.
    #[test]
    fn what_is_kept_of_a_request_stays_what_it_was() {
        let sizes = [0, 1, 3000, SHEET, 3000, 2 * SHEET, 5];
        let requests = sizes.iter().cycle().take(700).enumerate().map(|(number, &size)| {
            let value = format!("{number}-{}", "x".repeat(size));
            let mut request = http::Request::new(Incoming::whole(Bytes::new()));
            with_bytes(&format!("X-A: {value}\r\n"), |head, bytes| fill(&mut request, head, bytes).unwrap());
            (value, request)
        });
        let kept: Vec<_> = requests.filter(|(value, _)| value.len() % 3 != 0).collect();
        for (value, request) in kept {
            assert_eq!((request.uri().path(), request.headers()["host"].as_bytes()), ("/", &b"example.org"[..]));
            assert!(request.headers()["x-a"] == value, "{}", &value[..8.min(value.len())]);
        }
    }

    /// The memory of a response's fields becomes a request's.
    #[test]
    fn a_request_has_its_own_fields_and_no_others() {
        for answers in [0, 1, 6, 7, 40, ROOM + 1, 500] {
            for (fields, heard) in
                [("", "host=example.org "), ("X-A: b\r\nx-a: c\r\n", "host=example.org x-a=b x-a=c ")]
            {
                assert_eq!(heard_by(Echo(answers), fields), heard, "{answers}");
            }
            let kept = SPARE.take().map_or(0, |spare| spare.capacity());
            assert!(kept <= ROOM && (answers > ROOM || kept >= answers), "{answers}: {kept}");
        }
    }

    #[test]
    fn what_is_no_final_status_is_a_500() {
        for status in [100, 101, 600, 999] {
            let response = http::Response::builder().status(status).body(Steps(VecDeque::new())).unwrap();
            let mut answering = Answering::new(std::future::ready(Ok::<_, BoxError>(response)), false);
            let answered = Pin::new(&mut answering).poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(answered, Poll::Ready(Response { status: 500, .. })), "{status}");
        }
    }
}
