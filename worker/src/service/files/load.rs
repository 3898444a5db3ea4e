//! Loading: from a request's wishes to bytes, with all that may have to wait for a disk or for a compressor. Tried by the event
//! loop on what the kernel has cached; what that cannot tell, a thread finds out.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use phalanx_shared::sys::file::read_cached;

use super::compress;
use super::deny::Deny;
use super::listing;
use super::open::{Disk, Found, Root, Trouble};
use super::representation::{Facts, Identity, media_type};
use crate::crash_point::{self, Point};
use crate::http::Coding;
use crate::open_file::{OpenFile, OpenFiles};

/// Files up to this size are compressed whole, larger ones on their way.
pub(super) const COMPRESSED_WHOLE: u64 = 1024 * 1024;
/// Files below this size are not worth a coding: the head is as long.
pub(super) const LEAST_COMPRESSED: u64 = 256;
/// Entries that a listing shows: a page longer than this serves nobody.
const MAX_LISTED: usize = 10_000;

/// Where a route's files are, and how they are served; what a thread needs to know.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) root: Root,
    pub(super) open_files: OpenFiles,
    pub(super) index: Arc<[String]>,
    pub(super) fallback: Option<Arc<str>>,
    pub(super) listing: bool,
    pub(super) compress: bool,
    pub(super) precompressed: bool,
    pub(super) deny: Deny,
    /// Bytes of the largest file that is read into memory.
    pub(super) memory: u64,
}

/// What a request asks of a source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Want {
    /// Decoded.
    pub(super) path: String,
    /// What the peer takes, the best first; identity goes without saying.
    pub(super) codings: Vec<Coding>,
    pub(super) listing: Listing,
}

/// What a directory is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Listing {
    Html,
    Json,
}

/// What was found.
pub(super) enum Loaded {
    File(LoadedFile),
    /// A directory asked for without its slash.
    WithoutSlash,
    Listing(Vec<u8>),
    Trouble(Trouble),
}

/// A file, plain and coded.
pub(super) struct LoadedFile {
    /// Its path; another than asked for if that is a directory, or there is nothing.
    pub(super) path: String,
    pub(super) plain: Facts,
    pub(super) content: Content,
    /// For the codings that were looked at.
    pub(super) coded: Vec<(Coding, Coded)>,
}

/// The bytes of a representation.
#[derive(Clone)]
pub(super) enum Content {
    Memory(Arc<[u8]>),
    Open(Arc<OpenFile>),
}

/// What a coding comes to for a file.
#[derive(Clone)]
pub(super) enum Coded {
    /// Not kept in it, nor worth to be made.
    None,
    /// Kept beside the file.
    Kept(Facts, Content),
    /// Made here.
    Made(Arc<[u8]>),
    /// To be made on the way.
    Streamed,
}

impl Source {
    /// Finds and reads what `want` asks for. [`Trouble::Cold`] comes back only for [`Disk::Cached`].
    pub(super) fn load(&self, want: &Want, disk: Disk) -> Loaded {
        if disk == Disk::Any {
            crash_point::pass(Point::InPool);
        } else if crash_point::disk_is_cold() {
            return Loaded::Trouble(Trouble::Cold);
        }
        self.find(want, disk).unwrap_or_else(Loaded::Trouble)
    }

    fn find(&self, want: &Want, disk: Disk) -> Result<Loaded, Trouble> {
        if want.path.ends_with('/') {
            for name in self.index.iter() {
                let path = format!("{}{name}", want.path);
                if self.deny.covers(&path) {
                    continue;
                }
                match self.root.find(&path, disk) {
                    Err(Trouble::Absent) | Ok(Found::Directory(_)) => {}
                    found => return self.take(path, found?, want, disk),
                }
            }
        }
        match (self.root.find(&want.path, disk), &self.fallback) {
            (Err(Trouble::Absent), Some(fallback)) => match self.root.find(fallback, disk)? {
                // A redirect to what is not there would go on for ever.
                Found::Directory(_) => Err(Trouble::Absent),
                found => self.take(fallback.to_string(), found, want, disk),
            },
            (found, _) => self.take(want.path.clone(), found?, want, disk),
        }
    }

    fn take(&self, path: String, found: Found, want: &Want, disk: Disk) -> Result<Loaded, Trouble> {
        match found {
            Found::File(file, stat) if !path.ends_with('/') => {
                let identity = Identity::of(&stat);
                let file = self.open_files.note(file);
                self.represent(path, file, identity, &want.codings, disk).map(Loaded::File)
            }
            Found::File(..) => Err(Trouble::Absent),
            Found::Directory(_) if !path.ends_with('/') => Ok(Loaded::WithoutSlash),
            Found::Directory(directory) if self.listing => self.list(directory, &path, want.listing, disk),
            Found::Directory(_) => Err(Trouble::Forbidden),
        }
    }

    fn represent(
        &self,
        path: String,
        file: OpenFile,
        identity: Identity,
        codings: &[Coding],
        disk: Disk,
    ) -> Result<LoadedFile, Trouble> {
        let worth = compress::is_compressible(&media_type(&path, None));
        let mut coded = Vec::new();
        for &coding in codings.iter().filter(|_| worth) {
            let made = self.code(&path, &file, &identity, coding, disk)?;
            let found = !matches!(made, Coded::None);
            coded.push((coding, made));
            if found {
                break;
            }
        }
        let streamed = coded.iter().any(|(_, coded)| matches!(coded, Coded::Streamed));
        let content = match streamed {
            true => Content::Open(Arc::new(file)),
            false => self.content(file, identity.size, disk)?,
        };
        Ok(LoadedFile { path, plain: Facts::plain(identity), content, coded })
    }

