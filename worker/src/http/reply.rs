//! Replies: what is to be answered, before it is bytes.
//!
//! It owns the two kinds of reply and their validators. How they become bytes is left to `encode`; who reads a file's
//! bytes is the connection: here a file is a value that is carried along.

use std::borrow::Cow;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::encode;
use super::head::Refusal;
use super::status::error_page;
use crate::open_file::OpenFile;

/// What a [`Prepared`] reply is made from.
#[derive(Debug, Clone)]
pub struct Text<'a, B> {
    /// The status.
    pub status: u16,
    /// The media type; empty: no `Content-Type`.
    pub content_type: &'a str,
    /// Further complete field lines, each with its CRLF.
    pub headers: &'a str,
    /// The body. Dropped if the status allows none.
    pub body: B,
}

/// A reply that is known before it is asked for: everything but date and connection, encoded once.
#[derive(Debug, Clone)]
pub struct Prepared {
    status: u16,
    validator: u64,
    /// Where the date goes in `text`.
    date_at: usize,
    /// Where the connection field and the empty line go in `text`; the body follows.
    body_at: usize,
    /// The head without those, and the body: one run, so that encoding copies from one place.
    text: Box<[u8]>,
    /// The body, if it is all of a file and not in `text`.
    file: Option<(Arc<OpenFile>, u64)>,
}

impl Prepared {
    /// Encodes `text`, which must hold no CR, LF or NUL where it becomes part of a line.
    pub fn new(text: &Text<'_, impl AsRef<[u8]>>) -> Prepared {
        let allowed = encode::may_have_body(text.status);
        let body = if allowed { text.body.as_ref() } else { &[] };
        let mut bytes = Vec::with_capacity(256 + body.len());
        encode::open_head(&mut bytes, text.status);
        let date_at = bytes.len();
        let content_type = (allowed && !text.content_type.is_empty()).then_some(text.content_type);
        let length = encode::states_length(text.status).then_some(body.len() as u64);
        encode::describe(&mut bytes, content_type, length, text.headers.as_bytes());
        let body_at = bytes.len();
        bytes.extend_from_slice(body);
        let validator = fingerprint(&(text.status, &bytes));
        Prepared { status: text.status, validator, date_at, body_at, text: bytes.into_boxed_slice(), file: None }
    }

    /// Encodes the head of `response` and takes its body with it: bytes, or one whole file. A body of another kind is none.
    pub fn of(response: Response) -> Prepared {
        let mut bytes = Vec::with_capacity(256 + response.headers.len());
        encode::open_head(&mut bytes, response.status);
        let date_at = bytes.len();
        let length = encode::states_length(response.status).then_some(response.body.len());
        encode::describe(&mut bytes, response.content_type.as_deref(), length, &response.headers);
        let body_at = bytes.len();
        let file = match response.body {
            Body::Bytes(body) => {
                bytes.extend_from_slice(&body);
                None
            }
            Body::File { file, len, .. } => Some((file, len)),
            Body::Empty | Body::Pieces(_) | Body::Stream { .. } => None,
        };
        let text = bytes.into_boxed_slice();
        Prepared { status: response.status, validator: response.validator, date_at, body_at, text, file }
    }

    /// Its body is a file's.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The file that is its body.
    pub fn file(&self) -> Option<&Arc<OpenFile>> {
        self.file.as_ref().map(|(file, _)| file)
    }

    /// Bytes of memory that it takes.
    pub fn weight(&self) -> u64 {
        self.text.len() as u64
    }

    /// Bytes of the body, wherever they are.
    #[inline]
    pub fn body_len(&self) -> u64 {
        match &self.file {
            Some((_, len)) => *len,
            None => self.body().len() as u64,
        }
    }

    /// The status.
    #[inline]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body, but for a file's; empty if the status allows none.
    #[inline]
    pub fn body(&self) -> &[u8] {
        &self.text[self.body_at..]
    }

    /// A hash of all the bytes: equal for an equal route of another configuration, and never 0.
    #[inline]
    pub fn validator(&self) -> u64 {
        self.validator
    }

    /// The head up to the date.
    #[inline]
    pub(super) fn before_date(&self) -> &[u8] {
        &self.text[..self.date_at]
    }

    /// The head behind the date, up to the connection field.
    #[inline]
    pub(super) fn after_date(&self) -> &[u8] {
        &self.text[self.date_at..self.body_at]
    }
}

/// Where the bytes of a body come from.
#[derive(Debug)]
pub enum Body {
    /// No bytes.
    Empty,
    /// Bytes at hand.
    Bytes(Bytes),
    /// Bytes and parts of files, one after the other.
    Pieces(Vec<Piece>),
    /// Bytes that come on the way.
    Stream {
        /// Whence.
        source: Source,
        /// How many; none: nobody knows yet.
        len: Option<u64>,
    },
    /// `len` bytes of `file` from `offset`, for the connection to read or to send.
    File {
        /// A regular file.
        file: Arc<OpenFile>,
        /// Where to begin.
        offset: u64,
        /// How many bytes; they were there when the file was opened.
        len: u64,
    },
}

