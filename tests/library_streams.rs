//! Streams of programs with handlers of their own: large ones, many, and those that leave HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::processes::{resident, signal};
use crate::harness::{Client, SOON, Server, Setup, alone, beside_others, knob, wait_for_moment, wait_until};

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
                std::thread::sleep(Duration::from_millis(5));
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

/// What the peer of a WebSocket sends: one frame, masked.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Reads one frame that is not masked.
fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let len = match head[1] {
        126 => {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            usize::from(u16::from_be_bytes(len))
        }
        len => len.into(),
    };
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).unwrap();
    (head[0] & 0x0f, payload)
}

/// A WebSocket of the example.
fn open_websocket(server: &Server) -> TcpStream {
    let mut stream = connect(server);
    let head = "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let (head, behind) = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // That of the sample key (RFC 6455, 1.3).
    assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert!(behind.is_empty());
    stream
}

#[test]
fn a_websocket_of_axum_talks_both_ways_and_closes_in_order() {
    let _machine = beside_others();
    // Nothing is to be read for longer than a body may take.
    let server = axum_app().set("timeouts", "body = \"200ms\"").start();
    let mut sockets: Vec<TcpStream> = (0..20).map(|_| open_websocket(&server)).collect();
    wait_for_moment(Instant::now() + Duration::from_millis(500));
    for len in [0, 5, 125, 126, 60_000] {
        let payload: Vec<u8> = (0..len).map(|at| b'a' + (at % 26) as u8).collect();
        for socket in &mut sockets {
            socket.write_all(&frame(1, &payload)).unwrap();
        }
        for socket in &mut sockets {
            assert_eq!(read_frame(socket), (1, payload.clone()), "{len}");
        }
    }
    // Ahead of its reader, in both directions.
    let payload = vec![b'x'; 50_000];
    let mut sender = sockets[0].try_clone().unwrap();
    let (many, sent) = (200, frame(2, &payload));
    let sending = std::thread::spawn(move || (0..many).for_each(|_| sender.write_all(&sent).unwrap()));
    for _ in 0..many {
        assert_eq!(read_frame(&mut sockets[0]), (2, payload.clone()));
    }
    sending.join().unwrap();
    for mut socket in sockets.drain(..10) {
        socket.write_all(&frame(8, &1000_u16.to_be_bytes())).unwrap();
        assert_eq!(read_frame(&mut socket), (8, 1000_u16.to_be_bytes().to_vec()));
        assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0, "the server closes first (RFC 6455, 7.1.1)");
    }
    drop(sockets);
    wait_until("they are gone", SOON, || server.status().total("connections") == 0);
    Client::connect(&server.address()).get("/").assert(200, b"Hello, World!\n");
}

#[test]
fn a_request_to_leave_http_that_is_refused_is_answered() {
    let _machine = beside_others();
    let server = axum_app().start();
    let head = "GET /chat HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let response = Client::connect(&server.address()).ask(head);
    assert_eq!(response.status, 400);
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
    let end = socket.read(&mut [0; 64]);
    assert!(matches!(end, Ok(0)) || end.is_err(), "{end:?}");
    idle.get("/").assert(200, b"Hello, World!\n");
    let mut socket = open_websocket(&server);
    socket.write_all(&frame(1, b"again")).unwrap();
    assert_eq!(read_frame(&mut socket), (1, b"again".to_vec()));
}
