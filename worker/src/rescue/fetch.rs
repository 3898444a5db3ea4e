//! Fetching what a former table of the slot holds, into this one. A connection moves in four steps, each of which a death may
//! follow: the record there is claimed, its record is written here (and counts from then on), the record there is freed, the
//! descriptor there is closed.
//! Whoever finds a connection in both ledgers goes on with the third step; nothing is read or written before that.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ipc::fetch::{Ask, BATCH, Named, Sent};
use phalanx_shared::ipc::line::{self, Wait};
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Owner, Record};
use phalanx_shared::ledger::words::Order;
use phalanx_shared::ledger::{LANES, Ledger, Track};
use phalanx_shared::sys::socket::cookie;
use phalanx_shared::sys::table::{self, borrow};
use phalanx_shared::sys::title;
use phalanx_shared::{info, warn};

use super::{Lost, Refusal, adopt, close, rescue, reset, settle_where, sweep};
use crate::conn::{Connection, Context, uncount};
use crate::crash_point::{self, Point};
use crate::enter::Former;

/// The former tables of the slot, as this worker sees them.
pub(crate) struct Formers {
    formers: &'static [Former],
    own: Incarnation,
    /// Workers born before this one that live, or whose death it has not been told.
    alive: Vec<Incarnation>,
    /// Those whose death it has been told, whenever they were born.
    dead: Vec<Incarnation>,
    /// The dead of a former that still have something there: the former's place, who.
    burying: Vec<(usize, Incarnation)>,
    /// By former: when it was asked, if an answer is awaited.
    asked: Vec<Option<Instant>>,
}

/// How long an answer is waited for before the question is put again: who took it may have died over it.
const PATIENCE: Duration = Duration::from_millis(100);

impl Formers {
    pub(crate) fn new(formers: &'static [Former], own: Incarnation, alive: &[Incarnation]) -> Formers {
        let (alive, asked) = (alive.to_vec(), vec![None; formers.len()]);
        Formers { formers, own, alive, dead: Vec::new(), burying: Vec::new(), asked }
    }

