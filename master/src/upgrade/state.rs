//! What a service consists of, written down for the program that goes on with it. Descriptors are numbers of this process's
//! table, which stay open over the execve.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use phalanx_shared::config::{Config, ListenAddress};
use phalanx_shared::ledger::LAYOUT;
use phalanx_shared::stats::Snapshot;
use serde::{Deserialize, Serialize};

use super::origin::Environment;
use crate::verdict::Report;

/// The version of this page. It changes with every change that a program of the version before would misread.
pub(crate) const VERSION: u32 = 2;
/// A state larger than this is none.
const MOST: u64 = 64 << 20;

/// The service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`VERSION`]; read before anything else.
    pub(crate) version: u32,
    /// `phalanx_shared::ledger::LAYOUT` of the grounds below.
    pub(crate) ledger_layout: u32,
    /// The version of the program that wrote this.
    pub(crate) program_version: String,
    /// That program's file, to return to.
    pub(crate) program: RawFd,
    /// The environment that it was executed with.
    pub(crate) environment: Environment,
    /// The descriptor that the program which reads this was executed by.
    pub(crate) executed: RawFd,
    pub(crate) fixed: Fixed,
    /// The configuration in force, as that program writes it: to return to.
    pub(crate) config: serde_json::Value,
    pub(crate) uptime_ms: u64,
    pub(crate) generation: u64,
    pub(crate) last_ground: u32,
    /// The last deaths, the latest first.
    pub(crate) crashes: Vec<Report>,
    /// How many slots there are to be.
    pub(crate) target: u32,
    /// Totals of what is gone.
    pub(crate) retired: Snapshot,
    /// The pipe that hangs up when the master dies: to read, to write.
    pub(crate) lifeline: (RawFd, RawFd),
    /// The table of the service's clients.
    pub(crate) clients: RawFd,
    /// Requests that kill workers.
    pub(crate) ward: Ward,
    pub(crate) pid_file: Option<RawFd>,
    pub(crate) control: Option<Control>,
    /// The real addresses and the Unix sockets.
    pub(crate) listeners: Vec<Listener>,
    pub(crate) slots: Vec<Slot>,
    /// The client of the control socket that waits for the outcome.
    pub(crate) client: Option<u64>,
    /// This is the way back, and why.
    pub(crate) rolled_back: Option<String>,
}

