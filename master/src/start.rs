//! From a configuration to a running service, in the foreground or as a daemon.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::SigSet;
use nix::unistd::{getpgrp, getpid};
use phalanx_shared::config::{Config, Count};
use phalanx_shared::state::heritage;
use phalanx_shared::sys::{process, table, title};
use phalanx_worker::app::Application;

use crate::cli::{BAD_USAGE, DONE, FAILED, complain, say};
use crate::control::server::Server;
use crate::daemonize::{Herald, Outcome, Side, daemonize, leave_terminal};
use crate::listeners::{self, Bound, Listeners};
use crate::log_files::LogFiles;
use crate::pid_file::PidFile;
use crate::privileges::Identity;
use crate::signals::Signals;
use crate::supervisor::{Premises, Supervisor};
use crate::upgrade::origin::Origin;
use crate::upgrade::state::{Fixed, State};
use crate::upgrade::{self, Role, fault, way_back};

/// Of a program that runs beside what an upgrade executed.
const NOT_IN_PLACE: &str =
    "this program was not executed in the master's place\n  hint: a script that executes it does so by `exec`";

/// What the command line asks for.
pub(crate) struct Wanted<'a> {
    /// The configuration, or what is wrong with it.
    pub(crate) config: Result<Config, String>,
    /// Where it was read from; none: nowhere.
    pub(crate) file: Option<&'a Path>,
    /// What the program brings.
    pub(crate) application: Application,
    /// Go to the background when every worker is ready.
    pub(crate) daemon: bool,
}

/// What the program is.
struct Own {
    origin: Origin,
    application: Application,
}

/// Starts the service, or does what an upgrade executed this program for. Returns the exit code when the service, or the
/// program that starts a daemon, is through.
pub(crate) fn begin(wanted: Wanted<'_>) -> u8 {
    let kept = table::own_descriptors().map(keep).map_err(|error| format!("read /proc/self/fd: {error}"));
    let role = match kept.and_then(|()| check_single_threaded()).and_then(|()| Role::of_this_program()) {
        Ok(role) => role,
        Err(why) => return complain(FAILED, &why),
    };
    let own = Own { origin: Origin::of_this_process(), application: wanted.application };
    let file = wanted.file.map(std::path::absolute).transpose();
    let (config, file) = match file {
        Ok(file) => (wanted.config, file),
        Err(error) => (Err(format!("the configuration file: {error}")), None),
    };
    match role {
        Role::TakeOver { state, returned } => take_over(config, file, wanted.daemon, own, (&state, returned)),
        Role::Rehearse { state, outcome } => rehearse(config, own, &state, outcome),
        Role::Start => match (config, wanted.daemon) {
            (Err(why), _) => complain(BAD_USAGE, &why),
            (Ok(config), true) => daemon(config, file, own),
            (Ok(config), false) => serve(config, file, Herald::silent(), own),
        },
    }
}

/// Starts a daemon and waits until every worker is ready, or for the reason why not.
fn daemon(config: Config, file: Option<PathBuf>, own: Own) -> u8 {
    match daemonize() {
        Err(error) => complain(FAILED, &format!("become a daemon: {error}")),
        Ok(Side::Starter(Outcome::Ready(text))) => {
            say(&text);
            DONE
        }
        Ok(Side::Starter(Outcome::Failed(why))) => complain(FAILED, &format!("not started: {why}")),
        Ok(Side::Daemon(herald)) => process::exit_now(serve(config, file, herald, own).into()),
    }
}

/// Has the program prepare what its workers are to share. What it leaves open stays so in all of them.
fn prepare(application: &Application) -> Result<(), String> {
    let look = || table::open_descriptors().map_err(|error| format!("read /proc/self/fd: {error}"));
    let before = look()?;
    application.hooks.start()?;
    keep(look()?.into_iter().filter(|number| !before.contains(number)));
    check_single_threaded()
}

