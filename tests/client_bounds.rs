//! What one client may hold and send: connections, over all workers and whatever dies; requests on a connection; and the
//! bytes of a head, a target and a body, to the byte.

use nix::sys::signal::Signal;

use crate::harness::{Client, HELLO, SOON, Server, Setup, alone, beside_others, pattern, processes, wait_until};

const MOST: usize = 8;

fn start(workers: usize) -> Server {
    Setup::new(workers).set("limits", &format!("connections_per_client = {MOST}")).start()
}

/// Opens connections until one is turned away; those that were not.
#[track_caller]
fn open_all(address: &str, source: &str) -> Vec<Client> {
    let mut open = Vec::new();
    loop {
        let mut client = Client::connect_from(address, source);
        // Who is turned away may have been before the request was sent.
        let _sent = client.try_send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n");
        let response = client.answer();
        if response.status == 200 {
            open.push(client);
            assert!(open.len() <= MOST, "{} connections of {source}", open.len());
            continue;
        }
        response.assert(503, b"");
        assert_eq!(response.header("retry-after"), Some("1"), "{response}");
        assert!(response.closes(), "{response}");
        client.assert_closed();
        return open;
    }
}

/// Waits until a client may open exactly [`MOST`] connections again.
#[track_caller]
fn wait_free(address: &str, source: &str) {
    let mut last = 0;
    wait_until(&format!("{MOST} connections of {source} are possible"), SOON, || {
        last = open_all(address, source).len();
        last == MOST
    });
}

#[test]
fn a_client_may_hold_so_many_connections_over_all_workers() {
    let _machine = beside_others();
    let server = start(4);
    let address = server.address();
    let mut first = open_all(&address, "127.0.0.1");
    assert_eq!(first.len(), MOST);
    // Another client is not concerned, and those that are there live on.
    let second = open_all(&address, "127.0.0.2");
    assert_eq!(second.len(), MOST);
    first.iter_mut().for_each(Client::assert_usable);
    // What is closed makes room for just as many.
    first.truncate(MOST - 3);
    wait_until("three are closed", SOON, || server.status().total("connections") == (2 * MOST - 3) as u64);
    let more = open_all(&address, "127.0.0.1");
    assert_eq!(more.len(), 3);
    drop((first, second, more));
    wait_free(&address, "127.0.0.1");
    wait_free(&address, "127.0.0.2");
}

#[test]
fn connections_of_a_client_are_counted_right_after_workers_are_killed() {
    let _machine = alone();
    let server = start(2);
    let address = server.address();
    for round in 0..4 {
        let mut open = open_all(&address, "127.0.0.1");
        assert_eq!(open.len(), MOST, "round {round}");
        for slot in 0..2 {
            assert!(processes::signal(server.worker(slot), Signal::SIGKILL));
        }
        open.iter_mut().for_each(Client::assert_usable);
        assert_eq!(open_all(&address, "127.0.0.1").len(), 0, "round {round}: all are counted still");
        // Closed while nobody serves: the successor takes them off.
        server.wait_serving();
        for slot in 0..2 {
            assert!(processes::signal(server.worker(slot), Signal::SIGKILL));
        }
        drop(open);
        server.wait_serving();
        wait_until("all are closed", SOON, || server.status().total("connections") == 0);
        wait_free(&address, "127.0.0.1");
        wait_until("all are closed", SOON, || server.status().total("connections") == 0);
    }
}

#[test]
fn connections_that_are_lost_with_keeper_and_worker_are_counted_no_more() {
    let _machine = beside_others();
    let server = start(2);
    let address = server.address();
    let open = open_all(&address, "127.0.0.1");
    assert_eq!(open.len(), MOST);
    for slot in 0..2 {
        let keeper = server.keeper(slot);
        let worker = server.worker(slot);
        assert!(processes::signal(keeper, Signal::SIGKILL));
        assert!(processes::signal(worker, Signal::SIGKILL));
        wait_until("another keeper", SOON, || server.find_keeper(slot).is_some_and(|other| other != keeper));
    }
    server.wait_serving();
    wait_free(&address, "127.0.0.1");
    drop(open);
}

