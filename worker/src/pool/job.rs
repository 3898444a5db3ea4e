//! What a thread of a pool is given to do.

use std::any::Any;
use std::sync::Arc;

use phalanx_shared::ledger::record::Mark;

use crate::{in_handler, tasks};

/// What a job comes to, for whoever asked.
pub type Done = Result<Box<dyn Any + Send>, Failure>;

/// Why nothing came of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It panicked.
    Panicked,
    /// It did not end.
    GaveUp,
    /// Too much waited already.
    Refused,
}

/// What a job does.
pub(super) type Work = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// Makes the same result for one more who waits for it.
pub(super) type Share = fn(&(dyn Any + Send)) -> Option<Box<dyn Any + Send>>;

/// Something that may block.
pub struct Job {
    /// Equal keys mean equal results: such jobs are shared. The result must then be an `Arc`, see [`Job::shared`].
    pub(super) key: Option<String>,
    pub(super) turn: u64,
    pub(super) work: Work,
    pub(super) share: Share,
    /// Of a handler: what stands in its connection's record from the moment on in which a thread begins with it.
    pub(super) begins: Option<Mark>,
    is_handler: bool,
    /// It is a task of a runtime instead, and there is no other work.
    task: Option<tasks::Work>,
}

impl Job {
    /// A job for one.
    pub fn new<T: Any + Send>(work: impl FnOnce() -> T + Send + 'static) -> Job {
        Job {
            key: None,
            turn: 0,
            work: Box::new(|| Box::new(work())),
            share: |_| None,
            begins: None,
            is_handler: false,
            task: None,
        }
    }

    /// A handler, for a pool of such. `begins` is set when a thread begins with it, and never once it has been forgotten.
    pub fn handler<T: Any + Send>(begins: Option<Mark>, work: impl FnOnce() -> T + Send + 'static) -> Job {
        Job { begins, is_handler: true, ..Job::new(work) }
    }

    /// A handler that is a task.
    pub fn task<T: Any + Send>(work: impl Future<Output = T> + Send + 'static) -> Job {
        let work: tasks::Work = Box::pin(async move { Box::new(work.await) as Box<dyn Any + Send> });
        Job { task: Some(work), ..Job::new(|| ()) }
    }

    /// The task that it is, if it is one.
    pub fn into_task(self) -> Result<tasks::Work, Job> {
        match self.task {
            Some(task) => Ok(task),
            None => Err(self),
        }
    }

    /// Whether it is a handler.
    pub fn is_handler(&self) -> bool {
        self.is_handler
    }

    /// A job whose result is the same for everybody who asks for `key` before a thread has begun with it, or in the same `turn`
    /// of the loop: whoever asks later may know of something that its work did not see.
    pub fn shared<T: Any + Send + Sync>(key: String, turn: u64, work: impl FnOnce() -> Arc<T> + Send + 'static) -> Job {
        let share = |done: &(dyn Any + Send)| {
            let result = done.downcast_ref::<Arc<T>>()?;
            Some(Box::new(result.clone()) as Box<dyn Any + Send>)
        };
        Job {
            key: Some(key),
            turn,
            work: Box::new(|| Box::new(work())),
            share,
            begins: None,
            is_handler: false,
            task: None,
        }
    }

    /// Does it here and now, however long that takes.
    pub fn run(self) -> Done {
        run(self.work)
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job {:?}", self.key)
    }
}

pub(super) fn run(work: Work) -> Done {
    in_handler::guard(work).ok_or(Failure::Panicked)
}
