//! The table of `crash_points` for responses about files, and for whatever a thread of the pool has a hand in: a worker kills
//! itself at every point, the first, second and third time it comes by, and the client cannot tell.
//!
//! A case is: a server with one worker, one point armed, its disk warm or cold; one client that makes `nth` exchanges of a
//! kind, each about a file that nobody has asked for before; then a fresh connection that asks for the same again, whose
//! answers must be the same to the byte, Date aside.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::harness::command::Directory;
use crate::harness::{
    self, Client, Failure, HELLO, Response, SOON, Setup, beside_others, decoded, text_pattern, wait_until,
};

const SMALL_BYTES: usize = 1024;
/// More than is copied into a response, less than what is kept open rather than in memory.
const KEPT_BYTES: usize = 40 * 1024;
const LARGE_BYTES: usize = 3 << 20;
const TEXT_BYTES: usize = 100 * 1024;
/// Above 1 MiB a file is compressed on its way; this much does not fit the queues of a connection.
const STREAM_BYTES: usize = 3 << 20;
/// Files of each sort: as many as there are exchanges in a case.
const COPIES: u64 = 3;

/// The files of `site` that a case asks for, by sort.
const SORTS: [(&str, Make, usize); 5] = [
    ("small", harness::pattern, SMALL_BYTES),
    ("kept", harness::pattern, KEPT_BYTES),
    ("large", harness::pattern, LARGE_BYTES),
    ("text", text_pattern, TEXT_BYTES),
    ("stream", text_pattern, STREAM_BYTES),
];

type Make = fn(usize, u64) -> Vec<u8>;

const SITE: &str = r#"
[[site]]
[[site.route]]
path = "/"
files = { root = "{root}" }
error_pages = { 404 = "/error.html" }
[[site.route]]
path = "/list"
files = { root = "{root}", listing = true }
[[site.route]]
path = "/hello"
respond = { status = 200, body = "Hello, World!", type = "text/plain" }
[[site.route]]
path = "/limited"
respond = { status = 200, body = "Hello, World!", type = "text/plain" }
limit = { rate = "1/d", burst = 1 }
"#;

/// The enumeration, and the array of all that it has.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// What is exchanged.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Kind {
            $($(#[$doc])* $kind,)*
        }

        use Kind::*;

        const KINDS: &[Kind] = &[$($kind,)*];
    };
}

kinds! {
    Small,
    Kept,
    Large,
    Gzip,
    Brotli,
    Zstd,
    StreamedGzip,
    StreamedBrotli,
    StreamedZstd,
    Range,
    LargeRange,
    Ranges,
    LargeRanges,
    Listing,
    JsonListing,
    ErrorPage,
    NotModified,
    TooMany,
    /// A request behind one that may wait for a thread.
    Behind,
    /// A request for a large file behind two others.
    LargeBehind,
}

/// One row: what is exchanged, asked for with GET or HEAD, from a warm or a cold disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    kind: Kind,
    method: &'static str,
    disk: &'static str,
}

impl Row {
    /// The requests of one exchange, each with its method.
    fn requests(self, number: usize) -> Vec<(&'static str, String)> {
        let copy = number % COPIES as usize;
        let with = |path: String, more: &str| {
            let request = format!("{} {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n", self.method);
            (self.method, request)
        };
        let hello = || with("/hello".to_owned(), "");
        match self.kind {
            Small => vec![with(format!("/small{copy}"), "")],
            Kept => vec![with(format!("/kept{copy}"), "")],
            Large => vec![with(format!("/large{copy}"), "")],
            Gzip => vec![with(format!("/text{copy}.txt"), "Accept-Encoding: gzip\r\n")],
            Brotli => vec![with(format!("/text{copy}.txt"), "Accept-Encoding: br\r\n")],
            Zstd => vec![with(format!("/text{copy}.txt"), "Accept-Encoding: zstd\r\n")],
            StreamedGzip => vec![with(format!("/stream{copy}.txt"), "Accept-Encoding: gzip\r\n")],
            StreamedBrotli => vec![with(format!("/stream{copy}.txt"), "Accept-Encoding: br\r\n")],
            StreamedZstd => vec![with(format!("/stream{copy}.txt"), "Accept-Encoding: zstd\r\n")],
            Range => vec![with(format!("/kept{copy}"), "Range: bytes=100-30000\r\n")],
            LargeRange => vec![with(format!("/large{copy}"), "Range: bytes=77-\r\n")],
            Ranges => vec![with(format!("/kept{copy}"), "Range: bytes=0-99,20000-30000,-7\r\n")],
            LargeRanges => vec![with(format!("/large{copy}"), "Range: bytes=0-99,20000-3100000,-7\r\n")],
            Listing => vec![with(format!("/list/sub{copy}/"), "")],
            JsonListing => vec![with(format!("/list/sub{copy}/"), "Accept: application/json\r\n")],
            ErrorPage => vec![with(format!("/nothing{copy}"), "")],
            NotModified => vec![with(format!("/small{copy}"), "If-None-Match: *\r\n")],
            TooMany => vec![with("/limited".to_owned(), "")],
            Behind => vec![with(format!("/kept{copy}"), ""), hello(), with(format!("/nothing{copy}"), ""), hello()],
            LargeBehind => vec![hello(), with(format!("/small{copy}"), ""), with(format!("/large{copy}"), ""), hello()],
        }
    }

