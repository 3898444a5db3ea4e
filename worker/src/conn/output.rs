//! The writing half: responses on record leave in order; what the peer does not take yet waits here. When the last byte of a
//! batch has left, its requests are taken off the record and counted.

use std::io::IoSlice;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send, sendmsg};
use phalanx_shared::ledger::BUFFER_BYTES;
use phalanx_shared::ledger::journal::Retire;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Phase, State};
use phalanx_shared::sys::table::borrow;

use super::stream::{Coding, Next, Stream};
use super::tail::{FilePart, Part, Temperature};
use super::{Connection, Context, Fate, Waits, Why};
use crate::crash_point::{self, Point};
use crate::http::Prepared;
use crate::http::reply::Tail;
use crate::pool::Job;

/// Bytes of a file sent in one turn before other connections get theirs.
const FILE_TURN: u64 = 2 * 1024 * 1024;
/// What follows a head in memory is copied behind it for a ring to send, up to this length: more is sent by calls.
const COPIED: u64 = 16 * 1024;
/// Pieces in memory that leave in one call.
const GATHERED: usize = 8;

/// What is still to be written of a batch of responses.
#[derive(Default)]
pub(super) struct Output {
    pub(super) parts: std::collections::VecDeque<Part>,
    /// Makes more parts once those are gone.
    pub(super) stream: Option<Stream>,
}

enum Wrote {
    All,
    /// The peer takes no more for now, or its turn is over.
    Part,
    /// What comes next has to be fetched first.
    Later(Job),
    Broken,
}

impl Output {
    /// What is to follow a head of so many bytes, which left already or stands before it.
    pub(super) fn new(head: u64, tail: Tail, chunked: bool) -> Output {
        let mut output = Output::default();
        match tail {
            Tail::None => {}
            Tail::Cached(prepared) => output.parts.push_back(Part::Cached { prepared, at: 0 }),
            Tail::Pieces(pieces) => output.parts.extend(pieces.into_iter().map(Part::from)),
            Tail::Stream(source, len) => output.stream = Some(Stream::new(head, source, Coding::of(len, chunked))),
        }
        output
    }

    /// Nothing is to be sent.
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.stream.is_none()
    }

    /// It is all in memory, and short.
    fn is_short_memory(&self) -> bool {
        self.stream.is_none() && self.len() <= COPIED && self.parts.iter().all(|part| part.in_memory().is_some())
    }

    /// Bytes that are still to be sent, as far as that is known.
    pub(super) fn len(&self) -> u64 {
        self.parts.iter().map(Part::len).sum()
    }

    /// Drops the first `count` bytes, which have left.
    pub(super) fn skip(&mut self, mut count: u64) {
        while count > 0
            && let Some(part) = self.parts.front_mut()
        {
            count -= part.advance(count);
            if part.len() == 0 {
                self.parts.pop_front();
            }
        }
        if let Some(stream) = self.stream.as_mut() {
            stream.skip(count);
        }
    }
}

impl Connection {
    /// Writes a batch: `out`, then `tail`. What the peer does not take stays in `self.output`. `may_wait`: it need not be sent at once.
    pub(super) fn write_batch(
        &mut self,
        cx: &mut Context,
        mut out: Vec<u8>,
        tail: Option<Box<Output>>,
        may_wait: bool,
    ) -> Fate {
        if cx.by_ring && !self.unix && tail.as_ref().is_none_or(|tail| tail.is_short_memory()) {
            let parts = tail.iter().flat_map(|tail| &tail.parts);
            crash_point::pass(Point::BeforeWrite);
            parts.filter_map(Part::in_memory).for_each(|bytes| out.extend_from_slice(bytes));
            self.send_by_ring(out);
            cx.out = cx.spare.pop().unwrap_or_default();
            return Fate::Stay;
        }
        if may_wait && tail.is_none() {
            match self.hold_back(cx, out) {
                Ok(()) => {
                    cx.out = cx.spare.pop().unwrap_or_default();
                    return Fate::Stay;
                }
                Err(back) => out = back,
            }
        }
        let fate = self.write_by_calls(cx, &out, tail);
        cx.out = out;
        fate
    }

    /// Writes `out`, then `tail`, now.
    pub(super) fn write_by_calls(&mut self, cx: &mut Context, out: &[u8], tail: Option<Box<Output>>) -> Fate {
        crash_point::pass(Point::BeforeWrite);
        let mut at = 0;
        // What is in memory leaves in one call with what stands before it; a file cannot.
        let first = tail.as_ref().and_then(|tail| tail.parts.front());
        if first.is_none_or(|part| part.in_memory().is_none()) {
            match self.write_bytes(cx, out, &mut at) {
                Wrote::Broken => return Fate::Close,
                Wrote::All if tail.as_ref().is_none_or(|tail| tail.is_empty()) => return self.batch_done(cx),
                _ => {}
            }
        }
        let mut output = tail.unwrap_or_default();
        if at < out.len() {
            output.parts.push_front(Part::Bytes { bytes: out[at..].to_vec().into(), at: 0 });
        }
        self.output = Some(output);
        self.resume_output(cx)
    }

    /// Writes on. `Stay` with no output left means that the batch is done.
    pub(super) fn resume_output(&mut self, cx: &mut Context) -> Fate {
        let Some(mut output) = self.output.take() else { return Fate::Stay };
        match self.write_parts(cx, &mut output) {
            Wrote::All => self.batch_done(cx),
            Wrote::Part => {
                self.output = Some(output);
                Fate::Stay
            }
            Wrote::Later(job) => {
                self.output = Some(output);
                self.wait_for(cx, job, Why::Output)
            }
            Wrote::Broken => Fate::Close,
        }
    }

