//! A call of a handler that goes on away from the loop: all that it needs, taken from the connection, and what comes of it. The
//! request is on record as in its handler from the moment on in which a thread begins with it; before, a successor begins anew.

use std::sync::Arc;

use phalanx_shared::config::Effort;
use phalanx_shared::ledger::record::Mark;

use super::Context;
use super::ask::{Turnout, isolate, run_handler};
use super::serve::Whole;
use crate::app::{Caller, Handed, Payload};
use crate::crash_point::{self, Point};
use crate::http::encode::{self, Envelope};
use crate::http::reply::Tail;
use crate::http::{Head, HeaderScratch, Progress, Reply, head};
use crate::isolator::{Isolator, Parcel};
use crate::pool::Job;
use crate::service::{Answering, Asked, Asker, Router, effort};

/// Length of an IMF-fixdate.
const DATE: usize = 29;

/// A request, ready to be answered by any thread.
pub(super) struct Call {
    router: Arc<Router>,
    /// The bytes of its head, which were parsed before.
    head: Vec<u8>,
    body: Handed,
    isolator: Option<Isolator>,
    caller: Caller,
    /// The bound that they were parsed with.
    limit: usize,
    /// The second that the response's Date names, and its text.
    date: u64,
    date_text: [u8; DATE],
    /// The response is its connection's last.
    last: bool,
    unready: bool,
}

/// A response, ready to be sent.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) validator: u64,
    pub(super) last: bool,
    /// It is made on the way: nobody knows its length.
    pub(super) is_stream: bool,
    pub(super) body_len: u64,
    /// Its first bytes, and what follows them.
    pub(super) bytes: Vec<u8>,
    pub(super) tail: Tail,
    pub(super) chunked: bool,
}

impl Call {
    /// That of a request.
    pub(super) fn new(cx: &mut Context, whole: &Whole<'_>, caller: &Caller, date: u64, last: bool) -> Call {
        let bytes = whole.bytes;
        Call {
            router: cx.router.clone(),
            head: bytes.get(..whole.head.len).unwrap_or(bytes).to_vec(),
            body: Handed::new(whole.body.to_incoming()),
            isolator: cx.isolator.clone(),
            caller: *caller,
            limit: cx.limits.head,
            date,
            date_text: *cx.date.text(date),
            last,
            unready: cx.is_unready(),
        }
    }

    /// As a job for a pool of handlers, with which `begins` stands in the record.
    pub(super) fn into_job(self, begins: Option<Mark>) -> Job {
        Job::handler(begins, move || self.run())
    }

    /// Runs the handler, and whatever it waits for, to the end.
    fn run(&self) -> Answered {
        let mut scratch = HeaderScratch::new();
        let Ok(Progress::Done(head)) = head::parse(&self.head, self.limit, &mut scratch) else {
            return self.answered(Reply::error(500), 1, false);
        };
        crash_point::pass(Point::InPool);
        let mut done = None;
        let reply = loop {
            let (body, caller) = (Payload::Coming(&self.body), || self.caller);
            let asked =
                Asked { head: &head, bytes: &self.head, body, date: self.date, caller: &caller, asker: Asker::Thread };
            match run_handler(&self.router, &asked, done.take(), self.unready, false) {
                Turnout::Reply(reply) | Turnout::Effort(_, reply) => break reply,
                Turnout::Later(job) => done = Some(job.run()),
                Turnout::Isolate(limits) => {
                    let (head, limit, date, caller) = (&self.head, self.limit, self.date, self.caller);
                    let parcel = Parcel { head, limit, body: self.body.take().into_vec(), date, caller };
                    break isolate(self.isolator.as_ref(), &limits, &parcel);
                }
                // Nobody asks for a thread who has one.
                Turnout::Call | Turnout::Task(_) | Turnout::Tunnel(_) => break Reply::error(500),
            }
        };
        self.answered(reply, head.minor_version, head.is_head())
    }

    fn answered(&self, reply: Reply<'_>, minor_version: u8, head_only: bool) -> Answered {
        Answered::new(reply, minor_version, head_only, &self.date_text, self.last)
    }
}

impl Answered {
    /// What `reply` comes to, for a request of HTTP/1.`minor_version` that asks for its head alone or not. `last`: it ends its
    /// connection.
    fn new(reply: Reply<'_>, minor_version: u8, head_only: bool, date: &[u8; DATE], last: bool) -> Answered {
        // What has no length ends, for an HTTP/1.0 peer, with the connection.
        let last = last || (reply.is_stream() && minor_version == 0);
        let envelope = Envelope { date, minor_version, keep_alive: !last, head_only };
        let mut bytes = Vec::new();
        encode::append(&mut bytes, &reply, &envelope);
        let (status, validator, body_len) = (reply.status(), reply.validator(), reply.body_len());
        let (is_stream, chunked) = (reply.is_stream(), envelope.chunks());
        let tail = if head_only { Tail::None } else { reply.into_tail() };
        Answered { status, validator, last, is_stream, body_len, bytes, tail, chunked }
    }

    /// What `answering` comes to, as a task.
    pub(super) fn by(answering: Answering, head: &Head<'_>, date: &[u8; DATE], last: bool) -> Job {
        let (minor_version, head_only, date) = (head.minor_version, head.is_head(), *date);
        Job::task(async move {
            let reply = Reply::Built(answering.0.await);
            Answered::new(reply, minor_version, head_only, &date, last)
        })
    }

    /// The answer to `head`, as a task that makes an effort first and holds up nobody while it waits.
    pub(super) fn after(effort: Effort, reply: Reply<'_>, head: &Head<'_>, date: &[u8; DATE], last: bool) -> Job {
        let answered = Answered::new(reply, head.minor_version, head.is_head(), date, last);
        Job::task(async move {
            effort::work(effort.work);
            tokio::time::sleep(effort.wait).await;
            answered
        })
    }
}
