//! Workers are replaced for each reason there is, under load, and no client notices.

use nix::sys::signal::Signal;

use crate::harness::{Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, beside_others, processes, wait_until};

const SLOTS: usize = 3;
const RECYCLES: u64 = 20;

fn setup() -> Setup {
    let leak = "[[site.route]]\npath = \"= /leak\"\nfault = \"leak\"\n[[site.route]]\npath = \"= /hoard\"\nfault = \"hoard\"\n";
    Setup::new(SLOTS).set("workers", "allow_faults = true").routes(leak)
}

/// Recycles so far: every incarnation but the first of each slot.
fn recycles(server: &Server) -> u64 {
    server.status().sum("incarnation").saturating_sub(SLOTS as u64)
}

/// Twenty recycles while strict clients ask and others idle; `cause` is done again and again until there are so many.
fn nobody_notices(setup: Setup, mut cause: impl FnMut(&Server)) {
    let _machine = beside_others();
    let server = setup.start();
    let address = server.address();
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    idle[..10].iter_mut().for_each(Client::assert_usable);
    let load = Load::start(&address, 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    while recycles(&server) < RECYCLES {
        cause(&server);
        load.wait_for(20);
        let away = server.status().slots().iter().filter(|slot| slot["state"] == "booting").count();
        assert_eq!(away, 0, "a slot was without a worker: {}", server.status());
    }
    load.wait_for(100);
    let tally = load.finish();
    tally.assert_clean();
    idle.iter_mut().for_each(Client::assert_usable);
    server.wait_serving();
    let status = server.status();
    println!("{} recycles, {} answers: {status}", recycles(&server), tally.answered);
    assert_eq!((status.sum("restarts"), status.total("closed"), status.total("rescued")), (0, 0, 0), "{status}");
    wait_until("no predecessor is left", SOON, || server.workers().len() == SLOTS);
}

#[test]
fn nobody_notices_that_workers_are_replaced_after_so_many_requests() {
    nobody_notices(setup().set("workers", "max_requests = 400"), |_| ());
}

#[test]
fn nobody_notices_that_workers_are_replaced_after_so_long() {
    nobody_notices(setup().set("workers", "max_age = \"300ms\""), |_| ());
}

#[test]
fn nobody_notices_that_workers_are_replaced_for_their_memory() {
    nobody_notices(setup().set("workers", "max_memory = \"24MiB\""), |server| {
        let before = recycles(server);
        // Four times 16 MiB: twice that in at least one of three workers.
        (0..4).for_each(|_| assert_eq!(server.connect().patient(SOON).get("/leak").status, 200));
        wait_until("somebody is replaced", SOON, || recycles(server) > before);
    });
}

#[test]
fn nobody_notices_that_workers_are_replaced_because_somebody_asks() {
    let mut round = 0;
    nobody_notices(setup(), |server| {
        round += 1;
        match round % 3 {
            0 => _ = server.cli("recycle", &[]).assert_said(0, &["3 workers are replaced"]),
            1 => _ = server.cli("recycle", &["1"]).assert_said(0, &["1 worker is replaced"]),
            _ => {
                let before = recycles(server);
                assert!(processes::signal(server.worker(2), Signal::SIGTERM));
                wait_until("it is replaced", SOON, || recycles(server) > before);
            }
        }
    });
}

#[test]
fn a_slot_that_is_not_there_is_not_recycled() {
    let _machine = beside_others();
    let server = setup().start();
    server.cli("recycle", &["7"]).assert_said(1, &["there is no slot 7", "0 to 2"]);
}

#[test]
fn a_request_that_takes_memory_without_end_is_ended_and_named() {
    let _machine = beside_others();
    let server = setup().set("workers", "hard_memory = \"256MiB\"").start();
    let address = server.address();
    let mut innocents: Vec<Client> = (0..12).map(|_| Client::connect(&address).patient(SOON)).collect();
    innocents.iter_mut().for_each(Client::assert_usable);
    let mut own = server.connect().patient(SOON);
    own.send(b"GET /hoard HTTP/1.1\r\nHost: test\r\n\r\n");
    own.wait_taken();
    innocents.iter_mut().for_each(|client| client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"));
    let response = own.answer();
    assert_eq!(response.status, 500, "{response}");
    innocents.iter_mut().for_each(|client| client.answer().assert(200, HELLO));
    wait_until("a crash report", SOON, || !server.crash_reports().is_empty());
    let (_, report) = server.crash_reports().remove(0);
    let cause = report["cause"].as_str().unwrap();
    assert!(cause.contains("killed for its memory") && cause.contains("hard_memory"), "{report:#}");
    assert_eq!(report["suspect"]["request"], "GET /hoard HTTP/1.1", "{report:#}");
}
