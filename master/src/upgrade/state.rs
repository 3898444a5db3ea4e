//! What a service consists of, written down for the program that goes on with it. Descriptors are numbers of this process's
//! table, which stay open over the execve.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};
use phalanx_shared::config::{Config, ListenAddress};
use phalanx_shared::state::heritage::Estate;
use phalanx_shared::stats::Snapshot;
use serde::{Deserialize, Serialize};

use super::fault;
use super::origin::Manner;
use crate::verdict::Report;

/// The version of this page. It changes with every change that a program of the version before would misread.
pub(crate) const VERSION: u32 = 3;
/// What a program of another version makes nothing of. The rest is what every version has; so are, in a slot, all fields but `graves`,
/// and in a ground all but `known`.
const FOREIGN: [&str; 3] = ["clients", "retired", "ward"];
/// A state larger than this is none.
const MOST: u64 = 64 << 20;

/// The service. Where version and layout are not those of the program that reads, it makes nothing of the ledgers: the workers
/// that have them are told to drain, with the bells of their lanes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`VERSION`]; read before anything else, with the next.
    pub(crate) version: u32,
    /// `phalanx_shared::ledger::LAYOUT` of the grounds below.
    pub(crate) ledger_layout: u32,
    /// The version of the program that wrote this.
    pub(crate) program_version: String,
    /// That program's file, to return to.
    pub(crate) program: RawFd,
    /// How it was executed.
    pub(crate) manner: Manner,
    /// The descriptor that the program which reads this was executed by.
    pub(crate) executed: RawFd,
    pub(crate) fixed: Fixed,
    /// The configuration in force, as that program writes it: to return to.
    pub(crate) config: serde_json::Value,
    pub(crate) uptime_ms: u64,
    pub(crate) generation: u64,
    pub(crate) last_ground: u32,
    /// The last deaths, the latest first.
    #[serde(default)]
    pub(crate) crashes: Vec<Report>,
    /// Totals of all.
    #[serde(default)]
    pub(crate) totals: Snapshot,
    /// How many slots there are to be.
    pub(crate) target: u32,
    /// Connections that workers of a program before, of another version, may still have.
    #[serde(default)]
    pub(crate) drained: u64,
    /// Totals of what is gone.
    #[serde(default)]
    pub(crate) retired: Snapshot,
    /// The pipe that hangs up when the master dies: to read, to write.
    pub(crate) lifeline: (RawFd, RawFd),
    /// The table of the service's clients.
    #[serde(default)]
    pub(crate) clients: Option<RawFd>,
    /// Requests that kill workers.
    #[serde(default)]
    pub(crate) ward: Option<Ward>,
    /// What the program's workers share.
    #[serde(default)]
    pub(crate) shared: Estate,
    pub(crate) pid_file: Option<RawFd>,
    pub(crate) control: Option<Control>,
    /// The real addresses and the Unix sockets.
    pub(crate) listeners: Vec<Listener>,
    pub(crate) slots: Vec<Slot>,
    /// Every descriptor that was passed on, whatever names it.
    #[serde(default)]
    pub(crate) passed: Vec<RawFd>,
    /// Why this program can go on with nothing but the listeners.
    #[serde(skip)]
    pub(crate) foreign: Option<String>,
    /// What was read, if it was of another version.
    #[serde(skip)]
    pub(crate) original: Option<serde_json::Value>,
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

#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) slot: u32,
    pub(crate) last_incarnation: u32,
    pub(crate) restarts: u64,
    pub(crate) cause_of_last_death: Option<String>,
    /// Its TCP sockets, by seat.
    pub(crate) sockets: Vec<(u8, RawFd)>,
    /// The dead of which nobody has taken over yet.
    #[serde(default)]
    pub(crate) graves: Vec<Grave>,
    /// What it stands on, and what it stood on before that still holds connections.
    pub(crate) grounds: Vec<Ground>,
}

#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub(crate) struct Ground {
    pub(crate) number: u32,
    /// None of one that the program which wrote this could make nothing of.
    #[serde(default)]
    pub(crate) known: Option<Known>,
    pub(crate) lane_bells: Vec<RawFd>,
    pub(crate) keeper: Option<i32>,
    pub(crate) workers: Vec<Worker>,
    /// Incarnations that the keeper was told to clone and has not told of.
    #[serde(default)]
    pub(crate) unborn: Vec<u32>,
}

