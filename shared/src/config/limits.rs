//! The `[limits]`, `[timeouts]` and `[cache]` tables.

use std::time::Duration;

use super::bounds::{CONNECTIONS, CONNECTIONS_PER_CLIENT, HEAD, OPEN_FILES, RATE, REQUESTS_PER_CONNECTION, SIZE};
use super::resolved::{Cache, Limits, Poller, SELECT_CONNECTIONS, Timeouts};
use super::table::Table;
use super::units::show_size;

pub(super) fn limits(mut table: Table<'_>, poller: Poller) -> Limits {
    let limits = Limits {
        head: table.size("head", 8 << 10, &HEAD),
        body: table.size("body", 1 << 20, &SIZE),
        connections: table.number("connections", 16_384, &CONNECTIONS),
        connections_per_client: table.number("connections_per_client", 0, &CONNECTIONS_PER_CLIENT),
        requests_per_connection: table.number("requests_per_connection", 0, &REQUESTS_PER_CONNECTION),
    };
    // What nobody asked for is cut without a word, as where a process may have few descriptors.
    if poller == Poller::Select && limits.connections > SELECT_CONNECTIONS && table.has("connections") {
        let text = format!(
            "limits.connections: {} is more than {SELECT_CONNECTIONS}, which is what workers.poller = \"select\" has room for",
            limits.connections
        );
        table.refuse_key("connections", text, "write poller = \"epoll\", or fewer connections");
    }
    table.finish();
    limits
}

pub(super) fn timeouts(mut table: Table<'_>) -> Timeouts {
    let timeouts = Timeouts {
        head: table.duration("head", Duration::from_secs(10)),
        body: table.duration("body", Duration::from_secs(30)),
        idle: table.duration("idle", Duration::from_secs(75)),
        write: table.duration("write", Duration::from_secs(30)),
        body_rate: table.size("body_rate", 240, &RATE),
        write_rate: table.size("write_rate", 240, &RATE),
    };
    table.finish();
    timeouts
}

pub(super) fn cache(mut table: Table<'_>) -> Cache {
    let cache = Cache {
        memory: table.size("memory", 32 << 20, &SIZE),
        file: table.size("file", 64 << 10, &SIZE),
        open_files: table.number("open_files", 256, &OPEN_FILES),
    };
    check_room(&table, &cache);
    table.finish();
    cache
}

fn check_room(table: &Table<'_>, cache: &Cache) {
    if cache.memory == 0 || cache.file <= cache.memory {
        return;
    }
    let (file, memory) = (show_size(cache.file), show_size(cache.memory));
    let text = format!("cache.file: a file of {file} does not fit the memory of {memory}");
    let hint = format!("write file = \"{memory}\" or less, or raise memory");
    table.refuse_key(if table.has("file") { "file" } else { "memory" }, text, hint);
}
