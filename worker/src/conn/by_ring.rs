//! What a ring has received for a connection: taken over as the connection's buffer, or copied into the one it has; what it cannot
//! take yet is held in the order of the stream, on record as all that was read.

use std::collections::VecDeque;
use std::io;

use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::ledger::record::{Phase, State};
use phalanx_shared::ledger::{BUFFER_BYTES, Ledger};
use phalanx_shared::sys::region::Buffer;

use super::input::Filled;
use super::{Connection, Context, Fate};
use crate::crash_point::{self, Point};

/// Buffers that are held of one connection before its ring is to stop.
const ENOUGH: usize = 4;

/// What a ring has brought and not been relieved of, and what it is to send.
#[derive(Default)]
pub(super) struct Mail {
    outgoing: Option<Vec<u8>>,
    held: VecDeque<Piece>,
    /// Nothing more will come: the peer has finished sending.
    end: bool,
}

struct Piece {
    buffer: Buffer,
    position: u64,
    len: usize,
}

impl Mail {
    /// What a dead worker held for the connection of this record; none when its ledger is damaged.
    pub(super) fn left_behind(ledger: &Ledger, record: &super::Record) -> Option<Mail> {
        let mut mail = Mail::default();
        for index in ledger.chain(record) {
            let held = ledger.held(index)?;
            let (position, len) = (held.position(), held.filled());
            // What was taken before the death.
            if held.end() <= record.consumed() {
                continue;
            }
            mail.held.push_back(Piece { buffer: ledger.buffer(index)?, position, len });
        }
        let mut at = record.consumed();
        for piece in &mail.held {
            if piece.position > at {
                return None;
            }
            at = piece.position + piece.len as u64;
        }
        Some(mail)
    }
}

impl Connection {
    /// Takes what a dead worker had received ahead for the connection; none when that is damaged.
    pub(crate) fn take_left_behind(&mut self, cx: &mut Context) -> Option<()> {
        if self.record.held().is_some() {
            let mail = Mail::left_behind(&cx.ledger, &self.record)?;
            self.record.set_held(mail.held.front().map(|next| next.buffer.index()));
            cx.held += mail.held.len();
            self.mail = (!mail.held.is_empty()).then(|| Box::new(mail));
        }
        Some(())
    }

    /// Takes what a ring has received on record. From then on it is found there, and no longer in the ring.
    pub(crate) fn take_received(&mut self, cx: &mut Context, buffer: Buffer, len: usize) -> Fate {
        crash_point::pass(Point::AfterRead);
        let state = self.record.state();
        if state.phase == Phase::Lingering {
            cx.buffers.put(buffer);
            return Fate::Stay;
        }
        if self.unix {
            // Its kernel counts nothing: whether this was taken could not be told in between.
            self.record.set_state(State { in_call: true, ..state });
        }
        cx.stats.add(Counter::BytesIn, len as u64);
        let is_next = !self.has_held() && self.upload.is_none() && state.phase == Phase::Open;
        let used = self.buffered();
        match &mut self.buffer {
            None if is_next => {
                self.begin_buffer(buffer);
                self.record.set_consumed(self.record.consumed() + len as u64);
            }
            Some(own) if is_next && used + len <= BUFFER_BYTES => {
                own.bytes_mut()[used..used + len].copy_from_slice(&buffer.bytes()[..len]);
                self.record.set_consumed(self.record.consumed() + len as u64);
                cx.buffers.put(buffer);
            }
            _ => return self.hold(cx, buffer, len),
        }
        Fate::Stay
    }

    /// The ring does not know any more what has been taken.
    pub(crate) fn received(&mut self, cx: &mut Context, outcome: &io::Result<usize>) -> Fate {
        if self.unix {
            self.record.set_state(State { in_call: false, ..self.record.state() });
        }
        match outcome {
            Err(_) => return Fate::Close,
            Ok(0) => self.mail.get_or_insert_default().end = true,
            Ok(_) => {}
        }
        if self.is_busy() {
            return Fate::Stay;
        }
        match self.record.state().phase {
            Phase::Lingering => Fate::Stay,
            Phase::Open if self.upload.is_none() && !self.has_more() => self.serve(cx),
            _ => self.readable(cx),
        }
    }

