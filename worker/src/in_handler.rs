//! Whether this thread runs a handler right now, or has connections. A panic in a handler is caught and answered. One in what owns
//! connections ends the process at once, before it unwinds through them. What else a program runs, threads and tasks of its own, is
//! its own affair.

use std::cell::Cell;
use std::panic;
use std::pin::Pin;
use std::task::{Context, Poll};

use phalanx_shared::error;

thread_local!(static INSIDE: Cell<bool> = const { Cell::new(false) });
thread_local!(static OWNS: Cell<bool> = const { Cell::new(false) });

/// This thread has connections from now on.
pub(crate) fn own_connections() {
    OWNS.set(true);
}

/// What has connections, on a thread that runs other things too.
pub(crate) struct Owning<F>(pub(crate) Pin<Box<F>>);

impl<F: Future> Future for Owning<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        OWNS.set(true);
        let polled = self.0.as_mut().poll(cx);
        OWNS.set(false);
        polled
    }
}

/// Runs what is a handler's; none when it panicked. One may run inside another's job.
pub(crate) fn guard<T>(handler: impl FnOnce() -> T) -> Option<T> {
    let before = INSIDE.replace(true);
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(handler));
    INSIDE.set(before);
    outcome.ok()
}

/// Makes panics behave so, from now on, in this process.
pub(crate) fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        if INSIDE.get() {
            error!("a handler panicked, its request is answered 500: {info}");
            return;
        }
        if !OWNS.get() {
            error!("a thread or task of the program panicked: {info}");
            return;
        }
        error!("panic outside a handler, the process ends: {info}");
        std::process::abort();
    }));
}
