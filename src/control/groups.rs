//! The groups of this process: queue pairs that receive through one shared receive queue, and so are protected, and moved, together or not at all.
//!
//! What the rules are stands in [`shift_proto::migrate::Group`]; here they are applied to the queue pairs in each round of the loop. What must hold:
//! nobody is masked whose group could not come along, and the peers of a group that cannot be moved are not told that it can.

use std::collections::BTreeMap;

use shift_proto::id::{Micros, PathId, Site, MAX_SITES};
use shift_proto::migrate::{Goal, Group, GroupLimits, Input, Machine, Member, Order, Readiness, Scope, Stage};

use crate::datapath::{GroupId, QpLife, Round};
use crate::musters::Moves;
use crate::qp::{Grouped, Qp};
use crate::world::World;

/// How often a group that is moving is looked at.
const PACE_US: u64 = 1_000;
/// A queue pair that is not armed keeps its group from being protected after that time, within which it is as a rule.
const SILENCE_US: u64 = 3_000_000;

#[derive(Default)]
pub(crate) struct Groups {
    groups: BTreeMap<GroupId, State>,
    /// Groups so far.
    count: u64,
    /// Queue pairs that share their receives with nobody, of which a peer that does has said something.
    others: BTreeMap<QpLife, Moves>,
    /// Planned moves that this process has led so far.
    led: u64,
}

struct State {
    group: Group<QpLife>,
    /// Its number in this process: one that ended may come back, and its moves are not the old ones.
    number: u64,
    /// By site: who is not armed for it, and since when.
    unarmed: [BTreeMap<QpLife, Micros>; MAX_SITES],
    /// By site: somebody is in the way for a reason of this end.
    is_hindered: [bool; MAX_SITES],
    /// Who was named for being in the way.
    named: Option<QpLife>,
    /// Planned moves.
    moves: Moves,
}

/// How many members are not armed for a site, and why.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    unarmed: usize,
    /// As far as this end can tell they could not be moved.
    unready: usize,
    /// They had their time.
    unable: usize,
    /// For a reason of this end.
    hindering: usize,
}

impl Waiting {
    const fn with(self, other: Self) -> Self {
        Self {
            unarmed: self.unarmed + other.unarmed,
            unready: self.unready + other.unready,
            unable: self.unable + other.unable,
            hindering: self.hindering + other.hindering,
        }
    }

    const fn without(self, own: Self) -> Self {
        Self {
            unarmed: self.unarmed - own.unarmed,
            unready: self.unready - own.unready,
            unable: self.unable - own.unable,
            hindering: self.hindering - own.hindering,
        }
    }

    /// Whether the peer of a member may be told that it can be moved, where these are the others: what that member's own peer said is no reason. `None`:
    /// it is too early to say another thing than before.
    const fn is_able(self, is_moving: bool) -> Option<bool> {
        match self {
            Self { unarmed: 0, .. } => Some(true),
            // While they move nobody takes anything back.
            _ if is_moving => None,
            Self { unable: 1.., .. } => Some(false),
            Self { unready: 0, .. } => Some(true),
            _ => None,
        }
    }
}

impl Groups {
    /// When [`Groups::tend`] is wanted at the latest.
    pub fn due(&self, now: Micros) -> Option<Micros> {
        let moving = self.groups.values().any(|state| state.group.goal().is_some());
        let unarmed = self.groups.values().flat_map(|state| state.unarmed.iter().flat_map(BTreeMap::values));
        let late = unarmed.map(|since| *since + Micros(SILENCE_US)).filter(|due| *due > now);
        let called = self.groups.values().filter_map(|state| state.group.due()).filter(|due| *due > now);
        let moves = self.groups.values().map(|state| &state.moves).chain(self.others.values());
        let planned = moves.filter_map(|moves| moves.due(now));
        moving.then_some(now + Micros(PACE_US)).into_iter().chain(late).chain(called).chain(planned).min()
    }

