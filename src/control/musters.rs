//! Planned moves of queue pairs that share their receives: when this end leads one, and what its queue pairs are given.
//!
//! The rules are those of [`shift_proto::migrate::Muster`]. A queue pair that shares its receives with nobody takes part where its peer does share them.

use std::collections::BTreeMap;

use shift_proto::id::{Micros, PathId};
use shift_proto::migrate::{Call, Errand, GroupLimits, Handshake, Input, Member, Muster, Word};

use crate::datapath::QpLife;
use crate::plans::{Wish, FIRST_PAUSE_US, LAST_PAUSE_US};
use crate::qp::Qp;
use crate::world::World;

/// Who was led off the first path leaves it to the leader to lead back, for so long: the leader may have ended.
const LED_AWAY_US: u64 = 60_000_000;

/// The planned moves of one group, or of one such queue pair.
pub(crate) struct Moves {
    muster: Muster<QpLife>,
    /// The muster as of the last look.
    known: Option<Call>,
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
    pub fn hear(
        &mut self,
        (from, call, word): (QpLife, Call, Word),
        qps: &mut BTreeMap<QpLife, Qp>,
        world: &mut World,
        now: Micros,
    ) {
        log::trace!("{from:?} hears {word:?} of {call:?}");
        perform(self.muster.hear(now, from, call, word), qps, world, now);
    }

    /// Goes on with what is under way.
    pub fn tend(&mut self, members: &[Member<QpLife>], qps: &mut BTreeMap<QpLife, Qp>, world: &mut World, now: Micros) {
        if self.muster.call().is_none() && self.known.is_none() {
            return;
        }
        let members = travellers(members, qps, world, now);
        let begun = self.muster.call();
        log::trace!("{begun:?} of {members:?}");
        perform(self.muster.turn(now, &members), qps, world, now);
        for call in [self.known, begun].into_iter().flatten() {
            if self.muster.call() != Some(call) {
                let has_moved = members.iter().any(|member| member.is_live() && member.path == call.target);
                self.note_outcome(call, has_moved, world, now);
            }
        }
        self.known = self.muster.call();
    }

    fn note_outcome(&mut self, call: Call, has_moved: bool, world: &World, now: Micros) {
        if has_moved {
            self.led_away = (call.target != PathId::PRIMARY && call.leader != world.me).then_some(now);
            (self.led, self.pause_us, self.not_before) = (None, FIRST_PAUSE_US, Micros(0));
        } else if self.led.take_if(|led| *led == call).is_some() {
            log::debug!("the move of a shared receive queue to {} is put off", call.target);
            self.not_before = now + Micros(self.pause_us);
            self.pause_us = (self.pause_us * 2).min(LAST_PAUSE_US);
        }
    }

    /// Leads a move if there is a reason for one and nothing is in its way. `number`: this process's number of the next one.
    pub fn lead(
        &mut self,
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
            asked = qp.plans.take_asked().or(asked);
            if qp.plans.take_hurry() {
                (self.pause_us, self.not_before) = (FIRST_PAUSE_US, Micros(0));
            }
        }
        if self.muster.call().is_some() || (now < self.not_before && asked.is_none()) {
            return;
        }
        let Some(target) = asked.or_else(|| self.wish(members, qps, world, now)) else { return };
        let can_go = |member: &Member<QpLife>| member.can_go.get(usize::from(target.0)) == Some(&true);
        if travellers(members, qps, world, now).iter().filter(|member| member.is_live()).all(can_go) {
            *number += 1;
            let call = Call { leader: world.me, number: *number, target };
            self.led = Some(call);
            self.muster.lead(now, call);
        }
    }

    /// One that must not stay is enough; back to the first path all have to wish.
    fn wish(
        &self,
        members: &[Member<QpLife>],
        qps: &BTreeMap<QpLife, Qp>,
        world: &World,
        now: Micros,
    ) -> Option<PathId> {
        let live = members.iter().filter(|member| member.is_live());
        let wishes: Vec<Option<Wish>> =
            live.map(|member| qps.get(&member.key).and_then(|qp| qp.wish(world, now))).collect();
        let leaves = wishes.iter().flatten().find(|wish| matches!(wish, Wish::Leave(_)));
        let is_led_away = self.led_away.is_some_and(|since| now < since + Micros(LED_AWAY_US));
        let all_return = wishes.iter().all(|wish| matches!(wish, Some(Wish::Return(_)))) && !is_led_away;
        let returns = wishes.first().copied().flatten().filter(|_| all_return);
        leaves.copied().or(returns).map(Wish::target)
    }
}

/// The members as a muster has to see them: who must not be moved by plan cannot go.
fn travellers(
    members: &[Member<QpLife>],
    qps: &BTreeMap<QpLife, Qp>,
    world: &World,
    now: Micros,
) -> Vec<Member<QpLife>> {
    let may_go = |life: QpLife, path: PathId| {
        // The other side of one that is connected to itself holds nothing.
        qps.get(&life).is_some_and(|qp| !qp.is_own_peer() && qp.may_go(world, path, now))
    };
    let of = |member: &Member<QpLife>| {
        let mut member = *member;
        for (path, can_go) in (0..).map(PathId).zip(&mut member.can_go) {
            *can_go &= may_go(member.key, path);
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
            Errand::Say(_, call, word) => qp.send(world, Handshake::Muster { call, word }),
            Errand::Hold(_, target) => {
                qp.update_hold(world, now);
                qp.feed(world, now, Input::Muster(target));
            }
            Errand::Depart(_) => qp.feed(world, now, Input::Depart),
            Errand::Dismiss(_) => qp.feed(world, now, Input::Dismiss),
        }
    }
}
