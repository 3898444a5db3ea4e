//! Replies as bytes (RFC 9112, 4 and 6; RFC 9110, 6.6.1 and 8.6).
//!
//! It owns the order and the exact bytes of every head that leaves the server. Nothing in them depends on the process
//! that writes them: a successor that encodes the same reply with the recorded date goes on at the exact byte.

use std::io::Write;

use super::reply::{Prepared, Reply, Response};
use super::status::reason;

/// The interim response to a peer that waits before it sends its body (RFC 9110, 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const CLOSE: &[u8] = b"Connection: close\r\n\r\n";
const KEEP_ALIVE: &[u8] = b"Connection: keep-alive\r\n\r\n";
const END: &[u8] = b"\r\n";

/// Room that is enough for a head but for its own fields, so that it is reserved once.
const HEAD_ROOM: usize = 256;

/// What a head says beyond its reply: when it is sent, and to whom.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The date, as [`DateCache`](super::DateCache) writes it.
    pub date: &'a [u8; 29],
    /// Of the request: a kept HTTP/1.0 connection has to be told so.
    pub minor_version: u8,
    /// The connection stays open after this reply.
    pub keep_alive: bool,
    /// The reply to HEAD: the length is told, the body is not sent.
    pub head_only: bool,
}

impl Envelope<'_> {
    /// The connection cannot carry another response behind `reply`, whatever `keep_alive` says: nothing but its end tells
    /// an HTTP/1.0 peer where a stream ends (RFC 9112, 6.3).
    #[inline]
    pub fn closes_after(&self, reply: &Reply<'_>) -> bool {
        reply.is_stream() && self.ends_streams_by_close()
    }

    #[inline]
    fn ends_streams_by_close(&self) -> bool {
        self.minor_version == 0 && !self.head_only
    }

    /// The last field and the empty line.
    #[inline]
    fn closing(&self) -> &'static [u8] {
        match (self.keep_alive, self.minor_version) {
            (false, _) => CLOSE,
            (true, 0) => KEEP_ALIVE,
            (true, _) => END,
        }
    }
}

/// Appends the head of `reply`, and its body if that is at hand and is to be sent. Returns the bytes of the head.
///
/// The body of a file is left to the caller, who asks [`Reply::take_file`] afterwards and sends it unless `head_only`. So
/// is that of a stream, see [`Reply::is_stream`]: it is sent in chunks to HTTP/1.1, as it is to HTTP/1.0, and not at all
/// if `head_only`.
#[inline]
pub fn append(out: &mut Vec<u8>, reply: &Reply<'_>, envelope: &Envelope<'_>) -> usize {
    match reply {
        Reply::Prepared(prepared) => append_prepared(out, prepared, envelope),
        Reply::Cached(prepared) => append_prepared(out, prepared, envelope),
        Reply::Built(response) => append_built(out, response, envelope),
    }
}

#[inline]
fn append_prepared(out: &mut Vec<u8>, prepared: &Prepared, envelope: &Envelope<'_>) -> usize {
    let start = out.len();
    let (before, after, closing) = (prepared.before_date(), prepared.after_date(), envelope.closing());
    let body = if envelope.head_only { &[] } else { prepared.body() };
    out.reserve(before.len() + envelope.date.len() + after.len() + closing.len() + body.len());
    out.extend_from_slice(before);
    out.extend_from_slice(envelope.date);
    out.extend_from_slice(after);
    out.extend_from_slice(closing);
    let head = out.len() - start;
    out.extend_from_slice(body);
    head
}

fn append_built(out: &mut Vec<u8>, response: &Response, envelope: &Envelope<'_>) -> usize {
    let start = out.len();
    let allowed = may_have_body(response.status);
    let body = if allowed && !envelope.head_only { response.body.at_hand() } else { &[] };
    out.reserve(HEAD_ROOM + response.headers.len() + body.len());
    open_head(out, response.status);
    out.extend_from_slice(envelope.date);
    let content_type = response.content_type.as_deref().filter(|_| allowed);
    describe(out, content_type, extent_of(response, envelope), &response.headers);
    let closes = response.is_stream() && envelope.ends_streams_by_close();
    out.extend_from_slice(if closes { CLOSE } else { envelope.closing() });
    let head = out.len() - start;
    out.extend_from_slice(body);
    head
}

