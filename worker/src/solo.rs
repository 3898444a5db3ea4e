//! A connection that is served alone: whoever serves it waits for it and for nothing else, and does what may block on the spot.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use phalanx_shared::error;
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ledger::lane::{Counter, Order};
use phalanx_shared::sys::socket::has_unread;
use phalanx_shared::sys::table::borrow;

use crate::conn::{Connection, Context, Fate};
use crate::event::timers::Ticks;
use crate::event::{Event, Interest, poll, time_limit};
use crate::event_loop::nanoseconds;

/// One connection, and all that it takes to serve it.
pub(crate) struct Solo<'a> {
    cx: Context,
    connection: Connection,
    ticks: Ticks,
    /// As that of an event loop.
    events: u64,
    /// Readable once there are orders.
    curtain: BorrowedFd<'a>,
    /// Rung when the connection is given to another worker.
    handover: &'a Doorbell,
}

/// How long an idle connection is kept that is to be closed: a request may be on its way.
const IDLE_GRACE: Duration = Duration::from_millis(100);

impl Solo<'_> {
    pub(crate) fn new<'a>(
        cx: Context,
        connection: Connection,
        curtain: BorrowedFd<'a>,
        handover: &'a Doorbell,
    ) -> Solo<'a> {
        let ticks = Ticks::since(cx.clock.now());
        Solo { cx, connection, ticks, events: 0, curtain, handover }
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
        let (begun, cx) = (Instant::now(), &mut self.cx);
        cx.track.set_current(Some(self.connection.fd));
        cx.track.set_busy_since(Some(cx.clock.since_boot()));
        let fate = act(&mut self.connection, cx);
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
        self.cx.lane.is_ordered(Order::Give) && self.connection.is_quiet()
    }

    /// When to close it if nothing happens: it is idle, and to be closed for that.
    fn closes_at(&self) -> Option<Instant> {
        let idle = self.cx.lane.is_ordered(Order::CloseIdle) && self.connection.idle_since_event().is_some();
        idle.then(|| self.cx.clock.now() + IDLE_GRACE)
    }

    /// Waits until something happens, and does what that calls for.
    fn await_event(&mut self) -> Fate {
        self.cx.access_log.flush();
        self.cx.track.set_idle(self.connection.idle_since_event());
        let fate = self.wait();
        self.cx.track.set_idle(None);
        fate
    }

    fn wait(&mut self) -> Fate {
        let closes_at = self.closes_at();
        let overdue_at = self.ticks.end_of(self.connection.deadline());
        let until = closes_at.map_or(overdue_at, |at| at.min(overdue_at));
        let under_orders = self.cx.lane.is_ordered(Order::Give) || self.cx.lane.is_ordered(Order::CloseIdle);
        let (fd, interest) = (self.connection.fd, self.connection.wanted());
        let event = match poll_one(fd, interest, (!under_orders).then_some(self.curtain), until) {
            Ok(event) => event,
            Err(error) => {
                error!("wait for connection {fd}: {error}");
                return Fate::Close;
            }
        };
        self.cx.clock.tick();
        self.events = self.events.max(nanoseconds(self.cx.clock.since_boot()));
        self.cx.setting.next_turn();
        let now = self.cx.clock.now();
        match event {
            Some(event) => self.react(&event),
            None if now >= overdue_at => self.act(Connection::overdue),
            // A request that has come since is answered first.
            None if closes_at.is_some_and(|at| now >= at) && !has_unread(borrow(fd)) => Fate::Close,
            None => Fate::Stay,
        }
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

/// Waits for one descriptor, or until the curtain rises; none: nothing has happened to it.
fn poll_one(
    fd: RawFd,
    interest: Interest,
    curtain: Option<BorrowedFd<'_>>,
    until: Instant,
) -> std::io::Result<Option<Event>> {
    let limit = until.saturating_duration_since(Instant::now());
    let mut watched = [poll::watched(fd, interest), poll::watched(fd, interest)];
    let count = match curtain {
        Some(curtain) => {
            watched[1] = poll::watched(curtain.as_raw_fd(), Interest::Read);
            2
        }
        None => 1,
    };
    match rustix::event::poll(&mut watched[..count], time_limit(Some(limit)).as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(poll::told(fd, &watched[0]))
}
