//! A rank played without processes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::config::{self, Config, Count};
use phalanx_shared::ipc::keeper::Birth;
use phalanx_shared::ipc::{Incarnation, Pong, SlotId, ToMaster, ToWorker, Word};
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::rest::Scheduling;

use super::super::event::{Action, Event};
use super::super::roster::Roster;
use super::super::slot::Post;
use crate::control::server::ClientId;
use crate::verdict::{Cause, Ending};

pub(super) const KILLED: Cause = Cause { ending: Ending::Killed(9), own_fault: false, out_of_memory: None };
pub(super) const LEFT: Cause = Cause { ending: Ending::Exited(0), own_fault: false, out_of_memory: None };

pub(super) fn config(count: u16) -> Config {
    let mut config = config::serve_defaults(PathBuf::from("/"), vec![config::parse_listen("127.0.0.1:8080").unwrap()]);
    config.workers.count = Count::Fixed(count);
    config.workers.probation = Duration::ZERO;
    config
}

/// Where the first worker of the first slot sits.
pub(super) const POST: Post = Post { slot: SlotId(0), ground: 1, lane: 0 };

/// A rank played without processes. Keepers and workers do at once what they are told, unless a case says otherwise.
pub(super) struct Play {
    pub(super) roster: Roster,
    pub(super) now: Instant,
    pub(super) next_pid: i32,
    /// All that has been done since [`Play::done`] was last asked.
    pub(super) done: Vec<Action>,
    /// Workers are born and say nothing: not ready.
    pub(super) slow: bool,
    /// Who retires has something to end.
    pub(super) linger: bool,
    /// What who is looked at is seen doing; somebody who is not looked at answers.
    pub(super) seen: Option<char>,
    /// The one who does not answer; without it nobody does.
    pub(super) silent: Option<Pid>,
    /// Whether addresses that a reload brings can be had, and listened on.
    pub(super) binds: Result<(), String>,
    pub(super) listens: Result<(), String>,
}

impl Play {
    pub(super) fn new(count: u16) -> Play {
        let now = Instant::now();
        let roster = Roster::new(config(count), count.into(), now);
        Play {
            roster,
            now,
            next_pid: 100,
            done: Vec::new(),
            slow: false,
            linger: false,
            seen: None,
            silent: None,
            binds: Ok(()),
            listens: Ok(()),
        }
    }

    /// A rank in which every slot serves.
    pub(super) fn serving(count: u16) -> Play {
        let mut play = Play::new(count);
        play.event(Event::Tick);
        assert!(play.done().contains(&Action::Ready));
        play
    }

    pub(super) fn pid(&mut self) -> Pid {
        self.next_pid += 1;
        Pid::from_raw(self.next_pid)
    }

    pub(super) fn event(&mut self, event: Event) {
        let mut events = vec![event];
        while !events.is_empty() {
            let event = events.remove(0);
            let actions = self.roster.react(event, self.now);
            for action in actions {
                events.extend(self.play_along(&action));
                self.done.push(action);
            }
            for slot in self.roster.emptied() {
                self.done.push(Action::Say(format!("emptied {}", slot.0)));
                events.push(Event::Tick);
            }
        }
    }

