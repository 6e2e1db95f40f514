//! Where things lie in the two registered regions. Pure arithmetic, the same at both ends, so that one address and one
//! key per region suffice to reach any slot of the peer.

use crate::args::{Params, GUARD_BYTES};

/// Slots and areas of all queue pairs, as byte offsets.
///
/// The *local* region holds what only the own NIC touches: per queue pair `depth` send slots, then `depth` landing
/// slots for READs and atomics. The *shared* region holds what the peer reaches: per queue pair the ring, the receive
/// slots, the source area of READs and the counter of atomics.
#[derive(Clone, Debug)]
pub struct Layout {
    slot: u64,
    source: u64,
    depth: u64,
    ring: u64,
    receives: u64,
    qps: u64,
}

impl Layout {
    /// The layout of a run.
    #[must_use]
    pub fn new(params: &Params) -> Self {
        let depth = u64::from(params.depth);
        // Twice the depth: a slot rests, poisoned, for as many messages as may be in flight, before it is used again.
        let ring = if params.has_memory_for_all() { params.messages } else { 2 * depth };
        let receives = if params.scarce_receives { (ring / 4).max(1) } else { ring };
        Self {
            slot: round_up(u64::from(params.size.max.max(8) + GUARD_BYTES)),
            source: round_up(u64::from(params.source_bytes().max(8))),
            depth,
            ring,
            receives,
            qps: u64::from(params.qps),
        }
    }

    /// Bytes of a slot: the longest message and the guard behind it.
    #[must_use]
    pub const fn slot_bytes(&self) -> u64 {
        self.slot
    }

    /// Slots of a ring: how many messages may be on their way or resting.
    #[must_use]
    pub const fn ring(&self) -> u64 {
        self.ring
    }

    /// Receives posted per queue pair.
    #[must_use]
    pub const fn receives(&self) -> u64 {
        self.receives
    }

    /// Bytes of the local region.
    #[must_use]
    pub const fn local_bytes(&self) -> u64 {
        self.qps * 2 * self.depth * self.slot
    }

    /// Bytes of the shared region.
    #[must_use]
    pub const fn shared_bytes(&self) -> u64 {
        self.qps * self.shared_stride()
    }

    /// Bytes of both regions.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.local_bytes() + self.shared_bytes()
    }

    /// Local: where message `number` is sent from.
    #[must_use]
    pub const fn send_slot(&self, qp: u16, number: u64) -> u64 {
        (qp as u64 * 2 * self.depth + number % self.depth) * self.slot
    }

    /// Local: where the result of message `number` lands.
    #[must_use]
    pub const fn landing_slot(&self, qp: u16, number: u64) -> u64 {
        self.send_slot(qp, number) + self.depth * self.slot
    }

    /// Shared: the ring slot of message `number`.
    #[must_use]
    pub const fn ring_slot(&self, qp: u16, number: u64) -> u64 {
        qp as u64 * self.shared_stride() + number % self.ring * self.slot
    }

    /// Shared: the buffer of the `counter`-th receive.
    #[must_use]
    pub const fn receive_slot(&self, qp: u16, counter: u64) -> u64 {
        qp as u64 * self.shared_stride() + (self.ring + counter % self.receives) * self.slot
    }

    /// Shared: the area that READs read.
    #[must_use]
    pub const fn source_area(&self, qp: u16) -> u64 {
        qp as u64 * self.shared_stride() + (self.ring + self.receives) * self.slot
    }

    /// Shared: the counter of atomics.
    #[must_use]
    pub const fn counter(&self, qp: u16) -> u64 {
        self.source_area(qp) + self.source
    }

    const fn shared_stride(&self) -> u64 {
        (self.ring + self.receives) * self.slot + self.source + LINE
    }
}

/// Slots begin on cache lines; atomics need 8 of the 64.
const LINE: u64 = 64;

const fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(LINE) * LINE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_places_overlap_and_all_lie_inside() {
        let params = Params { qps: 3, depth: 4, ..Params::for_tests() };
        let layout = Layout::new(&params);
        let (mut local, mut shared) = (Vec::new(), Vec::new());
        for qp in 0..params.qps {
            for n in 0..4 {
                local.push((layout.send_slot(qp, n), layout.slot_bytes()));
                local.push((layout.landing_slot(qp, n), layout.slot_bytes()));
            }
            for n in 0..layout.ring() {
                shared.push((layout.ring_slot(qp, n), layout.slot_bytes()));
            }
            for n in 0..layout.receives() {
                shared.push((layout.receive_slot(qp, n), layout.slot_bytes()));
            }
            shared.push((layout.source_area(qp), u64::from(params.source_bytes())));
            shared.push((layout.counter(qp), 8));
        }
        for (mut places, bytes) in [(local, layout.local_bytes()), (shared, layout.shared_bytes())] {
            places.sort_unstable();
            assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            assert!(places.last().is_some_and(|(at, len)| at + len <= bytes));
            assert!(places.iter().all(|(at, _)| at % LINE == 0));
        }
    }

    #[test]
    fn a_waiting_receiver_has_a_slot_for_every_message() {
        let waits = Params { receiver_waits: true, messages: 300, ..Params::for_tests() };
        let reuses = Params { reuse: true, receiver_waits: false, ..waits.clone() };
        for layout in [waits, reuses].map(|params| Layout::new(&params)) {
            assert_eq!((layout.ring(), layout.receives()), (300, 300));
        }
    }
}
