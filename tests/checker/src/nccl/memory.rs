//! What lies where, and what must lie there.

use crate::args::{Params, GUARD_BYTES};
use crate::predict::{mix, Stream, POISON};
use crate::side::Endpoint;
use crate::verbs::{Region, VerbError};

/// Bytes of a clear-to-send entry.
pub const ENTRY_BYTES: u32 = 64;
/// Above this a message is a WRITE and an empty WRITE_WITH_IMM behind it, as with NCCL where adaptive routing is on.
const SPLIT_ABOVE: u32 = 8192 / 4;

/// One lane: a queue pair whose data goes one way.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Which, counted from 0.
    pub number: u16,
    /// What both ends do.
    pub params: Params,
    /// How to reach the peer.
    pub peer: Endpoint,
}

/// The memory of one end, for all lanes whichever way they go.
#[derive(Debug)]
pub struct Place {
    /// Reached by the peer: data, and entries.
    pub shared: Region,
    /// Reached by the own NIC alone: data to send, entries to send, and a byte to flush with.
    pub local: Region,
    depth: u64,
    slot: u64,
}

impl Place {
    /// For a run with these parameters.
    ///
    /// # Errors
    /// `region` refuses.
    pub fn new(params: &Params, region: impl Fn(u64) -> Result<Region, VerbError>) -> Result<Self, VerbError> {
        let depth = u64::from(params.depth);
        let slot = u64::from(params.size.max + GUARD_BYTES).next_multiple_of(64);
        let bytes = u64::from(params.qps) * lane_bytes(depth, slot);
        let place = Self { shared: region(bytes)?, local: region(bytes)?, depth, slot };
        for region in [&place.shared, &place.local] {
            region.fill(0, bytes, POISON);
        }
        Ok(place)
    }

    /// Where the data of a message lies, in either region.
    #[must_use]
    pub const fn data(&self, lane: u16, message: u64) -> u64 {
        lane as u64 * lane_bytes(self.depth, self.slot) + message % self.depth * self.slot
    }

    /// Where its clear-to-send entry lies, in either region.
    #[must_use]
    pub const fn entry(&self, lane: u16, message: u64) -> u64 {
        self.data(lane, 0) + self.depth * self.slot + message % self.depth * ENTRY_BYTES as u64
    }

    /// Where a flush lands, in the local region.
    #[must_use]
    pub const fn landing(&self, lane: u16) -> u64 {
        self.entry(lane, 0) + self.depth * ENTRY_BYTES as u64
    }

    /// Bytes of a data slot.
    #[must_use]
    pub const fn slot_bytes(&self) -> u64 {
        self.slot
    }
}

const fn lane_bytes(depth: u64, slot: u64) -> u64 {
    depth * (slot + ENTRY_BYTES as u64) + 64
}

impl Lane {
    fn dice(&self, message: u64) -> u64 {
        mix(self.params.seed ^ mix(u64::from(self.number) + 1) ^ mix(!message))
    }

    /// Length of a message.
    #[must_use]
    pub fn len(&self, message: u64) -> u32 {
        let range = self.params.size;
        range.min + (mix(self.dice(message)) % (u64::from(range.max - range.min) + 1)) as u32
    }

    /// Whether it is two requests.
    #[must_use]
    pub fn is_split(&self, message: u64) -> bool {
        self.len(message) > SPLIT_ABOVE
    }

    /// Its bytes.
    #[must_use]
    pub fn payload(&self, message: u64) -> Stream {
        Stream::new(self.dice(message))
    }

    /// Its immediate data.
    #[must_use]
    pub fn imm(&self, message: u64) -> u32 {
        (mix(self.dice(message) ^ 1) >> 32) as u32
    }

    /// Its clear-to-send entry, for data at that address with that key.
    #[must_use]
    pub fn entry(&self, message: u64, addr: u64, rkey: u32) -> [u8; ENTRY_BYTES as usize] {
        let words =
            [addr, u64::from(rkey), u64::from(self.len(message)), mix(self.dice(message) ^ addr), 0, 0, 0, message + 1];
        let mut bytes = [0; ENTRY_BYTES as usize];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// The words of an entry.
#[must_use]
pub fn words(bytes: &[u8; ENTRY_BYTES as usize]) -> [u64; 8] {
    let mut words = [0; 8];
    for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(from.try_into().unwrap_or_default());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::SizeRange;

    #[test]
    fn entries_say_where_and_which_and_cannot_be_taken_for_one_another() {
        let params = Params { size: SizeRange { min: 0, max: 9000 }, ..Params::for_tests() };
        let peer = Endpoint { gid: [0; 16], addr: 0, rkey: 0, qps: Vec::new() };
        let lane = Lane { number: 1, params, peer };
        let entry = words(&lane.entry(7, 4096, 9));
        assert_eq!((entry[0], entry[1], entry[2], entry[7]), (4096, 9, u64::from(lane.len(7)), 8));
        assert_ne!(entry[3], words(&lane.entry(7, 8192, 9))[3]);
        assert_ne!(entry[3], words(&lane.entry(23, 4096, 9))[3]);
        assert!((0..100).any(|message| lane.is_split(message)));
        assert!((0..100).any(|message| !lane.is_split(message)));
    }
}
