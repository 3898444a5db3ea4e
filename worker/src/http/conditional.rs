//! Conditional requests (RFC 9110, 13): whether a representation is sent, known already, or not the one that was meant.
//!
//! It owns the order of evaluation and the comparison of validators. What the validators are is left to the service.

use super::date;
use super::head::Head;

/// The validators of the representation as it is now.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// The opaque tag, with its quotes and without `W/`.
    pub etag: &'a str,
    /// The tag is weak: equal tags mean equivalent bytes, not equal ones (RFC 9110, 8.8.1).
    pub weak: bool,
    /// `Last-Modified`, in seconds after the epoch.
    pub modified: u64,
}

/// What the preconditions came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there had been none.
    Proceed,
    /// The peer has it: 304.
    NotModified,
    /// It is not what the peer meant: 412.
    Failed,
}

/// Evaluates the preconditions of a request for a representation that exists, in the order of RFC 9110, 13.2.2.
pub fn evaluate(head: &Head<'_>, now: &Validators<'_>) -> Outcome {
    if !is_the_one_meant(head, now) {
        return Outcome::Failed;
    }
    let safe = matches!(head.method, "GET" | "HEAD");
    match (is_known(head, now, safe), safe) {
        (false, _) => Outcome::Proceed,
        (true, true) => Outcome::NotModified,
        (true, false) => Outcome::Failed,
    }
}

/// `If-Match` or, without it, `If-Unmodified-Since` (13.1.1, 13.1.4).
fn is_the_one_meant(head: &Head<'_>, now: &Validators<'_>) -> bool {
    if head.header("if-match").is_some() {
        return head.header_lines("if-match").any(|value| lists(value, now, Compare::Strong));
    }
    date_of(head, "if-unmodified-since").is_none_or(|since| now.modified <= since)
}

/// `If-None-Match` or, without it and for GET and HEAD only, `If-Modified-Since` (13.1.2, 13.1.3).
fn is_known(head: &Head<'_>, now: &Validators<'_>, safe: bool) -> bool {
    if head.header("if-none-match").is_some() {
        return head.header_lines("if-none-match").any(|value| lists(value, now, Compare::Weak));
    }
    safe && date_of(head, "if-modified-since").is_some_and(|since| now.modified <= since)
}

/// `If-Range` allows the range to be sent: it is absent, or names exactly this representation (13.1.5). `epoch_seconds`
/// is the time of the request.
///
/// No weak tag does. A date does only if its second was over when the request came: before that, contents of the same
/// date may still follow (8.8.2.2).
pub fn allows_range(head: &Head<'_>, now: &Validators<'_>, epoch_seconds: u64) -> bool {
    let mut lines = head.header_lines("if-range");
    match (lines.next(), lines.next()) {
        (None, _) => true,
        (Some(_), Some(_)) => false,
        (Some(tag @ [b'"', ..]), None) => !now.weak && tag == now.etag.as_bytes(),
        (Some(value), None) => date::parse(value) == Some(now.modified) && now.modified < epoch_seconds,
    }
}

