//! What the master says to a worker, and what the worker does about it: serve, retire, take over, drain.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use nix::sys::socket::{Shutdown, shutdown};
use phalanx_shared::config::{ListenAddress, OnMasterDeath};
use phalanx_shared::ipc::{Closing, Incarnation, ToWorker, Word};
use phalanx_shared::ledger::record::Owner;
use phalanx_shared::ledger::words::Order;
use phalanx_shared::ledger::{LANES, Record};
use phalanx_shared::sys::rest::refuse_connections;
use phalanx_shared::sys::table::borrow;
use phalanx_shared::{error, info, warn};

use super::accept::ACCEPT_BATCH;
use super::{MainLoop, SLOT_GRACE, Stage};
use crate::event::Interest;
use crate::event_loop::IDLE_GRACE;
use crate::rescue;
use crate::service::fault;

impl MainLoop {
    pub(crate) fn ready(&self) {
        self.note_own();
        self.duty.say(Word::Ready);
    }

    /// Notes which descriptors are this worker's own: at boot, and when one of them has got another number.
    pub(super) fn note_own(&self) {
        let mut own = self.own.descriptors();
        own.push(self.duty.signal());
        own.extend(self.crew.descriptors());
        own.extend(&self.more);
        own.extend(self.strangers.descriptors());
        own.extend(self.door.descriptor());
        own.extend(self.own.cx.router.descriptors());
        own.extend(self.assisted.iter().map(|(fd, _)| *fd));
        self.own.cx.lane.notes().set(&own);
    }

    pub(super) fn hear(&mut self) {
        self.crew.check(&mut self.own);
        for word in self.duty.hear() {
            match word {
                ToWorker::Ping(_) => {}
                ToWorker::Serve => self.begin_to_serve(),
                ToWorker::Retire => self.retire(),
                ToWorker::Yield => self.yield_all(),
                ToWorker::Bury { dead, lane, former: None } => self.bury(dead, lane),
                ToWorker::Bury { dead, lane, former: Some(former) } => {
                    self.formers.bury(&self.own.cx, former, dead, lane);
                }
                ToWorker::Assist(cookies) => self.assist(cookies),
                ToWorker::Unready => self.become_unready(),
                ToWorker::Drain(closing) => self.begin_to_drain(closing),
                ToWorker::Break(fault) => {
                    self.own.cx.track.set_current(None);
                    drop(fault::carry_out(fault));
                }
                ToWorker::Leave => self.stage = Stage::Gone,
            }
        }
    }

    pub(crate) fn begin_to_serve(&mut self) {
        if matches!(self.stage, Stage::Draining { .. }) {
            // The master died between its word to the predecessor and this one.
            return self.take_given();
        }
        if self.stage == Stage::Serving && self.door.open {
            // The canary's turn is over: what its configuration brings to listen on does so by now.
            return self.start_accepting();
        }
        if self.stage != Stage::Waiting {
            return;
        }
        self.stage = Stage::Serving;
        self.start_accepting();
        if let Err(error) = self.own.poller.add(self.inheritance.handover.as_fd().as_raw_fd(), Interest::Read) {
            error!("watch the handover bell: {error}");
        }
        for fd in self.formers.descriptors().collect::<Vec<_>>() {
            if let Err(error) = self.own.poller.add(fd, Interest::Read) {
                error!("watch a former table of the slot: {error}");
            }
        }
        self.formers.ask_all();
        self.take_given();
    }

    /// Something has come from a former table, or is ready there.
    pub(super) fn fetched(&mut self, fd: RawFd) {
        // A successor fetches.
        if !matches!(self.stage, Stage::Serving | Stage::Draining { .. }) {
            return;
        }
        let (come, over) = self.formers.turn(&mut self.own.cx, fd);
        for fd in over {
            let _not_watched = self.own.poller.remove(fd);
        }
        self.adopt(come);
    }

    pub(super) fn take_given(&mut self) {
        if !matches!(self.stage, Stage::Serving | Stage::Draining { .. }) {
            return;
        }
        self.inheritance.handover.silence();
        let given = rescue::take_given(&mut self.own.cx);
        self.adopt(given);
    }

    fn become_unready(&mut self) {
        self.own.cx.lane.orders().give(Order::Unready);
        self.children.order(Order::Unready);
    }

