//! Request paths: decoded and normalised (RFC 3986, 2.1 and 5.2.4), or refused.
//!
//! It owns that a path never climbs above its root and never means two things. Which file or route it names is left to
//! `service`.

use std::borrow::Cow;

use memchr::memchr;

use super::head::Refusal;

/// The path that `raw` means: it begins with `/`, holds no empty, `.` or `..` segment, and ends in `/` if `raw` does or
/// if its last segment is a dot segment. Costs no allocation if `raw` is clean already.
///
/// Refused are: an invalid escape, NUL and other control bytes, what is not UTF-8, `..` above the root, and an encoded
/// slash (`%2F`): it is data to the one who sent it and a separator to a file system. A backslash is an ordinary byte.
#[inline]
pub fn decode(raw: &str) -> Result<Cow<'_, str>, Refusal> {
    match is_clean(raw.as_bytes()) {
        true => Ok(Cow::Borrowed(raw)),
        false => normalise(raw).map(Cow::Owned),
    }
}

/// Nothing to decode, to resolve, or to refuse.
#[inline]
fn is_clean(raw: &[u8]) -> bool {
    let mut last = 0;
    for &byte in raw {
        match byte {
            b'%' | 0..=0x1f | 0x7f => return false,
            // Any segment that begins with a dot takes the long way; only some of them need it.
            b'/' | b'.' if last == b'/' => return false,
            _ => last = byte,
        }
    }
    raw.first() == Some(&b'/')
}

#[cold]
fn normalise(raw: &str) -> Result<String, Refusal> {
    if !raw.starts_with('/') {
        return Err(Refusal::bad("a path that does not begin with a slash"));
    }
    let decoded = unescape(raw.as_bytes())?;
    if decoded.iter().any(u8::is_ascii_control) {
        return Err(Refusal::bad("a control byte in the path"));
    }
    let decoded = std::str::from_utf8(&decoded).map_err(|_| Refusal::bad("a path that is not UTF-8"))?;
    resolve(decoded)
}

fn unescape(raw: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr(b'%', rest) {
        decoded.extend_from_slice(&rest[..at]);
        decoded.push(match rest.get(at + 1..at + 3).and_then(escaped) {
            None => return Err(Refusal::bad("an invalid escape in the path")),
            Some(b'/') => return Err(Refusal::bad("an encoded slash in the path")),
            Some(byte) => byte,
        });
        rest = &rest[at + 3..];
    }
    decoded.extend_from_slice(rest);
    Ok(decoded)
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(digits[at]).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Drops empty and `.` segments; `..` drops the one before it.
fn resolve(path: &str) -> Result<String, Refusal> {
    let mut resolved = String::with_capacity(path.len());
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => match resolved.rfind('/') {
                Some(at) => resolved.truncate(at),
                None => return Err(Refusal::bad("a path that climbs above the root")),
            },
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
            }
        }
    }
    if ends_in_slash {
        resolved.push('/');
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_path_is_borrowed() {
        for raw in ["/", "/a", "/a/", "/a/b.html", "/a.b/c..d", "/\u{e4}", "/a\\b", "/a b"] {
            assert!(matches!(decode(raw), Ok(Cow::Borrowed(path)) if path == raw), "{raw}");
        }
    }

    #[test]
    fn a_path_is_decoded_once_and_normalised() {
        for (raw, path) in [
            ("//", "/"),
            ("/./", "/"),
            ("/.", "/"),
            ("///a///b//", "/a/b/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/a/%2e%2e/b", "/b"),
            ("/a/%2E./b", "/b"),
            ("/a/.%2e", "/"),
            ("/%61%62", "/ab"),
            ("/%C3%A4", "/\u{e4}"),
            ("/a%20b", "/a b"),
            ("/a%5cb", "/a\\b"),
            ("/a%5C..%5Cb", "/a\\..\\b"),
            ("/%252e%252e/a", "/%2e%2e/a"),
            ("/%3f%23", "/?#"),
            ("/.git/config", "/.git/config"),
            ("/...", "/..."),
            ("/..a", "/..a"),
            ("/a/b/c/../../d/", "/a/d/"),
            ("/a/b/../..", "/"),
        ] {
            assert_eq!(decode(raw).as_deref(), Ok(path), "{raw}");
        }
    }

    #[test]
    fn what_means_two_things_or_climbs_is_refused() {
        for raw in [
            "",
            "*",
            "a",
            "?",
            "/..",
            "/../",
            "/../a",
            "/a/../..",
            "/a/../../b",
            "/%2e%2e/a",
            "/./..",
            "//..",
            "/%2f",
            "/a%2Fb",
            "/..%2f..%2fetc",
            "/%",
            "/%a",
            "/%zz",
            "/%0",
            "/%+1",
            "/%-1",
            "/%00",
            "/a%00.html",
            "/%0a",
            "/%0D",
            "/%7f",
            "/a\x01",
            "/\x7f",
            "/%ff",
            "/%c3",
            "/%c0%ae%c0%ae/",
            "/%u002e",
            "/%\u{e4}",
        ] {
            assert_eq!(decode(raw).map_err(|refusal| refusal.status), Err(400), "{raw:?}");
        }
    }

    #[test]
    fn decoding_what_was_decoded_changes_nothing_more() {
        for raw in ["/a/../b//c/./", "/%61/%2e/b", "/x/y/../z"] {
            let once = decode(raw).unwrap().into_owned();
            assert!(matches!(decode(&once), Ok(Cow::Borrowed(_))), "{once}");
        }
    }
}
