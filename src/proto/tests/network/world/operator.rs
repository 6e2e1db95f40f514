//! What operators and machines do to two ends beside faults of a path, as the agent lets its machine feel it: rails that are drained and let back, devices that
//! are removed, a control network that falls silent, a process that dies, paths that are slow and live.

use std::collections::BTreeSet;

use shift_proto::id::{PathId, Tuple};
use shift_proto::migrate::{Attempt, Handshake, Input, Stage};

use super::{Happening, World};
use crate::schedule::Item;

/// Silence for so long is told to the machine.
const HEARTBEAT: u64 = 1_000_000;
/// How often an end looks at what it would leave, and whether the peer has heard.
const PACE: u64 = 400_000;
/// An answer over a slow path takes up to so long more.
const SLOWNESS: u64 = 400_000;

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// An end closes a path, or lets it back.
    Close(usize, u8),
    Open(usize, u8),
    /// A device of an end is gone for good; `true`: at once, with what was on it.
    Remove(usize, u8, bool),
    /// An end looks at what it would rather leave.
    Look(usize),
    /// An end hears which paths the other one has closed.
    Hear(usize),
    /// The networks have been silent for the heartbeat, if they still are: until then.
    Silent(usize, u64),
    Die(usize),
    /// An end hears that the other's process has ended.
    HearDeath(usize),
    SlowFrom(u8),
    SlowUntil(u8),
    /// A probe of that search is answered at last.
    Answer(usize, u8, u64),
}

/// What is in whose hands.
#[derive(Debug)]
pub(super) struct Hands {
    /// Paths that each end has closed, those that it knows the other has closed, and those that its machine takes for armed.
    closed: [BTreeSet<u8>; 2],
    heard: [BTreeSet<u8>; 2],
    armed: [BTreeSet<u8>; 2],
    /// It is being led back to the first path.
    leads_back: [bool; 2],
    looks: [bool; 2],
    removed: [BTreeSet<u8>; 2],
    torn: [BTreeSet<u8>; 2],
    /// What it has said so far that leads to a path: claimed, accepted, committed.
    agreed: [BTreeSet<(Tuple, bool)>; 2],
    /// The path of the incarnation that was posted on last.
    pub(super) posts_on: [u8; 2],
    pub(super) dead: [bool; 2],
    /// It knows that the other one is.
    bereft: [bool; 2],
    slow: BTreeSet<u8>,
}

impl Hands {
    pub(super) fn new(paths: u8) -> Self {
        let none = || [BTreeSet::new(), BTreeSet::new()];
        let all: BTreeSet<u8> = (0..paths).collect();
        Self {
            closed: none(),
            heard: none(),
            armed: [all.clone(), all],
            leads_back: [false; 2],
            looks: [false; 2],
            removed: none(),
            torn: none(),
            agreed: [BTreeSet::new(), BTreeSet::new()],
            posts_on: [0; 2],
            dead: [false; 2],
            bereft: [false; 2],
            slow: BTreeSet::new(),
        }
    }

    /// Nothing goes over that path any more.
    pub(super) fn is_torn(&self, path: u8) -> bool {
        self.torn.iter().any(|torn| torn.contains(&path))
    }

    /// The device is gone with what was on it.
    pub(super) fn cannot_fence(&self, side: usize) -> bool {
        self.torn[side].contains(&self.posts_on[side])
    }

    pub(super) fn lacks(&self, side: usize, path: PathId) -> bool {
        self.torn[side].contains(&path.0)
    }
}

impl World {
    /// Puts what an item does into the queue.
    pub(super) fn take_in_hand(&mut self, item: &Item) {
        let mut at = |at, event| self.schedule(at, Happening::Operator(event));
        match *item {
            Item::Drain { side, path, from, until } => {
                at(from, Event::Close(side, path));
                at(until, Event::Open(side, path));
            }
            Item::Removal { side, path, at: when, torn } => at(when, Event::Remove(side, path, torn)),
            Item::Silence { from, until } => {
                (0..2).for_each(|side| at(from + HEARTBEAT, Event::Silent(side, until)));
                self.cuts.iter_mut().for_each(|cuts| cuts.push((from, until)));
            }
            Item::Death { side, at: when } => at(when, Event::Die(side)),
            Item::Slow { path, from, until } => {
                at(from, Event::SlowFrom(path));
                at(until, Event::SlowUntil(path));
            }
            Item::Notice { .. } | Item::Asleep { .. } | Item::Cut { .. } | Item::Outage { .. } => {}
        }
    }

