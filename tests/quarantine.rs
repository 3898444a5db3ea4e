//! Requests that kill workers again and again are held, by every worker, until their time is over or somebody pardons them.

use crate::harness::{Client, SOON, Server, Setup, beside_others, wait_until};

fn setup() -> Setup {
    Setup::new(3)
        .set("workers", "allow_faults = true")
        .routes("[[site.route]]\npath = \"/segv\"\nfault = \"segv\"\n[[site.route]]\npath = \"/abort\"\nfault = \"abort\"\n")
        .set("quarantine", "enabled = true")
        .set("quarantine", "time = \"3s\"")
}

/// Kills a worker by a request, and waits until the master knows.
fn kill(server: &Server, path: &str) {
    let before = server.status().sum("restarts");
    assert_eq!(server.connect().patient(SOON).get(path).status, 500, "{path}");
    wait_until("the death is known", SOON, || server.status().sum("restarts") > before);
}

fn assert_held(server: &Server, request: &str) {
    // Every worker: as many connections as find them all.
    for _connection in 0..20 {
        let mut client = Client::connect(&server.address());
        let response = client.ask(request);
        assert_eq!((response.status, response.header("retry-after")), (503, Some("3")), "{request}: {response}");
        client.assert_usable();
    }
}

#[test]
fn a_request_that_killed_three_workers_is_held_by_all_and_no_other_is() {
    let _machine = beside_others();
    let server = setup().start();
    (0..3).for_each(|number| kill(&server, &format!("/segv/x?{number}")));
    assert_held(&server, "GET /segv/x?4 HTTP/1.1\r\nHost: test\r\n\r\n");
    let status = server.status();
    assert!(status.to_string().contains("\"quarantined\""), "{status}");
    server.cli("status", &[]).assert_said(0, &["held for", "GET /segv/x"]);
    assert!(server.log().contains("GET /segv/x has killed 3 workers"));
    // Another path of the same route, and another method, still run.
    kill(&server, "/segv/y");
    kill(&server, "/abort");
    assert_eq!(server.connect().ask("POST /segv/x HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n").status, 500);
    // The next program holds it too.
    server.cli("upgrade", &[]).assert_code(0);
    wait_until("its time is over", SOON, || server.log().contains("no longer held"));
    kill(&server, "/segv/x");
}

#[test]
fn a_pardon_ends_it_sooner() {
    let _machine = beside_others();
    let server = setup().set("quarantine", "time = \"1h\"").start();
    server.cli("pardon", &[]).assert_said(0, &["nothing of that was held"]);
    (0..3).for_each(|_| kill(&server, "/segv"));
    assert_eq!(server.connect().get("/segv").status, 503);
    server.cli("pardon", &["/abort"]).assert_said(0, &["nothing of that was held"]);
    server.cli("pardon", &["/segv"]).assert_said(0, &["1 kind of request is run again"]);
    kill(&server, "/segv");
}

#[test]
fn nothing_is_held_unless_that_is_asked_for() {
    let _machine = beside_others();
    let server = setup().unset("quarantine", "enabled").start();
    (0..5).for_each(|_| kill(&server, "/segv"));
}