/// A reply of this status may carry a body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5).
#[inline]
pub(super) fn may_have_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 205 | 304)
}

/// What a head says about the end of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Nothing: there is no body, or the end of the connection is its end.
    Untold,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl Extent {
    /// Of a body of `len` bytes. A reply tells its length unless it always ends with its head (RFC 9110, 8.6).
    #[inline]
    pub(super) fn of_length(status: u16, len: u64) -> Extent {
        match status {
            100..=199 | 204 | 304 => Extent::Untold,
            _ => Extent::Length(len),
        }
    }
}

/// A stream is told in chunks only where a body follows that can be: HTTP/1.0 knows none (RFC 9112, 6.1).
fn extent_of(response: &Response, envelope: &Envelope<'_>) -> Extent {
    match may_have_body(response.status) {
        true if response.is_stream() && (envelope.head_only || envelope.minor_version == 0) => Extent::Untold,
        true if response.is_stream() => Extent::Chunked,
        true => Extent::of_length(response.status, response.body.len()),
        false => Extent::of_length(response.status, 0),
    }
}

/// Status line and fields up to the value of `Date`. The version is the server's own (RFC 9110, 6.2).
pub(super) fn open_head(out: &mut Vec<u8>, status: u16) {
    write(out, format_args!("HTTP/1.1 {status:03} {}\r\nServer: phalanx\r\nDate: ", reason(status)));
}

