//! What a program runs beside its workers: each a process of its own, one for the whole service, begun again when it ends.

use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use phalanx_shared::ledger::Ledger;
use phalanx_shared::sys::process::{self, Born};
use phalanx_shared::sys::{table, title};
use phalanx_shared::{error, info, log, warn};
use phalanx_worker::app::Background;

use crate::privileges::Identity;
use crate::verdict::Ending;

/// The pause before one is begun again, and what it grows to when it ends again and again.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that has run for so long has done well.
const WELL: Duration = Duration::from_secs(10);
/// How long one may take to end when the service does, and when workers are waited for meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
pub(super) const HASTE: Duration = Duration::from_millis(100);

/// The processes beside the workers.
pub(super) struct Backgrounds {
    jobs: Vec<Job>,
    /// They are to run.
    wanted: bool,
}

struct Job {
    background: Background,
    pid: Option<Pid>,
    /// When it began, or is to begin.
    at: Instant,
    pause: Duration,
}

impl Backgrounds {
    /// None of them begun.
    pub(super) fn new(backgrounds: &[Background]) -> Backgrounds {
        let at = Instant::now();
        let job = |background: &Background| Job { background: background.clone(), pid: None, at, pause: PAUSE };
        Backgrounds { jobs: backgrounds.iter().map(job).collect(), wanted: false }
    }

    /// They run from now on, if they are to.
    pub(super) fn want(&mut self, wanted: bool) {
        if self.wanted && !wanted {
            for pid in self.jobs.iter().filter_map(|job| job.pid) {
                let _gone_already = kill(pid, Signal::SIGTERM);
            }
        }
        self.wanted = wanted;
    }

    /// When one is to be begun.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.jobs.iter().filter(|job| self.wanted && job.pid.is_none()).map(|job| job.at).min()
    }

    /// Begins those whose time has come. They are `identity`, and have nothing to do with `ledgers`.
    pub(super) fn begin_due(&mut self, identity: &Identity, ledgers: impl Fn() -> Vec<Ledger>) {
        let now = Instant::now();
        for job in self.jobs.iter_mut().filter(|job| self.wanted && job.pid.is_none() && job.at <= now) {
            job.begin(identity, &ledgers, now);
        }
    }

    /// Whether `pid` was one of them.
    pub(super) fn ended(&mut self, pid: Pid, ending: Ending) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| job.pid == Some(pid)) else { return false };
        let now = Instant::now();
        job.pid = None;
        job.pause = if now - job.at >= WELL { PAUSE } else { job.pause };
        if self.wanted {
            warn!("background {}, pid {pid}, {ending}: begun again in {:?}", job.background.name, job.pause);
        }
        job.at = now + job.pause;
        job.pause = (job.pause * 2).min(LONGEST_PAUSE);
        true
    }

    /// Ends them all, and waits for that, at most so long: whoever comes next may begin them again.
    pub(super) fn end(&mut self, patience: Duration) {
        self.want(false);
        let late = Instant::now() + patience;
        for job in &mut self.jobs {
            let Some(pid) = job.pid.take() else { continue };
            while waitpid(pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive) {
                if Instant::now() >= late {
                    warn!("background {}, pid {pid}, does not end: killed", job.background.name);
                    let _gone_already = kill(pid, Signal::SIGKILL);
                    let _reaped = waitpid(pid, None);
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            job.at = Instant::now();
        }
    }
}

impl Job {
    fn begin(&mut self, identity: &Identity, ledgers: &impl Fn() -> Vec<Ledger>, now: Instant) {
        let master = std::process::id() as i32;
        let Ok(mask) = process::block_signals() else { return };
        match process::fork() {
            Ok(Born::Child) => {
                let settled = settle_in(&self.background.name, identity, &ledgers(), master);
                if let Err(error) = settled {
                    error!("cannot begin: {error}");
                    process::exit_now(1);
                }
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.background.run)()));
                process::exit_now(outcome.map_or(101, |()| 0))
            }
            Ok(Born::Parent(pid)) => {
                info!("background {} is pid {pid}", self.background.name);
                (self.pid, self.at) = (Some(pid), now);
            }
            Err(error) => {
                warn!("fork for background {}: {error}", self.background.name);
                self.at = now + LONGEST_PAUSE;
            }
        }
        let _as_before = process::set_signal_mask(&mask);
    }
}

/// What the child drops, resets and takes over.
fn settle_in(name: &str, identity: &Identity, ledgers: &[Ledger], master: i32) -> std::io::Result<()> {
    title::set(&format!("phalanx: background {name}"));
    log::set_name(&format!("background {name}"));
    phalanx_shared::state::begin_process();
    ledgers.iter().try_for_each(Ledger::seal_off)?;
    table::close_all_but(&[])?;
    identity.assume()?;
    process::reset_dispositions(&[])?;
    // It is the only one: it goes with the master that would begin another. After the change of identity, which forgets it.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() != master {
        return Err(std::io::Error::other("the master has gone"));
    }
    process::set_signal_mask(&SigSet::empty())
}
