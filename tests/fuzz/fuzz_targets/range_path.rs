//! `Range` fields and request paths: what is selected lies inside the size; what a path comes to stays below the root and
//! means one thing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_worker::http::path;
use phalanx_worker::http::range::{MAX_RANGES, Selection, select};

// A line with the size of the representation, a line with the field's value, the path.
fuzz_target!(|input: &[u8]| {
    let mut lines = input.splitn(3, |&byte| byte == b'\n');
    let [Some(size), Some(range), Some(path)] = [lines.next(), lines.next(), lines.next()] else { return };
    let size = std::str::from_utf8(size).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0);
    lies_inside(range, size);
    if let Ok(path) = std::str::from_utf8(path) {
        stays_below_the_root(path);
    }
});

fn lies_inside(value: &[u8], size: u64) {
    match select(value, size) {
        Selection::Whole | Selection::Unsatisfiable => {}
        Selection::Part { offset, len } => assert_parts(&[(offset, len)], size),
        Selection::Parts(parts) => {
            assert!((2..=MAX_RANGES).contains(&parts.len()));
            assert!(parts.iter().map(|(_, len)| len).sum::<u64>() < size, "as much as the whole");
            assert_parts(&parts, size);
        }
    }
}

/// None is empty, reaches beyond the end, or overlaps another.
fn assert_parts(parts: &[(u64, u64)], size: u64) {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    let mut behind = 0;
    for (offset, len) in parts {
        let end = offset.checked_add(len).expect("an end that no u64 holds");
        assert!(len > 0 && offset >= behind && end <= size, "{offset}+{len} of {size}, behind {behind}");
        behind = end;
    }
}

fn stays_below_the_root(raw: &str) {
    let Ok(decoded) = path::decode(raw) else { return };
    assert!(decoded.starts_with('/') && !decoded.bytes().any(|byte| byte.is_ascii_control()), "{decoded:?}");
    let inside = &decoded[1..];
    assert!(inside.is_empty() || !inside.strip_suffix('/').unwrap_or(inside).split('/').any(is_empty_or_dots));
    assert!(raw.starts_with('/') && decoded.len() <= raw.len());
    // What is decoded once holds no escape that a second reader would decode again without being told so.
    if !decoded.contains('%') {
        assert_eq!(path::decode(&decoded).as_deref(), Ok(decoded.as_ref()), "decoding is idempotent");
    }
}

fn is_empty_or_dots(segment: &str) -> bool {
    matches!(segment, "" | "." | "..")
}
