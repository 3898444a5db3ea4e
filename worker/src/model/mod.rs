//! How a worker turns events into answers. Each model is one file, and one line here.

use phalanx_shared::config::{KnownModel, Poller, Workers};

use crate::conn::Context;
use crate::enter::Booted;

/// Declares the models: a module for each, and the list of them. A line is the name that a configuration says, and the file.
macro_rules! models {
    ($($name:literal = $module:ident;)*) => {
        $(pub(crate) mod $module;)*

        /// The models by their names, the default first.
        const MODELS: &[(&str, &Model)] = &[$(($name, &$module::MODEL)),*];

        /// What a configuration may say of them.
        pub const KNOWN: &[KnownModel] = &[$(KnownModel { name: $name, pollers: $module::MODEL.pollers }),*];
    };
}

models! {
    "reactor" = reactor;
    "reactor-pool" = reactor_pool;
    "multi-reactor" = multi_reactor;
    "thread" = thread;
    "process" = process;
    "sync" = sync;
    "coroutine" = coroutine;
    "uring" = uring;
}

/// A way to turn events into answers.
pub(crate) struct Model {
    /// How its workers can wait.
    pub(crate) pollers: &'static [Poller],
    /// Gives the worker what its connections are to be served with, before those of the dead are taken over.
    pub(crate) equip: fn(&mut Context, &Workers) -> Result<(), String>,
    /// Serves until the worker is to leave, and tells its exit code; an error is why it cannot begin.
    pub(crate) serve: fn(Booted) -> Result<i32, String>,
}

impl Model {
    /// The one of a name, which a configuration was checked for.
    pub(crate) fn named(name: &str) -> Option<&'static Model> {
        MODELS.iter().find(|(known, _)| *known == name).map(|(_, model)| *model)
    }
}
