//! Streams of programs with handlers of their own: large ones, many, and those that leave HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocket};

use crate::harness::processes::{resident, signal};
use crate::harness::{Client, SOON, Server, Setup, alone, beside_others, knob, pause, wait_for_moment, wait_until};

const MIB: u64 = 1024 * 1024;
/// A worker may have so much of its own while a stream passes through it.
const MOST: u64 = 32 * MIB;

fn axum_app() -> Setup {
    Setup::of_example("axum_app", 1).set("limits", "body = \"2GiB\"")
}

/// Runs `act` and tells the most memory that the worker was seen to have meanwhile.
fn most_memory(server: &Server, act: impl FnOnce()) -> u64 {
    let (worker, over, most) = (server.worker(0), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident(worker), Ordering::Relaxed);
                pause();
            }
        });
        act();
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(server.worker(0), worker, "another worker");
    most.into_inner()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Reads to the end of a head; tells it, and what came behind.
fn read_head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let (mut got, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "closed after {got:?}");
        got.extend_from_slice(&part[..count]);
        if let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") {
            let behind = got.split_off(end + 4);
            return (String::from_utf8(got).unwrap(), behind);
        }
    }
}

#[test]
fn large_streams_pass_through_little_memory() {
    let _machine = alone();
    let server = axum_app().start();
    // A GiB is for whoever has the time.
    let total = knob("PHALANX_STREAM_MIB", 200) as u64 * MIB;
    let up = most_memory(&server, || {
        let mut stream = connect(&server);
        write!(stream, "POST /count HTTP/1.1\r\nHost: h\r\nContent-Length: {total}\r\n\r\n").unwrap();
        let piece = vec![0; MIB as usize];
        (0..total / MIB).for_each(|_| stream.write_all(&piece).unwrap());
        let (head, mut body) = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        while body.len() < total.to_string().len() {
            let mut part = [0; 64];
            let count = stream.read(&mut part).unwrap();
            body.extend_from_slice(&part[..count]);
        }
        assert_eq!(String::from_utf8(body).unwrap(), total.to_string());
    });
    let down = most_memory(&server, || {
        let mut stream = connect(&server);
        write!(stream, "GET /zeros/{total} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let (mut got, mut part) = (0, vec![0; MIB as usize]);
        loop {
            match stream.read(&mut part).unwrap() {
                0 => break,
                count => got += count as u64,
            }
        }
        assert!(got > total, "{got} of {total}");
    });
    println!("{} MiB up: {} KiB at most; down: {} KiB", total / MIB, up / 1024, down / 1024);
    assert!(up < MOST && down < MOST, "{up} up, {down} down");
}

#[test]
fn a_slow_reader_and_a_slow_sender_cost_little_memory() {
    let _machine = beside_others();
    let server = axum_app().start();
    let most = most_memory(&server, || {
        let readers: Vec<Client> = (0..20)
            .map(|_| {
                let mut client = Client::connect_narrow(&server.address()).quiet();
                client.send(b"GET /zeros/1000000000 HTTP/1.1\r\nHost: h\r\n\r\n");
                client
            })
            .collect();
        readers.iter().for_each(Client::wait_stuck);
    });
    assert!(most < MOST, "{most} bytes");
    wait_until("they are gone", SOON, || server.status().total("connections") == 0);
}

#[test]
fn thousands_are_sent_events_at_once() {
    let _machine = alone();
    let server =
        Setup::of_example("trial", 1).environment("TRIAL", "axum").set("workers", "model = \"coroutine\"").start();
    let count = knob("PHALANX_SSE_CLIENTS", 1000);
    let mut clients: Vec<TcpStream> = (0..count).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(|client| client.write_all(b"GET /lasts/3 HTTP/1.1\r\nHost: h\r\n\r\n").unwrap());
    let most = most_memory(&server, || {
        for client in &mut clients {
            let (mut got, mut part) = (Vec::new(), [0; 1024]);
            while !got.ends_with(b"0\r\n\r\n") {
                let count = client.read(&mut part).unwrap();
                assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&got));
                got.extend_from_slice(&part[..count]);
            }
            let text = String::from_utf8(got).unwrap();
            let events: Vec<&str> = text.lines().filter(|line| line.starts_with("data: ")).collect();
            assert_eq!(events, ["data: 0", "data: 1", "data: 2"], "{text}");
        }
    });
    println!("{count} clients: {} KiB at most", most / 1024);
    server.wait_total(count as u64);
}

