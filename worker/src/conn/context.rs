//! What all connections of a worker share.

use std::os::fd::RawFd;

use phalanx_shared::clock::Clock;
use phalanx_shared::config::{Limits, Rescue};
use phalanx_shared::ipc::Incarnation;
use phalanx_shared::ledger::lane::Stats;
use phalanx_shared::ledger::{Lane, Ledger};

use super::Patience;
use super::buffers::Buffers;
use crate::access_log::AccessLog;
use crate::http::DateCache;
use crate::pool::Pool;
use crate::service::router::Router;

/// The worker as its connections see it.
pub struct Context {
    /// Who this worker is.
    pub incarnation: Incarnation,
    /// The slot's ledger.
    pub ledger: Ledger,
    /// Descriptors that are the slot's own: never closed, whatever a dead worker left in the ledger about them.
    pub infrastructure: &'static [RawFd],
    /// The number of the lane this worker writes.
    pub lane_number: usize,
    /// That lane.
    pub lane: Lane,
    /// That lane's counters.
    pub stats: Stats,
    /// Free request buffers.
    pub buffers: Buffers,
    /// What answers.
    pub router: Router,
    /// Does what may block.
    pub pool: Pool,
    /// Bounds on what a peer may send.
    pub limits: Limits,
    /// Bounds on how long it may take.
    pub patience: Patience,
    /// Bounds on replays.
    pub rescue: Rescue,
    /// The time of this turn.
    pub clock: Clock,
    /// The text of this second.
    pub date: DateCache,
    /// Where answered requests are written down.
    pub access_log: AccessLog,
    /// Responses of the connection at hand, before they are written. Kept to be used again.
    pub out: Vec<u8>,
    /// Every response from now on is its connection's last.
    pub draining: bool,
}
