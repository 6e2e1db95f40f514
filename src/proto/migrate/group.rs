//! Queue pairs of one process that receive through one shared receive queue (SRQ): what each of them has to do so that all are on one
//! path: what they have in common is a *site*, one of the objects of their queue; which path leads each of them there follows from how its own
//! standbys and its peer's were paired.
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

use super::{Attempt, GroupLimits, Machine, Progress, Stage};
use crate::id::{Epoch, Micros, PathId, Site, MAX_PATHS, MAX_SITES};

/// Moves within the patience deadline after which claims of peers are refused.
const MOST_MOVES: usize = 4;

/// Times that a move goes elsewhere before it is over.
const MOST_TURNS: u32 = 3;

/// Which paths a queue pair may be moved to: by number, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scope(u32);

const _: () = assert!(MAX_PATHS <= u32::BITS as usize, "a bit for each path");

impl Scope {
    /// Every one that is armed.
    pub const ANY: Self = Self(u32::MAX);
    /// None: a member of the group is not protected, or no path is known to carry everybody.
    pub const NOWHERE: Self = Self(0);

    /// That one.
    #[must_use]
    pub const fn only(path: PathId) -> Self {
        Self::NOWHERE.with(path)
    }

    /// That one as well.
    #[must_use]
    pub const fn with(self, path: PathId) -> Self {
        Self(self.0 | bit(path.0))
    }

    /// Whether that path may be a target.
    #[must_use]
    pub const fn allows(self, path: PathId) -> bool {
        self.0 & bit(path.0) != 0
    }
}

const fn bit(number: u8) -> u32 {
    match 1_u32.checked_shl(number as u32) {
        Some(bit) => bit,
        None => 0,
    }
}

/// Sites that a queue pair may be moved to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sites(u32);

impl Sites {
    /// None.
    pub const NONE: Self = Self(0);

    /// That one.
    #[must_use]
    pub const fn only(site: Site) -> Self {
        Self::NONE.with(site)
    }

    /// That one as well.
    #[must_use]
    pub const fn with(self, site: Site) -> Self {
        Self(self.0 | bit(site.0))
    }

    /// Whether that one is among them.
    #[must_use]
    pub const fn has(self, site: Site) -> bool {
        self.0 & bit(site.0) != 0
    }
}

impl FromIterator<Site> for Sites {
    fn from_iter<I: IntoIterator<Item = Site>>(sites: I) -> Self {
        sites.into_iter().fold(Self::NONE, Self::with)
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
    /// The site of the path that its machine is on, or moves to.
    pub site: Site,
    /// The incarnation that it is in.
    pub epoch: Epoch,
    /// No earlier incarnation takes anything any more.
    pub is_fenced: bool,
    /// Its peer is there.
    pub has_peer: bool,
    /// Its group told it where to go, and it is not there yet.
    pub follows: bool,
    /// By site: whether it could be migrated there.
    pub readiness: [Readiness; MAX_SITES],
    /// It could come along now or soon.
    pub is_movable: bool,
    /// A claim of its own or of its peer's is under way.
    pub is_claiming: bool,
    /// It is in fault, and seeks a path since then.
    pub sought: Option<Micros>,
    /// Its peer claims since then.
    pub asked: Option<Micros>,
    /// By site: when the last probe that was answered was sent.
    pub answered: [Option<Micros>; MAX_SITES],
    /// By site: it could go there by plan.
    pub can_go: [bool; MAX_SITES],
    /// Where a planned move goes that is under way and has not committed, and how far it is.
    pub plan: Option<(Site, Progress)>,
}

impl<K> Member<K> {
    /// One that has a machine; `site_of` says where its paths lead.
    #[must_use]
    pub fn of(key: K, machine: &Machine, site_of: impl Fn(PathId) -> Option<Site>) -> Self {
        let mut member = Self {
            stage: machine.state().stage,
            site: site_of(machine.path()).unwrap_or_default(),
            epoch: machine.epoch(),
            is_fenced: machine.is_fenced(),
            has_peer: machine.has_peer(),
            follows: machine.follows().is_some(),
            readiness: [Readiness::Unable; MAX_SITES],
            is_claiming: !matches!(machine.state().attempt, Attempt::Idle | Attempt::Seeking | Attempt::Draining),
            plan: machine.plan().and_then(|plan| Some((site_of(plan.target)?, plan.progress))),
            ..Self::without_machine(key)
        };
        for path in (0..MAX_PATHS as u8).map(PathId) {
            let Some(site) = site_of(path) else { continue };
            let readiness = if machine.is_armed_for(path) { Readiness::Ready } else { Readiness::Arming };
            if let Some(known) = member.readiness.get_mut(usize::from(site.0)) {
                *known = readiness.min(*known);
            }
            if let Some(can_go) = member.can_go.get_mut(usize::from(site.0)) {
                *can_go |= machine.can_muster(path);
            }
        }
        member
    }

