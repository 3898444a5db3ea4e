//! Request rates: exact over all workers, whatever dies or is reloaded, and counted for the client that is meant.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    Client, HELLO, Response, SOON, Server, Setup, beside_others, processes, wait_for_moment, wait_until,
};

const WORKERS: usize = 4;
const BURST: usize = 10;

/// A route `path` with a limit.
fn limited(path: &str, rate: &str, burst: usize) -> String {
    format!(
        "[[site.route]]\npath = \"{path}\"\nrespond = {{ body = \"in\" }}\nlimit = {{ rate = \"{rate}\", burst = {burst} }}\n"
    )
}

fn start(rate: &str) -> Server {
    Setup::new(WORKERS).routes(&limited("/limited", rate, BURST)).start()
}

fn ask(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n")
}

/// What a client was told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Told {
    admitted: usize,
    refused: usize,
}

impl Told {
    #[track_caller]
    fn note(&mut self, response: &Response) {
        match response.status {
            200 => self.admitted += 1,
            429 => {
                let seconds = response.header("retry-after").expect("a refusal says when to come again");
                assert!(seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0), "{response}");
                self.refused += 1;
            }
            _ => panic!("neither admitted nor refused: {response}"),
        }
        assert!(!response.closes(), "{response}");
    }
}

/// Asks at once on `connections` connections from `source`, `each` times on every one.
#[track_caller]
fn flood(address: &str, source: &str, request: &str, connections: usize, each: usize) -> Told {
    let mut clients: Vec<Client> = (0..connections).map(|_| Client::connect_from(address, source)).collect();
    clients.iter_mut().for_each(|client| client.send(request.repeat(each).as_bytes()));
    let mut told = Told::default();
    for client in &mut clients {
        (0..each).for_each(|_| told.note(&client.answer()));
    }
    told
}

/// One request on a connection of its own: whether it is admitted.
#[track_caller]
fn is_admitted(address: &str, source: &str, request: &str) -> bool {
    flood(address, source, request, 1, 1).admitted == 1
}

#[test]
fn a_rate_is_exact_across_workers_and_recovers() {
    let _machine = beside_others();
    let server = start("30/m");
    let (address, request) = (server.address(), ask("/limited", ""));
    let start = Instant::now();
    let told = flood(&address, "127.0.0.1", &request, 64, 8);
    let earned = start.elapsed().as_secs() as usize / 2;
    assert!((BURST..=BURST + earned).contains(&told.admitted), "{told:?} of a burst of {BURST} and {earned} earned");
    assert_eq!(told.admitted + told.refused, 64 * 8);
    let used: Vec<_> = server.status().slots().iter().map(|slot| slot["requests"].as_u64().unwrap()).collect();
    assert!(used.iter().filter(|&&requests| requests > 0).count() >= 3, "workers that answered: {used:?}");
    // The connection goes on, and what has no limit is not limited.
    let mut client = Client::connect(&address);
    assert_eq!(client.ask(&request).status, 429);
    client.assert_usable();
}

#[test]
fn a_client_may_ask_again_when_it_has_waited() {
    let _machine = beside_others();
    const RATE: u32 = 20;
    let server = start("20/s");
    let (address, request) = (server.address(), ask("/limited", ""));
    let start = Instant::now();
    let first = flood(&address, "127.0.0.1", &request, 16, 4);
    let earned = |since: Instant| (since.elapsed().as_millis() * u128::from(RATE) / 1000) as usize;
    assert!((BURST..=BURST + earned(start)).contains(&first.admitted), "{first:?}");
    // Five tokens later five are admitted at least, and never more than have been earned since the first request.
    wait_for_moment(Instant::now() + 5 * Duration::from_secs(1) / RATE);
    let second = flood(&address, "127.0.0.1", &request, 16, 4);
    assert!(second.admitted >= 5, "{second:?}");
    let most = BURST + earned(start);
    assert!(first.admitted + second.admitted <= most, "{first:?} and {second:?} are more than {most}");
    wait_for_moment(Instant::now() + 11 * Duration::from_secs(1) / RATE);
    let third = flood(&address, "127.0.0.1", &request, 16, 4);
    assert!(third.admitted >= BURST, "{third:?}: all is paid");
}

