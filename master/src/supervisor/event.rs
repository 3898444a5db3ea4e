//! All that can happen to the master, and all that it can do about it.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use phalanx_shared::config::Config;
use phalanx_shared::ipc::keeper::Birth;
use phalanx_shared::ipc::{Incarnation, SlotId, ToMaster, ToWorker};
use phalanx_shared::ledger::record::Guilt;
use phalanx_shared::sys::rest::Scheduling;

use super::slot::Post;
use crate::control::Answer;
use crate::control::server::ClientId;
use crate::verdict::{Cause, Obituary};

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A slot has its listeners, its ledger and its keeper, or cannot have them.
    Opened(SlotId, Result<Pid, String>),
    /// A keeper has cloned a worker, or could not.
    Born(SlotId, Incarnation, Result<Pid, String>),
    /// A worker or a keeper has ended.
    Ended(Pid, Cause),
    /// A worker has said something.
    Heard(SlotId, ToMaster),
    /// A worker asks to be asked.
    Knocked(Post),
    /// What a silent worker does instead of answering; none: nothing is known.
    Examined(SlotId, Incarnation, Option<Scheduling>),
    /// Somebody wants the service to stop.
    Stop { fast: bool, client: Option<ClientId> },
    /// Somebody wants a reload; the file has been read already.
    Reload { client: Option<ClientId>, read: Result<Box<Config>, String> },
    /// What a configuration brings to listen on is bound, and each of its listeners has a seat.
    Seated(Result<Box<Config>, String>),
    /// It listens.
    Listening(Result<(), String>),
    /// Somebody wants another program in this one's place.
    Upgrade { client: Option<ClientId>, program: Option<PathBuf> },
    /// The other program has shown whether it could take over.
    Rehearsed(Result<(), String>),
    /// The other program could not be executed.
    NotExecuted(String),
    /// The program before this one could not be executed.
    NotReturned(String),
    /// No process is left that has the table of a former ground of the slot.
    Deserted(SlotId, u32),
    /// No connection is left on a former ground of the slot.
    Emptied(SlotId, u32),
    /// Somebody wants this many slots.
    Scale { client: Option<ClientId>, count: u32 },
    /// Somebody wants the worker of this slot, or of each, replaced.
    Recycle { client: Option<ClientId>, slot: Option<u32> },
    /// Somebody wants one slot more or less.
    ScaleBy(i32),
    /// The log files are open again: the keepers' tables want them.
    LogsReopened,
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Bind, make a ledger, fork a keeper. A slot that is open already and has lost its keeper keeps its listeners; what it
    /// stood on is kept as a former ground.
    Open(SlotId),
    /// See whether the other program could take over.
    Rehearse(Option<PathBuf>),
    /// Never mind.
    EndRehearsal,
    /// Execute it.
    TakeOver(Option<ClientId>),
    /// Execute the program before this one again: why.
    GoBack(Option<ClientId>, String),
    /// There is no way back any more, and no need of one.
    Confirm,
    /// Look whether a process is left that has the table of a former ground of the slot.
    LookForAnybody(SlotId, u32),
    /// Look whether connections are left on a former ground of the slot.
    LookInto(SlotId, u32),
    /// Nothing is left on a former ground of the slot.
    Dismiss(SlotId, u32),
    /// Write a configuration down as the blueprint of this number; it goes to a keeper with each order to clone.
    Publish(usize, Box<Config>),
    /// Bind what the configuration brings to listen on, and find a seat for each of its listeners.
    Seat(Box<Config>),
    /// Have what was bound listen.
    Listen,
    /// Take it back.
    Unseat,
    /// Shut the listeners that the configuration in force has no more: workers let go of them.
    ShutLeaving,
    /// Take them off their seats.
    CloseLeaving,
    /// Have the keeper clone a worker.
    Clone(SlotId, Box<Birth>),
    /// Say a word to this worker, at its post.
    Tell(Post, Incarnation, ToWorker),
    /// End a process.
    Kill(Pid, Signal),
    /// Look what a silent worker does.
    Examine(SlotId, Incarnation, Pid),
    /// Write down what that worker is busy with.
    DescribeSuspect(SlotId, Incarnation),
    /// Shows the stack of a worker's thread in the log.
    ShowStack(SlotId, Pid, Pid),
    /// Put the sockets of the first slot into the second one's table, whose worker is to accept from them.
    Lend(SlotId, SlotId, Incarnation),
    /// Tell the successor who was to blame.
    Condemn(Post, Guilt),
    /// Write down a worker's death.
    Report(Post, Box<Obituary>),
    /// Put the reopened log files into a keeper's table.
    InstallLogs(SlotId),
    /// Send new connections to these slots only, or to all.
    Steer(Option<Vec<u32>>),
    /// Read the configuration file again.
    ReadConfig(Option<ClientId>),
    /// The configuration in force is this one.
    Adopt(Box<Config>),
    /// Answer a client.
    Reply(ClientId, Box<Answer>),
    /// A line for the log.
    Say(String),
    /// A line for the log that an operator should see.
    Warn(String),
    /// Every worker is ready for the first time.
    Ready,
    /// The service is over.
    Leave(Result<(), String>),
}
