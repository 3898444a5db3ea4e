//! Handlers in processes of their own.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::processes::{self, Process};
use crate::harness::{Ask, Client, Load, Manners, SOON, Server, Setup, alone, beside_others, pattern, wait_until};

fn trial() -> Setup {
    Setup::of_example("trial", 1)
}

/// The processes that have come of a worker.
fn descendants(worker: i32) -> Vec<Process> {
    let isolators = processes::children(worker);
    let handlers = isolators.iter().flat_map(|isolator| processes::children(isolator.pid));
    handlers.chain(isolators.clone()).filter(Process::lives).collect()
}

#[test]
fn an_isolated_handler_sees_and_says_what_any_other_does() {
    let _machine = beside_others();
    for model in ["reactor", "reactor-pool", "multi-reactor", "thread", "process", "coroutine", "uring"] {
        let page = pattern(300_000, 3);
        let setup = trial().set("workers", &format!("model = \"{model}\"")).file("page.txt", &page);
        let path = setup.directory().path("site/page.txt").display().to_string();
        let server = setup.start();
        let mut client = Client::connect(&server.address()).patient(SOON).takes_chunks();
        client.send(b"PUT /isolated/tell/7?q=x HTTP/1.1\r\nHost: h\r\nX-A: e\r\nContent-Length: 5\r\n\r\nhello");
        let text = client.answer_to("PUT").text();
        let expected = "PUT /isolated/tell/7 segments=[\"isolated\", \"tell\", \"7\"] id=Some(\"7\") q=Some(\"x\") x=Some(\"e\") \
            fields=3 peer=true client=Some(127.0.0.1) body=\"hello\" deadline=false";
        assert_eq!(text, expected, "{model}");
        let body = pattern(500_000, 5);
        client.send(
            format!("POST /isolated/size HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
        );
        client.send(&body);
        client.answer_to("POST").assert(200, b"500000");
        client.get(&format!("/isolated/file?path={path}")).assert(200, &page);
        client.get("/isolated/reads/200000").assert(200, &vec![b'r'; 200_000]);
        client.get("/isolated/add/key").assert(200, b"1");
        client.get("/add/key").assert(200, b"2");
        let (first, second) = (client.get("/does/tell").text(), client.get("/does/tell").text());
        assert!(first != second, "{first}: a process for each");
    }
}

#[test]
fn what_an_isolated_handler_does_to_its_process_is_a_502_and_nothing_else() {
    let _machine = alone();
    let server = trial().start();
    let worker = server.worker(0);
    let load = Load::start(&server.address(), 4, Manners::Strict, &[Ask::get("/", "Hello, World!")]);
    let mut client = Client::connect(&server.address()).patient(SOON);
    for (what, why) in [
        ("abort", "killed by SIGABRT"),
        ("exit", "exited with code 3"),
        ("recurse", "killed by SIG"),
        ("allocate", "killed by SIGABRT"),
        ("spin", "more than 1s of processor time"),
        ("wait", "took longer than 3s"),
    ] {
        let response = client.get(&format!("/does/{what}"));
        assert_eq!(response.status, 502, "{what}: {response}");
        assert!(response.text().contains(why), "{what}: {response}");
    }
    assert_eq!(client.get("/does/panic").status, 500);
    client.get("/does/tell").assert_status(200);
    load.finish().assert_clean();
    assert_eq!(server.worker(0), worker);
    wait_until("all that was made is gone", SOON, || descendants(worker).len() == 1);
}

#[test]
fn isolated_handlers_run_at_once() {
    let _machine = alone();
    let server = trial().set("workers", "threads = 32").start();
    let begun = Instant::now();
    let mut clients: Vec<Client> = (0..24).map(|_| Client::connect(&server.address()).patient(SOON)).collect();
    clients.iter_mut().for_each(|client| client.send(b"GET /isolated/waits HTTP/1.1\r\nHost: h\r\n\r\n"));
    clients.iter_mut().for_each(|client| client.answer().assert(200, b"waited"));
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(24 * 100), "{took:?}");
}

#[test]
fn an_answer_that_is_too_long_is_refused_when_that_is_known() {
    let _machine = alone();
    let server = trial().start();
    let mut client = Client::connect(&server.address()).patient(SOON);
    let begun = Instant::now();
    let response = client.get("/isolated/reads/100000000");
    assert!(response.status == 502 && response.text().contains("longer than 64 MiB"), "{response}");
    assert!(begun.elapsed() < SOON / 2, "{:?}", begun.elapsed());
}

#[test]
fn one_that_is_done_does_not_wait_for_those_that_came_later() {
    let _machine = alone();
    let server = trial().start();
    let mut quick = Client::connect(&server.address()).patient(SOON);
    let mut slow = Client::connect(&server.address()).patient(SOON);
    let begun = Instant::now();
    quick.send(b"GET /isolated/waits HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_handlers(&server, 1);
    slow.send(b"GET /does/wait HTTP/1.1\r\nHost: h\r\n\r\n");
    quick.answer().assert(200, b"waited");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(slow.answer().status, 502);
}

fn wait_handlers(server: &Server, count: usize) -> Vec<Process> {
    let mut found = Vec::new();
    wait_until("handlers have processes", SOON, || {
        found = descendants(server.worker(0));
        found.len() == count + 1
    });
    found
}

#[test]
fn what_a_worker_has_made_goes_with_it() {
    let _machine = beside_others();
    let server = trial().start();
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(&server.address()).patient(SOON)).collect();
    clients
        .iter_mut()
        .for_each(|client| client.send(b"POST /does/wait HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"));
    let made = wait_handlers(&server, 3);
    let mut idle = Client::connect(&server.address());
    idle.get("/").assert(200, b"Hello, World!");
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    clients.iter_mut().for_each(|client| assert_eq!(client.answer_to("POST").status, 500));
    wait_until("all that it had made is gone", SOON, || made.iter().all(|process| !processes::lives(process.pid)));
    idle.get("/").assert(200, b"Hello, World!");
    server.wait_serving();
    let before = processes::descriptors(server.worker(0));
    for _ in 0..20 {
        idle.get("/isolated/add/key").assert_status(200);
    }
    assert_eq!(processes::descriptors(server.worker(0)), before, "descriptors are left");
}

/// Only a new worker can have another, so one comes, and nobody notices that.
#[test]
fn a_worker_whose_isolator_is_killed_is_replaced() {
    let _machine = beside_others();
    let server = trial().start();
    let load = Load::start(&server.address(), 4, Manners::Strict, &[Ask::get("/", "Hello, World!")]);
    let worker = server.worker(0);
    let [isolator] = &descendants(worker)[..] else { panic!("one isolator") };
    assert!(processes::signal(isolator.pid, Signal::SIGKILL));
    wait_until("another worker", SOON, || server.workers().iter().all(|process| process.pid != worker));
    server.wait_serving();
    Client::connect(&server.address()).get("/isolated/add/key").assert_status(200);
    load.finish().assert_clean();
}

/// Its isolator has gone with its worker, so it gives the connection to one that has another.
#[test]
fn a_connection_whose_process_outlives_its_worker_gets_isolated_answers_again() {
    let _machine = beside_others();
    let server = trial().set("workers", "model = \"process\"").start();
    let mut client = Client::connect(&server.address()).patient(SOON);
    client.get("/isolated/add/key").assert(200, b"1");
    let worker = server.worker(0);
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("another worker", SOON, || server.workers().iter().any(|process| process.pid != worker));
    server.wait_serving();
    wait_until("an isolated answer", SOON, || client.get("/isolated/add/key").status == 200);
    client.get("/").assert(200, b"Hello, World!");
}
