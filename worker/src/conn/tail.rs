//! What follows the first bytes of a batch: pieces in memory and parts of files, in the order in which they leave. A part of a
//! file is looked at before it is sent: what is not in the page cache is fetched by a thread, so that a slow disk stops nobody
//! else (preadv2(2), RWF_NOWAIT).

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use phalanx_shared::sys::file::is_cached;

use super::output::rest_of;
use crate::crash_point;
use crate::http::Prepared;
use crate::http::reply::Piece;
use crate::open_file::OpenFile;
use crate::pool::Job;

/// Bytes of a file that are fetched from a cold disk at a time.
const FETCHED: u64 = 512 * 1024;
/// … in reads of this size.
const READ: usize = 64 * 1024;

/// Something that is still to be sent.
pub(super) enum Part {
    /// Bytes, of which those before `at` have left.
    Bytes { bytes: Bytes, at: usize },
    /// The body of a reply that is kept.
    Cached { prepared: Arc<Prepared>, at: usize },
    /// A part of a file.
    File(FilePart),
}

/// A part of a file.
pub(super) struct FilePart {
    pub(super) file: Arc<OpenFile>,
    pub(super) offset: u64,
    pub(super) left: u64,
    /// Bytes from `offset` on that can be sent without waiting for a disk.
    pub(super) warm: u64,
}

/// What sending the next bytes of a file would meet.
pub(super) enum Temperature {
    Warm,
    /// The disk: this fetches what comes next.
    Cold(Job),
}

impl From<Piece> for Part {
    fn from(piece: Piece) -> Part {
        match piece {
            Piece::Bytes(bytes) => Part::Bytes { bytes, at: 0 },
            Piece::File { file, offset, len } => Part::File(FilePart { file, offset, left: len, warm: 0 }),
        }
    }
}

impl Part {
    /// Bytes still to be sent.
    pub(super) fn len(&self) -> u64 {
        match self {
            Part::Bytes { bytes, at } => (bytes.len() - at) as u64,
            Part::Cached { prepared, at } => rest_of(prepared, *at).len() as u64,
            Part::File(part) => part.left,
        }
    }

    /// The bytes still to be sent, if they are in memory.
    pub(super) fn in_memory(&self) -> Option<&[u8]> {
        match self {
            Part::Bytes { bytes, at } => bytes.get(*at..),
            Part::Cached { prepared, at } => Some(rest_of(prepared, *at)),
            Part::File(_) => None,
        }
    }

    /// At most `count` bytes have left; returns how many of them were this part's.
    pub(super) fn advance(&mut self, count: u64) -> u64 {
        let of_this = count.min(self.len());
        match self {
            Part::Bytes { at, .. } | Part::Cached { at, .. } => *at += of_this as usize,
            Part::File(part) => part.advance(of_this),
        }
        of_this
    }
}

impl FilePart {
    pub(super) fn advance(&mut self, count: u64) {
        self.offset += count;
        self.left -= count;
        self.warm = self.warm.saturating_sub(count);
    }

    /// Looks whether up to `most` bytes can be sent at once: the first and the last byte stand for those between, which reading
    /// ahead brings in together.
    pub(super) fn look(&mut self, most: u64, turn: u64) -> Temperature {
        if self.warm > 0 || self.left == 0 {
            return Temperature::Warm;
        }
        let window = self.left.min(most);
        let look = || {
            !crash_point::disk_is_cold()
                && is_cached(&*self.file, self.offset)
                && (window == 1 || is_cached(&*self.file, self.offset + window - 1))
        };
        let warm = if self.offset == 0 { self.file.is_warm(window, turn, look) } else { look() };
        if warm {
            self.warm = window;
            return Temperature::Warm;
        }
        let (file, offset, len) = (self.file.clone(), self.offset, window.min(FETCHED));
        Temperature::Cold(Job::new(move || fetch(&file, offset, len)))
    }
}

/// Has been fetched: so many bytes can be sent.
pub(super) struct Fetched(pub(super) u64);

fn fetch(file: &OpenFile, offset: u64, len: u64) -> Fetched {
    crash_point::pass(crash_point::Point::InPool);
    let mut bytes = vec![0; READ];
    let mut at = 0;
    while at < len {
        // An error shows when the bytes are sent.
        match file.read_at(&mut bytes, offset + at) {
            Ok(0) | Err(_) => break,
            Ok(count) => at += count as u64,
        }
    }
    Fetched(len)
}
