//! A body that comes on the way: the next portion is asked for once the last one has left, so that a peer that does not read costs
//! one portion and no more. Threads make it, or a task waits for it.

use std::future::poll_fn;
use std::io;
use std::mem::take;
use std::task::{Context as Polling, Poll, Waker};

use bytes::Bytes;

use super::context::client_of;
use super::output::Output;
use super::tail::Part;
use super::{Connection, Context, Fate};
use crate::crash_point::{self, Point};
use crate::http::chunked;
use crate::http::reply::Source;
use crate::http::{HeaderScratch, Progress, head};
use crate::in_handler;
use crate::pool::{Done, Job};

/// Bytes that are at hand of a stream leave together, up to this many.
const GATHERED: usize = 16 * 1024;

/// How the bytes of a stream are told from what follows them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// In chunks.
    Chunks,
    /// There are so many more.
    Length(u64),
    /// The connection ends with them.
    UntilClose,
}

impl Coding {
    /// Of a stream of `len` bytes, if that is known, to a peer that reads chunks or not.
    pub(super) fn of(len: Option<u64>, chunked: bool) -> Coding {
        match len {
            Some(len) => Coding::Length(len),
            None if chunked => Coding::Chunks,
            None => Coding::UntilClose,
        }
    }
}

/// A body on its way.
pub(super) struct Stream {
    /// Away while somebody else has it.
    source: Option<Source>,
    /// Bytes of the response's head.
    head: u64,
    coding: Coding,
    /// Bytes, framing included, that the peer has had from a predecessor.
    skip: u64,
    done: bool,
}

/// What comes next of a stream.
pub(super) enum Next {
    Now(Portion),
    /// What this comes to.
    Later(Job),
    /// Nothing: it is away.
    Lost,
}

/// Some bytes of a stream, and the rest of it.
pub(super) struct Portion {
    source: Source,
    bytes: Vec<Bytes>,
    more: io::Result<bool>,
}

impl Portion {
    pub(super) fn len(&self) -> u64 {
        self.bytes.iter().map(|bytes| bytes.len() as u64).sum()
    }
}

impl Stream {
    pub(super) fn new(head: u64, source: Source, coding: Coding) -> Stream {
        Stream { source: Some(source), head, coding, skip: 0, done: false }
    }

    /// Bytes that it will have, if that is known.
    pub(super) fn len(&self) -> Option<u64> {
        match self.coding {
            Coding::Length(left) => Some(left),
            _ => None,
        }
    }

    /// The first `count` bytes that are made have left already.
    pub(super) fn skip(&mut self, count: u64) {
        self.skip += count;
    }

    /// Its last portion has been made.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// The next portion.
    pub(super) fn next(&mut self) -> Next {
        match self.source.take() {
            None => Next::Lost,
            Some(Source::Made(mut producer)) => Next::Later(Job::new(move || {
                crash_point::pass(Point::InPool);
                let mut bytes = Vec::new();
                let more = producer.next(&mut bytes);
                Portion { source: Source::Made(producer), bytes: vec![bytes.into()], more }
            })),
            // What is there already is taken at once: only what has to be waited for is worth a task.
            Some(mut source) => {
                match in_handler::guard(|| poll(&mut source, &mut Polling::from_waker(Waker::noop()))) {
                    None => Next::Lost,
                    Some(Poll::Ready((bytes, more))) => Next::Now(Portion { source, bytes, more }),
                    Some(Poll::Pending) => Next::Later(Job::task(async move {
                        let (bytes, more) = poll_fn(|cx| poll(&mut source, cx)).await;
                        Portion { source, bytes, more }
                    })),
                }
            }
        }
    }

    /// Takes a portion in and returns its bytes as they are sent; none when it could not be made.
    fn take(&mut self, portion: Portion) -> Option<Vec<Bytes>> {
        let (len, more) = (portion.len(), portion.more.ok()?);
        self.done = !more;
        self.source = Some(portion.source);
        let mut framed = Vec::with_capacity(portion.bytes.len() + 2);
        match &mut self.coding {
            Coding::UntilClose => framed.extend(portion.bytes),
            Coding::Length(left) => {
                // Neither more nor fewer than were promised.
                *left = left.checked_sub(len).filter(|left| more || *left == 0)?;
                self.done = *left == 0;
                framed.extend(portion.bytes);
            }
            Coding::Chunks => chunked::append_chunk(&mut framed, portion.bytes, !more),
        }
        for bytes in &mut framed {
            let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            self.skip -= skipped as u64;
            drop(bytes.split_to(skipped));
        }
        framed.retain(|bytes| !bytes.is_empty());
        Some(framed)
    }
}

/// What an awaited source has at hand, and whether there is more; pending when that is nothing.
fn poll(source: &mut Source, cx: &mut Polling<'_>) -> Poll<(Vec<Bytes>, io::Result<bool>)> {
    let Source::Awaited(flow) = source else { return Poll::Ready((Vec::new(), Ok(false))) };
    let (mut bytes, mut len) = (Vec::new(), 0);
    while len < GATHERED {
        match flow.as_mut().poll_next(cx) {
            Poll::Pending if len == 0 => return Poll::Pending,
            Poll::Pending => break,
            Poll::Ready(None) => return Poll::Ready((take(&mut bytes), Ok(false))),
            Poll::Ready(Some(Err(error))) => return Poll::Ready((take(&mut bytes), Err(error))),
            Poll::Ready(Some(Ok(more))) => {
                len += more.len();
                bytes.push(more);
            }
        }
    }
    Poll::Ready((bytes, Ok(true)))
}

impl Connection {
    /// A thread has made a portion of a stream, or fetched a part of a file: adds it to the output. False when it failed.
    pub(super) fn take_in(&mut self, cx: &mut Context, output: &mut Output, done: Done) -> bool {
        let Ok(done) = done else { return false };
        match done.downcast::<Portion>() {
            Ok(portion) => self.take_portion(cx, output, *portion),
            Err(done) => {
                let (Some(Part::File(part)), Ok(fetched)) =
                    (output.parts.front_mut(), done.downcast::<super::tail::Fetched>())
                else {
                    return false;
                };
                part.warm = fetched.0;
                true
            }
        }
    }

    /// Adds a portion of a stream to the output. False when it could not be made.
    pub(super) fn take_portion(&mut self, cx: &mut Context, output: &mut Output, portion: Portion) -> bool {
        let Some(stream) = output.stream.as_mut() else { return false };
        let Some(bytes) = stream.take(portion) else { return false };
        output.parts.extend(bytes.into_iter().map(|bytes| Part::Bytes { bytes, at: 0 }));
        if !stream.is_done() {
            return true;
        }
        // A successor sent bytes that this stream never had, else: it is another one.
        stream.skip == 0 && self.end_stream(cx, output)
    }

    /// The end of a stream is known: it is put on record before the last bytes leave.
    fn end_stream(&mut self, cx: &mut Context, output: &mut Output) -> bool {
        let Some(Stream { source, head: head_len, coding, .. }) = output.stream.take() else { return false };
        if matches!(coding, Coding::Length(_)) {
            // Known, and written down, since before its first byte.
            return true;
        }
        let end = self.record.sent() + output.len();
        let (Some(list), Some(index)) = (self.pending(cx), self.record.state().pending.checked_sub(1)) else {
            return false;
        };
        let Some(mut entry) = list.get(index.into()) else { return false };
        if let Some(Source::Awaited(flow)) = source {
            entry.kind.status = flow.status().unwrap_or(entry.kind.status);
        }
        if !self.is_open() {
            entry.response_end = end;
        }
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
