//! What was told to the operator already, so that nothing is told a thousand times.

use std::collections::BTreeMap;

use shift_proto::id::Micros;

/// Different lines that are remembered. Beyond it the memory starts anew: a line may then come twice, never be lost.
const MAX_REMEMBERED: usize = 1024;

/// Remembers lines by a key of the caller's choice.
#[derive(Debug, Default)]
pub struct Told {
    at: BTreeMap<String, Micros>,
}

impl Told {
    /// `true` the first time `key` comes.
    pub fn is_new(&mut self, key: &str, now: Micros) -> bool {
        self.is_due(key, now, u64::MAX)
    }

    /// `true` the first time `key` comes, and again once `interval_us` passed since the last `true`.
    pub fn is_due(&mut self, key: &str, now: Micros, interval_us: u64) -> bool {
        if let Some(last) = self.at.get(key) {
            if now.since(*last).0 < interval_us {
                return false;
            }
        }
        if self.at.len() >= MAX_REMEMBERED {
            self.at.clear();
        }
        self.at.insert(key.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_once_per_interval() {
        let mut told = Told::default();
        assert!(told.is_due("a", Micros(0), 10));
        assert!(!told.is_due("a", Micros(9), 10));
        assert!(told.is_due("a", Micros(10), 10));
        assert!(told.is_due("b", Micros(10), 10));
    }

    #[test]
    fn news_are_told_once() {
        let mut told = Told::default();
        assert!(told.is_new("a", Micros(0)));
        assert!(!told.is_new("a", Micros(u64::MAX - 1)));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut told = Told::default();
        for key in 0..10 * MAX_REMEMBERED {
            told.is_new(&key.to_string(), Micros(0));
        }
        assert!(told.at.len() <= MAX_REMEMBERED);
    }
}
