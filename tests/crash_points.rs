//! The table "at the instant of death" of the design, row by row: a worker kills itself at every crash point, in every kind
//! of exchange, the first, second and third time it comes by, and the client gets exactly what the row promises.
//!
//! A case is: a server with one worker and one crash point armed; one client that makes `nth` exchanges of a kind on one
//! connection, so that the point is passed for the nth time at the latest in the last of them; then a fresh connection.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::harness::{
    self, Client, Failure, HELLO, Response, SOON, Server, Setup, beside_others, readable, wait_until,
};

const SMALL_BYTES: usize = 1024;
const LARGE_BYTES: usize = 3 << 20;
/// Larger than the 15 KiB of body that a ledger buffer holds.
const BIG_POST_BYTES: usize = 64 * 1024;

/// What is exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Get,
    Post,
    Pipelined,
    SmallFile,
    LargeFile,
    SplitHead,
    BigPost,
}

const KINDS: [Kind; 7] =
    [Kind::Get, Kind::Post, Kind::Pipelined, Kind::SmallFile, Kind::LargeFile, Kind::SplitHead, Kind::BigPost];

/// What the row of the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// Nothing happens, the successor answers, the request is replayed or the response continued: the client cannot tell.
    Unnoticed,
    /// 500, connection closed.
    Error,
    /// The client sees the truncation.
    Truncated,
    /// The point is never passed, for this reason.
    Unreachable(&'static str),
    /// No row of this table.
    Untested,
}

/// The table.
fn row(point: &str, kind: Kind) -> Row {
    match (point, kind) {
        ("handing-on", Kind::BigPost) => Row::Error,
        ("handing-on", _) => Row::Unreachable("no body is larger than its buffer"),
        // Whether a part of it has been handed on decides, and that depends on how the bytes were cut into reads.
        (_, Kind::BigPost) => Row::Untested,
        ("in-handler" | "after-handler" | "before-write", Kind::Post) => Row::Error,
        ("after-partial-write", Kind::Post) => Row::Truncated,
        _ => Row::Unnoticed,
    }
}

/// The point is passed once a connection, not once an exchange.
fn once_a_connection(point: &str) -> bool {
    matches!(point, "after-accept" | "recording" | "closing")
}

#[test]
fn a_worker_that_dies_after_accept_loses_nothing() {
    try_every_kind("after-accept");
}

#[test]
fn a_worker_that_dies_while_recording_a_connection_loses_nothing() {
    try_every_kind("recording");
}

#[test]
fn a_worker_that_dies_after_a_read_loses_nothing() {
    try_every_kind("after-read");
}

#[test]
fn a_worker_that_dies_before_the_handler_loses_nothing() {
    try_every_kind("before-handler");
}

#[test]
fn a_worker_that_dies_in_a_handler_replays_what_is_idempotent_and_answers_500_to_the_rest() {
    try_every_kind("in-handler");
}

#[test]
fn a_worker_that_dies_after_the_handler_replays_what_is_idempotent_and_answers_500_to_the_rest() {
    try_every_kind("after-handler");
}

#[test]
fn a_worker_that_dies_before_a_write_replays_what_is_idempotent_and_answers_500_to_the_rest() {
    try_every_kind("before-write");
}

#[test]
fn a_worker_that_dies_after_half_a_write_continues_what_it_can_make_again_and_shows_the_truncation_of_the_rest() {
    try_every_kind("after-partial-write");
}

#[test]
fn a_worker_that_dies_after_a_write_loses_nothing() {
    try_every_kind("after-write");
}

#[test]
fn a_worker_that_dies_while_retiring_requests_answers_none_twice_and_counts_none_twice() {
    try_every_kind("retiring");
}

#[test]
fn a_worker_that_dies_while_closing_a_connection_leaves_no_descriptor_behind() {
    try_every_kind("closing");
}

#[test]
fn a_worker_that_dies_while_handing_on_a_body_answers_500() {
    try_every_kind("handing-on");
}

/// Reads until `end` has come; the bytes up to then. Fails when the connection ends or nothing comes for 3 s.
fn read_until(stream: &mut std::net::TcpStream, end: &[u8]) -> Vec<u8> {
    use std::io::Read;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    let mut got = Vec::new();
    while !got.ends_with(end) {
        let mut byte = [0];
        let count = stream.read(&mut byte).unwrap_or_else(|error| panic!("{error} after {}", readable(&got)));
        assert_eq!(count, 1, "ended after {}", readable(&got));
        got.push(byte[0]);
    }
    got
}

