//! A connection that begins with the word of a proxy about whom it speaks for (the PROXY protocol).

use std::net::SocketAddr;

use phalanx_shared::debug;
use phalanx_shared::ledger::record::Peer;

use super::{Connection, Context, Fate};
use crate::http::Progress;
use crate::proxy_protocol::{self, Source};

impl Connection {
    /// Takes the header off the front of the connection, once it is there; none: go on. What it says replaces the peer, in the
    /// log and in every limit. A successor that finds the header half taken takes it again.
    pub(super) fn hear_proxy(&mut self, cx: &mut Context) -> Option<Fate> {
        if self.record.start() != 0 || self.buffer.is_none() {
            return None;
        }
        let header = match proxy_protocol::parse(self.unanswered(0)) {
            Ok(Progress::Done(header)) => header,
            Ok(Progress::NeedMore) if self.finished => return Some(Fate::Close),
            Ok(Progress::NeedMore) => return Some(Fate::Stay),
            Err(why) => {
                debug!("connection {} does not begin with a PROXY header ({why:?}): closed", self.fd);
                return Some(Fate::Close);
            }
        };
        if let Source::Address(address) = header.source {
            self.record.set_peer(Peer::Ip(canonical(address)), self.record.listener());
        }
        self.record.set_start(header.len as u64);
        if !self.count_client(cx) {
            return Some(self.turn_away(cx));
        }
        if self.record.start() == self.record.consumed() {
            self.release_buffer(cx);
            self.waits = super::Waits::Idle;
        }
        None
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
