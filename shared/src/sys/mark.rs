//! A place in memory that lasts as long as the process, written down for a signal handler.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// One word, or none.
#[derive(Debug)]
pub struct Mark(AtomicPtr<AtomicU64>);

impl Default for Mark {
    fn default() -> Mark {
        Mark::new()
    }
}

impl Mark {
    /// None.
    pub const fn new() -> Mark {
        Mark(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// It is this one from now on; returns which it was.
    pub fn replace(&self, word: Option<&'static AtomicU64>) -> Option<&'static AtomicU64> {
        let new = word.map_or(std::ptr::null_mut(), |word| std::ptr::from_ref(word).cast_mut());
        Mark::found(self.0.swap(new, Ordering::AcqRel))
    }

    /// Which it is. Async-signal-safe.
    pub fn get(&self) -> Option<&'static AtomicU64> {
        Mark::found(self.0.load(Ordering::Acquire))
    }

    fn found(word: *mut AtomicU64) -> Option<&'static AtomicU64> {
        // SAFETY: null, or made from a reference that lasts as long as the process; it is only seen as a shared one again.
        unsafe { word.as_ref() }
    }
}