    /// Gives every queue pair of a group what follows from the others'.
    pub fn tend(&mut self, qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        for (id, site) in std::mem::take(&mut world.posted) {
            if let Some(state) = self.groups.get_mut(&id) {
                state.group.posted(site);
            }
        }
        let mut members: BTreeMap<GroupId, Vec<QpLife>> = BTreeMap::new();
        for (life, qp) in qps.iter() {
            if let Some(group) = qp.facts.group {
                members.entry(group).or_default().push(*life);
            }
        }
        // One that has left its first path is remembered: who joins it has to know where it is.
        self.groups.retain(|id, state| members.contains_key(id) || state.group.home() != Site::PRIMARY);
        for (_, state) in self.groups.iter_mut().filter(|(id, _)| !members.contains_key(id)) {
            // Nobody is left to be given an order; what it waited for is over.
            let _ = state.group.turn(now, &[]);
            state.moves.tend(&[], qps, world, now);
        }
        self.hear(qps, world, now);
        for (id, lives) in members {
            let limits = world.config.deadlines.group_limits();
            let count = &mut self.count;
            let state = self.groups.entry(id).or_insert_with(|| {
                *count += 1;
                State::new(Group::new(limits), *count, limits)
            });
            state.tend(&lives, qps, world, now);
            state.plan(&lives, qps, world, &mut self.led, now);
        }
        self.others.retain(|life, _| qps.contains_key(life));
        for (life, moves) in &mut self.others {
            let members: Vec<_> = qps.get(life).map(|qp| qp.as_member(|_| false, now)).into_iter().collect();
            moves.tend(&members, qps, world, now);
        }
    }

    /// What peers said of planned moves.
    fn hear(&mut self, qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        let limits = world.config.deadlines.group_limits();
        for said in std::mem::take(&mut world.musters) {
            let Some(qp) = qps.get(&said.from) else { continue };
            let moves = match qp.facts.group {
                Some(group) => self.groups.get_mut(&group).map(|state| &mut state.moves),
                None => Some(self.others.entry(said.from).or_insert_with(|| Moves::new(limits))),
            };
            if let Some(moves) = moves {
                moves.hear(said, qps, world, now);
            }
        }
    }
}

impl State {
    const fn new(group: Group<QpLife>, number: u64, limits: GroupLimits) -> Self {
        let moves = Moves::new(limits);
        let unarmed = [const { BTreeMap::new() }; MAX_SITES];
        Self { group, number, unarmed, is_hindered: [false; MAX_SITES], named: None, moves }
    }

    fn tend(&mut self, lives: &[QpLife], qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        let mut members = self.members(lives, qps, now);
        self.prefer(&members, qps, world, now);
        let orders = self.group.turn(now, &members);
        let is_told = !orders.is_empty();
        for order in orders {
            let (Order::Follow(life, ..) | Order::Depart(life) | Order::Stay(life) | Order::LeaveBehind(life)) = order;
            let Some(qp) = qps.get_mut(&life) else { continue };
            match order {
                Order::Follow(_, site, above) => {
                    if let Some(path) = qp.path_to(site) {
                        qp.feed(world, now, Input::Follow(Goal { path, above }));
                    }
                }
                Order::Depart(_) => qp.feed(world, now, Input::Depart),
                Order::Stay(_) => qp.feed(world, now, Input::Stay),
                Order::LeaveBehind(_) => qp.leave_behind(world, now),
            }
        }
        if is_told {
            members = self.members(lives, qps, now);
        }
        let waiting = Site::list(|site| self.waiting(site, &members, qps, world));
        self.note_unarmed(&waiting, now);
        let readiness = self.group.readiness(&members);
        for member in &members {
            let grouped = self.grouped(member, &members, &waiting, qps);
            if let (Some(grouped), Some(qp)) = (grouped, qps.get_mut(&member.key)) {
                qp.join(world, grouped, now);
            }
        }
        self.tell(&members, qps, readiness, world, now);
    }

