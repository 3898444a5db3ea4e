//! Configurations on trial: the canary, and the first second.

use std::time::Duration;

use phalanx_shared::config::Config;
use phalanx_shared::ipc::{Generation, Incarnation, Pong, SlotId, ToMaster, ToWorker, Word};
use phalanx_shared::stats::Snapshot;

use super::super::event::{Action, Event};
use super::super::slot::Stage;
use super::play::{KILLED, Play, births, ready, replies, told};
use crate::control::server::ClientId;
use crate::verdict::{Cause, Ending};

const FAULT: Cause = Cause { ending: Ending::Killed(11), own_fault: true, out_of_memory: None };

fn reload_with(play: &mut Play, edit: impl FnOnce(&mut Config)) {
    let mut config = play.roster.config.clone();
    edit(&mut config);
    play.event(Event::Reload { client: Some(ClientId(7)), read: Ok(Box::new(config)) });
}

/// Takes up a configuration that keeps 99 requests on a connection, with a second of probation.
fn reload_to_99(play: &mut Play) {
    reload_with(play, |config| {
        config.limits.requests_per_connection = 99;
        config.workers.probation = Duration::from_secs(1);
    });
}

/// A worker tells what it has counted.
fn count(play: &mut Play, slot: u32, requests: u64, errors: u64, busy: Duration) {
    let slot = SlotId(slot);
    let worker = play.roster.slots.get_mut(&slot).expect("a slot");
    let worker = worker.workers.iter_mut().find(|worker| worker.stage == Stage::Serving).expect("somebody serves");
    let (from, number) = (worker.incarnation, worker.ping.number + 1);
    (worker.ping.number, worker.ping.outstanding) = (number, Some(play.now));
    let busy_ns = busy.as_nanos() as u64;
    let stats = Snapshot { requests, status_5xx: errors, busy_ns, ..Snapshot::default() };
    let pong = Pong { number, stats, private_bytes: 0, wants_successor: false };
    play.event(Event::Heard(slot, ToMaster { from, word: Word::Pong(pong) }));
}

#[test]
fn the_answer_to_a_reload_waits_for_the_probation_and_tells_what_has_changed() {
    let mut play = Play::serving(2);
    reload_to_99(&mut play);
    assert!(replies(&play.done()).is_empty());
    play.pass(2);
    let done = play.done();
    let [(true, text)] = replies(&done)[..] else { panic!("{done:?}") };
    assert!(text.starts_with("generation 2 serves in slots 0, 1\n"), "{text}");
    assert!(text.contains("limits.requests_per_connection: 0 -> 99"), "{text}");
}

#[test]
fn a_worker_that_dies_of_itself_on_probation_brings_the_configuration_before_back() {
    let mut play = Play::serving(2);
    reload_to_99(&mut play);
    let (pid, _) = play.worker(1);
    play.done();
    play.event(Event::Ended(pid, FAULT));
    let done = play.done();
    let [(false, text)] = replies(&done)[..] else { panic!("{done:?}") };
    let wanted = "rolled back, the configuration of generation 1 serves again as generation 3: generation 2 failed: worker 1 died";
    assert!(text.starts_with(wanted), "{text}");
    assert_eq!(play.roster.config.limits.requests_per_connection, 0);
    assert_eq!(play.roster.generation, Generation(3));
    assert!(births(&done).iter().all(|birth| birth.generation == Generation(3)), "{done:?}");
    assert_eq!(play.states(), ["serving"; 2]);
    play.pass(3);
    assert!(replies(&play.done()).is_empty(), "there is one answer");
}

#[test]
fn a_worker_killed_from_outside_on_probation_is_no_reason_to_go_back() {
    let mut play = Play::serving(2);
    reload_to_99(&mut play);
    let (pid, _) = play.worker(1);
    play.event(Event::Ended(pid, KILLED));
    play.pass(2);
    assert!(matches!(replies(&play.done())[..], [(true, _)]));
    assert_eq!(play.roster.generation, Generation(2));
}

