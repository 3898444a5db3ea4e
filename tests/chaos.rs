//! Workers are killed at random, by the hundred, under load; the clients are strict, and the counters must agree with them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    self, Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, knob, processes, wait_for_moment, wait_until,
};

const CONNECTIONS: usize = 24;
const WORKERS: usize = 4;
/// Between two kills: 150 of them take 4.5 s.
const STEP: Duration = Duration::from_millis(30);
const SMALL_BYTES: usize = 1024;
const LARGE_BYTES: usize = 300 * 1024;

fn setup() -> Setup {
    Setup::new(WORKERS)
        .set("log", "level = \"info\"")
        .file("small", harness::pattern(SMALL_BYTES, 1))
        .file("large", harness::pattern(LARGE_BYTES, 2))
}

/// Mostly the fixed response, and a bit of everything that can be replayed or continued.
fn asks() -> Vec<Ask> {
    let hello = Ask::get("/hello", HELLO);
    let small = Ask::get("/small", harness::pattern(SMALL_BYTES, 1));
    let large = Ask::get("/large", harness::pattern(LARGE_BYTES, 2));
    vec![
        hello.clone(),
        small.clone(),
        hello.clone(),
        Ask::head("/small", harness::pattern(SMALL_BYTES, 1)),
        hello,
        large,
        small,
    ]
}

/// A small generator of random numbers; the seed is printed, and PHALANX_CHAOS_SEED repeats it.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos() as usize;
        let seed = knob("PHALANX_CHAOS_SEED", now);
        println!("PHALANX_CHAOS_SEED={seed}");
        Dice((seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }
}

/// Sends `signal` to a random worker; false when there was none at that instant.
fn strike(server: &Server, signal: Signal, dice: &mut Dice) -> bool {
    let workers = server.workers();
    !workers.is_empty() && processes::signal(workers[dice.below(workers.len())].pid, signal)
}

/// So many signals at random workers, at a steady pace with a jitter of half a step.
pub(crate) fn rain(server: &Server, signal: Signal, kills: usize, step: Duration) -> usize {
    let (mut dice, start, mut sent) = (Dice::new(), Instant::now(), 0);
    for kill in 0..kills {
        let jitter = Duration::from_micros(dice.below(step.as_micros() as usize / 2) as u64);
        wait_for_moment(start + step * kill as u32 + jitter);
        sent += usize::from(strike(server, signal, &mut dice));
    }
    println!("{sent} of {kills} {signal} sent in {:?}", start.elapsed());
    sent
}

/// Workers are killed under load; no client notices, and the counters agree.
pub(crate) fn nobody_notices_kills(setup: Setup, asks: &[Ask], kills: usize) {
    let _machine = alone();
    let server = setup.start();
    let load = Load::start(&server.address(), 16, Manners::Strict, asks);
    load.wait_for(200);
    rain(&server, Signal::SIGKILL, kills, Duration::from_millis(30));
    load.wait_for(200);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_serving();
    server.wait_total(tally.answered);
    assert!(server.status().sum("restarts") > 0);
}

/// No client notices, and the server has counted what the clients have.
fn nobody_notices(signal: Signal) {
    let _machine = alone();
    let server = setup().start();
    let load = Load::start(&server.address(), CONNECTIONS, Manners::Strict, &asks());
    load.wait_for(500);
    let sent = rain(&server, signal, knob("PHALANX_CHAOS_KILLS", 150), STEP);
    load.wait_for(500);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_serving();
    server.wait_total(tally.answered);
    let status = server.status();
    println!("{status}");
    assert!(sent > 0, "no signal found a worker");
    if signal != Signal::SIGTERM {
        assert!(status.sum("restarts") > 0, "{sent} signals and no restart: {status}");
    }
}

#[test]
fn nobody_notices_that_workers_are_killed() {
    nobody_notices(Signal::SIGKILL);
}

#[test]
fn nobody_notices_that_workers_are_recycled() {
    nobody_notices(Signal::SIGTERM);
}

#[test]
fn nobody_notices_that_workers_abort() {
    nobody_notices(Signal::SIGABRT);
}

#[test]
fn nobody_notices_that_workers_get_segmentation_faults() {
    nobody_notices(Signal::SIGSEGV);
}