/// A part of a body.
#[derive(Debug)]
pub enum Piece {
    /// Bytes at hand.
    Bytes(Bytes),
    /// `len` bytes of `file` from `offset`.
    File {
        /// A regular file.
        file: Arc<OpenFile>,
        /// Where to begin.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// Where the bytes of a stream come from.
#[derive(Debug)]
pub enum Source {
    /// Threads make them.
    Made(Box<dyn Producer>),
    /// They are waited for.
    Awaited(Pin<Box<dyn Flow>>),
}

/// Bytes that come when they come, for whoever polls; needs a worker that runs tasks.
pub trait Flow: Send {
    /// The next bytes, none behind the last; an error means that there is no orderly end.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>>;

    /// The status of the response that they are, where they have its head too; none as long as it is not known.
    fn status(&self) -> Option<u16> {
        None
    }
}

impl std::fmt::Debug for dyn Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flow")
    }
}

/// Makes the bytes of a body one portion after the other. What it does may block: the connection runs it on a thread.
pub trait Producer: Send {
    /// Appends the next portion to `out`, at least one byte unless it was the last; tells whether there is more. An equal
    /// producer makes equal portions, or else the reply must not be called reproducible.
    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<bool>;
}

impl std::fmt::Debug for dyn Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Producer")
    }
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File { len, .. } => *len,
        }
    }
}

impl Body {
    /// How many bytes it has; of a stream, none as far as is known.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Body::Empty => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
            Body::Pieces(pieces) => pieces.iter().map(Piece::len).sum(),
            Body::Stream { len, .. } => len.unwrap_or(0),
        }
    }

    /// It has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A reply made for one request.
#[derive(Debug)]
pub struct Response {
    /// The status, 200 to 599.
    pub status: u16,
    /// The media type of the body.
    pub content_type: Option<Cow<'static, str>>,
    /// Further complete field lines, each with its CRLF. Date, length and connection are not among them.
    pub headers: Vec<u8>,
    /// The body.
    pub body: Body,
    /// A hash of everything that decides the bytes, the date apart; 0: they cannot be made again.
    pub validator: u64,
}

impl Response {
    /// A reply without fields and body, not reproducible.
    pub fn new(status: u16) -> Response {
        Response { status, content_type: None, headers: Vec::new(), body: Body::Empty, validator: 0 }
    }

    /// With further lines of fields.
    #[must_use]
    pub(crate) fn with_lines(mut self, lines: &str) -> Response {
        self.headers.extend_from_slice(lines.as_bytes());
        self
    }

    /// Declares the bytes reproducible: the same request will meet the same bytes for as long as this response looks
    /// the same and `identity`, which stands for the contents of a file, is the same.
    #[must_use]
    pub fn reproducible(mut self, identity: &impl Hash) -> Response {
        let place = match &self.body {
            Body::Empty => (0, 0, &[][..]),
            Body::Bytes(bytes) => (0, bytes.len() as u64, &bytes[..]),
            Body::File { offset, len, .. } => (*offset, *len, &[][..]),
            // Where the pieces begin and end stands in the headers, as a stream's coding does.
            Body::Pieces(_) | Body::Stream { .. } => (0, self.body.len(), &[][..]),
        };
        self.validator = fingerprint(&(self.status, &self.content_type, &self.headers, place, identity));
        self
    }
}

/// Bytes of lines whose memory is kept at most.
const KEPT: usize = 4 * 1024;

