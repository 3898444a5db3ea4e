//! What a handler answers.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use phalanx_shared::error;
use phalanx_shared::field::is_token;

use crate::http::reply::{self, Producer, Source};
use crate::open_file::OpenFiles;

/// Bytes of a body that is read on the way, at a time.
const PORTION: usize = 64 * 1024;

/// What a handler answers (RFC 9110, 15). `Server`, `Date`, the length and the connection's fields are the server's affair.
#[derive(Debug)]
pub struct Response {
    reply: reply::Response,
    /// Its body, if that is a file, and the bytes of it.
    file: Option<(File, u64)>,
    reproducible: bool,
}

/// A header field that HTTP does not allow: its name is no token, or its value has a control character (RFC 9110, 5.1 and 5.5), or
/// it is one that the server sets itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// The name, as given.
    pub name: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the header field {:?} cannot be sent: its name, or its value, is not allowed", self.name)
    }
}

impl std::error::Error for InvalidField {}

/// Fields that say where a message ends and what becomes of its connection, or that stand in every response.
const OF_THE_SERVER: [&str; 8] =
    ["connection", "content-length", "date", "keep-alive", "server", "te", "transfer-encoding", "upgrade"];

impl Response {
    /// Without fields and body. A status that is not from 200 to 599 becomes 500.
    #[must_use]
    pub fn new(status: u16) -> Response {
        Response::of(reply::Response::new(checked(status)))
    }

    /// 200 with a text, `text/plain; charset=utf-8`.
    #[must_use]
    pub fn text(text: impl Into<Cow<'static, str>>) -> Response {
        Response::bytes("text/plain; charset=utf-8", bytes_of(text.into()))
    }

    /// 200 with a page, `text/html; charset=utf-8`.
    #[must_use]
    pub fn html(page: impl Into<Cow<'static, str>>) -> Response {
        Response::bytes("text/html; charset=utf-8", bytes_of(page.into()))
    }

    /// 200 with what `value` is in JSON (RFC 8259), `application/json`; 500, and a line of the log, if it is nothing in JSON.
    #[must_use]
    pub fn json(value: &impl serde::Serialize) -> Response {
        match serde_json::to_vec(value) {
            Ok(text) => Response::bytes("application/json", text),
            Err(error) => {
                error!("a handler's answer cannot be told in JSON, its request is answered 500: {error}");
                Response::new(500)
            }
        }
    }

    /// 200 with bytes of that media type.
    #[must_use]
    pub fn bytes(media_type: &'static str, bytes: impl Into<Bytes>) -> Response {
        let (content_type, body) = (Some(Cow::Borrowed(media_type)), reply::Body::Bytes(bytes.into()));
        Response::of(reply::Response { content_type, body, ..reply::Response::new(200) })
    }

    /// 302 to another path or URL.
    #[must_use]
    pub fn redirect(to: &str) -> Response {
        Response::new(302).header("Location", to)
    }

