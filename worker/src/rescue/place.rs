//! Where a connection stands, told from its record and the kernel's counts: what has been sent is retired, what was cut goes on
//! at the exact byte, what may run again does, and the rest gets an error.

use phalanx_shared::ledger::journal::Retire;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Guilt, Phase, Record, State};
use phalanx_shared::ledger::response::Entry;
use phalanx_shared::ledger::{BUFFER_BYTES, Pending};

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
        let first = skip_sent(&record, list, state)?;
        if first > state.first {
            self.retire_sent(cx, list, state, first)?;
        }
        if state.phase == Phase::Lingering {
            return Ok(());
        }
        if first == state.pending {
            self.after_all_sent(cx, state, guilt);
            return Ok(());
        }
        let entry = list.get(first.into()).ok_or("its record is damaged")?;
        if entry.response_end != 0 && record.sent() > entry.response_start {
            return self.break_in_the_middle(cx, &entry, first, guilt);
        }
        if record.sent() != entry.response_start {
            return Err("more was sent than any response had");
        }
        match state.phase {
            Phase::Streaming => self.doom_upload(),
            _ => self.replay(cx, list, State { first, ..state }, guilt),
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

    /// Takes requests `state.first..first`, whose responses have left whole, off the record.
    fn retire_sent(&mut self, cx: &mut Context, list: Pending, state: State, first: u8) -> Result<(), Refusal> {
        let entries = || (state.first..first).filter_map(|index| list.get(index.into()));
        let last = entries().next_back().ok_or("its record is damaged")?;
        let answered = entries().filter(|entry| !entry.kind.interim).count() as u64;
        let all = first == state.pending;
        let phase = if all && last.kind.last { Phase::Lingering } else { Phase::Open };
        let next = State {
            first: if all { 0 } else { first },
            pending: if all { 0 } else { state.pending },
            continued: last.kind.interim,
            phase,
            in_call: false,
        };
        let (base, consumed) = (self.record.base(), self.record.consumed());
        let sound = base <= last.request_end && last.request_end <= consumed && consumed - base <= BUFFER_BYTES as u64;
        if !sound {
            return Err("its stream positions are damaged");
        }
        let retire = Retire { fd: self.fd, start: last.request_end, state: next, answered };
        cx.lane.journal().retire(&self.record, &retire, &cx.stats, || ());
        Ok(())
    }

    /// Nothing is on its way. What had been read is still there to be answered, unless answering it is what killed.
    fn after_all_sent(&mut self, cx: &mut Context, state: State, guilt: Option<Guilt>) {
        let record = self.record;
        if record.state().phase == Phase::Lingering {
            return;
        }
        let unanswered = record.start() < record.consumed();
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
        entry: &Entry,
        first: u8,
        guilt: Option<Guilt>,
    ) -> Result<(), Refusal> {
        let (record, state) = (self.record, self.record.state());
        if guilt.is_some() || state.phase == Phase::Streaming || !entry.kind.idempotent {
            return Err("its response was partly sent and cannot be made again");
        }
        // Responses begun after this one are dropped: their requests are answered again.
        record.set_state(State { first, pending: first + 1, in_call: false, ..state });
        if !self.resume(cx, entry, record.sent()) {
            return Err("its response was partly sent and would now be another");
        }
        cx.stats.add(Counter::Continued, 1);
        Ok(())
    }

    /// Requests `state.first..state.pending` were in a handler, or behind it, and nothing of their responses has left: those
    /// that may run again do, the first that may not is answered with an error and ends the connection.
    fn replay(&mut self, cx: &mut Context, list: Pending, state: State, guilt: Option<Guilt>) {
        let record = self.record;
        let mut at = record.start();
        for index in state.first..state.pending {
            let Some(entry) = list.get(index.into()) else { break };
            if let Some(status) = self.fate_of(cx, &entry, at, guilt) {
                self.doom(at, status);
                break;
            }
            cx.stats.add(Counter::Replayed, u64::from(!entry.kind.interim));
            at = entry.request_end;
        }
        record.set_state(State { continued: record.state().continued, ..State::default() });
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
        (attempts > u64::from(cx.rescue.max_attempts)).then_some(500)
    }

    fn doom(&self, at: u64, status: u16) {
        self.record.set_doom(at, status);
    }
}

/// The first entry that is not sent whole.
fn skip_sent(record: &Record, list: Pending, state: State) -> Result<u8, Refusal> {
    let mut first = state.first;
    while first < state.pending {
        let entry = list.get(first.into()).ok_or("its record is damaged")?;
        if entry.response_end == 0 || entry.response_end > record.sent() {
            break;
        }
        first += 1;
    }
    Ok(first)
}

fn status_of(guilt: Guilt) -> u16 {
    match guilt {
        Guilt::Fault => 500,
        Guilt::Hang => 504,
    }
}