    /// One of whose peer nothing is known: it is connected, and takes receives on the primary path.
    #[must_use]
    pub const fn without_machine(key: K) -> Self {
        Self {
            key,
            stage: Stage::Running,
            site: Site::PRIMARY,
            epoch: Epoch::FIRST,
            is_fenced: true,
            has_peer: true,
            follows: false,
            readiness: [Readiness::Arming; MAX_SITES],
            is_movable: true,
            is_claiming: false,
            sought: None,
            asked: None,
            answered: [None; MAX_SITES],
            can_go: [false; MAX_SITES],
            plan: None,
        }
    }

    /// It takes receives, or may.
    pub const fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Dead | Stage::Gone)
    }

    /// It holds for a planned move to that site, which is the better way of getting there: nothing is outstanding, so there is nothing to be proven.
    fn leaves_by_plan(&self, goal: Site) -> Option<Progress> {
        let (_, progress) = self.plan.filter(|(target, _)| *target == goal && self.site != goal)?;
        Some(progress).filter(|progress| *progress != Progress::Alone)
    }

    /// It wants to go elsewhere since then.
    fn wants(&self) -> Option<Micros> {
        self.sought.filter(|_| !self.follows).into_iter().chain(self.asked).min()
    }

    /// A probe that was sent since then was answered there, and it may go there: where it is it may as soon as it may go anywhere.
    fn has_answer(&self, site: Site, since: Micros) -> bool {
        let is_answered = site.of(&self.answered).copied().flatten().is_some_and(|sent| sent >= since);
        is_answered && (site == self.site || self.is_ready_for(site))
    }

    /// It could be migrated there.
    pub fn is_ready_for(&self, site: Site) -> bool {
        site.of(&self.readiness) == Some(&Readiness::Ready)
    }
}

/// What a member is to be given: [`super::Input::Follow`], [`super::Input::Depart`], [`super::Input::Stay`] or [`super::Input::LeftBehind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order<K> {
    /// The group moves to that site; the epoch has to be above that one.
    Follow(K, Site, Epoch),
    /// The group moves there by plan, and it holds and is complete.
    Depart(K),
    /// It is where the group is.
    Stay(K),
    /// The group goes on without it.
    LeaveBehind(K),
}

/// The group of one SRQ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group<K> {
    /// Where the receives are: where they were posted last.
    home: Site,
    /// Where they go, and since when.
    goal: Option<(Site, Micros)>,
    /// How often that was another site before.
    turns: u32,
    /// Somebody has no answer where they go, and all have been asked for another site since then.
    astray: Option<Micros>,
    /// Everyone who came along, in which incarnation: the receives may be posted at the goal.
    whole: Option<BTreeMap<K, Epoch>>,
    /// Moves begun so far.
    moves: u64,
    /// The one that the receives are where they are by.
    posted: u64,
    /// When the last moves that came to their end began, [`MOST_MOVES`] at most.
    lately: Vec<Micros>,
    /// Members that have been where the receives are, in that incarnation. Others were connected later, where the group has left.
    arrived: BTreeMap<K, Epoch>,
    /// Who was told to come to where the receives are, and when first.
    called: BTreeMap<K, Micros>,
    /// A site answered somebody in fault, and others have been asked for it since then.
    asked: Option<Micros>,
    /// Where a member may be moved to while the group rests.
    allowed: Sites,
    /// Which of these other than where it is its members claim, and since when.
    choice: Option<(Site, Micros)>,
    /// The sites, the one that it would rather have first.
    order: [Site; MAX_SITES],
    /// How long the answers of a site that it would rather have are waited for.
    patience: Micros,
    limits: GroupLimits,
}

