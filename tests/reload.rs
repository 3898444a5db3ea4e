//! Changing a running service: reload and scale, without a client noticing more than the new answers.

use nix::sys::signal::Signal;

use crate::harness::{self, Ask, HELLO, Load, Manners, SOON, Server, Setup, alone, beside_others, knob, wait_until};

const SMALL_BYTES: usize = 1024;

fn asks() -> Vec<Ask> {
    vec![Ask::get("/hello", HELLO), Ask::get("/small", harness::pattern(SMALL_BYTES, 1)), Ask::get("/hello", HELLO)]
}

fn setup(workers: usize) -> Setup {
    Setup::new(workers).set("log", "level = \"info\"").file("small", harness::pattern(SMALL_BYTES, 1))
}

#[test]
fn fifty_reloads_under_load_fail_no_request_and_close_no_connection() {
    let _machine = alone();
    let server = setup(4).set("workers", "probation = \"0s\"").start();
    let load = Load::start(&server.address(), 24, Manners::Strict, &asks());
    load.wait_for(200);
    let reloads = knob("PHALANX_RELOADS", 50) as u64;
    let first = server.status().generation();
    for reload in 1..=reloads {
        server.signal(Signal::SIGHUP);
        wait_until(&format!("reload {reload} is carried out"), SOON, || server.status().generation() == first + reload);
        load.wait_for(100);
    }
    let tally = load.finish();
    tally.assert_clean();
    server.wait_serving();
    server.wait_total(tally.answered);
    let status = server.status();
    assert_eq!(status.total("accepted"), 24, "a connection was lost and made again: {status}");
}

#[test]
fn signals_in_a_burst_are_one_reload_or_several_and_lose_nothing() {
    let _machine = alone();
    let server = setup(2).start();
    let load = Load::start(&server.address(), 24, Manners::Strict, &asks());
    for _signal in 0..50 {
        server.signal(Signal::SIGHUP);
        load.wait_for(10);
    }
    load.wait_for(500);
    let tally = load.finish();
    tally.assert_clean();
    wait_until("the last reload is carried out", SOON, || server.cli("reload", &[]).code() == 0);
    server.wait_serving();
    server.wait_total(tally.answered);
}

#[test]
pub(crate) fn an_idle_connection_lives_through_a_reload_and_gets_the_new_answer() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.assert_usable());
    server.rewrite(|text| text.replace("Hello, World!", "Hello, new World!"));
    server.cli("reload", &[]).assert_code(0);
    for client in &mut clients {
        client.get("/hello").assert(200, b"Hello, new World!");
    }
    server.wait_total(16);
    assert_eq!(server.status().total("accepted"), 8);
}

#[test]
pub(crate) fn a_response_that_runs_during_a_reload_ends_as_it_began() {
    let _machine = beside_others();
    let body = harness::pattern(16 << 20, 6);
    let server = Setup::new(1).file("large", &body).start();
    let mut client = harness::Client::connect_narrow(&server.address()).patient(SOON);
    client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    client.take_part();
    let before = server.worker(0);
    server.cli("reload", &[]).assert_code(0);
    client.answer().assert(200, &body);
    client.assert_usable();
    wait_until("the predecessor is gone", SOON, || !harness::processes::lives(before));
}

#[test]
pub(crate) fn a_half_sent_request_lives_through_a_reload() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let mut client = server.connect();
    client.send(b"GET /hello HTTP/1.1\r\nHo");
    client.wait_taken();
    server.cli("reload", &[]).assert_code(0);
    client.send(b"st: test\r\n\r\n");
    client.answer().assert(200, HELLO);
    client.assert_usable();
}

