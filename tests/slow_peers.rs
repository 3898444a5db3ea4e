//! Peers that trickle: each of their pauses is short, and yet they are let go; who is slow and honest is served.

use std::time::{Duration, Instant};

use crate::harness::{Client, HELLO, SOON, Setup, beside_others, pattern, wait_for_moment, wait_until};

/// A pause that no timeout minds.
const PAUSE: Duration = Duration::from_millis(50);
/// What the timeouts of a pause are here.
const TIMEOUT: Duration = Duration::from_millis(500);

fn post(length: usize) -> Vec<u8> {
    format!("POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

/// Sends `bytes` a second, a part each [`PAUSE`], until all `length` are sent or the peer says something.
fn trickle(client: &mut Client, length: usize, per_second: usize) -> usize {
    let (start, part) = (Instant::now(), per_second * PAUSE.as_millis() as usize / 1000);
    let (mut sent, mut turn) = (0, 0);
    while sent < length && !client.is_readable() {
        let next = part.min(length - sent);
        if client.try_send(&vec![b'b'; next]).is_err() {
            break;
        }
        (sent, turn) = (sent + next, turn + 1);
        wait_for_moment(start + turn * PAUSE);
    }
    sent
}

#[test]
pub(crate) fn a_body_that_trickles_below_its_rate_is_answered_408() {
    let _machine = beside_others();
    let server = Setup::new(1).set("timeouts", "body = \"500ms\"").set("timeouts", "body_rate = \"2000B\"").start();
    // One that fits the buffer, one that does not.
    for length in [10_000, 60_000] {
        let mut client = server.connect();
        client.send(&post(length));
        let start = Instant::now();
        let sent = trickle(&mut client, length, 400);
        let took = start.elapsed();
        let response = client.answer();
        assert_eq!(response.status, 408, "after {sent} of {length} bytes in {took:?}: {response}");
        assert!(took > TIMEOUT / 2, "let go after {took:?} already");
        assert!(took < 6 * TIMEOUT, "{took:?} for {sent} bytes at a fifth of the rate");
        client.assert_closed();
    }
}

#[test]
fn a_body_above_its_rate_is_taken_though_it_takes_longer_than_a_timeout() {
    let _machine = beside_others();
    let server = Setup::new(1).set("timeouts", "body = \"500ms\"").set("timeouts", "body_rate = \"2000B\"").start();
    for length in [10_000, 20_000] {
        let mut client = server.connect();
        client.send(&post(length));
        let start = Instant::now();
        assert_eq!(trickle(&mut client, length, 8000), length);
        assert!(start.elapsed() > TIMEOUT, "{:?} is no test of a rate", start.elapsed());
        client.answer().assert(200, HELLO);
        client.assert_usable();
    }
}

#[test]
pub(crate) fn a_response_that_is_read_below_its_rate_is_ended() {
    let _machine = beside_others();
    const LARGE: usize = 16 << 20;
    let server = Setup::new(1)
        .set("timeouts", "write = \"1s\"")
        .set("timeouts", "write_rate = \"8MiB\"")
        .file("large", pattern(LARGE, 3))
        .start();
    let mut client = Client::connect_narrow(&server.address()).quiet();
    client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    let start = Instant::now();
    // Some 600 KiB a second: no pause is long.
    let mut read = 0;
    while read < LARGE {
        match client.read_into(&mut Vec::new(), 32 * 1024) {
            Ok(count) if count > 0 => read += count,
            _ => break,
        }
        assert!(start.elapsed() < SOON, "{read} bytes read, and still served");
        wait_for_moment(Instant::now() + PAUSE);
    }
    println!("ended after {read} bytes in {:?}", start.elapsed());
    assert!(read < LARGE, "all of it came");
    wait_until("the connection is closed", SOON, || server.status().total("connections") == 0);
    assert_eq!(server.status().total("requests"), 0, "a response cut short is no answer");
}

#[test]
fn a_response_that_is_read_above_its_rate_comes_whole() {
    let _machine = beside_others();
    let large = pattern(4 << 20, 4);
    let server = Setup::new(1)
        .set("timeouts", "write = \"1s\"")
        .set("timeouts", "write_rate = \"200KiB\"")
        .file("large", &large)
        .start();
    let mut client = Client::connect_narrow(&server.address()).quiet();
    client.send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    let (start, mut turn, mut received) = (Instant::now(), 0, Vec::new());
    while !received.ends_with(&large[large.len() - 64..]) {
        let mut wanted = 80 * 1024;
        while wanted > 0 {
            let count = client.read_into(&mut received, wanted).expect("it is served to its end");
            assert!(count > 0, "closed after {} bytes", received.len());
            wanted = wanted.saturating_sub(count);
            if received.ends_with(&large[large.len() - 64..]) {
                break;
            }
        }
        turn += 1;
        wait_for_moment(start + turn * PAUSE);
    }
    assert!(received.ends_with(&large), "other bytes than the file's");
    assert!(start.elapsed() > 2 * Duration::from_secs(1), "{:?} is no test of a rate", start.elapsed());
    client.assert_usable();
}
