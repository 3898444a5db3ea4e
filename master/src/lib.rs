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
mod upgrade;
mod verdict;

pub use cli::main;
pub use phalanx_worker::app::{
    App, Body, Caller, Conflict, Endpoint, Handler, Incoming, IntoResponse, InvalidField, Place, Request, RequestId,
    Response, Routes, pooled,
};
#[cfg(feature = "tower")]
pub use phalanx_worker::app::{BoxError, Tower};
pub use server::{Builder, Server};
