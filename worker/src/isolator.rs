//! Handlers in processes of their own, one for each request, made to be thrown away. What such a process does to itself is a reason
//! in the answer to its request, and nothing else.
//!
//! Its parent is the isolator, a copy of the worker from before the first thread, so that it can fork with nothing half done; it has a
//! descriptor table of its own and none of the worker's descriptors, and what it could scribble on of the slot's is sealed off. When
//! its worker dies, it ends all that it has made, with what that has started, and itself. A thread of the worker sends it an order with two descriptors: over one it sends the request to the new
//! process and gets its answer, over the other the isolator tells how the process ended.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getppid, setpgid};
use phalanx_shared::error;
use phalanx_shared::ipc::SlotId;
use phalanx_shared::ipc::line::{Wait, pair, receive, send};
use phalanx_shared::ledger::Ledger;
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::sys::{crash_signal, table, title};
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::app::{Caller, Handed, Incoming, Limits, Payload, RequestId};
use crate::http::reply::{Body, Response};
use crate::http::status::reason;
use crate::http::{HeaderScratch, Progress, head};
use crate::in_handler;
use crate::open_file::{OpenFile, OpenFiles};
use crate::service::{Asked, Asker, Router};

/// Bytes of an answer at most, since all of it is kept before it is sent.
const MOST_ANSWER: u64 = 64 * 1024 * 1024;
/// What a request may take on its way: the largest body and its head.
const MOST_REQUEST: u64 = 1 << 32;
/// No limit is longer.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// How much longer than its limit somebody waits for a process that the isolator is to end.
const GRACE: Duration = Duration::from_secs(2);

/// The worker's end of the line to its isolator.
#[derive(Clone)]
pub struct Isolator {
    line: Arc<OwnedFd>,
    open_files: OpenFiles,
}

/// A process is to be made.
#[derive(Serialize, Deserialize)]
struct Order {
    wall: Duration,
    cpu: Duration,
    memory: u64,
}

/// What its handler is to answer, beside head and body.
#[derive(Serialize, Deserialize)]
struct Facts {
    head_len: usize,
    limit: usize,
    date: u64,
    peer: Option<SocketAddr>,
    client: Option<IpAddr>,
    cookie: u64,
    position: u64,
}

/// What it has answered, beside the body.
#[derive(Serialize, Deserialize)]
struct Answer {
    status: u16,
    content_type: Option<String>,
    headers: String,
}

/// A request on its way to a process of its own.
pub(crate) struct Parcel<'a> {
    pub(crate) head: &'a [u8],
    /// The bound that it was parsed with.
    pub(crate) limit: usize,
    pub(crate) body: Vec<u8>,
    pub(crate) date: u64,
    pub(crate) caller: Caller,
}

impl Isolator {
    /// Forks the isolator of a worker that has no thread but this one; it has the handlers of `router`.
    ///
    /// # Errors
    /// That it cannot be forked.
    pub(crate) fn start(
        slot: SlotId,
        router: &Arc<Router>,
        ledger: &Ledger,
        open_files: OpenFiles,
    ) -> io::Result<Isolator> {
        let (near, far) = pair()?;
        let worker = std::process::id() as i32;
        let mask = process::block_signals()?;
        match process::fork() {
            Ok(Born::Parent(_)) => {
                process::set_signal_mask(&mask)?;
                Ok(Isolator { line: Arc::new(near), open_files })
            }
            Ok(Born::Child) => {
                let far_number = far.as_raw_fd();
                std::mem::forget((near, far));
                let settled = settle_in(slot, ledger, far_number, worker);
                let outcome = settled.and_then(|()| obey(router, &table::borrow(far_number), worker));
                if let Err(error) = outcome {
                    error!("the isolator ends: {error}");
                }
                process::exit_now(0)
            }
            Err(error) => {
                process::set_signal_mask(&mask)?;
                Err(error)
            }
        }
    }

    /// The same by a descriptor of this process's own, for a copy of the worker that shares its table and may outlive it.
    pub(crate) fn own(&self) -> io::Result<Isolator> {
        let line = self.line.try_clone()?;
        self.open_files.note_descriptor(line.as_raw_fd());
        Ok(Isolator { line: Arc::new(line), open_files: self.open_files.clone() })
    }

