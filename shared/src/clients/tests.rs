//! The tables alone, under threads, and under processes that are killed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::*;
use crate::sys::process::{self, Born};

const SECOND: Duration = Duration::from_secs(1);
const REFUSALS_TO_SEE: u64 = 1000;

/// The key is always the same, so that no run meets two clients with the same tag.
fn table(entries: usize) -> Clients {
    Clients { key: (1, 2), ..Clients::create(entries).unwrap().0 }
}

fn client(text: &str) -> Client {
    Client::from(text.parse::<IpAddr>().unwrap())
}

fn numbered(number: u32) -> Client {
    Client::from(IpAddr::V4(number.into()))
}

fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number)
}

fn is_admitted(verdict: Verdict) -> bool {
    verdict == Verdict::Admitted
}

#[test]
fn an_address_is_counted_as_who_can_use_it() {
    for (one, other, same) in [
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1", "10.0.0.2", false),
        ("::ffff:10.0.0.1", "10.0.0.1", true),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", true),
        ("2001:db8::1", "2001:db8:0:1::1", false),
        ("::1", "0.0.0.0", false),
        ("::a00:1", "10.0.0.1", false),
    ] {
        assert_eq!(client(one) == client(other), same, "{one} and {other}");
    }
}

/// Requests of one client, a rate of one a second with a burst of three: at what time, and how long it is told to wait.
#[test]
fn a_rate_admits_a_burst_and_then_one_each_interval() {
    let (clients, who) = (table(64), client("10.0.0.1"));
    for (at, wait) in [
        (10.0, None),
        (10.0, None),
        (10.0, None),
        (10.0, Some(1.0)),
        (10.25, Some(0.75)),
        (11.0, None),
        (11.0, Some(1.0)),
        (12.5, None),
        (12.5, Some(0.5)),
        (13.0, None),
        // Two intervals unused are two requests at once.
        (15.0, None),
        (15.0, None),
        (15.0, Some(1.0)),
        // Ten unused are no more than the burst.
        (25.0, None),
        (25.0, None),
        (25.0, None),
        (25.0, Some(1.0)),
        // A clock that is late only waits longer.
        (24.0, Some(2.0)),
    ] {
        let expected = wait.map_or(Verdict::Admitted, |wait| Verdict::Refused { retry_after: seconds(wait) });
        assert_eq!(clients.admit(1, who, SECOND, 3, seconds(at)), expected, "at {at}");
    }
}

#[test]
fn limits_and_clients_are_apart() {
    let clients = table(64);
    for (limit, who) in [(1, "10.0.0.1"), (2, "10.0.0.1"), (1, "10.0.0.2"), (1, "2001:db8::1")] {
        assert_eq!(clients.admit(limit, client(who), SECOND, 1, SECOND), Verdict::Admitted, "{limit} {who}");
        assert!(!is_admitted(clients.admit(limit, client(who), SECOND, 1, SECOND)), "{limit} {who}");
    }
}

#[test]
fn any_numbers_are_a_rate() {
    let clients = table(8);
    let (least, most) = (Duration::from_nanos(1), Duration::MAX);
    for (limit, (interval, burst, now)) in
        [(least, 0, least), (least, u32::MAX, most), (most, u32::MAX, least), (most, 1, most), (SECOND, 0, SECOND)]
            .into_iter()
            .enumerate()
    {
        let ask = || clients.admit(limit as u64, numbered(1), interval, burst, now);
        assert_eq!(ask(), Verdict::Admitted, "{interval:?} {burst} {now:?}");
        ask();
    }
    let wait = clients.admit(3, numbered(1), most, 1, most);
    assert_eq!(wait, Verdict::Refused { retry_after: Clients::MOST_DEBT });
    assert!((0..100).all(|_| is_admitted(clients.admit(9, numbered(1), Duration::ZERO, 1, SECOND))));
}

