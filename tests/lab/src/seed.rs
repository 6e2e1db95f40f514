//! Random choices that a seed repeats: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).

use std::ops::Range;

use crate::place::Host;

/// A stream of choices.
#[derive(Debug, Clone)]
pub struct Seed(u64);

impl Seed {
    /// The stream of `seed` for one purpose; other purposes of the same seed give other streams.
    pub fn new(seed: u64, purpose: &str) -> Seed {
        let mixed = purpose.bytes().fold(seed, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Seed(mixed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of `range`; its start if it is empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next_u64().checked_rem(range.end.saturating_sub(range.start)).unwrap_or(0)
    }

    /// One of the two.
    pub fn host(&mut self) -> Host {
        if self.within(0..2) == 0 {
            Host::A
        } else {
            Host::B
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_purposes_differ() {
        let draw = |seed, purpose| Seed::new(seed, purpose).within(0..1 << 40);
        assert_eq!(draw(7, "cut"), draw(7, "cut"));
        assert_ne!(draw(7, "cut"), draw(7, "size"));
        assert_ne!(draw(7, "cut"), draw(8, "cut"));
        assert_eq!(Seed::new(1, "").within(5..5), 5);
    }
}
