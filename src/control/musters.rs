//! Planned moves of queue pairs that share their receives: when this end leads one, and what its queue pairs are given.
//!
//! The rules are those of [`shift_proto::migrate::Muster`]. A queue pair that shares its receives with nobody takes part where its peer does share them.

use std::collections::BTreeMap;

use shift_proto::id::{Micros, PathId, Site};
use shift_proto::migrate::{Call, Errand, Group, GroupLimits, Handshake, Input, Member, Muster, Word};

use crate::datapath::QpLife;
use crate::plans::{Wish, FIRST_PAUSE_US, LAST_PAUSE_US};
use crate::qp::Qp;
use crate::world::World;

/// Who was led off the first path leaves it to the leader to lead back, for so long: the leader may have ended.
const LED_AWAY_US: u64 = 60_000_000;

/// What the peer of a queue pair said of a muster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// The queue pair.
    pub from: QpLife,
    pub call: Call,
    /// Where its connection is to go.
    pub target: PathId,
    pub word: Word,
}

/// The planned moves of one group, or of one such queue pair.
pub(crate) struct Moves {
    muster: Muster<QpLife>,
    /// The muster as of the last look.
    known: Option<(Call, Site)>,
    /// The one that this end began.
    led: Option<Call>,
    /// Since when others have led it off the first path.
    led_away: Option<Micros>,
    pause_us: u64,
    not_before: Micros,
}

impl Moves {
    /// None so far.
    pub const fn new(limits: GroupLimits) -> Self {
        Self {
            muster: Muster::new(limits),
            known: None,
            led: None,
            led_away: None,
            pause_us: FIRST_PAUSE_US,
            not_before: Micros(0),
        }
    }

    /// When [`Moves::tend`] is wanted at the latest.
    pub fn due(&self, now: Micros) -> Option<Micros> {
        let called = self.muster.call().map(|_| now + Muster::<QpLife>::pace());
        called.into_iter().chain(Some(self.not_before).filter(|due| *due > now)).min()
    }

    /// What the peer of one of its queue pairs said.
    pub fn hear(&mut self, said: Said, qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        log::trace!("{said:?}");
        let Some(qp) = qps.get_mut(&said.from) else { return };
        match qp.site_of(said.target).filter(|site| qp.path_to(*site) == Some(said.target)) {
            Some(site) => {
                let errands = self.muster.hear(now, said.from, (said.call, site), said.word);
                perform(errands, qps, world, now);
            }
            // That path is none here, or not any more.
            None if said.word == Word::Come => {
                let Said { call, target, .. } = said;
                qp.send(world, Handshake::Muster { call, target, word: Word::Dismissed });
            }
            None => {}
        }
    }

    /// Goes on with what is under way.
    pub fn tend(&mut self, members: &[Member<QpLife>], qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        if self.muster.call().is_none() && self.known.is_none() {
            return;
        }
        let members = travellers(members, qps, world, now);
        let begun = self.under_way();
        log::trace!("{begun:?} of {members:?}");
        perform(self.muster.turn(now, &members), qps, world, now);
        for (call, target) in [self.known, begun].into_iter().flatten() {
            if self.muster.call() != Some(call) {
                let has_moved = members.iter().any(|member| member.is_live() && member.site == target);
                self.note_outcome((call, target), has_moved, world, now);
            }
        }
        self.known = self.under_way();
    }

    fn under_way(&self) -> Option<(Call, Site)> {
        self.muster.call().zip(self.muster.target())
    }

    fn note_outcome(&mut self, (call, target): (Call, Site), has_moved: bool, world: &World, now: Micros) {
        if has_moved {
            self.led_away = (target != Site::PRIMARY && call.leader != world.me).then_some(now);
            (self.led, self.pause_us, self.not_before) = (None, FIRST_PAUSE_US, Micros(0));
        } else if self.led.take_if(|led| *led == call).is_some() {
            log::debug!("the move of a shared receive queue to {} is put off", target);
            self.not_before = now + Micros(self.pause_us);
            self.pause_us = (self.pause_us * 2).min(LAST_PAUSE_US);
        }
    }

