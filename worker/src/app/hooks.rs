//! What a program wants to be told, and what it wants to have run beside its handlers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use phalanx_shared::error;

use crate::in_handler;

/// Why a hook cannot go on.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// A worker, as a hook sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// The slot that it serves, from 0 on.
    pub slot: u32,
    /// Which worker of that slot it is: 1, 2, …
    pub incarnation: u32,
}

/// The death of a worker.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Crash {
    /// Its slot.
    pub slot: u32,
    /// Its process id.
    pub pid: i32,
    /// What it died of, in words.
    pub cause: String,
    /// The request that is to blame, if one is: its request line.
    pub request: Option<String>,
    /// The whole report, as JSON: what a file of `master.crash_dir` holds.
    pub report: String,
}

impl Crash {
    /// For the master, which alone knows of deaths.
    #[doc(hidden)]
    pub fn new(slot: u32, pid: i32, cause: String, request: Option<String>, report: String) -> Crash {
        Crash { slot, pid, cause, request, report }
    }
}

type OnStart = dyn Fn() -> Result<(), HookError> + Send + Sync;
type AfterFork = dyn Fn(&WorkerInfo) -> Result<(), HookError> + Send + Sync;
type OfWorker = dyn Fn(&WorkerInfo) + Send + Sync;
type OnCrash = dyn Fn(&Crash) + Send + Sync;

/// Something that runs in a process of its own, one for the whole service.
#[derive(Clone)]
pub struct Background {
    /// What it is called.
    pub name: String,
    /// What it does. When it returns, it is begun again.
    pub run: Arc<dyn Fn() + Send + Sync>,
}

/// What a program wants to be told.
#[derive(Clone, Default)]
pub struct Hooks {
    pub(super) on_start: Vec<Arc<OnStart>>,
    pub(super) after_fork: Vec<Arc<AfterFork>>,
    pub(super) on_drain: Vec<Arc<OfWorker>>,
    pub(super) on_exit: Vec<Arc<OfWorker>>,
    pub(super) on_crash: Vec<Arc<OnCrash>>,
    pub(super) backgrounds: Vec<Background>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooks")
    }
}

impl Hooks {
    /// None.
    #[must_use]
    pub fn new() -> Hooks {
        Hooks::default()
    }

    /// Adds one for the master, before the first worker.
    pub fn add_on_start(&mut self, hook: impl Fn() -> Result<(), HookError> + Send + Sync + 'static) {
        self.on_start.push(Arc::new(hook));
    }

    /// Adds one for each worker, before its first request.
    pub fn add_after_fork(&mut self, hook: impl Fn(&WorkerInfo) -> Result<(), HookError> + Send + Sync + 'static) {
        self.after_fork.push(Arc::new(hook));
    }

    /// Adds one for a worker that gets no new work any more.
    pub fn add_on_drain(&mut self, hook: impl Fn(&WorkerInfo) + Send + Sync + 'static) {
        self.on_drain.push(Arc::new(hook));
    }

    /// Adds one for a worker that leaves in good order.
    pub fn add_on_exit(&mut self, hook: impl Fn(&WorkerInfo) + Send + Sync + 'static) {
        self.on_exit.push(Arc::new(hook));
    }

    /// Adds one for each death.
    pub fn add_on_crash(&mut self, hook: impl Fn(&Crash) + Send + Sync + 'static) {
        self.on_crash.push(Arc::new(hook));
    }

    /// Adds something that runs beside the workers.
    pub fn add_background(&mut self, name: &str, run: impl Fn() + Send + Sync + 'static) {
        self.backgrounds.push(Background { name: name.to_owned(), run: Arc::new(run) });
    }

    /// Adds something that is done again and again. A panic in it is its own affair.
    pub fn add_every(&mut self, interval: Duration, run: impl Fn() + Send + Sync + 'static) {
        self.add_background(&format!("every {interval:?}"), move || {
            loop {
                std::thread::sleep(interval);
                if in_handler::guard(&run).is_none() {
                    error!("what is done every {interval:?} panicked: it is done again in time");
                }
            }
        });
    }

    /// The master begins. An error is why it cannot.
    pub fn start(&self) -> Result<(), String> {
        self.on_start.iter().try_for_each(|hook| hook()).map_err(|error| format!("the program's on_start: {error}"))
    }

    /// A worker begins. An error is why it cannot.
    pub(crate) fn forked(&self, worker: &WorkerInfo) -> Result<(), String> {
        for hook in &self.after_fork {
            match in_handler::guard(|| hook(worker)) {
                Some(outcome) => outcome.map_err(|error| format!("the program's after_fork: {error}"))?,
                None => return Err("the program's after_fork panicked".to_owned()),
            }
        }
        Ok(())
    }

    /// A worker gets no new work any more.
    pub(crate) fn drains(&self, worker: &WorkerInfo) {
        self.on_drain.iter().for_each(|hook| in_handler::guard(|| hook(worker)).unwrap_or_default());
    }

    /// A worker leaves.
    pub(crate) fn exits(&self, worker: &WorkerInfo) {
        self.on_exit.iter().for_each(|hook| in_handler::guard(|| hook(worker)).unwrap_or_default());
    }

    /// A worker has died.
    pub fn crashed(&self, crash: &Crash) {
        self.on_crash.iter().for_each(|hook| in_handler::guard(|| hook(crash)).unwrap_or_default());
    }

    /// Whether anybody wants to know of deaths.
    pub fn hears_of_crashes(&self) -> bool {
        !self.on_crash.is_empty()
    }

    /// What runs beside the workers.
    pub fn backgrounds(&self) -> &[Background] {
        &self.backgrounds
    }
}