#[test]
fn kills_reloads_and_scaling_together_lose_no_answer_and_no_count() {
    let _machine = alone();
    let server = setup().start();
    let load = Load::start(&server.address(), CONNECTIONS, Manners::Reconnecting, &asks());
    load.wait_for(500);
    let mut dice = Dice::new();
    let sizes = ["2", "4", "3", "4"];
    for round in 0..knob("PHALANX_CHAOS_ROUNDS", 8) {
        for _kill in 0..10 {
            strike(&server, [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT][dice.below(3)], &mut dice);
            load.wait_for(20);
        }
        match round % 2 {
            0 => server.signal(Signal::SIGHUP),
            _ => drop(server.cli("scale", &[sizes[round / 2 % sizes.len()]])),
        }
        load.wait_for(100);
    }
    let tally = load.finish();
    tally.assert_clean();
    // The last reload may still be under way, and one change at a time is all that the master makes.
    wait_until("a scale is carried out", SOON, || server.cli("scale", &["4"]).code() == 0);
    server.wait_slots(WORKERS);
    server.wait_total(tally.answered);
    println!("{}", server.status());
}

#[test]
fn a_stopped_master_blocks_no_worker() {
    let _machine = alone();
    let server = setup().start();
    let load = Load::start(&server.address(), CONNECTIONS, Manners::Strict, &asks());
    load.wait_for(500);
    let stopped = Duration::from_secs(knob("PHALANX_CHAOS_STOP_S", 3) as u64);
    server.signal(Signal::SIGSTOP);
    let (before, start) = (load.answered(), Instant::now());
    wait_for_moment(start + stopped);
    let during = load.answered() - before;
    server.signal(Signal::SIGCONT);
    load.wait_for(500);
    let tally = load.finish();
    tally.assert_clean();
    assert!(during > 500, "{during} answers while the master was stopped for {stopped:?}");
    server.wait_serving();
    server.wait_total(tally.answered);
    let status = server.status();
    assert_eq!(status.sum("restarts"), 0, "a stopped master is no reason to kill anybody: {status}");
}

#[test]
fn a_stopped_worker_is_replaced_or_waited_for_and_the_master_still_answers() {
    let _machine = alone();
    let server = setup().start();
    let stopped = server.worker(0);
    assert!(processes::signal(stopped, Signal::SIGSTOP));
    let start = Instant::now();
    for _look in 0..50 {
        server.status();
    }
    let took = start.elapsed();
    processes::signal(stopped, Signal::SIGCONT);
    println!("50 × status beside a stopped worker: {took:?}");
    assert!(took < SOON, "50 × status took {took:?} beside a stopped worker");
    server.wait_serving();
    server.connect().assert_usable();
}

#[test]
fn workers_that_lose_their_master_end_what_is_in_flight_and_leave_the_port_free() {
    const DOWNLOAD_BYTES: usize = 24 << 20;
    let _machine = alone();
    let download = harness::pattern(DOWNLOAD_BYTES, 3);
    let server = setup().set("workers", "drain_timeout = \"20s\"").file("download", &download).start();
    let address = server.address();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect_narrow(&address).patient(SOON)).collect();
    for client in &mut clients {
        client.send(b"GET /download HTTP/1.1\r\nHost: test\r\n\r\n");
        client.take_part();
    }
    let family: Vec<i32> = server.children().into_iter().map(|process| process.pid).collect();
    server.signal(Signal::SIGKILL);
    server.wait_exit(SOON);
    for client in &mut clients {
        client.answer().assert(200, &download);
    }
    drop(clients);
    let living = || family.iter().copied().filter(|&pid| processes::lives(pid)).collect::<Vec<_>>();
    let start = Instant::now();
    wait_until("keepers and workers are gone", SOON, || living().is_empty());
    println!("everybody gone {:?} after the last answer", start.elapsed());
    wait_until("the port can be bound again", SOON, || std::net::TcpListener::bind(&address).is_ok());
}

#[test]
fn a_successor_answers_within_milliseconds_of_the_kill() {
    const KILLS: usize = 60;
    let _machine = alone();
    let server = Setup::new(1).set("log", "level = \"info\"").start();
    let mut client = server.connect();
    let mut gaps = Vec::new();
    let mut victim = 0;
    for _kill in 0..KILLS {
        wait_until("a worker with a title", SOON, || {
            victim = server.workers().iter().map(|worker| worker.pid).find(|&pid| pid != victim).unwrap_or(victim);
            processes::lives(victim)
        });
        client.assert_usable();
        assert!(processes::signal(victim, Signal::SIGKILL));
        let killed = Instant::now();
        client.assert_usable();
        gaps.push(killed.elapsed());
    }
    gaps.sort();
    let (median, worst) = (gaps[KILLS / 2], gaps[KILLS - 1]);
    println!(
        "from the kill to the next answer on its slot: median {median:?}, worst {worst:?} of {KILLS}; the aim is 5 ms"
    );
    assert!(median < Duration::from_millis(50), "median {median:?}, all {gaps:?}");
    server.wait_total(2 * KILLS as u64);
}
