//! A planned move: from the wish to the claim. Nothing is wrong with the path that the connection is on, so nothing may be lost by it: new
//! sends are held, receives go on, and each end claims, accepts or commits only when all of its own sends are complete.
//!
//! What must hold: whatever ends it before COMMIT, posting goes on where it was; a fault in the middle of it makes it an unplanned one;
//! nothing is surfaced for its sake. Those that share their receives hold and claim together, see [`super::muster`].

use super::claims::{Claimed, Exclusion};
use super::muster::{Plan, Progress};
use super::passage::Passage;
use super::{Cause, Handshake, Machine, Phase, Stage, Timer};
use crate::id::{Micros, PathId, Tuple};

impl Machine {
    /// Whether a planned move may go there: nothing else is under way, at either end as far as is known.
    pub(super) fn can_move(&self, target: PathId) -> bool {
        !self.fixed && self.can_use(target) && self.could_move(target)
    }

    /// The same with its group: where that allows nobody to be moved after a fault, all can be moved by plan.
    pub(super) fn could_move(&self, target: PathId) -> bool {
        let settled = self.stage == Stage::Running && self.passage.as_ref().is_none_or(Passage::is_over);
        settled && self.fault.is_none() && target != self.path && self.carries(target)
    }

    /// It holds its sends for a move of its group to that path.
    pub(super) fn is_mustered_for(&self, target: PathId) -> bool {
        self.mustered && self.plan_under_way().is_some_and(|plan| plan.target == target) && self.could_move(target)
    }

    pub(super) fn plan_under_way(&self) -> Option<Plan> {
        let (target, is_claimed) = match self.claimed {
            Claimed::Nothing | Claimed::Sought => return None,
            Claimed::Draining(target) => (target, false),
            Claimed::Sent(tuple)
            | Claimed::Granted(tuple)
            | Claimed::Deferred(tuple)
            | Claimed::Taken(tuple)
            | Claimed::Accepted(tuple) => (tuple.target, true),
        };
        let progress = match (self.mustered, is_claimed, self.drained) {
            (false, ..) => Progress::Alone,
            (true, false, false) => Progress::Holding,
            (true, false, true) => Progress::Complete,
            (true, true, _) => Progress::Leaving,
        };
        self.is_by_plan().then_some(Plan { target, progress })
    }

    /// The attempt is a planned move; with a fault of the own it is none any more.
    pub(super) const fn is_by_plan(&self) -> bool {
        self.planned && self.fault.is_none()
    }

    /// Whether a claim of the peer's is answered with WAIT: by plan until the own sends are complete, else while the NIC may heal what could end in an error.
    pub(super) fn must_wait(&mut self) -> bool {
        if self.is_by_plan() {
            return self.exclusion == Exclusion::Done && !self.drained;
        }
        self.must_hold()
    }

    /// How long an acceptance lasts. The owner of a plan sends COMMIT within the plan's deadline, and that has as long to arrive as any: who posted again
    /// before it came would have something in doubt.
    pub(super) fn acceptance(&self) -> Micros {
        let owners = if self.is_by_plan() { self.deadlines.plan } else { Micros(0) };
        self.deadlines.claim + owners
    }

    /// The own sends are held from here on; the claim goes out when those that are out are complete.
    pub(super) fn begin_plan(&mut self, target: PathId) {
        if !self.can_move(target) || self.peer_gone {
            return;
        }
        (self.claimed, self.planned) = (Claimed::Draining(target), true);
        self.set(Timer::Plan, self.deadlines.plan);
        self.set(Timer::Exclude, self.deadlines.exclude);
        self.exclude();
    }

    /// The own sends are held from here on, and posting goes on when the group says so, or nothing is heard of it.
    pub(super) fn muster(&mut self, target: PathId) {
        if self.mustered && self.claimed == Claimed::Draining(target) {
            // Another muster stands in place of the one that it was for.
            return self.set(Timer::Plan, self.deadlines.muster());
        }
        if !self.can_muster(target) {
            return;
        }
        (self.claimed, self.planned, self.mustered) = (Claimed::Draining(target), true, true);
        self.set(Timer::Plan, self.deadlines.muster());
        self.set(Timer::Exclude, self.deadlines.exclude);
        self.exclude();
    }

    /// All that receive together hold and are complete.
    pub(super) fn depart(&mut self) {
        if let Claimed::Draining(target) = self.claimed {
            if self.mustered && self.drained && self.could_move(target) {
                self.set(Timer::Plan, self.deadlines.plan);
                self.send_claim(target, Cause::Muster);
            }
        }
    }

    pub(super) fn dismiss(&mut self) {
        if self.mustered {
            self.give_up();
        }
    }

    /// Nobody posts, so it stays so until posting goes on.
    pub(super) fn note_drained(&mut self) {
        if !self.wants_drain() {
            return;
        }
        self.drained = true;
        match self.claimed {
            // The group says when.
            Claimed::Draining(_) if self.mustered => {}
            Claimed::Draining(target) => self.send_claim(target, Cause::Planned),
            Claimed::Deferred(tuple) => self.consider(tuple, self.plan_cause()),
            Claimed::Nothing
            | Claimed::Sought
            | Claimed::Sent(_)
            | Claimed::Granted(_)
            | Claimed::Taken(_)
            | Claimed::Accepted(_) => {}
        }
    }

    /// A real fault is not to wait for a plan.
    pub(super) fn drop_plan(&mut self) {
        if self.planned && (matches!(self.claimed, Claimed::Draining(_)) || self.claimed.own().is_some()) {
            self.give_up();
        }
    }

    /// The path carries nothing any more, or is not to: a plan to go there is void, and so is a claim, until COMMIT. A member of a group goes where
    /// the group goes.
    pub(super) fn disarm(&mut self, path: PathId) {
        self.armed.remove(&path);
        let target = match self.claimed {
            Claimed::Draining(target) => Some(target),
            Claimed::Sent(tuple) | Claimed::Granted(tuple) => Some(tuple.target),
            Claimed::Nothing | Claimed::Sought | Claimed::Deferred(_) | Claimed::Taken(_) | Claimed::Accepted(_) => {
                None
            }
        };
        if target == Some(path) && self.follow.is_none() && !self.can_use(path) {
            self.give_up();
        }
    }

    /// What the own claim is said to be for.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.fault.or(self.plan_cause())
    }

    /// What a planned attempt is said to be for.
    pub(super) const fn plan_cause(&self) -> Option<Cause> {
        match (self.planned, self.mustered) {
            (false, _) => None,
            (true, false) => Some(Cause::Planned),
            (true, true) => Some(Cause::Muster),
        }
    }

    pub(super) fn send_claim(&mut self, target: PathId, cause: Cause) {
        self.attempts = self.attempts.saturating_add(1);
        let tuple = Tuple { epoch: self.epoch.next(), owner: self.me, attempt: self.attempts, target };
        self.claimed = Claimed::Sent(tuple);
        self.set(Timer::Claim, self.deadlines.claim);
        self.send(Handshake::Claim { tuple, cause });
        self.phase(Phase::ClaimSent);
    }
}