    /// 200 with the bytes of a regular file as it is now; the kernel copies them. Its media type is told from its name. Which file
    /// may be sent is for the handler to know.
    ///
    /// # Errors
    /// That it cannot be opened, or is no regular file.
    pub fn file(path: impl AsRef<Path>) -> io::Result<Response> {
        let path = path.as_ref();
        let file = File::open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a regular file", path.display()),
            ));
        }
        let media_type = mime_guess::from_path(path).first_or_octet_stream().to_string();
        let mut response = Response::new(200);
        response.reply.content_type = Some(media_type.into());
        let identity = (facts.dev(), facts.ino(), facts.len(), facts.mtime(), facts.mtime_nsec());
        Ok(Response { file: Some((file, facts.len())), ..response }.reproducible(&identity))
    }

    /// 200 with all that `reader` has, of which `len` tells how much if that is known. It is read on the way by threads of the
    /// worker, so it may block, and only when the peer has taken what was read before. An error cuts the response off, so that the
    /// peer sees that it is not whole.
    #[must_use]
    pub fn reader(media_type: &'static str, reader: impl Read + Send + 'static, len: Option<u64>) -> Response {
        let source = Source::Made(Box::new(Reading(reader)));
        Response::new(200).of_type(media_type).with_body(reply::Body::Stream { source, len })
    }

    /// 200 with the pieces that `pieces` gives, one after the other, each sent as soon as it is there: as [`Response::reader`], for
    /// what comes in pieces, such as server-sent events. A thread of the worker (`workers.io_threads`) waits for each.
    #[must_use]
    pub fn pieces<P>(media_type: &'static str, pieces: P) -> Response
    where
        P: IntoIterator<Item = io::Result<Bytes>>,
        P::IntoIter: Send + 'static,
    {
        let source = Source::Made(Box::new(Pieces(pieces.into_iter())));
        Response::new(200).of_type(media_type).with_body(reply::Body::Stream { source, len: None })
    }

    /// The same with another status; one that is not from 200 to 599 becomes 500.
    #[must_use]
    pub fn status(mut self, status: u16) -> Response {
        self.reply.status = checked(status);
        self
    }

    /// The same with another media type of its body.
    #[must_use]
    pub fn of_type(mut self, media_type: &'static str) -> Response {
        self.reply.content_type = Some(Cow::Borrowed(media_type));
        self
    }

    /// Adds a header field. One that HTTP does not allow, see [`InvalidField`], makes this response a 500, and a line of the log
    /// tells which it was.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Response {
        self.try_header(name, value).unwrap_or_else(|error| {
            error!("a handler's request is answered 500: {error}");
            Response::new(500)
        })
    }

    /// Adds a header field.
    ///
    /// # Errors
    /// That it cannot be sent.
    pub fn try_header(mut self, name: &str, value: &str) -> Result<Response, InvalidField> {
        if name.eq_ignore_ascii_case("content-type") && is_value(value) {
            self.reply.content_type = Some(value.to_owned().into());
            return Ok(self);
        }
        let reserved = OF_THE_SERVER.iter().any(|own| name.eq_ignore_ascii_case(own));
        if reserved || !is_token(name) || !is_value(value) {
            return Err(InvalidField { name: name.chars().take(64).collect() });
        }
        let lines = &mut self.reply.headers;
        for part in [name, ": ", value.trim_matches([' ', '\t']), "\r\n"] {
            lines.extend_from_slice(part.as_bytes());
        }
        Ok(self)
    }

    /// Promises that the same request gets the same bytes whenever it comes, as long as the response looks the same and `identity`,
    /// which stands for what its body comes from, is the same. Then a response that a death cut off in the middle is continued by
    /// another process at the exact byte; without it, the client sees the cut.
    #[must_use]
    pub fn reproducible(mut self, identity: &impl std::hash::Hash) -> Response {
        let content = match &self.reply.body {
            reply::Body::Bytes(bytes) => reply::fingerprint(bytes),
            _ => 0,
        };
        self.reply = self.reply.reproducible(&(reply::fingerprint(identity), content));
        self.reproducible = true;
        self
    }

    /// With further lines of fields.
    pub(crate) fn with_lines(mut self, lines: &str) -> Response {
        self.reply = self.reply.with_lines(lines);
        self
    }

    /// For who sends it elsewhere: status, media type, lines of its fields, and all of its body.
    pub(crate) fn into_parts(self) -> (u16, Option<String>, Vec<u8>, Box<dyn Read>) {
        let reply::Response { status, content_type, headers, body, .. } = self.reply;
        let body: Box<dyn Read> = match (self.file, body) {
            (Some((file, len)), _) => Box::new(file.take(len)),
            (None, reply::Body::Bytes(bytes)) => Box::new(io::Cursor::new(bytes)),
            (None, reply::Body::Stream { source: Source::Made(producer), .. }) => {
                Box::new(Produced { producer, at_hand: Vec::new(), at: 0, more: true })
            }
            _ => Box::new(io::empty()),
        };
        (status, content_type.map(Cow::into_owned), headers, body)
    }

    #[inline]
    fn of(reply: reply::Response) -> Response {
        Response { reply, file: None, reproducible: false }
    }

    fn with_body(mut self, body: reply::Body) -> Response {
        self.reply.body = body;
        self
    }

    /// What is sent, with these lines added. A file is noted as the worker's.
    pub(crate) fn into_reply(mut self, lines: &str, files: &OpenFiles) -> reply::Response {
        self.reply.headers.extend_from_slice(lines.as_bytes());
        if let Some((file, len)) = self.file {
            self.reply.body = reply::Body::File { file: Arc::new(files.note(file)), offset: 0, len };
        }
        // Fields that came later change the bytes too.
        if self.reproducible {
            let before = self.reply.validator;
            self.reply = self.reply.reproducible(&before);
        }
        self.reply
    }
}