/// The end of the date's line, and the fields behind it.
pub(super) fn describe(out: &mut Vec<u8>, content_type: Option<&str>, extent: Extent, headers: &[u8]) {
    out.extend_from_slice(b"\r\n");
    if let Some(content_type) = content_type {
        write(out, format_args!("Content-Type: {content_type}\r\n"));
    }
    match extent {
        Extent::Untold => {}
        Extent::Length(length) => write(out, format_args!("Content-Length: {length}\r\n")),
        Extent::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    out.extend_from_slice(headers);
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A Vec takes every byte.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::reply::{Body, Text};
    use super::*;

    const ENVELOPE: Envelope<'static> =
        Envelope { date: b"Sun, 06 Nov 1994 08:49:37 GMT", minor_version: 1, keep_alive: true, head_only: false };

    fn encoded(reply: &Reply<'_>, envelope: &Envelope<'_>) -> (String, usize) {
        let mut out = b"before ".to_vec();
        let head = append(&mut out, reply, envelope);
        (String::from_utf8(out.split_off(7)).unwrap(), head)
    }

    fn hello(status: u16) -> Prepared {
        Prepared::new(&Text { status, content_type: "text/plain", headers: "X: y\r\n", body: "Hello" })
    }

    fn built(status: u16) -> Reply<'static> {
        Reply::Built(Response {
            content_type: Some("text/plain".into()),
            headers: b"X: y\r\n".to_vec(),
            body: Body::Bytes(b"Hello".to_vec()),
            ..Response::new(status)
        })
    }

    const HEAD: &str = "HTTP/1.1 200 OK\r\nServer: phalanx\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
        Content-Type: text/plain\r\nContent-Length: 5\r\nX: y\r\n";

    #[test]
    fn both_kinds_of_reply_give_the_same_bytes() {
        let expected = (format!("{HEAD}\r\nHello"), HEAD.len() + 2);
        assert_eq!(encoded(&Reply::Prepared(&hello(200)), &ENVELOPE), expected);
        assert_eq!(encoded(&built(200), &ENVELOPE), expected);
    }

    #[test]
    fn shared_bytes_and_cached_replies_are_no_different() {
        let expected = (format!("{HEAD}\r\nHello"), HEAD.len() + 2);
        assert_eq!(encoded(&Reply::Cached(Rc::new(hello(200))), &ENVELOPE), expected);
        let Reply::Built(response) = built(200) else { unreachable!() };
        assert_eq!(encoded(&Reply::Cached(Rc::new(Prepared::of(&response, b"Hello"))), &ENVELOPE), expected);
        let shared = Response { body: Body::Shared(b"Hello"[..].into()), ..response };
        assert_eq!(encoded(&Reply::Built(shared), &ENVELOPE), expected);
    }

    #[test]
    fn a_stream_is_chunked_or_ends_with_the_connection() {
        const START: &str = "HTTP/1.1 200 OK\r\nServer: phalanx\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
            Content-Type: text/plain\r\n";
        let stream = |status| match built(status) {
            Reply::Built(response) => Reply::Built(Response { body: Body::Stream, ..response }),
            other => other,
        };
        for (minor_version, keep_alive, head_only, lines, closes) in [
            (1, true, false, "Transfer-Encoding: chunked\r\nX: y\r\n", false),
            (1, false, false, "Transfer-Encoding: chunked\r\nX: y\r\nConnection: close\r\n", false),
            (1, true, true, "X: y\r\n", false),
            (1, false, true, "X: y\r\nConnection: close\r\n", false),
            (0, true, false, "X: y\r\nConnection: close\r\n", true),
            (0, false, false, "X: y\r\nConnection: close\r\n", true),
            (0, true, true, "X: y\r\nConnection: keep-alive\r\n", false),
        ] {
            let envelope = Envelope { minor_version, keep_alive, head_only, ..ENVELOPE };
            let expected = format!("{START}{lines}\r\n");
            assert_eq!(encoded(&stream(200), &envelope), (expected.clone(), expected.len()));
            assert_eq!(envelope.closes_after(&stream(200)), closes);
            assert!(!envelope.closes_after(&built(200)));
        }
        for status in [204, 205, 304] {
            let envelope = Envelope { minor_version: 0, ..ENVELOPE };
            for envelope in [ENVELOPE, envelope] {
                assert_eq!(encoded(&stream(status), &envelope), encoded(&built(status), &envelope));
                assert!(!envelope.closes_after(&stream(status)));
            }
        }
    }

    #[test]
    fn the_connection_field_says_what_the_version_does_not() {
        for (minor_version, keep_alive, line) in
            [(1, true, ""), (1, false, "Connection: close\r\n"), (0, false, "Connection: close\r\n")]
                .into_iter()
                .chain([(0, true, "Connection: keep-alive\r\n")])
        {
            let envelope = Envelope { minor_version, keep_alive, ..ENVELOPE };
            assert_eq!(encoded(&built(200), &envelope).0, format!("{HEAD}{line}\r\nHello"));
            assert_eq!(encoded(&Reply::Prepared(&hello(200)), &envelope).0, format!("{HEAD}{line}\r\nHello"));
        }
    }

    #[test]
    fn the_reply_to_head_tells_the_length_and_sends_no_body() {
        let envelope = Envelope { head_only: true, ..ENVELOPE };
        let expected = (format!("{HEAD}\r\n"), HEAD.len() + 2);
        assert_eq!(encoded(&built(200), &envelope), expected);
        assert_eq!(encoded(&Reply::Prepared(&hello(200)), &envelope), expected);
    }

    #[test]
    fn statuses_without_body_end_with_their_head() {
        for (status, length) in [(204, ""), (304, ""), (205, "Content-Length: 0\r\n")] {
            let expected = format!(
                "HTTP/1.1 {status} {}\r\nServer: phalanx\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n{length}X: y\r\n\r\n",
                reason(status)
            );
            assert_eq!(encoded(&built(status), &ENVELOPE).0, expected);
            assert_eq!(encoded(&Reply::Prepared(&hello(status)), &ENVELOPE).0, expected);
        }
    }

    #[test]
    fn a_file_is_described_and_left_to_the_caller() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut reply = Reply::Built(Response { body: Body::File { file, offset: 2, len: 7 }, ..Response::new(206) });
        let (text, head) = encoded(&reply, &ENVELOPE);
        assert!(text.contains("Content-Length: 7\r\n") && text.ends_with("\r\n\r\n") && text.len() == head, "{text}");
        assert!(reply.take_file().is_some());
    }
}
