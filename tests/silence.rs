//! Workers that do not answer: what they do is told apart, hangs are ended, hosts that are overloaded are not blamed, and nobody
//! waits for a worker that is stopped.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, processes, wait_for_moment, wait_until,
};

const LIMIT: Duration = Duration::from_secs(1);
const SLOTS: u32 = 4;

fn setup(workers: usize) -> Setup {
    Setup::new(workers).set("workers", "allow_faults = true").set("workers", "hang_timeout = \"1s\"")
}

/// A connection that slot `slot` has, by what `status` counts.
fn connect_to(server: &Server, slot: u32) -> Client {
    let mut clients: Vec<Client> = Vec::new();
    for count in 1..=200 {
        clients.push(server.connect());
        wait_until("the connection is counted", SOON, || server.status().total("connections") == count);
        if server.status().slots()[slot as usize]["connections"] == 1 {
            break;
        }
    }
    clients.pop().expect("a connection")
}

/// A request that hangs its worker in the given way: called so in the log, ended in time, and nobody's loss but its own.
/// Whether the log shows that somebody who lives is in a function, and from the function out to where all stacks begin.
fn shows(server: &Server, who: &str, function: &str) -> bool {
    let log = server.log();
    let frames = || log.lines().filter(|line| line.contains(who) && line.contains(") is in 0x"));
    frames().any(|frame| frame.contains(function)) && frames().count() > 3
}

