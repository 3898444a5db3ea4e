//! The roster as a table of cases: events in, actions out, no process anywhere.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::config::{self, Config, Count};
use phalanx_shared::ipc::keeper::Birth;
use phalanx_shared::ipc::{Closing, Incarnation, Pong, SlotId, ToMaster, ToWorker, Word};
use phalanx_shared::ledger::record::Guilt;
use phalanx_shared::stats::Snapshot;
use phalanx_shared::sys::rest::Scheduling;

use super::event::{Action, Event};
use super::recycling::Reason;
use super::roster::Roster;
use super::slot::{Post, Stage};
use crate::control::server::ClientId;
use crate::verdict::{Cause, Ending};

const KILLED: Cause = Cause { ending: Ending::Killed(9), own_fault: false, out_of_memory: None };
const LEFT: Cause = Cause { ending: Ending::Exited(0), own_fault: false, out_of_memory: None };

fn config(count: u16) -> Config {
    let mut config = config::serve_defaults(PathBuf::from("/"), vec![config::parse_listen("127.0.0.1:8080").unwrap()]);
    config.workers.count = Count::Fixed(count);
    config
}

/// Where the first worker of the first slot sits.
const POST: Post = Post { slot: SlotId(0), ground: 1, lane: 0 };

/// A rank played without processes. Keepers and workers do at once what they are told, unless a case says otherwise.
struct Play {
    roster: Roster,
    now: Instant,
    next_pid: i32,
    /// All that has been done since [`Play::done`] was last asked.
    done: Vec<Action>,
    /// Workers are born and say nothing: not ready.
    slow: bool,
    /// What who is looked at is seen doing; somebody who is not looked at answers.
    seen: Option<char>,
    /// The one who does not answer; without it nobody does.
    silent: Option<Pid>,
}

impl Play {
    fn new(count: u16) -> Play {
        let now = Instant::now();
        let roster = Roster::new(config(count), count.into(), now);
        Play { roster, now, next_pid: 100, done: Vec::new(), slow: false, seen: None, silent: None }
    }

    /// A rank in which every slot serves.
    fn serving(count: u16) -> Play {
        let mut play = Play::new(count);
        play.event(Event::Tick);
        assert!(play.done().contains(&Action::Ready));
        play
    }

    fn pid(&mut self) -> Pid {
        self.next_pid += 1;
        Pid::from_raw(self.next_pid)
    }

    fn event(&mut self, event: Event) {
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

    fn play_along(&mut self, action: &Action) -> Vec<Event> {
        match action {
            Action::Open(slot) => vec![Event::Opened(*slot, Ok(self.pid()))],
            Action::Clone(slot, birth) => {
                let born = Event::Born(*slot, birth.incarnation, Ok(self.pid()));
                if self.slow { vec![born] } else { vec![born, ready(*slot, birth.incarnation)] }
            }
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

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
    }

    /// So many seconds, in which the master is awake.
    fn pass(&mut self, seconds: u32) {
        (0..5 * seconds).for_each(|_| self.wait(Duration::from_millis(200)));
    }

    fn done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    fn worker(&self, slot: u32) -> (Pid, Incarnation) {
        let worker = self.roster.slots[&SlotId(slot)].serving().expect("somebody serves");
        (worker.pid.expect("it is born"), worker.incarnation)
    }

    fn states(&self) -> Vec<&'static str> {
        self.roster.slots.values().map(super::slot::Slot::state).collect()
    }

    fn reload(&mut self) {
        self.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(self.roster.config.clone())) });
    }
}

fn ready(slot: SlotId, incarnation: Incarnation) -> Event {
    Event::Heard(slot, ToMaster { from: incarnation, word: Word::Ready })
}

fn pong(slot: u32, from: Incarnation, number: u64, wants_successor: bool) -> Event {
    let pong = Pong { number, stats: Snapshot::default(), private_bytes: 0, wants_successor };
    Event::Heard(SlotId(slot), ToMaster { from, word: Word::Pong(pong) })
}

