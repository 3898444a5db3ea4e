//! Connections that are served as a cohort: what they have to say is read of all first, then all are answered, then all that is sent.
//! Each step finds its code, and the kernel's, in the caches, which a connection that is read, answered and sent to at once has emptied
//! for the next one: cohort scheduling (Larus and Parkes, USENIX 2002).
//!
//! To a rescue it is nothing new: what has been read is on record as read, and what has not been sent as not sent, so that its request runs
//! again if the worker dies of another's. But an answer is held back only if its requests are safe, those that come to the same the second
//! time: a DELETE may run again too, and find nothing there any more.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use phalanx_shared::ledger::record::Phase;

use super::{Connection, Context, Fate, Waits};

/// The most connections of a cohort.
pub(crate) const MOST: usize = 32;
/// What is longer is sent at once.
const MOST_BYTES: usize = 8 * 1024;
/// After this an answer leaves though there are events left; but a handler is not interrupted.
const LATE: Duration = Duration::from_millis(1);

/// Where among those that are held back an answer stands, from 1 on. Who has the number of a connection that is gone does not stand there.
pub(super) type Place = u8;

/// Answers that wait until all of the cohort have theirs.
#[derive(Default)]
pub struct HeldBack {
    /// Since when answers are held back; none: they are sent at once.
    since: Option<Instant>,
    answers: Vec<Answer>,
}

/// An answer that is held back.
pub struct Answer {
    /// Its connection.
    pub(crate) fd: RawFd,
    place: Place,
    out: Vec<u8>,
}

impl HeldBack {
    /// Answers are held back from now on.
    pub(crate) fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Some have waited for long enough.
    pub(crate) fn is_late(&self) -> bool {
        !self.answers.is_empty() && self.since.is_some_and(|since| since.elapsed() > LATE)
    }

    /// Those that are to be sent now. None is held back from now on.
    pub(crate) fn end(&mut self) -> Vec<Answer> {
        self.since = None;
        std::mem::take(&mut self.answers)
    }

    /// Takes back the memory of a list that is done with.
    pub(crate) fn reuse(&mut self, answers: Vec<Answer>) {
        self.answers = answers;
    }
}

impl Connection {
    /// Reads before the others of its cohort are answered, if it does nothing else. [`Connection::told`] is to follow.
    pub(crate) fn read_ahead(&mut self, cx: &mut Context) {
        if self.buffer.is_some() || self.goes_on || self.waits != Waits::Idle || !self.is_quiet() {
            return;
        }
        // The last ones are left to those who get by with one after the other.
        let Some(buffer) = cx.buffers.take_spare() else { return };
        self.begin_buffer(buffer);
        self.ahead = Some(self.fill(cx));
    }

    /// Has an answer wait for those of the others; gives it back if answers do not wait, or this one is too long.
    pub(super) fn hold_back(&mut self, cx: &mut Context, out: Vec<u8>) -> Result<(), Vec<u8>> {
        let HeldBack { since, answers } = &mut cx.held_back;
        if since.is_none() || answers.len() == MOST || out.len() > MOST_BYTES {
            return Err(out);
        }
        self.held_back = answers.len() as Place + 1;
        self.in_flight = true;
        answers.push(Answer { fd: self.fd, place: self.held_back, out });
        Ok(())
    }

    /// Its answer waits.
    pub(crate) fn is_held_back(&self) -> bool {
        self.held_back > 0
    }

    /// Sends what was held back; nothing, if it was another's.
    pub(crate) fn send_held_back(&mut self, cx: &mut Context, answer: Answer) -> Fate {
        if self.held_back != answer.place {
            return Fate::Stay;
        }
        (self.held_back, self.in_flight) = (0, false);
        let fate = self.write_by_calls(cx, &answer.out, None);
        cx.keep_spare(answer.out);
        match fate {
            Fate::Stay if !self.is_done() => Fate::Stay,
            // The answers of others leave before its next requests have theirs.
            Fate::Stay if self.begun.is_none() && self.buffer.is_some() && self.record.state().phase == Phase::Open => {
                Fate::GoOn
            }
            Fate::Stay => self.after_response(cx),
            fate => fate,
        }
    }
}
