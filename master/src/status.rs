//! What `status` tells: the master, its slots, and the sums.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use phalanx_shared::stats::Snapshot;
use serde::{Deserialize, Serialize};

use crate::verdict::InFlight;

/// The whole of it, as `status --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) master: Master,
    /// Where the service listens, with real ports.
    pub(crate) listeners: Vec<String>,
    pub(crate) slots: Vec<Slot>,
    /// Requests that are answered 503 because they killed workers.
    pub(crate) quarantined: Vec<Held>,
    /// Over all slots that ever were.
    pub(crate) totals: Snapshot,
    /// The program's own figures, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) figures: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) method: String,
    /// Without a query.
    pub(crate) path: String,
    /// How much longer.
    pub(crate) left_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Master {
    pub(crate) pid: i32,
    pub(crate) version: String,
    pub(crate) generation: u64,
    pub(crate) uptime_s: u64,
    /// `ok`, `degraded` (a slot does not serve, or its workers keep dying), `failing` (none serves), `starting`, `stopping`.
    pub(crate) state: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) slot: u32,
    /// Of the worker that serves; none while nobody does.
    pub(crate) pid: Option<i32>,
    pub(crate) keeper_pid: Option<i32>,
    pub(crate) incarnation: u32,
    pub(crate) state: String,
    pub(crate) generation: u64,
    pub(crate) cause_of_last_death: Option<String>,
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    /// Deaths that were followed by a successor.
    pub(crate) restarts: u64,
    pub(crate) rss_bytes: u64,
}

/// A worker that only ends what it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Draining {
    pub(crate) slot: u32,
    pub(crate) pid: Option<i32>,
    pub(crate) incarnation: u32,
    pub(crate) generation: u64,
    /// Since when it does.
    pub(crate) since_ms: u64,
    /// When it is ended, if it has not ended.
    pub(crate) left_ms: u64,
    /// How many connections it waits for.
    pub(crate) connections: usize,
    /// Some of them.
    pub(crate) waits_for: Vec<InFlight>,
}

/// Draining workers for people.
pub(crate) fn draining_as_text(draining: &[Draining]) -> String {
    if draining.is_empty() {
        return "no worker is draining".to_owned();
    }
    let mut lines = Vec::new();
    for worker in draining {
        lines.push(format!(
            "slot {} pid {} (incarnation {}, generation {}): for {}, {} left, {} connections",
            worker.slot,
            worker.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            worker.incarnation,
            worker.generation,
            duration(worker.since_ms / 1000),
            duration(worker.left_ms / 1000),
            worker.connections
        ));
        let waits = worker.waits_for.iter();
        lines.extend(waits.map(|request| format!("  `{}` of {} ({})", request.request, request.peer, request.phase)));
    }
    lines.join("\n")
}

/// For programs.
pub(crate) fn as_json(what: &impl Serialize) -> String {
    serde_json::to_string(what).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

pub(crate) fn as_table(status: &Status) -> String {
    let mut text = String::new();
    let master = &status.master;
    // Writing to a String cannot fail.
    let _infallible = writeln!(
        text,
        "phalanx {}, {}, pid {}, up {}, generation {}\nlistening on {}\n",
        master.version,
        master.state,
        master.pid,
        duration(master.uptime_s),
        master.generation,
        status.listeners.join(", ")
    );
    let _infallible = writeln!(
        text,
        "{:>4} {:>8} {:<9} {:>11} {:>10} {:>11} {:>12} {:>8} {:>9}  last death",
        "slot", "pid", "state", "incarnation", "generation", "connections", "requests", "restarts", "memory"
    );
    for slot in &status.slots {
        let _infallible = writeln!(
            text,
            "{:>4} {:>8} {:<9} {:>11} {:>10} {:>11} {:>12} {:>8} {:>9}  {}",
            slot.slot,
            slot.pid.map_or("-".to_owned(), |pid| pid.to_string()),
            slot.state,
            slot.incarnation,
            slot.generation,
            slot.connections,
            slot.requests,
            slot.restarts,
            format!("{:.1}M", slot.rss_bytes as f64 / 1_048_576.0),
            slot.cause_of_last_death.as_deref().unwrap_or("-")
        );
    }
    for held in &status.quarantined {
        let _infallible = write!(text, "\nheld for {}: {} {}", duration(held.left_ms / 1000), held.method, held.path);
    }
    let totals = &status.totals;
    let _infallible = write!(
        text,
        "\n{} requests on {} connections, {} open; rescued {}, replayed {}, continued {}, failed {}, closed {}",
        totals.requests,
        totals.accepted,
        totals.connections,
        totals.rescued,
        totals.replayed,
        totals.continued,
        totals.failed,
        totals.closed
    );
    text
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}
