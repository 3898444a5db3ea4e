//! A request's head: from bytes to a checked [`Head`], or to the status that the peer's mistake deserves.
//!
//! It owns the grammar of RFC 9112, sections 2, 3, 5 and 6, read strictly: whatever two servers could read differently
//! is refused, because that difference is what request smuggling lives on. Names and values stay where the peer's bytes
//! are. What the target means (decoding, routes) is left to `path` and `service`, the body to `body`.

use std::mem::MaybeUninit;

use httparse::Header;
use memchr::{memchr, memchr_iter, memchr2_iter, memmem};
use phalanx_shared::field::is_token_byte;

use super::fields::Fields;
use super::target::{self, Target};

/// How far a reading came: "not enough yet" is a value, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<T> {
    /// The bytes so far are fine, and incomplete.
    NeedMore,
    /// All of it.
    Done(T),
}

/// Fields a request may carry; one more is a 431.
pub const MAX_HEADERS: usize = 100;

/// Empty lines tolerated before a request line (RFC 9112, 2.2): some clients end a body with one too many.
const MAX_EMPTY_LINES: usize = 4;

/// The peer's fault. It is answered with `status`, and the connection closes, since its framing cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with: 400, 405, 413, 414, 417, 431, 501 or 505.
    pub status: u16,
    /// What was wrong, for the log.
    pub reason: &'static str,
}

impl Refusal {
    pub(crate) const fn new(status: u16, reason: &'static str) -> Refusal {
        Refusal { status, reason }
    }

    pub(crate) const fn bad(reason: &'static str) -> Refusal {
        Refusal::new(400, reason)
    }
}

/// How the end of a request's body is found (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// `Content-Length` bytes.
    Length(u64),
    /// Chunks, a last chunk, a trailer.
    Chunked,
}

/// Room for the fields of one head. Making one costs nothing: it is not zeroed. Make one for every parse.
pub struct HeaderScratch<'b>([MaybeUninit<Header<'b>>; MAX_HEADERS]);

impl HeaderScratch<'_> {
    /// Fresh room.
    #[inline]
    pub const fn new() -> Self {
        HeaderScratch([const { MaybeUninit::uninit() }; MAX_HEADERS])
    }
}

impl Default for HeaderScratch<'_> {
    fn default() -> Self {
        HeaderScratch::new()
    }
}

/// A complete head that passed every check. It borrows the peer's bytes and the scratch it was parsed with.
#[derive(Debug, Clone, Copy)]
pub struct Head<'b> {
    /// As sent: methods are case-sensitive.
    pub method: &'b str,
    /// The request target as sent, for the log.
    pub target: &'b str,
    /// The raw path: what stands before `?`, still encoded. `*` for the asterisk form.
    pub path: &'b str,
    /// What stands behind the first `?`, raw.
    pub query: Option<&'b str>,
    /// 0 or 1.
    pub minor_version: u8,
    /// Bytes from the start of the input to the end of the head: tolerated empty lines and the final CRLF included.
    pub len: usize,
    /// The authority without its port, as sent. Always there in HTTP/1.1.
    pub host: Option<&'b str>,
    /// Where the body ends.
    pub framing: Framing,
    /// The connection may carry another request after this one (RFC 9112, 9.3).
    pub keep_alive: bool,
    /// The peer waits for `100 Continue` before it sends the body (RFC 9110, 10.1.1).
    pub expect_continue: bool,
    /// Every field, in the order sent.
    pub headers: &'b [Header<'b>],
}

impl<'b> Head<'b> {
    /// The value of the first field of that name, in any case.
    #[inline]
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.header_lines(name).next()
    }

    /// The value of every field of that name, in the order sent.
    #[inline]
    pub fn header_lines<'n>(&self, name: &'n str) -> impl DoubleEndedIterator<Item = &'b [u8]> + use<'b, 'n> {
        self.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The response must carry no body (RFC 9110, 9.3.2).
    #[inline]
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The request changes nothing (RFC 9110, 9.2.1).
    #[inline]
    pub fn is_safe(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }

    /// The request may be carried out again without harm (RFC 9110, 9.2.2).
    #[inline]
    pub fn idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }
}

/// Reads one head from the start of `bytes`, of which at most the first `limit` may be head.
///
/// The answer depends on the bytes alone, not on how they were cut into reads: what is refused early would have been
/// refused when complete. After `NeedMore`, call again with everything so far and a fresh scratch.
#[inline]
pub fn parse<'b>(
    bytes: &'b [u8],
    limit: usize,
    scratch: &'b mut HeaderScratch<'b>,
) -> Result<Progress<Head<'b>>, Refusal> {
    let window = &bytes[..bytes.len().min(limit)];
    let start = skip_empty_lines(window)?;
    let head = &window[start..];
    match find_end(head) {
        Some(end) => parse_complete(&head[..end.at], end.returns, start, scratch).map(Progress::Done),
        None => check_incomplete(head, bytes.len() >= limit),
    }
}