#[test]
fn a_fault_after_the_probation_is_no_reason_to_go_back() {
    let mut play = Play::serving(1);
    reload_to_99(&mut play);
    play.pass(2);
    let (pid, _) = play.worker(0);
    play.event(Event::Ended(pid, FAULT));
    assert_eq!(play.roster.generation, Generation(2));
    assert_eq!(play.states(), ["serving"]);
}

#[test]
fn a_configuration_that_cannot_be_returned_to_leaves_the_new_one_in_force() {
    let mut play = Play::serving(1);
    reload_to_99(&mut play);
    let (pid, _) = play.worker(0);
    play.done();
    play.binds = Err("bind 127.0.0.1:8080: in use".to_owned());
    play.event(Event::Ended(pid, FAULT));
    let done = play.done();
    let [(false, text)] = replies(&done)[..] else { panic!("{done:?}") };
    assert!(text.contains("cannot be returned to: bind 127.0.0.1:8080: in use"), "{text}");
    assert_eq!(play.roster.config.limits.requests_per_connection, 99);
    play.pass(1);
    assert_eq!(play.states(), ["serving"]);
}

fn release_canary(play: &mut Play) {
    reload_with(play, |config| config.canary.time = Duration::from_secs(10));
}

#[test]
fn a_canary_serves_alone_until_its_time_is_over() {
    let mut play = Play::serving(3);
    release_canary(&mut play);
    let done = play.done();
    assert!(told(&done, 0, 1, &ToWorker::Serve), "{done:?}");
    assert!(!told(&done, 1, 1, &ToWorker::Serve) && !told(&done, 2, 1, &ToWorker::Serve), "{done:?}");
    play.pass(9);
    assert!(replies(&play.done()).is_empty());
    assert_eq!(play.roster.generation, Generation(1));
    play.pass(2);
    assert!(matches!(replies(&play.done())[..], [(true, _)]));
    assert_eq!(play.roster.generation, Generation(2));
    assert_eq!(play.states(), ["serving"; 3]);
}

#[test]
fn a_canary_that_answers_worse_than_the_others_is_taken_back() {
    let ms = Duration::from_millis;
    for (errors, busy, why) in [(30, ms(100), "of the canary's answers are 5xx"), (0, ms(2000), "the canary works")] {
        let mut play = Play::serving(3);
        release_canary(&mut play);
        (0..3).for_each(|slot| count(&mut play, slot, 0, 0, Duration::ZERO));
        count(&mut play, 1, 100, 0, ms(100));
        count(&mut play, 2, 100, 1, ms(100));
        assert!(replies(&play.done()).is_empty());
        count(&mut play, 0, 100, errors, busy);
        let done = play.done();
        let [(false, text)] = replies(&done)[..] else { panic!("{done:?}") };
        assert!(text.starts_with("rolled back, generation 1 serves on") && text.contains(why), "{text}");
        play.pass(1);
        let generations: Vec<Generation> =
            play.roster.slots.values().flat_map(|slot| &slot.workers).map(|worker| worker.generation).collect();
        assert_eq!(generations, [Generation(1); 3]);
        assert_eq!(play.states(), ["serving"; 3]);
    }
}

#[test]
fn a_canary_that_does_as_the_others_do_and_one_that_nobody_asks_pass() {
    for requests in [0, 100] {
        let mut play = Play::serving(2);
        release_canary(&mut play);
        (0..2).for_each(|slot| count(&mut play, slot, 0, 0, Duration::ZERO));
        (0..2).for_each(|slot| count(&mut play, slot, requests, requests / 100, Duration::from_millis(requests)));
        play.pass(11);
        let done = play.done();
        let [(true, text)] = replies(&done)[..] else { panic!("{done:?}") };
        assert!(text.contains(&format!("canary: {requests} requests")), "{text}");
    }
}

