//! What each model promises beside what all do.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::chaos::{nobody_notices_kills, rain};
use crate::harness::command::{Directory, run};
use crate::harness::processes::{self, Process};
use crate::harness::{
    Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, beside_others, knob, pattern, wait_until,
};

/// A handler that waits, one that computes, and some that go wrong.
const EFFORTS: &str = r#"
[[site.route]]
path = "/wait"
respond = { body = "waited", wait = "400ms" }
[[site.route]]
path = "/long"
respond = { body = "waited", wait = "30s" }
[[site.route]]
path = "/work"
respond = { body = "worked", work = "20ms" }
"#;
const FAULTS: &str = r#"
[[site.route]]
path = "/segv"
fault = "segv"
[[site.route]]
path = "/exit"
fault = "exit"
[[site.route]]
path = "/spin"
fault = "spin"
"#;
const WAIT: Duration = Duration::from_millis(400);

/// One worker of a model, with routes that take their time.
fn setup(model: &str) -> Setup {
    Setup::new(1).set("workers", &format!("model = \"{model}\"")).routes(EFFORTS)
}

/// The same with routes that go wrong, where a request may be worked on for `limit`.
fn faulty(model: &str, limit: &str) -> Setup {
    let limit = format!("request_timeout = \"{limit}\"");
    setup(model).set("workers", "allow_faults = true").set("workers", &limit).routes(FAULTS)
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").into_bytes()
}

// ---- kills ----

/// 200 workers are killed; no client notices, and the counters agree.
fn nobody_notices_kills_under(model: &str) {
    let small = pattern(1024, 1);
    let setup = Setup::new(2).set("workers", &format!("model = \"{model}\"")).file("small", &small);
    let asks = [Ask::get("/hello", HELLO), Ask::get("/small", small)];
    nobody_notices_kills(setup, &asks, knob("PHALANX_MODEL_KILLS", 200));
}

#[test]
fn nobody_notices_200_kills_under_reactor_pool() {
    nobody_notices_kills_under("reactor-pool");
}

#[test]
fn nobody_notices_200_kills_under_multi_reactor() {
    nobody_notices_kills_under("multi-reactor");
}

#[test]
fn nobody_notices_200_kills_under_thread() {
    nobody_notices_kills_under("thread");
}

#[test]
fn nobody_notices_200_kills_under_process() {
    nobody_notices_kills_under("process");
}

#[test]
fn nobody_notices_200_kills_under_coroutine() {
    nobody_notices_kills_under("coroutine");
}

#[test]
fn nobody_notices_200_kills_under_uring() {
    nobody_notices_kills_under("uring");
}

/// The model reactor has `chaos` for this. Under `sync` clients are told to come again, since others wait.
#[test]
fn nobody_who_comes_again_notices_200_kills_under_sync() {
    let _machine = alone();
    let server = Setup::new(2).set("workers", "model = \"sync\"").start();
    let load = Load::start(&server.address(), 16, Manners::Reconnecting, &[Ask::get("/hello", HELLO)]);
    load.wait_for(200);
    rain(&server, Signal::SIGKILL, knob("PHALANX_MODEL_KILLS", 200), Duration::from_millis(30));
    load.wait_for(200);
    load.finish().assert_clean();
}

// ---- one handler and the others ----

/// Eight handlers wait; whoever else comes is answered meanwhile.
fn a_slow_handler_delays_nobody_else(model: &str) {
    let _machine = beside_others();
    let server = setup(model).start();
    let address = server.address();
    let begun = Instant::now();
    let mut slow: Vec<Client> = (0..8).map(|_| Client::connect(&address).patient(SOON)).collect();
    slow.iter_mut().for_each(|client| client.send(&get("/wait")));
    let mut quick = Client::connect(&address);
    quick.get("/hello").assert(200, HELLO);
    let took = begun.elapsed();
    assert!(took < WAIT, "a quick request took {took:?} beside slow ones");
    slow.iter_mut().for_each(|client| client.answer().assert(200, b"waited"));
    let took = begun.elapsed();
    assert!(took >= WAIT && took < WAIT * 4, "eight that wait at once took {took:?}");
}