    /// What a member may do for the sake of the others.
    fn grouped(
        &self,
        member: &Member<QpLife>,
        members: &[Member<QpLife>],
        waiting: &[BTreeMap<QpLife, Waiting>; MAX_SITES],
        qps: &BTreeMap<QpLife, Qp>,
    ) -> Option<Grouped> {
        let known = qps.get(&member.key)?.group.is_able;
        let (home, is_moving) = (self.group.home(), self.group.goal().is_some());
        let is_able = |site: Site| {
            // Away from the first device faults stay masked, and where the group goes is found out when one comes.
            let Some(waiting) = site.of(waiting).filter(|_| site != home && home == Site::PRIMARY) else { return true };
            let own = waiting.get(&member.key).copied().unwrap_or_default();
            let all = waiting.values().fold(Waiting::default(), |sum, one| sum.with(*one));
            let before = site.of(&known).copied().unwrap_or_default();
            all.without(own).is_able(is_moving).unwrap_or(before)
        };
        let is_home = member.site == home;
        let readiness = self.group.readiness(members);
        Some(Grouped {
            is_able: Site::list(is_able),
            readiness: if is_home { readiness } else { Readiness::Ready },
            scope: self.group.scope(member, readiness),
            choice: if is_moving || is_home { self.group.choice() } else { Some(home) },
            sought: self.group.seeks(members).filter(|_| is_home || is_moving),
            open: Site::all().find(|site| self.group.is_open(*site)),
            round: self.round(),
        })
    }

    /// Says which site the group would rather go to: what most members would rather have, the first member of equals.
    fn prefer(&mut self, members: &[Member<QpLife>], qps: &BTreeMap<QpLife, Qp>, world: &World, now: Micros) {
        let home = self.group.home();
        let mut sums = [(0_usize, 0_usize); MAX_SITES];
        let mut patience = Micros(0);
        for qp in members.iter().filter(|m| m.is_live() && m.site == home).filter_map(|m| qps.get(&m.key)) {
            for (place, path) in qp.preference(world, now).into_iter().enumerate() {
                let site = qp.site_of(path);
                if let Some(sum) = site.and_then(|site| sums.get_mut(usize::from(site.0))) {
                    *sum = (sum.0 + place, sum.1 + 1);
                }
                if self.group.goal().is_none() && site != Some(home) {
                    patience = patience.max(qp.time_of(world, path));
                }
            }
        }
        let mut order = Site::list(|site| site);
        // Where fewer can go comes later.
        order.sort_by_key(|site| site.of(&sums).map(|(places, count)| (std::cmp::Reverse(*count), *places)));
        self.group.prefer(order, patience);
    }

    /// Goes on with a planned move, or begins one.
    fn plan(
        &mut self,
        lives: &[QpLife],
        qps: &mut BTreeMap<QpLife, Qp>,
        world: &mut World,
        led: &mut u64,
        now: Micros,
    ) {
        let members = self.members(lives, qps, now);
        if self.group.goal().is_none() {
            self.moves.lead(&self.group, &members, qps, world, led, now);
        }
        self.moves.tend(&members, qps, world, now);
    }

    fn round(&self) -> Round {
        match self.group.round() {
            0 => Round(0),
            round => Round((self.number << 32) + round),
        }
    }

    fn members(&self, lives: &[QpLife], qps: &BTreeMap<QpLife, Qp>, now: Micros) -> Vec<Member<QpLife>> {
        let is_late = |life: QpLife, site: Site| {
            let since = site.of(&self.unarmed).and_then(|unarmed| unarmed.get(&life));
            since.is_some_and(|since| now >= *since + Micros(SILENCE_US))
        };
        let of = |life: &QpLife| qps.get(life).map(|qp| qp.as_member(|site| is_late(*life, site), now));
        let mut members: Vec<_> = lives.iter().filter_map(of).collect();
        forbid_strays(&mut members, qps);
        members
    }

