//! What files may cost a worker: memory and descriptors stay bounded, however many files are asked for and whoever dies.

use std::fs::File;

use nix::sys::signal::Signal;

use crate::files::get;
use crate::harness::{self, Client, SOON, Server, Setup, alone, beside_others, processes, text_pattern, wait_until};

/// Bytes of memory that are a worker's own.
fn own_memory(pid: i32) -> u64 {
    let line = processes::status_line(pid, "RssAnon").unwrap();
    line.strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Ends the worker; its successor serves.
fn kill_worker(server: &Server) {
    let worker = server.worker(0);
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("a successor", SOON, || server.workers().iter().any(|process| process.pid != worker));
    server.wait_serving();
}

#[test]
fn memory_stays_bounded_with_more_files_than_the_cache_holds() {
    const FILES: usize = 1500;
    const CACHE: u64 = 4 << 20;
    let _machine = alone();
    let setup = (0..FILES).fold(Setup::new(1).set("cache", "memory = \"4MiB\""), |setup, number| {
        setup.file(&format!("{number}.txt"), text_pattern(20_000, number as u64))
    });
    let server = setup.start();
    let mut client = server.connect().quiet();
    let worker = server.worker(0);
    get(&mut client, "/0.txt", "");
    get(&mut client, "/0.txt", "Accept-Encoding: gzip\r\n");
    let before = own_memory(worker);
    for lines in ["", "Accept-Encoding: gzip\r\n", ""] {
        for number in 0..FILES {
            assert_eq!(get(&mut client, &format!("/{number}.txt"), lines).status, 200);
        }
    }
    let grown = own_memory(worker).saturating_sub(before);
    println!("{} bytes of files and as many coded: the worker grew by {grown}", FILES * 20_000);
    // Twice the cache: its own slack, the allocator's, and one compressor for each thread.
    assert!(grown < 2 * CACHE + (8 << 20), "the worker grew by {grown} with a cache of {CACHE}");
    assert_eq!(server.worker(0), worker, "nobody died of it");
}

#[test]
fn descriptors_stay_bounded_with_thousands_of_large_files_and_after_kills() {
    const FILES: usize = 3000;
    const OPEN: usize = 64;
    let _machine = alone();
    let setup = Setup::new(1).set("cache", "open_files = 64").set("cache", "file = \"16KiB\"");
    for number in 0..FILES {
        let path = setup.directory().path(&format!("site/{number}"));
        File::create(path).unwrap().set_len(100_000).unwrap();
    }
    let server = setup.file("large", harness::pattern(8 << 20, 1)).start();
    let address = server.address();
    // Each of them with a job of its own in the pool, so that threads and bell are there.
    Client::connect(&address).get("/nothing");
    let descriptors = || processes::descriptors(server.worker(0));
    let before = descriptors();
    let ask_for_all = || {
        let mut client = Client::connect(&address).quiet();
        for number in 0..FILES {
            let method = if number % 8 == 0 { "GET" } else { "HEAD" };
            client.send(format!("{method} /{number} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
            assert_eq!(client.answer_to(method).status, 200);
        }
    };
    ask_for_all();
    let after = descriptors();
    assert!(after <= before + OPEN + 8, "{before} descriptors before, {after} after {FILES} files");
    for _round in 0..5 {
        let mut reading: Vec<Client> = (0..8).map(|_| Client::connect_narrow(&address).patient(SOON)).collect();
        for client in &mut reading {
            client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
            client.take_part();
        }
        kill_worker(&server);
        for client in &mut reading {
            client.answer().assert(200, &harness::pattern(8 << 20, 1));
        }
    }
    ask_for_all();
    wait_until("the connections are gone", SOON, || server.status().total("connections") == 0);
    let after = descriptors();
    assert!(after <= before + OPEN + 8, "{before} descriptors before, {after} after {FILES} files twice and 5 kills");
    kill_worker(&server);
    wait_until("a fresh worker has nothing of its predecessor's", SOON, || descriptors() <= before + 2);
}

#[test]
fn files_are_served_where_nothing_is_kept() {
    let _machine = beside_others();
    let (small, large, text) = (harness::pattern(1000, 1), harness::pattern(3 << 20, 2), text_pattern(50_000, 3));
    for (memory, open) in
        [("memory = 0", "open_files = 0"), ("memory = 0", "open_files = 8"), ("memory = \"8MiB\"", "open_files = 0")]
    {
        let setup = Setup::new(1).set("cache", memory).set("cache", open);
        let server = setup.file("small", &small).file("large", &large).file("text.txt", &text).start();
        let mut client = server.connect();
        get(&mut client, "/small", "");
        let before = processes::descriptors(server.worker(0));
        for _round in 0..20 {
            get(&mut client, "/small", "").assert(200, &small);
            get(&mut client, "/large", "").assert(200, &large);
            get(&mut client, "/large", "Range: bytes=1000000-1000009\r\n").assert(206, &large[1_000_000..1_000_010]);
            let coded = get(&mut client, "/text.txt", "Accept-Encoding: br\r\n");
            assert_eq!((coded.header("content-encoding"), harness::decoded(&coded) == text), (Some("br"), true));
        }
        let after = processes::descriptors(server.worker(0));
        assert!(after <= before + 12, "{memory}, {open}: {before} descriptors before, {after} after");
    }
}