#[test]
fn a_slow_handler_delays_nobody_else_where_handlers_have_threads_processes_or_coroutines() {
    for model in ["reactor-pool", "multi-reactor", "thread", "process", "coroutine"] {
        println!("{model}");
        a_slow_handler_delays_nobody_else(model);
    }
}

#[test]
fn a_slow_handler_delays_all_where_one_thread_does_everything() {
    let _machine = beside_others();
    for model in ["reactor", "uring", "sync"] {
        let server = setup(model).start();
        let address = server.address();
        let begun = Instant::now();
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(&address).patient(SOON)).collect();
        clients.iter_mut().for_each(|client| client.send(&get("/wait")));
        clients.iter_mut().for_each(|client| client.answer().assert(200, b"waited"));
        assert!(begun.elapsed() >= WAIT * 3, "{model}: {:?}", begun.elapsed());
    }
}

// ---- bounds ----

#[test]
fn one_more_than_may_wait_for_a_thread_is_told_503() {
    let _machine = beside_others();
    for model in ["reactor-pool", "multi-reactor"] {
        let server = setup(model).set("workers", "threads = 1").set("workers", "queue = 2").start();
        let address = server.address();
        // One for the thread, two to wait for it, and more.
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(&address).patient(SOON)).collect();
        clients.iter_mut().for_each(|client| client.send(&get("/wait")));
        let told: Vec<u16> = clients.iter_mut().map(|client| client.answer().status).collect();
        let count = |status| told.iter().filter(|told| **told == status).count();
        assert!(count(200) >= 3 && count(503) >= 1 && count(200) + count(503) == 8, "{model}: {told:?}");
        server.connect().assert_usable();
    }
}

#[test]
fn one_more_than_may_have_a_thread_or_a_process_is_told_503() {
    let _machine = beside_others();
    for model in ["thread", "process"] {
        let server = setup(model).set("workers", "threads = 2").start();
        let address = server.address();
        let mut busy: Vec<Client> = (0..2).map(|_| Client::connect(&address).patient(SOON)).collect();
        busy.iter_mut().for_each(|client| client.send(&get("/wait")));
        wait_until("both are served", SOON, || server.status().total("connections") == 2);
        let response = Client::connect(&address).get("/hello");
        assert!(response.status == 503 && response.closes(), "{model}: {response}");
        assert!(server.log().contains("as many connections as workers.threads allows"), "{}", server.log());
        busy.iter_mut().for_each(|client| client.answer().assert(200, b"waited"));
    }
}

// ---- handlers that hang ----

#[test]
fn a_thread_that_hangs_costs_its_request_a_504_and_nobody_else_anything() {
    let _machine = beside_others();
    for model in ["reactor-pool", "multi-reactor", "thread"] {
        println!("{model}");
        let server = faulty(model, "500ms").start();
        let address = server.address();
        let before = server.worker(0);
        let mut idle = server.connect();
        idle.assert_usable();
        let load = Load::start(&address, 2, Manners::Strict, &[Ask::get("/hello", HELLO)]);
        load.wait_for(20);
        let response = Client::connect(&address).patient(SOON).get("/spin");
        assert_eq!(response.status, 504, "{response}");
        wait_until("the worker is replaced", SOON, || {
            let workers = server.workers();
            workers.len() == 1 && workers[0].pid != before
        });
        load.wait_for(20);
        load.finish().assert_clean();
        idle.assert_usable();
    }
}

// ---- process ----

/// The processes of the worker's connections.
fn processes_of(worker: i32) -> Vec<Process> {
    processes::children(worker).into_iter().filter(Process::lives).collect()
}

fn connected(server: &Server, count: usize) -> Vec<Client> {
    let address = server.address();
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(&address).patient(SOON)).collect();
    clients.iter_mut().for_each(Client::assert_usable);
    clients
}

