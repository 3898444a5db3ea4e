//! What master, keeper and worker say to each other.
//!
//! Master and worker talk over ipc-channel, one pair of channels and one pair of doorbells a lane. The protocol is strict, so
//! that neither can block on a full socket: the master has at most one `Ping` outstanding and sends each other message seldom; a worker speaks when it is READY or has failed, and otherwise only in answer.

pub mod channel;
pub mod fetch;
pub mod keeper;
pub mod line;

use serde::{Deserialize, Serialize};

use crate::config::FaultKind;

use crate::stats::Snapshot;

/// A place in the rank; lives as long as the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId(pub u32);

/// One worker's life in a slot: 1, 2, … in the order of cloning, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u32);

/// One configuration's time: 1 at start, one more with each reload that was carried out or tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// What closes when a worker drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closing {
    /// The service: new connections are refused from now on.
    Service,
    /// This slot: the others serve on, and new connections are steered to them already.
    Slot,
    /// This worker: its slot's keeper is gone, another worker has the same listeners.
    Worker,
}

/// From the master to a worker. Each names whom it is for: what a dead worker has not heard stays in the channel, and the next
/// on its lane must not obey it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// For whom.
    pub to: Incarnation,
    /// What.
    pub word: ToWorker,
}

/// What the master says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Answer with a `Pong` of this number.
    Ping(u64),
    /// Begin to serve: accept, and take over what is given.
    Serve,
    /// A successor serves: give over what is quiet, end what is in flight, exit.
    Retire,
    /// As `Retire`; but a worker of another table serves, and this one is to hold what it gives until that has fetched it:
    /// nobody else has this table.
    Yield,
    /// This incarnation is dead: take over what it owned, and say `Buried`.
    Bury {
        /// Who.
        dead: Incarnation,
        /// The lane it wrote.
        lane: usize,
        /// The number of the former table that it was in; none: in this one.
        former: Option<u32>,
    },
    /// Accept from another slot's sockets too, whose worker does not: they stand at the numbers that the table has for this, as
    /// soon as these cookies are theirs, which come with their seats. With no cookies: no longer.
    Assist(Vec<(u8, u64)>),
    /// Serve on, but tell load balancers that this ends soon: not ready, and each response its connection's last.
    Unready,
    /// Accept what is queued, end what is in flight, close, exit.
    Drain(Closing),
    /// Break on purpose: somebody tries out what comes of it.
    Break(FaultKind),
    /// Never mind: nothing has been served, exit at once.
    Leave,
}

/// From a worker to the master. Each names its incarnation: what a dead worker left in the channel is told apart by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToMaster {
    /// Who speaks.
    pub from: Incarnation,
    /// What is said.
    pub word: Word,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Booted, and everything owned by dead incarnations is taken over.
    Ready,
    /// Cannot boot, and why; the worker exits after it.
    Failed(String),
    /// What this incarnation owned is taken over; its lane is free.
    Buried(Incarnation),
    /// The answer to a ping.
    Pong(Pong),
    /// This thread of its pool has been at a job for long: its stack is worth a look.
    Stuck(i32),
}

/// A worker's answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The ping's number.
    pub number: u64,
    /// The lane's counters.
    pub stats: Snapshot,
    /// Its private memory in bytes.
    pub private_bytes: u64,
    /// It has received SIGTERM and asks for a successor.
    pub wants_successor: bool,
}
