//! A worker's first steps: what it drops, resets and takes over between its clone and its loop.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use phalanx_shared::clients::Clients;
use phalanx_shared::config::{Cache, Config, Limits, Listen, Poller, SELECT_CONNECTIONS, SELECT_DESCRIPTORS, Workers};
use phalanx_shared::ipc::channel::{Doorbell, WorkerEnd};
use phalanx_shared::ipc::keeper::Birth;
use phalanx_shared::ipc::{SlotId, Word};
use phalanx_shared::ledger::{LANES, Ledger};
use phalanx_shared::log;
use phalanx_shared::quarantine::Quarantine;
use phalanx_shared::sys::{crash_signal, process, table, title};
use phalanx_shared::{error, warn};
use rustix::process::{PTracer, set_ptracer};

use crate::access_log::AccessLog;
use crate::app::{Application, WorkerInfo};
use crate::conn::{Connection, Context};
use crate::crash_point::{self, Point};
use crate::duty::Duty;
use crate::isolator::Isolator;
use crate::model::Model;
use crate::nudge::Nudges;
use crate::open_file::OpenFiles;
use crate::rescue::fetch::Formers;
use crate::rescue::strangers::Strangers;
use crate::service::Setting;
use crate::service::router::Router;
use crate::{in_handler, model, rescue};

/// What every worker of a slot finds in its memory and table: made by the master, kept by the keeper. Never dropped in a
/// worker: the descriptors belong to the slot.
pub struct Inheritance {
    /// The slot.
    pub slot: SlotId,
    /// Its ledger.
    pub ledger: Ledger,
    /// The numbers of its listening sockets, by seat. At that of an empty seat stands no socket; the master fills and empties
    /// seats while workers live.
    pub seats: Vec<RawFd>,
    /// By seat: the numbers at which the master puts another slot's TCP sockets when this one is to accept from them.
    pub assisting: Vec<RawFd>,
    /// The workers' ends of its lanes.
    pub lanes: Vec<WorkerEnd>,
    /// Rung by a predecessor that has given connections.
    pub handover: Doorbell,
    /// This end of the line over which a later table of the slot fetches connections out of this one.
    pub giving: RawFd,
    /// Tables that the slot had before and that still hold connections.
    pub formers: Vec<Former>,
    /// The installed configurations.
    pub blueprints: [RawFd; 2],
    /// Where access log lines go.
    pub access_log: Option<RawFd>,
    /// What the service knows of its clients.
    pub clients: Clients,
    /// Requests that are not run.
    pub quarantine: Quarantine,
    /// Hangs up when the master dies.
    pub lifeline: RawFd,
    /// Every descriptor that is none of a worker's own.
    pub infrastructure: Vec<RawFd>,
    /// What the program brings.
    pub application: Application,
}

/// A table that the slot had before this one: its keeper died, or its program was replaced.
pub struct Former {
    /// Tells it from other former tables of the slot.
    pub number: u32,
    /// The ledger of the connections in it.
    pub ledger: Ledger,
    /// The line to whoever has it.
    pub line: RawFd,
    /// Rung by a worker there that has given connections.
    pub bell: RawFd,
    /// Nothing is left there, and its ledger may not be touched any more.
    pub gone: Cell<bool>,
}

impl Former {
    /// Lets go of the ledger, in this process and those cloned from it.
    pub fn forget(&self) {
        if !self.gone.replace(true)
            && let Err(error) = self.ledger.seal_off()
        {
            warn!("let go of a former ledger: {error}");
        }
    }
}

/// Signals that mean something to the master and nothing to a worker; a terminal sends some to the whole group.
const IGNORED: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGPIPE,
];

/// Runs a worker. Called in the process just cloned, with every signal blocked; does not return.
pub fn enter(inheritance: &'static Inheritance, birth: &Birth) -> ! {
    title::set(&format!("phalanx: worker {} (incarnation {})", inheritance.slot.0, birth.incarnation.0));
    log::set_name(&format!("worker {}", inheritance.slot.0));
    phalanx_shared::state::begin_process();
    let served = boot(inheritance, birth).and_then(|booted| (booted.model.serve)(booted));
    let code = match served {
        Ok(code) => code,
        Err(why) => {
            error!("cannot boot: {why}");
            let word = Word::Failed(why.chars().take(1000).collect());
            let said = phalanx_shared::ipc::ToMaster { from: birth.incarnation, word };
            let _master_gone = inheritance.lanes[birth.lane].say(said);
            1
        }
    };
    process::exit_now(code)
}

