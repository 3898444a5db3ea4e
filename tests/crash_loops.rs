//! Workers that die again and again: who is innocent is served all the same, the service says how it is, the log stays readable,
//! and a service that has no worker left to hope for ends, if it is told to.

use std::time::{Duration, Instant};

#[cfg(feature = "crash-points")]
use nix::sys::signal::Signal;

#[cfg(feature = "crash-points")]
use crate::harness::processes;
use crate::harness::{Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, beside_others, wait_until};

const SEGV: &str = "[[site.route]]\npath = \"= /segv\"\nfault = \"segv\"\n";

fn state(server: &Server) -> String {
    let status: serde_json::Value = serde_json::from_str(&server.cli("status", &["--json"]).stdout).unwrap();
    status["master"]["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_crash_loop_is_told_harms_no_innocent_and_ends_with_its_cause() {
    let _machine = beside_others();
    let server = Setup::new(2).set("workers", "allow_faults = true").routes(SEGV).start();
    assert_eq!(state(&server), "ok");
    let load = Load::start(&server.address(), 6, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    let (start, mut crashes, mut seen) = (Instant::now(), 0, Vec::new());
    while start.elapsed() < Duration::from_secs(5) {
        let answer = Client::connect(&server.address()).patient(SOON).get("/segv");
        assert_eq!(answer.status, 500, "{answer}");
        crashes += 1;
        seen.push(state(&server));
    }
    assert!(crashes > 10, "only {crashes} crashes");
    assert!(seen.iter().any(|state| state == "degraded" || state == "failing"), "{seen:?}");
    load.wait_for(100);
    let tally = load.finish();
    tally.assert_clean();
    wait_until("all is well again", SOON, || state(&server) == "ok");
    wait_until("the rest is told together", Duration::from_secs(15), || {
        server.log().contains("more deaths like this within 10s")
    });
    let told =
        server.log().lines().filter(|line| line.contains(") died: SIGSEGV") && !line.contains("more deaths")).count();
    println!("{crashes} crashes, {told} told one by one");
    assert!(told <= 2 * 3 * 2, "{told} of {crashes} deaths are told one by one");
    assert_eq!(server.status().sum("restarts"), crashes);
    server.wait_total(tally.answered + crashes);
}

#[test]
#[cfg(feature = "crash-points")]
fn a_service_whose_workers_all_die_at_boot_gives_up_with_an_exit_code_of_its_own() {
    let _machine = beside_others();
    let server =
        Setup::new(1).set("workers", "give_up_after = 5").environment("PHALANX_CRASH_POINT", "booting:2!").start();
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    wait_until("it fails", SOON, || server.cli("status", &["--json"]).stdout.contains("\"state\":\"failing\""));
    let status = server.wait_exit(SOON);
    assert_eq!(status.code(), Some(4), "{status:?}\n{}", server.log());
    assert!(
        server.log().contains("gave up after 5 deaths in a row in every slot, the last: SIGABRT"),
        "{}",
        server.log()
    );
}

#[test]
#[cfg(feature = "crash-points")]
fn a_worker_that_was_reaped_before_its_keeper_told_its_number_is_succeeded() {
    let _machine = beside_others();
    let server =
        Setup::new(1).environment("PHALANX_CRASH_POINT", "booting:2").environment("PHALANX_KEEPER", "slow").start();
    let mut idle = server.connect().quiet();
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    let answer = idle.get("/hello");
    assert_eq!(answer.status, 200, "{answer}");
    assert!(server.log().contains("incarnation 2) died: SIGKILL"), "{}", server.log());
}

#[test]
#[cfg(feature = "crash-points")]
fn a_slot_that_serves_keeps_the_service_from_giving_up() {
    let _machine = beside_others();
    // The second worker of each slot dies at boot, every time: one slot is left alone.
    let server =
        Setup::new(2).set("workers", "give_up_after = 2").environment("PHALANX_CRASH_POINT", "booting:2!").start();
    assert!(processes::signal(server.worker(1), Signal::SIGKILL));
    wait_until("a slot fails", SOON, || state(&server) == "degraded");
    wait_until("it has died often", SOON, || server.log().matches("slot 1: next attempt in").count() >= 4);
    server.connect().quiet().assert_usable();
}
