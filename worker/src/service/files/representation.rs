//! A file as a representation: its validators, its media type, and what tells it from any other (RFC 9110, 8.3, 8.8).

use std::borrow::Cow;

use nix::sys::stat::FileStat;

use crate::http::Coding;
use crate::http::conditional::Validators;
use crate::http::date;

/// What changes whenever the contents may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Identity {
    pub(super) fn of(stat: &FileStat) -> Identity {
        Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size.try_into().unwrap_or(0),
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Its contents were written no earlier than those of `other`.
    pub(super) fn is_as_new_as(&self, other: &Identity) -> bool {
        self.modified_ns >= other.modified_ns
    }
}

/// A representation without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    /// Of the file that holds the bytes, or that they are made from.
    pub(super) identity: Identity,
    pub(super) coding: Option<Coding>,
    /// The coding is applied here: equal contents may have other bytes another time.
    weak: bool,
    etag: String,
    modified: u64,
}

impl Facts {
    /// A file as it is.
    pub(super) fn plain(identity: Identity) -> Facts {
        Facts::new(identity, None, false)
    }

    /// A file that is kept in a coding already.
    pub(super) fn precompressed(identity: Identity, coding: Coding) -> Facts {
        Facts::new(identity, Some(coding), false)
    }

    /// A file in a coding that is made here.
    pub(super) fn compressed(identity: Identity, coding: Coding) -> Facts {
        Facts::new(identity, Some(coding), true)
    }

    fn new(identity: Identity, coding: Option<Coding>, weak: bool) -> Facts {
        let suffix = coding.map_or("", |coding| match coding {
            Coding::Gzip => "-gz",
            Coding::Brotli => "-br",
            Coding::Zstd => "-zst",
        });
        let etag = format!("\"{:x}-{:x}{suffix}\"", identity.modified_ns, identity.size);
        // Before the epoch there is no IMF-fixdate to tell.
        let modified = (identity.modified_ns / 1_000_000_000).try_into().unwrap_or(0);
        Facts { identity, coding, weak, etag, modified }
    }

    pub(super) fn validators(&self) -> Validators<'_> {
        Validators { etag: &self.etag, weak: self.weak, modified: self.modified }
    }

    /// The lines that a 304 repeats (RFC 9110, 15.4.5).
    pub(super) fn validator_lines(&self) -> Vec<u8> {
        let weak = if self.weak { "W/" } else { "" };
        let modified = date::format(self.modified);
        [b"ETag: ", weak.as_bytes(), self.etag.as_bytes(), b"\r\nLast-Modified: ", &modified, b"\r\n"].concat()
    }

    /// Those, and what the bytes are.
    pub(super) fn lines(&self) -> Vec<u8> {
        let mut lines = self.validator_lines();
        match self.coding {
            // Parts of a coded representation are not offered: the parts of the plain one are what a peer can use.
            Some(coding) => {
                lines.extend_from_slice(b"Content-Encoding: ");
                lines.extend_from_slice(coding.token().as_bytes());
                lines.extend_from_slice(b"\r\n");
            }
            None => lines.extend_from_slice(b"Accept-Ranges: bytes\r\n"),
        }
        lines
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// The media type that the extension of `path` stands for; text says which `charset` it is in, if one is named.
pub(super) fn media_type(path: &str, charset: Option<&str>) -> Cow<'static, str> {
    let Some(guess) = mime_guess::from_path(path).first_raw() else { return "application/octet-stream".into() };
    let text = guess.starts_with("text/") || matches!(guess, "application/javascript" | "application/json");
    match (text, charset) {
        (true, Some(charset)) => format!("{guess}; charset={charset}").into(),
        _ => guess.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_tells_the_media_type() {
        for (path, expected) in [
            ("/index.html", "text/html; charset=utf-8"),
            ("/A.HTML", "text/html; charset=utf-8"),
            ("/a.js", "text/javascript; charset=utf-8"),
            ("/a.mjs", "application/javascript; charset=utf-8"),
            ("/a.json", "application/json; charset=utf-8"),
            ("/a.css", "text/css; charset=utf-8"),
            ("/a.csv", "text/csv; charset=utf-8"),
            ("/a.txt", "text/plain; charset=utf-8"),
            ("/a.svg", "image/svg+xml"),
            ("/a.png", "image/png"),
            ("/a.wasm", "application/wasm"),
            ("/a", "application/octet-stream"),
            ("/a.unheard-of", "application/octet-stream"),
            ("/dir.html/a", "application/octet-stream"),
        ] {
            assert_eq!(media_type(path, Some("utf-8")), expected, "{path}");
        }
        assert_eq!(media_type("/a.txt", None), "text/plain");
        assert_eq!(media_type("/a.txt", Some("latin1")), "text/plain; charset=latin1");
    }
}
