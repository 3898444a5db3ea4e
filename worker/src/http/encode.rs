//! Replies as bytes (RFC 9112, 4 and 6; RFC 9110, 6.6.1 and 8.6).
//!
//! It owns the order and the exact bytes of every head that leaves the server. Nothing in them depends on the process
//! that writes them: a successor that encodes the same reply with the recorded date goes on at the exact byte.

use std::io::Write;

use super::reply::{Body, Prepared, Reply, Response};
use super::status::reason;

/// The interim response to a peer that waits before it sends its body (RFC 9110, 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const CLOSE: &[u8] = b"Connection: close\r\n\r\n";
const KEEP_ALIVE: &[u8] = b"Connection: keep-alive\r\n\r\n";
const END: &[u8] = b"\r\n";
const CHUNKED: &[u8] = b"Transfer-Encoding: chunked\r\n";

/// Bodies at hand up to this size are copied behind their head, so that both are one run of bytes; larger ones are not worth it.
pub(super) const COPIED: usize = 16 * 1024;

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
    /// A body of unknown length is sent in chunks; to an HTTP/1.0 peer its end is the end of the connection.
    #[inline]
    pub fn chunks(&self) -> bool {
        self.minor_version > 0
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

/// Appends the head of `reply`, and its body if that is small, at hand, and to be sent. Returns the bytes of the head.
///
/// Any other body is left to the caller, who asks [`Reply::into_tail`] afterwards and sends it unless `head_only`.
#[inline]
pub fn append(out: &mut Vec<u8>, reply: &Reply<'_>, envelope: &Envelope<'_>) -> usize {
    match reply {
        Reply::Prepared(prepared) => append_prepared(out, prepared, prepared.body(), envelope),
        Reply::Cached(prepared) => {
            let copied = if prepared.body().len() > COPIED { &[] } else { prepared.body() };
            append_prepared(out, prepared, copied, envelope)
        }
        Reply::Built(response) => append_built(out, response, envelope),
    }
}

#[inline]
fn append_prepared(out: &mut Vec<u8>, prepared: &Prepared, body: &[u8], envelope: &Envelope<'_>) -> usize {
    let start = out.len();
    let (before, after, closing) = (prepared.before_date(), prepared.after_date(), envelope.closing());
    let body = if envelope.head_only { &[] } else { body };
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
    let body = match &response.body {
        Body::Bytes(bytes) if allowed && !envelope.head_only && bytes.len() <= COPIED => &bytes[..],
        _ => &[],
    };
    out.reserve(HEAD_ROOM + response.headers.len() + body.len());
    open_head(out, response.status);
    out.extend_from_slice(envelope.date);
    let content_type = response.content_type.as_deref().filter(|_| allowed);
    if let (Body::Stream { len: None, .. }, true) = (&response.body, allowed) {
        describe(out, content_type, None, &response.headers);
        // A HEAD has no body that a coding could apply to.
        if envelope.chunks() && !envelope.head_only {
            out.extend_from_slice(CHUNKED);
        }
    } else {
        let length = if allowed { response.body.len() } else { 0 };
        describe(out, content_type, states_length(response.status).then_some(length), &response.headers);
    }
    out.extend_from_slice(envelope.closing());
    let head = out.len() - start;
    out.extend_from_slice(body);
    head
}

/// A reply of this status may carry a body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5).
#[inline]
pub(super) fn may_have_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 205 | 304)
}

/// A reply of this status tells its length: all but those that end with their head (RFC 9110, 8.6).
#[inline]
pub(super) fn states_length(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}

/// Status line and fields up to the value of `Date`. The version is the server's own (RFC 9110, 6.2).
pub(super) fn open_head(out: &mut Vec<u8>, status: u16) {
    // Nearly all are this; formatting costs more than all the rest of a short head.
    if status == 200 {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\nServer: phalanx\r\nDate: ");
    }
    write(out, format_args!("HTTP/1.1 {status:03} {}\r\nServer: phalanx\r\nDate: ", reason(status)));
}

/// The end of the date's line, and the fields behind it.
pub(super) fn describe(out: &mut Vec<u8>, content_type: Option<&str>, length: Option<u64>, headers: &[u8]) {
    out.extend_from_slice(b"\r\n");
    if let Some(content_type) = content_type {
        for part in ["Content-Type: ", content_type, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    if let Some(length) = length {
        out.extend_from_slice(b"Content-Length: ");
        out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(headers);
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A Vec takes every byte.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::super::reply::Text;
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
            body: Body::Bytes(b"Hello"[..].into()),
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
}
