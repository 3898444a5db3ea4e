//! A file as a representation: its validators, its media type, and what tells it from any other (RFC 9110, 8.3, 8.8).

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;

use crate::http::conditional::Validators;
use crate::http::date;

/// An open regular file, as it was when it was opened.
#[derive(Debug)]
pub(super) struct Representation {
    pub(super) file: File,
    pub(super) size: u64,
    pub(super) media_type: Cow<'static, str>,
    pub(super) identity: Identity,
    etag: String,
    modified: u64,
}

/// What changes whenever the contents may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Representation {
    /// `path` is where it was found; its extension tells the media type.
    pub(super) fn new(file: File, metadata: &Metadata, path: &str) -> Representation {
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        };
        Representation {
            file,
            size: metadata.size(),
            media_type: media_type(path),
            identity,
            etag: format!("\"{:x}-{:x}\"", identity.modified_ns, identity.size),
            // Before the epoch there is no IMF-fixdate to tell.
            modified: metadata.mtime().try_into().unwrap_or(0),
        }
    }

    pub(super) fn validators(&self) -> Validators<'_> {
        Validators { etag: &self.etag, weak: false, modified: self.modified }
    }

    /// The lines that a 304 repeats (RFC 9110, 15.4.5).
    pub(super) fn validator_lines(&self) -> Vec<u8> {
        [b"ETag: ", self.etag.as_bytes(), b"\r\nLast-Modified: ", &date::format(self.modified), b"\r\n"].concat()
    }

    /// Those, and that ranges may be asked for.
    pub(super) fn lines(&self) -> Vec<u8> {
        let mut lines = self.validator_lines();
        lines.extend_from_slice(b"Accept-Ranges: bytes\r\n");
        lines
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// The media type that the extension of `path` stands for; text says that it is UTF-8.
fn media_type(path: &str) -> Cow<'static, str> {
    match mime_guess::from_path(path).first_raw() {
        None => "application/octet-stream".into(),
        // The common ones need no allocation.
        Some("text/html") => "text/html; charset=utf-8".into(),
        Some("text/css") => "text/css; charset=utf-8".into(),
        Some("text/javascript") => "text/javascript; charset=utf-8".into(),
        Some("text/plain") => "text/plain; charset=utf-8".into(),
        Some("application/json") => "application/json; charset=utf-8".into(),
        Some(guess) if guess.starts_with("text/") || guess == "application/javascript" => {
            format!("{guess}; charset=utf-8").into()
        }
        Some(guess) => guess.into(),
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
            assert_eq!(media_type(path), expected, "{path}");
        }
    }
}
