//! From bytes to responses: takes complete requests off the front of the buffer, has each answered, puts the responses of a
//! turn on record and writes them together.

use phalanx_shared::config::Listen;
use phalanx_shared::ledger::record::{Phase, Record, State};
use phalanx_shared::ledger::response::{Entry, Kind};
use phalanx_shared::ledger::{BUFFER_BYTES, MAX_PENDING, Pending};

use super::ask::{Turnout, isolate, run_handler};
use super::call::{Answered, Call};
use super::context::{address_of, client_of};
use super::output::Output;
use super::{Connection, Context, Fate, Why};
use crate::access_log::{AccessLog, Outcome};
use crate::app::Payload;
use crate::crash_point::{self, Point};
use crate::http::encode::{self, CONTINUE, Envelope};
use crate::http::reply::Tail;
use crate::http::{DateCache, Decoder, Framing, Head, HeaderScratch, Progress, Refusal, Reply, head};
use crate::isolator::Parcel;
use crate::pool::{Done, Failure, Job, Pool};
use crate::service::{Asked, Tunnel};

/// The end on record of a response whose length nobody knows yet.
pub(super) const STREAMED: u64 = u64::MAX;

/// The responses of one connection in one turn.
pub(super) struct Batch {
    pub(super) out: Vec<u8>,
    /// What follows `out`; nothing can be added behind it.
    pub(super) tail: Option<Box<Output>>,
    /// Stream position of the request that comes next.
    pub(super) position: u64,
    /// Stream position of the response that comes next.
    response_at: u64,
    /// Requests answered on the connection before this one.
    served: u64,
    /// Requests before this position run again.
    replayed_until: u64,
    /// One of the requests was over its rate. Until its response has left none behind it may be admitted: what has been
    /// admitted is on record as one position, and a replay would take the refused one for admitted too.
    refused: bool,
    /// It answers a request whose body is still to come.
    pub(super) is_early: bool,
    /// None of its requests changes anything: run again, they are answered the same, as are those that are refused.
    is_safe: bool,
    count: u8,
    list: Pending,
    record: Record,
}

/// A request that has come whole.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) head: &'a Head<'a>,
    /// Begin with the head.
    pub(super) bytes: &'a [u8],
    pub(super) body: Payload<'a>,
    /// Stream position behind it.
    pub(super) end: u64,
}

/// What of the worker writing an answer down takes.
struct Pen<'a> {
    log: &'a mut AccessLog,
    date: &'a mut DateCache,
    listens: &'a [Option<Listen>],
}

/// What taking one request did.
pub(super) enum Step {
    /// A response was added; the connection goes on.
    Answered,
    /// A response was added that is the connection's last.
    Last,
    /// The request waits for this; none: it has to start again once what stands before it has left.
    Later(Option<(Job, Why)>),
    /// There is no complete request: more of a head is needed.
    NeedsHead,
    /// … more of a body.
    NeedsBody,
    /// The request's body is larger than the buffer.
    Upload,
    /// All that the connection carries from the request on is this one's.
    Tunnel(Tunnel),
}

