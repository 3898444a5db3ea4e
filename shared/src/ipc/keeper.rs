//! The master's orders to a keeper: one packet each over their [line](super::line), some with a descriptor.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::{Generation, Incarnation};

/// What a keeper does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Install the blueprint that comes with this order, and clone a worker.
    Clone(Birth),
    /// Answer, for this incarnation, that nothing is cloned: all orders before this one are carried out then.
    Answer(Incarnation),
    /// Nothing is left in the former table of this number: let go of its ledger.
    Forget {
        /// The number.
        former: u32,
    },
    /// Put the descriptor that comes with this order at number `at`, replacing what stood there.
    Install {
        /// A number that the keeper was born with.
        at: RawFd,
    },
}

/// What a worker is told at birth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The configuration it boots from.
    pub generation: Generation,
    /// Which of the two installed blueprints holds that configuration.
    pub blueprint: usize,
    /// The lane it writes.
    pub lane: usize,
    /// Lanes of the dead that this worker is to settle: nobody else will.
    pub orphans: Vec<usize>,
    /// Incarnations of this slot that live, in this table or a former one: their connections are not to be touched.
    pub alive: Vec<Incarnation>,
    /// Process ids of those that live in this table, if all are known.
    pub neighbours: Vec<i32>,
    /// No other worker lives in this table.
    pub alone: bool,
    /// Serve as soon as it is ready (a rescue), or wait for `Serve` (a planned handover).
    pub serve_at_once: bool,
}

/// What a keeper answers to `Clone` and to `Answer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// The incarnation that was asked for.
    pub incarnation: Incarnation,
    /// Its process id, or why there is none.
    pub outcome: Result<i32, String>,
}
