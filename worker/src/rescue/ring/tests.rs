//! What a dead worker's ring leaves, over real rings and sockets. The ring stays open, as that of a dead worker does in the table.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use phalanx_shared::ledger::record::State;
use phalanx_shared::sys::uring::{Name, Ring};

use super::super::take_over;
use super::super::tests::{DEAD, REQUEST, connection, context};
use super::*;
use crate::conn::{Connection, Context, Fate};

const LANE: usize = 0;
const TAG: u32 = 5;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n";
/// Requests that take more than a buffer and less than two.
const MANY: usize = 900;
const LONG: Option<Duration> = Some(Duration::from_secs(10));

/// The ring of a worker on lane 0. Its buffers are another process's: taken by another mapping of the ledger.
fn ring(cx: &Context, theirs: &Ledger, buffers: usize) -> Ring {
    let lane = theirs.buffers_of_lane(LANE);
    let mut ring = Ring::new(lane.start).unwrap();
    for index in lane.take(buffers) {
        assert!(ring.provide(theirs.buffer(index).unwrap()).is_ok());
    }
    cx.ledger.lane(LANE).set_ring(Some((ring.descriptor(), DEAD)));
    ring
}

/// A context, its ledger as another process has it, a ring of that process, and a connection that it receives on.
struct Scene {
    cx: Context,
    theirs: Ledger,
    ring: Ring,
    client: TcpStream,
    fd: RawFd,
    record: Record,
}

fn scene() -> Scene {
    let (cx, ledger_fd) = context();
    let theirs = Ledger::open(&ledger_fd, cx.ledger.descriptors(), cx.ledger.connections()).unwrap();
    let mut ring = ring(&cx, &theirs, 16);
    let (client, fd, record) = connection(&cx, &TcpListener::bind("127.0.0.1:0").unwrap());
    client.set_nodelay(true).unwrap();
    record.set_ring(Some(TAG));
    ring.receive(fd, TAG).unwrap();
    ring.wait(Some(Duration::ZERO)).unwrap();
    Scene { cx, theirs, ring, client, fd, record }
}

/// Another number of the ring.
fn their_ring(scene: &Scene) -> RawFd {
    std::os::fd::IntoRawFd::into_raw_fd(borrow(scene.ring.descriptor()).try_clone_to_owned().unwrap())
}

impl Scene {
    /// The client sends something, and the ring receives it. What it has received before counts as seen.
    fn receive(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).unwrap();
        self.ring.wait(LONG).unwrap();
        let received: i32 = unseen(self.ring.descriptor()).unwrap().iter().map(|it| it.result).sum();
        assert_eq!(received as usize, bytes.len());
    }

    fn settle(&self) {
        // What settles closes the ring: here the test has it too.
        self.cx.ledger.lane(LANE).set_ring(Some((their_ring(self), DEAD)));
        settle(&self.cx.ledger, LANE, Some(DEAD));
    }

    fn rescued(&mut self) -> Option<Connection> {
        take_over(&mut self.cx, &[], false).pop()
    }

    /// Rescues the connection and answers what was received on it, which is `count` requests.
    fn assert_answered(&mut self, count: usize) {
        let mut connection = self.rescued().expect("the connection is kept");
        let mut client = self.client.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let (mut answers, mut got) = (Vec::new(), [0; 4096]);
            while answers.windows(HEAD.len()).filter(|window| *window == HEAD).count() < count {
                let count = client.read(&mut got).unwrap();
                assert_ne!(count, 0, "closed");
                answers.extend_from_slice(&got[..count]);
            }
        });
        while !reader.is_finished() {
            connection.ask_to_go_on();
            let fate = match connection.has_output() {
                true => connection.writable(&mut self.cx),
                false => connection.go_on(&mut self.cx),
            };
            assert_ne!(fate, Fate::Close);
        }
        reader.join().unwrap();
        assert_eq!(self.record.consumed(), (REQUEST.len() * count) as u64);
        assert_eq!(self.record.held(), None);
    }
}

#[test]
fn what_nobody_saw_is_answered() {
    let mut scene = scene();
    scene.receive(REQUEST);
    scene.settle();
    assert_eq!(end_on_record(&scene.cx.ledger, &scene.record), REQUEST.len() as u64);
    scene.assert_answered(1);
    assert_eq!(scene.record.ring(), None, "its owner reads by itself now");
}

#[test]
fn pieces_are_put_together_in_their_order() {
    let mut scene = scene();
    scene.receive(&REQUEST.repeat(MANY));
    scene.settle();
    assert_eq!(scene.cx.ledger.chain(&scene.record).len(), 2);
    scene.assert_answered(MANY);
}

