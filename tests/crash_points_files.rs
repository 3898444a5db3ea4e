//! The table "at the instant of death" for every kind of response that files have: kept in memory, read from a cold disk by a
//! thread, compressed whole or on the way, in several parts, a listing, an error's own page. A worker kills itself at a crash
//! point; the client makes the same exchange three times on one connection, and may not be able to tell which was cut.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::harness::{self, SOON, Server, Setup, beside_others, readable, wait_until};

const MEDIUM_BYTES: usize = 40_000;
const LARGE_BYTES: usize = 3 << 20;
/// Exchanges on one connection: enough that a crash point passed once or thrice a piece falls into one of them.
const EXCHANGES: usize = 3;

/// A name, what is sent, how many responses come, what the bodies are (none: only that all of them are the same).
struct Kind {
    name: &'static str,
    request: &'static str,
    responses: usize,
    status: u16,
    body: Option<fn() -> Vec<u8>>,
}

const fn kind(name: &'static str, request: &'static str, status: u16, body: Option<fn() -> Vec<u8>>) -> Kind {
    Kind { name, request, responses: 1, status, body }
}

const KINDS: [Kind; 14] = [
    kind("kept, small", "GET /small HTTP/1.1\r\nHost: t\r\n\r\n", 200, Some(small)),
    kind("kept, over 16 KiB", "GET /medium HTTP/1.1\r\nHost: t\r\n\r\n", 200, Some(medium)),
    kind("large", "GET /large HTTP/1.1\r\nHost: t\r\n\r\n", 200, Some(large)),
    kind("gzip, whole", "GET /text.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\n", 200, None),
    kind("br, whole", "GET /text.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: br\r\n\r\n", 200, None),
    kind("zstd, whole", "GET /text.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: zstd\r\n\r\n", 200, None),
    kind("gzip, on the way", "GET /long.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\n", 200, None),
    kind("br, on the way", "GET /long.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: br\r\n\r\n", 200, None),
    kind(
        "parts of a kept one",
        "GET /medium HTTP/1.1\r\nHost: t\r\nRange: bytes=0-99,5000-5999,-500\r\n\r\n",
        206,
        None,
    ),
    kind(
        "parts of a large one",
        "GET /large HTTP/1.1\r\nHost: t\r\nRange: bytes=0-99,70000-1500000,-500\r\n\r\n",
        206,
        None,
    ),
    kind("listing", "GET /list/ HTTP/1.1\r\nHost: t\r\n\r\n", 200, None),
    kind("error page", "GET /absent HTTP/1.1\r\nHost: t\r\n\r\n", 404, Some(page)),
    kind("HEAD", "HEAD /text.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\n", 200, Some(Vec::new)),
    Kind {
        name: "pipelined behind one that waits",
        request: "GET /text.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\n\r\nGET /small HTTP/1.1\r\nHost: t\r\n\r\n\
                  GET /text.txt HTTP/1.1\r\nHost: t\r\nAccept-Encoding: br\r\n\r\n",
        responses: 3,
        status: 200,
        body: None,
    },
];

fn small() -> Vec<u8> {
    harness::pattern(1024, 1)
}

fn medium() -> Vec<u8> {
    harness::pattern(MEDIUM_BYTES, 2)
}

fn large() -> Vec<u8> {
    harness::pattern(LARGE_BYTES, 3)
}

fn page() -> Vec<u8> {
    b"<p>not here".to_vec()
}

/// Text that compresses, but not to next to nothing.
fn text(lines: usize) -> String {
    let mut number: u32 = 1;
    let mut line = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("line {number:08x} of a text that is compressed\n")
    };
    (0..lines).map(|_| line()).collect()
}

fn start(point: &str, nth: usize) -> Server {
    Setup::new(1)
        .file("small", small())
        .file("medium", medium())
        .file("large", large())
        .file("text.txt", text(1_000))
        .file("long.txt", text(40_000))
        .file("list/a", "listed")
        .file("list/b", "listed too")
        .file("404.html", page())
        .routes("[[site.route]]\npath = \"/list\"\nfiles = { root = \"{dir}/site\", listing = true }\n")
        .routes("[[site.route]]\npath = \"/absent\"\nfiles = { root = \"{dir}/site\" }\nerror_pages = { 404 = \"/404.html\" }\n")
        .environment("PHALANX_CRASH_POINT", &format!("{point}:{nth}"))
        .environment("PHALANX_DISK", "cold")
        .start()
}

