//! Rescue against real sockets and a ledger in which anything may stand.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use phalanx_shared::config::{self, Action, Effort, Route, RoutePath};
use phalanx_shared::ledger::record::Guilt;
use phalanx_shared::ledger::response::{Entry, Kind};

use super::sweep::peer_of;
use super::*;
use crate::conn::Fate;
use crate::open_file::OpenFiles;
use crate::service::{Router, Setting};

pub(super) const DEAD: Incarnation = Incarnation(1);
pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

pub(super) fn context() -> (Context, OwnedFd) {
    let mut config = config::serve_defaults(PathBuf::from("/"), vec![]);
    let action = Action::Respond {
        status: 200,
        body: "Hello".to_owned(),
        content_type: "text/plain".to_owned(),
        effort: Effort::default(),
    };
    config.sites[0].routes = vec![Route::new(RoutePath::Prefix("/".to_owned()), action)];
    let (ledger, fd) = Ledger::create("test", 4096, 64).unwrap();
    let setting = Setting::new(OpenFiles::new(ledger.table(), 1, Incarnation(2)), &config.cache);
    let router = Arc::new(Router::new(&config, &setting).unwrap());
    let clients = phalanx_shared::clients::Clients::create(64).unwrap().0;
    let bare = Context::new(&ledger, 1, Incarnation(2), &config, clients, setting).unwrap();
    (Context { router, ..bare }, fd)
}

/// A connection that a dead worker owned: its client, its descriptor, its record.
pub(super) fn connection(cx: &Context, listener: &TcpListener) -> (TcpStream, RawFd, Record) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    let fd = server.into_raw_fd();
    let record = cx.ledger.record(fd).unwrap();
    record.fill(cookie(borrow(fd)).unwrap(), peer_of(fd).unwrap(), 0);
    record.set_owner(Owner::Worker(DEAD));
    cx.lane.raise_high_water(fd);
    (client, fd, record)
}

/// Gives the record a buffer with the request in it, as if it had been read; `recorded` says whether the read was recorded.
fn read_request(cx: &Context, fd: RawFd, record: &Record, client: &mut TcpStream, recorded: bool) -> Buffer {
    client.write_all(REQUEST).unwrap();
    let mut buffer = cx.ledger.buffer(0).unwrap();
    record.set_buffer(Some(0));
    let mut taken = 0;
    while taken < REQUEST.len() {
        taken += nix::unistd::read(borrow(fd), &mut buffer.bytes_mut()[taken..]).unwrap_or(0);
    }
    if recorded {
        record.set_consumed(taken as u64);
    }
    buffer
}

fn answer_of(client: &mut TcpStream) -> String {
    client.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    let mut bytes = [0; 4096];
    let count = client.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[test]
fn a_read_that_was_not_recorded_is_found_by_the_kernels_count() {
    let (mut cx, listener) = (context().0, TcpListener::bind("127.0.0.1:0").unwrap());
    let (mut client, fd, record) = connection(&cx, &listener);
    drop(read_request(&cx, fd, &record, &mut client, false));
    let [mut rescued] = <[Connection; 1]>::try_from(take_over(&mut cx, &[], false)).ok().unwrap();
    assert_eq!(record.consumed(), REQUEST.len() as u64);
    assert_eq!(rescued.go_on(&mut cx), Fate::Stay);
    assert!(answer_of(&mut client).starts_with("HTTP/1.1 200 OK\r\n"));
    assert_eq!(cx.stats.get(Counter::Requests), 1);
}

#[test]
fn what_a_worker_cloned_later_has_rescued_is_left_to_it() {
    let (mut cx, listener) = (context().0, TcpListener::bind("127.0.0.1:0").unwrap());
    let (_client, _fd, record) = connection(&cx, &listener);
    let later = Owner::Worker(Incarnation(cx.incarnation.0 + 1));
    record.set_owner(later);
    assert!(take_over(&mut cx, &[], false).is_empty());
    assert_eq!(record.owner(), Some(later));
    // Who is alone knows that nobody else lives: the owner was scribbled.
    assert_eq!(take_over(&mut cx, &[], true).len(), 1);
}

#[test]
fn a_socket_that_is_not_the_recorded_one_is_left_alone_and_its_record_freed() {
    let (mut cx, listener) = (context().0, TcpListener::bind("127.0.0.1:0").unwrap());
    let (mut client, fd, record) = connection(&cx, &listener);
    record.fill(1, Peer::Unix, 0);
    assert!(take_over(&mut cx, &[], false).is_empty());
    assert_eq!(record.owner(), None);
    let mut server = std::fs::File::from(table::adopt(fd));
    server.write_all(b"still open").unwrap();
    assert_eq!(answer_of(&mut client), "still open");
}

#[test]
fn a_connection_of_a_living_worker_is_not_touched() {
    let (mut cx, listener) = (context().0, TcpListener::bind("127.0.0.1:0").unwrap());
    let (_client, fd, record) = connection(&cx, &listener);
    assert!(take_over(&mut cx, &[DEAD], false).is_empty());
    assert_eq!(record.owner(), Some(Owner::Worker(DEAD)));
    table::close(fd);
}

#[test]
fn the_guilty_request_gets_its_error_and_the_connection_ends() {
    let (mut cx, listener) = (context().0, TcpListener::bind("127.0.0.1:0").unwrap());
    let (mut client, fd, record) = connection(&cx, &listener);
    let buffer = read_request(&cx, fd, &record, &mut client, true);
    let kind = Kind { idempotent: true, ..Kind::default() };
    let entry =
        Entry { request_end: REQUEST.len() as u64, response_start: 0, response_end: 0, validator: 0, date: 0, kind };
    cx.ledger.pending(&buffer).set(0, &entry);
    drop(buffer);
    record.set_state(State { pending: 1, ..State::default() });
    record.condemn(Guilt::Hang);
    let [mut rescued] = <[Connection; 1]>::try_from(take_over(&mut cx, &[], false)).ok().unwrap();
    assert_eq!(rescued.go_on(&mut cx), Fate::Stay);
    let answer = answer_of(&mut client);
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("Connection: close\r\n"), "{answer}");
}