    /// When to look at them again, if nothing happens before.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        let asked = self.asked.iter().flatten().min().map(|asked| *asked + PATIENCE);
        let buried = (!self.burying.is_empty()).then(|| Instant::now() + PATIENCE);
        asked.into_iter().chain(buried).min()
    }

    /// Asks again what has not been answered. Returns the dead of whom nothing is left.
    pub(crate) fn look(&mut self) -> Vec<Incarnation> {
        for index in 0..self.formers.len() {
            if self.asked[index].is_some_and(|asked| asked.elapsed() >= PATIENCE) {
                self.asked[index] = None;
                self.ask(index);
            }
        }
        let formers = self.formers;
        let has_left = |&mut (index, dead): &mut (usize, Incarnation)| {
            let former = formers.get(index).filter(|former| !former.gone.get());
            former.is_some_and(|former| {
                connections(&former.ledger).any(|(_, it)| match it.owner() {
                    Some(Owner::Worker(of)) => of == dead,
                    Some(Owner::Child { of, lane, track }) => of == dead && !lives(former, lane, track),
                    _ => false,
                })
            })
        };
        self.burying.extract_if(.., |buried| !has_left(buried)).map(|(_, dead)| dead).collect()
    }

    /// What to watch: the bells of those who give, the lines to those who answer.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.present().flat_map(|former| [former.bell, former.line])
    }

    fn present(&self) -> impl Iterator<Item = &'static Former> {
        self.formers.iter().filter(|former| !former.gone.get())
    }

    /// Frees the records of connections that are on record in a later table already, this one or one that was given up on the way
    /// here: who moved them died before it could. Before the connections of this table are looked at.
    pub(crate) fn finish_moves(&self, ledger: &Ledger) {
        let mut formers: Vec<&Former> = self.present().collect();
        if formers.is_empty() {
            return;
        }
        formers.sort_by_key(|former| Reverse(former.number));
        let mut later: HashSet<u64> = connections(ledger).map(|(_, record)| record.cookie()).collect();
        for former in formers {
            let (moved, there): (Vec<_>, Vec<_>) = connections(&former.ledger)
                .partition(|(_, record)| later.contains(&record.cookie()) && self.may_fetch(former, record));
            later.extend(there.iter().map(|(_, record)| record.cookie()));
            moved.iter().for_each(|(_, record)| record.free());
            ask_to_close(former, moved.iter().map(|(fd, record)| Named { fd: *fd, cookie: record.cookie() }).collect());
        }
    }

    /// Whether nobody there touches the connection any more.
    fn may_fetch(&self, former: &Former, record: &Record) -> bool {
        match record.owner() {
            Some(Owner::Given) => true,
            // One born later may be fetching at this very moment.
            Some(Owner::Worker(owner)) => self.is_dead(owner),
            Some(Owner::Child { of, lane, track }) => self.is_dead(of) && !lives(former, lane, track),
            _ => false,
        }
    }

    fn is_dead(&self, owner: Incarnation) -> bool {
        owner < self.own && !self.alive.contains(&owner) || self.dead.contains(&owner)
    }

    /// Asks everybody for what there is to fetch.
    pub(crate) fn ask_all(&mut self) {
        (0..self.formers.len()).for_each(|index| self.ask(index));
    }

    /// Asks one for the next batch, unless an answer is awaited.
    fn ask(&mut self, index: usize) {
        let former = &self.formers[index];
        if self.asked[index].is_some() || former.gone.get() {
            return;
        }
        let ready = former.ledger.recorded().filter(|(_, record)| self.may_fetch(former, record));
        let named: Vec<Named> = ready.map(|(fd, record)| Named { fd, cookie: record.cookie() }).take(BATCH).collect();
        if !named.is_empty() && put(former, &Ask::Send(named)) {
            self.asked[index] = Some(Instant::now());
        }
    }

    /// A worker there is dead: what it had is fetched too.
    pub(crate) fn bury(&mut self, cx: &Context, number: u32, dead: Incarnation, lane: usize) {
        self.alive.retain(|living| *living != dead);
        self.dead.push(dead);
        let is_meant = |former: &Former| former.number == number && !former.gone.get();
        let Some(index) = self.formers.iter().position(is_meant) else {
            // Nothing is left where it was.
            return self.burying.push((0, dead));
        };
        if lane < LANES {
            let former = &self.formers[index];
            settle_where(&former.ledger, lane..lane + 1, |track| !lives_elsewhere(track));
            call_in(former, dead);
            self.finish_moves(&cx.ledger);
            put(&self.formers[index], &Ask::Fresh { lane });
        }
        self.burying.push((index, dead));
        self.asked[index] = None;
        self.ask(index);
    }

    /// Something has happened on one of the descriptors. Returns the connections that have come, and the descriptors that need not be watched
    /// any more.
    pub(crate) fn turn(&mut self, cx: &mut Context, fd: RawFd) -> (Vec<Connection>, Vec<RawFd>) {
        let Some(index) =
            self.formers.iter().position(|former| [former.bell, former.line].contains(&fd) && !former.gone.get())
        else {
            return Default::default();
        };
        let former = &self.formers[index];
        let _silent = nix::unistd::read(borrow(former.bell), &mut [0; 8]);
        let mut come = Vec::new();
        cx.lane.set_fetching(true);
        // Bounded by what has been asked for.
        loop {
            match line::receive::<Sent>(borrow(former.line), Wait::No) {
                Ok(Some((Sent::Connections { sent, missing }, descriptors))) => {
                    // A full table takes fewer than were sent: the rest is asked for again, but not at once.
                    let all = descriptors.len() == sent.len();
                    self.asked[index] = (!all).then(Instant::now);
                    self.take_in(cx, former, &sent, descriptors, &mut come);
                    self.give_up_missing(cx, former, &missing);
                }
                Ok(Some((Sent::Fresh(listeners), descriptors))) => take_in_fresh(cx, listeners, descriptors, &mut come),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                    warn!("fetch from a former table: {error}");
                    break;
                }
                // Its last holder is dead, and with it the connections that it still had.
                Ok(None) | Err(_) => {
                    cx.lane.set_fetching(false);
                    give_up(cx, former);
                    former.forget();
                    self.asked[index] = None;
                    return (come, vec![former.bell, former.line]);
                }
            }
        }
        cx.lane.set_fetching(false);
        self.ask(index);
        (come, Vec::new())
    }

    /// What is on record there and not in the table can only be damage.
    fn give_up_missing(&self, cx: &Context, former: &Former, missing: &[Named]) {
        for named in missing {
            let Some(record) = former.ledger.record(named.fd).filter(|record| record.cookie() == named.cookie) else {
                continue;
            };
            if self.may_fetch(former, &record) {
                warn!("connection {} of {:?} is on record in a former table and not in it", named.fd, record.peer());
                cx.stats.add(Counter::Closed, 1);
                uncount(cx, &record);
                record.free();
            }
        }
    }

    fn take_in(
        &self,
        cx: &mut Context,
        former: &Former,
        named: &[Named],
        descriptors: Vec<OwnedFd>,
        come: &mut Vec<Connection>,
    ) {
        let (mut moved, mut lost) = (Vec::new(), Lost::default());
        let before = come.len();
        for (named, descriptor) in named.iter().zip(descriptors) {
            let Some(theirs) = former.ledger.record(named.fd) else { continue };
            // The answer to a question of a worker that died may come twice, and later than what it is about.
            let Some(owner) =
                theirs.owner().filter(|_| theirs.cookie() == named.cookie && self.may_fetch(former, &theirs))
            else {
                continue;
            };
            if cookie(borrow(descriptor.as_raw_fd())).is_ok_and(|cookie| cookie != named.cookie) {
                continue;
            }
            // A successor may be fetching already.
            if !theirs.claim(owner, cx.incarnation) {
                continue;
            }
            // What its process had begun is carried out before it is looked at.
            if let Owner::Child { lane, track, .. } = owner
                && let Some(track) = former.ledger.table().track(lane.into(), track.into())
            {
                track.settle(|fd| former.ledger.record(fd));
            }
            moved.push(*named);
            let fd = descriptor.into_raw_fd();
            cx.track.set_current(Some(fd));
            match move_here(cx, former, &theirs, owner, fd) {
                Ok(connection) => come.push(connection),
                Err(why) => lost.note(why),
            }
        }
        cx.track.set_current(None);
        ask_to_close(former, moved);
        lost.tell(come.len() - before);
    }
}

