//! `phalanx chaos`: what anybody can do to a service on a test machine, and be told what came of it.

use crate::harness::{Ask, HELLO, Load, Manners, Setup, alone, beside_others};

#[test]
fn every_deed_under_load_is_told_and_loses_nothing() {
    let _machine = alone();
    let server = Setup::new(2).set("workers", "allow_faults = true").set("workers", "hang_timeout = \"600ms\"").start();
    let load = Load::start(&server.address(), 16, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(100);
    for (deed, words) in [
        ("kill", ["slot 0, pid ", "well again in "]),
        ("segv", ["slot 0, pid ", "well again in "]),
        ("hang", ["slot 0, pid ", "well again in "]),
        ("stop", ["slot 0, pid ", "well again in "]),
        ("leak", ["slot 0, pid ", " MiB more"]),
        ("keeper", ["slot 0, pid ", "well again in "]),
    ] {
        let outcome = server.cli("chaos", &[deed]);
        println!("{deed}: {}", outcome.stdout);
        outcome.assert_said(0, &words);
        assert!(
            outcome.stdout.contains(" connections kept, 0 closed; ") && outcome.stdout.ends_with("0 failed\n"),
            "{outcome}"
        );
        load.wait_for(100);
    }
    let many = server.cli("chaos", &["kill", "--count", "20"]);
    many.assert_said(0, &["slot 0, pid ", "slot 1, pid ", "20 times, at most "]);
    let one = server.cli("chaos", &["kill", "--slot", "1", "--count", "3"]);
    one.assert_said(0, &["slot 1, pid ", "3 times, at most "]);
    assert!(!one.stdout.contains("slot 0"), "{one}");
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered);
}

#[test]
fn a_service_that_does_not_allow_faults_is_not_broken() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let worker = server.worker(0);
    server.cli("chaos", &["kill"]).assert_said(1, &["not to be broken on purpose", "hint: set allow_faults"]);
    assert_eq!(server.worker(0), worker);
    let server = Setup::new(1).set("workers", "allow_faults = true").start();
    server.cli("chaos", &["kill", "--slot", "7"]).assert_said(1, &["there is no slot 7"]);
    server.cli("chaos", &["boil"]).assert_said(2, &["boil", "kill, segv, hang, stop, leak, keeper"]);
}