    fn bury(&mut self, dead: Incarnation, lane: usize) {
        if lane < LANES && lane != self.own.cx.lane_number {
            // What the dead one had fetched is this table's own.
            self.formers.finish_moves(&self.own.cx.ledger);
            let taken = rescue::bury(&mut self.own.cx, dead, lane, self.inheritance);
            if !taken.is_empty() {
                info!("incarnation {} is dead: took over {} connections", dead.0, taken.len());
            }
            self.adopt(taken);
            self.children.adopt_orphans(&mut self.own);
            // It may have given some and died before it could say so.
            self.take_given();
        }
        self.duty.say(Word::Buried(dead));
    }

    /// The program is told once that this worker gets no new work any more.
    fn tell_drain(&mut self) {
        if !std::mem::replace(&mut self.told_drain, true) {
            self.inheritance.application.hooks.drains(&self.info());
        }
    }

    /// Gives over what is quiet; the rest when it becomes so.
    fn retire(&mut self) {
        self.stop_accepting();
        let watched = [self.inheritance.handover.as_fd().as_raw_fd()];
        for fd in self.formers.descriptors().chain(watched) {
            let _not_watched = self.own.poller.remove(fd);
        }
        self.stage = Stage::Retiring;
        self.tell_drain();
        self.own.give(&self.inheritance.handover);
        self.crew.give(&self.inheritance.handover);
        self.own.cx.lane.orders().give(Order::Give);
        self.children.order(Order::Give);
    }

    /// As `retire`, for a worker of another table.
    fn yield_all(&mut self) {
        if std::mem::replace(&mut self.yielding, true) {
            return;
        }
        if let Err(error) = self.own.poller.add(self.inheritance.giving, Interest::Read) {
            error!("watch the line to the slot's new table: {error}");
        }
        if self.stage != Stage::Retiring {
            self.retire();
        }
    }

    /// Whether connections given over are in no table but this one.
    pub(super) fn holds_what_it_gave(&self) -> bool {
        let is_given = |record: Record| record.owner() == Some(Owner::Given);
        self.yielding && self.own.cx.ledger.recorded().any(|(_, record)| is_given(record))
    }

    fn begin_to_drain(&mut self, closing: Closing) {
        if matches!(self.stage, Stage::Draining { .. }) {
            return;
        }
        match closing {
            // Nobody begins to connect any more; who has begun is let in until the grace is over.
            Closing::Service => {
                for (_, fd, address) in self.listeners() {
                    if matches!(address, ListenAddress::Tcp(_))
                        && let Err(error) = refuse_connections(&borrow(fd))
                    {
                        warn!("turn away who comes to {address}: {error}");
                    }
                }
            }
            // Sockets of this slot alone are emptied to the last connection; what is shared, others accept from.
            Closing::Slot => self.stop_accepting_from(|address| matches!(address, ListenAddress::Unix(_))),
            Closing::Worker => self.stop_accepting(),
        }
        let now = self.own.now();
        self.become_unready();
        // New connections go to other slots already, but the network may take its time with those that had begun.
        let grace = if closing == Closing::Slot { SLOT_GRACE } else { IDLE_GRACE };
        self.closes_listeners = closing == Closing::Service;
        self.open_for_all();
        self.stage = Stage::Draining { idle_until: now + grace, deadline: now + self.drain_timeout };
        self.tell_drain();
    }

    /// Lets in who is queued, and then nobody any more.
    fn close_listeners(&mut self) {
        // Everybody who is queued, within the bound on connections.
        for _round in 0..self.own.cx.limits.connections / ACCEPT_BATCH as u32 + 1 {
            if !self.accept_from_all() {
                break;
            }
        }
        self.stop_accepting();
        for (_, fd, _) in self.listeners() {
            let _closed_by_another = shutdown(fd, Shutdown::Both);
        }
    }

    pub(super) fn drain(&mut self, now: Instant, idle_until: Instant, deadline: Instant) {
        if now >= idle_until {
            if std::mem::take(&mut self.closes_listeners) {
                self.close_listeners();
            }
            self.own.close_idle(IDLE_GRACE);
            self.crew.close_idle(IDLE_GRACE);
            self.own.cx.lane.orders().give(Order::CloseIdle);
            self.children.order(Order::CloseIdle);
        }
        if self.count() == 0 && (now >= idle_until || !self.door.open) && !self.own.has_accepted() {
            self.stage = Stage::Gone;
        } else if now >= deadline {
            warn!("{} connections did not end within drain_timeout: closed", self.count());
            self.children.end();
            self.stage = Stage::Gone;
        }
    }

    pub(super) fn master_died(&mut self) {
        let _reported_once = self.own.poller.remove(self.duty.lifeline());
        warn!("the master is gone");
        match self.on_master_death {
            OnMasterDeath::Exit => self.stage = Stage::Gone,
            OnMasterDeath::Drain => self.begin_to_drain(Closing::Service),
        }
    }
}