#[test]
fn a_rate_is_counted_by_route_and_by_client() {
    let _machine = beside_others();
    let routes = limited("/a", "30/h", 3) + &limited("/b", "30/h", 5);
    let server = Setup::new(WORKERS).routes(&routes).start();
    let address = server.address();
    for source in ["127.0.0.1", "127.0.0.2", "127.0.1.1"] {
        assert_eq!(flood(&address, source, &ask("/a", ""), 10, 3), Told { admitted: 3, refused: 27 }, "{source}");
        assert_eq!(flood(&address, source, &ask("/b", ""), 10, 3), Told { admitted: 5, refused: 25 }, "{source}");
    }
}

#[test]
fn a_rate_is_not_forgotten_over_a_reload_and_new_workers() {
    let _machine = beside_others();
    let server = start("30/h");
    let (address, request) = (server.address(), ask("/limited", ""));
    assert_eq!(flood(&address, "127.0.0.1", &request, 10, 1).admitted, BURST);
    server.cli("reload", &[]).assert_code(0);
    assert!(!is_admitted(&address, "127.0.0.1", &request));
    wait_until("the old workers are gone", SOON, || server.workers().len() == WORKERS);
    for slot in 0..WORKERS as u32 {
        assert!(processes::signal(server.worker(slot), Signal::SIGKILL));
    }
    server.wait_serving();
    server.cli("scale", &["6"]).assert_code(0);
    assert_eq!(flood(&address, "127.0.0.1", &request, 64, 1), Told { admitted: 0, refused: 64 });
    // Another rate for the same route does not begin anew either.
    server.rewrite(|text| text.replace("30/h", "31/h"));
    server.cli("reload", &[]).assert_code(0);
    assert!(!is_admitted(&address, "127.0.0.1", &request));
    assert!(is_admitted(&address, "127.0.0.9", &request));
}

#[test]
fn a_rate_is_exact_while_workers_are_killed() {
    let _machine = beside_others();
    const MANY: usize = 50_000;
    let server = Setup::new(WORKERS).routes(&limited("/limited", "60/h", MANY)).start();
    let (address, request) = (server.address(), ask("/limited", ""));
    let (stop, kills) = (AtomicBool::new(false), AtomicU32::new(0));
    let start = Instant::now();
    let told = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| use_up(&address, &request))).collect();
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let of_turn = kills.load(Ordering::Relaxed) as usize;
                if let Some(worker) = server.workers().get(of_turn % WORKERS)
                    && processes::signal(worker.pid, Signal::SIGKILL)
                {
                    kills.fetch_add(1, Ordering::Relaxed);
                }
                wait_for_moment(Instant::now() + Duration::from_millis(25));
            }
        });
        let told: Vec<Told> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        told
    });
    let admitted: usize = told.iter().map(|told| told.admitted).sum();
    let earned = start.elapsed().as_secs() as usize / 60;
    let kills = kills.into_inner() as usize;
    println!("{admitted} of {MANY} admitted over {kills} kills in {:?}", start.elapsed());
    // A death between the count and its record counts one request twice: its client gets one less, and never one more.
    assert!((MANY - kills..=MANY + earned).contains(&admitted), "{admitted} admitted of {MANY}, {earned} earned");
}

/// Asks, four at a time, until there have been more than a few refusals.
fn use_up(address: &str, request: &str) -> Told {
    let (mut told, mut client) = (Told::default(), Client::connect(address).patient(SOON));
    while told.refused < 20 {
        client.send(request.repeat(4).as_bytes());
        (0..4).for_each(|_| told.note(&client.answer()));
    }
    told
}

