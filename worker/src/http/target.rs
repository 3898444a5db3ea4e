//! Request targets and authorities (RFC 9112, 3.2; RFC 3986, 3.2): their four forms, taken apart and checked.
//!
//! It owns which byte of a target is path, query or host. Decoding a path is left to `path`.

use memchr::{memchr, memchr2};

use super::head::Refusal;

/// A request target in its parts, all still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'b> {
    pub(super) path: &'b str,
    pub(super) query: Option<&'b str>,
    /// The host of the absolute form, which wins over the `Host` field (RFC 9112, 3.2.2).
    pub(super) authority: Option<&'b str>,
}

/// Takes `target` apart; `method` decides which forms are allowed.
#[inline]
pub(super) fn parse<'b>(method: &str, target: &'b str) -> Result<Target<'b>, Refusal> {
    match target.as_bytes() {
        // The authority form belongs to proxies, and this is none.
        _ if method == "CONNECT" => Err(Refusal::new(405, "CONNECT")),
        [b'/', ..] => split_query(target, None),
        b"*" if method == "OPTIONS" => Ok(Target { path: target, query: None, authority: None }),
        _ => parse_absolute(method, target),
    }
}

#[inline]
fn split_query<'b>(target: &'b str, authority: Option<&'b str>) -> Result<Target<'b>, Refusal> {
    const FRAGMENT: Refusal = Refusal::bad("a fragment in the request target");
    // A fragment never travels; what stands behind `#` would be read differently by every hop.
    match memchr2(b'?', b'#', target.as_bytes()) {
        None => Ok(Target { path: target, query: None, authority }),
        Some(at) if memchr(b'#', &target.as_bytes()[at..]).is_some() => Err(FRAGMENT),
        Some(at) => Ok(Target { path: &target[..at], query: Some(&target[at + 1..]), authority }),
    }
}

#[cold]
fn parse_absolute<'b>(method: &str, target: &'b str) -> Result<Target<'b>, Refusal> {
    let (scheme, rest) = target.split_once("://").ok_or(Refusal::bad("a malformed request target"))?;
    if scheme.eq_ignore_ascii_case("https") {
        // Nothing here is the origin that TLS would vouch for (RFC 9110, 4.2.2 and 7.4).
        return Err(Refusal::new(421, "an https target on a connection without TLS"));
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(Refusal::bad("a request target whose scheme is not http"));
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let parts = split_query(rest, Some(host_of(authority.as_bytes())?))?;
    let path = match (parts.path, method) {
        // What a proxy makes of `OPTIONS *` and passes on (RFC 9112, 3.2.4).
        ("", "OPTIONS") if parts.query.is_none() => "*",
        ("", _) => "/",
        (path, _) => path,
    };
    Ok(Target { path, ..parts })
}

/// The host of `host [":" port]`, checked.
///
/// Names may hold letters, digits, `-`, `.`, `_` and `~`. Percent-encoding and sub-delimiters, which RFC 3986 allows
/// too, stand in no name that resolves and are refused, as are userinfo and empty labels, but for that of the root at the
/// end. So is the empty host: RFC 9112, 3.2, has it sent when the target has no authority, which no http target lacks
/// (RFC 9110, 4.2.1), and some servers read it as any host, others as none.
#[inline]
pub(super) fn host_of(authority: &[u8]) -> Result<&str, Refusal> {
    let text = std::str::from_utf8(authority).map_err(|_| Refusal::bad("a malformed host"))?;
    let end = match authority.first() {
        Some(b'[') => literal_end(text)?,
        _ => memchr(b':', authority).unwrap_or(authority.len()),
    };
    let (host, port) = text.split_at(end);
    match host.starts_with('[') || is_name(host) {
        true if is_port(port) => Ok(host),
        true => Err(Refusal::bad("a malformed port")),
        false => Err(Refusal::bad("a malformed host")),
    }
}

#[inline]
fn is_name(host: &str) -> bool {
    // A dot must follow something.
    let mut last = b'.';
    for byte in host.bytes() {
        match byte {
            b'.' if last == b'.' => return false,
            b'.' | b'-' | b'_' | b'~' => last = byte,
            _ if byte.is_ascii_alphanumeric() => last = byte,
            _ => return false,
        }
    }
    !host.is_empty()
}

/// Where `[IPv6]` ends.
#[cold]
fn literal_end(authority: &str) -> Result<usize, Refusal> {
    let end = memchr(b']', authority.as_bytes()).ok_or(Refusal::bad("a malformed host"))?;
    match authority[1..end].parse::<std::net::Ipv6Addr>() {
        Ok(_) => Ok(end + 1),
        Err(_) => Err(Refusal::bad("a malformed host")),
    }
}

