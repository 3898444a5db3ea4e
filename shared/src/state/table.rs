//! A bounded table of keys and values with expiry, in shared memory.
//!
//! It is cut into sets of [`WAYS`] entries; the hash of a key tells its set. An entry is written while nobody can find it, and then
//! found by one store of its version; the one that it replaces is forgotten after that. So a process that dies in between leaves
//! either the old value or the new one, or both, of which the newer counts, and whoever takes the lock from the dead forgets the other. Readers take no lock: they copy an entry and look again
//! whether its version is the same (a sequence lock, on atomic words).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::heritage::{self, Deed};
use super::lock::{Held, Lock};
use super::{Error, check_in_time, check_name};
use crate::clock::since_boot;

/// Entries of a set; one of them is always free, so that a value can be replaced without being forgotten first.
pub const WAYS: usize = 16;
/// Keys that a set has on average, at most, in a table with as many as it was made for. With a Poisson distribution of that mean, fewer
/// than one key in 100,000 is one too many for its set.
const LOAD: usize = 5;
/// Bytes that a table may take.
const MOST_BYTES: usize = 1 << 32;
/// Words before the sets: the key of the hash.
const HEAD: usize = 512;
/// Words of an entry before its bytes: version, lengths, expiry, hash.
const ENTRY_HEAD: usize = 4;
/// Words of a set before its entries: its lock, and the last version given.
const SET_HEAD: usize = 2;

/// Keys and values that all workers share.
///
/// A change is seen by all at once, and a worker that dies in the middle of one leaves the value of before or the new one. A table has
/// room for the keys that it was made for, all but one in 100,000: each key has its place among a few, told by its hash, and where those
/// are taken, a new key takes that of the one that expires first or, where none expires, that was written first.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    words: &'static [AtomicU64],
    sets: usize,
    largest: Largest,
    key: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Largest {
    key: usize,
    value: usize,
}

/// What the next program has to know of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Shape {
    sets: usize,
    largest: Largest,
    /// Of the hash.
    key: (u64, u64),
}

impl Deed for Shape {
    fn serves_for(&self, wanted: &Shape) -> bool {
        (self.sets, self.largest) == (wanted.sets, wanted.largest)
    }
}

impl Largest {
    fn entry_words(self) -> usize {
        ENTRY_HEAD + self.key.div_ceil(8) + self.value.div_ceil(8)
    }

    /// Far too many for what is far too large.
    fn set_words(self) -> usize {
        SET_HEAD.saturating_add(self.entry_words().saturating_mul(WAYS))
    }
}

/// A key or value that is too large for its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes that it has.
    pub len: usize,
    /// Bytes that it may have.
    pub most: usize,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, where the table takes at most {}", self.len, self.most)
    }
}

impl std::error::Error for TooLarge {}

/// What becomes of a value: see [`Table::update`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It stays as it is.
    Keep,
    /// It is this from now on, until so long has passed; none: as long as there is room.
    Set(Vec<u8>, Option<Duration>),
    /// It is forgotten.
    Remove,
}

impl Table {
    /// A table of that name, for about `entries` keys of at most `key` bytes each, with values of at most `value` bytes. Memory is
    /// taken as it is used. Make it before the server starts. In a program that an upgrade has executed, it is that of the program
    /// before, if that had one of the name and of these sizes (of `entries`, the next power of two above a fifth counts); otherwise it
    /// is empty, and the log says so.
    ///
    /// # Errors
    /// This is a worker already, or there is a table of that name, or the name has other than 1 to 64 visible characters of ASCII, or
    /// the table would be larger than 4 GiB, or there is no memory for it.
    pub fn new(name: &str, entries: usize, key: usize, value: usize) -> Result<Table, Error> {
        check_name(name)?;
        Table::of(&format!("table {name}"), entries, key, value)
    }

