//! What the master and the workers agree on: configuration, ledger, messages, statistics, system calls.

pub mod clients;
pub mod clock;
pub mod config;
pub mod field;
pub mod ipc;
pub mod ledger;
pub mod log;
pub mod quarantine;
pub mod stall;
pub mod state;
pub mod stats;
pub mod sys;
