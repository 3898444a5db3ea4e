//! The way back that needs no decision: as long as the program before this one may be returned to, this one's death is that
//! return. What is on record of the service is written down anew before and after everything that changes it, and the handler of
//! the signal that would end this process executes the other program with that.

use std::time::Duration;

use phalanx_shared::sys::fallback::{self, Reason};
use phalanx_shared::sys::table;
use phalanx_shared::{error, warn};

use super::origin::{Manner, Origin};
use super::pass_on;
use super::state::State;

/// A master that does not get on for so long hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes ready to return with the very state that this program was handed. Before anything of it is touched.
pub(crate) fn prepare(origin: &Origin, state: &State) {
    std::panic::set_hook(Box::new(|panic| {
        error!("the master panics: {panic}");
        fallback::become_it(Reason::Panic);
    }));
    let mut back = state.clone();
    back.turn_back("its master died");
    // This program's file, which the one that is returned to has no use for.
    let _closed_over_execve = pass_on(&table::borrow(state.executed), false);
    let _or_none = arm(origin, &state.manner, &back);
}

/// Makes ready to return with `state`, in the place of whatever stood before.
///
/// Whether that is ready; else there is no way back.
pub(crate) fn arm(origin: &Origin, manner: &Manner, state: &State) -> bool {
    let armed = state.write().and_then(|memory| {
        let fallback = origin.fallback(state.executed, manner, memory, state.passed.clone())?;
        fallback::arm(fallback, PATIENCE)
    });
    let ready = armed.is_ok();
    if let Err(error) = armed {
        not_ready(&error);
    }
    ready
}

/// A page that is not true any more is worse than none.
pub(crate) fn not_ready(why: &dyn std::fmt::Display) {
    warn!("while this goes on, the death of this master is not the return to the program before it: {why}");
    fallback::disarm();
}

/// Passes `outcome` on; where it is a failure after which this program cannot go on, returns to the one before first, if there is one
/// to return to: nothing of what it needs may have been dropped.
pub(crate) fn or_return<T>(outcome: Result<T, String>) -> Result<T, String> {
    outcome.inspect_err(|why| {
        if fallback::is_armed() {
            error!("this program cannot go on with the service: {why}");
            fallback::become_it(Reason::Exit);
        }
    })
}

/// Nothing has changed, and this master gets on.
pub(crate) fn go_on() {
    fallback::go_on(PATIENCE);
}

/// There is nothing to return to any more.
pub(crate) fn forget() {
    fallback::disarm();
}
