//! Keepers are killed: what they held is let end, and their slots serve again.

use nix::sys::signal::Signal;

use crate::harness::{self, Client, SOON, Setup, beside_others, processes, wait_until};

const LARGE_BYTES: usize = 3 << 20;

#[test]
fn a_killed_keeper_costs_no_response_and_its_slot_serves_again() {
    let _machine = beside_others();
    let large = harness::pattern(LARGE_BYTES, 2);
    let server = Setup::new(1).file("large", &large).start();
    let address = server.address();
    let mut downloading = Client::connect_narrow(&address);
    downloading.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    downloading.wait_stuck();
    let mut idle = Client::connect(&address);
    idle.assert_usable();
    let keeper = server.children().into_iter().find(|child| child.keeper() == Some(0)).expect("a keeper");
    let worker = server.worker(0);

    assert!(processes::signal(keeper.pid, Signal::SIGKILL));
    wait_until("another keeper", SOON, || {
        server.children().iter().any(|child| child.keeper() == Some(0) && child.pid != keeper.pid)
    });
    server.wait_serving();
    // The orphan still lives, on the same listeners: it takes no new connection that it would have to turn away.
    assert!(processes::lives(worker));
    for _connection in 0..20 {
        Client::connect(&address).assert_usable();
    }
    downloading.answer().assert(200, &large);
    wait_until("the orphaned worker is gone", SOON, || !processes::lives(worker));
    server.wait_total(22);
    let second = server.worker(0);
    assert!(processes::signal(second, Signal::SIGKILL));
    Client::connect(&address).assert_usable();
}

#[test]
fn a_keeper_and_its_worker_killed_together_leave_a_slot_that_serves() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    for _round in 0..5 {
        server.wait_serving();
        let keeper = server.children().into_iter().find(|child| child.keeper() == Some(1)).expect("a keeper");
        let worker = server.worker(1);
        processes::signal(keeper.pid, Signal::SIGKILL);
        processes::signal(worker, Signal::SIGKILL);
        wait_until("another keeper", SOON, || {
            server.children().iter().any(|child| child.keeper() == Some(1) && child.pid != keeper.pid)
        });
    }
    server.wait_serving();
    for _ in 0..8 {
        Client::connect(&server.address()).assert_usable();
    }
    server.wait_total(8);
}
