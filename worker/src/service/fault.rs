//! `fault` routes: what a handler can do to its worker, on purpose. Refused by the configuration unless
//! `workers.allow_faults` is set.

use std::time::Duration;

use phalanx_shared::config::FaultKind;
use phalanx_shared::sys::process;

use crate::http::Reply;
use crate::http::reply::Response;

/// Bytes that a `leak` loses each time.
const LEAK: usize = 16 * 1024 * 1024;

/// Does it. Returns only from a leak.
pub(crate) fn carry_out(fault: FaultKind) -> Reply<'static> {
    match fault {
        FaultKind::Segv => process::segfault(),
        FaultKind::Abort => std::process::abort(),
        FaultKind::Panic => panic!("the fault route was asked to panic"),
        FaultKind::Overflow => {
            std::hint::black_box(overflow(1));
            Reply::error(500)
        }
        FaultKind::Hang => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        FaultKind::Spin => loop {
            std::hint::spin_loop();
        },
        FaultKind::Deadlock => {
            let lock = std::sync::Arc::new(std::sync::Barrier::new(2));
            // Nobody else comes.
            lock.wait();
            Reply::error(500)
        }
        FaultKind::Read => {
            let read = std::io::pipe().and_then(|(mut reader, _held)| std::io::Read::read(&mut reader, &mut [0]));
            if read.is_ok() { Reply::Built(Response::new(200)) } else { Reply::error(500) }
        }
        FaultKind::Leak => {
            std::mem::forget(std::hint::black_box(vec![1u8; LEAK]));
            Reply::Built(Response::new(200))
        }
        FaultKind::Hoard => loop {
            std::mem::forget(std::hint::black_box(vec![1u8; LEAK]));
            std::thread::sleep(Duration::from_millis(20));
        },
        FaultKind::Exit => std::process::exit(3),
    }
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    overflow(depth + 1) + frame[(depth % 64) as usize]
}
