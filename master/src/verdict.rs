//! Why a worker died, and the crash report: what the ledger and the wait status tell, written down before a successor writes
//! over it. The report itself is made by a short-lived child, so that naming functions costs the master nothing.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::signal::Signal;
use phalanx_shared::clock::since_boot;
use phalanx_shared::config::Master;
use phalanx_shared::ipc::{Incarnation, SlotId};
use phalanx_shared::ledger::record::{Owner, Peer, Record};
use phalanx_shared::ledger::{BUFFER_BYTES, Ledger};
use phalanx_shared::log;
use phalanx_shared::sys::crash_signal::{DETAIL, FIRST_FRAME, FRAMES, OWN_FAULT, SIGNAL, Suspect};
use phalanx_worker::app::Crash;
use serde::{Deserialize, Serialize};

/// How a process ended, as wait tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Killed(i32),
    /// Another program, which has died since, heard of it.
    Unseen,
}

/// Why a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) ending: Ending,
    /// It did it to itself: what its handler ran is to blame.
    pub(crate) own_fault: bool,
    /// The kernel killed it for want of memory, or probably did.
    pub(crate) out_of_memory: Option<OutOfMemory>,
}

/// How sure it is that memory was the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutOfMemory {
    /// The kernel has counted a kill in the service's own group.
    Certain,
    /// It has counted one somewhere.
    Probable,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ending::Exited(code) => write!(f, "exit code {code}"),
            Ending::Unseen => write!(f, "unseen"),
            Ending::Killed(number) => match Signal::try_from(number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.out_of_memory {
            Some(OutOfMemory::Certain) => return f.write_str("killed by the kernel: out of memory"),
            Some(OutOfMemory::Probable) => return f.write_str("killed, probably out of memory"),
            None => {}
        }
        match (self.ending, self.own_fault) {
            (Ending::Killed(_), true) => write!(f, "{} by its own fault", self.ending),
            (Ending::Killed(_), false) => write!(f, "{} from outside", self.ending),
            (Ending::Exited(_) | Ending::Unseen, _) => write!(f, "{}", self.ending),
        }
    }
}

/// Tells the cause from the wait status and the last words.
pub(crate) fn cause(ledger: &Ledger, lane: usize, ending: Ending) -> Cause {
    let word = |index: usize| ledger.lane(lane).last_words()[index].load(Ordering::Acquire);
    let own_fault = match ending {
        Ending::Killed(signal) => word(SIGNAL) == signal as u64 && word(OWN_FAULT) == 1,
        Ending::Exited(_) => true,
        Ending::Unseen => false,
    };
    Cause { ending, own_fault, out_of_memory: None }
}

/// A request that was being worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InFlight {
    /// The socket's cookie and the request's place in its stream: no other request of this boot has both.
    pub(crate) id: String,
    /// Its first line, as far as it is there; printable.
    pub(crate) request: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) peer: String,
    pub(crate) phase: Cow<'static, str>,
    /// How long the worker had been at it, of the suspect; since the second in which its response began, of others.
    pub(crate) age_ms: Option<u64>,
}

/// What a crash report holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) time: String,
    pub(crate) slot: u32,
    pub(crate) pid: i32,
    pub(crate) incarnation: u32,
    pub(crate) cause: String,
    pub(crate) address: Option<String>,
    /// How long the worker had lived.
    pub(crate) uptime_ms: u64,
    /// Bytes of its own memory when it was last asked.
    pub(crate) private_bytes: u64,
    /// Descriptors that it had on record: connections and files.
    pub(crate) descriptors: usize,
    pub(crate) suspect: Option<InFlight>,
    /// A thread of the pool died, not the loop.
    #[serde(skip)]
    pub(crate) on_a_thread: bool,
    pub(crate) in_flight: Vec<InFlight>,
    pub(crate) backtrace: Vec<String>,
    /// Addresses of the backtrace, to be named.
    #[serde(skip)]
    pub(crate) frames: Vec<u64>,
}

/// In-flight requests that a report lists.
const MAX_LISTED: usize = 64;

/// Who died, and what the master knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obituary {
    pub(crate) pid: i32,
    pub(crate) incarnation: Incarnation,
    pub(crate) cause: String,
    /// It did it to itself, or was killed for what it did.
    pub(crate) serious: bool,
    pub(crate) uptime: Duration,
    pub(crate) private_bytes: u64,
}

