//! Unix-socket listeners: the kernel counts nothing on them, so a connection whose worker died inside a read or a write is
//! closed, never guessed at; every other lives on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{self, Client, HELLO, SOON, Server, Setup, alone, beside_others, processes, wait_until};

const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n";

fn start() -> Server {
    Setup::new(1).listen(&["127.0.0.1:0", "unix:{dir}/h"]).start()
}

fn connect(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(server.directory().path("h")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream
}

/// One exchange: the whole response, or what ended it.
fn exchange(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    stream.write_all(REQUEST)?;
    let mut response = Vec::new();
    while !response.ends_with(HELLO) {
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => response.extend_from_slice(&bytes[..count]),
        }
    }
    Ok(response)
}

fn kill_and_wait(server: &Server) {
    let worker = server.worker(0);
    assert!(processes::signal(worker, Signal::SIGKILL));
    wait_until("a successor", SOON, || server.workers().iter().any(|process| process.pid != worker));
}

#[test]
fn idle_unix_connections_outlive_their_worker() {
    let _machine = beside_others();
    let server = start();
    let mut clients: Vec<UnixStream> = (0..50).map(|_| connect(&server)).collect();
    for round in 1..=3 {
        clients.iter_mut().for_each(|client| drop(exchange(client).unwrap()));
        // A client has its answer before its worker has left the call that sent it: only then is it idle.
        server.wait_total(round * 50);
        kill_and_wait(&server);
    }
    clients.iter_mut().for_each(|client| drop(exchange(client).unwrap()));
    server.wait_total(200);
}

#[test]
fn a_request_half_sent_over_a_unix_socket_is_answered_by_the_successor() {
    let _machine = beside_others();
    let server = start();
    let mut client = connect(&server);
    let (first, second) = REQUEST.split_at(20);
    client.write_all(first).unwrap();
    wait_until("it is read", SOON, || server.status().total("bytes_in") == 20);
    kill_and_wait(&server);
    client.write_all(second).unwrap();
    let mut response = [0; 1024];
    let count = client.read(&mut response).unwrap();
    assert!(response[..count].ends_with(HELLO));
}

#[test]
fn a_slot_that_closes_turns_no_unix_client_away() {
    let _machine = beside_others();
    let large = harness::pattern(3 << 20, 2);
    let server = Setup::new(2).listen(&["127.0.0.1:0", "unix:{dir}/h"]).file("large", &large).start();
    // A download on the slot that is to close keeps it draining meanwhile.
    let on_slot_1 = || server.status().slots()[1]["connections"].as_u64() == Some(1);
    let mut downloading = None;
    wait_until("a connection on slot 1", SOON, || {
        let mut client = Client::connect_narrow(&server.address());
        client.assert_usable();
        downloading = Some(client);
        on_slot_1()
    });
    let mut downloading = downloading.unwrap();
    downloading.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    downloading.wait_stuck();
    std::thread::scope(|scope| {
        let scaling = scope.spawn(|| server.cli("scale", &["1"]));
        wait_until("slot 1 drains", SOON, || server.status().slots()[1]["state"] == "draining");
        for _client in 0..40 {
            exchange(&mut connect(&server)).unwrap();
            server.connect().assert_usable();
        }
        downloading.answer().assert(200, &large);
        scaling.join().unwrap().assert_code(0);
    });
}

#[test]
fn no_unix_client_gets_wrong_bytes_or_waits_in_vain_when_workers_are_killed() {
    let _machine = alone();
    let server = start();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (answered, ended) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut answered, mut ended) = (connect(&server), 0, 0);
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        match exchange(&mut client) {
                            Ok(response) => {
                                assert!(response.starts_with(b"HTTP/1.1 200 OK\r\n"));
                                answered += 1;
                            }
                            Err(error) => {
                                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "waited in vain");
                                ended += 1;
                                client = connect(&server);
                            }
                        }
                    }
                    (answered, ended)
                })
            })
            .collect();
        (0..60).for_each(|_| kill_and_wait(&server));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    println!("{answered} answered, {ended} connections ended by 60 kills");
    assert!(ended <= 60, "a kill is inside at most one call");
    server.wait_serving();
    let status = server.status();
    assert_eq!(status.total("closed"), ended, "{status}");
}
