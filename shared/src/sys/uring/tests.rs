//! Rings over real sockets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use super::*;
use crate::ledger::{BUFFER_BYTES, Ledger};

const LONG: Option<Duration> = Some(Duration::from_secs(10));

/// A ring with `count` buffers of a ledger's lane 1.
fn ring(count: usize) -> (Ring, Ledger) {
    let (ledger, _fd) = Ledger::create("test", 1024, 64).unwrap();
    let lane = ledger.buffers_of_lane(1);
    let mut ring = Ring::new(lane.start).unwrap();
    for index in lane.take(count) {
        assert!(ring.provide(ledger.buffer(index).unwrap()).is_ok());
    }
    (ring, ledger)
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    server.set_nonblocking(true).unwrap();
    (server, peer)
}

/// The completions of the next wait that tells any.
fn next(ring: &mut Ring) -> Vec<Completion> {
    ring.wait(LONG).unwrap();
    std::iter::from_fn(|| ring.take()).collect()
}

fn only(ring: &mut Ring) -> Completion {
    let mut come = next(ring);
    assert_eq!(come.len(), 1);
    come.remove(0)
}

#[test]
fn a_name_comes_back_as_it_was() {
    for kind in [Kind::Poll, Kind::Accept, Kind::Receive, Kind::Send, Kind::Cancel] {
        let name = Name { kind, fd: 0x7fff_fffe, tag: 0xff_fffe };
        assert_eq!(Name::from_word(name.to_word()), Some(name));
    }
    assert_eq!(Name::from_word(0), None);
    assert_eq!(Name::from_word(u64::MAX), None);
}

#[test]
fn what_is_received_stands_in_provided_buffers_until_there_are_none() {
    let (mut ring, _ledger) = ring(2);
    let (server, mut peer) = connection();
    ring.receive(server.as_raw_fd(), 7).unwrap();
    peer.write_all(b"one").unwrap();
    let first = only(&mut ring);
    assert_eq!((first.told.name, first.told.result), (Name { kind: Kind::Receive, fd: server.as_raw_fd(), tag: 7 }, 3));
    assert!(first.told.more);
    let buffer = first.buffer.unwrap();
    assert_eq!((&buffer.bytes()[..3], ring.provided()), (&b"one"[..], 1));
    // Three buffers' worth, with one buffer left.
    peer.write_all(&vec![b'x'; 3 * BUFFER_BYTES]).unwrap();
    let mut got = Vec::new();
    while got.last().is_none_or(|last: &Completion| last.told.more) {
        got.extend(next(&mut ring));
    }
    assert_eq!((got[0].told.result, got.last().unwrap().told.result), (BUFFER_BYTES as i32, -libc::ENOBUFS));
    assert!(got[0].buffer.is_some());
    assert!(ring.provide(buffer).is_ok());
    ring.receive(server.as_raw_fd(), 8).unwrap();
    let again = next(&mut ring).remove(0);
    assert_eq!((again.told.name.tag, again.told.result), (8, BUFFER_BYTES as i32));
}

#[test]
fn the_end_of_what_a_peer_sends_is_nothing_received() {
    let (mut ring, _ledger) = ring(2);
    let (server, peer) = connection();
    ring.receive(server.as_raw_fd(), 1).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    let end = only(&mut ring);
    assert_eq!((end.told.result, end.told.more), (0, false));
    assert!(end.buffer.is_none());
}

#[test]
fn a_send_gives_its_bytes_back() {
    let (mut ring, _ledger) = ring(0);
    let (server, mut peer) = connection();
    let tag = ring.send(server.as_raw_fd(), b"hello, all".to_vec(), 5).unwrap();
    let sent = only(&mut ring);
    assert_eq!((sent.told.name.tag, sent.told.result), (tag, 5));
    assert_eq!(sent.bytes, Some(b"hello, all".to_vec()));
    let mut got = [0; 5];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn connections_are_accepted_as_they_come() {
    let (mut ring, _ledger) = ring(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ring.accept(listener.as_raw_fd(), 3).unwrap();
    ring.wait(Some(Duration::ZERO)).unwrap();
    let address = listener.local_addr().unwrap();
    let _peers: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut come = Vec::new();
    while come.len() < 3 {
        come.extend(next(&mut ring));
    }
    for Completion { told: accepted, .. } in come {
        assert!(accepted.result > 2 && accepted.more && accepted.name.tag == 3, "{accepted:?}");
        super::super::table::close(accepted.result);
    }
    ring.cancel_now(Name { kind: Kind::Accept, fd: listener.as_raw_fd(), tag: 3 }).unwrap();
    let _late = TcpStream::connect(address).unwrap();
    assert_eq!(only(&mut ring).told.result, -libc::ECANCELED);
}

#[test]
fn what_nobody_took_is_found_by_the_rings_descriptor() {
    let (mut ring, ledger) = ring(4);
    let (server, mut peer) = connection();
    let fd = server.as_raw_fd();
    ring.receive(fd, 9).unwrap();
    let name = Name { kind: Kind::Receive, fd, tag: 9 };
    peer.write_all(b"seen").unwrap();
    ring.wait(LONG).unwrap();
    let seen = ring.take().unwrap();
    assert!(!ring.has_untaken(name));
    assert_eq!(unseen(ring.descriptor()).unwrap().len(), 1, "it is there until it is said to be taken");
    ring.forget_taken();
    assert_eq!(unseen(ring.descriptor()).unwrap(), []);
    assert!(seen.buffer.is_some());
    peer.write_all(b"not seen").unwrap();
    ring.wait(LONG).unwrap();
    assert!(ring.has_untaken(name));
    let [found] = unseen(ring.descriptor()).unwrap()[..] else { panic!("one expected") };
    assert_eq!((found.name, found.result), (name, 8));
    let index = ledger.buffers_of_lane(1).start + usize::from(found.buffer.unwrap());
    assert_eq!(&ring.take().unwrap().buffer.unwrap().bytes()[..8], b"not seen");
    assert!(ledger.buffers_of_lane(1).contains(&index));
}

#[test]
fn what_is_no_ring_of_this_program_is_not_looked_into() {
    let (server, _peer) = connection();
    let other = IoUring::new(8).unwrap();
    for fd in [server.as_raw_fd(), other.as_raw_fd(), 99_999] {
        assert_eq!(unseen(fd).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