impl Connection {
    /// Answers what is complete in the buffer, at most [`MAX_PENDING`] requests, and writes the answers.
    pub(super) fn serve(&mut self, cx: &mut Context) -> Fate {
        if cx.speaks_for_proxy(self.record.listener())
            && let Some(fate) = self.hear_proxy(cx)
        {
            return fate;
        }
        let Some(mut batch) = self.begin_batch(cx) else {
            return if self.finished { Fate::Close } else { Fate::Stay };
        };
        let mut step = loop {
            if usize::from(batch.count) == MAX_PENDING || batch.tail.is_some() {
                break Step::Answered;
            }
            match self.step(cx, &mut batch) {
                Step::Answered => {}
                step => break step,
            }
        };
        self.wants_body = matches!(step, Step::NeedsBody);
        let wrote_something = batch.count > 0;
        if wrote_something && let Step::Later(begun @ Some(_)) = &mut step {
            // It has begun: what stands before it leaves first, and it stays on record meanwhile.
            self.begun = begun.take().map(Box::new);
            step = Step::Answered;
        }
        match self.end_batch(cx, batch) {
            Fate::Stay if self.is_done() => {}
            fate => return fate,
        }
        if let Some(begun) = self.begun.take() {
            return self.wait_for(cx, begun.0, begun.1);
        }
        match step {
            Step::Last => self.linger(),
            Step::Later(Some((job, why))) => self.wait_for(cx, job, why),
            Step::Later(None) => Fate::GoOn,
            Step::Upload if wrote_something => Fate::GoOn,
            Step::Upload => self.begin_upload(cx),
            Step::Tunnel(tunnel) => self.begin_tunnel(cx, tunnel),
            Step::Answered if self.buffer.is_some() => Fate::GoOn,
            Step::Answered => Fate::Stay,
            Step::NeedsHead | Step::NeedsBody if self.finished => Fate::Close,
            Step::NeedsHead | Step::NeedsBody => Fate::Stay,
        }
    }

    /// Answers with an error and ends the connection, whatever has been read.
    pub(crate) fn refuse(&mut self, cx: &mut Context, status: u16) -> Fate {
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        batch.refuse(cx, status, None);
        self.upload = None;
        match self.end_batch(cx, batch) {
            Fate::Stay if self.is_done() => self.linger(),
            fate => fate,
        }
    }

    /// A thread has done what the handler of the request in front waited for.
    pub(super) fn answer_arrived(&mut self, cx: &mut Context, request_end: u64, done: Done) -> Fate {
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        let mut scratch = HeaderScratch::new();
        let step = match head::parse(self.head_bytes(), cx.limits.head, &mut scratch) {
            Ok(Progress::Done(head)) => batch.answer(cx, &self.in_front(&head, request_end), Some(done)),
            _ => return Fate::Close,
        };
        self.conclude(cx, batch, step)
    }

