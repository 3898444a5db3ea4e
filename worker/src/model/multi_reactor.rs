//! The model `multi-reactor`: several event loops in one worker, each a thread with connections of its own, and one pool of threads
//! for the handlers of all. The main loop accepts and hands each connection to the loop that has fewest. One worker makes use of
//! several processors, and what it keeps in memory is there once; what it pays is that one fault takes all loops down together.
//! Known from memcached and Netty.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx_shared::config::{Poller, Workers};
use phalanx_shared::error;
use phalanx_shared::ipc::channel::Doorbell;
use phalanx_shared::ledger::Track;
use phalanx_shared::sys::crash_signal::{Prepared, Word};
use phalanx_shared::sys::process;

use super::{Model, reactor_pool};

use crate::conn::{Connection, Context, cohort};
use crate::enter::Booted;
use crate::event::{Event, Interest};
use crate::event_loop::{Count, EventLoop, Stuck};
use crate::in_handler;
use crate::lock::lock;
use crate::main_loop::{Crew, MainLoop};

/// Buffers that a loop keeps at hand.
const BUFFERS: usize = 64;

pub(super) const MODEL: Model = Model { pollers: Poller::ALL, equip: reactor_pool::equip, serve };

fn serve(mut booted: Booted) -> Result<i32, String> {
    let loops = Loops::start(&mut booted.cx, &booted.workers).map_err(|error| format!("start a loop: {error}"))?;
    Ok(MainLoop::with_crew(booted, Box::new(loops))?.run())
}

/// What a loop is told to do.
type Act = Box<dyn FnOnce(&mut EventLoop) + Send>;

/// A loop on a thread of its own, as the main loop sees it.
struct Other {
    inbox: Arc<Inbox>,
    count: Count,
    track: Track,
}

/// What a loop is to do next, with a bell.
struct Inbox {
    acts: Mutex<Vec<Act>>,
    bell: Doorbell,
}

/// What loops have to tell the main one, with a bell.
struct News {
    stuck: Mutex<Vec<Stuck>>,
    bell: Doorbell,
}

/// All loops but the main one.
struct Loops {
    others: Vec<Other>,
    news: Arc<News>,
}

impl Loops {
    fn start(cx: &mut Context, workers: &Workers) -> io::Result<Loops> {
        let news = Arc::new(News { stuck: Mutex::default(), bell: Doorbell::new()? });
        let others = (1..usize::from(workers.loops)).map(|number| Other::start(cx, workers, number, news.clone()));
        Ok(Loops { others: others.collect::<io::Result<_>>()?, news })
    }

    fn tell_all(&self, act: impl Fn(&mut EventLoop) + Clone + Send + 'static) {
        self.others.iter().for_each(|other| other.tell(act.clone()));
    }
}

impl Other {
    fn start(cx: &mut Context, workers: &Workers, number: usize, news: Arc<News>) -> io::Result<Other> {
        let cx = cx.share(number, BUFFERS).ok_or_else(|| io::Error::other("the ledger has room for fewer loops"))?;
        for pool in cx.pools() {
            pool.hang_bell()?;
        }
        let track = cx.track;
        let mut own = EventLoop::new(cx, workers.poller)?;
        let bell = Doorbell::new()?;
        own.poller.add(bell.as_fd().as_raw_fd(), Interest::Read)?;
        let inbox = Arc::new(Inbox { acts: Mutex::default(), bell });
        let mut descriptors = own.descriptors();
        descriptors.push(inbox.bell.as_fd().as_raw_fd());
        track.notes().set(&descriptors);
        let (count, limit) = (own.counter(), workers.request_timeout);
        let thread = {
            let inbox = inbox.clone();
            move || {
                in_handler::own_connections();
                run(own, &inbox, limit, &news);
            }
        };
        std::thread::Builder::new().name("phalanx-loop".to_owned()).spawn(thread)?;
        Ok(Other { inbox, count, track })
    }