/// What a program of the same version and layout makes use of.
#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) ledger: RawFd,
    pub(crate) descriptors: usize,
    pub(crate) connections: usize,
    pub(crate) orders: RawFd,
    pub(crate) line: RawFd,
    pub(crate) bell: RawFd,
}

#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub(crate) struct Grave {
    pub(crate) dead: u32,
    pub(crate) ground: u32,
    pub(crate) lane: usize,
}

#[derive(Debug, Clone, Hash, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) pid: i32,
    pub(crate) incarnation: u32,
    pub(crate) generation: u64,
    pub(crate) lane: usize,
    /// The dead, with their lanes, that it is to settle before it is ready.
    #[serde(default)]
    pub(crate) heir_of: Vec<(u32, usize)>,
}

/// The part that every version has.
#[derive(Deserialize)]
struct Heading {
    version: u32,
    ledger_layout: u32,
}

impl State {
    /// Writes it into a memory file; what a program of another version wrote, as that wrote it.
    pub(crate) fn write(&self) -> std::io::Result<OwnedFd> {
        let page = match self.original.clone() {
            Some(mut original) => {
                if let Some(fields) = original.as_object_mut() {
                    fields.insert("passed".to_owned(), self.passed.clone().into());
                    fields.insert("executed".to_owned(), self.executed.into());
                    fields.insert("rolled_back".to_owned(), self.rolled_back.clone().into());
                }
                serde_json::to_vec(&original)?
            }
            None => serde_json::to_vec(self)?,
        };
        let mut file = File::from(memfd_create("phalanx-state", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&page)?;
        Ok(OwnedFd::from(file))
    }

    /// Reads what another program has written.
    pub(crate) fn read(fd: &OwnedFd) -> Result<State, String> {
        let fail = |error: &dyn std::fmt::Display| format!("read the state of the service: {error}");
        let mut file = File::from(fd.try_clone().map_err(|error| fail(&error))?);
        let mut bytes = Vec::new();
        file.rewind().map_err(|error| fail(&error))?;
        file.take(MOST).read_to_end(&mut bytes).map_err(|error| fail(&error))?;
        State::parse(&bytes, fault::version(), fault::layout()).map_err(|error| fail(&error))
    }

    fn parse(bytes: &[u8], version: u32, layout: u32) -> serde_json::Result<State> {
        let page: serde_json::Value = serde_json::from_slice(bytes)?;
        let heading = Heading::deserialize(&page)?;
        let (of_version, of_layout) = (heading.version, heading.ledger_layout);
        if (of_version, of_layout) == (version, layout) {
            return serde_json::from_value(page);
        }
        let mut known = page.clone();
        if let Some(fields) = known.as_object_mut() {
            for name in FOREIGN {
                fields.remove(name);
            }
            let slots = fields.get_mut("slots").and_then(|slots| slots.as_array_mut());
            for slot in slots.into_iter().flatten().filter_map(|slot| slot.as_object_mut()) {
                slot.remove("graves");
                let grounds = slot.get_mut("grounds").and_then(|grounds| grounds.as_array_mut());
                for ground in grounds.into_iter().flatten().filter_map(|ground| ground.as_object_mut()) {
                    ground.remove("known");
                }
            }
            // Worth having where they mean the same.
            for (name, means) in [
                ("crashes", Vec::<Report>::deserialize(&page["crashes"]).is_ok()),
                ("totals", Snapshot::deserialize(&page["totals"]).is_ok()),
                ("shared", Estate::deserialize(&page["shared"]).is_ok()),
            ] {
                if !means {
                    fields.remove(name);
                }
            }
        }
        let mut state: State = serde_json::from_value(known)?;
        state.original = Some(page);
        state.foreign = Some(if of_version == version {
            format!("its ledgers are of layout {of_layout}, this program's of layout {layout}")
        } else {
            format!("its state is of version {of_version}, this program's of version {version}")
        });
        Ok(state)
    }

    /// What was passed on that this program has no use for, since it is of another version.
    pub(crate) fn useless(&self) -> Vec<RawFd> {
        let used = self.used();
        self.passed.iter().copied().filter(|number| !used.contains(number)).collect()
    }

    /// Makes it what the program that wrote it is to be returned to with, and why.
    pub(crate) fn turn_back(&mut self, why: &str) {
        self.rolled_back = Some(why.to_owned());
        // The file of the program that failed, which the other has no use for.
        self.passed.retain(|number| *number != self.executed);
        self.executed = self.program;
    }

    /// Every descriptor that it names: what is to be passed on with it.
    pub(crate) fn used(&self) -> Vec<RawFd> {
        let mut all = vec![self.program, self.executed, self.lifeline.0, self.lifeline.1];
        all.extend(self.clients);
        all.extend(self.shared.memory());
        all.extend(self.ward.as_ref().map(|ward| ward.memory));
        all.extend(self.pid_file);
        if let Some(control) = &self.control {
            all.push(control.listener);
            all.extend(control.clients.iter().map(|client| client.stream));
        }
        all.extend(self.listeners.iter().filter_map(|listener| listener.unix));
        for slot in &self.slots {
            all.extend(slot.sockets.iter().map(|(_, number)| *number));
            for ground in &slot.grounds {
                all.extend(ground.known.iter().flat_map(|it| [it.ledger, it.orders, it.line, it.bell]));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page() -> serde_json::Value {
        let text = r#"{
            "version": 9, "ledger_layout": 4, "program_version": "3.0", "program": 10, "manner": {"arguments": [], "environment": []}, "executed": 11,
            "fixed": {"listen": [], "pid_file": null, "control_socket": null, "user": null, "group": null},
            "config": {"of": "another shape"}, "uptime_ms": 5, "generation": 2, "last_ground": 3, "target": 1,
            "crashes": [{"of": "another shape"}], "shared": [{"of": "another shape"}], "totals": {"requests": 17, "connections": 3, "of_its_own": 1},
            "retired": 4, "lifeline": [12, 13], "clients": {"memory": 14}, "ward": [], "pid_file": null, "control": null,
            "listeners": [], "client": null, "rolled_back": null, "of_its_own": {"more": 1},
            "slots": [{
                "slot": 0, "last_incarnation": 7, "restarts": 2, "cause_of_last_death": null, "sockets": [[0, 15]],
                "graves": "of another shape",
                "grounds": [{"number": 2, "known": [16, 17], "lane_bells": [18, 19], "keeper": 21,
                    "workers": [{"pid": 22, "incarnation": 7, "generation": 2, "lane": 0, "of_its_own": true}]}]
            }],
            "passed": [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn of_another_version_what_all_versions_have_is_read() {
        let page = page();
        let state = State::parse(&serde_json::to_vec(&page).unwrap(), 3, 1).unwrap();
        assert_eq!(state.foreign.as_deref(), Some("its state is of version 9, this program's of version 3"));
        assert_eq!((state.crashes.len(), state.totals.requests, state.totals.connections), (0, 17, 3));
        let ground = &state.slots[0].grounds[0];
        assert!(ground.known.is_none() && ground.lane_bells == [18, 19] && ground.workers[0].pid == 22);
        assert_eq!(state.useless(), [14, 16, 17]);
    }

    #[test]
    fn what_another_version_wrote_is_given_back_to_it_as_it_was() {
        let mut page = page();
        let mut state = State::parse(&serde_json::to_vec(&page).unwrap(), 3, 1).unwrap();
        state.turn_back("it died");
        page["rolled_back"] = "it died".into();
        page["executed"] = 10.into();
        page["passed"] = json!([10, 12, 13, 14, 15, 16, 17, 18, 19]);
        let mut file = File::from(state.write().unwrap());
        file.rewind().unwrap();
        let written: serde_json::Value = serde_json::from_reader(file).unwrap();
        assert_eq!(written, page);
    }

    #[test]
    fn what_lacks_a_field_that_every_version_has_is_refused() {
        let mut page = page();
        page.as_object_mut().unwrap().remove("listeners");
        let why = State::parse(&serde_json::to_vec(&page).unwrap(), 3, 1).unwrap_err().to_string();
        assert!(why.contains("listeners"), "{why}");
    }
}
