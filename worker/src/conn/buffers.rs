//! The request buffers of a worker: taken when a connection has something to read, put back when all of it is answered, the
//! last one put back first, so that a busy worker keeps using the few that are warm.

use std::collections::HashSet;
use std::ops::Range;

use phalanx_shared::ledger::Ledger;
use phalanx_shared::sys::region::Buffer;

/// The free buffers of a lane.
pub struct Buffers {
    ledger: Ledger,
    lane: Range<usize>,
    fresh: Range<usize>,
    /// Numbers that connections named when this worker booted: not free, whatever becomes of them later.
    used: HashSet<usize>,
    returned: Vec<Buffer>,
}

impl Buffers {
    /// The buffers of `lane` that no record of the ledger names.
    pub fn new(ledger: &Ledger, lane: usize) -> Buffers {
        let used = ledger.recorded().filter_map(|(_, record)| record.buffer()).collect();
        let range = ledger.buffers_of_lane(lane);
        Buffers { ledger: ledger.clone(), lane: range.clone(), fresh: range, used, returned: Vec::new() }
    }

    /// A free buffer; none when all are in use.
    pub fn take(&mut self) -> Option<Buffer> {
        if let Some(buffer) = self.returned.pop() {
            return Some(buffer);
        }
        self.fresh.by_ref().filter(|index| !self.used.contains(index)).find_map(|index| self.ledger.buffer(index))
    }

    /// The buffer that a record names, for a connection that is taken over; none when the number is wrong or held already.
    pub fn claim(&self, index: usize) -> Option<Buffer> {
        self.ledger.buffer(index)
    }

    /// A buffer that no record names any more. One of the other lane is left to that lane's next worker.
    pub fn put(&mut self, buffer: Buffer) {
        if self.lane.contains(&buffer.index()) {
            self.returned.push(buffer);
        }
    }
}
