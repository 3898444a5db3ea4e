//! How this program was executed, kept so that another can be executed the same way.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{fchdir, fexecve};

use phalanx_shared::sys::fallback::{Fallback, Reason};

use super::{REHEARSE, RETURNED, TAKE_OVER};

/// Names and values of an environment.
pub(crate) type Environment = Vec<(Vec<u8>, Vec<u8>)>;

/// Arguments, environment, working directory and file of this program.
pub(crate) struct Origin {
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<OwnedFd>,
    /// The file as it was: another may stand under its name by now.
    program: Option<OwnedFd>,
    path: PathBuf,
}

impl Origin {
    /// Of this process. Before it leaves its working directory and overwrites its arguments.
    pub(crate) fn of_this_process() -> Origin {
        let path = std::env::current_exe().unwrap_or_default();
        // What the kernel says of a file that has been replaced since.
        let path = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(path.clone(), PathBuf::from);
        Origin {
            arguments: std::env::args_os().collect(),
            environment: std::env::vars_os()
                .filter(|(name, _)| ![TAKE_OVER, REHEARSE, RETURNED].iter().any(|own| name == own))
                .collect(),
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

    /// The environment that this program was executed with.
    pub(crate) fn environment(&self) -> Environment {
        let bytes = |(name, value): &(OsString, OsString)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        self.environment.iter().map(bytes).collect()
    }

    /// Puts the environment of another program in the place of this one's, for what will be executed.
    pub(crate) fn set_environment(&mut self, environment: &Environment) {
        let text =
            |(name, value): &(Vec<u8>, Vec<u8>)| (OsString::from_vec(name.clone()), OsString::from_vec(value.clone()));
        self.environment = environment.iter().map(text).collect();
    }

    /// Executes `program` in this process with the arguments, in the directory and with the environment that this one was
    /// executed with; returns if that fails. `words` are added to the environment.
    pub(crate) fn execute(&self, program: &impl AsFd, words: &[(&str, String)]) -> nix::Result<Infallible> {
        let mut environment = self.environment();
        environment.extend(words.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())));
        let (arguments, environment) = (self.arguments()?, texts(&environment)?);
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

    fn arguments(&self) -> nix::Result<Vec<CString>> {
        self.arguments.iter().map(|argument| text(argument.as_bytes().to_vec())).collect()
    }

    /// What this process is to become when it dies: `program`, executed with `environment` to take over by `state`, which goes
    /// with it as `passed` do.
    pub(crate) fn fallback(
        &self,
        program: RawFd,
        environment: &Environment,
        state: OwnedFd,
        passed: Vec<RawFd>,
    ) -> nix::Result<Fallback> {
        let mut environment = environment.clone();
        let number = state.as_raw_fd().to_string();
        environment.push((TAKE_OVER.as_bytes().to_vec(), number.into_bytes()));
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
        Ok(Fallback::new(program, directory, self.arguments()?, texts(&environment)?, say, passed, state))
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

fn text(bytes: Vec<u8>) -> nix::Result<CString> {
    CString::new(bytes).map_err(|_| nix::errno::Errno::EINVAL)
}

fn texts(environment: &Environment) -> nix::Result<Vec<CString>> {
    environment.iter().map(|(name, value)| text([name, &b"="[..], value].concat())).collect()
}
