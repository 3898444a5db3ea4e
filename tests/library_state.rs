//! State that the workers of a program share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::chaos::rain;
use crate::harness::command::example;
use crate::harness::processes::signal;
use crate::harness::{Ask, Client, Load, Manners, SOON, Server, Setup, alone, beside_others, knob, wait_until};

fn trial(workers: usize) -> Setup {
    let setup = Setup::of_example("trial", workers);
    let directory = setup.directory().text().to_owned();
    setup.environment("TRIAL_DIR", &directory)
}

/// Waits until a worker holds a key and does not go on; tells its pid.
fn wait_held(server: &Server) -> i32 {
    let held = server.directory().path("held");
    wait_until("somebody holds the key", SOON, || held.exists());
    let pid = server.directory().read("held").parse().unwrap();
    std::fs::remove_file(held).unwrap();
    pid
}

#[test]
fn workers_killed_while_they_hold_a_key_delay_nobody_and_lose_nothing() {
    let _machine = alone();
    let server = trial(2).start();
    let address = server.address();
    // A thousand are for whoever has the time.
    let kills = knob("PHALANX_HOLD_KILLS", 100);
    let mut longest = Duration::ZERO;
    for number in 1..=kills {
        let mut holding = Client::connect(&address).patient(SOON);
        holding.send(b"POST /hold/key HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        let holder = wait_held(&server);
        // Whoever gets it waits for the holder, or is in line behind it.
        let mut waiting = Client::connect(&address).patient(SOON);
        waiting.send(b"GET /add/key HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(signal(holder, Signal::SIGKILL));
        let killed = Instant::now();
        waiting.answer().assert(200, number.to_string().as_bytes());
        longest = longest.max(killed.elapsed());
        assert_eq!(holding.answer_to("POST").status, 500);
    }
    println!("{kills} kills, the longest wait after one {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    server.wait_serving();
}

#[test]
fn what_workers_count_is_counted_once_and_outlives_them() {
    let _machine = alone();
    let server = trial(2).start();
    let load = Load::start(&server.address(), 8, Manners::Strict, &[Ask::get("/", "Hello, World!")]);
    let mut client = Client::connect(&server.address()).patient(SOON);
    for number in 1..=100_u32 {
        client.get("/add/one").assert(200, number.to_string().as_bytes());
        if number % 20 == 0 {
            rain(&server, Signal::SIGKILL, 4, Duration::from_millis(20));
        }
    }
    load.finish().assert_clean();
    let text = client.get("/metrics").text();
    assert!(text.contains("# TYPE trial_adds_total counter\ntrial_adds_total 100\n"), "{text}");
    server.wait_serving();
    assert_eq!(server.status().figure("adds_total"), 100.0);
    server.rewrite(|text| text + "\n[timeouts]\nidle = \"50s\"\n");
    server.cli("reload", &[]).assert_code(0);
    client.get("/add/one").assert(200, b"101");
}

#[test]
fn a_rate_is_kept_by_all_workers_together_whoever_dies() {
    const KILLS: usize = 10;
    let _machine = alone();
    // Whichever request they meet.
    let server = trial(3).set("rescue", &format!("max_attempts = {KILLS}")).start();
    let address = server.address();
    let ask = |key: &'static str| {
        let address = address.clone();
        std::thread::spawn(move || {
            let mut client = Client::connect(&address).patient(SOON).quiet();
            let mut is_admitted = || match client.get(&format!("/admit/{key}")).status {
                200 => true,
                429 => false,
                status => panic!("{status}"),
            };
            (0..40).filter(|_| is_admitted()).count()
        })
    };
    let threads: Vec<_> = (0..6).map(|_| ask("all")).collect();
    let admitted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(admitted, 50);
    // A death may have counted a request twice that was run again, never once too few.
    let threads: Vec<_> = (0..6).map(|_| ask("killed")).collect();
    rain(&server, Signal::SIGKILL, KILLS, Duration::from_millis(5));
    let admitted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(admitted <= 50, "{admitted}");
}

#[test]
fn a_program_tells_why_its_state_cannot_be() {
    let _machine = beside_others();
    let server = trial(1).start();
    let mut client = Client::connect(&server.address());
    client.get("/add/a_key_that_is_too_long").assert(200, b"22 bytes, where the table takes at most 16");
}

/// A program of the test's directory: `trial` with this in its environment.
fn other(server: &Server, name: &str, environment: &str) -> String {
    let text = format!("{environment} exec {} \"$@\"", example("trial").display());
    server.directory().script(name, &text).display().to_string()
}

#[test]
fn what_workers_share_outlives_an_upgrade() {
    let _machine = beside_others();
    let server = trial(2).set("master", "probation = \"300ms\"").start();
    let mut client = Client::connect(&server.address()).patient(SOON);
    let (mut value, mut total) = (0, 0);
    let mut add = |client: &mut Client, value: &mut u32| {
        (*value, total) = (*value + 1, total + 1);
        client.get("/add/key").assert(200, value.to_string().as_bytes());
        assert_eq!(server.status().figure("adds_total"), f64::from(total));
    };
    add(&mut client, &mut value);
    let admitted = (0..60).filter(|_| client.get("/admit/key").status == 200).count();
    assert_eq!(admitted, 50);
    // The same program, one that fails, and one that has more, before the rest.
    server.cli("upgrade", &[]).assert_code(0);
    add(&mut client, &mut value);
    // What a handler executes takes over nothing.
    let environment = client.get("/environment").text();
    assert!(environment.contains("TRIAL_DIR\n") && !environment.contains("PHALANX_TAKE_OVER"), "{environment}");
    // Each says once that the table begins empty, and only the one that is right about that.
    let begin_empty = || server.log().matches("shared state: the table adds has another shape").count();
    let forgotten = || server.log().matches("shared state: the table adds of the program before is forgotten").count();
    let fails = other(&server, "fails", "TRIAL_ENTRIES=10000 PHALANX_MASTER_FAULT=segv@serving");
    server.cli("upgrade", &[&fails]).assert_said(1, &["rolled back"]);
    add(&mut client, &mut value);
    assert_eq!(begin_empty(), 1);
    let more = other(&server, "more", "TRIAL_ENTRIES=10000");
    let before = forgotten();
    server.cli("upgrade", &[&more]).assert_code(0);
    assert_eq!(begin_empty(), 2);
    value = 0;
    add(&mut client, &mut value);
    assert_eq!(server.status().figure("before_total"), 0.0);
    wait_until("what the program before alone had is forgotten", SOON, || forgotten() == before + 1);
    // Of another version, which shares all the same.
    let version = other(&server, "version", "TRIAL_ENTRIES=10000 PHALANX_STATE_VERSION=77");
    server.cli("upgrade", &[&version]).assert_code(0);
    let mut client = Client::connect(&server.address()).patient(SOON);
    add(&mut client, &mut value);
    assert_eq!(client.get("/admit/key").status, 429);
}

#[test]
fn a_program_whose_master_dies_with_a_key_in_its_hand_is_returned_from() {
    let _machine = beside_others();
    let server = trial(2).start();
    let mut client = Client::connect(&server.address()).patient(SOON);
    client.get("/add/key").assert(200, b"1");
    let holds = other(&server, "holds", "TRIAL=hooks TRIAL_FAILS=holding");
    server.cli("upgrade", &[&holds]).assert_said(1, &["rolled back", "its master panicked"]);
    client.get("/add/key").assert(200, b"2");
    assert_eq!(server.status().sum("restarts"), 0);
}

#[test]
fn programs_that_overlap_count_together() {
    let _machine = alone();
    let server = trial(2).set("master", "probation = \"100ms\"").start();
    let (address, stop) = (server.address(), AtomicBool::new(false));
    let added = std::thread::scope(|scope| {
        let add = || {
            let mut client = Client::connect(&address).patient(SOON).quiet();
            let mut added = 0;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(client.get("/add/all").status, 200);
                added += 1;
            }
            added
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(add)).collect();
        for _ in 0..5 {
            server.cli("upgrade", &[]).assert_code(0);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
    });
    assert!(added > 100, "{added}");
    Client::connect(&address).patient(SOON).get("/add/all").assert(200, (added + 1).to_string().as_bytes());
    assert_eq!(server.status().figure("adds_total"), f64::from(added + 1));
}
