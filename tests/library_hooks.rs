//! What a program is told of its workers, and what it runs beside them.

use nix::sys::signal::Signal;
use phalanx::testing::TestServer;

use crate::harness::command::example;
use crate::harness::processes::{self, Process};
use crate::harness::{Client, SOON, Server, Setup, beside_others, wait_until};

fn trial(workers: usize) -> Setup {
    let setup = Setup::of_example("trial", workers).environment("TRIAL", "hooks");
    let directory = setup.directory().text().to_owned();
    setup.environment("TRIAL_DIR", &directory)
}

fn notes(server: &Server) -> Vec<String> {
    let notes = server.directory().read("notes");
    notes.lines().filter(|line| *line != "tick").map(str::to_owned).collect()
}

#[track_caller]
fn wait_noted(server: &Server, note: &str) {
    wait_until(note, SOON, || notes(server).iter().any(|line| line.starts_with(note)));
}

/// The processes of that name beside the workers.
fn backgrounds(server: &Server, name: &str) -> Vec<i32> {
    let named = |process: &Process| process.title.starts_with(&format!("phalanx: background {name}"));
    server.children().iter().filter(|process| named(process)).map(|process| process.pid).collect()
}

#[test]
fn a_program_is_told_of_its_workers_lives() {
    let _machine = beside_others();
    let server = trial(2).start();
    assert_eq!(notes(&server).iter().filter(|note| *note == "start").count(), 1);
    assert_eq!(notes(&server).iter().filter(|note| note.starts_with("fork ")).count(), 2);
    let mut client = Client::connect(&server.address()).patient(SOON);
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    wait_noted(&server, "fork 0 2");
    wait_noted(&server, "crash 0 ");
    client.get("/").assert(200, b"Hello, World!");
    server.wait_serving();
    server.cli("recycle", &["1"]).assert_code(0);
    for note in ["fork 1 2", "drain 1 1", "exit 1 1"] {
        wait_noted(&server, note);
    }
    server.cli("stop", &[]).assert_code(0);
    for note in ["drain 0 2", "drain 1 2", "exit 0 2", "exit 1 2"] {
        wait_noted(&server, note);
    }
}

/// Before there was a worker; it is as open to each, whatever becomes of those before.
#[test]
fn what_a_program_has_opened_early_is_open_to_all() {
    let _machine = beside_others();
    let server = trial(2).start();
    let mut written = 0;
    let mut write = |path: &str| {
        Client::connect(&server.address()).patient(SOON).get(path).assert(200, b"written");
        written += 1;
        for file in ["early0", "early1"] {
            assert_eq!(server.directory().read(file).len(), written, "{file} after {path}");
        }
    };
    (0..4).for_each(|_| write("/early"));
    write("/isolated/early");
    for slot in [0, 1] {
        assert!(processes::signal(server.worker(slot), Signal::SIGKILL));
        server.wait_serving();
    }
    (0..4).for_each(|_| write("/early"));
    server.cli("reload", &[]).assert_code(0);
    (0..4).for_each(|_| write("/isolated/early"));
    server.cli("upgrade", &[]).assert_code(0);
    (0..4).for_each(|_| write("/early"));
}

#[test]
fn a_hook_that_fails_is_why_a_service_does_not_start() {
    let _machine = beside_others();
    for (which, why) in [("start", "on_start: no table today"), ("fork", "after_fork: no database today")] {
        let server = trial(1).environment("TRIAL_FAILS", which).write();
        server.cli("start", &[]).assert_said(1, &[why]);
    }
}

