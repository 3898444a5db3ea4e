//! A request that breaks its worker costs itself an error, and nobody else anything.

use std::time::{Duration, Instant};

use crate::harness::{
    Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, beside_others, processes, wait_until,
};

fn setup() -> Setup {
    let setup = Setup::new(1).set("workers", "allow_faults = true").set("workers", "hang_timeout = \"1s\"");
    ["segv", "abort", "overflow", "panic", "exit", "hang"].iter().fold(setup, |setup, fault| {
        setup.routes(&format!("[[site.route]]\npath = \"= /{fault}\"\nfault = \"{fault}\"\n"))
    })
}

/// Asks for the fault beside an idle connection and one that works without a pause.
fn costs_only_itself(fault: &str, status: u16, restarts: u64) -> Server {
    costs_only_itself_in(setup(), fault, status, restarts)
}

fn costs_only_itself_in(setup: Setup, fault: &str, status: u16, restarts: u64) -> Server {
    let server = setup.start();
    let address = server.address();
    let mut idle = Client::connect(&address);
    idle.assert_usable();
    let load = Load::start(&address, 2, Manners::Strict, &[Ask::get("/hello", HELLO)]);
    load.wait_for(20);
    let mut own = Client::connect(&address).patient(SOON);
    let response = own.get(&format!("/{fault}"));
    assert_eq!(response.status, status, "{fault}: {response}");
    assert!(response.closes() || restarts == 0, "{fault}: {response}");
    match response.closes() {
        true => own.assert_closed(),
        false => own.assert_usable(),
    }
    load.wait_for(20);
    let tally = load.finish();
    tally.assert_clean();
    idle.assert_usable();
    wait_until(&format!("{restarts} restarts"), SOON, || server.status().sum("restarts") == restarts);
    server.wait_serving();
    server.connect().assert_usable();
    // Two by the idle connection, the fault's own, one by the last; one more where the fault's connection lives on.
    server.wait_total(tally.answered + 4 + u64::from(!response.closes()));
    server
}

