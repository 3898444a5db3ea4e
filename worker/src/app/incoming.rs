//! A body on its way from a connection to its handler: a bounded queue of bytes. The connection feeds it as the peer sends, and reads
//! on when the handler has taken enough; so a peer that is faster than its handler waits.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};

use crate::lock::lock;
use crate::nudge::Nudge;
use crate::watch::spared;

/// Bytes that may wait for the handler before the connection reads no more.
const ROOM: usize = 128 * 1024;

/// Bytes that are handed on together, if they have not been taken yet.
const PIECE: usize = 16 * 1024;

/// The connection's end.
pub(crate) struct Feed {
    pipe: Arc<Pipe>,
}

/// The body of a request, as it comes.
#[derive(Debug)]
pub struct Incoming {
    content: Content,
}

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    Piped { pipe: Arc<Pipe>, left: Option<u64> },
}

struct Pipe {
    state: Mutex<State>,
    something: Condvar,
    /// Tells the connection that there is room again.
    nudge: Nudge,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<BytesMut>,
    len: usize,
    /// How it ended, once it has.
    end: Option<End>,
    waker: Option<Waker>,
    /// The connection waits for room.
    stalled: bool,
    /// Nobody takes any more.
    abandoned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    /// The peer has gone, or has sent what is no body.
    Broken,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipe with {} bytes", lock(&self.state).len)
    }
}

/// Both ends of a body of `len` bytes, if that is known.
pub(crate) fn pipe(nudge: Nudge, len: Option<u64>) -> (Feed, Incoming) {
    let pipe = Arc::new(Pipe { state: Mutex::default(), something: Condvar::new(), nudge });
    (Feed { pipe: pipe.clone() }, Incoming { content: Content::Piped { pipe, left: len } })
}

impl Feed {
    /// Hands bytes on.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = lock(&self.pipe.state);
        if state.abandoned || bytes.is_empty() {
            return;
        }
        // Small ones are put together: each costs more than its bytes.
        match state.pieces.back_mut() {
            Some(last) if last.len() + bytes.len() <= PIECE => last.extend_from_slice(bytes),
            _ => state.pieces.push_back(BytesMut::from(bytes)),
        }
        state.len += bytes.len();
        self.pipe.tell(state);
    }

    /// The body is complete.
    pub(crate) fn finish(self) {
        self.end(End::Complete);
    }

    fn end(&self, end: End) {
        let mut state = lock(&self.pipe.state);
        state.end.get_or_insert(end);
        self.pipe.tell(state);
    }

    /// Whether more may be handed on now; if not, the connection is nudged when it may.
    pub(crate) fn has_room(&self) -> bool {
        let mut state = lock(&self.pipe.state);
        let room = state.abandoned || state.len < ROOM;
        state.stalled |= !room;
        room
    }
}

/// What is not complete by then never will be.
impl Drop for Feed {
    fn drop(&mut self) {
        self.end(End::Broken);
    }
}

impl Pipe {
    fn tell(&self, mut state: std::sync::MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.something.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What comes next; none while nothing is there.
    fn next(&self, state: &mut State) -> Option<Option<io::Result<Bytes>>> {
        let Some(bytes) = state.pieces.pop_front() else {
            return Some(match state.end? {
                End::Complete => None,
                End::Broken => Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client sent no more of it"))),
            });
        };
        state.len -= bytes.len();
        if state.stalled && state.len <= ROOM / 2 {
            state.stalled = false;
            self.nudge.nudge();
        }
        Some(Some(Ok(bytes.freeze())))
    }
}

impl Incoming {
    /// One that is there already.
    pub(crate) fn whole(bytes: Bytes) -> Incoming {
        Incoming { content: Content::Whole(bytes) }
    }

    /// All of it, however long that takes; what is not whole is none.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = Reading::of(self).read_to_end(&mut bytes);
        if read.is_ok() { bytes } else { Vec::new() }
    }

    /// Bytes that are still to come, if that is known.
    pub fn remaining(&self) -> Option<u64> {
        match &self.content {
            Content::Whole(bytes) => Some(bytes.len() as u64),
            Content::Piped { left, .. } => *left,
        }
    }

