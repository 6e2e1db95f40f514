//! Queue pairs of one process that receive through one shared receive queue (SRQ): what each of them has to do so that all are on one
//! path.
//!
//! A receive of an SRQ belongs to no queue pair until a message takes it, and cannot be withdrawn. So the receives that are left can be posted on
//! another path only when none of the queue pairs can take one on the old path any more: all of them are fenced, whatever path each is on with its
//! own peer. Each pair goes through the handshake of its own; a group only says who has to, and when receives may be posted.
//!
//! What must hold: receives are posted on a path only once every member is fenced, dead or gone; no member waits for one that waits for it. The
//! second holds because a member says its report before it waits for its group: what it waits for is the fence of others, which waits for nobody.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::Stage;
use crate::id::{Micros, PathId};

/// Which paths a queue pair may be moved to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every one that is armed.
    #[default]
    Any,
    /// The one that the group is moving to.
    Only(PathId),
    /// None: a member of the group is not protected, so nobody is moved.
    Nowhere,
}

impl Scope {
    /// Whether that path may be a target.
    #[must_use]
    pub const fn allows(self, path: PathId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(only) => only.0 == path.0,
            Self::Nowhere => false,
        }
    }
}

/// A queue pair as its group sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<K> {
    /// Its name at this end. Members are told in the order of these, which is to be that of their endpoint ids.
    pub key: K,
    /// Its machine's stage.
    pub stage: Stage,
    /// The path that its machine is on, or moves to.
    pub path: PathId,
    /// A fault of its path would be migrated.
    pub is_armed: bool,
    /// Its peer is there: it can be moved.
    pub has_peer: bool,
}

impl<K> Member<K> {
    const fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Dead | Stage::Gone)
    }

    /// It takes nothing from another path any more.
    const fn is_fenced_for(&self, goal: PathId) -> bool {
        self.path.0 == goal.0
            && match self.stage {
                Stage::Running | Stage::Reposting | Stage::Ready | Stage::Replaying | Stage::Dead | Stage::Gone => true,
                Stage::Fencing | Stage::Fenced | Stage::Settling => false,
            }
    }
}

/// What a member is to be given: [`super::Input::Follow`] or [`super::Input::LeftBehind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<K> {
    /// The group moves there.
    Follow(K, PathId),
    /// The group goes on without it.
    LeaveBehind(K),
}

/// The group of one SRQ.
#[derive(Clone, Debug)]
pub struct Group<K> {
    /// Where the receives are.
    home: PathId,
    /// Where they go, and since when.
    goal: Option<(PathId, Micros)>,
    /// Moves begun so far.
    moves: u64,
    /// Members that have been where the receives are. Others were connected later, on a path that the group has left.
    arrived: BTreeSet<K>,
    /// How long members that do not come along are waited for.
    limit: Micros,
}

impl<K: Copy + Ord> Group<K> {
    /// One on the primary path. The limit has to leave time for a fence and the exchange of reports before the exchange deadline of the member that
    /// moved first.
    #[must_use]
    pub const fn new(limit: Micros) -> Self {
        Self { home: PathId::PRIMARY, goal: None, moves: 0, arrived: BTreeSet::new(), limit }
    }

    /// Where the receives are. While the group moves this is where they were.
    #[must_use]
    pub const fn home(&self) -> PathId {
        self.home
    }

    /// Where they go.
    #[must_use]
    pub fn goal(&self) -> Option<PathId> {
        self.goal.map(|(goal, _)| goal)
    }

    /// Moves that were begun so far.
    #[must_use]
    pub const fn moves(&self) -> u64 {
        self.moves
    }

    /// Whether a member that is connected for that path may post receives there.
    #[must_use]
    pub fn is_open(&self, path: PathId) -> bool {
        self.goal.is_none() && self.home == path
    }

    /// Whether a fault of any member can be masked: every one that has a peer could come along.
    #[must_use]
    pub fn is_ready(members: &[Member<K>]) -> bool {
        members.iter().all(|member| member.is_armed || !member.has_peer || !member.is_live())
    }

    /// Where a member may be moved to, given what [`Group::is_ready`] says.
    #[must_use]
    pub fn scope(&self, member: &Member<K>, is_ready: bool) -> Scope {
        match self.goal() {
            Some(goal) => Scope::Only(goal),
            None if member.path != self.home => Scope::Only(self.home),
            None if is_ready => Scope::Any,
            None => Scope::Nowhere,
        }
    }

    /// Looks at all members; to be called whenever one of them may have changed. Says the same again as long as it is not done.
    pub fn turn(&mut self, now: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
        self.arrived.retain(|key| members.iter().any(|member| member.key == *key));
        let (home, resting) = (self.home, self.goal.is_none());
        self.arrived.extend(members.iter().filter(|m| resting && m.path == home).map(|member| member.key));
        if resting {
            // Who is connected anew on the path where the receives are has left nobody behind.
            let left =
                |member: &&Member<K>| member.is_live() && member.path != home && self.arrived.contains(&member.key);
            self.goal = members.iter().find(left).map(|member| (member.path, now));
            self.moves += u64::from(self.goal.is_some());
        }
        match self.goal {
            Some((goal, since)) => self.gather(goal, now >= since + self.limit, members),
            None => self.call(home, members),
        }
    }

    /// The group is moving: everybody has to be fenced, and to come along.
    fn gather(&mut self, goal: PathId, is_late: bool, members: &[Member<K>]) -> Vec<Order<K>> {
        let missing = || members.iter().filter(|member| member.is_live() && !member.is_fenced_for(goal));
        if missing().next().is_none() {
            (self.home, self.goal) = (goal, None);
            self.arrived = members.iter().map(|member| member.key).collect();
            return Vec::new();
        }
        let absent = missing().filter(|member| member.path != goal);
        absent
            .map(|member| match is_late || !member.has_peer {
                true => Order::LeaveBehind(member.key),
                false => Order::Follow(member.key, goal),
            })
            .collect()
    }

    /// The group rests: who was connected on a path that it has left is called to it.
    fn call(&self, home: PathId, members: &[Member<K>]) -> Vec<Order<K>> {
        let absent = members.iter().filter(|member| member.is_live() && member.has_peer && member.path != home);
        absent.map(|member| Order::Follow(member.key, home)).collect()
    }
}
