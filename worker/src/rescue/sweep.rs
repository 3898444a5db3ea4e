//! What stands in the table and in no record: garbage of the dead, and connections accepted a moment too late to be recorded.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, UnixAddr, getpeername, getsockname};
use phalanx_shared::info;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::Peer;
use phalanx_shared::ledger::{LANES, Ledger, Track};
use phalanx_shared::sys::socket::counters;
use phalanx_shared::sys::table::{self, borrow, open_descriptors};

use super::{is_alive, ring};
use crate::conn::{Connection, Context};
use crate::enter::Inheritance;

/// Closes what is in the table and in no record, except sockets that a dead worker had accepted and not yet recorded: those
/// are recorded now and returned. Only for a worker that is alone in its slot, before it opens anything of its own.
///
/// While processes of connections live, which go on opening and closing, only what the dead have noted is closed; the rest is left to
/// a later worker.
pub(crate) fn sweep(cx: &mut Context, inheritance: &Inheritance) -> Vec<Connection> {
    if living(&cx.ledger).next().is_some() {
        let mut adopted = Vec::new();
        for lane in 0..LANES {
            close_noted(cx, lane);
            adopted.extend(unrecorded(cx, lane, inheritance));
        }
        return adopted;
    }
    let closing: Vec<RawFd> = all_tracks(&cx.ledger).filter_map(|track| track.closing()).collect();
    // A connection fetched from a former table may look as if it had just been accepted; its record is still there.
    let accepting = (0..LANES).any(|lane| cx.ledger.lane(lane).is_accepting());
    let mut adopted = Vec::new();
    for fd in in_no_record(&cx.ledger, inheritance) {
        let fresh = if closing.contains(&fd) || !accepting { None } else { adopt_fresh(cx, fd, inheritance) };
        match fresh {
            Some(connection) => adopted.push(connection),
            None => table::close(fd),
        }
    }
    for track in all_tracks(&cx.ledger) {
        track.set_closing(None);
        track.set_child(None);
    }
    for number in 0..LANES {
        let lane = cx.ledger.lane(number);
        lane.set_accepting(false);
        lane.set_fetching(false);
        cx.ledger.table().forget_notes(number);
    }
    adopted
}

/// Closes what the dead worker of `lane` had noted as its own.
pub(crate) fn close_noted(cx: &Context, lane: usize) {
    // Taken back first: at boot the lane is this worker's own by now.
    let noted = cx.ledger.table().noted(lane);
    cx.ledger.table().forget_notes(lane);
    noted.into_iter().for_each(|fd| close_stray(cx, fd));
}

/// Closes a descriptor that a dead worker called its own, unless it is the slot's, a connection, or this worker's: the dead may
/// have written anything.
pub(crate) fn close_stray(cx: &Context, fd: RawFd) {
    let own = cx.ledger.table().noted(cx.lane_number);
    if fd > 2 && !is_recorded(&cx.ledger, fd) && !cx.infrastructure.contains(&fd) && !own.contains(&fd) {
        table::close(fd);
    }
}

/// Closes a file that a dead worker had noted as open, if it is one: the dead may have written anything.
pub(crate) fn close_file(cx: &Context, fd: RawFd) {
    let kinds = [libc::S_IFREG, libc::S_IFDIR];
    let kind = nix::sys::stat::fstat(borrow(fd)).map_or(0, |stat| stat.st_mode & libc::S_IFMT);
    // Lines to processes have no name; connections have that of their listener.
    let has_no_name = |address: UnixAddr| address.path().is_none() && address.as_abstract().is_none();
    let is_line = || kind == libc::S_IFSOCK && getsockname(fd).is_ok_and(has_no_name);
    if kinds.contains(&kind) || is_line() {
        close_stray(cx, fd);
    }
}

/// Records what the dead worker of `lane` had accepted and not recorded. For a worker that is not alone: nothing else in the
/// table is touched, since it may be a living worker's.
pub(crate) fn unrecorded(cx: &mut Context, lane: usize, inheritance: &Inheritance) -> Vec<Connection> {
    close_what_was_closing(&cx.ledger, lane, inheritance);
    let lane = cx.ledger.lane(lane);
    let mut adopted = Vec::new();
    // Asked again for each: a process of a connection may be closing it at this moment.
    let is_being_closed = |ledger: &Ledger, fd| living(ledger).any(|track| track.closing() == Some(fd));
    if lane.is_fetching() {
        // What it had received and not recorded is still where it came from.
        let found = in_no_record(&cx.ledger, inheritance);
        let coming = ring::coming(&cx.ledger);
        for fd in found.into_iter().filter(|fd| !coming.contains(fd)) {
            if is_connection(fd, inheritance) && !is_being_closed(&cx.ledger, fd) {
                table::close(fd);
            }
        }
    } else if lane.is_accepting() {
        // Looked for first: what comes meanwhile is in a ring by then, or on record.
        let found = in_no_record(&cx.ledger, inheritance);
        let coming = ring::coming(&cx.ledger);
        for fd in found.into_iter().filter(|fd| !coming.contains(fd)) {
            if !is_being_closed(&cx.ledger, fd) {
                adopted.extend(adopt_fresh(cx, fd, inheritance));
            }
        }
    }
    lane.set_accepting(false);
    lane.set_fetching(false);
    adopted
}

