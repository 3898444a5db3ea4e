//! Handlers that run as tasks of an asynchronous runtime, on the thread of the loop: each waits without holding up the others, and
//! is dropped when nobody waits for it any more. Knows neither connections nor what a task does.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use phalanx_shared::ledger::Track;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::in_handler;
use crate::lock::lock;
use crate::pool::{Done, Failure, Ticket};

/// What a task does.
pub type Work = Pin<Box<dyn Future<Output = Box<dyn Any + Send>> + Send>>;

/// The tasks of a loop.
pub struct Tasks {
    /// Runs them; taken by the loop, which does so from then on.
    runtime: Option<Runtime>,
    handle: Handle,
    running: HashMap<Ticket, AbortHandle>,
    returns: Arc<Returns>,
}

/// What tasks have come to.
#[derive(Default)]
struct Returns {
    done: Mutex<Vec<(RawFd, Ticket, Done)>>,
    bell: Notify,
}

impl Tasks {
    /// None yet.
    ///
    /// # Errors
    /// That their runtime cannot be made.
    pub fn new() -> io::Result<Tasks> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        Ok(Tasks { runtime: Some(runtime), handle, running: HashMap::new(), returns: Arc::default() })
    }

    /// Where things are made that belong to the runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// What runs them, for whoever is to; once.
    pub fn take_runtime(&mut self) -> Option<Runtime> {
        self.runtime.take()
    }

    /// Begins a task for connection `fd`. While it is polled, `track` names that as the one to blame.
    pub fn spawn(&mut self, fd: RawFd, track: Track, work: Work) -> Ticket {
        let (ticket, returns) = (Ticket::fresh(), self.returns.clone());
        let task = async move {
            let done = Blamed { fd, track, work }.await;
            lock(&returns.done).push((fd, ticket, done));
            returns.bell.notify_one();
        };
        self.running.insert(ticket, self.handle.spawn(task).abort_handle());
        ticket
    }

    /// Nobody waits for it any more: it is dropped where it stands.
    pub fn forget(&mut self, ticket: Ticket) {
        if let Some(task) = self.running.remove(&ticket) {
            task.abort();
        }
    }

    /// What has been done, and for whom.
    pub fn results(&mut self) -> Vec<(RawFd, Ticket, Done)> {
        let done = std::mem::take(&mut *lock(&self.returns.done));
        done.into_iter().filter(|(_, ticket, _)| self.running.remove(ticket).is_some()).collect()
    }

    /// Waits until there is something done.
    pub fn bell(&self) -> impl Future<Output = ()> + use<> {
        let returns = self.returns.clone();
        async move { returns.bell.notified().await }
    }

    /// How many there are.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.running.len()
    }
}

/// A task that is blamed on its connection if it faults, and whose panic is its own affair.
struct Blamed {
    fd: RawFd,
    track: Track,
    work: Work,
}

impl Future for Blamed {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        self.track.set_current(Some(self.fd));
        let polled = in_handler::guard(|| self.work.as_mut().poll(cx));
        self.track.set_current(None);
        polled.map_or(Poll::Ready(Err(Failure::Panicked)), |polled| polled.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use phalanx_shared::ledger::Ledger;

    use super::*;

    fn boxed<T: Any + Send>(work: impl Future<Output = T> + Send + 'static) -> Work {
        Box::pin(async move { Box::new(work.await) as Box<dyn Any + Send> })
    }

    #[test]
    fn thousands_wait_at_once_and_one_that_panics_fails_alone() {
        let (mut tasks, track) = (Tasks::new().unwrap(), Ledger::create("test", 8, 1).unwrap().0.lane(0).track());
        let runtime = tasks.take_runtime().unwrap();
        for fd in 0..5000 {
            let work = async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(fd != 7, "on purpose");
                fd
            };
            tasks.spawn(fd, track, boxed(work));
        }
        let (mut done, begun) = (Vec::new(), std::time::Instant::now());
        runtime.block_on(async {
            while done.len() < 5000 {
                tasks.bell().await;
                done.append(&mut tasks.results());
            }
        });
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        for (fd, _, done) in done {
            match done {
                Ok(done) => assert_eq!(done.downcast_ref::<i32>(), Some(&fd)),
                Err(failure) => assert_eq!((fd, failure), (7, Failure::Panicked)),
            }
        }
        assert_eq!((tasks.count(), track.current()), (0, None));
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_dropped_where_it_stands() {
        struct Guard(Arc<AtomicBool>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let (mut tasks, track) = (Tasks::new().unwrap(), Ledger::create("test", 8, 1).unwrap().0.lane(0).track());
        let (runtime, dropped) = (tasks.take_runtime().unwrap(), Arc::new(AtomicBool::new(false)));
        let guard = Guard(dropped.clone());
        let work = async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        let ticket = tasks.spawn(3, track, boxed(work));
        runtime.block_on(tokio::task::yield_now());
        assert!(!dropped.load(Ordering::SeqCst));
        tasks.forget(ticket);
        runtime.block_on(tokio::task::yield_now());
        assert!(dropped.load(Ordering::SeqCst) && tasks.results().is_empty());
    }
}