/// A worker that has taken over what there was to take over, before its model begins to serve.
pub(crate) struct Booted {
    pub(crate) model: &'static Model,
    pub(crate) cx: Context,
    pub(crate) duty: Duty,
    pub(crate) formers: Formers,
    pub(crate) strangers: Strangers,
    pub(crate) inheritance: &'static Inheritance,
    pub(crate) workers: Workers,
    /// Connections of the dead, each to go on where it stood.
    pub(crate) connections: Vec<Connection>,
    /// Nobody else serves: there is nothing to wait for.
    pub(crate) serve_at_once: bool,
}

fn boot(inheritance: &'static Inheritance, birth: &Birth) -> Result<Booted, String> {
    let ledger = &inheritance.ledger;
    let lane = ledger.lane(birth.lane);
    in_handler::install_panic_hook();
    in_handler::own_connections();
    process::reset_dispositions(&IGNORED).map_err(|error| format!("reset signal dispositions: {error}"))?;
    lane.orders().forget();
    for word in lane.last_words() {
        word.store(0, std::sync::atomic::Ordering::Release);
    }
    crash_signal::install(lane.last_words()).map_err(|error| format!("install the crash handler: {error}"))?;
    // Where only ancestors may look at a process (Yama) and the master is one of those who need leave, its children get it.
    let master = rustix::process::getppid().filter(|master| !may_trace_all(master.as_raw_nonzero().get()));
    let _no_yama = master.map(|master| set_ptracer(PTracer::ProcessID(master)));
    // From here on a fault can speak. SIGTERM waits for its descriptor.
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    process::set_signal_mask(&term).map_err(|error| format!("set the signal mask: {error}"))?;
    crash_point::arm(ledger);
    crash_point::pass(Point::Booting);

    let alone = birth.alone;
    // Orphans come as numbers of the master's; its own lane is clean unless it is one of them.
    let orphans = || birth.orphans.iter().copied().filter(|lane| *lane < LANES && *lane != birth.lane);
    let dead_lanes: Vec<usize> = if alone { (0..LANES).collect() } else { orphans().chain([birth.lane]).collect() };
    rescue::settle(ledger, dead_lanes.iter().copied());
    dead_lanes.iter().for_each(|lane| rescue::ring::settle(ledger, *lane, None));
    let formers = Formers::new(&inheritance.formers, birth.incarnation, &birth.alive);
    formers.finish_moves(ledger);
    let config = read_blueprint(inheritance.blueprints[birth.blueprint & 1])?;
    if config.workers.poller == Poller::Select {
        bound_descriptors(SELECT_DESCRIPTORS);
    }
    // The sweep comes before the router: what that opens is this worker's own.
    let mut swept = Vec::new();
    let mut cx = context(inheritance, birth, &config)?;
    let strangers = Strangers::look(&cx, inheritance, &birth.neighbours);
    if alone {
        swept = rescue::sweep::sweep(&mut cx, inheritance);
    } else {
        for lane in dead_lanes {
            rescue::sweep::close_noted(&cx, lane);
            swept.extend(rescue::sweep::unrecorded(&mut cx, lane, inheritance));
        }
    }
    cx.router = Arc::new(Router::new(&config, &cx.setting).map_err(|error| with_cause(&error))?);
    // Before records are believed that may name them as a dead worker's.
    cx.lane.notes().set(&cx.router.descriptors());
    cx.pool.hang_bell().map_err(|error| format!("eventfd: {error}"))?;
    let chosen = Model::named(&config.workers.model.0)
        .ok_or_else(|| format!("this program has no model {:?}", config.workers.model.0))?;
    let needs = cx.router.needs();
    if needs.isolator {
        // Before the first thread.
        let isolator = Isolator::start(inheritance.slot, &cx.router, ledger, cx.setting.open_files.clone());
        cx.isolator = Some(isolator.map_err(|error| format!("fork the isolator: {error}"))?);
    }
    (chosen.equip)(&mut cx, &config.workers)?;
    if needs.threads && cx.handlers.is_none() && !cx.blocking {
        cx.handlers = Some(model::reactor_pool::handlers(&config.workers)?);
    }
    if needs.streams && !cx.blocking {
        cx.nudges = Some(Nudges::new().map_err(|error| format!("eventfd: {error}"))?);
    }
    let runtime = cx.tasks.as_ref().map(|tasks| tasks.handle().clone());
    let in_runtime = runtime.as_ref().map(tokio::runtime::Handle::enter);
    inheritance.application.hooks.forked(&WorkerInfo { slot: inheritance.slot.0, incarnation: birth.incarnation.0 })?;
    drop(in_runtime);
    if config.workers.model.0 == "process" {
        // It clones processes, and a clone has one thread only.
        let threads = process::thread_names().map_err(|error| format!("read /proc/self/task: {error}"))?;
        if threads.len() > 1 {
            return Err(format!("under the model process after_fork may start no thread: {}", threads[1..].join(", ")));
        }
    }
    let mut connections: Vec<Connection> = rescue::take_over(&mut cx, &birth.alive, alone);
    connections.append(&mut swept);

    let duty = Duty::new(inheritance, birth.incarnation, birth.lane).map_err(|error| format!("signalfd: {error}"))?;
    let (workers, serve_at_once) = (config.workers, birth.serve_at_once);
    Ok(Booted { model: chosen, cx, duty, formers, strangers, inheritance, workers, connections, serve_at_once })
}

