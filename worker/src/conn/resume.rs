//! A response that its worker died in the middle of: made again with the recorded date and, if it is the same to the byte,
//! continued where the kernel says it broke off.

use std::os::fd::AsRawFd;

use phalanx_shared::ledger::response::Entry;

use super::output::{Output, Span};
use super::serve::{read_small_file, run_handler};
use super::{Connection, Context};
use crate::http::encode::{self, CONTINUE, Envelope};
use crate::http::{HeaderScratch, Progress, Reply, head};

/// A response made again.
struct Remade {
    bytes: Vec<u8>,
    file: Option<Span>,
}

impl Connection {
    /// Prepares the rest of the response on record as `entry`, of which bytes up to stream position `sent` have left. False
    /// when it cannot be made again to the byte; then the peer must see a truncation.
    pub(crate) fn resume(&mut self, cx: &mut Context, entry: &Entry, sent: u64) -> bool {
        let length = entry.response_end - entry.response_start;
        let remade = match entry.kind.interim {
            true => Some(Remade { bytes: CONTINUE.to_vec(), file: None }),
            false => self.run_again(cx, entry).or_else(|| error_again(cx, entry)),
        };
        let Some(mut remade) = remade.filter(|remade| remade.length() == length) else { return false };
        remade.skip(sent - entry.response_start);
        if let Some(span) = &remade.file {
            self.record.set_file(Some(span.file.as_raw_fd()));
        }
        self.output = Some(Box::new(Output { bytes: remade.bytes, at: 0, file: remade.file }));
        true
    }

    /// Asks the service again; none when it answers something else now.
    fn run_again(&self, cx: &mut Context, entry: &Entry) -> Option<Remade> {
        if self.record.doom().is_some_and(|(at, _)| at == self.record.start()) {
            return None;
        }
        let mut scratch = HeaderScratch::new();
        let parsed = head::parse(self.unanswered(self.record.start()), cx.limits.head, &mut scratch);
        let Ok(Progress::Done(head)) = parsed else { return None };
        if !head.idempotent() {
            return None;
        }
        let mut reply = run_handler(&cx.router, &head);
        if !head.is_head() {
            read_small_file(&mut reply);
        }
        let envelope = Envelope {
            date: cx.date.text(entry.date),
            minor_version: head.minor_version,
            keep_alive: !entry.kind.last,
            head_only: head.is_head(),
        };
        remake(reply, &envelope, entry)
    }
}

/// The error page that a refusal sent.
fn error_again(cx: &mut Context, entry: &Entry) -> Option<Remade> {
    if !(400..=599).contains(&entry.kind.status) {
        return None;
    }
    let date = cx.date.text(entry.date);
    let envelope = Envelope { date, minor_version: 1, keep_alive: !entry.kind.last, head_only: false };
    remake(Reply::error(entry.kind.status), &envelope, entry)
}

fn remake(mut reply: Reply<'_>, envelope: &Envelope<'_>, entry: &Entry) -> Option<Remade> {
    if reply.validator() == 0 || reply.validator() != entry.validator {
        return None;
    }
    let mut bytes = Vec::new();
    encode::append(&mut bytes, &reply, envelope);
    let file = if envelope.head_only { None } else { reply.take_file() };
    Some(Remade { bytes, file: file.map(|(file, offset, left)| Span { file, offset, left }) })
}

impl Remade {
    fn length(&self) -> u64 {
        self.bytes.len() as u64 + self.file.as_ref().map_or(0, |span| span.left)
    }

    /// Drops the first `count` bytes, at most all of them.
    fn skip(&mut self, count: u64) {
        let of_bytes = count.min(self.bytes.len() as u64);
        self.bytes.drain(..of_bytes as usize);
        if let Some(span) = self.file.as_mut() {
            let of_file = (count - of_bytes).min(span.left);
            span.offset += of_file;
            span.left -= of_file;
        }
    }
}
