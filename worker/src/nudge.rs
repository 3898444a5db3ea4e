//! Nudges: whoever has made something possible that a connection waits for tells the connection's loop, from whatever thread. Knows
//! connections by descriptor and cookie, and nothing of what they wait for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use phalanx_shared::ipc::channel::Doorbell;

use crate::lock::lock;

/// A loop's ear for nudges.
pub struct Nudges(Arc<Shared>);

/// Nudges one connection.
#[derive(Clone)]
pub struct Nudge {
    shared: Arc<Shared>,
    fd: RawFd,
    cookie: u64,
}

struct Shared {
    nudged: Mutex<Vec<(RawFd, u64)>>,
    bell: Doorbell,
}

impl Nudges {
    /// Without any.
    ///
    /// # Errors
    /// That there is no descriptor left for its bell.
    pub fn new() -> io::Result<Nudges> {
        Ok(Nudges(Arc::new(Shared { nudged: Mutex::default(), bell: Doorbell::new()? })))
    }

    /// Readable when there are some.
    pub fn bell(&self) -> RawFd {
        self.0.bell.as_fd().as_raw_fd()
    }

    /// For the connection of this descriptor, whose socket has this cookie.
    pub fn for_connection(&self, fd: RawFd, cookie: u64) -> Nudge {
        Nudge { shared: self.0.clone(), fd, cookie }
    }

    /// Those that were nudged since the last time.
    pub fn take(&self) -> Vec<(RawFd, u64)> {
        // Before they are taken: what comes meanwhile rings anew.
        self.0.bell.silence();
        std::mem::take(&mut *lock(&self.0.nudged))
    }
}

impl Nudge {
    /// Tells the loop.
    pub fn nudge(&self) {
        let mut nudged = lock(&self.shared.nudged);
        nudged.push((self.fd, self.cookie));
        if nudged.len() == 1 {
            self.shared.bell.ring();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nudge_rings_once_until_it_is_heard() {
        let nudges = Nudges::new().unwrap();
        let rings = || crate::event::poll::is_any_readable([nudges.bell()], std::time::Duration::ZERO);
        assert!(!rings() && nudges.take().is_empty());
        let (one, other) = (nudges.for_connection(3, 30), nudges.for_connection(4, 40));
        std::thread::spawn(move || one.nudge()).join().unwrap();
        other.nudge();
        assert!(rings());
        assert_eq!(nudges.take(), [(3, 30), (4, 40)]);
        assert!(!rings() && nudges.take().is_empty());
        other.nudge();
        assert!(rings());
    }
}
