//! The model `coroutine`: one thread, one event loop, and handlers that are coroutines: asynchronous functions, tasks of a tokio
//! runtime that shares the thread. One that waits costs a few hundred bytes and holds up nobody; one that computes holds up all. A
//! client that goes takes its handler with it. Suits handlers that wait for other servers. Known from hyper, Go and Node.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use phalanx_shared::config::{Poller, Workers};
use phalanx_shared::error;
use phalanx_shared::sys::asynchronous::readable;
use phalanx_shared::sys::table::borrow;
use tokio::time::Instant;

use super::Model;
use crate::conn::Context;
use crate::enter::Booted;
use crate::in_handler::Owning;
use crate::main_loop::MainLoop;
use crate::tasks::Tasks;

pub(super) const MODEL: Model = Model { pollers: &[Poller::Epoll], equip, serve };

/// Turns of the loop before tasks get theirs.
const ROUNDS: usize = 4;
/// How long a sleep is that nothing but an event ends.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

fn equip(cx: &mut Context, _workers: &Workers) -> Result<(), String> {
    cx.tasks = Some(Tasks::new().map_err(|error| format!("the runtime of the coroutines: {error}"))?);
    Ok(())
}

fn serve(mut booted: Booted) -> Result<i32, String> {
    let runtime = booted.cx.tasks.as_mut().and_then(Tasks::take_runtime);
    let runtime = runtime.ok_or("the runtime of the coroutines is missing")?;
    let main = MainLoop::new(booted)?;
    runtime.block_on(Owning(Box::pin(run(main))))
}

/// The main loop as the first of the tasks.
async fn run(mut main: MainLoop) -> Result<i32, String> {
    let fail = |error: io::Error| format!("wait for events: {error}");
    let poller = main.poller_descriptor().ok_or("the poller has no descriptor to wait for")?;
    // Readable when the poller has events to tell.
    let nested = borrow(poller).try_clone_to_owned().map_err(fail)?;
    main.note_more(nested.as_raw_fd());
    let events_are_there = readable(nested).map_err(fail)?;
    let mut sleep = pin!(tokio::time::sleep(LONG));
    let mut events = Vec::new();
    // All that the poller had to tell was taken: it will be told of what comes.
    let mut drained = true;
    loop {
        let limit = main.next_wait();
        main.hand_over();
        if !drained || limit == Some(Duration::ZERO) {
            tokio::task::yield_now().await;
        } else {
            sleep.as_mut().reset(Instant::now() + limit.unwrap_or(LONG));
            let mut bell = pin!(main.task_bell());
            poll_fn(|cx| {
                let told = events_are_there.poll_read_ready(cx).map(|ready| {
                    // Before the events are taken: what comes meanwhile is told anew.
                    ready.map(|mut ready| ready.clear_ready())
                });
                match told {
                    Poll::Ready(Err(error)) => error!("wait for events: {error}"),
                    Poll::Ready(Ok(())) => {}
                    Poll::Pending => {
                        let done = bell.as_mut().poll(cx).is_ready();
                        let late = sleep.as_mut().poll(cx).is_ready();
                        return if done || late { Poll::Ready(()) } else { Poll::Pending };
                    }
                }
                Poll::Ready(())
            })
            .await;
        }
        // The runtime is told of events once: all are taken before it is asked again. But the tasks get their turn.
        drained = false;
        for _round in 0..ROUNDS {
            main.take_events(&mut events).map_err(fail)?;
            main.turn(&events);
            if main.is_over() {
                drop(events_are_there);
                return Ok(main.leave());
            }
            if events.is_empty() {
                drained = true;
                break;
            }
        }
    }
}