thread_local! {
    /// The memory of the lines of a response that has been encoded, for the next.
    static LINES: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// For lines of fields: empty, with room for so many bytes.
#[cfg_attr(not(feature = "tower"), allow(dead_code, reason = "other lines are few, or made by the program"))]
pub(crate) fn room_for_lines(capacity: usize) -> Vec<u8> {
    let mut lines = LINES.take();
    lines.clear();
    lines.reserve(capacity);
    lines
}

/// What is to be answered.
#[derive(Debug)]
pub enum Reply<'r> {
    /// Known since the configuration was loaded.
    Prepared(&'r Prepared),
    /// Made for this request.
    Built(Response),
    /// Made for an earlier request, and kept.
    Cached(Arc<Prepared>),
}

/// The part of a reply that does not stand behind its encoded head.
#[derive(Debug)]
pub enum Tail {
    /// There is none.
    None,
    /// The body of this reply, in memory.
    Cached(Arc<Prepared>),
    /// These, one after the other.
    Pieces(Vec<Piece>),
    /// What comes from here, of this length if that is known.
    Stream(Source, Option<u64>),
}

impl Reply<'_> {
    /// The error page of `status`.
    #[inline]
    pub fn error(status: u16) -> Reply<'static> {
        Reply::Prepared(error_page(status))
    }

    /// The status.
    #[inline]
    pub fn status(&self) -> u16 {
        match self {
            Reply::Prepared(prepared) => prepared.status,
            Reply::Cached(prepared) => prepared.status,
            Reply::Built(response) => response.status,
        }
    }

    /// Bytes of the body, as `Content-Length` tells them: sent or, in reply to HEAD, not.
    #[inline]
    pub fn body_len(&self) -> u64 {
        match self {
            Reply::Prepared(prepared) => prepared.body_len(),
            Reply::Cached(prepared) => prepared.body_len(),
            Reply::Built(response) if encode::may_have_body(response.status) => response.body.len(),
            Reply::Built(_) => 0,
        }
    }

    /// Equal validators mean equal bytes under equal envelopes. 0: the bytes cannot be made again.
    #[inline]
    pub fn validator(&self) -> u64 {
        match self {
            Reply::Prepared(prepared) => prepared.validator,
            Reply::Cached(prepared) => prepared.validator,
            Reply::Built(response) => response.validator,
        }
    }

    /// Its length is not known before its end.
    #[inline]
    pub fn is_stream(&self) -> bool {
        matches!(self, Reply::Built(Response { status, body: Body::Stream { len: None, .. }, .. })
            if encode::may_have_body(*status))
    }

    /// The part of the body that [`encode::append`] left out. The memory of the lines is kept for the next response.
    #[inline]
    pub fn into_tail(self) -> Tail {
        match self {
            Reply::Prepared(_) => Tail::None,
            Reply::Cached(prepared) => match &prepared.file {
                Some((file, len)) => Tail::Pieces(vec![Piece::File { file: file.clone(), offset: 0, len: *len }]),
                None if prepared.body().len() > encode::COPIED => Tail::Cached(prepared),
                None => Tail::None,
            },
            Reply::Built(Response { status, headers, body, .. }) => {
                if (1..=KEPT).contains(&headers.capacity()) {
                    LINES.set(headers);
                }
                match body {
                    _ if !encode::may_have_body(status) => Tail::None,
                    Body::Bytes(bytes) if bytes.len() > encode::COPIED => Tail::Pieces(vec![Piece::Bytes(bytes)]),
                    Body::Empty | Body::Bytes(_) => Tail::None,
                    Body::File { file, offset, len } => Tail::Pieces(vec![Piece::File { file, offset, len }]),
                    Body::Pieces(pieces) => Tail::Pieces(pieces),
                    Body::Stream { source, len } => Tail::Stream(source, len),
                }
            }
        }
    }
}

impl From<Refusal> for Reply<'static> {
    fn from(refusal: Refusal) -> Self {
        Reply::error(refusal.status)
    }
}

/// Deterministic over processes of one build: the hasher's keys are fixed. Never 0.
pub fn fingerprint(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(status: u16, content_type: &str, body: &str) -> u64 {
        Prepared::new(&Text { status, content_type, headers: "", body }).validator()
    }

    #[test]
    fn equal_routes_have_equal_validators_and_different_ones_do_not() {
        let validator = hello(200, "text/plain", "Hello");
        assert_eq!(validator, hello(200, "text/plain", "Hello"));
        assert_ne!(validator, hello(201, "text/plain", "Hello"));
        assert_ne!(validator, hello(200, "text/html", "Hello"));
        assert_ne!(validator, hello(200, "text/plain", "Hellp"));
        assert_ne!(validator, 0);
    }

    #[test]
    fn a_built_reply_is_reproducible_only_when_it_says_so() {
        let built = |body: &str| Response { body: Body::Bytes(body.to_owned().into()), ..Response::new(200) };
        assert_eq!(built("a").validator, 0);
        assert_eq!(built("a").reproducible(&1).validator, built("a").reproducible(&1).validator);
        assert_ne!(built("a").reproducible(&1).validator, built("b").reproducible(&1).validator);
        assert_ne!(built("a").reproducible(&1).validator, built("a").reproducible(&2).validator);
    }

    #[test]
    fn a_status_without_body_drops_it() {
        let prepared = Prepared::new(&Text { status: 204, content_type: "a/b", headers: "", body: "x" });
        assert!(prepared.body().is_empty());
        assert_eq!(Reply::Prepared(&prepared).body_len(), 0);
        let built = Reply::Built(Response { body: Body::Bytes(vec![1].into()), ..Response::new(304) });
        assert_eq!(built.body_len(), 0);
        // Whatever it comes from.
        let long = Reply::Built(Response { body: Body::Bytes(vec![1; 100_000].into()), ..Response::new(204) });
        assert!(matches!(long.into_tail(), Tail::None));
    }
}
