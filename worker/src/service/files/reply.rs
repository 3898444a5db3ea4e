//! Replies about files: whole, in parts, not modified, on their way, or elsewhere.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::compress::Stream;
use super::load::{Content, Listing};
use super::representation::Facts;
use super::shelf::Kept;
use super::{Files, Request, conditional, listing};
use crate::http::conditional::Outcome;
use crate::http::multipart::{Multipart, Segment};
use crate::http::range::{self, Selection};
use crate::http::reply::{Piece, Producer, Source, fingerprint};
use crate::http::status::reason;
use crate::http::{Body, Head, Reply, Response};
use crate::open_file::OpenFile;

/// What a path holds after encoding: unreserved bytes and slashes (RFC 3986, 2.3). So a backslash never stands raw in a
/// `Location`, where browsers would take it for a slash.
pub(super) const NOT_IN_A_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Bytes of a file that are compressed at a time.
const PORTION: usize = 128 * 1024;

impl Files {
    /// Preconditions come before ranges (RFC 9110, 13.2.2).
    pub(super) fn represent(&self, request: &Request<'_, '_>, kept: &Kept) -> Reply<'_> {
        let Some(whole) = &kept.reply else { return self.dress.error(500) };
        match conditional::evaluate(request.head, &kept.facts.validators()) {
            Outcome::Proceed => {}
            Outcome::NotModified => return Reply::Built(self.not_modified(&kept.facts, &kept.media_type)),
            Outcome::Failed => return self.dress.error(412),
        }
        match selection(request, &kept.facts) {
            Selection::Whole => Reply::Cached(Arc::clone(whole)),
            Selection::Part { offset, len } => Reply::Built(self.part(kept, whole, offset, len)),
            Selection::Parts(parts) => Reply::Built(self.parts(kept, whole, parts)),
            Selection::Unsatisfiable => {
                let range = format!("Content-Range: bytes */{}\r\n", kept.facts.identity.size);
                Reply::Built(self.page(416, range))
            }
        }
    }

    /// The reply with all of a representation; `plain` are the facts of the file, whatever it is coded in.
    pub(super) fn whole(&self, plain: &Facts, facts: &Facts, media_type: &str, content: &Content) -> Response {
        let body = match content {
            Content::Memory(bytes) => Body::Bytes(bytes.to_vec().into()),
            Content::Open(file) => Body::File { file: file.clone(), offset: 0, len: facts.identity.size },
        };
        let headers = self.lines(facts, media_type, plain);
        Response { content_type: Some(media_type.to_owned().into()), headers, body, ..Response::new(200) }
            .reproducible(&facts.identity)
    }

    fn lines(&self, facts: &Facts, media_type: &str, plain: &Facts) -> Vec<u8> {
        let mut lines = facts.lines();
        self.add_route_lines(&mut lines, media_type, plain);
        lines
    }

    fn add_route_lines(&self, lines: &mut Vec<u8>, media_type: &str, plain: &Facts) {
        if self.negotiates(plain, media_type) {
            lines.extend_from_slice(b"Vary: Accept-Encoding\r\n");
        }
        lines.extend_from_slice(self.dress.lines().as_bytes());
    }

    fn not_modified(&self, facts: &Facts, media_type: &str) -> Response {
        let mut headers = facts.validator_lines();
        self.add_route_lines(&mut headers, media_type, facts);
        Response { headers, ..Response::new(304) }.reproducible(&facts.identity)
    }

    fn part(&self, kept: &Kept, whole: &super::Prepared, offset: u64, len: u64) -> Response {
        let mut headers = self.lines(&kept.facts, &kept.media_type, &kept.facts);
        let range = format!("Content-Range: bytes {offset}-{}/{}\r\n", offset + (len - 1), kept.facts.identity.size);
        headers.extend_from_slice(range.as_bytes());
        let body = match piece(whole, offset, len) {
            Piece::Bytes(bytes) => Body::Bytes(bytes),
            Piece::File { file, offset, len } => Body::File { file, offset, len },
        };
        let content_type = Some(kept.media_type.clone().into());
        Response { content_type, headers, body, ..Response::new(206) }.reproducible(&kept.facts.identity)
    }

    fn parts(&self, kept: &Kept, whole: &super::Prepared, parts: Vec<(u64, u64)>) -> Response {
        let identity = &kept.facts.identity;
        let multipart = Multipart::new(parts, &kept.media_type, identity.size, fingerprint(identity));
        let pieces = multipart.segments().map(|segment| match segment {
            Segment::Text(text) => Piece::Bytes(text.into()),
            Segment::Range { offset, len } => piece(whole, offset, len),
        });
        let body = Body::Pieces(pieces.collect());
        let content_type = Some(multipart.content_type().into());
        let headers = self.lines(&kept.facts, &kept.media_type, &kept.facts);
        // Where the parts begin and end stands in their own heads, not in the headers.
        let laid_out: Vec<_> = multipart.segments().collect();
        Response { content_type, headers, body, ..Response::new(206) }.reproducible(&(identity, laid_out))
    }

    /// All of a large file, compressed on its way.
    pub(super) fn stream(
        &self,
        request: &Request<'_, '_>,
        content: &Content,
        facts: Facts,
        media_type: &str,
    ) -> Reply<'_> {
        match conditional::evaluate(request.head, &facts.validators()) {
            Outcome::Proceed => {}
            Outcome::NotModified => return Reply::Built(self.not_modified(&facts, media_type)),
            Outcome::Failed => return self.dress.error(412),
        }
        let (Content::Open(file), Some(stream)) = (content, facts.coding.map(Stream::new)) else {
            return self.dress.error(500);
        };
        let (file, left) = (file.clone(), facts.identity.size);
        let made = Compressing { stream: Some(stream), file, at: 0, left };
        let body = Body::Stream { source: Source::Made(Box::new(made)), len: None };
        let headers = self.lines(&facts, media_type, &facts);
        let content_type = Some(media_type.to_owned().into());
        Reply::Built(Response { content_type, headers, body, ..Response::new(200) }.reproducible(&facts.identity))
    }

    /// The redirect that adds the slash, without which relative links in an index file would miss.
    pub(super) fn to_directory(&self, request: &Request<'_, '_>) -> Response {
        let path = utf8_percent_encode(request.path, NOT_IN_A_PATH);
        let location = match request.head.query {
            None => format!("Location: {path}/\r\n"),
            Some(query) => format!("Location: {path}/?{}\r\n", utf8_percent_encode(query, CONTROLS)),
        };
        self.page(301, location)
    }

    /// A directory's list of files.
    pub(super) fn listed(&self, head: &Head<'_>, page: &[u8]) -> Response {
        let form = if listing::wants_json(head) { Listing::Json } else { Listing::Html };
        let content_type = match form {
            Listing::Html => "text/html; charset=utf-8",
            Listing::Json => "application/json",
        };
        let headers = format!("Vary: Accept\r\n{}", self.dress.lines()).into_bytes();
        let body = Body::Bytes(page.to_vec().into());
        Response { content_type: Some(content_type.into()), headers, body, ..Response::new(200) }.reproducible(&())
    }

    /// A reply of plain text that says its status, with `headers`.
    fn page(&self, status: u16, headers: String) -> Response {
        Response {
            content_type: Some("text/plain".into()),
            headers: (headers + self.dress.fields()).into_bytes(),
            body: Body::Bytes(format!("{status} {}\n", reason(status)).into()),
            ..Response::new(status)
        }
        .reproducible(&())
    }
}

