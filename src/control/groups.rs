//! The groups of this process: queue pairs that receive through one shared receive queue, and so are protected, and moved, together or not at all.
//!
//! What the rules are stands in [`shift_proto::migrate::Group`]; here they are applied to the queue pairs in each round of the loop. What must hold:
//! nobody is masked whose group could not come along, and the peers of a group that cannot be moved are not told that it can.

use std::collections::BTreeMap;

use shift_proto::id::{Micros, PathId};
use shift_proto::migrate::{Group, Input, Machine, Member, Order, Stage};

use crate::datapath::{GroupId, QpLife, Round};
use crate::qp::{Grouped, Qp, PATHS};
use crate::world::World;

/// How often a group that is moving is looked at.
const PACE_US: u64 = 1_000;
/// A group that is not protected is said to be after that time, within which its queue pairs arm as a rule.
const SILENCE_US: u64 = 3_000_000;

#[derive(Default)]
pub(crate) struct Groups {
    groups: BTreeMap<GroupId, State>,
    /// Moves so far.
    rounds: u64,
}

struct State {
    group: Group<QpLife>,
    /// The last move of its receives.
    round: Round,
    /// One of its queue pairs has been in the way since then.
    unready: Option<Micros>,
}

impl Groups {
    /// When [`Groups::tend`] is wanted at the latest.
    pub fn due(&self, now: Micros) -> Option<Micros> {
        let moving = self.groups.values().any(|state| state.group.goal().is_some());
        let told = self.groups.values().filter_map(|state| state.unready).map(|since| since + Micros(SILENCE_US));
        moving.then_some(now + Micros(PACE_US)).into_iter().chain(told.filter(|due| *due > now)).min()
    }

    /// Gives every queue pair of a group what follows from the others'.
    pub fn tend(&mut self, qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        let mut members: BTreeMap<GroupId, Vec<QpLife>> = BTreeMap::new();
        for (life, qp) in qps.iter() {
            if let Some(group) = qp.facts.group {
                members.entry(group).or_default().push(*life);
            }
        }
        // One that has left its first path is remembered: who joins it has to know where it is.
        self.groups.retain(|id, state| members.contains_key(id) || state.group.home() != PathId::PRIMARY);
        for (id, lives) in members {
            let d = &world.config.deadlines;
            let limit = Micros(d.exchange.0.saturating_sub(2 * d.drain.0));
            let state = self.groups.entry(id).or_insert_with(|| State {
                group: Group::new(limit),
                round: Round::default(),
                unready: None,
            });
            state.tend(&lives, qps, world, &mut self.rounds, now);
        }
    }
}

impl State {
    fn tend(
        &mut self,
        lives: &[QpLife],
        qps: &mut BTreeMap<QpLife, Qp>,
        world: &mut World,
        rounds: &mut u64,
        now: Micros,
    ) {
        let moves = self.group.moves();
        let orders = self.group.turn(now, &members_of(lives, qps));
        if self.group.moves() != moves {
            *rounds += 1;
            self.round = Round(*rounds);
        }
        for order in orders {
            let (life, input) = match order {
                Order::Follow(life, path) => (life, Input::Follow(path)),
                Order::LeaveBehind(life) => (life, Input::LeftBehind),
            };
            if let Some(qp) = qps.get_mut(&life) {
                qp.feed(world, now, input);
            }
        }
        let members = members_of(lives, qps);
        let is_ready = Group::is_ready(&members) && lives.iter().all(|life| qps.get(life).is_none_or(is_met));
        // While they move nobody takes anything back.
        let is_able =
            self.group.goal().is_some() || lives.iter().all(|life| qps.get(life).is_none_or(Qp::could_come_along));
        let open = PATHS.into_iter().find(|path| self.group.is_open(*path));
        for member in &members {
            if let Some(machine) = qps.get_mut(&member.key).and_then(|qp| qp.machine.as_mut()) {
                machine.confine(self.group.scope(member, is_ready));
            }
        }
        for life in lives {
            if let Some(qp) = qps.get_mut(life) {
                qp.join(world, Grouped { is_able, is_ready, open, round: self.round }, now);
            }
        }
        self.tell(lives, qps, is_ready, world, now);
    }

