//! Pairs of standbys after the first ones: what comes later gets a partner, and a pair that does not carry is given up for another one.
//!
//! The first pairs follow from both first offers ([`crate::choice`]). From then on the end with the larger id, which *leads*, decides which paths are kept
//! ready, and its offers say so; the other one follows. The number of a path is one pair's for ever, so what comes late of it can mean no other pair.
//! What must hold: the path in use and those that are armed stay as they are.

use std::cmp::Reverse;

use shift_proto::frame::{PathPair, StandbyOffer};
use shift_proto::id::{Micros, PathId, MAX_PATHS};

use crate::choice::{likeness, offered, PeerStandby};
use crate::datapath::{Gid, Standby};
use crate::qp::{PathState, Qp};
use crate::world::World;

/// How many intervals of probes a pair may be silent before one of its ends is tried with another partner.
const TRIAL: u64 = 5;
/// A silent pair is probed at that pace at least.
const PACE_US: u64 = 1_000_000;
/// That time doubles with each change that armed nothing, so often at most: 80 s by default.
const MOST_DOUBLINGS: u32 = 4;
/// Pause while the connection is being moved, or while a standby that came is not ready to be offered.
const PAUSE_US: u64 = 1_000_000;

/// What was said of the own standbys, and when they are looked at again.
#[derive(Debug)]
pub(crate) struct Pairing {
    /// The own offer, as it is said until there is another one.
    pub said: Option<StandbyOffer>,
    /// The peer has answered to the first offer: what it is told from now on does not change the first pairs.
    pub is_met: bool,
    /// Paths that there were at the first pairing.
    pub first: usize,
    due: Micros,
    /// Changes that armed nothing.
    doublings: u32,
    /// When standbys that were not ready are asked for again.
    unready_due: Option<Micros>,
}

impl Default for Pairing {
    fn default() -> Self {
        Self { said: None, is_met: false, first: 0, due: Micros::MAX, doublings: 0, unready_due: None }
    }
}

/// Ends that have no partner, matched again: the pairs that were tried the longest ago come first, those that never were before all others.
fn match_again(
    primaries: (Gid, Gid),
    own: &[Standby],
    peer: &[PeerStandby],
    tried: impl Fn(u8, u8) -> Option<Micros>,
) -> Vec<(u8, u8)> {
    let pairs = own.iter().enumerate().flat_map(|one| peer.iter().enumerate().map(move |other| (one, other)));
    let mut all: Vec<_> = pairs
        .map(|((at, one), (of, other))| {
            let alike = likeness(primaries, (one.end.gid, other.end.gid));
            ((tried(one.slot, other.slot), Reverse(alike), at, of), (one.slot, other.slot))
        })
        .collect();
    all.sort_unstable_by_key(|(key, _)| *key);
    let mut taken: Vec<(u8, u8)> = Vec::new();
    for (_, pair) in all {
        if taken.iter().all(|other| other.0 != pair.0 && other.1 != pair.1) {
            taken.push(pair);
        }
    }
    taken
}

impl Qp {
    /// Standbys came or went, here or there, or a pair fell silent.
    pub fn hurry_pairs(&mut self, due: Micros) {
        self.pairing.due = self.pairing.due.min(due);
    }

    /// A path is no target any more: for how long is looked at later.
    pub fn note_unarmed(&mut self, world: &World, path: PathId, now: Micros) {
        let trial = self.trial(world);
        if let Some(state) = self.path_mut(path) {
            state.idle_from = now;
            self.hurry_pairs(now + trial);
        }
    }

    /// The peer has said something to this end.
    pub fn note_met(&mut self, now: Micros) {
        if !std::mem::replace(&mut self.pairing.is_met, true) {
            self.hurry_pairs(now);
        }
    }

    /// When [`Qp::tend_pairs`] is due.
    pub fn pairs_due(&self) -> Option<Micros> {
        let due = self.pairing.unready_due.map_or(self.pairing.due, |unready| unready.min(self.pairing.due));
        (due != Micros::MAX).then_some(due)
    }

    /// One of its device's standbys came after it was connected, and serves its PD: it is offered.
    pub fn handle_grown(&mut self, world: &mut World, now: Micros) {
        if self.own.is_none() || self.refused.is_some() {
            return;
        }
        if self.machine.is_none() {
            // The first pairs follow from what both ends offer first, and this end has done so.
            self.pairing.unready_due = Some(now + Micros(PAUSE_US));
            return;
        }
        self.pairing.unready_due = match world.data.prepare_standbys(self.life) {
            Ok(prepared) => {
                for standby in &prepared.standbys {
                    world.know_device(standby.end.gid, standby.choice.device);
                }
                let lacks = !prepared.lacking.is_empty();
                for reason in &prepared.lacking {
                    world.tell_lacking(self.facts.device, reason, now);
                }
                if let Some(own) = &mut self.own {
                    own.standbys = prepared.standbys;
                }
                lacks.then_some(now + Micros(PAUSE_US))
            }
            Err(reason) if reason.is_destroyed() => None,
            Err(_) => Some(now + Micros(PAUSE_US)),
        };
        self.hurry_pairs(now);
    }

