//! What the whole service knows of a client address: how fast it asks and how many connections it holds. One region of
//! shared memory, made by the master before any keeper, seen by every worker of every slot.
//!
//! It owns the two tables and that no death, at whatever instruction, makes them wrong for longer than a debt lasts. Which
//! address a request counts for (the peer's, or one that a trusted proxy names) and what a refusal looks like is left to
//! the caller.
//!
//! There is no lock: an entry is one word, tag and value together, moved by compare-exchange. A process that dies between
//! two instructions leaves whole words behind. The words may have been scribbled on by a dying worker: any word is an entry,
//! and an impossible one counts as none.

mod connections;
mod rate;
mod set;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::stat::fstat;
use siphasher::sip::SipHasher13;

use crate::sys::region::Region;
use set::{Place, WAYS};

/// The most entries of each table: what the bits of a place can tell apart. 128 MiB a table.
pub const MOST_ENTRIES: usize = set::MOST_SETS * WAYS;

/// The tables begin on a page, so that a set is a cache line.
const HEADER_BYTES: usize = 4096;
/// The limit's name in the hash of a connection count; no rate limit is asked with it.
const CONNECTIONS: u64 = 0x636f_6e6e_6563_7473;

/// Who is counted: an IPv4 address, or the /64 network of an IPv6 address, since whoever has one address of it has them
/// all (RFC 6177, 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    family: u64,
    network: u64,
}

impl From<IpAddr> for Client {
    /// An IPv4-mapped address (RFC 4291, 2.5.5.2) is the IPv4 address: a dual-stack listener sees its peers so.
    fn from(address: IpAddr) -> Client {
        match address.to_canonical() {
            IpAddr::V4(address) => Client { family: 4, network: u32::from(address).into() },
            IpAddr::V6(address) => Client { family: 6, network: network_of(address) },
        }
    }
}

fn network_of(address: Ipv6Addr) -> u64 {
    (u128::from(address) >> 64) as u64
}

/// Whether a request is within its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is, and has been counted.
    Admitted,
    /// It is not, and has not been counted.
    Refused {
        /// When one more request would be admitted, if none comes before.
        retry_after: Duration,
    },
}

/// The table of client addresses; a view of shared words.
#[derive(Clone, Copy)]
pub struct Clients {
    /// How many words of `rates` ever began to enter.
    entries: &'static AtomicU64,
    rates: &'static [AtomicU64],
    connections: &'static [AtomicU64],
    /// Secret, so that nobody can choose addresses that fall into one set.
    key: (u64, u64),
}

impl Clients {
    /// A fresh table with room for `entries` clients in debt to a limit (one who is in debt to two counts twice) and for as
    /// many who hold connections: rounded up to a power of two, at least 8, at most [`MOST_ENTRIES`]. An entry is 8 bytes in
    /// either part, resident once its page is used. Returns the memfd too; the mapping does not need it.
    pub fn create(entries: usize) -> io::Result<(Clients, OwnedFd)> {
        let words = entries.clamp(WAYS, MOST_ENTRIES).next_power_of_two();
        let (region, fd) = Region::create("phalanx-clients", HEADER_BYTES + words * 2 * size_of::<AtomicU64>())?;
        let random = RandomState::new();
        for (number, word) in region.words(8, 2).iter().enumerate() {
            word.store(random.hash_one(number), Ordering::Release);
        }
        Ok((Clients::of(&region, words), fd))
    }

    /// The table that another program created, by its descriptor. Fails when that cannot be one.
    pub fn open(fd: &OwnedFd) -> io::Result<Clients> {
        let size = usize::try_from(fstat(fd)?.st_size).unwrap_or(0);
        let words = size.saturating_sub(HEADER_BYTES) / (2 * size_of::<AtomicU64>());
        if !words.is_power_of_two() || !(WAYS..=MOST_ENTRIES).contains(&words) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no table of clients"));
        }
        Ok(Clients::of(&Region::open(fd, HEADER_BYTES + words * 2 * size_of::<AtomicU64>())?, words))
    }

    fn of(region: &Region, words: usize) -> Clients {
        let key = region.words(8, 2);
        Clients {
            entries: &region.words(0, 1)[0],
            rates: region.words(HEADER_BYTES, words),
            connections: region.words(HEADER_BYTES + words * size_of::<AtomicU64>(), words),
            key: (key[0].load(Ordering::Acquire), key[1].load(Ordering::Acquire)),
        }
    }

    /// One request of `who` under the limit `limit` at `now`: at most `burst` (at least 1) at once, and one more each
    /// `interval`. In any span of time no more than `burst + span / interval` are admitted, whoever asks from whichever
    /// process (GCRA, ITU-T I.371, annex A).
    ///
    /// `limit` names the limit, a hash of site and route that stays over reloads; `now` is the monotonic clock, the same in
    /// all processes, up to a minute late. Intervals count in whole microseconds, rounded up, and `burst × interval` is at
    /// most [`MOST_DEBT`]; an interval of zero admits everything.
    ///
    /// More is admitted to a client whose entry had to give way: only when all eight of its set are in debt, to the one
    /// nearest to having paid. And one client in seventy thousand, by chance and not by choice, shares its entry with another
    /// and is admitted less.
    ///
    /// [`MOST_DEBT`]: Clients::MOST_DEBT
    pub fn admit(&self, limit: u64, who: Client, interval: Duration, burst: u32, now: Duration) -> Verdict {
        match rate::Rate::new(interval, burst) {
            Some(rate) => rate::admit(&self.place(self.rates, limit, who), self.entries, rate, now),
            None => Verdict::Admitted,
        }
    }

    /// The longest that a burst may take to be paid back: half of what the clock in an entry can tell of the future.
    pub const MOST_DEBT: Duration = rate::MOST_DEBT;

    /// Counts a connection of `who`, unless `most` are open: then false. With `most` 0 it answers true and counts nothing,
    /// and so it does when there is no room for one more client: live counts are never given up for it.
    ///
    /// For a count that never locks a client out, whatever dies when: note in the connection's record that it is counted
    /// *before* this call, and take the note back *after* [`Clients::disconnect`]. A death in between then counts one too
    /// few, until the client's last connection closes, and never one too many.
    pub fn connect(&self, who: Client, most: u32) -> bool {
        most == 0 || connections::connect(&self.place(self.connections, CONNECTIONS, who), most)
    }

    /// Counts a connection of `who` less; nothing when none is counted.
    pub fn disconnect(&self, who: Client) {
        connections::disconnect(&self.place(self.connections, CONNECTIONS, who));
    }

    /// Connections of `who` that are counted now.
    pub fn connections(&self, who: Client) -> u32 {
        connections::count(&self.place(self.connections, CONNECTIONS, who))
    }

    fn place(&self, table: &'static [AtomicU64], limit: u64, who: Client) -> Place {
        let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
        (limit, who).hash(&mut hasher);
        Place::new(table, hasher.finish())
    }
}
