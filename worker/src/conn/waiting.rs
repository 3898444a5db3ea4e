//! What a connection waits for that others do: threads, or tasks. What is done comes back by its ticket.

use phalanx_shared::ledger::response::Entry;

use super::{Connection, Context, Fate};
use crate::crash_point::{self, Point};
use crate::pool::{Done, Failure, Job, Ticket};

/// A thread of the pool works for the connection.
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) whose: Whose,
    pub(super) why: Why,
}

/// Who works for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A thread of the pool.
    Pool,
    /// A thread that runs handlers.
    Handlers,
    /// A task.
    Tasks,
}

/// What becomes of a result of the pool.
pub(super) enum Why {
    /// The handler of the request that ends at this stream position goes on with it. The request is not on record meanwhile:
    /// whoever takes over begins with it anew, however often that happens.
    Answer(u64),
    /// It is the answer to the request that ends at this stream position, which is on record while a thread is at it.
    Call(u64),
    /// It is, or makes ready, what is to be sent next.
    Output,
    /// The response on record as this entry, broken off by a death, can be made again.
    Resume(Entry),
}

impl Connection {
    /// A thread has done what the job of this ticket was; of another, a job that an earlier connection of this number left.
    pub fn arrived(&mut self, cx: &mut Context, ticket: Ticket, done: Done) -> Fate {
        match self.waiting.take() {
            Some(waiting) if waiting.ticket == ticket => {
                crash_point::pass(Point::AfterPool);
                match waiting.why {
                    Why::Answer(request_end) => self.answer_arrived(cx, request_end, done),
                    Why::Call(request_end) => self.call_arrived(cx, request_end, done),
                    Why::Output => self.output_arrived(cx, done),
                    Why::Resume(entry) => self.resume_arrived(cx, &entry, done),
                }
            }
            other => {
                self.waiting = other;
                Fate::Stay
            }
        }
    }

    /// Has a job done; what follows is [`Connection::arrived`].
    pub(super) fn wait_for(&mut self, cx: &mut Context, job: Job, why: Why) -> Fate {
        if cx.blocking {
            return self.do_here(cx, job, why);
        }
        let job = match (job.into_task(), &mut cx.tasks) {
            (Ok(task), Some(tasks)) => {
                let ticket = tasks.spawn(self.fd, cx.track, task);
                self.waiting = Some(Box::new(Waiting { ticket, whose: Whose::Tasks, why }));
                return Fate::Stay;
            }
            (Ok(_), None) => return Fate::Close,
            (Err(job), _) => job,
        };
        let whose = if job.is_handler() && cx.handlers.is_some() { Whose::Handlers } else { Whose::Pool };
        let pool = match &mut cx.handlers {
            Some(handlers) if whose == Whose::Handlers => handlers,
            _ => &mut cx.pool,
        };
        match pool.submit(self.fd, job) {
            Ok(ticket) => {
                self.waiting = Some(Box::new(Waiting { ticket, whose, why }));
                Fate::Stay
            }
            // Too much waits already: done here, which holds everybody up, and rather that than lose a response on its way.
            Err(job) => self.do_here(cx, job, why),
        }
    }

    /// Does a job on the spot.
    fn do_here(&mut self, cx: &mut Context, job: Job, why: Why) -> Fate {
        match why {
            Why::Call(request_end) => self.call_arrived(cx, request_end, Err(Failure::Refused)),
            Why::Answer(request_end) => self.answer_arrived(cx, request_end, job.run()),
            Why::Output => self.fetched_here(cx, job.run()),
            Why::Resume(entry) => self.resume_arrived(cx, &entry, job.run()),
        }
    }

    /// What it waits for is not wanted any more.
    pub(super) fn forget_waiting(&mut self, cx: &mut Context) {
        let Some(waiting) = self.waiting.take() else { return };
        match (waiting.whose, &mut cx.handlers, &mut cx.tasks) {
            (Whose::Handlers, Some(handlers), _) => handlers.forget(waiting.ticket),
            (Whose::Tasks, _, Some(tasks)) => tasks.forget(waiting.ticket),
            _ => cx.pool.forget(waiting.ticket),
        }
    }
}
