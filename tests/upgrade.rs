//! `phalanx upgrade`: another program goes on in the master's place, under load, and no client notices; one that cannot is
//! refused or taken back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::command::make_executable;
use crate::harness::processes::{self, descriptors};
use crate::harness::{self, Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, beside_others, knob, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_phalanx");
const LARGE_BYTES: usize = 300 * 1024;

fn setup() -> Setup {
    Setup::new(3).set("master", "probation = \"300ms\"").file("large", harness::pattern(LARGE_BYTES, 2))
}

fn asks() -> Vec<Ask> {
    let hello = Ask::get("/hello", HELLO);
    vec![hello.clone(), hello.clone(), Ask::get("/large", harness::pattern(LARGE_BYTES, 2)), hello]
}

fn generation(server: &Server) -> u64 {
    server.status().generation()
}

/// Descriptors of the master and of every child, the children's by kind.
fn all_descriptors(server: &Server) -> Vec<usize> {
    let children = server.children();
    let mut counts: Vec<usize> = children.iter().map(|child| descriptors(child.pid)).collect();
    counts.sort_unstable();
    counts.push(descriptors(server.master()));
    counts
}

fn wait_for_one_table_a_slot(server: &Server) {
    wait_until("only the keepers and workers of one program live", SOON, || server.children().len() == 6);
}

#[test]
fn nobody_notices_upgrades() {
    let _machine = beside_others();
    let server = setup().start();
    let (address, master) = (server.address(), server.master());
    let mut idle: Vec<Client> = (0..40).map(|_| Client::connect(&address)).collect();
    idle[..20].iter_mut().for_each(Client::assert_usable);
    let load = Load::start(&address, 12, Manners::Strict, &asks());
    load.wait_for(200);
    let mut before = Vec::new();
    let upgrades = knob("PHALANX_UPGRADES", 10);
    for round in 0..upgrades {
        match round % 3 {
            0 => _ = server.cli("upgrade", &[BINARY]).assert_said(0, &["upgraded", "serves"]),
            1 => _ = server.cli("upgrade", &[]).assert_said(0, &["upgraded", "serves"]),
            _ => {
                server.signal(Signal::SIGUSR2);
                let wanted = round as u64 + 2;
                wait_until("the next program serves", SOON, || generation(&server) == wanted);
                wait_until("it is confirmed", SOON, || server.log().matches("upgraded: ").count() == round + 1);
            }
        }
        assert_eq!((generation(&server), server.master()), (round as u64 + 2, master));
        if round == 1 {
            wait_for_one_table_a_slot(&server);
            before = all_descriptors(&server);
        }
    }
    load.wait_for(200);
    wait_for_one_table_a_slot(&server);
    let after = all_descriptors(&server);
    let tally = load.finish();
    tally.assert_clean();
    idle.iter_mut().for_each(Client::assert_usable);
    server.wait_total(tally.answered + 60);
    let status = server.status();
    assert_eq!((status.total("accepted"), status.total("closed")), (52, 0), "{status}");
    // Load may have a file open at either moment.
    let most = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before)).max();
    assert!(most <= Some(3), "descriptors grow: {before:?}, {after:?}");
    server.cli("stop", &[]).assert_code(0);
}

/// Programs that cannot take over, and words of the reason that is told.
fn bad_programs(server: &Server) -> Vec<(PathBuf, &'static [&'static str])> {
    let directory = server.directory();
    let whole = std::fs::read(BINARY).unwrap();
    let truncated = directory.write("truncated", &whole[..whole.len() / 20]);
    let empty = directory.write("empty", "");
    let text = directory.write("text", "this is no program");
    [&truncated, &empty, &text].into_iter().for_each(|path| make_executable(path));
    let plain = directory.write("plain", &whole);
    let other_arguments = format!("shift; exec {BINARY} run \"$@\" --no-such-option");
    let beside = format!("{BINARY} \"$@\"\nexit $?");
    vec![
        (directory.path("missing"), &["refused", "nothing changes", "No such file"]),
        (plain, &["refused", "nothing changes", "ermission denied"]),
        (truncated, &["refused", "nothing changes"]),
        (empty, &["refused", "nothing changes"]),
        (text, &["refused", "nothing changes"]),
        ("/bin/true".into(), &["refused", "nothing changes", "exit code 0"]),
        (directory.script("exits", "exit 7"), &["refused", "nothing changes", "exit code 7"]),
        (directory.script("crashes", "kill -SEGV $$"), &["refused", "nothing changes", "SIGSEGV"]),
        (directory.script("beside", &beside), &["refused", "nothing changes", "by `exec`"]),
        (directory.script("hangs", "sleep 600"), &["refused", "nothing changes", "boot_timeout"]),
        (directory.script("other", &other_arguments), &["refused", "nothing changes", "exit code 2"]),
    ]
}

