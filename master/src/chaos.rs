//! `phalanx chaos`: breaks workers of a running service on purpose, and tells what came of it: what was kept, run again and lost,
//! and how long it took until all was well.

use std::time::{Duration, Instant};

use phalanx_shared::stats::Snapshot;

use crate::cli::{FAILED, complain, say};
use crate::control::{Answer, Command, Deed};
use crate::status::{Slot, Status};

/// How long anybody waits until all is well.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a leak is given to show.
const LEAK_TIME: Duration = Duration::from_secs(2);

/// Breaks the worker of `slot`, or of each in turn, `count` times. `ask` asks the service, or gives the exit code. Returns the exit
/// code: a failure when something was lost.
pub(crate) fn run(
    deed: Deed,
    slot: Option<u32>,
    count: u32,
    ask: &dyn Fn(&Command) -> Result<Answer, u8>,
) -> Result<u8, u8> {
    let first = status(ask)?;
    let mut slowest = Duration::ZERO;
    for number in 0..count {
        let before = status(ask)?;
        let slots = before.slots.len().max(1) as u32;
        let slot = slot.unwrap_or(number % slots);
        let done = ask(&Command::Chaos { deed, slot })?;
        let start = Instant::now();
        let healed = wait(deed, slot, &before, start, ask);
        if deed == Deed::Stop && !matches!(healed, Ok(Some(_))) {
            // It is not to stay stopped, whatever else is wrong.
            let _gone = ask(&Command::Chaos { deed: Deed::Continue, slot });
        }
        let healed = healed?;
        let Some((after, healed)) = healed else {
            return Ok(complain(FAILED, &format!("slot {slot} is not well after {PATIENCE:?}")));
        };
        slowest = slowest.max(healed);
        let what = match deed {
            Deed::Leak => {
                let bytes = |status: &Status| of(status, slot).map_or(0, |slot| slot.rss_bytes);
                format!("{:.1} MiB more", bytes(&after).saturating_sub(bytes(&before)) as f64 / 1_048_576.0)
            }
            _ => format!("well again in {:.1} ms", healed.as_secs_f64() * 1000.0),
        };
        say(&format!("{}: {what}; {}", done.text, blast(&before.totals, &after.totals)));
    }
    let last = status(ask)?;
    if count > 1 {
        let slowest = slowest.as_secs_f64() * 1000.0;
        say(&format!("{count} times, at most {slowest:.1} ms; {}", blast(&first.totals, &last.totals)));
    }
    let lost = last.totals.closed > first.totals.closed || last.totals.failed > first.totals.failed;
    Ok(if lost { FAILED } else { crate::cli::DONE })
}

fn status(ask: &dyn Fn(&Command) -> Result<Answer, u8>) -> Result<Status, u8> {
    ask(&Command::Status)?.status.ok_or(FAILED)
}

fn of(status: &Status, slot: u32) -> Option<&Slot> {
    status.slots.iter().find(|known| known.slot == slot)
}

/// Waits until the slot is well again: how the service is then, and how long it took.
fn wait(
    deed: Deed,
    slot: u32,
    before: &Status,
    start: Instant,
    ask: &dyn Fn(&Command) -> Result<Answer, u8>,
) -> Result<Option<(Status, Duration)>, u8> {
    let mut resumed = deed != Deed::Stop;
    while start.elapsed() < PATIENCE {
        let now = status(ask)?;
        let (Some(known), Some(old)) = (of(&now, slot), of(before, slot)) else { return Ok(None) };
        let serves = known.state == "serving";
        let over = match deed {
            Deed::Kill | Deed::Segv | Deed::Hang => serves && known.incarnation != old.incarnation,
            Deed::Keeper => serves && known.keeper_pid.is_some() && known.keeper_pid != old.keeper_pid,
            Deed::Stop | Deed::Continue => resumed && serves,
            Deed::Leak => start.elapsed() >= LEAK_TIME,
        };
        if over {
            return Ok(Some((now, start.elapsed())));
        }
        if !resumed && known.state == "stalled" {
            ask(&Command::Chaos { deed: Deed::Continue, slot })?;
            resumed = true;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(None)
}

/// What came of it for clients.
fn blast(before: &Snapshot, after: &Snapshot) -> String {
    let more = |figure: fn(&Snapshot) -> u64| figure(after).saturating_sub(figure(before));
    format!(
        "{} connections kept, {} closed; {} requests answered late: {} run again, {} continued; {} failed",
        more(|it| it.rescued),
        more(|it| it.closed),
        more(|it| it.replayed) + more(|it| it.continued),
        more(|it| it.replayed),
        more(|it| it.continued),
        more(|it| it.failed)
    )
}
