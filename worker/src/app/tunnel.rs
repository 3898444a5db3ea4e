//! Connections that leave HTTP for another protocol (RFC 9110, 7.8), such as WebSockets of axum. Only hyper can make what a service
//! gets for that (`OnUpgrade`), so such a request is handed to hyper with all that its connection carries from there on: bytes in
//! and bytes out, which the event loop moves as it does those of any body.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use http_body::Body as HttpBody;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::task::AbortHandle;

use super::Incoming;
use super::tower::BoxError;
use crate::http::Head;
use crate::http::reply::Flow;

/// Bytes that a service may be ahead of its client.
const AHEAD: usize = 64 * 1024;
/// Bytes of a portion.
const PORTION: usize = 16 * 1024;

/// Begins to answer, given what the peer sends from the head of the request on; tells what is to be sent.
pub(crate) type Open = Box<dyn FnOnce(Incoming) -> Pin<Box<dyn Flow>> + Send>;

/// Whether a request asks to leave HTTP. Nobody is asked to leave HTTP/1.1 for HTTP/2 here (RFC 9113, 3.1).
pub(crate) fn is_wanted(head: &Head<'_>) -> bool {
    let Some(protocol) = head.header("upgrade") else { return false };
    let options = head.header_lines("connection").flat_map(|line| line.split(|&byte| byte == b','));
    let named = options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    let whole = matches!(head.framing, crate::http::Framing::None);
    named && whole && head.minor_version == 1 && !protocol.eq_ignore_ascii_case(b"h2c")
}

/// Has hyper serve one request, and whatever comes after it, with `answer`.
pub(super) fn open<A, F, B, E>(incoming: Incoming, answer: A) -> Pin<Box<dyn Flow>>
where
    A: Fn(http::Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<http::Response<B>, E>> + Send + 'static,
    B: HttpBody + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    let (near, far) = tokio::io::duplex(AHEAD);
    let io = TokioIo::new(Both { incoming, at_hand: Bytes::new(), outgoing: near });
    let status = Arc::new(AtomicU16::new(0));
    let said = status.clone();
    let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        // It has no body, or it would not be here.
        let answered = answer(request.map(|_| Incoming::whole(Bytes::new())));
        let status = said.clone();
        async move {
            let mut response = answered.await?;
            status.store(response.status().as_u16(), Ordering::Relaxed);
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // Nobody is served a second request here.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, E>(response)
        }
    });
    // Not told to close: then a 101 would say so too, and some clients of WebSockets read that field to the letter.
    let connection = http1::Builder::new().serve_connection(io, answer).with_upgrades();
    // What goes wrong with it ends it, and so its flow.
    let task = tokio::spawn(async move { connection.await.unwrap_or_default() });
    Box::pin(Outgoing { far, task: task.abort_handle(), status })
}

/// A connection as hyper sees it.
struct Both {
    incoming: Incoming,
    at_hand: Bytes,
    outgoing: DuplexStream,
}

impl AsyncRead for Both {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.at_hand.is_empty() {
            match ready!(self.incoming.poll_next(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(next) => self.at_hand = next?,
            }
        }
        let count = self.at_hand.len().min(out.remaining());
        out.put_slice(&self.at_hand[..count]);
        self.at_hand.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Both {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.outgoing).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.outgoing).poll_shutdown(cx)
    }
}

/// What hyper, or who has the connection after it, sends.
struct Outgoing {
    far: DuplexStream,
    task: AbortHandle,
    /// What the service has answered; 0: nothing yet.
    status: Arc<AtomicU16>,
}

impl Flow for Outgoing {
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let mut bytes = BytesMut::zeroed(PORTION);
        let mut out = ReadBuf::new(&mut bytes);
        let read = ready!(Pin::new(&mut self.far).poll_read(cx, &mut out));
        let count = out.filled().len();
        bytes.truncate(count);
        Poll::Ready(match read {
            Ok(()) if count == 0 => None,
            Ok(()) => Some(Ok(bytes.freeze())),
            Err(error) => Some(Err(error)),
        })
    }

    fn status(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status > 0)
    }
}

/// Nobody reads it any more.
impl Drop for Outgoing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::with_head;

    #[test]
    fn who_asks_to_leave_names_it_in_both_fields() {
        for (fields, wanted) in [
            ("Upgrade: websocket\r\nConnection: Upgrade\r\n", true),
            ("Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n", true),
            ("Upgrade: websocket\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n", true),
            ("Upgrade: websocket\r\n", false),
            ("Upgrade: websocket\r\nConnection: upgrades\r\n", false),
            ("Connection: Upgrade\r\n", false),
            ("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n", false),
            ("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 1\r\n", false),
        ] {
            assert_eq!(with_head("GET /", fields, is_wanted), wanted, "{fields}");
        }
    }
}
