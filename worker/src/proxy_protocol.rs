//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): what a proxy says about a connection before the
//! connection's own bytes.
//!
//! It owns the bytes of the header, read strictly. Who may send one, and how long it may take, is left to the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use memchr::{memchr, memchr2};

use crate::http::Progress;

/// Bytes of a version 1 header, its CRLF included (section 2.1).
pub const MAX_V1: usize = 107;

/// Bytes of addresses and further values in a version 2 header: section 2.2 wants that 536 bytes can be sent in one
/// segment, and what proxies add stays far below.
pub const MAX_V2_PAYLOAD: usize = 536;

/// Bytes of a version 2 header before its addresses.
const V2_FIXED: usize = 16;

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its bytes; the connection's own follow.
    pub len: usize,
    /// Where the connection comes from.
    pub source: Source,
}

/// Where a proxied connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The client's address and port.
    Address(SocketAddr),
    /// The proxy does not say, or speaks for itself (LOCAL, UNKNOWN, a Unix socket, datagrams): the peer of the socket
    /// counts.
    Unspecified,
}

/// This is no PROXY header: the connection is to be closed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Reads a header from the start of `bytes`. `NeedMore` is answered only for what can still become a header; then call again
/// with everything so far.
///
/// # Errors
///
/// When no header begins like this, or it is larger than [`MAX_V1`] or [`MAX_V2_PAYLOAD`] allows.
pub fn parse(bytes: &[u8]) -> Result<Progress<Header>, Malformed> {
    match bytes.first() {
        None => Ok(Progress::NeedMore),
        Some(b'\r') => parse_v2(bytes),
        Some(_) => parse_v1(bytes),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Progress<Header>, Malformed> {
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let end = memchr2(b'\r', b'\n', window);
    match end.map(|at| (at, &window[at..])) {
        Some((at, [b'\r', b'\n', ..])) => {
            Ok(Progress::Done(Header { len: at + 2, source: v1_source(&window[..at]).ok_or(Malformed)? }))
        }
        Some((at, b"\r")) if window.len() < MAX_V1 => {
            v1_source(&window[..at]).map(|_| Progress::NeedMore).ok_or(Malformed)
        }
        None if window.len() <= MAX_V1 - 2 && may_become_v1(window) => Ok(Progress::NeedMore),
        _ => Err(Malformed),
    }
}

/// What a complete line, without its CRLF, says; none if it is malformed.
fn v1_source(line: &[u8]) -> Option<Source> {
    let rest = line.strip_prefix(b"PROXY ")?;
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        // Whatever follows is to be ignored.
        return Some(Source::Unspecified);
    }
    let mut fields = std::str::from_utf8(rest).ok()?.split(' ');
    let family = Family::named(fields.next()?)?;
    let (source, _) = (family.address(fields.next()?)?, family.address(fields.next()?)?);
    let (port, _) = (port(fields.next()?)?, port(fields.next()?)?);
    fields.next().is_none().then_some(Source::Address(SocketAddr::new(source, port)))
}

/// Some continuation of `start`, which holds no line end, is a line: all fields but the last are complete, and the last
/// begins like one.
fn may_become_v1(start: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 3] = [b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"];
    if BEGINNINGS.iter().any(|beginning| beginning.starts_with(start)) || start.starts_with(b"PROXY UNKNOWN ") {
        return true;
    }
    may_become_addresses(start).unwrap_or(false)
}

/// The same, behind the name of the family.
fn may_become_addresses(start: &[u8]) -> Option<bool> {
    let mut fields = std::str::from_utf8(start.strip_prefix(b"PROXY ")?).ok()?.split(' ');
    let family = Family::named(fields.next()?)?;
    let fields: Vec<&str> = fields.take(5).collect();
    let (last, complete) = fields.split_last()?;
    let whole = complete.iter().enumerate().all(|(index, field)| match index {
        0 | 1 => family.address(field).is_some(),
        _ => port(field).is_some(),
    });
    let begun = match complete.len() {
        0 | 1 => family.may_become_address(last),
        2 | 3 => last.is_empty() || port(last).is_some(),
        _ => false,
    };
    Some(whole && begun)
}

/// The two families whose addresses version 1 writes out.
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn named(name: &str) -> Option<Family> {
        match name {
            "TCP4" => Some(Family::V4),
            "TCP6" => Some(Family::V6),
            _ => None,
        }
    }

    /// Decimal without leading zeros for IPv4; groups of hexadecimal digits, and no dotted tail, for IPv6.
    fn address(self, text: &str) -> Option<IpAddr> {
        match self {
            Family::V4 => text.parse().ok().map(IpAddr::V4),
            Family::V6 if memchr(b'.', text.as_bytes()).is_some() => None,
            Family::V6 => text.parse().ok().map(IpAddr::V6),
        }
    }

    /// Some continuation of `start` is an address: one of the shortest that there are for any start is tried.
    fn may_become_address(self, start: &str) -> bool {
        let endings: &[&str] = match self {
            Family::V4 => &["", ".0", ".0.0", ".0.0.0", "0", "0.0", "0.0.0", "0.0.0.0"],
            Family::V6 => &["", "0", ":", "::", ":0"],
        };
        endings.iter().any(|ending| self.address(&format!("{start}{ending}")).is_some())
    }
}