/// Whether a process of a former table lives that a track there is written by.
fn lives(former: &Former, lane: u8, track: u16) -> bool {
    former.ledger.table().track(lane.into(), track.into()).is_some_and(|track| lives_elsewhere(&track))
}

/// The same, told from outside of its table, where its descriptor says nothing.
fn lives_elsewhere(track: &Track) -> bool {
    track.child().is_some() && track.thread().is_some_and(title::is_connection)
}

/// Has the processes that a dead worker of a former table has left give their connections.
fn call_in(former: &Former, dead: Incarnation) {
    for (_, record) in former.ledger.recorded() {
        let Some(Owner::Child { of, lane, track }) = record.owner() else { continue };
        let track = former.ledger.table().track(lane.into(), track.into());
        if let Some(track) = track.filter(|track| of == dead && lives_elsewhere(track)) {
            track.orders().give(Order::Give);
            crate::children::call_by_pid(&track);
        }
    }
}

/// Nobody has the table any more: the connections recorded there are gone, and are counted so.
fn give_up(cx: &Context, former: &Former) {
    let mut gone = 0;
    for (_, record) in former.ledger.recorded() {
        if matches!(record.owner(), Some(Owner::Worker(_) | Owner::Given)) {
            uncount(cx, &record);
            gone += 1;
        }
        record.free();
    }
    cx.stats.add(Counter::Closed, gone);
    if gone > 0 {
        warn!("{gone} connections were lost with the last process that had their descriptors");
    }
}

/// What a ledger has on record, but for files.
fn connections(ledger: &Ledger) -> impl Iterator<Item = (RawFd, Record)> + '_ {
    let is_file = |owner| matches!(owner, Some(Owner::File(_) | Owner::ChildFile { .. }));
    ledger.recorded().filter(move |(_, record)| !is_file(record.owner()))
}

