//! Connections that have something to say at the same time: what one of them comes to, and what becomes of its worker then, is nobody
//! else's.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Client, HELLO, SOON, Server, Setup, alone, beside_others, processes};

const GET: &str = "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n";
const BOOM: &str = "GET /boom HTTP/1.1\r\nHost: test\r\n\r\n";
const SLOW_GET: &str = "GET /slow HTTP/1.1\r\nHost: test\r\n\r\n";
const DELETE: &str = "DELETE /hello HTTP/1.1\r\nHost: test\r\n\r\n";
const POST: &str = "POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc";
/// How long a slow handler takes.
const SLOW: Duration = Duration::from_millis(300);

/// Clients whose requests the one worker of the server finds at the same time, in their order.
fn ask_at_once(server: &Server, requests: &[&str]) -> Vec<Client> {
    let address = server.address();
    let mut clients: Vec<Client> = requests.iter().map(|_| Client::connect(&address).patient(SOON)).collect();
    clients.iter_mut().for_each(Client::assert_usable);
    server.wait_serving();
    stopped(server, || {
        for (client, request) in clients.iter_mut().zip(requests) {
            client.send(request.as_bytes());
        }
    });
    clients
}

/// Does something that the one worker finds done all at once.
fn stopped(server: &Server, act: impl FnOnce()) {
    let worker = server.worker(0);
    assert!(processes::signal(worker, Signal::SIGSTOP));
    act();
    assert!(processes::signal(worker, Signal::SIGCONT));
}

fn with_boom() -> Server {
    let route = "[[site.route]]\npath = \"= /boom\"\nfault = \"segv\"\n";
    Setup::new(1).set("workers", "allow_faults = true").routes(route).start()
}

#[test]
fn a_crash_is_no_loss_of_those_who_were_served_at_the_same_time() {
    let _machine = beside_others();
    for place in [0, 1, 13, 30, 31, 39] {
        let server = with_boom();
        // What may not run again, and what would not be answered the same, stands before and behind the crash.
        let request = |index: usize| match index {
            _ if index == place => BOOM,
            _ if index % 4 == 1 => POST,
            _ if index % 4 == 3 => DELETE,
            _ => GET,
        };
        let requests: Vec<&str> = (0..40).map(request).collect();
        let mut clients = ask_at_once(&server, &requests);
        for (index, client) in clients.iter_mut().enumerate() {
            match client.answer() {
                answer if index == place => answer.assert_status(500),
                answer => answer.assert(200, HELLO),
            }
        }
        server.wait_serving();
        for (index, client) in clients.iter_mut().enumerate().filter(|(index, _)| *index != place) {
            println!("{place}: {index} again");
            client.assert_usable();
        }
        server.wait_total(40 + 40 + 39);
        let status = server.status();
        assert_eq!((status.sum("restarts"), status.total("failed"), status.total("closed")), (1, 1, 0), "{status}");
        let safe = requests[..place].iter().filter(|request| **request == GET).count() as u64;
        println!("{place}: {} of {safe} ran again", status.total("replayed"));
        assert!(status.total("replayed") <= safe, "{status}");
    }
}

#[cfg(feature = "crash-points")]
#[test]
fn a_worker_that_dies_while_it_serves_several_at_once_loses_nothing() {
    let _machine = beside_others();
    let points =
        ["after-read", "before-handler", "in-handler", "after-handler", "before-write", "after-write", "retiring"];
    for point in points {
        // Of the requests before, one for each client.
        let passed = if point == "retiring" { 2 * 8 } else { 8 };
        for nth in [passed + 1, passed + 2, passed + 4, passed + 8] {
            let server = Setup::new(1).environment("PHALANX_CRASH_POINT", &format!("{point}:{nth}")).start();
            let mut clients = ask_at_once(&server, &[GET; 8]);
            for (index, client) in clients.iter_mut().enumerate() {
                println!("{point}, pass {nth}: {index}");
                client.answer().assert(200, HELLO);
                client.assert_usable();
            }
            server.wait_total(24);
            let status = server.status();
            assert_eq!((status.sum("restarts"), status.total("failed"), status.total("closed")), (1, 0, 0), "{status}");
        }
    }
}

/// A request whose body is refused half-way is one that its worker was in the middle of.
#[test]
fn a_crash_makes_no_other_error_of_a_refusal() {
    let _machine = beside_others();
    let server = with_boom();
    let (mut refused, mut guilty) = (server.connect().patient(SOON), server.connect().patient(SOON));
    guilty.assert_usable();
    refused.send(b"POST /hello HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\n");
    refused.send(&[b'x'; 0x8000]);
    refused.wait_taken();
    stopped(&server, || {
        refused.send(b"\r\nno length\r\n");
        guilty.send(BOOM.as_bytes());
    });
    refused.answer().assert_status(400);
    guilty.answer().assert_status(500);
    server.wait_serving();
    let status = server.status();
    assert_eq!((status.sum("restarts"), status.total("failed"), status.total("closed")), (1, 1, 0), "{status}");
}

fn with_slow() -> Server {
    let route = "[[site.route]]\npath = \"= /slow\"\nrespond = { body = \"Hello, World!\", wait = \"300ms\" }\n";
    Setup::new(1).routes(route).start()
}

/// The time from the first answer to the last, of requests that are there at the same time. Those for `/slow` take [`SLOW`] each.
fn spread(requests: &[&str]) -> Duration {
    let _machine = alone();
    let server = with_slow();
    let mut clients = ask_at_once(&server, requests);
    let mut times = Vec::new();
    for client in &mut clients {
        client.answer().assert(200, HELLO);
        times.push(Instant::now());
    }
    times[times.len() - 1] - times[0]
}

#[test]
fn an_answer_waits_for_no_handlers_that_take_long() {
    let spread = spread(&[SLOW_GET; 4]);
    assert!(spread > SLOW, "one after another, they would come over {:?}, not {spread:?}", SLOW * 3);
}

#[test]
fn an_answer_waits_for_none_that_are_not_held_back() {
    let slow = "POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n";
    let spread = spread(&[GET, slow, slow, slow]);
    assert!(spread > SLOW, "the first should be {:?} before the last, not {spread:?}", SLOW * 2);
}

/// Of a pipeline, 32 requests are served at a time.
#[test]
fn an_answer_waits_for_no_more_requests_of_a_pipeline() {
    let _machine = alone();
    let server = with_slow();
    let pipeline = GET.repeat(32) + SLOW_GET;
    let mut clients = ask_at_once(&server, &[&pipeline, GET]);
    clients[1].answer().assert(200, HELLO);
    let others = Instant::now();
    (0..33).for_each(|_| clients[0].answer().assert(200, HELLO));
    let waited = others.elapsed();
    assert!(waited > SLOW / 2, "the other's answer came {waited:?} before the last of the pipeline");
}
