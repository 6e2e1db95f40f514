//! Queue pairs of one process that receive through one shared receive queue (SRQ): what each of them has to do so that all are on one
//! path.
//!
//! A receive of an SRQ belongs to no queue pair until a message takes it, and cannot be withdrawn. So the receives that are left can be posted
//! anew only when none of the queue pairs can take one of the old ones any more: all of them are fenced, whatever path each is on with its
//! own peer. Each pair goes through the handshake of its own; a group only says who has to, and when receives may be posted.
//!
//! What must hold: receives are posted anew only once every member is fenced, dead or gone; where the receives are said to be they have been posted; no
//! member waits for one that waits for it. The last holds because a member fences, and says its report, before it waits for its group: what it waits for
//! is the fence of others, which waits for nobody.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{GroupLimits, Machine, Plan, Progress, Stage};
use crate::id::{Epoch, Micros, PathId};

/// Moves within the patience deadline after which claims of peers are refused.
const MOST_MOVES: usize = 4;

/// Which paths a queue pair may be moved to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every one that is armed.
    #[default]
    Any,
    /// That one: the group is moving to it, or is there, or no other one is known to carry everybody.
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

/// Whether a queue pair, or a group, could be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It could.
    Ready,
    /// Not yet: it was connected a moment ago. What was said of the others stays said, and a fault is held.
    Arming,
    /// It cannot: a fault is the application's.
    Unable,
}

/// Where a member has to be: on a path, connected anew there if it was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Goal {
    /// The path.
    pub path: PathId,
    /// The epoch has to be above this one.
    pub above: Epoch,
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
    /// The incarnation that it is in.
    pub epoch: Epoch,
    /// No earlier incarnation takes anything any more.
    pub is_fenced: bool,
    /// Its peer is there.
    pub has_peer: bool,
    /// Its group told it where to go, and it is not there yet.
    pub follows: bool,
    /// Whether a fault of its path would be migrated.
    pub readiness: Readiness,
    /// It could come along now or soon.
    pub is_movable: bool,
    /// It is in fault, and seeks a path since then.
    pub sought: Option<Micros>,
    /// Its peer claims since then.
    pub asked: Option<Micros>,
    /// By path: when the last probe that was answered was sent.
    pub answered: [Option<Micros>; 2],
    /// By path: it could go there by plan.
    pub can_go: [bool; 2],
    /// The planned move that is under way, if it has not committed.
    pub plan: Option<Plan>,
}

impl<K> Member<K> {
    /// One that has a machine.
    #[must_use]
    pub fn of(key: K, machine: &Machine) -> Self {
        Self {
            stage: machine.state().stage,
            path: machine.path(),
            epoch: machine.epoch(),
            is_fenced: machine.is_fenced(),
            has_peer: machine.has_peer(),
            follows: machine.follows().is_some(),
            readiness: if machine.is_armed() { Readiness::Ready } else { Readiness::Arming },
            is_movable: true,
            can_go: [PathId::PRIMARY, PathId::STANDBY].map(|path| machine.can_muster(path)),
            plan: machine.plan(),
            ..Self::without_machine(key)
        }
    }

    /// One of whose peer nothing is known: it is connected, and takes receives on the primary path.
    #[must_use]
    pub const fn without_machine(key: K) -> Self {
        Self {
            key,
            stage: Stage::Running,
            path: PathId::PRIMARY,
            epoch: Epoch::FIRST,
            is_fenced: true,
            has_peer: true,
            follows: false,
            readiness: Readiness::Arming,
            is_movable: true,
            sought: None,
            asked: None,
            answered: [None; 2],
            can_go: [false; 2],
            plan: None,
        }
    }

    /// It takes receives, or may.
    pub const fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Dead | Stage::Gone)
    }

    /// It holds for a planned move to that path, which is the better way of getting there: nothing is outstanding, so there is nothing to be proven.
    fn leaves_by_plan(&self, goal: PathId) -> Option<Progress> {
        let plan = self.plan.filter(|plan| plan.target == goal && self.path != goal)?;
        Some(plan.progress).filter(|progress| *progress != Progress::Alone)
    }

    /// It wants to go elsewhere since then.
    fn wants(&self) -> Option<Micros> {
        self.sought.filter(|_| !self.follows).into_iter().chain(self.asked).min()
    }

    fn has_answer(&self, path: PathId, since: Micros) -> bool {
        self.answered.get(usize::from(path.0)).copied().flatten().is_some_and(|sent| sent >= since)
    }
}

/// What a member is to be given: [`super::Input::Follow`], [`super::Input::Depart`], [`super::Input::Stay`] or [`super::Input::LeftBehind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<K> {
    /// The group moves there.
    Follow(K, Goal),
    /// The group moves there by plan, and it holds and is complete.
    Depart(K),
    /// It is where the group is.
    Stay(K),
    /// The group goes on without it.
    LeaveBehind(K),
}

