//! Replies: what is to be answered, before it is bytes.
//!
//! It owns the kinds of reply and their validators. How they become bytes is left to `encode`; who reads a file's
//! bytes is the connection: here a file is a value that is carried along.

use std::borrow::Cow;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use super::encode::{self, Extent};
use super::head::Refusal;
use super::status::error_page;

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
}

impl Prepared {
    /// Encodes `text`, which must hold no CR, LF or NUL where it becomes part of a line.
    pub fn new(text: &Text<'_, impl AsRef<[u8]>>) -> Prepared {
        let content_type = (!text.content_type.is_empty()).then_some(text.content_type);
        let mut prepared = Prepared::assemble(text.status, content_type, text.headers.as_bytes(), text.body.as_ref());
        prepared.validator = fingerprint(&(text.status, &prepared.text));
        prepared
    }

    /// Keeps `response` for more requests than its own, with `body`, its bytes as read from wherever they are. It gives
    /// the same bytes and has the same validator, so that one can be continued with the other.
    pub fn of(response: &Response, body: &[u8]) -> Prepared {
        let assembled = Prepared::assemble(response.status, response.content_type.as_deref(), &response.headers, body);
        Prepared { validator: response.validator, ..assembled }
    }

    fn assemble(status: u16, content_type: Option<&str>, headers: &[u8], body: &[u8]) -> Prepared {
        let allowed = encode::may_have_body(status);
        let body = if allowed { body } else { &[] };
        let mut bytes = Vec::with_capacity(256 + headers.len() + body.len());
        encode::open_head(&mut bytes, status);
        let date_at = bytes.len();
        let extent = Extent::of_length(status, body.len() as u64);
        encode::describe(&mut bytes, content_type.filter(|_| allowed), extent, headers);
        let body_at = bytes.len();
        bytes.extend_from_slice(body);
        Prepared { status, validator: 0, date_at, body_at, text: bytes.into_boxed_slice() }
    }

    /// The status.
    #[inline]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body; empty if the status allows none.
    #[inline]
    pub fn body(&self) -> &[u8] {
        &self.text[self.body_at..]
    }

    /// A hash of all the bytes: equal for an equal route of another configuration, and never 0. For one that was made of
    /// a response, that response's.
    #[inline]
    pub fn validator(&self) -> u64 {
        self.validator
    }

    /// Bytes of memory it holds: head and body.
    #[inline]
    pub fn size(&self) -> usize {
        self.text.len()
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
    Bytes(Vec<u8>),
    /// Bytes at hand that others use too.
    Shared(Arc<[u8]>),
    /// `len` bytes of `file` from `offset`, for the connection to read or to send.
    File {
        /// A regular file.
        file: File,
        /// Where to begin.
        offset: u64,
        /// How many bytes; they were there when the file was opened.
        len: u64,
    },
    /// Bytes that are still to come, nobody knows how many. They are not here: whoever made the reply hands them to the
    /// connection.
    Stream,
}

impl Body {
    /// How many bytes it has; of a stream 0, as long as nobody knows.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Body::Empty | Body::Stream => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Shared(bytes) => bytes.len() as u64,
            Body::File { len, .. } => *len,
        }
    }

    /// It has none, and none will come.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && !matches!(self, Body::Stream)
    }

    /// Its bytes, if they are in memory.
    #[inline]
    pub(super) fn at_hand(&self) -> &[u8] {
        match self {
            Body::Bytes(bytes) => bytes,
            Body::Shared(bytes) => bytes,
            Body::Empty | Body::File { .. } | Body::Stream => &[],
        }
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

    /// Declares the bytes reproducible: the same request will meet the same bytes for as long as this response looks
    /// the same and `identity`, which stands for the contents of a file, is the same.
    #[must_use]
    pub fn reproducible(mut self, identity: &impl Hash) -> Response {
        let place = match &self.body {
            Body::File { offset, len, .. } => (*offset, *len, &[][..]),
            // A length that no other body has.
            Body::Stream => (0, u64::MAX, &[][..]),
            body => (0, body.len(), body.at_hand()),
        };
        self.validator = fingerprint(&(self.status, &self.content_type, &self.headers, place, identity));
        self
    }

    /// See [`Reply::is_stream`].
    #[inline]
    pub(super) fn is_stream(&self) -> bool {
        matches!(self.body, Body::Stream) && encode::may_have_body(self.status)
    }
}

