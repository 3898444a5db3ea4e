//! Load by strict keep-alive clients, a thread each: every answer right, in time, and no connection lost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Client, Failure, HELLO, Response, SOON, difference, pause};

/// Failures described; more are only counted.
const MOST_DESCRIBED: usize = 20;
/// For answers that may have to be made anew after each death.
const LONG: Duration = Duration::from_secs(30);

/// A request and the only right answer to it.
#[derive(Clone)]
pub(crate) struct Ask {
    method: &'static str,
    path: String,
    /// Lines of the request's head behind those that every client sends.
    lines: &'static str,
    right: Arc<Right>,
}

/// What the right answer is known by.
enum Right {
    /// It is a 200 with this body.
    Body(Vec<u8>),
    /// It is this one, Date aside.
    Response(Response),
}

impl Ask {
    /// `GET path` is answered 200 with these bytes.
    pub(crate) fn get(path: &str, body: impl Into<Vec<u8>>) -> Ask {
        Ask { method: "GET", path: path.into(), lines: "", right: Arc::new(Right::Body(body.into())) }
    }

    /// `HEAD path` is answered 200 for a body of these bytes.
    pub(crate) fn head(path: &str, body: impl Into<Vec<u8>>) -> Ask {
        Ask { method: "HEAD", path: path.into(), lines: "", right: Arc::new(Right::Body(body.into())) }
    }

    /// This request, with `lines` in its head, is always answered as it is now.
    #[track_caller]
    pub(crate) fn as_now(address: &str, method: &'static str, path: &str, lines: &'static str) -> Ask {
        let ask = Ask { lines, ..Ask::get(path, "") };
        let ask = Ask { method, ..ask };
        let response = Client::connect(address).patient(SOON).ask(&ask.request());
        Ask { right: Arc::new(Right::Response(response)), ..ask }
    }

    /// The answer may have to be made, not only sent.
    fn takes_time(&self) -> bool {
        matches!(*self.right, Right::Response(_))
    }

    fn request(&self) -> String {
        format!("{} {} HTTP/1.1\r\nHost: test\r\nUser-Agent: load\r\n{}\r\n", self.method, self.path, self.lines)
    }

    fn check(&self, response: &Response) -> Result<(), String> {
        let body = match &*self.right {
            Right::Body(body) => body,
            Right::Response(right) if response.is_like(right) => return Ok(()),
            Right::Response(right) => {
                let difference = difference(&response.body, &right.body);
                return Err(format!("not as before, {difference}: {response}\nbefore: {right}"));
            }
        };
        if response.status != 200 {
            return Err(format!("wrong status: {response}"));
        }
        let length = body.len().to_string();
        if response.header("content-length") != Some(&length) {
            return Err(format!("wrong length, not {length}: {response}"));
        }
        match self.method != "GET" || response.body == *body {
            true => Ok(()),
            false => Err(format!("wrong bytes, {}", difference(&response.body, body))),
        }
    }
}

/// What a client puts up with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// No close, no reset, nothing.
    Strict,
    /// The server may say `Connection: close`, and may end a connection before the first byte of a response, as it may
    /// when a slot closes; the client connects again and repeats what was not answered.
    Reconnecting,
}

/// What clients counted.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Answers received whole and right.
    pub(crate) answered: u64,
    /// Answers that were wrong, late, or did not come.
    pub(crate) failed: u64,
    /// Of those, the first few.
    pub(crate) descriptions: Vec<String>,
    /// Connections made again after the server ended one in good manners.
    pub(crate) reconnected: u64,
    /// Requests repeated because the connection ended before a byte of response.
    pub(crate) repeated: u64,
    /// The longest that anybody waited.
    pub(crate) slowest: Duration,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.descriptions.extend(other.descriptions);
        self.descriptions.truncate(MOST_DESCRIBED);
        self.reconnected += other.reconnected;
        self.repeated += other.repeated;
        self.slowest = self.slowest.max(other.slowest);
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        if self.descriptions.len() < MOST_DESCRIBED {
            self.descriptions.push(what);
        }
    }

    /// Panics when anything failed, or nothing was asked.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        println!(
            "load: {} answered, {} failed, {} reconnected, {} repeated, slowest {:?}",
            self.answered, self.failed, self.reconnected, self.repeated, self.slowest
        );
        let first = self.descriptions.join("\n");
        assert_eq!(self.failed, 0, "of {} requests failed, the first:\n{first}", self.answered + self.failed);
        assert!(self.answered > 0, "nothing was asked");
    }
}

