//! Opening: from a decoded path to what lies there, never outside the root.
//!
//! The kernel keeps the promise (openat2(2), `RESOLVE_BENEATH`): neither `..` nor a symbolic link leads out, whoever
//! changes the tree meanwhile. Links that stay below the root are followed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use super::representation::Representation;

/// How often a lookup is repeated that a rename ran into (EAGAIN of openat2).
const MAX_RETRIES: usize = 3;

/// A `files` route that cannot be served: its root cannot be opened. The cause is the source.
#[derive(Debug)]
pub struct OpenRootError {
    root: PathBuf,
    source: io::Error,
}

impl fmt::Display for OpenRootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open the root {}", self.root.display())
    }
}

impl std::error::Error for OpenRootError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A directory, held open: renaming it or mounting over its path changes nothing for those who are served.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// What lies at a path.
#[derive(Debug)]
pub(super) enum Found {
    File(Representation),
    Directory,
}

/// Why nothing that can be served does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nothing there, nothing that is a file, or nothing that may be reached from here.
    Absent,
    /// The worker's user may not read it.
    Forbidden,
    /// The system is short of descriptors or memory.
    Busy,
    /// Anything else, a failing disk for one.
    Broken,
}

impl Trouble {
    pub(super) fn status(self) -> u16 {
        match self {
            Trouble::Absent => 404,
            Trouble::Forbidden => 403,
            Trouble::Busy => 503,
            Trouble::Broken => 500,
        }
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Trouble {
        match errno {
            // EXDEV: the path left the root. ENXIO, ENODEV: a socket, or a device that is not there.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV | Errno::ENAMETOOLONG => Trouble::Absent,
            Errno::ENXIO | Errno::ENODEV => Trouble::Absent,
            Errno::EACCES | Errno::EPERM => Trouble::Forbidden,
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR => Trouble::Busy,
            _ => Trouble::Broken,
        }
    }
}

impl Root {
    /// Its descriptor's number.
    pub(super) fn descriptor(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }

    /// Opens `path` and makes sure that lookups below it work, so that a kernel or a sandbox without openat2(2) is
    /// found out now and not by a request.
    pub(super) fn open(path: &Path) -> Result<Root, OpenRootError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = open(path, flags, Mode::empty())
            .map(Root)
            .and_then(|root| root.look_up(".", OFlag::O_PATH | OFlag::O_CLOEXEC).map(|_| root));
        opened.map_err(|errno| OpenRootError { root: path.to_owned(), source: errno.into() })
    }

    /// What lies at `path`, which begins with `/`, below this directory.
    pub(super) fn find(&self, path: &str) -> Result<Found, Trouble> {
        let relative = path.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(".");
        // O_NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(self.look_up(relative, flags)?);
        let metadata = file.metadata().map_err(|_| Trouble::Broken)?;
        match metadata.file_type() {
            kind if kind.is_file() => Ok(Found::File(Representation::new(file, &metadata, path))),
            kind if kind.is_dir() => Ok(Found::Directory),
            _ => Err(Trouble::Absent),
        }
    }

    fn look_up(&self, relative: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for _ in 0..MAX_RETRIES {
            match openat2(&self.0, relative, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
        openat2(&self.0, relative, how)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_means_one_of_four_things() {
        for (errno, status) in [
            (Errno::ENOENT, 404),
            (Errno::ENOTDIR, 404),
            (Errno::ELOOP, 404),
            (Errno::EXDEV, 404),
            (Errno::ENAMETOOLONG, 404),
            (Errno::EACCES, 403),
            (Errno::EMFILE, 503),
            (Errno::ENFILE, 503),
            (Errno::EIO, 500),
        ] {
            assert_eq!(Trouble::from(errno).status(), status, "{errno}");
        }
    }

    #[test]
    fn a_root_has_to_be_a_directory() {
        let error = Root::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.to_string(), "open the root /dev/null");
        assert!(std::error::Error::source(&error).is_some());
    }
}