impl<K: Copy + Ord> Group<K> {
    /// One on the first device.
    #[must_use]
    pub const fn new(limits: GroupLimits) -> Self {
        Self {
            home: Site::PRIMARY,
            goal: None,
            turns: 0,
            astray: None,
            whole: None,
            moves: 0,
            posted: 0,
            lately: Vec::new(),
            arrived: BTreeMap::new(),
            called: BTreeMap::new(),
            asked: None,
            allowed: Sites::NONE,
            choice: None,
            order: [Site(0), Site(1), Site(2), Site(3), Site(4), Site(5), Site(6), Site(7)],
            patience: Micros(0),
            limits,
        }
    }

    /// Where the receives are. While the group moves this is where they were.
    #[must_use]
    pub const fn home(&self) -> Site {
        self.home
    }

    /// Where they go.
    #[must_use]
    pub fn goal(&self) -> Option<Site> {
        self.goal.map(|(goal, _)| goal)
    }

    /// From now on it would rather have the first of these, and waits for the answers of a better one for so long.
    pub const fn prefer(&mut self, order: [Site; MAX_SITES], patience: Micros) {
        (self.order, self.patience) = (order, patience);
    }

    /// The sites, the one that it would rather have first.
    #[must_use]
    pub const fn order(&self) -> [Site; MAX_SITES] {
        self.order
    }

