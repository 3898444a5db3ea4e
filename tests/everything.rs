//! Every way in which a worker, a generation, a listener or a program can end, one after the other on one service under load: no
//! request fails, the totals are what the clients have counted, and nothing is left behind.

use nix::sys::signal::Signal;

use crate::harness::command::free_port;
use crate::harness::{
    Ask, Client, HELLO, Load, Manners, SOON, Server, Setup, alone, knob, pattern, processes, wait_until,
};

const BINARY: &str = env!("CARGO_BIN_EXE_phalanx");
const SLOTS: usize = 3;
/// Requests that each break a worker, or keep a thread for ever, and what they are answered.
const FAULTS: [(&str, u16); 4] = [("segv", 500), ("overflow", 500), ("hang", 504), ("pooled-hang", 504)];

fn setup() -> Setup {
    let routes: String = FAULTS
        .iter()
        .map(|(fault, _)| format!("[[site.route]]\npath = \"= /{fault}\"\nfault = \"{fault}\"\n"))
        .collect();
    Setup::new(SLOTS)
        .set("workers", "allow_faults = true")
        .set("workers", "hang_timeout = \"500ms\"")
        .set("workers", "request_timeout = \"500ms\"")
        .set("workers", "probation = \"200ms\"")
        .set("master", "probation = \"300ms\"")
        .set("log", "level = \"info\"")
        .file("small", pattern(3000, 1))
        .routes(&routes)
}

/// What a service holds: descriptors of the master, of each keeper; processes; the master's private memory in KiB.
fn holdings(server: &Server) -> (Vec<usize>, usize, usize) {
    let keepers = (0..SLOTS as u32).map(|slot| processes::descriptors(server.keeper(slot)));
    let descriptors = std::iter::once(processes::descriptors(server.master())).chain(keepers).collect();
    let memory = processes::status_line(server.master(), "RssAnon").unwrap_or_default();
    let kib = memory.split_whitespace().next().and_then(|figure| figure.parse().ok()).unwrap_or(0);
    (descriptors, server.children().len(), kib)
}

/// Goes through all of it once; returns how many requests were made besides the load.
fn round(server: &Server, load: &Load) -> u64 {
    let address = server.address();
    let settled = || {
        server.wait_serving();
        load.wait_for(30);
    };
    let mut asked = 0;
    for (fault, status) in FAULTS {
        let mut client = Client::connect(&address).patient(SOON);
        client.send(format!("GET /{fault} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        assert_eq!(client.answer().status, status, "{fault}");
        asked += 1;
        settled();
    }
    for slot in 0..SLOTS as u32 {
        assert!(processes::signal(server.worker(slot), Signal::SIGKILL));
        settled();
    }
    let (worker, keeper) = (server.worker(1), server.keeper(1));
    assert!(processes::signal(keeper, Signal::SIGKILL));
    wait_until("another keeper", SOON, || server.find_keeper(1).is_some_and(|now| now != keeper));
    settled();
    assert_ne!(server.worker(1), worker);
    server.cli("recycle", &[]).assert_code(0);
    settled();
    // A listener comes and goes.
    let before = std::fs::read_to_string(server.config()).unwrap();
    let second = format!("127.0.0.1:{}", free_port());
    server.rewrite(|text| format!("{text}[[listen]]\naddress = \"{second}\"\n"));
    server.cli("reload", &[]).assert_code(0);
    Client::connect(&second).assert_usable();
    asked += 1;
    server.rewrite(|_| before.clone());
    server.cli("reload", &[]).assert_code(0);
    settled();
    // What cannot be, and what is taken back.
    server.rewrite(|text| text.replace("hang_timeout", "hang_timeuot"));
    server.cli("reload", &[]).assert_code(2);
    server.rewrite(|_| before.replace("[workers]", "[workers]\nhard_memory = \"64KiB\""));
    server.cli("reload", &[]).assert_said(1, &["rolled back"]);
    server.rewrite(|_| before.clone());
    settled();
    server.cli("scale", &[&(SLOTS + 2).to_string()]).assert_code(0);
    load.wait_for(100);
    server.cli("scale", &[&SLOTS.to_string()]).assert_code(0);
    server.wait_slots(SLOTS);
    settled();
    server.cli("upgrade", &[BINARY]).assert_code(0);
    settled();
    server.cli("upgrade", &["/bin/true"]).assert_code(1);
    settled();
    asked
}

#[test]
fn all_of_it_together_fails_nothing_counts_right_and_leaves_nothing_behind() {
    let _machine = alone();
    let server = setup().start();
    let asks = [Ask::get("/hello", HELLO), Ask::get("/small", pattern(3000, 1))];
    let load = Load::start(&server.address(), 16, Manners::Reconnecting, &asks);
    load.wait_for(100);
    let mut asked = round(&server, &load);
    let quiet = || wait_until("only one worker a slot", SOON, || server.children().len() == 2 * SLOTS);
    quiet();
    let before = holdings(&server);
    for _round in 0..knob("PHALANX_EVERYTHING", 2) {
        asked += round(&server, &load);
    }
    quiet();
    let tally = load.finish();
    tally.assert_clean();
    server.wait_total(tally.answered + asked);
    let mut after = holdings(&server);
    // The load had connections in the keepers' tables.
    wait_until("no descriptor and no process is left behind", SOON, || {
        after = holdings(&server);
        after.0.iter().zip(&before.0).all(|(after, before)| after <= before) && after.1 <= before.1
    });
    println!("before {before:?}, after {after:?}");
    assert!(after.2 < before.2 + 2048, "the master has grown from {} to {} KiB", before.2, after.2);
    let (master, children) = (server.master(), server.children());
    server.cli("stop", &[]).assert_code(0);
    let left = || children.iter().any(|child| processes::lives(child.pid)) || processes::lives(master);
    wait_until("every process has gone", SOON, || !left());
}
