//! Byte ranges (RFC 9110, 14): one range of a representation, several, or all of it.
//!
//! It owns which bytes are sent and in which order; it leaves how several parts look on the wire to `multipart`. A server
//! may ignore `Range` (14.2), and ignores here what asks for more work than a copy of the whole would be.

/// Ranges that one request may name. More are ignored: whoever wants that many small pieces wants our work, not the bytes
/// (RFC 9110, 17.15).
pub const MAX_RANGES: usize = 32;

/// About what a further part costs in `multipart/byteranges`: a gap that is smaller is cheaper sent than left out.
const PART_OVERHEAD: u64 = 80;

/// What of a representation is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Offset and length of two to [`MAX_RANGES`] parts, in the order asked for: 206 in several parts. None is empty,
    /// overlaps another or touches one; together they are less than the whole.
    Parts(Vec<(u64, u64)>),
    /// Nothing that exists: 416.
    Unsatisfiable,
}

/// What a `Range` field selects of `size` bytes. Other units, more than [`MAX_RANGES`] ranges and nonsense anywhere in
/// the field select the whole.
///
/// Several ranges are told apart no further than is useful: those that overlap or nearly touch become one, at the place
/// of the first, and ranges that come to the whole select it.
pub fn select(value: &[u8], size: u64) -> Selection {
    match parse(value) {
        None => Selection::Whole,
        // All of nothing is satisfiable (14.1.2), but no Content-Range can say so.
        Some(specs) if size == 0 && specs.iter().any(Spec::wants_any_last) => Selection::Whole,
        Some(specs) => choose(specs.iter().filter_map(|spec| spec.resolve(size)).collect(), size),
    }
}

fn choose(spans: Vec<Span>, size: u64) -> Selection {
    match spans.as_slice() {
        [] => return Selection::Unsatisfiable,
        [span] => return Selection::Part { offset: span.start, len: span.len() },
        _ => {}
    }
    let spans = coalesce(spans);
    match spans.as_slice() {
        // Disjoint spans never add up to more than the size.
        _ if spans.iter().map(Span::len).sum::<u64>() >= size => Selection::Whole,
        [span] => Selection::Part { offset: span.start, len: span.len() },
        _ => Selection::Parts(spans.iter().map(|span| (span.start, span.len())).collect()),
    }
}

/// Joins what overlaps or nearly touches; what is joined stands where its first member stood.
fn coalesce(spans: Vec<Span>) -> Vec<Span> {
    let mut ranked: Vec<(usize, Span)> = spans.into_iter().enumerate().collect();
    ranked.sort_by_key(|(_, span)| span.start);
    let mut joined: Vec<(usize, Span)> = Vec::with_capacity(ranked.len());
    for (rank, span) in ranked {
        match joined.last_mut() {
            Some((first, last)) if span.start < last.end.saturating_add(PART_OVERHEAD) => {
                *first = rank.min(*first);
                last.end = span.end.max(last.end);
            }
            _ => joined.push((rank, span)),
        }
    }
    joined.sort_by_key(|&(rank, _)| rank);
    joined.into_iter().map(|(_, span)| span).collect()
}

/// Bytes from `start` up to `end`, at least one.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// A range as asked for.
enum Spec {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl Spec {
    /// What it means of `size` bytes; none if it is unsatisfiable.
    fn resolve(&self, size: u64) -> Option<Span> {
        let (start, end) = match *self {
            Spec::From(first) => (first, size),
            Spec::Between(first, last) => (first, last.saturating_add(1).min(size)),
            Spec::Last(count) => (size.saturating_sub(count), size),
        };
        (start < end).then_some(Span { start, end })
    }