/// Reads the ledger for a report on a death.
pub(crate) fn report(ledger: &Ledger, slot: SlotId, lane: usize, dead: &Obituary) -> Report {
    let incarnation = dead.incarnation;
    let words = ledger.lane(lane).last_words();
    let word = |index: usize| words[index].load(Ordering::Acquire);
    let count = (word(FRAMES) as usize).min(words.len() - FIRST_FRAME);
    let (accused, on_a_thread) = (ledger.lane(lane).accused(), ledger.lane(lane).suspect() != Suspect::OfTheLoop);
    let owned = |record: &Record| record.owner() == Some(Owner::Worker(incarnation));
    let suspect = accused.and_then(|fd| ledger.record(fd)).filter(owned).and_then(|record| in_flight(ledger, &record));
    // What waits for a thread is off the record, as if it were still to be read.
    let age = since_boot().checked_sub(ledger.lane(lane).turn_began()).map(|age| age.as_millis() as u64);
    let suspect = suspect.map(|suspect| match on_a_thread {
        true => InFlight { phase: "pool".into(), ..suspect },
        false => InFlight { age_ms: age, ..suspect },
    });
    let others = ledger.recorded().filter(|(fd, record)| owned(record) && Some(*fd) != accused);
    Report {
        time: log::timestamp(),
        slot: slot.0,
        pid: dead.pid,
        incarnation: incarnation.0,
        cause: dead.cause.clone(),
        uptime_ms: u64::try_from(dead.uptime.as_millis()).unwrap_or(u64::MAX),
        private_bytes: dead.private_bytes,
        descriptors: ledger.recorded().count(),
        address: (word(SIGNAL) != 0 && word(OWN_FAULT) == 1).then(|| format!("{:#x}", word(DETAIL))),
        suspect,
        on_a_thread,
        in_flight: others.filter_map(|(_, record)| in_flight(ledger, &record)).take(MAX_LISTED).collect(),
        backtrace: Vec::new(),
        frames: (0..count).map(|index| word(FIRST_FRAME + index)).collect(),
    }
}

/// What `record` was busy with; none when it was idle.
pub(crate) fn in_flight(ledger: &Ledger, record: &Record) -> Option<InFlight> {
    let buffer = ledger.buffer(record.buffer()?)?;
    let state = record.state();
    let entry =
        (state.first < state.pending).then(|| ledger.pending(&buffer).get(usize::from(state.pending) - 1)).flatten();
    let phase = match entry {
        None => "reading",
        Some(entry) if entry.response_end == 0 => "handler",
        Some(entry) if record.sent() <= entry.response_start => "answered, nothing sent",
        Some(_) => "sending",
    };
    let from = record.start().checked_sub(record.base())? as usize;
    let to = record.consumed().checked_sub(record.base())? as usize;
    let bytes = buffer.bytes().get(from..to.min(BUFFER_BYTES)).unwrap_or(&[]);
    let request = log::first_line(bytes);
    let mut words = request.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let id = format!("{:x}-{}", record.cookie(), record.start());
    let began = entry.filter(|entry| entry.date > 0).map(|entry| UNIX_EPOCH + Duration::from_secs(entry.date));
    let age_ms = began.and_then(|began| began.elapsed().ok()).map(|age| age.as_millis() as u64);
    Some(InFlight { id, request, method, path, peer: peer_text(record.peer()), phase: phase.into(), age_ms })
}

fn peer_text(peer: Peer) -> String {
    match peer {
        Peer::Ip(address) => address.to_string(),
        Peer::Unix => "unix".to_owned(),
    }
}

/// Names the functions of a stack's frames, given as return addresses, and leaves out what is the same in every stack: the signal
/// handler before the fault, the way from `main` to the worker behind it. Slow (it reads debug information): for a child of its
/// own. The process whose stack it is has to be of this program.
pub(crate) fn names(frames: &[u64]) -> Vec<String> {
    let mut names = Vec::new();
    for &frame in frames {
        // A return address points behind its call; the handler's own frame is exact, and off by one does no harm there.
        let address = frame.saturating_sub(1) as *mut std::ffi::c_void;
        let mut text = format!("{frame:#x}");
        backtrace::resolve(address, |symbol| {
            if let Some(name) = symbol.name() {
                text = format!("{text} {name:#}");
            }
            if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
                text = format!("{text} at {}:{line}", file.display());
            }
        });
        names.push(text);
    }
    let position = |name: &str| names.iter().position(|frame| frame.contains(name));
    let (handler, enter) = (position("crash_signal::last_words"), position("phalanx_worker::enter::enter"));
    if let Some(enter) = enter {
        names.truncate(enter + 1);
    }
    // Behind the handler's own frame stands the kernel's signal trampoline.
    if let Some(handler) = handler {
        names.drain(..(handler + 2).min(names.len()));
    }
    names
}