#[test]
fn a_trusted_proxy_names_the_client_that_a_rate_counts_for() {
    let _machine = beside_others();
    let server = Setup::new(WORKERS)
        .listeners("trusted = [\"127.0.0.2\", \"10.0.0.0/8\"]")
        .routes(&limited("/limited", "30/h", 2))
        .set("log", "access = \"{dir}/access.log\"")
        .start();
    let address = server.address();
    let told = |source, more: &str| flood(&address, source, &ask("/limited", more), 10, 1).admitted;
    // Each form, and what it names: 192.0.2.N has its own count wherever it is named.
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 192.0.2.1\r\n"), 2);
    assert_eq!(told("127.0.0.2", "Forwarded: for=192.0.2.1\r\n"), 0, "the same client by the other field");
    assert_eq!(told("127.0.0.2", "Forwarded: for=\"192.0.2.2:4711\";proto=http\r\n"), 2);
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 192.0.2.2\r\n"), 0);
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 203.0.113.9, 192.0.2.3, 10.1.2.3\r\n"), 2);
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 192.0.2.3\r\n"), 0, "the nearest that is not trusted");
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 203.0.113.9\r\n"), 2, "what a client makes up counts for nobody");
    assert_eq!(told("127.0.0.2", "Forwarded: for=\"[2001:db8:0:1::7]:80\"\r\n"), 2);
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 2001:db8:0:1:ffff::9\r\n"), 0, "one network of IPv6 is one client");
    // Nobody else is believed.
    assert_eq!(told("127.0.0.3", "X-Forwarded-For: 192.0.2.50\r\n"), 2);
    assert_eq!(told("127.0.0.3", "X-Forwarded-For: 192.0.2.51\r\n"), 0, "the peer itself is counted");
    assert_eq!(told("127.0.0.3", "Forwarded: for=192.0.2.52\r\n"), 0);
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: 192.0.2.50\r\n"), 2, "nothing was counted for whom it named");
    // A trusted peer that names nobody speaks for itself.
    assert_eq!(told("127.0.0.2", ""), 2);
    assert_eq!(told("127.0.0.2", "X-Forwarded-For: unknown\r\n"), 0);
    // The log names whoever was counted.
    let logged = || server.directory().read("access.log");
    wait_until("all is written down", SOON, || logged().lines().count() == 150);
    for (client, requests) in [("192.0.2.1 ", 20), ("192.0.2.3 ", 20), ("127.0.0.3 ", 30), ("127.0.0.2 ", 20)] {
        let lines = logged().lines().filter(|line| line.starts_with(client)).count();
        assert_eq!(lines, requests, "{client}:\n{}", logged());
    }
}

#[test]
fn clients_of_a_unix_socket_are_counted_if_it_is_trusted() {
    let _machine = beside_others();
    for (trusted, admitted) in [("trusted = [\"unix\"]", [2, 2, 0, 6]), ("trusted = []", [6, 6, 6, 6])] {
        let routes = limited("/limited", "30/h", 2);
        let server = Setup::new(2).listen(&["unix:{dir}/h"]).listeners(trusted).routes(&routes).start();
        let address = server.address();
        let mut told = Vec::new();
        for more in
            ["X-Forwarded-For: 192.0.2.1\r\n", "Forwarded: for=192.0.2.2\r\n", "X-Forwarded-For: 192.0.2.2\r\n", ""]
        {
            let mut statuses = Told::default();
            for _ in 0..6 {
                statuses.note(&Client::connect(&address).ask(&ask("/limited", more)));
            }
            told.push(statuses.admitted);
        }
        assert_eq!(told, admitted, "{trusted}");
        Client::connect(&address).get("/hello").assert(200, HELLO);
    }
}

/// What counts for a replay is kept as one position in the stream: a refused request must not stand before it.
#[cfg(feature = "crash-points")]
#[test]
fn a_refused_request_is_refused_by_the_successor_too() {
    let _machine = beside_others();
    for point in ["after-handler:3", "before-write:2"] {
        let server = Setup::new(1)
            .environment("PHALANX_CRASH_POINT", point)
            .routes(&(limited("/a", "30/h", 1) + &limited("/b", "30/h", 1)))
            .start();
        let mut client = server.connect();
        assert_eq!(client.ask(&ask("/a", "")).status, 200);
        client.send((ask("/a", "") + &ask("/b", "") + &ask("/a", "") + &ask("/b", "")).as_bytes());
        let statuses: Vec<u16> = (0..4).map(|_| client.answer().status).collect();
        assert_eq!(statuses, [429, 200, 429, 429], "{point}");
        assert_eq!(server.status().sum("restarts"), 1, "{point}");
    }
}
