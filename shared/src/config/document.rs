//! The whole file: its TOML, and its tables one after the other.

use std::path::{Path, PathBuf};

use toml_edit::{Document, TableLike, TomlError};

use super::listen;
use super::problem::{Problems, Refusal};
use super::resolved::{Action, Config, Known, MOST_LISTENERS, Route, RoutePath, Site};
use super::source::Source;
use super::table::Table;
use super::written::{CACHE, CANARY, LIMITS, LISTEN, LOG, MASTER, QUARANTINE, RESCUE, ROOT, SITE, TIMEOUTS, WORKERS};
use super::{limits, log, master, site, workers};

/// A mark that some editors put in front of a text; it is not part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// See [`super::parse`].
pub(super) fn parse(text: &str, origin: &Path, known: Known<'_>) -> Result<Config, Problems> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let source = Source::new(text, origin);
    match Document::parse(text) {
        Ok(document) => {
            let config = complete(&source, document.as_table(), known);
            if source.is_sound() { Ok(config) } else { Err(source.into_problems()) }
        }
        Err(error) => {
            report_syntax(&source, &error);
            Err(source.into_problems())
        }
    }
}

/// See [`super::settings`].
pub(super) fn settings(text: &str, origin: &Path, known: Known<'_>) -> Result<Config, Problems> {
    let source = Source::new(text, origin);
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            report_syntax(&source, &error);
            return Err(source.into_problems());
        }
    };
    let mut root = Table::new(&source, &ROOT, Some(document.as_table()), 0);
    let mut config = read(&mut root, known);
    root.finish();
    let names = |table: &str, key: &str| {
        let table = document.as_table().get(table).and_then(|item| item.as_table_like());
        table.is_some_and(|table| table.contains_key(key))
    };
    config.master.pid_file.take_if(|_| !names("master", "pid_file"));
    config.master.control_socket.take_if(|_| !names("master", "control_socket"));
    if source.is_sound() { Ok(config) } else { Err(source.into_problems()) }
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
    complete(&source, document.as_table(), Known::default()).master.control_socket
}

/// What an empty file would say, without listeners and sites.
pub(super) fn defaults() -> Config {
    read(&mut Table::new(&Source::new("", Path::new("/")), &ROOT, None, 0), Known::default())
}

fn complete<'a>(source: &'a Source<'a>, document: &'a dyn TableLike, known: Known<'_>) -> Config {
    let mut root = Table::new(source, &ROOT, Some(document), 0);
    let mut config = read(&mut root, known);
    if !root.has("listen") {
        root.refuse("no [[listen]]: there is no address to serve", "add [[listen]] with address = \"127.0.0.1:8080\"");
    }
    if config.listen.len() > MOST_LISTENERS {
        root.refuse(
            format!("{} [[listen]] tables; {MOST_LISTENERS} are possible", config.listen.len()),
            "listen on one address for all, such as \"0.0.0.0:80\"",
        );
    }
    route_to_app(&mut config, known);
    if !root.has("site") && known.apps.is_empty() {
        root.refuse("no [[site]]: there is nothing to serve", "add [[site]] with at least one [[site.route]]");
    }
    root.finish();
    config
}

/// What no route of the file names is the program's own affair: its app answers what nothing else does.
pub(super) fn route_to_app(config: &mut Config, known: Known<'_>) {
    let Some(app) = known.apps.first() else { return };
    let mut routes = config.sites.iter().flat_map(|site| &site.routes);
    if routes.any(|route| matches!(route.action, Action::App(_))) {
        return;
    }
    let all = RoutePath::Prefix("/".to_owned());
    let route = Route::new(all.clone(), Action::App(app.name.clone()));
    if config.sites.is_empty() {
        config.sites.push(Site { hosts: Vec::new(), routes: Vec::new() });
    }
    let without = |site: &&mut Site| site.routes.iter().all(|route| route.path != all);
    config.sites.iter_mut().filter(without).for_each(|site| site.routes.push(route.clone()));
}

fn read(root: &mut Table<'_>, known: Known<'_>) -> Config {
    let workers = workers::workers(root.table("workers", &WORKERS), known);
    Config {
        master: master::master(root.table("master", &MASTER)),
        canary: workers::canary(root.table("canary", &CANARY)),
        rescue: workers::rescue(root.table("rescue", &RESCUE)),
        quarantine: workers::quarantine(root.table("quarantine", &QUARANTINE)),
        limits: limits::limits(root.table("limits", &LIMITS), workers.poller),
        timeouts: limits::timeouts(root.table("timeouts", &TIMEOUTS)),
        cache: limits::cache(root.table("cache", &CACHE)),
        listen: listen::listeners(root.tables("listen", &LISTEN)),
        sites: site::sites(
            root.tables("site", &SITE),
            site::Permitted { faults: workers.allow_faults, apps: known.apps },
        ),
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