#[test]
fn a_broken_file_changes_nothing_and_is_named_with_its_line() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    let mut client = server.connect();
    client.assert_usable();
    let before: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
    server.rewrite(|text| {
        text.replace("status = 200, body = \"Hello, World!\"", "status = 9000, body = \"Hello, broken World!\"")
    });
    let text = std::fs::read_to_string(server.config()).unwrap();
    let line = text.lines().position(|line| line.contains("9000")).unwrap() + 1;
    let outcome = server.cli("reload", &[]);
    assert_ne!(outcome.code(), 0, "{outcome}");
    outcome.assert_said(outcome.code(), &[&format!("{}:{line}:", server.config().display()), "9000"]);
    server.signal(Signal::SIGHUP);
    wait_until("the log names the line", SOON, || server.log().contains(&format!("p.toml:{line}:")));
    server.wait_serving();
    let after: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
    assert_eq!(after, before, "the workers have changed");
    client.assert_usable();
}

#[test]
fn a_configuration_that_no_worker_can_boot_with_is_rolled_back() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    let mut client = server.connect();
    client.assert_usable();
    let before: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
    // No process can be READY in a millisecond; whatever happens then, the old workers go on.
    server.rewrite(|text| {
        text.replace("Hello, World!", "Hello, new World!").replace("[workers]\n", "[workers]\nboot_timeout = \"1ms\"\n")
    });
    let outcome = server.cli("reload", &[]);
    server.wait_serving();
    let answer = client.get("/hello");
    match outcome.code() {
        0 => answer.assert(200, b"Hello, new World!"),
        _ => {
            answer.assert(200, HELLO);
            let after: Vec<_> = server.workers().into_iter().map(|worker| worker.pid).collect();
            assert_eq!(after, before, "the workers have changed: {outcome}");
        }
    }
}

#[test]
fn a_scale_from_2_to_4_and_back_loses_no_answer_and_no_count() {
    let _machine = alone();
    let server = setup(2).start();
    let load = Load::start(&server.address(), 24, Manners::Reconnecting, &asks());
    load.wait_for(500);
    for round in 0..knob("PHALANX_SCALES", 3) {
        for count in [4, 2] {
            server.cli("scale", &[&count.to_string()]).assert_code(0);
            server.wait_slots(count);
            load.wait_for(500);
            println!("round {round}, {count} slots: {} answered", load.answered());
        }
    }
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered);
    let keepers = server.children().iter().filter(|child| child.keeper().is_some()).count();
    assert_eq!(keepers, 2, "{:?}", server.children());
}

#[test]
fn connections_of_the_slots_that_stay_do_not_notice_a_scale() {
    let _machine = alone();
    let server = setup(2).start();
    let load = Load::start(&server.address(), 16, Manners::Strict, &asks());
    load.wait_for(200);
    server.cli("scale", &["4"]).assert_code(0);
    server.wait_slots(4);
    load.wait_for(200);
    // Every connection was made before slots 2 and 3 were there: closing them concerns nobody.
    server.cli("scale", &["2"]).assert_code(0);
    server.wait_slots(2);
    load.wait_for(200);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered);
}

#[test]
fn scales_from_1_to_8_and_back_fail_no_request() {
    let _machine = alone();
    let server = setup(1).start();
    let load = Load::start(&server.address(), 16, Manners::Reconnecting, &asks());
    load.wait_for(200);
    for _round in 0..3 {
        server.cli("scale", &["8"]).assert_said(0, &["8 workers serve"]);
        load.wait_for(300);
        server.cli("scale", &["1"]).assert_said(0, &["1 worker serves"]);
        load.wait_for(300);
    }
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered);
    wait_until("one keeper and one worker are left", SOON, || server.children().len() == 2);
}

#[test]
fn ttin_and_ttou_add_and_take_a_slot() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    server.signal(Signal::SIGTTIN);
    server.wait_slots(3);
    server.signal(Signal::SIGTTOU);
    server.wait_slots(2);
    server.connect().assert_usable();
    assert_usable_everywhere(&server);
}

/// Connections enough that each slot gets some.
fn assert_usable_everywhere(server: &Server) {
    let mut clients: Vec<_> = (0..16).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.assert_usable());
    server.wait_total(17);
}
