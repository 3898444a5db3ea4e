//! A request whose body is larger than its buffer: the head stays at the front of the buffer, the body is handed on piece by
//! piece behind it. From the first piece on the request cannot be replayed; the record says so.

use phalanx_shared::ledger::record::{Phase, State};

use super::input::Filled;
use super::{Connection, Context, Fate};
use crate::app::Payload;
use crate::crash_point::{self, Point};
use crate::http::{Decoder, HeaderScratch, Progress, head};

/// Where a body that is being handed on stands.
pub(super) struct Upload {
    pub(super) head_len: usize,
    decoder: Decoder,
    /// Bytes of the buffer in use, the head included.
    filled: usize,
    sink: Sink,
}

/// What becomes of a body.
enum Sink {
    /// Nobody looks at it: it is checked, and counted against the limit.
    Discard,
    /// It is kept until it is complete.
    Collect(Vec<u8>),
}

impl Upload {
    /// What has been kept of the body.
    pub(super) fn collected(&self) -> Payload<'_> {
        match &self.sink {
            Sink::Discard => Payload::None,
            Sink::Collect(bytes) => Payload::Whole(bytes),
        }
    }
}

impl Connection {
    /// Begins to hand on the body of the request at the front of what is unanswered; nothing stands before it.
    pub(super) fn begin_upload(&mut self, cx: &mut Context) -> Fate {
        let start = self.record.start();
        if start != self.record.base() && self.move_to_fresh_buffer(cx).is_err() {
            return Fate::Close;
        }
        let mut scratch = HeaderScratch::new();
        let parsed = head::parse(self.unanswered(start), cx.limits.head, &mut scratch);
        let Ok(Progress::Done(head)) = parsed else { return Fate::Close };
        let head_len = head.len;
        let decoder = match Decoder::new(&head.framing, cx.limits.body) {
            Ok(decoder) => decoder,
            Err(refusal) => return self.refuse(cx, refusal.status),
        };
        self.record.set_state(State { phase: Phase::Streaming, ..self.record.state() });
        let sink = if cx.router.reads_body(&head) { Sink::Collect(Vec::new()) } else { Sink::Discard };
        self.upload = Some(Box::new(Upload { head_len, decoder, filled: self.buffered(), sink }));
        self.hand_on(cx)
    }

    /// Reads the next piece and hands it on.
    pub(super) fn go_on_upload(&mut self, cx: &mut Context) -> Fate {
        let Some(upload) = self.upload.as_ref() else { return Fate::Stay };
        let (at, before) = (upload.filled, self.record.consumed());
        match self.read_at(cx, at) {
            Ok(Filled::Some) => {}
            Ok(Filled::Nothing) => return Fate::Stay,
            Ok(Filled::End) | Err(_) => return Fate::Close,
        }
        if let Some(upload) = self.upload.as_mut() {
            upload.filled += (self.record.consumed() - before) as usize;
        }
        self.hand_on(cx)
    }

    fn hand_on(&mut self, cx: &mut Context) -> Fate {
        let (Some(upload), Some(buffer)) = (self.upload.as_mut(), self.buffer.as_ref()) else { return Fate::Close };
        let piece = &buffer.bytes()[upload.head_len..upload.filled];
        let Upload { decoder, sink, .. } = &mut **upload;
        let mut take = |run: &[u8]| match sink {
            Sink::Discard => {}
            Sink::Collect(bytes) => bytes.extend_from_slice(run),
        };
        match decoder.advance(piece, &mut take) {
            Err(refusal) => self.refuse(cx, refusal.status),
            Ok((_, false)) => {
                upload.filled = upload.head_len;
                crash_point::pass(Point::HandingOn);
                Fate::Stay
            }
            Ok((taken, true)) => {
                let rest = piece.len() - taken;
                self.answer_upload(cx, rest)
            }
        }
    }

    /// The body is complete; `rest` bytes behind it belong to the next request.
    fn answer_upload(&mut self, cx: &mut Context, rest: usize) -> Fate {
        let Some(filled) = self.upload.as_ref().map(|upload| upload.filled) else { return Fate::Close };
        self.record.set_base(self.record.consumed() - filled as u64);
        let request_end = self.record.consumed() - rest as u64;
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        let mut scratch = HeaderScratch::new();
        let step = match head::parse(self.head_bytes(), cx.limits.head, &mut scratch) {
            Ok(Progress::Done(head)) => batch.answer(cx, &self.in_front(&head, request_end), None),
            _ => return Fate::Close,
        };
        self.conclude(cx, batch, step)
    }
}