/// A decimal number up to 65535 without leading zeros.
fn port(text: &str) -> Option<u16> {
    match text.as_bytes() {
        b"0" => Some(0),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => text.parse().ok(),
        _ => None,
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Progress<Header>, Malformed> {
    let known = bytes.len().min(V2_SIGNATURE.len());
    if bytes[..known] != V2_SIGNATURE[..known] {
        return Err(Malformed);
    }
    let kind = match (bytes.get(12), bytes.get(13)) {
        (None, _) => return Ok(Progress::NeedMore),
        (Some(&command), family) => Kind::of(command, family.copied())?,
    };
    let (Some(&high), low) = (bytes.get(14), bytes.get(15)) else { return Ok(Progress::NeedMore) };
    // Without its second byte a length is at least that of its first.
    let payload = usize::from(u16::from_be_bytes([high, low.copied().unwrap_or(0)]));
    if payload > MAX_V2_PAYLOAD || low.is_some() && payload < kind.least_payload() {
        return Err(Malformed);
    }
    let len = V2_FIXED + payload;
    match bytes.get(V2_FIXED..len) {
        Some(payload) if low.is_some() => {
            Ok(Progress::Done(Header { len, source: kind.source(payload).ok_or(Malformed)? }))
        }
        _ => Ok(Progress::NeedMore),
    }
}

/// What a version 2 header's addresses are.
#[derive(Clone, Copy)]
enum Kind {
    Tcp4,
    Tcp6,
    /// Not looked at; this many bytes at least.
    Other(usize),
}

impl Kind {
    /// From the bytes of version and command and, if it is there already, of family and protocol.
    fn of(command: u8, family: Option<u8>) -> Result<Kind, Malformed> {
        match (command, family) {
            // LOCAL: the rest is to be discarded, whatever it is.
            (0x20, _) | (0x21, None) => Ok(Kind::Other(0)),
            (0x21, Some(0x11)) => Ok(Kind::Tcp4),
            (0x21, Some(0x21)) => Ok(Kind::Tcp6),
            (0x21, Some(0x00)) => Ok(Kind::Other(0)),
            (0x21, Some(0x12)) => Ok(Kind::Other(12)),
            (0x21, Some(0x22)) => Ok(Kind::Other(36)),
            (0x21, Some(0x31 | 0x32)) => Ok(Kind::Other(216)),
            _ => Err(Malformed),
        }
    }

    fn least_payload(self) -> usize {
        match self {
            Kind::Tcp4 => 12,
            Kind::Tcp6 => 36,
            Kind::Other(least) => least,
        }
    }

    /// Source and destination address, then their ports. Further values behind them are not looked at.
    fn source(self, payload: &[u8]) -> Option<Source> {
        let (address, port) = match self {
            Kind::Tcp4 => (IpAddr::V4(Ipv4Addr::from(*payload.first_chunk::<4>()?)), payload.get(8..10)?),
            Kind::Tcp6 => (IpAddr::V6(Ipv6Addr::from(*payload.first_chunk::<16>()?)), payload.get(32..34)?),
            Kind::Other(_) => return Some(Source::Unspecified),
        };
        let port = u16::from_be_bytes(*port.first_chunk()?);
        Some(Source::Address(SocketAddr::new(address, port)))
    }
}

#[cfg(test)]
mod tests;
