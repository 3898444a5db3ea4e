//! `phalanx events`: everything that happens, as it happens.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Client, SOON, Server, Setup, beside_others, processes, wait_until};

/// Events as they come, with the moment of each.
struct Listener {
    child: Child,
    lines: Receiver<(Instant, Value)>,
}

impl Listener {
    fn start(server: &Server) -> Listener {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phalanx"));
        command.arg("events").arg("-c").arg(server.config()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("phalanx events");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("its output"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if sender.send((Instant::now(), event)).is_err() {
                    return;
                }
            }
        });
        Listener { child, lines }
    }

    /// The next event of that name, and when it came.
    fn next(&self, name: &str) -> (Instant, Value) {
        loop {
            let (at, event) = self.lines.recv_timeout(SOON).unwrap_or_else(|_| panic!("no event {name:?}"));
            if event["event"] == name {
                return (at, event);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn each_event_in_the_life_of_the_service_is_told_at_once() {
    let _machine = beside_others();
    let server = Setup::new(2).start();
    let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(Client::assert_usable);
    let events = Listener::start(&server);
    // It listens when it is told something.
    wait_until("the first event is told", SOON, || {
        server.cli("recycle", &["0"]).assert_code(0);
        events.lines.try_recv().is_ok()
    });
    wait_until("a quiet moment", SOON, || server.workers().len() == 2);
    while events.lines.try_recv().is_ok() {}
    let held = server.status().slots()[1]["connections"].as_u64().unwrap();
    let start = Instant::now();
    assert!(processes::signal(server.worker(1), Signal::SIGKILL));
    let (at, death) = events.next("death");
    assert!(at - start < Duration::from_millis(100), "{:?}", at - start);
    assert_eq!((&death["slot"], &death["cause"]), (&1.into(), &"SIGKILL from outside".into()), "{death:#}");
    assert_eq!(events.next("clone").1["slot"], 1);
    assert_eq!(events.next("ready").1["slot"], 1);
    let (_, rescue) = events.next("rescue");
    assert_eq!((rescue["kept"].as_u64(), rescue["closed"].as_u64()), (Some(held), Some(0)), "{rescue:#}");
    server.cli("reload", &[]).assert_code(0);
    assert_eq!(events.next("reload").1["refused"], Value::Null);
    server.cli("scale", &["3"]).assert_code(0);
    assert_eq!(events.next("scale").1["count"], 3);
    // They go on over an upgrade.
    server.cli("upgrade", &[]).assert_code(0);
    events.next("upgrade");
    assert_eq!(events.next("clone").1["generation"], 3);
    clients.iter_mut().for_each(Client::assert_usable);
    server.cli("stop", &[]).assert_code(0);
    events.next("stop");
    assert_eq!(events.next("stopped").1["why"], Value::Null);
}