    /// Its answers fill the queues of a connection.
    fn is_long(self) -> bool {
        let long = [Large, StreamedGzip, StreamedBrotli, StreamedZstd, LargeRange, LargeRanges, LargeBehind];
        self.method == "GET" && long.contains(&self.kind)
    }

    /// A thread of the pool has a hand in each exchange.
    fn needs_pool(self) -> bool {
        self.disk == "cold" && self.kind != TooMany
    }

    /// Panics unless an answer is what it should be, whoever made it.
    fn assert_right(self, site: &Site, number: usize, place: usize, response: &Response) {
        let copy = number as u64 % COPIES;
        let of = |sort| site.contents[&(sort, copy)].as_slice();
        let (status, body): (u16, &[u8]) = match (self.kind, place) {
            (Small, _) | (LargeBehind, 1) => (200, of("small")),
            (Kept, _) | (Behind, 0) => (200, of("kept")),
            (Large, _) | (LargeBehind, 2) => (200, of("large")),
            (Gzip | Brotli | Zstd, _) => (200, of("text")),
            (StreamedGzip | StreamedBrotli | StreamedZstd, _) => (200, of("stream")),
            (Range, _) if self.method == "GET" => (206, &of("kept")[100..=30_000]),
            (LargeRange, _) if self.method == "GET" => (206, &of("large")[77..]),
            (ErrorPage, _) | (Behind, 2) => (404, b"<p>nothing</p>".as_slice()),
            (NotModified, _) => (304, &[]),
            (Behind | LargeBehind, _) => (200, HELLO),
            (TooMany, _) if response.status == 200 && number == 0 => (200, HELLO),
            (TooMany, _) => (429, &response.body),
            (Ranges | LargeRanges, _) if self.method == "GET" => (206, &response.body),
            _ => (200, &response.body),
        };
        assert_eq!(response.status, status, "{response}");
        if self.method == "HEAD" {
            assert!(response.body.is_empty(), "{response}");
            return;
        }
        let got = decoded(response);
        assert!(got == body, "{}\n{response}", harness::difference(&got, body));
        let coding = match self.kind {
            Gzip | StreamedGzip => Some("gzip"),
            Brotli | StreamedBrotli => Some("br"),
            Zstd | StreamedZstd => Some("zstd"),
            _ => None,
        };
        assert_eq!(response.header("content-encoding"), coding, "{response}");
        let streamed = matches!(self.kind, StreamedGzip | StreamedBrotli | StreamedZstd);
        assert_eq!(response.header("transfer-encoding").is_some(), streamed, "{response}");
    }
}

/// Each test is a part of the table, so that they run side by side.
macro_rules! table {
    ($($name:ident: $point:literal;)*) => {
        $(#[test]
        fn $name() {
            try_every_row($point);
        })*
    };
}

table! {
    nobody_notices_a_death_after_accept: "after-accept";
    nobody_notices_a_death_while_recording_a_connection: "recording";
    nobody_notices_a_death_after_a_read: "after-read";
    nobody_notices_a_death_before_the_handler: "before-handler";
    nobody_notices_a_death_in_the_handler: "in-handler";
    nobody_notices_a_death_after_the_handler: "after-handler";
    nobody_notices_a_death_before_a_write: "before-write";
    nobody_notices_a_death_after_half_a_write: "after-partial-write";
    nobody_notices_a_death_after_a_write: "after-write";
    nobody_notices_a_death_while_retiring_requests: "retiring";
    nobody_notices_a_death_while_a_connection_is_closed: "closing";
    nobody_notices_a_death_while_a_thread_works: "in-pool";
    nobody_notices_a_death_after_a_thread_has_worked: "after-pool";
}

