//! The model and the poller that a test's servers have: those that the test was asked to run under, or else the default. All of
//! the suite can be run by hand under another: `PHALANX_SUITE_MODEL=thread PHALANX_SUITE_POLLER=poll cargo test …`.

use std::cell::RefCell;

/// A model and a poller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct How {
    pub(crate) model: String,
    pub(crate) poller: String,
}

thread_local!(static HERE: RefCell<Option<How>> = const { RefCell::new(None) });

impl How {
    pub(crate) fn new(model: &str, poller: &str) -> How {
        How { model: model.to_owned(), poller: poller.to_owned() }
    }

    /// What servers that this thread sets up have.
    pub(crate) fn here() -> How {
        let said = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let default =
            || How { model: said("PHALANX_SUITE_MODEL", "reactor"), poller: said("PHALANX_SUITE_POLLER", "epoll") };
        HERE.with_borrow(|here| here.clone()).unwrap_or_else(default)
    }

    /// Runs `test` with this.
    pub(crate) fn run(self, test: impl FnOnce()) {
        HERE.set(Some(self));
        test();
        HERE.set(None);
    }
}
