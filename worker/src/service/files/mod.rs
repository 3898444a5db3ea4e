//! The `files` service: what lies below a directory (RFC 9110, 8.8, 13 and 14 for its validators and ranges).
//!
//! It owns how a path becomes a file and a file a reply. That no path leaves the root is `open`'s; `load` reads and
//! compresses, on a thread where that takes time; `shelf` keeps what was loaded; what a file looks like from outside is
//! `representation`'s. Larger bodies are left to the connection.

mod compress;
mod deny;
mod listing;
mod load;
mod open;
mod pages;
mod reply;
mod representation;
mod shelf;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use phalanx_shared::config::{FilesAction, Route};

use super::dress::Dress;
use super::{Answer, Request, Setting};
use crate::http::conditional;
use crate::http::{Accepted, Choice, Coding, Head, Prepared, Reply};
use crate::pool::Job;

use deny::Deny;
use load::{Coded, Content, LEAST_COMPRESSED, Listing, Loaded, LoadedFile, Source, Want};
use open::{Disk, Root, Trouble};
use representation::{Facts, media_type};
use shelf::{Kept, Key, KeyRef, Sidecar};

pub use open::OpenRootError;
pub(crate) use shelf::Shelf;

/// Files up to this size are read into the response when none is kept in memory.
const SMALL: u64 = 16 * 1024;

/// Methods that are known and not allowed here; any other is not implemented (RFC 9110, 9.1).
const OTHER_METHODS: [&str; 7] = ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];

/// The files below one directory.
#[derive(Debug)]
pub struct Files {
    /// Tells this route's files on the shelf.
    route: usize,
    source: Arc<Source>,
    charset: Option<String>,
    dress: Dress,
    shelf: Arc<Shelf>,
}

impl Files {
    /// Opens the root of `action`, and keeps it open. `route` is the number of the route in this worker.
    pub(crate) fn new(
        route: usize,
        written: &Route,
        action: &FilesAction,
        setting: &Setting,
    ) -> Result<Files, OpenRootError> {
        let root = Root::open(&action.root)?;
        let pages = pages::load(&root, action)?;
        let memory = if setting.cache.memory > 0 { setting.cache.file } else { SMALL };
        let source = Source {
            root,
            open_files: setting.open_files.clone(),
            index: action.index.clone().into(),
            fallback: action.fallback.as_deref().map(Into::into),
            listing: action.listing,
            compress: action.compress,
            precompressed: action.precompressed,
            deny: Deny::new(&action.deny),
            memory,
        };
        Ok(Files {
            route,
            source: Arc::new(source),
            charset: action.charset.clone(),
            dress: Dress::new(written, pages),
            shelf: setting.shelf.clone(),
        })
    }

    /// The root's descriptor.
    pub(crate) fn descriptor(&self) -> std::os::fd::RawFd {
        self.source.root.descriptor()
    }

    /// See [`Router::take_own_descriptors`](super::Router::take_own_descriptors).
    pub(super) fn take_own_descriptor(&self) -> std::io::Result<()> {
        self.source.root.take_own_descriptor()
    }

    pub(super) fn dress(&self) -> &Dress {
        &self.dress
    }