    /// Decides which pairs are kept ready, if that is this end's, and says what has changed.
    pub fn tend_pairs(&mut self, world: &mut World, now: Micros) {
        if self.pairing.unready_due.is_some_and(|due| now >= due) {
            self.handle_grown(world, now);
        }
        if now < self.pairing.due {
            return;
        }
        self.pairing.due = Micros::MAX;
        let is_able = self.refused.is_none() && !self.peer_gone && !self.has_ended && !self.is_own_peer();
        if !is_able || !self.pairing.is_met || self.machine.is_none() {
            return;
        }
        if !self.is_at_rest() {
            return self.hurry_pairs(now + Micros(PAUSE_US));
        }
        if self.leads() {
            self.match_idle_ends(world, now);
        }
        self.say_changes(world, now);
    }

    fn trial(&self, world: &World) -> Micros {
        let interval = u64::try_from(world.config.probe_interval.as_micros()).unwrap_or(u64::MAX);
        Micros((interval.min(PACE_US) * TRIAL) << self.pairing.doublings)
    }

    fn leads(&self) -> bool {
        self.remote.is_some_and(|remote| self.me > remote.end)
    }

    /// Standbys that may be offered.
    fn usable_standbys(&self, world: &World) -> Vec<Standby> {
        let is_usable = |one: &&Standby| !world.removals.has(one.choice.device) && !self.lost.contains(&one.slot);
        self.own.iter().flat_map(|own| &own.standbys).filter(is_usable).copied().collect()
    }

    fn peers_standbys(&self) -> Vec<PeerStandby> {
        let offer = self.heard.as_ref().and_then(|offer| offer.standby.as_ref());
        offer.map(PeerStandby::of).unwrap_or_default()
    }

    /// Paths of the shim's own that are kept ready.
    fn kept_paths(&self) -> impl Iterator<Item = (PathId, &PathState)> {
        (0..).map(PathId).zip(&self.paths).skip(1).filter(|(_, state)| !state.is_given_up)
    }

    /// The path that was made of these ends, given up or not.
    fn pair_of(&self, slots: (u8, u8)) -> Option<(PathId, &PathState)> {
        let all = (0..).map(PathId).zip(&self.paths).skip(1);
        all.into_iter().find(|(_, state)| state.ends.is_some() && state.slots == slots)
    }

    fn match_idle_ends(&mut self, world: &mut World, now: Micros) {
        let (own, peer) = (self.usable_standbys(world), self.peers_standbys());
        let trial = self.trial(world);
        let (mut held, mut idle, mut next_look) = (Vec::new(), Vec::new(), Micros::MAX);
        for (path, state) in self.kept_paths() {
            let is_there =
                own.iter().any(|one| one.slot == state.slots.0) && peer.iter().any(|one| one.slot == state.slots.1);
            let is_on_trial = is_there && now < state.idle_from + trial;
            if path == self.current() || state.armed && is_there || is_on_trial {
                held.push(state.slots);
                next_look =
                    next_look.min(if is_on_trial && !state.armed { state.idle_from + trial } else { Micros::MAX });
            } else {
                idle.push((path, state.slots));
            }
        }
        let own: Vec<Standby> = own.into_iter().filter(|one| held.iter().all(|pair| pair.0 != one.slot)).collect();
        let peer: Vec<PeerStandby> =
            peer.into_iter().filter(|one| held.iter().all(|pair| pair.1 != one.slot)).collect();
        let tried = |own, peer| self.pair_of((own, peer)).map(|(_, state)| state.idle_from);
        let wanted = match_again((self.facts.gid, self.facts.peer_gid), &own, &peer, tried);
        self.hurry_pairs(next_look);
        let is_changed = wanted.iter().any(|pair| idle.iter().all(|(_, slots)| slots != pair))
            || idle.iter().any(|(_, slots)| !wanted.contains(slots));
        if !is_changed {
            return;
        }
        for (path, _) in idle.into_iter().filter(|(_, slots)| !wanted.contains(slots)) {
            self.give_up_path(world, path, now);
        }
        self.pairing.doublings = (self.pairing.doublings + 1).min(MOST_DOUBLINGS);
        for slots in wanted {
            if let Some(path) = self.number_of(slots) {
                self.try_pair(world, path, slots, now);
            }
        }
        self.choose_again(world);
    }

