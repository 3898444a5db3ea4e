//! The model `reactor`: one thread, one event loop; accept, read, answer, write. Costs nothing that the others do not cost
//! too, and suits handlers that never wait: one that does holds up every connection of its worker. Known from nginx and Redis.

use phalanx_shared::config::Poller;

use super::Model;
use crate::main_loop::MainLoop;

pub(super) const MODEL: Model = Model { pollers: Poller::ALL, equip: |_, _| Ok(()), serve: |booted| Ok(MainLoop::new(booted)?.run()) };
