//! Taking over what a predecessor left: each record is compared with the kernel's own account of its socket. The difference
//! is what the dying system call did; with it every connection is put where its client believes it to be, or closed.
//!
//! The ledger is untrusted here: a crashing worker may have written anything into it.

pub(crate) mod fetch;
pub mod giver;
mod place;
pub(crate) mod ring;
pub(crate) mod strangers;
pub(crate) mod sweep;
#[cfg(test)]
mod tests;

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Guilt, Owner, Peer, Phase, Record, State};
use phalanx_shared::ledger::{BUFFER_BYTES, Ledger, Track};
use phalanx_shared::sys::crash_signal;
use phalanx_shared::sys::region::Buffer;
use phalanx_shared::sys::socket::{cookie, counters};
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::{debug, warn};

use crate::conn::{Connection, Context, plausible, uncount};
use crate::enter::Inheritance;
use crate::event::poll;

/// Why a connection is closed instead of kept.
type Refusal = &'static str;

/// Bytes that no stream comes to carry: positions beyond are damaged, and counting on from them could wrap.
const MAX_POSITION: u64 = 1 << 62;

/// Takes over every connection whose owner is dead: one that was cloned before this worker and is none of `alive`; closes the
/// files of the dead. Who was cloned later may be rescuing at this very moment, unless this worker is `alone`.
pub(crate) fn take_over(cx: &mut Context, alive: &[Incarnation], alone: bool) -> Vec<Connection> {
    let own = cx.incarnation;
    take_over_from(cx, |owner| (owner < own || alone && owner != own) && !alive.contains(&owner))
}

/// Takes over what `dead` owned, finishes what it had begun on its lane, and closes what was its own. For a worker that
/// serves.
pub(crate) fn bury(cx: &mut Context, dead: Incarnation, lane: usize, inheritance: &Inheritance) -> Vec<Connection> {
    settle(&cx.ledger, [lane]);
    ring::settle(&cx.ledger, lane, Some(dead));
    sweep::close_noted(cx, lane);
    let mut taken = sweep::unrecorded(cx, lane, inheritance);
    taken.append(&mut take_over_from(cx, |owner| owner == dead));
    taken
}

fn take_over_from(cx: &mut Context, is_dead: impl Fn(Incarnation) -> bool) -> Vec<Connection> {
    let recorded: Vec<(RawFd, Record)> = cx.ledger.recorded().collect();
    let (mut kept, mut lost) = (Vec::new(), Lost::default());
    for (fd, record) in recorded {
        match record.owner() {
            Some(Owner::Worker(owner)) if is_dead(owner) => {}
            Some(Owner::Child { of, lane, track }) if is_dead(of) => {
                // It lives on without its worker.
                if is_child_alive(&cx.ledger, lane, track) {
                    cx.orphans.push(fd);
                    continue;
                }
                settle_child(&cx.ledger, lane, track, &record);
            }
            // The process that has it may live on without its worker.
            Some(Owner::ChildFile { lane, track, .. }) if is_child_alive(&cx.ledger, lane, track) => continue,
            Some(Owner::File(owner) | Owner::ChildFile { of: owner, .. }) if is_dead(owner) => {
                record.free();
                sweep::close_file(cx, fd);
                continue;
            }
            _ => continue,
        }
        match take_one(cx, fd, record) {
            Ok(connection) => kept.push(connection),
            Err(why) => lost.note(why),
        }
    }
    cx.track.set_current(None);
    lost.tell(kept.len());
    kept
}

/// Takes over one connection, or closes it.
fn take_one(cx: &mut Context, fd: RawFd, record: Record) -> Result<Connection, Refusal> {
    // What the rescue of a connection runs can kill this worker too: the blame is to fall on the right one.
    cx.track.set_current(Some(fd));
    rescue(cx, fd, record).inspect_err(|why| close(cx, fd, &record, why))
}

/// Takes over the connection of a process that has died, or closes it.
pub(crate) fn take_over_one(cx: &mut Context, fd: RawFd, record: Record) -> Option<Connection> {
    let mut lost = Lost::default();
    let taken = take_one(cx, fd, record).inspect_err(|why| lost.note(why)).ok();
    lost.tell(usize::from(taken.is_some()));
    taken
}

fn is_child_alive(ledger: &Ledger, lane: u8, track: u16) -> bool {
    ledger.table().track(lane.into(), track.into()).is_some_and(|track| is_alive(&track))
}

