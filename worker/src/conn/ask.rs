//! Handlers are asked: here and now, or told apart from those that are to run elsewhere.

use phalanx_shared::config::{Effort, Fault};

use crate::app::Limits;
use crate::http::Reply;
use crate::http::reply::Response;
use crate::in_handler;
use crate::isolator::{Isolator, Parcel};
use crate::pool::{Done, Failure, Job};
use crate::service::{Answer, Answering, Asked, Router, Tunnel, effort, fault};
use crate::watch::spared;

/// Has a process of its own answer, while this thread has nothing else to do.
pub(super) fn isolate(isolator: Option<&Isolator>, limits: &Limits, parcel: &Parcel<'_>) -> Reply<'static> {
    let answer = isolator.map(|isolator| spared(|| isolator.answer(limits, parcel)));
    Reply::Built(answer.unwrap_or_else(|| Response::new(500)))
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
    let answer = in_handler::guard(|| match router.answer(asked, done) {
        Answer::Reply(reply) => Turnout::Reply(reply),
        Answer::Later(job) => Turnout::Later(job),
        Answer::Call => Turnout::Call,
        Answer::Isolate(limits) => Turnout::Isolate(limits),
        Answer::Task(answering) => Turnout::Task(answering),
        Answer::Tunnel(tunnel) => Turnout::Tunnel(tunnel),
        Answer::Effort(effort, reply) => Turnout::Effort(effort, reply),
        Answer::Health(_, page) if unready => Turnout::Reply(Reply::Prepared(page)),
        Answer::Health(page, _) => Turnout::Reply(Reply::Prepared(page)),
        Answer::Fault(Fault { pooled: true, kind }) if done_nothing => {
            Turnout::Later(Job::new(move || drop(fault::carry_out(kind))))
        }
        Answer::Fault(Fault { pooled: true, .. }) => Turnout::Reply(Reply::Built(Response::new(200))),
        Answer::Fault(fault) => Turnout::Reply(fault::carry_out(fault.kind)),
    });
    answer.unwrap_or_else(|| Turnout::Reply(Reply::error(500)))
}
