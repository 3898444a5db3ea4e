//! Request bodies: where their bytes are and where they end (RFC 9112, 6 and 7.1).
//!
//! It owns the chunked coding, read strictly, and the count of bytes against the limit. Where the bytes go is left to
//! the sink. Trailer fields are checked, and kept as a [`Trailer`] if somebody asked for them.

use phalanx_shared::field::is_token_byte;

use super::chunk_extension::{Next, Part, is_text_byte};
use super::head::{Framing, Refusal};
use super::trailer::Trailer;

/// Hex digits of a chunk size: as many as a u64 holds.
const MAX_SIZE_DIGITS: u8 = 16;

/// Bytes of one chunk's extensions, which nobody uses but to waste time.
const MAX_EXTENSION: usize = 256;

/// Bytes of the coding beyond [`CHUNK_ALLOWANCE`] and twice the data, over a whole body. Without it a peer could send any
/// amount for a body of a few bytes, and stay below every limit.
const MAX_OVERHEAD: u64 = 16 * 1024;

/// Bytes of the coding that each chunk may cost for nothing: more than size and line ends of one that is written sensibly.
const CHUNK_ALLOWANCE: u64 = 16;

/// Bytes of all the fields of a trailer, their line ends included.
const MAX_TRAILER: usize = 8 * 1024;

/// Fields of a trailer: those that exist for the purpose are a handful.
const MAX_TRAILER_FIELDS: u8 = 32;

/// Finds the body in what follows a head, whatever pieces it comes in.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    received: u64,
    limit: u64,
    /// Bytes of the coding that the chunks so far do not account for.
    overhead: u64,
    /// Where trailer fields are kept; none: nobody asked for them.
    trailer: Option<Trailer>,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A body of known length, of which this much is left.
    Length(u64),
    /// A chunk's size, so far.
    Size { digits: u8, size: u64 },
    /// A chunk's extensions, of which there were `taken` bytes so far.
    Extension { size: u64, taken: usize, part: Part },
    /// The LF that ends a chunk's line.
    SizeEnd { size: u64 },
    /// A chunk's bytes.
    Data { left: u64 },
    /// The CR behind a chunk's bytes.
    DataCr,
    /// The LF behind a chunk's bytes.
    DataLf,
    /// The first byte of a trailer line, or of the last CRLF.
    Line(Taken),
    /// A trailer field's name.
    Name(Taken),
    /// A trailer field's value.
    Value(Taken),
    /// The LF of a trailer line.
    LineEnd(Taken),
    /// The last LF.
    End,
    /// Behind the body.
    Done,
}

/// How much of a trailer there was so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Taken {
    bytes: usize,
    fields: u8,
}

impl Taken {
    fn bytes(self, count: usize) -> Taken {
        Taken { bytes: self.bytes + count, ..self }
    }

    fn field(self) -> Taken {
        Taken { fields: self.fields.saturating_add(1), ..self }
    }

    fn is_too_much(self) -> bool {
        self.bytes > MAX_TRAILER || self.fields > MAX_TRAILER_FIELDS
    }
}