    /// The rest cannot be had: the peer is to see that, and to one of HTTP/1.0 an orderly end is the end of the body.
    fn break_off(&self) -> Wrote {
        crate::rescue::reset_on_close(self.fd);
        Wrote::Broken
    }

    fn write_parts(&mut self, cx: &mut Context, output: &mut Output) -> Wrote {
        let mut turn = FILE_TURN;
        loop {
            let wrote = match output.parts.front_mut() {
                None if turn == 0 && output.stream.is_some() => return Wrote::Part,
                None => match output.stream.as_mut().map(Stream::next) {
                    None => return Wrote::All,
                    Some(Next::Later(job)) => return Wrote::Later(job),
                    Some(Next::Now(portion)) => {
                        turn = turn.saturating_sub(portion.len());
                        if !self.take_portion(cx, output, portion) {
                            return self.break_off();
                        }
                        Wrote::All
                    }
                    Some(Next::Lost) => return self.break_off(),
                },
                Some(Part::File(_)) if turn == 0 => return Wrote::Part,
                Some(Part::File(part)) => match part.look(turn, cx.setting.turn()) {
                    Temperature::Cold(job) => return Wrote::Later(job),
                    Temperature::Warm => self.write_file(cx, part, &mut turn),
                },
                Some(_) => self.write_memory(cx, output),
            };
            if !matches!(wrote, Wrote::All) {
                return wrote;
            }
            while output.parts.front().is_some_and(|part| part.len() == 0) {
                output.parts.pop_front();
            }
        }
    }

    /// Writes the parts in front that are in memory, in one call.
    fn write_memory(&mut self, cx: &Context, output: &mut Output) -> Wrote {
        let mut slices: Vec<&[u8]> = output.parts.iter().take(GATHERED).map_while(Part::in_memory).collect();
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut allowed = crash_point::cut(total);
        for slice in &mut slices {
            *slice = &slice[..slice.len().min(allowed)];
            allowed -= slice.len();
        }
        let gathered: Vec<IoSlice<'_>> = slices.into_iter().map(IoSlice::new).collect();
        self.enter_call();
        let result = sendmsg::<()>(self.fd, &gathered, &[], MsgFlags::MSG_NOSIGNAL, None);
        crash_point::after_cut();
        crash_point::pass(Point::AfterWrite);
        match result {
            Ok(count) => {
                self.wrote(cx, count);
                let mut left = count as u64;
                for part in &mut output.parts {
                    left -= part.advance(left);
                }
                // The queue is full: the next attempt would only say so.
                if count < total { Wrote::Part } else { Wrote::All }
            }
            Err(error) => self.not_written(error),
        }
    }

    fn write_bytes(&mut self, cx: &Context, bytes: &[u8], at: &mut usize) -> Wrote {
        while *at < bytes.len() {
            let rest = &bytes[*at..];
            let rest = &rest[..crash_point::cut(rest.len())];
            self.enter_call();
            let result = send(self.fd, rest, MsgFlags::MSG_NOSIGNAL);
            crash_point::after_cut();
            crash_point::pass(Point::AfterWrite);
            match result {
                Ok(count) => {
                    *at += count;
                    self.wrote(cx, count);
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return self.not_written(error),
            }
            if *at < bytes.len() {
                return Wrote::Part;
            }
        }
        Wrote::All
    }

    fn write_file(&mut self, cx: &Context, part: &mut FilePart, turn: &mut u64) -> Wrote {
        while part.left > 0 && part.warm > 0 && *turn > 0 {
            let count = crash_point::cut(part.left.min(*turn).min(part.warm) as usize);
            let mut offset = part.offset as i64;
            self.enter_call();
            let result = sendfile64(borrow(self.fd), &*part.file, Some(&mut offset), count);
            crash_point::after_cut();
            crash_point::pass(Point::AfterWrite);
            match result {
                // The file is shorter than it was: the promised length cannot be kept.
                Ok(0) => return Wrote::Broken,
                Ok(sent) => {
                    part.advance(sent as u64);
                    *turn -= (sent as u64).min(*turn);
                    self.wrote(cx, sent);
                    if sent < count {
                        return Wrote::Part;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return self.not_written(error),
            }
        }
        Wrote::All
    }

    /// The peer did not take what follows the first `at` bytes at once.
    pub(super) fn leave_rest(&mut self, bytes: Vec<u8>, at: usize) {
        let mut output = Output::default();
        output.parts.push_front(Part::Bytes { bytes: bytes.into(), at });
        self.output = Some(Box::new(output));
    }

    pub(super) fn wrote(&self, cx: &Context, count: usize) {
        self.record.set_sent(self.record.sent() + count as u64);
        self.leave_call();
        cx.stats.add(Counter::BytesOut, count as u64);
    }

    fn not_written(&self, error: Errno) -> Wrote {
        self.leave_call();
        if matches!(error, Errno::EAGAIN | Errno::EINTR) { Wrote::Part } else { Wrote::Broken }
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
    pub(super) fn batch_done(&mut self, cx: &mut Context) -> Fate {
        if self.upload.is_some() && !self.end_early(cx) {
            return Fate::Stay;
        }
        if !self.retire_sent(cx) {
            return Fate::Close;
        }
        let State { first, pending, .. } = self.record.state();
        if pending.checked_sub(first) != Some(u8::from(self.begun.is_some())) {
            return Fate::Close;
        }
        // Its head was wanted as long as its answer was on the way.
        self.upload = None;
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
        cx.track.journal().retire(&record, &retire, &cx.stats, || crash_point::pass(Point::Retiring));
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

/// The bytes of a kept reply's body from `at` on.
pub(super) fn rest_of(prepared: &Arc<Prepared>, at: usize) -> &[u8] {
    prepared.body().get(at..).unwrap_or(&[])
}