    /// The number of a pair: its own, or the next one. There may be none left.
    fn number_of(&self, slots: (u8, u8)) -> Option<PathId> {
        let next = || u8::try_from(self.paths.len()).ok().filter(|next| usize::from(*next) < MAX_PATHS).map(PathId);
        self.pair_of(slots).map(|(path, _)| path).or_else(next)
    }

    /// That path is to be kept ready, and is made of these ends, of which one may not be known here.
    fn try_pair(&mut self, world: &mut World, path: PathId, slots: (u8, u8), now: Micros) {
        let own = self.own.iter().flat_map(|own| &own.standbys).find(|one| one.slot == slots.0).copied();
        let peer = self.peers_standbys().into_iter().find(|one| one.slot == slots.1);
        let Some((own, peer)) = own.zip(peer) else { return };
        while self.paths.len() <= usize::from(path.0) {
            self.paths.push(PathState { is_given_up: true, ..PathState::default() });
        }
        let fresh = PathState::of(&own, &peer, &self.lost, now);
        let Some(state) =
            self.path_mut(path).filter(|state| state.is_given_up && (state.ends.is_none() || state.slots == slots))
        else {
            return;
        };
        *state = PathState { fenced: state.fenced, answered: state.answered, ..fresh };
        let arranged: Vec<u8> = self.paths.iter().skip(1).map(|state| state.slots.0).collect();
        world.data.arrange(self.life, &arranged);
        self.note_unarmed(world, path, now);
        let name = self.path_name(world, path);
        log::debug!("qp {:#x}: {path} is {} to {}", self.facts.qpn, name.device, name.peer_gid);
    }

    /// Nothing is tried there any more. Should the peer's COMMIT lead there after all, it is known still.
    fn give_up_path(&mut self, world: &mut World, path: PathId, now: Micros) {
        self.disarm(world, path, now);
        let Some(state) = self.path_mut(path) else { return };
        (state.own_ready, state.peer_ready, state.is_silent, state.wanted) = (false, false, false, false);
        (state.is_given_up, state.probe_due) = (true, Micros::MAX);
        world.has_unused = true;
    }

    fn choose_again(&mut self, world: &mut World) {
        self.forget_choice(world);
        self.choose(world);
    }

    /// Says the own standbys again if they, or the pairs, are not what was said last.
    fn say_changes(&mut self, world: &mut World, now: Micros) {
        let Some(said) = &self.pairing.said else { return };
        let pair = |(path, state): (PathId, &PathState)| PathPair { path, own: state.slots.0, peer: state.slots.1 };
        let mut paths: Vec<PathPair> = if self.leads() { self.kept_paths().map(pair).collect() } else { Vec::new() };
        if said.revision == 0 && self.are_first_pairs(&paths) {
            paths.clear();
        }
        let next = StandbyOffer {
            standbys: offered(&self.usable_standbys(world)),
            paths,
            is_first_gone: world.removals.has(self.facts.device),
            ..said.clone()
        };
        if next != *said {
            self.pairing.said = Some(StandbyOffer { revision: said.revision.saturating_add(1), ..next });
            self.heard_here = false;
            self.send_offer(world, now);
        }
    }

    /// They are those that follow from both first offers.
    fn are_first_pairs(&self, paths: &[PathPair]) -> bool {
        paths.len() + 1 == self.pairing.first && self.paths.len() == self.pairing.first
    }

    /// A later offer of the peer's.
    pub fn hear_later(&mut self, world: &mut World, offer: &StandbyOffer, now: Micros) {
        if !self.leads() && !offer.paths.is_empty() {
            self.follow(world, &offer.paths, now);
        }
        self.hurry_pairs(now);
    }

    fn follow(&mut self, world: &mut World, paths: &[PathPair], now: Micros) {
        let current = self.current();
        let unwanted = self.kept_paths().map(|(path, _)| path).filter(|path| *path != current);
        let unwanted: Vec<PathId> = unwanted.filter(|path| paths.iter().all(|pair| pair.path != *path)).collect();
        unwanted.into_iter().for_each(|path| self.give_up_path(world, path, now));
        for pair in paths {
            self.try_pair(world, pair.path, (pair.peer, pair.own), now);
        }
        self.choose_again(world);
    }

    /// The connection has come to a path that it had given up.
    pub fn take_up(&mut self, path: PathId) {
        if let Some(state) = self.path_mut(path) {
            state.is_given_up = false;
        }
    }

    /// A pair carries: from now on the next silent one is given up soon again.
    pub fn note_carries(&mut self) {
        self.pairing.doublings = 0;
    }

    /// Both use one of the ends: what is on its way of one may reach the other.
    pub fn shares_an_end(&self, path: PathId, other: PathId) -> bool {
        let of = |path: PathId| self.path(path).filter(|_| path != PathId::PRIMARY).map(|state| state.slots);
        path == other || of(path).zip(of(other)).is_some_and(|(one, other)| one.0 == other.0 || one.1 == other.1)
    }
}
