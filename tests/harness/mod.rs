//! What every test needs: a server in a directory of its own, strict clients, load, and a look at processes.
//!
//! A test begins by asking for its share of the machine: [`beside_others`] for nearly all, [`alone`] for tests that load
//! both cores or measure time. When a test panics, servers and clients print all they know as they are dropped.

pub(crate) mod case;
pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod content;
mod framing;
pub(crate) mod how;
pub(crate) mod load;
pub(crate) mod processes;
pub(crate) mod server;
pub(crate) mod setup;
pub(crate) mod status;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

pub(crate) use client::{Client, Failure, Response};
pub(crate) use content::{decoded, text_pattern};
pub(crate) use load::{Ask, Load, Manners, crowd};
pub(crate) use server::Server;
pub(crate) use setup::{HELLO, Setup};

static MACHINE: RwLock<()> = RwLock::new(());

/// How long anything that should happen at once may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The test may run while others do. Ask once a test: the lock is not reentrant.
pub(crate) fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// The test has the machine to itself.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `condition` holds; panics naming `what` when it does not within `limit`.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        pause();
    }
}

/// Lets others run between two looks at a condition.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(3));
}

/// Waits for a moment of a schedule: for load that is spread over time, never for something to have happened by then.
pub(crate) fn wait_for_moment(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// A number from the environment, so that a test can be made larger by hand.
pub(crate) fn knob(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")),
        Err(_) => default,
    }
}

/// Bytes that differ from place to place, so that a response continued at the wrong byte shows.
pub(crate) fn pattern(len: usize, salt: u64) -> Vec<u8> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes as a person reads them, cut in the middle when there are many.
pub(crate) fn readable(bytes: &[u8]) -> String {
    const MOST: usize = 800;
    if bytes.len() <= MOST {
        return bytes.escape_ascii().to_string();
    }
    let (head, tail) = (&bytes[..MOST - 300], &bytes[bytes.len() - 300..]);
    format!("{} …[{} bytes in all]… {}", head.escape_ascii(), bytes.len(), tail.escape_ascii())
}

/// Where two byte strings part, for a message that can be read.
pub(crate) fn difference(got: &[u8], wanted: &[u8]) -> String {
    let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(got.len().min(wanted.len()));
    let part = |bytes: &[u8]| bytes[at..bytes.len().min(at + 48)].escape_ascii().to_string();
    format!(
        "{} bytes for {}, differ at {at}: got \"{}\", wanted \"{}\"",
        got.len(),
        wanted.len(),
        part(got),
        part(wanted)
    )
}
