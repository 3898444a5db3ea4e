//! The `[log]` table.

use std::path::{Path, PathBuf};

use super::entry::{Choices, Entry};
use super::nearest::nearest;
use super::problem::Refusal;
use super::resolved::{Format, Level, Log, Sink};
use super::table::Table;

const FORMATS: Choices<Format> =
    Choices { what: "format", known: &[("combined", Format::Combined), ("json", Format::Json)] };

const LEVELS: Choices<Level> = Choices {
    what: "level",
    known: &[("error", Level::Error), ("warn", Level::Warn), ("info", Level::Info), ("debug", Level::Debug)],
};

/// The sinks that are no files.
const WORDS: [&str; 3] = ["stdout", "stderr", "off"];

pub(super) fn log(mut table: Table<'_>) -> Log {
    let log = Log {
        access: table.entry("access").and_then(|entry| sink(&entry)).unwrap_or(Sink::Off),
        format: table.choice("format", Format::Combined, &FORMATS),
        error: table.entry("error").and_then(|entry| sink(&entry)).unwrap_or(Sink::Stderr),
        level: table.choice("level", Level::Info, &LEVELS),
    };
    table.finish();
    log
}

fn sink(entry: &Entry<'_>) -> Option<Sink> {
    match entry.text("\"stdout\", \"stderr\", \"off\" or a file")? {
        "off" => Some(Sink::Off),
        "stdout" => Some(Sink::Stdout),
        "stderr" => Some(Sink::Stderr),
        written => entry.check(file(entry, written)).map(Sink::File),
    }
}

fn file(entry: &Entry<'_>, written: &str) -> Result<PathBuf, Refusal> {
    if let Some(meant) = nearest(written, WORDS) {
        let hint = format!("did you mean \"{meant}\"? for a file of that name write \"./{written}\"");
        return Err(Refusal::new(format!("unknown log {written:?}"), hint));
    }
    let path = entry.source().path(written)?;
    if path.is_dir() {
        return Err(Refusal::new(format!("{} is a directory", path.display()), "name a file inside it"));
    }
    match path.parent() {
        Some(parent) if !parent.is_dir() => Err(no_directory(parent)),
        _ => Ok(path),
    }
}

fn no_directory(parent: &Path) -> Refusal {
    let parent = parent.display();
    Refusal::new(format!("there is no directory {parent}"), format!("create it (mkdir -p {parent}), or log elsewhere"))
}
