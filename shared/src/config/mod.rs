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
pub use route::parse_route_path;
pub use workers::check_workers;

/// Reads a duration as a configuration has it: `"5m"`, `"1.5s"`.
///
/// # Errors
/// What is wrong with it and what to write instead, in one line.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    units::duration(text).map_err(|refusal| format!("{}; {}", refusal.text, refusal.hint))
}

/// Where is listened if nobody says where: loopback, so that nothing is open to others by mistake.
pub const HERE: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);

/// Reads and checks the configuration in the file `path`, which may hold up to 1 MiB of UTF-8. `known` is what the program
/// has that a configuration may name.
///
/// # Errors
/// Every problem of the file, in the order of its lines; or the one reason why it cannot be read.
pub fn load(path: &Path, known: Known<'_>) -> Result<Config, Problems> {
    let text = file::read(path).map_err(|problem| Problems(vec![problem]))?;
    parse(&text, path, known)
}

/// Checks the configuration `text`, which was written in the file `origin`: problems name that file, and relative paths
/// are taken from its directory. The file itself is not touched. `known` as in [`load`].
///
/// # Errors
/// Every problem of the text, in the order of its lines.
pub fn parse(text: &str, origin: &Path, known: Known<'_>) -> Result<Config, Problems> {
    document::parse(text, origin, known)
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
    config.master.pid_file = None;
    config.master.control_socket = None;
    complete_settings(config, listen, vec![route], Known::default())
}

/// What a program runs that brings its configuration itself, with the tables of `text` as far as it has some: nothing is left on
/// disk that is not named there, and neither listeners nor sites have to be there. `known` as in [`load`].
///
/// # Errors
/// Every problem of the text; `origin` is what they say it stands in.
pub fn settings(text: &str, origin: &Path, known: Known<'_>) -> Result<Config, Problems> {
    document::settings(text, origin, known)
}

/// What comes after everything else in the making of a [`settings`]: listeners, the routes of every host, and the app of `known`
/// that no route leads to.
#[must_use]
pub fn complete_settings(
    mut config: Config,
    listen: Vec<ListenAddress>,
    routes: Vec<Route>,
    known: Known<'_>,
) -> Config {
    config.listen.extend(listen.into_iter().map(Listen::from));
    config.listen.iter_mut().zip(0..=u8::MAX).for_each(|(listen, seat)| listen.seat = seat);
    if !routes.is_empty() {
        match config.sites.iter_mut().find(|site| site.hosts.is_empty()) {
            Some(site) => site.routes.extend(routes),
            None => config.sites.push(Site { hosts: Vec::new(), routes }),
        }
    }
    document::route_to_app(&mut config, known);
    config
}
