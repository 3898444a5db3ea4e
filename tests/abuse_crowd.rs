//! Everybody who means harm at once, against one server, and beside them clients who mean none: those fail never and wait
//! for next to nothing, and what the workers hold stays bounded.

use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use crate::harness::{Client, HELLO, Server, Setup, alone, knob, pattern, processes, wait_for_moment};

/// Peers of each slow kind.
const SLOW: usize = 500;
const GARBAGE: usize = 10_000;
const PIPELINED: usize = 10_000;
/// Connections opened and closed without a word, and such that are reset with a request under way.
const FLOOD: usize = 10_000;
const RESETS: usize = 5_000;
/// The worst that 99 of 100 requests beside the crowd may take.
const P99: Duration = Duration::from_millis(50);
/// What a worker may hold: 16 KiB of buffer for each of the busy connections, and as much again for all else.
const MOST_RESIDENT: u64 = 64 << 20;
/// How long the crowd goes on when nothing else ends it. What it does takes 5 s on an idle machine, 13 s where two others compute: how
/// fast it is says nothing of the server.
const AT_MOST: Duration = Duration::from_secs(60);
/// How long the slow ones stay at least.
const AT_LEAST: Duration = Duration::from_secs(8);

/// What all share.
struct Crowd {
    address: String,
    stop: AtomicBool,
    done: AtomicU64,
}