/// Puts a question; false when it could not be sent. That somebody is to answer is told by the line's hang-up.
fn put(former: &Former, ask: &Ask) -> bool {
    line::send(borrow(former.line), ask, &[]).is_ok()
}

fn ask_to_close(former: &Former, moved: Vec<Named>) {
    for batch in moved.chunks(BATCH) {
        put(former, &Ask::Close(batch.to_vec()));
    }
}

/// Brings a connection that has arrived as `fd` here: record, buffer, what is under way. It is closed if that fails.
fn move_here(
    cx: &mut Context,
    former: &Former,
    theirs: &Record,
    owner: Owner,
    fd: RawFd,
) -> Result<Connection, Refusal> {
    let moved = copy(cx, former, theirs, fd);
    crash_point::pass(Point::Moved);
    theirs.free();
    let record = moved?;
    let arrived = if owner == Owner::Given { adopt(cx, fd, record) } else { rescue(cx, fd, record) };
    arrived.inspect_err(|why| close(cx, fd, &record, why))
}

/// Writes the record here; it counts when it is whole.
fn copy(cx: &mut Context, former: &Former, theirs: &Record, fd: RawFd) -> Result<Record, Refusal> {
    let copied = try_copy(cx, former, theirs, fd);
    if copied.is_err() {
        cx.stats.add(Counter::Closed, 1);
        uncount(cx, theirs);
        reset(fd);
    }
    copied
}

fn try_copy(cx: &mut Context, former: &Former, theirs: &Record, fd: RawFd) -> Result<Record, Refusal> {
    let record = cx.ledger.record(fd).ok_or("the ledger has no room for its descriptor")?;
    record.copy(theirs);
    record.set_buffer(None);
    record.set_held(None);
    copy_chain(cx, former, theirs, &record)?;
    if let Some(number) = theirs.buffer() {
        let their_buffer = former.ledger.buffer(number).ok_or("its buffer is out of range or another's")?;
        let mut buffer = cx.buffers.take().ok_or("there is no buffer for it")?;
        buffer.bytes_mut().copy_from_slice(their_buffer.bytes());
        cx.ledger.pending(&buffer).copy(&former.ledger.pending(&their_buffer));
        record.set_buffer(Some(buffer.index()));
    }
    cx.lane.raise_high_water(fd);
    record.set_owner(Owner::Worker(cx.incarnation));
    Ok(record)
}

/// Copies what was received ahead.
fn copy_chain(cx: &mut Context, former: &Former, theirs: &Record, record: &Record) -> Result<(), Refusal> {
    let mut last = None;
    for index in former.ledger.chain(theirs) {
        let (Some(their_link), Some(their_buffer)) = (former.ledger.held(index), former.ledger.buffer(index)) else {
            return Err("what was received ahead of it is damaged");
        };
        let mut buffer = cx.buffers.take().ok_or("there is no buffer for what was received ahead of it")?;
        let link = cx.ledger.held(buffer.index()).ok_or("the ledger has no such buffer")?;
        buffer.bytes_mut().copy_from_slice(their_buffer.bytes());
        link.fill(their_link.position(), their_link.filled());
        match last.and_then(|last| cx.ledger.held(last)) {
            Some(last) => last.set_next(buffer.index()),
            None => record.set_held(Some(buffer.index())),
        }
        last = Some(buffer.index());
        // The rescue that follows takes it again, by the record.
        drop(buffer);
    }
    Ok(())
}

fn take_in_fresh(cx: &mut Context, listeners: Vec<u8>, descriptors: Vec<OwnedFd>, come: &mut Vec<Connection>) {
    cx.lane.set_accepting(true);
    for (listener, descriptor) in listeners.into_iter().zip(descriptors) {
        let fd = descriptor.into_raw_fd();
        let peer = sweep::peer_of(fd).filter(|_| cx.listen(listener).is_some());
        match peer.and_then(|peer| Connection::record(cx, fd, peer, listener).ok().flatten()) {
            Some(connection) => {
                info!("connection {fd} had been accepted and not recorded: fetched");
                cx.stats.add(Counter::Accepted, 1);
                come.push(connection);
            }
            None => table::close(fd),
        }
    }
    cx.lane.set_accepting(false);
}
