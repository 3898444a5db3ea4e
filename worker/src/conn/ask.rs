//! Handlers are asked: here and now, or told apart from those that are to run elsewhere.

use std::panic::{AssertUnwindSafe, catch_unwind};

use phalanx_shared::config::{Effort, Fault};

use super::Context;
use super::serve::Whole;
use crate::app::{Caller, Limits};
use crate::http::Reply;
use crate::http::reply::Response;
use crate::in_handler;
use crate::isolator::Parcel;
use crate::pool::{Done, Failure, Job};
use crate::service::{Answer, Answering, Asked, Router, Tunnel, effort, fault};
use crate::watch::spared;

/// Has a process of its own answer, while this thread has nothing else to do.
pub(super) fn isolate(cx: &Context, limits: &Limits, whole: &Whole<'_>, caller: &Caller, date: u64) -> Response {
    let Some(isolator) = &cx.isolator else { return Response::new(500) };
    let head = whole.bytes.get(..whole.head.len).unwrap_or(whole.bytes);
    let parcel = Parcel { head, limit: cx.limits.head, body: whole.body.to_vec(), date, caller: *caller };
    spared(|| isolator.answer(limits, &parcel))
}

/// What a handler came to.
pub(super) enum Turnout<'r> {
    Reply(Reply<'r>),
    /// It is to run in a thread.
    Call,
    /// It is to run in a process of its own.
    Isolate(Limits),
    /// It is under way as a task.
    Task(Answering),
    /// The connection is this one's.
    Tunnel(Tunnel),
    /// It goes on when this is done.
    Later(Job),
    /// This, once the effort is made, which waits.
    Effort(Effort, Reply<'r>),
}

/// Runs the handler, and makes the effort that it may ask for, but for one that waits where that is made `elsewhere`. A panic in it,
/// or in what it waited for, is a 500 on a connection that lives on.
pub(super) fn run_handler<'r>(
    router: &'r Router,
    asked: &Asked<'_>,
    done: Option<Done>,
    unready: bool,
    elsewhere: bool,
) -> Turnout<'r> {
    match ask_handler(router, asked, done, unready) {
        Turnout::Effort(effort, reply) if !elsewhere || effort.wait.is_zero() => {
            effort::make(effort);
            Turnout::Reply(reply)
        }
        turnout => turnout,
    }
}

fn ask_handler<'r>(router: &'r Router, asked: &Asked<'_>, done: Option<Done>, unready: bool) -> Turnout<'r> {
    let done = match done {
        Some(Err(Failure::Panicked)) => return Turnout::Reply(Reply::error(500)),
        Some(Err(Failure::GaveUp)) => return Turnout::Reply(Reply::error(504)),
        Some(Err(Failure::Refused)) => return Turnout::Reply(Reply::error(503)),
        Some(Ok(done)) => Some(done),
        None => None,
    };
    let done_nothing = done.is_none();
    let before = in_handler::enter();
    let answer = catch_unwind(AssertUnwindSafe(|| match router.answer(asked, done) {
        Answer::Reply(reply) => Turnout::Reply(reply),
        Answer::Later(job) => Turnout::Later(job),
        Answer::Call => Turnout::Call,
        Answer::Isolate(limits) => Turnout::Isolate(limits),
        Answer::Task(answering) => Turnout::Task(answering),
        Answer::Tunnel(tunnel) => Turnout::Tunnel(tunnel),
        Answer::Effort(effort, reply) => Turnout::Effort(effort, reply),
        Answer::Health(_, reply) if unready => Turnout::Reply(reply),
        Answer::Health(reply, _) => Turnout::Reply(reply),
        Answer::Fault(Fault { pooled: true, kind }) if done_nothing => {
            Turnout::Later(Job::new(move || drop(fault::carry_out(kind))))
        }
        Answer::Fault(Fault { pooled: true, .. }) => Turnout::Reply(Reply::Built(Response::new(200))),
        Answer::Fault(fault) => Turnout::Reply(fault::carry_out(fault.kind)),
    }));
    in_handler::leave(before);
    answer.unwrap_or_else(|_| Turnout::Reply(Reply::error(500)))
}
