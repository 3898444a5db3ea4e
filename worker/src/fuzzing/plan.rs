//! What a fuzzer's bytes mean: how the connection looks, how far its worker comes, what that scribbles, what follows it.

use phalanx_shared::ledger::raw::Part;

/// Stores at most; a ledger of which everything is wrong is refused at the first check.
const MOST_STORES: usize = 24;
/// Bytes of a store in the input: part, index, manner, value.
const STORE_BYTES: usize = 11;

/// One succession.
#[derive(Debug)]
pub(super) struct Plan<'b> {
    pub(super) transport: Transport,
    pub(super) heir: Heir,
    /// The client has finished sending.
    pub(super) finished: bool,
    /// The client has gone before the successor comes.
    pub(super) gone: bool,
    /// The worker that dies holds its answers back until its next event.
    pub(super) holds_back: bool,
    /// Events that the worker gets to handle before it dies.
    pub(super) events: u8,
    /// The client reads while the worker lives.
    pub(super) reads: bool,
    pub(super) stores: Vec<Store>,
    /// What the client sends.
    pub(super) sent: &'b [u8],
}

/// What the recorded descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Unix,
    /// No socket at all.
    File,
}

/// Who comes after the dead worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heir {
    /// A worker that boots alone in its slot.
    Alone,
    /// A worker that boots beside a living one.
    Beside,
    /// A living worker that is told to bury it.
    Buries,
    /// A living worker that takes what has been given.
    Takes,
}

/// One word written to the ledger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store {
    part: u8,
    pub(super) index: u8,
    manner: u8,
    value: u64,
}

impl<'b> Plan<'b> {
    /// Every input of four bytes and more has a meaning.
    pub(super) fn read(bytes: &'b [u8]) -> Option<Plan<'b>> {
        let [shape, heir, events, count, rest @ ..] = bytes else { return None };
        let count = usize::from(*count).min(MOST_STORES).min(rest.len() / STORE_BYTES);
        let (stores, sent) = rest.split_at(count * STORE_BYTES);
        Some(Plan {
            transport: [Transport::Tcp, Transport::Tcp, Transport::Unix, Transport::File][usize::from(shape & 3)],
            heir: [Heir::Alone, Heir::Beside, Heir::Buries, Heir::Takes][usize::from(heir & 3)],
            finished: shape & 4 != 0,
            gone: shape & 0xf0 == 0xf0,
            reads: shape & 8 != 0,
            holds_back: events & 16 != 0,
            events: events % 16,
            stores: stores.chunks_exact(STORE_BYTES).filter_map(Store::read).collect(),
            sent,
        })
    }
}

impl Store {
    fn read(bytes: &[u8]) -> Option<Store> {
        let [part, index, manner, value @ ..] = bytes else { return None };
        Some(Store { part: *part, index: *index, manner: *manner, value: u64::from_le_bytes(value.try_into().ok()?) })
    }

    /// Where it goes, for a connection with descriptor `fd`.
    pub(super) fn part(&self, fd: i32) -> Part {
        match self.part % 8 {
            0..=2 => Part::Record(fd),
            3 => Part::Pending(0),
            4 => Part::Lane(0),
            5 => Part::Lane(1),
            6 => Part::Record(i32::from(self.manner)),
            _ => Part::Buffer(0),
        }
    }

    /// What the word becomes: a value outright, or one beside what stands there, which gets past more checks.
    pub(super) fn applied_to(&self, word: u64) -> u64 {
        match self.manner % 4 {
            0 => self.value,
            1 => word.wrapping_add(self.value & 0xff),
            2 => word.wrapping_sub(self.value & 0xff),
            _ => word ^ self.value,
        }
    }
}