    /// Its descriptor, which is the worker's own.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.line.as_raw_fd()
    }

    /// Has a process of its own answer a request, and waits for that.
    pub(crate) fn answer(&self, limits: &Limits, parcel: &Parcel<'_>) -> Response {
        match self.ask(limits, parcel) {
            Ok(response) => response,
            Err(why) => {
                error!("an isolated handler failed, its request is answered 502: {why}");
                let body = Body::Bytes(format!("502 {}\n{why}\n", reason(502)).into());
                Response { content_type: Some("text/plain".into()), body, ..Response::new(502) }
            }
        }
    }

    fn ask(&self, limits: &Limits, parcel: &Parcel<'_>) -> Result<Response, String> {
        let fail = |error: io::Error| format!("no process for it: {error}");
        let (mut data, of_process) = self.noted_pair().map_err(fail)?;
        let (mut verdict, of_isolator) = self.noted_pair().map_err(fail)?;
        let order = Order { wall: limits.wall.min(LONGEST), cpu: limits.cpu.min(LONGEST), memory: limits.memory };
        let both = [of_process.as_fd(), of_isolator.as_fd()];
        let late = Instant::now() + order.wall + GRACE;
        loop {
            match send(self.line.as_fd(), &order, &both) {
                Ok(()) => break,
                // It has much to do.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < late => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(fail(error)),
            }
        }
        drop((of_process, of_isolator));
        // A process that has died takes no more, which its end tells better.
        let _died_early = data.write_request(parcel);
        let mut answer = Vec::new();
        let read = data.read_until_end(&mut answer, late);
        if read.is_err() {
            // Nobody reads on, which its process is to notice.
            let _gone_already = shutdown(data.0.as_raw_fd(), Shutdown::Both);
        }
        let mut why = Vec::new();
        verdict.read_until_end(&mut why, late).map_err(fail)?;
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::FileTooLarge) {
            return Err("its answer is longer than 64 MiB".to_owned());
        }
        if !why.is_empty() {
            return Err(String::from_utf8_lossy(&why).into_owned());
        }
        read.map_err(|error| format!("its answer: {error}"))?;
        decode(answer).ok_or_else(|| "its answer is none".to_owned())
    }

    /// A pair of which either end is noted as the worker's, in case that dies.
    fn noted_pair(&self) -> io::Result<(Line, OpenFile)> {
        let (near, far) = UnixStream::pair()?;
        let note = |stream: UnixStream| self.open_files.note(OwnedFd::from(stream).into());
        Ok((Line(note(near)), note(far)))
    }
}

/// One end of a stream between a thread and a process.
struct Line(OpenFile);

impl Line {
    fn write_request(&mut self, parcel: &Parcel<'_>) -> io::Result<()> {
        let facts = Facts {
            head_len: parcel.head.len(),
            limit: parcel.limit,
            date: parcel.date,
            peer: parcel.caller.peer,
            client: parcel.caller.client,
            cookie: parcel.caller.id.cookie,
            position: parcel.caller.id.position,
        };
        let facts = serde_json::to_vec(&facts).map_err(io::Error::other)?;
        let mut file: &std::fs::File = &self.0;
        file.write_all(&(facts.len() as u32).to_le_bytes())?;
        for part in [&facts, parcel.head, &parcel.body] {
            file.write_all(part)?;
        }
        shutdown(file.as_raw_fd(), Shutdown::Write)?;
        Ok(())
    }

