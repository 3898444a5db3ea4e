//! What whoever still has a former table of a slot, keeper or worker, does for the worker that fetches its connections.

use std::os::fd::{BorrowedFd, RawFd};

use phalanx_shared::ipc::fetch::{Ask, BATCH, Named, Sent};
use phalanx_shared::ipc::line::{self, Wait};
use phalanx_shared::ledger::{LANES, Ledger};
use phalanx_shared::sys::socket::cookie;
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::warn;

use super::ring;
use super::sweep::{close_what_was_closing, in_no_record, just_accepted};
use crate::enter::Inheritance;

/// Answers what has been asked. Keeper and worker may both be woken by one question: one of them gets it.
pub fn answer_fetches(inheritance: &Inheritance) {
    let socket = borrow(inheritance.giving);
    // Bounded: the asker waits for an answer before it asks again. An error is an empty line, or an asker that is gone:
    // its successor asks anew.
    while let Ok(Some((ask, _))) = line::receive::<Ask>(socket, Wait::No) {
        match ask {
            Ask::Send(named) => send_connections(socket, named),
            Ask::Close(named) => named.iter().filter(|named| is_still(named)).for_each(|named| table::close(named.fd)),
            Ask::Fresh { lane } if lane < LANES => send_fresh(socket, inheritance, lane),
            Ask::Fresh { .. } => {}
        }
    }
}

fn is_still(named: &Named) -> bool {
    named.fd > 2 && cookie(borrow(named.fd)).is_ok_and(|cookie| cookie == named.cookie)
}

fn send_connections(socket: BorrowedFd<'_>, mut named: Vec<Named>) {
    named.truncate(BATCH);
    let (sent, missing): (Vec<Named>, Vec<Named>) = named.into_iter().partition(is_still);
    let descriptors: Vec<BorrowedFd<'_>> = sent.iter().map(|named| borrow(named.fd)).collect();
    if let Err(error) = line::send(socket, &Sent::Connections { sent, missing }, &descriptors) {
        warn!("send connections to the slot's new table: {error}");
    }
}

fn send_fresh(socket: BorrowedFd<'_>, inheritance: &Inheritance, lane: usize) {
    let fresh = fresh(&inheritance.ledger, inheritance, lane);
    for fresh in fresh.chunks(BATCH) {
        let listeners = fresh.iter().map(|(_, listener)| *listener).collect();
        let descriptors: Vec<BorrowedFd<'_>> = fresh.iter().map(|(fd, _)| borrow(*fd)).collect();
        match line::send(socket, &Sent::Fresh(listeners), &descriptors) {
            Ok(()) => fresh.iter().for_each(|(fd, _)| table::close(*fd)),
            Err(error) => warn!("send connections just accepted to the slot's new table: {error}"),
        }
    }
}

/// What the dead worker of `lane` had accepted and not recorded, and by which listener. What it was closing is closed.
fn fresh(ledger: &Ledger, inheritance: &Inheritance, lane: usize) -> Vec<(RawFd, u8)> {
    close_what_was_closing(ledger, lane, inheritance);
    ring::settle(ledger, lane, None);
    let lane = ledger.lane(lane);
    let mut fresh = Vec::new();
    if lane.is_accepting() {
        let found = in_no_record(ledger, inheritance);
        let coming = ring::coming(ledger);
        let accepted = |fd| just_accepted(fd, inheritance).map(|(_, listener)| (fd, listener));
        fresh.extend(found.into_iter().filter(|fd| !coming.contains(fd)).filter_map(accepted));
    }
    lane.set_accepting(false);
    fresh
}