/// The end of a head.
struct End {
    /// The first byte behind its empty line.
    at: usize,
    /// CRs up to there.
    returns: usize,
}

/// Looks from line end to line end for one that an empty line follows: a head is short lines, for which that is nearly twice as fast
/// as setting up a search for four bytes.
#[inline]
fn find_end(head: &[u8]) -> Option<End> {
    let mut line_ends = memchr_iter(b'\r', head).enumerate();
    line_ends
        .find(|&(_, at)| head[at..].starts_with(b"\r\n\r\n"))
        .map(|(before, at)| End { at: at + 4, returns: before + 2 })
}

fn skip_empty_lines(window: &[u8]) -> Result<usize, Refusal> {
    let mut start = 0;
    while window[start..].starts_with(b"\r\n") {
        start += 2;
        if start > 2 * MAX_EMPTY_LINES {
            return Err(Refusal::bad("too many empty lines before the request line"));
        }
    }
    Ok(start)
}

/// A head without its end: hopeless already, over the limit, or merely late.
#[cold]
fn check_incomplete<'b>(head: &[u8], full: bool) -> Result<Progress<Head<'b>>, Refusal> {
    if head.first().is_some_and(|&byte| byte != b'\r' && !is_token_byte(byte)) {
        return Err(Refusal::bad("the request line does not begin with a method"));
    }
    if has_stray_line_end(head) {
        return Err(Refusal::bad("a line that does not end in CRLF"));
    }
    match (full, memmem::find(head, b"\r\n")) {
        (false, _) => Ok(Progress::NeedMore),
        (true, Some(_)) => Err(Refusal::new(431, "the head is larger than the limit")),
        (true, None) => Err(Refusal::new(414, "the request line is larger than the limit")),
    }
}

/// A CR or LF that is not half of a CRLF; a CR at the very end may still become one.
fn has_stray_line_end(head: &[u8]) -> bool {
    memchr2_iter(b'\r', b'\n', head).any(|at| match head[at] {
        b'\r' => head.get(at + 1).is_some_and(|&next| next != b'\n'),
        _ => at == 0 || head[at - 1] != b'\r',
    })
}

fn parse_complete<'b>(
    head: &'b [u8],
    returns: usize,
    start: usize,
    scratch: &'b mut HeaderScratch<'b>,
) -> Result<Head<'b>, Refusal> {
    // httparse skips empty lines of its own accord, with bare LF too; none may be left for it.
    if !is_token_byte(head[0]) {
        return Err(Refusal::bad("the request line does not begin with a method"));
    }
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut scratch.0) {
        Ok(httparse::Status::Complete(taken)) if taken == head.len() => {}
        Ok(_) => return Err(Refusal::bad("a line that does not end in CRLF")),
        Err(error) => return Err(refuse(error, head)),
    }
    let headers: &'b [Header<'b>] = request.headers;
    // httparse takes a bare LF for a line end, but a CR only in a CRLF: fewer CRs than lines are bare LFs.
    if returns != headers.len() + 2 {
        return Err(Refusal::bad("a line that does not end in CRLF"));
    }
    let (Some(method), Some(target), Some(minor_version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad("an incomplete request line"));
    };
    let fields = Fields::read(headers, minor_version)?;
    let Target { path, query, authority } = target::parse(method, target)?;
    let framing = fields.framing(minor_version)?;
    Ok(Head {
        method,
        target,
        path,
        query,
        minor_version,
        len: start + head.len(),
        host: authority.or(fields.host),
        framing,
        keep_alive: !fields.close && (minor_version == 1 || fields.keep_alive),
        expect_continue: fields.expect_continue && !matches!(framing, Framing::None | Framing::Length(0)),
        headers,
    })
}

#[cold]
fn refuse(error: httparse::Error, head: &[u8]) -> Refusal {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => Refusal::new(431, "more header fields than the limit"),
        Error::Version if asks_for_another_version(head) => Refusal::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken"),
        Error::Version => Refusal::bad("a malformed protocol version"),
        Error::Token => Refusal::bad("a malformed request line"),
        Error::HeaderName => Refusal::bad("a malformed header name"),
        Error::HeaderValue => Refusal::bad("a malformed header value"),
        Error::NewLine | Error::Status => Refusal::bad("a malformed line end"),
    }
}

/// The request line is well formed and ends in `HTTP/<digit>.<digit>` (RFC 9112, 2.3).
fn asks_for_another_version(head: &[u8]) -> bool {
    let line = &head[..memchr(b'\r', head).unwrap_or(head.len())];
    let version = line.splitn(3, |&byte| byte == b' ').nth(2).unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests;
