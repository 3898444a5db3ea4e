//! What `status --json` says.

use std::fmt;

use serde_json::Value;

use super::command::Outcome;

/// What `status --json` said.
pub(crate) struct Status(Value);

impl Status {
    /// Reads what the command said.
    #[track_caller]
    pub(crate) fn parse(outcome: &Outcome) -> Status {
        Status(serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("not JSON: {error}\n{outcome}")))
    }

    /// The master's pid.
    #[track_caller]
    pub(crate) fn master(&self) -> i32 {
        self.number(&self.0["master"], "pid") as i32
    }

    /// The number of the configuration in force.
    #[track_caller]
    pub(crate) fn generation(&self) -> u64 {
        self.number(&self.0["master"], "generation")
    }

    /// The addresses listened on, ports filled in.
    #[track_caller]
    pub(crate) fn listeners(&self) -> Vec<String> {
        let listeners = self.0["listeners"].as_array().unwrap_or_else(|| panic!("no listeners in {self}"));
        listeners.iter().map(|listener| listener.as_str().unwrap().to_owned()).collect()
    }

    /// The slots, as JSON.
    #[track_caller]
    pub(crate) fn slots(&self) -> &Vec<Value> {
        self.0["slots"].as_array().unwrap_or_else(|| panic!("no slots in {self}"))
    }

    /// A figure of all slots, added up.
    #[track_caller]
    pub(crate) fn sum(&self, name: &str) -> u64 {
        self.slots().iter().map(|slot| self.number(slot, name)).sum()
    }

    /// A figure of the whole service since it exists.
    #[track_caller]
    pub(crate) fn figure(&self, name: &str) -> f64 {
        self.0["figures"][name].as_f64().unwrap_or_else(|| panic!("a figure {name} in {self}"))
    }

    /// A sum of the whole service.
    pub(crate) fn total(&self, name: &str) -> u64 {
        self.number(&self.0["totals"], name)
    }

    #[track_caller]
    fn number(&self, of: &Value, name: &str) -> u64 {
        of[name].as_u64().unwrap_or_else(|| panic!("no number {name:?} in {of}\nof {self}"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}