    pub(super) fn play_along(&mut self, action: &Action) -> Vec<Event> {
        match action {
            Action::Seat(config) => vec![Event::Seated(self.seats(config))],
            Action::Listen => vec![Event::Listening(self.listens.clone())],
            Action::Open(slot) => vec![Event::Opened(*slot, Ok(self.pid()))],
            Action::Clone(slot, birth) => {
                let born = Event::Born(*slot, birth.incarnation, Ok(self.pid()));
                if self.slow { vec![born] } else { vec![born, ready(*slot, birth.incarnation)] }
            }
            Action::Tell(_, _, ToWorker::Retire) if self.linger => Vec::new(),
            Action::Tell(post, _, ToWorker::Retire | ToWorker::Yield | ToWorker::Leave | ToWorker::Drain(_)) => {
                let slot = self.roster.slots.get_mut(&post.slot).expect("a slot");
                let told = slot.all_workers().find(|worker| worker.post == *post).and_then(|worker| worker.pid);
                told.map(|pid| Event::Ended(pid, LEFT)).into_iter().collect()
            }
            Action::Tell(post, from, ToWorker::Bury { dead, .. }) => {
                vec![Event::Heard(post.slot, ToMaster { from: *from, word: Word::Buried(*dead) })]
            }
            Action::Examine(slot, incarnation, _) => {
                let (on_cpu, waited) = (Duration::ZERO, Duration::ZERO);
                let seen = self.seen.map(|state| Scheduling { state, on_cpu, waited, private_bytes: 0, syscall: None });
                vec![Event::Examined(*slot, *incarnation, seen)]
            }
            // A fresh worker answers.
            Action::Tell(post, from, ToWorker::Ping(1)) => vec![pong(post.slot.0, *from, 1, false)],
            Action::Tell(post, from, ToWorker::Ping(number)) if self.silent.is_some() => {
                let worker = self.roster.slots[&post.slot].serving().and_then(|worker| worker.pid);
                let answers = worker != self.silent;
                answers.then(|| pong(post.slot.0, *from, *number, false)).into_iter().collect()
            }
            Action::Kill(pid, Signal::SIGKILL) => vec![Event::Ended(*pid, KILLED)],
            _ => Vec::new(),
        }
    }

    fn seats(&self, config: &Config) -> Result<Box<Config>, String> {
        self.binds.clone().map(|()| Box::new(config.clone()))
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
    }

    /// So many seconds, in which the master is awake.
    pub(super) fn pass(&mut self, seconds: u32) {
        (0..5 * seconds).for_each(|_| self.wait(Duration::from_millis(200)));
    }

    pub(super) fn done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    pub(super) fn worker(&self, slot: u32) -> (Pid, Incarnation) {
        let worker = self.roster.slots[&SlotId(slot)].serving().expect("somebody serves");
        (worker.pid.expect("it is born"), worker.incarnation)
    }

    pub(super) fn states(&self) -> Vec<&'static str> {
        self.roster.slots.values().map(super::super::slot::Slot::state).collect()
    }

    pub(super) fn reload(&mut self) {
        self.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(self.roster.config.clone())) });
    }
}

pub(super) fn ready(slot: SlotId, incarnation: Incarnation) -> Event {
    Event::Heard(slot, ToMaster { from: incarnation, word: Word::Ready })
}

pub(super) fn pong(slot: u32, from: Incarnation, number: u64, wants_successor: bool) -> Event {
    let pong = Pong { number, stats: Snapshot::default(), private_bytes: 0, wants_successor };
    Event::Heard(SlotId(slot), ToMaster { from, word: Word::Pong(pong) })
}

/// Where among `actions` the worker on that lane is told `word`.
pub(super) fn told_at(actions: &[Action], slot: u32, lane: usize, word: &ToWorker) -> Option<usize> {
    actions.iter().position(|action| match action {
        Action::Tell(post, _, said) => (post.slot.0, post.lane, said) == (slot, lane, word),
        _ => false,
    })
}

pub(super) fn told(actions: &[Action], slot: u32, lane: usize, word: &ToWorker) -> bool {
    told_at(actions, slot, lane, word).is_some()
}

pub(super) fn births(actions: &[Action]) -> Vec<&Birth> {
    actions
        .iter()
        .filter_map(|action| if let Action::Clone(_, birth) = action { Some(birth.as_ref()) } else { None })
        .collect()
}

pub(super) fn replies(actions: &[Action]) -> Vec<(bool, &str)> {
    let replies = actions.iter().filter_map(|action| match action {
        Action::Reply(_, answer) => Some((answer.ok, answer.text.as_str())),
        _ => None,
    });
    replies.collect()
}