#[test]
fn a_canary_that_dies_is_succeeded_by_the_generation_in_force() {
    for cause in [KILLED, FAULT] {
        let mut play = Play::serving(2);
        release_canary(&mut play);
        let (pid, incarnation) = play.worker(0);
        assert_eq!(incarnation, Incarnation(2));
        play.done();
        play.event(Event::Ended(pid, cause));
        let done = play.done();
        assert!(matches!(replies(&done)[..], [(false, _)]), "{done:?}");
        let [birth] = births(&done)[..] else { panic!("{done:?}") };
        assert!(birth.serve_at_once && birth.generation == Generation(1), "{birth:?}");
        assert!(!done.iter().any(|action| matches!(action, Action::Adopt(_))));
        play.pass(1);
        assert_eq!(play.states(), ["serving"; 2]);
    }
}

#[test]
fn a_rescuer_that_dies_at_boot_on_the_way_back_is_followed_by_another() {
    let mut play = Play::serving(2);
    reload_to_99(&mut play);
    let (pid, _) = play.worker(1);
    play.slow = true;
    play.event(Event::Ended(pid, FAULT));
    let slot = SlotId(1);
    let rescuer = play.roster.slots[&slot].workers.iter().find(|worker| worker.is_booting()).and_then(|it| it.pid);
    play.slow = false;
    play.event(Event::Ended(rescuer.expect("a rescuer"), KILLED));
    let other = play.roster.slots[&SlotId(0)].workers.iter().find(|worker| worker.is_booting());
    let other = other.expect("a successor").incarnation;
    play.event(ready(SlotId(0), other));
    play.pass(3);
    assert_eq!(play.states(), ["serving"; 2]);
}

#[test]
fn a_way_back_that_fails_leaves_one_configuration_in_force() {
    let mut play = Play::serving(1);
    reload_to_99(&mut play);
    let blueprint = play.roster.blueprint;
    let (pid, _) = play.worker(0);
    play.binds = Err("bind 127.0.0.1:8080: in use".to_owned());
    play.event(Event::Ended(pid, FAULT));
    play.pass(3);
    assert_eq!((play.roster.generation, play.roster.blueprint), (Generation(2), blueprint));
    let serving = play.roster.slots[&SlotId(0)].serving().map(|worker| worker.generation);
    assert_eq!(serving, Some(Generation(2)), "who was cloned on the way back is replaced");
}

#[test]
fn who_waits_for_a_reload_is_not_needed_sooner_because_a_former_table_is_left_alone() {
    let mut play = Play::serving(2);
    play.slow = true;
    reload_to_99(&mut play);
    let done = play.done();
    let waiting = births(&done).iter().map(|birth| birth.incarnation).next().unwrap();
    play.event(ready(SlotId(0), waiting));
    let stage =
        |play: &Play| play.roster.slots[&SlotId(0)].workers.iter().find(|it| it.incarnation == waiting).unwrap().stage;
    assert_eq!(stage(&play), Stage::Waiting, "{done:?}");
    let (serving, _) = play.worker(0);
    play.event(Event::Ended(serving, KILLED));
    play.event(Event::Deserted(SlotId(0), 77));
    assert_eq!(stage(&play), Stage::Waiting, "{:?}", play.done());
}

#[test]
fn a_slot_that_is_asked_for_during_a_reload_opens_after_it() {
    let mut play = Play::serving(2);
    release_canary(&mut play);
    play.done();
    play.event(Event::Scale { client: Some(ClientId(8)), count: 3 });
    assert!(!play.done().contains(&Action::Open(SlotId(2))));
    play.pass(12);
    let done = play.done();
    assert!(done.contains(&Action::Open(SlotId(2))), "{done:?}");
    assert_eq!(play.states(), ["serving"; 3]);
    assert_eq!(replies(&done).len(), 2, "the reload's and the scale's");
}

#[test]
fn who_waits_for_a_reload_or_a_scale_is_told_that_the_service_stops() {
    let mut play = Play::serving(2);
    release_canary(&mut play);
    play.reload();
    play.event(Event::Scale { client: Some(ClientId(8)), count: 3 });
    play.done();
    play.event(Event::Stop { fast: false, client: None });
    let done = play.done();
    assert_eq!(replies(&done).iter().filter(|(ok, _)| !ok).count(), 3, "{done:?}");
}
