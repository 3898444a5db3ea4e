//! The model `reactor-pool`: one event loop reads and writes, a bounded pool of threads runs the handlers. A handler that waits or
//! computes delays nobody else; an instant one pays for two changes of threads. Suits handlers that block. Known from Netty and from
//! application servers.

use phalanx_shared::config::{Poller, Workers};

use super::Model;
use crate::conn::Context;
use crate::main_loop::MainLoop;
use crate::pool::{Manners, Pool};

/// Threads where the configuration names no number: enough to wait for a database with.
const THREADS: u32 = 16;

pub(super) const MODEL: Model = Model { pollers: Poller::ALL, equip, serve: |booted| Ok(MainLoop::new(booted)?.run()) };

pub(super) fn equip(cx: &mut Context, workers: &Workers) -> Result<(), String> {
    cx.handlers = Some(handlers(workers)?);
    cx.all_pooled = true;
    Ok(())
}

/// The pool, none of its threads started.
pub(crate) fn handlers(workers: &Workers) -> Result<Pool, String> {
    let handlers = Pool::new(Manners {
        name: "phalanx-handler",
        threads: workers.threads.unwrap_or(THREADS) as usize,
        queue: workers.queue as usize,
        short: true,
    });
    handlers.hang_bell().map_err(|error| format!("eventfd: {error}"))?;
    Ok(handlers)
}
