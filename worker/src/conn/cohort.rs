//! Connections that are served as a cohort: what they have to say is read of all first, then all are answered, then all that is sent.
//! Each step finds its code, and the kernel's, in the caches, which a connection that is read, answered and sent to at once has emptied
//! for the next one: cohort scheduling (Larus and Parkes, USENIX 2002).
//!
//! To a rescue it is nothing new: what has been read is on record as read, and what has not been sent as not sent, so that its request runs
//! again if the worker dies of another's. But an answer is held back only if its requests are safe, those that come to the same the second
//! time: a DELETE may run again too, and find nothing there any more.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::{Connection, Context, Fate, Waits};

/// The most connections of a cohort.
pub(crate) const MOST: usize = 32;
/// What is longer is sent at once.
const MOST_BYTES: usize = 8 * 1024;
/// An answer waits no longer for those of others; but a handler is not interrupted.
const LATE: Duration = Duration::from_millis(1);

/// The cohort at hand.
#[derive(Default)]
pub struct Cohort {
    /// When it began; none: there is none, and nothing is held back.
    began: Option<Instant>,
    /// What is held back, each with its connection.
    answers: Vec<(RawFd, Vec<u8>)>,
}

impl Cohort {
    /// Answers are held back from now on.
    pub(crate) fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// What is held back has waited for long enough.
    pub(crate) fn is_late(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() > LATE)
    }

    /// What was held back is to be sent, each with its place in the order; nothing more is held back.
    pub(crate) fn end(&mut self) -> Vec<(RawFd, Vec<u8>)> {
        self.began = None;
        std::mem::take(&mut self.answers)
    }

    /// Takes the memory of a list back that is done with.
    pub(crate) fn reuse(&mut self, answers: Vec<(RawFd, Vec<u8>)>) {
        self.answers = answers;
    }
}

/// What an answer is held back as: its place in the order, from 1 on. Who has the number of a connection that is gone is not at that place.
pub(super) type Place = u8;

impl Connection {
    /// Reads before the others of its cohort are answered, if it does nothing else. [`Connection::told`] is to follow.
    pub(crate) fn read_ahead(&mut self, cx: &mut Context) {
        if self.buffer.is_some() || self.waits != Waits::Idle || cx.by_ring || !self.is_quiet() {
            return;
        }
        // The last ones are left to those who get by with one after the other.
        let Some(buffer) = cx.buffers.take_spare() else { return };
        self.begin_buffer(buffer);
        self.ahead = Some(self.fill(cx));
    }

    /// Has an answer wait for those of the others, unless it is too long for that.
    pub(super) fn hold_back(&mut self, cx: &mut Context, out: Vec<u8>) -> Result<(), Vec<u8>> {
        let answers = &mut cx.cohort.answers;
        if cx.cohort.began.is_none() || answers.len() == MOST || out.len() > MOST_BYTES {
            return Err(out);
        }
        answers.push((self.fd, out));
        self.held_back = answers.len() as Place;
        self.in_flight = true;
        Ok(())
    }

    /// Its answer waits.
    pub(crate) fn is_held_back(&self) -> bool {
        self.held_back > 0
    }

    /// Sends what was held back at `place`; nothing, if that was another's.
    pub(crate) fn send_held_back(&mut self, cx: &mut Context, place: usize, out: Vec<u8>) -> Fate {
        if usize::from(self.held_back) != place {
            return Fate::Stay;
        }
        (self.held_back, self.in_flight) = (0, false);
        let fate = self.write_by_calls(cx, &out, None);
        cx.keep_spare(out);
        match fate {
            Fate::Stay if self.is_done() => self.after_response(cx),
            fate => fate,
        }
    }
}