#[test]
fn each_connection_has_a_process_that_ends_with_it() {
    let _machine = beside_others();
    let server = setup("process").start();
    let worker = server.worker(0);
    let mut clients = connected(&server, 4);
    let before = processes_of(worker);
    assert_eq!(before.len(), 4, "{before:?}");
    assert!(before.iter().all(|process| process.title.starts_with("phalanx: connection ")), "{before:?}");
    clients.pop();
    wait_until("its process ends, and is reaped", SOON, || processes::children(worker).len() == 3);
    let living: Vec<i32> = processes_of(worker).iter().map(|process| process.pid).collect();
    assert!(living.iter().all(|pid| before.iter().any(|process| process.pid == *pid)), "{living:?} of {before:?}");
}

#[test]
fn a_fault_in_a_process_costs_its_connection_a_500_and_nobody_else_even_a_process() {
    let _machine = beside_others();
    let server = faulty("process", "60s").start();
    let worker = server.worker(0);
    let mut others = connected(&server, 3);
    let before = processes_of(worker);
    for path in ["/segv", "/exit"] {
        let mut own = server.connect().patient(SOON);
        let response = own.get(path);
        assert!(response.status == 500 && response.closes(), "{path}: {response}");
        own.assert_closed();
    }
    others.iter_mut().for_each(Client::assert_usable);
    assert_eq!(server.worker(0), worker);
    let ids = |processes: Vec<Process>| processes.iter().map(|process| process.pid).collect::<Vec<_>>();
    let before = ids(before);
    wait_until("only those of the others are left", SOON, || ids(processes_of(worker)) == before);
}

#[test]
fn a_process_that_hangs_is_ended_and_its_request_told_504() {
    let _machine = beside_others();
    let server = faulty("process", "500ms").start();
    let worker = server.worker(0);
    let mut other = server.connect();
    other.assert_usable();
    let response = server.connect().patient(SOON).get("/spin");
    assert!(response.status == 504 && response.closes(), "{response}");
    other.assert_usable();
    assert_eq!(server.worker(0), worker);
}

#[test]
fn processes_of_connections_end_with_the_service_whatever_they_do() {
    let _machine = beside_others();
    let server = faulty("process", "0s").start();
    let worker = server.worker(0);
    let mut client = server.connect();
    client.send(&get("/spin"));
    wait_until("it has a process", SOON, || processes_of(worker).len() == 1);
    let process = processes_of(worker)[0].pid;
    server.cli("stop", &["--fast"]).assert_code(0);
    wait_until("the process is gone", SOON, || !processes::lives(process));
}

#[test]
fn processes_of_connections_live_on_without_their_worker() {
    let _machine = beside_others();
    let server = setup("process").start();
    let worker = server.worker(0);
    let mut clients = connected(&server, 3);
    let before = processes_of(worker);
    // One is in the middle of a request.
    clients[0].send(&get("/wait"));
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("the worker is succeeded", SOON, || server.status().sum("restarts") == 1);
    server.wait_serving();
    clients[0].answer().assert(200, b"waited");
    clients.iter_mut().for_each(Client::assert_usable);
    let same = |process: &Process| Process::read(process.pid).is_some_and(|now| now.began == process.began);
    assert!(before.iter().all(same), "{before:?}");
    // One that dies now is succeeded all the same.
    assert!(processes::signal(before[1].pid, Signal::SIGKILL));
    clients.iter_mut().for_each(Client::assert_usable);
    assert_eq!(server.status().total("failed"), 0);
}

#[test]
fn nobody_notices_that_processes_of_connections_are_killed() {
    let _machine = alone();
    let server = Setup::new(1).set("workers", "model = \"process\"").start();
    let worker = server.worker(0);
    let load = Load::start(&server.address(), 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(200);
    let mut killed = 0;
    while killed < knob("PHALANX_MODEL_KILLS", 200) {
        let living = processes_of(worker);
        if let Some(process) = living.get(killed % living.len().max(1)) {
            killed += usize::from(processes::signal(process.pid, Signal::SIGKILL));
        }
        load.wait_for(5);
    }
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered);
    assert_eq!(server.worker(0), worker);
}

// ---- coroutine ----

