//! The whole file: its TOML, and its tables one after the other.

use std::path::{Path, PathBuf};

use toml_edit::{Document, TableLike, TomlError};

use super::listen;
use super::problem::{Problems, Refusal};
use super::resolved::{Config, KnownModel, MOST_LISTENERS};
use super::source::Source;
use super::table::Table;
use super::written::{CACHE, CANARY, LIMITS, LISTEN, LOG, MASTER, QUARANTINE, RESCUE, ROOT, SITE, TIMEOUTS, WORKERS};
use super::{limits, log, master, site, workers};

/// A mark that some editors put in front of a text; it is not part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// See [`super::parse`].
pub(super) fn parse(text: &str, origin: &Path, models: &[KnownModel]) -> Result<Config, Problems> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let source = Source::new(text, origin);
    match Document::parse(text) {
        Ok(document) => {
            let config = complete(&source, document.as_table(), models);
            if source.is_sound() { Ok(config) } else { Err(source.into_problems()) }
        }
        Err(error) => {
            report_syntax(&source, &error);
            Err(source.into_problems())
        }
    }
}

/// See [`super::control_socket_of`]. Where the text is not TOML, what stands before the mistake decides.
pub(super) fn control_socket(text: &str, origin: &Path) -> Option<PathBuf> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let sound = match Document::parse(text) {
        Ok(_) => text,
        Err(error) => {
            let before = &text[..error.span()?.start];
            &before[..before.rfind('\n')?]
        }
    };
    let source = Source::new(sound, origin);
    let document = Document::parse(sound).ok()?;
    complete(&source, document.as_table(), &[]).master.control_socket
}

/// What an empty file would say, without listeners and sites.
pub(super) fn defaults() -> Config {
    read(&mut Table::new(&Source::new("", Path::new("/")), &ROOT, None, 0), &[])
}

fn complete<'a>(source: &'a Source<'a>, document: &'a dyn TableLike, models: &[KnownModel]) -> Config {
    let mut root = Table::new(source, &ROOT, Some(document), 0);
    let config = read(&mut root, models);
    if !root.has("listen") {
        root.refuse("no [[listen]]: there is no address to serve", "add [[listen]] with address = \"127.0.0.1:8080\"");
    }
    if config.listen.len() > MOST_LISTENERS {
        root.refuse(
            format!("{} [[listen]] tables; {MOST_LISTENERS} are possible", config.listen.len()),
            "listen on one address for all, such as \"0.0.0.0:80\"",
        );
    }
    if !root.has("site") {
        root.refuse("no [[site]]: there is nothing to serve", "add [[site]] with at least one [[site.route]]");
    }
    root.finish();
    config
}

fn read(root: &mut Table<'_>, models: &[KnownModel]) -> Config {
    let workers = workers::workers(root.table("workers", &WORKERS), models);
    Config {
        master: master::master(root.table("master", &MASTER)),
        canary: workers::canary(root.table("canary", &CANARY)),
        rescue: workers::rescue(root.table("rescue", &RESCUE)),
        quarantine: workers::quarantine(root.table("quarantine", &QUARANTINE)),
        limits: limits::limits(root.table("limits", &LIMITS), workers.poller),
        timeouts: limits::timeouts(root.table("timeouts", &TIMEOUTS)),
        cache: limits::cache(root.table("cache", &CACHE)),
        listen: listen::listeners(root.tables("listen", &LISTEN)),
        sites: site::sites(root.tables("site", &SITE), site::Faults::allowed(workers.allow_faults)),
        log: log::log(root.table("log", &LOG)),
        workers,
    }
}

fn report_syntax(source: &Source<'_>, error: &TomlError) {
    let message = error.message();
    let hint = if message.contains("duplicate key") {
        "each key and each [table] may stand once: remove one of the two"
    } else if message.contains("quoted") {
        "put the value in double quotes"
    } else {
        "mend the TOML here (https://toml.io); the rest of the file is checked after that"
    };
    let offset = error.span().map_or(0, |span| span.start);
    source.report(offset, Refusal::new(format!("not TOML: {}", message.to_lowercase()), hint));
}
