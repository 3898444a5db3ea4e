//! The writing half: responses on record leave in order; what the peer does not take yet waits here. When the last byte of a
//! batch has left, its requests are taken off the record and counted.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send};
use phalanx_shared::ledger::BUFFER_BYTES;
use phalanx_shared::ledger::journal::Retire;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Phase, State};
use phalanx_shared::sys::table::borrow;

use super::{Connection, Context, Fate, Waits};
use crate::crash_point::{self, Point};

/// Bytes of a file sent in one turn before other connections get theirs.
const FILE_TURN: u64 = 1024 * 1024;

/// What is still to be written of a batch of responses.
pub(super) struct Output {
    /// Bytes, of which those before `at` have left.
    pub(super) bytes: Vec<u8>,
    pub(super) at: usize,
    /// The body of the last response, if it is a file.
    pub(super) file: Option<Span>,
}

/// A part of a file.
pub(super) struct Span {
    pub(super) file: File,
    pub(super) offset: u64,
    pub(super) left: u64,
}

enum Wrote {
    All,
    Part,
    Broken,
}

impl Connection {
    /// Writes a batch: `out`, then `file`. What the peer does not take stays in `self.output`.
    pub(super) fn write_batch(&mut self, cx: &mut Context, out: &[u8], file: Option<Span>) -> Fate {
        crash_point::pass(Point::BeforeWrite);
        let mut at = 0;
        if let Some(span) = &file {
            self.record.set_file(Some(span.file.as_raw_fd()));
        }
        match self.write_bytes(cx, out, &mut at, file.is_some()) {
            Wrote::All if file.is_none() => self.batch_done(cx),
            Wrote::Broken => {
                self.record.set_file(None);
                Fate::Close
            }
            Wrote::All | Wrote::Part => {
                self.output = Some(Box::new(Output { bytes: out[at..].to_vec(), at: 0, file }));
                self.resume_output(cx)
            }
        }
    }

    /// Writes on. `Stay` with no output left means that the batch is done.
    pub(super) fn resume_output(&mut self, cx: &mut Context) -> Fate {
        let Some(mut output) = self.output.take() else { return Fate::Stay };
        let more = output.file.is_some();
        let mut wrote = self.write_bytes(cx, &output.bytes, &mut output.at, more);
        if let (Wrote::All, Some(span)) = (&wrote, output.file.as_mut()) {
            wrote = self.write_file(cx, span);
        }
        if matches!(wrote, Wrote::Part) {
            self.output = Some(output);
            return Fate::Stay;
        }
        if output.file.is_some() {
            self.record.set_file(None);
        }
        match wrote {
            Wrote::All => self.batch_done(cx),
            _ => Fate::Close,
        }
    }

    fn write_bytes(&mut self, cx: &Context, bytes: &[u8], at: &mut usize, more: bool) -> Wrote {
        let flags =
            MsgFlags::MSG_NOSIGNAL | if more { MsgFlags::from_bits_retain(libc::MSG_MORE) } else { MsgFlags::empty() };
        while *at < bytes.len() {
            let rest = &bytes[*at..];
            let rest = &rest[..crash_point::cut(rest.len())];
            self.enter_call();
            let result = send(self.fd, rest, flags);
            crash_point::after_cut();
            crash_point::pass(Point::AfterWrite);
            match result {
                Ok(count) => {
                    *at += count;
                    self.wrote(cx, count);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return self.not_written(error),
            }
            if *at < bytes.len() {
                // The queue is full: the next attempt would only say so.
                return Wrote::Part;
            }
        }
        Wrote::All
    }

    fn write_file(&mut self, cx: &Context, span: &mut Span) -> Wrote {
        let mut turn = FILE_TURN;
        while span.left > 0 && turn > 0 {
            let count = crash_point::cut(span.left.min(turn) as usize);
            let mut offset = span.offset as i64;
            self.enter_call();
            let result = sendfile64(borrow(self.fd), &span.file, Some(&mut offset), count);
            crash_point::after_cut();
            crash_point::pass(Point::AfterWrite);
            match result {
                // The file is shorter than it was: the promised length cannot be kept.
                Ok(0) => return Wrote::Broken,
                Ok(count) => {
                    span.offset += count as u64;
                    span.left -= count as u64;
                    turn -= (count as u64).min(turn);
                    self.wrote(cx, count);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return self.not_written(error),
            }
        }
        if span.left == 0 { Wrote::All } else { Wrote::Part }
    }

    fn wrote(&self, cx: &Context, count: usize) {
        self.record.set_sent(self.record.sent() + count as u64);
        cx.stats.add(Counter::BytesOut, count as u64);
        self.leave_call();
    }

    fn not_written(&self, error: Errno) -> Wrote {
        self.leave_call();
        if error == Errno::EAGAIN { Wrote::Part } else { Wrote::Broken }
    }

    fn enter_call(&self) {
        if self.unix {
            self.record.set_state(State { in_call: true, ..self.record.state() });
        }
    }

    fn leave_call(&self) {
        if self.unix {
            self.record.set_state(State { in_call: false, ..self.record.state() });
        }
    }

    /// Takes the requests of a batch off the record.
    fn batch_done(&mut self, cx: &mut Context) -> Fate {
        if !self.retire_sent(cx) || self.record.state().pending != 0 {
            return Fate::Close;
        }
        self.waits = Waits::Idle;
        if self.record.start() == self.record.consumed() {
            self.release_buffer(cx);
        }
        Fate::Stay
    }

    /// Takes requests whose responses have left whole off the record, counted, in one commit with what the connection is from
    /// then on. False when the record is damaged.
    pub(crate) fn retire_sent(&mut self, cx: &mut Context) -> bool {
        let (record, state) = (self.record, self.record.state());
        let Some(list) = self.pending(cx) else { return true };
        let (sent, mut first, mut answered, mut last) = (record.sent(), state.first, 0, None);
        while first < state.pending {
            let Some(entry) = list.get(first.into()) else { return false };
            if entry.response_end == 0 || entry.response_end > sent {
                break;
            }
            answered += u64::from(!entry.kind.interim);
            last = Some(entry);
            first += 1;
        }
        let Some(last) = last else { return true };
        let (base, end, consumed) = (record.base(), last.request_end, record.consumed());
        if base > end || end > consumed || consumed - base > BUFFER_BYTES as u64 {
            return false;
        }
        let all = first == state.pending;
        let next = State {
            first: if all { 0 } else { first },
            pending: if all { 0 } else { state.pending },
            phase: if all && last.kind.last { Phase::Lingering } else { Phase::Open },
            continued: last.kind.interim,
            in_call: state.in_call,
        };
        let retire = Retire { fd: self.fd, start: end, state: next, answered };
        cx.lane.journal().retire(&record, &retire, &cx.stats, || crash_point::pass(Point::Retiring));
        // These may be off by one after a death in between: only the requests themselves are counted to the last one.
        for entry in (state.first..first).filter_map(|index| list.get(index.into())) {
            cx.stats.count_status(entry.kind.status);
        }
        if all && last.kind.last && record.doom().is_some() {
            cx.stats.add(Counter::Failed, 1);
        }
        true
    }
}