    /// The request in front, which ends at this stream position.
    pub(super) fn in_front<'a>(&'a self, head: &'a Head<'a>, end: u64) -> Whole<'a> {
        let bytes = self.head_bytes();
        let body = match &self.upload {
            Some(upload) => upload.collected(),
            None => {
                let len = usize::try_from(end.saturating_sub(self.record.start())).unwrap_or(usize::MAX);
                Payload::of(&head.framing, bytes.get(head.len..len).unwrap_or(&[]))
            }
        };
        Whole { head, bytes, body, end }
    }

    /// A handler that ran elsewhere has answered the request in front.
    pub(super) fn call_arrived(&mut self, cx: &mut Context, request_end: u64, done: Done) -> Fate {
        let Some(mut batch) = self.begin_batch(cx) else { return Fate::Close };
        // Where the request ends is not known then: nothing may be taken off the record by this answer alone.
        batch.is_early = self.is_open();
        let mut scratch = HeaderScratch::new();
        let step = match head::parse(self.head_bytes(), cx.limits.head, &mut scratch) {
            Ok(Progress::Done(head)) => batch.answered(cx, &head, request_end, done),
            _ => return Fate::Close,
        };
        self.conclude(cx, batch, step)
    }

    /// Ends a batch of one response, and goes on with what comes after it.
    pub(super) fn conclude(&mut self, cx: &mut Context, batch: Batch, step: Step) -> Fate {
        if let Step::Later(Some((job, why))) = step {
            cx.out = batch.out;
            return self.wait_for(cx, job, why);
        }
        match self.end_batch(cx, batch) {
            Fate::Stay if self.is_done() => self.after_response(cx),
            fate => fate,
        }
    }

    /// The bytes that begin with the head of the request in front.
    pub(super) fn head_bytes(&self) -> &[u8] {
        match (&self.upload, &self.buffer) {
            (Some(upload), Some(buffer)) => buffer.bytes().get(..upload.head_len).unwrap_or(&[]),
            _ => self.unanswered(self.record.start()),
        }
    }

    pub(super) fn begin_batch(&self, cx: &mut Context) -> Option<Batch> {
        let list = self.pending(cx)?;
        let mut out = std::mem::take(&mut cx.out);
        out.clear();
        Some(Batch {
            out,
            tail: None,
            position: self.record.start(),
            response_at: self.record.sent(),
            served: self.served,
            replayed_until: self.replayed_until,
            refused: false,
            is_early: false,
            is_safe: true,
            count: 0,
            list,
            record: self.record,
        })
    }

    /// Writes what the batch holds. `Stay` without output left: all of it has left, the requests are off the record.
    pub(super) fn end_batch(&mut self, cx: &mut Context, batch: Batch) -> Fate {
        self.served = batch.served;
        if batch.count > 0 {
            // Who dies amid an upload makes it an error, whatever it was to be answered.
            let may_wait = batch.is_safe && self.upload.is_none() && self.record.state().phase == Phase::Open;
            return self.write_batch(cx, batch.out, batch.tail, may_wait);
        }
        cx.out = batch.out;
        Fate::Stay
    }

    fn step(&self, cx: &mut Context, batch: &mut Batch) -> Step {
        if let Some((at, status)) = self.record.doom()
            && at == batch.position
        {
            let mut scratch = HeaderScratch::new();
            let parsed = head::parse(self.unanswered(batch.position), cx.limits.head, &mut scratch);
            let head = if let Ok(Progress::Done(head)) = &parsed { Some(head) } else { None };
            cx.access_log.mark(Outcome::Failed);
            return batch.refuse(cx, status, head);
        }
        let data = self.unanswered(batch.position);
        if data.is_empty() {
            return Step::NeedsHead;
        }
        let mut scratch = HeaderScratch::new();
        let head = match head::parse(data, cx.limits.head, &mut scratch) {
            Ok(Progress::Done(head)) => head,
            Ok(Progress::NeedMore) => return Step::NeedsHead,
            Err(refusal) => return batch.refuse(cx, refusal.status, None),
        };
        match extent(&head, data, cx.limits.body) {
            Ok(Extent::Complete(len)) => {
                let body = Payload::of(&head.framing, data.get(head.len..len).unwrap_or(&[]));
                let whole = Whole { head: &head, bytes: data, body, end: batch.position + len as u64 };
                batch.answer(cx, &whole, None)
            }
            Ok(Extent::Partial { fits }) => {
                // What was sent the peer belongs to the request at the front.
                let continued = self.record.state().continued && batch.position == self.record.start();
                if head.expect_continue && !continued {
                    if !cx.router.wants_body(&head) {
                        // Whether the peer sends it all the same cannot be known: the connection ends with the answer.
                        let end = self.record.consumed();
                        return batch.answer_last(cx, &Whole { head: &head, bytes: data, body: Payload::None, end });
                    }
                    batch.interim();
                }
                if fits { Step::NeedsBody } else { Step::Upload }
            }
            Err(refusal) => batch.refuse(cx, refusal.status, Some(&head)),
        }
    }
}

/// How far a request reaches.
enum Extent {
    /// This many bytes, all there.
    Complete(usize),
    /// Further than what is there.
    Partial {
        /// The whole may fit into the buffer.
        fits: bool,
    },
}

fn extent(head: &Head<'_>, data: &[u8], limit: u64) -> Result<Extent, Refusal> {
    if matches!(head.framing, Framing::None) {
        return Ok(Extent::Complete(head.len));
    }
    let mut decoder = Decoder::new(&head.framing, limit)?;
    let (taken, complete) = decoder.advance(&data[head.len..], &mut |_| ())?;
    Ok(match head.framing {
        _ if complete => Extent::Complete(head.len + taken),
        Framing::Length(length) => Extent::Partial { fits: head.len as u64 + length <= BUFFER_BYTES as u64 },
        _ => Extent::Partial { fits: data.len() < BUFFER_BYTES },
    })
}