pub(super) fn is_recorded(ledger: &Ledger, fd: RawFd) -> bool {
    ledger.record(fd).is_some_and(|record| record.owner().is_some())
}

/// What is in the table, on no record, and none of the slot's own.
pub(super) fn in_no_record(ledger: &Ledger, inheritance: &Inheritance) -> Vec<RawFd> {
    let mut found = open_descriptors().unwrap_or_default();
    let children: Vec<RawFd> = living(ledger).filter_map(|track| track.child()).collect();
    let is_known = |fd: RawFd| inheritance.infrastructure.contains(&fd) || children.contains(&fd);
    found.retain(|&fd| fd > 2 && !is_recorded(ledger, fd) && !is_known(fd));
    found
}

/// Closes the connections that the dead worker of `lane` was closing, if it had come to free their records.
pub(super) fn close_what_was_closing(ledger: &Ledger, lane: usize, inheritance: &Inheritance) {
    for track in ledger.tracks_of(lane).filter(|track| !is_alive(track)) {
        close_what_a_track_was_closing(ledger, &track, inheritance);
    }
}

/// The same for who wrote one track.
pub(crate) fn close_what_a_track_was_closing(ledger: &Ledger, track: &Track, inheritance: &Inheritance) {
    let closing = track.closing().filter(|&fd| !is_recorded(ledger, fd) && is_connection(fd, inheritance));
    closing.into_iter().for_each(table::close);
    track.set_closing(None);
}

/// Tracks that a process writes which lives, whether its worker does or not.
pub(crate) fn living(ledger: &Ledger) -> impl Iterator<Item = Track> + '_ {
    all_tracks(ledger).filter(is_alive)
}

fn all_tracks(ledger: &Ledger) -> impl Iterator<Item = Track> + '_ {
    (0..LANES).flat_map(|lane| ledger.tracks_of(lane))
}

fn adopt_fresh(cx: &mut Context, fd: RawFd, inheritance: &Inheritance) -> Option<Connection> {
    let (peer, listener) = just_accepted(fd, inheritance)?;
    let connection = Connection::record(cx, fd, peer, listener).ok().flatten()?;
    cx.stats.add(Counter::Accepted, 1);
    Some(connection)
}

/// Whether `fd` is a connected socket that came in by one of the listeners.
pub(super) fn is_connection(fd: RawFd, inheritance: &Inheritance) -> bool {
    peer_of(fd).is_some() && seat_of(fd, inheritance).is_some()
}

/// The seat of the listener that a connected socket came in by.
pub(crate) fn seat_of(fd: RawFd, inheritance: &Inheritance) -> Option<u8> {
    let local = getsockname::<SockaddrStorage>(fd).ok()?;
    let came_by = |seat: &RawFd| getsockname(*seat).is_ok_and(|bound| came_by(&local, &bound));
    u8::try_from(inheritance.seats.iter().position(came_by)?).ok()
}

/// Whether `fd` is a connection that came in by one of the listeners and on which nothing has happened yet.
pub(super) fn just_accepted(fd: RawFd, inheritance: &Inheritance) -> Option<(Peer, u8)> {
    let peer = peer_of(fd)?;
    let seat = seat_of(fd, inheritance)?;
    if peer != Peer::Unix {
        let kernel = counters(borrow(fd)).ok()?;
        if kernel.gone || kernel.consumed != 0 || kernel.written != 0 {
            return None;
        }
    }
    info!("connection {fd} had been accepted and not recorded: adopted");
    Some((peer, seat))
}

/// The peer of a connected socket; none when it is not connected (any more).
pub(crate) fn peer_of(fd: RawFd) -> Option<Peer> {
    let address = getpeername::<SockaddrStorage>(fd).ok()?;
    match address.family()? {
        AddressFamily::Unix => Some(Peer::Unix),
        _ => ip_of(&address).map(Peer::Ip),
    }
}

fn ip_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from(std::net::SocketAddrV4::from(*v4)));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::from(std::net::SocketAddrV6::from(*v6)))
}

fn came_by(local: &SockaddrStorage, bound: &SockaddrStorage) -> bool {
    if let Some(path) = bound.as_unix_addr().and_then(|unix| unix.path()) {
        return local.as_unix_addr().and_then(|unix| unix.path()) == Some(path);
    }
    let (Some(local), Some(bound)) = (ip_of(local), ip_of(bound)) else { return false };
    let same_ip = |a: IpAddr, b: IpAddr| a.to_canonical() == b.to_canonical();
    local.port() == bound.port() && (bound.ip().is_unspecified() || same_ip(local.ip(), bound.ip()))
}
