//! A worker's side of supervision, the same for every model: the master's words, SIGTERM, the master's death.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use phalanx_shared::ipc::{Closing, Incarnation, Pong, ToMaster, ToWorker, Word};
use phalanx_shared::ledger::lane::Wish;
use phalanx_shared::sys::rest::private_bytes;

use crate::enter::Inheritance;

/// What a worker owes its master, and hears from it.
pub(crate) struct Duty {
    inheritance: &'static Inheritance,
    incarnation: Incarnation,
    lane: usize,
    signals: SignalFd,
    wants_successor: bool,
}

impl Duty {
    /// Takes up SIGTERM by descriptor; it was blocked since before the clone.
    pub(crate) fn new(inheritance: &'static Inheritance, incarnation: Incarnation, lane: usize) -> io::Result<Duty> {
        let mut term = SigSet::empty();
        term.add(Signal::SIGTERM);
        let signals = SignalFd::with_flags(&term, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Duty { inheritance, incarnation, lane, signals, wants_successor: false })
    }

    /// Rings when the master has said something.
    pub(crate) fn bell(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&*self.inheritance.lanes[self.lane].bell).as_raw_fd()
    }

    /// Readable when SIGTERM has come.
    pub(crate) fn signal(&self) -> RawFd {
        self.signals.as_raw_fd()
    }

    /// Hangs up when the master dies.
    pub(crate) fn lifeline(&self) -> RawFd {
        self.inheritance.lifeline
    }

    /// Says a word to the master. An error means that the master is gone, which the lifeline tells too.
    pub(crate) fn say(&self, word: Word) {
        let _master_gone = self.inheritance.lanes[self.lane].say(ToMaster { from: self.incarnation, word });
    }

    /// What the master has said since; pings are answered on the way.
    pub(crate) fn hear(&mut self) -> Vec<ToWorker> {
        let end = &self.inheritance.lanes[self.lane];
        let mut words = Vec::new();
        if end.bell.silence() {
            words.push(ToWorker::Drain(Closing::Worker));
        }
        while let Some(said) = end.hear() {
            if said.to != self.incarnation {
                continue;
            }
            match said.word {
                ToWorker::Ping(number) => {
                    let wants_successor = self.wants_successor;
                    self.say(Word::Pong(Pong {
                        number,
                        stats: self.inheritance.ledger.stats_of(self.lane),
                        private_bytes: private_bytes(),
                        wants_successor,
                    }));
                }
                word => words.push(word),
            }
        }
        // The master may have been replaced by a program that has no end of the channel.
        words.extend(self.inheritance.ledger.lane(self.lane).wish().map(|wish| match wish {
            Wish::Yield => ToWorker::Yield,
            Wish::Drain => ToWorker::Drain(Closing::Worker),
            Wish::Stop => ToWorker::Drain(Closing::Service),
            Wish::Unready => ToWorker::Unready,
        }));
        words
    }

    /// SIGTERM has come: who sends it wants another worker in this one's place.
    pub(crate) fn terminated(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        self.ask_for_successor();
    }

    /// Asks for a successor with the next pong, and for a ping now.
    pub(crate) fn ask_for_successor(&mut self) {
        self.wants_successor = true;
        self.inheritance.lanes[self.lane].knock();
    }
}
