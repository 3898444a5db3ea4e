//! The `files` service: what lies below a directory (RFC 9110, 8.8, 13 and 14 for its validators and ranges).
//!
//! It owns how a path becomes a file and a file a reply. That no path leaves the root is `open`'s, what a file looks
//! like from outside is `representation`'s; the bytes are left to the connection.

#[cfg_attr(not(test), expect(dead_code, reason = "no route asks for it yet"))]
mod compress;
#[cfg_attr(not(test), expect(dead_code, reason = "no route asks for it yet"))]
mod listing;
mod open;
mod representation;

use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Request;
use crate::http::conditional::{self, Outcome};
use crate::http::range::{self, Selection};
use crate::http::status::reason;
use crate::http::{Body, Head, Reply, Response};

use open::{Found, Root, Trouble};
use representation::Representation;

pub use open::OpenRootError;

/// What a path holds after encoding: unreserved bytes and slashes (RFC 3986, 2.3). So a backslash never stands raw in a
/// `Location`, where browsers would take it for a slash.
const NOT_IN_A_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Methods that are known and not allowed here; any other is not implemented (RFC 9110, 9.1).
const OTHER_METHODS: [&str; 7] = ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];

/// The files below one directory.
#[derive(Debug)]
pub struct Files {
    root: Root,
    index: Vec<String>,
}

impl Files {
    /// Opens `root`, an absolute path, and keeps it open. `index` names the files tried when a directory is asked for.
    pub fn new(root: &Path, index: &[String]) -> Result<Files, OpenRootError> {
        Ok(Files { root: Root::open(root)?, index: index.to_vec() })
    }

    /// The root's descriptor.
    pub(crate) fn descriptor(&self) -> std::os::fd::RawFd {
        self.root.descriptor()
    }

    /// The file that the whole path names below the root, or why not.
    ///
    /// Hidden files, all but `.well-known`, do not exist. A directory gives its first index file, or 403; without its
    /// slash, a 301 that adds it.
    pub fn answer(&self, request: &Request<'_, '_>) -> Reply<'static> {
        match request.head.method {
            "GET" | "HEAD" => {}
            method if OTHER_METHODS.contains(&method) => return Reply::error(405),
            _ => return Reply::error(501),
        }
        let found = if is_hidden(request.path) { Err(Trouble::Absent) } else { self.find(request.path) };
        match found {
            Ok(Found::File(file)) => represent(request.head, file),
            Ok(Found::Directory) if request.path.ends_with('/') => Reply::error(403),
            Ok(Found::Directory) => Reply::Built(to_directory(request)),
            Err(trouble) => Reply::error(trouble.status()),
        }
    }

    /// For a directory's path, the directory itself is only looked at when it has no index file.
    fn find(&self, path: &str) -> Result<Found, Trouble> {
        if path.ends_with('/') {
            for name in &self.index {
                match self.root.find(&format!("{path}{name}")) {
                    Err(Trouble::Absent) | Ok(Found::Directory) => {}
                    found => return found,
                }
            }
        }
        self.root.find(path)
    }
}

fn is_hidden(path: &str) -> bool {
    path.split('/').any(|segment| segment.starts_with('.') && segment != ".well-known")
}

/// The redirect that adds the slash, without which relative links in an index file would miss.
fn to_directory(request: &Request<'_, '_>) -> Response {
    let path = utf8_percent_encode(request.path, NOT_IN_A_PATH);
    let location = match request.head.query {
        None => format!("Location: {path}/\r\n"),
        Some(query) => format!("Location: {path}/?{}\r\n", utf8_percent_encode(query, CONTROLS)),
    };
    page(301, location)
}

/// A reply of plain text that says its status, with `headers`.
fn page(status: u16, headers: String) -> Response {
    Response {
        content_type: Some("text/plain".into()),
        headers: headers.into_bytes(),
        body: Body::Bytes(format!("{status} {}\n", reason(status)).into_bytes()),
        ..Response::new(status)
    }
    .reproducible(&())
}

/// Preconditions come before ranges (RFC 9110, 13.2.2).
fn represent(head: &Head<'_>, file: Representation) -> Reply<'static> {
    match conditional::evaluate(head, &file.validators()) {
        Outcome::Proceed => Reply::Built(match selection(head, &file) {
            Selection::Whole => whole(file),
            Selection::Part { offset, len } => part(file, offset, len),
            Selection::Unsatisfiable => page(416, format!("Content-Range: bytes */{}\r\n", file.size)),
        }),
        Outcome::NotModified => Reply::Built(not_modified(&file)),
        Outcome::Failed => Reply::error(412),
    }
}

/// A range only changes what GET means (RFC 9110, 14.2).
fn selection(head: &Head<'_>, file: &Representation) -> Selection {
    match head.header("range") {
        Some(value) if head.method == "GET" && conditional::allows_range(head, &file.validators()) => {
            range::select(value, file.size)
        }
        _ => Selection::Whole,
    }
}

fn not_modified(file: &Representation) -> Response {
    Response { headers: file.validator_lines(), ..Response::new(304) }.reproducible(&file.identity)
}

fn whole(file: Representation) -> Response {
    let (headers, len) = (file.lines(), file.size);
    send(file, 200, headers, 0, len)
}

fn part(file: Representation, offset: u64, len: u64) -> Response {
    let mut headers = file.lines();
    let range = format!("Content-Range: bytes {offset}-{}/{}\r\n", offset + (len - 1), file.size);
    headers.extend_from_slice(range.as_bytes());
    send(file, 206, headers, offset, len)
}

fn send(file: Representation, status: u16, headers: Vec<u8>, offset: u64, len: u64) -> Response {
    let Representation { file, media_type, identity, .. } = file;
    let body = if len == 0 { Body::Empty } else { Body::File { file, offset, len } };
    Response { status, content_type: Some(media_type), headers, body, validator: 0 }.reproducible(&identity)
}

#[cfg(test)]
mod tests;
