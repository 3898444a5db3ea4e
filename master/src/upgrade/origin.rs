//! How this program was executed, kept so that another can be executed the same way.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{fchdir, fexecve};

use super::{REHEARSE, TAKE_OVER};

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
            environment: std::env::vars_os().filter(|(name, _)| name != TAKE_OVER && name != REHEARSE).collect(),
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
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| nix::errno::Errno::EINVAL);
        let arguments = self.arguments.iter().map(|argument| text(argument)).collect::<Result<Vec<_>, _>>()?;
        let mut environment = Vec::new();
        for (name, value) in &self.environment {
            let word = [name.as_bytes(), b"=", value.as_bytes()].concat();
            environment.push(CString::new(word).map_err(|_| nix::errno::Errno::EINVAL)?);
        }
        for (name, value) in words {
            environment.push(text(OsStr::new(&format!("{name}={value}")))?);
        }
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
