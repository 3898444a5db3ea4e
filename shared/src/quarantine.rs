//! Requests that are not run because they have killed too many workers: one region of shared memory, written by the master, read
//! by every worker of every slot before it runs a handler.
//!
//! The words may have been scribbled on by a dying worker: any word is a hash or a time, and a wrong one blocks nothing that
//! anybody asks for.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::clock::since_boot;
use crate::sys::region::Region;

/// Kinds of request that can be held at once.
pub const MOST: usize = 64;
/// The flag, the key, and a pair of words for each kind.
const WORDS: usize = 3 + 2 * MOST;
const BYTES: usize = 4096;

/// The requests that are held, by method and path; a view of shared words.
#[derive(Debug, Clone, Copy)]
pub struct Quarantine {
    words: &'static [AtomicU64],
}

impl Quarantine {
    /// One that holds nothing, and the memory it lives in.
    pub fn create() -> io::Result<(Quarantine, OwnedFd)> {
        let (region, fd) = Region::create("phalanx-quarantine", BYTES)?;
        let quarantine = Quarantine { words: region.words(0, WORDS) };
        let random = RandomState::new();
        for (number, word) in quarantine.words[1..3].iter().enumerate() {
            word.store(random.hash_one(number), Ordering::Release);
        }
        Ok((quarantine, fd))
    }

    /// That of another program, by its descriptor.
    pub fn open(fd: &OwnedFd) -> io::Result<Quarantine> {
        Ok(Quarantine { words: Region::open(fd, BYTES)?.words(0, WORDS) })
    }

    /// Whether a request is held now. `path` is as it was sent, without a query.
    #[inline]
    pub fn holds(&self, method: &str, path: &str) -> bool {
        self.words[0].load(Ordering::Acquire) != 0 && self.is_held(method, path)
    }

    #[cold]
    fn is_held(&self, method: &str, path: &str) -> bool {
        let (wanted, now) = (self.hash(method, path), milliseconds(since_boot()));
        self.pairs().any(|(hash, until)| hash.load(Ordering::Acquire) == wanted && until.load(Ordering::Acquire) > now)
    }

    /// Holds exactly these, each until that moment since boot. Only the master does; at most [`MOST`].
    pub fn set<'a>(&self, held: impl Iterator<Item = (&'a str, &'a str, Duration)>) {
        let mut count = 0;
        let mut pairs = self.pairs();
        for ((hash, until), (method, path, moment)) in pairs.by_ref().zip(held) {
            until.store(0, Ordering::Release);
            hash.store(self.hash(method, path), Ordering::Release);
            until.store(milliseconds(moment), Ordering::Release);
            count += 1;
        }
        pairs.for_each(|(_, until)| until.store(0, Ordering::Release));
        self.words[0].store(count, Ordering::Release);
    }

    fn pairs(&self) -> impl Iterator<Item = (&AtomicU64, &AtomicU64)> {
        self.words[3..].chunks_exact(2).map(|pair| (&pair[0], &pair[1]))
    }

    fn hash(&self, method: &str, path: &str) -> u64 {
        let key = (self.words[1].load(Ordering::Acquire), self.words[2].load(Ordering::Acquire));
        let mut hasher = SipHasher13::new_with_keys(key.0, key.1);
        (method, path).hash(&mut hasher);
        hasher.finish()
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_held_by_method_and_path_for_its_time() {
        let (quarantine, fd) = Quarantine::create().unwrap();
        let elsewhere = Quarantine::open(&fd).unwrap();
        assert!(!elsewhere.holds("GET", "/a"));
        let later = since_boot() + Duration::from_secs(60);
        quarantine.set([("GET", "/a", later), ("GET", "/old", Duration::ZERO)].into_iter());
        assert!(elsewhere.holds("GET", "/a"));
        for (method, path) in [("POST", "/a"), ("GET", "/a/"), ("GET", "/old"), ("", "")] {
            assert!(!elsewhere.holds(method, path), "{method} {path}");
        }
        quarantine.set(std::iter::empty());
        assert!(!elsewhere.holds("GET", "/a"));
    }

    #[test]
    fn no_more_are_held_than_there_is_room_for() {
        let (quarantine, _fd) = Quarantine::create().unwrap();
        let paths: Vec<String> = (0..MOST + 5).map(|number| format!("/{number}")).collect();
        let later = since_boot() + Duration::from_secs(60);
        quarantine.set(paths.iter().map(|path| ("GET", path.as_str(), later)));
        assert_eq!(paths.iter().filter(|path| quarantine.holds("GET", path)).count(), MOST);
    }
}