/// Where among `actions` the worker on that lane is told `word`.
fn told_at(actions: &[Action], slot: u32, lane: usize, word: &ToWorker) -> Option<usize> {
    actions.iter().position(|action| match action {
        Action::Tell(post, _, said) => (post.slot.0, post.lane, said) == (slot, lane, word),
        _ => false,
    })
}

fn told(actions: &[Action], slot: u32, lane: usize, word: &ToWorker) -> bool {
    told_at(actions, slot, lane, word).is_some()
}

fn births(actions: &[Action]) -> Vec<&Birth> {
    actions
        .iter()
        .filter_map(|action| if let Action::Clone(_, birth) = action { Some(birth.as_ref()) } else { None })
        .collect()
}

fn replies(actions: &[Action]) -> Vec<(bool, &str)> {
    let replies = actions.iter().filter_map(|action| match action {
        Action::Reply(_, answer) => Some((answer.ok, answer.text.as_str())),
        _ => None,
    });
    replies.collect()
}

#[test]
fn a_rank_starts_when_every_worker_is_ready() {
    let play = Play::serving(3);
    assert_eq!(play.states(), ["serving"; 3]);
}

#[test]
fn a_first_boot_that_fails_ends_the_start_with_the_workers_own_words() {
    let mut play = Play::new(1);
    play.slow = true;
    play.event(Event::Tick);
    let failed = Word::Failed("open the root /srv: permission denied".to_owned());
    play.event(Event::Heard(SlotId(0), ToMaster { from: Incarnation(1), word: failed }));
    let pid = play.roster.slots[&SlotId(0)].workers[0].pid.unwrap();
    play.event(Event::Ended(pid, Cause { ending: Ending::Exited(1), own_fault: true, out_of_memory: None }));
    let done = play.done();
    let why = done.iter().find_map(|action| if let Action::Leave(Err(why)) = action { Some(why) } else { None });
    assert!(why.unwrap().contains("permission denied"), "{done:?}");
}

#[test]
fn a_dead_worker_is_succeeded_at_once_by_one_that_serves_at_once() {
    let mut play = Play::serving(2);
    let (pid, _) = play.worker(1);
    play.event(Event::Ended(pid, KILLED));
    let done = play.done();
    let [birth] = births(&done)[..] else { panic!("{done:?}") };
    assert!(birth.serve_at_once && birth.alive.is_empty(), "{birth:?}");
    assert!(
        !done.iter().any(|action| matches!(action, Action::Condemn(..))),
        "killed from outside: nobody is to blame"
    );
    assert_eq!(play.states(), ["serving"; 2]);
    assert_eq!(play.roster.slots[&SlotId(1)].restarts, 1);
}

#[test]
fn a_worker_that_died_of_itself_is_condemned_before_its_successor_is_cloned() {
    let mut play = Play::serving(1);
    let (pid, _) = play.worker(0);
    play.event(Event::Ended(pid, Cause { ending: Ending::Killed(11), own_fault: true, out_of_memory: None }));
    let done = play.done();
    let condemned = done.iter().position(|action| *action == Action::Condemn(POST, Guilt::Fault));
    let cloned = done.iter().position(|action| matches!(action, Action::Clone(..)));
    assert!(condemned.unwrap() < cloned.unwrap(), "{done:?}");
}

#[test]
fn a_slot_that_dies_at_boot_again_and_again_backs_off_and_is_called_failing() {
    let mut play = Play::serving(2);
    play.slow = true;
    let (pid, _) = play.worker(0);
    play.event(Event::Ended(pid, KILLED));
    for _ in 0..3 {
        let pid = play.roster.slots[&SlotId(0)].workers[0].pid.unwrap();
        play.event(Event::Ended(pid, KILLED));
        assert_eq!(births(&play.done()).len(), 1, "none before the pause is over");
        assert_eq!(play.states(), ["failing", "serving"]);
        play.wait(Duration::from_secs(13));
    }
    play.slow = false;
    let pid = play.roster.slots[&SlotId(0)].workers[0].pid.unwrap();
    play.event(Event::Ended(pid, KILLED));
    play.wait(Duration::from_secs(13));
    assert_eq!(play.states(), ["serving"; 2]);
}