/// The rows of a point: every kind with GET, and once with HEAD. The pool is passed only by those that meet a cold disk; for
/// the other points warm and cold take turns, unless PHALANX_CRASH_ROWS is set, which doubles them.
fn rows(point: &str) -> Vec<(Row, usize)> {
    let pool = matches!(point, "in-pool" | "after-pool");
    let all = harness::knob("PHALANX_CRASH_ROWS", 0) > 0;
    let amid_a_stream = matches!(point, "after-partial-write" | "after-write" | "in-pool" | "after-pool");
    let mut rows = Vec::new();
    for &kind in KINDS {
        // Slow to make, and no other than those of the other codings where no stream is cut.
        if kind == StreamedZstd && !amid_a_stream && !all {
            continue;
        }
        for nth in 1..=3 {
            for disk in ["warm", "cold"] {
                let row = Row { kind, method: "GET", disk };
                let half = nth % 2 == usize::from(disk == "warm");
                let wanted = if pool { row.needs_pool() } else { all || half };
                if wanted {
                    rows.push((row, nth));
                }
            }
        }
        let head = Row { kind, method: "HEAD", disk: "cold" };
        if !pool || head.needs_pool() {
            rows.push((head, 1));
        }
    }
    // Further into responses that take many writes or many jobs.
    for kind in [Large, StreamedGzip, StreamedBrotli, StreamedZstd, LargeRanges, LargeBehind] {
        if amid_a_stream {
            rows.push((Row { kind, method: "GET", disk: "cold" }, 6));
        }
    }
    rows
}

/// Runs every case of a point; a failed one prints its own report, and the others run all the same.
fn try_every_row(point: &str) {
    let _machine = beside_others();
    let only = std::env::var("PHALANX_ROW").unwrap_or_default();
    let (rows, site) = (rows(point), Site::new());
    let mut failed = Vec::new();
    for &(row, nth) in &rows {
        let name = format!("{point} × {row:?} × pass {nth}");
        if name.contains(&only) && catch_unwind(AssertUnwindSafe(|| case(&site, point, row, nth))).is_err() {
            println!("=== failed: {name}\n");
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

/// What the servers of a test serve. Written once.
struct Site {
    directory: Directory,
    contents: HashMap<(&'static str, u64), Vec<u8>>,
}

impl Site {
    fn new() -> Site {
        let (directory, mut contents) = (Directory::new(), HashMap::new());
        directory.write("site/error.html", "<p>nothing</p>");
        for copy in 0..COPIES {
            for (name, make, len) in SORTS {
                let suffix = if matches!(name, "text" | "stream") { ".txt" } else { "" };
                let content = make(len, copy);
                directory.write(&format!("site/{name}{copy}{suffix}"), &content);
                contents.insert((name, copy), content);
            }
            for number in 0..40 {
                directory.write(&format!("site/list/sub{copy}/entry {number}"), "");
            }
        }
        Site { directory, contents }
    }

    fn setup(&self) -> Setup {
        Setup::new(1).sites(&SITE.replace("{root}", self.directory.path("site").to_str().unwrap()))
    }
}

fn case(site: &Site, point: &str, row: Row, nth: usize) {
    let server = site
        .setup()
        .environment("PHALANX_CRASH_POINT", &format!("{point}:{nth}"))
        .environment("PHALANX_DISK", row.disk)
        .start();
    let address = server.address();
    let once_a_connection = matches!(point, "after-accept" | "recording" | "closing");
    if once_a_connection {
        for _earlier in 1..nth {
            Client::connect(&address).assert_usable();
            wait_until("no connection", SOON, || server.status().total("connections") == 0);
        }
    }
    let mut client = if row.is_long() { Client::connect_narrow(&address) } else { Client::connect(&address) };
    client = client.patient(SOON);
    let exchanges = if once_a_connection { 1 } else { nth.min(COPIES as usize) };
    let answers: Vec<Response> =
        (0..exchanges).flat_map(|number| exchange(site, &mut client, row, number, row.is_long())).collect();
    client.assert_usable();
    drop(client);
    wait_until("a restart", SOON, || server.status().sum("restarts") >= 1);
    server.wait_serving();
    let mut fresh = Client::connect(&address).patient(SOON);
    for (number, answers) in answers.chunks(row.requests(0).len()).enumerate() {
        let again = exchange(site, &mut fresh, row, number, false);
        for (answer, again) in answers.iter().zip(&again) {
            assert!(answer.is_like(again) || (row.kind == TooMany && number == 0), "undisturbed: {again}\n{answer}");
        }
    }
    let status = server.status();
    assert_eq!(status.sum("restarts"), 1, "{status}");
    let earlier = if once_a_connection { nth - 1 } else { 0 };
    server.wait_total((earlier + 2 * answers.len() + 1) as u64);
}

/// Asks, and hands back what came. `slow`: nothing is read before the server can write no more.
fn exchange(site: &Site, client: &mut Client, row: Row, number: usize, slow: bool) -> Vec<Response> {
    let requests = row.requests(number);
    let bytes: String = requests.iter().map(|(_, request)| request.as_str()).collect();
    client.send(bytes.as_bytes());
    if slow {
        client.wait_stuck();
    }
    let mut answers = Vec::new();
    for (place, (method, _)) in requests.iter().enumerate() {
        let response = client.try_answer(method).unwrap_or_else(|failure: Failure| panic!("noticed: {failure}"));
        row.assert_right(site, number, place, &response);
        assert!(!response.closes(), "noticed: {response}");
        answers.push(response);
    }
    answers
}
