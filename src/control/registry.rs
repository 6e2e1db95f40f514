//! Who owns which queue pair of this network namespace, as its processes told the holder of the well-known port.
//!
//! Data only. What a process says of itself is proven by nothing but the user that the kernel names (SO_PEERCRED): the number of a
//! queue pair is no secret, and no verb tells another process whose it is. So the first to claim one has it, another user's
//! claim of the same waits behind it, and each ends with the connection over which it was made. What must hold: nobody takes
//! away what another user has; a claim that waited counts as soon as the one before it is gone, since an honest number comes back
//! as soon as its last owner has ended.

use std::collections::{BTreeMap, BTreeSet};

use crate::datapath::Gid;
use crate::links::LinkId;

/// Queue pairs of all other processes together: sixteen processes of a large job with 4096 each.
const MAX_CLAIMS: usize = 65_536;
/// Those of one user: nobody fills the table alone.
const MAX_CLAIMS_OF_USER: usize = MAX_CLAIMS / 2;
/// Processes that may register, and those of one user. Each has a connection of the holder's, whose own peers need the others.
const MAX_MEMBERS: usize = 512;
const MAX_MEMBERS_OF_USER: usize = 384;
/// Claims of one queue pair: the owner's, and one or two that outlived their process by a moment.
const MAX_CLAIMS_OF_QP: usize = 4;
/// Users of whom it is told that a claim of theirs was refused.
const MAX_TOLD: usize = 64;

/// A queue pair as its peer names it.
pub type Owned = (Gid, u32);

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It counts.
    First,
    /// Another user has the queue pair; `news`: this was not said of the claiming user before.
    Behind {
        /// The user who has it.
        owner: u32,
        /// To be told.
        news: bool,
    },
    /// There is no room.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    link: LinkId,
    user: u32,
    port: u16,
}

/// The claims of the other processes.
#[derive(Debug, Default)]
pub struct Registry {
    claims: BTreeMap<Owned, Vec<Claim>>,
    of_user: BTreeMap<u32, usize>,
    /// The users of those who registered anything.
    members: BTreeMap<LinkId, u32>,
    told: BTreeSet<u32>,
}

impl Registry {
    /// The process of `user` behind `link` wants to register. `false`: there are too many.
    pub fn admit(&mut self, link: LinkId, user: u32) -> bool {
        if self.members.contains_key(&link) {
            return true;
        }
        let of_user = self.members.values().filter(|other| **other == user).count();
        let has_room = self.members.len() < MAX_MEMBERS && of_user < MAX_MEMBERS_OF_USER;
        if has_room {
            self.members.insert(link, user);
        }
        has_room
    }

    /// The process of `user` behind `link`, listening on `port`, says that the queue pair is its own.
    pub fn claim(&mut self, key: Owned, link: LinkId, user: u32, port: u16) -> Claimed {
        self.withdraw(key, link);
        let total: usize = self.of_user.values().sum();
        let own = self.of_user.entry(user).or_default();
        let waiting = self.claims.entry(key).or_default();
        if total >= MAX_CLAIMS || *own >= MAX_CLAIMS_OF_USER || waiting.len() >= MAX_CLAIMS_OF_QP {
            self.tidy(key, user);
            return Claimed::Full;
        }
        *own += 1;
        // Of one user's processes the newest has it: the number was given out again.
        let place = waiting.iter().position(|c| c.user == user).unwrap_or(waiting.len());
        waiting.insert(place, Claim { link, user, port });
        match waiting.first().map(|c| c.user).filter(|_| place > 0) {
            None => Claimed::First,
            Some(owner) => Claimed::Behind { owner, news: self.told.len() < MAX_TOLD && self.told.insert(user) },
        }
    }

    /// The process behind `link` has the queue pair no more.
    pub fn withdraw(&mut self, key: Owned, link: LinkId) {
        let Some(waiting) = self.claims.get_mut(&key) else {
            return;
        };
        let at = waiting.iter().position(|c| c.link == link);
        if let Some(claim) = at.map(|at| waiting.remove(at)) {
            if let Some(count) = self.of_user.get_mut(&claim.user) {
                *count -= 1;
            }
            self.tidy(key, claim.user);
        }
    }