#[test]
fn a_worker_that_asks_for_it_is_succeeded_by_handover() {
    let mut play = Play::serving(1);
    let (_, incarnation) = play.worker(0);
    play.wait(Duration::from_secs(1));
    play.event(pong(0, incarnation, 2, true));
    let done = play.done();
    let [birth] = births(&done)[..] else { panic!("{done:?}") };
    assert!(!birth.serve_at_once && birth.alive == [incarnation] && birth.lane == 1, "{birth:?}");
    let serve = told_at(&done, 0, 1, &ToWorker::Serve);
    let retire = told_at(&done, 0, 0, &ToWorker::Retire);
    assert!(serve.unwrap() < retire.unwrap(), "{done:?}");
    assert_eq!(play.roster.slots[&SlotId(0)].restarts, 0, "a recycle is no restart");
}

#[test]
fn the_worst_worker_is_replaced_first_and_one_at_a_time() {
    let mut play = Play::serving(4);
    let reasons = [Reason::Requests(9), Reason::Memory(5), Reason::Memory(7), Reason::Age(Duration::from_secs(1))];
    for (slot, reason) in play.roster.slots.values_mut().zip(reasons) {
        slot.workers[0].reason = Some(reason);
    }
    let mut order = Vec::new();
    play.slow = true;
    play.event(Event::Tick);
    for _recycle in 0..4 {
        let done = play.done();
        let born: Vec<SlotId> =
            done.iter().filter_map(|it| if let Action::Clone(slot, _) = it { Some(*slot) } else { None }).collect();
        assert_eq!(born.len(), 1, "one at a time: {done:?}");
        let successor = births(&done)[0].incarnation;
        play.event(ready(born[0], successor));
        order.push(born[0].0);
    }
    assert_eq!(order, [2, 1, 3, 0]);
}

#[test]
fn two_slots_are_never_recycled_at_the_same_time() {
    let mut play = Play::serving(2);
    play.wait(Duration::from_secs(1));
    play.slow = true;
    for slot in 0..2 {
        let (_, incarnation) = play.worker(slot);
        play.event(pong(slot, incarnation, 2, true));
    }
    assert_eq!(births(&play.done()).len(), 1);
}

#[test]
fn a_predecessor_that_dies_before_its_successor_serves_is_buried_by_it() {
    let mut play = Play::serving(1);
    let (pid, incarnation) = play.worker(0);
    play.wait(Duration::from_secs(1));
    play.slow = true;
    play.event(pong(0, incarnation, 2, true));
    play.event(Event::Ended(pid, KILLED));
    assert_eq!(births(&play.done()).len(), 1, "the successor is on its way already");
    play.event(ready(SlotId(0), Incarnation(incarnation.0 + 1)));
    let done = play.done();
    assert!(told(&done, 0, 1, &ToWorker::Serve), "{done:?}");
    assert!(told(&done, 0, 1, &ToWorker::Bury { dead: incarnation, lane: 0, former: None }), "{done:?}");
}

#[test]
fn a_reload_takes_effect_when_all_are_ready_and_not_before() {
    let mut play = Play::serving(2);
    play.slow = true;
    play.reload();
    let done = play.done();
    assert_eq!(births(&done).len(), 2);
    play.event(ready(SlotId(0), Incarnation(2)));
    assert!(!told(&play.done(), 0, 1, &ToWorker::Serve));
    play.event(ready(SlotId(1), Incarnation(2)));
    let done = play.done();
    for slot in 0..2 {
        assert!(told(&done, slot, 1, &ToWorker::Serve), "{done:?}");
        assert!(told(&done, slot, 0, &ToWorker::Retire), "{done:?}");
    }
    assert_eq!(replies(&done), [(true, "generation 2 serves")]);
}