    /// As [`Table::new`]; the name says of what kind it is too.
    pub(super) fn of(name: &str, entries: usize, key: usize, value: usize) -> Result<Table, Error> {
        check_in_time()?;
        let largest = Largest { key, value };
        let sets = entries.div_ceil(LOAD).checked_next_power_of_two().unwrap_or(usize::MAX).max(1);
        let bytes = largest.set_words().checked_mul(sets).and_then(|words| words.checked_add(HEAD)?.checked_mul(8));
        let bytes = bytes.filter(|bytes| *bytes <= MOST_BYTES).ok_or_else(|| {
            Error::Size(format!(
                "a table for {entries} keys of {key} bytes with values of {value} would be larger than 4 GiB"
            ))
        })?;
        // Secret, so that nobody can choose keys that fall into one set.
        let random = RandomState::new();
        let shape = Shape { sets, largest, key: (random.hash_one(0), random.hash_one(1)) };
        let (region, Shape { key, .. }) = heritage::take(name, bytes, shape)?;
        Ok(Table { words: region.words(0, bytes / 8), sets, largest, key })
    }

    /// The value of a key, if it has one that has not expired.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let (hash, now) = (self.hash(key), milliseconds());
        let set = self.set_of(hash);
        // A change in between may have moved it where was looked already: then it is looked for again.
        for _ in 0..1000 {
            let before = set.last_version().load(Ordering::Acquire);
            let found =
                set.entries().filter_map(|entry| entry.read(self.largest, hash, key)).max_by_key(|it| it.version);
            if found.is_some() || set.last_version().load(Ordering::Acquire) == before {
                return found.filter(|found| found.expiry > now).map(|found| found.value);
            }
        }
        None
    }

    /// Gives a key a value, until `lasts` has passed; none: as long as there is room.
    ///
    /// # Errors
    /// The key or the value is too large; nothing has changed.
    pub fn set(&self, key: &[u8], value: &[u8], lasts: Option<Duration>) -> Result<(), TooLarge> {
        self.check(key, value)?;
        let hash = self.hash(key);
        let set = self.set_of(hash);
        let _held = set.hold(self.largest);
        set.put(self.largest, hash, key, value, lasts);
        Ok(())
    }

    /// Gives a key a value unless it has one; tells whether it did.
    ///
    /// # Errors
    /// As [`Table::set`].
    pub fn set_new(&self, key: &[u8], value: &[u8], lasts: Option<Duration>) -> Result<bool, TooLarge> {
        self.check(key, value)?;
        let mut is_new = false;
        self.update(key, |old| {
            is_new = old.is_none();
            if is_new { Change::Set(value.to_vec(), lasts) } else { Change::Keep }
        })?;
        Ok(is_new)
    }

    /// Forgets a key.
    pub fn remove(&self, key: &[u8]) {
        let hash = self.hash(key);
        let set = self.set_of(hash);
        let _held = set.hold(self.largest);
        set.of_key(self.largest, hash, key).for_each(|(entry, _)| entry.forget());
    }

    /// Changes the value of a key by what it is, while nobody else can. Keep `change` short, and do not use the table in it: others
    /// wait, and it would wait for itself. A worker that dies in it leaves the value as it was.
    ///
    /// # Errors
    /// As [`Table::set`]; nothing has changed.
    pub fn update(&self, key: &[u8], change: impl FnOnce(Option<&[u8]>) -> Change) -> Result<(), TooLarge> {
        self.check(key, &[])?;
        let hash = self.hash(key);
        let set = self.set_of(hash);
        let _held = set.hold(self.largest);
        let now = milliseconds();
        let newest = set.of_key(self.largest, hash, key).map(|(_, found)| found).max_by_key(|found| found.version);
        let old = newest.filter(|found| found.expiry > now).map(|found| found.value);
        match change(old.as_deref()) {
            Change::Keep => {}
            Change::Set(value, lasts) => {
                self.check(key, &value)?;
                set.put(self.largest, hash, key, &value, lasts);
            }
            Change::Remove => set.of_key(self.largest, hash, key).for_each(|(entry, _)| entry.forget()),
        }
        Ok(())
    }

    /// Keys that have a value, all sets looked at one after the other.
    pub fn len(&self) -> usize {
        let now = milliseconds();
        let live = |entry: &Entry| entry.version().load(Ordering::Acquire) != 0 && entry.expiry() > now;
        (0..self.sets).map(|number| self.set_number(number).entries().filter(live).count()).sum()
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, key: &[u8], value: &[u8]) -> Result<(), TooLarge> {
        for (len, most) in [(key.len(), self.largest.key), (value.len(), self.largest.value)] {
            if len > most {
                return Err(TooLarge { len, most });
            }
        }
        Ok(())
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        hasher.write(key);
        hasher.finish()
    }

    fn set_of(&self, hash: u64) -> Set {
        self.set_number(hash as usize & (self.sets - 1))
    }

    fn set_number(&self, number: usize) -> Set {
        let (len, each) = (self.largest.set_words(), self.largest.entry_words());
        let start = HEAD + number * len;
        Set { words: &self.words[start..start + len], each }
    }
}

