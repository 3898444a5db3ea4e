//! Every kind of event, as each poller tells it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

use super::*;

const POLLERS: [config::Poller; 3] = [config::Poller::Epoll, config::Poller::Poll, config::Poller::Select];
/// Longer than anything on this machine takes.
const LONG: Option<Duration> = Some(Duration::from_secs(10));

/// Both ends of a connection, the server's and the peer's.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    setsockopt(&listener, sockopt::OobInline, &true).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    server.set_nonblocking(true).unwrap();
    (server, peer)
}

/// Plays `play` with a watched connection for each poller, and returns what that tells of the server's end.
fn told(interest: Interest, play: impl Fn(&TcpStream, TcpStream) -> Option<TcpStream>) -> Vec<(config::Poller, Event)> {
    let mut told = Vec::new();
    for which in POLLERS {
        let (server, peer) = connection();
        let mut poller = poller(which).unwrap();
        poller.add(server.as_raw_fd(), interest).unwrap();
        let _kept = play(&server, peer);
        let mut events = Vec::new();
        poller.wait(&mut events, LONG).unwrap();
        let [event] = events[..] else { panic!("{which:?}: {events:?}") };
        assert_eq!(event.fd, server.as_raw_fd());
        told.push((which, event));
    }
    told
}

fn is_select(which: config::Poller) -> bool {
    which == config::Poller::Select
}

#[test]
fn bytes_are_something_to_read() {
    for (_, event) in told(Interest::Read, |_, mut peer| {
        peer.write_all(b"x").unwrap();
        Some(peer)
    }) {
        assert_eq!(event, Event { readable: true, ..Event::of(event.fd) });
        assert!(event.wants_read() && !event.wants_write() && !event.is_broken());
    }
}

#[test]
fn room_is_told_to_who_wants_to_write() {
    for (_, event) in told(Interest::Write, |_, peer| Some(peer)) {
        assert_eq!(event, Event { writable: true, ..Event::of(event.fd) });
        assert!(event.wants_write() && !event.wants_read());
    }
}

#[test]
fn a_peer_that_has_finished_sending_is_told_as_that() {
    for (which, event) in told(Interest::Read, |_, peer| {
        peer.shutdown(Shutdown::Write).unwrap();
        Some(peer)
    }) {
        assert!(event.wants_read() && event.readable && !event.is_broken(), "{which:?}");
        assert_eq!(event.peer_finished, !is_select(which), "{which:?}");
    }
}

#[test]
fn urgent_data_is_told_and_stands_in_line() {
    for (which, event) in told(Interest::Read, |_, peer| {
        send(peer.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
        Some(peer)
    }) {
        assert!(event.urgent && event.readable && event.wants_read(), "{which:?}: {event:?}");
    }
    // Once it is read there is nothing to tell any more.
    for which in POLLERS {
        let (mut server, peer) = connection();
        let mut poller = poller(which).unwrap();
        poller.add(server.as_raw_fd(), Interest::Read).unwrap();
        send(peer.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
        let mut events = Vec::new();
        poller.wait(&mut events, LONG).unwrap();
        assert_eq!(server.read(&mut [0; 2]).unwrap(), 1, "{which:?}");
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events, [], "{which:?}");
    }
}

#[test]
fn both_directions_closed_is_a_hang_up() {
    for (which, event) in told(Interest::Read, |server, peer| {
        server.shutdown(Shutdown::Write).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        Some(peer)
    }) {
        // select has no word for it: the read tells.
        assert_eq!((event.hung_up, event.error), (!is_select(which), false), "{which:?}");
        assert!(event.wants_read(), "{which:?}");
    }
}

#[test]
fn a_reset_is_an_error() {
    for (which, event) in told(Interest::Read, |_, peer| {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&peer, sockopt::Linger, &linger).unwrap();
        None
    }) {
        assert_eq!((event.hung_up, event.error), (!is_select(which), !is_select(which)), "{which:?}");
        assert!(event.wants_read(), "{which:?}");
    }
}

#[test]
fn who_is_watched_for_nothing_hears_of_its_end_alone() {
    for which in POLLERS {
        let (server, mut peer) = connection();
        let mut poller = poller(which).unwrap();
        poller.add(server.as_raw_fd(), Interest::Nothing).unwrap();
        peer.write_all(b"x").unwrap();
        let mut events = Vec::new();
        poller.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert_eq!(events, [], "{which:?}");
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&peer, sockopt::Linger, &linger).unwrap();
        drop(peer);
        poller.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert_eq!(
            events.iter().filter(|event| event.is_broken()).count(),
            usize::from(!is_select(which)),
            "{which:?}"
        );
    }
}