#[test]
fn the_clock_in_an_entry_may_wrap() {
    let clients = table(8);
    let wrap = Duration::from_micros(1 << 44);
    for (number, at) in [wrap - SECOND / 2, wrap * 7 - SECOND / 4].into_iter().enumerate() {
        let who = numbered(number as u32);
        assert!(is_admitted(clients.admit(1, who, SECOND, 2, at)));
        assert!(is_admitted(clients.admit(1, who, SECOND, 2, at)));
        assert!(!is_admitted(clients.admit(1, who, SECOND, 2, at + SECOND * 3 / 4)));
        assert!(is_admitted(clients.admit(1, who, SECOND, 2, at + SECOND)));
    }
}

#[test]
fn a_shorter_limit_after_a_reload_does_not_keep_a_long_debt() {
    let (clients, who) = (table(8), numbered(1));
    assert!(is_admitted(clients.admit(1, who, SECOND * 3600, 1, SECOND)));
    assert!(is_admitted(clients.admit(1, who, SECOND, 1, SECOND)));
    assert!(!is_admitted(clients.admit(1, who, SECOND, 1, SECOND)));
}

#[test]
fn a_full_set_gives_up_the_debt_that_is_nearest_to_paid() {
    let clients = table(8);
    for number in 0..8 {
        assert!(is_admitted(clients.admit(1, numbered(number), SECOND * (number + 1), 1, SECOND)));
    }
    assert!(is_admitted(clients.admit(1, numbered(8), SECOND * 9, 1, SECOND)));
    for number in 1..9 {
        assert!(!is_admitted(clients.admit(1, numbered(number), SECOND * (number + 1), 1, SECOND)), "{number}");
    }
    // Paid entries go first: at 3.5 s those of 1 and 2 seconds are.
    let now = seconds(3.5);
    assert!(is_admitted(clients.admit(1, numbered(20), SECOND, 1, now)));
    for number in 3..9 {
        assert!(!is_admitted(clients.admit(1, numbered(number), SECOND * (number + 1), 1, now)), "{number}");
    }
}

#[test]
fn connections_are_counted_up_to_their_most() {
    let (clients, who) = (table(64), client("10.0.0.1"));
    assert!(clients.connect(who, 0));
    assert_eq!(clients.connections(who), 0, "without a bound nothing is counted");
    assert!((0..3).all(|_| clients.connect(who, 3)));
    assert!(!clients.connect(who, 3));
    assert!(clients.connect(client("10.0.0.2"), 3));
    assert_eq!(clients.connections(who), 3);
    clients.disconnect(who);
    assert!(clients.connect(who, 3));
    (0..10).for_each(|_| clients.disconnect(who));
    assert_eq!(clients.connections(who), 0);
    assert!(clients.connect(who, 1));
    assert_eq!(clients.connections(client("10.0.0.2")), 1);
}

#[test]
fn a_full_set_counts_no_further_client_and_forgets_none() {
    let clients = table(8);
    assert!((0..8).all(|number| clients.connect(numbered(number), 1)));
    assert!((0..3).all(|_| clients.connect(numbered(8), 1)), "uncounted");
    assert_eq!(clients.connections(numbered(8)), 0);
    clients.disconnect(numbered(8));
    assert!((0..8).all(|number| clients.connections(numbered(number)) == 1));
    clients.disconnect(numbered(3));
    assert!(clients.connect(numbered(8), 1));
    assert!(!clients.connect(numbered(8), 1));
}

#[test]
fn noise_in_the_tables_panics_nowhere_and_locks_nobody_out() {
    let clients = table(64);
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for pattern in [Some(u64::MAX), Some(0x0101_0101_0101_0101), Some(1), Some(1 << 63), None] {
        for word in clients.rates.iter().chain(clients.connections) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            word.store(pattern.unwrap_or(noise), Ordering::SeqCst);
        }
        for number in 0..500 {
            let now = SECOND * 1000;
            assert!(is_admitted(clients.admit(1, numbered(number), SECOND, 1, now)), "{pattern:?} {number}");
            clients.connect(numbered(number), 5);
            clients.disconnect(numbered(number));
            clients.connections(numbered(number));
        }
    }
}

#[test]
fn an_entry_far_ahead_of_its_rate_owes_nothing() {
    let (clients, who) = (table(8), numbered(1));
    assert!(is_admitted(clients.admit(1, who, SECOND, 1, SECOND)));
    used(clients.rates)[0].fetch_add(3_600_000_000, Ordering::SeqCst);
    assert!(is_admitted(clients.admit(1, who, SECOND, 1, SECOND)));
    assert!(!is_admitted(clients.admit(1, who, SECOND, 1, SECOND)));
}

