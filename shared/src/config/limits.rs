//! The `[limits]`, `[timeouts]` and `[cache]` tables.

use std::time::Duration;

use super::bounds::{CONNECTIONS, HEAD, SIZE};
use super::resolved::{Cache, Limits, Timeouts};
use super::table::Table;

pub(super) fn limits(mut table: Table<'_>) -> Limits {
    let limits = Limits {
        head: table.size("head", 8 << 10, &HEAD),
        body: table.size("body", 1 << 20, &SIZE),
        connections: table.number("connections", 16_384, &CONNECTIONS),
        connections_per_client: 0,
        requests_per_connection: 0,
    };
    table.finish();
    limits
}

pub(super) fn timeouts(mut table: Table<'_>) -> Timeouts {
    let timeouts = Timeouts {
        head: table.duration("head", Duration::from_secs(10)),
        body: table.duration("body", Duration::from_secs(30)),
        idle: table.duration("idle", Duration::from_secs(75)),
        write: table.duration("write", Duration::from_secs(30)),
        body_rate: 240,
        write_rate: 240,
    };
    table.finish();
    timeouts
}

pub(super) fn cache() -> Cache {
    Cache { memory: 32 << 20, file: 256 << 10, open_files: 256 }
}
