//! Out of descriptors: idle connections make room, the oldest first; when none is idle, who comes is told 503 through the
//! reserve; nobody spins, files are served on, and all is well again by itself.

use std::time::Duration;

use crate::harness::{Client, HELLO, SOON, Setup, beside_others, pattern, processes, wait_until};

/// What the server's processes may hold; fewer connections, since a worker has descriptors of its own.
const DESCRIPTORS: usize = 200;
const FILES: usize = 40;

fn setup() -> Setup {
    let setup = Setup::new(1).descriptors(DESCRIPTORS as u64);
    (0..FILES).fold(setup, |setup, number| setup.file(&format!("file-{number}"), pattern(300_000, number as u64)))
}

/// Every file is served, though there is no descriptor left to open it with.
#[track_caller]
fn assert_files_served(client: &mut Client) {
    for number in 0..FILES {
        client.get(&format!("/file-{number}")).assert(200, &pattern(300_000, number as u64));
    }
}

#[test]
fn idle_connections_make_room_when_descriptors_run_out() {
    let _machine = beside_others();
    let server = setup().start();
    let address = server.address();
    let worker = server.worker(0);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..3 * DESCRIPTORS {
        clients.push(Client::connect(&address));
        clients.last_mut().unwrap().assert_usable();
    }
    let held = server.status().total("connections") as usize;
    assert!(held < DESCRIPTORS && held > DESCRIPTORS / 3, "{held} connections held");
    println!("{held} of {} connections held with {DESCRIPTORS} descriptors", clients.len());
    // Those that have been idle for the longest.
    let gone = clients.len() - held;
    clients.drain(..gone).for_each(|mut client| client.assert_closed());
    clients.iter_mut().for_each(Client::assert_usable);
    assert_files_served(clients.last_mut().unwrap());
    let used = processes::time_used_in(worker, Duration::from_millis(500));
    assert!(used < Duration::from_millis(100), "{used:?} of processor time in 500 ms without a descriptor left");
    drop(clients);
    wait_until("all are closed", SOON, || server.status().total("connections") == 0);
    assert_eq!(server.worker(0), worker, "the worker is still the same");
    server.connect().assert_usable();
}

#[test]
fn without_idle_connections_and_descriptors_who_comes_is_told_503() {
    let _machine = beside_others();
    let server = setup().start();
    let address = server.address();
    let worker = server.worker(0);
    let mut busy: Vec<Client> = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        let mut client = Client::connect(&address);
        client.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n");
        busy.push(client);
    }
    let (mut held, mut turned_away) = (Vec::new(), 0);
    wait_until("as many connections as there are descriptors", SOON, || {
        busy.iter().filter(|client| client.is_readable()).count() > DESCRIPTORS
    });
    for mut client in busy {
        if !client.is_readable() {
            held.push(client);
            continue;
        }
        match client.try_answer("GET") {
            Ok(response) => {
                response.assert(503, b"");
                assert_eq!(response.header("retry-after"), Some("1"), "{response}");
                turned_away += 1;
            }
            // It was idle still when room was needed.
            Err(end) => assert!(end.before_a_byte(), "{end}"),
        }
    }
    println!("{} held, {turned_away} turned away with {DESCRIPTORS} descriptors", held.len());
    assert!(turned_away > DESCRIPTORS / 2, "{turned_away} told 503");
    assert!(held.len() > DESCRIPTORS / 3 && held.len() < DESCRIPTORS, "{} held", held.len());
    let used = processes::time_used_in(worker, Duration::from_millis(500));
    assert!(used < Duration::from_millis(100), "{used:?} of processor time in 500 ms without a descriptor left");
    let mut one = held.pop().unwrap();
    one.send(b"\r\n");
    one.answer().assert(200, HELLO);
    assert_files_served(&mut one);
    for client in &mut held {
        client.send(b"\r\n");
        client.answer().assert(200, HELLO);
    }
    // Idle now, they make room.
    server.connect().assert_usable();
    drop((held, one));
    wait_until("all are closed", SOON, || server.status().total("connections") == 0);
    assert_eq!(server.worker(0), worker, "the worker is still the same");
    server.connect().assert_usable();
}
