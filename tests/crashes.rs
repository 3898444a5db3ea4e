//! `phalanx crashes`: of what workers died, which request they were at, and which others were in flight.

use serde_json::Value;

use crate::harness::{Client, HELLO, SOON, Server, Setup, beside_others, processes, wait_until};

const INNOCENTS: usize = 3;

fn setup() -> Setup {
    let setup = Setup::new(1)
        .set("workers", "allow_faults = true")
        .set("workers", "hang_timeout = \"1s\"")
        .set("workers", "hard_memory = \"256MiB\"");
    ["segv", "abort", "overflow", "hang", "hoard"].iter().fold(setup, |setup, fault| {
        setup.routes(&format!("[[site.route]]\npath = \"/{fault}\"\nfault = \"{fault}\"\n"))
    })
}

fn crashes(server: &Server) -> Vec<Value> {
    let told = server.cli("crashes", &["--json"]);
    serde_json::from_str(&told.assert_code(0).stdout).unwrap()
}

#[test]
fn each_kind_of_death_names_the_guilty_request_and_the_innocent_ones() {
    let _machine = beside_others();
    let server = setup().start();
    let mut innocents: Vec<Client> = (0..INNOCENTS).map(|_| server.connect().patient(SOON)).collect();
    innocents.iter_mut().for_each(Client::assert_usable);
    let kinds = [
        ("segv", 500, "SIGSEGV by its own fault"),
        ("abort", 500, "SIGABRT by its own fault"),
        ("overflow", 500, "by its own fault"),
        ("hang", 504, "killed because it hung, blocked in clock_nanosleep"),
        ("hoard", 500, "killed for its memory"),
    ];
    for (number, (fault, status, cause)) in kinds.into_iter().enumerate() {
        for (index, client) in innocents.iter_mut().enumerate() {
            client.send(format!("GET /hello?{fault}-{index} HTTP/1.1\r\n").as_bytes());
            client.wait_taken();
        }
        let mut own = server.connect().patient(SOON);
        assert_eq!(own.get(&format!("/{fault}/guilty?q=1")).status, status, "{fault}");
        for client in &mut innocents {
            client.send(b"Host: test\r\n\r\n");
            client.answer().assert(200, HELLO);
        }
        wait_until("the death is told", SOON, || crashes(&server).len() == number + 1);
        let report = crashes(&server).remove(0);
        assert!(report["cause"].as_str().unwrap().contains(cause), "{fault}: {report:#}");
        let suspect = &report["suspect"];
        assert_eq!(
            (&suspect["method"], &suspect["path"]),
            (&"GET".into(), &format!("/{fault}/guilty?q=1").into()),
            "{report:#}"
        );
        assert!(suspect["age_ms"].is_u64() && suspect["id"].is_string() && suspect["peer"].is_string(), "{report:#}");
        let mut others: Vec<&str> =
            report["in_flight"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
        others.sort_unstable();
        let wanted: Vec<String> = (0..INNOCENTS).map(|index| format!("/hello?{fault}-{index}")).collect();
        assert_eq!(others, wanted, "{report:#}");
        assert!(report["uptime_ms"].is_u64() && report["descriptors"].as_u64() >= Some(4), "{report:#}");
    }
    let text = server
        .cli("crashes", &["2"])
        .assert_said(0, &["/hoard/guilty", "/hang/guilty", "besides", "MiB"])
        .stdout
        .clone();
    assert!(!text.contains("/segv/guilty"), "{text}");
    // The names of functions come with the report, which a child writes.
    wait_until("the backtrace of the segmentation fault", SOON, || {
        crashes(&server)[4]["backtrace"]
            .as_array()
            .unwrap()
            .iter()
            .any(|frame| frame.as_str().unwrap().contains("segfault"))
    });
    // They are remembered by the next program too.
    server.cli("upgrade", &[]).assert_code(0);
    assert_eq!(crashes(&server).len(), kinds.len());
}

#[test]
pub(crate) fn a_death_from_outside_blames_nobody() {
    let _machine = beside_others();
    let server = Setup::new(1).unset("master", "crash_dir").start();
    server.cli("crashes", &[]).assert_said(0, &["no worker has died"]);
    server.connect().assert_usable();
    assert!(processes::signal(server.worker(0), nix::sys::signal::Signal::SIGKILL));
    wait_until("the death is told", SOON, || crashes(&server).len() == 1);
    let report = crashes(&server).remove(0);
    assert_eq!((&report["cause"], &report["suspect"]), (&"SIGKILL from outside".into(), &Value::Null), "{report:#}");
}

/// Those that have no name are deaths too.
#[test]
fn a_worker_that_a_realtime_signal_kills_is_succeeded() {
    let _machine = beside_others();
    let server = Setup::new(1).start();
    let mut client = server.connect().patient(SOON);
    client.assert_usable();
    let worker = server.worker(0).to_string();
    assert!(std::process::Command::new("kill").args(["-40", &worker]).status().unwrap().success());
    client.assert_usable();
    wait_until("it is written down", SOON, || server.log().contains("died: signal 40 from outside"));
    assert_eq!(server.status().sum("restarts"), 1);
}
