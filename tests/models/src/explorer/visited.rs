//! The states seen: a fingerprint and the number of the state before it, found by an open table of numbers.
//!
//! 16 to 24 bytes a state: 8 of fingerprint, 4 of parent, 4 per slot of a table that is between a third and two thirds full.

const EMPTY: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Visited {
    fingerprints: Vec<u64>,
    parents: Vec<u32>,
    slots: Vec<u32>,
}

impl Visited {
    pub(super) fn new() -> Self {
        Self { fingerprints: Vec::new(), parents: Vec::new(), slots: vec![EMPTY; 1024] }
    }

    pub(super) fn len(&self) -> usize {
        self.fingerprints.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.fingerprints.len() * 12 + self.slots.len() * 4
    }

    pub(super) fn find(&self, fingerprint: u64) -> Option<u32> {
        let mut at = self.home(fingerprint);
        loop {
            match self.slots[at] {
                EMPTY => return None,
                number if self.fingerprints[number as usize] == fingerprint => return Some(number),
                _ => at = (at + 1) & (self.slots.len() - 1),
            }
        }
    }

    /// The number of the new state; the caller has looked that it is new.
    pub(super) fn insert(&mut self, fingerprint: u64, parent: u32) -> u32 {
        if (self.len() + 1) * 3 > self.slots.len() * 2 {
            self.grow();
        }
        let number = u32::try_from(self.len()).unwrap_or(EMPTY);
        assert!(number != EMPTY, "more than 2^32 - 1 states");
        self.fingerprints.push(fingerprint);
        self.parents.push(parent);
        self.place(fingerprint, number);
        number
    }

    /// Fingerprints from the start to that state.
    pub(super) fn way_to(&self, number: u32) -> Vec<u64> {
        let mut way = Vec::new();
        let mut at = number;
        loop {
            way.push(self.fingerprints[at as usize]);
            match self.parents[at as usize] {
                EMPTY => break,
                parent => at = parent,
            }
        }
        way.reverse();
        way
    }

    fn home(&self, fingerprint: u64) -> usize {
        (fingerprint as usize) & (self.slots.len() - 1)
    }

    fn place(&mut self, fingerprint: u64, number: u32) {
        let mut at = self.home(fingerprint);
        while self.slots[at] != EMPTY {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = number;
    }

    fn grow(&mut self) {
        self.slots = vec![EMPTY; self.slots.len() * 2];
        for number in 0..self.len() {
            self.place(self.fingerprints[number], number as u32);
        }
    }
}

/// The parent of a state that a run begins with.
pub(super) const NONE: u32 = EMPTY;