#[test]
fn two_thousand_coroutines_wait_at_once_in_one_thread() {
    let _machine = alone();
    let server = setup("coroutine").start();
    let address = server.address();
    let mut clients: Vec<Client> = (0..2000).map(|_| Client::connect(&address).patient(SOON)).collect();
    let begun = Instant::now();
    clients.iter_mut().for_each(|client| client.send(&get("/wait")));
    clients.iter_mut().for_each(|client| client.answer().assert(200, b"waited"));
    assert!(begun.elapsed() < WAIT * 10, "{:?}", begun.elapsed());
}

#[test]
fn a_coroutine_ends_when_its_client_goes() {
    let _machine = beside_others();
    let server = setup("coroutine").start();
    let address = server.address();
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    clients.iter_mut().for_each(|client| client.send(&get("/long")));
    wait_until("they wait", SOON, || server.status().total("connections") == 20);
    drop(clients);
    wait_until("nobody is waited for", SOON, || server.status().total("connections") == 0);
}

// ---- sync ----

#[test]
fn a_sync_worker_has_one_connection_at_a_time_and_says_so_to_who_has_it() {
    let _machine = beside_others();
    let server = setup("sync").start();
    let address = server.address();
    let mut first = Client::connect(&address).patient(SOON);
    first.get("/hello").assert(200, HELLO);
    // Nobody waits: it is kept.
    first.assert_usable();
    let mut second = Client::connect(&address).patient(SOON);
    second.send(&get("/hello"));
    second.answer().assert(200, HELLO);
    first.assert_closed();
    let mut third = Client::connect(&address).patient(SOON);
    third.send(&get("/wait"));
    let mut fourth = Client::connect(&address).patient(SOON);
    fourth.send(&get("/hello"));
    let response = third.answer();
    response.assert(200, b"waited");
    fourth.answer().assert(200, HELLO);
}

// ---- uring ----

/// Two files' worth of requests before the first answer is read, over and over, while workers are killed: what the ring has received
/// ahead of what a connection's buffer has room for outlives them, in its order.
#[test]
fn pipelines_longer_than_their_buffers_outlive_kills_under_uring() {
    const DEEP: usize = 1000;
    let _machine = alone();
    let server = Setup::new(1).set("workers", "model = \"uring\"").file("a", b"one").file("b", b"another").start();
    let address = server.address();
    let clients: Vec<_> = (0..4)
        .map(|seed| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(&address).patient(SOON);
                let file =
                    |at: usize| if (at * at + seed).is_multiple_of(3) { ("/a", "one") } else { ("/b", "another") };
                for _round in 0..knob("PHALANX_PIPELINES", 40) {
                    client.send(&(0..DEEP).flat_map(|at| get(file(at).0)).collect::<Vec<_>>());
                    (0..DEEP).for_each(|at| client.answer().assert(200, file(at).1.as_bytes()));
                }
            })
        })
        .collect();
    let mut kills = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        kills += rain(&server, Signal::SIGKILL, 2, Duration::from_millis(50));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    println!("{kills} kills");
    assert!(kills > 5, "{kills} kills are too few to tell anything");
    server.wait_serving();
    assert_eq!((server.status().total("failed"), server.status().total("closed")), (0, 0), "{}", server.status());
}

/// Runs its arguments as a command to which io_uring_setup(2) is denied.
const WITHOUT_IO_URING: &str = "
import ctypes, os, struct, sys
load, jump, answer = 0x20, 0x15, 0x06
setup, denied, allowed = 425, 0x00050000 | 1, 0x7fff0000
steps = [(load, 0, 0, 0), (jump, 0, 1, setup), (answer, 0, 0, denied), (answer, 0, 0, allowed)]
program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
head = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(program)))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.byref(head), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn where_io_uring_is_denied_the_service_says_so_and_what_to_choose() {
    let _machine = beside_others();
    let directory = Directory::new();
    let serve = |model: &str| {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", WITHOUT_IO_URING, env!("CARGO_BIN_EXE_phalanx"), "serve", directory.text()]);
        command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--model", model]);
        command
    };
    let words =
        ["needs io_uring", "kernel.io_uring_disabled", "Operation not permitted", "choose another model", "reactor"];
    run(&directory, &mut serve("uring")).assert_said(1, &words);
}