/// A range only changes what GET means (RFC 9110, 14.2), and parts are offered of plain files alone.
fn selection(request: &Request<'_, '_>, facts: &Facts) -> Selection {
    match request.head.header("range") {
        Some(value)
            if request.head.method == "GET"
                && facts.coding.is_none()
                && conditional::allows_range(request.head, &facts.validators(), request.date) =>
        {
            range::select(value, facts.identity.size)
        }
        _ => Selection::Whole,
    }
}

fn piece(whole: &super::Prepared, offset: u64, len: u64) -> Piece {
    match whole.file() {
        Some(file) => Piece::File { file: file.clone(), offset, len },
        None => {
            let bytes = whole.body().get(offset as usize..(offset + len) as usize).unwrap_or(&[]);
            Piece::Bytes(bytes.to_vec().into())
        }
    }
}

/// A file that is compressed portion by portion. Portions are cut at the same places every time, so that equal files make
/// equal bytes.
struct Compressing {
    stream: Option<Stream>,
    file: Arc<OpenFile>,
    at: u64,
    left: u64,
}

impl Producer for Compressing {
    fn next(&mut self, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut portion = vec![0; PORTION];
        while let (Some(stream), true) = (self.stream.as_mut(), out.is_empty()) {
            if self.left == 0 {
                if let Some(stream) = self.stream.take() {
                    stream.finish(out);
                }
                return Ok(false);
            }
            let len = self.left.min(PORTION as u64) as usize;
            self.file.read_exact_at(&mut portion[..len], self.at)?;
            stream.push(&portion[..len], out);
            self.at += len as u64;
            self.left -= len as u64;
        }
        Ok(self.stream.is_some())
    }
}
