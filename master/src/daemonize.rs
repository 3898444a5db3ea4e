//! Becoming a daemon: two forks and a session of its own, while the program that was started waits for the outcome.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::wait::waitpid;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use phalanx_shared::sys::process::{self, Born, fork};

/// Which process this is after [`daemonize`].
pub(crate) enum Side {
    /// The program that was started.
    Starter(Outcome),
    /// The daemon.
    Daemon(Herald),
}

/// How the daemon's start went.
pub(crate) enum Outcome {
    Ready(String),
    Failed(String),
}

/// The daemon's word to its starter; may be said once. Dropping it unsaid is a failed start.
pub(crate) struct Herald(Option<PipeWriter>);

const READY: u8 = b'+';
const FAILED: u8 = b'-';
/// Bytes of a reason.
const MAX_REASON: u64 = 64 * 1024;

impl Herald {
    /// For a service in the foreground: nobody waits.
    pub(crate) fn silent() -> Herald {
        Herald(None)
    }

    /// To whoever reads the other end of this pipe.
    pub(crate) fn over(pipe: OwnedFd) -> Herald {
        Herald(Some(pipe.into()))
    }

    /// Whether somebody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.is_some()
    }

    /// The service is ready.
    pub(crate) fn ready(&mut self, text: &str) {
        self.say(READY, text);
    }

    /// The service could not start, and why.
    pub(crate) fn failed(&mut self, why: &str) {
        self.say(FAILED, why);
    }

    fn say(&mut self, kind: u8, text: &str) {
        if let Some(mut pipe) = self.0.take() {
            let _starter_gone = pipe.write_all(&[kind]).and_then(|()| pipe.write_all(text.as_bytes()));
        }
    }
}

/// Forks twice. The starter gets the outcome, the daemon goes on in `/`, in a session without a terminal, its standard input
/// and output on /dev/null. Standard error stays, for messages until the log takes its place.
pub(crate) fn daemonize() -> std::io::Result<Side> {
    let (reader, writer) = std::io::pipe()?;
    if let Born::Parent(child) = fork()? {
        drop(writer);
        let _status = waitpid(child, None);
        return Ok(Side::Starter(hear(reader)));
    }
    drop(reader);
    setsid()?;
    if let Born::Parent(_) = fork()? {
        process::exit_now(0);
    }
    std::env::set_current_dir("/")?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(Side::Daemon(Herald(Some(writer))))
}

/// Lets go of the terminal, if standard error is one: its hang-up would not reach a daemon, its closing would.
pub(crate) fn leave_terminal() {
    use std::io::IsTerminal as _;
    if std::io::stderr().is_terminal()
        && let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null")
    {
        let _stays = dup2_stderr(&null);
    }
}

fn hear(reader: PipeReader) -> Outcome {
    let mut bytes = Vec::new();
    let _cut = reader.take(MAX_REASON).read_to_end(&mut bytes);
    let died = || Outcome::Failed("the daemon died before it was ready; its log may say why".to_owned());
    parse_outcome(&bytes).unwrap_or_else(died)
}

/// What a [`Herald`] has said; none if that was nothing.
pub(crate) fn parse_outcome(bytes: &[u8]) -> Option<Outcome> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match bytes.split_first()? {
        (&READY, rest) => Some(Outcome::Ready(text(rest))),
        (&FAILED, rest) => Some(Outcome::Failed(text(rest))),
        _ => None,
    }
}