#[test]
fn a_reload_whose_worker_dies_at_boot_is_rolled_back_and_nothing_changes() {
    let mut play = Play::serving(2);
    let before = [play.worker(0), play.worker(1)];
    play.slow = true;
    play.reload();
    play.event(ready(SlotId(0), Incarnation(2)));
    let pid = play.roster.slots[&SlotId(1)].workers[1].pid.unwrap();
    play.event(Event::Ended(pid, KILLED));
    let done = play.done();
    let [(false, why)] = replies(&done)[..] else { panic!("{done:?}") };
    assert!(why.contains("rolled back"), "{why}");
    assert!(told(&done, 0, 1, &ToWorker::Leave), "{done:?}");
    assert_eq!([play.worker(0), play.worker(1)], before);
    assert_eq!(play.roster.generation.0, 1);
    play.slow = false;
    play.reload();
    assert_eq!(play.roster.generation.0, 3, "a number is never used twice");
}

#[test]
fn a_worker_killed_during_a_reload_is_rescued_by_the_old_generation() {
    let mut play = Play::serving(1);
    let (pid, _) = play.worker(0);
    play.slow = true;
    play.reload();
    play.done();
    play.event(Event::Ended(pid, KILLED));
    let done = play.done();
    let [birth] = births(&done)[..] else { panic!("{done:?}") };
    assert_eq!((birth.generation.0, birth.lane, birth.alive.clone()), (1, 0, vec![Incarnation(2)]));
    play.event(ready(SlotId(0), Incarnation(3)));
    play.event(ready(SlotId(0), Incarnation(2)));
    assert_eq!(play.worker(0).1, Incarnation(2), "the reload goes through all the same");
}

#[test]
fn a_reload_that_changes_what_a_running_service_cannot_change_is_refused() {
    let mut play = Play::serving(1);
    let mut other = play.roster.config.clone();
    other.listen = vec![config::parse_listen("127.0.0.1:8081").unwrap().into()];
    play.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(other)) });
    let done = play.done();
    let [(false, why)] = replies(&done)[..] else { panic!("{done:?}") };
    assert!(why.starts_with("listen.address cannot change"), "{why}");
    assert!(births(&done).is_empty());
}

#[test]
fn a_reload_may_change_whom_a_listener_trusts() {
    let mut play = Play::serving(1);
    let mut other = play.roster.config.clone();
    other.listen[0].proxy_protocol = true;
    other.listen[0].trusted.unix = true;
    play.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(other)) });
    assert_eq!(births(&play.done()).len(), 1);
}

#[test]
fn signals_during_a_reload_make_one_more_reload_not_many() {
    let mut play = Play::serving(1);
    play.slow = true;
    play.reload();
    for _ in 0..5 {
        let config = play.roster.config.clone();
        play.event(Event::Reload { client: None, read: Ok(Box::new(config)) });
    }
    play.event(ready(SlotId(0), Incarnation(2)));
    let reads = play.done().iter().filter(|action| matches!(action, Action::ReadConfig(_))).count();
    assert_eq!(reads, 1);
}

#[test]
fn a_reload_mends_a_slot_that_cannot_boot_the_old_configuration() {
    let mut play = Play::serving(1);
    play.slow = true;
    let (pid, _) = play.worker(0);
    play.event(Event::Ended(pid, KILLED));
    let pid = play.roster.slots[&SlotId(0)].workers[0].pid.unwrap();
    play.event(Event::Ended(pid, KILLED));
    play.slow = false;
    play.reload();
    assert_eq!(replies(&play.done()), [(true, "generation 2 serves")]);
    assert_eq!(play.states(), ["serving"]);
}

#[test]
fn scaling_opens_slots_and_drains_the_highest() {
    let mut play = Play::serving(2);
    play.event(Event::Scale { client: Some(ClientId(1)), count: 4 });
    let done = play.done();
    assert_eq!(replies(&done), [(true, "4 workers serve")]);
    assert_eq!(play.states(), ["serving"; 4]);
    play.event(Event::Scale { client: Some(ClientId(1)), count: 2 });
    let done = play.done();
    assert_eq!(done.first(), Some(&Action::Steer(Some(vec![0, 1]))), "no new connection before the slots drain");
    for slot in 2..4 {
        assert!(told(&done, slot, 0, &ToWorker::Drain(Closing::Slot)), "{done:?}");
    }
    assert!(done.contains(&Action::Steer(None)), "{done:?}");
    assert_eq!(replies(&done), [(true, "2 workers serve")]);
    assert_eq!(play.states(), ["serving"; 2]);
}

