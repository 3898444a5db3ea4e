//! For tests of programs that have Phalanx as a library: runs the program on a port of its own, kills its workers, and has strict
//! clients say whether anybody noticed.
//!
//! A server is started from its program, not from a value in the test: workers are cloned from a process with one thread, and a test
//! has several. In an integration test `env!("CARGO_BIN_EXE_name")` is the program.
//!
//! ```no_run
//! use phalanx::testing::TestServer;
//!
//! let server = TestServer::of("target/debug/examples/hello").workers(2).start();
//! assert_eq!(server.get("/").body, b"Hello, World!\n");
//! let tally = server.under_load(8, "/", || {
//!     for _ in 0..20 {
//!         server.kill_worker(0);
//!         server.wait_serving();
//!     }
//! });
//! tally.assert_clean();
//! ```
//!
//! What goes wrong panics with all that is known of it, as a test should.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
pub use phalanx_worker::answer::Answer;
use phalanx_worker::answer::take_answer;

use crate::control::{self, client};
use crate::status::Status;

/// How long anything that should happen at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that is to be started.
#[must_use]
#[derive(Debug)]
pub struct Setup {
    program: PathBuf,
    workers: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A server that runs until this is dropped; then all its processes are killed.
#[derive(Debug)]
pub struct TestServer {
    master: Child,
    directory: PathBuf,
    address: SocketAddr,
    workers: usize,
}

/// What strict clients have seen.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests that were answered as the first one was.
    pub answered: u64,
    /// What went wrong, at most twenty of it in words.
    pub failures: Vec<String>,
    /// … and how often in all.
    pub failed: u64,
    /// The longest that an answer took.
    pub slowest: Duration,
}

impl TestServer {
    /// A server of this program, with one worker unless it is told otherwise.
    pub fn of(program: impl AsRef<Path>) -> Setup {
        Setup { program: program.as_ref().to_owned(), workers: 1, arguments: Vec::new(), environment: Vec::new() }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks for a path, on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&request_for(path))
    }

    /// Sends a request, whole as it is to go over the wire, and reads one answer.
    #[track_caller]
    pub fn ask(&self, request: &[u8]) -> Answer {
        let answer = connect(self.address).and_then(|mut stream| exchange(&mut stream, request));
        answer.unwrap_or_else(|error| panic!("{error}\n{self:?}\n{}", self.log()))
    }

    /// The pid of the worker that serves a slot; waits until there is one.
    #[track_caller]
    pub fn worker(&self, slot: usize) -> i32 {
        self.wait("a worker", || self.worker_of(slot))
    }

    fn worker_of(&self, slot: usize) -> Option<i32> {
        self.try_status()?.slots.get(slot)?.pid
    }

    /// Kills the worker of a slot with SIGKILL, and waits until that is known.
    #[track_caller]
    pub fn kill_worker(&self, slot: usize) {
        let worker = self.worker(slot);
        let _has_died_of_itself = kill(Pid::from_raw(worker), Signal::SIGKILL);
        let is_known = |status: Status| status.slots.get(slot).is_some_and(|slot| slot.pid != Some(worker));
        self.wait("its death", || self.try_status().is_some_and(is_known).then_some(()));
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            match look() {
                Some(found) => return found,
                None if begun.elapsed() > SOON => panic!("not within {SOON:?}: {what}\n{}", self.log()),
                None => std::thread::sleep(Duration::from_millis(3)),
            }
        }
    }

    /// How often workers have been succeeded after a death.
    #[track_caller]
    pub fn restarts(&self) -> u64 {
        self.status().slots.iter().map(|slot| slot.restarts).sum()
    }

    /// How many requests the service has counted as answered.
    #[track_caller]
    pub fn requests(&self) -> u64 {
        self.status().totals.requests
    }

    /// What a figure of `phalanx::state` is; none when there is none of that name.
    #[track_caller]
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.status().figures.get(name).copied()
    }

    /// Waits until there is a worker in every slot, and each serves.
    #[track_caller]
    pub fn wait_serving(&self) {
        self.wait("all slots serve", || self.serves().then_some(()));
    }

    fn serves(&self) -> bool {
        let serving = |status: &Status| status.slots.iter().filter(|slot| slot.state == "serving").count();
        self.try_status().is_some_and(|status| status.slots.len() == self.workers && serving(&status) == self.workers)
    }

    /// Has `count` strict clients ask for a path while `act` runs: each on one connection, a request after the other, and every answer
    /// must be like the first one but for its date. A connection that ends, or an answer that is late or another, is a failure.
    #[track_caller]
    pub fn under_load(&self, count: usize, path: &str, act: impl FnOnce()) -> Tally {
        let right = self.get(path);
        let (over, begun) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let client = || load(self.address, path, &right, &over, &begun);
            let clients: Vec<_> = (0..count).map(|_| scope.spawn(client)).collect();
            let start = Instant::now();
            while (begun.load(Ordering::Relaxed) as usize) < count && start.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(1));
            }
            // Also when it panics, or the clients would never end.
            let ended = Ends(&over);
            act();
            drop(ended);
            let mut total = Tally::default();
            for tally in clients.into_iter().filter_map(|client| client.join().ok()) {
                total.answered += tally.answered;
                total.failed += tally.failed;
                total.failures.extend(tally.failures);
                total.slowest = total.slowest.max(tally.slowest);
            }
            total.failures.truncate(20);
            total
        })
    }

    /// What the service has written to its standard streams.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    #[track_caller]
    fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|| panic!("the service tells nothing\n{}", self.log()))
    }

    fn try_status(&self) -> Option<Status> {
        client::ask(&self.directory.join("control"), &control::Command::Status).ok()?.status
    }
}

