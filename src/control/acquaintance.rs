//! By what a process is known again: the tokens that it shares with this one, and the addresses from which it may come.
//!
//! The two ends of a connection need not forget each other at the same time: one of them may have no queue pair and no connection left
//! while the other has, after a pause that was longer than the heartbeat. So what was learnt outlives the [`crate::peers::Process`] of
//! somebody who did not say that it ended, or the other end's next connection would look like a stranger's in its name.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use shift_proto::id::ProcessId;

use crate::address::{canonical, is_link_local, MAX_ADDRESSES};
use crate::peers::{Token, NO_TOKEN};

/// Tokens of one process: two ends that dial each other at once draw one each, and so again for a further address.
const MAX_TOKENS: usize = 16;
/// Processes that were forgotten and may come back. One that comes back later starts anew, as a candidate.
const MAX_PARTED: usize = 1024;

/// What two processes learnt of each other where they met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acquaintance {
    /// Drawn here or there, the latest last.
    tokens: VecDeque<Token>,
    /// From where it may come: where it was met, and what it told there.
    pub addresses: BTreeSet<IpAddr>,
    /// Where it told that it listens.
    pub listens: BTreeSet<SocketAddr>,
}

impl Acquaintance {
    pub fn learn(&mut self, token: Token, at: Option<IpAddr>, told: &[SocketAddr]) {
        if token != NO_TOKEN && !self.tokens.contains(&token) {
            if self.tokens.len() >= MAX_TOKENS {
                self.tokens.pop_front();
            }
            self.tokens.push_back(token);
        }
        // A link-local one is no way to it: the interface is not known. But it may come from there.
        for address in told.iter().take(MAX_ADDRESSES).filter(|a| !is_link_local(a.ip())) {
            if self.listens.len() < 2 * MAX_ADDRESSES {
                self.listens.insert(*address);
            }
        }
        let places = told.iter().take(MAX_ADDRESSES).map(|a| canonical(a.ip())).chain(at);
        for place in places {
            if self.addresses.len() < 2 * MAX_ADDRESSES {
                self.addresses.insert(place);
            }
        }
    }

    /// What a new connection shows: of several the latest is the least likely to be forgotten there.
    pub fn token(&self) -> Token {
        self.tokens.back().copied().unwrap_or(NO_TOKEN)
    }

    pub fn shares(&self, token: Token) -> bool {
        self.tokens.contains(&token)
    }

    pub fn comes_from(&self, at: Option<IpAddr>) -> bool {
        at.is_some_and(|at| self.addresses.contains(&at))
    }
}

/// Those who were forgotten and did not end, the latest last.
#[derive(Default)]
pub(crate) struct Parted(VecDeque<(ProcessId, Acquaintance)>);

impl Parted {
    pub fn add(&mut self, id: ProcessId, acquaintance: Acquaintance) {
        if self.0.len() >= MAX_PARTED {
            self.0.pop_front();
        }
        self.0.push_back((id, acquaintance));
    }

    pub fn get(&self, id: ProcessId) -> Option<&Acquaintance> {
        self.0.iter().find(|(parted, _)| *parted == id).map(|(_, acquaintance)| acquaintance)
    }

    /// It is met again; nothing is known of somebody new.
    pub fn take(&mut self, id: ProcessId) -> Acquaintance {
        let at = self.0.iter().position(|(parted, _)| *parted == id);
        at.and_then(|at| self.0.remove(at)).map(|(_, acquaintance)| acquaintance).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_token_is_shown_and_the_oldest_makes_room() {
        let mut known = Acquaintance::default();
        assert_eq!(known.token(), NO_TOKEN);
        (1..=17).for_each(|byte| known.learn([byte; 16], None, &[]));
        assert!(known.token() == [17; 16] && known.shares([2; 16]) && !known.shares([1; 16]));
    }

    #[test]
    fn the_oldest_of_the_parted_makes_room_and_who_is_met_again_is_no_longer_among_them() {
        let mut parted = Parted::default();
        let mut known = Acquaintance::default();
        known.learn([7; 16], None, &[]);
        let many = u64::try_from(MAX_PARTED).unwrap_or(0);
        (1..=many + 1).for_each(|id| parted.add(ProcessId(id), known.clone()));
        assert!(parted.get(ProcessId(1)).is_none() && parted.get(ProcessId(2)).is_some());
        assert!(parted.take(ProcessId(many)).shares([7; 16]) && parted.get(ProcessId(many)).is_none());
        assert!(!parted.take(ProcessId(many)).shares([7; 16]));
    }
}
