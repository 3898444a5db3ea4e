//! The request buffers of a worker: taken when a connection has something to read, put back when all of it is answered, the
//! last one put back first, so that a busy worker keeps using the few that are warm.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use phalanx_shared::ledger::Ledger;
use phalanx_shared::sys::region::Buffer;

use crate::lock::lock;

/// Spare buffers that are taken before the free ones are counted again.
const MOST_ALLOWED: usize = 256;

/// The free buffers of a lane, as one thread of the worker has them.
pub struct Buffers {
    ledger: Ledger,
    lane: Range<usize>,
    returned: Vec<Buffer>,
    /// So many may be taken as spare ones before the free ones are counted again.
    allowed: usize,
    /// More are given back to the other threads.
    keeps: usize,
    depot: Arc<Mutex<Depot>>,
}

/// What no thread has.
struct Depot {
    fresh: Range<usize>,
    /// Numbers that connections named when this worker booted: not free, whatever becomes of them later.
    used: HashSet<usize>,
    returned: Vec<Buffer>,
}

impl Buffers {
    /// The buffers of `lane` that no record of the ledger names and no process has that serves a connection.
    pub fn new(ledger: &Ledger, lane: usize) -> Buffers {
        let mut used: HashSet<usize> = ledger.recorded().filter_map(|(_, record)| record.buffer()).collect();
        used.extend(ledger.recorded().flat_map(|(_, record)| ledger.chain(&record)));
        used.extend(crate::rescue::sweep::living(ledger).flat_map(|track| track.lent()));
        let lane = ledger.buffers_of_lane(lane);
        let depot = Depot { fresh: lane.clone(), used, returned: Vec::new() };
        let depot = Arc::new(Mutex::new(depot));
        Buffers { ledger: ledger.clone(), lane, returned: Vec::new(), allowed: 0, keeps: usize::MAX, depot }
    }

    /// The same, for another thread. From now on each keeps at most `keeps` free ones to itself.
    pub fn share(&mut self, keeps: usize) -> Buffers {
        self.keeps = self.keeps.min(keeps);
        let (ledger, lane, depot) = (self.ledger.clone(), self.lane.clone(), self.depot.clone());
        Buffers { ledger, lane, returned: Vec::new(), allowed: 0, keeps, depot }
    }

    /// These and no others, for a process that has a copy of this one's memory.
    pub fn only(&self, lent: Vec<Buffer>) -> Buffers {
        let depot = Depot { fresh: 0..0, used: HashSet::new(), returned: Vec::new() };
        let (ledger, lane) = (self.ledger.clone(), self.lane.clone());
        Buffers { ledger, lane, returned: lent, allowed: 0, keeps: usize::MAX, depot: Arc::new(Mutex::new(depot)) }
    }

    /// A free buffer; none when all are in use.
    pub fn take(&mut self) -> Option<Buffer> {
        if let Some(buffer) = self.returned.pop() {
            return Some(buffer);
        }
        let mut depot = self.depot();
        if let Some(buffer) = depot.returned.pop() {
            return Some(buffer);
        }
        let Depot { fresh, used, .. } = &mut *depot;
        fresh.by_ref().filter(|index| !used.contains(index)).find_map(|index| self.ledger.buffer(index))
    }

    /// As [`Buffers::take`], of those beyond a reserve: none when few are left.
    pub fn take_spare(&mut self) -> Option<Buffer> {
        if self.allowed == 0 {
            // Whoever else takes some in between makes it less; few do, and it is looked at again before long.
            let depot = self.depot();
            let free = depot.fresh.len() + depot.returned.len();
            drop(depot);
            let spare = (self.returned.len() + free).saturating_sub(self.lane.len() / 4);
            self.allowed = spare.min(MOST_ALLOWED);
        }
        self.allowed = self.allowed.checked_sub(1)?;
        self.take()
    }

    /// The buffer that a record names, for a connection that is taken over; none when the number is wrong or held already.
    pub fn claim(&self, index: usize) -> Option<Buffer> {
        self.ledger.buffer(index)
    }

    /// A buffer that no record names any more. One of another lane is left to that lane's next worker.
    pub fn put(&mut self, buffer: Buffer) {
        if !self.lane.contains(&buffer.index()) {
            return;
        }
        if self.returned.len() < self.keeps {
            return self.returned.push(buffer);
        }
        self.depot().returned.push(buffer);
    }

    /// A thread that panicked holds nothing of it open.
    fn depot(&self) -> MutexGuard<'_, Depot> {
        lock(&self.depot)
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        let mut returned = std::mem::take(&mut self.returned);
        self.depot().returned.append(&mut returned);
    }
}