    /// The file that the whole path names below the root, or why not.
    ///
    /// What is denied does not exist. A directory gives its first index file, or a listing, or 403; without its slash, a
    /// 301 that adds it. What has to be waited for is asked for as a job, whose result is to come back as `done`.
    pub(super) fn answer(&self, request: &Request<'_, '_>, done: Option<Box<dyn std::any::Any + Send>>) -> Answer<'_> {
        match request.head.method {
            "GET" | "HEAD" => {}
            method if OTHER_METHODS.contains(&method) => return Answer::Reply(self.dress.error(405)),
            _ => return Answer::Reply(self.dress.error(501)),
        }
        let codings = wishes(request.head);
        if let Some(done) = done {
            return Answer::Reply(match done.downcast::<Arc<Loaded>>() {
                Ok(loaded) => self.conclude(request, &codings, &loaded),
                Err(_) => self.dress.error(500),
            });
        }
        if let Some(kept) = self.kept(request.path, &codings) {
            return Answer::Reply(self.represent(request, &kept));
        }
        if self.source.deny.covers(request.path) {
            return Answer::Reply(self.dress.error(404));
        }
        let listing = if listing::wants_json(request.head) { Listing::Json } else { Listing::Html };
        let want = Want { path: request.path.to_owned(), codings, listing };
        match self.source.load(&want, Disk::Cached) {
            Loaded::Trouble(Trouble::Cold) => Answer::Later(self.fetch(want)),
            loaded => Answer::Reply(self.conclude(request, &want.codings, &loaded)),
        }
    }

    /// Has a thread load it. Not shared with a request of a later turn once a thread has begun: that may know of a change.
    fn fetch(&self, want: Want) -> Job {
        let turn = self.shelf.turn();
        let key = format!("{} {:?} {:?} {}", self.route, want.codings, want.listing, want.path);
        let source = self.source.clone();
        Job::shared(key, turn, move || Arc::new(source.load(&want, Disk::Any)))
    }

    /// What is at hand for a path, in the best coding that the file is worth.
    fn kept(&self, path: &str, codings: &[Coding]) -> Option<Arc<Kept>> {
        if !path.ends_with('/') {
            return self.kept_file(path, codings);
        }
        // Were the first of them missing here, only the disk could tell whether it is missing there.
        let first = self.source.index.first()?;
        self.kept_file(&format!("{path}{first}"), codings)
    }

    fn kept_file(&self, path: &str, codings: &[Coding]) -> Option<Arc<Kept>> {
        let get = |coding| self.shelf.get(KeyRef { route: self.route, coding, path }, &self.source.root);
        if codings.is_empty() {
            return get(None);
        }
        let plain = get(None)?;
        if !self.negotiates(&plain.facts, &plain.media_type) {
            return Some(plain);
        }
        for &coding in codings {
            let coded = get(Some(coding))?;
            if coded.reply.is_some() {
                return Some(coded);
            }
        }
        Some(plain)
    }

    /// Whether there may be other codings of a file.
    fn negotiates(&self, plain: &Facts, media_type: &str) -> bool {
        let large_enough = plain.identity.size >= LEAST_COMPRESSED;
        (self.source.precompressed || (self.source.compress && large_enough)) && compress::is_compressible(media_type)
    }

    fn conclude(&self, request: &Request<'_, '_>, codings: &[Coding], loaded: &Loaded) -> Reply<'_> {
        match loaded {
            Loaded::File(file) => self.take_in(request, codings, file),
            Loaded::WithoutSlash => Reply::Built(self.to_directory(request)),
            Loaded::Listing(page) => Reply::Built(self.listed(request.head, page)),
            Loaded::Trouble(trouble) => self.dress.error(trouble.status()),
        }
    }

    /// Keeps what was loaded and answers from it.
    fn take_in(&self, request: &Request<'_, '_>, codings: &[Coding], file: &LoadedFile) -> Reply<'_> {
        let media_type = media_type(&file.path, self.charset.as_deref());
        let plain = self.keep(file, None, &media_type, file.plain.clone(), Some(&file.content));
        let mut best = plain;
        for coding in codings {
            let Some((_, coded)) = file.coded.iter().find(|(made, _)| made == coding) else { break };
            let identity = file.plain.identity;
            match coded {
                Coded::None => drop(self.keep(file, Some(*coding), &media_type, file.plain.clone(), None)),
                Coded::Kept(facts, content) => {
                    best = self.keep(file, Some(*coding), &media_type, facts.clone(), Some(content));
                    break;
                }
                Coded::Made(bytes) => {
                    let content = Content::Memory(bytes.clone());
                    let facts = Facts::compressed(identity, *coding);
                    best = self.keep(file, Some(*coding), &media_type, facts, Some(&content));
                    break;
                }
                Coded::Streamed => {
                    let facts = Facts::compressed(identity, *coding);
                    return self.stream(request, &file.content, facts, &media_type);
                }
            }
        }
        self.represent(request, &best)
    }

    fn keep(
        &self,
        file: &LoadedFile,
        coding: Option<Coding>,
        media_type: &str,
        facts: Facts,
        content: Option<&Content>,
    ) -> Arc<Kept> {
        let reply = content.map(|content| Arc::new(Prepared::of(self.whole(&file.plain, &facts, media_type, content))));
        let sidecar = coding.filter(|_| self.source.precompressed).map(|coding| {
            let of_its_own = facts.coding == Some(coding) && !facts.validators().weak;
            Sidecar(of_its_own.then_some(facts.identity))
        });
        // By its size alone: in memory and open it has other validators, and a successor would not go on with it.
        let fits = reply.as_ref().is_none_or(|reply| reply.has_file() == (reply.body_len() > self.source.memory));
        let kept = Arc::new(Kept {
            plain: file.plain.identity,
            sidecar,
            facts,
            media_type: media_type.to_owned(),
            reply,
            looked: AtomicU64::new(0),
        });
        // A path that is denied may still be the fallback: on the shelf it would be found by its own name.
        if fits && !self.source.deny.covers(&file.path) {
            let key = Key { route: self.route, coding, path: file.path.as_str().into() };
            self.shelf.put(key, kept.clone());
        }
        kept
    }
}

/// The codings that a peer takes rather than the plain file, the best first. Whoever asks for a part means the plain file.
fn wishes(head: &Head<'_>) -> Vec<Coding> {
    let accepted = Accepted::of(head);
    if accepted == Accepted::default() || head.header("range").is_some() {
        return Vec::new();
    }
    let (mut left, mut wishes) = (Coding::ALL.to_vec(), Vec::new());
    while let Choice::Coded(best) = accepted.best(&left) {
        wishes.push(best);
        left.retain(|&coding| coding != best);
    }
    wishes
}

#[cfg(test)]
mod tests;
