//! Trailer fields (RFC 9110, 6.5): kept for whoever wants them.
//!
//! It owns which fields are never handed on, wherever they stand. Their grammar and bounds are `body`'s, which reads them
//! byte by byte; here is only what it let pass.

/// The fields behind a chunked body, those dropped that may not stand there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Whole lines as sent.
    lines: Vec<u8>,
}

impl Trailer {
    /// Name and value of each field, in the order sent, the value without blanks around it.
    ///
    /// Fields that frame, route, authenticate, condition or describe the message are not among them (RFC 9110, 6.5.1):
    /// they would come too late to be heeded, and to merge them into the head would be to let the peer change what was
    /// decided.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.lines.split(|&byte| byte == b'\r').filter_map(field).filter(|(name, _)| !is_forbidden(name))
    }

    /// There is no field, allowed or not.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Takes one more byte of a line that `body` has found well formed.
    pub(super) fn push(&mut self, byte: u8) {
        self.lines.push(byte);
    }
}

/// A line without its CR, and behind the LF of the one before.
fn field(line: &[u8]) -> Option<(&str, &[u8])> {
    let line = line.strip_prefix(b"\n").unwrap_or(line);
    let colon = memchr::memchr(b':', line)?;
    Some((std::str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
}

/// What begins like this may not stand in a trailer.
const FORBIDDEN_PREFIXES: [&str; 5] = ["content-", "if-", "proxy-", "sec-", "x-forwarded-"];

/// Nor may these.
const FORBIDDEN: [&str; 33] = [
    // Framing and the connection.
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    // Routing, and who is asking.
    "forwarded",
    "host",
    "via",
    "x-real-ip",
    // Authentication.
    "authorization",
    "authentication-info",
    "cookie",
    "origin",
    "set-cookie",
    "www-authenticate",
    // What the request is, and how it is to be answered.
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "expect",
    "max-forwards",
    "pragma",
    "range",
    // What a response is, and how long it may be kept.
    "age",
    "date",
    "expires",
    "location",
    "retry-after",
    "server",
    "vary",
    "warning",
];

fn is_forbidden(name: &str) -> bool {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    FORBIDDEN.iter().any(|other| name.eq_ignore_ascii_case(other)) || FORBIDDEN_PREFIXES.into_iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailer(text: &str) -> Trailer {
        let mut trailer = Trailer::default();
        text.bytes().for_each(|byte| trailer.push(byte));
        trailer
    }

    #[test]
    fn fields_are_told_in_order_and_trimmed() {
        let trailer = trailer("Server-Timing: \t a:b \r\nEmpty:\r\nx: \u{e4}\r\nx: 2\r\n");
        let fields: Vec<_> = trailer.fields().collect();
        assert_eq!(fields, [("Server-Timing", &b"a:b"[..]), ("Empty", b""), ("x", "\u{e4}".as_bytes()), ("x", b"2")]);
        assert!(!trailer.is_empty());
        assert_eq!(Trailer::default().fields().count(), 0);
        assert!(Trailer::default().is_empty());
    }

    #[test]
    fn fields_that_may_not_stand_there_are_dropped() {
        for name in [
            "Content-Length",
            "content-type",
            "Transfer-Encoding",
            "HOST",
            "Connection",
            "Trailer",
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "If-None-Match",
            "Range",
            "Expect",
            "X-Forwarded-For",
            "Forwarded",
        ] {
            let trailer = trailer(&format!("{name}: 1\r\nDigest: 2\r\n"));
            assert_eq!(trailer.fields().collect::<Vec<_>>(), [("Digest", &b"2"[..])], "{name}");
        }
        for name in ["Contents", "Ifs", "Hosts", "ETag", "grpc-status", "Te-St", "Repr-Digest"] {
            assert_eq!(trailer(&format!("{name}: 1\r\n")).fields().count(), 1, "{name}");
        }
    }
}