    fn code(
        &self,
        path: &str,
        file: &OpenFile,
        identity: &Identity,
        coding: Coding,
        disk: Disk,
    ) -> Result<Coded, Trouble> {
        if self.precompressed
            && let Some((kept, sidecar)) = self.sidecar(path, identity, coding, disk)?
        {
            let content = self.content(kept, sidecar.size, disk)?;
            return Ok(Coded::Kept(Facts::precompressed(sidecar, coding), content));
        }
        if !self.compress || identity.size < LEAST_COMPRESSED {
            return Ok(Coded::None);
        }
        if identity.size > COMPRESSED_WHOLE {
            return Ok(Coded::Streamed);
        }
        if disk == Disk::Cached {
            // Nothing cold about it, but no work for an event loop.
            return Err(Trouble::Cold);
        }
        let bytes = read(file, identity.size)?;
        let smaller = compress::whole(coding, &bytes);
        Ok(if smaller.len() < bytes.len() { Coded::Made(smaller.into()) } else { Coded::None })
    }

    /// The file that is kept in a coding beside another, unless it is older than that.
    fn sidecar(
        &self,
        path: &str,
        plain: &Identity,
        coding: Coding,
        disk: Disk,
    ) -> Result<Option<(OpenFile, Identity)>, Trouble> {
        match self.root.find(&format!("{path}{}", coding.suffix()), disk) {
            Ok(Found::File(file, stat)) if Identity::of(&stat).is_as_new_as(plain) => {
                Ok(Some((self.open_files.note(file), Identity::of(&stat))))
            }
            Err(Trouble::Cold) => Err(Trouble::Cold),
            _ => Ok(None),
        }
    }

    fn list(&self, directory: OwnedFd, path: &str, form: Listing, disk: Disk) -> Result<Loaded, Trouble> {
        if disk == Disk::Cached {
            return Err(Trouble::Cold);
        }
        let (entries, truncated) = self.read_directory(directory, path)?;
        let page = match form {
            Listing::Html => listing::html(path, &entries, truncated),
            Listing::Json => listing::json(path, &entries, truncated),
        };
        Ok(Loaded::Listing(page.into_bytes()))
    }

    /// What a directory shows: nothing that is denied, and nothing that could not be served.
    fn read_directory(&self, directory: OwnedFd, path: &str) -> Result<(Vec<listing::Entry>, bool), Trouble> {
        let mut directory = nix::dir::Dir::from_fd(directory)?;
        let mut names = Vec::new();
        for entry in directory.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            let special = name == b"." || name == b"..";
            if !special && !self.deny.covers(&format!("{path}{}", String::from_utf8_lossy(&name))) {
                names.push(name);
            }
            if names.len() > MAX_LISTED {
                break;
            }
        }
        let truncated = names.len() > MAX_LISTED;
        names.truncate(MAX_LISTED);
        let entries = names.into_iter().filter_map(|name| self.entry(&directory, path, name)).collect();
        Ok((entries, truncated))
    }

    fn entry(&self, directory: &nix::dir::Dir, path: &str, name: Vec<u8>) -> Option<listing::Entry> {
        use nix::sys::stat::{SFlag, fstatat};
        let kind_of = |mode: u32| SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
        let c_name = std::ffi::CString::new(name.clone()).ok()?;
        let mut stat = fstatat(directory, c_name.as_c_str(), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        if kind_of(stat.st_mode) == SFlag::S_IFLNK {
            // One that leads out of the root is answered 404, and tells nothing here either.
            stat = self.root.stat_beneath(&format!("{path}{}", std::str::from_utf8(&name).ok()?))?;
        }
        let is_dir = match kind_of(stat.st_mode) {
            SFlag::S_IFDIR => true,
            SFlag::S_IFREG => false,
            _ => return None,
        };
        let (size, modified) = (stat.st_size.try_into().unwrap_or(0), stat.st_mtime.try_into().unwrap_or(0));
        Some(listing::Entry { name, is_dir, size, modified })
    }

    fn content(&self, file: OpenFile, size: u64, disk: Disk) -> Result<Content, Trouble> {
        if size > self.memory {
            return Ok(Content::Open(Arc::new(file)));
        }
        let bytes = match disk {
            Disk::Any => read(&file, size)?,
            Disk::Cached => read_now(&file, size)?,
        };
        Ok(Content::Memory(bytes.into()))
    }
}

/// Reads all of a file. One that has become shorter since it was opened is in the middle of being written.
fn read(file: &OpenFile, size: u64) -> Result<Vec<u8>, Trouble> {
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|_| Trouble::Broken)?;
    Ok(bytes)
}

fn read_now(file: &OpenFile, size: u64) -> Result<Vec<u8>, Trouble> {
    let mut bytes = vec![0; size as usize];
    if size == 0 {
        return Ok(bytes);
    }
    match read_cached(file, &mut bytes, 0) {
        Ok(count) if count == bytes.len() => Ok(bytes),
        // The cache ends here, or the file does: a thread finds out.
        Ok(_) => Err(Trouble::Cold),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Trouble::Cold),
        Err(_) => Err(Trouble::Broken),
    }
}