impl Batch {
    /// The same as the connection's last answer, before the request's body has come.
    fn answer_last(&mut self, cx: &mut Context, whole: &Whole<'_>) -> Step {
        let head = Head { keep_alive: false, ..*whole.head };
        match self.answer(cx, &Whole { head: &head, ..*whole }, None) {
            // Only an answer about a body that nobody wants: none that takes long.
            Step::Later(Some((_, Why::Answer(_)))) => self.refuse(cx, 417, Some(&head)),
            step => step,
        }
    }

    /// Has a complete request answered and adds the answer; `done` is what its handler has waited for.
    pub(super) fn answer(&mut self, cx: &mut Context, whole: &Whole<'_>, done: Option<Done>) -> Step {
        let Whole { head, end: request_end, .. } = *whole;
        crash_point::pass(Point::BeforeHandler);
        let most = cx.limits.requests_per_connection;
        let last = !head.keep_alive || cx.crowded || cx.is_unready() || (most > 0 && self.served + 1 >= most);
        let kind = Kind { idempotent: head.idempotent(), last, ..Kind::default() };
        let date = cx.clock.epoch_seconds();
        let entry = Entry { request_end, response_start: self.response_at, response_end: 0, validator: 0, date, kind };
        self.put_on_record(&entry);
        crash_point::pass(Point::InHandler);
        let counted = !cx.router.has_limits() || self.record.admitted() >= request_end;
        let limit = if counted { None } else { cx.router.limit_of(head) };
        if limit.is_some() && self.refused {
            return self.put_off();
        }
        let refused = limit.filter(|limit| !cx.admits(&self.record, head, limit));
        if limit.is_some() && refused.is_none() {
            // Counted once, however often it is run again.
            self.record.set_admitted(request_end);
        }
        let turnout = match refused {
            Some(limit) => {
                self.refused = true;
                Turnout::Reply(limit.refusal())
            }
            None if cx.all_pooled => Turnout::Call,
            None => {
                let caller = cx.caller(self.record, head, self.position);
                let asked =
                    Asked { head, bytes: whole.bytes, body: whole.body, date, caller: &caller, asker: cx.asker() };
                run_handler(&cx.router, &asked, done, cx.is_unready(), cx.tasks.is_some())
            }
        };
        let reply = match turnout {
            Turnout::Reply(reply) => reply,
            // A call's bytes leave alone: what they are in line behind has left by then.
            Turnout::Call if self.count > 0 => return self.put_off(),
            Turnout::Call if cx.handlers.as_ref().is_none_or(Pool::is_full) => Reply::error(503),
            Turnout::Call => {
                let caller = cx.caller(self.record, head, self.position)();
                let call = Call::new(cx, whole, &caller, date, last);
                let in_handler = self.record.mark(self.record.state());
                self.record.set_state(State { pending: self.count, ..self.record.state() });
                return Step::Later(Some((call.into_job(Some(in_handler)), Why::Call(request_end))));
            }
            Turnout::Effort(..) if self.count > 0 => return self.put_off(),
            Turnout::Effort(effort, reply) => {
                let task = Answered::after(effort, reply, head, cx.date.text(date), last);
                return Step::Later(Some((task, Why::Call(request_end))));
            }
            Turnout::Isolate(limits) => {
                let (caller, limit) = (cx.caller(self.record, head, self.position)(), cx.limits.head);
                let bytes = whole.bytes.get(..head.len).unwrap_or(whole.bytes);
                let parcel = Parcel { head: bytes, limit, body: whole.body.to_vec(), date, caller };
                isolate(cx.isolator.as_ref(), &limits, &parcel)
            }
            Turnout::Tunnel(_) if self.count > 0 => return self.put_off(),
            Turnout::Tunnel(tunnel) => {
                self.record.set_state(State { pending: 0, ..self.record.state() });
                return Step::Tunnel(tunnel);
            }
            Turnout::Task(answering) => {
                let task = Answered::by(answering, head, cx.date.text(date), last);
                return Step::Later(Some((task, Why::Call(request_end))));
            }
            Turnout::Later(_) if cx.pool.is_full() => Reply::error(503),
            Turnout::Later(job) => {
                // Not on record while it waits: a death then is none in a handler.
                self.record.set_state(State { pending: self.count, ..self.record.state() });
                return Step::Later((self.count == 0).then_some((job, Why::Answer(request_end))));
            }
        };
        let pen = Pen { log: &mut cx.access_log, date: &mut cx.date, listens: &cx.listens };
        self.add(pen, head, entry, reply)
    }

