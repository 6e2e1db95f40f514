//! What is sent: how many parts, how long, and every byte of them, all from a seed that both ends know.

use crate::net::{Region, GROUP_MAX};

/// The longest message.
pub const MAX_BYTES: usize = 4 << 20;
/// Parts of a group are no longer than this, so that a slot holds them all.
const PART_MAX: usize = MAX_BYTES / GROUP_MAX - GUARD;
/// The first message: long enough that it is flushed.
const SHORT: usize = 100;
/// Bytes behind each part that nobody writes.
pub const GUARD: usize = 64;
/// What is in memory where nothing was received yet.
const POISON: u8 = 0xdb;
/// Bytes that are predicted and compared at a time.
const BLOCK: usize = 4096;

/// All messages of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    seed: u64,
    group: usize,
}

/// One part of a message, and where it lies in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the slot.
    pub at: usize,
    /// Length.
    pub len: usize,
    /// Its name on the wire.
    pub tag: i32,
    seed: u64,
}

impl Plan {
    /// The plan of that connection; groups have at most `group` parts.
    #[must_use]
    pub fn new(seed: u64, connection: usize, group: usize) -> Plan {
        Plan { seed: mix(seed ^ mix(connection as u64 + 1)), group: group.clamp(1, GROUP_MAX) }
    }

    /// The parts of a message. The first is short, and those behind it are the extremes: nothing, as much as there is, the largest group.
    #[must_use]
    pub fn pieces(&self, message: u64) -> Vec<Piece> {
        let dice = mix(self.seed ^ mix(message));
        let count = match message {
            0..=2 => 1,
            3 => self.group,
            _ => 1 + (dice % self.group as u64) as usize,
        };
        let mut at = 0;
        let piece = |index: usize| {
            let seed = mix(dice ^ (index as u64 + 1));
            let len = match message {
                0 => SHORT,
                1 => 0,
                2 => MAX_BYTES,
                _ => length(seed, if count == 1 { MAX_BYTES } else { PART_MAX }),
            };
            let tag = (message as i32 & 0x00ff_ffff) << 4 | index as i32;
            let piece = Piece { at, len, tag, seed };
            at += (len + GUARD).next_multiple_of(64);
            piece
        };
        (0..count).map(piece).collect()
    }

    /// The order in which the sender posts the parts.
    #[must_use]
    pub fn first_part(&self, message: u64, count: usize) -> usize {
        (mix(self.seed ^ !message) % count.max(1) as u64) as usize
    }
}

/// Mostly short, sometimes just around NCCL's threshold for adaptive routing, rarely very long.
fn length(seed: u64, max: usize) -> usize {
    let within = |low: usize, high: usize| low + (mix(seed) % (high - low) as u64) as usize;
    let len = match seed % 16 {
        0 => 0,
        1..=4 => within(1, 64),
        5..=9 => within(64, 9000),
        10..=12 => within(8000, 8400),
        13 | 14 => within(9000, 65_536),
        _ => within(65_536, 1 << 20),
    };
    len.min(max)
}

/// splitmix64's finalizer.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Piece {
    /// The bytes from `block` on, at most a block of them.
    fn predict(&self, block: usize, room: &mut [u8; BLOCK]) {
        let first = (block / 8) as u64;
        for (index, word) in (first..).zip(room.chunks_exact_mut(8)) {
            let value = (self.seed ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word.copy_from_slice(&(value ^ (value >> 29)).to_le_bytes());
        }
    }

    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let len = self.len;
        (0..len).step_by(BLOCK).map(move |from| (from, BLOCK.min(len - from)))
    }

    /// Writes the part into a slot that begins at `slot`.
    pub fn fill(&self, region: &Region, slot: usize) {
        let mut room = [0; BLOCK];
        for (from, len) in self.blocks() {
            self.predict(from, &mut room);
            region.write(slot + self.at + from, room.get(..len).unwrap_or(&[]));
        }
    }

    /// Makes the slot look as if nothing had been received.
    pub fn poison(&self, region: &Region, slot: usize) {
        let poison = [POISON; BLOCK];
        let end = self.len + GUARD;
        for from in (0..end).step_by(BLOCK) {
            let len = BLOCK.min(end - from);
            region.write(slot + self.at + from, poison.get(..len).unwrap_or(&[]));
        }
    }

    /// Whether every byte is the predicted one and those behind are untouched; else where not.
    ///
    /// # Errors
    /// The first offset that is wrong.
    pub fn verify(&self, region: &Region, slot: usize) -> Result<(), usize> {
        let (mut expected, mut found) = ([0; BLOCK], [0; BLOCK]);
        for (from, len) in self.blocks() {
            self.predict(from, &mut expected);
            compare(region, slot + self.at + from, &expected, &mut found, len).map_err(|at| from + at)?;
        }
        compare(region, slot + self.at + self.len, &[POISON; BLOCK], &mut found, GUARD).map_err(|at| self.len + at)
    }
}

fn compare(
    region: &Region,
    at: usize,
    expected: &[u8; BLOCK],
    found: &mut [u8; BLOCK],
    len: usize,
) -> Result<(), usize> {
    let found = found.get_mut(..len).unwrap_or_default();
    region.read(at, found);
    let differing = expected.iter().zip(found.iter()).position(|(expected, found)| expected != found);
    differing.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_the_guard_behind_it_count() {
        let region = Region::new(2 * MAX_BYTES + 4096).expect("memory");
        let plan = Plan::new(7, 3, 4);
        for message in [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11] {
            let pieces = plan.pieces(message);
            for piece in &pieces {
                piece.poison(&region, 64);
            }
            for piece in &pieces {
                assert!(piece.len == 0 || piece.verify(&region, 64).is_err(), "poison is no message");
                piece.fill(&region, 64);
            }
            for piece in &pieces {
                assert_eq!(piece.verify(&region, 64), Ok(()));
                let behind = 64 + piece.at + piece.len;
                region.write(behind, &[1]);
                assert_eq!(piece.verify(&region, 64), Err(piece.len));
                piece.poison(&region, 64);
                piece.fill(&region, 64);
                if piece.len > 0 {
                    region.write(behind - 1, &[!0, !0]);
                    assert!(piece.verify(&region, 64).is_err());
                }
            }
        }
    }

    #[test]
    fn the_extremes_come_early_and_parts_do_not_overlap() {
        let plan = Plan::new(1, 0, 4);
        let lengths = |message| plan.pieces(message).iter().map(|piece| piece.len).collect::<Vec<_>>();
        assert_eq!(lengths(0), [SHORT]);
        assert_eq!(lengths(1), [0]);
        assert_eq!(lengths(2), [MAX_BYTES]);
        assert_eq!(lengths(3).len(), 4);
        for message in 0..2000 {
            let pieces = plan.pieces(message);
            for (piece, next) in pieces.iter().zip(pieces.iter().skip(1)) {
                assert!(piece.at + piece.len + GUARD <= next.at);
            }
            let end = pieces.last().map_or(0, |piece| piece.at + piece.len + GUARD);
            assert!(end <= crate::connection::SLOT_BYTES);
        }
    }
}
