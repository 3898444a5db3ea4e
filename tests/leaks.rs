//! Nothing is left behind: descriptors and processes after many handovers, kills, faults and changes of the rank.

use nix::sys::signal::Signal;

use crate::harness::{Client, SOON, Server, Setup, alone, beside_others, processes, wait_until};

const ROUNDS: usize = 10;

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

/// What a program opens in its workers goes with them: neither the worker nor the server has a note of it.
#[test]
fn recycles_and_reloads_leave_no_descriptor_of_the_program_behind() {
    let _machine = beside_others();
    for (app, model) in [("hooks", "reactor"), ("axum", "coroutine"), ("hooks", "reactor-pool"), ("hooks", "process")] {
        let setup = Setup::of_example("trial", 1).environment("TRIAL", app);
        let directory = setup.directory().text().to_owned();
        let setup = setup.environment("TRIAL_DIR", &directory).set("workers", &format!("model = \"{model}\""));
        let server = setup.start();
        let mut idle = Client::connect(&server.address());
        idle.get("/").assert(200, b"Hello, World!");
        let mut counts = Vec::new();
        for round in 0..6 {
            if round % 2 == 0 {
                server.cli("recycle", &["0"]).assert_code(0);
            } else {
                server.cli("reload", &[]).assert_code(0);
            }
            wait_until("one worker", SOON, || server.workers().len() == 1);
            server.wait_serving();
            // That it is gone is told to its successor last.
            let enough = counts.last().copied().unwrap_or(usize::MAX);
            wait_until("nothing is left of the one before", SOON, || {
                processes::descriptors(server.keeper(0)) <= enough
            });
            idle.get("/").assert(200, b"Hello, World!");
            counts.push(processes::descriptors(server.keeper(0)));
        }
        println!("{app} under {model}: {counts:?}");
    }
}
