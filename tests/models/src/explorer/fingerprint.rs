//! 64 bits that stand for a state.
//!
//! Of two different states with one fingerprint the second is never looked at. For n states that happens at all with a
//! probability of about n^2 / 2^65: 1 in 90 000 for 20 million.

use std::hash::{Hash, Hasher};

/// Odd numbers without structure: digits of pi and e.
const SALT: [u64; 3] = [0x2437_f6a8_885a_308d, 0x1319_8a2e_0370_7345, 0xb7e1_5162_8aed_2a6b];

/// Folded multiplication, as wyhash and its kin mix.
#[derive(Clone, Copy, Debug)]
struct Folded(u64);

const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        let mixed = fold(self.0 ^ SALT[1], SALT[2]);
        fold(mixed ^ SALT[0], SALT[1] ^ mixed.rotate_left(32))
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 59));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = fold(self.0.rotate_left(23) ^ word ^ SALT[0], SALT[1]) ^ word.rotate_left(7);
    }

    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// The fingerprint of a value; never 0.
#[must_use]
pub fn of<T: Hash>(value: &T) -> u64 {
    let mut hasher = Folded(SALT[2]);
    value.hash(&mut hasher);
    hasher.finish().max(1)
}