impl Crowd {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Does `what` so often, twenty at a time with a pause between.
    fn storm(&self, name: &str, times: usize, mut what: impl FnMut(usize)) {
        let start = Instant::now();
        for number in (0..times).take_while(|_| self.goes_on()) {
            what(number);
            if number % 20 == 19 {
                wait_for_moment(Instant::now() + Duration::from_millis(5));
            }
        }
        println!("{name}: {times} in {:?}", start.elapsed());
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn target(&self) -> SocketAddr {
        self.address.parse().unwrap()
    }

    fn connect(&self) -> Client {
        Client::connect(&self.address).quiet()
    }

    /// Opens slow peers and lets each do its little bit once a second; who has been let go comes again.
    fn slow(&self, open: impl Fn() -> Client, mut bit: impl FnMut(&mut Client) -> bool) {
        let mut peers: Vec<Client> = Vec::new();
        while peers.len() < SLOW && self.goes_on() {
            peers.push(open());
            if peers.len().is_multiple_of(20) {
                wait_for_moment(Instant::now() + Duration::from_millis(5));
            }
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        let mut turn = Instant::now();
        while self.goes_on() {
            for some in peers.chunks_mut(SLOW / 50) {
                turn += Duration::from_millis(20);
                wait_for_moment(turn);
                for peer in some {
                    if !bit(peer) {
                        *peer = open();
                    }
                }
            }
        }
    }
}

fn slow_heads(crowd: &Crowd) {
    let open = || {
        let mut client = crowd.connect();
        let _sent = client.try_send(b"GET /hello HTTP/1.1\r\nHost: test\r\nX: ");
        client
    };
    crowd.slow(open, |peer| peer.try_send(b"x").is_ok());
}

fn slow_bodies(crowd: &Crowd) {
    let open = || {
        let mut client = crowd.connect();
        let _sent = client.try_send(b"POST /hello HTTP/1.1\r\nHost: test\r\nContent-Length: 500000\r\n\r\n");
        client
    };
    crowd.slow(open, |peer| peer.try_send(b"0123456789").is_ok());
}

fn slow_reads(crowd: &Crowd) {
    let open = || {
        let mut client = Client::connect_narrow(&crowd.address).quiet();
        let _sent = client.try_send(b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
        client
    };
    crowd.slow(open, |peer| !peer.is_readable() || peer.read_into(&mut Vec::new(), 1).is_ok_and(|count| count > 0));
}

fn flood(crowd: &Crowd) {
    let target = crowd.target();
    crowd.storm("connections without a word", FLOOD, |_| drop(TcpStream::connect(target)));
}

fn resets(crowd: &Crowd) {
    let target = crowd.target();
    crowd.storm("resets", RESETS, |number| {
        let Ok(mut stream) = TcpStream::connect(target) else { return };
        let path = if number % 2 == 0 { "hello" } else { "large" };
        let _sent =
            std::io::Write::write_all(&mut stream, format!("GET /{path} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes());
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    });
}

fn garbage(crowd: &Crowd) {
    crowd.storm("inputs of garbage", GARBAGE, |number| {
        let mut client = crowd.connect();
        let bytes = pattern(1 + number % 3000, number as u64 + 1);
        let begun: &[u8] = [b"".as_slice(), b"GET ", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: "][number % 4];
        let _sent = client.try_send(&[begun, &bytes].concat());
    });
}

fn endless_chunks(crowd: &Crowd) {
    let part = [b"1;name=value\r\nx\r\n".as_slice(); 64].concat();
    let mut clients: Vec<Client> = Vec::new();
    while crowd.goes_on() {
        clients.resize_with(20, || {
            let mut client = crowd.connect();
            let _sent = client.try_send(b"POST /hello HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
            client
        });
        clients.retain_mut(|client| !client.is_readable() && client.try_send(&part).is_ok());
        wait_for_moment(Instant::now() + Duration::from_millis(10));
    }
}

fn pipelined(crowd: &Crowd) {
    let start = Instant::now();
    let stream = TcpStream::connect(crowd.target()).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let requests = "GET /hello HTTP/1.1\r\nHost: test\r\n\r\n".repeat(PIPELINED);
            std::io::Write::write_all(&mut &stream, requests.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        std::io::Read::read_to_end(&mut reader, &mut received).unwrap();
    });
    let answers = received.windows(HELLO.len()).filter(|window| *window == HELLO).count();
    println!("{answers} answers to {PIPELINED} pipelined requests in {:?}", start.elapsed());
    assert_eq!(answers, PIPELINED);
    crowd.done.fetch_add(1, Ordering::Relaxed);
}

/// One who means no harm: what each answer took, from a connection that lives and, now and then, from a new one.
fn well_behaved(crowd: &Crowd) -> Vec<Duration> {
    let (mut client, mut took) = (crowd.connect(), Vec::new());
    while crowd.goes_on() {
        let start = Instant::now();
        if took.len() % 50 == 49 {
            client = crowd.connect();
        }
        client.get("/hello").assert(200, HELLO);
        took.push(start.elapsed());
        wait_for_moment(start + Duration::from_millis(5));
    }
    took
}

/// The crowd stands for other machines: what this thread does takes the processor from no one else.
fn stand_back() {
    let thread = nix::unistd::gettid().to_string();
    let renice = Command::new("renice").args(["-n", "10", "-p", &thread]).stdout(Stdio::null()).status();
    assert!(renice.expect("renice is there").success());
}

/// Looks at the workers until the crowd is done; the most that one had resident.
fn watch(crowd: &Crowd, server: &Server, kinds: u64) -> u64 {
    let (start, mut most) = (Instant::now(), 0);
    while start.elapsed() < AT_MOST {
        let workers = server.workers();
        most = workers.iter().map(|worker| processes::resident(worker.pid)).max().unwrap_or(0).max(most);
        if start.elapsed() > AT_LEAST && crowd.done.load(Ordering::Relaxed) == kinds {
            break;
        }
        wait_for_moment(Instant::now() + Duration::from_millis(100));
    }
    most
}

#[test]
fn a_crowd_that_means_harm_costs_well_behaved_clients_nothing() {
    let _machine = alone();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let server = Setup::new(2).set("log", "level = \"info\"").file("large", vec![b'l'; 8 << 20]).start();
    let workers = server.workers();
    let crowd = Crowd { address: server.address(), stop: AtomicBool::new(false), done: AtomicU64::new(0) };
    let bad: [fn(&Crowd); 7] = [slow_heads, slow_bodies, slow_reads, flood, resets, garbage, pipelined];
    let took = Mutex::new(Vec::new());
    let resident = std::thread::scope(|scope| {
        let crowd = &crowd;
        for kind in bad.into_iter().chain([endless_chunks as fn(&Crowd)]) {
            scope.spawn(move || {
                stand_back();
                kind(crowd);
            });
        }
        for _ in 0..4 {
            scope.spawn(|| {
                let own = StopAtEnd(crowd).run(well_behaved);
                took.lock().unwrap().extend(own);
            });
        }
        let resident = watch(crowd, &server, bad.len() as u64);
        crowd.stop.store(true, Ordering::Relaxed);
        resident
    });
    let mut took = took.into_inner().unwrap();
    took.sort_unstable();
    let at = |of_thousand: usize| took[(took.len() - 1) * of_thousand / 1000];
    println!(
        "beside the crowd: {} answers, half within {:?}, 99 % within {:?}, the slowest {:?}; workers hold {} KiB at most",
        took.len(),
        at(500),
        at(990),
        at(1000),
        resident >> 10
    );
    assert_eq!(crowd.done.into_inner(), bad.len() as u64, "the crowd was not done within {AT_MOST:?}");
    assert!(took.len() > 1000, "{} answers are no measure", took.len());
    let p99 = Duration::from_millis(knob("PHALANX_CROWD_P99_MS", P99.as_millis() as usize) as u64);
    assert!(at(990) < p99, "99 % within {:?}", at(990));
    assert!(resident < MOST_RESIDENT, "{resident} bytes resident in a worker");
    assert_eq!(server.workers(), workers, "no worker has died");
    server.connect().assert_usable();
}

/// Ends the crowd with whoever panics.
struct StopAtEnd<'c>(&'c Crowd);

impl StopAtEnd<'_> {
    fn run<T>(self, what: impl FnOnce(&Crowd) -> T) -> T {
        what(self.0)
    }
}

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}
