//! How long a connection may wait for what it waits for.

use std::time::Duration;

use phalanx_shared::config::Timeouts;

use crate::event::timers::Span;

/// What a connection waits for; decides its time limit, in the order of [`Patience::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// The first byte of a request.
    Idle,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// The peer to read.
    Write,
    /// The peer to close, after the last response.
    Linger,
    /// A thread of the pool: not the peer's fault, however long it takes.
    Pool,
}

/// How long a peer may take to close after the last response, and no longer.
const LINGER_LIMIT: Duration = Duration::from_secs(2);

/// How long each wait may last.
pub struct Patience {
    limits: [Span; 6],
    /// Bytes a second that must come of a body, and leave of a response, over its whole time; 0: no bound.
    body_rate: u64,
    write_rate: u64,
}

impl Patience {
    /// As configured.
    pub fn new(timeouts: &Timeouts) -> Patience {
        let limits = [timeouts.idle, timeouts.head, timeouts.body, timeouts.write, LINGER_LIMIT, Duration::MAX];
        let Timeouts { body_rate, write_rate, .. } = *timeouts;
        Patience { limits: limits.map(Span::of), body_rate, write_rate }
    }

    pub(super) fn with(&self, waits: Waits) -> Span {
        self.limits[waits as usize]
    }

    /// How long `bytes` may take in all, the pause that is allowed between two of them included; none: no bound.
    pub(super) fn with_rate(&self, waits: Waits, bytes: u64) -> Option<Span> {
        let rate = match waits {
            Waits::Body => self.body_rate,
            Waits::Write => self.write_rate,
            _ => 0,
        };
        (rate > 0).then(|| self.with(waits).plus(Duration::from_millis(bytes.saturating_mul(1000) / rate)))
    }
}
