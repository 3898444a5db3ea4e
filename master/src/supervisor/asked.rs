//! What signals and clients of the control socket ask for.

use nix::sys::signal::Signal;
use phalanx_shared::config::{self, Config, FaultKind, Known};
use phalanx_shared::ipc::{Said, SlotId, ToWorker};
use phalanx_shared::{error, info};

use super::event::Event;
use super::{Supervisor, end};
use crate::control::server::ClientId;
use crate::control::{Answer, Command, Deed};
use crate::signals::Wish;

impl Supervisor {
    pub(super) fn wish(&mut self, wish: Wish, name: &str) -> Option<Event> {
        match wish {
            Wish::Reap => None,
            Wish::StopGracefully | Wish::StopFast => {
                info!("{name}: stopping");
                Some(Event::Stop { fast: wish == Wish::StopFast, client: None })
            }
            Wish::Reload => {
                info!("{name}: reloading");
                self.read_config(None)
            }
            Wish::ReopenLogs => match self.premises.logs.reopen() {
                Ok(changed) => {
                    info!("{name}: log files reopened");
                    self.common.log_numbers = changed;
                    Some(Event::LogsReopened)
                }
                Err(error) => {
                    error!("{name}: {error}; the old files are used on");
                    None
                }
            },
            Wish::Upgrade => {
                info!("{name}: upgrading");
                Some(Event::Upgrade { client: None, program: None })
            }
            Wish::OneMore => Some(Event::ScaleBy(1)),
            Wish::OneLess => Some(Event::ScaleBy(-1)),
        }
    }

    pub(super) fn command(&mut self, client: ClientId, command: Command) -> Option<Event> {
        match command {
            Command::Status => {
                let answer = Answer { status: Some(self.status()), ..Answer::done("") };
                self.reply(client, &answer);
                None
            }
            Command::Events => {
                if let Some(control) = &mut self.premises.control {
                    control.listen(client);
                }
                None
            }
            Command::Draining => {
                let answer = Answer { draining: Some(self.draining()), ..Answer::done("") };
                self.reply(client, &answer);
                None
            }
            Command::Crashes => {
                let (crashes, crash_dir) = (Some(self.reporters.kept()), self.roster.config.master.crash_dir.clone());
                self.reply(client, &Answer { crashes, crash_dir, ..Answer::done("") });
                None
            }
            Command::Pardon { path } => {
                let text = match self.common.ward.pardon(path.as_deref()) {
                    0 => "nothing of that was held".to_owned(),
                    1 => "1 kind of request is run again".to_owned(),
                    count => format!("{count} kinds of request are run again"),
                };
                info!("pardon: {text}");
                self.reply(client, &Answer::done(text));
                None
            }
            Command::Chaos { deed, slot } => {
                let answer = self.break_worker(deed, SlotId(slot)).unwrap_or_else(Answer::refused);
                self.reply(client, &answer);
                None
            }
            Command::Stop { fast } => Some(Event::Stop { fast, client: Some(client) }),
            Command::Reload { dry_run: true } => {
                let answer = self.rehearse_reload();
                self.reply(client, &answer);
                None
            }
            Command::Reload { dry_run: false } => self.read_config(Some(client)),
            Command::Upgrade { program } => Some(Event::Upgrade { client: Some(client), program }),
            Command::Recycle { slot } => Some(Event::Recycle { client: Some(client), slot }),
            Command::Scale { count } if (1..=1024).contains(&count) => {
                Some(Event::Scale { client: Some(client), count })
            }
            Command::Scale { count } => {
                self.reply(client, &Answer::refused(format!("{count} workers: from 1 to 1024 are possible")));
                None
            }
        }
    }

    pub(super) fn reply(&mut self, client: ClientId, answer: &Answer) {
        if let Some(control) = &mut self.premises.control {
            control.answer(client, answer);
        }
    }

    pub(super) fn read_config(&mut self, client: Option<ClientId>) -> Option<Event> {
        Some(Event::Reload { client, read: self.read_file() })
    }

    fn read_file(&self) -> Result<Box<Config>, String> {
        match &self.premises.file {
            None => Err("there is no configuration file to reload: the service was started without one".to_owned()),
            Some(file) => {
                let apps = self.premises.application.known();
                let known = Known { models: phalanx_worker::MODELS, apps: &apps };
                config::load(file, known).map(Box::new).map_err(|problems| problems.to_string())
            }
        }
    }

    fn break_worker(&self, deed: Deed, id: SlotId) -> Result<Answer, String> {
        if !self.roster.config.workers.allow_faults {
            let hint = "set allow_faults = true in [workers] on a test machine";
            return Err(format!("workers are not to be broken on purpose here\n  hint: {hint}"));
        }
        let slot = self.roster.slots.get(&id).ok_or_else(|| format!("there is no slot {}", id.0))?;
        let worker = slot.serving().ok_or_else(|| format!("nobody serves in slot {}", id.0))?;
        let pid = match deed {
            Deed::Keeper => slot.keeper,
            _ => worker.pid,
        };
        let pid = pid.ok_or_else(|| format!("slot {} is not ready", id.0))?;
        let tell = |fault| self.tell(worker.post, Said { to: worker.incarnation, word: ToWorker::Break(fault) });
        match deed {
            Deed::Kill | Deed::Keeper => end(pid, Signal::SIGKILL),
            Deed::Stop => end(pid, Signal::SIGSTOP),
            Deed::Continue => end(pid, Signal::SIGCONT),
            Deed::Segv => tell(FaultKind::Segv),
            Deed::Hang => tell(FaultKind::Hang),
            Deed::Leak => tell(FaultKind::Leak),
        }
        info!("chaos: {deed:?} slot {}, pid {pid}", id.0);
        Ok(Answer::done(format!("slot {}, pid {pid}", id.0)))
    }

    /// What a reload would come to, as far as that can be told without one.
    fn rehearse_reload(&self) -> Answer {
        let config = match self.read_file().and_then(|config| self.roster.check_reloadable(&config).map(|()| config)) {
            Ok(config) => config,
            Err(why) => return Answer::misconfigured(why),
        };
        if let Err(why) = self.premises.listeners.check_newcomers(&config.listen) {
            return Answer::refused(why);
        }
        let found = config::differences(&self.roster.config, &config);
        match found.is_empty() {
            true => Answer::done("a reload would change nothing but the workers"),
            false => Answer::done(format!("a reload would change:\n  {}", found.join("\n  "))),
        }
    }
}