#[test]
fn nobody_notices_upgrades_to_programs_that_cannot_take_over() {
    let _machine = beside_others();
    let server = setup().set("workers", "boot_timeout = \"2s\"").start();
    let (address, master) = (server.address(), server.master());
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    let load = Load::start(&address, 12, Manners::Strict, &asks());
    load.wait_for(200);
    let workers: Vec<i32> = server.workers().iter().map(|worker| worker.pid).collect();
    for (program, words) in bad_programs(&server) {
        server.cli("upgrade", &[program.to_str().unwrap()]).assert_said(1, words);
        let same: Vec<i32> = server.workers().iter().map(|worker| worker.pid).collect();
        assert_eq!((server.master(), same), (master, workers.clone()), "after {}", program.display());
    }
    load.wait_for(200);
    let tally = load.finish();
    tally.assert_clean();
    idle.iter_mut().for_each(Client::assert_usable);
    server.wait_total(tally.answered + 20);
    assert_eq!(server.status().total("accepted"), 32);
    // Nothing of what the programs started is left.
    wait_until("only keepers and workers are left", SOON, || server.children().len() == 6);
}

#[cfg(feature = "crash-points")]
#[test]
fn nobody_notices_that_a_program_is_taken_back_whose_workers_die_soon() {
    let _machine = beside_others();
    let server = setup().set("master", "probation = \"5s\"").start();
    let (address, master) = (server.address(), server.master());
    let asks = [Ask::get("/large", harness::pattern(LARGE_BYTES, 2))];
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    // Its workers abort when they fetch their first connection, one after the other.
    let program = server.directory().script("dies", &format!("PHALANX_CRASH_POINT=moved:1! exec {BINARY} \"$@\""));
    // What the file says by now is for the new program; who is returned to goes on with what was in force.
    server.rewrite(|text| text.replace("Hello, World!", "Hello, new World!"));
    for round in 0..5 {
        let load = Load::start(&address, 12, Manners::Strict, &asks);
        load.wait_for(100);
        server
            .cli("upgrade", &[program.to_str().unwrap()])
            .assert_said(1, &["rolled back", "the program before serves on", "SIGABRT by its own fault"]);
        load.wait_for(100);
        load.finish().assert_clean();
        assert_eq!((generation(&server), server.master()), (2 * round + 3, master));
        server.connect().get("/hello").assert(200, HELLO);
    }
    idle.iter_mut().for_each(Client::assert_usable);
    wait_for_one_table_a_slot(&server);
    let status = server.status();
    assert_eq!((status.total("accepted"), status.total("closed"), status.total("failed")), (85, 0, 0), "{status}");
}

/// The program before serves on, after the new program's master has died or hung: nobody notices, and nothing is left behind.
#[cfg(feature = "crash-points")]
#[test]
fn nobody_notices_that_the_master_of_a_new_program_dies() {
    let _machine = beside_others();
    let server = setup().set("master", "probation = \"5s\"").start();
    let (address, master) = (server.address(), server.master());
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    let load = Load::start(&address, 12, Manners::Strict, &asks());
    load.wait_for(100);
    wait_for_one_table_a_slot(&server);
    let before = all_descriptors(&server);
    let faults = [
        ("segv@taking-over", "its master died of SIGSEGV"),
        ("panic@taking-over", "its master panicked"),
        ("abort@opening", "its master died of SIGABRT"),
        ("exit@opening", "its master ended"),
        ("segv@serving", "its master died of SIGSEGV"),
        ("panic@serving", "its master panicked"),
        ("exit@probation", "its master ended"),
        ("abort@probation", "its master died of SIGABRT"),
        ("hang@probation", "its master hung"),
    ];
    for (fault, why) in faults {
        let text = format!("PHALANX_MASTER_FAULT={fault} exec {BINARY} \"$@\"");
        let program = server.directory().script(fault, &text);
        server.cli("upgrade", &[program.to_str().unwrap()]).assert_said(1, &["rolled back", "serves on", why]);
        load.wait_for(100);
        assert_eq!(server.master(), master);
        server.cli("status", &[]).assert_code(0);
    }
    // One whose configuration is there when it is rehearsed, and not when it takes over.
    let forgets = format!("[ -z \"$PHALANX_TAKE_OVER\" ] || set -- run -c /nowhere.toml; exec {BINARY} \"$@\"");
    let program = server.directory().script("forgets", &forgets);
    server.cli("upgrade", &[program.to_str().unwrap()]).assert_said(1, &["rolled back", "serves on", "/nowhere.toml"]);
    // The alarm that would have told of its hanging is not the other's.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(11) {
        load.wait_for(50);
    }
    assert_eq!(server.master(), master);
    let tally = load.finish();
    tally.assert_clean();
    idle.iter_mut().for_each(Client::assert_usable);
    server.wait_total(tally.answered + 20);
    let status = server.status();
    assert_eq!((status.total("accepted"), status.total("closed"), status.total("failed")), (32, 0, 0), "{status}");
    wait_for_one_table_a_slot(&server);
    let most = before.iter().zip(&all_descriptors(&server)).map(|(old, new)| new.saturating_sub(*old)).max();
    assert!(most <= Some(3), "descriptors grow: {before:?}, {:?}", all_descriptors(&server));
    server.cli("upgrade", &[]).assert_code(0);
    server.cli("stop", &[]).assert_code(0);
}

