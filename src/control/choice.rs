//! Which of their standbys two ends pair, and which path a queue pair would rather have.
//!
//! Each end offers the ends of its standbys. Which of them make a path with which, and which path has which number, follows from both offers by one pure
//! function, so both ends know it without another word.

use std::cmp::Reverse;

use shift_proto::frame::{SlotOffer, StandbyOffer};
use shift_proto::id::{Micros, PathId, ProcessId};
use shift_proto::migrate::Input;

use crate::datapath::{Gid, PathEnd, Standby};
use crate::qp::{end_of, offer_of, Qp};
use crate::world::World;

/// A standby of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerStandby {
    /// As its key frames name it.
    pub slot: u8,
    pub end: PathEnd,
}

/// Standbys as they go over the wire.
pub(crate) fn offered(own: &[Standby]) -> Vec<SlotOffer> {
    own.iter().map(|one| SlotOffer { slot: one.slot, end: offer_of(&one.end) }).collect()
}

impl PeerStandby {
    /// All that it offers.
    pub fn of(offer: &StandbyOffer) -> Vec<Self> {
        let of_slot = |offer: &SlotOffer| Self { slot: offer.slot, end: end_of(&offer.end) };
        offer.standbys.iter().map(of_slot).collect()
    }
}

/// How much the addresses of two standbys differ in the way in which those of the primaries do: in a fabric whose rails do not reach one another that is what
/// two ends of one rail look like, whether a rail is a subnet or a number within one. Bits, from the front; all 128: exactly.
pub(crate) fn likeness(primaries: (Gid, Gid), standbys: (Gid, Gid)) -> u32 {
    let difference = |(own, peer): (Gid, Gid)| u128::from_be_bytes(own.0) ^ u128::from_be_bytes(peer.0);
    (difference(primaries) ^ difference(standbys)).leading_zeros()
}

/// The pairs, that of the first path of the shim's own first. The most alike are paired first, then those that `leads`, the one end of both that it is
/// `true` for, would rather have.
pub(crate) fn pair(
    primaries: (Gid, Gid),
    own: &[Standby],
    peer: &[PeerStandby],
    leads: bool,
) -> Vec<(Standby, PeerStandby)> {
    let order = |at: usize, of_peer: usize| if leads { (at, of_peer) } else { (of_peer, at) };
    let mut all: Vec<(usize, usize)> = (0..own.len()).flat_map(|at| (0..peer.len()).map(move |of| (at, of))).collect();
    let alike = |(at, of): &(usize, usize)| {
        let ends = own.get(*at).zip(peer.get(*of));
        ends.map_or(0, |(own, peer)| likeness(primaries, (own.end.gid, peer.end.gid)))
    };
    all.sort_by_key(|ends| (Reverse(alike(ends)), order(ends.0, ends.1)));
    let mut taken: Vec<(usize, usize)> = Vec::new();
    for ends in all {
        if taken.iter().all(|other| other.0 != ends.0 && other.1 != ends.1) {
            taken.push(ends);
        }
    }
    taken.sort_by_key(|ends| order(ends.0, ends.1));
    taken.into_iter().filter_map(|(at, of)| own.get(at).copied().zip(peer.get(of).copied())).collect()
}