/// What the program has opened is open in all its processes; the memory of what they share needs no descriptor there.
fn keep(numbers: impl IntoIterator<Item = RawFd>) {
    let memory: Vec<RawFd> = heritage::estate().memory().collect();
    table::keep(numbers.into_iter().filter(|number| !memory.contains(number)));
}

/// A raw clone is sound in a single-threaded process only.
fn check_single_threaded() -> Result<(), String> {
    let names = process::thread_names().map_err(|error| format!("read /proc/self/task: {error}"))?;
    if names.len() <= 1 {
        return Ok(());
    }
    Err(format!(
        "cannot start: this process already runs {} other threads ({})\n  hint: call phalanx before anything that starts a thread",
        names.len() - 1,
        names[1..].join(", ")
    ))
}

fn serve(config: Config, file: Option<PathBuf>, mut herald: Herald, own: Own) -> u8 {
    take_name("master");
    let daemon = herald.is_awaited();
    match open(config, file, own) {
        Ok((premises, first_slot)) => {
            if daemon {
                leave_terminal();
            }
            Supervisor::new(premises, first_slot, herald).run()
        }
        Err(why) if daemon => {
            herald.failed(&why);
            FAILED
        }
        Err(why) => complain(FAILED, &why),
    }
}

fn take_name(name: &str) {
    title::prepare();
    title::set(&format!("phalanx: {name}"));
    phalanx_shared::log::set_name(name);
}

/// Takes what the service needs, in the order in which a refusal costs least. Returns the sockets of the first slot too, which
/// finding the ports has bound.
fn open(config: Config, file: Option<PathBuf>, own: Own) -> Result<(Premises, Vec<Bound>), String> {
    let Own { origin, application } = own;
    prepare(&application)?;
    let identity = Identity::of(&config.master)?;
    let pid_file = match &config.master.pid_file {
        Some(path) => Some(PidFile::take(path)?),
        None => None,
    };
    let control = config.master.control_socket.as_deref().map(Server::bind).transpose()?;
    raise_descriptor_limit();
    let free = match pid_file.as_ref().and_then(PidFile::left_by) {
        Some(pid) => listeners::wait_until_free(&config.listen, pid),
        None => listeners::check_free(&config.listen),
    };
    let opened = free.and_then(|()| {
        let (listeners, first_slot) = Listeners::prepare(&config.listen)?;
        let logs = LogFiles::open(&config.log)?;
        Ok((listeners, first_slot, logs, take_up_signals()?))
    });
    let mut pid_file = pid_file;
    let opened = opened.and_then(|opened| pid_file.as_mut().map_or(Ok(()), PidFile::write).map(|()| opened));
    let (listeners, first_slot, logs, signals) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            if let Some(control) = &control {
                control.remove();
            }
            // What a dead master left tells the next start what this one was told.
            if let Some(pid_file) = pid_file.as_ref().filter(|pid_file| pid_file.left_by().is_none()) {
                pid_file.remove();
            }
            return Err(why);
        }
    };
    let premises =
        Premises { config, file, identity, pid_file, control, listeners, logs, signals, origin, application };
    Ok((premises, first_slot))
}

fn take_up_signals() -> Result<Signals, String> {
    Signals::take_up().map_err(|error| format!("take up signals: {error}"))
}

/// Shows that this program could take over: it knows what it would be handed, and one worker becomes ready.
fn rehearse(config: Result<Config, String>, own: Own, state: &OwnedFd, outcome: OwnedFd) -> u8 {
    let Own { origin, application } = own;
    take_name("rehearsal");
    let mut herald = Herald::over(outcome);
    let opened = config.and_then(|mut config| {
        State::read(state)?.fixed.check(&Fixed::of(&config))?;
        // Whoever executes a rehearsal makes it the first of its group.
        if getpgrp() != getpid() {
            return Err(NOT_IN_PLACE.to_owned());
        }
        prepare(&application)?;
        origin.program().ok_or("the program's own file cannot be read, as it has to be for a return to it")?;
        config.workers.count = Count::Fixed(1);
        let identity = Identity::of(&config.master)?;
        raise_descriptor_limit();
        let logs = LogFiles::open(&config.log)?;
        let (pid_file, control, listeners) = (None, None, Listeners::none());
        let signals = take_up_signals()?;
        Ok(Premises { config, file: None, identity, pid_file, control, listeners, logs, signals, origin, application })
    });
    match opened {
        Ok(premises) => Supervisor::new(premises, Vec::new(), herald).rehearse(),
        Err(why) => {
            herald.failed(&why);
            FAILED
        }
    }
}

