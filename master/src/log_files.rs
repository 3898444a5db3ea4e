//! The log files: opened by the master, as whom it runs, and handed to workers as descriptors; opened again on SIGUSR1.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use phalanx_shared::config::{Log, Sink};
use phalanx_shared::log;
use phalanx_shared::sys::process;

/// The descriptor that every process logs to.
pub(crate) const ERROR_LOG: RawFd = 2;

/// The log files of the service.
pub(crate) struct LogFiles {
    config: Log,
    access: Option<OwnedFd>,
}

impl LogFiles {
    /// Opens what the configuration names. The error log takes the place of standard error.
    pub(crate) fn open(config: &Log) -> Result<LogFiles, String> {
        let files = LogFiles { config: config.clone(), access: open_access(&config.access)? };
        files.redirect_errors()?;
        log::configure(ERROR_LOG, config.level);
        Ok(files)
    }

    /// Where access log lines go.
    pub(crate) fn access(&self) -> Option<RawFd> {
        self.access.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Opens the files again under the same numbers of the master's own table. Returns the numbers that changed what they
    /// name, for the keepers' tables.
    pub(crate) fn reopen(&mut self) -> Result<Vec<RawFd>, String> {
        let mut changed = Vec::new();
        if let (Sink::File(path), Some(access)) = (&self.config.access, &self.access) {
            let fresh = append(path)?;
            process::install(fresh.as_fd(), access.as_raw_fd()).map_err(|error| error.to_string())?;
            changed.push(access.as_raw_fd());
        }
        if matches!(self.config.error, Sink::File(_)) {
            self.redirect_errors()?;
            changed.push(ERROR_LOG);
        }
        Ok(changed)
    }

    fn redirect_errors(&self) -> Result<(), String> {
        let target = match &self.config.error {
            Sink::Stderr => return Ok(()),
            Sink::Off => OwnedFd::from(null().map_err(|error| format!("open /dev/null: {error}"))?),
            Sink::Stdout => io::stdout().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?,
            Sink::File(path) => append(path)?,
        };
        nix::unistd::dup2_stderr(target).map_err(|error| format!("redirect the log: {error}"))
    }
}

fn open_access(sink: &Sink) -> Result<Option<OwnedFd>, String> {
    let duplicate = |fd: io::Result<OwnedFd>| fd.map(Some).map_err(|error| format!("open the access log: {error}"));
    match sink {
        Sink::Off => Ok(None),
        Sink::Stdout => duplicate(io::stdout().as_fd().try_clone_to_owned()),
        Sink::Stderr => duplicate(io::stderr().as_fd().try_clone_to_owned()),
        Sink::File(path) => append(path).map(Some),
    }
}

fn append(path: &Path) -> Result<OwnedFd, String> {
    let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    file.map(OwnedFd::from).map_err(|error| format!("open the log file {}: {error}", path.display()))
}

fn null() -> io::Result<std::fs::File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}