/// What an upgrade cannot change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fixed {
    pub(crate) listen: Vec<ListenAddress>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) control_socket: Option<PathBuf>,
    pub(crate) user: Option<String>,
    pub(crate) group: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ward {
    pub(crate) memory: RawFd,
    /// Method, path, milliseconds that are left.
    pub(crate) held: Vec<(String, String, u64)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Control {
    pub(crate) listener: RawFd,
    pub(crate) clients: Vec<Client>,
    pub(crate) next: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) stream: RawFd,
    pub(crate) received: Vec<u8>,
    pub(crate) unsent: Vec<u8>,
    pub(crate) owed: usize,
    pub(crate) listens: bool,
    pub(crate) finished: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listener {
    pub(crate) seat: u8,
    /// As the configuration has it.
    pub(crate) wanted: ListenAddress,
    /// With the real port.
    pub(crate) address: ListenAddress,
    /// Of a Unix socket, which all slots share; each slot has its own for TCP.
    pub(crate) unix: Option<RawFd>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) slot: u32,
    pub(crate) last_incarnation: u32,
    pub(crate) restarts: u64,
    pub(crate) cause_of_last_death: Option<String>,
    /// Its TCP sockets, by seat.
    pub(crate) sockets: Vec<(u8, RawFd)>,
    /// The dead of which nobody has taken over yet.
    pub(crate) graves: Vec<Grave>,
    /// What it stands on, and what it stood on before that still holds connections.
    pub(crate) grounds: Vec<Ground>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ground {
    pub(crate) number: u32,
    pub(crate) ledger: RawFd,
    pub(crate) descriptors: usize,
    pub(crate) connections: usize,
    pub(crate) orders: RawFd,
    pub(crate) line: RawFd,
    pub(crate) bell: RawFd,
    pub(crate) lane_bells: Vec<RawFd>,
    pub(crate) keeper: Option<i32>,
    pub(crate) workers: Vec<Worker>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Grave {
    pub(crate) dead: u32,
    pub(crate) ground: u32,
    pub(crate) lane: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) pid: i32,
    pub(crate) incarnation: u32,
    pub(crate) generation: u64,
    pub(crate) lane: usize,
}

/// The part that every version has.
#[derive(Deserialize)]
struct Heading {
    version: u32,
}

impl State {
    /// Writes it into a memory file.
    pub(crate) fn write(&self) -> std::io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("phalanx-state", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(OwnedFd::from(file))
    }

    /// Reads what another program has written.
    pub(crate) fn read(fd: &OwnedFd) -> Result<State, String> {
        let fail = |error: &dyn std::fmt::Display| format!("read the state of the service: {error}");
        let mut file = File::from(fd.try_clone().map_err(|error| fail(&error))?);
        let mut bytes = Vec::new();
        file.rewind().map_err(|error| fail(&error))?;
        file.take(MOST).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
        let heading: Heading = serde_json::from_slice(&bytes).map_err(|error| fail(&error))?;
        if heading.version != VERSION {
            return Err(format!(
                "this program reads version {VERSION} of a service's state, the running one writes version {}\n  hint: phalanx stop, then start",
                heading.version
            ));
        }
        let state: State = serde_json::from_slice(&bytes).map_err(|error| fail(&error))?;
        if state.ledger_layout != LAYOUT {
            return Err(format!(
                "this program reads ledgers of layout {LAYOUT}, the running one writes layout {}\n  hint: phalanx stop, then start",
                state.ledger_layout
            ));
        }
        Ok(state)
    }

    /// Makes it what the program that wrote it is to be returned to with, and why.
    pub(crate) fn turn_back(&mut self, why: &str) {
        self.rolled_back = Some(why.to_owned());
        self.executed = self.program;
    }

    /// Every descriptor that it names.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let mut all =
            vec![self.program, self.executed, self.lifeline.0, self.lifeline.1, self.clients, self.ward.memory];
        all.extend(self.pid_file);
        if let Some(control) = &self.control {
            all.push(control.listener);
            all.extend(control.clients.iter().map(|client| client.stream));
        }
        all.extend(self.listeners.iter().filter_map(|listener| listener.unix));
        for slot in &self.slots {
            all.extend(slot.sockets.iter().map(|(_, number)| *number));
            for ground in &slot.grounds {
                all.extend([ground.ledger, ground.orders, ground.line, ground.bell]);
                all.extend(&ground.lane_bells);
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Fixed {
    pub(crate) fn of(config: &Config) -> Fixed {
        let mut listen: Vec<ListenAddress> =
            config.listen.iter().filter(|listen| !listen.leaving).map(|listen| listen.address.clone()).collect();
        listen.sort_by_key(ToString::to_string);
        Fixed {
            listen,
            pid_file: config.master.pid_file.clone(),
            control_socket: config.master.control_socket.clone(),
            user: config.master.user.clone(),
            group: config.master.group.clone(),
        }
    }

    /// Whether a service with this can be handed over to a program with `wanted`.
    pub(crate) fn check(&self, wanted: &Fixed) -> Result<(), String> {
        self.check_keys(wanted, &[("listen.address", self.listen != wanted.listen)])
    }

    /// Whether a service with this can go on as one with `wanted`, listeners apart; `more` are other keys that must not have
    /// changed.
    pub(crate) fn check_keys(&self, wanted: &Fixed, more: &[(&str, bool)]) -> Result<(), String> {
        let keys = [
            ("master.pid_file", self.pid_file != wanted.pid_file),
            ("master.control_socket", self.control_socket != wanted.control_socket),
            ("master.user", self.user != wanted.user),
            ("master.group", self.group != wanted.group),
        ];
        let keys: Vec<&str> = keys.iter().chain(more).filter(|(_, changed)| *changed).map(|(key, _)| *key).collect();
        if keys.is_empty() {
            return Ok(());
        }
        Err(format!("{} cannot change while the service runs\n  hint: phalanx stop, then start", keys.join(", ")))
    }
}
