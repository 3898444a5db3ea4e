//! Upgrade: the master executes another program in its place and hands it all that the service consists of, in the same process
//! (`execve(2)`: children, descriptors and the process id stay). The new program boots workers of its own beside those that
//! serve; they take over connection by connection, as after the death of a keeper.
//!
//! Before that the new program is rehearsed in a child: it has to read the configuration and what it will be handed, and to
//! bring one worker to READY. What goes wrong after it has taken over (a worker that does not become ready, or that dies of itself
//! soon after) has it execute the old program again, by the descriptor of its file, in the same way; and so does its own death, by
//! whatever signal can be handled, and its silence ([`way_back`]).

pub(crate) mod fault;
pub(crate) mod origin;
pub(crate) mod rehearsal;
pub(crate) mod state;
pub(crate) mod way_back;

use std::os::fd::{AsFd, OwnedFd, RawFd};

use phalanx_shared::state::heritage::TAKE_OVER;
use phalanx_shared::sys::{process, table};

/// Why this program is returned to, if the one that was executed after it died.
const RETURNED: &str = "PHALANX_RETURNED";
/// The same, and the pipe for the outcome, for a program that is rehearsed.
const REHEARSE: &str = "PHALANX_REHEARSE";

/// What this program was executed for.
pub(crate) enum Role {
    /// To start the service.
    Start,
    /// To go on with one that runs in this very process; `returned`: the program that did so before died of that.
    TakeOver { state: OwnedFd, returned: Option<String> },
    /// To show that it could.
    Rehearse { state: OwnedFd, outcome: OwnedFd },
}

impl Role {
    /// From the environment, where whatever this program executes does not find it any more. Called once, when the shared state that
    /// is handed on has been read, and before there is a second thread.
    pub(crate) fn of_this_program() -> Result<Role, String> {
        let role = Role::found();
        [TAKE_OVER, RETURNED, REHEARSE].into_iter().for_each(process::forget_variable);
        role
    }

    fn found() -> Result<Role, String> {
        if let Some(numbers) = numbers_in(TAKE_OVER)? {
            return match numbers[..] {
                [state] => Ok(Role::TakeOver { state: inherited(state)?, returned: std::env::var(RETURNED).ok() }),
                _ => Err(format!("{TAKE_OVER}: one descriptor is expected")),
            };
        }
        match numbers_in(REHEARSE)?.as_deref() {
            None => Ok(Role::Start),
            Some([state, outcome]) => Ok(Role::Rehearse { state: inherited(*state)?, outcome: inherited(*outcome)? }),
            Some(_) => Err(format!("{REHEARSE}: two descriptors are expected")),
        }
    }
}

fn numbers_in(name: &str) -> Result<Option<Vec<RawFd>>, String> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    let numbers = text.split(',').map(str::parse).collect::<Result<Vec<RawFd>, _>>();
    numbers.map(Some).map_err(|_| format!("{name}={text}: set by Phalanx for itself, and by nobody else"))
}

/// Takes a descriptor that the program before this one left open, close-on-exec from now on.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, String> {
    let fail = |error| format!("descriptor {number}, handed over by the program before this one: {error}");
    if number <= 2 {
        return Err(fail(nix::errno::Errno::EBADF));
    }
    way_back::or_return(pass_on(&table::borrow(number), false).map_err(fail))?;
    Ok(table::adopt(number))
}

/// Whether a descriptor is to stay open over the next execve.
pub(crate) fn pass_on(fd: &impl AsFd, pass: bool) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flags = if pass { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(flags)).map(drop)
}