    /// Those who keep the others from being protected by that site, or might.
    fn waiting(
        &self,
        site: Site,
        members: &[Member<QpLife>],
        qps: &BTreeMap<QpLife, Qp>,
        world: &World,
    ) -> BTreeMap<QpLife, Waiting> {
        let home = self.group.home();
        let counts = |m: &&Member<QpLife>| m.is_live() && m.has_peer && m.site == home && site != home;
        let unarmed = members.iter().filter(counts).filter(|member| !member.is_ready_for(site));
        let of = |member: &Member<QpLife>| {
            let is_ready = qps.get(&member.key).is_some_and(|qp| qp.is_ready_for(site, world));
            let is_unable = site.of(&member.readiness) == Some(&Readiness::Unable);
            let waiting = Waiting {
                unarmed: 1,
                unready: usize::from(!is_ready),
                unable: usize::from(is_unable),
                hindering: usize::from(is_unable && !is_ready),
            };
            (member.key, waiting)
        };
        unarmed.map(of).collect()
    }

    /// Who is not armed in time keeps the others from being protected. Once this end has no reason of its own any more all have the time anew: what others
    /// said may have followed from what this end said.
    fn note_unarmed(&mut self, waiting: &[BTreeMap<QpLife, Waiting>; MAX_SITES], now: Micros) {
        for ((waiting, unarmed), was_hindered) in waiting.iter().zip(&mut self.unarmed).zip(&mut self.is_hindered) {
            unarmed.retain(|life, _| waiting.contains_key(life));
            for life in waiting.keys() {
                unarmed.entry(*life).or_insert(now);
            }
            let is_hindered = waiting.values().any(|one| one.hindering != 0);
            if std::mem::replace(was_hindered, is_hindered) && !is_hindered {
                unarmed.values_mut().for_each(|since| *since = now);
            }
        }
    }

    /// Names who keeps the others unprotected. After a move there may be no other path for anybody, which is no news.
    fn tell(
        &mut self,
        members: &[Member<QpLife>],
        qps: &BTreeMap<QpLife, Qp>,
        readiness: Readiness,
        world: &mut World,
        now: Micros,
    ) {
        if readiness != Readiness::Unable || self.group.home() != Site::PRIMARY || self.group.goal().is_some() {
            self.named = None;
            return;
        }
        let is_home = |m: &&Member<QpLife>| m.is_live() && m.has_peer && m.site == self.group.home();
        let unable = |site: Site| {
            members.iter().filter(is_home).filter(move |m| site.of(&m.readiness) == Some(&Readiness::Unable))
        };
        // By the site to which the most could go.
        let nearest = Site::all().filter(|site| *site != self.group.home()).min_by_key(|site| unable(*site).count());
        let in_the_way = nearest.and_then(|site| unable(site).next());
        let Some(qp) = in_the_way.and_then(|member| qps.get(&member.key)) else { return };
        if self.named.replace(qp.life) == Some(qp.life) {
            return;
        }
        let why = qp.refused.clone().unwrap_or_else(|| "its peer has not said that it can be moved".to_owned());
        let reason = format!("it shares its receives with QP {:#x}, which is not protected ({why})", qp.facts.qpn);
        let others = members.len().saturating_sub(1);
        for other in members.iter().filter(|member| member.key != qp.life).filter_map(|m| qps.get(&m.key)).take(1) {
            let all = format!("{reason}; so are {others} queue pairs of that SRQ in all");
            world.tell_unprotected(other.facts.qpn, other.facts.device, &all, now);
        }
    }
}

/// Queue pairs of the same two groups have to come to the same standby of the peer's: where they were paired otherwise not all of them could go there.
fn forbid_strays(members: &mut [Member<QpLife>], qps: &BTreeMap<QpLife, Qp>) {
    let mut known = BTreeMap::new();
    for member in members.iter_mut().filter(|member| member.is_live()) {
        let Some(qp) = qps.get(&member.key) else { continue };
        let Some((process, remote)) = qp.process.zip(qp.remote) else { continue };
        for (site, readiness) in Site::all().zip(&mut member.readiness).skip(1) {
            let Some(state) = qp.path_to(site).and_then(|path| qp.path(path)) else { continue };
            if *known.entry((process, remote.device, site)).or_insert(state.slots.1) != state.slots.1 {
                *readiness = Readiness::Unable;
            }
        }
    }
}

