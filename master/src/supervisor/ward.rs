//! Requests that kill workers again and again are held: every worker answers them 503 for a while.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use phalanx_shared::clock::since_boot;
use phalanx_shared::config;
use phalanx_shared::quarantine::{MOST, Quarantine};
use phalanx_shared::{info, warn};

use crate::status;
use crate::upgrade;
use crate::upgrade::state;
use crate::verdict::Report;

/// Faults that are remembered, whatever the window.
const MAX_FAULTS: usize = 4096;

/// A method and a path without its query.
type Kind = (String, String);

/// What is held, and what may have to be.
pub(super) struct Ward {
    table: Quarantine,
    memory: OwnedFd,
    /// The oldest first.
    faults: VecDeque<(Instant, Kind)>,
    held: Vec<(Kind, Instant)>,
}

impl Ward {
    pub(super) fn new() -> io::Result<Ward> {
        let (table, memory) = Quarantine::create()?;
        Ok(Ward { table, memory, faults: VecDeque::new(), held: Vec::new() })
    }

    /// That of the program before this one.
    pub(super) fn inherit(state: &state::Ward) -> Result<Ward, String> {
        let memory = upgrade::inherited(state.memory)?;
        let table = Quarantine::open(&memory).map_err(|error| format!("map the quarantine: {error}"));
        let table = upgrade::way_back::or_return(table)?;
        let now = Instant::now();
        let held = state
            .held
            .iter()
            .map(|(method, path, left_ms)| ((method.clone(), path.clone()), now + Duration::from_millis(*left_ms)));
        Ok(Ward { table, memory, faults: VecDeque::new(), held: held.collect() })
    }

    /// What another program goes on with.
    pub(super) fn state(&self) -> state::Ward {
        let held = self.held().into_iter().map(|held| (held.method, held.path, held.left_ms)).collect();
        state::Ward { memory: self.number(), held }
    }

    /// For workers.
    pub(super) fn table(&self) -> Quarantine {
        self.table
    }

    fn number(&self) -> RawFd {
        self.memory.as_raw_fd()
    }

    /// A worker has died of the report's suspect.
    pub(super) fn note(&mut self, report: &Report, rules: &config::Quarantine) {
        let Some(suspect) = report.suspect.as_ref().filter(|suspect| rules.enabled && suspect.path.starts_with('/'))
        else {
            return;
        };
        let path = suspect.path.split('?').next().unwrap_or_default().to_owned();
        let (kind, now) = ((suspect.method.clone(), path), Instant::now());
        self.faults.push_back((now, kind.clone()));
        let ripe = |(at, _): &(Instant, Kind)| now - *at > rules.window;
        while self.faults.front().is_some_and(ripe) || self.faults.len() > MAX_FAULTS {
            self.faults.pop_front();
        }
        let count = self.faults.iter().filter(|(_, other)| *other == kind).count();
        if count >= rules.crashes as usize && !self.held.iter().any(|(held, _)| *held == kind) {
            warn!(
                "{} {} has killed {count} workers in {:?}: answered 503 for {:?}, unless pardoned",
                kind.0, kind.1, rules.window, rules.time
            );
            self.faults.retain(|(_, other)| *other != kind);
            if self.held.len() >= MOST {
                self.held.remove(0);
            }
            self.held.push((kind, now + rules.time));
            self.write();
        }
    }

    /// Lets those go whose time is over.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over = self.held.extract_if(.., |(_, until)| *until <= now).count();
        if over > 0 {
            info!("{over} kinds of request are no longer held");
            self.write();
        }
    }

    /// Lets those of this path go, or all; how many there were.
    pub(super) fn pardon(&mut self, path: Option<&str>) -> usize {
        let meant = |held: &Kind| path.is_none_or(|path| held.1 == path);
        let count = self.held.extract_if(.., |(held, _)| meant(held)).count();
        self.faults.retain(|(_, fault)| !meant(fault));
        self.write();
        count
    }

    /// As `status` tells it.
    pub(super) fn held(&self) -> Vec<status::Held> {
        let now = Instant::now();
        let held = self.held.iter().map(|((method, path), until)| status::Held {
            method: method.clone(),
            path: path.clone(),
            left_ms: u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX),
        });
        held.collect()
    }

    fn write(&self) {
        let (now, clock) = (Instant::now(), since_boot());
        let left = |until: &Instant| clock + until.saturating_duration_since(now);
        self.table.set(self.held.iter().map(|((method, path), until)| (method.as_str(), path.as_str(), left(until))));
    }
}
