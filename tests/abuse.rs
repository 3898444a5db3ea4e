//! Peers that overdo it, files that lie, and memory out of reach: each costs itself something, and nobody else.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Client, SOON, Server, Setup, beside_others, processes, wait_for_moment, wait_until};

#[test]
fn a_peer_that_goes_on_sending_after_the_last_response_is_let_go_after_two_seconds() {
    const LIMIT: Duration = Duration::from_secs(2);
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let mut client = server.connect().quiet();
    client.send(b"BAD\r\n\r\n");
    let response = client.answer();
    assert_eq!(response.status, 400, "{response}");
    assert!(response.closes(), "{response}");
    let start = Instant::now();
    let mut sent = 0;
    while client.try_send(&[b'x'; 100]).is_ok() {
        sent += 1;
        assert!(start.elapsed() < 2 * LIMIT, "still there after {sent} parts in {:?}", start.elapsed());
        wait_for_moment(start + sent * Duration::from_millis(20));
    }
    let took = start.elapsed();
    assert!(took > LIMIT / 2, "the server listened for {took:?} only: its response could have been lost to a reset");
    wait_until("the connection is closed", SOON, || server.status().total("connections") == 0);
    server.connect().assert_usable();
}

#[test]
fn a_file_that_is_shorter_than_it_says_is_answered_500_and_never_padded() {
    let _machine = beside_others();
    // The kernel says that this file has 4096 bytes; it has a few digits and a line end.
    let real = std::fs::read("/sys/kernel/uevent_seqnum").unwrap();
    let stated = std::fs::metadata("/sys/kernel/uevent_seqnum").unwrap().len();
    assert!((real.len() as u64) < stated, "{} bytes of {stated}: this file tells the truth", real.len());
    let server = Setup::new(1).routes("[[site.route]]\npath = \"/kernel/\"\nfiles = { root = \"/sys\" }\n").start();
    for headers in ["", "Range: bytes=0-99\r\n", "Range: bytes=1000-1999\r\n"] {
        let mut client = server.connect();
        let response = client.ask(&format!("GET /kernel/uevent_seqnum HTTP/1.1\r\nHost: test\r\n{headers}\r\n"));
        assert_eq!(response.status, 500, "{headers:?}: {response}");
        assert!(!response.body.contains(&0), "{headers:?}: {response}");
        match response.closes() {
            true => client.assert_closed(),
            false => client.assert_usable(),
        }
    }
    let status = server.status();
    assert_eq!(status.sum("restarts"), 0, "{status}");
}

fn assert_ledgers(server: &Server, slots: u32) {
    server.wait_slots(slots as usize);
    // That of a former table is let go when nothing is left there.
    for slot in 0..slots {
        let worker = server.worker(slot);
        wait_until("one ledger is in a worker's reach", SOON, || processes::ledgers(worker) == 1);
    }
    wait_until("the master holds one ledger a slot", SOON, || processes::ledgers(server.master()) == slots as usize);
}

#[test]
fn a_worker_reaches_no_ledger_but_its_own() {
    let _machine = beside_others();
    let server = Setup::new(3).start();
    assert_ledgers(&server, 3);
    server.cli("scale", &["4"]).assert_code(0);
    assert_ledgers(&server, 4);
    // The next keeper of slot 0 is forked from a master that has all four.
    let keeper = server.keeper(0);
    let worker = server.worker(0);
    assert!(processes::signal(keeper, Signal::SIGKILL));
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("both are gone", SOON, || [keeper, worker].iter().all(|&pid| processes::Process::read(pid).is_none()));
    assert_ledgers(&server, 4);
    server.cli("scale", &["3"]).assert_code(0);
    assert_ledgers(&server, 3);
}

#[test]
fn a_peer_that_does_not_read_its_response_is_let_go_after_the_write_timeout() {
    let _machine = beside_others();
    let server = Setup::new(1).set("timeouts", "write = \"500ms\"").file("large", vec![b'l'; 8 << 20]).start();
    let mut client = Client::connect_narrow(&server.address());
    client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    client.wait_stuck();
    wait_until("the connection is closed", SOON, || server.status().total("connections") == 0);
    assert_eq!(server.status().total("requests"), 0, "a response cut short is no answer");
}

#[test]
fn a_body_that_does_not_come_is_answered_408() {
    let _machine = beside_others();
    let server = Setup::new(1).set("timeouts", "body = \"300ms\"").start();
    for length in [10, 60_000] {
        let mut client = server.connect();
        client.send(format!("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n12345").as_bytes());
        let response = client.answer();
        assert_eq!(response.status, 408, "{response}");
        client.assert_closed();
    }
}
