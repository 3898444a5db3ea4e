//! The body of a request, as its handler sees it.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::{Mutex, OnceLock};

use super::incoming::{Incoming, Reading};
use crate::http::{Decoder, Framing};
use crate::lock::lock;

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
    /// On their way, for whoever takes them.
    Coming(&'r Handed),
}

/// A body on its way, for the one handler that it is for.
#[derive(Debug)]
pub(crate) struct Handed(Mutex<Option<Incoming>>);

impl Handed {
    pub(crate) fn new(incoming: Incoming) -> Handed {
        Handed(Mutex::new(Some(incoming)))
    }

    /// Once; nothing the second time.
    pub(crate) fn take(&self) -> Incoming {
        lock(&self.0).take().unwrap_or_else(|| Incoming::whole(bytes::Bytes::new()))
    }
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
            Payload::None | Payload::Coming(_) => Cow::Borrowed(&[]),
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

    /// Its bytes, for somebody who keeps them; of one that is on its way, those that are there.
    pub(crate) fn to_vec(self) -> Vec<u8> {
        match self {
            Payload::Coming(handed) => handed.take().into_vec(),
            here => here.bytes().into_owned(),
        }
    }

    /// For somebody who keeps it.
    pub(crate) fn to_incoming(self) -> Incoming {
        match self {
            Payload::Coming(handed) => handed.take(),
            here => Incoming::whole(match here.bytes() {
                Cow::Borrowed(bytes) => bytes::Bytes::copy_from_slice(bytes),
                Cow::Owned(bytes) => bytes.into(),
            }),
        }
    }
}

/// The body of a request (RFC 9110, 6.4), without its transfer coding. At most `limits.body` bytes; a request with more is answered
/// 413.
#[derive(Debug)]
pub struct Body<'r>(Content<'r>);

#[derive(Debug)]
enum Content<'r> {
    Here(Cow<'r, [u8]>),
    Coming { reading: Mutex<Reading>, all: OnceLock<Vec<u8>> },
}

impl<'r> Body<'r> {
    pub(super) fn of(payload: Payload<'r>) -> Body<'r> {
        Body(match payload {
            Payload::Coming(handed) => {
                Content::Coming { reading: Mutex::new(Reading::of(handed.take())), all: OnceLock::new() }
            }
            here => Content::Here(here.bytes()),
        })
    }

    /// All of it, however long that takes.
    ///
    /// # Errors
    /// Where it is [streamed](super::Endpoint::streamed): the client has gone, or has sent what is no body. Never otherwise.
    pub fn bytes(&self) -> io::Result<&[u8]> {
        match &self.0 {
            Content::Here(bytes) => Ok(bytes),
            Content::Coming { reading, all } => {
                if let Some(bytes) = all.get() {
                    return Ok(bytes);
                }
                let mut bytes = Vec::new();
                lock(reading).read_to_end(&mut bytes)?;
                Ok(all.get_or_init(|| bytes))
            }
        }
    }

    /// All of it, to be read from its beginning on; where it is [streamed](super::Endpoint::streamed), from where others have left
    /// it, as it comes.
    pub fn reader(&self) -> impl Read + '_ {
        match &self.0 {
            Content::Here(bytes) => Reader::Here(bytes),
            Content::Coming { reading, .. } => Reader::Coming(reading),
        }
    }

    /// How many bytes it has in all, if that is known; where it is streamed, how many are left.
    pub fn len(&self) -> Option<u64> {
        match &self.0 {
            Content::Here(bytes) => Some(bytes.len() as u64),
            Content::Coming { reading, .. } => lock(reading).remaining(),
        }
    }

    /// Whether it is known to have none.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// All of it, as text.
    ///
    /// # Errors
    /// As [`Body::bytes`], and where it is not UTF-8 (`InvalidData`).
    pub fn text(&self) -> io::Result<&str> {
        std::str::from_utf8(self.bytes()?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// What it says in JSON (RFC 8259).
    ///
    /// # Errors
    /// As [`Body::bytes`], and what is wrong with it, and where (`InvalidData`).
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(self.bytes()?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

enum Reader<'b> {
    Here(&'b [u8]),
    Coming(&'b Mutex<Reading>),
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Reader::Here(bytes) => bytes.read(out),
            Reader::Coming(reading) => lock(reading).read(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_however_it_was_sent() {
        let whole = Body::of(Payload::of(&Framing::Length(5), b"hello"));
        let chunked = Body::of(Payload::of(&Framing::Chunked, b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"));
        let handed = Handed::new(Incoming::whole(bytes::Bytes::from_static(b"hello")));
        let coming = Body::of(Payload::Coming(&handed));
        for body in [&whole, &chunked, &coming] {
            assert_eq!((body.bytes().unwrap(), body.text().unwrap()), (&b"hello"[..], "hello"));
        }
        let handed = Handed::new(Incoming::whole(bytes::Bytes::from_static(b"hello")));
        let coming = Body::of(Payload::Coming(&handed));
        coming.reader().read_exact(&mut [0; 2]).unwrap();
        assert_eq!(coming.len(), Some(3));
        assert!(matches!(whole.0, Content::Here(Cow::Borrowed(_))));
        let mut read = String::new();
        chunked.reader().read_to_string(&mut read).unwrap();
        assert_eq!(read, "hello");
        assert!(Body::of(Payload::of(&Framing::None, b"")).is_empty());
    }

    #[test]
    fn what_is_no_json_is_told() {
        let body = Body::of(Payload::Whole(b"{\"a\": }"));
        let error = body.json::<std::collections::BTreeMap<String, u8>>().unwrap_err();
        assert!(error.to_string().contains("line 1 column 7"), "{error}");
    }
}