/// Carries out what a process had begun that has died, and forgets it.
fn settle_child(ledger: &Ledger, lane: u8, track: u16, record: &Record) {
    let Some(track) = ledger.table().track(lane.into(), track.into()) else { return };
    if fell_by_own_fault(&track) {
        record.condemn(Guilt::Fault);
    }
    track.settle(|fd| ledger.record(fd));
    if let Some(pidfd) = track.child().filter(|pidfd| is_pidfd(*pidfd)) {
        table::close(pidfd);
    }
    track.set_child(None);
    track.set_lent([]);
}

/// Whether the last words of a process tell of a fault of its own.
pub(crate) fn fell_by_own_fault(track: &Track) -> bool {
    let word = |words: &[AtomicU64], index: usize| words[index].load(Ordering::Acquire);
    track
        .last_words()
        .is_some_and(|words| word(words, crash_signal::SIGNAL) != 0 && word(words, crash_signal::OWN_FAULT) == 1)
}

/// Whether a descriptor is that of a process. The ledger may name any.
fn is_pidfd(fd: RawFd) -> bool {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).is_ok_and(|info| info.contains("\nPid:\t"))
}

/// Closes what a process that has died held open.
pub(crate) fn close_files_of(cx: &mut Context, lane: usize, number: u16) {
    let is_of = |record: &Record| match record.owner() {
        Some(Owner::ChildFile { lane: of, track, .. }) => usize::from(of) == lane && track == number,
        _ => false,
    };
    let recorded: Vec<(RawFd, Record)> = cx.ledger.recorded().collect();
    for (fd, record) in recorded.into_iter().filter(|(_, record)| is_of(record)) {
        record.free();
        sweep::close_file(cx, fd);
    }
}

/// Whether the process that has a track lives. The ledger may name any descriptor.
pub(crate) fn is_alive(track: &Track) -> bool {
    let Some(pidfd) = track.child() else { return false };
    is_pidfd(pidfd) && !poll::is_any_readable([pidfd], Duration::ZERO)
}

/// Connections that a rescue could not keep, for one line in the log.
#[derive(Default)]
struct Lost {
    count: usize,
    why: Refusal,
}

impl Lost {
    fn note(&mut self, why: Refusal) {
        self.count += 1;
        self.why = why;
    }

    fn tell(&self, kept: usize) {
        if self.count > 0 {
            warn!("took over {kept} connections, had to close {}, the last because {}", self.count, self.why);
        }
    }
}

/// Takes what a predecessor has given. Only for a worker that serves.
pub(crate) fn take_given(cx: &mut Context) -> Vec<Connection> {
    let recorded: Vec<(RawFd, Record)> = cx.ledger.recorded().collect();
    let mut kept = Vec::new();
    for (fd, record) in recorded {
        if !record.claim_given(cx.incarnation) {
            continue;
        }
        match adopt(cx, fd, record) {
            Ok(connection) => kept.push(connection),
            Err(why) => close(cx, fd, &record, why),
        }
    }
    kept
}

/// Carries out what the journals of dead workers' lanes had begun.
pub(crate) fn settle(ledger: &Ledger, lanes: impl IntoIterator<Item = usize>) {
    settle_where(ledger, lanes, |track| !is_alive(track));
}

/// As [`settle`], of the tracks alone that nobody writes any more, as `is_dead` tells.
fn settle_where(ledger: &Ledger, lanes: impl IntoIterator<Item = usize>, is_dead: impl Fn(&Track) -> bool) {
    for track in lanes.into_iter().flat_map(|lane| ledger.tracks_of(lane)).filter(is_dead) {
        track.settle(|fd| ledger.record(fd));
    }
}

fn close(cx: &mut Context, fd: RawFd, record: &Record, why: Refusal) {
    debug!("connection {fd} of {:?} could not be taken over: {why}", record.peer());
    cx.stats.add(Counter::Closed, 1);
    let ours = cookie(borrow(fd)).is_ok_and(|cookie| cookie == record.cookie());
    count_what_was_sent(cx, fd, record);
    uncount(cx, record);
    cx.track.set_closing(ours.then_some(fd));
    record.free();
    if ours {
        reset(fd);
    }
    cx.track.set_closing(None);
}

/// Responses that have left whole are answers, though the connection cannot be kept.
fn count_what_was_sent(cx: &mut Context, fd: RawFd, record: &Record) {
    if let (true, Ok(Some(buffer))) = (plausible(record.state()), claim_buffer(cx, record)) {
        let mut connection = Connection::new(fd, *record, Some(buffer));
        if connection.retire_sent(cx) {
            connection.log_loss(cx);
        }
    }
}

/// Closes so that the peer sees a reset, not an orderly end: it must not take what it has for a whole response.
fn reset(fd: RawFd) {
    reset_on_close(fd);
    table::close(fd);
}