    /// The site that its members are to claim, if they are to leave where they are.
    #[must_use]
    pub fn choice(&self) -> Option<Site> {
        self.goal().or(self.choice.map(|(site, _)| site))
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

    /// Whether a member that is connected for that site may post receives there.
    #[must_use]
    pub fn is_open(&self, site: Site) -> bool {
        self.goal().map_or(self.home == site, |goal| goal == site && self.whole.is_some())
    }

    /// Whether a fault of a member that is where the receives are can be masked: there is a site to which everyone there who has a peer could come along. Who
    /// is elsewhere is called, or left.
    #[must_use]
    pub fn readiness(&self, members: &[Member<K>]) -> Readiness {
        Site::all().map(|site| self.readiness_for(site, members)).min().unwrap_or(Readiness::Unable)
    }

    /// Whether everyone who is where the receives are and has a peer could be migrated to that site.
    #[must_use]
    pub fn readiness_for(&self, site: Site, members: &[Member<K>]) -> Readiness {
        let counts = |member: &&Member<K>| member.is_live() && member.has_peer && member.site == self.home;
        members.iter().filter(counts).filter_map(|m| site.of(&m.readiness)).max().copied().unwrap_or(Readiness::Ready)
    }

    /// Where a member may be moved to, given what [`Group::readiness`] says.
    #[must_use]
    pub fn scope(&self, member: &Member<K>, readiness: Readiness) -> Sites {
        match self.goal() {
            Some(goal) => Sites::only(goal),
            None if member.site != self.home => Sites::only(self.home),
            None if readiness == Readiness::Ready => self.allowed,
            None => Sites::NONE,
        }
    }

    /// Since when somebody has been in fault while nobody moves, or cannot come along: everyone is to probe all paths until it is answered a probe of after
    /// that.
    #[must_use]
    pub fn seeks(&self, members: &[Member<K>]) -> Option<Micros> {
        let wants = |m: &Member<K>| m.wants().filter(|_| m.is_live() && m.site == self.home);
        match self.goal {
            Some(_) => self.astray,
            None => members.iter().filter_map(wants).min(),
        }
    }

    /// A member has posted the receives there, as [`Group::is_open`] allowed.
    pub fn posted(&mut self, site: Site) {
        if let (Some(whole), Some((_, since))) = (self.whole.take(), self.goal.filter(|(goal, _)| *goal == site)) {
            (self.home, self.goal, self.arrived, self.posted) = (site, None, whole, self.moves);
            (self.turns, self.astray) = (0, None);
            self.lately.push(since);
            self.lately.drain(..self.lately.len().saturating_sub(MOST_MOVES));
        }
    }

    /// Looks at all members, which come in the order of their keys; to be called whenever one of them may have changed. Says the same again as long as it
    /// is not done.
    pub fn turn(&mut self, now: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
        self.note_members(members);
        let has_left = |m: &&Member<K>| m.is_live() && self.arrived.get(&m.key).is_some_and(|at| m.epoch > *at);
        let turns = self.turns;
        if self.goal.is_some_and(|(goal, _)| !members.iter().filter(has_left).any(|m| m.site == goal || turns != 0)) {
            // Who began it has ended, and nobody else has left the receives: nobody would post them.
            self.goal = None;
        }
        if self.goal.is_none() {
            self.goal = members.iter().find(has_left).map(|member| (member.site, now));
            self.moves += u64::from(self.goal.is_some());
            (self.turns, self.astray) = (0, None);
        }
        self.whole = None;
        self.turn_aside(now, members);
        match self.goal {
            Some((goal, since)) => {
                self.choice = None;
                self.gather(goal, now.since(since), members)
            }
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
        self.called.retain(|key, _| find(key).is_some_and(|m| m.is_live() && m.has_peer && m.site != home));
        for member in members.iter().filter(|member| member.site == home) {
            self.arrived.entry(member.key).or_insert(member.epoch);
        }
    }

    /// Whether the incarnation that it is in takes its receives from those that are posted by this move.
    fn has_come(&self, member: &Member<K>, goal: Site) -> bool {
        member.site == goal && self.arrived.get(&member.key).is_none_or(|at| member.epoch > *at)
    }

    /// The site that the group moves to may be dead for a member, which then never claims it, or the peers' groups may be on their way to another one. Nothing
    /// is posted there as long as somebody is missing; so the group goes elsewhere, if there is a site that answers everybody.
    fn turn_aside(&mut self, now: Micros, members: &[Member<K>]) {
        let Some((goal, since)) = self.goal.filter(|_| self.turns < MOST_TURNS) else { return };
        let lives = |member: &&Member<K>| member.is_live() && member.has_peer;
        let missing =
            || members.iter().filter(lives).filter(|member| member.is_movable && !self.has_come(member, goal));
        let so_far = now.since(since);
        if so_far.0 < self.limits.ask.0 / 2 || missing().next().is_none() {
            self.astray = None;
            return;
        }
        let asked = self.astray.unwrap_or(now);
        let has_gone_elsewhere = members.iter().filter(lives).any(|member| member.asked.is_some());
        let is_cut_off = has_gone_elsewhere || missing().any(|member| !member.has_answer(goal, asked));
        self.astray = Some(asked);
        let answers = |site: Site| members.iter().filter(lives).all(|member| member.has_answer(site, asked));
        let other = self.order.into_iter().find(|site| *site != goal && answers(*site));
        if let Some(site) = other.filter(|_| is_cut_off && so_far >= self.limits.ask) {
            (self.goal, self.astray) = (Some((site, now)), None);
            (self.turns, self.moves) = (self.turns + 1, self.moves + 1);
        }
    }

    /// The group is moving: everybody has to come along, and to be fenced.
    fn gather(&mut self, goal: Site, so_far: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
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
                orders.push(Order::Follow(member.key, goal, above));
            }
        }
        self.whole = whole;
        orders
    }

    /// The group rests: who was connected where it has left is called to where it is. There are no receives for it where it is.
    fn call(&mut self, now: Micros, members: &[Member<K>]) -> Vec<Order<K>> {
        let mut orders = Vec::new();
        for member in members.iter().filter(|member| member.is_live() && member.has_peer) {
            if member.site == self.home {
                orders.extend(member.follows.then_some(Order::Stay(member.key)));
                continue;
            }
            let since = *self.called.entry(member.key).or_insert(now);
            orders.push(match member.is_movable && now < since + self.limits.call {
                true => Order::Follow(member.key, self.home, member.epoch),
                false => Order::LeaveBehind(member.key),
            });
        }
        orders
    }

