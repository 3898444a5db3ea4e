//! The model `uring`: one thread that is told what is done instead of what can be done (io_uring(7)). It accepts, receives and sends
//! by operations begun once, or many at a time, by the one system call of a turn; what comes is received straight into buffers of the
//! ledger, so that a successor finds in a dead worker's ring what nobody had seen. Saves system calls, which weigh the more the more
//! is done in a turn; as in `reactor`, a handler that waits holds up every connection of its worker. Needs a system that lets it, and
//! containers often do not. Known from servers of the last few years; no widely used one has it for sockets by default.

use phalanx_shared::config::{Poller, Workers};
use phalanx_shared::sys::uring::Ring;

use super::Model;
use crate::conn::Context;
use crate::event::uring::Uring;
use crate::main_loop::MainLoop;

/// Buffers that a ring can name.
const MOST_BUFFERS: usize = 1 << 16;

pub(super) const MODEL: Model =
    Model { pollers: &[Poller::Epoll], equip, serve: |booted| Ok(MainLoop::new(booted)?.run()) };

fn equip(cx: &mut Context, _workers: &Workers) -> Result<(), String> {
    let buffers = cx.ledger.buffers_of_lane(cx.lane_number);
    if buffers.len() > MOST_BUFFERS {
        let most = MOST_BUFFERS / 2;
        return Err(format!("the model uring has room for {most} connections a worker: lower limits.connections"));
    }
    let ring = Ring::new(buffers.start).map_err(|error| {
        let reason = match error.raw_os_error() {
            Some(libc::ENOSYS) => "this kernel is built without it, or hides it",
            Some(libc::EPERM | libc::EACCES) => {
                "it is denied here, by a filter on system calls, as in many containers, or by the sysctl kernel.io_uring_disabled"
            }
            Some(libc::EINVAL) => "this kernel is older than Linux 6.1",
            _ => "no ring could be made",
        };
        format!("the model uring needs io_uring, and {reason} ({error}): choose another model, such as \"reactor\"")
    })?;
    cx.lane.set_ring(Some((ring.descriptor(), cx.incarnation)));
    cx.ring = Some(Uring::new(ring, buffers.len() / 4));
    cx.by_ring = true;
    Ok(())
}
