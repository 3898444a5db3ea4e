//! Handovers that meet with deaths: workers, keepers and their successors killed or stopped at the worst moment.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::processes::{self, Process};
use crate::harness::{
    self, Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, beside_others, wait_for_moment, wait_until,
};

/// More than the kernel takes for a client that does not read.
const DOWNLOAD_BYTES: usize = 6 << 20;
const DOWNLOAD: &[u8] = b"GET /download HTTP/1.1\r\nHost: test\r\n\r\n";
/// Larger than the 15 KiB of body that a ledger buffer holds.
const UPLOAD_BYTES: usize = 70_000;
const UPLOADED_BYTES: usize = 60_000;

fn download_bytes() -> Vec<u8> {
    harness::pattern(DOWNLOAD_BYTES, 7)
}

/// Workers that wait for a download for as long as it takes.
fn setup(workers: usize) -> Setup {
    Setup::new(workers).set("workers", "drain_timeout = \"60s\"").file("download", download_bytes())
}

/// A download that no worker can finish, because its client does not read.
fn begin_download(address: &str) -> Client {
    let mut client = Client::connect_narrow(address).patient(SOON);
    client.send(DOWNLOAD);
    client.wait_stuck();
    client
}

/// The worker of slot 0 that serves, as the master sees it.
fn serving(server: &Server) -> Option<i64> {
    let status = server.status();
    let slot = &status.slots()[0];
    ["serving", "handover"].iter().any(|state| slot["state"] == *state).then(|| slot["pid"].as_i64()).flatten()
}

/// Has the worker of slot 0 retire, which a download keeps from leaving: the two that live then, the retiring one first.
fn retire(server: &Server) -> (i32, i32) {
    let retiring = server.worker(0);
    assert!(processes::signal(retiring, Signal::SIGTERM));
    let mut successor = None;
    wait_until("a successor serves", SOON, || {
        successor = serving(server).filter(|&pid| pid != i64::from(retiring));
        successor.is_some()
    });
    assert!(processes::lives(retiring), "the download did not keep its worker");
    (retiring, successor.unwrap() as i32)
}

/// Waits until a process is gone, and whoever it was a child of knows.
fn wait_reaped(pid: i32) {
    wait_until("the dead process is reaped", SOON, || Process::read(pid).is_none());
}

#[test]
fn downloads_of_a_worker_killed_for_its_lane_are_continued_once_by_a_successor_that_was_stopped() {
    const CLIENTS: u64 = 6;
    let _machine = beside_others();
    let server = setup(1).set("workers", "max_old_generations = 1").start();
    let address = server.address();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| begin_download(&address)).collect();
    let (retiring, successor) = retire(&server);
    assert!(processes::signal(successor, Signal::SIGSTOP));
    std::thread::scope(|scope| {
        // One that retires is all that there may be: with the reload the older one is killed.
        let reload = scope.spawn(|| server.cli("reload", &[]));
        wait_reaped(retiring);
        let killed = Instant::now();
        server.status();
        // Late enough that whoever does not wait for it has booted.
        wait_for_moment(killed + Duration::from_millis(150));
        assert!(processes::signal(successor, Signal::SIGCONT));
        reload.join().unwrap().assert_code(0);
    });
    let wanted = download_bytes();
    for client in &mut clients {
        client.answer().assert(200, &wanted);
    }
    server.wait_total(CLIENTS);
    clients.iter_mut().for_each(Client::assert_usable);
    server.wait_total(2 * CLIENTS);
}