    /// Names who keeps the others unprotected.
    fn tell(&mut self, lives: &[QpLife], qps: &BTreeMap<QpLife, Qp>, is_ready: bool, world: &mut World, now: Micros) {
        if is_ready {
            self.unready = None;
            return;
        }
        let since = *self.unready.get_or_insert(now);
        let in_the_way = lives.iter().filter_map(|life| qps.get(life)).find(|qp| !qp.is_settled_in_group());
        let Some(qp) = in_the_way.filter(|_| now >= since + Micros(SILENCE_US)) else {
            return;
        };
        let others = lives.len().saturating_sub(1);
        let why = qp.refused.clone().unwrap_or_else(|| "its peer has not said that it can be moved".to_owned());
        let reason = format!("it shares its receives with QP {:#x}, which is not protected ({why})", qp.facts.qpn);
        for other in lives.iter().filter_map(|life| qps.get(life)).filter(|other| other.life != qp.life).take(1) {
            let all = format!("{reason}; so are {others} queue pairs of that SRQ in all");
            world.tell_unprotected(other.facts.qpn, other.facts.device, &all, now);
        }
    }
}

fn members_of(lives: &[QpLife], qps: &BTreeMap<QpLife, Qp>) -> Vec<Member<QpLife>> {
    let member = |life: &QpLife| {
        let qp = qps.get(life)?;
        let machine = qp.machine.as_ref()?;
        Some(Member {
            key: *life,
            stage: machine.state().stage,
            path: machine.path(),
            is_armed: machine.is_armed(),
            has_peer: !qp.peer_gone,
        })
    };
    lives.iter().filter_map(member).collect()
}

/// It has a machine, or needs none any more.
fn is_met(qp: &Qp) -> bool {
    qp.machine.is_some() || qp.peer_gone
}

impl Qp {
    /// It is armed, or takes no receives any more.
    fn is_settled_in_group(&self) -> bool {
        let ended = |machine: &Machine| matches!(machine.state().stage, Stage::Dead | Stage::Gone);
        self.peer_gone || self.machine.as_ref().is_some_and(|machine| machine.is_armed() || ended(machine))
    }

    /// As far as this end can tell, it could be moved to a path that it is not on: the peer has offered, and a probe was answered.
    fn could_come_along(&self) -> bool {
        let ended = |machine: &Machine| matches!(machine.state().stage, Stage::Dead | Stage::Gone);
        if self.peer_gone || self.machine.as_ref().is_some_and(ended) {
            return true;
        }
        let given_up = self.refused.is_some() || self.heard.is_some_and(|offer| offer.standby.is_none());
        let current = self.current();
        let has_other = PATHS.into_iter().any(|path| path != current && self.path(path).is_some_and(|s| s.own_ready));
        !given_up && self.machine.is_some() && has_other
    }

    /// Takes over what the group says.
    fn join(&mut self, world: &mut World, group: Grouped, now: Micros) {
        let before = std::mem::replace(&mut self.group, group);
        if before.is_able != group.is_able {
            self.say_ready(world, now);
            if self.is_own_peer() && group.is_able {
                PATHS.into_iter().for_each(|path| self.arm(world, path, now));
            }
        }
        let is_armed = self.machine.as_ref().is_some_and(Machine::is_armed);
        if group.is_ready && !self.masked && is_armed && self.refused.is_none() {
            let other =
                PATHS.into_iter().find(|path| *path != self.current() && self.path(*path).is_some_and(|s| s.armed));
            if let Some(path) = other {
                self.protect(world, path, now);
            }
        }
        if !group.is_ready && self.masked && self.is_quiet() && self.current() == PathId::PRIMARY {
            self.mask(world, false);
        }
    }
}
