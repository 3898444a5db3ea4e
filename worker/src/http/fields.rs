//! The fields of a head that decide about the message itself: host, framing, persistence, expectation.
//!
//! It owns which combinations of them are refused (RFC 9112, 3.2, 6 and 9.3; RFC 9110, 10.1.1). Every other field is
//! left to whoever asks the head for it.

use httparse::Header;
use phalanx_shared::field::is_token_byte;

use super::head::{Framing, Refusal};
use super::target;

/// Options that all `Connection` lines together may hold; peers send two or three. Those behind could only be ignored,
/// and `close` could be among them.
const MAX_CONNECTION_OPTIONS: usize = 32;

/// The fields that decide about the message itself, gathered in one pass.
#[derive(Default)]
pub(super) struct Fields<'b> {
    pub(super) host: Option<&'b str>,
    length: Option<u64>,
    codings: Codings,
    options: usize,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) expect_continue: bool,
}

/// What the `Transfer-Encoding` lines said so far.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Codings {
    #[default]
    Absent,
    /// `chunked`, once, and nothing else.
    Chunked,
    /// Codings of another kind, and then `chunked`.
    UnknownThenChunked,
    /// Codings of another kind only, so far.
    Unknown,
}

impl<'b> Fields<'b> {
    /// Reads every field of a head; refuses what cannot be, and HTTP/1.1 without a `Host`.
    #[inline]
    pub(super) fn read(headers: &[Header<'b>], minor_version: u8) -> Result<Fields<'b>, Refusal> {
        let mut fields = Fields::default();
        for header in headers {
            // The length sorts out nearly all the fields that do not matter here, for a compare and a jump.
            match header.name.len() {
                4 if header.name.eq_ignore_ascii_case("host") => fields.host(header.value)?,
                6 if header.name.eq_ignore_ascii_case("expect") => fields.expect(header.value, minor_version)?,
                10 if header.name.eq_ignore_ascii_case("connection") => fields.connection(header.value)?,
                14 if header.name.eq_ignore_ascii_case("content-length") => fields.content_length(header.value)?,
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => fields.codings(header.value)?,
                _ => {}
            }
        }
        match (fields.host, minor_version) {
            (None, 1) => Err(Refusal::bad("HTTP/1.1 without a Host")),
            _ => Ok(fields),
        }
    }

    /// One, and only one, and well formed (RFC 9112, 3.2).
    fn host(&mut self, value: &'b [u8]) -> Result<(), Refusal> {
        match self.host.replace(target::host_of(value)?) {
            None => Ok(()),
            Some(_) => Err(Refusal::bad("several Host fields")),
        }
    }

    /// An HTTP/1.0 peer cannot read a 100, so what it expects is ignored (RFC 9110, 10.1.1).
    fn expect(&mut self, value: &[u8], minor_version: u8) -> Result<(), Refusal> {
        if minor_version == 0 {
            return Ok(());
        }
        self.expect_continue = value.eq_ignore_ascii_case(b"100-continue");
        if self.expect_continue { Ok(()) } else { Err(Refusal::new(417, "an expectation that is not 100-continue")) }
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in list(value) {
            self.options += 1;
            if self.options > MAX_CONNECTION_OPTIONS {
                return Err(Refusal::bad("more Connection options than the limit"));
            }
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(())
    }

    /// Digits only; a second field is refused even if it says the same (stricter than RFC 9112, 6.3, allows).
    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let length = decimal(value).ok_or(Refusal::bad("a malformed Content-Length"))?;
        match self.length.replace(length) {
            None => Ok(()),
            Some(_) => Err(Refusal::bad("several Content-Length fields")),
        }
    }

    /// All lines together are one list, in which `chunked` may only be the last, once (RFC 9112, 6.1).
    fn codings(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for coding in list(value) {
            if coding.is_empty() || !coding.iter().all(|&byte| is_token_byte(byte)) {
                return Err(Refusal::bad("a malformed Transfer-Encoding"));
            }
            self.codings = match (self.codings, coding.eq_ignore_ascii_case(b"chunked")) {
                (Codings::Absent, true) => Codings::Chunked,
                (Codings::Unknown, true) => Codings::UnknownThenChunked,
                (Codings::Absent | Codings::Unknown, false) => Codings::Unknown,
                (Codings::Chunked | Codings::UnknownThenChunked, _) => {
                    return Err(Refusal::bad("a Transfer-Encoding in which chunked is not the last"));
                }
            };
        }
        Ok(())
    }

    /// How the body ends, once all the fields are in.
    #[inline]
    pub(super) fn framing(&self, minor_version: u8) -> Result<Framing, Refusal> {
        match (self.codings, self.length) {
            (Codings::Absent, None) => Ok(Framing::None),
            (Codings::Absent, Some(length)) => Ok(Framing::Length(length)),
            (_, Some(_)) => Err(Refusal::bad("both Content-Length and Transfer-Encoding")),
            _ if minor_version == 0 => Err(Refusal::bad("Transfer-Encoding in HTTP/1.0")),
            (Codings::Chunked, None) => Ok(Framing::Chunked),
            (Codings::Unknown | Codings::UnknownThenChunked, None) => {
                Err(Refusal::new(501, "a transfer coding other than chunked"))
            }
        }
    }
}

/// The elements of a comma-separated list, trimmed; empty ones included.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// A number of digits only, that fits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[(&'static str, &'static str)], minor_version: u8) -> Result<Framing, u16> {
        let headers: Vec<_> = lines.iter().map(|&(name, value)| Header { name, value: value.as_bytes() }).collect();
        Fields::read(&headers, minor_version)
            .and_then(|fields| fields.framing(minor_version))
            .map_err(|refusal| refusal.status)
    }