#[test]
fn a_silent_worker_is_ended_in_two_steps_and_its_request_condemned() {
    let mut play = Play::serving(1);
    let (pid, _) = play.worker(0);
    play.seen = Some('S');
    play.wait(Duration::from_secs(1));
    play.done();
    play.pass(14);
    assert!(
        !play.done().iter().any(|action| matches!(action, Action::DescribeSuspect(..))),
        "not before half of the limit"
    );
    play.pass(2);
    assert!(play.done().iter().any(|action| matches!(action, Action::DescribeSuspect(..))));
    play.pass(13);
    assert!(!play.done().contains(&Action::Kill(pid, Signal::SIGABRT)), "not before the limit");
    play.pass(2);
    assert!(play.done().contains(&Action::Kill(pid, Signal::SIGABRT)));
    play.wait(Duration::from_secs(2));
    let done = play.done();
    assert!(done.contains(&Action::Kill(pid, Signal::SIGKILL)), "{done:?}");
    assert!(done.contains(&Action::Condemn(POST, Guilt::Hang)), "{done:?}");
}

#[test]
fn a_stopped_worker_is_relieved_and_lives_on() {
    let mut play = Play::serving(3);
    let (pid, incarnation) = play.worker(1);
    play.silent = Some(pid);
    play.seen = Some('T');
    play.pass(20);
    let done = play.done();
    let (_, assistant) = play.worker(0);
    assert!(done.contains(&Action::Steer(Some(vec![0, 2]))), "{done:?}");
    assert!(done.contains(&Action::Lend(SlotId(1), SlotId(0), assistant)), "{done:?}");
    assert_eq!(play.states(), ["serving", "stalled", "serving"]);
    play.pass(40);
    let done = play.done();
    assert!(!done.iter().any(|action| matches!(action, Action::Kill(..))), "{done:?}");
    assert!(done.iter().any(|action| matches!(action, Action::Warn(text) if text.contains("stopped: it is not hung"))));
    let number = play.roster.slots[&SlotId(1)].serving().unwrap().ping.number;
    play.silent = None;
    play.event(pong(1, incarnation, number, false));
    let done = play.done();
    assert!(done.contains(&Action::Steer(None)), "{done:?}");
    assert!(told(&done, 0, 0, &ToWorker::Assist(Vec::new())), "{done:?}");
    assert_eq!(play.states(), ["serving"; 3]);
}

#[test]
fn another_one_assists_when_the_assistant_dies() {
    let mut play = Play::serving(3);
    let (stuck, _) = play.worker(2);
    play.silent = Some(stuck);
    play.seen = Some('T');
    play.pass(20);
    let (pid, assistant) = play.worker(0);
    assert!(play.done().contains(&Action::Lend(SlotId(2), SlotId(0), assistant)));
    play.slow = true;
    play.event(Event::Ended(pid, KILLED));
    let (_, another) = play.worker(1);
    assert!(play.done().contains(&Action::Lend(SlotId(2), SlotId(1), another)));
}

#[test]
fn the_master_sleeps_while_a_worker_owes_an_answer() {
    let mut play = Play::serving(1);
    play.wait(Duration::from_secs(1));
    play.wait(Duration::from_secs(3));
    assert!(play.roster.next_deadline().unwrap() > play.now, "or its loop would spin");
}

#[test]
fn a_stop_drains_everybody_and_answers_at_the_end() {
    let mut play = Play::serving(2);
    play.event(Event::Stop { fast: false, client: Some(ClientId(3)) });
    let done = play.done();
    for slot in 0..2 {
        assert!(told(&done, slot, 0, &ToWorker::Drain(Closing::Service)), "{done:?}");
    }
    let left = done.iter().position(|action| *action == Action::Leave(Ok(()))).unwrap();
    let reply = done.iter().position(|action| matches!(action, Action::Reply(..))).unwrap();
    assert!(left < reply, "who has the answer finds nothing left: {done:?}");
}