/// At any moment, and with it workers of both programs.
#[test]
fn nobody_notices_that_a_new_master_is_killed_on_probation() {
    let _machine = beside_others();
    let server = setup().set("master", "probation = \"20s\"").start();
    let (address, master) = (server.address(), server.master());
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    idle.iter_mut().for_each(Client::assert_usable);
    let load = Load::start(&address, 12, Manners::Strict, &asks());
    load.wait_for(100);
    let rounds = knob("PHALANX_RETURNS", 12);
    for round in 0..rounds {
        let signal = [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGBUS][round % 3];
        let program_before = server.log().matches("handing over").count();
        server.signal(Signal::SIGUSR2);
        wait_until("the next program takes over", SOON, || {
            server.log().matches(" slots are handed over").count() > program_before * 2
        });
        load.wait_for(1 + 9 * round as u64);
        if round % 2 == 1
            && let Some(worker) = server.workers().last()
        {
            processes::signal(worker.pid, Signal::SIGKILL);
        }
        server.signal(signal);
        wait_until("it is returned from", SOON, || {
            let log = server.log();
            let reasons = [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGBUS]
                .map(|signal| log.matches(&format!("upgrade rolled back: its master died of {signal}")).count());
            reasons.iter().sum::<usize>() == round + 1
        });
        assert_eq!(server.master(), master);
    }
    load.wait_for(100);
    let tally = load.finish();
    tally.assert_clean();
    idle.iter_mut().for_each(Client::assert_usable);
    wait_for_one_table_a_slot(&server);
    server.wait_total(tally.answered + 40);
    let status = server.status();
    assert_eq!((status.total("accepted"), status.total("closed"), status.total("failed")), (32, 0, 0), "{status}");
    server.cli("stop", &[]).assert_code(0);
}

#[test]
fn workers_and_keepers_killed_during_upgrades_cost_nothing() {
    let _machine = beside_others();
    let server = setup().start();
    let address = server.address();
    let load = Load::start(&address, 12, Manners::Strict, &asks());
    load.wait_for(200);
    std::thread::scope(|scope| {
        let upgrades = scope.spawn(|| {
            for _upgrade in 0..6 {
                server.cli("upgrade", &[]).assert_code(0);
            }
        });
        let mut kill = 0;
        while !upgrades.is_finished() {
            let (kill_of, workers) = (kill, server.workers());
            if !workers.is_empty() {
                processes::signal(workers[kill_of % workers.len()].pid, Signal::SIGKILL);
            }
            kill += 1;
            load.wait_for(30);
        }
    });
    load.wait_for(200);
    let tally = load.finish();
    tally.assert_clean();
    server.wait_serving();
    server.wait_total(tally.answered);
    let status = server.status();
    assert_eq!((status.total("accepted"), status.total("closed")), (12, 0), "{status}");
}

