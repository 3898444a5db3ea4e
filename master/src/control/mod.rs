//! The control socket: one JSON object a line each way. The command line is one client, `socat` another.

pub(crate) mod client;
pub(crate) mod server;

use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::cli;
use crate::status::{Draining, Status};
use crate::verdict::Report;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Command {
    /// How is the service?
    Status,
    /// Run requests again that are held because they killed workers.
    Pardon {
        /// Those of this path; none: all.
        #[serde(default)]
        path: Option<String>,
    },
    /// Tell everything that happens from now on, a JSON object a line.
    Events,
    /// Which workers only end what they have, and whom do they wait for?
    Draining,
    /// Which workers died last, and of what?
    Crashes,
    /// Stop; `fast` does not wait for what is in flight.
    Stop {
        #[serde(default)]
        fast: bool,
    },
    /// Take up the changed configuration; `dry_run` only tells what that would change.
    Reload {
        #[serde(default)]
        dry_run: bool,
    },
    /// Go on as another program.
    Upgrade {
        /// Its file; none: the one that the service was started from.
        #[serde(default)]
        program: Option<PathBuf>,
    },
    /// Replace the worker of a slot, or each, one after the other.
    Recycle {
        /// Which; none: each.
        #[serde(default)]
        slot: Option<u32>,
    },
    /// Have this many workers.
    Scale { count: u32 },
    /// Break the worker of a slot on purpose; refused unless `workers.allow_faults` is set.
    Chaos { deed: Deed, slot: u32 },
}

/// What is done to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Deed {
    /// SIGKILL
    Kill,
    /// A segmentation fault of its own
    Segv,
    /// Its loop never goes on
    Hang,
    /// SIGSTOP until the master has noticed, then SIGCONT
    Stop,
    /// It takes 16 MiB and keeps them
    Leak,
    /// SIGKILL for its keeper
    Keeper,
    /// SIGCONT
    #[value(skip)]
    Continue,
}

/// What is answered, once the outcome is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Whether it was done.
    pub(crate) ok: bool,
    /// What was done, or why not.
    pub(crate) text: String,
    /// The exit code of the command that asked.
    pub(crate) code: u8,
    /// With `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<Status>,
    /// With `draining`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) draining: Option<Vec<Draining>>,
    /// With `crashes`: the last ones, the latest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crashes: Option<Vec<Report>>,
    /// With `crashes`: where the whole reports are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crash_dir: Option<PathBuf>,
}

impl Answer {
    fn new(ok: bool, text: String, code: u8) -> Answer {
        Answer { ok, text, code, status: None, draining: None, crashes: None, crash_dir: None }
    }

    pub(crate) fn done(text: impl Into<String>) -> Answer {
        Answer::new(true, text.into(), cli::DONE)
    }

    pub(crate) fn refused(text: impl Into<String>) -> Answer {
        Answer::new(false, text.into(), cli::FAILED)
    }

    /// The configuration is at fault.
    pub(crate) fn misconfigured(text: impl Into<String>) -> Answer {
        Answer::new(false, text.into(), cli::BAD_USAGE)
    }
}