    /// It would happen to a process that is no more.
    pub(super) fn is_lost(&self, happening: &Happening) -> bool {
        let side = match happening {
            Happening::Wake(side) | Happening::Sleep(side) => Some(*side),
            Happening::Operator(event) => event.side(),
            other => other.felt_by(),
        };
        side.is_some_and(|side| self.hands.dead[side])
    }

    /// What `side` posts there is answered.
    pub(super) fn carries(&self, side: usize, path: u8) -> bool {
        self.path_up[path as usize] && !self.hands.dead[1 - side]
    }

    /// Nothing is claimed, accepted or committed to that the end knows to be closed, here or there; but for the path that it is on, which may have been closed
    /// between an acceptance and its COMMIT, and is then one like any other until it is left.
    pub(super) fn check_target(&mut self, side: usize, message: &Handshake) {
        if let Handshake::Claim { tuple, .. } | Handshake::Accept { tuple } | Handshake::Commit { tuple } = message {
            let is_final = matches!(message, Handshake::Commit { .. });
            let is_current = self.ends[side].machine.path() == tuple.target;
            let is_open = is_current || self.hands.armed[side].contains(&tuple.target.0);
            let is_new = self.hands.agreed[side].insert((*tuple, is_final));
            assert!(!is_new || is_open, "{tuple} leads to a path that is closed");
        }
    }

    pub(super) fn answer_probe(&mut self, side: usize, path: u8, generation: u64) {
        if self.hands.slow.contains(&path) {
            let late = self.dice.below(SLOWNESS);
            return self.schedule(self.now + late, Happening::Operator(Event::Answer(side, path, generation)));
        }
        self.ends[side].answered_since_seek.insert(PathId(path));
        self.input(side, Input::PathAnswered(PathId(path)));
    }

    pub(super) fn operate(&mut self, event: Event) {
        let asleep = event.side().is_some_and(|side| self.ends[side].asleep);
        if asleep && !matches!(event, Event::Die(_) | Event::Remove(..)) {
            return self.schedule(self.now + PACE, Happening::Operator(event));
        }
        match event {
            Event::Close(side, path) => self.close(side, path),
            Event::Open(side, path) => {
                if !self.hands.removed[side].contains(&path) && self.hands.closed[side].remove(&path) {
                    self.hands.leads_back[side] |= path == 0;
                    self.closed_paths_changed(side);
                }
            }
            Event::Remove(side, path, torn) => self.remove(side, path, torn),
            Event::Look(side) => self.look(side),
            Event::Hear(side) => self.hear_closed(side),
            Event::Silent(side, until) => {
                if self.now < until {
                    self.mark("silence");
                    self.input(side, Input::Unreachable);
                }
            }
            Event::Die(side) => self.die(side),
            Event::HearDeath(side) => self.hear_death(side),
            Event::SlowFrom(path) => drop(self.hands.slow.insert(path)),
            Event::SlowUntil(path) => drop(self.hands.slow.remove(&path)),
            Event::Answer(side, path, generation) => {
                let end = &mut self.ends[side];
                if end.seek && end.seek_generation == generation && self.path_up[path as usize] {
                    end.answered_since_seek.insert(PathId(path));
                    self.input(side, Input::PathAnswered(PathId(path)));
                }
            }
        }
    }

    fn close(&mut self, side: usize, path: u8) {
        if self.hands.closed[side].insert(path) {
            self.hands.leads_back[side] &= path != 0;
            self.closed_paths_changed(side);
        }
    }

    fn remove(&mut self, side: usize, path: u8, torn: bool) {
        self.mark(if torn { "torn out" } else { "removed" });
        self.hands.removed[side].insert(path);
        if torn {
            self.hands.torn[side].insert(path);
            self.path_down(path);
        }
        // It is looked for once a second, or an event says it.
        let seen = self.dice.below(1_000_000);
        self.schedule(self.now + seen, Happening::Operator(Event::Close(side, path)));
    }

    fn closed_paths_changed(&mut self, side: usize) {
        self.update_targets(side);
        let delay = 50 + self.dice.below(self.profile.max_delay_us);
        self.schedule(self.now + delay, Happening::Operator(Event::Hear(1 - side)));
        if !std::mem::replace(&mut self.hands.looks[side], true) {
            let soon = self.dice.below(PACE);
            self.schedule(self.now + soon, Happening::Operator(Event::Look(side)));
        }
    }

