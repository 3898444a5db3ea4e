//! A request whose body is larger than its buffer: the head stays at the front of the buffer, the body is handed on piece by
//! piece behind it. From the first piece on the request cannot be replayed; the record says so.
//!
//! What is kept until it is complete is answered then, as any other request. What its handler takes as it comes is answered when the
//! handler likes: its response may leave before the body is complete, and the two are on their way at once.

use phalanx_shared::ledger::record::{Phase, State};

use super::input::Filled;
use super::output::Output;
use super::serve::{STREAMED, Whole};
use super::{Connection, Context, Fate, Why};
use crate::app::{Feed, Handed, Payload, pipe};
use crate::crash_point::{self, Point};
use crate::http::reply::{Source, Tail};
use crate::http::{Decoder, Framing, HeaderScratch, Progress, head};
use crate::in_handler;
use crate::service::{Intake, Tunnel};

/// Where a body that is being handed on stands.
pub(super) struct Upload {
    pub(super) head_len: usize,
    /// None: all that comes is its handler's.
    decoder: Option<Decoder>,
    /// Bytes of the buffer in use, the head included.
    filled: usize,
    sink: Sink,
    /// Its handler began before it was complete; it ends there once it is.
    early: Option<Early>,
}

/// A request that was answered, or is to be, before its body is complete.
enum Early {
    /// More is to come.
    Open,
    /// The response has left, and more is to come.
    Answered,
    /// Nothing more is to come.
    Complete,
}

/// What becomes of a body.
enum Sink {
    /// Nobody looks at it: it is checked, and counted against the limit.
    Discard,
    /// It is kept until it is complete.
    Collect(Vec<u8>),
    /// Its handler takes it.
    Feed(Feed),
}