/// What is to be answered.
#[derive(Debug)]
pub enum Reply<'r> {
    /// Known since the configuration was loaded.
    Prepared(&'r Prepared),
    /// Made for an earlier request, and kept.
    Cached(Rc<Prepared>),
    /// Made for this request.
    Built(Response),
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

    /// Bytes of the body, as `Content-Length` tells them: sent or, in reply to HEAD, not. Of a stream 0.
    #[inline]
    pub fn body_len(&self) -> u64 {
        match self {
            Reply::Prepared(prepared) => prepared.body().len() as u64,
            Reply::Cached(prepared) => prepared.body().len() as u64,
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

    /// The body is a stream: it follows the head in pieces, and only its end tells how long it was. Not so for a status
    /// that allows no body.
    #[inline]
    pub fn is_stream(&self) -> bool {
        matches!(self, Reply::Built(response) if response.is_stream())
    }

    /// Takes the file out, with offset and length, and leaves no body. Encode the head first: it tells the length.
    #[inline]
    pub fn take_file(&mut self) -> Option<(File, u64, u64)> {
        let Reply::Built(response) = self else { return None };
        match std::mem::replace(&mut response.body, Body::Empty) {
            Body::File { file, offset, len } => Some((file, offset, len)),
            other => {
                response.body = other;
                None
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
fn fingerprint(what: &impl Hash) -> u64 {
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
        let built = |body: &str| Response { body: Body::Bytes(body.into()), ..Response::new(200) };
        assert_eq!(built("a").validator, 0);
        assert_eq!(built("a").reproducible(&1).validator, built("a").reproducible(&1).validator);
        assert_ne!(built("a").reproducible(&1).validator, built("b").reproducible(&1).validator);
        assert_ne!(built("a").reproducible(&1).validator, built("a").reproducible(&2).validator);
    }

    #[test]
    fn a_kept_response_has_the_validator_of_the_one_it_was_made_of() {
        let file = File::open("/dev/null").unwrap();
        let body = Body::File { file, offset: 0, len: 5 };
        let response = Response { body, ..Response::new(200) }.reproducible(&1);
        let kept = Prepared::of(&response, b"Hello");
        assert_eq!((kept.validator(), kept.body()), (response.validator, &b"Hello"[..]));
        assert_eq!(kept.size(), kept.text.len());
        let cached = Reply::Cached(Rc::new(kept));
        assert_eq!((cached.status(), cached.body_len(), cached.validator()), (200, 5, response.validator));
        assert!(Prepared::of(&Response::new(304), b"Hello").body().is_empty());
    }

    #[test]
    fn where_bytes_are_kept_makes_no_difference_and_a_stream_does() {
        let validator = |body| Response { body, ..Response::new(200) }.reproducible(&1).validator;
        assert_eq!(validator(Body::Bytes(b"a".to_vec())), validator(Body::Shared(b"a"[..].into())));
        assert_ne!(validator(Body::Empty), validator(Body::Stream));
    }

    #[test]
    fn a_stream_has_no_length_and_is_not_empty() {
        let stream = |status| Reply::Built(Response { body: Body::Stream, ..Response::new(status) });
        assert!(stream(200).is_stream() && !stream(204).is_stream() && !stream(304).is_stream());
        assert!(!Body::Stream.is_empty() && Body::Empty.is_empty() && Body::Shared([].into()).is_empty());
        assert_eq!((Body::Stream.len(), stream(200).body_len()), (0, 0));
        assert_eq!(Body::Shared(b"ab"[..].into()).len(), 2);
        assert!(stream(200).take_file().is_none() && stream(200).is_stream());
        assert!(!Reply::error(404).is_stream());
    }

    #[test]
    fn a_status_without_body_drops_it() {
        let prepared = Prepared::new(&Text { status: 204, content_type: "a/b", headers: "", body: "x" });
        assert!(prepared.body().is_empty());
        assert_eq!(Reply::Prepared(&prepared).body_len(), 0);
        let built = Reply::Built(Response { body: Body::Bytes(vec![1]), ..Response::new(304) });
        assert_eq!(built.body_len(), 0);
    }

    #[test]
    fn only_a_file_can_be_taken_and_only_once() {
        let file = File::open("/dev/null").unwrap();
        let mut reply = Reply::Built(Response { body: Body::File { file, offset: 3, len: 4 }, ..Response::new(200) });
        assert_eq!(reply.body_len(), 4);
        assert!(matches!(reply.take_file(), Some((_, 3, 4))));
        assert!(reply.take_file().is_none());
        let mut bytes = Reply::Built(Response { body: Body::Bytes(vec![1]), ..Response::new(200) });
        assert!(bytes.take_file().is_none());
        assert_eq!(bytes.body_len(), 1);
    }
}