/// Found by fuzzing: the next read would have counted on from there, and wrapped.
#[test]
fn a_position_that_no_stream_reaches_closes_the_connection() {
    for damage in [Record::set_consumed, Record::set_sent, Record::set_start, Record::set_base] {
        let mut cx = context().0;
        let (_client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = server.into_raw_fd();
        let record = cx.ledger.record(fd).unwrap();
        record.fill(cookie(borrow(fd)).unwrap(), Peer::Unix, 0);
        record.set_owner(Owner::Worker(DEAD));
        cx.lane.raise_high_water(fd);
        damage(&record, u64::MAX - 10);
        assert!(take_over(&mut cx, &[], false).is_empty());
        assert_eq!(record.owner(), None);
    }
}

/// Found by fuzzing: a worker that had just booted closed the directory that its own route had opened.
#[test]
fn a_record_that_calls_this_workers_own_a_file_of_the_dead_closes_nothing() {
    let (mut cx, _listener) = context();
    let (own, strange) = (std::fs::File::open("/").unwrap(), std::fs::File::open("/").unwrap());
    cx.lane.notes().set(&[own.as_raw_fd()]);
    for fd in [own.as_raw_fd(), strange.as_raw_fd()] {
        let record = cx.ledger.record(fd).unwrap();
        record.fill(1, Peer::Unix, 0);
        record.set_owner(Owner::File(DEAD));
        cx.lane.raise_high_water(fd);
    }
    assert!(take_over(&mut cx, &[], false).is_empty());
    assert!(own.metadata().is_ok());
    assert!(strange.metadata().is_err(), "what the dead had opened is closed");
    std::mem::forget(strange);
}

/// Small numbers, large ones, and those at the edges of what is right.
fn noise(dice: &mut u64) -> u64 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    let pick = *dice >> 32;
    match pick % 8 {
        0 => 0,
        1 => REQUEST.len() as u64,
        2 => pick % 64,
        3 => BUFFER_BYTES as u64 - 1 + pick % 3,
        4 => u64::MAX - pick % 3,
        5 => pick,
        6 => 1 << (pick % 64),
        _ => *dice,
    }
}

#[test]
fn a_scribbled_ledger_makes_no_successor_panic_or_run_for_ever() {
    let (mut cx, listener) = (context().0, TcpListener::bind("127.0.0.1:0").unwrap());
    phalanx_shared::log::configure(2, config::Level::Error);
    let mut dice = 0x9e37_79b9_7f4a_7c15;
    let mut kept = 0;
    for _round in 0..3000 {
        let (mut client, fd, record) = connection(&cx, &listener);
        let buffer = read_request(&cx, fd, &record, &mut client, true);
        let list = cx.ledger.pending(&buffer);
        drop(buffer);
        for index in 0..3 {
            let word = noise(&mut dice);
            let kind =
                Kind { idempotent: word & 1 == 0, interim: word & 6 == 0, last: word & 8 == 0, status: word as u16 };
            let entry = Entry {
                request_end: noise(&mut dice),
                response_start: noise(&mut dice),
                response_end: noise(&mut dice),
                validator: noise(&mut dice),
                date: noise(&mut dice),
                kind,
            };
            list.set(index, &entry);
        }
        let word = noise(&mut dice);
        let phase = [Phase::Open, Phase::Streaming, Phase::Lingering][(word % 3) as usize];
        let (first, pending) = (noise(&mut dice) as u8 % 4, noise(&mut dice) as u8 % 40);
        let in_call = word & 64 == 0;
        record.set_state(State { first, pending, phase, continued: word & 32 == 0, in_call });
        // Each field is left right as often as not, so that noise gets past the first check.
        let mut maybe = |set: &dyn Fn(u64)| {
            if noise(&mut dice) & 1 == 0 {
                set(noise(&mut dice));
            }
        };
        maybe(&|noise| record.set_consumed(noise));
        maybe(&|noise| record.set_sent(noise));
        maybe(&|noise| record.set_base(noise));
        maybe(&|noise| record.set_start(noise));
        maybe(&|noise| record.set_buffer(Some(noise as usize & 0xff)));
        maybe(&|noise| record.set_doom(noise, (noise >> 8) as u16));
        maybe(&|noise| record.condemn(if noise & 1 == 0 { Guilt::Fault } else { Guilt::Hang }));
        for mut rescued in take_over(&mut cx, &[], false) {
            kept += 1;
            // Bounded: a connection asks for at most as many turns as requests fit into its buffer.
            let mut fate = rescued.go_on(&mut cx);
            for _turn in 0..1000 {
                if fate != Fate::GoOn {
                    break;
                }
                rescued.ask_to_go_on();
                fate = rescued.go_on(&mut cx);
            }
            assert_ne!(fate, Fate::GoOn);
            rescued.readable(&mut cx);
            rescued.writable(&mut cx);
            rescued.close(&mut cx);
        }
        assert_eq!(record.owner(), None);
    }
    assert!(kept > 100, "{kept} of 3000 were kept: the noise does not get past the first check");
}