fn context(inheritance: &'static Inheritance, birth: &Birth, config: &Config) -> Result<Context, String> {
    let ledger = &inheritance.ledger;
    let open_files = OpenFiles::new(ledger.table(), birth.lane, birth.incarnation);
    let (limits, cache) = within_descriptors(config, ledger.descriptors());
    let setting = Setting::new(open_files, &cache).with_quarantine(inheritance.quarantine);
    let setting = setting.with_application(inheritance.application.clone());
    let bare = Context::new(ledger, birth.lane, birth.incarnation, config, inheritance.clients, setting);
    Ok(Context {
        infrastructure: &inheritance.infrastructure,
        listens: listens(config).into(),
        limits,
        access_log: AccessLog::new(inheritance.access_log, config.log.format),
        ..bare.map_err(|error| with_cause(&error))?
    })
}

/// Descriptors that connections leave to the slot's own needs and to files, where there are many.
const SPARE_DESCRIPTORS: usize = 512;

/// The bounds as configured, or what a table of so many descriptors has room for: with none left but for connections, no file
/// could be opened.
fn within_descriptors(config: &Config, descriptors: usize) -> (Limits, Cache) {
    let (mut limits, mut cache) = (config.limits.clone(), config.cache.clone());
    // A quarter, and those that are being turned away.
    let mut spare = (descriptors / 4 + 64).min(SPARE_DESCRIPTORS);
    let mut descriptors = descriptors;
    if config.workers.poller == Poller::Select {
        descriptors = descriptors.min(SELECT_DESCRIPTORS);
        spare = spare.min(SELECT_DESCRIPTORS - SELECT_CONNECTIONS as usize);
    }
    let room = descriptors.saturating_sub(spare).max(1);
    limits.connections = limits.connections.min(u32::try_from(room).unwrap_or(u32::MAX));
    let files = u32::try_from(descriptors / 16).unwrap_or(u32::MAX).max(1);
    cache.open_files = cache.open_files.min(files);
    (limits, cache)
}

/// Has no descriptor of this process come beyond `most`: who would be accepted there is turned away as when there are none left.
fn bound_descriptors(most: usize) {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(most as u64, |(_, hard)| hard);
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard.min(most as u64), hard) {
        warn!("bound the number of descriptors: {error}");
    }
}

/// By seat.
fn listens(config: &Config) -> Vec<Option<Listen>> {
    let mut listens = Vec::new();
    for listen in &config.listen {
        let seat = usize::from(listen.seat);
        listens.resize(listens.len().max(seat + 1), None);
        listens[seat] = Some(listen.clone());
    }
    listens
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A configuration larger than this is no configuration.
const MAX_BLUEPRINT: usize = 16 * 1024 * 1024;

fn read_blueprint(fd: RawFd) -> Result<Config, String> {
    let fail = |error: &dyn std::fmt::Display| format!("read the configuration handed over by the master: {error}");
    let size = nix::sys::stat::fstat(table::borrow(fd)).map_err(|error| fail(&error))?.st_size as usize;
    let mut bytes = vec![0; size.min(MAX_BLUEPRINT)];
    let mut at = 0;
    while at < bytes.len() {
        match nix::sys::uio::pread(table::borrow(fd), &mut bytes[at..], at as i64) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(error) => return Err(fail(&error)),
        }
    }
    Config::from_blueprint(&bytes[..at]).map_err(|error| fail(&error))
}

/// Whether a process has CAP_SYS_PTRACE (capabilities(7)), by its status in /proc.
fn may_trace_all(pid: i32) -> bool {
    const SYS_PTRACE: u32 = 19;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> SYS_PTRACE & 1 == 1)
}
