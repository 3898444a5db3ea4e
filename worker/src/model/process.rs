//! The model `process`: each connection has a process of its own, forked for it, which blocks as it likes. What goes wrong in it is its
//! own affair: no other connection shares its memory, and none dies with it, nor with the worker that accepted it. It costs a fork for
//! each connection and the memory of a process for as long as that lasts; above `workers.threads` who comes is refused. Known from
//! inetd and PostgreSQL.

use phalanx_shared::config::{Poller, Workers};

use super::Model;
use crate::conn::Context;
use crate::main_loop::MainLoop;

/// Processes where the configuration names no number.
const PROCESSES: u32 = 1024;

pub(super) const MODEL: Model = Model {
    pollers: Poller::ALL,
    equip,
    serve: |booted| {
        let most = booted.workers.threads.unwrap_or(PROCESSES) as usize;
        Ok(MainLoop::with_children(booted, most)?.run())
    },
};

fn equip(cx: &mut Context, workers: &Workers) -> Result<(), String> {
    cx.blocking = true;
    cx.bound_connections(workers.threads.unwrap_or(PROCESSES), "workers.threads");
    // Each process takes a descriptor beside that of its connection, and one for each root of files.
    let each = 2 + cx.router.descriptors().len();
    let room = u32::try_from(cx.ledger.descriptors() / 5 * 4 / each).unwrap_or(u32::MAX);
    cx.bound_connections(room, "the number of descriptors");
    Ok(())
}