    /// Whoever claims a path, at either end, makes everyone move there, so everyone is asked first whether it answers. If some do not in time the group moves only where that
    /// saves at least as many as it costs, and where it costs the fewest: those who do not answer are left behind, those in fault have no other way.
    fn look_around(&mut self, now: Micros, members: &[Member<K>]) {
        let Some(since) = self.seeks(members) else {
            (self.allowed, self.choice, self.asked) = (Sites::NONE, None, None);
            return;
        };
        if self.is_driven_around(now) && !members.iter().any(|m| m.is_live() && m.sought.is_some() && !m.follows) {
            (self.allowed, self.choice) = (Sites::NONE, None);
            return;
        }
        let counts = |member: &&Member<K>| member.is_live() && member.has_peer && member.site == self.home;
        let silent = |site| {
            let others = members.iter().filter(counts).filter(|member| member.wants().is_none());
            others.filter(|member| !member.has_answer(site, since)).count()
        };
        let wanting = || members.iter().filter(counts).filter_map(|member| member.wants().map(|since| (member, since)));
        let is_wanted = |site| wanting().any(|(member, since)| member.has_answer(site, since));
        if Site::all().any(|site| is_wanted(site) && silent(site) != 0) {
            self.asked.get_or_insert(now);
        }
        let is_over = self.asked.is_some_and(|asked| now >= asked + self.limits.ask);
        let most = if is_over { wanting().count() } else { 0 };
        let elsewhere = || Site::all().filter(|site| *site != self.home);
        let fewest = elsewhere().filter(|site| is_wanted(*site)).map(silent).min();
        let is_best = |site| site == self.home || fewest.is_none_or(|fewest| silent(site) <= fewest);
        let is_there = |site| site == self.home || members.iter().filter(counts).any(|m| m.is_ready_for(site));
        let may_be = |site| is_there(site) && silent(site) <= most && is_best(site);
        self.allowed = Site::all().filter(|site| may_be(*site)).collect();
        let wanted = elsewhere().filter(|site| self.allowed.has(*site) && is_wanted(*site)).collect();
        self.choose(now, since, members, wanted);
    }

    /// All members are to claim the same site. Another one has its turn if nobody got anywhere with the first: the peers' groups may not be able to go there.
    fn choose(&mut self, now: Micros, since: Micros, members: &[Member<K>], wanted: Sites) {
        let counts = |member: &&Member<K>| member.is_live() && member.has_peer && member.site == self.home;
        let left = |site| members.iter().filter(counts).filter(|member| !member.has_answer(site, since)).count();
        let mut sites: Vec<Site> = self.order.into_iter().filter(|site| wanted.has(*site)).collect();
        sites.sort_by_key(|site| left(*site));
        let is_busy = members.iter().filter(counts).any(|member| member.is_claiming);
        match self.choice.filter(|(site, _)| wanted.has(*site)) {
            Some((_, chosen)) if is_busy || sites.len() == 1 || now < chosen + self.limits.ask => {}
            Some((site, _)) => {
                let next = sites.iter().position(|known| *known == site).and_then(|at| sites.get(at + 1));
                self.choice = next.or(sites.first()).map(|site| (*site, now));
            }
            None => {
                let best = sites.first().copied();
                let is_early = now < since + self.patience && best.is_some_and(|best| self.has_better(best, members));
                self.choice = best.filter(|_| !is_early).map(|site| (site, now));
            }
        }
    }

    /// It would rather have another one, to which everybody could go as far as was known before the fault.
    fn has_better(&self, site: Site, members: &[Member<K>]) -> bool {
        let better = self.order.into_iter().take_while(|other| *other != site).filter(|other| *other != self.home);
        better.into_iter().any(|other| self.readiness_for(other, members) == Readiness::Ready)
    }

    /// Two moves to different paths may drive each other around in a circle of groups for ever, each group going where its neighbours came from. Who has
    /// moved that often of late refuses claims unless it is in fault itself: one connection of the circle is left behind then.
    fn is_driven_around(&self, now: Micros) -> bool {
        let since = self.lately.len().checked_sub(MOST_MOVES).and_then(|at| self.lately.get(at));
        since.is_some_and(|since| now < *since + self.limits.call)
    }
}