    /// What becomes of it, seeing that there may be something to be read that no event will tell.
    pub(crate) fn with_mail(&mut self, cx: &mut Context, fate: Fate) -> Fate {
        if fate != Fate::Stay || !self.has_more() {
            return fate;
        }
        if self.record.state().phase == Phase::Lingering {
            // Thrown away, as all that still comes.
            let ended = self.mail.as_mut().is_some_and(|mail| std::mem::take(&mut mail.end));
            self.drop_held(cx);
            return if ended { Fate::Close } else { Fate::Stay };
        }
        if self.is_busy() { Fate::Stay } else { Fate::GoOn }
    }

    /// There is something to be read that no event will tell.
    pub(crate) fn has_more(&self) -> bool {
        self.mail.as_ref().is_some_and(|mail| mail.end || !mail.held.is_empty())
    }

    /// As much is held as is to be: the ring is to stop until that is taken.
    pub(crate) fn holds_enough(&self) -> bool {
        self.mail.as_ref().is_some_and(|mail| mail.held.len() >= ENOUGH)
    }

    pub(super) fn has_held(&self) -> bool {
        self.mail.as_ref().is_some_and(|mail| !mail.held.is_empty())
    }

    fn hold(&mut self, cx: &mut Context, buffer: Buffer, len: usize) -> Fate {
        let mail = self.mail.get_or_insert_default();
        let position = mail.held.back().map_or(self.record.consumed(), |last| last.position + last.len as u64);
        // Who sends on and on and reads nothing is not to take the room of others.
        let most = cx.ledger.buffers_of_lane(cx.lane_number).len() / 4;
        let Some(link) = cx.ledger.held(buffer.index()).filter(|_| cx.held < most.max(ENOUGH)) else {
            return Fate::Close;
        };
        cx.held += 1;
        link.fill(position, len);
        match mail.held.back().and_then(|last| cx.ledger.held(last.buffer.index())) {
            Some(last) => last.set_next(buffer.index()),
            None => self.record.set_held(Some(buffer.index())),
        }
        mail.held.push_back(Piece { buffer, position, len });
        Fate::Stay
    }

    /// Moves what is held next to `at` in the connection's buffer, as much as there is room for.
    pub(super) fn read_held(&mut self, cx: &mut Context, at: usize) -> Filled {
        let (Some(mail), Some(own)) = (&mut self.mail, &mut self.buffer) else { return Filled::Nothing };
        let Some(piece) = mail.held.front() else {
            return if std::mem::take(&mut mail.end) { Filled::End } else { Filled::Nothing };
        };
        let consumed = self.record.consumed();
        let from = (consumed.saturating_sub(piece.position) as usize).min(piece.len);
        let len = (piece.len - from).min(BUFFER_BYTES.saturating_sub(at));
        own.bytes_mut()[at..at + len].copy_from_slice(&piece.buffer.bytes()[from..from + len]);
        self.record.set_consumed(consumed + len as u64);
        if from + len == piece.len
            && let Some(taken) = mail.held.pop_front()
        {
            self.record.set_held(mail.held.front().map(|next| next.buffer.index()));
            cx.buffers.put(taken.buffer);
            cx.held = cx.held.saturating_sub(1);
        }
        Filled::Some
    }

    /// Lets go of what is held: the connection ends.
    pub(super) fn drop_held(&mut self, cx: &mut Context) {
        if let Some(mail) = &mut self.mail {
            self.record.set_held(None);
            cx.held = cx.held.saturating_sub(mail.held.len());
            mail.held.drain(..).for_each(|piece| cx.buffers.put(piece.buffer));
        }
    }

    // ---- sending by the ring ----

    /// Has a ring send these bytes.
    pub(super) fn send_by_ring(&mut self, bytes: Vec<u8>) {
        self.mail.get_or_insert_default().outgoing = Some(bytes);
        self.in_flight = true;
    }

    /// What is to be sent by the ring, once.
    pub(crate) fn take_outgoing(&mut self) -> Option<Vec<u8>> {
        self.mail.as_mut()?.outgoing.take()
    }

    /// A send that the ring was given is complete: `bytes` are those that it was about.
    pub(crate) fn sent(&mut self, cx: &mut Context, outcome: &io::Result<usize>, bytes: Vec<u8>) -> Fate {
        crash_point::after_cut();
        crash_point::pass(Point::AfterWrite);
        self.in_flight = false;
        let count = match outcome {
            Ok(count) => *count,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => 0,
            Err(_) => return Fate::Close,
        };
        self.wrote(cx, count);
        if count < bytes.len() {
            self.leave_rest(bytes, count);
            return self.writable(cx);
        }
        cx.keep_spare(bytes);
        match self.batch_done(cx) {
            Fate::Stay if self.is_done() => self.after_response(cx),
            fate => fate,
        }
    }
}
