//! Listeners whose connections begin with the PROXY protocol: the client that the header names is the one that is logged and
//! limited, however the header comes, and whoever dies behind it.

use nix::sys::signal::Signal;

use crate::harness::{Client, HELLO, SOON, Server, Setup, beside_others, processes, wait_until};

const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN ::7 what follows counts for nothing\r\n";

fn setup() -> Setup {
    Setup::new(1).listeners("proxy_protocol = true").set("log", "access = \"{dir}/access.log\"")
}

/// A version 2 header.
fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend_from_slice(&[0x20 | command, family]);
    header.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    header.extend_from_slice(payload);
    header
}

fn v2_ipv4(last: u8) -> Vec<u8> {
    v2(1, 0x11, &[192, 0, 2, last, 198, 51, 100, 1, 0x12, 0x67, 0, 80])
}

fn v2_ipv6() -> Vec<u8> {
    let mut payload = [0; 36];
    payload[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    payload[15] = 9;
    payload[31] = 1;
    v2(1, 0x21, &payload)
}

/// The peers in the access log, in order.
fn peers(server: &Server) -> Vec<String> {
    let log = server.directory().read("access.log");
    log.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn the_client_that_a_header_names_is_written_down() {
    let _machine = beside_others();
    let server = setup().start();
    let address = server.address();
    let with_tail = v2(1, 0x11, &[192, 0, 2, 8, 198, 51, 100, 1, 0x12, 0x67, 0, 80, 3, 0, 4, 1, 2, 3, 4]);
    let headers: [(&[u8], &str); 7] = [
        (V1, "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::5 2001:db8::1 4711 80\r\n", "2001:db8::5"),
        (V1_UNKNOWN, "127.0.0.1"),
        (&v2_ipv4(7), "192.0.2.7"),
        (&v2_ipv6(), "2001:db8::9"),
        (&with_tail, "192.0.2.8"),
        (&v2(0, 0, &[]), "127.0.0.1"),
    ];
    let mut expected = Vec::new();
    for (header, peer) in headers {
        let both = [header, REQUEST].concat();
        // The header alone, both in one segment, all of it byte by byte, and a split inside the header.
        let ways: [Vec<&[u8]>; 4] = [
            vec![header, REQUEST],
            vec![&both],
            both.chunks(1).collect(),
            vec![&both[..header.len() - 1], &both[header.len() - 1..]],
        ];
        for parts in ways {
            let mut client = Client::connect(&address);
            for part in parts {
                client.send(part);
                client.wait_taken();
            }
            client.answer().assert(200, HELLO);
            client.assert_usable();
            expected.extend([peer, peer]);
        }
    }
    wait_until("all is written down", SOON, || peers(&server).len() >= expected.len());
    assert_eq!(peers(&server), expected);
}

#[test]
fn what_is_no_header_is_closed_without_a_word() {
    let _machine = beside_others();
    let server = setup().start();
    let address = server.address();
    let too_long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100], b"\r\n"].concat();
    let too_large = v2(1, 0x11, &[0; 600]);
    let garbage: [&[u8]; 12] = [
        REQUEST,
        b"\0",
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\n",
        b"PROXY TCP4 192.0.2.777 198.51.100.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 65536\r\n",
        b"proxy TCP4 192.0.2.7 198.51.100.1 4711 80\r\n",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11",
        &too_long,
        &too_large,
        &v2(1, 0x11, &[0; 4]),
    ];
    for bytes in garbage {
        let mut client = Client::connect(&address);
        client.send(bytes);
        // What was not read makes a reset of the close: there is nothing in it that could be lost.
        assert!(client.end().before_a_byte(), "{}", bytes.escape_ascii());
    }
    assert!(peers(&server).is_empty());
    let mut client = Client::connect(&address);
    client.send(V1);
    client.assert_usable();
    // A second header is a request, and a bad one.
    client.send(&[V1, b"\r\n"].concat());
    assert_eq!(client.answer().status, 400);
    client.assert_closed();
}

#[test]
fn a_header_that_does_not_come_whole_is_waited_for_no_longer_than_a_head() {
    let _machine = beside_others();
    let server = setup().set("timeouts", "head = \"300ms\"").start();
    for part in [&V1[..20], &v2_ipv4(1)[..14]] {
        let mut client = server.connect();
        client.send(part);
        let end = client.end();
        assert!(end.before_a_byte() || end.truncated().is_some_and(|said| said.starts_with(b"HTTP/1.1 408 ")), "{end}");
    }
    wait_until("both are closed", SOON, || server.status().total("connections") == 0);
}

#[test]
fn limits_count_for_the_client_that_a_header_names() {
    let _machine = beside_others();
    let route =
        "[[site.route]]\npath = \"/limited\"\nrespond = { body = \"\" }\nlimit = { rate = \"30/h\", burst = 2 }\n";
    let server = setup().set("limits", "connections_per_client = 3").routes(route).start();
    let address = server.address();
    let mut open = Vec::new();
    for last in [1, 2] {
        for number in 0..5 {
            let mut client = Client::connect(&address);
            client.send(&[&v2_ipv4(last), REQUEST].concat());
            let response = client.answer();
            assert_eq!(
                response.status,
                if number < 3 { 200 } else { 503 },
                "connection {number} of {last}: {response}"
            );
            if number < 3 {
                let status = client.get("/limited").status;
                assert_eq!(status, if number < 2 { 200 } else { 429 }, "request {number} of {last}");
                open.push(client);
            }
        }
    }
    // They are taken off again, also by the successor of whoever counted them.
    assert!(processes::signal(server.worker(0), Signal::SIGKILL));
    drop(open);
    wait_until("all are closed", SOON, || server.status().total("connections") == 0);
    for _ in 0..3 {
        let mut client = Client::connect(&address);
        client.send(&[&v2_ipv4(1), REQUEST].concat());
        client.answer().assert(200, HELLO);
    }
}

#[test]
fn a_worker_killed_between_header_and_request_is_not_missed() {
    let _machine = beside_others();
    let server = setup().start();
    let address = server.address();
    let (v1, v2) = ([V1, REQUEST].concat(), [v2_ipv4(7).as_slice(), REQUEST].concat());
    for (bytes, header) in [(&v1, V1.len()), (&v2, v2.len() - REQUEST.len())] {
        // Inside the header, just behind it, inside the request.
        let mut clients: Vec<(Client, usize)> =
            [5, 13, header - 1, header, header + 10].map(|at| (Client::connect(&address), at)).into();
        for (client, at) in &mut clients {
            client.send(&bytes[..*at]);
            client.wait_taken();
        }
        let worker = server.worker(0);
        assert!(processes::signal(worker, Signal::SIGKILL));
        wait_until("a successor", SOON, || server.workers().iter().any(|process| process.pid != worker));
        for (client, at) in &mut clients {
            client.send(&bytes[*at..]);
            client.answer().assert(200, HELLO);
            client.assert_usable();
        }
    }
    wait_until("all is written down", SOON, || peers(&server).len() >= 20);
    assert!(peers(&server).iter().all(|peer| peer == "192.0.2.7"), "{:?}", peers(&server));
}