// ---- WebSockets (RFC 6455) ----

/// A WebSocket of the example.
fn open_websocket(server: &Server) -> WebSocket<TcpStream> {
    tungstenite::client(format!("ws://{}/chat", server.address()), connect(server)).unwrap().0
}

#[test]
fn a_websocket_of_axum_talks_both_ways_and_closes_in_order() {
    let _machine = beside_others();
    // Nothing is to be read for longer than a body may take.
    let server = axum_app().set("timeouts", "body = \"200ms\"").start();
    let mut sockets: Vec<WebSocket<TcpStream>> = (0..20).map(|_| open_websocket(&server)).collect();
    wait_for_moment(Instant::now() + Duration::from_millis(500));
    for len in [0, 5, 125, 126, 60_000] {
        let text = Message::from("abcdefghijklmnopqrstuvwxyz".repeat(len / 26 + 1)[..len].to_owned());
        for socket in &mut sockets {
            socket.send(text.clone()).unwrap();
        }
        for socket in &mut sockets {
            assert_eq!(socket.read().unwrap(), text, "{len}");
        }
    }
    // Ahead of its reader, in both directions.
    let (many, payload) = (200, Message::from(vec![b'x'; 50_000]));
    let sender = sockets[0].get_ref().try_clone().unwrap();
    let mut sender = WebSocket::from_raw_socket(sender, Role::Client, None);
    let sent = payload.clone();
    let sending = std::thread::spawn(move || (0..many).for_each(|_| sender.send(sent.clone()).unwrap()));
    for _ in 0..many {
        assert_eq!(sockets[0].read().unwrap(), payload);
    }
    sending.join().unwrap();
    let farewell = Some(CloseFrame { code: CloseCode::Normal, reason: "".into() });
    for mut socket in sockets.drain(..10) {
        socket.close(farewell.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Close(farewell.clone()));
        // The server closes first (RFC 6455, 7.1.1).
        assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    }
    drop(sockets);
    wait_until("they are gone", SOON, || server.status().total("connections") == 0);
    Client::connect(&server.address()).get("/").assert(200, b"Hello, World!\n");
}

#[test]
fn a_request_to_leave_http_that_is_refused_is_answered() {
    let _machine = beside_others();
    let setup = axum_app();
    let log = setup.directory().path("access.log");
    let server = setup.set("log", &format!("access = \"{}\"", log.display())).start();
    let head = "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let mut client = Client::connect(&server.address());
    let response = client.ask(&format!("{head}GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert_eq!((response.status, response.header("connection")), (400, Some("close")));
    client.assert_closed();
    wait_until("a line of the access log", SOON, || server.directory().read("access.log").ends_with('\n'));
    let line = server.directory().read("access.log");
    assert!(line.contains("\"GET /chat HTTP/1.1\" 400 "), "{line}");
    // Nobody is led to another version of HTTP.
    let head = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n";
    let mut client = Client::connect(&server.address());
    client.ask(head).assert(200, b"Hello, World!\n");
    client.get("/").assert(200, b"Hello, World!\n");
}

#[test]
fn a_websocket_ends_with_its_worker_and_nothing_else_does() {
    let _machine = beside_others();
    let server = axum_app().start();
    let mut socket = open_websocket(&server);
    let mut idle = Client::connect(&server.address());
    idle.get("/").assert(200, b"Hello, World!\n");
    assert!(signal(server.worker(0), Signal::SIGKILL));
    let end = socket.read();
    assert!(end.is_err(), "{end:?}");
    idle.get("/").assert(200, b"Hello, World!\n");
    let mut socket = open_websocket(&server);
    socket.send("again".into()).unwrap();
    assert_eq!(socket.read().unwrap(), "again".into());
}
