//! Where a connection stands, told from its record and the kernel's counts: what has been sent is retired, what was cut goes on
//! at the exact byte, what may run again does, and the rest gets an error.

use phalanx_shared::ledger::Pending;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Guilt, Phase, State};
use phalanx_shared::ledger::response::Entry;

use super::Refusal;
use crate::conn::{Connection, Context};

impl Connection {
    /// Puts the connection where its client believes it to be.
    pub(super) fn place(&mut self, cx: &mut Context) -> Result<(), Refusal> {
        let (record, state) = (self.record, self.record.state());
        let guilt = record.guilt();
        let Some(list) = self.pending(cx) else {
            return Ok(());
        };
        if !self.retire_sent(cx) {
            return Err("its record is damaged");
        }
        let left = record.state();
        if left.phase == Phase::Lingering {
            return Ok(());
        }
        if left.first == left.pending {
            self.after_all_sent(cx, state, guilt);
            return Ok(());
        }
        let entry = list.get(left.first.into()).ok_or("its record is damaged")?;
        if entry.response_end != 0 && record.sent() > entry.response_start {
            return self.break_in_the_middle(cx, list, &entry, state.phase, guilt);
        }
        if record.sent() != entry.response_start {
            return Err("more was sent than any response had");
        }
        match state.phase {
            Phase::Streaming => self.doom_upload(),
            _ => {
                self.replay(cx, list, left, record.start(), guilt);
                record.set_state(State { continued: left.continued, ..State::default() });
            }
        }
        Ok(())
    }

    /// A request whose body was handed on in part. Where its head and the pieces stand in the buffer died with the worker: all
    /// that was read counts as gone, and an error ends the connection.
    fn doom_upload(&mut self) {
        let at = self.record.consumed();
        self.record.set_base(at);
        self.record.set_start(at);
        self.doom(at, 500);
        self.record.set_state(State::default());
    }

    /// Nothing is on its way. What had been read is still there to be answered, unless answering it is what killed.
    fn after_all_sent(&mut self, cx: &mut Context, state: State, guilt: Option<Guilt>) {
        let record = self.record;
        if record.state().phase == Phase::Lingering {
            return;
        }
        // A doom that a rescuer before this one pronounced may stand behind the last byte read.
        let doomed = record.doom().is_some_and(|(at, _)| at == record.start());
        let unanswered = record.start() < record.consumed() || doomed;
        if state.phase == Phase::Streaming && state.pending == 0 {
            self.doom_upload();
        } else if unanswered && let Some(guilt) = guilt {
            self.doom(record.start(), status_of(guilt));
        } else if !unanswered {
            self.release_buffer(cx);
        }
    }

    /// A response was cut in the middle: goes on at the exact byte if it can be made again, else the peer must see the cut.
    fn break_in_the_middle(
        &mut self,
        cx: &mut Context,
        list: Pending,
        entry: &Entry,
        phase: Phase,
        guilt: Option<Guilt>,
    ) -> Result<(), Refusal> {
        let (record, state) = (self.record, self.record.state());
        if guilt.is_some() || phase == Phase::Streaming || !entry.kind.idempotent {
            return Err("its response was partly sent and cannot be made again");
        }
        // Responses begun after this one are dropped: their requests run again, where they may.
        self.replay(cx, list, State { first: state.first + 1, ..state }, entry.request_end, None);
        record.set_state(State { pending: state.first + 1, in_call: false, ..state });
        if !self.resume(cx, entry) {
            return Err("its response was partly sent and would now be another");
        }
        cx.stats.add(Counter::Continued, 1);
        Ok(())
    }

    /// Requests `state.first..state.pending`, the first of which stands at `at`, were in a handler, or behind it, and nothing of
    /// their responses has left: those that may run again will, the first that may not is doomed to an error.
    fn replay(&mut self, cx: &mut Context, list: Pending, state: State, mut at: u64, guilt: Option<Guilt>) {
        for index in state.first..state.pending {
            let Some(entry) = list.get(index.into()) else { return };
            if let Some(status) = self.fate_of(cx, &entry, at, guilt) {
                return self.doom(at, status);
            }
            cx.stats.add(Counter::Replayed, u64::from(!entry.kind.interim));
            if !entry.kind.interim {
                self.replayed_until = entry.request_end;
            }
            at = entry.request_end;
        }
        // No handler ran: what came next in the buffer is what killed.
        if let Some(guilt) = guilt {
            self.doom(at, status_of(guilt));
        }
    }

    /// The error status of a request that may not run again; none: it may.
    fn fate_of(&self, cx: &Context, entry: &Entry, at: u64, guilt: Option<Guilt>) -> Option<u16> {
        let in_handler = entry.response_end == 0;
        if entry.kind.interim {
            return None;
        }
        if in_handler && let Some(guilt) = guilt {
            return Some(status_of(guilt));
        }
        if !entry.kind.idempotent {
            return Some(500);
        }
        if !in_handler {
            return None;
        }
        let attempts = if self.record.attempt_at() == at { self.record.attempts().saturating_add(1) } else { 1 };
        self.record.set_attempt_at(at);
        self.record.set_attempts(attempts);
        (attempts > cx.rescue.max_attempts).then_some(500)
    }

    fn doom(&self, at: u64, status: u16) {
        self.record.set_doom(at, status);
    }
}

fn status_of(guilt: Guilt) -> u16 {
    match guilt {
        Guilt::Fault => 500,
        Guilt::Hang => 504,
    }
}
