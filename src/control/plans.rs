//! Planned moves of a queue pair: off a rail that an operator drains, and back to its first path when that is good again.
//!
//! Nothing is wrong with the path that it is on; so a move that cannot be made without harm is put off, and tried again later and later. When the first
//! path is good again is judged by [`HoldDown`]. What queue pairs that share their receives wish for is judged for all of them, in [`crate::musters`].

use shift_proto::health::HoldDown;
use shift_proto::id::{Micros, PathId};
use shift_proto::migrate::{Attempt, Cause, Input, Machine, Stage};

use crate::qp::Qp;
use crate::world::World;

/// First pause after a move that was put off; it doubles up to [`LAST_PAUSE_US`].
pub(crate) const FIRST_PAUSE_US: u64 = 500_000;
/// Sends to a peer that is not ready to receive may take any time, and each try holds what is posted meanwhile.
pub(crate) const LAST_PAUSE_US: u64 = 30_000_000;

/// Why a connection is to be elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Its first path is good again.
    Return(PathId),
    /// Where it is it must not stay.
    Leave(PathId),
}

impl Wish {
    /// Where it is to be.
    pub const fn target(self) -> PathId {
        let (Self::Return(path) | Self::Leave(path)) = self;
        path
    }
}

/// What is wished for, and what became of it.
#[derive(Debug)]
pub(crate) struct Plans {
    /// Of the first path.
    pub hold_down: HoldDown,
    /// The machine was told to go there.
    tried: Option<PathId>,
    /// The peer is about to move by plan.
    heard: bool,
    /// The peer led it off its first path by plan, for a reason that it knows, and leads it back.
    led_away: bool,
    pause_us: u64,
    not_before: Micros,
    /// The peer, which shares its receives with nobody, would rather be there.
    asked: Option<PathId>,
    /// What was put off may be possible now.
    is_hurried: bool,
}

impl Plans {
    /// Nothing is wished for.
    pub const fn new(hold_down: Micros) -> Self {
        Self {
            hold_down: HoldDown::new(hold_down),
            tried: None,
            heard: false,
            led_away: false,
            pause_us: FIRST_PAUSE_US,
            not_before: Micros(0),
            asked: None,
            is_hurried: false,
        }
    }

    /// A claim of the peer's is one by plan. It is refused where others receive with this queue pair: that is wished for by all of them then.
    pub fn note_heard(&mut self, target: PathId, cause: Cause) {
        self.heard = true;
        self.asked = (cause == Cause::Planned).then_some(target);
    }

    /// Where the peer would rather be, once.
    pub fn take_asked(&mut self) -> Option<PathId> {
        self.asked.take()
    }

    /// Whether something has changed for what was put off, once.
    pub fn take_hurry(&mut self) -> bool {
        std::mem::take(&mut self.is_hurried)
    }

    /// What is under way was begun by plan, here or there. To be asked once it has ended.
    pub fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard) || self.tried.is_some()
    }
}

impl Qp {
    /// Wishes for a move if there is a reason for one and nothing is in its way.
    pub fn tend_plans(&mut self, world: &mut World, now: Micros) {
        if !self.is_at_rest() || self.facts.group.is_some() {
            return;
        }
        if let Some(target) = self.plans.tried.take() {
            if self.current() == target {
                self.plans.pause_us = FIRST_PAUSE_US;
            } else {
                log::debug!("qp {:#x}: the move to {target} is put off", self.facts.qpn);
                self.plans.not_before = now + Micros(self.plans.pause_us);
                self.plans.pause_us = (self.plans.pause_us * 2).min(LAST_PAUSE_US);
            }
        }
        let Some(wish) = self.wish(world, now).filter(|_| now >= self.plans.not_before) else { return };
        self.plans.tried = Some(wish.target());
        self.update_hold(world, now);
        self.feed(world, now, Input::Move(wish.target()));
    }

    /// Running, and nothing is under way.
    pub fn is_at_rest(&self) -> bool {
        let state = self.machine.as_ref().map(Machine::state);
        state.is_some_and(|s| (s.stage, s.attempt) == (Stage::Running, Attempt::Idle)) && self.is_quiet()
    }

    /// Whether it may be moved by plan to that path at all.
    pub fn may_go(&self, world: &World, path: PathId, now: Micros) -> bool {
        let is_able = self.masked && self.refused.is_none() && !self.peer_gone && !self.has_ended;
        is_able && !self.is_suspected() && !self.is_path_closed(world, path) && !self.is_path_avoided(world, path, now)
    }