fn used(table: &'static [AtomicU64]) -> Vec<&'static AtomicU64> {
    table.iter().filter(|word| word.load(Ordering::SeqCst) != 0).collect()
}

fn free(table: &'static [AtomicU64]) -> &'static AtomicU64 {
    table.iter().find(|word| word.load(Ordering::SeqCst) == 0).unwrap()
}

/// As a death between the two steps leaves it, or two deaths do.
#[test]
fn an_entry_half_made_is_finished_by_the_next_request() {
    for left in 1..=2_u64 {
        let (clients, who) = (table(8), numbered(1));
        assert!(is_admitted(clients.admit(1, who, SECOND, 1, SECOND)));
        let entry = used(clients.rates)[0];
        let entering = entry.swap(0, Ordering::SeqCst) | 1 << 44;
        (0..left).for_each(|number| free(clients.rates).store(entering ^ number, Ordering::SeqCst));
        assert!(is_admitted(clients.admit(1, who, SECOND, 1, SECOND)), "{left}");
        assert!(!is_admitted(clients.admit(1, who, SECOND, 1, SECOND)), "{left}");
        assert_eq!(used(clients.rates).len(), 1, "{left}");
    }
}

#[test]
fn a_client_counted_in_two_words_has_their_sum() {
    let (clients, who) = (table(8), numbered(1));
    assert!(clients.connect(who, 5));
    free(clients.connections).store(used(clients.connections)[0].load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    assert_eq!(clients.connections(who), 3);
    assert!(clients.connect(who, 4));
    assert!(!clients.connect(who, 4));
    (0..4).for_each(|_| clients.disconnect(who));
    assert!(used(clients.connections).is_empty());
}

/// Asks until it was refused often enough; how many were admitted.
fn hammer(clients: &Clients, who: Client, interval: Duration, burst: u32, now: Duration) -> u64 {
    let (mut admitted, mut refused) = (0, 0);
    while refused < REFUSALS_TO_SEE {
        match clients.admit(7, who, interval, burst, now) {
            Verdict::Admitted => admitted += 1,
            Verdict::Refused { .. } => refused += 1,
        }
    }
    admitted
}

#[test]
fn threads_share_a_rate_to_the_request() {
    let clients = table(8);
    for round in 0..200_u32 {
        // Old entries are paid when the next round begins, so the ways change hands while many enter.
        let now = SECOND * (round + 1) * 100;
        let who = numbered(round);
        let admitted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(move || hammer(&clients, who, SECOND / 10, 50, now))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 50, "round {round}");
        assert_eq!(hammer(&clients, who, SECOND / 10, 50, now + SECOND / 2), 5, "round {round}");
    }
}

/// All in one set, whose ways have all been paid for: whoever enters may find that the way it would take has gone.
#[test]
fn clients_that_enter_a_set_together_are_each_counted_to_the_request() {
    let clients = table(8);
    for round in 0..500_u32 {
        let now = SECOND * (round + 1) * 100;
        let admitted: [AtomicU64; 5] = Default::default();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (clients, admitted) = (&clients, &admitted);
                scope.spawn(move || {
                    for turn in 0..200 {
                        let number = (turn * (thread + 1) + thread) % 5;
                        let verdict = clients.admit(7, numbered(round * 3 + number), SECOND, 20, now);
                        admitted[number as usize].fetch_add(is_admitted(verdict).into(), Ordering::SeqCst);
                    }
                });
            }
        });
        for (number, admitted) in admitted.iter().enumerate() {
            let who = numbered(round * 3 + number as u32);
            let rest = (0..20).filter(|_| is_admitted(clients.admit(7, who, SECOND, 20, now))).count() as u64;
            assert_eq!(admitted.load(Ordering::SeqCst) + rest, 20, "round {round}, client {number}");
        }
    }
}

