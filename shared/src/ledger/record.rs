//! The record of a descriptor: twenty words at its index. Nearly always of a connection; an open file that a worker keeps has
//! one too, which names its owner and nothing else, so that whoever buries the worker can close it.
//!
//! Positions in the two byte streams of a connection are counted from its first byte, as the kernel counts them. `consumed`
//! and `sent` are what the worker has recorded; the kernel's own counters say what really happened, and the difference is
//! what the worker's last system call did.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ipc::Incarnation;

/// Words of a record.
pub const WORDS: usize = 20;
/// Bytes of a record.
pub const BYTES: usize = WORDS * 8;

const OWNER: usize = 0;
const STATE: usize = 1;
const CONSUMED: usize = 2;
const SENT: usize = 3;
const BUFFER: usize = 4;
const BASE: usize = 5;
const START: usize = 6;
const CONDEMNED: usize = 7;
const COOKIE: usize = 8;
const PEER_HIGH: usize = 9;
const PEER_LOW: usize = 10;
const PEER_REST: usize = 11;
const DOOM_AT: usize = 12;
const DOOM_STATUS: usize = 13;
const ATTEMPTS: usize = 14;
const ATTEMPT_AT: usize = 15;
const ADMITTED: usize = 16;
const COUNTED: usize = 17;
const HELD: usize = 18;
const RING: usize = 19;

/// Who may touch a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The worker of this incarnation.
    Worker(Incarnation),
    /// Nobody: given over by a predecessor that lives, to be taken by its successor.
    Given,
    /// No connection but a file that the worker of this incarnation holds open.
    File(Incarnation),
    /// A process that this worker started for it, and that outlives the worker.
    Child {
        /// The worker.
        of: Incarnation,
        /// The worker's lane, below 256.
        lane: u8,
        /// The track of that lane which the process writes, below 65,536.
        track: u16,
    },
    /// No connection but a file or a directory that such a process holds open.
    ChildFile {
        /// As of [`Owner::Child`].
        of: Incarnation,
        /// As of [`Owner::Child`].
        lane: u8,
        /// As of [`Owner::Child`].
        track: u16,
    },
}

const GIVEN: u64 = u64::MAX;
/// Set in the owner's word when the descriptor is a file.
const FILE: u64 = 1 << 32;
/// Set in the owner's word when a process of its own has the connection; its lane and track follow.
const CHILD: u64 = 1 << 33;
const CHILD_LANE: u32 = 34;
const CHILD_TRACK: u32 = 42;

impl Owner {
    fn to_word(self) -> u64 {
        match self {
            Owner::Given => GIVEN,
            Owner::Worker(incarnation) => u64::from(incarnation.0),
            Owner::File(incarnation) => u64::from(incarnation.0) | FILE,
            Owner::Child { of, lane, track } => {
                u64::from(of.0) | CHILD | u64::from(lane) << CHILD_LANE | u64::from(track) << CHILD_TRACK
            }
            Owner::ChildFile { of, lane, track } => Owner::Child { of, lane, track }.to_word() | FILE,
        }
    }
}

/// What a connection is in the middle of; one word, so that a change of it is one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// The first entry of the pending list that is not fully sent.
    pub first: u8,
    /// One past the last entry of the pending list that counts.
    pub pending: u8,
    /// Where the connection stands besides.
    pub phase: Phase,
    /// The request at `start` has been sent its interim `100 Continue`.
    pub continued: bool,
    /// A Unix socket is inside a read or write whose effect nobody could tell after a death.
    pub in_call: bool,
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Requests are read and answered.
    #[default]
    Open,
    /// Bytes of the request's body have been handed on and are no longer in the buffer: not replayable.
    Streaming,
    /// The last response is sent and the sending half shut; what the peer still sends is thrown away.
    Lingering,
}

impl State {
    pub(super) fn to_word(self) -> u64 {
        let flags = u64::from(self.continued) | u64::from(self.in_call) << 1;
        u64::from(self.first) | u64::from(self.pending) << 8 | (self.phase as u64) << 16 | flags << 24
    }

    pub(super) fn from_word(word: u64) -> State {
        let phase = match word >> 16 & 0xff {
            1 => Phase::Streaming,
            2 => Phase::Lingering,
            _ => Phase::Open,
        };
        State {
            first: word as u8,
            pending: (word >> 8) as u8,
            phase,
            continued: word >> 24 & 1 != 0,
            in_call: word >> 25 & 1 != 0,
        }
    }
}

/// Why the request in a handler is to blame for its worker's death; written by the master before the successor is cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guilt {
    /// The process did it to itself: a fault, abort, exit.
    Fault = 1,
    /// It answered no ping and was killed for it.
    Hang = 2,
}

