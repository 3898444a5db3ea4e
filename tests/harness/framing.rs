//! Where a response ends: its head, and the framing of its body (RFC 9112, sections 4 to 7).

use super::client::Response;
use super::readable;

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// After so many bytes.
    Length(usize),
    /// By its last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// The head of a response, and where the body that must follow it ends. `streams`: a length need not be known.
pub(super) fn parse_head(bytes: &[u8], method: &str, streams: bool) -> Result<(Response, Body), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("not ASCII: {}", readable(bytes)))?;
    if text.replace("\r\n", "").contains(['\r', '\n']) {
        return Err(format!("a stray line end: {text:?}"));
    }
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default();
    let (minor_version, rest) = match (line.strip_prefix("HTTP/1.1 "), line.strip_prefix("HTTP/1.0 ")) {
        (Some(rest), _) => (1, rest),
        (_, Some(rest)) => (0, rest),
        _ => return Err(format!("status line {line:?}")),
    };
    let (code, _reason) = rest.split_once(' ').ok_or(format!("status line without a space after the code {line:?}"))?;
    let status: u16 = code.parse().map_err(|_| format!("status line {line:?}"))?;
    if code.len() != 3 || !(100..600).contains(&status) {
        return Err(format!("status line {line:?}"));
    }
    let headers = lines.map(parse_field).collect::<Result<Vec<_>, _>>()?;
    let response = Response { status, minor_version, headers, body: Vec::new() };
    let body = body_of(&response, method, streams)?;
    Ok((response, body))
}

fn parse_field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or(format!("header {line:?}"))?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match !name.is_empty() && name.bytes().all(token) && !value.bytes().any(|byte| byte < 32 && byte != b'\t') {
        true => Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned())),
        false => Err(format!("header {line:?}")),
    }
}

/// RFC 9112, section 6.3.
fn body_of(response: &Response, method: &str, streams: bool) -> Result<Body, String> {
    let has = |name: &str| response.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
    if has("content-length") > 1 {
        return Err(format!("two lengths: {response}"));
    }
    let stated = match response.header("content-length") {
        Some(text) => Some(text.parse::<usize>().map_err(|_| format!("Content-Length {text:?}"))?),
        None => None,
    };
    let chunked = match response.header("transfer-encoding") {
        None => false,
        Some("chunked") if streams && stated.is_none() => true,
        Some(_) => return Err(format!("a transfer coding that nobody asked for: {response}")),
    };
    match (response.status, stated) {
        (100..200 | 204, _) if stated.is_some() || chunked => Err(format!("a length where none may be: {response}")),
        (100..200 | 204 | 304, _) => Ok(Body::Length(0)),
        _ if method == "HEAD" => Ok(Body::Length(0)),
        _ if chunked => Ok(Body::Chunked),
        (_, Some(length)) => Ok(Body::Length(length)),
        (_, None) if streams && response.closes() => Ok(Body::UntilClose),
        (_, None) => Err(format!("no length: {response}")),
    }
}

/// The length of a chunked body with its framing, the end included; none: more has to come. Only what this server sends is
/// accepted: no extensions, no trailers, no leading zeros.
pub(super) fn chunked_len(bytes: &[u8]) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let Some((size, data)) = chunk(bytes, at)? else { return Ok(None) };
        let end = data + size + 2;
        match bytes.get(data + size..end) {
            None => return Ok(None),
            Some(b"\r\n") if size == 0 => return Ok(Some(end)),
            Some(b"\r\n") => at = end,
            Some(other) => return Err(format!("{other:?} behind a chunk of {size} bytes")),
        }
    }
}

/// What a complete chunked body holds.
pub(super) fn without_chunks(bytes: &[u8]) -> Vec<u8> {
    let (mut body, mut at) = (Vec::new(), 0);
    while let Ok(Some((size, data))) = chunk(bytes, at) {
        body.extend_from_slice(&bytes[data..data + size]);
        at = data + size + 2;
    }
    body
}

/// The size of the chunk at `at`, and where its data begins; none: its first line is not whole.
fn chunk(bytes: &[u8], at: usize) -> Result<Option<(usize, usize)>, String> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some(len) = rest.windows(2).take(18).position(|window| window == b"\r\n") else {
        return if rest.len() < 19 { Ok(None) } else { Err(format!("chunk size {:?}", readable(&rest[..19]))) };
    };
    let digits = std::str::from_utf8(&rest[..len]).unwrap_or_default();
    let plain = digits == "0" || (digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && !digits.starts_with('0'));
    match usize::from_str_radix(digits, 16) {
        Ok(size) if plain => Ok(Some((size, at + len + 2))),
        _ => Err(format!("chunk size {digits:?}")),
    }
}