/// The group of one SRQ.
#[derive(Clone, Debug)]
pub struct Group<K> {
    /// Where the receives are: where they were posted last.
    home: PathId,
    /// Where they go, and since when.
    goal: Option<(PathId, Micros)>,
    /// Everyone who came along, in which incarnation: the receives may be posted at the goal.
    whole: Option<BTreeMap<K, Epoch>>,
    /// Moves begun so far.
    moves: u64,
    /// The one that the receives are where they are by.
    posted: u64,
    /// When the last moves that came to their end began, [`MOST_MOVES`] at most.
    lately: Vec<Micros>,
    /// Members that have been where the receives are, in that incarnation. Others were connected later, on a path that the group has left.
    arrived: BTreeMap<K, Epoch>,
    /// Who was told to come to where the receives are, and when first.
    called: BTreeMap<K, Micros>,
    /// A path answered somebody in fault, and others have been asked for it since then.
    asked: Option<Micros>,
    /// Where a member may be moved to while the group rests.
    allowed: Scope,
    limits: GroupLimits,
}

impl<K: Copy + Ord> Group<K> {
    /// One on the primary path.
    #[must_use]
    pub const fn new(limits: GroupLimits) -> Self {
        Self {
            home: PathId::PRIMARY,
            goal: None,
            whole: None,
            moves: 0,
            posted: 0,
            lately: Vec::new(),
            arrived: BTreeMap::new(),
            called: BTreeMap::new(),
            asked: None,
            allowed: Scope::Nowhere,
            limits,
        }
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

    /// When [`Group::turn`] is wanted at the latest while it rests.
    #[must_use]
    pub fn due(&self) -> Option<Micros> {
        self.called.values().map(|since| *since + self.limits.call).min()
    }

    /// The move that receives are posted by: the one that is under way, or the last that came to its end. They count from 1; 0 is none.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.goal.map_or(self.posted, |_| self.moves)
    }

    /// Whether a member that is connected for that path may post receives there.
    #[must_use]
    pub fn is_open(&self, path: PathId) -> bool {
        self.goal().map_or(self.home == path, |goal| goal == path && self.whole.is_some())
    }

    /// Whether a fault of a member that is where the receives are can be masked: everyone there who has a peer could come along. Who is elsewhere is
    /// called, or left.
    #[must_use]
    pub fn readiness(&self, members: &[Member<K>]) -> Readiness {
        let counts = |member: &&Member<K>| member.is_live() && member.has_peer && member.path == self.home;
        members.iter().filter(counts).map(|member| member.readiness).max().unwrap_or(Readiness::Ready)
    }

    /// Where a member may be moved to, given what [`Group::readiness`] says.
    #[must_use]
    pub fn scope(&self, member: &Member<K>, readiness: Readiness) -> Scope {
        match self.goal() {
            Some(goal) => Scope::Only(goal),
            None if member.path != self.home => Scope::Only(self.home),
            None if readiness == Readiness::Ready => self.allowed,
            None => Scope::Nowhere,
        }
    }

    /// Since when somebody has been in fault while nobody moves: everyone is to probe all paths until it is answered a probe of after that.
    #[must_use]
    pub fn seeks(&self, members: &[Member<K>]) -> Option<Micros> {
        let wants = |m: &Member<K>| m.wants().filter(|_| m.is_live() && m.path == self.home);
        members.iter().filter_map(wants).min().filter(|_| self.goal.is_none())
    }

    /// A member has posted the receives there, as [`Group::is_open`] allowed.
    pub fn posted(&mut self, path: PathId) {
        if let (Some(whole), Some((_, since))) = (self.whole.take(), self.goal.filter(|(goal, _)| *goal == path)) {
            (self.home, self.goal, self.arrived, self.posted) = (path, None, whole, self.moves);
            self.lately.push(since);
            self.lately.drain(..self.lately.len().saturating_sub(MOST_MOVES));
        }
    }

    /// Looks at all members, which come in the order of their keys; to be called whenever one of them may have changed. Says the same again as long as it
    /// is not done.
    pub fn turn(&mut self, now: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
        self.note_members(members);
        let has_left = |m: &&Member<K>| m.is_live() && self.arrived.get(&m.key).is_some_and(|at| m.epoch > *at);
        if self.goal.is_some_and(|(goal, _)| !members.iter().filter(has_left).any(|m| m.path == goal)) {
            // Who began it has ended, and nobody else has left the receives: nobody would post them.
            self.goal = None;
        }
        if self.goal.is_none() {
            self.goal = members.iter().find(has_left).map(|member| (member.path, now));
            self.moves += u64::from(self.goal.is_some());
        }
        self.whole = None;
        match self.goal {
            Some((goal, since)) => self.gather(goal, now.since(since), members),
            None => {
                self.look_around(now, members);
                self.call(now, members)
            }
        }
    }

