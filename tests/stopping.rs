//! A graceful stop: announced to load balancers, nobody who was let in is left without an answer, and nothing is waited for when
//! there is nothing to wait for.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{Client, HELLO, SOON, Server, Setup, alone, beside_others, crowd, processes, wait_until};

const HEALTH: &str = "[[site.route]]\npath = \"= /ready\"\nhealth = \"readiness\"\n[[site.route]]\npath = \"= /alive\"\nhealth = \"liveness\"\n";

/// Asks for a stop beside the test.
fn stop_of(server: &Server) -> impl FnOnce() -> (i32, Duration) + '_ {
    move || {
        let start = Instant::now();
        (server.cli("stop", &[]).code(), start.elapsed())
    }
}

#[test]
pub(crate) fn a_stop_is_announced_before_it_begins() {
    let _machine = beside_others();
    let delay = Duration::from_millis(1500);
    let server = Setup::new(2).set("workers", "unready_delay = \"1500ms\"").routes(HEALTH).start();
    let address = server.address();
    let mut kept = server.connect();
    kept.get("/ready").assert(200, b"ready\n");
    kept.get("/alive").assert(200, b"ready\n");
    std::thread::scope(|scope| {
        let stop = scope.spawn(stop_of(&server));
        // Each worker is told by itself, and whose a connection becomes is left to chance: so many are not all of one.
        let unready = || (0..20).all(|_| Client::connect(&address).get("/ready").status == 503);
        wait_until("no worker is ready any more", Duration::from_millis(500), unready);
        // It serves on, whoever comes, and each answer is its connection's last.
        for _ in 0..20 {
            let answer = Client::connect(&address).get("/hello");
            assert!(answer.closes(), "{answer}");
            answer.assert(200, HELLO);
        }
        Client::connect(&address).get("/alive").assert(200, b"ready\n");
        let last = kept.get("/hello");
        assert!(last.closes(), "{last}");
        kept.assert_closed();
        drop(kept);
        // A worker that dies now is succeeded by one that knows.
        let worker = server.worker(0);
        assert!(processes::signal(worker, Signal::SIGKILL));
        wait_until("it is succeeded", SOON, || {
            server.status().slots().iter().all(|slot| slot["state"] == "serving" && slot["pid"] != worker)
        });
        for _ in 0..10 {
            assert_eq!(Client::connect(&address).get("/ready").status, 503);
        }
        let (code, took) = stop.join().unwrap();
        assert_eq!(code, 0);
        assert!(took >= delay && took < delay + Duration::from_millis(500), "{took:?}");
    });
}

#[test]
fn an_idle_service_stops_within_200_ms() {
    let _machine = alone();
    for idle in [0, 100] {
        let server = Setup::new(2).start();
        let mut clients: Vec<Client> = (0..idle).map(|_| server.connect()).collect();
        clients.iter_mut().for_each(Client::assert_usable);
        let (code, took) = stop_of(&server)();
        println!("with {idle} idle connections: {took:?}");
        assert_eq!(code, 0);
        assert!(took < Duration::from_millis(200), "{took:?}");
        clients.iter_mut().for_each(Client::assert_closed);
    }
}

#[test]
pub(crate) fn who_was_let_in_before_a_stop_is_answered() {
    let _machine = alone();
    for _round in 0..5 {
        let server = Setup::new(2).start();
        let crowd = crowd(&server.address());
        wait_until("they are served", SOON, || server.status().total("requests") > 200);
        server.cli("stop", &[]).assert_code(0);
        let answered: u64 = crowd.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(answered > 200, "{answered}");
    }
}
