//! The pid file: locked for as long as the master lives, so that a stale one is told from a running service's.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// A pid file that is this process's. Closing it (by dropping, or by dying) frees the lock.
pub(crate) struct PidFile {
    path: PathBuf,
    lock: Flock<File>,
    /// Of a master that died and could not remove it.
    left_by: Option<String>,
}

impl PidFile {
    /// Takes the pid file `path`. An error when a running service holds it, with its pid.
    pub(crate) fn take(path: &Path) -> Result<PidFile, String> {
        make_parent(path)?;
        // Bounded: each round lost means that another process removed the file between our open and our lock.
        for _ in 0..16 {
            let fail = |error: std::io::Error| format!("open the pid file {}: {error}", path.display());
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
                .open(path)
                .map_err(fail)?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((mut file, _)) => return Err(held(path, &mut file)),
            };
            if is_still(path, &lock) {
                let left_by = Some(pid_in(&mut lock)).filter(|pid| pid.parse::<i32>().is_ok());
                return Ok(PidFile { path: path.to_owned(), lock, left_by });
            }
        }
        Err(format!("the pid file {} keeps vanishing", path.display()))
    }

    /// The pid file that the program before this one held in this very process, locked already.
    pub(crate) fn inherit(path: &Path, fd: OwnedFd) -> Result<PidFile, String> {
        let fail = |error: nix::Error| format!("keep the pid file {}: {error}", path.display());
        // The lock is the open file's, not the program's: taking it again changes nothing (flock(2)).
        let lock = Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock).map_err(|(file, error)| {
            // Another program may be returned to, and needs it.
            std::mem::forget(file);
            fail(error)
        })?;
        Ok(PidFile { path: path.to_owned(), lock, left_by: None })
    }

    /// The pid of the master whose file it was, if that could not remove it: its workers may still end what they have.
    pub(crate) fn left_by(&self) -> Option<&str> {
        self.left_by.as_deref()
    }

    /// Its descriptor.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.lock.as_raw_fd()
    }

    /// Writes this process's id into it.
    pub(crate) fn write(&mut self) -> Result<(), String> {
        let fail = |error: std::io::Error| format!("write the pid file {}: {error}", self.path.display());
        self.lock.set_len(0).map_err(fail)?;
        self.lock.rewind().map_err(fail)?;
        writeln!(self.lock, "{}", std::process::id()).map_err(fail)
    }

    /// Removes it from the file system, still locked.
    pub(crate) fn remove(&self) {
        let _gone_already = std::fs::remove_file(&self.path);
    }
}

fn held(path: &Path, file: &mut File) -> String {
    let pid = pid_in(file);
    let holder = if pid.is_empty() { "a service that is starting".to_owned() } else { format!("pid {pid}") };
    format!(
        "already running: {holder} holds the pid file {}\n  hint: phalanx stop, or choose another master.pid_file",
        path.display()
    )
}

/// What the file says; nothing of one that cannot be read.
fn pid_in(file: &mut File) -> String {
    let mut text = String::new();
    let _unreadable = file.take(32).read_to_string(&mut text);
    text.trim().to_owned()
}

/// Whether the locked file is the one that stands at `path`: its last holder may have removed it meanwhile.
fn is_still(path: &Path, lock: &Flock<File>) -> bool {
    match (std::fs::metadata(path), lock.metadata()) {
        (Ok(there), Ok(ours)) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
        _ => false,
    }
}

/// Creates the directory that `path` is to stand in, if it is missing.
pub(crate) fn make_parent(path: &Path) -> Result<(), String> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .map_err(|error| format!("create the directory {}: {error}", parent.display()))
}