/// The entries that a key can be in.
#[derive(Clone, Copy)]
struct Set {
    words: &'static [AtomicU64],
    /// Words of an entry.
    each: usize,
}

impl Set {
    fn hold(&self, largest: Largest) -> Held {
        let held = Lock(&self.words[0]).hold();
        if held.is_inherited() {
            self.settle(largest);
        }
        held
    }

    /// Forgets each entry of which there is a newer one. Otherwise it would come back when that one is gone.
    fn settle(self, largest: Largest) {
        let entries: Vec<(Entry, u64)> =
            self.entries().map(|entry| (entry, entry.version().load(Ordering::Acquire))).collect();
        let is_newer = |entry: &Entry, version: u64| {
            let mut newer = entries.iter().filter(|(_, other)| *other > version);
            newer.any(|(other, _)| other.has_key_of(entry, largest))
        };
        let old: Vec<Entry> = entries
            .iter()
            .filter(|(entry, version)| *version > 0 && is_newer(entry, *version))
            .map(|(entry, _)| *entry)
            .collect();
        old.iter().for_each(Entry::forget);
    }

    fn last_version(&self) -> &'static AtomicU64 {
        &self.words[1]
    }

    fn entries(self) -> impl Iterator<Item = Entry> {
        self.words[SET_HEAD..].chunks_exact(self.each).map(|words| Entry { words })
    }

    /// Those of a key, more than one after a death. For who holds the lock.
    fn of_key(self, largest: Largest, hash: u64, key: &[u8]) -> impl Iterator<Item = (Entry, Found)> {
        self.entries().filter_map(move |entry| Some((entry, entry.read(largest, hash, key)?)))
    }

    /// For who holds the lock.
    fn put(self, largest: Largest, hash: u64, key: &[u8], value: &[u8], lasts: Option<Duration>) {
        let now = milliseconds();
        let old: Vec<Entry> = self.of_key(largest, hash, key).map(|(entry, _)| entry).collect();
        let is_old = |entry: &Entry| old.iter().any(|old| std::ptr::eq(old.words, entry.words));
        let mut free = None;
        // Others that live, the one that goes first at the end.
        let mut others = Vec::with_capacity(WAYS);
        for entry in self.entries().filter(|entry| !is_old(entry)) {
            let version = entry.version().load(Ordering::Relaxed);
            if version == 0 || entry.expiry() <= now {
                entry.forget();
                // The first, so that the pages that are used lie together.
                free = free.or(Some(entry));
            } else {
                others.push((std::cmp::Reverse((entry.expiry(), version)), entry));
            }
        }
        others.sort_by_key(|(rank, _)| *rank);
        // Beside the new one, and one that is always free.
        while others.len() > WAYS - 2 {
            let Some((_, given_up)) = others.pop() else { break };
            given_up.forget();
            free = Some(given_up);
        }
        // Where two are left of one key, the newer is the last to go.
        let older = || old.iter().copied().min_by_key(|entry| entry.version().load(Ordering::Relaxed));
        let Some(entry) = free.or_else(older) else { return };
        let version = self.last_version().load(Ordering::Relaxed).wrapping_add(1).max(1);
        self.last_version().store(version, Ordering::Release);
        let expiry =
            lasts.map_or(u64::MAX, |lasts| now.saturating_add(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX)));
        entry.write(largest, (version, hash, expiry), key, value);
        // Before the old one goes: who has missed both looks again.
        self.last_version().store(version.wrapping_add(1).max(1), Ordering::Release);
        old.iter().filter(|old| !std::ptr::eq(old.words, entry.words)).for_each(Entry::forget);
    }
}

