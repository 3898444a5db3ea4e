//! Ways for the master of a new program to fail or to be another version's, for tests: without the feature `crash-points` there is
//! none.
//!
//! `PHALANX_MASTER_FAULT=KIND@POINT` has a program that takes over fail there: `segv`, `abort`, `panic`, `exit` or `hang`.
//! `PHALANX_LAYOUT=N` and `PHALANX_STATE_VERSION=N` make a program one of that version.

use phalanx_shared::ledger::LAYOUT;

use super::state::VERSION;

/// A place to fail at.
#[cfg(feature = "crash-points")]
pub(crate) fn pass(point: &str) {
    use nix::sys::signal::{Signal, raise};
    let Ok(text) = std::env::var("PHALANX_MASTER_FAULT") else { return };
    match text.split_once('@') {
        Some((kind, at)) if at == point => match kind {
            "segv" => _ = raise(Signal::SIGSEGV),
            "abort" => std::process::abort(),
            "panic" => panic!("as PHALANX_MASTER_FAULT says"),
            "exit" => std::process::exit(9),
            "hang" => loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            },
            _ => {}
        },
        _ => {}
    }
}

#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn pass(_point: &str) {}

/// The ledger's layout.
pub(crate) fn layout() -> u32 {
    number("PHALANX_LAYOUT").unwrap_or(LAYOUT)
}

/// The state's version.
pub(crate) fn version() -> u32 {
    number("PHALANX_STATE_VERSION").unwrap_or(VERSION)
}

#[cfg(feature = "crash-points")]
fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(not(feature = "crash-points"))]
#[inline(always)]
fn number(_name: &str) -> Option<u32> {
    None
}
