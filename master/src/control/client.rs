//! Asking a running service.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Answer, Command};
use crate::cli;

/// Longer than any drain: the master answers when the outcome is known.
const PATIENCE: Duration = Duration::from_secs(600);
/// An answer longer than this is none.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Error {
    /// Nobody listens on the socket.
    NotRunning(PathBuf),
    /// The socket may not be used by this user.
    Denied(PathBuf),
    /// The service went away, or speaks otherwise.
    Broken(io::Error),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::NotRunning(_) => cli::NOT_RUNNING,
            Error::Denied(_) | Error::Broken(_) => cli::FAILED,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotRunning(path) => write!(f, "not running: nobody answers on {}", path.display()),
            Error::Denied(path) => {
                write!(f, "{}: permission denied\n  hint: ask as root or as the user who started it", path.display())
            }
            Error::Broken(error) => write!(f, "the service did not answer: {error}"),
        }
    }
}

/// Asks and waits for the outcome.
pub(crate) fn ask(socket: &Path, command: &Command) -> Result<Answer, Error> {
    let mut stream = connect(socket)?;
    exchange(&mut stream, command).map_err(Error::Broken)
}

/// Has everything that happens written to `to`, a line each, until the service has gone or nobody reads any more.
pub(crate) fn listen(socket: &Path, to: &mut impl Write) -> Result<(), Error> {
    let mut stream = connect(socket)?;
    let listen = || -> io::Result<()> {
        let mut line = serde_json::to_vec(&Command::Events)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        for line in BufReader::new(stream).lines() {
            if writeln!(to, "{}", line?).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
        Ok(())
    };
    listen().map_err(Error::Broken)
}

fn connect(socket: &Path) -> Result<UnixStream, Error> {
    UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::Denied(socket.to_owned()),
        _ => Error::NotRunning(socket.to_owned()),
    })
}

fn exchange(stream: &mut UnixStream, command: &Command) -> io::Result<Answer> {
    // A canary takes as long as somebody wants it to, and others wait for it.
    let may_take_long = matches!(command, Command::Reload { .. } | Command::Upgrade { .. } | Command::Scale { .. });
    stream.set_read_timeout((!may_take_long).then_some(PATIENCE))?;
    // Before it is told to go: the number is certainly its own.
    let master = matches!(command, Command::Stop { .. }).then(|| process_of(stream)).flatten();
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(MAX_ANSWER));
    reader.read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"));
    }
    if let Some(master) = master {
        // That it hangs up is not enough: a process closes its descriptors some time before it has ended.
        poll(
            &mut [PollFd::new(master.as_fd(), PollFlags::POLLIN)],
            PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX),
        )?;
    }
    Ok(serde_json::from_str(&answer)?)
}

/// The process that listens on the socket; readable once it has ended (`pidfd_open(2)`). None when it cannot be told, for
/// instance from another namespace.
fn process_of(stream: &UnixStream) -> Option<OwnedFd> {
    let pid = getsockopt(stream, PeerCredentials).ok()?.pid();
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}
