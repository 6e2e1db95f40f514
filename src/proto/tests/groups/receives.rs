//! The receives of one process's shared receive queue, each with a name: which of its objects they lie in, which a queue pair has in hand, and
//! which have been given to the application.
//!
//! What is checked here at every step: no receive that is posted anew elsewhere is taken where it lay before, and none is given twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Receives that the application keeps posted.
const DEPTH: usize = 8;

/// A receive in an object of the queue, as it was posted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    name: u32,
    /// Moves of the queue before it was posted.
    generation: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Receives {
    pub home: u8,
    round: u64,
    generation: u64,
    next: u32,
    objects: [VecDeque<Posted>; 3],
    outstanding: BTreeSet<u32>,
    given: BTreeSet<u32>,
    /// In hand of a queue pair that ended, which takes it along on any hardware.
    lost: BTreeSet<u32>,
}

impl Receives {
    pub fn new() -> Self {
        let mut receives = Self::default();
        receives.post();
        receives
    }

    fn post(&mut self) {
        while self.outstanding.len() - self.lost.len() < DEPTH {
            let posted = Posted { name: self.next, generation: self.generation };
            self.objects[usize::from(self.home)].push_back(posted);
            self.outstanding.insert(self.next);
            self.next += 1;
        }
    }

    /// A message that arrives on that path takes one. `None`: there is none.
    pub fn take(&mut self, path: u8) -> Option<Posted> {
        let taken = self.objects[usize::from(path)].pop_front()?;
        assert_eq!(taken.generation, self.generation, "receive {} was posted anew elsewhere, and is taken", taken.name);
        Some(taken)
    }

    /// The message is whole.
    pub fn give(&mut self, taken: Posted) {
        assert_eq!(taken.generation, self.generation, "receive {} was posted anew before it was given", taken.name);
        assert!(self.outstanding.remove(&taken.name) && self.given.insert(taken.name), "receive {} twice", taken.name);
        self.post();
    }

    /// The queue pair that has it in hand ended.
    pub fn lose(&mut self, taken: Posted) {
        if taken.generation == self.generation {
            self.lost.insert(taken.name);
            self.post();
        }
    }

    /// What lies on the primary path and is posted elsewhere is taken out: somebody is about to be connected there.
    pub fn make_safe(&mut self) {
        if self.home != 0 {
            self.objects[0].clear();
        }
    }

    /// All that has not been given is posted on that path, once in a round.
    pub fn settle(&mut self, path: u8, round: u64) -> bool {
        if (self.home, self.round) == (path, round) {
            return false;
        }
        assert!(round > self.round, "round {round} after {}", self.round);
        (self.home, self.round) = (path, round);
        self.generation += 1;
        self.lost.clear();
        let generation = self.generation;
        self.objects[usize::from(path)] =
            self.outstanding.iter().map(|name| Posted { name: *name, generation }).collect();
        true
    }

    /// Every receive lies where the others are, once, or is in hand there.
    pub fn judge(&self, in_hand: &[Posted]) {
        let mut places = BTreeMap::<u32, u32>::new();
        let here = self.objects[usize::from(self.home)].iter().chain(in_hand);
        here.filter(|posted| posted.generation == self.generation)
            .for_each(|p| *places.entry(p.name).or_default() += 1);
        for name in &self.outstanding {
            let count = places.get(name).copied().unwrap_or_default();
            let expected = u32::from(!self.lost.contains(name));
            assert_eq!(count, expected, "receive {name} is in so many places: {self:?}, in hand {in_hand:?}");
        }
    }
}