#[test]
fn there_is_one_of_each_beside_the_workers_whatever_happens_to_them() {
    let _machine = beside_others();
    let server = trial(3).start();
    wait_noted(&server, "background ");
    let [first] = backgrounds(&server, "only one")[..] else { panic!("{:?}", server.children()) };
    for slot in 0..3 {
        assert!(processes::signal(server.worker(slot), Signal::SIGKILL));
    }
    server.wait_serving();
    server.rewrite(|text| text + "\n[timeouts]\nidle = \"50s\"\n");
    server.cli("reload", &[]).assert_code(0);
    server.cli("scale", &["4"]).assert_code(0);
    assert_eq!(backgrounds(&server, "only one"), [first]);
    // One that dies is begun again.
    assert!(processes::signal(first, Signal::SIGKILL));
    let mut second = 0;
    wait_until("another one", SOON, || match backgrounds(&server, "only one")[..] {
        [pid] => {
            second = pid;
            pid != first
        }
        _ => false,
    });
    // The next program has its own, and this one none any more.
    let program = example("trial").display().to_string();
    server.cli("upgrade", &[&program]).assert_code(0);
    wait_until("the one of the next program", SOON, || {
        let now = backgrounds(&server, "only one");
        now.len() == 1 && now[0] != second
    });
    assert!(!processes::lives(second));
    let ticks = || server.directory().read("notes").lines().filter(|line| *line == "tick").count();
    let before = ticks();
    wait_until("what is done again and again is done", SOON, || ticks() >= before + 3);
    let last = [backgrounds(&server, "only one"), backgrounds(&server, "every")].concat();
    assert_eq!(last.len(), 2);
    server.cli("stop", &[]).assert_code(0);
    assert!(last.iter().all(|pid| !processes::lives(*pid)));
}

#[test]
fn what_runs_beside_the_workers_goes_with_the_master() {
    let _machine = beside_others();
    let server = trial(1).start();
    wait_noted(&server, "background ");
    let beside = [backgrounds(&server, "only one"), backgrounds(&server, "every")].concat();
    assert_eq!(beside.len(), 2);
    server.signal(Signal::SIGKILL);
    wait_until("they are gone", SOON, || beside.iter().all(|pid| !processes::lives(*pid)));
}

// ---- the examples ----

#[test]
fn the_example_jobs_does_what_it_is_given_once() {
    let _machine = beside_others();
    let server = TestServer::of(example("jobs")).workers(2).start();
    let give =
        |job: &str| server.ask(format!("POST /jobs/{job} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").as_bytes());
    for job in 0..50 {
        let answer = give(&job.to_string());
        assert_eq!((answer.status, answer.body.as_slice()), (202, &b"queued\n"[..]));
        if job == 25 {
            server.kill_worker(0);
        }
    }
    wait_until("all is done", SOON, || server.get("/done").body.starts_with(b"50 jobs"));
    assert_eq!(give("many").status, 400);
}

#[test]
fn the_example_ffi_crash_costs_one_request() {
    let _machine = beside_others();
    let server = TestServer::of(example("ffi_crash")).start();
    let tally = server.under_load(4, "/21", || {
        assert_eq!(server.get("/crash").status, 500);
        server.wait_serving();
        let worker = server.worker(0);
        let answer = server.get("/careful/crash");
        let why = String::from_utf8_lossy(&answer.body);
        assert!(answer.status == 502 && why.contains("SIGSEGV"), "{} {why}", answer.status);
        assert_eq!(server.get("/careful/4").body, b"8\n");
        assert_eq!(server.worker(0), worker);
    });
    tally.assert_clean();
    assert_eq!((server.get("/21").body.as_slice(), server.restarts()), (&b"42\n"[..], 1));
}

#[test]
fn the_example_leaky_is_recycled_and_nobody_notices() {
    let _machine = beside_others();
    let server = Setup::of_example("leaky", 1).set("workers", "max_memory = \"64MiB\"").start();
    let mut client = Client::connect(&server.address()).patient(SOON);
    wait_until("another worker serves", SOON, || {
        client.get("/").assert_status(200);
        server.status().slots()[0]["incarnation"].as_u64() > Some(1)
    });
    assert_eq!(server.status().total("closed"), 0);
}

#[test]
fn the_example_upload_tells_how_far_it_is() {
    let _machine = beside_others();
    let setup = Setup::of_example("upload", 2).set("limits", "body = \"1GiB\"");
    let directory = setup.directory().text().to_owned();
    let server = setup.environment("UPLOADS", &directory).start();
    let body = crate::harness::pattern(2_000_000, 9);
    let mut sender = Client::connect(&server.address()).patient(SOON);
    sender.send(format!("PUT /file HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    sender.send(&body[..1_000_000]);
    let mut teller = Client::connect(&server.address()).patient(SOON);
    wait_until("half of it is there", SOON, || teller.get("/progress/file").text() == "1000000 bytes so far\n");
    assert!(!server.directory().path("file").exists());
    sender.send(&body[1_000_000..]);
    sender.answer_to("PUT").assert(201, b"2000000 bytes\n");
    assert!(std::fs::read(server.directory().path("file")).unwrap() == body);
    assert_eq!(teller.get("/progress/other").status, 404);
}
