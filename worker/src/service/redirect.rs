//! The `redirect` service: sends every request of its route to one other place (RFC 9110, 15.4).

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::http::reply::{Prepared, Reply, Text};
use crate::http::status::reason;

/// What no URI reference holds; a `%` stays, since the place may be encoded already.
const NOT_IN_A_URI: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`');

/// A reply that was encoded when the configuration was loaded.
#[derive(Debug, Clone)]
pub struct Redirect(Prepared);

impl Redirect {
    /// To the path or URL `to`, with a status of 301, 302, 303, 307 or 308, and `fields`, complete lines.
    pub fn new(to: &str, status: u16, fields: &str) -> Redirect {
        let headers = format!("Location: {}\r\n{fields}", utf8_percent_encode(to, NOT_IN_A_URI));
        let body = format!("{status} {}\n", reason(status));
        Redirect(Prepared::new(&Text { status, content_type: "text/plain", headers: &headers, body }))
    }

    /// Always the same.
    #[inline]
    pub fn answer(&self) -> Reply<'_> {
        Reply::Prepared(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::encode::{Envelope, append};

    fn encoded(to: &str, status: u16) -> String {
        let envelope = Envelope { date: &[b'd'; 29], minor_version: 1, keep_alive: true, head_only: false };
        let mut out = Vec::new();
        append(&mut out, &Redirect::new(to, status, "").answer(), &envelope);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_place_and_a_small_body_are_told() {
        let text = encoded("/new/?a=%20", 308);
        assert!(text.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{text}");
        assert!(text.contains("\r\nLocation: /new/?a=%20\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n308 Permanent Redirect\n"), "{text}");
    }

    #[test]
    fn what_no_uri_holds_is_encoded() {
        assert!(encoded("/a b\u{e4}", 301).contains("\r\nLocation: /a%20b%C3%A4\r\n"));
    }
}
