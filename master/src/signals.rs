//! The signals that mean something to the master: one table of signal, name and meaning. Handlers only record and wake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    StopGracefully,
    StopFast,
    Reload,
    ReopenLogs,
    Upgrade,
    OneMore,
    OneLess,
    /// A child has ended.
    Reap,
}

const TABLE: [(i32, &str, Wish); 9] = [
    (SIGTERM, "SIGTERM", Wish::StopGracefully),
    (SIGQUIT, "SIGQUIT", Wish::StopGracefully),
    (SIGINT, "SIGINT", Wish::StopFast),
    (SIGHUP, "SIGHUP", Wish::Reload),
    (SIGUSR1, "SIGUSR1", Wish::ReopenLogs),
    (SIGUSR2, "SIGUSR2", Wish::Upgrade),
    (SIGTTIN, "SIGTTIN", Wish::OneMore),
    (SIGTTOU, "SIGTTOU", Wish::OneLess),
    (SIGCHLD, "SIGCHLD", Wish::Reap),
];

/// The signals that have come, behind a pipe that wakes the poll loop.
pub(crate) struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Takes up all signals of the table.
    pub(crate) fn take_up() -> io::Result<Signals> {
        let (read, write) = UnixStream::pair()?;
        let numbers = TABLE.iter().map(|(number, ..)| *number);
        Ok(Signals(SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?))
    }

    /// Readable when a signal has come.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// What has been asked for since the last call, with the signal's name.
    pub(crate) fn wishes(&mut self) -> Vec<(Wish, &'static str)> {
        let came: Vec<i32> = self.0.pending().collect();
        let wish = |number| TABLE.iter().find(|entry| entry.0 == number).map(|entry| (entry.2, entry.1));
        came.into_iter().filter_map(wish).collect()
    }
}