#[test]
fn the_model_uring_is_refused_another_poller() {
    let server = setup("uring").set("workers", "poller = \"poll\"").write();
    server.cli("check", &[]).assert_said(2, &["the model uring does not wait by poll"]);
}

/// Whether a process waits for time to pass.
fn sleeps(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|place| place.contains("nanosleep"))
}

/// The kernel wakes one of those who accept from a socket for each who comes, and always the same one first.
#[test]
fn a_busy_worker_keeps_nobody_waiting_at_a_socket_that_others_accept_from_too() {
    let _machine = beside_others();
    let server = Setup::new(2)
        .set("workers", "model = \"uring\"")
        .routes(EFFORTS)
        .listen(&["127.0.0.1:0", "unix:{dir}/h"])
        .start();
    let socket = format!("unix:{}", server.directory().path("h").display());
    let mut idle = Client::connect(&socket);
    for _round in 0..5 {
        let mut slow = Client::connect(&socket).patient(SOON);
        slow.send(&get("/wait"));
        wait_until("a worker is in its handler", SOON, || server.workers().iter().any(|worker| sleeps(worker.pid)));
        let begun = Instant::now();
        Client::connect(&socket).patient(SOON).get("/hello").assert(200, HELLO);
        let took = begun.elapsed();
        assert!(took < WAIT / 2, "one of two workers is free: {took:?}");
        slow.answer().assert(200, b"waited");
    }
    idle.assert_usable();
}

/// An answer that is a connection's last is not lost over what its peer goes on to send, and what that sends is thrown away.
#[test]
fn a_client_that_sends_on_and_on_gets_the_answer_that_ends_it_under_uring() {
    let _machine = beside_others();
    let server = setup("uring").start();
    let worker = server.worker(0);
    let before = processes::cpu_time(worker);
    let mut ended = Vec::new();
    for _round in 0..10 {
        let mut client = server.connect().patient(SOON);
        // With so much behind the head that it comes in several pieces in one turn, the last ones while the answer is on its way.
        let head = b"POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 100000000\r\n\r\n";
        client.send(&[head, [b'z'; 60_000].as_slice()].concat());
        let mut sent = 0;
        while sent < 64 && client.try_send(&[b'z'; 0x10000]).is_ok() {
            sent += 1;
        }
        let response = client.answer();
        assert!(response.status == 413 && response.closes(), "{response}");
        ended.push(client);
    }
    // They stay until the server has waited for their close for long enough; nobody runs in circles meanwhile.
    wait_until("the server has closed them", SOON, || server.status().total("connections") == 0);
    let spent = processes::cpu_time(worker) - before;
    assert!(spent < Duration::from_secs(1), "{spent:?} of a processor's time");
}

#[test]
fn who_comes_to_an_idle_worker_after_a_death_is_answered_at_once() {
    let _machine = beside_others();
    let server = setup("uring").start();
    for _death in 0..10 {
        assert!(processes::signal(server.worker(0), Signal::SIGKILL));
        let begun = Instant::now();
        server.connect().patient(SOON).assert_usable();
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(900), "no ping was to wake it: {took:?}");
        server.wait_serving();
    }
}

// ---- change ----

#[test]
fn a_reload_changes_the_model_and_no_client_notices() {
    let _machine = alone();
    let server = Setup::new(2).set("workers", "model = \"reactor\"").start();
    let load = Load::start(&server.address(), 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    let mut before = "reactor";
    for model in [
        "thread",
        "uring",
        "coroutine",
        "process",
        "uring",
        "multi-reactor",
        "reactor-pool",
        "process",
        "thread",
        "reactor",
    ] {
        server.rewrite(|text| text.replace(&format!("model = \"{before}\""), &format!("model = \"{model}\"")));
        server.cli("reload", &[]).assert_code(0);
        load.wait_for(200);
        before = model;
    }
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered);
}
