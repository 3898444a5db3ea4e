//! Opening: from a decoded path to what lies there, never outside the root.
//!
//! The kernel keeps the promise (openat2(2), `RESOLVE_BENEATH`): neither `..` nor a symbolic link leads out, whoever
//! changes the tree meanwhile. Links that stay below the root are followed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use phalanx_shared::sys::table::{self, borrow};

/// How often a lookup is repeated that a rename ran into (EAGAIN of openat2).
const MAX_RETRIES: usize = 3;

/// Something that a `files` route needs cannot be opened. The cause is the source.
#[derive(Debug)]
pub struct OpenRootError {
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

impl fmt::Display for OpenRootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open the {} {}", self.what, self.path.display())
    }
}

impl std::error::Error for OpenRootError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Whether a disk, or what takes its place, may be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    /// Only what is in the caches of the kernel; the rest is [`Trouble::Cold`].
    Cached,
    /// However long it takes.
    Any,
}

/// A directory, held open: renaming it or mounting over its path changes nothing for those who are served.
#[derive(Debug, Clone)]
pub(super) struct Root(Arc<Held>);

/// Its descriptor, by number: a process that is a copy of this one takes another.
#[derive(Debug)]
struct Held(AtomicI32);

impl Drop for Held {
    fn drop(&mut self) {
        table::close(self.0.load(Ordering::Acquire));
    }
}

/// What lies at a path.
pub(super) enum Found {
    File(File, FileStat),
    Directory(OwnedFd),
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
    /// Only a disk knows. Told to who asked for [`Disk::Cached`] alone.
    Cold,
}

impl Trouble {
    pub(super) fn status(self) -> u16 {
        match self {
            Trouble::Absent => 404,
            Trouble::Forbidden => 403,
            Trouble::Busy | Trouble::Cold => 503,
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
    pub(super) fn descriptor(&self) -> RawFd {
        self.0.0.load(Ordering::Acquire)
    }

    fn fd(&self) -> BorrowedFd<'static> {
        borrow(self.descriptor())
    }

    /// Goes on with a descriptor of its own: the one that it has is the process's of which this is a copy.
    pub(super) fn take_own_descriptor(&self) -> std::io::Result<()> {
        let own = self.fd().try_clone_to_owned()?;
        self.0.0.store(own.into_raw_fd(), Ordering::Release);
        Ok(())
    }

    /// Opens `path` and makes sure that lookups below it work, so that a kernel or a sandbox without openat2(2) is
    /// found out now and not by a request.
    pub(super) fn open(path: &Path) -> Result<Root, OpenRootError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = open(path, flags, Mode::empty())
            .map(|fd| Root(Arc::new(Held(AtomicI32::new(fd.into_raw_fd())))))
            .and_then(|root| root.look_up(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Disk::Any).map(|_| root));
        opened.map_err(|errno| OpenRootError { what: "root", path: path.to_owned(), source: errno.into() })
    }

    /// What lies at `path`, which begins with `/`, below this directory.
    pub(super) fn find(&self, path: &str, disk: Disk) -> Result<Found, Trouble> {
        // O_NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = match self.look_up(relative(path), flags, disk) {
            Err(Errno::EAGAIN) if disk == Disk::Cached => return Err(Trouble::Cold),
            result => result?,
        };
        let stat = fstat(&file).map_err(|_| Trouble::Broken)?;
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Ok(Found::File(File::from(file), stat)),
            SFlag::S_IFDIR => Ok(Found::Directory(file)),
            _ => Err(Trouble::Absent),
        }
    }

    /// What is known of `path` without opening it. It may lead out of the root: compare the result with what
    /// [`Root::find`] found.
    pub(super) fn stat(&self, path: &str) -> Option<FileStat> {
        fstatat(self.fd(), relative(path), AtFlags::empty()).ok()
    }

    /// What lies at `path`, links followed as long as they stay below this directory.
    pub(super) fn stat_beneath(&self, path: &str) -> Option<FileStat> {
        let found = self.look_up(relative(path), OFlag::O_PATH | OFlag::O_CLOEXEC, Disk::Any).ok()?;
        fstat(&found).ok()
    }

    fn look_up(&self, relative: &str, flags: OFlag, disk: Disk) -> nix::Result<OwnedFd> {
        let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        if disk == Disk::Cached {
            resolve |= ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
        }
        let how = OpenHow::new().flags(flags).resolve(resolve);
        for _ in 0..MAX_RETRIES {
            match openat2(self.fd(), relative, how) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if disk == Disk::Any => {}
                result => return result,
            }
        }
        openat2(self.fd(), relative, how)
    }
}

fn relative(path: &str) -> &str {
    path.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(".")
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

    #[test]
    fn what_was_just_looked_up_is_cached() {
        let root = Root::open(Path::new("/proc/self")).unwrap();
        assert!(root.find("/status", Disk::Any).is_ok());
        let tmp = Root::open(&std::env::temp_dir()).unwrap();
        assert!(matches!(tmp.find("/", Disk::Cached), Ok(Found::Directory(_)) | Err(Trouble::Cold)));
    }
}
