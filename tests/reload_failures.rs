//! Reloads that cannot be carried out, of every kind and mixed with some that can: the one who asks is told right each time, and
//! no client notices.

use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::harness::{
    Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, beside_others, knob, pause, processes, wait_until,
};

const PROBE: &str =
    "[[site.route]]\npath = \"/probe\"\nrespond = { status = 200, body = \"well\", type = \"text/plain\" }\n";

fn setup(workers: usize) -> Setup {
    Setup::new(workers)
        .set("workers", "allow_faults = true")
        .set("workers", "boot_timeout = \"1s\"")
        .set("workers", "probation = \"400ms\"")
        .set("log", "level = \"info\"")
        .routes(PROBE)
}

/// Asks for `/probe` until it is told to end; every answer will do, but there must be one. Returns how many there were.
fn probe(address: &str, end: &AtomicBool) -> u64 {
    let mut answered = 0;
    while !end.load(Ordering::Relaxed) {
        let mut client = Client::connect(address).patient(SOON);
        let answer = client.get("/probe");
        assert!(answer.status >= 200, "{answer:?}");
        answered += 1;
        pause();
    }
    answered
}

/// Ends what runs beside a test, however the test ends.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn with_workers(text: &str, line: &str) -> String {
    let key = line.split(' ').next().unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with(&format!("{key} = "))).collect();
    kept.join("\n").replace("[workers]", &format!("[workers]\n{line}")) + "\n"
}

fn with_probe(text: &str, action: &str) -> String {
    text.replace("respond = { status = 200, body = \"well\", type = \"text/plain\" }", action)
}

/// A reload that fails: how the file is changed, the exit code, and what is told.
struct Failure {
    name: &'static str,
    edit: fn(&str, &str) -> String,
    code: i32,
    words: &'static [&'static str],
}

/// In what is given to `edit` besides the file's text is an address that another program has.
const FAILURES: &[Failure] = &[
    Failure { name: "no TOML", edit: |text, _| text.to_owned() + "[[", code: 2, words: &["not TOML"] },
    Failure {
        name: "an unknown key",
        edit: |text, _| with_workers(text, "cuont = 3"),
        code: 2,
        words: &["p.toml:", "cuont", "count"],
    },
    Failure {
        name: "a value out of bounds",
        edit: |text, _| with_workers(text, "io_threads = 1000"),
        code: 2,
        words: &["p.toml:", "1000 is more than 64"],
    },
    Failure {
        name: "nothing to serve",
        edit: |text, _| text.split("[[site]]").next().unwrap_or("").to_owned(),
        code: 2,
        words: &["no [[site]]"],
    },
    Failure {
        name: "another user",
        edit: |text, _| text.replace("[master]", "[master]\nuser = \"nobody\""),
        code: 2,
        words: &["master.user", "cannot change while the service runs"],
    },
    Failure {
        name: "more connections than the ledgers have room for",
        edit: |text, _| text.to_owned() + "[limits]\nconnections = 1000000\n",
        code: 2,
        words: &["limits.connections (upwards) cannot change"],
    },
    Failure {
        name: "an address that another program has",
        edit: |text, taken| format!("{text}[[listen]]\naddress = \"{taken}\"\n"),
        code: 1,
        words: &["nothing changes", "in use by another program"],
    },
    Failure {
        name: "a socket in a directory that is not there",
        edit: |text, _| format!("{text}[[listen]]\naddress = \"unix:/nowhere/at/all\"\n"),
        code: 1,
        words: &["nothing changes", "unix:/nowhere/at/all", "No such file"],
    },
    Failure {
        name: "a root that is not there",
        edit: |text, _| with_probe(text, "files = { root = \"/nowhere/at/all\" }"),
        code: 2,
        words: &["p.toml:", "there is no directory /nowhere/at/all"],
    },
    Failure {
        name: "a worker that dies of a request in the first moment",
        edit: |text, _| with_probe(text, "fault = \"segv\""),
        code: 1,
        words: &["rolled back", "serves again", "SIGSEGV by its own fault"],
    },
    Failure {
        name: "a worker that takes more memory than it may",
        edit: |text, _| with_workers(text, "hard_memory = \"64KiB\""),
        code: 1,
        words: &["rolled back", "serves again", "killed for its memory"],
    },
    Failure {
        name: "a canary that answers with errors",
        edit: |text, _| {
            with_probe(text, "respond = { status = 500, body = \"ill\", type = \"text/plain\" }")
                + "[canary]\ntime = \"20s\"\nerrors = 0\n"
        },
        code: 1,
        words: &["rolled back", "serves on", "of the canary's answers are 5xx"],
    },
];

