//! What a program opens in a worker on its own, connections to a database for instance, is in no record, and the slot's table would
//! keep it when that worker has left. Its successor looks for such descriptors before it opens anything itself, and closes them when
//! all whose they could be have gone. A worker that boots alone has them swept.
//!
//! Numbers are used again as soon as they are free, so what is closed then is what was seen: a socket or a pipe by its inode, which
//! no other has, a device or a bell by a second descriptor of the same open file. Regular files are left to the sweep: a second
//! descriptor would hold their locks (flock(2)), and to close one drops those of others in the table (fcntl_locking(2)).

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::stat::{SFlag, fstat};
use phalanx_shared::ledger::record::Owner;
use phalanx_shared::ledger::{LANES, Ledger};
use phalanx_shared::sys::table::{self, borrow};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{is_child_alive, sweep};
use crate::conn::Context;
use crate::enter::Inheritance;

/// So many are looked after at most; what is beyond stays until a worker boots alone.
const MOST: usize = 4096;
/// … of those that a second descriptor is held of.
const MOST_HELD: usize = 64;

/// Descriptors of workers that lived in this table when this one was born.
#[derive(Default)]
pub(crate) struct Strangers {
    /// Those workers (pidfd_open(2)).
    of: Vec<OwnedFd>,
    found: Vec<Stranger>,
}

struct Stranger {
    fd: RawFd,
    identity: Identity,
}

enum Identity {
    /// Device and inode.
    Inode(u64, u64),
    Same(OwnedFd),
}

impl Identity {
    fn of(fd: RawFd, held: &mut usize) -> Option<Identity> {
        let stat = fstat(borrow(fd)).ok()?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        match kind {
            SFlag::S_IFSOCK | SFlag::S_IFIFO => Some(Identity::Inode(stat.st_dev, stat.st_ino)),
            SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFBLK => None,
            _ if *held == MOST_HELD => None,
            _ => {
                *held += 1;
                Some(Identity::Same(borrow(fd).try_clone_to_owned().ok()?))
            }
        }
    }

    fn is_of(&self, fd: RawFd) -> bool {
        match self {
            Identity::Inode(device, inode) => {
                fstat(borrow(fd)).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (*device, *inode))
            }
            Identity::Same(held) => table::is_same(fd, held.as_raw_fd()),
        }
    }
}

impl Strangers {
    /// Looks for what the workers with these process ids may have opened, which live in this table. For a worker that has nothing of its
    /// own yet.
    pub(crate) fn look(cx: &Context, inheritance: &Inheritance, neighbours: &[i32]) -> Strangers {
        if neighbours.is_empty() {
            return Strangers::default();
        }
        let noted = noted(&cx.ledger);
        let mut unknown = sweep::in_no_record(&cx.ledger, inheritance);
        unknown.retain(|fd| !noted.contains(fd) && !sweep::is_connection(*fd, inheritance));
        let (mut found, mut held) = (Vec::new(), 0);
        for fd in unknown.into_iter().take(MOST) {
            found.extend(Identity::of(fd, &mut held).map(|identity| Stranger { fd, identity }));
        }
        // One that is gone already has no descriptor of its own.
        let watched = |pid: &i32| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
        Strangers { of: neighbours.iter().filter_map(watched).collect(), found }
    }

    /// Those of its workers: each is readable when that has gone.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.of.iter().map(AsRawFd::as_raw_fd)
    }

    /// The worker of that descriptor has gone; false: it is none of these.
    pub(crate) fn has_gone(&mut self, fd: RawFd) -> bool {
        let before = self.of.len();
        self.of.retain(|worker| worker.as_raw_fd() != fd);
        self.of.len() < before
    }

    /// Closes what nobody has any more. `adopted`: processes of connections that other workers have cloned live on under this one; they
    /// have the descriptors of theirs.
    pub(crate) fn close(&mut self, cx: &Context, adopted: bool) {
        if !self.of.is_empty() || self.found.is_empty() || adopted || has_orphans(cx) {
            return;
        }
        let noted = noted(&cx.ledger);
        for Stranger { fd, identity } in std::mem::take(&mut self.found) {
            if !noted.contains(&fd) && !sweep::is_recorded(&cx.ledger, fd) && identity.is_of(fd) {
                table::close(fd);
            }
        }
    }
}

fn noted(ledger: &Ledger) -> Vec<RawFd> {
    (0..LANES).flat_map(|lane| ledger.table().noted(lane)).collect()
}

/// Whether processes of connections live on without their worker, or under another.
fn has_orphans(cx: &Context) -> bool {
    cx.ledger.recorded().any(|(_, record)| match record.owner() {
        Some(Owner::Child { of, lane, track }) => of != cx.incarnation && is_child_alive(&cx.ledger, lane, track),
        _ => false,
    })
}
