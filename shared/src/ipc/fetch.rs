//! Fetching connections out of another descriptor table: that of a slot whose keeper died, or of the program that an upgrade
//! replaced. Whoever has that table, keeper or worker, answers; a worker of the slot's new table asks. One packet each over a
//! [line](super::line). Every packet stands for itself: asker and answerer may both have died and been replaced between a
//! question and its answer.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::line::MAX_DESCRIPTORS;

/// Connections that one packet names at most.
pub const BATCH: usize = MAX_DESCRIPTORS;

/// A connection by its number in the other table. The cookie tells it from one that has got the same number since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its number there.
    pub fd: RawFd,
    /// Its socket's cookie.
    pub cookie: u64,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Send these. The table keeps its own descriptors of them.
    Send(Vec<Named>),
    /// Close these: somebody else has them now. Not answered.
    Close(Vec<Named>),
    /// Send what the dead worker of this lane had accepted and not recorded, and close it.
    Fresh {
        /// The lane.
        lane: usize,
    },
}

/// What comes back; the descriptors come with it, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sent {
    /// Those that were asked for: first those that are there, then those that are not.
    Connections {
        /// These come.
        sent: Vec<Named>,
        /// No descriptor of that number has that cookie.
        missing: Vec<Named>,
    },
    /// The listeners that the unrecorded ones came in by.
    Fresh(Vec<u8>),
}
