//! Places to die at, exactly between a system call (or a step of the handler) and its record. For the table test of rescue:
//! without the feature `crash-points` each is nothing at all.
//!
//! `PHALANX_CRASH_POINT=NAME:K` kills the worker that passes the point for the K-th time in its slot, over all incarnations;
//! with `NAME:K!` the worker does it to itself, by abort(3), then and every time after.

/// Every place there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A connection is accepted, not recorded.
    AfterAccept,
    /// The record is filled, not yet anybody's.
    Recording,
    /// A read has returned, not recorded.
    AfterRead,
    /// A request is complete, its handler not started.
    BeforeHandler,
    /// The handler is on record as started.
    InHandler,
    /// The handler has answered, nothing is sent.
    AfterHandler,
    /// The response is on record, nothing is sent.
    BeforeWrite,
    /// A write has taken a part, not recorded.
    AfterPartialWrite,
    /// A write has taken all, not recorded.
    AfterWrite,
    /// Answered requests are being taken off the record.
    Retiring,
    /// The record is freed, its descriptor not closed.
    Closing,
    /// A part of a long body has been handed on.
    HandingOn,
    /// A thread of the pool is at work for a connection.
    InPool,
    /// What the thread did has arrived, nothing is made of it yet.
    AfterPool,
    /// A connection fetched from a former table is on record here, and still there.
    Moved,
    /// What the ring of a dead worker had received on one connection is on record.
    RingSettled,
    /// A worker boots.
    Booting,
}

#[cfg(not(feature = "crash-points"))]
mod armed {
    use super::Point;
    use phalanx_shared::ledger::Ledger;

    #[inline(always)]
    pub(crate) fn arm(_ledger: &Ledger) {}
    #[inline(always)]
    pub(crate) fn pass(_point: Point) {}
    /// How much of `len` bytes the next write may take: all.
    #[inline(always)]
    pub(crate) fn cut(len: usize) -> usize {
        let _only_with_the_feature = Point::AfterPartialWrite;
        len
    }
    #[inline(always)]
    pub(crate) fn disk_is_cold() -> bool {
        false
    }
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::OnceLock;

    use super::Point;
    use nix::sys::signal::{Signal, raise};
    use phalanx_shared::ledger::{Ledger, Table};

    static ARMED: OnceLock<Armed> = OnceLock::new();

    struct Armed {
        table: Table,
        name: String,
        at: u64,
        own_fault: bool,
    }

    pub(crate) fn arm(ledger: &Ledger) {
        let Ok(text) = std::env::var("PHALANX_CRASH_POINT") else { return };
        let (name, at) = text.split_once(':').unwrap_or((&text, "1"));
        let own_fault = at.ends_with('!');
        let at = at.trim_end_matches('!').parse().unwrap_or(1);
        let armed = Armed { table: ledger.table(), name: name.to_owned(), at, own_fault };
        let _armed_once = ARMED.set(armed);
    }

    fn name(point: Point) -> String {
        let mut name = String::new();
        for letter in format!("{point:?}").chars() {
            if letter.is_ascii_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    /// Whether this is the time to die at `point`.
    fn due(point: Point) -> bool {
        let Some(armed) = ARMED.get().filter(|armed| armed.name == name(point)) else { return false };
        let passed = armed.table.lane(0).pass_crash_point(point as usize);
        if armed.own_fault && passed >= armed.at {
            std::process::abort();
        }
        passed == armed.at
    }

    /// With `PHALANX_DISK=cold` no file is in the page cache: every read that may wait for a disk takes the way of those that do.
    pub(crate) fn disk_is_cold() -> bool {
        static COLD: OnceLock<bool> = OnceLock::new();
        *COLD.get_or_init(|| std::env::var("PHALANX_DISK").is_ok_and(|disk| disk == "cold"))
    }

    pub(crate) fn pass(point: Point) {
        if point != Point::AfterPartialWrite && due(point) {
            let _dead = raise(Signal::SIGKILL);
        }
    }

    thread_local!(static CUT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });

    /// Half of `len` when this is the write that is to break off; [`after_cut`] then kills.
    pub(crate) fn cut(len: usize) -> usize {
        if len > 1 && due(Point::AfterPartialWrite) {
            CUT.set(true);
            return len / 2;
        }
        len
    }

    pub(crate) fn after_cut() {
        if CUT.get() {
            let _dead = raise(Signal::SIGKILL);
        }
    }
}

#[cfg(feature = "crash-points")]
pub(crate) use armed::after_cut;
pub(crate) use armed::{arm, cut, disk_is_cold, pass};

/// After a write that [`cut`] shortened: dies.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn after_cut() {}
