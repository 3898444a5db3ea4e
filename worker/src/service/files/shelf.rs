//! What a worker keeps at hand of the files it serves: small ones in memory, larger ones open. One for all routes and
//! connections of a worker, bounded in bytes and in descriptors; what is used least goes first.
//!
//! Nothing stale leaves it: an entry is looked at on disk once a turn of the event loop in which it is asked for, before it is
//! used. Requests of one turn have all come before that turn's look, or while it lasted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use phalanx_shared::config::Cache as Bounds;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};

use super::open::Root;
use super::representation::{Facts, Identity};
use crate::http::{Coding, Prepared};

/// Bytes that an entry takes beside its reply: keys, facts, the cache's own.
const OVERHEAD: u64 = 512;

/// The shelf of a worker; any of its threads may ask it.
#[derive(Debug)]
pub(crate) struct Shelf {
    memory: Option<Cache<Key, Arc<Kept>, InBytes>>,
    open: Option<Cache<Key, Arc<Kept>, Each>>,
    /// The open files are another process's, of which this one is a copy.
    without_open: AtomicBool,
    /// Counts turns of the worker's loops.
    turn: AtomicU64,
}

/// A file of a route in a coding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) route: usize,
    pub(super) coding: Option<Coding>,
    pub(super) path: Box<str>,
}

/// A key that owns nothing. Hashes as [`Key`] does: the same fields in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeyRef<'a> {
    pub(super) route: usize,
    pub(super) coding: Option<Coding>,
    pub(super) path: &'a str,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.route == key.route && self.coding == key.coding && *self.path == *key.path
    }
}

/// A representation at hand.
#[derive(Debug)]
pub(super) struct Kept {
    /// Of the plain file.
    pub(super) plain: Identity,
    /// What lay beside the file, kept in the coding; none in a plain representation.
    pub(super) sidecar: Option<Sidecar>,
    pub(super) facts: Facts,
    pub(super) media_type: String,
    /// The whole of it; none: the file is not worth this coding.
    pub(super) reply: Option<Arc<Prepared>>,
    /// The turn that looked at the disk last.
    pub(super) looked: AtomicU64,
}

/// A file that is kept in a coding beside the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sidecar(pub(super) Option<Identity>);

impl Kept {
    /// What it was made from is still what lies there.
    fn is_current(&self, root: &Root, key: &KeyRef<'_>) -> bool {
        let now = |path: &str| root.stat(path).map(|stat| Identity::of(&stat));
        if now(key.path) != Some(self.plain) {
            return false;
        }
        match (&self.sidecar, key.coding) {
            (Some(Sidecar(then)), Some(coding)) => {
                let now = now(&format!("{}{}", key.path, coding.suffix()));
                // One that is older than the file is as good as none.
                now.filter(|now| now.is_as_new_as(&self.plain)) == *then
            }
            _ => true,
        }
    }

    fn weight(&self) -> u64 {
        OVERHEAD + self.reply.as_ref().map_or(0, |reply| reply.weight())
    }
}

/// Weighs an entry by its bytes.
#[derive(Debug, Clone)]
pub(super) struct InBytes;

impl Weighter<Key, Arc<Kept>> for InBytes {
    fn weight(&self, key: &Key, kept: &Arc<Kept>) -> u64 {
        key.path.len() as u64 + kept.weight()
    }
}

/// Every entry has one descriptor.
#[derive(Debug, Clone)]
pub(super) struct Each;

impl Weighter<Key, Arc<Kept>> for Each {
    fn weight(&self, _key: &Key, _kept: &Arc<Kept>) -> u64 {
        1
    }
}

/// Bytes of a small file with its entry, for the size of the table.
const USUAL: u64 = 4096;

impl Shelf {
    /// An empty shelf.
    pub(crate) fn new(bounds: &Bounds) -> Shelf {
        let items = (bounds.memory / USUAL).clamp(16, 1 << 20) as usize;
        let open = bounds.open_files as usize;
        Shelf {
            memory: (bounds.memory > 0).then(|| Cache::with_weighter(items, bounds.memory, InBytes)),
            open: (open > 0).then(|| Cache::with_weighter(open, open as u64, Each)),
            without_open: AtomicBool::new(false),
            turn: AtomicU64::new(1),
        }
    }

    /// Forgets what it holds open, and holds nothing open from now on.
    pub(crate) fn forget_open_files(&self) {
        self.without_open.store(true, Ordering::Release);
    }

    fn open(&self) -> Option<&Cache<Key, Arc<Kept>, Each>> {
        self.open.as_ref().filter(|_| !self.without_open.load(Ordering::Relaxed))
    }

    /// A turn of the loop begins: what it serves is looked at on disk first.
    pub(crate) fn next_turn(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// The turn at hand.
    pub(crate) fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// What is kept of a file, if that is still what lies below `root`.
    #[inline]
    pub(super) fn get(&self, key: KeyRef<'_>, root: &Root) -> Option<Arc<Kept>> {
        let turn = self.turn();
        let in_memory = self.memory.as_ref().and_then(|cache| cache.get(&key));
        let kept = in_memory.or_else(|| self.open().and_then(|cache| cache.get(&key)))?;
        if kept.looked.load(Ordering::Acquire) == turn {
            return Some(kept);
        }
        if kept.is_current(root, &key) {
            // Of the turn that began before the look: another thread may have begun one since.
            kept.looked.store(turn, Ordering::Release);
            return Some(kept);
        }
        self.remove(&key);
        None
    }

    /// Keeps what was just loaded, if there is room for such.
    pub(super) fn put(&self, key: Key, kept: Arc<Kept>) {
        self.remove(&KeyRef { route: key.route, coding: key.coding, path: &key.path });
        let open = kept.reply.as_ref().is_some_and(|reply| reply.has_file());
        match (open, &self.memory, self.open()) {
            (true, _, Some(cache)) => cache.insert(key, kept),
            (false, Some(cache), _) => cache.insert(key, kept),
            _ => {}
        }
    }

    fn remove(&self, key: &KeyRef<'_>) {
        if let Some(cache) = &self.memory {
            cache.remove(key);
        }
        if let Some(cache) = self.open() {
            cache.remove(key);
        }
    }
}
