//! State that the workers of a program share: figures, a table, rate limits. It lies in memory that is made before the first worker
//! and mapped by all of them, so nobody asks anybody for it. An upgrade hands it on.
//!
//! A worker may die at any instruction. Figures are single words. What takes more than one is changed under a [`lock`] that
//! survives its holder, in an order in which every intermediate state is a sound one; so nothing has to be repaired.
//!
//! A wild store of a dying worker may reach this memory as any other. Whatever stands there is read within bounds.

pub mod heritage;
pub mod limiter;
pub mod lock;
pub mod metrics;
pub mod table;

use std::sync::atomic::{AtomicBool, Ordering};

/// What this process made from now on, nobody else would see.
static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// This process is a worker from now on, or what a worker becomes: one that others tell apart from who it was cloned from.
pub fn begin_process() {
    IS_WORKER.store(true, Ordering::Release);
    lock::forget_identity();
}

/// Why shared state cannot be made.
#[derive(Debug)]
pub enum Error {
    /// This is a worker already: nobody else would see it.
    TooLate,
    /// Its name is none, or is another's.
    Name(String),
    /// It would be larger than it may be.
    Size(String),
    /// There is no memory for it.
    Memory(std::io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::TooLate => f.write_str("shared state is made before the server starts, not in a worker"),
            Error::Name(why) | Error::Size(why) => f.write_str(why),
            Error::Memory(error) => write!(f, "memory for shared state: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Memory(error) => Some(error),
            _ => None,
        }
    }
}

/// Bytes of a name.
const MOST_NAME: usize = 64;

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > MOST_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        let name: String = name.chars().take(MOST_NAME).collect();
        return Err(Error::Name(format!("{name:?} is no name: 1 to {MOST_NAME} visible characters of ASCII")));
    }
    Ok(())
}

fn check_in_time() -> Result<(), Error> {
    if is_worker() { Err(Error::TooLate) } else { Ok(()) }
}

/// Whether this process is a worker, or what a worker becomes, and not the master.
fn is_worker() -> bool {
    IS_WORKER.load(Ordering::Acquire)
}
