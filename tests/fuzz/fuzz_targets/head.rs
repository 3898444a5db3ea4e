//! A request's head: however it arrives it reads the same, what it is said to hold stands in the peer's bytes, and written
//! out again it is the same request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_fuzz::cuts;
use phalanx_worker::http::{Framing, Head, HeaderScratch, Progress, Refusal, parse};

/// The default of `limits.head`, and one that short inputs reach too.
const LIMITS: [usize; 2] = [8 * 1024, 64];

fuzz_target!(|bytes: &[u8]| {
    for limit in LIMITS {
        let mut scratch = HeaderScratch::new();
        let whole = parse(bytes, limit, &mut scratch);
        if let Ok(Progress::Done(head)) = &whole {
            assert!(head.len <= bytes.len().min(limit));
            stands_in(head, bytes);
            is_unambiguous(head, bytes);
            survives_being_written_again(head);
        }
        for cut in cuts(bytes.len()) {
            agrees(bytes, cut, limit, &whole);
        }
    }
});

/// What the first `cut` bytes say fits what all of them say.
fn agrees(bytes: &[u8], cut: usize, limit: usize, whole: &Result<Progress<Head<'_>>, Refusal>) {
    let mut scratch = HeaderScratch::new();
    match (parse(&bytes[..cut], limit, &mut scratch), whole) {
        (Ok(Progress::Done(early)), Ok(Progress::Done(head))) => assert_same(&early, head),
        (Ok(Progress::NeedMore), Ok(Progress::Done(head))) => {
            assert!(cut < head.len, "{cut}: a whole head is not enough")
        }
        (Ok(Progress::NeedMore), _) => {}
        (Err(_), Err(_)) => {}
        (early, whole) => panic!("at {cut} of {}: {early:?}, then {whole:?}", bytes.len()),
    }
}

fn assert_same(one: &Head<'_>, other: &Head<'_>) {
    assert_eq!(
        (one.method, one.target, one.path, one.query, one.minor_version, one.host, one.framing),
        (other.method, other.target, other.path, other.query, other.minor_version, other.host, other.framing)
    );
    assert_eq!((one.keep_alive, one.expect_continue), (other.keep_alive, other.expect_continue));
    assert_eq!(one.headers, other.headers);
}

/// Every part is a piece of the input, but for the paths that stand for an empty one.
fn stands_in(head: &Head<'_>, bytes: &[u8]) {
    let range = bytes[..head.len].as_ptr_range();
    let inside = |part: &[u8]| {
        let part = part.as_ptr_range();
        assert!(range.start <= part.start && part.end <= range.end, "a part that is not in the input");
    };
    inside(head.method.as_bytes());
    inside(head.target.as_bytes());
    if !matches!(head.path, "/" | "*") {
        inside(head.path.as_bytes());
    }
    head.query.into_iter().chain(head.host).for_each(|part| inside(part.as_bytes()));
    for field in head.headers {
        inside(field.name.as_bytes());
        inside(field.value);
    }
}

/// What two servers could read differently has not come through.
fn is_unambiguous(head: &Head<'_>, bytes: &[u8]) {
    let text = &bytes[..head.len];
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'\r' => assert_eq!(text.get(at + 1), Some(&b'\n'), "a bare CR"),
            b'\n' => assert!(at > 0 && text[at - 1] == b'\r', "a bare LF"),
            b'\t' => {}
            byte => assert!(!byte.is_ascii_control(), "a control byte"),
        }
    }
    let lines = |name: &str| head.header_lines(name).count();
    let (lengths, codings) = (lines("content-length"), lines("transfer-encoding"));
    match head.framing {
        Framing::None => assert_eq!((lengths, codings), (0, 0)),
        Framing::Length(_) => assert_eq!((lengths, codings), (1, 0)),
        Framing::Chunked => assert!(lengths == 0 && codings > 0 && head.minor_version == 1),
    }
    assert!(lines("host") <= 1 && (head.minor_version == 0 || head.host.is_some()));
    assert!(!head.target.contains('#') && head.target.bytes().all(|byte| byte > b' '));
}

fn survives_being_written_again(head: &Head<'_>) {
    let mut text = format!("{} {} HTTP/1.{}\r\n", head.method, head.target, head.minor_version).into_bytes();
    for field in head.headers {
        text.extend([field.name.as_bytes(), b": ", field.value, b"\r\n"].concat());
    }
    text.extend(b"\r\n");
    let mut scratch = HeaderScratch::new();
    match parse(&text, text.len(), &mut scratch) {
        Ok(Progress::Done(again)) => assert_same(&again, head),
        other => panic!("written again it is {other:?}: {head:?}"),
    }
}
