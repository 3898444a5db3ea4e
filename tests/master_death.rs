//! The master killed: its workers end what they have, keepers go, and another master can be started on the same addresses at once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::command::free_port;
use crate::harness::{self, Client, HELLO, SOON, Server, Setup, beside_others, processes, wait_until};

const LARGE_BYTES: usize = 8 << 20;

/// A daemon at an address of its own, and the pids of its processes, the master's first.
fn start(with: impl FnOnce(Setup) -> Setup) -> (String, Server, Vec<i32>) {
    let address = format!("127.0.0.1:{}", free_port());
    let setup = Setup::new(2).listen(&[&address, "unix:{dir}/h"]).file("large", harness::pattern(LARGE_BYTES, 3));
    let server = with(setup).start_daemon();
    let children = server.children();
    assert_eq!(children.len(), 4, "{children:?}");
    let everybody = std::iter::once(server.master()).chain(children.iter().map(|child| child.pid)).collect();
    (address, server, everybody)
}

#[test]
fn a_service_whose_master_is_killed_ends_what_it_has_and_another_is_started_beside_it() {
    let _machine = beside_others();
    let (address, server, before) = start(|setup| setup);
    let mut slow: Vec<Client> = (0..6).map(|_| Client::connect_narrow(&address).patient(SOON)).collect();
    for client in &mut slow {
        client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
        client.wait_stuck();
    }
    let mut idle: Vec<Client> = (0..10).map(|_| Client::connect(&address)).collect();
    idle.iter_mut().for_each(Client::assert_usable);
    let mut half = Client::connect(&address);
    half.send(b"GET /hello HT");
    half.wait_taken();
    assert!(processes::signal(before[0], Signal::SIGKILL));
    // No port is refused, and no word is lost between the two.
    server.cli("start", &[]).assert_said(0, &["started"]);
    let start = Instant::now();
    assert_ne!(server.master(), before[0]);
    server.connect().get("/hello").assert(200, HELLO);
    half.send(b"TP/1.1\r\nHost: test\r\n\r\n");
    half.answer().assert(200, HELLO);
    idle.iter_mut().for_each(Client::assert_closed);
    for client in &mut slow {
        client.answer().assert(200, &harness::pattern(LARGE_BYTES, 3));
    }
    drop(slow);
    wait_until("the service before is gone", SOON, || !before.iter().any(|&pid| processes::lives(pid)));
    println!("gone after {:?}", start.elapsed());
    // By now every connection is the other's.
    for _ in 0..50 {
        server.connect().get("/hello").assert(200, HELLO);
    }
    server.cli("stop", &[]).assert_code(0);
}

#[test]
fn with_exit_everybody_is_gone_at_once_when_the_master_is_killed() {
    let _machine = beside_others();
    let (_, server, before) = start(|setup| setup.set("workers", "on_master_death = \"exit\""));
    let mut client = server.connect();
    client.assert_usable();
    let start = Instant::now();
    assert!(processes::signal(before[0], Signal::SIGKILL));
    wait_until("everybody is gone", SOON, || !before.iter().any(|&pid| processes::lives(pid)));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let _closed_or_reset = client.end();
    server.cli("status", &[]).assert_code(3);
    server.cli("start", &[]).assert_code(0);
    server.connect().get("/hello").assert(200, HELLO);
}

#[test]
fn an_address_that_workers_without_a_master_do_not_let_go_of_is_named_with_what_to_do() {
    let _machine = beside_others();
    let (address, server, before) = start(|setup| setup);
    let workers: Vec<i32> = server.workers().iter().map(|worker| worker.pid).collect();
    workers.iter().for_each(|&worker| assert!(processes::signal(worker, Signal::SIGSTOP)));
    assert!(processes::signal(before[0], Signal::SIGKILL));
    wait_until("the master is gone", SOON, || !processes::lives(before[0]));
    let whose = format!("whose master (pid {}) died", before[0]);
    server.cli("start", &[]).assert_said(1, &[&address, "in use", &whose]);
    workers.iter().for_each(|&worker| assert!(processes::signal(worker, Signal::SIGCONT)));
    server.cli("start", &[]).assert_code(0);
    wait_until("the service before is gone", SOON, || !before.iter().any(|&pid| processes::lives(pid)));
    server.connect().get("/hello").assert(200, HELLO);
}
