//! The body of a request, as its handler sees it.

use std::borrow::Cow;
use std::io::Read;

use crate::http::{Decoder, Framing};

/// Where the bytes of a body are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Payload<'r> {
    /// There are none.
    #[default]
    None,
    /// Here, all of them.
    Whole(&'r [u8]),
    /// Here, all of them, with their chunked coding still around them.
    Chunked(&'r [u8]),
}

impl<'r> Payload<'r> {
    /// Of a request that has come whole, framed so; `sent` is what followed its head.
    pub(crate) fn of(framing: &Framing, sent: &'r [u8]) -> Payload<'r> {
        match framing {
            Framing::None => Payload::None,
            Framing::Length(_) => Payload::Whole(sent),
            Framing::Chunked => Payload::Chunked(sent),
        }
    }

    fn bytes(self) -> Cow<'r, [u8]> {
        match self {
            Payload::None => Cow::Borrowed(&[]),
            Payload::Whole(bytes) => Cow::Borrowed(bytes),
            Payload::Chunked(sent) => {
                let mut bytes = Vec::with_capacity(sent.len());
                // It was read once already, within its limit.
                if let Ok(mut decoder) = Decoder::new(&Framing::Chunked, u64::MAX) {
                    let _as_before = decoder.advance(sent, &mut |run| bytes.extend_from_slice(run));
                }
                Cow::Owned(bytes)
            }
        }
    }

    /// Its bytes, for somebody who keeps them.
    pub(crate) fn to_vec(self) -> Vec<u8> {
        self.bytes().into_owned()
    }
}

/// The body of a request (RFC 9110, 6.4), without its transfer coding. At most `limits.body` bytes; a request with more is answered
/// 413 before any handler sees it.
#[derive(Debug, Clone)]
pub struct Body<'r> {
    bytes: Cow<'r, [u8]>,
}

impl<'r> Body<'r> {
    pub(super) fn of(payload: Payload<'r>) -> Body<'r> {
        Body { bytes: payload.bytes() }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, to be read from its beginning on.
    pub fn reader(&self) -> impl Read + '_ {
        &*self.bytes
    }

    /// All of it, as text.
    ///
    /// # Errors
    /// Where it is not UTF-8.
    pub fn text(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.bytes)
    }

    /// What it says in JSON (RFC 8259).
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_however_it_was_sent() {
        let whole = Body::of(Payload::of(&Framing::Length(5), b"hello"));
        let chunked = Body::of(Payload::of(&Framing::Chunked, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"));
        assert_eq!((whole.bytes(), chunked.bytes()), (&b"hello"[..], &b"hello"[..]));
        assert!(matches!(whole.bytes, Cow::Borrowed(_)));
        let mut read = String::new();
        chunked.reader().read_to_string(&mut read).unwrap();
        assert_eq!(read, "hello");
        assert!(Body::of(Payload::of(&Framing::None, b"")).bytes().is_empty());
    }
}