fn checked(status: u16) -> u16 {
    if (200..=599).contains(&status) { status } else { 500 }
}

fn bytes_of(text: Cow<'static, str>) -> Bytes {
    match text {
        Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        Cow::Owned(text) => text.into(),
    }
}

/// Visible characters, spaces and tabs, and what is not ASCII.
fn is_value(value: &str) -> bool {
    value.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

struct Reading<R>(R);

impl<R: Read + Send> Producer for Reading<R> {
    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let before = out.len();
        out.resize(before + PORTION, 0);
        let read = loop {
            match self.0.read(&mut out[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        out.truncate(before + read.as_ref().map_or(0, |count| *count));
        read.map(|count| count > 0)
    }
}

/// What a producer makes, to be read.
struct Produced {
    producer: Box<dyn Producer>,
    at_hand: Vec<u8>,
    at: usize,
    more: bool,
}

impl Read for Produced {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.at_hand.len() && self.more {
            self.at_hand.clear();
            self.at = 0;
            self.more = self.producer.next(&mut self.at_hand)?;
        }
        let count = Read::read(&mut &self.at_hand[self.at..], out)?;
        self.at += count;
        Ok(count)
    }
}

struct Pieces<I>(I);

impl<I: Iterator<Item = io::Result<Bytes>> + Send> Producer for Pieces<I> {
    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        for piece in self.0.by_ref() {
            let piece = piece?;
            if !piece.is_empty() {
                out.extend_from_slice(&piece);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_would_be_two_is_none() {
        let sound = Response::text("x").header("X-A", " b ").header("Content-Type", "text/css");
        assert_eq!((sound.reply.status, &sound.reply.headers[..]), (200, &b"X-A: b\r\n"[..]));
        assert_eq!(sound.reply.content_type.as_deref(), Some("text/css"));
        for (name, value) in [
            ("X-A", "b\r\nX-B: c"),
            ("X A", "b"),
            ("", "b"),
            ("X-A", "\0"),
            ("Content-Length", "3"),
            ("Connection", "x"),
        ] {
            assert!(Response::text("x").try_header(name, value).is_err(), "{name}: {value}");
            assert_eq!(Response::text("x").header(name, value).reply.status, 500);
        }
    }

    #[test]
    fn what_is_promised_to_be_the_same_is_told_apart_by_all_its_bytes() {
        let files = crate::service::testing::setting().open_files;
        let made = |text: &'static str, field: &str| {
            Response::text(text).reproducible(&1).header("X-A", field).into_reply("", &files).validator
        };
        assert_eq!(made("a", "b"), made("a", "b"));
        assert_ne!(made("a", "b"), made("c", "b"));
        assert_ne!(made("a", "b"), made("a", "c"));
        assert_eq!(Response::text("a").into_reply("", &files).validator, 0);
    }

    #[test]
    fn pieces_and_readers_end() {
        let mut out = Vec::new();
        let mut reading = Reading(io::Cursor::new(vec![7; PORTION + 1]));
        while reading.next(&mut out).unwrap() {}
        assert_eq!(out, vec![7; PORTION + 1]);
        let mut out = Vec::new();
        let mut pieces = Pieces([Ok(Bytes::new()), Ok(Bytes::from_static(b"a")), Ok(Bytes::new())].into_iter());
        while pieces.next(&mut out).unwrap() {}
        assert_eq!(out, b"a");
    }
}
