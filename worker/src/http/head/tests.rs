//! Heads as tables: well formed, malformed, smuggling, at the bounds.

use super::*;

const LIMIT: usize = 1024;

/// What a reading came to, in a form that outlives the scratch.
fn read(bytes: &[u8]) -> Result<Progress<usize>, u16> {
    let mut scratch = HeaderScratch::new();
    match parse(bytes, LIMIT, &mut scratch) {
        Ok(Progress::NeedMore) => Ok(Progress::NeedMore),
        Ok(Progress::Done(head)) => Ok(Progress::Done(head.len)),
        Err(refusal) => Err(refusal.status),
    }
}

fn with_head<T>(text: &str, look: impl FnOnce(&Head<'_>) -> T) -> T {
    let mut scratch = HeaderScratch::new();
    match parse(text.as_bytes(), LIMIT, &mut scratch) {
        Ok(Progress::Done(head)) => look(&head),
        other => panic!("{text:?}: {other:?}"),
    }
}

/// `GET / HTTP/1.1` with a host and these lines.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

#[test]
fn well_formed_heads_are_read_to_their_end() {
    for text in [
        "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%20?%%% HTTP/1.1\r\nhOST:a:80\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nEmpty:\r\nX: \u{e4}\tb\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.0\r\nExpect: miracles\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent_Length: x\r\n\r\n",
    ] {
        assert_eq!(read(text.as_bytes()), Ok(Progress::Done(text.len())), "{text:?}");
        let pipelined = format!("{text}GET /next HT");
        assert_eq!(read(pipelined.as_bytes()), Ok(Progress::Done(text.len())), "{pipelined:?}");
    }
}

#[test]
fn a_head_cut_anywhere_needs_more() {
    let text = "\r\nPOST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for cut in 0..text.len() {
        assert_eq!(read(&text.as_bytes()[..cut]), Ok(Progress::NeedMore), "{cut}");
    }
}

