//! Dates as HTTP writes them: IMF-fixdate (RFC 9110, 5.6.7), 29 bytes, always in GMT.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;

/// The last second that IMF-fixdate can tell: 31 December 9999, 23:59:59.
const LAST: u64 = 253_402_300_799;

/// `secs` after the epoch as IMF-fixdate. What is later than the year 9999 is told as its end.
pub fn format(secs: u64) -> [u8; 29] {
    let mut text = Fixed { bytes: [b' '; 29], len: 0 };
    // Fixed takes what fits; an IMF-fixdate does.
    let _ = write!(text, "{}", HttpDate::from(UNIX_EPOCH + Duration::from_secs(secs.min(LAST))));
    text.bytes
}

/// Seconds after the epoch, from any of the three forms that RFC 9110 knows.
pub fn parse(text: &[u8]) -> Option<u64> {
    let time: SystemTime = httpdate::parse_http_date(std::str::from_utf8(text).ok()?).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

struct Fixed {
    bytes: [u8; 29],
    len: usize,
}

impl Write for Fixed {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// The text of the current second, written once a second.
#[derive(Debug, Clone)]
pub struct DateCache {
    secs: u64,
    text: [u8; 29],
}

impl DateCache {
    /// A cache that holds the epoch.
    pub fn new() -> DateCache {
        DateCache { secs: 0, text: format(0) }
    }

    /// `secs` after the epoch as IMF-fixdate.
    #[inline]
    pub fn text(&mut self, secs: u64) -> &[u8; 29] {
        if self.secs != secs {
            *self = DateCache { secs, text: format(secs) };
        }
        &self.text
    }
}

impl Default for DateCache {
    fn default() -> Self {
        DateCache::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_and_read_back() {
        for (secs, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (LAST, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(&format(secs), text.as_bytes());
            assert_eq!(parse(text.as_bytes()), Some(secs));
        }
    }

    #[test]
    fn a_date_beyond_the_form_is_told_as_its_end() {
        assert_eq!(format(LAST + 1), format(LAST));
        assert_eq!(format(u64::MAX), format(LAST));
    }

    #[test]
    fn the_obsolete_forms_are_read_and_nonsense_is_not() {
        assert_eq!(parse(b"Sunday, 06-Nov-94 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse(b"Sun Nov  6 08:49:37 1994"), Some(784_111_777));
        for text in [&b""[..], b"yesterday", b"Sun, 31 Feb 1994 08:49:37 GMT", b"\xff", b"Sun, 06 Nov 1994 08:49:37"] {
            assert_eq!(parse(text), None);
        }
    }

    #[test]
    fn the_cache_follows_the_clock_both_ways() {
        let mut cache = DateCache::new();
        for secs in [0, 784_111_777, 784_111_777, 1] {
            assert_eq!(*cache.text(secs), format(secs));
        }
    }
}