/// The date of a field; none if it is malformed or stands there several times (13.1.3, 13.1.4: then it is ignored).
fn date_of(head: &Head<'_>, name: &str) -> Option<u64> {
    let mut lines = head.header_lines(name);
    match (lines.next(), lines.next()) {
        (Some(value), None) => date::parse(value),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compare {
    Strong,
    Weak,
}

/// The list is `*` or holds the tag of `now`; where a strong comparison is asked for, no weak tag equals another
/// (8.8.3.2). Reading ends where the list is malformed; what stood before it counts.
fn lists(list: &[u8], now: &Validators<'_>, compare: Compare) -> bool {
    if list == b"*" {
        return true;
    }
    let mut rest = list;
    while let Some((weak, tag, behind)) = next_tag(rest) {
        if tag == now.etag.as_bytes() && (compare == Compare::Weak || !(weak || now.weak)) {
            return true;
        }
        rest = behind;
    }
    false
}

/// The next tag of a list: whether it is weak, the tag with its quotes, what follows. Commas may stand in a tag.
fn next_tag(list: &[u8]) -> Option<(bool, &[u8], &[u8])> {
    let start = list.iter().position(|byte| !b", \t".contains(byte))?;
    let (weak, list) = match &list[start..] {
        [b'W', b'/', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let [b'"', inside @ ..] = list else { return None };
    let end = memchr::memchr(b'"', inside)? + 2;
    Some((weak, &list[..end], &list[end..]))
}

#[cfg(test)]
mod tests {
    use super::super::head::{HeaderScratch, Progress, parse};
    use super::*;

    const NOW: Validators<'static> = Validators { etag: "\"a,b\"", weak: false, modified: 784_111_777 };
    const WEAK: Validators<'static> = Validators { weak: true, ..NOW };
    const LONG_AFTER: u64 = NOW.modified + 1000;
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn with<T>(method: &str, lines: &[(&str, &str)], look: impl FnOnce(&Head<'_>) -> T) -> T {
        let fields: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let text = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut scratch = HeaderScratch::new();
        match parse(text.as_bytes(), 1024, &mut scratch) {
            Ok(Progress::Done(head)) => look(&head),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn allows(lines: &[(&str, &str)], validators: &Validators<'_>, epoch_seconds: u64) -> bool {
        with("GET", lines, |head| allows_range(head, validators, epoch_seconds))
    }

    fn outcome(method: &str, lines: &[(&str, &str)]) -> Outcome {
        with(method, lines, |head| evaluate(head, &NOW))
    }

    #[test]
    fn if_none_match_knows_tags_lists_and_stars() {
        for (value, expected) in [
            ("\"a,b\"", Outcome::NotModified),
            ("W/\"a,b\"", Outcome::NotModified),
            ("*", Outcome::NotModified),
            ("\"x\", W/\"y\",, \"a,b\"", Outcome::NotModified),
            ("\"x\"", Outcome::Proceed),
            ("\"a\", \"b\"", Outcome::Proceed),
            ("a,b", Outcome::Proceed),
            ("\"a,b", Outcome::Proceed),
            ("\"x\", nonsense, \"a,b\"", Outcome::Proceed),
            ("", Outcome::Proceed),
        ] {
            assert_eq!(outcome("GET", &[("If-None-Match", value)]), expected, "{value}");
        }
        assert_eq!(outcome("HEAD", &[("If-None-Match", "\"x\""), ("If-None-Match", "*")]), Outcome::NotModified);
        assert_eq!(outcome("PUT", &[("If-None-Match", "*")]), Outcome::Failed);
    }

    #[test]
    fn if_modified_since_counts_only_without_if_none_match() {
        for (value, expected) in [
            (EARLIER, Outcome::Proceed),
            (SAME, Outcome::NotModified),
            (LATER, Outcome::NotModified),
            ("nonsense", Outcome::Proceed),
        ] {
            assert_eq!(outcome("GET", &[("If-Modified-Since", value)]), expected, "{value}");
        }
        assert_eq!(outcome("GET", &[("If-Modified-Since", LATER), ("If-None-Match", "\"x\"")]), Outcome::Proceed);
        assert_eq!(outcome("POST", &[("If-Modified-Since", LATER)]), Outcome::Proceed);
    }

    #[test]
    fn if_match_and_if_unmodified_since_fail_what_has_changed() {
        for (lines, expected) in [
            ([("If-Match", "\"a,b\"")], Outcome::Proceed),
            ([("If-Match", "*")], Outcome::Proceed),
            ([("If-Match", "W/\"a,b\"")], Outcome::Failed),
            ([("If-Match", "\"x\"")], Outcome::Failed),
            ([("If-Unmodified-Since", SAME)], Outcome::Proceed),
            ([("If-Unmodified-Since", EARLIER)], Outcome::Failed),
            ([("If-Unmodified-Since", "nonsense")], Outcome::Proceed),
        ] {
            assert_eq!(outcome("GET", &lines), expected, "{lines:?}");
        }
        assert_eq!(outcome("GET", &[("If-Match", "*"), ("If-Unmodified-Since", EARLIER)]), Outcome::Proceed);
        assert_eq!(outcome("GET", &[("If-Match", "\"x\""), ("If-None-Match", "*")]), Outcome::Failed);
    }

    #[test]
    fn if_range_wants_exactly_this_representation() {
        for (value, allowed) in [
            ("\"a,b\"", true),
            ("W/\"a,b\"", false),
            ("\"x\"", false),
            (SAME, true),
            (EARLIER, false),
            (LATER, false),
            ("nonsense", false),
            ("*", false),
        ] {
            assert_eq!(allows(&[("If-Range", value)], &NOW, LONG_AFTER), allowed, "{value}");
        }
        assert!(allows(&[], &NOW, LONG_AFTER));
        assert!(!allows(&[("If-Range", "\"a,b\""), ("If-Range", "\"a,b\"")], &NOW, LONG_AFTER));
        assert!(!allows(&[("If-Range", SAME), ("If-Range", SAME)], &NOW, LONG_AFTER));
    }

    #[test]
    fn if_range_knows_no_weak_tag_and_no_date_of_a_second_that_goes_on() {
        for value in ["\"a,b\"", "W/\"a,b\"", "*"] {
            assert!(!allows(&[("If-Range", value)], &WEAK, LONG_AFTER), "{value}");
        }
        for (epoch_seconds, allowed) in
            [(0, false), (NOW.modified - 1, false), (NOW.modified, false), (NOW.modified + 1, true)]
        {
            assert_eq!(allows(&[("If-Range", SAME)], &NOW, epoch_seconds), allowed, "{epoch_seconds}");
            assert_eq!(allows(&[("If-Range", SAME)], &WEAK, epoch_seconds), allowed, "{epoch_seconds}");
            assert!(allows(&[("If-Range", "\"a,b\"")], &NOW, epoch_seconds));
            assert!(allows(&[], &WEAK, epoch_seconds));
        }
    }

    #[test]
    fn a_weak_tag_answers_if_none_match_and_never_if_match() {
        let outcome = |lines: &[(&str, &str)]| with("GET", lines, |head| evaluate(head, &WEAK));
        for value in ["\"a,b\"", "W/\"a,b\"", "*"] {
            assert_eq!(outcome(&[("If-None-Match", value)]), Outcome::NotModified, "{value}");
        }
        assert_eq!(outcome(&[("If-None-Match", "W/\"x\"")]), Outcome::Proceed);
        assert_eq!(outcome(&[("If-Match", "\"a,b\"")]), Outcome::Failed);
        assert_eq!(outcome(&[("If-Match", "W/\"a,b\"")]), Outcome::Failed);
        assert_eq!(outcome(&[("If-Match", "*")]), Outcome::Proceed);
    }

    #[test]
    fn the_order_is_that_of_the_rfc() {
        for (lines, expected) in [
            // Step 1 before 3, and without step 2.
            (&[("If-Match", "\"a,b\""), ("If-None-Match", "\"a,b\"")][..], Outcome::NotModified),
            (&[("If-Match", "\"x\""), ("If-None-Match", "\"a,b\"")], Outcome::Failed),
            (&[("If-Match", "\"x\""), ("If-Unmodified-Since", LATER)], Outcome::Failed),
            // Step 2 before 3 and 4.
            (&[("If-Unmodified-Since", EARLIER), ("If-None-Match", "\"a,b\"")], Outcome::Failed),
            (&[("If-Unmodified-Since", SAME), ("If-None-Match", "\"a,b\"")], Outcome::NotModified),
            (&[("If-Unmodified-Since", LATER), ("If-Modified-Since", LATER)], Outcome::NotModified),
            // Step 3 without 4.
            (&[("If-None-Match", "\"x\""), ("If-Modified-Since", LATER)], Outcome::Proceed),
            (&[("If-None-Match", "\"a,b\""), ("If-Modified-Since", EARLIER)], Outcome::NotModified),
            // An empty field is there nevertheless.
            (&[("If-Match", "")], Outcome::Failed),
            (&[("If-None-Match", ""), ("If-Modified-Since", LATER)], Outcome::Proceed),
        ] {
            assert_eq!(outcome("GET", lines), expected, "{lines:?}");
            assert_eq!(outcome("HEAD", lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn dates_that_are_malformed_or_several_are_ignored() {
        for name in ["If-Modified-Since", "If-Unmodified-Since"] {
            for lines in [&[(name, "")][..], &[(name, "0")], &[(name, "Sun, 06 Nov 1994 08:49:36 CET")]] {
                assert_eq!(outcome("GET", lines), Outcome::Proceed, "{lines:?}");
            }
            assert_eq!(outcome("GET", &[(name, SAME), (name, LATER)]), Outcome::Proceed);
            assert_eq!(outcome("GET", &[(name, EARLIER), (name, EARLIER)]), Outcome::Proceed);
        }
    }
}
