//! A ledger on which a dying worker has scribbled, read by its successor: see `phalanx_worker::fuzzing`.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use phalanx_worker::fuzzing::Succession;

thread_local!(static SUCCESSION: RefCell<Option<Succession>> = const { RefCell::new(None) });

fuzz_target!(|bytes: &[u8]| {
    SUCCESSION.with_borrow_mut(|succession| {
        let succession = succession.get_or_insert_with(|| Succession::prepare().expect("sockets and a ledger"));
        succession.play(bytes);
    });
});
