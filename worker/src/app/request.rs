//! A request as its handler sees it. It borrows the bytes that the peer sent: making one allocates nothing.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Instant;

use matchit::Params;

use super::{Body, Payload};
use crate::http::Head;

/// Who asks, as far as the connection knows.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) client: Option<IpAddr>,
    pub(crate) id: RequestId,
    pub(crate) deadline: Option<Instant>,
}

impl Caller {
    /// As [`Request::peer`].
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// As [`Request::client`].
    pub fn client(&self) -> Option<IpAddr> {
        self.client
    }

    /// As [`Request::id`].
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// As [`Request::deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// Tells who asks, to whoever wants to know: few handlers do, and it has to be read off the connection.
pub(crate) type AskCaller<'r> = dyn Fn() -> Caller + Sync + 'r;

/// Tells a request from every other of this machine since it was booted; the same when a request is run again after a death.
/// Displays as hexadecimal digits and a dash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// Of the connection (SO_COOKIE, socket(7)).
    pub(crate) cookie: u64,
    /// Where the request begins in the stream of its connection.
    pub(crate) position: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.cookie, self.position)
    }
}

/// A request (RFC 9110).
pub struct Request<'r> {
    head: &'r Head<'r>,
    path: &'r str,
    params: Option<&'r Params<'r, 'r>>,
    body: Body<'r>,
    ask_caller: &'r AskCaller<'r>,
    caller: OnceLock<Caller>,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("head", self.head)
            .field("path", &self.path)
            .field("params", &self.params)
            .field("body", &self.body)
            .field("caller", self.caller())
            .finish()
    }
}

impl<'r> Request<'r> {
    pub(crate) fn new(
        head: &'r Head<'r>,
        path: &'r str,
        params: Option<&'r Params<'r, 'r>>,
        payload: Payload<'r>,
        caller: &'r AskCaller<'r>,
    ) -> Request<'r> {
        Request { head, path, params, body: Body::of(payload), ask_caller: caller, caller: OnceLock::new() }
    }

    fn caller(&self) -> &Caller {
        self.caller.get_or_init(self.ask_caller)
    }

    /// The method, as sent: `GET`. Methods are case-sensitive (RFC 9110, 9.1).
    pub fn method(&self) -> &'r str {
        self.head.method
    }

    /// The path, decoded and normalised: it begins with a slash and has no empty, `.` or `..` segment. An encoded slash never gets
    /// here: it is answered 400.
    pub fn path(&self) -> &'r str {
        self.path
    }

    /// The decoded segments of the path: `a` and `b c` of `/a/b%20c`.
    pub fn segments(&self) -> impl Iterator<Item = &'r str> + use<'r> {
        self.path.split('/').filter(|segment| !segment.is_empty())
    }

    /// What stands in the path for `{name}` in its route, decoded.
    pub fn param(&self, name: &str) -> Option<&'r str> {
        self.params?.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// The query as sent: what stands behind the first `?`, still encoded.
    pub fn query(&self) -> Option<&'r str> {
        self.head.query
    }

    /// Names and values of a query of the form `a=1&b=2`, decoded (`application/x-www-form-urlencoded` of the WHATWG URL standard).
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'r, str>, Cow<'r, str>)> + use<'r> {
        form_urlencoded::parse(self.head.query.unwrap_or_default().as_bytes())
    }

    /// The first value of that name in the query, decoded.
    pub fn query_value(&self, name: &str) -> Option<Cow<'r, str>> {
        self.query_pairs().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// The value of the first header field of that name, in any case, if it is visible ASCII or UTF-8.
    pub fn header(&self, name: &str) -> Option<&'r str> {
        std::str::from_utf8(self.head.header(name)?).ok()
    }

    /// Names and values of all header fields, in the order sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'r str, &'r [u8])> + use<'r> {
        self.head.headers.iter().map(|field| (field.name, field.value))
    }

    /// The host that the request is for, without its port, as sent. Always there in HTTP/1.1.
    pub fn host(&self) -> Option<&'r str> {
        self.head.host
    }

    /// The other end of the connection; none for a Unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.caller().peer
    }

    /// The address of the client: the peer's or, where that is a proxy that the listener trusts, the one that it names.
    pub fn client(&self) -> Option<IpAddr> {
        self.caller().client
    }

    /// Tells the request from all others.
    pub fn id(&self) -> RequestId {
        self.caller().id
    }

    /// When it is answered 504 and the worker replaced unless its handler has returned (`workers.request_timeout`, which counts the
    /// handler's own time only); none: never.
    pub fn deadline(&self) -> Option<Instant> {
        self.caller().deadline
    }

    /// The body.
    pub fn body(&self) -> &Body<'r> {
        &self.body
    }
}
