//! The access log tells what the death of a worker has made of a request.

use nix::sys::signal::Signal;

use crate::harness::{Client, HELLO, SOON, Server, Setup, beside_others, pattern, processes, wait_until};

fn logging(setup: Setup, format: &str) -> Setup {
    setup.set("log", "access = \"{dir}/access.log\"").set("log", &format!("format = \"{format}\""))
}

/// Waits for as many lines, of which the last ends so.
#[track_caller]
fn assert_logged(server: &Server, count: usize, words: &[&str]) {
    let lines = || server.directory().read("access.log").lines().map(str::to_owned).collect::<Vec<_>>();
    wait_until("the line is written", SOON, || lines().len() >= count);
    let lines = lines();
    assert_eq!(lines.len(), count, "{lines:#?}");
    words.iter().for_each(|word| assert!(lines[count - 1].contains(word), "no {word:?} in {lines:#?}"));
}

#[test]
fn a_request_that_killed_its_worker_is_logged_as_failed() {
    let _machine = beside_others();
    let segv = "[[site.route]]\npath = \"= /segv\"\nfault = \"segv\"\n";
    for (format, outcome) in [("combined", "\" 500 "), ("json", "\"status\":500,")] {
        let server = logging(Setup::new(1), format).set("workers", "allow_faults = true").routes(segv).start();
        assert_eq!(server.connect().get("/segv").status, 500);
        let marked = if format == "json" { "\"outcome\":\"failed\"}" } else { "\" outcome=failed" };
        assert_logged(&server, 1, &["/segv", outcome, marked]);
        // Whoever comes after it has nothing to do with that.
        server.connect().get("/hello").assert(200, HELLO);
        assert_logged(&server, 2, &["/hello"]);
        assert!(!server.directory().read("access.log").lines().nth(1).unwrap().contains("outcome"));
    }
}

#[test]
#[cfg(feature = "crash-points")]
fn a_request_that_was_run_again_is_logged_as_replayed() {
    let _machine = beside_others();
    let server = logging(Setup::new(1), "combined").environment("PHALANX_CRASH_POINT", "in-handler:2").start();
    let mut client = server.connect();
    client.get("/hello").assert(200, HELLO);
    client.get("/hello").assert(200, HELLO);
    client.get("/hello").assert(200, HELLO);
    assert_logged(&server, 3, &["/hello"]);
    let log = server.directory().read("access.log");
    let marked: Vec<bool> = log.lines().map(|line| line.ends_with(" outcome=replayed")).collect();
    assert_eq!(marked, [false, true, false], "{log}");
}

#[test]
fn a_request_whose_answer_was_cut_off_is_logged_as_lost() {
    let _machine = beside_others();
    let server =
        logging(Setup::new(1), "combined").set("rescue", "enabled = false").file("large", pattern(8 << 20, 3)).start();
    let mut client = Client::connect_narrow(&server.address()).patient(SOON);
    client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    client.wait_stuck();
    wait_until("it is logged", SOON, || server.directory().read("access.log").lines().count() == 1);
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    assert_logged(&server, 2, &["/large", "\" 200 ", " outcome=lost"]);
}