/// The peer of a connection, as much as a log needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP peer.
    Ip(std::net::SocketAddr),
    /// A client of a Unix socket, which has no address.
    Unix,
}

/// A state that a record is to have from the moment on in which somebody else begins with something.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    word: &'static AtomicU64,
    state: State,
}

impl Mark {
    /// That moment has come.
    pub fn set(self) {
        self.word.store(self.state.to_word(), Ordering::Release);
    }
}

/// A connection's record; a view of shared words.
#[derive(Clone, Copy)]
pub struct Record {
    words: &'static [AtomicU64],
}

macro_rules! words {
    ($($(#[$doc:meta])* $get:ident, $set:ident, $index:ident;)*) => {$(
        $(#[$doc])*
        pub fn $get(&self) -> u64 { self.get($index) }
        #[doc = concat!("Sets [`Record::", stringify!($get), "`].")]
        pub fn $set(&self, value: u64) { self.set($index, value) }
    )*};
}

impl Record {
    pub(super) fn new(words: &'static [AtomicU64]) -> Record {
        Record { words }
    }

    fn get(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }

    fn set(&self, index: usize, value: u64) {
        self.words[index].store(value, Ordering::Release);
    }

    /// Fills the record of a connection just accepted. It counts once [`Record::set_owner`] has named an owner: until then the
    /// record is free, and a successor treats the socket as accepted but unrecorded.
    pub fn fill(&self, cookie: u64, peer: Peer, listener: u8) {
        let words = [STATE, CONSUMED, SENT, BUFFER, BASE, START, CONDEMNED, DOOM_AT, DOOM_STATUS];
        for index in words.into_iter().chain([ATTEMPTS, ATTEMPT_AT, ADMITTED, COUNTED, HELD, RING]) {
            self.set(index, 0);
        }
        self.set(COOKIE, cookie);
        self.set_peer(peer, listener);
    }

    /// Notes an open file of a worker or of a process of its, so that it is closed when that is dead: `owner` is an
    /// [`Owner::File`] or an [`Owner::ChildFile`].
    pub fn fill_file(&self, owner: Owner) {
        self.set(BUFFER, 0);
        self.set_owner(owner);
    }

    /// Frees the record; before its descriptor is closed, since the number is used again by whoever shares the table.
    pub fn free(&self) {
        self.set(OWNER, 0);
    }

    /// Whose the connection is; none: the record is free.
    pub fn owner(&self) -> Option<Owner> {
        match self.get(OWNER) {
            0 => None,
            GIVEN => Some(Owner::Given),
            word if word & CHILD != 0 => {
                let of = Incarnation(word as u32);
                let (lane, track) = ((word >> CHILD_LANE) as u8, (word >> CHILD_TRACK) as u16);
                let is_file = word & FILE != 0;
                Some(if is_file { Owner::ChildFile { of, lane, track } } else { Owner::Child { of, lane, track } })
            }
            word if word & FILE != 0 => Some(Owner::File(Incarnation(word as u32))),
            word => Some(Owner::Worker(Incarnation(word as u32))),
        }
    }

    /// Hands the connection to `owner`.
    pub fn set_owner(&self, owner: Owner) {
        self.set(OWNER, owner.to_word());
    }

    /// Takes a connection that a predecessor has given; false when it is not given (any more).
    pub fn claim_given(&self, owner: Incarnation) -> bool {
        self.claim(Owner::Given, owner)
    }

    /// Takes a connection that `from` had; false when that has it no more. Two workers may try at the same time, when one
    /// handover follows another: one of them gets it.
    pub fn claim(&self, from: Owner, owner: Incarnation) -> bool {
        let (from, to) = (from.to_word(), Owner::Worker(owner).to_word());
        self.words[OWNER].compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Makes a worker the one that looks after the process that has the connection, and tells the owner from then on; none when that
    /// has it no more.
    pub fn adopt_child(&self, from: Owner, by: Incarnation) -> Option<Owner> {
        let Owner::Child { lane, track, .. } = from else { return None };
        let to = Owner::Child { of: by, lane, track };
        let owner = &self.words[OWNER];
        owner.compare_exchange(from.to_word(), to.to_word(), Ordering::AcqRel, Ordering::Acquire).ok().map(|_| to)
    }

    /// Copies what another ledger's record says of the same connection, all but its owner and its buffers.
    pub fn copy(&self, other: &Record) {
        for index in (0..WORDS).filter(|index| ![OWNER, BUFFER, HELD].contains(index)) {
            self.set(index, other.get(index));
        }
    }

    /// What the connection is in the middle of.
    pub fn state(&self) -> State {
        State::from_word(self.get(STATE))
    }

    /// Sets [`Record::state`] in one store.
    pub fn set_state(&self, state: State) {
        self.set(STATE, state.to_word());
    }

    /// To set [`Record::state`] later, by another thread.
    pub fn mark(&self, state: State) -> Mark {
        Mark { word: &self.words[STATE], state }
    }

    words! {
        /// Bytes read from the socket, as recorded.
        consumed, set_consumed, CONSUMED;
        /// Bytes written to the socket, as recorded.
        sent, set_sent, SENT;
        /// The stream position of the buffer's first byte.
        base, set_base, BASE;
        /// The stream position of the first byte not yet fully answered.
        start, set_start, START;
        /// The stream position of the request that [`Record::attempts`] counts for.
        attempt_at, set_attempt_at, ATTEMPT_AT;
        /// The stream position up to which requests have passed the rate limit of their route: a replay passes without
        /// being counted again.
        admitted, set_admitted, ADMITTED;
    }

    /// How often the request at [`Record::attempt_at`] has been in a handler when its worker died.
    pub fn attempts(&self) -> u8 {
        self.get(ATTEMPTS) as u8
    }

    /// Sets [`Record::attempts`].
    pub fn set_attempts(&self, attempts: u8) {
        self.set(ATTEMPTS, u64::from(attempts));
    }

    /// Whether the connection is counted among those of its client's address.
    pub fn is_counted(&self) -> bool {
        self.get(COUNTED) != 0
    }

    /// Sets [`Record::is_counted`].
    pub fn set_counted(&self, counted: bool) {
        self.set(COUNTED, counted.into());
    }

    /// The socket's cookie when the record was opened.
    pub fn cookie(&self) -> u64 {
        self.get(COOKIE)
    }

    /// The number of the buffer that holds the bytes not yet answered.
    pub fn buffer(&self) -> Option<usize> {
        (self.get(BUFFER) as usize).checked_sub(1)
    }

    /// Sets [`Record::buffer`].
    pub fn set_buffer(&self, buffer: Option<usize>) {
        // Saturating: a number from a scribbled journal stays out of range and does not become "none".
        self.set(BUFFER, buffer.map_or(0, |index| (index as u64).saturating_add(1)));
    }

    /// The number of the first buffer of those that hold what was received ahead ([`Held`](super::held::Held)).
    pub fn held(&self) -> Option<usize> {
        (self.get(HELD) as usize).checked_sub(1)
    }

    /// Sets [`Record::held`].
    pub fn set_held(&self, held: Option<usize>) {
        self.set(HELD, held.map_or(0, |index| (index as u64).saturating_add(1)));
    }

    /// The tag of the operation by which a ring receives on the connection; none: its owner reads by itself. Where a ring does, what
    /// was taken from the kernel and is not on record stands in the ring's buffers.
    pub fn ring(&self) -> Option<u32> {
        (self.get(RING) as u32).checked_sub(1)
    }

    /// Sets [`Record::ring`].
    pub fn set_ring(&self, tag: Option<u32>) {
        self.set(RING, tag.map_or(0, |tag| u64::from(tag) + 1));
    }

    /// The request at this stream position gets this status instead of a handler, and the connection ends with it.
    pub fn doom(&self) -> Option<(u64, u16)> {
        let status = self.get(DOOM_STATUS) as u16;
        (status != 0).then(|| (self.get(DOOM_AT), status))
    }

    /// Sets [`Record::doom`]; the status is stored last.
    pub fn set_doom(&self, at: u64, status: u16) {
        self.set(DOOM_AT, at);
        self.set(DOOM_STATUS, u64::from(status));
    }

    /// The master's verdict on what the connection's worker was busy with when it died of itself.
    pub fn guilt(&self) -> Option<Guilt> {
        match self.get(CONDEMNED) {
            1 => Some(Guilt::Fault),
            2 => Some(Guilt::Hang),
            _ => None,
        }
    }

    /// Passes the verdict; only the master does.
    pub fn condemn(&self, guilt: Guilt) {
        self.set(CONDEMNED, guilt as u64);
    }

    /// The verdict has been carried out.
    pub fn absolve(&self) {
        self.set(CONDEMNED, 0);
    }

    /// The peer's address.
    pub fn peer(&self) -> Peer {
        use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
        let rest = self.get(PEER_REST);
        let port = rest as u16;
        match rest >> 16 & 0xff {
            4 => Peer::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(self.get(PEER_LOW) as u32)), port)),
            6 => {
                let bits = u128::from(self.get(PEER_HIGH)) << 64 | u128::from(self.get(PEER_LOW));
                Peer::Ip(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(bits)), port))
            }
            _ => Peer::Unix,
        }
    }

    /// The index of the listener that the connection came in by.
    pub fn listener(&self) -> u8 {
        (self.get(PEER_REST) >> 24) as u8
    }

    /// Says who the peer is: at accept, and again when a proxy tells whom it speaks for.
    pub fn set_peer(&self, peer: Peer, listener: u8) {
        use std::net::IpAddr;
        let (high, low, port, family) = match peer {
            Peer::Unix => (0, 0, 0, 1),
            Peer::Ip(address) => match address.ip() {
                IpAddr::V4(ip) => (0, u64::from(u32::from(ip)), address.port(), 4),
                IpAddr::V6(ip) => ((u128::from(ip) >> 64) as u64, u128::from(ip) as u64, address.port(), 6),
            },
        };
        self.set(PEER_HIGH, high);
        self.set(PEER_LOW, low);
        self.set(PEER_REST, u64::from(port) | family << 16 | u64::from(listener) << 24);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    fn record() -> Record {
        Ledger::create("test", 8, 1).unwrap().0.record(7).unwrap()
    }

    #[test]
    fn a_record_tells_what_it_was_opened_with() {
        let record = record();
        assert_eq!(record.owner(), None);
        for peer in ["10.1.2.3:80", "[fe80::1]:65535"]
            .map(|text| Peer::Ip(text.parse().unwrap()))
            .into_iter()
            .chain([Peer::Unix])
        {
            record.fill(42, peer, 3);
            record.set_owner(Owner::Worker(Incarnation(7)));
            assert_eq!((record.owner(), record.cookie()), (Some(Owner::Worker(Incarnation(7))), 42));
            assert_eq!((record.peer(), record.listener()), (peer, 3));
        }
    }

    #[test]
    fn a_file_names_its_owner_and_no_buffer() {
        let record = record();
        record.set_buffer(Some(3));
        record.fill_file(Owner::File(Incarnation(9)));
        assert_eq!((record.owner(), record.buffer()), (Some(Owner::File(Incarnation(9))), None));
        assert!(!record.claim_given(Incarnation(1)));
    }

    #[test]
    fn a_child_is_told_with_its_worker_and_its_track() {
        let record = record();
        let owner = Owner::Child { of: Incarnation(u32::MAX), lane: 3, track: 16_384 };
        record.set_owner(owner);
        assert_eq!(record.owner(), Some(owner));
        assert!(!record.claim_given(Incarnation(1)));
        let file = Owner::ChildFile { of: Incarnation(7), lane: 255, track: u16::MAX };
        record.fill_file(file);
        assert_eq!(record.owner(), Some(file));
    }

    #[test]
    fn a_given_connection_is_claimed_once() {
        let record = record();
        record.set_owner(Owner::Given);
        assert!(record.claim_given(Incarnation(2)));
        assert!(!record.claim_given(Incarnation(3)));
        assert_eq!(record.owner(), Some(Owner::Worker(Incarnation(2))));
    }

    #[test]
    fn a_copy_tells_the_same_of_the_connection_but_has_an_owner_and_a_buffer_of_its_own() {
        let (ledger, _fd) = Ledger::create("test", 8, 1).unwrap();
        let (from, to) = (ledger.record(6).unwrap(), ledger.record(7).unwrap());
        from.fill(42, Peer::Ip("10.1.2.3:80".parse().unwrap()), 3);
        from.set_owner(Owner::Given);
        from.set_buffer(Some(1));
        from.set_consumed(17);
        from.condemn(Guilt::Hang);
        to.copy(&from);
        assert_eq!((to.owner(), to.buffer()), (None, None));
        assert_eq!((to.cookie(), to.peer(), to.listener(), to.consumed()), (42, from.peer(), 3, 17));
        assert_eq!(to.guilt(), Some(Guilt::Hang));
    }

    #[test]
    fn any_word_is_a_state() {
        for word in [0, u64::MAX, 0x0102_0304_0506_0708] {
            State::from_word(word);
        }
        let state = State { first: 3, pending: 31, phase: Phase::Lingering, continued: true, in_call: true };
        assert_eq!(State::from_word(state.to_word()), state);
    }

    #[test]
    fn a_verdict_holds_until_it_is_carried_out() {
        let record = record();
        assert_eq!(record.guilt(), None);
        record.condemn(Guilt::Hang);
        assert_eq!(record.guilt(), Some(Guilt::Hang));
        record.absolve();
        assert_eq!(record.guilt(), None);
    }
}
