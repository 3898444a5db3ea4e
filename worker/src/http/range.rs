//! Byte ranges (RFC 9110, 14): one range of a representation, or all of it.
//!
//! A server may ignore `Range` (14.2), and ignores here what it would have to answer in several parts.

/// What of a representation is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All of it, as if no range had been asked for: 200.
    Whole,
    /// `len` bytes, never 0, from `offset`: 206.
    Part {
        /// The first byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Nothing that exists: 416.
    Unsatisfiable,
}

/// What a `Range` field selects of `size` bytes. Other units, several ranges and nonsense select the whole.
pub fn select(value: &[u8], size: u64) -> Selection {
    match parse(value) {
        None => Selection::Whole,
        Some(Spec::From(first)) => part(first, u64::MAX, size),
        Some(Spec::Between(first, last)) => part(first, last, size),
        Some(Spec::Last(0)) => Selection::Unsatisfiable,
        // All of nothing is satisfiable (14.1.2), but no Content-Range can say so.
        Some(Spec::Last(_)) if size == 0 => Selection::Whole,
        Some(Spec::Last(count)) => part(size.saturating_sub(count), u64::MAX, size),
    }
}

fn part(first: u64, last: u64, size: u64) -> Selection {
    match first < size {
        true => Selection::Part { offset: first, len: last.min(size - 1) - first + 1 },
        false => Selection::Unsatisfiable,
    }
}

enum Spec {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

fn parse(value: &[u8]) -> Option<Spec> {
    let (unit, set) = std::str::from_utf8(value).ok()?.split_once('=')?;
    let (first, last) = set.trim_matches([' ', '\t']).split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    match (first, last) {
        ("", last) => Some(Spec::Last(position(last)?)),
        (first, "") => Some(Spec::From(position(first)?)),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            (first <= last).then_some(Spec::Between(first, last))
        }
    }
}

/// Digits. A position that no u64 holds is as good as the last.
fn position(digits: &str) -> Option<u64> {
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn bytes(offset: u64, len: u64) -> Selection {
        Selection::Part { offset, len }
    }

    #[test]
    fn one_range_selects_a_part() {
        for (value, selection) in [
            ("bytes=0-0", bytes(0, 1)),
            ("bytes=0-99", bytes(0, 100)),
            ("bytes=0-100", bytes(0, 100)),
            ("bytes=0-", bytes(0, 100)),
            ("bytes=99-", bytes(99, 1)),
            ("bytes=99-99", bytes(99, 1)),
            ("bytes=98-18446744073709551616", bytes(98, 2)),
            ("bytes=-1", bytes(99, 1)),
            ("bytes=-100", bytes(0, 100)),
            ("bytes=-101", bytes(0, 100)),
            ("bytes=-99999999999999999999", bytes(0, 100)),
            ("BYTES=10-19", bytes(10, 10)),
            ("bytes= 10-19 ", bytes(10, 10)),
        ] {
            assert_eq!(select(value.as_bytes(), 100), selection, "{value}");
        }
    }

    #[test]
    fn what_does_not_exist_is_unsatisfiable() {
        for value in ["bytes=100-", "bytes=100-200", "bytes=99999999999999999999-", "bytes=-0"] {
            assert_eq!(select(value.as_bytes(), 100), Selection::Unsatisfiable, "{value}");
        }
        assert_eq!(select(b"bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(select(b"bytes=-5", 0), Selection::Whole);
    }

    #[test]
    fn everything_else_selects_the_whole() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=2-1",
            "bytes=0-1,3-4",
            "bytes=0-1,",
            "items=0-1",
            "bytes 0-1",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=--1",
            "bytes=0 -1",
            "bytes=0x0-0x1",
        ] {
            assert_eq!(select(value.as_bytes(), 100), Selection::Whole, "{value}");
        }
        assert_eq!(select(b"bytes=\xff-", 100), Selection::Whole);
    }
}