#[test]
fn a_peer_that_has_finished_sending_is_answered_by_the_successor() {
    use std::io::{Read, Write};
    let _machine = beside_others();
    let points = ["after-accept", "after-read", "before-handler", "in-handler", "after-handler", "before-write"];
    for point in points.into_iter().chain(["after-partial-write", "after-write", "retiring"]) {
        let server = Setup::new(1).environment("PHALANX_CRASH_POINT", &format!("{point}:1")).start();
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let response = read_until(&mut stream, HELLO);
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{point}: {}", readable(&response));
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "{point}: nothing follows");
        assert_deaths(&server, 1);
        server.wait_total(1);
    }
}

#[test]
fn a_peer_that_waits_for_100_continue_gets_it_once_whoever_sends_it() {
    use std::io::Write;
    let _machine = beside_others();
    let request = b"POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    for point in ["after-read", "before-write", "after-partial-write", "after-write", "retiring"] {
        let server = Setup::new(1).environment("PHALANX_CRASH_POINT", &format!("{point}:1")).start();
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.write_all(request).unwrap();
        let interim = read_until(&mut stream, b"\r\n\r\n");
        assert_eq!(interim, b"HTTP/1.1 100 Continue\r\n\r\n", "{point}");
        assert_deaths(&server, 1);
        stream.write_all(b"12345").unwrap();
        let response = read_until(&mut stream, HELLO);
        assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"), "{point}: {}", readable(&response));
        stream.write_all(request).unwrap();
        assert_eq!(read_until(&mut stream, b"\r\n\r\n"), interim, "{point}, the second time");
        stream.write_all(b"12345").unwrap();
        read_until(&mut stream, HELLO);
        server.wait_total(2);
    }
}

