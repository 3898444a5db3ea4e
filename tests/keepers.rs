//! Keepers are killed: their slots get another table, and no connection is lost on the way from the old one.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    self, Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, beside_others, knob, processes, wait_for_moment,
    wait_until,
};

/// More than the kernel takes for a client that does not read.
const LARGE_BYTES: usize = 6 << 20;

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
    let keeper = server.keeper(0);
    let worker = server.worker(0);

    assert!(processes::signal(keeper, Signal::SIGKILL));
    wait_until("another keeper", SOON, || server.find_keeper(0).is_some_and(|other| other != keeper));
    server.wait_serving();
    // Its worker still lives, on the same listeners: it takes no new connection.
    assert!(processes::lives(worker));
    for _connection in 0..20 {
        Client::connect(&address).assert_usable();
    }
    idle.assert_usable();
    downloading.answer().assert(200, &large);
    wait_until("the old table's worker is gone", SOON, || !processes::lives(worker));
    downloading.assert_usable();
    server.wait_total(24);
    let second = server.worker(0);
    assert!(processes::signal(second, Signal::SIGKILL));
    Client::connect(&address).assert_usable();
    idle.assert_usable();
    downloading.assert_usable();
    assert_eq!(server.status().total("accepted"), 23);
}

/// Keepers are killed while clients ask, and workers too where `workers_too` says so. How many keepers there were to kill.
fn kill_keepers(server: &Server, slots: u32, kills: u32, workers_too: bool) -> u32 {
    let (start, mut killed) = (Instant::now(), 0);
    for kill in 0..kills {
        wait_for_moment(start + Duration::from_millis(120) * kill);
        if let Some(keeper) = server.find_keeper(kill % slots) {
            killed += u32::from(processes::signal(keeper, Signal::SIGKILL));
        }
        if workers_too {
            // Of another slot: what dies with its keeper is lost.
            wait_for_moment(start + Duration::from_millis(120) * kill + Duration::from_millis(60));
            let of_slot = |it: &processes::Process| it.worker().is_some_and(|it| it.0 == (kill + 1) % slots);
            let mut workers = Vec::new();
            // On a busy machine one may still end what it had in a table whose keeper is dead: that is not to die.
            wait_until("the slot has one table", SOON, || {
                workers = server.workers().into_iter().filter(of_slot).collect();
                workers.len() == 1
            });
            processes::signal(workers[0].pid, Signal::SIGKILL);
            wait_until("the slot has another worker", SOON, || {
                server.workers().into_iter().any(|it| of_slot(&it) && it.pid != workers[0].pid)
            });
            server.wait_serving();
        }
    }
    killed
}

fn nobody_notices_dead_keepers(workers_too: bool) {
    let _machine = beside_others();
    let server = Setup::new(3).start();
    let address = server.address();
    let mut idle: Vec<Client> = (0..24).map(|_| Client::connect(&address)).collect();
    idle[..12].iter_mut().for_each(Client::assert_usable);
    let load = Load::start(&address, 12, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(200);
    let kills = knob("PHALANX_KEEPER_KILLS", 24) as u32;
    let killed = kill_keepers(&server, 3, kills, workers_too);
    load.wait_for(200);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_serving();
    idle.iter_mut().for_each(Client::assert_usable);
    server.wait_total(tally.answered + 36);
    let status = server.status();
    println!("{killed} keepers killed: {status}");
    assert!(killed > kills / 2, "{killed} keepers killed");
    assert_eq!((status.total("accepted"), status.total("closed")), (36, 0), "{status}");
}

#[test]
fn nobody_notices_that_keepers_are_killed() {
    nobody_notices_dead_keepers(false);
}

#[test]
fn nobody_notices_that_keepers_and_workers_of_other_slots_are_killed() {
    nobody_notices_dead_keepers(true);
}

#[test]
fn a_worker_killed_while_it_fetches_is_succeeded_by_one_that_fetches_the_rest_once() {
    let _machine = beside_others();
    for nth in [1, 7, 70, 139] {
        let server = Setup::new(1).environment("PHALANX_CRASH_POINT", &format!("moved:{nth}")).start();
        let address = server.address();
        let mut clients: Vec<Client> = (0..140).map(|_| Client::connect(&address)).collect();
        clients[..100].iter_mut().for_each(Client::assert_usable);
        // The beginning of a request moves with its connection.
        clients[90..].iter_mut().for_each(|client| client.send(b"GET /hello HTTP/1.1\r\n"));
        server.wait_total(100);
        let old = server.worker(0);
        assert!(processes::signal(server.keeper(0), Signal::SIGKILL));
        wait_until("the old table's worker is gone", SOON, || !processes::lives(old));
        for client in &mut clients[90..] {
            client.send(b"Host: test\r\n\r\n");
            client.answer().assert(200, HELLO);
        }
        clients.iter_mut().for_each(Client::assert_usable);
        server.wait_total(290);
        let status = server.status();
        assert_eq!(status.sum("restarts"), 2, "the point was not passed: {status}");
        assert_eq!((status.total("accepted"), status.total("closed")), (140, 0), "{status}");
        drop(clients);
        wait_until("no connection is open", SOON, || server.status().total("connections") == 0);
    }
}

#[test]
fn a_keeper_and_its_worker_killed_together_leave_a_slot_that_serves() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    for _round in 0..5 {
        server.wait_serving();
        let keeper = server.keeper(1);
        let worker = server.worker(1);
        processes::signal(keeper, Signal::SIGKILL);
        processes::signal(worker, Signal::SIGKILL);
        wait_until("another keeper", SOON, || server.find_keeper(1).is_some_and(|other| other != keeper));
    }
    server.wait_serving();
    for _ in 0..8 {
        Client::connect(&server.address()).assert_usable();
    }
    server.wait_total(8);
}

#[test]
fn a_keeper_that_dies_before_it_clones_leaves_nothing_to_wait_for() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let (keeper, worker) = (server.keeper(0), server.worker(0));
    assert!(processes::signal(keeper, Signal::SIGSTOP));
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("a successor is ordered", SOON, || server.log().contains("clone incarnation 2"));
    assert!(processes::signal(keeper, Signal::SIGKILL));
    assert_only_ledger(&server);
    assert_eq!(server.status().slots()[0]["incarnation"], 3);
}

#[test]
fn a_keeper_that_dies_before_it_tells_whom_it_has_cloned_leaves_nothing_to_wait_for() {
    let _machine = beside_others();
    let server = Setup::new(1).environment("PHALANX_KEEPER", "slow").start();
    let (keeper, worker) = (server.keeper(0), server.worker(0));
    assert!(processes::signal(worker, Signal::SIGKILL));
    let second = || server.workers().iter().find(|process| process.worker() == Some((0, 2))).map(|process| process.pid);
    wait_until("a successor", SOON, || second().is_some());
    let untold = second().unwrap();
    assert!(processes::signal(keeper, Signal::SIGKILL));
    wait_until("it has left", SOON, || !processes::lives(untold));
    assert_only_ledger(&server);
    assert_eq!(server.status().slots()[0]["incarnation"], 3);
}

/// The slot serves, and its master waits for nobody of a former table.
fn assert_only_ledger(server: &Server) {
    server.wait_serving();
    wait_until("its former table is let go", SOON, || processes::ledgers(server.master()) == 1);
    server.connect().assert_usable();
}
