//! The two ends of a lane's channel. ipc-channel's receivers expose no descriptor, so an eventfd a direction rings when there
//! is something to receive.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Serialize, de::DeserializeOwned};

use super::{Said, ToMaster};

/// An eventfd that wakes whoever polls it.
pub struct Doorbell(EventFd);

impl Doorbell {
    /// A silent bell.
    pub fn new() -> io::Result<Doorbell> {
        Ok(Doorbell(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?))
    }

    /// Rings. A bell that has been ringing for ever cannot ring louder: that error is none.
    pub fn ring(&self) {
        let _full = self.0.write(1);
    }

    /// Silences the bell; before looking for what it announced. True if it rang the alarm.
    pub fn silence(&self) -> bool {
        self.0.read().is_ok_and(|rung| rung >= ALARM)
    }
}

/// So many rings at once are an alarm: a worker whose master knows neither its channel nor its ledger is to drain. The one word that
/// every version has to understand.
const ALARM: u64 = 1 << 32;

/// Rings a bell that another program made.
pub fn ring(bell: BorrowedFd<'_>) {
    let _full = nix::unistd::write(bell, &1u64.to_ne_bytes());
}

/// Tells a worker of another program to drain.
pub fn ring_the_alarm(bell: BorrowedFd<'_>) {
    let _full = nix::unistd::write(bell, &ALARM.to_ne_bytes());
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end: says `Out`, hears `In`.
pub struct End<Out, In> {
    sender: IpcSender<Out>,
    receiver: IpcReceiver<In>,
    /// Rung when this end has said something.
    theirs: std::rc::Rc<Doorbell>,
    /// Rings when there is something to hear.
    pub bell: std::rc::Rc<Doorbell>,
}

/// The master's end of a lane.
pub type MasterEnd = End<Said, ToMaster>;
/// The worker's end of a lane.
pub type WorkerEnd = End<ToMaster, Said>;

/// Both ends of a lane's channel. Made by the master before it forks the keeper; each side forgets the other's end.
pub fn pair() -> io::Result<(MasterEnd, WorkerEnd)> {
    let (to_worker, at_worker) = ipc::channel::<Said>()?;
    let (to_master, at_master) = ipc::channel::<ToMaster>()?;
    let master_bell = std::rc::Rc::new(Doorbell::new()?);
    let worker_bell = std::rc::Rc::new(Doorbell::new()?);
    let master = End { sender: to_worker, receiver: at_master, theirs: worker_bell.clone(), bell: master_bell.clone() };
    let worker = End { sender: to_master, receiver: at_worker, theirs: master_bell, bell: worker_bell };
    Ok((master, worker))
}

impl<Out: Serialize, In: DeserializeOwned + Serialize> End<Out, In> {
    /// Says `message` and rings. By the protocol's bounds the socket has room, so it does not block.
    pub fn say(&self, message: Out) -> io::Result<()> {
        self.sender.send(message).map_err(io::Error::other)?;
        self.theirs.ring();
        Ok(())
    }

    /// What rings at the other end, by its descriptor.
    pub fn their_bell(&self) -> BorrowedFd<'_> {
        AsFd::as_fd(&*self.theirs)
    }

    /// Rings without a word: "ask me".
    pub fn knock(&self) {
        self.theirs.ring();
    }

    /// The next message, if there is one. A message that does not decode is passed over: it came from a dying worker.
    pub fn hear(&self) -> Option<In> {
        // Bounded: each round takes a message off a queue that the peer may fill only up to the socket's size.
        for _ in 0..1024 {
            match self.receiver.try_recv() {
                Ok(message) => return Some(message),
                Err(ipc_channel::TryRecvError::IpcError(ipc_channel::IpcError::SerializationError(_))) => continue,
                Err(_) => return None,
            }
        }
        None
    }
}
