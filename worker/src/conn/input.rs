//! The reading half: bytes go from the socket straight into the ledger's buffer and stay there until they are answered.

use std::io;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use phalanx_shared::ledger::BUFFER_BYTES;
use phalanx_shared::ledger::lane::Counter;
use phalanx_shared::log::first_line;
use phalanx_shared::sys::region::Buffer;

use super::context::address_of;
use super::{Connection, Context};
use crate::crash_point::{self, Point};

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// More bytes.
    Some,
    /// Nothing yet.
    Nothing,
    /// The peer has finished sending.
    End,
}

impl Connection {
    /// Reads once, as much as there is room for. Fails when the connection is broken or all buffers are in use.
    pub(super) fn fill(&mut self, cx: &mut Context) -> io::Result<Filled> {
        let used = self.make_room(cx)?;
        let filled = self.read_at(cx, used);
        if used == 0 && !matches!(filled, Ok(Filled::Some)) {
            self.release_buffer(cx);
        }
        filled
    }

    /// Sees to it that there is a buffer with room; returns how many of its bytes are used.
    fn make_room(&mut self, cx: &mut Context) -> io::Result<usize> {
        if self.buffer.is_none() {
            let buffer = cx.buffers.take().ok_or(io::ErrorKind::OutOfMemory)?;
            self.begin_buffer(buffer);
        }
        let used = self.buffered();
        if used < BUFFER_BYTES {
            return Ok(used);
        }
        self.move_to_fresh_buffer(cx)?;
        Ok(self.buffered())
    }

    /// What comes next in the stream stands in `buffer`, from its first byte on.
    pub(super) fn begin_buffer(&mut self, buffer: Buffer) {
        // The position before the number: a record that names a buffer has a base.
        self.record.set_base(self.record.consumed());
        self.record.set_start(self.record.consumed());
        self.record.set_buffer(Some(buffer.index()));
        self.buffer = Some(buffer);
    }

    /// Bytes in the buffer, answered ones included.
    pub(super) fn buffered(&self) -> usize {
        // Never more than there is, whatever a dead worker left in the record.
        self.record.consumed().saturating_sub(self.record.base()).min(BUFFER_BYTES as u64) as usize
    }

    /// The request that is worked on or waited for, and whose it is: words for the log.
    pub(crate) fn describe(&self) -> Option<String> {
        let line = first_line(self.unanswered(self.record.start()));
        let peer = address_of(&self.record).map_or_else(|| "unix".to_owned(), |peer| peer.to_string());
        (!line.is_empty()).then(|| format!("`{line}` of {peer}"))
    }

    /// The bytes from stream position `position` on.
    pub(super) fn unanswered(&self, position: u64) -> &[u8] {
        let Some(from) = position.checked_sub(self.record.base()) else { return &[] };
        let bytes = self.buffer.as_ref().and_then(|buffer| buffer.bytes().get(from as usize..self.buffered()));
        bytes.unwrap_or(&[])
    }

    /// Copies the unanswered bytes to the front of another buffer. In place would tear them if the worker died half-way.
    pub(super) fn move_to_fresh_buffer(&mut self, cx: &mut Context) -> io::Result<()> {
        let start = self.record.start();
        if start == self.record.base() {
            return Err(io::Error::other("a request larger than its buffer"));
        }
        let mut fresh = cx.buffers.take().ok_or(io::ErrorKind::OutOfMemory)?;
        let bytes = self.unanswered(start);
        fresh.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        cx.track.journal().relocate(self.fd, &self.record, fresh.index(), start);
        if let Some(old) = self.buffer.replace(fresh) {
            cx.buffers.put(old);
        }
        Ok(())
    }

    /// Reads once to `at` in the buffer and records it.
    pub(super) fn read_at(&mut self, cx: &mut Context, at: usize) -> io::Result<Filled> {
        if cx.by_ring || self.has_held() {
            return Ok(self.read_held(cx, at));
        }
        let Some(buffer) = self.buffer.as_mut() else { return Ok(Filled::Nothing) };
        if self.unix {
            self.record.set_state(phalanx_shared::ledger::record::State { in_call: true, ..self.record.state() });
        }
        // As read(2), but past the layer of files.
        let room = &mut buffer.bytes_mut()[at..];
        let (result, room) = (recv(self.fd, room, MsgFlags::empty()), room.len());
        crash_point::pass(Point::AfterRead);
        // Of a Unix socket a read may end where a message of its sender did.
        self.drained =
            !self.unix && !self.is_last && result.map_or_else(|error| error == Errno::EAGAIN, |count| count < room);
        if let Ok(count) = result {
            self.record.set_consumed(self.record.consumed() + count as u64);
        }
        if self.unix {
            self.record.set_state(phalanx_shared::ledger::record::State { in_call: false, ..self.record.state() });
        }
        if let Ok(count) = result {
            cx.stats.add(Counter::BytesIn, count as u64);
        }
        match result {
            Ok(0) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Filled::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets go of the buffer: everything in it is answered.
    pub(crate) fn release_buffer(&mut self, cx: &mut Context) {
        self.record.set_buffer(None);
        if let Some(buffer) = self.buffer.take() {
            cx.buffers.put(buffer);
        }
    }
}