/// A response without its Date.
#[derive(Debug, PartialEq, Eq)]
struct Received {
    head: String,
    body: Vec<u8>,
}

fn receive(stream: &mut TcpStream, bodyless: bool) -> Received {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(read(stream, 1, &bytes)[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let head: String =
        head.lines().filter(|line| !line.starts_with("Date: ")).map(|line| format!("{line}\n")).collect();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let body = match (bodyless, field("Content-Length: ")) {
        (true, _) => Vec::new(),
        (false, Some(length)) => read(stream, length.parse().unwrap(), head.as_bytes()),
        (false, None) => {
            assert_eq!(field("Transfer-Encoding: ").as_deref(), Some("chunked"), "{head}");
            receive_chunks(stream)
        }
    };
    Received { head, body }
}

fn receive_chunks(stream: &mut TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(read(stream, 1, &line)[0]);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        let chunk = read(stream, size + 2, &line);
        assert!(chunk.ends_with(b"\r\n"), "no end of a chunk: {}", readable(&chunk));
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

fn read(stream: &mut TcpStream, count: usize, before: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut at = 0;
    while at < count {
        match stream.read(&mut bytes[at..]) {
            Ok(0) => panic!("the end after {at} of {count} bytes behind {}", readable(before)),
            Ok(more) => at += more,
            Err(error) => panic!("{error} after {at} of {count} bytes behind {}", readable(before)),
        }
    }
    bytes
}

fn case(point: &str, kind: &Kind, nth: usize) {
    let server = start(point, nth);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let bodyless = kind.request.starts_with("HEAD");
    let mut all = Vec::new();
    for _ in 0..EXCHANGES {
        stream.write_all(kind.request.as_bytes()).unwrap();
        all.push((0..kind.responses).map(|_| receive(&mut stream, bodyless)).collect::<Vec<_>>());
    }
    for response in all.iter().flatten() {
        assert!(response.head.starts_with(&format!("HTTP/1.1 {}", kind.status)), "{}", response.head);
    }
    if let Some(body) = kind.body {
        assert!(all[0][0].body == body(), "another body of {} bytes", all[0][0].body.len());
    }
    for other in &all[1..] {
        for (one, other) in all[0].iter().zip(other) {
            assert_eq!(one.head, other.head);
            assert!(one.body == other.body, "bodies of {} and {} bytes", one.body.len(), other.body.len());
        }
    }
    drop(stream);
    let answered = (EXCHANGES * kind.responses) as u64;
    wait_until("every request is counted once", SOON, || server.status().total("requests") == answered);
    let restarts = server.status().sum("restarts");
    assert!(restarts <= 1 && (nth > 1 || restarts == 1), "{restarts} deaths: {}", server.status());
}

fn try_every_kind(point: &str) {
    let _machine = beside_others();
    let mut failed = Vec::new();
    for kind in &KINDS {
        for nth in 1..=3 {
            if catch_unwind(AssertUnwindSafe(|| case(point, kind, nth))).is_err() {
                println!("=== failed: {point} × {} × pass {nth}\n", kind.name);
                failed.push(format!("{} × pass {nth}", kind.name));
            }
        }
    }
    assert!(failed.is_empty(), "{point}: {} cases failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_file_is_not_noticed_to_come_from_two_workers_when_one_dies_around_its_handler() {
    ["after-read", "before-handler", "in-handler", "after-handler"].into_iter().for_each(try_every_kind);
}

#[test]
fn a_file_is_not_noticed_to_come_from_two_workers_when_one_dies_around_a_thread_of_its_pool() {
    ["in-pool", "after-pool"].into_iter().for_each(try_every_kind);
}

#[test]
fn a_file_is_not_noticed_to_come_from_two_workers_when_one_dies_around_a_write() {
    ["before-write", "after-partial-write", "after-write", "retiring"].into_iter().for_each(try_every_kind);
}