/// Paths with rank and load: the best first, of equals that to which the fewest queue pairs of this process would go, and of equals again one by chance, which
/// is the process's own: so those of a host spread, though each has only a few queue pairs and none knows of the others.
fn in_order(me: ProcessId, mut paths: Vec<(u8, usize, PathId)>) -> Vec<PathId> {
    let die = |path: PathId| {
        // Two rounds of a multiplicative hash: the ids are random, the paths are not.
        let mixed = (me.0 ^ u64::from(path.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32
    };
    paths.sort_unstable_by_key(|(rank, load, path)| (*rank, *load, die(*path), *path));
    paths.into_iter().map(|(_, _, path)| path).collect()
}

impl Qp {
    /// Its paths, the first one first.
    pub fn path_ids(&self) -> impl Iterator<Item = PathId> + 'static {
        (0..u8::try_from(self.paths.len()).unwrap_or(u8::MAX)).map(PathId)
    }

    /// The paths in the order in which it would rather have them: its first one, then the others ([`in_order`]).
    pub fn choose(&mut self, world: &mut World) {
        let standbys = self.path_ids().skip(1).filter_map(|path| {
            let state = self.path(path).filter(|state| !state.is_given_up)?;
            let load = world.loads.get(&state.device?).copied().unwrap_or(0);
            Some((state.rank, load, path))
        });
        let standbys = in_order(self.me.process, standbys.collect());
        self.order = std::iter::once(PathId::PRIMARY).chain(standbys).collect();
        if let Some(device) = self.first_choice() {
            *world.loads.entry(device).or_insert(0) += 1;
        }
    }

    fn first_choice(&self) -> Option<crate::datapath::DeviceId> {
        self.order.get(1).and_then(|path| self.path(*path)).and_then(|state| state.device)
    }

    /// It is gone: what it would have gone to has one less.
    pub fn forget_choice(&self, world: &mut World) {
        if let Some(load) = self.first_choice().and_then(|device| world.loads.get_mut(&device)) {
            *load = load.saturating_sub(1);
        }
    }

    /// Where it might move to now, the best first.
    pub fn next_paths(&self) -> impl Iterator<Item = PathId> + '_ {
        let current = self.current();
        let is_armed = move |path: &PathId| *path != current && self.path(*path).is_some_and(|state| state.armed);
        self.order.iter().copied().filter(is_armed)
    }

    /// Where it would move to.
    pub fn next_path(&self) -> Option<PathId> {
        self.next_paths().next()
    }

    /// A path answered while one is sought. One that it would rather have is given the time that its answer may take.
    pub fn hear_answer(&mut self, world: &mut World, path: PathId, now: Micros) {
        let Some(since) = self.seek else { return };
        if self.facts.group.is_some() {
            // Who receives with it goes where it goes, so which is the better one is for all of them to say.
            if path == self.current() || (self.group.choice.is_some() && self.group.choice == self.site_of(path)) {
                self.feed(world, now, Input::PathAnswered(path));
            }
            return;
        }
        let wait =
            self.better_than(world, path, since, now).into_iter().map(|better| self.time_of(world, better)).max();
        match wait.map(|wait| since + wait).filter(|until| now < *until && path != self.current()) {
            Some(until) => self.answers_due = Some(self.answers_due.map_or(until, |due| due.min(until))),
            None => self.feed(world, now, Input::PathAnswered(path)),
        }
    }

    /// Armed paths that it would rather have and that have not answered.
    fn better_than(&self, world: &World, path: PathId, since: Micros, now: Micros) -> Vec<PathId> {
        let before = self.preference(world, now).into_iter().take_while(|other| *other != path);
        let waits = |other: &PathId| {
            let state = self.path(*other).filter(|state| state.armed && *other != self.current());
            state.is_some_and(|state| state.answered.is_none_or(|sent| sent < since))
        };
        before.filter(waits).collect()
    }

    /// The order at this moment: what is shunned comes last.
    pub fn preference(&self, world: &World, now: Micros) -> Vec<PathId> {
        let is_shunned = |path: &PathId| self.is_path_shunned(world, *path, now);
        let (last, mut first): (Vec<PathId>, Vec<PathId>) = self.order.iter().partition(|path| is_shunned(path));
        first.extend(last);
        first
    }

    /// How long an answer on that path takes.
    pub fn time_of(&self, world: &World, path: PathId) -> Micros {
        self.probe_key(path).map_or(Micros(0), |(key, _)| world.probes.round_trip(&key).bound())
    }

    /// What it would rather have did not answer in its time.
    pub fn tick_answers(&mut self, world: &mut World, now: Micros) {
        if self.answers_due.take_if(|due| now >= *due).is_none() {
            return;
        }
        for path in self.preference(world, now) {
            let Some(since) = self.seek else { return };
            if self.path(path).is_some_and(|state| state.answered.is_some_and(|sent| sent >= since)) {
                self.feed(world, now, Input::PathAnswered(path));
            }
        }
    }

    /// Standbys that never answered, or do not any more, by name.
    pub fn silent_standbys(&self, name: impl Fn(PathId) -> Option<String>) -> Vec<String> {
        let current = self.current();
        let is_silent = |path: &PathId| self.path(*path).is_some_and(|state| state.is_silent && *path != current);
        self.path_ids().filter(is_silent).filter_map(name).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails should say where")]
mod tests {
    use super::*;
    use crate::datapath::{Choice, DeviceId};
    use shift_proto::id::{Mtu, Psn};

    fn end(address: [u8; 4]) -> PathEnd {
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&address);
        PathEnd { qpn: 1, gid: Gid(gid), mtu: Mtu::new(1024).unwrap(), psn_base: Psn::new(0) }
    }

    fn standby(slot: usize, address: [u8; 4]) -> Standby {
        let slot = u8::try_from(slot).unwrap();
        Standby { slot, choice: Choice { device: DeviceId(u16::from(slot)), rank: 0 }, end: end(address) }
    }

    /// Addresses of the two ends' pairs, and the same as the other end sees it.
    fn pairs(primaries: [[u8; 4]; 2], own: &[[u8; 4]], peer: &[[u8; 4]]) -> Vec<([u8; 4], [u8; 4])> {
        let standbys = |addresses: &[[u8; 4]]| -> Vec<Standby> {
            addresses.iter().enumerate().map(|(slot, address)| standby(slot, *address)).collect()
        };
        let offered = |standbys: &[Standby]| -> Vec<PeerStandby> {
            standbys.iter().map(|one| PeerStandby { slot: one.slot, end: one.end }).collect()
        };
        let (own, peer) = (standbys(own), standbys(peer));
        let [here, there] = primaries.map(|address| end(address).gid);
        let address = |end: PathEnd| -> [u8; 4] { end.gid.0[12..].try_into().unwrap() };
        let ours = pair((here, there), &own, &offered(&peer), true);
        let theirs = pair((there, here), &peer, &offered(&own), false);
        let ours: Vec<_> = ours.into_iter().map(|(own, peer)| (address(own.end), address(peer.end))).collect();
        let theirs: Vec<_> = theirs.into_iter().map(|(own, peer)| (address(peer.end), address(own.end))).collect();
        assert_eq!(ours, theirs, "both ends pair alike");
        ours
    }

    #[test]
    fn standbys_of_one_rail_are_paired_whatever_their_order() {
        let own = [[10, 1, 1, 1], [10, 1, 2, 1]];
        let peer = [[10, 1, 2, 2], [10, 1, 1, 2]];
        assert_eq!(pairs([[10, 1, 0, 1], [10, 1, 0, 2]], &own, &peer), [(own[0], peer[1]), (own[1], peer[0])]);
    }

    #[test]
    fn a_rail_that_is_a_number_within_a_subnet_is_found_too() {
        let own = [[10, 0, 1, 3], [10, 0, 1, 2]];
        let peer = [[10, 0, 2, 1], [10, 0, 2, 2], [10, 0, 2, 3]];
        let found = pairs([[10, 0, 1, 0], [10, 0, 2, 0]], &own, &peer);
        assert_eq!(found, [(own[0], peer[2]), (own[1], peer[1])]);
        let (own, peer) = ([[10, 0, 0, 2], [10, 0, 0, 3]], [[10, 0, 0, 5], [10, 0, 0, 6]]);
        let found = pairs([[10, 0, 0, 1], [10, 0, 0, 4]], &own, &peer);
        assert_eq!(found, [(own[0], peer[0]), (own[1], peer[1])]);
    }

    #[test]
    fn who_has_fewer_standbys_uses_all_of_them_and_none_twice() {
        let own = [[10, 1, 1, 1]];
        let peer = [[10, 1, 3, 2], [10, 1, 1, 2], [10, 1, 2, 2]];
        assert_eq!(pairs([[10, 1, 0, 1], [10, 1, 0, 2]], &own, &peer), [(own[0], peer[1])]);
        assert_eq!(pairs([[10, 1, 0, 1], [10, 1, 0, 2]], &own, &[]), []);
    }

    /// As many programs of one queue pair each have, on one host.
    #[test]
    fn the_queue_pairs_of_a_host_spread_over_equals_and_a_better_one_comes_first() {
        let mut firsts = [0_u32; 3];
        for process in 0..3000_u64 {
            // Drawn at random, as process ids are, or counted: the worst that they could be.
            for me in [process, process.wrapping_mul(0x5851_f42d_4c95_7f2d)] {
                let order = in_order(ProcessId(me), (1..=3).map(|path| (1, 0, PathId(path))).collect());
                firsts[usize::from(order[0].0) - 1] += 1;
            }
        }
        assert!(firsts.iter().all(|count| (1_800..2_200).contains(count)), "{firsts:?}");
        for process in 0..100 {
            let order = |paths: [(u8, usize); 3]| {
                let paths = (1..).zip(paths).map(|(path, (rank, load))| (rank, load, PathId(path)));
                in_order(ProcessId(process), paths.collect())[0]
            };
            assert_eq!(order([(1, 0), (0, 5), (1, 0)]), PathId(2));
            assert_eq!(order([(0, 2), (0, 2), (0, 1)]), PathId(3));
        }
    }
}
