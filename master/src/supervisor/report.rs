//! Crash reports are written, and stacks looked at, by children, one at a time, so that neither a slow disk nor the naming of
//! functions holds the master up. The program is told of deaths by others, one at a time too, so that it holds up neither.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use phalanx_shared::config::Master;
use phalanx_shared::ipc::SlotId;
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::{error, info, warn};
use phalanx_worker::app::Hooks;

use crate::privileges::Identity;
use crate::stack;
use crate::verdict::{self, Report};

/// Reports that may wait; one more is only logged.
const MAX_WAITING: usize = 64;

/// Seconds that a child may take.
const LONGEST: u32 = 60;

/// Deaths that are remembered.
const MAX_KEPT: usize = 100;

/// How long deaths of one kind are told together, once so many were told one by one.
const TOGETHER: Duration = Duration::from_secs(10);
const ONE_BY_ONE: u32 = 3;
/// Kinds of death that are told apart.
const MAX_KINDS: usize = 64;

/// Deaths in one slot, of one cause, at one request.
type Kind = (u32, String, Option<String>);

/// How often, and since when.
struct Repeats {
    since: Instant,
    count: u32,
    last: String,
}

/// A thread of a worker that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stack {
    pub(super) slot: SlotId,
    pub(super) pid: Pid,
    pub(super) thread: Pid,
}

/// What a child does.
enum Work {
    /// Writes it down.
    Write(Box<Report>),
    Show(Stack),
    /// Tells the program.
    Tell(Box<Report>),
}

/// Children that work one after the other.
#[derive(Default)]
struct Desk {
    busy: Option<Pid>,
    waiting: VecDeque<Work>,
}

impl Desk {
    /// Has something done as soon as nothing else is, unless too much waits already.
    fn put(&mut self, work: Work, config: &Master, program: &Program) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(work);
            self.begin_next(config, program);
        }
    }

    fn begin_next(&mut self, config: &Master, program: &Program) {
        if self.busy.is_some() {
            return;
        }
        let Some(work) = self.waiting.pop_front() else { return };
        let Ok(mask) = process::block_signals() else { return };
        match process::fork() {
            Ok(Born::Child) => do_and_exit(work, config, program),
            Ok(Born::Parent(pid)) => self.busy = Some(pid),
            Err(error) => warn!("fork to write a crash report: {error}"),
        }
        let _as_before = process::set_signal_mask(&mask);
    }
}

/// The program whose workers die.
struct Program {
    hooks: Hooks,
    /// Who its own code runs as.
    identity: Identity,
}

/// The children that write reports.
pub(super) struct Reporters {
    program: Program,
    reports: Desk,
    hooks: Desk,
    /// The last ones, the oldest first, without the names of functions.
    kept: VecDeque<Report>,
    repeats: HashMap<Kind, Repeats>,
}

impl Reporters {
    /// Those of a program that may want to be told too, and whose own code runs as `identity`.
    pub(super) fn new(hooks: Hooks, identity: Identity) -> Reporters {
        let program = Program { hooks, identity };
        let (reports, hooks) = (Desk::default(), Desk::default());
        Reporters { program, reports, hooks, kept: VecDeque::new(), repeats: HashMap::new() }
    }

    /// Logs a death, and has a report written where there is something to write.
    pub(super) fn take(&mut self, report: Report, serious: bool, config: &Master) {
        let tell = self.is_to_be_told(&report);
        match (tell, serious) {
            (false, _) => {}
            (true, true) => error!("{}", report.line()),
            (true, false) => warn!("{}", report.line()),
        }
        self.kept.push_back(report.clone());
        while self.kept.len() > MAX_KEPT {
            self.kept.pop_front();
        }
        if self.program.hooks.hears_of_crashes() {
            self.hooks.put(Work::Tell(Box::new(report.clone())), config, &self.program);
        }
        if tell && (config.crash_dir.is_some() || !report.frames.is_empty()) {
            self.reports.put(Work::Write(Box::new(report)), config, &self.program);
        }
    }

    /// Has a stack looked at and written to the log.
    pub(super) fn show(&mut self, stack: Stack, config: &Master) {
        let waits = self.reports.waiting.iter().any(|work| matches!(work, Work::Show(other) if *other == stack));
        if !waits {
            self.reports.put(Work::Show(stack), config, &self.program);
        }
    }

