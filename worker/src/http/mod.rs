//! The protocol core: HTTP/1.1 as bytes in, values and bytes out (RFC 9110, RFC 9112).
//!
//! It owns how requests are read and replies are written. It leaves sockets, buffers and time to `conn`, and what to
//! answer to `service`: nothing here makes a system call, and nothing here panics, whatever the peer sends.

pub mod body;
mod chunk_extension;
pub mod chunked;
pub mod coding;
pub mod conditional;
pub mod date;
pub mod encode;
mod fields;
pub mod forwarded;
pub mod head;
pub mod multipart;
pub mod path;
pub mod range;
pub mod reply;
pub mod status;
mod target;
pub mod trailer;
pub(crate) mod weight;

pub use body::Decoder;
pub use coding::{Accepted, Choice, Coding};
pub use date::DateCache;
pub use encode::Envelope;
pub use head::{Framing, Head, HeaderScratch, Progress, Refusal, parse};
pub use reply::{Body, Prepared, Reply, Response};
pub use trailer::Trailer;
