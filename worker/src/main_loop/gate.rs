//! Accepting one connection at a time: the listeners are watched only while no connection is there, or one that is idle and makes
//! room.

use std::time::Duration;

use super::MainLoop;
use crate::event::poll;

/// How long a connection may be idle while others wait. Whoever sends one request after the other is not that slow.
const IDLE: Duration = Duration::from_millis(100);
/// … and may take from its beginning to its first request.
const FRESH: Duration = Duration::from_secs(2);

/// Whether the listeners are watched, of a worker that has one connection at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// They always are: there is no such bound.
    None,
    Open,
    Shut,
}

impl MainLoop {
    /// Accepts no connection while there is one, from now on.
    #[must_use]
    pub(crate) fn one_at_a_time(mut self) -> MainLoop {
        self.gate = Gate::Open;
        self.mind_the_gate();
        self
    }

    /// Nobody is let in for now.
    pub(super) fn is_shut(&self) -> bool {
        self.gate == Gate::Shut
    }

    /// How long until an idle connection may have to make room; none: there is none.
    pub(super) fn next_room(&self) -> Option<Duration> {
        (self.gate == Gate::Shut && self.own.is_idle_for(Duration::ZERO, Duration::ZERO)).then_some(IDLE / 4)
    }

    /// Opens or shuts the gate, as the connection that is there calls for.
    pub(super) fn mind_the_gate(&mut self) {
        if self.gate == Gate::None || !self.door.open {
            return;
        }
        let wanted = if self.own.count() == 0 || self.own.is_idle_for(IDLE, FRESH) { Gate::Open } else { Gate::Shut };
        if wanted == std::mem::replace(&mut self.gate, wanted) {
            return;
        }
        match wanted {
            Gate::Shut => self.stop_accepting_from(|_| true),
            _ => self.start_accepting(),
        }
    }

    /// Lets in all who wait, from now on: nobody serves after this worker.
    pub(super) fn open_for_all(&mut self) {
        let shut = std::mem::replace(&mut self.gate, Gate::None) == Gate::Shut;
        if shut && self.door.open {
            self.start_accepting();
        }
    }

    /// Somebody wants to come in: who is idle makes room. False when nobody is let in.
    pub(super) fn is_let_in(&mut self) -> bool {
        if self.gate == Gate::None {
            return true;
        }
        if self.own.is_idle_for(IDLE, FRESH) {
            self.own.close_idle(IDLE);
        }
        self.own.count() == 0
    }

    /// Whether others wait to be let in, of a worker that has one connection at a time.
    pub(super) fn others_wait(&self) -> bool {
        if self.gate == Gate::None || !self.door.open {
            return false;
        }
        poll::is_any_readable(self.listeners().iter().map(|(_, fd, _)| *fd), Duration::ZERO)
    }
}