impl Qp {
    fn as_member(&self, is_late: impl Fn(Site) -> bool, now: Micros) -> Member<QpLife> {
        let site_of = |path| self.site_of(path).filter(|site| self.path_to(*site) == Some(path));
        let mut member = self
            .machine
            .as_ref()
            .map_or_else(|| Member::without_machine(self.life), |machine| Member::of(self.life, machine, site_of));
        let given_up = self.heard.as_ref().is_some_and(|offer| offer.standby.is_none());
        if self.has_ended {
            member.stage = Stage::Dead;
        }
        member.has_peer &= !self.peer_gone;
        member.is_movable = self.refused.is_none() && !given_up;
        for (site, readiness) in Site::all().zip(&mut member.readiness) {
            // A path is not armed while it is in use.
            let had_its_time = site == member.site || is_late(site);
            if !member.is_movable || (*readiness == Readiness::Arming && had_its_time) {
                *readiness = Readiness::Unable;
            }
        }
        (member.sought, member.asked) = (self.seek, self.machine.as_ref().and_then(|machine| machine.asked(now)));
        for (site, answered) in Site::all().zip(&mut member.answered) {
            *answered = self.path_to(site).and_then(|path| self.path(path)?.answered);
        }
        member
    }

    /// As far as this end can tell, it could be moved to that site: it is not refused, the peer has offered, a probe was answered, and the device is neither
    /// drained nor gone.
    fn is_ready_for(&self, site: Site, world: &World) -> bool {
        let given_up = self.heard.as_ref().is_some_and(|offer| offer.standby.is_none());
        let is_good = |path| self.path(path).is_some_and(|state| state.own_ready) && !self.is_path_closed(world, path);
        let is_answered = self.path_to(site).is_some_and(is_good);
        self.refused.is_none() && !given_up && self.machine.is_some() && is_answered
    }

    /// The group goes on without it: its application gets an error, and it takes no receives any more.
    fn leave_behind(&mut self, world: &mut World, now: Micros) {
        if self.machine.is_some() {
            return self.feed(world, now, Input::LeftBehind);
        }
        self.has_ended = true;
        world.data.surface(self.life, None);
        let reason = "its SRQ's receives have left its path, and its peer has not said how it could follow";
        self.refuse(world, reason, now);
    }

    /// Takes over what the group says.
    fn join(&mut self, world: &mut World, group: Grouped, now: Micros) {
        let before = std::mem::replace(&mut self.group, group);
        if before.is_able != group.is_able {
            self.say_ready(world, now);
            if self.is_own_peer() {
                self.path_ids().for_each(|path| self.arm(world, path, now));
            }
        }
        self.probe_for_group(world, before.sought, now);
        let allows = |path: &PathId| self.site_of(*path).is_some_and(|site| group.scope.has(site));
        let scope = self.path_ids().filter(allows).fold(Scope::NOWHERE, Scope::with);
        if let Some(machine) = &mut self.machine {
            machine.confine(scope);
        }
        self.hear_answers_again(world, &before, now);
        let is_armed = self.machine.as_ref().is_some_and(Machine::is_armed);
        if group.readiness == Readiness::Ready && !self.masked && is_armed && self.refused.is_none() {
            if let Some(path) = self.next_path() {
                self.protect(world, path, now);
            }
        }
        if group.readiness == Readiness::Unable && self.masked && self.is_quiet() && self.current() == PathId::PRIMARY {
            self.mask(world, false);
        }
    }

    /// What answered while the group did not allow it, or would rather have had another one, is a target now.
    fn hear_answers_again(&mut self, world: &mut World, before: &Grouped, now: Micros) {
        for path in self.path_ids() {
            let (Some(since), Some(site)) = (self.seek, self.site_of(path)) else { continue };
            let is_target =
                |grouped: &Grouped| grouped.scope.has(site) && (path == self.current() || grouped.choice == Some(site));
            let is_answered = self.path(path).and_then(|state| state.answered).is_some_and(|sent| sent >= since);
            if is_answered && is_target(&self.group) && !is_target(before) {
                self.feed(world, now, Input::PathAnswered(path));
            }
        }
    }
}
