//! The client's address behind proxies: `Forwarded` (RFC 7239) or, without it, `X-Forwarded-For`.
//!
//! It owns how far the two are believed: each proxy vouches for the address that it adds at the end, so they are read from
//! the right, and not beyond the first address that is not itself trusted. Whom to trust is the configuration's.

use std::net::{IpAddr, Ipv6Addr};

use memchr::{memchr, memchr2};
use phalanx_shared::field::is_token_byte;

use super::fields::decimal;
use super::head::Head;

/// Proxies that are followed. A longer way is a loop, or made up.
const MAX_HOPS: usize = 32;

/// The address of the client that a request comes from, as far as it can be known.
///
/// That is `peer`, unless it is trusted; then the last address in the fields that is not trusted, or the first of all if
/// they all are. What is malformed, obfuscated (`_x`) or `unknown` ends the walk, and so does the 32nd hop: the last good
/// address counts. All lines of a field are one list. Where both fields are there, `Forwarded` is read alone. IPv4
/// addresses in IPv6 form are told, and asked `trusts` for, as IPv4.
///
/// Without a peer address (a Unix socket) there is nobody to trust, and no answer; who trusts whoever connects there
/// passes an address that stands for it.
pub fn client_of(head: &Head<'_>, peer: Option<IpAddr>, trusts: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let peer = peer?.to_canonical();
    if !trusts(peer) {
        return Some(peer);
    }
    Some(match head.header("forwarded") {
        Some(_) => walk(peer, head.header_lines("forwarded").rev().flat_map(forwarded_hops), trusts),
        None => walk(peer, head.header_lines("x-forwarded-for").rev().flat_map(x_forwarded_hops), trusts),
    })
}

/// From `peer`, which is trusted, along `hops`, the nearest first.
fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, trusts: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    for hop in hops.take(MAX_HOPS) {
        match hop {
            Some(address) => client = address,
            None => return client,
        }
        if !trusts(client) {
            return client;
        }
    }
    client
}

/// The addresses of one `X-Forwarded-For` line from the right; none for what is no address. Empty members are skipped
/// (RFC 9110, 5.6.1.2).
fn x_forwarded_hops(line: &[u8]) -> impl Iterator<Item = Option<IpAddr>> {
    line.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()).map(node)
}

/// The addresses of one `Forwarded` line from the right. A quoted string may hold commas, so the line is cut from the left;
/// one with an open quote is nothing but a malformed hop.
fn forwarded_hops(line: &[u8]) -> impl Iterator<Item = Option<IpAddr>> {
    let elements = split(line, b',').unwrap_or_else(|| vec![b"malformed"]);
    elements.into_iter().rev().filter(|element| !element.is_empty()).map(forwarded_for)
}

/// The address in the `for` of an element; none if there is not exactly one, or the element is malformed.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut address = None;
    for pair in split(element, b';')?.into_iter().filter(|pair| !pair.is_empty()) {
        let equals = memchr(b'=', pair)?;
        let (name, value) = (&pair[..equals], unquote(&pair[equals + 1..])?);
        if name.is_empty() || !name.iter().all(|&byte| is_token_byte(byte)) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") && address.replace(node(value)?).is_some() {
            return None;
        }
    }
    address
}

/// The parts of `text` between separators outside quotes, trimmed; none if a quote is left open.
fn split(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = memchr2(separator, b'"', &text[at..]).map(|found| at + found) {
        if text[found] == separator {
            parts.push(text[start..found].trim_ascii());
            (start, at) = (found + 1, found + 1);
        } else {
            at = found + 1 + closing_quote(&text[found + 1..])? + 1;
        }
    }
    parts.push(text[start..].trim_ascii());
    Some(parts)
}

/// Where the quoted string ends whose inside `text` begins with.
fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        match text[at] {
            b'"' => return Some(at),
            _ => at += 2,
        }
    }
}

/// The value without its quotes; none if there are quotes elsewhere, or nothing.
///
/// Unquoted, RFC 7239 allows a token only; addresses with colons and brackets are let pass here, as many proxies send them.
/// Escapes stay: no address has one.
fn unquote(value: &[u8]) -> Option<&[u8]> {
    match value {
        [b'"', inside @ .., b'"'] if closing_quote(&value[1..]) == Some(inside.len()) => Some(inside),
        [] => None,
        _ if value.iter().all(|&byte| is_token_byte(byte) || b":[]".contains(&byte)) => Some(value),
        _ => None,
    }
}

/// The address of a node (RFC 7239, 6): IPv4, IPv6 with or without brackets, with or without a port.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            (IpAddr::V6(inside.parse::<Ipv6Addr>().ok()?), port.strip_prefix(':').or(port.is_empty().then_some("0"))?)
        }
        None => {
            let (address, port) = text.split_once(':')?;
            (IpAddr::V4(address.parse().ok()?), port)
        }
    };
    is_port(port.as_bytes()).then(|| address.to_canonical())
}

/// A port number, or an obfuscated one (RFC 7239, 6.2).
fn is_port(port: &[u8]) -> bool {
    match port {
        [b'_', name @ ..] => !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte)),
        digits => digits.len() <= 5 && decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX)),
    }
}

#[cfg(test)]
mod tests;