fn hangs(fault: &str, class: &str) {
    let _machine = alone();
    let route = format!("[[site.route]]\npath = \"= /{fault}\"\nfault = \"{fault}\"\n");
    let server = setup(2).routes(&route).start();
    let address = server.address();
    let mut innocents: Vec<Client> = (0..8).map(|_| Client::connect(&address).patient(SOON)).collect();
    innocents.iter_mut().for_each(Client::assert_usable);
    let mut own = server.connect().patient(SOON);
    let start = Instant::now();
    own.send(format!("GET /{fault} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
    own.wait_taken();
    innocents.iter_mut().for_each(|client| client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"));
    let response = own.answer();
    let took = start.elapsed();
    println!("{fault}: the 504 took {took:?}");
    assert_eq!(response.status, 504, "{response}");
    innocents.iter_mut().for_each(|client| client.answer().assert(200, HELLO));
    let log = server.log();
    for words in
        [&format!("{class}: others do its accepting"), &format!("{class}: ending it"), &format!("GET /{fault}")]
    {
        assert!(log.contains(words.as_str()), "no {words:?} in\n{log}");
    }
    assert!(took < LIMIT * 2, "{took:?}");
    wait_until("where it hangs is shown before it is ended", SOON, || {
        shows(&server, "worker ", "service::fault::carry_out")
    });
    wait_until("a crash report", SOON, || !server.crash_reports().is_empty());
    let (_, report) = server.crash_reports().remove(0);
    assert_eq!(report["cause"], format!("killed because it hung, {class}"), "{report:#}");
    assert_eq!(report["suspect"]["request"], format!("GET /{fault} HTTP/1.1"), "{report:#}");
    server.wait_total(17);
    assert_eq!(server.status().sum("restarts"), 1);
}

#[test]
fn a_handler_that_spins_is_ended_as_one_that_spins() {
    hangs("spin", "spinning");
}

#[test]
fn a_handler_that_sleeps_is_ended_as_one_that_sleeps() {
    hangs("hang", "blocked in clock_nanosleep");
}

#[test]
fn a_handler_in_a_deadlock_is_ended_as_one_that_waits_for_a_lock() {
    hangs("deadlock", "blocked in futex");
}

#[test]
fn a_handler_that_reads_for_ever_is_ended_as_one_that_reads() {
    hangs("read", "blocked in read");
}

#[test]
fn nobody_waits_for_a_stopped_worker_once_that_is_noticed() {
    let _machine = alone();
    let server = setup(SLOTS as usize).start();
    let address = server.address();
    let mut held = connect_to(&server, 1);
    let stopped = server.worker(1);
    assert!(processes::signal(stopped, Signal::SIGSTOP));
    // A quarter of these is queued for the stopped one.
    let mut queued: Vec<Client> = (0..80).map(|_| Client::connect(&address).patient(SOON)).collect();
    queued.iter_mut().for_each(|client| client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n"));
    wait_until("it is noticed", LIMIT * 2, || server.log().contains("stopped: others do its accepting"));
    queued.iter_mut().for_each(|client| client.answer().assert(200, HELLO));
    let mut slowest = Duration::ZERO;
    for _connection in 0..200 {
        let start = Instant::now();
        Client::connect(&address).assert_usable();
        slowest = slowest.max(start.elapsed());
    }
    println!("the slowest of 200 new connections took {slowest:?}");
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
    assert_eq!(server.status().slots()[1]["state"], "stalled");
    wait_until("it is spared", SOON, || server.log().contains("stopped: it is not hung, and lives on"));
    assert!(processes::lives(stopped));
    // The one that accepts for it dies: another one does.
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    for _connection in 0..40 {
        Client::connect(&address).assert_usable();
    }
    assert!(processes::signal(stopped, Signal::SIGCONT));
    wait_until("it answers again", SOON, || server.log().contains("answers again after"));
    server.wait_serving();
    held.assert_usable();
    let status = server.status();
    assert_eq!((status.sum("restarts"), status.total("failed"), status.total("closed")), (1, 0, 0), "{status}");
    for _connection in 0..40 {
        Client::connect(&address).assert_usable();
    }
}

/// Processes that leave nobody else on their processor anything.
struct Burners(Vec<Child>);

impl Burners {
    fn start(count: usize, processor: usize) -> Burners {
        let burn = |_| {
            let mut command = Command::new("taskset");
            command.args(["-c", &processor.to_string(), "sh", "-c", "while :; do :; done"]);
            command.stdin(Stdio::null()).spawn().expect("taskset of util-linux")
        };
        Burners((0..count).map(burn).collect())
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            let _gone_already = burner.kill();
            let _reaped = burner.wait();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn a_worker_without_processor_time_is_never_killed_for_it() {
    let _machine = alone();
    let server = setup(2).set("workers", "hang_timeout = \"200ms\"").start();
    let starved = server.worker(1);
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let burners = Burners::start(8, last);
    run("taskset", &["-p", "-c", &last.to_string(), &starved.to_string()]);
    run("chrt", &["--idle", "-p", "0", &starved.to_string()]);
    wait_until("it is noticed", Duration::from_secs(30), || {
        server.log().contains("starved of processor time: it is not hung")
    });
    let load = Load::start(&server.address(), 4, Manners::Reconnecting, &[Ask::get("/hello", HELLO)]);
    load.wait_for(50);
    drop(load);
    drop(burners);
    wait_until("it answers again", SOON, || server.log().contains("it was starved of processor time"));
    assert!(processes::lives(starved), "{}", server.log());
    server.wait_serving();
    assert_eq!(server.status().sum("restarts"), 0);
    assert!(!server.log().contains("ending it"), "{}", server.log());
}

/// One worker whose pool works for a second at most on a request, and its pooled fault.
fn pooled(fault: &str) -> Setup {
    let route = format!("[[site.route]]\npath = \"= /{fault}\"\nfault = \"{fault}\"\n");
    setup(1).set("workers", "hang_timeout = \"30s\"").set("workers", "request_timeout = \"1s\"").routes(&route)
}

fn ask_for(server: &Server, fault: &str) -> Client {
    let mut client = server.connect().patient(SOON);
    client.send(format!("GET /{fault} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
    client.wait_taken();
    client
}

/// A request that keeps a thread of the pool for ever is answered in time, called what it is, and costs nobody anything: its
/// worker is replaced in order.
fn hangs_in_the_pool(fault: &str, class: &str) {
    let _machine = alone();
    let server = pooled(fault).start();
    // Not more than leaves the thread a processor: time without one is not counted as its own.
    let load = Load::start(&server.address(), 1, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    let before = server.worker(0);
    let start = Instant::now();
    let mut own = ask_for(&server, fault);
    let response = own.answer();
    let took = start.elapsed();
    println!("{fault}: the 504 took {took:?}");
    assert_eq!(response.status, 504, "{response}");
    assert!(took < LIMIT * 2, "{took:?}");
    own.assert_usable();
    let log = server.log();
    let words = format!("on `GET /{fault} HTTP/1.1` of 127.0.0.1, ");
    assert_eq!(log.matches(&words).count(), 2, "a suspicion and a verdict {words:?} in\n{log}");
    assert!(log.contains(&format!("{words}{class}: given up, this worker is to be replaced")), "{log}");
    wait_until("where it hangs is shown", SOON, || shows(&server, "thread ", "service::fault::carry_out"));
    wait_until("the worker is replaced", SOON, || {
        let workers = server.workers();
        workers.len() == 1 && workers[0].pid != before
    });
    load.wait_for(100);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered + 2);
    let status = server.status();
    assert_eq!((status.sum("restarts"), status.total("accepted")), (0, 2), "{status}");
}

#[test]
fn a_pooled_handler_that_spins_is_given_up_as_one_that_spins() {
    hangs_in_the_pool("pooled-spin", "spinning");
}

#[test]
fn a_pooled_handler_that_sleeps_is_given_up_as_one_that_sleeps() {
    hangs_in_the_pool("pooled-hang", "blocked in clock_nanosleep");
}

#[test]
fn a_pooled_handler_in_a_deadlock_is_given_up_as_one_that_waits_for_a_lock() {
    hangs_in_the_pool("pooled-deadlock", "blocked in futex");
}

#[test]
fn a_pooled_handler_that_reads_for_ever_is_given_up_as_one_that_reads() {
    hangs_in_the_pool("pooled-read", "blocked in read");
}

#[test]
fn who_waits_for_a_thread_that_is_given_up_gets_another() {
    let _machine = alone();
    let faults = "[[site.route]]\npath = \"= /quick\"\nfault = \"pooled-panic\"\n";
    let server = pooled("pooled-hang").set("workers", "io_threads = 1").routes(faults).start();
    let mut stuck = ask_for(&server, "pooled-hang");
    let mut behind = ask_for(&server, "quick");
    assert_eq!(stuck.answer().status, 504);
    let start = Instant::now();
    assert_eq!(behind.answer().status, 500, "it panics, as soon as there is a thread");
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
    server.wait_serving();
    server.connect().assert_usable();
}

#[test]
fn a_stopped_worker_is_not_blamed_for_what_its_pool_did_not_do_meanwhile() {
    let _machine = alone();
    let server = pooled("pooled-hang").start();
    let worker = server.worker(0);
    let mut stuck = ask_for(&server, "pooled-hang");
    assert!(processes::signal(worker, Signal::SIGSTOP));
    wait_for_moment(Instant::now() + LIMIT * 2);
    let resumed = Instant::now();
    assert!(processes::signal(worker, Signal::SIGCONT));
    assert_eq!(stuck.answer().status, 504);
    let took = resumed.elapsed();
    assert!(took > LIMIT / 2, "its second had not passed: {took:?}");
}

#[test]
fn a_thread_without_processor_time_is_never_given_up_for_it() {
    let _machine = alone();
    let server = pooled("pooled-spin").set("workers", "request_timeout = \"500ms\"").start();
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let burners = Burners::start(8, last);
    // The pool's thread exists from its first job on.
    let mut starved = ask_for(&server, "pooled-spin");
    let thread = processes::thread_named(server.worker(0), "phalanx-io").expect("a thread of the pool").to_string();
    run("taskset", &["-p", "-c", &last.to_string(), &thread]);
    run("chrt", &["--idle", "-p", "0", &thread]);
    wait_until("it is noticed", Duration::from_secs(30), || server.log().contains("starved of processor time"));
    let waited = || processes::time_waited(server.worker(0), &thread);
    let before = waited();
    wait_until("it has waited for a processor for long", Duration::from_secs(30), || waited() - before > LIMIT * 2);
    assert!(!server.log().contains("given up"), "{}", server.log());
    drop(burners);
    assert_eq!(starved.answer().status, 504);
    assert!(server.log().contains("given up"));
}