#[test]
fn what_was_put_on_record_before_the_death_is_not_taken_twice() {
    // The worker died between the record and saying that it has it.
    let mut scene = scene();
    scene.receive(&REQUEST.repeat(MANY));
    let seen = scene.ring.take().unwrap();
    scene.record.set_buffer(seen.buffer.map(|buffer| buffer.index()));
    scene.record.set_consumed(seen.told.result as u64);
    scene.settle();
    assert_eq!(scene.cx.ledger.chain(&scene.record).len(), 1);
    // A successor that dies over it is succeeded by one that finds the same, and adds nothing.
    scene.settle();
    assert_eq!(end_on_record(&scene.cx.ledger, &scene.record), (REQUEST.len() * MANY) as u64);
    scene.assert_answered(MANY);
}

#[test]
fn a_buffer_that_became_the_connections_own_and_was_not_counted_is_counted() {
    let mut scene = scene();
    scene.receive(REQUEST);
    let seen = scene.ring.take().unwrap();
    scene.record.set_buffer(seen.buffer.map(|buffer| buffer.index()));
    scene.settle();
    assert_eq!((scene.record.consumed(), scene.record.held()), (REQUEST.len() as u64, None));
    scene.assert_answered(1);
}

#[test]
fn what_was_received_for_an_earlier_connection_of_the_number_is_left_alone() {
    let mut scene = scene();
    scene.receive(REQUEST);
    scene.record.set_ring(Some(TAG + 1));
    scene.settle();
    assert_eq!((scene.record.consumed(), scene.record.held()), (0, None));
    // And what cannot be accounted for closes the connection.
    assert!(scene.rescued().is_none());
    assert_eq!(scene.record.owner(), None);
}

#[test]
fn connections_of_the_living_are_not_touched() {
    let mut scene = scene();
    scene.receive(REQUEST);
    let living = Owner::Worker(Incarnation(DEAD.0 + 7));
    scene.record.set_owner(living);
    scene.settle();
    assert_eq!((scene.record.consumed(), scene.record.held()), (0, None));
    table::close(scene.fd);
}

#[test]
fn the_ring_of_another_worker_of_the_lane_is_left_to_its_own_burial() {
    let mut scene = scene();
    scene.receive(REQUEST);
    settle(&scene.cx.ledger, LANE, Some(Incarnation(DEAD.0 + 1)));
    assert_eq!(scene.cx.ledger.lane(LANE).ring(), Some((scene.ring.descriptor(), DEAD)));
    // Nor is one closed that a living worker has, whatever a dead one has written.
    scene.cx.ledger.lane(LANE + 1).set_ring(Some((scene.ring.descriptor(), Incarnation(9))));
    settle(&scene.cx.ledger, LANE, None);
    assert_eq!(unseen(scene.ring.descriptor()).unwrap().len(), 1);
}

#[test]
fn a_connection_that_came_and_nobody_saw_is_looked_for() {
    let mut scene = scene();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    scene.ring.accept(std::os::fd::AsRawFd::as_raw_fd(&listener), 9).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    scene.ring.wait(LONG).unwrap();
    assert!(!scene.cx.ledger.lane(LANE).is_accepting());
    // As long as its worker lives it is that one's.
    assert_eq!(coming(&scene.cx.ledger).len(), 1);
    scene.settle();
    assert!(scene.cx.ledger.lane(LANE).is_accepting());
    assert_eq!(scene.cx.ledger.lane(LANE).ring(), None);
}

#[test]
fn a_scribbled_number_of_a_ring_is_no_ring() {
    let scene = scene();
    for fd in [scene.fd, 4000] {
        scene.cx.ledger.lane(LANE).set_ring(Some((fd, DEAD)));
        settle(&scene.cx.ledger, LANE, None);
        assert_eq!((scene.record.consumed(), scene.record.held()), (0, None));
    }
}

#[test]
fn a_unix_sockets_pieces_are_taken_as_the_ring_tells_them() {
    let mut scene = scene();
    let (mut client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(server);
    let record = scene.cx.ledger.record(fd).unwrap();
    for in_call in [false, true] {
        record.fill(cookie(borrow(fd)).unwrap(), Peer::Unix, 0);
        record.set_owner(Owner::Worker(DEAD));
        record.set_ring(Some(TAG));
        record.set_state(State { in_call, ..State::default() });
        scene.ring.receive(fd, TAG).unwrap();
        client.write_all(b"GET").unwrap();
        let name = Name { kind: Kind::Receive, fd, tag: TAG };
        while !scene.ring.has_untaken(name) {
            scene.ring.wait(LONG).unwrap();
        }
        scene.settle();
        // In between, nobody knows whether it was taken.
        assert_eq!(end_on_record(&scene.cx.ledger, &record), if in_call { 0 } else { 3 });
        while scene.ring.take().is_some() {}
        let _ended = scene.ring.cancel_now(name);
        scene.ring.wait(Some(Duration::ZERO)).unwrap();
    }
    assert!(scene.theirs.buffer(1 << 30).is_none());
}
