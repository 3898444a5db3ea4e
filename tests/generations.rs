//! Old generations are bounded: so many at once, and none for longer than `drain_timeout`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{self, Client, SOON, Server, Setup, alone, beside_others, processes, wait_for_moment, wait_until};

/// More than the kernel takes for a client that does not read.
const LARGE_BYTES: usize = 6 << 20;
const SLOTS: usize = 2;
const DRAIN: Duration = Duration::from_secs(4);

fn begin_download(address: &str) -> Client {
    let mut client = Client::connect_narrow(address).patient(SOON);
    client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    client.wait_stuck();
    client
}

/// The worker of slot 0 that serves.
fn serving(server: &Server) -> i32 {
    server.status().slots()[0]["pid"].as_i64().expect("somebody serves") as i32
}

/// Living workers of each slot.
fn workers(server: &Server) -> BTreeMap<u32, usize> {
    let mut count = BTreeMap::new();
    for (slot, _) in server.workers().iter().filter_map(processes::Process::worker) {
        *count.entry(slot).or_default() += 1;
    }
    count
}

#[test]
fn ten_reloads_in_ten_seconds_with_fifty_slow_downloads_keep_old_generations_bounded() {
    let _machine = alone();
    let large = harness::pattern(LARGE_BYTES, 3);
    let server = Setup::new(SLOTS)
        .set("workers", "max_old_generations = 2")
        .set("workers", "probation = \"0s\"")
        .set("workers", &format!("drain_timeout = \"{}s\"", DRAIN.as_secs()))
        .file("large", &large)
        .start();
    let address = server.address();
    let (start, mut downloads, mut most) = (Instant::now(), Vec::new(), 0);
    for reload in 0..10 {
        wait_for_moment(start + Duration::from_secs(1) * reload);
        downloads.extend((0..5).map(|_| begin_download(&address)));
        server.cli("reload", &[]).assert_code(0);
        // One that serves, and those that only end what they had: one too many is dying when the reload is answered.
        let mut old = 0;
        wait_until(&format!("old generations are bounded after {reload} reloads"), Duration::from_millis(300), || {
            old = workers(&server).values().map(|count| count - 1).max().unwrap_or(0);
            old <= 2
        });
        most = most.max(old);
    }
    assert_eq!(most, 2, "no old generation had anything to end");
    let told = server.cli("draining", &[]);
    told.assert_said(0, &["generation", "connections", "`GET /large HTTP/1.1`", "sending"]);
    let deadline = Instant::now() + DRAIN + Duration::from_secs(1);
    wait_until("nobody drains any more", DRAIN * 3, || workers(&server).values().all(|&count| count == 1));
    assert!(Instant::now() < deadline, "a predecessor lived past its deadline");
    server.cli("draining", &[]).assert_said(0, &["no worker is draining"]);
    // Downloads outlive every generation that they began in.
    for client in &mut downloads {
        client.answer().assert(200, &large);
        client.assert_usable();
    }
    server.wait_total(2 * downloads.len() as u64);
    assert_eq!(server.status().total("closed"), 0);
}

#[test]
fn a_slot_whose_predecessor_still_sends_is_recycled_beside_it() {
    let _machine = beside_others();
    let large = harness::pattern(LARGE_BYTES, 3);
    let server = Setup::new(1).file("large", &large).start();
    let mut downloading = begin_download(&server.address());
    for recycle in 1..=2 {
        let before = serving(&server);
        server.cli("recycle", &[]).assert_code(0);
        assert!(recycle > 1 || processes::lives(before), "the download did not keep its worker");
    }
    downloading.answer().assert(200, &large);
    assert!(processes::signal(serving(&server), Signal::SIGKILL));
    downloading.assert_usable();
    assert_eq!(server.status().total("closed"), 0);
}