impl Decoder {
    /// For a body of this framing and at most `limit` bytes; 413 if its head announced more.
    pub fn new(framing: &Framing, limit: u64) -> Result<Decoder, Refusal> {
        let state = match *framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) if length > limit => return Err(TOO_LARGE),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { digits: 0, size: 0 },
        };
        Ok(Decoder { state, received: 0, limit, overhead: 0, trailer: None })
    }

    /// Has the trailer fields kept, for [`take_trailer`](Decoder::take_trailer). The same bodies are refused with and
    /// without.
    #[must_use]
    pub fn with_trailer(self) -> Decoder {
        Decoder { trailer: Some(Trailer::default()), ..self }
    }

    /// The trailer, once the body is complete: empty before, and if it was not asked for.
    pub fn take_trailer(&mut self) -> Trailer {
        match self.is_done() {
            true => self.trailer.take().unwrap_or_default(),
            false => Trailer::default(),
        }
    }

    /// Consumes from `bytes` and hands each run of body bytes to `sink`, in place. Returns how many bytes it took, and
    /// whether the body, trailer included, is complete: if it is not, it took all.
    ///
    /// After a refusal the decoder is of no further use.
    pub fn advance(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(usize, bool), Refusal> {
        let mut taken = 0;
        while taken < bytes.len() && self.state != State::Done {
            taken += match self.state {
                State::Length(left) => self.pass_on(left, &bytes[taken..], State::Length, State::Done, sink),
                State::Data { left } => {
                    self.pass_on(left, &bytes[taken..], |left| State::Data { left }, State::DataCr, sink)
                }
                _ => {
                    self.overhead += 1;
                    self.state = self.step(bytes[taken])?;
                    1
                }
            };
        }
        Ok((taken, self.is_done()))
    }

    /// The body is complete.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of body handed on so far.
    #[inline]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Hands on what there is of `left` bytes; returns how many that were.
    fn pass_on(
        &mut self,
        left: u64,
        bytes: &[u8],
        more: impl Fn(u64) -> State,
        end: State,
        sink: &mut dyn FnMut(&[u8]),
    ) -> usize {
        let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        sink(&bytes[..count]);
        self.received += count as u64;
        let left = left - count as u64;
        self.state = if left == 0 { end } else { more(left) };
        count
    }

    /// The state behind one byte of the coding itself.
    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match self.state {
            State::Size { digits, size } => size_step(digits, size, byte),
            State::Extension { size, taken, part } => extension_step(size, taken, part, byte),
            State::SizeEnd { size } if byte == b'\n' => self.open_chunk(size),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { digits: 0, size: 0 }),
            State::SizeEnd { .. } | State::DataCr | State::DataLf => Err(MALFORMED),
            trailer => self.step_in_trailer(trailer, byte),
        }
    }

    /// Keeps the byte if it belongs to a field.
    fn step_in_trailer(&mut self, state: State, byte: u8) -> Result<State, Refusal> {
        let next = trailer_step(state, byte)?;
        match &mut self.trailer {
            Some(trailer) if !matches!(next, State::End | State::Done) => trailer.push(byte),
            _ => {}
        }
        Ok(next)
    }

    /// The limits are kept before a byte of the chunk is taken.
    fn open_chunk(&mut self, size: u64) -> Result<State, Refusal> {
        self.overhead = self.overhead.saturating_sub(size.saturating_mul(2).saturating_add(CHUNK_ALLOWANCE));
        match size {
            _ if self.overhead > MAX_OVERHEAD => Err(Refusal::bad("chunks with more extensions than data")),
            0 => Ok(State::Line(Taken::default())),
            _ if size > self.limit.saturating_sub(self.received) => Err(TOO_LARGE),
            _ => Ok(State::Data { left: size }),
        }
    }
}

const TOO_LARGE: Refusal = Refusal::new(413, "a body larger than the limit");
const MALFORMED: Refusal = Refusal::bad("a malformed chunk");

fn size_step(digits: u8, size: u64, byte: u8) -> Result<State, Refusal> {
    match char::from(byte).to_digit(16) {
        Some(digit) if digits < MAX_SIZE_DIGITS => {
            Ok(State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) })
        }
        None if digits > 0 && byte == b'\r' => Ok(State::SizeEnd { size }),
        None if digits > 0 => extension_step(size, 0, Part::BehindSize, byte),
        _ => Err(MALFORMED),
    }
}

fn extension_step(size: u64, taken: usize, part: Part, byte: u8) -> Result<State, Refusal> {
    match part.step(byte).ok_or(MALFORMED)? {
        Next::LineEnd => Ok(State::SizeEnd { size }),
        Next::Part(_) if taken == MAX_EXTENSION => Err(MALFORMED),
        Next::Part(part) => Ok(State::Extension { size, taken: taken + 1, part }),
    }
}

fn trailer_step(state: State, byte: u8) -> Result<State, Refusal> {
    let next = match state {
        State::Line(_) if byte == b'\r' => State::End,
        State::Line(taken) if is_token_byte(byte) => State::Name(taken.field().bytes(1)),
        State::Name(taken) if is_token_byte(byte) => State::Name(taken.bytes(1)),
        State::Name(taken) if byte == b':' => State::Value(taken.bytes(1)),
        State::Value(taken) if byte == b'\r' => State::LineEnd(taken.bytes(2)),
        State::Value(taken) if is_text_byte(byte) => State::Value(taken.bytes(1)),
        State::LineEnd(taken) if byte == b'\n' => State::Line(taken),
        State::End if byte == b'\n' => State::Done,
        _ => return Err(Refusal::bad("a malformed trailer")),
    };
    match next {
        State::Name(taken) | State::Value(taken) | State::LineEnd(taken) if taken.is_too_much() => {
            Err(Refusal::new(431, "a trailer larger than the limit"))
        }
        _ => Ok(next),
    }
}

#[cfg(test)]
mod tests;