impl Setup {
    /// With so many workers.
    pub fn workers(mut self, count: u16) -> Setup {
        self.workers = count.max(1);
        self
    }

    /// With a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With a further word on its command line, such as `--model=reactor-pool`.
    pub fn arg(mut self, word: &str) -> Setup {
        self.arguments.push(word.to_owned());
        self
    }

    /// Starts it on a free port of 127.0.0.1 and waits until every worker serves.
    #[track_caller]
    pub fn start(self) -> TestServer {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("phalanx-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        let _left_by_an_earlier_run = fs::remove_dir_all(&directory);
        let fail = |what: &dyn std::fmt::Display| -> ! { panic!("start {}: {what}", self.program.display()) };
        let log = fs::create_dir_all(&directory).and_then(|()| File::create(directory.join("log")));
        let (Ok(output), Ok(errors)) =
            (log.as_ref().map_err(|_| ()).and_then(|log| log.try_clone().map_err(|_| ())), log)
        else {
            fail(&"no directory for it")
        };
        let mut command = Command::new(&self.program);
        command.args(["run", "--listen", "127.0.0.1:0", "--workers", &self.workers.to_string(), "--control"]);
        command.arg(directory.join("control")).args(&self.arguments).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let master = command.spawn().unwrap_or_else(|error| fail(&error));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = TestServer { master, directory, address: nowhere, workers: self.workers.into() };
        let begun = Instant::now();
        while !server.serves() {
            if let Ok(Some(status)) = server.master.try_wait() {
                panic!("the program ended with {status}\n{}", server.log());
            }
            assert!(begun.elapsed() < SOON, "it does not serve within {SOON:?}\n{}", server.log());
            std::thread::sleep(Duration::from_millis(3));
        }
        let address = server.status().listeners.first().and_then(|address| address.parse().ok());
        server.address = address.unwrap_or_else(|| panic!("it listens nowhere\n{}", server.log()));
        server
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // A fast stop takes all of it along; whoever does not obey is killed.
        let _gone_already = kill(Pid::from_raw(self.master.id() as i32), Signal::SIGINT);
        let begun = Instant::now();
        while matches!(self.master.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(5) {
                let _gone_already = self.master.kill();
                let _reaped = self.master.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        let _best_effort = fs::remove_dir_all(&self.directory);
    }
}

/// Ends the clients.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Tally {
    /// Panics unless there were answers, and no failure.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(
            self.failed == 0 && self.answered > 0,
            "{} answered, {} failed: {:#?}",
            self.answered,
            self.failed,
            self.failures
        );
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.failures.len() < 20 {
            self.failures.push(why);
        }
    }
}

fn load(address: SocketAddr, path: &str, right: &Answer, over: &AtomicBool, begun: &AtomicU32) -> Tally {
    let request = request_for(path);
    let (mut tally, mut connection) = (Tally::default(), None);
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let stream = match connection.take() {
            Some(stream) => Ok(stream),
            None => connect(address),
        };
        let answered = stream.and_then(|mut stream| exchange(&mut stream, &request).map(|answer| (answer, stream)));
        match answered {
            Ok((answer, stream)) if answer.is_like(right) => {
                tally.answered += 1;
                connection = Some(stream);
            }
            Ok((answer, _)) => tally.fail(format!("another answer: {answer:?}")),
            Err(error) => tally.fail(error),
        }
        tally.slowest = tally.slowest.max(asked.elapsed());
        if tally.answered + tally.failed == 1 {
            begun.fetch_add(1, Ordering::Relaxed);
        }
    }
    tally
}

fn request_for(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").into_bytes()
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let stream =
        TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| format!("connect {address}: {error}"))?;
    let set = stream.set_nodelay(true).and(stream.set_read_timeout(Some(PATIENCE)));
    set.map(|()| stream).map_err(|error| error.to_string())
}

/// Sends a request and reads one answer.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Answer, String> {
    let fail = |error: std::io::Error, got: &[u8]| format!("{error} after {:?}", String::from_utf8_lossy(got));
    stream.write_all(request).map_err(|error| fail(error, &[]))?;
    let (mut got, mut part) = (Vec::new(), [0; 16 * 1024]);
    loop {
        if let Some(answer) = take_answer(&mut got, request.starts_with(b"HEAD "), false)? {
            return Ok(answer);
        }
        match stream.read(&mut part) {
            Ok(0) => {
                let answer = take_answer(&mut got, request.starts_with(b"HEAD "), true)?;
                return answer.ok_or_else(|| format!("closed after {:?}", String::from_utf8_lossy(&got)));
            }
            Ok(count) => got.extend_from_slice(&part[..count]),
            Err(error) => return Err(fail(error, &got)),
        }
    }
}