/// A key and its value.
#[derive(Clone, Copy)]
struct Entry {
    words: &'static [AtomicU64],
}

/// What an entry was found to hold.
struct Found {
    version: u64,
    expiry: u64,
    value: Vec<u8>,
}

impl Entry {
    /// 0: there is nothing here.
    fn version(&self) -> &'static AtomicU64 {
        &self.words[0]
    }

    fn expiry(&self) -> u64 {
        self.words[2].load(Ordering::Acquire)
    }

    fn forget(&self) {
        self.version().store(0, Ordering::Release);
        // Before whatever is written here next.
        fence(Ordering::Release);
    }

    /// Whether both are of one key.
    fn has_key_of(&self, other: &Entry, largest: Largest) -> bool {
        let of = |entry: &Entry, word: usize| entry.words[word].load(Ordering::Relaxed);
        let keys = ENTRY_HEAD..ENTRY_HEAD + largest.key.div_ceil(8);
        of(self, 3) == of(other, 3)
            && of(self, 1) >> 32 == of(other, 1) >> 32
            && keys.into_iter().all(|word| of(self, word) == of(other, word))
    }

    fn write(&self, largest: Largest, (version, hash, expiry): (u64, u64, u64), key: &[u8], value: &[u8]) {
        self.forget();
        self.words[1].store((key.len() as u64) << 32 | value.len() as u64, Ordering::Relaxed);
        self.words[2].store(expiry, Ordering::Relaxed);
        self.words[3].store(hash, Ordering::Relaxed);
        let (keys, values) = self.words[ENTRY_HEAD..].split_at(largest.key.div_ceil(8));
        store(keys, key);
        store(values, value);
        self.version().store(version, Ordering::Release);
    }

    /// What it holds, if that is of this key and whole.
    fn read(&self, largest: Largest, hash: u64, key: &[u8]) -> Option<Found> {
        let version = self.version().load(Ordering::Acquire);
        if version == 0 || self.words[3].load(Ordering::Relaxed) != hash {
            return None;
        }
        let (lens, expiry) = (self.words[1].load(Ordering::Relaxed), self.words[2].load(Ordering::Relaxed));
        let (key_len, value_len) = ((lens >> 32) as usize, lens as u32 as usize);
        if key_len != key.len() || key_len > largest.key || value_len > largest.value {
            return None;
        }
        let (keys, values) = self.words[ENTRY_HEAD..].split_at(largest.key.div_ceil(8));
        let (same, value) = (load(keys, key_len) == key, load(values, value_len));
        fence(Ordering::Acquire);
        let whole = self.version().load(Ordering::Relaxed) == version;
        (same && whole).then_some(Found { version, expiry, value })
    }
}

fn store(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
    }
}

fn load(words: &[AtomicU64], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        words[..len.div_ceil(8)].iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Since boot: the same clock in every process.
fn milliseconds() -> u64 {
    u64::try_from(since_boot().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
