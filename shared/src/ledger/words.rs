//! Words that lanes and tracks have alike.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a worker's threads, and the processes that serve connections for it, are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Every response from now on is its connection's last: the worker is to get no new work soon.
    Unready = 1,
    /// Connections are given to another worker as soon as they are quiet.
    Give = 2,
    /// Idle connections are closed.
    CloseIdle = 4,
}

/// The orders that stand for a worker, or for a process that serves for it; each stands as long as that lives.
#[derive(Clone, Copy)]
pub struct Orders(pub(super) &'static AtomicU64);

impl Orders {
    /// Whether an order stands.
    pub fn stands(&self, order: Order) -> bool {
        self.0.load(Ordering::Acquire) & order as u64 != 0
    }

    /// Gives an order.
    pub fn give(&self, order: Order) {
        self.0.fetch_or(order as u64, Ordering::AcqRel);
    }

    /// Takes back what the one before was ordered.
    pub fn forget(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Descriptors of a worker's own, neither the slot's nor a connection: who buries it closes them. Numbers that do not fit are
/// closed by the next worker that boots alone.
#[derive(Clone, Copy)]
pub struct Notes(pub(super) &'static [AtomicU64]);

impl Notes {
    /// Notes these, and no others.
    pub fn set(&self, fds: &[RawFd]) {
        let noted = fds.iter().map(|fd| *fd as u64 + 1).chain(std::iter::repeat(0));
        for (word, noted) in self.0.iter().zip(noted) {
            word.store(noted, Ordering::Release);
        }
    }

    /// What is noted.
    pub fn get(&self) -> impl Iterator<Item = RawFd> + use<> {
        self.0.iter().filter_map(|word| RawFd::try_from(word.load(Ordering::Acquire).checked_sub(1)?).ok())
    }

    /// Takes the notes back: before the worker closes what it noted itself, or after its heir has.
    pub fn forget(&self) {
        self.set(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_what_was_noted_last() {
        static WORDS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
        let notes = Notes(&WORDS);
        notes.set(&[0, 7, 9, 11]);
        assert_eq!(notes.get().collect::<Vec<_>>(), [0, 7, 9]);
        notes.set(&[8]);
        assert_eq!(notes.get().collect::<Vec<_>>(), [8]);
        notes.forget();
        assert_eq!(notes.get().count(), 0);
    }

    #[test]
    fn orders_add_up_until_they_are_forgotten() {
        static WORD: AtomicU64 = AtomicU64::new(0);
        let orders = Orders(&WORD);
        orders.give(Order::Unready);
        orders.give(Order::CloseIdle);
        assert!(orders.stands(Order::Unready) && orders.stands(Order::CloseIdle) && !orders.stands(Order::Give));
        orders.forget();
        assert!(!orders.stands(Order::Unready));
    }
}