#[test]
fn connections_of_a_slot_that_is_closed_are_counted_no_more() {
    let _machine = beside_others();
    let server = start(4);
    let address = server.address();
    let open = open_all(&address, "127.0.0.1");
    assert_eq!(open.len(), MOST);
    server.cli("scale", &["1"]).assert_code(0);
    server.wait_slots(1);
    drop(open);
    wait_free(&address, "127.0.0.1");
}

#[test]
pub(crate) fn the_last_request_that_a_connection_may_carry_is_answered_with_a_close() {
    let _machine = beside_others();
    let server = Setup::new(1).set("limits", "requests_per_connection = 3").start();
    let mut client = server.connect();
    for number in 1..=3 {
        let response = client.get("/hello");
        response.assert(200, HELLO);
        assert_eq!(response.closes(), number == 3, "request {number}: {response}");
    }
    client.assert_closed();
    // In one write too, and what comes behind the last one is not answered.
    let mut client = server.connect();
    client.send("GET /hello HTTP/1.1\r\nHost: test\r\n\r\n".repeat(5).as_bytes());
    let closes: Vec<bool> = (0..3).map(|_| client.answer().closes()).collect();
    assert_eq!(closes, [false, false, true]);
    client.assert_closed();
    server.wait_total(6);
}

/// The status of the answer to a request in one write, and to the same byte by byte at its end.
#[track_caller]
fn statuses(address: &str, request: &[u8]) -> [u16; 2] {
    let whole = |client: &mut Client| client.try_send(request);
    let split = |client: &mut Client| {
        let (first, rest) = request.split_at(request.len().saturating_sub(40));
        client.try_send(first)?;
        rest.chunks(1).try_for_each(|byte| client.try_send(byte))
    };
    let ask = |send: &dyn Fn(&mut Client) -> std::io::Result<()>| {
        let mut client = Client::connect(address);
        // A server that has refused the request may close before it has all of it.
        let _sent = send(&mut client);
        client.answer().status
    };
    [ask(&whole), ask(&split)]
}

#[test]
pub(crate) fn a_head_a_target_and_a_body_are_bounded_to_the_byte() {
    let _machine = beside_others();
    const HEAD: usize = 2048;
    const BODY: usize = 3000;
    let server = Setup::new(1)
        .set("limits", &format!("head = \"{HEAD}B\""))
        .set("limits", &format!("body = \"{BODY}B\""))
        .start();
    let address = server.address();
    let with_head = |bytes: usize| {
        let frame = "GET /hello HTTP/1.1\r\nHost: test\r\nX: \r\n\r\n";
        frame.replace("X: ", &format!("X: {}", "x".repeat(bytes - frame.len()))).into_bytes()
    };
    let with_line = |bytes: usize| {
        let frame = "GET /hello? HTTP/1.1\r\n";
        format!("GET /hello?{} HTTP/1.1\r\nHost: test\r\n\r\n", "q".repeat(bytes - frame.len())).into_bytes()
    };
    let with_body = |bytes: usize| {
        let mut request = format!("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
        request.extend_from_slice(&pattern(bytes, 1));
        request
    };
    let in_chunks = |bytes: usize| {
        let mut request = b"POST /hello HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for part in pattern(bytes, 2).chunks(700) {
            request.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            request.extend_from_slice(part);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        request
    };
    assert_eq!(statuses(&address, &with_head(HEAD - 1)), [200; 2]);
    assert_eq!(statuses(&address, &with_head(HEAD)), [200; 2]);
    assert_eq!(statuses(&address, &with_head(HEAD + 1)), [431; 2]);
    let rest = "Host: test\r\n\r\n".len();
    assert_eq!(statuses(&address, &with_line(HEAD - rest)), [200; 2]);
    assert_eq!(statuses(&address, &with_line(HEAD - rest + 1)), [431; 2]);
    assert_eq!(statuses(&address, &with_line(HEAD)), [431; 2]);
    assert_eq!(statuses(&address, &with_line(HEAD + 1)), [414; 2]);
    for request in [&with_body as &dyn Fn(usize) -> Vec<u8>, &in_chunks] {
        assert_eq!(statuses(&address, &request(BODY - 1)), [200; 2]);
        assert_eq!(statuses(&address, &request(BODY)), [200; 2]);
        assert_eq!(statuses(&address, &request(BODY + 1)), [413; 2]);
    }
    server.connect().assert_usable();
}