    /// The process behind `link` ended.
    pub fn forget(&mut self, link: LinkId) {
        self.members.remove(&link);
        let of_link = |(key, waiting): (&Owned, &Vec<Claim>)| waiting.iter().any(|c| c.link == link).then_some(*key);
        let keys: Vec<Owned> = self.claims.iter().filter_map(of_link).collect();
        for key in keys {
            self.withdraw(key, link);
        }
    }

    /// The port of the process that has the queue pair.
    pub fn owner(&self, key: Owned) -> Option<u16> {
        self.claims.get(&key)?.first().map(|c| c.port)
    }

    /// Empty entries go.
    fn tidy(&mut self, key: Owned, user: u32) {
        if self.claims.get(&key).is_some_and(Vec::is_empty) {
            self.claims.remove(&key);
        }
        if self.of_user.get(&user) == Some(&0) {
            self.of_user.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Owned = (Gid([7; 16]), 17);
    const ALICE: u32 = 1000;
    const BOB: u32 = 1001;

    fn link(number: usize) -> LinkId {
        LinkId::of(number)
    }

    #[test]
    fn a_queue_pair_stays_with_the_user_who_registered_it_first() {
        let mut registry = Registry::default();
        assert_eq!(registry.claim(KEY, link(1), ALICE, 100), Claimed::First);
        assert_eq!(registry.claim(KEY, link(2), BOB, 200), Claimed::Behind { owner: ALICE, news: true });
        assert_eq!(registry.owner(KEY), Some(100));
        assert_eq!(registry.claim(KEY, link(2), BOB, 201), Claimed::Behind { owner: ALICE, news: false }, "told once");
        registry.withdraw(KEY, link(2));
        assert_eq!(registry.owner(KEY), Some(100), "nobody withdraws what another has");
    }

    #[test]
    fn a_claim_that_waited_counts_when_the_one_before_it_is_gone() {
        let mut registry = Registry::default();
        registry.claim(KEY, link(1), ALICE, 100);
        registry.claim(KEY, link(2), BOB, 200);
        registry.forget(link(1));
        assert_eq!(registry.owner(KEY), Some(200));
        registry.forget(link(2));
        assert_eq!(registry.owner(KEY), None);
        assert!(registry.claims.is_empty() && registry.of_user.is_empty(), "nothing is left of those that ended");
    }

    #[test]
    fn nobody_takes_all_places_alone_and_who_leaves_makes_room() {
        let mut registry = Registry::default();
        let admitted = |registry: &mut Registry, from: usize, user| {
            (from..from + 1000).filter(|number| registry.admit(link(*number), user)).count()
        };
        assert_eq!(admitted(&mut registry, 0, ALICE), MAX_MEMBERS_OF_USER);
        assert_eq!(admitted(&mut registry, 0, ALICE), MAX_MEMBERS_OF_USER, "who is in stays in");
        assert_eq!(admitted(&mut registry, 1000, BOB), MAX_MEMBERS - MAX_MEMBERS_OF_USER);
        registry.forget(link(0));
        assert_eq!(admitted(&mut registry, 2000, BOB), 1);
    }

    #[test]
    fn of_one_users_processes_the_newest_has_it_and_the_older_takes_nothing_with_it() {
        let mut registry = Registry::default();
        registry.claim(KEY, link(1), ALICE, 100);
        assert_eq!(registry.claim(KEY, link(2), ALICE, 200), Claimed::First);
        registry.withdraw(KEY, link(1));
        registry.forget(link(1));
        assert_eq!(registry.owner(KEY), Some(200));
    }

    #[test]
    fn one_user_cannot_fill_the_table() {
        let mut registry = Registry::default();
        let mut taken = 0;
        for qpn in 0..=u32::try_from(MAX_CLAIMS).unwrap_or(0) {
            taken += usize::from(registry.claim((KEY.0, qpn), link(1), ALICE, 1) == Claimed::First);
        }
        assert_eq!(taken, MAX_CLAIMS_OF_USER);
        assert_eq!(registry.claim(KEY, link(2), BOB, 2), Claimed::Behind { owner: ALICE, news: true });
        assert_eq!(registry.claim((KEY.0, 0xff_ffff), link(2), BOB, 2), Claimed::First);
    }
}