    fn note_members(&mut self, members: &[Member<K>]) {
        debug_assert!(members.is_sorted_by_key(|member| member.key), "in order");
        let find = |key: &K| members.binary_search_by_key(key, |m| m.key).ok().and_then(|at| members.get(at));
        self.arrived.retain(|key, _| find(key).is_some());
        let home = self.home;
        self.called.retain(|key, _| find(key).is_some_and(|m| m.is_live() && m.has_peer && m.path != home));
        for member in members.iter().filter(|member| member.path == home) {
            self.arrived.entry(member.key).or_insert(member.epoch);
        }
    }

    /// Whether the incarnation that it is in takes its receives from those that are posted by this move.
    fn has_come(&self, member: &Member<K>, goal: PathId) -> bool {
        member.path == goal && self.arrived.get(&member.key).is_none_or(|at| member.epoch > *at)
    }

    /// The group is moving: everybody has to come along, and to be fenced.
    fn gather(&mut self, goal: PathId, so_far: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
        let mut orders = Vec::new();
        let mut whole = Some(BTreeMap::new());
        for member in members.iter().filter(|member| member.is_live()) {
            let has_come = self.has_come(member, goal);
            if has_come && member.follows {
                orders.push(Order::Stay(member.key));
            }
            if has_come && member.is_fenced {
                whole.iter_mut().for_each(|whole: &mut BTreeMap<K, Epoch>| _ = whole.insert(member.key, member.epoch));
                continue;
            }
            whole = None;
            let is_late = so_far >= if has_come { self.limits.fence } else { self.limits.come };
            let can_come = has_come || (member.has_peer && member.is_movable);
            if is_late || !can_come {
                orders.push(Order::LeaveBehind(member.key));
            } else if let Some(progress) = member.leaves_by_plan(goal).filter(|_| so_far < self.limits.depart) {
                orders.extend((progress == Progress::Complete).then_some(Order::Depart(member.key)));
            } else if !has_come {
                let above = self.arrived.get(&member.key).copied().unwrap_or(member.epoch);
                orders.push(Order::Follow(member.key, Goal { path: goal, above }));
            }
        }
        self.whole = whole;
        orders
    }

    /// The group rests: who was connected on a path that it has left is called to it. There are no receives for it where it is.
    fn call(&mut self, now: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
        let mut orders = Vec::new();
        for member in members.iter().filter(|member| member.is_live() && member.has_peer) {
            if member.path == self.home {
                orders.extend(member.follows.then_some(Order::Stay(member.key)));
                continue;
            }
            let since = *self.called.entry(member.key).or_insert(now);
            let goal = Goal { path: self.home, above: member.epoch };
            orders.push(match member.is_movable && now < since + self.limits.call {
                true => Order::Follow(member.key, goal),
                false => Order::LeaveBehind(member.key),
            });
        }
        orders
    }

    /// Whoever claims a path, at either end, makes everyone move there, so everyone is asked first whether it answers. If some do not in time the group moves only where that
    /// saves at least as many as it costs: those who do not answer are left behind, those in fault have no other way.
    fn look_around(&mut self, now: Micros, members: &[Member<K>]) {
        let Some(since) = self.seeks(members) else {
            (self.allowed, self.asked) = (Scope::Nowhere, None);
            return;
        };
        if self.is_driven_around(now) && !members.iter().any(|m| m.is_live() && m.sought.is_some() && !m.follows) {
            self.allowed = Scope::Nowhere;
            return;
        }
        let counts = |member: &&Member<K>| member.is_live() && member.has_peer && member.path == self.home;
        let silent = |path| {
            let others = members.iter().filter(counts).filter(|member| member.wants().is_none());
            others.filter(|member| !member.has_answer(path, since)).count()
        };
        let wanting = || members.iter().filter(counts).filter_map(|member| member.wants().map(|since| (member, since)));
        let is_wanted = |path| wanting().any(|(member, since)| member.has_answer(path, since));
        let paths = [PathId::PRIMARY, PathId::STANDBY];
        if paths.into_iter().any(|path| is_wanted(path) && silent(path) != 0) {
            self.asked.get_or_insert(now);
        }
        let is_over = self.asked.is_some_and(|asked| now >= asked + self.limits.ask);
        let most = if is_over { wanting().count() } else { 0 };
        self.allowed = match paths.map(|path| silent(path) <= most) {
            [true, true] => Scope::Any,
            [true, false] => Scope::Only(PathId::PRIMARY),
            [false, true] => Scope::Only(PathId::STANDBY),
            [false, false] => Scope::Nowhere,
        };
    }

    /// Two moves to different paths may drive each other around in a circle of groups for ever, each group going where its neighbours came from. Who has
    /// moved that often of late refuses claims unless it is in fault itself: one connection of the circle is left behind then.
    fn is_driven_around(&self, now: Micros) -> bool {
        let since = self.lately.len().checked_sub(MOST_MOVES).and_then(|at| self.lately.get(at));
        since.is_some_and(|since| now < *since + self.limits.call)
    }
}