#[test]
fn malformed_request_lines_are_refused() {
    for (line, status) in [
        ("GET /", 400),
        ("GET", 400),
        ("GET ", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        ("GET /\tHTTP/1.1", 400),
        ("GET / a HTTP/1.1", 400),
        ("GET /\x00 HTTP/1.1", 400),
        ("GET /\x7f HTTP/1.1", 400),
        ("GET /\x0b HTTP/1.1", 400),
        ("G\x00T / HTTP/1.1", 400),
        ("G@T / HTTP/1.1", 400),
        ("G\u{e4}T / HTTP/1.1", 400),
        ("\x16\x03\x01\x02", 400),
        ("GET /#a HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET http://u@a/ HTTP/1.1", 400),
        ("GET gopher://a/ HTTP/1.1", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1", 400),
        ("GET / HTTP/11", 400),
        ("GET / HTTP/1.1.1", 400),
        ("GET / HTTP/1.10", 400),
        ("GET / HTTP/1,1", 400),
        ("GET / HTTP /1.1", 400),
        ("GET / HTTP/a.b", 400),
        ("GET / HTTP/2.0x", 400),
        ("GET / x HTTP/2.0", 400),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/2.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET / HTTP/3.0", 505),
        ("CONNECT a:443 HTTP/1.1", 405),
    ] {
        assert_eq!(read(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()), Err(status), "{line:?}");
    }
    assert_eq!(read(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"), Err(400));
}

#[test]
fn line_ends_that_two_servers_could_read_differently_are_refused() {
    for text in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n",
        "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\rHost: a\r\n\r\n",
        "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\n",
        "GET / HT\rT",
    ] {
        assert_eq!(read(text.as_bytes()), Err(400), "{text:?}");
    }
}

#[test]
fn malformed_fields_are_refused() {
    for lines in [
        "X : a\r\n",
        "X\t: a\r\n",
        " X: a\r\n",
        "X: a\r\n b\r\n",
        "X: a\r\n\tb\r\n",
        ": a\r\n",
        "X\r\n",
        "X a\r\n",
        "X(y): a\r\n",
        "X\x00: a\r\n",
        "X: a\x00\r\n",
        "X: a\x01b\r\n",
        "X: a\x7f\r\n",
        "X: a\x0bb\r\n",
        "X\u{e4}: a\r\n",
    ] {
        assert_eq!(read(get(lines).as_bytes()), Err(400), "{lines:?}");
    }
}

#[test]
fn smuggled_framing_is_refused() {
    for (lines, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: 1,1\r\n", 400),
        ("Content-Length: +1\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: 0x10\r\n", 400),
        ("Content-Length: 1 0\r\n", 400),
        ("Content-Length: \"1\"\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 18446744073709551616\r\n", 400),
        ("Content-Length: 5,\r\n", 400),
        ("Content-Length: ,5\r\n", 400),
        ("Content-Length: 5;\r\n", 400),
        ("Content-Length: 5.0\r\n", 400),
        ("Content-Length: 1e3\r\n", 400),
        ("Content-Length: 5\r\nContent-Length:\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: x\r\n", 400),
        ("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Content-Length : 5\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked, chunked\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: \x0bchunked\r\n", 400),
        ("Transfer-Encoding: chunked\x0b\r\n", 400),
        ("Transfer-Encoding: chunked\x00\r\n", 400),
        ("Transfer-Encoding: chunked;\r\n", 400),
        ("Transfer-Encoding: chunked;a=b\r\n", 400),
        ("Transfer-Encoding: \"chunked\"\r\n", 400),
        ("Transfer-Encoding: 'chunked'x y\r\n", 400),
        ("Transfer-Encoding: chunked,\r\n", 400),
        ("Transfer-Encoding: ,chunked\r\n", 400),
        ("Transfer-Encoding:\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n", 400),
        ("Transfer-Encoding: chunked, identity\r\n", 400),
        ("Transfer-Encoding:\r\n chunked\r\n", 400),
        ("Transfer-Encoding\t: chunked\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
        ("Expect: 200-maybe\r\n", 417),
        ("Expect: 100-continue, x\r\n", 417),
        ("Expect: 100-continue\r\nExpect: x\r\n", 417),
    ] {
        assert_eq!(read(get(lines).as_bytes()), Err(status), "{lines:?}");
    }
    assert_eq!(read(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Err(400));
}

#[test]
fn a_request_names_one_host() {
    for text in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \t \r\n\r\n",
        "GET / HTTP/1.0\r\nHost:\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a..b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a#b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a?b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \u{e4}\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: http://a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a b\r\n\r\n",
    ] {
        assert_eq!(read(text.as_bytes()), Err(400), "{text:?}");
    }
    let host = |text: &str| with_head(text, |head| head.host.map(str::to_owned));
    assert_eq!(host("GET / HTTP/1.1\r\nHost: A.b:80\r\n\r\n").as_deref(), Some("A.b"));
    assert_eq!(host("GET http://b:81/ HTTP/1.1\r\nHost: a\r\n\r\n").as_deref(), Some("b"));
    assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), None);
}

#[test]
fn the_limit_counts_the_whole_head_and_is_reached_exactly() {
    let head_of = |len: usize| {
        let padding = len - get("X: \r\n").len();
        get(&format!("X: {}\r\n", "p".repeat(padding)))
    };
    assert_eq!(read(head_of(LIMIT).as_bytes()), Ok(Progress::Done(LIMIT)));
    assert_eq!(read(head_of(LIMIT + 1).as_bytes()), Err(431));
    assert_eq!(read(&head_of(LIMIT + 1).as_bytes()[..LIMIT - 1]), Ok(Progress::NeedMore));
    assert_eq!(read(&head_of(LIMIT + 1).as_bytes()[..LIMIT]), Err(431));
    let long_line = format!("GET /{} HTTP/1.1\r\n", "p".repeat(LIMIT));
    assert_eq!(read(&long_line.as_bytes()[..LIMIT - 1]), Ok(Progress::NeedMore));
    assert_eq!(read(&long_line.as_bytes()[..LIMIT]), Err(414));
    assert_eq!(read(long_line.as_bytes()), Err(414));
}

#[test]
fn a_request_line_that_fits_the_limit_is_not_what_is_too_long() {
    /// A request line of `len` bytes, CRLF included, and what follows it.
    fn with_line(len: usize) -> String {
        let padding = len - "GET / HTTP/1.1\r\n".len();
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(padding))
    }
    assert_eq!(read(with_line(LIMIT - "Host: a\r\n\r\n".len()).as_bytes()), Ok(Progress::Done(LIMIT)));
    assert_eq!(read(with_line(LIMIT - "Host: a\r\n\r\n".len() + 1).as_bytes()), Err(431));
    assert_eq!(read(with_line(LIMIT).as_bytes()), Err(431));
    assert_eq!(read(with_line(LIMIT + 1).as_bytes()), Err(414));
    // Empty lines before it count too.
    assert_eq!(read(format!("\r\n{}", with_line(LIMIT - 2)).as_bytes()), Err(431));
    assert_eq!(read(format!("\r\n{}", with_line(LIMIT - 1)).as_bytes()), Err(414));
}

#[test]
fn no_cut_of_an_oversized_head_changes_its_status() {
    let fields = get(&"X: y\r\n".repeat(LIMIT / 6));
    let line = format!("GET /{} HTTP/1.1\r\n", "p".repeat(LIMIT));
    for (text, status) in [(fields, 431), (line, 414)] {
        for cut in 0..text.len() {
            let expected = if cut < LIMIT { Ok(Progress::NeedMore) } else { Err(status) };
            assert_eq!(read(&text.as_bytes()[..cut]), expected, "{cut}");
        }
    }
}

#[test]
fn the_hundredth_field_is_read_and_the_next_refused() {
    let with = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X:\r\n".repeat(count - 1));
    assert!(matches!(read(with(MAX_HEADERS).as_bytes()), Ok(Progress::Done(_))));
    assert_eq!(read(with(MAX_HEADERS + 1).as_bytes()), Err(431));
}

#[test]
fn a_connection_is_kept_as_version_and_tokens_say() {
    for (version, lines, kept) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Close\r\n", false),
        ("1.1", "Connection: upgrade, close\r\n", false),
        ("1.1", "Connection: upgrade\r\nConnection: close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: x,keep-alive\r\n", true),
        ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
    ] {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(with_head(&text, |head| head.keep_alive), kept, "{text:?}");
    }
}