    /// The next bytes, at least one, as soon as they are there; none behind the last.
    ///
    /// # Errors
    /// The client has gone, or has sent what is no body; nothing comes after that.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let pipe = match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Content::Whole(bytes) => return Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Content::Piped { pipe, .. } => pipe.clone(),
        };
        let mut state = lock(&pipe.state);
        match pipe.next(&mut state) {
            Some(next) => Poll::Ready(self.taken(next)),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The same, for a thread that may wait.
    fn wait_next(&mut self) -> Option<io::Result<Bytes>> {
        let pipe = match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => return None,
            Content::Whole(bytes) => return Some(Ok(std::mem::take(bytes))),
            Content::Piped { pipe, .. } => pipe.clone(),
        };
        let mut state = lock(&pipe.state);
        loop {
            match pipe.next(&mut state) {
                Some(next) => return self.taken(next),
                None => state = spared(|| pipe.something.wait(state)).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn taken(&mut self, next: Option<io::Result<Bytes>>) -> Option<io::Result<Bytes>> {
        if let (Some(Ok(bytes)), Content::Piped { left: Some(left), .. }) = (&next, &mut self.content) {
            *left = left.saturating_sub(bytes.len() as u64);
        }
        next
    }
}

/// What is left is thrown away as it comes.
impl Drop for Incoming {
    fn drop(&mut self) {
        let Content::Piped { pipe, .. } = &self.content else { return };
        let mut state = lock(&pipe.state);
        state.abandoned = true;
        state.len = 0;
        let left = std::mem::take(&mut state.pieces);
        if std::mem::take(&mut state.stalled) {
            pipe.nudge.nudge();
        }
        drop(state);
        drop(left);
    }
}

/// Reads a body as it comes, for a thread that may wait.
#[derive(Debug)]
pub(crate) struct Reading {
    incoming: Incoming,
    at_hand: Bytes,
}

impl Reading {
    pub(crate) fn of(incoming: Incoming) -> Reading {
        Reading { incoming, at_hand: Bytes::new() }
    }

    /// How many bytes are left, if that is known.
    pub(crate) fn remaining(&self) -> Option<u64> {
        Some(self.incoming.remaining()? + self.at_hand.len() as u64)
    }
}

impl Read for Reading {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at_hand.is_empty() {
            match self.incoming.wait_next() {
                None => return Ok(0),
                Some(next) => self.at_hand = next?,
            }
        }
        let count = self.at_hand.len().min(out.len());
        self.at_hand.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nudge::Nudges;

    fn piped(nudges: &Nudges) -> (Feed, Incoming) {
        pipe(nudges.for_connection(3, 30), None)
    }

    #[test]
    fn a_reader_gets_all_of_it_and_then_the_end() {
        let nudges = Nudges::new().unwrap();
        let (feed, incoming) = piped(&nudges);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            Reading::of(incoming).read_to_end(&mut all).map(|_| all)
        });
        (0..100u8).for_each(|byte| feed.push(&[byte; 100]));
        feed.finish();
        let all = reader.join().unwrap().unwrap();
        assert_eq!(all, (0..100u8).flat_map(|byte| [byte; 100]).collect::<Vec<u8>>());
    }

    #[test]
    fn a_connection_that_goes_is_an_error_and_no_end() {
        let nudges = Nudges::new().unwrap();
        let (feed, incoming) = piped(&nudges);
        feed.push(b"ab");
        drop(feed);
        let mut all = Vec::new();
        let error = Reading::of(incoming).read_to_end(&mut all).unwrap_err();
        assert_eq!((error.kind(), all.as_slice()), (io::ErrorKind::UnexpectedEof, &b"ab"[..]));
    }

    #[test]
    fn a_connection_waits_for_a_slow_reader_and_not_for_one_that_has_gone() {
        let nudges = Nudges::new().unwrap();
        let (feed, mut incoming) = piped(&nudges);
        while feed.has_room() {
            feed.push(&[0; 16 * 1024]);
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(incoming.poll_next(&mut cx).is_ready() && nudges.take().is_empty(), "not yet");
        while nudges.take().is_empty() {
            assert!(incoming.poll_next(&mut cx).is_ready());
        }
        while feed.has_room() {
            feed.push(&[0; 16 * 1024]);
        }
        drop(incoming);
        assert_eq!(nudges.take(), [(3, 30)]);
        assert!(feed.has_room());
    }
}
