//! A planned move: from the wish to the claim. Nothing is wrong with the path that the connection is on, so nothing may be lost by it: new
//! sends are held, receives go on, and each end claims, accepts or commits only when all of its own sends are complete.
//!
//! What must hold: whatever ends it before COMMIT, posting goes on where it was; a fault in the middle of it makes it an unplanned one;
//! nothing is surfaced for its sake.

use super::claims::{Claimed, Exclusion};
use super::passage::Passage;
use super::{Cause, Handshake, Machine, Phase, Stage, Timer};
use crate::id::{Micros, PathId, Tuple};

impl Machine {
    /// Whether a planned move may go there: nothing else is under way, at either end as far as is known.
    pub(super) fn can_move(&self, target: PathId) -> bool {
        let settled = self.stage == Stage::Running && self.passage.as_ref().is_none_or(Passage::is_over);
        settled && !self.fixed && self.fault.is_none() && target != self.path && self.can_use(target)
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
    pub(super) fn plan(&mut self, target: PathId) {
        if !self.can_move(target) || self.peer_gone {
            return;
        }
        (self.claimed, self.planned) = (Claimed::Draining(target), true);
        self.set(Timer::Plan, self.deadlines.plan);
        self.set(Timer::Exclude, self.deadlines.exclude);
        self.exclude();
    }

    /// Nobody posts, so it stays so until posting goes on.
    pub(super) fn note_drained(&mut self) {
        if !self.wants_drain() {
            return;
        }
        self.drained = true;
        match self.claimed {
            Claimed::Draining(target) => self.send_claim(target, Cause::Planned),
            Claimed::Deferred(tuple) => self.consider(tuple, Some(Cause::Planned)),
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

    /// The path carries nothing any more: a plan to go there is void.
    pub(super) fn disarm(&mut self, path: PathId) {
        self.armed.remove(&path);
        let target = match self.claimed {
            Claimed::Draining(target) => Some(target),
            Claimed::Sent(tuple) => Some(tuple.target),
            Claimed::Nothing
            | Claimed::Sought
            | Claimed::Granted(_)
            | Claimed::Deferred(_)
            | Claimed::Taken(_)
            | Claimed::Accepted(_) => None,
        };
        if self.planned && target == Some(path) {
            self.give_up();
        }
    }

    /// What the own claim is said to be for.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.fault.or(self.planned.then_some(Cause::Planned))
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
