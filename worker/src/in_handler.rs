//! Whether this thread runs a handler right now. A panic there is caught and answered; a panic anywhere else ends the process
//! at once, before it unwinds through owners of connections.

use std::cell::Cell;
use std::panic;

use phalanx_shared::error;

thread_local!(static INSIDE: Cell<bool> = const { Cell::new(false) });

/// Returns what [`leave`] is to be told: a handler may run inside another's job.
pub(crate) fn enter() -> bool {
    INSIDE.replace(true)
}

pub(crate) fn leave(before: bool) {
    INSIDE.set(before);
}

/// Runs what is a handler's; none when it panicked.
pub(crate) fn guard<T>(handler: impl FnOnce() -> T) -> Option<T> {
    let before = enter();
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(handler));
    leave(before);
    outcome.ok()
}

/// Makes panics behave so, from now on, in this process.
pub(crate) fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        if INSIDE.get() {
            error!("a handler panicked, its request is answered 500: {info}");
            return;
        }
        error!("panic outside a handler, the process ends: {info}");
        std::process::abort();
    }));
}