    /// Adds the answer of a handler to the request in front.
    fn add(&mut self, mut pen: Pen<'_>, head: &Head<'_>, mut entry: Entry, reply: Reply<'_>) -> Step {
        crash_point::pass(Point::AfterHandler);
        // What has no length ends, for an HTTP/1.0 peer, with the connection.
        entry.kind.last |= reply.is_stream() && head.minor_version == 0;
        entry.validator = reply.validator();
        entry.kind.status = reply.status();
        self.log(&mut pen, head, &entry, reply.is_stream(), reply.body_len());
        let envelope = Envelope {
            date: pen.date.text(entry.date),
            minor_version: head.minor_version,
            keep_alive: !entry.kind.last,
            head_only: head.is_head(),
        };
        let length = self.encode(reply, &envelope);
        self.end(head, entry, length)
    }

    /// Adds what a handler that ran elsewhere came to.
    fn answered(&mut self, cx: &mut Context, head: &Head<'_>, request_end: u64, done: Done) -> Step {
        // What stood before it has left.
        let first = self.record.state().first;
        let Some(mut entry) = self.list.get(first.into()).filter(|entry| entry.request_end == request_end) else {
            return self.refuse(cx, 500, Some(head));
        };
        self.put_on_record(&entry);
        let mut pen = Pen { log: &mut cx.access_log, date: &mut cx.date, listens: &cx.listens };
        let answered = match done.map(|done| done.downcast::<Answered>()) {
            Ok(Ok(answered)) => *answered,
            Err(Failure::GaveUp) => return self.add(pen, head, entry, Reply::error(504)),
            Err(Failure::Refused) => return self.add(pen, head, entry, Reply::error(503)),
            _ => return self.add(pen, head, entry, Reply::error(500)),
        };
        crash_point::pass(Point::AfterHandler);
        entry.validator = answered.validator;
        entry.kind.status = answered.status;
        entry.kind.last = answered.last;
        self.log(&mut pen, head, &entry, answered.is_stream, answered.body_len);
        self.out.extend_from_slice(&answered.bytes);
        let length = self.follow_with(answered.bytes.len() as u64, answered.tail, answered.chunked);
        self.end(head, entry, length)
    }

    /// Writes an answer down. A stream is written down when its length is known.
    fn log(&self, pen: &mut Pen<'_>, head: &Head<'_>, entry: &Entry, is_stream: bool, body_len: u64) {
        if is_stream && !head.is_head() {
            return;
        }
        let client = || client_of(pen.listens, &self.record, head);
        if self.position < self.replayed_until {
            pen.log.mark(Outcome::Replayed);
        }
        pen.log.add(client, head, entry.kind.status, body_len, entry.date);
    }

    /// An answer of this length stands in the batch.
    fn end(&mut self, head: &Head<'_>, entry: Entry, length: Option<u64>) -> Step {
        self.is_safe &= head.is_safe();
        let last = entry.kind.last;
        self.finish(entry, length);
        self.served += 1;
        if last { Step::Last } else { Step::Answered }
    }