    fn wants_any_last(&self) -> bool {
        matches!(self, Spec::Last(1..))
    }
}

/// Every range of the set; none if one of them is malformed, or there are too many.
fn parse(value: &[u8]) -> Option<Vec<Spec>> {
    let (unit, set) = std::str::from_utf8(value).ok()?.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let specs = set.split(',').take(MAX_RANGES + 1).map(spec).collect::<Option<Vec<_>>>()?;
    (specs.len() <= MAX_RANGES).then_some(specs)
}

fn spec(text: &str) -> Option<Spec> {
    let (first, last) = text.trim_matches([' ', '\t']).split_once('-')?;
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
            "bytes=0-1,",
            "bytes=,0-1",
            "bytes=0-1,,3-4",
            "bytes=0-1;3-4",
            "bytes=0-1,x",
            "bytes=0-1,4-3",
            "bytes=0-1,3-4,bytes=5-6",
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

    fn parts(parts: &[(u64, u64)]) -> Selection {
        Selection::Parts(parts.to_vec())
    }

    #[test]
    fn several_ranges_select_parts_in_the_order_asked_for() {
        for (value, selection) in [
            ("bytes=0-9,500-509", parts(&[(0, 10), (500, 10)])),
            ("bytes=500-509,0-9", parts(&[(500, 10), (0, 10)])),
            ("bytes= 0-9 ,\t500-509 ", parts(&[(0, 10), (500, 10)])),
            ("bytes=-10,0-0", parts(&[(990, 10), (0, 1)])),
            ("bytes=0-0,-1", parts(&[(0, 1), (999, 1)])),
            ("bytes=900-,0-9,500-509", parts(&[(900, 100), (0, 10), (500, 10)])),
            ("bytes=0-9,2000-", bytes(0, 10)),
            ("bytes=2000-3000,5-9,-0", bytes(5, 5)),
            ("bytes=0-9,500-509,1000-", parts(&[(0, 10), (500, 10)])),
            ("bytes=2000-,1000-1001,-0", Selection::Unsatisfiable),
        ] {
            assert_eq!(select(value.as_bytes(), 1000), selection, "{value}");
        }
        assert_eq!(select(b"bytes=0-0,5-", 0), Selection::Unsatisfiable);
        assert_eq!(select(b"bytes=0-0,-5", 0), Selection::Whole);
    }

    #[test]
    fn ranges_that_overlap_or_nearly_touch_become_one() {
        for (value, selection) in [
            ("bytes=0-9,5-14", bytes(0, 15)),
            ("bytes=5-14,0-9", bytes(0, 15)),
            ("bytes=0-9,0-9", bytes(0, 10)),
            ("bytes=0-9,10-19", bytes(0, 20)),
            ("bytes=0-99,20-29", bytes(0, 100)),
            ("bytes=0-9,89-99", bytes(0, 100)),
            ("bytes=0-9,90-99", parts(&[(0, 10), (90, 10)])),
            ("bytes=500-509,0-9,520-529", parts(&[(500, 30), (0, 10)])),
            ("bytes=600-609,0-9,580-589,300-309,20-29", parts(&[(580, 30), (0, 30), (300, 10)])),
            ("bytes=0-9,200-209,100-110,0-400", bytes(0, 401)),
            ("bytes=0-,0-,0-,0-", Selection::Whole),
            ("bytes=0-499,500-", Selection::Whole),
            ("bytes=-1000,0-0", Selection::Whole),
            ("bytes=0-459,540-999", parts(&[(0, 460), (540, 460)])),
        ] {
            assert_eq!(select(value.as_bytes(), 1000), selection, "{value}");
        }
        let far = format!("bytes=0-,{}-", u64::MAX - 1);
        assert_eq!(select(far.as_bytes(), u64::MAX), Selection::Whole);
        let ends = format!("bytes=0-0,{}-,-1", u64::MAX - 1);
        assert_eq!(select(ends.as_bytes(), u64::MAX), parts(&[(0, 1), (u64::MAX - 1, 1)]));
    }

    #[test]
    fn ranges_are_counted_and_too_many_select_the_whole() {
        let set = |count: u64| {
            let specs: Vec<String> = (0..count).map(|at| format!("{0}-{0}", at * 100)).collect();
            format!("bytes={}", specs.join(","))
        };
        let most = MAX_RANGES as u64;
        let expected: Vec<(u64, u64)> = (0..most).map(|at| (at * 100, 1)).collect();
        assert_eq!(select(set(most).as_bytes(), 1_000_000), Selection::Parts(expected));
        assert_eq!(select(set(most + 1).as_bytes(), 1_000_000), Selection::Whole);
        // What is unsatisfiable counts too.
        assert_eq!(select(format!("{},2000000-", set(most)).as_bytes(), 1_000_000), Selection::Whole);
    }

    #[test]
    fn whatever_is_selected_lies_in_the_representation() {
        let ends = ["", "0", "1", "79", "80", "499", "999", "1000", "18446744073709551615"];
        for (first, last) in ends.iter().flat_map(|first| ends.map(|last| (*first, last))) {
            for size in [0, 1, 80, 500, 1000, u64::MAX] {
                let value = format!("bytes={first}-{last},{last}-{first},-1,0-0");
                match select(value.as_bytes(), size) {
                    Selection::Parts(parts) => {
                        assert!(
                            parts.iter().all(|&(offset, len)| len > 0 && len <= size - offset),
                            "{value} of {size}"
                        );
                        assert!(parts.len() > 1 && parts.iter().map(|part| part.1).sum::<u64>() < size);
                    }
                    Selection::Part { offset, len } => assert!(len > 0 && len <= size - offset, "{value} of {size}"),
                    Selection::Whole | Selection::Unsatisfiable => {}
                }
            }
        }
    }
}
