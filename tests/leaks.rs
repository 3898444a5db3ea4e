//! Nothing is left behind: descriptors and processes after many handovers, kills, faults and changes of the rank.

use nix::sys::signal::Signal;

use crate::harness::{Client, SOON, Server, Setup, alone, processes, wait_until};

const ROUNDS: usize = 20;

fn replace_worker(server: &Server, signal: Signal) {
    let worker = server.worker(0);
    assert!(processes::signal(worker, signal));
    wait_until("a successor alone", SOON, || {
        let workers = server.workers();
        !workers.iter().any(|process| process.pid == worker) && workers.len() == 2
    });
    server.wait_serving();
}

#[test]
fn kills_recycles_reloads_faults_and_scaling_leave_no_descriptor_and_no_process_behind() {
    let _machine = alone();
    let server = Setup::new(2)
        .set("workers", "allow_faults = true")
        .routes("[[site.route]]\npath = \"/segv\"\nfault = \"segv\"\n")
        .start();
    let address = server.address();
    // Once around, so that what is opened once and kept is there.
    replace_worker(&server, Signal::SIGKILL);
    server.cli("reload", &[]).assert_code(0);
    server.wait_serving();
    let counts =
        || (processes::descriptors(server.master()), processes::descriptors(server.keeper(0)), server.children().len());
    wait_until("one worker a slot", SOON, || server.workers().len() == 2);
    let before = counts();
    for _round in 0..ROUNDS {
        replace_worker(&server, Signal::SIGKILL);
        replace_worker(&server, Signal::SIGTERM);
        server.cli("reload", &[]).assert_code(0);
        let mut client = Client::connect(&address);
        client.send(b"GET /segv HTTP/1.1\r\nHost: test\r\n\r\n");
        assert_eq!(client.answer().status, 500);
        server.wait_serving();
        server.cli("scale", &["3"]).assert_code(0);
        server.cli("scale", &["2"]).assert_code(0);
    }
    // The last word in each slot is a worker that boots alone and sweeps its table.
    replace_worker(&server, Signal::SIGKILL);
    let mut after = counts();
    wait_until("everything is as it was", SOON, || {
        after = counts();
        after == before
    });
    assert_eq!(after, before, "descriptors of the master, of a keeper's table; children");
}