    /// Has the loop do something in its next turn.
    fn tell(&self, act: impl FnOnce(&mut EventLoop) + Send + 'static) {
        let mut acts = lock(&self.inbox.acts);
        acts.push(Box::new(act));
        if acts.len() == 1 {
            self.inbox.bell.ring();
        }
    }

    /// As [`Other::tell`], and waits for what it comes to.
    fn ask<T: Send + 'static>(&self, act: impl FnOnce(&mut EventLoop) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.tell(move |own| {
            let _nobody_waits = answer.send(act(own));
        });
        answered.recv().ok()
    }
}

/// A loop's life.
fn run(mut own: EventLoop, inbox: &Inbox, limit: Duration, news: &News) -> ! {
    let _to_die_in_order = Prepared::this_thread(Word::Shared(own.cx.track.current_word()))
        .inspect_err(|error| error!("a stack for the signals of a loop: {error}"));
    let mut events = Vec::new();
    loop {
        let wait = own.next_wait(limit);
        if let Err(error) = own.wait(&mut events, wait) {
            error!("wait for events: {error}");
            process::exit_now(1);
        }
        own.begin_turn();
        for cohort in events.chunks(cohort::MOST) {
            own.begin_cohort(cohort);
            for event in cohort {
                if !own.react(event) {
                    inbox.bell.silence();
                    let acts = std::mem::take(&mut *lock(&inbox.acts));
                    acts.into_iter().for_each(|act| act(&mut own));
                }
            }
            own.end_cohort();
        }
        own.end_turn();
        let mut found = own.watch(limit);
        if !found.is_empty() {
            lock(&news.stuck).append(&mut found);
            news.bell.ring();
        }
        own.tidy_up();
    }
}

impl Crew for Loops {
    fn take(&mut self, own: &mut EventLoop, connection: Connection) -> Option<Connection> {
        let Some(fewest) = self.others.iter().min_by_key(|other| other.count.get()) else { return Some(connection) };
        if own.count() <= fewest.count.get() {
            return Some(connection);
        }
        // Counted from here on, so that the next one goes elsewhere.
        fewest.count.add_coming();
        fewest.tell(|own| own.take_coming(connection));
        None
    }

    fn count(&self) -> u32 {
        self.others.iter().map(|other| other.count.get()).sum()
    }

    fn descriptors(&self) -> Vec<RawFd> {
        // Each loop's own stand in its track.
        vec![self.news.bell.as_fd().as_raw_fd()]
    }

    fn watched(&self) -> Vec<RawFd> {
        self.descriptors()
    }

    fn react(&mut self, event: &Event) -> bool {
        let is_news = event.fd == self.news.bell.as_fd().as_raw_fd();
        if is_news {
            // What it is about is asked for at the end of the turn.
            self.news.bell.silence();
        }
        is_news
    }

    fn give(&mut self, bell: &'static Doorbell) {
        self.tell_all(move |own| own.give(bell));
    }

    fn close_idle(&mut self, grace: Duration) {
        self.tell_all(move |own| own.close_idle(grace));
    }

    fn oldest_idle(&mut self, most: usize) -> Vec<(RawFd, u64)> {
        self.others.iter().filter_map(|other| other.ask(move |own| own.oldest_idle(most))).flatten().collect()
    }

    fn close_if_idle_since(&mut self, fd: RawFd, event: u64) -> bool {
        // Only one of them has it.
        self.others.iter().any(|other| other.ask(move |own| own.close_if_idle_since(fd, event)) == Some(true))
    }

    fn check(&mut self, own: &mut EventLoop) {
        for other in &self.others {
            // Should it not answer, it is what it works on that is to blame.
            own.cx.track.set_current(other.track.current());
            other.ask(|own| own.cx.access_log.flush());
        }
        own.cx.track.set_current(None);
    }

    fn stuck(&mut self, _own: &EventLoop, _limit: Duration) -> Vec<Stuck> {
        std::mem::take(&mut *lock(&self.news.stuck))
    }
}
