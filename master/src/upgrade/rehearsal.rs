//! A program shows in a child that it could take over: it reads the state and the configuration, boots one worker and ends.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, setpgid};
use phalanx_shared::sys::process::{self, Born};

use super::origin::Origin;
use super::pass_on;
use super::state::State;
use crate::daemonize::{Herald, Outcome, parse_outcome};
use crate::verdict::Ending;

/// Bytes of an outcome.
const MAX_OUTCOME: usize = 64 * 1024;

/// A rehearsal under way.
pub(crate) struct Rehearsal {
    pid: Pid,
    outcome: std::fs::File,
    said: Vec<u8>,
    hung_up: bool,
    ending: Option<Ending>,
    deadline: Instant,
    patience: Duration,
}

impl Rehearsal {
    /// Executes `program` in a child that is to say within `patience` whether it could take over.
    pub(crate) fn begin(
        origin: &Origin,
        program: &OwnedFd,
        state: &State,
        patience: Duration,
    ) -> Result<Rehearsal, String> {
        let fail = |error: std::io::Error| format!("rehearse: {error}");
        let (reader, writer) = std::io::pipe().map_err(fail)?;
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        let state = state.write().map_err(fail)?;
        let mask = process::block_signals().map_err(fail)?;
        let born = process::fork();
        if let Ok(Born::Child) = born {
            become_rehearsal(origin, program, &state, writer);
        }
        process::set_signal_mask(&mask).map_err(fail)?;
        match born.map_err(fail)? {
            Born::Parent(pid) => Ok(Rehearsal {
                pid,
                outcome: reader.into(),
                said: Vec::new(),
                hung_up: false,
                ending: None,
                deadline: Instant::now() + patience,
                patience,
            }),
            Born::Child => Err("rehearse: the child returned".to_owned()),
        }
    }

    /// Readable when it has said something; none when it has nothing more to say.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        (!self.hung_up).then(|| self.outcome.as_fd())
    }

    /// Something can be read.
    pub(crate) fn hear(&mut self) {
        let mut bytes = [0; 4096];
        match self.outcome.read(&mut bytes) {
            Ok(count) if count > 0 && self.said.len() < MAX_OUTCOME => self.said.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => self.hung_up = true,
        }
    }

    /// Whether `pid` was its process, which has ended.
    pub(crate) fn ended(&mut self, pid: Pid, ending: Ending) -> bool {
        let own = self.pid == pid;
        if own {
            // Just reaped: nobody has got its number yet.
            let _nobody_left = killpg(self.pid, Signal::SIGKILL);
            self.ending = Some(ending);
        }
        own
    }

    /// How it went; none while it goes on.
    pub(crate) fn verdict(&self) -> Option<Result<(), String>> {
        let late = Instant::now() >= self.deadline;
        // What it has said is heard out first: its end may be told before its words.
        if let Some(ending) = self.ending.filter(|_| self.hung_up || late) {
            return Some(match parse_outcome(&self.said) {
                Some(Outcome::Ready(_)) if ending == Ending::Exited(0) => Ok(()),
                Some(Outcome::Failed(why)) => Err(why),
                _ => Err(format!("the program ended before it was ready: {ending}")),
            });
        }
        late.then(|| Err(format!("the program was not ready within workers.boot_timeout ({:?})", self.patience)))
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        // Whatever it has started is of its group. When it has ended its number may be another's, and what it left behind has
        // been told by the pipe of its own master.
        if self.ending.is_none() {
            let _nobody_left = killpg(self.pid, Signal::SIGKILL);
        }
    }
}

/// In the child.
fn become_rehearsal(origin: &Origin, program: &OwnedFd, state: &OwnedFd, outcome: OwnedFd) -> ! {
    let _leads_already = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    let executed = prepare([program, state, &outcome])
        .and_then(|()| Ok(origin.execute_to_rehearse(program, state.as_raw_fd(), outcome.as_raw_fd())?));
    let Err(error) = executed;
    Herald::over(outcome).failed(&format!("execute the program: {error}"));
    process::exit_now(1)
}

/// What of the table goes with it; the rest closes by itself.
fn prepare(passed: [&OwnedFd; 3]) -> std::io::Result<()> {
    process::reset_dispositions(&[Signal::SIGPIPE])?;
    for fd in passed {
        pass_on(fd, true)?;
    }
    process::set_signal_mask(&nix::sys::signal::SigSet::empty())
}