/// Clients at work until told to finish.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// `connections` clients, each asking one of `asks` after the other, beginning at different ones.
    pub(crate) fn start(address: &str, connections: usize, manners: Manners, asks: &[Ask]) -> Load {
        Load::of(address, connections, manners, asks, false)
    }

    /// Strict clients that take a large response only in small pieces, and have patience with it.
    pub(crate) fn start_narrow(address: &str, connections: usize, asks: &[Ask]) -> Load {
        Load::of(address, connections, Manners::Strict, asks, true)
    }

    fn of(address: &str, connections: usize, manners: Manners, asks: &[Ask], narrow: bool) -> Load {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..connections)
            .map(|number| {
                let mut worker = Asker {
                    address: address.to_owned(),
                    manners,
                    narrow,
                    asks: asks.to_vec(),
                    stop: stop.clone(),
                    answered: answered.clone(),
                    tally: Tally::default(),
                    number,
                };
                std::thread::Builder::new().name(format!("client {number}")).spawn(move || worker.work()).unwrap()
            })
            .collect();
        Load { stop, answered, clients }
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `more` answers have come from now on, or a client has given up.
    pub(crate) fn wait_for(&self, more: u64) {
        let (start, goal) = (Instant::now(), self.answered() + more);
        while self.answered() < goal && start.elapsed() < SOON && !self.clients.iter().any(JoinHandle::is_finished) {
            pause();
        }
    }

    /// Lets every client receive its last answer, and adds up.
    pub(crate) fn finish(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for client in self.clients.drain(..) {
            sum.add(client.join().expect("a load client does not panic"));
        }
        sum
    }
}

impl Drop for Load {
    /// A test that panics must not leave its clients asking.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _panicked = client.join();
        }
    }
}

struct Asker {
    address: String,
    manners: Manners,
    narrow: bool,
    asks: Vec<Ask>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tally: Tally,
    number: usize,
}

impl Asker {
    fn work(&mut self) -> Tally {
        let mut turn = self.number;
        while let Some(mut client) = self.connect() {
            if !self.use_up(&mut client, &mut turn) {
                break;
            }
            self.tally.reconnected += 1;
        }
        std::mem::take(&mut self.tally)
    }

    /// A connection; none when it is time to stop, or nobody takes one.
    fn connect(&mut self) -> Option<Client> {
        let start = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if self.narrow {
                return Some(Client::connect_narrow(&self.address).patient(LONG));
            }
            match Client::try_connect(&self.address) {
                Ok(client) if self.asks.iter().any(Ask::takes_time) => return Some(client.patient(LONG)),
                Ok(client) => return Some(client),
                Err(_) if self.manners == Manners::Reconnecting && start.elapsed() < super::client::PATIENCE => pause(),
                Err(error) => {
                    self.tally.fail(format!("client {}: connect: {error}", self.number));
                    return None;
                }
            }
        }
        None
    }

    /// Asks until told to stop (false), or until the connection has ended and a new one is in order (true).
    fn use_up(&mut self, client: &mut Client, turn: &mut usize) -> bool {
        while !self.stop.load(Ordering::Relaxed) {
            let ask = self.asks[*turn % self.asks.len()].clone();
            let start = Instant::now();
            // What cannot be sent shows when the answer is read.
            let _sent = client.try_send(ask.request().as_bytes());
            let answer = client.try_answer(ask.method);
            self.tally.slowest = self.tally.slowest.max(start.elapsed());
            match answer {
                Ok(response) => match self.judge(&ask, &response) {
                    Ok(closes) => {
                        *turn += 1;
                        if closes {
                            return self.saw_close(client);
                        }
                    }
                    Err(why) => return self.give_up(client, &ask, &why, start),
                },
                Err(failure) if self.manners == Manners::Reconnecting && failure.before_a_byte() => {
                    self.tally.repeated += 1;
                    return true;
                }
                Err(failure) => return self.give_up(client, &ask, &failure.to_string(), start),
            }
        }
        false
    }

    /// Counts a right answer; tells whether the server closes after it.
    fn judge(&mut self, ask: &Ask, response: &Response) -> Result<bool, String> {
        ask.check(response)?;
        let closes = response.closes();
        if closes && self.manners == Manners::Strict {
            return Err(format!("early close: {response}"));
        }
        self.tally.answered += 1;
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(closes)
    }

    fn saw_close(&mut self, client: &mut Client) -> bool {
        match client.end() {
            Failure::Closed(rest) if rest.is_empty() => {}
            other => self.tally.fail(format!("client {}: after Connection: close: {other}", self.number)),
        }
        true
    }

    /// A failed connection is not used again: one cause, one failure.
    fn give_up(&mut self, client: &Client, ask: &Ask, why: &str, start: Instant) -> bool {
        let (number, waited) = (self.number, start.elapsed());
        let what =
            format!("client {number}: {} {} after {waited:?}: {why}\n{}", ask.method, ask.path, client.transcript(12));
        self.tally.fail(what);
        false
    }
}

/// Clients that make a connection for each request, as fast as they can, until none is let in any more. Who was let in has to be
/// answered. Each returns how often it was.
pub(crate) fn crowd(address: &str) -> Vec<JoinHandle<u64>> {
    const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let address: SocketAddr = address.parse().unwrap();
    let client = move || {
        let (mut answered, mut body) = (0, Vec::new());
        while let Ok(mut stream) = TcpStream::connect_timeout(&address, SOON) {
            stream.write_all(REQUEST).expect("who was let in can ask");
            body.clear();
            stream.read_to_end(&mut body).expect("who was let in is answered");
            assert!(body.ends_with(HELLO), "{:?}", String::from_utf8_lossy(&body));
            answered += 1;
        }
        answered
    };
    (0..8).map(|_| std::thread::spawn(client)).collect()
}