#[test]
fn reloads_that_fail_in_every_way_and_some_that_do_not_fail_no_request() {
    let _machine = alone();
    let server = setup(3).start();
    let sound = std::fs::read_to_string(server.config()).unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = stranger.local_addr().unwrap().to_string();
    let mut idle: Vec<Client> = (0..8).map(|_| server.connect()).collect();
    idle.iter_mut().for_each(Client::assert_usable);
    let load = Load::start(&server.address(), 16, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    let (end, address) = (AtomicBool::new(false), server.address());
    let probed: u64 = std::thread::scope(|scope| {
        let prober = scope.spawn(|| probe(&address, &end));
        let ends = End(&end);
        let rounds = knob("PHALANX_FAILING_RELOADS", 2);
        for round in 0..rounds {
            for failure in FAILURES {
                let before = server.status().generation();
                server.rewrite(|_| (failure.edit)(&sound, &taken));
                let outcome = server.cli("reload", &[]);
                println!("{}: {}{}", failure.name, outcome.stdout, outcome.stderr);
                outcome.assert_said(failure.code, failure.words);
                server.wait_serving();
                assert_eq!(server.status().listeners(), std::slice::from_ref(&address), "after {}", failure.name);
                let answer = Client::connect(&address).get("/probe");
                answer.assert(200, b"well");
                // One that can be carried out, with something new in it.
                server.rewrite(|_| {
                    with_workers(&sound, &format!("max_requests = {}", 1_000_000_000 + round * 100 + before as usize))
                });
                let outcome = server.cli("reload", &[]);
                outcome.assert_code(0);
                assert!(outcome.stdout.contains("serves in slots 0, 1, 2\n  workers.max_requests: "), "{outcome}");
            }
        }
        drop(ends);
        prober.join().unwrap() + (rounds * FAILURES.len()) as u64
    });
    let tally = load.finish();
    tally.assert_clean();
    assert!(probed > 100, "only {probed} probes");
    idle.iter_mut().for_each(Client::assert_usable);
    server.wait_total(tally.answered + probed + 16);
    assert_eq!(server.status().total("closed"), 0);
}

#[test]
fn a_keeper_that_does_not_answer_rolls_a_reload_back_and_is_replaced() {
    let _machine = alone();
    let server = setup(2).start();
    let load = Load::start(&server.address(), 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    let keeper = server.keeper(1);
    processes::signal(keeper, Signal::SIGSTOP);
    let outcome = server.cli("reload", &[]);
    outcome.assert_said(1, &["rolled back", "generation 1 serves on"]);
    wait_until("the slot has another keeper", SOON, || server.find_keeper(1).is_some_and(|now| now != keeper));
    server.wait_serving();
    server.cli("reload", &[]).assert_code(0);
    load.wait_for(100);
    load.finish().assert_clean();
}

#[test]
#[cfg(feature = "crash-points")]
fn a_successor_that_dies_at_boot_rolls_a_reload_back() {
    let _machine = beside_others();
    for (point, cause) in [("booting:2", "SIGKILL from outside"), ("booting:2!", "SIGABRT by its own fault")] {
        let server = setup(2).environment("PHALANX_CRASH_POINT", point).start();
        let load = Load::start(&server.address(), 4, Manners::Strict, &[Ask::get("/hello", HELLO)]);
        load.wait_for(100);
        let before: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
        let rolled_back = ["rolled back, generation 1 serves on: worker ", cause];
        server.cli("reload", &[]).assert_said(1, &rolled_back);
        server.wait_serving();
        let after: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
        assert_eq!(after, before, "the workers have changed");
        load.wait_for(100);
        load.finish().assert_clean();
    }
}

/// Sets the highest descriptor number that a process may get.
fn limit_descriptors(pid: i32, most: usize) {
    let status = Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={most}:")).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_master_out_of_descriptors_changes_nothing_wherever_that_strikes() {
    let _machine = alone();
    let server = setup(2).start();
    let load = Load::start(&server.address(), 8, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    let master = server.master();
    let sound = std::fs::read_to_string(server.config()).unwrap();
    let mut refused = 0;
    for room in 0..12 {
        let other = crate::harness::command::free_port();
        server.rewrite(|_| format!("{sound}[[listen]]\naddress = \"127.0.0.1:{other}\"\n"));
        let (log, before) = (server.log().len(), server.status().generation());
        limit_descriptors(master, processes::descriptor_after(master, room));
        server.signal(Signal::SIGHUP);
        let told = || {
            server
                .log()
                .get(log..)
                .is_some_and(|log| ["reload refused", "rolled back", "reloaded:"].iter().any(|word| log.contains(word)))
        };
        wait_until("an outcome is told", SOON, told);
        limit_descriptors(master, 20_000);
        refused += usize::from(server.log()[log..].contains("nothing changes"));
        println!("room for {room}: generation {before} -> {}", server.status().generation());
        wait_until("nothing is under way", SOON, || server.cli("reload", &["--dry-run"]).code() == 0);
        server.rewrite(|_| sound.clone());
        server.cli("reload", &[]).assert_code(0);
        server.wait_serving();
        load.wait_for(50);
    }
    assert!(refused > 0, "never out of descriptors");
    load.finish().assert_clean();
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let before = server.worker(0);
    let dry = || server.cli("reload", &["--dry-run"]);
    dry().assert_said(0, &["a reload would change nothing but the workers"]);
    server.rewrite(|text| with_workers(&text, "drain_timeout = \"1m\"").replace("Hello, World!", "Hello, new World!"));
    let told = ["workers.drain_timeout: \"10s\" -> \"1m\"", "respond.body: \"Hello, World!\" -> \"Hello, new World!\""];
    dry().assert_said(0, &told);
    server.rewrite(|text| text + "[[listen]]\naddress = \"nowhere\"\n");
    dry().assert_said(2, &["p.toml:", "nowhere"]);
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    server.rewrite(|text| text.replace("nowhere", &stranger.local_addr().unwrap().to_string()));
    dry().assert_said(1, &["in use"]);
    assert_eq!((server.status().generation(), server.worker(0)), (1, before));
    server.connect().assert_usable();
}

#[test]
fn a_canary_that_does_well_is_followed_by_the_others() {
    let _machine = beside_others();
    let server = setup(3).start();
    let load = Load::start(&server.address(), 12, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    server.rewrite(|text| text + "[canary]\ntime = \"1500ms\"\n");
    let outcome = std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.cli("reload", &[]));
        let generations = |server: &Server| -> Vec<u64> {
            server.status().slots().iter().map(|slot| slot["generation"].as_u64().unwrap()).collect()
        };
        wait_until("the canary serves", SOON, || generations(&server) == [2, 1, 1]);
        assert_eq!(server.status().generation(), 1);
        let outcome = reload.join().unwrap();
        assert_eq!(generations(&server), [2; 3]);
        outcome
    });
    outcome.assert_said(0, &["generation 2 serves in slots 0, 1, 2", "canary: ", "canary.time: \"0s\" -> \"1500ms\""]);
    load.finish().assert_clean();
}
