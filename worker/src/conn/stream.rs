//! A body that is made on the way: a thread makes the next portion once the last one has left, so that a peer that does not
//! read costs one portion and no more.

use super::context::client_of;
use super::output::Output;
use super::tail::Part;
use super::{Connection, Context, Fate};
use crate::crash_point::{self, Point};
use crate::http::chunked;
use crate::http::reply::Producer;
use crate::http::{HeaderScratch, Progress, head};
use crate::pool::{Done, Job};

/// A body on its way.
pub(super) struct Stream {
    /// Away while a thread has it.
    producer: Option<Box<dyn Producer>>,
    /// Bytes of the response's head.
    head: u64,
    chunked: bool,
    /// Bytes, framing included, that the peer has had from a predecessor.
    skip: u64,
    done: bool,
}

/// What a thread brings back.
pub(super) struct Portion {
    producer: Box<dyn Producer>,
    bytes: Vec<u8>,
    more: std::io::Result<bool>,
}

impl Stream {
    pub(super) fn new(head: u64, producer: Box<dyn Producer>, chunked: bool) -> Stream {
        Stream { producer: Some(producer), head, chunked, skip: 0, done: false }
    }

    /// The first `count` bytes that are made have left already.
    pub(super) fn skip(&mut self, count: u64) {
        self.skip += count;
    }

    /// Its last portion has been made.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Makes the next portion; none when a thread is at it, or there is none.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        let mut producer = self.producer.take()?;
        Some(Job::new(move || {
            crash_point::pass(Point::InPool);
            let mut bytes = Vec::new();
            let more = producer.next(&mut bytes);
            Portion { producer, bytes, more }
        }))
    }

    /// Takes a portion in and returns its bytes as they are sent; none when it could not be made.
    fn take(&mut self, portion: Portion) -> Option<Vec<u8>> {
        let more = portion.more.ok()?;
        let mut framed = Vec::new();
        if self.chunked {
            chunked::append_chunk(&mut framed, &portion.bytes);
            if !more {
                framed.extend_from_slice(chunked::LAST_CHUNK);
            }
        } else {
            framed = portion.bytes;
        }
        self.done = !more;
        self.producer = Some(portion.producer);
        let skipped = self.skip.min(framed.len() as u64);
        self.skip -= skipped;
        framed.drain(..skipped as usize);
        Some(framed)
    }
}

impl Connection {
    /// A thread has made a portion of a stream, or fetched a part of a file: adds it to the output. False when it failed.
    pub(super) fn take_in(&mut self, cx: &mut Context, output: &mut Output, done: Done) -> bool {
        let Ok(done) = done else { return false };
        let portion = match done.downcast::<Portion>() {
            Ok(portion) => portion,
            Err(done) => {
                let (Some(Part::File(part)), Ok(fetched)) =
                    (output.parts.front_mut(), done.downcast::<super::tail::Fetched>())
                else {
                    return false;
                };
                part.warm = fetched.0;
                return true;
            }
        };
        let Some(stream) = output.stream.as_mut() else { return false };
        let Some(bytes) = stream.take(*portion) else { return false };
        if !bytes.is_empty() {
            output.parts.push_back(Part::Bytes { bytes, at: 0 });
        }
        if !stream.is_done() {
            return true;
        }
        // A successor sent bytes that this stream never had, else: it is another one.
        stream.skip == 0 && self.end_stream(cx, output)
    }

    /// The end of a stream is known: it is put on record before the last bytes leave.
    fn end_stream(&mut self, cx: &mut Context, output: &mut Output) -> bool {
        let head_len = output.stream.take().map_or(0, |stream| stream.head);
        let end = self.record.sent() + output.len();
        let (Some(list), Some(index)) = (self.pending(cx), self.record.state().pending.checked_sub(1)) else {
            return false;
        };
        let Some(mut entry) = list.get(index.into()) else { return false };
        entry.response_end = end;
        list.set(index.into(), &entry);
        // Others of its batch may stand before it.
        let before = index.checked_sub(1).and_then(|before| list.get(before.into()));
        let bytes = before.map_or_else(|| self.head_bytes(), |before| self.unanswered(before.request_end));
        let mut scratch = HeaderScratch::new();
        if let Ok(Progress::Done(head)) = head::parse(bytes, cx.limits.head, &mut scratch) {
            let sent = (end - entry.response_start).saturating_sub(head_len);
            let client = || client_of(&cx.listens, &self.record, &head);
            if self.record.start() < self.replayed_until {
                cx.access_log.mark(crate::access_log::Outcome::Replayed);
            }
            cx.access_log.add(client, &head, entry.kind.status, sent, entry.date);
        }
        true
    }

    /// What the output waited for was done by the loop itself: others come first before it is sent.
    pub(super) fn fetched_here(&mut self, cx: &mut Context, done: Done) -> Fate {
        if self.fetched(cx, done) { Fate::GoOn } else { Fate::Close }
    }

    /// A thread has done what the output waited for.
    pub(super) fn output_arrived(&mut self, cx: &mut Context, done: Done) -> Fate {
        if self.fetched(cx, done) { self.writable(cx) } else { Fate::Close }
    }

    /// Makes output of what was fetched; false when there is nothing to be made of it, and the connection cannot go on.
    fn fetched(&mut self, cx: &mut Context, done: Done) -> bool {
        let Some(mut output) = self.output.take() else { return false };
        if !self.take_in(cx, &mut output, done) {
            // To an HTTP/1.0 peer an orderly end is the end of the body.
            crate::rescue::reset_on_close(self.fd);
            return false;
        }
        self.output = Some(output);
        true
    }
}