impl Upload {
    /// What has been kept of the body.
    pub(super) fn collected(&self) -> Payload<'_> {
        match &self.sink {
            Sink::Collect(bytes) => Payload::Whole(bytes),
            Sink::Discard | Sink::Feed(_) => Payload::None,
        }
    }

    /// Its handler may answer, or has, and there is more to come.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.early, Some(Early::Open | Early::Answered))
    }

    /// More can be taken in now; if not, the connection is nudged when that changes.
    pub(super) fn has_room(&self) -> bool {
        !matches!(&self.sink, Sink::Feed(feed) if !feed.has_room())
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
        let len = if let Framing::Length(len) = head.framing { Some(len) } else { None };
        let (mut handed, mut early) = (None, None);
        let sink = match (cx.router.intake(&head), &cx.nudges) {
            (Intake::Discard, _) => Sink::Discard,
            (Intake::Stream, Some(nudges)) => {
                let (feed, incoming) = pipe(nudges.for_connection(self.fd, self.record.cookie()), len);
                (handed, early) = (Some(incoming), Some(Early::Open));
                Sink::Feed(feed)
            }
            (Intake::Collect | Intake::Stream, _) => Sink::Collect(Vec::new()),
        };
        self.record.set_state(State { phase: Phase::Streaming, ..self.record.state() });
        self.upload = Some(Box::new(Upload { head_len, decoder: Some(decoder), filled: self.buffered(), sink, early }));
        let first = self.hand_on(cx);
        match handed {
            Some(incoming) if first == Fate::Stay && self.upload.is_some() => {
                self.answer_early(cx, Handed::new(incoming))
            }
            _ => first,
        }
    }

    /// Reads the next piece and hands it on.
    pub(super) fn go_on_upload(&mut self, cx: &mut Context) -> Fate {
        let Some(upload) = self.upload.as_ref() else { return Fate::Stay };
        if !upload.has_room() {
            return Fate::Stay;
        }
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
            Sink::Feed(feed) => feed.push(run),
        };
        let advanced = match decoder {
            Some(decoder) => decoder.advance(piece, &mut take),
            None => {
                take(piece);
                Ok((piece.len(), false))
            }
        };
        match advanced {
            Err(refusal) => self.give_up_upload(cx, refusal.status),
            Ok((_, false)) => {
                upload.filled = upload.head_len;
                crash_point::pass(Point::HandingOn);
                Fate::Stay
            }
            Ok((taken, true)) => {
                let rest = piece.len() - taken;
                match upload.early {
                    None => self.answer_upload(cx, rest),
                    Some(_) => self.complete_early(cx, rest),
                }
            }
        }
    }

    /// The body is not what it should be, or does not come. What has begun to be answered cannot be refused any more.
    pub(super) fn give_up_upload(&mut self, cx: &mut Context, status: u16) -> Fate {
        let answered =
            self.has_output() || self.upload.as_ref().is_some_and(|it| matches!(it.early, Some(Early::Answered)));
        if answered {
            crate::rescue::reset_on_close(self.fd);
            return Fate::Close;
        }
        self.forget_waiting(cx);
        let _end = self.find_end(0);
        self.refuse(cx, status)
    }

    /// The body is complete; `rest` bytes behind it belong to the next request.
    fn answer_upload(&mut self, cx: &mut Context, rest: usize) -> Fate {
        let Some(request_end) = self.find_end(rest) else { return Fate::Close };
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        let mut scratch = HeaderScratch::new();
        let step = match head::parse(self.head_bytes(), cx.limits.head, &mut scratch) {
            Ok(Progress::Done(head)) => batch.answer(cx, &self.in_front(&head, request_end), None),
            _ => return Fate::Close,
        };
        self.conclude(cx, batch, step)
    }

    /// Where the request ends, `rest` bytes before the last that was read; what was read last is all that is on record from now on.
    fn find_end(&mut self, rest: usize) -> Option<u64> {
        let filled = self.upload.as_ref()?.filled;
        self.record.set_base(self.record.consumed() - filled as u64);
        Some(self.record.consumed() - rest as u64)
    }

    // ---- a handler that begins before the body is complete ----

    /// Has the handler begin. It is put on record as ending where it does so far: nothing is taken off the record before more is known.
    fn answer_early(&mut self, cx: &mut Context, handed: Handed) -> Fate {
        let end = self.record.consumed();
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        batch.is_early = true;
        let mut scratch = HeaderScratch::new();
        let step = match head::parse(self.head_bytes(), cx.limits.head, &mut scratch) {
            Ok(Progress::Done(head)) => {
                let whole = Whole { head: &head, bytes: self.head_bytes(), body: Payload::Coming(&handed), end };
                batch.answer(cx, &whole, None)
            }
            _ => return Fate::Close,
        };
        self.conclude(cx, batch, step)
    }

    /// Hands all that comes from the request in front on to `tunnel`, and sends what that gives, until it ends.
    pub(super) fn begin_tunnel(&mut self, cx: &mut Context, tunnel: Tunnel) -> Fate {
        let start = self.record.start();
        if start != self.record.base() && self.move_to_fresh_buffer(cx).is_err() {
            return Fate::Close;
        }
        let mut scratch = HeaderScratch::new();
        let parsed = head::parse(self.unanswered(start), cx.limits.head, &mut scratch);
        let (Ok(Progress::Done(head)), Some(nudges)) = (parsed, &cx.nudges) else { return Fate::Close };
        let (feed, incoming) = pipe(nudges.for_connection(self.fd, self.record.cookie()), None);
        feed.push(self.unanswered(start).get(..head.len).unwrap_or(&[]));
        let (head_len, filled, early) = (head.len, self.buffered(), Some(Early::Open));
        self.record.set_state(State { phase: Phase::Streaming, ..self.record.state() });
        self.upload = Some(Box::new(Upload { head_len, decoder: None, filled, sink: Sink::Feed(feed), early }));
        match self.hand_on(cx) {
            Fate::Stay => {}
            fate => return fate,
        }
        let Some(flow) = in_handler::guard(|| (tunnel.0)(incoming)) else { return Fate::Close };
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        batch.is_early = true;
        batch.tunnel(cx, Output::new(0, Tail::Stream(Source::Awaited(flow), None), false));
        match self.end_batch(cx, batch) {
            Fate::Stay if self.is_done() => self.after_response(cx),
            fate => fate,
        }
    }

    /// The body of a request is complete whose handler has begun: `rest` bytes behind it belong to the next request.
    fn complete_early(&mut self, cx: &mut Context, rest: usize) -> Fate {
        let Some(end) = self.find_end(rest) else { return Fate::Close };
        let Some(upload) = self.upload.as_mut() else { return Fate::Close };
        if let Sink::Feed(feed) = std::mem::replace(&mut upload.sink, Sink::Discard) {
            feed.finish();
        }
        let answered = matches!(upload.early.replace(Early::Complete), Some(Early::Answered));
        if let Some(Why::Call(known)) = self.waiting.as_mut().map(|waiting| &mut waiting.why) {
            *known = end;
        }
        let Some(list) = self.pending(cx) else { return Fate::Close };
        let Some(mut entry) = list.get(0) else { return Fate::Close };
        entry.request_end = end;
        list.set(0, &entry);
        if !answered {
            return Fate::Stay;
        }
        match self.batch_done(cx) {
            Fate::Stay => self.after_response(cx),
            fate => fate,
        }
    }

    /// The response to a request has left that began before its body was complete. False while more of the body is to come.
    pub(super) fn end_early(&mut self, cx: &Context) -> bool {
        let entry = self.pending(cx).and_then(|list| Some((list, list.get(0)?)));
        let Some(upload) = self.upload.as_mut().filter(|upload| upload.early.is_some()) else { return true };
        let Some((list, mut entry)) = entry else { return true };
        if upload.is_open() && !entry.kind.last {
            upload.early = Some(Early::Answered);
            upload.sink = Sink::Discard;
            return false;
        }
        if upload.is_open()
            && let Some(end) = self.find_end(0)
        {
            // The connection ends with this response: whatever is still sent is thrown away.
            entry.request_end = end;
        }
        if entry.response_end == STREAMED {
            entry.response_end = self.record.sent();
        }
        list.set(0, &entry);
        true
    }

    /// The peer owes more of a body, and nobody else keeps it from coming.
    pub(super) fn awaits_body(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_open() && upload.decoder.is_some() && upload.has_room())
    }

    /// A handler may answer, or has, and there is more of its body to come.
    pub(super) fn is_open(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_open())
    }

    /// … and it can be taken in now.
    pub(super) fn takes_in(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_open() && upload.has_room())
    }
}
