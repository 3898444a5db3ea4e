//! Workers are killed at random while clients ask for files in every way there is; each answer must be what it was before the
//! first kill, to the byte, and the counters must agree with the clients.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::chaos::rain;
use crate::harness::{self, Ask, Load, Manners, Setup, alone, knob, text_pattern};

/// Between two kills. A stream is made again from its beginning after each: it must come further than it was before the next
/// one hits the same worker.
const STEP: Duration = Duration::from_millis(150);
const WORKERS: usize = 4;
const CONNECTIONS: usize = 8;
/// Of those that read slowly, so that long responses are cut in the middle.
const NARROW: usize = 4;

const SITE: &str = r#"
[[site]]
[[site.route]]
path = "/"
files = { root = "{dir}/site", listing = true }
error_pages = { 404 = "/error.html" }
[[site.route]]
path = "/limited"
respond = { status = 200, body = "Hello, World!", type = "text/plain" }
limit = { rate = "1/d", burst = 1 }
"#;

/// Every kind of request: method, path, further lines of its head.
const KINDS: [(&str, &str, &str); 19] = [
    ("GET", "/small", ""),
    ("HEAD", "/small", ""),
    ("GET", "/kept", ""),
    ("GET", "/large", ""),
    ("HEAD", "/large", ""),
    ("GET", "/text.txt", "Accept-Encoding: gzip\r\n"),
    ("GET", "/text.txt", "Accept-Encoding: br\r\n"),
    ("GET", "/text.txt", "Accept-Encoding: zstd\r\n"),
    ("GET", "/stream.txt", "Accept-Encoding: gzip\r\n"),
    ("GET", "/stream.txt", "Accept-Encoding: br\r\n"),
    ("GET", "/stream.txt", "Accept-Encoding: zstd\r\n"),
    ("HEAD", "/stream.txt", "Accept-Encoding: br\r\n"),
    ("GET", "/kept", "Range: bytes=0-99,20000-30000,-7\r\n"),
    ("GET", "/large", "Range: bytes=0-99,20000-600000,-7\r\n"),
    ("GET", "/sub/", ""),
    ("GET", "/sub/", "Accept: application/json\r\n"),
    ("GET", "/nothing", ""),
    ("GET", "/small", "If-None-Match: *\r\n"),
    ("GET", "/limited", ""),
];

fn nobody_notices(disk: &str) {
    let _machine = alone();
    let mut setup = Setup::new(WORKERS)
        // A request that waits for a compressor is at work long enough to be hit more than twice.
        .set("rescue", "max_attempts = 10")
        .set("log", "level = \"info\"")
        .environment("PHALANX_DISK", disk)
        .sites(SITE)
        .file("error.html", "<p>nothing</p>")
        .file("small", harness::pattern(1024, 1))
        .file("kept", harness::pattern(40 * 1024, 2))
        .file("large", harness::pattern(1 << 20, 3))
        .file("text.txt", text_pattern(100 * 1024, 4))
        .file("stream.txt", text_pattern(5 << 18, 5));
    for number in 0..20 {
        setup = setup.file(&format!("sub/entry {number}"), "");
    }
    let server = setup.start();
    let address = server.address();
    // The only one that may.
    server.connect().get("/limited").assert(200, harness::HELLO);
    let asks: Vec<Ask> = KINDS.iter().map(|(method, path, lines)| Ask::as_now(&address, method, path, lines)).collect();
    let load = Load::start(&address, CONNECTIONS, Manners::Strict, &asks);
    let narrow = Load::start_narrow(&address, NARROW, &asks);
    load.wait_for(50);
    let sent = rain(&server, Signal::SIGKILL, knob("PHALANX_CHAOS_FILE_KILLS", 60), STEP);
    load.wait_for(50);
    let (tally, narrow) = (load.finish(), narrow.finish());
    tally.assert_clean();
    narrow.assert_clean();
    server.wait_serving();
    server.wait_total(1 + KINDS.len() as u64 + tally.answered + narrow.answered);
    let status = server.status();
    assert!(sent > 0 && status.sum("restarts") > 0, "{sent} kills: {status}");
}

#[test]
fn nobody_notices_that_workers_are_killed_amid_files_of_every_kind() {
    nobody_notices("warm");
}

/// Without the crash points built in, the disk is as warm as it is.
#[test]
fn nobody_notices_that_workers_are_killed_amid_files_from_a_cold_disk() {
    nobody_notices("cold");
}
