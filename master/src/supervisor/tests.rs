//! The roster as a table of cases: events in, actions out, no process anywhere.

mod play;
mod trial;

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::config;
use phalanx_shared::ipc::{Closing, Incarnation, SlotId, ToMaster, ToWorker, Word};
use phalanx_shared::ledger::record::Guilt;

use super::event::{Action, Event};
use super::recycling::Reason;
use super::slot::Stage;
use crate::control::server::ClientId;
use crate::verdict::{Cause, Ending};
use play::{KILLED, LEFT, POST, Play, births, pong, ready, replies, told, told_at};

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
    assert_eq!(replies(&done), [(true, "generation 2 serves in slots 0, 1")]);
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
fn a_rescuer_settles_the_lane_of_the_dead_though_a_lower_one_is_free() {
    let mut play = Play::serving(1);
    play.linger = true;
    play.reload();
    play.reload();
    let first = play.roster.slots[&SlotId(0)].workers[0].pid.unwrap();
    play.event(Event::Ended(first, LEFT));
    let (serving, _) = play.worker(0);
    play.done();
    // Lane 0 is free, 1 belongs to one that retires, 2 to the one that dies.
    play.event(Event::Ended(serving, KILLED));
    let done = play.done();
    let [birth] = births(&done)[..] else { panic!("{done:?}") };
    assert_eq!((birth.lane, &birth.orphans[..], birth.alone), (2, &[2][..], false));
}

#[test]
fn lanes_that_a_rescuer_had_not_settled_are_settled_by_the_next() {
    let mut play = Play::serving(1);
    play.slow = true;
    play.reload();
    let (serving, _) = play.worker(0);
    play.event(Event::Ended(serving, KILLED));
    let rescuer = play.roster.slots[&SlotId(0)].workers.iter().find(|worker| worker.incarnation == Incarnation(3));
    let rescuer = rescuer.unwrap().pid.unwrap();
    play.done();
    play.event(Event::Ended(rescuer, KILLED));
    play.wait(Duration::from_secs(2));
    let done = play.done();
    let [birth] = births(&done)[..] else { panic!("{done:?}") };
    assert_eq!((birth.lane, &birth.orphans[..], birth.alone), (0, &[0][..], false));
}

#[test]
fn a_reload_that_changes_what_a_running_service_cannot_change_is_refused() {
    let mut play = Play::serving(1);
    let mut other = play.roster.config.clone();
    other.master.user = Some("nobody".to_owned());
    play.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(other)) });
    let done = play.done();
    let [(false, why)] = replies(&done)[..] else { panic!("{done:?}") };
    assert!(why.starts_with("master.user cannot change"), "{why}");
    assert!(births(&done).is_empty());
}

fn reload_elsewhere(play: &mut Play) {
    let mut other = play.roster.config.clone();
    other.listen = vec![config::parse_listen("127.0.0.1:8081").unwrap().into()];
    play.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(other)) });
}

#[test]
fn a_listener_that_cannot_be_bound_changes_nothing() {
    let mut play = Play::serving(2);
    play.binds = Err("bind 127.0.0.1:8081: in use".to_owned());
    reload_elsewhere(&mut play);
    let done = play.done();
    let [(false, why)] = replies(&done)[..] else { panic!("{done:?}") };
    assert!(why.contains("nothing changes: bind 127.0.0.1:8081: in use"), "{why}");
    assert!(births(&done).is_empty());
    play.binds = Ok(());
    reload_elsewhere(&mut play);
    assert!(replies(&play.done()).iter().any(|(ok, _)| *ok), "a later one goes through");
}

#[test]
fn a_listener_that_cannot_listen_after_all_rolls_the_reload_back() {
    let mut play = Play::serving(2);
    play.listens = Err("bind 127.0.0.1:8081: in use".to_owned());
    let before = (play.worker(0), play.worker(1));
    reload_elsewhere(&mut play);
    let done = play.done();
    assert!(done.contains(&Action::Unseat), "{done:?}");
    assert!(!done.iter().any(|action| matches!(action, Action::Adopt(_))), "{done:?}");
    assert!(matches!(replies(&done)[..], [(false, _)]), "{done:?}");
    assert_eq!((play.worker(0), play.worker(1)), before);
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
    assert_eq!(replies(&play.done()), [(true, "generation 2 serves in slot 0")]);
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
fn a_worker_that_a_dead_keeper_never_told_of_is_given_up_when_nobody_has_its_table() {
    let mut play = Play::serving(1);
    let (worker, _) = play.worker(0);
    // Its successor is ordered, and the keeper dies before it says whether there is one.
    let actions = play.roster.react(Event::Ended(worker, KILLED), play.now);
    assert_eq!(births(&actions).len(), 1);
    let keeper = play.roster.slots[&SlotId(0)].keeper.unwrap();
    play.event(Event::Ended(keeper, KILLED));
    assert_eq!(play.states(), ["serving"]);
    assert!(play.done().contains(&Action::LookForAnybody(SlotId(0), 1)));
    assert_eq!(play.roster.slots[&SlotId(0)].formers.len(), 1, "it may live");
    play.event(Event::Deserted(SlotId(0), 1));
    assert!(play.done().contains(&Action::Dismiss(SlotId(0), 1)));
    assert_eq!(play.roster.slots[&SlotId(0)].formers.len(), 0);
}

/// Kills the keeper of the one slot, which gets no other yet.
fn lose_keeper(play: &mut Play) {
    let keeper = play.roster.slots[&SlotId(0)].keeper.unwrap();
    let actions = play.roster.react(Event::Ended(keeper, KILLED), play.now);
    assert!(actions.contains(&Action::Open(SlotId(0))));
    play.event(Event::Opened(SlotId(0), Err("fork: resource temporarily unavailable".to_owned())));
}

#[test]
fn what_a_slot_stood_on_is_kept_until_it_stands_on_something_else() {
    let mut play = Play::serving(1);
    let (worker, _) = play.worker(0);
    // A successor is ordered, and never born.
    play.roster.react(Event::Ended(worker, KILLED), play.now);
    lose_keeper(&mut play);
    play.event(Event::Deserted(SlotId(0), 1));
    assert_eq!(play.states(), ["failing"]);
    assert!(!play.done().contains(&Action::Dismiss(SlotId(0), 1)));
    play.wait(Duration::from_secs(1));
    assert_eq!(play.states(), ["serving"]);
    assert!(play.done().contains(&Action::Dismiss(SlotId(0), 1)));
}

#[test]
fn a_stop_waits_for_no_other_ground() {
    let mut play = Play::serving(1);
    let (worker, _) = play.worker(0);
    lose_keeper(&mut play);
    play.event(Event::Ended(worker, KILLED));
    play.event(Event::Stop { fast: false, client: None });
    assert!(play.done().contains(&Action::Leave(Ok(()))));
}

#[test]
fn a_keeper_that_cannot_be_replaced_yet_is_tried_again() {
    let mut play = Play::serving(1);
    lose_keeper(&mut play);
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
