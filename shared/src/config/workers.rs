//! The `[workers]`, `[canary]`, `[rescue]` and `[quarantine]` tables.

use std::time::Duration;

use super::bounds::{
    AGE, ATTEMPTS, COUNT, CRASHES, DEATHS, FACTOR, IO_THREADS, LOOPS, OLD_GENERATIONS, PERCENT, QUEUE, REQUEST_TIME,
    REQUESTS, SIZE, THREADS, TRIAL, UNREADY,
};
use super::entry::{Choices, Entry};
use super::resolved::{Canary, Count, Known, Model, OnMasterDeath, Poller, Quarantine, Rescue, Workers};
use super::table::Table;

const ON_MASTER_DEATH: Choices<OnMasterDeath> = Choices {
    what: "answer to the master's death",
    known: &[("drain", OnMasterDeath::Drain), ("exit", OnMasterDeath::Exit)],
};

pub(super) fn workers(mut table: Table<'_>, known: Known<'_>) -> Workers {
    let names: Vec<&str> = known.models.iter().map(|model| model.name).collect();
    let pollers: Vec<&str> = Poller::ALL.iter().map(|poller| poller.name()).collect();
    let poller = |name: String| Poller::ALL.iter().copied().find(|poller| poller.name() == name);
    let workers = Workers {
        count: table.entry("count").and_then(|entry| count(&entry)).unwrap_or(Count::Auto),
        model: table.word("model", "model", &names).map_or_else(|| known.default_model(), Model),
        poller: table.word("poller", "poller", &pollers).and_then(poller).unwrap_or(Poller::Epoll),
        boot_timeout: table.duration("boot_timeout", Duration::from_secs(30)),
        hang_timeout: table.duration("hang_timeout", Duration::from_secs(30)),
        request_timeout: table.duration_within("request_timeout", Duration::from_secs(60), &REQUEST_TIME),
        unready_delay: table.duration_within("unready_delay", Duration::ZERO, &UNREADY),
        drain_timeout: table.duration("drain_timeout", Duration::from_secs(30)),
        probation: table.duration_within("probation", Duration::from_secs(1), &TRIAL),
        max_old_generations: table.number("max_old_generations", 2, &OLD_GENERATIONS),
        max_requests: table.number("max_requests", 0, &REQUESTS),
        max_age: table.duration_within("max_age", Duration::ZERO, &AGE),
        max_memory: table.size("max_memory", 0, &SIZE),
        hard_memory: table.size("hard_memory", 0, &SIZE),
        give_up_after: table.number("give_up_after", 0, &DEATHS),
        on_master_death: table.choice("on_master_death", OnMasterDeath::Drain, &ON_MASTER_DEATH),
        threads: table.optional_number("threads", &THREADS),
        loops: table.number("loops", 2, &LOOPS),
        queue: table.number("queue", 1024, &QUEUE),
        io_threads: table.number("io_threads", 4, &IO_THREADS),
        allow_faults: table.flag("allow_faults", false),
    };
    for (key, text, hint) in conflicts(&workers, known) {
        table.refuse_key(key, format!("workers.{key}: {text}"), hint);
    }
    table.finish();
    workers
}

/// Which of the keys cannot be as they are, why, and what can be.
fn conflicts(workers: &Workers, known: Known<'_>) -> impl Iterator<Item = (&'static str, String, String)> {
    let app = known.apps.iter().find_map(|app| Some((&app.name, app.model.filter(|model| *model != workers.model.0)?)));
    let app = app.map(|(name, model)| {
        let text = format!("the app {name:?} runs under the model {model} only");
        ("model", text, format!("leave the model out, or choose {model}"))
    });
    let model = known.models.iter().find(|model| model.name == workers.model.0);
    let model = model.filter(|model| !model.pollers.contains(&workers.poller)).map(|model| {
        let pollers: Vec<&str> = model.pollers.iter().map(|poller| poller.name()).collect();
        let text = format!("the model {} does not wait by {}", model.name, workers.poller.name());
        ("poller", text, format!("leave the poller out, or choose {}", pollers.join(" or ")))
    });
    app.into_iter().chain(model)
}

/// Whether apps, model and poller go together: for who has put them together otherwise than by a file.
///
/// # Errors
/// What does not, and what would.
pub fn check_workers(workers: &Workers, known: Known<'_>) -> Result<(), String> {
    conflicts(workers, known).next().map_or(Ok(()), |(_, text, hint)| Err(format!("{text}\n  hint: {hint}")))
}

pub(super) fn canary(mut table: Table<'_>) -> Canary {
    let canary = Canary {
        time: table.duration_within("time", Duration::ZERO, &TRIAL),
        errors: table.number("errors", 1, &PERCENT),
        latency: table.number("latency", 3, &FACTOR),
    };
    table.finish();
    canary
}

pub(super) fn rescue(mut table: Table<'_>) -> Rescue {
    let rescue =
        Rescue { enabled: table.flag("enabled", true), max_attempts: table.number("max_attempts", 2, &ATTEMPTS) };
    table.finish();
    rescue
}

pub(super) fn quarantine(mut table: Table<'_>) -> Quarantine {
    let quarantine = Quarantine {
        enabled: table.flag("enabled", false),
        crashes: table.number("crashes", 3, &CRASHES),
        window: table.duration("window", Duration::from_secs(60)),
        time: table.duration("time", Duration::from_secs(300)),
    };
    table.finish();
    quarantine
}

fn count(entry: &Entry<'_>) -> Option<Count> {
    if entry.as_text() == Some("auto") {
        return Some(Count::Auto);
    }
    let number = entry.expect(entry.as_number(), "a whole number or \"auto\"")?;
    entry.check(COUNT.check(number)).map(Count::Fixed)
}
