//! A connection that is served alone: whoever serves it waits for it and for nothing else, and does what may block on the spot.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use phalanx_shared::error;
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::words::Order;
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::borrow;

use crate::conn::{Connection, Context, Fate};
use crate::event::timers::Ticks;
use crate::event::{Event, Interest, poll, time_limit};
use crate::event_loop::{IDLE_GRACE, nanoseconds};

/// One connection, and all that it takes to serve it.
pub(crate) struct Solo<'a> {
    cx: Context,
    connection: Connection,
    ticks: Ticks,
    /// As that of an event loop.
    events: u64,
    caller: Caller<'a>,
    /// Rung when the connection is given to another worker.
    handover: &'a Doorbell,
}

/// What ends a wait when there are orders.
#[derive(Clone, Copy)]
pub(crate) enum Caller<'a> {
    /// This descriptor is readable from then on.
    Curtain(BorrowedFd<'a>),
    /// A signal comes, which is blocked but in the wait. When the master dies, `lifeline` hangs up.
    Signal { let_in: &'a SigSet, lifeline: RawFd, exits_with_master: bool },
}

impl Solo<'_> {
    pub(crate) fn new<'a>(cx: Context, connection: Connection, caller: Caller<'a>, handover: &'a Doorbell) -> Solo<'a> {
        let ticks = Ticks::since(cx.clock.now());
        Solo { cx, connection, ticks, events: 0, caller, handover }
    }

    /// Serves the connection until it is closed or given to another worker.
    pub(crate) fn serve(mut self) {
        self.cx.track.set_thread(Some(nix::unistd::gettid().as_raw()));
        self.cx.stats.set(Counter::Connections, 1);
        let mut fate = Fate::GoOn;
        let is_given = loop {
            fate = match fate {
                Fate::Close => break false,
                Fate::GoOn => self.act(Connection::go_on),
                Fate::Stay if self.is_to_be_given() => break true,
                Fate::Stay => self.await_event(),
            };
        };
        let Solo { mut cx, connection, handover, .. } = self;
        // Gone for whoever counts before it is gone in fact: its number may be another's at once.
        cx.stats.set(Counter::Connections, 0);
        cx.track.set_idle(None);
        if is_given {
            // What it has in its buffer goes with it.
            let kept: Vec<usize> = cx.track.lent().filter(|index| Some(*index) != connection.record.buffer()).collect();
            cx.track.set_lent(kept);
            connection.give();
            handover.ring();
        } else {
            connection.close(&mut cx);
        }
        cx.access_log.flush();
        cx.track.set_thread(None);
    }

    fn act(&mut self, act: impl FnOnce(&mut Connection, &mut Context) -> Fate) -> Fate {
        self.events += 1;
        let cx = &mut self.cx;
        cx.clock.tick();
        let begun = cx.clock.now();
        cx.track.set_current(Some(self.connection.fd));
        cx.track.set_busy_since(Some(cx.clock.since_boot()));
        let fate = act(&mut self.connection, cx);
        let fate = self.connection.with_mail(cx, fate);
        cx.track.set_busy_since(None);
        cx.track.set_current(None);
        cx.stats.add(Counter::Busy, nanoseconds(begun.elapsed()));
        if fate != Fate::Close {
            let now = self.ticks.at(cx.clock.now());
            let _nobody_schedules = self.connection.reschedule(&cx.patience, now, self.events);
        }
        fate
    }

    fn is_to_be_given(&self) -> bool {
        self.cx.is_ordered(Order::Give) && self.connection.is_quiet()
    }

    /// When to close it if nothing happens: it is idle, and to be closed for that.
    fn closes_at(&self) -> Option<Instant> {
        let idle = self.cx.is_ordered(Order::CloseIdle) && self.connection.idle_since_event().is_some();
        idle.then(|| self.cx.clock.now() + IDLE_GRACE)
    }

    /// Waits until something happens, and does what that calls for.
    fn await_event(&mut self) -> Fate {
        self.cx.access_log.flush();
        self.cx.track.set_idle(self.connection.idle_since_event());
        self.wait()
    }

    fn wait(&mut self) -> Fate {
        let closes_at = self.closes_at();
        let overdue_at = self.ticks.end_of(self.connection.deadline());
        let until = closes_at.map_or(overdue_at, |at| at.min(overdue_at));
        let under_orders = self.cx.is_ordered(Order::Give) || self.cx.is_ordered(Order::CloseIdle);
        let (fd, interest) = (self.connection.fd, self.connection.wanted());
        let event = match self.caller.wait(fd, interest, under_orders, until) {
            Ok(event) => event,
            Err(error) => {
                error!("wait for connection {fd}: {error}");
                return Fate::Close;
            }
        };
        self.cx.track.set_idle(None);
        self.cx.clock.tick();
        self.events = self.events.max(nanoseconds(self.cx.clock.since_boot()));
        self.cx.setting.next_turn();
        let now = self.cx.clock.now();
        match event {
            None if !under_orders && self.is_fatherless() => self.end_with_master(),
            Some(event) => self.react(&event),
            None if now >= overdue_at => self.act(Connection::overdue),
            // A request that has come since is answered first.
            None if closes_at.is_some_and(|at| now >= at) && !has_unread(borrow(fd)) => Fate::Close,
            None => Fate::Stay,
        }
    }

    /// The master has died.
    fn is_fatherless(&self) -> bool {
        let Caller::Signal { lifeline, .. } = self.caller else { return false };
        poll::is_any_readable([lifeline], Duration::ZERO)
    }

    /// As a worker would: ends what is under way, or at once.
    fn end_with_master(&self) -> Fate {
        if matches!(self.caller, Caller::Signal { exits_with_master: true, .. }) {
            return Fate::Close;
        }
        self.cx.track.orders().give(Order::Unready);
        self.cx.track.orders().give(Order::CloseIdle);
        Fate::Stay
    }

    fn react(&mut self, event: &Event) -> Fate {
        let mut fate = Fate::Stay;
        if event.wants_read() {
            fate = self.act(Connection::readable);
        }
        if fate == Fate::Stay && event.wants_write() {
            fate = self.act(Connection::writable);
        }
        if event.is_broken() { Fate::Close } else { fate }
    }
}

impl Caller<'_> {
    /// Waits for one descriptor, or for orders unless there are some already; none: nothing has happened to the descriptor.
    fn wait(self, fd: RawFd, interest: Interest, under_orders: bool, until: Instant) -> std::io::Result<Option<Event>> {
        let limit = until.saturating_duration_since(Instant::now());
        match self {
            Caller::Curtain(curtain) => {
                let mut watched = [poll::watched(fd, interest), poll::watched(curtain.as_raw_fd(), Interest::Read)];
                let count = if under_orders { 1 } else { 2 };
                match rustix::event::poll(&mut watched[..count], time_limit(Some(limit)).as_ref()) {
                    Ok(_) => Ok(poll::told(fd, &watched[0])),
                    Err(rustix::io::Errno::INTR) => Ok(None),
                    Err(error) => Err(error.into()),
                }
            }
            Caller::Signal { let_in, lifeline, .. } => {
                poll::wait_for_one(fd, interest, (!under_orders).then_some(lifeline), let_in, limit)
            }
        }
    }
}