    /// What it wishes for while nothing is under way.
    pub fn wish(&self, world: &World, now: Micros) -> Option<Wish> {
        let is_able = self.masked && self.refused.is_none() && !self.peer_gone && !self.has_ended;
        if !is_able || !self.is_at_rest() || self.is_suspected() {
            return None;
        }
        // No path on a rail that is drained or gone is armed; the first one comes first.
        let current = self.current();
        let is_avoided = |path: &PathId| self.is_path_shunned(world, *path, now);
        let first = self.next_path()?;
        let is_wanted_back = !is_avoided(&PathId::PRIMARY);
        let may_go_back = first == PathId::PRIMARY && world.config.failback && is_wanted_back;
        let goes_back = may_go_back && self.plans.hold_down.is_over(now);
        let better = self.next_paths().find(|path| !is_avoided(path));
        let leaves = self.is_path_closed(world, current).then_some(better.unwrap_or(first));
        let is_gray = self.is_path_gray(world, current);
        let leave = || leaves.or(better.filter(|_| is_gray)).map(Wish::Leave);
        goes_back.then_some(Wish::Return(first)).or_else(leave)
    }

    /// Another one is better while it answers: this end avoids it, or its peer led the connection away from it and leads it back.
    pub fn is_path_shunned(&self, world: &World, path: PathId, now: Micros) -> bool {
        // Of a group all know who led it.
        let is_led_away = path == PathId::PRIMARY && self.plans.led_away && self.facts.group.is_none();
        is_led_away || self.is_path_avoided(world, path, now)
    }

    /// What is wished for has changed: what was put off is tried at once, and a rail that is not drained any more has to be good first.
    pub fn hurry_plans(&mut self) {
        (self.plans.not_before, self.plans.pause_us, self.plans.is_hurried) = (Micros(0), FIRST_PAUSE_US, true);
        self.plans.hold_down.note_bad();
    }

    /// How often a path that answers is probed while the connection may go back to it.
    pub fn pace_of_return(&self, world: &World, path: PathId) -> Option<Micros> {
        let is_wished = path == PathId::PRIMARY && path != self.current();
        (is_wished && world.config.failback).then(|| self.plans.hold_down.pace())
    }

    /// When [`Qp::tend_plans`] is wanted: a move that was put off.
    pub fn plans_due(&self, now: Micros) -> Option<Micros> {
        let due = self.plans.not_before;
        (due > now).then_some(due)
    }

    /// Whether all sends that a NIC has are complete, if that is waited for.
    pub fn poll_drain(&mut self, world: &mut World, now: Micros) {
        if !self.machine.as_ref().is_some_and(Machine::wants_drain) {
            return;
        }
        let is_drained = self.is_drained(world);
        // What could end in an error may have ended with it.
        self.update_hold(world, now);
        if is_drained {
            self.feed(world, now, Input::Drained);
        }
    }

    /// Nothing that a NIC has is outstanding, with posters kept out.
    pub fn is_drained(&self, world: &World) -> bool {
        let place = self.place(self.at);
        place.is_some_and(|(process, place)| world.data.drain(self.life, &world.keys_of(process, place)))
    }

    /// The connection has left a path for another one, past return.
    pub fn note_moved(&mut self, world: &mut World, left: PathId, target: PathId, now: Micros) {
        let is_planned = self.machine.as_ref().is_some_and(Machine::is_planned);
        let owner = self.machine.as_ref().and_then(Machine::tuple).map(|tuple| tuple.owner);
        if left == PathId::PRIMARY {
            // From one standby to another, for whatever reason, changes nothing about the first path.
            self.plans.led_away = is_planned && owner.is_some_and(|owner| owner != self.me);
        }
        match (left == PathId::PRIMARY, is_planned) {
            (true, false) => self.plans.hold_down.note_fault(now),
            (true, true) => self.plans.hold_down.note_bad(),
            (false, _) if target == PathId::PRIMARY => self.plans.hold_down.note_returned(now),
            (false, _) => {}
        }
        if is_planned && self.is_path_closed(world, left) {
            self.close_path(world, left, now);
        } else if is_planned {
            // It is as good as it was a moment ago: faults of the new one are to find it. The first path was never armed while it was in use.
            self.arm(world, left, now);
            self.probe_now(world, left, now);
        } else {
            self.left_path(world, left, now);
        }
    }
}
