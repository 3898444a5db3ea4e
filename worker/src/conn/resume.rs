//! A response that its worker died in the middle of: made again with the recorded date and, if it is the same to the byte,
//! continued where the kernel says it broke off.

use phalanx_shared::ledger::response::Entry;

use super::ask::{Turnout, run_handler};
use super::call::{Answered, Call};
use super::context::client_of;
use super::output::Output;
use super::serve::STREAMED;
use super::tail::Part;
use super::{Connection, Context, Fate, Why};
use crate::access_log::Outcome;
use crate::http::encode::{self, CONTINUE, Envelope};
use crate::http::reply::Tail;
use crate::http::{Head, HeaderScratch, Progress, Reply, head};
use crate::pool::{Done, Job};
use crate::service::{Asked, Router};

/// What asking the service again came to.
enum Again {
    /// All the bytes, from the first one on.
    Made(Output),
    /// This has to be done first.
    Later(Job),
    /// Something else now.
    Other,
}

impl Connection {
    /// Prepares the rest of the response on record as `entry`, of which what the record counts as sent has left. False when it
    /// cannot be made again to the byte; then the peer must see a truncation.
    pub(crate) fn resume(&mut self, cx: &mut Context, entry: &Entry) -> bool {
        let again = match entry.kind.interim {
            true => Again::Made(whole(CONTINUE.to_vec(), Tail::None, false)),
            false => self.run_again(cx, entry, None),
        };
        self.go_on_with(cx, entry, again)
    }

    /// A thread has done what making the response again waited for.
    pub(super) fn resume_arrived(&mut self, cx: &mut Context, entry: &Entry, done: Done) -> Fate {
        let again = self.run_again(cx, entry, Some(done));
        if !self.go_on_with(cx, entry, again) {
            // An orderly end would look like a whole response.
            crate::rescue::reset_on_close(self.fd);
            return Fate::Close;
        }
        self.writable(cx)
    }

    fn go_on_with(&mut self, cx: &mut Context, entry: &Entry, again: Again) -> bool {
        let mut output = match again {
            Again::Made(output) => output,
            Again::Later(job) => return self.wait_for(cx, job, Why::Resume(*entry)) != Fate::Close,
            Again::Other => match self.error_again(cx, entry) {
                Some(output) => output,
                None => return false,
            },
        };
        let streamed = output.stream.is_some() || entry.response_end == STREAMED;
        // The end of a stream shows when it comes.
        if !streamed && output.len() != entry.response_end - entry.response_start {
            return false;
        }
        output.skip(self.record.sent() - entry.response_start);
        self.output = Some(Box::new(output));
        true
    }

    /// Writes down a request whose answer is cut off, or never begins.
    pub(crate) fn log_loss(&self, cx: &mut Context) {
        let mut scratch = HeaderScratch::new();
        let parsed = head::parse(self.unanswered(self.record.start()), cx.limits.head, &mut scratch);
        let Ok(Progress::Done(head)) = parsed else { return };
        let state = self.record.state();
        let entry =
            self.pending(cx).filter(|_| state.first < state.pending).and_then(|list| list.get(state.first.into()));
        let (status, sent) = entry.map_or((0, 0), |entry| {
            let answered = entry.response_end != 0 && self.record.sent() > entry.response_start;
            (if answered { entry.kind.status } else { 0 }, self.record.sent().saturating_sub(entry.response_start))
        });
        let client = || client_of(&cx.listens, &self.record, &head);
        cx.access_log.mark(Outcome::Lost);
        cx.access_log.add(client, &head, status, sent, cx.clock.epoch_seconds());
    }