#[test]
fn framing_and_expectation_are_told() {
    for (lines, framing, expects) in [
        ("", Framing::None, false),
        ("Content-Length: 5\r\n", Framing::Length(5), false),
        ("Content-Length: 18446744073709551615\r\n", Framing::Length(u64::MAX), false),
        ("Transfer-Encoding: chunked\r\n", Framing::Chunked, false),
        ("Content-Length: 5\r\nExpect: 100-Continue\r\n", Framing::Length(5), true),
        ("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", Framing::Chunked, true),
        ("Content-Length: 0\r\nExpect: 100-continue\r\n", Framing::Length(0), false),
        ("Expect: 100-continue\r\n", Framing::None, false),
    ] {
        with_head(&get(lines), |head| {
            assert_eq!((head.framing, head.expect_continue), (framing, expects), "{lines:?}");
        });
    }
}

#[test]
fn the_parts_of_a_head_are_told() {
    with_head("PUT /a%20b?c=d HTTP/1.1\r\nHost: a\r\nX-Y: 1\r\nx-y: 2\r\n\r\n", |head| {
        assert_eq!((head.method, head.target), ("PUT", "/a%20b?c=d"));
        assert_eq!((head.path, head.query), ("/a%20b", Some("c=d")));
        assert_eq!(head.minor_version, 1);
        assert_eq!(head.header("X-y"), Some(&b"1"[..]));
        assert_eq!(head.header_lines("x-Y").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(head.header("z"), None);
        assert!(head.idempotent() && !head.is_head());
    });
    assert!(!with_head("POST / HTTP/1.0\r\n\r\n", |head| head.idempotent()));
    assert!(with_head("DELETE / HTTP/1.0\r\n\r\n", |head| head.idempotent() && !head.is_safe()));
    assert!(!with_head("get / HTTP/1.0\r\n\r\n", |head| head.idempotent()));
    assert!(with_head("HEAD / HTTP/1.0\r\n\r\n", |head| head.is_head()));
}

#[test]
fn mangled_heads_never_panic() {
    let text = get("Content-Length: 5\r\nConnection: close\r\n").into_bytes();
    for at in 0..text.len() {
        for byte in 0..=255 {
            let mut mangled = text.clone();
            mangled[at] = byte;
            let _ = read(&mangled);
            mangled.truncate(at + 1);
            let _ = read(&mangled);
        }
    }
}