    #[test]
    fn codings_are_one_list_over_all_lines() {
        for (values, framing) in [
            (&["chunked"][..], Ok(Framing::Chunked)),
            (&["CHUNKED"], Ok(Framing::Chunked)),
            (&["gzip"], Err(501)),
            (&["identity"], Err(501)),
            (&["gzip, chunked"], Err(501)),
            (&["gzip", "chunked"], Err(501)),
            (&["chunked", "chunked"], Err(400)),
            (&["chunked", "gzip"], Err(400)),
            (&["gzip, chunked", "gzip"], Err(400)),
            (&["chunked,"], Err(400)),
            (&[",chunked"], Err(400)),
            (&[""], Err(400)),
            (&["chunked;q=1"], Err(400)),
            (&["chun ked"], Err(400)),
            (&["\"chunked\""], Err(400)),
        ] {
            let mut lines = vec![("Host", "a")];
            lines.extend(values.iter().map(|&value| ("Transfer-Encoding", value)));
            assert_eq!(read(&lines, 1), framing, "{values:?}");
        }
    }

    #[test]
    fn connection_options_are_counted_over_all_lines() {
        fn closes(values: &[String]) -> Result<bool, u16> {
            let lines = values.iter().map(|value| Header { name: "Connection", value: value.as_bytes() });
            let headers: Vec<_> = lines.collect();
            Fields::read(&headers, 0).map(|fields| fields.close).map_err(|refusal| refusal.status)
        }
        let with = |before: usize| format!("{}close", "x,".repeat(before));
        assert_eq!(closes(&[with(MAX_CONNECTION_OPTIONS - 1)]), Ok(true));
        assert_eq!(closes(&[with(MAX_CONNECTION_OPTIONS)]), Err(400));
        assert_eq!(closes(&[",".repeat(MAX_CONNECTION_OPTIONS - 2), "close".to_owned()]), Ok(true));
        assert_eq!(closes(&[",".repeat(MAX_CONNECTION_OPTIONS - 1), "close".to_owned()]), Err(400));
    }

    #[test]
    fn a_number_has_only_digits_and_fits() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"007"), Some(7));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for wrong in ["18446744073709551616", "99999999999999999999", "", "+1", "-1", " 1", "1 ", "0x1", "1_0", "1.0"] {
            assert_eq!(decimal(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
