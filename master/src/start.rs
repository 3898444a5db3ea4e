//! From a configuration to a running service, in the foreground or as a daemon.

use std::path::Path;

use phalanx_shared::config::Config;
use phalanx_shared::sys::{process, title};

use crate::cli::{DONE, FAILED, complain, say};
use crate::control::server::Server;
use crate::daemonize::{Herald, Outcome, Side, daemonize, leave_terminal};
use crate::listeners;
use crate::log_files::LogFiles;
use crate::pid_file::PidFile;
use crate::privileges::Identity;
use crate::signals::Signals;
use crate::supervisor::{Premises, Supervisor};

/// Runs in the foreground until stopped; returns the exit code.
pub(crate) fn foreground(config: Config, file: Option<&Path>) -> u8 {
    if let Err(why) = check_single_threaded() {
        return complain(FAILED, &why);
    }
    serve(config, file, Herald::silent())
}

/// Starts a daemon and waits until every worker is ready, or for the reason why not.
pub(crate) fn daemon(config: Config, file: &Path) -> u8 {
    if let Err(why) = check_single_threaded() {
        return complain(FAILED, &why);
    }
    let file = match std::path::absolute(file) {
        Ok(file) => file,
        Err(error) => return complain(FAILED, &format!("{}: {error}", file.display())),
    };
    match daemonize() {
        Err(error) => complain(FAILED, &format!("become a daemon: {error}")),
        Ok(Side::Starter(Outcome::Ready(text))) => {
            say(&text);
            DONE
        }
        Ok(Side::Starter(Outcome::Failed(why))) => complain(FAILED, &format!("not started: {why}")),
        Ok(Side::Daemon(herald)) => process::exit_now(serve(config, Some(&file), herald).into()),
    }
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

fn serve(config: Config, file: Option<&Path>, mut herald: Herald) -> u8 {
    title::prepare();
    title::set("phalanx: master");
    phalanx_shared::log::set_name("master");
    let daemon = herald.is_awaited();
    match open(config, file) {
        Ok(premises) => {
            if daemon {
                leave_terminal();
            }
            Supervisor::new(premises, herald).run()
        }
        Err(why) if daemon => {
            herald.failed(&why);
            FAILED
        }
        Err(why) => complain(FAILED, &why),
    }
}

/// Takes what the service needs, in the order in which a refusal costs least.
fn open(config: Config, file: Option<&Path>) -> Result<Premises, String> {
    let identity = Identity::of(&config.master)?;
    let pid_file = match &config.master.pid_file {
        Some(path) => Some(PidFile::take(path)?),
        None => None,
    };
    let control = config.master.control_socket.as_deref().map(Server::bind).transpose()?;
    raise_descriptor_limit();
    let opened = listeners::check_free(&config.listen).and_then(|()| {
        let (listeners, first_slot) = listeners::Listeners::prepare(&config.listen)?;
        let logs = LogFiles::open(&config.log)?;
        let signals = Signals::take_up().map_err(|error| format!("take up signals: {error}"))?;
        Ok((listeners, first_slot, logs, signals))
    });
    let mut pid_file = pid_file;
    let opened = opened.and_then(|opened| pid_file.as_mut().map_or(Ok(()), PidFile::write).map(|()| opened));
    let (listeners, first_slot, logs, signals) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            if let Some(control) = &control {
                control.remove();
            }
            if let Some(pid_file) = &pid_file {
                pid_file.remove();
            }
            return Err(why);
        }
    };
    Ok(Premises {
        config,
        file: file.map(Path::to_owned),
        identity,
        pid_file,
        control,
        listeners,
        first_slot,
        logs,
        signals,
    })
}

/// A slot's connections are descriptors: as many as the system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _as_before = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
