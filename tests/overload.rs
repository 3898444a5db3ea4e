//! More connections than there is room for: idle ones make room, the oldest first; when none is idle, who comes is told 503 at
//! once, and nobody spins.

use std::time::Duration;

use crate::harness::{Client, HELLO, SOON, Setup, beside_others, processes, wait_until};

const PART: &[u8] = b"GET /hello HTTP/1.1\r\nHost: test\r\n";

#[test]
pub(crate) fn the_oldest_idle_connections_make_room_for_new_ones() {
    let _machine = beside_others();
    let server = Setup::new(1).set("limits", "connections = 5").start();
    let address = server.address();
    let mut first: Vec<Client> = (0..5).map(|_| Client::connect(&address)).collect();
    first.iter_mut().for_each(Client::assert_usable);
    // The last two came last, and are used again: they are the youngest.
    first[3..].iter_mut().for_each(Client::assert_usable);
    // Whoever serves one alone may have sent its answer and be kept from going on.
    let worker = server.worker(0);
    wait_until("all connections are idle", SOON, || processes::rests(worker));
    let mut second: Vec<Client> = (0..3).map(|_| Client::connect(&address)).collect();
    second.iter_mut().for_each(Client::assert_usable);
    first.drain(..3).for_each(|mut client| client.assert_closed());
    first.iter_mut().chain(&mut second).for_each(Client::assert_usable);
    wait_until("five connections", SOON, || server.status().total("connections") == 5);
}

#[test]
fn without_an_idle_connection_who_comes_is_told_503_and_the_worker_rests() {
    let _machine = beside_others();
    let server = Setup::new(1).set("limits", "connections = 5").start();
    let address = server.address();
    let mut busy: Vec<Client> = (0..5).map(|_| Client::connect(&address)).collect();
    busy.iter_mut().for_each(|client| client.send(PART));
    wait_until("five connections", SOON, || server.status().total("connections") == 5);
    for _ in 0..20 {
        let mut turned_away = Client::connect(&address);
        turned_away.send(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n");
        let response = turned_away.answer();
        response.assert(503, b"");
        assert_eq!(response.header("retry-after"), Some("1"));
        assert!(response.closes(), "{response}");
    }
    let used = processes::time_used_in(server.worker(0), Duration::from_millis(500));
    assert!(used < Duration::from_millis(100), "{used:?} of processor time in 500 ms at the limit");
    busy.iter_mut().for_each(|client| client.send(b"\r\n"));
    busy.iter_mut().for_each(|client| client.answer().assert(200, HELLO));
    server.connect().assert_usable();
}
