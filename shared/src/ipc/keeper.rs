//! The master's orders to a keeper: one packet each over a Unix seqpacket socket, some with a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Generation, Incarnation};
use crate::sys::table;

/// What a keeper does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Install the blueprint that comes with this order, and clone a worker.
    Clone(Birth),
    /// Put the descriptor that comes with this order at number `at`, replacing what stood there.
    Install {
        /// A number that the keeper was born with.
        at: RawFd,
    },
}

/// What a worker is told at birth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The configuration it boots from.
    pub generation: Generation,
    /// Which of the two installed blueprints holds that configuration.
    pub blueprint: usize,
    /// The lane it writes.
    pub lane: usize,
    /// Incarnations of this slot that live: their connections are not to be touched.
    pub alive: Vec<Incarnation>,
    /// Serve as soon as it is ready (a rescue), or wait for `Serve` (a planned handover).
    pub serve_at_once: bool,
}

/// What a keeper answers to `Clone`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// The incarnation that was asked for.
    pub incarnation: Incarnation,
    /// Its process id, or why there is none.
    pub outcome: Result<i32, String>,
}

/// Longer than any order or answer.
const MAX_PACKET: usize = 4096;

/// A connected pair, close-on-exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one packet; `descriptor` goes with it. Fails with `WouldBlock` rather than wait for a keeper that is stopped.
pub fn send(socket: BorrowedFd<'_>, packet: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(packet).map_err(io::Error::other)?;
    let numbers: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &control[..0] } else { &control[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
    Ok(())
}

/// Receives one packet and the descriptor that came with it; none at end of file. Blocks when `flags` say so.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>, wait: Wait) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = [0; MAX_PACKET];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC
        | match wait {
            Wait::Yes => MsgFlags::empty(),
            Wait::No => MsgFlags::MSG_DONTWAIT,
        };
    let (len, descriptor) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut descriptor = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                descriptor = numbers.first().map(|&number| table::adopt(number));
            }
        }
        (message.bytes, descriptor)
    };
    if len == 0 {
        return Ok(None);
    }
    let packet = serde_json::from_slice(&bytes[..len]).map_err(io::Error::other)?;
    Ok(Some((packet, descriptor)))
}

/// Whether a receive waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until there is a packet.
    Yes,
    /// Not at all: `WouldBlock`.
    No,
}