#[test]
fn threads_never_hold_more_connections_than_the_most() {
    let (clients, who) = (table(8), numbered(1));
    let held = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if clients.connect(who, 3) {
                        assert!(held.fetch_add(1, Ordering::SeqCst) < 3);
                        held.fetch_sub(1, Ordering::SeqCst);
                        clients.disconnect(who);
                    }
                }
            });
        }
    });
    assert_eq!(clients.connections(who), 0);
}

/// Children that run `work` with their number. They touch shared words only, so that it does not matter that the test's
/// process has threads.
fn spawn(count: u64, work: impl Fn(u64)) -> Vec<Pid> {
    let child = |number| match process::fork().unwrap() {
        Born::Parent(child) => child,
        Born::Child => {
            work(number);
            process::exit_now(0)
        }
    };
    (0..count).map(child).collect()
}

fn tally() -> &'static AtomicU64 {
    let (region, _fd) = Region::create("tally", 8).unwrap();
    &region.words(0, 1)[0]
}

#[test]
fn processes_share_a_rate_to_the_request() {
    let clients = table(1024);
    for round in 0..20 {
        let (tally, who) = (tally(), numbered(round));
        let work = |_| _ = tally.fetch_add(hammer(&clients, who, SECOND, 100, SECOND), Ordering::SeqCst);
        for child in spawn(4, work) {
            waitpid(child, None).unwrap();
        }
        assert_eq!(tally.load(Ordering::SeqCst), 100, "round {round}");
    }
}

#[test]
fn processes_admit_what_burst_and_elapsed_by_interval_allow() {
    let (clients, admitted, refused_at, who) = (table(1024), tally(), tally(), numbered(1));
    // The burst is longer than the span: a machine that has other things to do loses no interval.
    let (interval, burst, span) = (Duration::from_micros(500), 2000, SECOND / 2);
    let (start, ask) = (Instant::now(), |now| clients.admit(1, who, interval, burst, now));
    let intervals = |from: Duration, to: Duration| ((to - from).as_micros() / interval.as_micros()) as u64;
    let first = start.elapsed();
    assert!(is_admitted(ask(first)));
    let children = spawn(3, |_| {
        while start.elapsed() < span {
            let now = start.elapsed();
            match ask(now) {
                Verdict::Admitted => admitted.fetch_add(1, Ordering::SeqCst),
                Verdict::Refused { .. } => refused_at.fetch_max(now.as_micros() as u64, Ordering::SeqCst),
            };
        }
    });
    for child in children {
        waitpid(child, None).unwrap();
    }
    let admitted = 1 + admitted.load(Ordering::SeqCst);
    let last = Duration::from_micros(refused_at.load(Ordering::SeqCst));
    assert!(last > first, "a burst is soon used up");
    let (least, most) = (intervals(first, last), intervals(first, start.elapsed()));
    let range = u64::from(burst) + least - 1..=u64::from(burst) + most;
    assert!(range.contains(&admitted), "{admitted} admitted, {range:?} allowed");
}

#[test]
fn the_killed_leave_tables_that_work() {
    let clients = table(8);
    let stop = AtomicBool::new(false);
    for round in 0..50_u32 {
        let (tally, who, now) = (tally(), numbered(round), SECOND * (round + 1) * 1000);
        let children = spawn(3, |_| {
            while !stop.load(Ordering::Relaxed) {
                if is_admitted(clients.admit(1, who, SECOND, 200, now)) {
                    tally.fetch_add(1, Ordering::SeqCst);
                }
                clients.connect(who, 2);
                clients.disconnect(who);
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(u64::from(round) * 40) {
            std::hint::spin_loop();
        }
        for child in &children {
            kill(*child, Signal::SIGKILL).unwrap();
            waitpid(*child, None).unwrap();
        }
        let rest = (0..1000).filter(|_| is_admitted(clients.admit(1, who, SECOND, 200, now))).count() as u64;
        let all = tally.load(Ordering::SeqCst) + rest;
        // A death between the count and the tally takes one with it, for each of the three.
        assert!((197..=200).contains(&all), "round {round}: {all} of 200");
        assert!(clients.connections(who) <= 3, "round {round}");
        (0..3).for_each(|_| clients.disconnect(who));
        assert!(clients.connect(who, 1), "round {round}");
        clients.disconnect(who);
    }
}
