//! How this program was executed, kept so that another can be executed the same way.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::unistd::{fchdir, fexecve};

use phalanx_shared::state::heritage::TAKE_OVER;
use phalanx_shared::state::lock;
use phalanx_shared::sys::fallback::{Fallback, Reason};
use serde::{Deserialize, Serialize};

use super::{REHEARSE, RETURNED};

/// What a program is executed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manner {
    pub(crate) arguments: Vec<Vec<u8>>,
    /// Names and values.
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Arguments, environment, working directory and file of this program.
pub(crate) struct Origin {
    manner: Manner,
    directory: Option<OwnedFd>,
    /// The file as it was: another may stand under its name by now.
    program: Option<OwnedFd>,
    path: PathBuf,
}

impl Origin {
    /// Of this process, whose role is known ([`Role`](super::Role)): before it leaves its working directory and overwrites its
    /// arguments.
    pub(crate) fn of_this_process() -> Origin {
        let path = std::env::current_exe().unwrap_or_default();
        // What the kernel says of a file that has been replaced since.
        let path = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(path.clone(), PathBuf::from);
        let manner = Manner {
            arguments: std::env::args_os().map(OsString::into_vec).collect(),
            environment: std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())).collect(),
        };
        Origin {
            manner,
            directory: File::open(".").ok().map(OwnedFd::from),
            program: File::open("/proc/self/exe").ok().map(OwnedFd::from),
            path,
        }
    }

    /// The file that this program was executed from; what an upgrade without a path executes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// That file, whatever its name stands for now.
    pub(crate) fn program(&self) -> Option<&OwnedFd> {
        self.program.as_ref()
    }

    /// How this program was executed.
    pub(crate) fn manner(&self) -> &Manner {
        &self.manner
    }

    /// Puts that of another program in its place, for what will be executed.
    pub(crate) fn set_manner(&mut self, manner: &Manner) -> Manner {
        std::mem::replace(&mut self.manner, manner.clone())
    }

    /// Executes `program` in this process with the arguments, in the directory and with the environment that this one was
    /// executed with; returns if that fails. `words` are added to the environment.
    pub(crate) fn execute(&self, program: &impl AsFd, words: &[(&str, String)]) -> nix::Result<Infallible> {
        let (arguments, environment) = self.manner.texts(words)?;
        let before = File::open(".").ok();
        if let Some(directory) = &self.directory {
            fchdir(directory)?;
        }
        let outcome = fexecve(program, &arguments, &environment);
        // Where it was, as if nothing had happened.
        if let Some(before) = before {
            let _stays = fchdir(before);
        }
        outcome
    }

    /// What this process is to become when it dies: `program`, executed as `manner` says to take over by `state`, which goes
    /// with it as `passed` do.
    pub(crate) fn fallback(
        &self,
        program: RawFd,
        manner: &Manner,
        state: OwnedFd,
        passed: Vec<RawFd>,
    ) -> nix::Result<Fallback> {
        let (arguments, environment) = manner.texts(&[(TAKE_OVER, state.as_raw_fd().to_string())])?;
        let say = |reason: Reason| {
            let why = match reason {
                Reason::Signal(nix::sys::signal::Signal::SIGALRM) => "its master hung".to_owned(),
                Reason::Signal(signal) => format!("its master died of {signal}"),
                Reason::Exit => "its master ended".to_owned(),
                Reason::Panic => "its master panicked, as the log says".to_owned(),
            };
            CString::new(format!("{RETURNED}={why}")).unwrap_or_default()
        };
        let directory = self.directory.as_ref().map(AsRawFd::as_raw_fd);
        let fallback = Fallback::new(program, directory, arguments, environment, say, passed, state);
        // Whoever looks who holds a lock finds this very process.
        Ok(fallback.before(lock::abandon))
    }

    /// As [`Origin::execute`], for a program that is to take over by the state behind `state`.
    pub(crate) fn execute_to_take_over(&self, program: &impl AsFd, state: RawFd) -> nix::Result<Infallible> {
        self.execute(program, &[(TAKE_OVER, state.to_string())])
    }

    /// As [`Origin::execute`], for a program that is to show that it could.
    pub(crate) fn execute_to_rehearse(
        &self,
        program: &impl AsFd,
        state: RawFd,
        outcome: RawFd,
    ) -> nix::Result<Infallible> {
        self.execute(program, &[(REHEARSE, format!("{state},{outcome}"))])
    }
}

impl Manner {
    /// For execve(2): arguments, and the environment with `words` added.
    fn texts(&self, words: &[(&str, String)]) -> nix::Result<(Vec<CString>, Vec<CString>)> {
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| nix::errno::Errno::EINVAL);
        let own = self.environment.iter().map(|(name, value)| [name, &b"="[..], value].concat());
        let words = words.iter().map(|(name, value)| format!("{name}={value}").into_bytes());
        let arguments = self.arguments.iter().cloned().map(text).collect::<Result<_, _>>()?;
        Ok((arguments, own.chain(words).map(text).collect::<Result<_, _>>()?))
    }
}