    /// Leads a move if there is a reason for one and nothing is in its way. `number`: this process's number of the next one.
    pub fn lead(
        &mut self,
        group: &Group<QpLife>,
        members: &[Member<QpLife>],
        qps: &mut BTreeMap<QpLife, Qp>,
        world: &World,
        number: &mut u64,
        now: Micros,
    ) {
        let live = || members.iter().filter(|member| member.is_live());
        let mut asked = None;
        for member in live() {
            let Some(qp) = qps.get_mut(&member.key) else { return };
            asked = qp.plans.take_asked().and_then(|path| qp.site_of(path)).or(asked);
            if qp.plans.take_hurry() {
                (self.pause_us, self.not_before) = (FIRST_PAUSE_US, Micros(0));
            }
        }
        if self.muster.call().is_some() || (now < self.not_before && asked.is_none()) {
            return;
        }
        let wish = self.wish(members, qps, world, now);
        let Some((first, may_differ)) = asked.map(|site| (site, false)).or(wish) else { return };
        let travellers = travellers(members, qps, world, now);
        let can_go =
            |site: Site| travellers.iter().filter(|m| m.is_live()).all(|member| site.of(&member.can_go) == Some(&true));
        let others = group.order().into_iter().filter(|_| may_differ);
        if let Some(target) = std::iter::once(first).chain(others).find(|site| can_go(*site)) {
            *number += 1;
            let call = Call { leader: world.me, number: *number };
            self.led = Some(call);
            self.muster.lead(now, call, target);
        }
    }

    /// One that must not stay is enough, and any site will do to which all can go; back to the first path all have to wish.
    fn wish(
        &self,
        members: &[Member<QpLife>],
        qps: &BTreeMap<QpLife, Qp>,
        world: &World,
        now: Micros,
    ) -> Option<(Site, bool)> {
        let live = members.iter().filter(|member| member.is_live());
        let wish_of = |member: &Member<QpLife>| {
            let qp = qps.get(&member.key)?;
            let wish = qp.wish(world, now)?;
            Some((wish, qp.site_of(wish.target())?))
        };
        let wishes: Vec<Option<(Wish, Site)>> = live.map(wish_of).collect();
        let leaves = wishes.iter().flatten().find(|(wish, _)| matches!(wish, Wish::Leave(_)));
        let is_led_away = self.led_away.is_some_and(|since| now < since + Micros(LED_AWAY_US));
        let all_return = wishes.iter().all(|wish| matches!(wish, Some((Wish::Return(_), _)))) && !is_led_away;
        let returns = wishes.first().copied().flatten().filter(|_| all_return);
        leaves.map(|(_, site)| (*site, true)).or(returns.map(|(_, site)| (site, false)))
    }
}

/// The members as a muster has to see them: who must not be moved by plan cannot go.
fn travellers(
    members: &[Member<QpLife>],
    qps: &BTreeMap<QpLife, Qp>,
    world: &World,
    now: Micros,
) -> Vec<Member<QpLife>> {
    let may_go = |life: QpLife, site: Site| {
        let path = qps.get(&life).and_then(|qp| Some((qp, qp.path_to(site)?)));
        // The other side of one that is connected to itself holds nothing.
        path.is_some_and(|(qp, path)| !qp.is_own_peer() && qp.may_go(world, path, now))
    };
    let of = |member: &Member<QpLife>| {
        let mut member = *member;
        for (site, can_go) in Site::all().zip(&mut member.can_go) {
            *can_go &= may_go(member.key, site);
        }
        member
    };
    members.iter().map(of).collect()
}

fn perform(errands: Vec<Errand<QpLife>>, qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
    for errand in errands {
        let (Errand::Say(life, ..) | Errand::Hold(life, _) | Errand::Depart(life) | Errand::Dismiss(life)) = errand;
        let Some(qp) = qps.get_mut(&life) else { continue };
        match errand {
            Errand::Say(_, call, site, word) => {
                if let Some(target) = qp.path_to(site) {
                    qp.send(world, Handshake::Muster { call, target, word });
                }
            }
            Errand::Hold(_, site) => {
                qp.update_hold(world, now);
                if let Some(path) = qp.path_to(site) {
                    qp.feed(world, now, Input::Muster(path));
                }
            }
            Errand::Depart(_) => qp.feed(world, now, Input::Depart),
            Errand::Dismiss(_) => qp.feed(world, now, Input::Dismiss),
        }
    }
}