    /// The connection between the processes keeps what is said until it is carried.
    fn hear_closed(&mut self, side: usize) {
        if self.is_cut(1 - side) {
            return self.schedule(self.now + PACE, Happening::Operator(Event::Hear(side)));
        }
        self.hands.heard[side] = self.hands.closed[1 - side].clone();
        self.update_targets(side);
    }

    /// A path that an end has closed is no target at either; the one that it is on stays what it is until it is left.
    fn update_targets(&mut self, side: usize) {
        for path in 0..self.profile.paths {
            let is_open = !self.hands.closed[side].contains(&path) && !self.hands.heard[side].contains(&path);
            let is_current = self.ends[side].machine.path() == PathId(path);
            if is_open && self.hands.armed[side].insert(path) {
                self.input(side, Input::PathArmed(PathId(path)));
            } else if !is_open && !is_current && self.hands.armed[side].remove(&path) {
                self.input(side, Input::PathDisarmed(PathId(path)));
            }
        }
    }

    /// As the agent does it, again and again: off what is closed, and back to the first path where this end led it away.
    fn look(&mut self, side: usize) {
        self.update_targets(side);
        let end = &self.ends[side];
        let state = end.machine.state();
        let (current, is_over) = (end.machine.path().0, matches!(state.stage, Stage::Dead | Stage::Gone));
        let is_able = !end.in_error && !self.hands.bereft[side];
        let is_at_rest = (state.stage, state.attempt) == (Stage::Running, Attempt::Idle) && is_able;
        self.hands.leads_back[side] &= current != 0;
        let target = if self.hands.closed[side].contains(&current) {
            self.hands.armed[side].iter().copied().find(|path| *path != current)
        } else {
            self.hands.leads_back[side].then_some(0).filter(|path| self.hands.armed[side].contains(path))
        };
        if let Some(target) = target.filter(|_| is_at_rest) {
            self.mark("led away or back");
            self.input(side, Input::Move(PathId(target)));
        }
        let is_wanted = !self.hands.closed[side].is_empty() || self.hands.leads_back[side];
        self.hands.looks[side] = is_wanted && !is_over && self.now < self.profile.span;
        if self.hands.looks[side] {
            let pause = PACE + self.dice.below(PACE);
            self.schedule(self.now + pause, Happening::Operator(Event::Look(side)));
        }
    }

    fn die(&mut self, side: usize) {
        self.mark("died");
        self.hands.dead[side] = true;
        self.ends[side].seek = false;
        let (other, path) = (1 - side, self.ends[1 - side].machine.path());
        let delay = 50 + self.dice.below(self.profile.max_delay_us);
        self.schedule(self.now + delay, Happening::Operator(Event::HearDeath(other)));
        // What is outstanding is answered no more, if there is something.
        let (generation, retries) = (self.ends[other].work_generation, self.dice.below(3_000_000));
        if self.path_up[path.0 as usize] && self.dice.chance(500) {
            self.schedule(self.now + retries, Happening::RetriesOver(other, generation));
        }
    }

    /// The port of the process refuses, once the network carries that; and nothing is kept from the application from there on.
    fn hear_death(&mut self, side: usize) {
        if self.is_cut(0) || self.is_cut(1) {
            return self.schedule(self.now + PACE, Happening::Operator(Event::HearDeath(side)));
        }
        self.input(side, Input::Frame(Handshake::Gone));
        let end = &self.ends[side];
        let stage = end.machine.state().stage;
        let is_over = matches!(stage, Stage::Dead | Stage::Gone);
        assert!(is_over || stage == Stage::Running && !end.in_error, "the peer is dead, and an error is kept");
        self.hands.bereft[side] = true;
        self.mark("heard of a death");
    }
}

impl Event {
    /// The end whose process it needs.
    fn side(&self) -> Option<usize> {
        match self {
            Self::Close(side, _)
            | Self::Open(side, _)
            | Self::Remove(side, ..)
            | Self::Look(side)
            | Self::Hear(side)
            | Self::Silent(side, _)
            | Self::Die(side)
            | Self::HearDeath(side)
            | Self::Answer(side, ..) => Some(*side),
            Self::SlowFrom(_) | Self::SlowUntil(_) => None,
        }
    }
}