#[test]
fn a_retiring_and_a_serving_worker_killed_at_once_lose_nothing_and_the_slot_can_be_reloaded() {
    let _machine = beside_others();
    let wanted = download_bytes();
    for retiring_first in [false, true] {
        let server = setup(1).start();
        let address = server.address();
        let mut download = begin_download(&address);
        let (retiring, successor) = retire(&server);
        let load = Load::start(&address, 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
        load.wait_for(50);
        let dying = if retiring_first { [retiring, successor] } else { [successor, retiring] };
        // A master that is stopped meanwhile learns of both deaths at once.
        server.signal(Signal::SIGSTOP);
        dying.into_iter().for_each(|pid| assert!(processes::signal(pid, Signal::SIGKILL)));
        server.signal(Signal::SIGCONT);
        load.wait_for(50);
        server.cli("reload", &[]).assert_code(0);
        load.wait_for(50);
        let tally = load.finish();
        tally.assert_clean();
        download.answer().assert(200, &wanted);
        download.assert_usable();
        server.wait_serving();
        server.wait_total(tally.answered + 2);
        assert_eq!(server.status().total("accepted"), 9, "a connection was lost and made again: {}", server.status());
    }
}

#[test]
fn words_that_a_stopped_worker_never_heard_are_not_obeyed_by_the_next_one_on_its_lane() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let mut early = server.connect();
    early.assert_usable();
    let stopped = server.worker(0);
    assert!(processes::signal(stopped, Signal::SIGSTOP));
    // Tells it to retire.
    server.cli("reload", &[]).assert_code(0);
    assert!(processes::signal(stopped, Signal::SIGKILL));
    wait_reaped(stopped);
    for reload in 2..=3 {
        server.cli("reload", &[]).assert_code(0);
        server.wait_serving();
        let mut fresh: Vec<Client> = (0..4).map(|_| server.connect()).collect();
        fresh.iter_mut().for_each(Client::assert_usable);
        early.assert_usable();
        server.wait_total(1 + 5 * (reload - 1));
    }
    let status = server.status();
    assert_eq!(status.slots()[0]["incarnation"], 4, "each reload takes one worker: {status}");
}

/// Kills whoever is cloned to take over from `dead`, `after` its birth was seen.
fn kill_rescuer(server: &Server, dead: i32, after: Duration) {
    let (master, keeper) = (server.master(), server.keeper(0));
    assert!(processes::signal(dead, Signal::SIGKILL));
    // Only this file tells soon enough; the child that writes the crash report is in it too.
    let path = format!("/proc/{master}/task/{master}/children");
    let worker = |process: &Process| process.keeper() == Some(0) || process.worker().is_some_and(|(slot, _)| slot == 0);
    let mut rescuer = None;
    let start = Instant::now();
    while rescuer.is_none() {
        assert!(start.elapsed() < SOON, "nobody takes over");
        let children = std::fs::read_to_string(&path).unwrap();
        let pids = children.split_ascii_whitespace().map(|pid| pid.parse().unwrap());
        let others = pids.filter(|pid| ![dead, keeper].contains(pid));
        rescuer = others.filter_map(Process::read).find(|process| process.lives() && worker(process));
    }
    wait_for_moment(Instant::now() + after);
    assert!(processes::signal(rescuer.unwrap().pid, Signal::SIGKILL));
}

#[test]
fn uploads_that_cannot_be_replayed_get_their_500_though_rescuers_are_killed_too() {
    const CLIENTS: u64 = 8;
    const ROUNDS: u32 = 10;
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let address = server.address();
    let mut request = format!("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n");
    request.extend(std::iter::repeat_n('u', UPLOADED_BYTES));
    for round in 0..ROUNDS {
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&address)).collect();
        for client in &mut clients {
            client.send(request.as_bytes());
        }
        clients.iter().for_each(Client::wait_taken);
        // Each time a bit later in the life of the rescuer.
        kill_rescuer(&server, server.worker(0), Duration::from_micros(300) * round);
        for client in &mut clients {
            let response = client.answer();
            assert_eq!(response.status, 500, "round {round}: {response}");
            assert!(response.closes(), "round {round}: {response}");
            client.assert_closed();
        }
        server.wait_serving();
    }
    server.wait_total(CLIENTS * u64::from(ROUNDS));
    let status = server.status();
    assert_eq!(status.slots()[0]["incarnation"], 2 * ROUNDS + 1, "a worker and its rescuer die each round: {status}");
}