#[test]
fn an_interest_changes_and_is_taken_back() {
    for which in POLLERS {
        let (server, mut peer) = connection();
        let fd = server.as_raw_fd();
        let mut poller = poller(which).unwrap();
        let mut events = Vec::new();
        poller.add(fd, Interest::Read).unwrap();
        assert_eq!(poller.add(fd, Interest::Read).unwrap_err().kind(), io::ErrorKind::AlreadyExists, "{which:?}");
        poller.change(fd, Interest::Write).unwrap();
        peer.write_all(b"x").unwrap();
        poller.wait(&mut events, LONG).unwrap();
        assert_eq!(events, [Event { writable: true, ..Event::of(fd) }], "{which:?}");
        poller.remove(fd).unwrap();
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events, [], "{which:?}");
        assert_eq!(poller.remove(fd).unwrap_err().kind(), io::ErrorKind::NotFound, "{which:?}");
        assert!(poller.change(fd, Interest::Read).is_err(), "{which:?}");
    }
}

#[test]
fn a_number_that_was_closed_is_another_s_at_once() {
    for which in POLLERS {
        let (mut poller, mut events) = (poller(which).unwrap(), Vec::new());
        let (first, _peer) = connection();
        let fd = first.into_raw_fd();
        poller.add(fd, Interest::Write).unwrap();
        poller.closed(fd);
        nix::unistd::close(fd).unwrap();
        // Most likely of the same number; of whichever it is, only what it is watched for is told.
        let (second, mut peer) = connection();
        poller.add(second.as_raw_fd(), Interest::Read).unwrap();
        peer.write_all(b"x").unwrap();
        poller.wait(&mut events, LONG).unwrap();
        assert_eq!(events, [Event { readable: true, ..Event::of(second.as_raw_fd()) }], "{which:?}");
    }
}

#[test]
fn what_another_has_closed_stops_nobody() {
    for which in POLLERS {
        let (mut poller, mut events) = (poller(which).unwrap(), Vec::new());
        let (lost, _peer) = connection();
        let (server, mut peer) = connection();
        poller.add(lost.as_raw_fd(), Interest::Read).unwrap();
        poller.add(server.as_raw_fd(), Interest::Read).unwrap();
        // The number is far from those that other tests get meanwhile.
        let far = fcntl(&lost, FcntlArg::F_DUPFD_CLOEXEC(900)).unwrap();
        poller.add(far, Interest::Read).unwrap();
        nix::unistd::close(far).unwrap();
        peer.write_all(b"x").unwrap();
        for _turn in 0..2 {
            poller.wait(&mut events, LONG).unwrap();
        }
        let live: Vec<_> = events.iter().filter(|event| event.fd == server.as_raw_fd() && event.readable).collect();
        assert_eq!(live.len(), 1, "{which:?}: {events:?}");
    }
}

#[test]
fn select_refuses_what_it_cannot_watch() {
    let (server, _peer) = connection();
    let far = fcntl(&server, FcntlArg::F_DUPFD_CLOEXEC(1024));
    // Where a process may have no such number there is nothing to refuse.
    let Ok(far) = far else { return };
    let error = poller(config::Poller::Select).unwrap().add(far, Interest::Read).unwrap_err();
    nix::unistd::close(far).unwrap();
    assert_eq!(error.to_string(), format!("descriptor {far} is beyond the 1024 that select can watch"));
}

#[test]
fn a_wait_ends_in_time_and_not_before() {
    for which in POLLERS {
        let (server, _peer) = connection();
        let mut poller = poller(which).unwrap();
        poller.add(server.as_raw_fd(), Interest::Read).unwrap();
        let begun = std::time::Instant::now();
        poller.wait(&mut Vec::new(), Some(Duration::from_micros(20_500))).unwrap();
        assert!(begun.elapsed() >= Duration::from_micros(20_500), "{which:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn what_may_be_told_once_is_told_again_to_who_watches_again() {
    for which in POLLERS {
        let (server, mut peer) = connection();
        let mut poller = poller(which).unwrap();
        peer.write_all(b"x").unwrap();
        let (mut events, fd) = (Vec::new(), server.as_raw_fd());
        poller.add(fd, Interest::More).unwrap();
        let mut told = |poller: &mut dyn Poller| {
            poller.wait(&mut events, Some(Duration::from_millis(50))).unwrap();
            events.iter().any(|event| event.fd == fd && event.readable)
        };
        assert!(told(&mut *poller), "{which:?}: what was there before");
        assert_eq!(told(&mut *poller), which != config::Poller::Epoll, "{which:?}");
        for interest in [Interest::More, Interest::Read, Interest::More] {
            poller.change(fd, interest).unwrap();
            assert!(told(&mut *poller), "{which:?}: {interest:?}");
        }
        peer.write_all(b"y").unwrap();
        assert!(told(&mut *poller), "{which:?}: more");
        drop(peer);
        assert!(told(&mut *poller), "{which:?}: the end");
    }
}