#[test]
fn a_stop_during_a_reload_leaves_no_successor_behind() {
    let mut play = Play::serving(1);
    play.slow = true;
    play.reload();
    play.event(Event::Stop { fast: false, client: None });
    let done = play.done();
    assert!(done.contains(&Action::Leave(Ok(()))), "{done:?}");
    assert!(replies(&done).iter().any(|(ok, why)| !ok && why.contains("the service stops")), "{done:?}");
}

#[test]
fn a_worker_killed_while_it_drains_is_succeeded_by_one_that_drains_on() {
    let mut play = Play::serving(1);
    let (pid, _) = play.worker(0);
    let slot = play.roster.slots.get_mut(&SlotId(0)).unwrap();
    slot.workers[0].stage = Stage::Draining;
    play.slow = true;
    play.roster.stop(false, None, None);
    play.event(Event::Ended(pid, KILLED));
    play.slow = false;
    play.event(ready(SlotId(0), Incarnation(2)));
    let done = play.done();
    assert!(told(&done, 0, 0, &ToWorker::Drain(Closing::Service)), "{done:?}");
    assert!(done.contains(&Action::Leave(Ok(()))), "{done:?}");
}

#[test]
fn a_second_sigterm_ends_what_drains() {
    let mut play = Play::serving(1);
    let (pid, _) = play.worker(0);
    play.roster.stop(false, None, None);
    play.event(Event::Stop { fast: false, client: None });
    assert!(play.done().contains(&Action::Kill(pid, Signal::SIGKILL)));
}

#[test]
fn a_dead_keeper_is_replaced_and_its_slot_serves_again() {
    let mut play = Play::serving(2);
    let keeper = play.roster.slots[&SlotId(1)].keeper.unwrap();
    play.event(Event::Ended(keeper, KILLED));
    let done = play.done();
    assert!(done.contains(&Action::Open(SlotId(1))), "{done:?}");
    assert_eq!(births(&done).len(), 1);
    assert_eq!(play.states(), ["serving"; 2]);
}

#[test]
fn a_keeper_that_cannot_be_replaced_yet_is_tried_again() {
    let mut play = Play::serving(1);
    let keeper = play.roster.slots[&SlotId(0)].keeper.unwrap();
    let actions = play.roster.react(Event::Ended(keeper, KILLED), play.now);
    assert!(actions.contains(&Action::Open(SlotId(0))));
    play.event(Event::Opened(SlotId(0), Err("fork: resource temporarily unavailable".to_owned())));
    assert_eq!(play.states(), ["failing"]);
    play.wait(Duration::from_secs(1));
    assert_eq!(play.states(), ["serving"]);
}

#[test]
fn a_predecessor_that_dies_while_a_rescuer_boots_is_buried_by_the_rescuer() {
    let mut play = Play::serving(1);
    let (first, oldest) = play.worker(0);
    play.roster.slots.get_mut(&SlotId(0)).unwrap().workers[0].stage = Stage::Retiring;
    play.slow = true;
    play.roster.clone_successor(SlotId(0), play.roster.generation, 0);
    play.event(Event::Tick);
    let second = play.roster.slots[&SlotId(0)].workers[1].incarnation;
    play.event(Event::Born(SlotId(0), second, Ok(Pid::from_raw(900))));
    play.event(ready(SlotId(0), second));
    play.event(Event::Ended(Pid::from_raw(900), KILLED));
    let done = play.done();
    let rescuer = births(&done).last().map(|birth| birth.incarnation).unwrap();
    play.event(Event::Ended(first, KILLED));
    assert!(births(&play.done()).is_empty(), "one rescuer is enough");
    play.event(ready(SlotId(0), rescuer));
    let lane = play.roster.slots[&SlotId(0)].serving().unwrap().post.lane;
    assert!(told(&play.done(), 0, lane, &ToWorker::Bury { dead: oldest, lane: 0, former: None }));
}