/// Nothing, `:`, or `:` and a port number.
#[inline]
fn is_port(text: &str) -> bool {
    match text.as_bytes() {
        [] | [b':'] => true,
        [b':', digits @ ..] => {
            digits.len() <= 5 && super::fields::decimal(digits).is_some_and(|port| port <= u64::from(u16::MAX))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_taken_apart() {
        for (method, target, path, query, authority) in [
            ("GET", "/", "/", None, None),
            ("GET", "/a/b?c=d?e", "/a/b", Some("c=d?e"), None),
            ("GET", "/?", "/", Some(""), None),
            ("GET", "//host/x", "//host/x", None, None),
            ("OPTIONS", "*", "*", None, None),
            ("OPTIONS", "http://example.org:80", "*", None, Some("example.org")),
            ("OPTIONS", "http://example.org/", "/", None, Some("example.org")),
            ("GET", "http://example.org", "/", None, Some("example.org")),
            ("GET", "HTTP://Example.org:8443/a?b", "/a", Some("b"), Some("Example.org")),
            ("GET", "http://example.org?b=/c", "/", Some("b=/c"), Some("example.org")),
            ("GET", "http://[::1]:80/a", "/a", None, Some("[::1]")),
        ] {
            assert_eq!(parse(method, target), Ok(Target { path, query, authority }), "{method} {target}");
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for (method, target, status) in [
            ("GET", "*", 400),
            ("GET", "index.html", 400),
            ("GET", "example.org:80", 400),
            ("GET", "ftp://example.org/", 400),
            ("GET", "http:///a", 400),
            ("GET", "http://user@example.org/", 400),
            ("GET", "http://user:password@example.org/", 400),
            ("GET", "http://example.org:80:80/", 400),
            ("GET", "/a#b", 400),
            ("GET", "http:/a", 400),
            ("GET", "http://", 400),
            ("GET", "http://?a", 400),
            ("GET", "http://:80/", 400),
            ("GET", "http://a:65536/", 400),
            ("GET", "http://a:x/", 400),
            ("GET", "http://a..b/", 400),
            ("GET", "http://@a/", 400),
            ("GET", "http://a\\b/", 400),
            ("GET", "http://a%2fb/", 400),
            ("GET", "http://[::1/", 400),
            ("GET", "http://a#/", 400),
            ("GET", "://a/", 400),
            ("GET", "", 400),
            ("GET", "?a", 400),
            ("GET", "*?a", 400),
            ("OPTIONS", "*?a", 400),
            ("OPTIONS", "", 400),
            ("CONNECT", "example.org:443", 405),
            ("CONNECT", "/", 405),
            ("OPTIONS", "*a", 400),
        ] {
            assert_eq!(parse(method, target).map_err(|refusal| refusal.status), Err(status), "{method} {target}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_at_most_a_port() {
        for (authority, host) in [
            ("example.org", "example.org"),
            ("example.org:", "example.org"),
            ("example.org:0", "example.org"),
            ("example.org:65535", "example.org"),
            ("my_host-1.local.", "my_host-1.local."),
            ("a.", "a."),
            ("~", "~"),
            ("127.0.0.1:8080", "127.0.0.1"),
            ("a:00080", "a"),
            ("[::]", "[::]"),
            ("[::1]:", "[::1]"),
            ("[::1]:65535", "[::1]"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]"),
        ] {
            assert_eq!(host_of(authority.as_bytes()), Ok(host), "{authority}");
        }
        for authority in [
            "",
            ":80",
            "a b",
            ".",
            ".a",
            "a..b",
            "a..",
            "..",
            "a:65536",
            "a:000080",
            "a: 80",
            "a:80 ",
            " a",
            "[::1]:65536",
            "[::1]:x",
            "[::1",
            "[v1.a]",
            "[::1]]",
            "[127.0.0.1]",
            "a:123456",
            "a:x",
            "a:+1",
            "a:-1",
            "a:80:80",
            "a@b",
            "a/b",
            "a?b",
            "a,b",
            "a%00",
            "[::1",
            "[]",
            "[::1]x",
            "[::1]80",
            "[::g]",
            "[fe80::1%25eth0]",
            "::1",
            "a\\b",
            "\u{e4}",
            "a;b",
        ] {
            assert!(host_of(authority.as_bytes()).is_err(), "{authority}");
        }
        assert!(host_of(b"\xff").is_err());
    }
}