    /// Asks the service again.
    fn run_again(&self, cx: &mut Context, entry: &Entry, done: Option<Done>) -> Again {
        if self.record.doom().is_some_and(|(at, _)| at == self.record.start()) {
            return Again::Other;
        }
        let mut scratch = HeaderScratch::new();
        let parsed = head::parse(self.unanswered(self.record.start()), cx.limits.head, &mut scratch);
        let Ok(Progress::Done(head)) = parsed else { return Again::Other };
        if !head.idempotent() || entry.validator == 0 {
            return Again::Other;
        }
        let router = cx.router.clone();
        let refused = (entry.kind.status == 429).then(|| router.limit_of(&head)).flatten();
        let reply = match refused {
            Some(limit) => limit.refusal(),
            None if matches!(&done, Some(Ok(answered)) if answered.is::<Answered>()) => {
                return done.map_or(Again::Other, |done| called_again(done, entry));
            }
            None if cx.all_pooled => return self.call_again(cx, &head, entry),
            None => match self.ask_again(cx, &router, (&head, entry), done) {
                Turnout::Reply(reply) => reply,
                Turnout::Call => return self.call_again(cx, &head, entry),
                // Nobody promised that it would be the same.
                Turnout::Task(_) | Turnout::Tunnel(_) | Turnout::Isolate(_) => return Again::Other,
                Turnout::Effort(effort, reply) => {
                    let date = cx.date.text(entry.date);
                    return Again::Later(Answered::after(effort, reply, &head, date, entry.kind.last));
                }
                Turnout::Later(job) => return Again::Later(job),
            },
        };
        let envelope = Envelope {
            date: cx.date.text(entry.date),
            minor_version: head.minor_version,
            keep_alive: !entry.kind.last,
            head_only: head.is_head(),
        };
        remake(reply, &envelope, entry).map_or(Again::Other, Again::Made)
    }

    fn ask_again<'r>(
        &self,
        cx: &Context,
        router: &'r Router,
        (head, entry): (&Head<'_>, &Entry),
        done: Option<Done>,
    ) -> Turnout<'r> {
        let caller = cx.caller(self.record, head, self.record.start());
        let body = self.in_front(head, entry.request_end).body;
        let asked =
            Asked { head, bytes: self.head_bytes(), body, date: entry.date, caller: &caller, asker: cx.asker() };
        run_handler(router, &asked, done, cx.is_unready(), cx.tasks.is_some())
    }

    /// Has a thread answer again.
    fn call_again(&self, cx: &mut Context, head: &Head<'_>, entry: &Entry) -> Again {
        let caller = cx.caller(self.record, head, self.record.start())();
        let call = Call::new(cx, &self.in_front(head, entry.request_end), &caller, entry.date, entry.kind.last);
        Again::Later(call.into_job(None))
    }

    /// The error page that a refusal sent.
    fn error_again(&self, cx: &mut Context, entry: &Entry) -> Option<Output> {
        if !(400..=599).contains(&entry.kind.status) {
            return None;
        }
        let mut scratch = HeaderScratch::new();
        let parsed = head::parse(self.unanswered(self.record.start()), cx.limits.head, &mut scratch);
        let head_only = matches!(parsed, Ok(Progress::Done(head)) if head.is_head());
        let date = cx.date.text(entry.date);
        let envelope = Envelope { date, minor_version: 1, keep_alive: !entry.kind.last, head_only };
        remake(Reply::error(entry.kind.status), &envelope, entry)
    }
}

/// What a handler that ran elsewhere made again.
fn called_again(done: Done, entry: &Entry) -> Again {
    match done.map(|done| done.downcast::<Answered>()) {
        Ok(Ok(answered)) if answered.validator != 0 && answered.validator == entry.validator => {
            let Answered { bytes, tail, chunked, .. } = *answered;
            Again::Made(whole(bytes, tail, chunked))
        }
        _ => Again::Other,
    }
}

fn remake(reply: Reply<'_>, envelope: &Envelope<'_>, entry: &Entry) -> Option<Output> {
    if reply.validator() == 0 || reply.validator() != entry.validator {
        return None;
    }
    let mut bytes = Vec::new();
    encode::append(&mut bytes, &reply, envelope);
    let tail = if envelope.head_only { Tail::None } else { reply.into_tail() };
    Some(whole(bytes, tail, envelope.chunks()))
}

/// A response from its first byte on.
fn whole(bytes: Vec<u8>, tail: Tail, chunked: bool) -> Output {
    let mut output = Output::new(bytes.len() as u64, tail, chunked);
    output.parts.push_front(Part::Bytes { bytes: bytes.into(), at: 0 });
    output
}
