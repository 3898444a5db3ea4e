//! Many connections that do nothing: they cost next to no memory, and a killed worker loses none of them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::harness::{Client, SOON, Setup, alone, knob, processes, wait_until};

/// Resident user memory that an idle connection may cost, ledger included.
const MOST_BYTES_EACH: u64 = 1024;

#[test]
fn idle_connections_cost_little_and_outlive_their_worker() {
    let _machine = alone();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let count = knob("PHALANX_IDLE", 3000);
    let server = Setup::new(1)
        .set("log", "level = \"info\"")
        .set("limits", "connections = 16000")
        .set("timeouts", "idle = \"10m\"")
        .start();
    let address = server.address();
    // What the first connections make resident once is not the price of a connection.
    drop((0..64).map(|_| Client::connect(&address)).map(|mut client| client.assert_usable()).collect::<Vec<_>>());
    wait_until("the first connections are closed", SOON, || server.status().total("connections") == 0);
    let first = server.worker(0);
    let before = processes::resident(first);
    let mut clients: Vec<Client> = (0..count).map(|_| Client::connect(&address).quiet()).collect();
    clients.iter_mut().for_each(Client::assert_usable);
    wait_until("all are counted", SOON, || server.status().total("connections") == count as u64);
    let each = processes::resident(first).saturating_sub(before) / count as u64;
    println!("{count} idle connections: {each} bytes resident each in the worker");

    assert!(processes::signal(first, Signal::SIGKILL));
    let start = std::time::Instant::now();
    clients.iter_mut().for_each(Client::assert_usable);
    println!("all answered again {:?} after the kill", start.elapsed());
    server.wait_total(64 + 2 * count as u64);
    let status = server.status();
    assert_eq!(status.total("connections"), count as u64, "{status}");
    assert_eq!(status.total("accepted"), 64 + count as u64, "{status}");
    let second = server.worker(0);
    assert_ne!(second, first);
    let after = processes::resident(second).saturating_sub(before) / count as u64;
    println!("after the rescue: {after} bytes resident each in the successor");
    assert!(each <= MOST_BYTES_EACH, "{each} bytes each, before the kill");
    assert!(after <= MOST_BYTES_EACH, "{after} bytes each, after the rescue");

    drop(clients);
    wait_until("every descriptor is closed", SOON, || server.status().total("connections") == 0);
    wait_until("the table is as it was", SOON, || processes::descriptors(second) < 100);
}
