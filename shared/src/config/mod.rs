//! Configuration: from a TOML file to the [`Config`] that the rest of the program sees.
//!
//! A file passes three stations. `written` declares every table and key. The readers (`master`, `workers`, `limits`,
//! `listen`, `network`, `site`, `route`, `headers`, `rate`, `action`, `log`) walk the TOML tree through a `Table` and
//! turn values as written into values as `resolved`. Whatever is wrong becomes a [`Problem`] with its place, and reading
//! goes on with the default, so that an operator sees all the problems of a file at once. Only a TOML syntax error
//! stands alone: behind it there is no tree to walk.
//!
//! Reading asks the system about users, groups and directories and changes nothing; binding and opening is for others.

mod action;
mod blueprint;
mod bounds;
mod difference;
mod document;
mod entry;
mod file;
mod headers;
mod limits;
mod listen;
mod log;
mod master;
mod nearest;
mod network;
mod problem;
mod rate;
mod route;
mod site;
mod source;
mod table;
mod units;
mod workers;
mod written;

pub mod resolved;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use difference::differences;
pub use listen::parse_listen;
pub use problem::{Place, Problem, Problems};
pub use resolved::*;

/// Reads and checks the configuration in the file `path`, which may hold up to 1 MiB of UTF-8. `models` are those that
/// the program has.
///
/// # Errors
/// Every problem of the file, in the order of its lines; or the one reason why it cannot be read.
pub fn load(path: &Path, models: &[KnownModel]) -> Result<Config, Problems> {
    let text = file::read(path).map_err(|problem| Problems(vec![problem]))?;
    parse(&text, path, models)
}

/// Checks the configuration `text`, which was written in the file `origin`: problems name that file, and relative paths
/// are taken from its directory. The file itself is not touched. `models` as in [`load`].
///
/// # Errors
/// Every problem of the text, in the order of its lines.
pub fn parse(text: &str, origin: &Path, models: &[KnownModel]) -> Result<Config, Problems> {
    document::parse(text, origin, models)
}

/// The control socket that the file at `path` names, whatever else is wrong with it: a running service can be asked all the
/// same. None when the file cannot be read or its mistakes come before the socket.
#[must_use]
pub fn control_socket_of(path: &Path) -> Option<PathBuf> {
    let text = file::read(path).ok()?;
    document::control_socket(&text, path)
}

/// What `phalanx serve DIR` runs: one site for every host that serves the files below `root` and lists directories
/// without an index file, everything else at its default, no access log and nothing left on disk (no PID file, no
/// control socket, no crash reports).
///
/// `listen` must not be empty. A relative `root` is taken from the current directory; whether it exists is not checked.
#[must_use]
pub fn serve_defaults(root: PathBuf, listen: Vec<ListenAddress>) -> Config {
    let root = std::path::absolute(&root).unwrap_or(root);
    let action = Action::Files(FilesAction { listing: true, ..FilesAction::new(root) });
    let route = Route::new(RoutePath::Prefix("/".to_owned()), action);
    let mut config = document::defaults();
    config.listen =
        listen.into_iter().zip(0..=u8::MAX).map(|(address, seat)| Listen { seat, ..Listen::from(address) }).collect();
    config.sites = vec![Site { hosts: Vec::new(), routes: vec![route] }];
    config.master.pid_file = None;
    config.master.control_socket = None;
    config.master.crash_dir = None;
    config.log.access = Sink::Off;
    config.log.error = Sink::Stderr;
    config
}
