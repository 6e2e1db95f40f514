//! What every flow of one end stands on: the run's parameters, the registered memory, and the way to the peer.

use crate::args::Params;
use crate::judge::first_unpoisoned;
use crate::layout::Layout;
use crate::predict::{Queue, Stream, WrName, POISON};
use crate::side::Endpoint;
use crate::verbs::Region;

/// The ground of one end's flows.
#[derive(Debug)]
pub struct Ground {
    /// What both ends do.
    pub params: Params,
    /// Where things lie.
    pub layout: Layout,
    /// Memory that only the own NIC reaches.
    pub local: Region,
    /// Memory that the peer reaches.
    pub shared: Region,
    /// How to reach the peer.
    pub peer: Endpoint,
}

impl Ground {
    /// The `wr_id` of a work request.
    #[must_use]
    pub const fn wr_id(&self, queue: Queue, qp: u16, counter: u64) -> u64 {
        WrName { queue, qp, counter }.wr_id(self.params.seed)
    }

    /// Copies a slot of a region into `slot`.
    pub fn read_slot(&self, region: &Region, at: u64, slot: &mut Vec<u8>) {
        slot.resize(self.layout.slot_bytes() as usize, 0);
        region.read(at, slot);
    }

    /// Poisons a slot.
    pub fn poison(&self, region: &Region, at: u64) {
        region.fill(at, self.layout.slot_bytes(), POISON);
    }

    /// Where a slot that had to be poison is not.
    pub fn unpoisoned(&self, region: &Region, at: u64, slot: &mut Vec<u8>) -> Option<usize> {
        self.read_slot(region, at, slot);
        first_unpoisoned(slot)
    }

    /// Fills the source area that the peer's READs of a flow read.
    pub fn fill_source(&self, qp: u16, source: Stream) {
        let mut bytes = vec![0; self.params.source_bytes() as usize];
        source.fill(0, &mut bytes);
        self.shared.write(self.layout.source_area(qp), &bytes);
        self.shared.write(self.layout.counter(qp), &[0; 8]);
    }
}