/// Goes on with the service that the program before this one has written down.
fn take_over(
    config: Result<Config, String>,
    file: Option<PathBuf>,
    daemon: bool,
    Own { origin, application }: Own,
    (state, returned): (&OwnedFd, Option<String>),
) -> u8 {
    take_name("master");
    way_back::forget();
    let mut state = match State::read(state) {
        Ok(state) if state.shared.is_for_this_process() => state,
        Ok(_) => return complain(FAILED, NOT_IN_PLACE),
        Err(why) => return complain(FAILED, &why),
    };
    state.rolled_back = returned.or(state.rolled_back);
    if state.rolled_back.is_none() {
        way_back::prepare(&origin, &state);
    }
    fault::pass("taking-over");
    if daemon {
        let _stays_where_it_is = std::env::set_current_dir("/");
    }
    let config = match &state.rolled_back {
        // What the file says by now may be what the other program needed.
        Some(_) => serde_json::from_value(state.config.clone()).map_err(|error| error.to_string()),
        None => config,
    };
    // Nothing that can fail comes after the first descriptor that is taken: it could not be handed back.
    let ready = config.and_then(|config| {
        state.fixed.check(&Fixed::of(&config))?;
        prepare(&application)?;
        let identity = Identity::of(&config.master)?;
        let logs = LogFiles::open(&config.log)?;
        Ok((config, identity, logs, take_up_signals()?))
    });
    let (mut config, identity, logs, signals) = match ready {
        Ok(ready) => ready,
        Err(why) => return go_back(state, origin, &why),
    };
    let inherit = move || -> Result<Supervisor, String> {
        let pid_file = match (&config.master.pid_file, state.pid_file) {
            (Some(path), Some(fd)) => {
                let inherited = upgrade::inherited(fd).and_then(|fd| PidFile::inherit(path, fd));
                Some(way_back::or_return(inherited)?)
            }
            _ => None,
        };
        let control = match (&config.master.control_socket, &state.control) {
            (Some(path), Some(control)) => Some(Server::inherit(path, control)?),
            _ => None,
        };
        let listeners = Listeners::inherit(&state.listeners)?;
        way_back::or_return(listeners.assign(&mut config.listen, Default::default, usize::MAX))?;
        let premises =
            Premises { config, file, identity, pid_file, control, listeners, logs, signals, origin, application };
        Supervisor::inherit(premises, &state)
    };
    match inherit() {
        Ok(supervisor) => {
            // Blocked since before this program was executed, so that none met it unprepared.
            let _unblocked = process::set_signal_mask(&SigSet::empty());
            supervisor.run()
        }
        Err(why) => complain(FAILED, &why),
    }
}

/// Executes the program before this one again.
fn go_back(mut state: State, mut origin: Origin, why: &str) -> u8 {
    if state.rolled_back.is_some() {
        return complain(FAILED, &format!("the program that was returned to cannot go on: {why}"));
    }
    state.turn_back(why);
    origin.set_manner(&state.manner);
    let program = table::borrow(state.program);
    let error = match state.write().map_err(|error| error.to_string()) {
        Ok(memory) => {
            // The alarm would go on.
            way_back::forget();
            let passed = upgrade::pass_on(&memory, true);
            let Err(error) = passed.and_then(|()| origin.execute_to_take_over(&program, memory.as_raw_fd()));
            error.to_string()
        }
        Err(error) => error,
    };
    complain(FAILED, &format!("{why}; and the program before this one cannot be executed: {error}"))
}

/// A slot's connections are descriptors: as many as the system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _as_before = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