/// Reports for people, in the order in which they come.
pub(crate) fn as_text(reports: &[Report]) -> String {
    if reports.is_empty() {
        return "no worker has died".to_owned();
    }
    reports.iter().map(Report::text).collect::<Vec<_>>().join("\n")
}

impl Report {
    /// For the program that wants to be told.
    pub(crate) fn as_crash(&self) -> Crash {
        let request = self.suspect.as_ref().map(|suspect| suspect.request.clone());
        let report = serde_json::to_string(self).unwrap_or_default();
        Crash::new(self.slot, self.pid, self.cause.clone(), request, report)
    }

    /// With the names of functions, if the whole report is in `directory` and can be read.
    pub(crate) fn with_names(self, directory: Option<&Path>) -> Report {
        let file = directory.map(|directory| directory.join(self.file_name()));
        let whole = file.and_then(|file| std::fs::read(file).ok()).and_then(|text| serde_json::from_slice(&text).ok());
        whole.unwrap_or(self)
    }

    fn text(&self) -> String {
        let describe = |request: &InFlight| {
            let age = request.age_ms.map_or(String::new(), |age| format!(", for {age} ms"));
            format!("`{}` of {} ({}{age}), id {}", request.request, request.peer, request.phase, request.id)
        };
        let mut lines = vec![
            format!(
                "{} worker {} (pid {}, incarnation {}): {}",
                self.time, self.slot, self.pid, self.incarnation, self.cause
            ),
            format!(
                "  lived {:.1} s, {:.1} MiB of its own, {} descriptors on record",
                self.uptime_ms as f64 / 1000.0,
                self.private_bytes as f64 / 1_048_576.0,
                self.descriptors
            ),
        ];
        lines.push(match &self.suspect {
            Some(suspect) => format!("  at       {}", describe(suspect)),
            None => "  at       nothing".to_owned(),
        });
        lines.extend(self.in_flight.iter().map(|request| format!("  besides  {}", describe(request))));
        lines.extend(self.backtrace.iter().map(|frame| format!("  in       {frame}")));
        lines.join("\n")
    }

    /// Names the frames' functions. Slow (it reads debug information): for a child of its own.
    pub(crate) fn resolve(&mut self) {
        self.backtrace = names(&self.frames);
    }

    /// Writes it to the configured directory and keeps that bounded: the oldest reports go.
    pub(crate) fn store(&self, config: &Master) -> std::io::Result<Option<PathBuf>> {
        let Some(directory) = &config.crash_dir else { return Ok(None) };
        std::fs::create_dir_all(directory)?;
        let stamp: String = self.time.chars().filter(char::is_ascii_alphanumeric).collect();
        let path = directory.join(self.file_name());
        // Whole or not at all: whoever watches the directory sees no half report.
        let unfinished = directory.join(format!(".crash-{stamp}-{}", self.pid));
        std::fs::write(&unfinished, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&unfinished, &path)?;
        let mut reports: Vec<PathBuf> = std::fs::read_dir(directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("crash-")))
            .collect();
        reports.sort();
        let surplus = reports.len().saturating_sub(config.crash_reports as usize);
        for old in &reports[..surplus] {
            let _removed_by_another = std::fs::remove_file(old);
        }
        Ok(Some(path))
    }

    /// Where it is stored in the directory of crash reports.
    pub(crate) fn file_name(&self) -> String {
        let stamp: String = self.time.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("crash-{stamp}-{}.json", self.pid)
    }

    /// The one line of it for the log.
    pub(crate) fn line(&self) -> String {
        let suspect = match &self.suspect {
            Some(suspect) => format!("while at `{}` of {} ({})", suspect.request, suspect.peer, suspect.phase),
            None if self.on_a_thread => "on a thread, for a client that was gone".to_owned(),
            None => "while idle".to_owned(),
        };
        format!(
            "worker {} (pid {}, incarnation {}) died: {}, {suspect}, {} other requests in flight",
            self.slot,
            self.pid,
            self.incarnation,
            self.cause,
            self.in_flight.len()
        )
    }
}