#[test]
fn a_slot_that_closes_is_closed_though_its_keeper_and_then_its_worker_are_killed() {
    let _machine = beside_others();
    let server = setup(2).start();
    let address = server.address();
    let mut downloads = Vec::new();
    wait_until("a download in slot 1", SOON, || {
        downloads.push(begin_download(&address));
        server.status().slots()[1]["connections"].as_u64() > Some(0)
    });
    let (keeper, worker) = (server.keeper(1), server.worker(1));
    std::thread::scope(|scope| {
        let scale = scope.spawn(|| server.cli("scale", &["1"]));
        wait_until("slot 1 drains", SOON, || server.status().slots()[1]["state"] == "draining");
        assert!(processes::signal(keeper, Signal::SIGKILL));
        wait_reaped(keeper);
        assert!(processes::lives(worker), "the worker still has its download");
        assert!(processes::signal(worker, Signal::SIGKILL));
        scale.join().unwrap().assert_code(0);
    });
    server.wait_slots(1);
    drop(downloads);
    server.cli("reload", &[]).assert_code(0);
    server.connect().assert_usable();
    server.cli("scale", &["2"]).assert_code(0);
    server.wait_slots(2);
    server.connect().assert_usable();
}

#[test]
fn a_stopped_keeper_whose_worker_is_dead_does_not_hold_up_a_fast_stop() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let (keeper, worker) = (server.keeper(0), server.worker(0));
    assert!(processes::signal(keeper, Signal::SIGSTOP));
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("the master knows", SOON, || serving(&server).is_none());
    let start = Instant::now();
    server.cli("stop", &["--fast"]).assert_code(0);
    let took = start.elapsed();
    assert!(took < SOON, "a fast stop took {took:?}");
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    wait_until("the keeper is gone", SOON, || !processes::lives(keeper));
}

#[cfg(feature = "crash-points")]
#[test]
fn a_successor_that_dies_after_accept_while_another_worker_retires_loses_nothing() {
    let _machine = beside_others();
    let server = setup(1).environment("PHALANX_CRASH_POINT", "after-accept:2").start();
    let address = server.address();
    let mut download = begin_download(&address);
    let (retiring, successor) = retire(&server);
    let mut accepted = Client::connect(&address);
    accepted.assert_usable();
    assert!(!processes::lives(successor), "the crash point was not passed");
    assert!(processes::lives(retiring));
    download.answer().assert(200, &download_bytes());
    accepted.assert_usable();
    download.assert_usable();
    server.wait_serving();
    server.wait_total(4);
    let status = server.status();
    assert_eq!((status.sum("restarts"), status.total("connections")), (1, 2), "{status}");
}

#[cfg(feature = "crash-points")]
#[test]
fn a_batch_cut_in_a_get_is_continued_and_the_post_behind_it_gets_500() {
    let _machine = beside_others();
    let body = "t".repeat(3000);
    let server = Setup::new(1)
        .routes(&format!("[[site.route]]\npath = \"/text\"\nrespond = {{ status = 200, body = \"{body}\" }}\n"))
        .environment("PHALANX_CRASH_POINT", "after-partial-write:1")
        .start();
    let mut client = server.connect();
    // One write for both answers, and half of it ends inside the first.
    client.send(
        b"GET /text HTTP/1.1\r\nHost: test\r\n\r\nPOST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n12",
    );
    client.answer().assert(200, body.as_bytes());
    let response = client.answer();
    assert_eq!(response.status, 500, "{response}");
    assert!(response.closes(), "{response}");
    client.assert_closed();
    server.connect().assert_usable();
    server.wait_total(3);
    let status = server.status();
    assert_eq!((status.sum("restarts"), status.total("continued")), (1, 1), "{status}");
}
