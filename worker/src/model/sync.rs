//! The model `sync`: a worker has one connection at a time, and whoever comes meanwhile waits in the kernel's queue. Nothing in a
//! worker is ever done at once with anything else, which suits handlers that no other model could bear; it takes as many workers as
//! there are connections at work. While others wait, each response is its connection's last, and an idle connection is closed. Known
//! from Apache's prefork and gunicorn's sync workers.

use phalanx_shared::config::{Poller, Workers};

use super::Model;
use crate::conn::Context;
use crate::main_loop::MainLoop;

pub(super) const MODEL: Model = Model { pollers: Poller::ALL, equip, serve: |booted| Ok(MainLoop::new(booted)?.one_at_a_time().run()) };

fn equip(cx: &mut Context, _workers: &Workers) -> Result<(), String> {
    cx.blocking = true;
    Ok(())
}