/// The report of the only crash names the request and what was in flight; its cause says one of these.
fn assert_report(server: &Server, fault: &str, causes: &[&str]) -> serde_json::Value {
    wait_until("a crash report", SOON, || !server.crash_reports().is_empty());
    let reports = server.crash_reports();
    assert_eq!(reports.len(), 1, "{reports:#?}");
    let report = &reports[0].1;
    let cause = report["cause"].as_str().unwrap_or_else(|| panic!("no cause in {report:#}"));
    assert!(causes.iter().any(|one| cause.to_lowercase().contains(one)), "the cause is {cause:?}: {report:#}");
    let request = report["suspect"]["request"].as_str().unwrap_or_else(|| panic!("no suspect in {report:#}"));
    assert!(request.contains(&format!("GET /{fault}")), "the suspect is {request:?}: {report:#}");
    assert!(report["suspect"]["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{report:#}");
    assert!(report["in_flight"].is_array(), "{report:#}");
    wait_until("a log line names the request", SOON, || server.log().contains(&format!("/{fault}")));
    report.clone()
}

fn assert_backtrace(report: &serde_json::Value) {
    let frames = report["backtrace"].as_array().unwrap_or_else(|| panic!("no backtrace in {report:#}"));
    assert!(frames.len() > 2, "{report:#}");
}

#[test]
pub(crate) fn a_segmentation_fault_costs_its_request_a_500_and_is_reported_with_a_backtrace() {
    let _machine = beside_others();
    let server = costs_only_itself("segv", 500, 1);
    assert_backtrace(&assert_report(&server, "segv", &["segv", "segmentation"]));
}

/// A server whose pool dies of every file.
#[cfg(feature = "crash-points")]
fn with_a_broken_pool() -> Setup {
    let setup = setup().file("broken", "never seen").environment("PHALANX_DISK", "cold");
    setup.environment("PHALANX_CRASH_POINT", "in-pool:1!")
}

#[cfg(feature = "crash-points")]
#[test]
fn a_thread_of_the_pool_that_faults_costs_the_request_it_works_for_a_500() {
    let _machine = beside_others();
    let server = costs_only_itself_in(with_a_broken_pool(), "broken", 500, 1);
    let report = assert_report(&server, "broken", &["abrt", "abort"]);
    assert_eq!(report["suspect"]["phase"], "pool", "{report:#}");
    let frames = report["backtrace"].to_string();
    assert!(frames.contains("phalanx_worker::pool"), "{report:#}");
}

/// Each who waits for the same job meets the fault in turn, and nobody for ever.
#[cfg(feature = "crash-points")]
#[test]
fn a_fault_in_a_job_of_many_ends_with_the_last_who_asked_for_it() {
    const ASK: u64 = 5;
    let _machine = beside_others();
    let server = with_a_broken_pool().start();
    let mut idle = server.connect();
    let mut asking: Vec<Client> = (0..ASK).map(|_| server.connect().patient(SOON)).collect();
    asking.iter_mut().for_each(|client| client.send(b"GET /broken HTTP/1.1\r\nHost: test\r\n\r\n"));
    for client in &mut asking {
        let response = client.answer();
        assert!(response.status == 500 && response.closes(), "{response}");
        client.assert_closed();
    }
    server.wait_serving();
    assert_eq!(server.status().sum("restarts"), ASK);
    idle.assert_usable();
    server.wait_total(ASK + 1);
}

#[test]
fn an_abort_costs_its_request_a_500_and_is_reported_with_a_backtrace() {
    let _machine = beside_others();
    let server = costs_only_itself("abort", 500, 1);
    assert_backtrace(&assert_report(&server, "abort", &["abrt", "abort"]));
}

#[test]
fn a_stack_overflow_costs_its_request_a_500_and_is_reported() {
    let _machine = beside_others();
    let server = costs_only_itself("overflow", 500, 1);
    assert_report(&server, "overflow", &["overflow", "segv", "segmentation", "abrt"]);
}

#[test]
fn an_exit_costs_its_request_a_500_and_is_reported() {
    let _machine = beside_others();
    let server = costs_only_itself("exit", 500, 1);
    assert_report(&server, "exit", &["exit"]);
}

#[test]
pub(crate) fn a_panic_costs_its_request_a_500_and_not_even_a_worker() {
    let _machine = beside_others();
    let server = costs_only_itself("panic", 500, 0);
    assert_eq!(server.workers()[0].worker(), Some((0, 1)), "the first incarnation still serves");
    assert!(server.crash_reports().is_empty(), "{:#?}", server.crash_reports());
    wait_until("the panic is logged", SOON, || server.log().contains("panic"));
}

#[test]
fn a_hang_costs_its_request_a_504_and_the_others_a_wait() {
    // Clients of the slot wait for hang_timeout: the load's 3 s of patience has to hold it.
    let _machine = alone();
    let server = setup().start();
    let address = server.address();
    let mut idle = Client::connect(&address);
    idle.assert_usable();
    let mut own = Client::connect(&address).patient(SOON);
    let mut beside = Client::connect(&address).patient(SOON);
    beside.assert_usable();
    let start = Instant::now();
    own.send(b"GET /hang HTTP/1.1\r\nHost: test\r\n\r\n");
    own.wait_taken();
    beside.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n");
    let response = own.answer();
    let took = start.elapsed();
    println!("the 504 took {took:?}");
    assert_eq!(response.status, 504, "{response}");
    assert!(response.closes(), "{response}");
    own.assert_closed();
    beside.answer().assert(200, HELLO);
    idle.assert_usable();
    assert!(took >= Duration::from_millis(900), "a hang of {took:?} is shorter than hang_timeout");
    assert_report(&server, "hang", &["hang", "hung"]);
    server.wait_serving();
    server.wait_total(5);
}

#[test]
fn a_request_that_kills_every_worker_it_meets_does_not_make_the_slot_fail_for_others() {
    let _machine = beside_others();
    let server = setup().start();
    let mut steady = server.connect();
    for _fault in 0..20 {
        let mut own = server.connect();
        assert_eq!(own.get("/segv").status, 500);
        steady.assert_usable();
    }
    wait_until("20 restarts", SOON, || server.status().sum("restarts") == 20);
    server.wait_serving();
    server.wait_total(40);
}

#[test]
fn fault_routes_are_refused_unless_allowed() {
    let _machine = beside_others();
    let server = setup().unset("workers", "allow_faults").write();
    server.cli("check", &[]).assert_said(2, &["allow_faults"]);
}

#[test]
fn a_worker_that_dies_between_requests_leaves_a_report_without_a_suspect() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let mut idle = server.connect();
    idle.assert_usable();
    processes::signal(server.worker(0), nix::sys::signal::Signal::SIGKILL);
    idle.assert_usable();
    wait_until("a crash report", SOON, || !server.crash_reports().is_empty());
    let (name, report) = server.crash_reports().remove(0);
    assert!(report["suspect"].is_null(), "{name}: {report:#}");
    assert!(report["cause"].as_str().is_some_and(|cause| cause.to_lowercase().contains("kill")), "{name}: {report:#}");
    let status = server.status();
    assert!(status.slots()[0]["cause_of_last_death"].as_str().is_some_and(|cause| !cause.is_empty()), "{status}");
}
