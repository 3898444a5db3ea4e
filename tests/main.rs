//! The end-to-end suite: everything here runs the real binary, in a fresh directory, on a port of its own.
//!
//! `tests/run` runs it with the crash points built in; `cargo test -p phalanx --test suite` runs it without them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test panics and prints: that is its report"
)]

mod harness;

mod abuse;
mod abuse_crowd;
mod basics;
mod chaos;
mod chaos_command;
mod chaos_files;
mod client_bounds;
mod cohorts;
mod corpus;
mod crash_loops;
#[cfg(feature = "crash-points")]
mod crash_points;
#[cfg(feature = "crash-points")]
mod crash_points_files;
mod crash_points_handlers;
mod crashes;
mod daemon;
mod descriptors;
mod differential;
mod events;
mod everything;
mod faults;
mod files;
mod files_bounds;
mod files_routes;
mod generations;
mod handover;
mod idle;
mod keepers;
mod leaks;
#[cfg(feature = "axum")]
mod library;
#[cfg(feature = "axum")]
mod library_hooks;
#[cfg(feature = "axum")]
mod library_isolated;
#[cfg(feature = "axum")]
mod library_state;
#[cfg(feature = "axum")]
mod library_streams;
mod master_death;
mod million;
mod models;
mod models_own;
mod outcomes;
mod overload;
mod peers;
mod proxy_protocol;
mod quarantine;
mod rates;
mod recycle;
mod regressions;
mod reload;
mod reload_failures;
mod reload_listeners;
mod silence;
mod slow_peers;
mod stopping;
mod structure;
mod unix_sockets;
mod upgrade;
