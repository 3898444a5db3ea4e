//! Phalanx: a pre-fork HTTP server whose clients do not notice when a worker dies.
//!
//! A master binds the listening sockets and supervises; a keeper per slot holds the slot's descriptor table; workers, cloned
//! by the keepers, serve. See ARCHITECTURE.md for the picture.
//!
//! As a library it runs handlers of a program's own in such workers: see [`Server`]. A handler that crashes, hangs or takes too much
//! memory costs its own request an error and nobody else anything: another worker takes over its connections, and runs again what
//! else was under way.

mod chaos;
mod cli;
mod control;
mod daemonize;
mod keeper;
mod listeners;
mod log_files;
mod memory_group;
mod pid_file;
mod privileges;
mod server;
mod signals;
mod stack;
mod start;
mod status;
mod supervisor;
pub mod testing;
mod upgrade;
mod verdict;

pub use cli::main;
pub use phalanx_worker::app::{
    App, Body, Caller, Conflict, Crash, Endpoint, Handler, HookError, Incoming, IntoResponse, InvalidField, Limits,
    Place, Request, RequestId, Response, Routes, WorkerInfo, isolated, pooled,
};
/// State that the workers of a program share, in memory that is made before the first of them: make it in `main`, before
/// [`Server::main`], and move it into handlers, or keep it in a static.
///
/// A worker that dies at whatever instruction, holding whatever lock, leaves it sound; the others go on at once. It lives as long as
/// the service: over crashes, recycles, reloads and upgrades, not over a stop.
///
/// After an upgrade, what the new program makes by the name and the shape of something that the program before had is that, with all
/// that is in it. Both programs' workers share it for as long as both are there, and a program that is returned to finds what the other
/// has left. So a value's meaning goes with the name of its table: give one of another format another name. What no program has any
/// more is forgotten when the upgrade is confirmed, but for figures, which are remembered.
///
/// Only make state in `main`, and look at it and fill it in [`Builder::on_start`]: at an upgrade a failure there is the return to the
/// program before, and one in `main` is the end of the service. What a start begins with is set by
/// [`Table::set_new`](state::Table::set_new): after an upgrade it may be there already.
///
/// ```
/// use std::time::Duration;
///
/// use phalanx::state::{Counter, RateLimiter, Table, Verdict};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hits = Counter::new("hits_total", "requests that were greeted")?;
/// let sessions = Table::new("sessions", 10_000, 32, 200)?;
/// let limit = RateLimiter::new("by_address", Duration::from_secs(1), 10, 10_000, 64)?;
/// hits.increment();
/// sessions.set(b"id", b"who it is", Some(Duration::from_secs(3600)))?;
/// assert_eq!(sessions.get(b"id").as_deref(), Some(&b"who it is"[..]));
/// assert_eq!(limit.admit(b"127.0.0.1")?, Verdict::Admitted);
/// # Ok(())
/// # }
/// ```
pub mod state {
    pub use phalanx_shared::state::Error;
    pub use phalanx_shared::state::limiter::{RateLimiter, Verdict};
    pub use phalanx_shared::state::metrics::{Counter, Gauge, Histogram, exposition};
    pub use phalanx_shared::state::table::{Change, Table, TooLarge};
}

#[cfg(feature = "tower")]
pub use phalanx_worker::app::{BoxError, PathParams, Tower, task};
pub use server::{Builder, Server};