/// Makes the close of a connection a reset.
pub(crate) fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _best_effort = nix::sys::socket::setsockopt(&borrow(fd), nix::sys::socket::sockopt::Linger, &linger);
}

fn adopt(cx: &mut Context, fd: RawFd, record: Record) -> Result<Connection, Refusal> {
    check_cookie(fd, &record)?;
    check_reach(&record)?;
    let buffer = claim_buffer(cx, &record)?;
    check_positions(&record, buffer.as_ref())?;
    record.absolve();
    cx.lane.raise_high_water(fd);
    Ok(Connection::new(fd, record, buffer))
}

fn rescue(cx: &mut Context, fd: RawFd, record: Record) -> Result<Connection, Refusal> {
    if !cx.rescue.enabled {
        return Err("rescue is switched off");
    }
    check_cookie(fd, &record)?;
    check_reach(&record)?;
    let state = record.state();
    if !plausible(state) {
        return Err("its record is damaged");
    }
    let buffer = claim_buffer(cx, &record)?;
    if state.phase != Phase::Lingering {
        reconcile(cx, fd, &record, state, buffer.is_some())?;
    }
    if state.phase == Phase::Open {
        check_positions(&record, buffer.as_ref())?;
    }
    let mut connection = Connection::new(fd, record, buffer);
    connection.take_left_behind(cx).ok_or("what was received ahead of it is damaged")?;
    connection.place(cx)?;
    // Its owner reads by itself until it says otherwise.
    record.set_ring(None);
    record.absolve();
    record.set_owner(Owner::Worker(cx.incarnation));
    cx.lane.raise_high_water(fd);
    cx.stats.add(Counter::Rescued, 1);
    Ok(connection)
}

fn check_cookie(fd: RawFd, record: &Record) -> Result<(), Refusal> {
    match cookie(borrow(fd)) {
        Ok(cookie) if cookie == record.cookie() => Ok(()),
        Ok(_) => Err("the socket is another than the recorded one"),
        Err(_) => Err("the recorded descriptor is no socket"),
    }
}

fn claim_buffer(cx: &Context, record: &Record) -> Result<Option<Buffer>, Refusal> {
    match record.buffer() {
        None => Ok(None),
        Some(index) => cx.buffers.claim(index).map(Some).ok_or("its buffer is out of range or another's"),
    }
}

/// Brings the record up to what the kernel says has been read and written.
fn reconcile(cx: &Context, fd: RawFd, record: &Record, state: State, has_buffer: bool) -> Result<(), Refusal> {
    if record.peer() == Peer::Unix {
        // Unix sockets count nothing: what an interrupted call did cannot be known, and is not guessed.
        return if state.in_call { Err("a Unix socket was inside a call whose effect nobody knows") } else { Ok(()) };
    }
    let kernel = counters(borrow(fd)).map_err(|_| "the kernel does not tell its counters")?;
    if kernel.gone {
        return Err("the peer has reset it");
    }
    if kernel.consumed < record.consumed() || kernel.written < record.sent() {
        return Err("the record claims more than the kernel has seen");
    }
    if record.ring().is_some() || record.held().is_some() {
        if kernel.consumed != ring::end_on_record(&cx.ledger, record) {
            return Err("what a ring has received on it is not all on record");
        }
    } else {
        if kernel.consumed > record.consumed() && !has_buffer {
            return Err("bytes were read into no buffer");
        }
        cx.stats.add(Counter::BytesIn, kernel.consumed - record.consumed());
        record.set_consumed(kernel.consumed);
    }
    cx.stats.add(Counter::BytesOut, kernel.written - record.sent());
    record.set_sent(kernel.written);
    Ok(())
}

/// A Unix socket's kernel counts nothing to compare with: this is all there is to check for it.
fn check_reach(record: &Record) -> Result<(), Refusal> {
    let positions = [record.consumed(), record.sent(), record.base(), record.start()];
    if positions.iter().all(|&at| at <= MAX_POSITION) { Ok(()) } else { Err("its stream positions are damaged") }
}

/// base ≤ start ≤ consumed ≤ base + room.
fn check_positions(record: &Record, buffer: Option<&Buffer>) -> Result<(), Refusal> {
    if buffer.is_none() {
        return Ok(());
    }
    let (base, start, consumed) = (record.base(), record.start(), record.consumed());
    let sound = base <= start && start <= consumed && consumed - base <= BUFFER_BYTES as u64;
    if sound { Ok(()) } else { Err("its stream positions are damaged") }
}