    /// Takes the request's entry off the record again: it has to start anew once what stands before it has left.
    fn put_off(&self) -> Step {
        self.record.set_state(State { pending: self.count, ..self.record.state() });
        Step::Later(None)
    }

    /// Appends the reply's bytes and returns how many the response has in all; none: nobody knows yet.
    fn encode(&mut self, reply: Reply<'_>, envelope: &Envelope<'_>) -> Option<u64> {
        let before = self.out.len();
        encode::append(&mut self.out, &reply, envelope);
        let length = (self.out.len() - before) as u64;
        if envelope.head_only {
            return Some(length);
        }
        self.follow_with(length, reply.into_tail(), envelope.chunks())
    }

    /// Has `tail` follow the first `length` bytes of a response; as [`Batch::encode`].
    fn follow_with(&mut self, length: u64, tail: Tail, chunked: bool) -> Option<u64> {
        if matches!(tail, Tail::None) {
            return Some(length);
        }
        let output = self.tail.insert(Box::new(Output::new(length, tail, chunked)));
        match &output.stream {
            None => Some(length + output.len()),
            Some(stream) => stream.len().map(|len| length + len),
        }
    }

    /// Adds an error response that ends the connection; whatever else was read is forgotten with it. `head` is the request's,
    /// for the log, if it has one.
    fn refuse(&mut self, cx: &mut Context, status: u16, head: Option<&Head<'_>>) -> Step {
        let kind = Kind { idempotent: true, interim: false, last: true, status };
        let date = cx.clock.epoch_seconds();
        let reply = Reply::error(status);
        let head_only = head.is_some_and(Head::is_head);
        let envelope = Envelope { date: cx.date.text(date), minor_version: 1, keep_alive: false, head_only };
        let (validator, body_len) = (reply.validator(), reply.body_len());
        let length = self.encode(reply, &envelope);
        let entry = Entry {
            request_end: self.record.consumed(),
            response_start: self.response_at,
            response_end: 0,
            validator,
            date,
            kind,
        };
        match head {
            Some(head) => {
                let client = || client_of(&cx.listens, &self.record, head);
                cx.access_log.add(client, head, status, body_len, date);
            }
            None => cx.access_log.add_refused(address_of(&self.record), status, body_len, date),
        }
        self.finish(entry, length);
        Step::Last
    }

    /// Adds a `100 Continue`.
    fn interim(&mut self) {
        let kind = Kind { idempotent: true, interim: true, ..Kind::default() };
        let entry = Entry {
            request_end: self.position,
            response_start: self.response_at,
            response_end: self.response_at + CONTINUE.len() as u64,
            validator: 0,
            date: 0,
            kind,
        };
        self.out.extend_from_slice(CONTINUE);
        self.put_on_record(&entry);
        self.response_at = entry.response_end;
        self.count += 1;
    }

    /// Adds a response of which nothing is known but what it is made of.
    pub(super) fn tunnel(&mut self, cx: &Context, output: Output) {
        self.tail = Some(Box::new(output));
        let kind = Kind { idempotent: false, interim: false, last: true, status: 101 };
        let (request_end, date) = (self.record.consumed(), cx.clock.epoch_seconds());
        let entry = Entry { request_end, response_start: self.response_at, response_end: 0, validator: 0, date, kind };
        self.finish(entry, None);
    }

    fn finish(&mut self, mut entry: Entry, length: Option<u64>) {
        let length = length.filter(|_| !self.is_early);
        entry.response_end = length.map_or(STREAMED, |length| entry.response_start + length);
        self.put_on_record(&entry);
        self.position = entry.request_end;
        self.response_at = entry.response_end;
        self.count += 1;
    }

    /// The entry first, then the state that makes it count.
    fn put_on_record(&self, entry: &Entry) {
        self.list.set(self.count.into(), entry);
        let state = self.record.state();
        self.record.set_state(State { first: 0, pending: self.count + 1, ..state });
    }
}