/// Runs every case of a point; a failed one prints its own report, and the others run all the same.
fn try_every_kind(point: &str) {
    let _machine = beside_others();
    let mut failed = Vec::new();
    let mut run = 0;
    for kind in KINDS {
        for nth in 1..=3 {
            let row = row(point, kind);
            if row == Row::Untested || (matches!(row, Row::Unreachable(_)) && nth > 1) {
                continue;
            }
            run += 1;
            let name = format!("{point} × {kind:?} × pass {nth}: {row:?}");
            if catch_unwind(AssertUnwindSafe(|| case(point, kind, nth, row))).is_err() {
                println!("=== failed: {name}\n");
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "{} of {run} cases failed:\n{}", failed.len(), failed.join("\n"));
}

fn case(point: &str, kind: Kind, nth: usize, row: Row) {
    let setup =
        Setup::new(1).file("small", harness::pattern(SMALL_BYTES, 1)).file("large", harness::pattern(LARGE_BYTES, 2));
    play(setup, point, nth, row, &kind);
}

/// What is exchanged, by who plays a case.
pub(crate) trait Exchange {
    /// Sends the request, or the requests, of one exchange.
    fn ask(&self, client: &mut Client);

    /// How many answers it has.
    fn answers(&self) -> usize {
        1
    }

    /// Whether an answer takes several writes.
    fn is_long(&self) -> bool {
        false
    }

    /// Panics unless an answer is what it should be, whoever made it.
    fn assert_right(&self, response: &Response);

    /// The next response. A long one is not read before the server can write no more.
    fn receive(&self, client: &mut Client) -> Result<Response, Failure> {
        if self.is_long() {
            client.wait_stuck();
        }
        client.try_answer("GET")
    }
}

/// Plays a case: the worker dies as it comes by `point` for the `nth` time.
pub(crate) fn play(setup: Setup, point: &str, nth: usize, row: Row, exchange: &dyn Exchange) {
    let server = setup.environment("PHALANX_CRASH_POINT", &format!("{point}:{nth}")).start();
    let address = server.address();
    let mut answered = 0;
    if once_a_connection(point) {
        for _earlier in 1..nth {
            let mut client = Client::connect(&address);
            client.assert_usable();
            answered += 1;
            drop(client);
            wait_connections(&server, 0);
        }
    }
    let connect = if exchange.is_long() { Client::connect_narrow } else { Client::connect };
    let mut client = connect(&address);
    let exchanges = if once_a_connection(point) { 1 } else { nth };
    answered += match row {
        Row::Unnoticed | Row::Unreachable(_) => unnoticed(&mut client, exchange, exchanges),
        Row::Error => error(&mut client, exchange, exchanges),
        Row::Truncated => truncated(&mut client, exchange, exchanges),
        Row::Untested => unreachable!("untested rows are not run"),
    };
    if point == "closing" {
        drop(client);
    }
    assert_deaths(&server, u64::from(!matches!(row, Row::Unreachable(_))));
    let mut fresh = Client::connect(&address);
    fresh.assert_usable();
    fresh.assert_usable();
    answered += 2;
    server.wait_total(answered);
    if point == "closing" {
        wait_connections(&server, 1);
    }
}

/// Every exchange is answered rightly, and the connection carries another request afterwards.
fn unnoticed(client: &mut Client, exchange: &dyn Exchange, exchanges: usize) -> u64 {
    let mut answered = 0;
    for _exchange in 0..exchanges {
        exchange.ask(client);
        for _answer in 0..exchange.answers() {
            let response = exchange.receive(client).unwrap_or_else(|failure| panic!("noticed: {failure}"));
            exchange.assert_right(&response);
            assert!(!response.closes(), "noticed: {response}");
            answered += 1;
        }
    }
    client.assert_usable();
    answered + 1
}

/// One exchange is answered 500 and ends the connection; those before it are answered rightly.
fn error(client: &mut Client, exchange: &dyn Exchange, exchanges: usize) -> u64 {
    for number in 1..=exchanges as u64 {
        exchange.ask(client);
        let response = exchange.receive(client).unwrap_or_else(|failure| panic!("no 500: {failure}"));
        if response.status == 200 && number < exchanges as u64 {
            exchange.assert_right(&response);
            continue;
        }
        assert_eq!(response.status, 500, "{response}");
        assert!(response.closes(), "the 500 does not say close: {response}");
        client.assert_closed();
        return number;
    }
    panic!("no exchange was answered 500");
}

/// One exchange ends inside its response; those before it are answered rightly.
fn truncated(client: &mut Client, exchange: &dyn Exchange, exchanges: usize) -> u64 {
    for number in 0..exchanges as u64 {
        exchange.ask(client);
        match exchange.receive(client) {
            Ok(response) => exchange.assert_right(&response),
            Err(failure) => {
                let part = failure.truncated().unwrap_or_else(|| panic!("not truncated inside a response: {failure}"));
                assert!(part.starts_with(b"HTTP/1.1 200 "), "not the part of a right response: {}", readable(part));
                return number;
            }
        }
    }
    panic!("no response was truncated");
}

impl Exchange for Kind {
    fn ask(&self, client: &mut Client) {
        match self {
            Kind::Get => client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"),
            Kind::Post => client.send(b"POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n12345"),
            Kind::Pipelined => client.send(&b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n".repeat(3)),
            Kind::SmallFile => client.send(b"GET /small HTTP/1.1\r\nHost: test\r\n\r\n"),
            Kind::LargeFile => client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n"),
            Kind::SplitHead => {
                client.send(b"GET /hello HTTP/1.1\r\nHo");
                client.wait_taken();
                client.send(b"st: test\r\n\r\n");
            }
            Kind::BigPost => {
                let mut request =
                    format!("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: {BIG_POST_BYTES}\r\n\r\n");
                request.extend(std::iter::repeat_n('b', BIG_POST_BYTES));
                // The server may answer before it has the whole body; what it answered is looked at then.
                let _sent = client.try_send(request.as_bytes());
            }
        }
    }

    fn answers(&self) -> usize {
        if *self == Kind::Pipelined { 3 } else { 1 }
    }

    fn is_long(&self) -> bool {
        *self == Kind::LargeFile
    }

    fn assert_right(&self, response: &Response) {
        match self {
            Kind::SmallFile => response.assert(200, &harness::pattern(SMALL_BYTES, 1)),
            Kind::LargeFile => response.assert(200, &harness::pattern(LARGE_BYTES, 2)),
            _ => response.assert(200, HELLO),
        }
    }
}

/// The worker has died this often, and its successor serves.
fn assert_deaths(server: &Server, deaths: u64) {
    wait_until(&format!("{deaths} restarts"), SOON, || server.status().sum("restarts") >= deaths);
    server.wait_serving();
    let status = server.status();
    assert_eq!(status.sum("restarts"), deaths, "{status}");
}

/// The server holds this many connections.
fn wait_connections(server: &Server, count: u64) {
    wait_until(&format!("{count} connections"), SOON, || server.status().total("connections") == count);
}
