//! Which of a process's numbered frames already came.
//!
//! Each message of a migration goes out on every connection to a process, so as to arrive while any of them carries; all but the first
//! copy say nothing new. If each copy were answered, on every connection again, three networks would make of one ACCEPT three COMMITs in nine
//! copies and twenty-seven reports, at the very moment at which both hosts have something else to do. What is not known to have come counts as new: to hear
//! a message twice is harmless, to miss one costs a retry.

/// Numbers below the newest that are remembered: a connection may lag by so many frames before its copies are heard again.
const WINDOW: u64 = 4096;
const WORDS: usize = WINDOW as usize / 64;

/// Of one process. Its numbers rise as long as it lives, whoever its frames go to; there are gaps.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    newest: u64,
    /// A bit for each of the newest numbers, at the number modulo [`WINDOW`].
    came: Box<[u64; WORDS]>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { newest: 0, came: Box::new([0; WORDS]) }
    }
}

impl Arrivals {
    /// Whether the frame of this number is not known to have come before.
    pub fn is_new(&mut self, number: u64) -> bool {
        if number > self.newest {
            let passed = (number - self.newest).min(WINDOW);
            (0..passed).for_each(|back| self.set(number - back, false));
            self.newest = number;
        }
        if self.newest - number >= WINDOW {
            return true;
        }
        let (word, bit) = place(number);
        let came = self.came.get(word).is_some_and(|bits| bits & bit != 0);
        self.set(number, true);
        !came
    }

    fn set(&mut self, number: u64, came: bool) {
        let (word, bit) = place(number);
        if let Some(bits) = self.came.get_mut(word) {
            *bits = if came { *bits | bit } else { *bits & !bit };
        }
    }
}

const fn place(number: u64) -> (usize, u64) {
    let at = number % WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_copies_of_a_frame_are_known_and_what_is_late_is_heard() {
        let mut arrivals = Arrivals::default();
        // A connection that came later brings 3 first, the older ones 1 and 2.
        let came = [3, 1, 2, 1, 2, 3, 4, 4].map(|number| arrivals.is_new(number));
        assert_eq!(came, [true, true, true, false, false, false, true, false]);
    }

    #[test]
    fn whatever_the_gaps_nothing_that_is_new_is_taken_for_a_copy() {
        let mut dice = 7u64;
        let mut roll = |below: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % below
        };
        let (mut arrivals, mut came, mut front) = (Arrivals::default(), BTreeSet::new(), 1u64);
        let mut copies = 0;
        for _ in 0..200_000 {
            front += if roll(500) == 0 { roll(3 * WINDOW) } else { roll(3) };
            let number = front.saturating_sub(roll(2 * WINDOW)).max(1);
            let is_first = came.insert(number);
            let is_new = arrivals.is_new(number);
            assert!(is_new || !is_first, "{number} came for the first time, the newest was {front}");
            copies += u32::from(!is_new);
        }
        assert!(copies > 1000, "{copies} copies were known as such");
    }
}