    /// Not when it is one of many: they are told together.
    fn is_to_be_told(&mut self, report: &Report) -> bool {
        let path = report.suspect.as_ref().map(|suspect| suspect.path.clone());
        let kind = (report.slot, report.cause.clone(), path);
        let now = Instant::now();
        if self.repeats.len() >= MAX_KINDS && !self.repeats.contains_key(&kind) {
            return true;
        }
        let fresh = Repeats { since: now, count: 0, last: String::new() };
        let repeats = self.repeats.entry(kind).or_insert(fresh);
        repeats.count += 1;
        repeats.last = report.line();
        repeats.count <= ONE_BY_ONE
    }

    /// Tells what has come together.
    pub(super) fn expire(&mut self) {
        if self.repeats.is_empty() {
            return;
        }
        let now = Instant::now();
        for (_, repeats) in self.repeats.extract_if(|_, repeats| now - repeats.since >= TOGETHER) {
            if let Some(more @ 1..) = repeats.count.checked_sub(ONE_BY_ONE) {
                error!("{more} more deaths like this within {TOGETHER:?}, the last: {}", repeats.last);
            }
        }
    }

    /// The last deaths, the latest first.
    pub(super) fn kept(&self) -> Vec<Report> {
        self.kept.iter().rev().cloned().collect()
    }

    /// Tells what has been kept from what was.
    pub(super) fn latest(&self) -> Option<(&str, i32)> {
        self.kept.back().map(|report| (report.time.as_str(), report.pid))
    }

    /// Goes on with what another program has kept, as [`Reporters::kept`] gave it.
    pub(super) fn keep(&mut self, kept: Vec<Report>) {
        self.kept = kept.into_iter().rev().collect();
    }

    /// Whether `pid` was one of them.
    pub(super) fn ended(&mut self, pid: Pid, config: &Master) -> bool {
        for desk in [&mut self.reports, &mut self.hooks] {
            if desk.busy == Some(pid) {
                desk.busy = None;
                desk.begin_next(config, &self.program);
                return true;
            }
        }
        false
    }
}

/// In the child.
fn do_and_exit(work: Work, config: &Master, program: &Program) -> ! {
    phalanx_shared::sys::title::set("phalanx: crash report");
    phalanx_shared::state::begin_process();
    // The fork copied the master's table: a listener kept open here would take connections that nobody accepts.
    let _only_slower = phalanx_shared::sys::table::close_all_but(&[]);
    // What it reads a worker has made: it ends, whatever that is, and the next one's turn comes.
    let mut blocked = SigSet::all();
    blocked.remove(Signal::SIGALRM);
    let _as_before = process::reset_dispositions(&[]).and_then(|()| process::set_signal_mask(&blocked));
    nix::unistd::alarm::set(LONGEST);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match work {
        Work::Write(report) => write(*report, config),
        Work::Show(stack) => show(stack),
        Work::Tell(report) => tell(*report, program),
    }));
    process::exit_now(done.map_or(1, |()| 0))
}

fn write(mut report: Report, config: &Master) {
    report.resolve();
    match report.store(config) {
        Ok(Some(path)) => info!("crash report {}", path.display()),
        // Nowhere to keep it: the log is better than nothing.
        Ok(None) => report.backtrace.iter().for_each(|frame| info!("backtrace of pid {}: {frame}", report.pid)),
        Err(error) => warn!("write a crash report: {error}"),
    }
}

fn tell(mut report: Report, program: &Program) {
    report.resolve();
    match program.identity.assume() {
        Ok(()) => program.hooks.crashed(&report.as_crash()),
        Err(error) => warn!("tell the program of a death: {error}"),
    }
}

fn show(Stack { slot, pid, thread }: Stack) {
    // Who works is not to be held up by who looks on.
    let _at_full_speed = rustix::process::nice(19);
    let who = match thread == pid {
        true => format!("worker {} (pid {pid})", slot.0),
        false => format!("thread {thread} of worker {} (pid {pid})", slot.0),
    };
    match stack::of_thread(pid, thread) {
        Ok(frames) => verdict::names(&frames).iter().for_each(|frame| warn!("{who} is in {frame}")),
        Err(error) => warn!("the stack of {who} cannot be shown: {error}"),
    }
}
