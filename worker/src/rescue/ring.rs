//! What the ring of a dead worker had received and its worker had not seen: put on record, after what was on record already, so that
//! the rescue finds it there.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;

use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Owner, Peer, Phase};
use phalanx_shared::ledger::{BUFFER_BYTES, LANES, Ledger, MOST_HELD, Record};
use phalanx_shared::sys::socket::{cookie, counters};
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::sys::uring::{Kind, Unseen, unseen};
use phalanx_shared::warn;

use crate::crash_point::{self, Point};

/// Bytes in a buffer, from its first one on.
struct Piece {
    buffer: usize,
    len: usize,
}

/// Puts on record what the ring of a lane's worker had to tell, and closes the ring: that of `dead`, or of whoever had the lane last,
/// who is dead. May be done again by a successor, if this one dies over it.
pub(crate) fn settle(ledger: &Ledger, number: usize, dead: Option<Incarnation>) {
    let lane = ledger.lane(number);
    let Some((fd, owner)) = lane.ring().filter(|(_, owner)| dead.is_none_or(|dead| dead == *owner)) else { return };
    let is_anothers = rings_of_others(ledger, number).any(|other| other == fd);
    let found = if is_anothers { Err(io::Error::other("it is another's")) } else { unseen(fd) };
    match found {
        Ok(unseen) => {
            // Where to look for connections that it accepted and nobody saw.
            if unseen.iter().any(|it| it.name.kind == Kind::Accept && it.result >= 0) {
                lane.set_accepting(true);
            }
            put_on_record(ledger, number, owner, &unseen);
            let notes: Vec<RawFd> = lane.notes().get().filter(|noted| *noted != fd).collect();
            lane.notes().set(&notes);
            // Before the number can be another's.
            lane.set_ring(None);
            table::close(fd);
        }
        Err(error) => {
            warn!("look into the ring of a dead worker: {error}");
            lane.set_ring(None);
        }
    }
}

fn rings_of_others(ledger: &Ledger, number: usize) -> impl Iterator<Item = RawFd> {
    let others = (0..LANES).filter(move |lane| *lane != number);
    others.filter_map(|lane| ledger.lane(lane).ring()).map(|(fd, _)| fd)
}

/// Connections that have come to workers that live and have not seen them yet.
pub(super) fn coming(ledger: &Ledger) -> Vec<RawFd> {
    let rings = (0..LANES).filter_map(|lane| ledger.lane(lane).ring());
    let unseen = rings.filter_map(|(fd, _)| unseen(fd).ok()).flatten();
    unseen.filter(|it| it.name.kind == Kind::Accept && it.result >= 0).map(|it| it.result).collect()
}

fn put_on_record(ledger: &Ledger, lane: usize, owner: Incarnation, unseen: &[Unseen]) {
    let first = ledger.buffers_of_lane(lane).start;
    let mut pieces: HashMap<RawFd, Vec<Piece>> = HashMap::new();
    for unseen in unseen {
        let (Kind::Receive, Some(number), Ok(len)) = (unseen.name.kind, unseen.buffer, usize::try_from(unseen.result))
        else {
            continue;
        };
        let record = ledger.record(unseen.name.fd);
        let is_meant =
            |record: &Record| record.owner() == Some(Owner::Worker(owner)) && record.ring() == Some(unseen.name.tag);
        if record.as_ref().is_some_and(is_meant) && len <= BUFFER_BYTES {
            pieces.entry(unseen.name.fd).or_default().push(Piece { buffer: first + usize::from(number), len });
        }
    }
    for (fd, pieces) in pieces {
        if let Some(record) = ledger.record(fd)
            && let Some(pieces) = still_missing(ledger, fd, &record, pieces)
        {
            let bytes: usize = pieces.iter().map(|piece| piece.len).sum();
            link(ledger, &record, pieces);
            ledger.lane(lane).stats().add(Counter::BytesIn, bytes as u64);
        }
        crash_point::pass(Point::RingSettled);
    }
}

/// The stream position up to which what was received is on record.
pub(super) fn end_on_record(ledger: &Ledger, record: &Record) -> u64 {
    let chain = ledger.chain(record);
    let last = chain.last().and_then(|index| ledger.held(*index));
    last.map_or(0, |last| last.end()).max(record.consumed())
}

/// Those of the pieces that are not on record: the last ones, as many as the kernel's count says. None when it says otherwise: the
/// rescue will find the same and close the connection.
fn still_missing(ledger: &Ledger, fd: RawFd, record: &Record, mut pieces: Vec<Piece>) -> Option<Vec<Piece>> {
    let state = record.state();
    if state.phase == Phase::Lingering || !cookie(borrow(fd)).is_ok_and(|cookie| cookie == record.cookie()) {
        return None;
    }
    if record.peer() == Peer::Unix {
        // Nothing is between two steps, or the connection cannot be kept anyway.
        return (!state.in_call).then_some(pieces);
    }
    let kernel = counters(borrow(fd)).ok()?;
    let mut missing = kernel.consumed.checked_sub(end_on_record(ledger, record))?;
    let mut from = pieces.len();
    while missing > 0 {
        from = from.checked_sub(1)?;
        missing = missing.checked_sub(pieces[from].len as u64)?;
    }
    Some(pieces.split_off(from))
}

fn link(ledger: &Ledger, record: &Record, pieces: Vec<Piece>) {
    let mut chain = ledger.chain(record);
    for piece in pieces {
        // The worker died between making it the connection's own buffer and counting what stands in it.
        if record.buffer() == Some(piece.buffer) && record.base() == record.consumed() && chain.is_empty() {
            record.set_consumed(record.consumed().saturating_add(piece.len as u64));
            continue;
        }
        let Some(held) = ledger.held(piece.buffer).filter(|_| chain.len() < MOST_HELD) else { return };
        // Of a Unix socket nothing tells how far the rescuer came that died over it.
        if chain.contains(&piece.buffer) {
            continue;
        }
        let last = chain.last().and_then(|last| ledger.held(*last));
        held.fill(last.map_or(0, |last| last.end()).max(record.consumed()), piece.len);
        match last {
            Some(last) => last.set_next(piece.buffer),
            None => record.set_held(Some(piece.buffer)),
        }
        chain.push(piece.buffer);
    }
}

#[cfg(test)]
mod tests;