    fn read_until_end(&mut self, into: &mut Vec<u8>, late: Instant) -> io::Result<()> {
        let mut file: &std::fs::File = &self.0;
        let mut part = vec![0; 64 * 1024];
        loop {
            wait_readable(file, late)?;
            match file.read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(_) if into.len() as u64 > MOST_ANSWER => return Err(io::ErrorKind::FileTooLarge.into()),
                Ok(count) => into.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn wait_readable(file: &impl AsFd, late: Instant) -> io::Result<()> {
    let left = late.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The length of some JSON, the JSON, and the body.
fn decode(answer: Vec<u8>) -> Option<Response> {
    let (len, rest) = answer.split_first_chunk()?;
    let (facts, body) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let Answer { status, content_type, headers } = serde_json::from_slice(facts).ok()?;
    if !(200..=599).contains(&status) {
        return None;
    }
    let body = Body::Bytes(bytes::Bytes::copy_from_slice(body));
    Some(Response {
        content_type: content_type.map(Into::into),
        headers: headers.into_bytes(),
        body,
        ..Response::new(status)
    })
}

// ---- the isolator ----

/// What the copy of a worker drops, resets and seals off.
fn settle_in(slot: SlotId, ledger: &Ledger, line: RawFd, worker: i32) -> io::Result<()> {
    title::set(&format!("phalanx: isolator of worker {}", slot.0));
    phalanx_shared::state::begin_process();
    // It has others to end before itself, so this one is taken by descriptor.
    set_pdeathsig(Signal::SIGTERM)?;
    if getppid().as_raw() != worker {
        return Err(io::Error::other("the worker has gone"));
    }
    let ignored = [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGPIPE,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    process::reset_dispositions(&ignored)?;
    crash_signal::withdraw();
    table::close_all_but(&[line])?;
    ledger.seal_off()?;
    process::set_signal_mask(&term())
}

fn term() -> SigSet {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term
}

/// This process is killed when that one, its parent, has died.
fn die_with(parent: i32) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // It may have died before.
    if getppid().as_raw() == parent { Ok(()) } else { Err(io::Error::other("the parent has gone")) }
}

/// A process that answers a request.
struct Isolated {
    pid: Pid,
    ended: OwnedFd,
    /// Where its end is told.
    verdict: OwnedFd,
    until: Instant,
    limits: Order,
    is_late: bool,
}

/// Until the worker has gone, and this with it.
fn obey(router: &Arc<Router>, line: &impl AsFd, worker: i32) -> io::Result<()> {
    let signals = SignalFd::with_flags(&term(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut isolated: Vec<Isolated> = Vec::new();
    loop {
        let now = Instant::now();
        for late in isolated.iter_mut().filter(|one| !one.is_late && one.until <= now) {
            late.is_late = true;
            end(late.pid);
        }
        let next = isolated.iter().filter(|one| !one.is_late).map(|one| one.until.saturating_duration_since(now)).min();
        let read = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled: Vec<PollFd<'_>> = vec![read(line.as_fd()), read(signals.as_fd())];
        polled.extend(isolated.iter().map(|one| read(one.ended.as_fd())));
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            PollTimeout::try_from(next + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let told: Vec<bool> = polled.iter().map(|polled| polled.any().unwrap_or(false)).collect();
        drop(polled);
        if told[1] {
            while let Ok(Some(_)) = signals.read_signal() {}
        }
        if getppid().as_raw() != worker {
            isolated.iter().for_each(|one| end(one.pid));
            return Ok(());
        }
        for at in (0..isolated.len()).rev().filter(|at| told[at + 2]) {
            tell(isolated.swap_remove(at));
        }
        if told[0] {
            match receive::<Order>(line.as_fd(), Wait::No) {
                Ok(None) => return Ok(()),
                Ok(Some((order, descriptors))) => isolated.extend(make(router, order, descriptors)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Kills a process and what it has started.
fn end(pid: Pid) {
    let _gone_already = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
    let _gone_already = kill(pid, Signal::SIGKILL);
}

fn make(router: &Arc<Router>, limits: Order, descriptors: Vec<OwnedFd>) -> Option<Isolated> {
    let [data, verdict] = <[OwnedFd; 2]>::try_from(descriptors).ok()?;
    let own = std::process::id() as i32;
    match process::fork() {
        Ok(Born::Child) => {
            // Only closed by number below.
            std::mem::forget(verdict);
            let served = become_isolated(&limits, own, &data).and_then(|()| serve(router, data));
            process::exit_now(i32::from(served.is_err()))
        }
        Ok(Born::Parent(pid)) => {
            let _it_does_so_too = setpgid(pid, pid);
            let ended =
                rustix::process::Pid::from_raw(pid.as_raw()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            let Some(ended) = ended else {
                end(pid);
                let _reaped = waitpid(pid, None);
                say(&verdict, "its process cannot be watched");
                return None;
            };
            Some(Isolated { pid, ended, verdict, until: Instant::now() + limits.wall, limits, is_late: false })
        }
        Err(error) => {
            say(&verdict, &format!("no process for it: {error}"));
            None
        }
    }
}

fn say(verdict: &OwnedFd, why: &str) {
    let _nobody_waits = nix::unistd::write(verdict, why.as_bytes());
}

/// Tells how a process ended, if that is not as it should; silence is its success.
fn tell(isolated: Isolated) {
    let Isolated { pid, verdict, limits, is_late, .. } = isolated;
    // What it has started has no business without it. As long as it is not waited for, the number is its own.
    let _gone_already = kill(Pid::from_raw(-pid.as_raw()), Signal::SIGKILL);
    let status = waitpid(pid, None);
    let why = match status {
        _ if is_late => format!("it took longer than {:?}", limits.wall),
        Ok(WaitStatus::Exited(_, 0)) => String::new(),
        Ok(WaitStatus::Exited(_, code)) => format!("its process exited with code {code}"),
        Ok(WaitStatus::Signaled(_, Signal::SIGXCPU, _)) => {
            format!("it used more than {:?} of processor time", limits.cpu)
        }
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("its process was killed by {signal}"),
        other => format!("its process ended: {other:?}"),
    };
    if !why.is_empty() {
        say(&verdict, &why);
    }
    // Also for those who were forked a moment ago and have a copy yet.
    let _nobody_waits = shutdown(verdict.as_raw_fd(), Shutdown::Both);
}

// ---- the process of a request ----

fn become_isolated(limits: &Order, isolator: i32, data: &OwnedFd) -> io::Result<()> {
    title::set("phalanx: isolated handler");
    phalanx_shared::state::begin_process();
    die_with(isolator)?;
    let _its_parent_does_so_too = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    // Orders, and where the ends of others are told, are none of its business.
    table::close_all_but(&[data.as_raw_fd()])?;
    process::reset_dispositions(&[Signal::SIGPIPE])?;
    process::set_signal_mask(&SigSet::empty())?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // In whole seconds; a second later it is killed even if it does not mind the first signal.
    let seconds = limits.cpu.as_secs_f64().ceil().max(1.0) as u64;
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds + 1)?;
    setrlimit(Resource::RLIMIT_DATA, limits.memory, limits.memory)?;
    Ok(())
}

fn serve(router: &Router, data: OwnedFd) -> io::Result<()> {
    let mut stream = UnixStream::from(data);
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut facts = vec![0; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut facts)?;
    let facts: Facts = serde_json::from_slice(&facts).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    (&stream).take(MOST_REQUEST).read_to_end(&mut bytes)?;
    let body = bytes.split_off(facts.head_len.min(bytes.len()));
    let mut scratch = HeaderScratch::new();
    let Ok(Progress::Done(head)) = head::parse(&bytes, facts.limit, &mut scratch) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let id = RequestId { cookie: facts.cookie, position: facts.position };
    let caller = || Caller { peer: facts.peer, client: facts.client, id, deadline: None };
    let body = Handed::new(Incoming::whole(body.into()));
    let asked = Asked {
        head: &head,
        bytes: &bytes,
        body: Payload::Coming(&body),
        date: facts.date,
        caller: &caller,
        asker: Asker::Isolated,
    };
    let answered = in_handler::guard(|| router.answer_isolated(&asked)).flatten();
    let response = answered.unwrap_or_else(|| crate::app::Response::new(500));
    let (status, content_type, headers, mut body) = response.into_parts();
    let headers = String::from_utf8(headers).map_err(io::Error::other)?;
    let facts = serde_json::to_vec(&Answer { status, content_type, headers }).map_err(io::Error::other)?;
    stream.write_all(&(facts.len() as u32).to_le_bytes())?;
    stream.write_all(&facts)?;
    io::copy(&mut body, &mut stream).map(drop)
}