#[test]
fn an_upgraded_daemon_keeps_its_name_its_totals_and_its_commands() {
    let _machine = beside_others();
    let server = setup().start_daemon();
    let mut client = server.connect();
    client.assert_usable();
    let killed = server.worker(1);
    assert!(processes::signal(killed, Signal::SIGKILL));
    wait_until("it is replaced", SOON, || server.status().sum("restarts") == 1);
    server.cli("upgrade", &[]).assert_code(0);
    // On its way from table to table it is counted nowhere.
    wait_until("the connection has arrived", SOON, || server.status().total("connections") == 1);
    let status = server.status();
    assert_eq!((status.sum("restarts"), status.total("requests")), (1, 1), "{status}");
    assert_eq!(std::fs::read_to_string(server.directory().path("pid")).unwrap().trim(), server.master().to_string());
    server.cli("reload", &[]).assert_code(0);
    server.cli("scale", &["4"]).assert_code(0);
    server.cli("scale", &["3"]).assert_code(0);
    server.cli("upgrade", &[]).assert_code(0);
    client.assert_usable();
    assert_eq!(generation(&server), 4);
    server.rewrite(|text| text.replace("127.0.0.1:0", "127.0.0.2:0"));
    server.cli("upgrade", &[]).assert_said(1, &["refused", "listen.address cannot change"]);
    server
        .rewrite(|text| text.replace("127.0.0.2:0", "127.0.0.1:0").replace("[workers]", "[workers]\nno_such_key = 1"));
    server.cli("upgrade", &[]).assert_said(1, &["refused", "nothing changes"]);
    client.assert_usable();
    let children: Vec<i32> = server.children().iter().map(|child| child.pid).collect();
    assert_eq!(children.len(), 6);
    server.cli("stop", &[]).assert_code(0);
    wait_until("everybody is gone", SOON, || !children.iter().any(|&child| processes::lives(child)));
}

/// What it cannot read, its predecessor's workers bring to an end: nothing fails, and the outcome says what is closed.
#[cfg(feature = "crash-points")]
#[test]
fn a_program_of_another_layout_or_version_has_the_workers_before_drain() {
    let _machine = beside_others();
    let large = harness::pattern(8 << 20, 5);
    let server = setup().file("slow", large.clone()).start();
    let (address, master) = (server.address(), server.master());
    let other = |name: &str, words: &str| server.directory().script(name, &format!("{words} exec {BINARY} \"$@\""));
    let layout = other("layout", "PHALANX_LAYOUT=77");
    let version = other("version", "PHALANX_LAYOUT=77 PHALANX_STATE_VERSION=99");
    let dies = other("dies", "PHALANX_LAYOUT=78 PHALANX_MASTER_FAULT=segv@probation");
    let early = other("early", "PHALANX_LAYOUT=78 PHALANX_MASTER_FAULT=segv@opening");
    let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
    idle.iter_mut().for_each(Client::assert_usable);
    // As long as none of its workers serves, nothing of the service is touched.
    let strict = Load::start(&address, 8, Manners::Strict, &asks());
    let said = server.cli("upgrade", &[early.to_str().unwrap()]);
    said.assert_said(1, &["rolled back", "its master died of SIGSEGV"]);
    assert!(!said.stderr.contains("are ended"), "{}", said.stderr);
    strict.wait_for(100);
    strict.finish().assert_clean();
    idle.iter_mut().for_each(Client::assert_usable);
    wait_for_one_table_a_slot(&server);
    let load = Load::start(&address, 8, Manners::Reconnecting, &asks());
    load.wait_for(100);
    let steps = [(&layout, 0, "layout 77"), (&version, 0, "version 99"), (&dies, 1, "its master died of SIGSEGV")];
    for (program, code, why) in steps {
        let mut slow = Client::connect_narrow(&address);
        slow.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
        slow.wait_stuck();
        let before = server.status().total("requests");
        let mut idle: Vec<Client> = (0..20).map(|_| Client::connect(&address)).collect();
        idle.iter_mut().for_each(Client::assert_usable);
        let said = server.cli("upgrade", &[program.to_str().unwrap()]);
        said.assert_said(code, &["connections are ended by their workers", why]);
        let text = said.stdout.clone() + &said.stderr;
        let count = text.split("up to ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        assert!(count >= Some(21), "{text}");
        idle.iter_mut().for_each(Client::assert_closed);
        load.wait_for(200);
        assert_eq!(server.master(), master);
        assert!(server.status().total("requests") >= before, "totals go on");
        // Whoever is served to the end is served by the one that began.
        slow.answer().assert(200, &large);
        // The new program's own connections are kept as ever.
        let mut client = Client::connect(&address);
        client.assert_usable();
        wait_for_one_table_a_slot(&server);
        assert!(processes::signal(server.worker(0), Signal::SIGKILL));
        server.wait_serving();
        client.assert_usable();
    }
    // Of one layout again: everything is kept.
    idle = (0..20).map(|_| Client::connect(&address)).collect();
    idle.iter_mut().for_each(Client::assert_usable);
    server.cli("upgrade", &[BINARY]).assert_said(0, &["upgraded"]);
    idle.iter_mut().for_each(Client::assert_usable);
    load.finish().assert_clean();
    wait_for_one_table_a_slot(&server);
    server.cli("stop", &[]).assert_code(0);
}
