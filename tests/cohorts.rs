//! Connections that have something to say at the same time: what one of them comes to, and what becomes of its worker then, is nobody
//! else's.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Client, HELLO, SOON, Server, Setup, alone, beside_others, processes};

const GET: &str = "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n";
const DELETE: &str = "DELETE /hello HTTP/1.1\r\nHost: test\r\n\r\n";
const POST: &str = "POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc";

/// Clients whose requests the one worker of the server finds at the same time, in their order.
fn ask_at_once(server: &Server, requests: &[&str]) -> Vec<Client> {
    let address = server.address();
    let mut clients: Vec<Client> = requests.iter().map(|_| Client::connect(&address).patient(SOON)).collect();
    clients.iter_mut().for_each(Client::assert_usable);
    server.wait_serving();
    let worker = server.worker(0);
    assert!(processes::signal(worker, Signal::SIGSTOP));
    for (client, request) in clients.iter_mut().zip(requests) {
        client.send(request.as_bytes());
    }
    assert!(processes::signal(worker, Signal::SIGCONT));
    clients
}

#[test]
fn a_crash_is_no_loss_of_those_who_were_served_at_the_same_time() {
    let _machine = beside_others();
    let boom = "GET /boom HTTP/1.1\r\nHost: test\r\n\r\n";
    for place in [0, 1, 13, 30, 31, 39] {
        let server = Setup::new(1)
            .set("workers", "allow_faults = true")
            .routes("[[site.route]]\npath = \"= /boom\"\nfault = \"segv\"\n")
            .start();
        // What may not run again, and what would not be answered the same, stands before and behind the crash.
        let request = |index: usize| match index {
            _ if index == place => boom,
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

#[test]
fn an_answer_waits_for_no_handler_that_takes_long() {
    const LONG: Duration = Duration::from_millis(300);
    let _machine = alone();
    let server = Setup::new(1)
        .routes("[[site.route]]\npath = \"= /slow\"\nrespond = { body = \"slow\", wait = \"300ms\" }\n")
        .start();
    let mut clients = ask_at_once(&server, &["GET /slow HTTP/1.1\r\nHost: test\r\n\r\n"; 4]);
    let mut times = Vec::new();
    for client in &mut clients {
        client.answer().assert(200, b"slow");
        times.push(Instant::now());
    }
    let spread = times[3] - times[0];
    assert!(spread > LONG, "one after another, they would come over {:?}, not {spread:?}", LONG * 3);
}
