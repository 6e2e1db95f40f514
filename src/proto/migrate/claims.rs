//! The life of a claim beside the stage: from a fault to COMMIT, or back.
//!
//! What must hold here: an end excludes its posters before it sends ACCEPT and before it sends COMMIT; an owner sends for
//! one tuple COMMIT or CANCEL, never both; an attempt given up is never revived; nothing is claimed without a fatal
//! completion before the target answered a probe, and neither is it with one.

use super::{Attempt, Cause, Effect, Goal, Handshake, Machine, Phase, Stage, Surfaced, Timer};
use crate::id::{Micros, PathId, Tuple};

/// An attempt and the tuple it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claimed {
    Nothing,
    Sought,
    /// To be claimed by plan, when the own sends are complete.
    Draining(PathId),
    /// Own, sent.
    Sent(Tuple),
    /// Own, accepted by the peer.
    Granted(Tuple),
    /// The peer's, told to wait.
    Deferred(Tuple),
    /// The peer's, to be accepted when the posters are out.
    Taken(Tuple),
    /// The peer's, accepted.
    Accepted(Tuple),
}

impl Claimed {
    pub(super) const fn attempt(self) -> Attempt {
        match self {
            Self::Nothing => Attempt::Idle,
            Self::Sought => Attempt::Seeking,
            Self::Draining(_) => Attempt::Draining,
            Self::Sent(_) => Attempt::Claiming,
            Self::Granted(_) => Attempt::Committing,
            Self::Deferred(_) => Attempt::Holding,
            Self::Taken(_) => Attempt::Accepting,
            Self::Accepted(_) => Attempt::Accepted,
        }
    }

    pub(super) const fn own(self) -> Option<Tuple> {
        match self {
            Self::Sent(tuple) | Self::Granted(tuple) => Some(tuple),
            Self::Nothing
            | Self::Sought
            | Self::Draining(_)
            | Self::Deferred(_)
            | Self::Taken(_)
            | Self::Accepted(_) => None,
        }
    }

    pub(super) const fn theirs(self) -> Option<Tuple> {
        match self {
            Self::Deferred(tuple) | Self::Taken(tuple) | Self::Accepted(tuple) => Some(tuple),
            Self::Nothing | Self::Sought | Self::Draining(_) | Self::Sent(_) | Self::Granted(_) => None,
        }
    }
}

/// Whether posters are kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Exclusion {
    None,
    /// New posts are held; somebody may still be inside.
    Asked,
    Done,
}

impl Machine {
    /// A path is suspect, or its QP is in ERR. The incarnation that is being fenced is in ERR by the fence's own doing.
    pub(super) fn note_fault(&mut self, cause: Cause, fatal: bool) {
        if fatal && matches!(self.stage, Stage::Fencing | Stage::Fenced | Stage::Settling | Stage::Reposting) {
            return;
        }
        if self.peer_gone {
            if fatal {
                self.surface_untold(Surfaced::PeerGone);
            }
            return;
        }
        self.drop_plan();
        if self.fault.is_none() {
            self.fault = Some(cause);
            self.phase(Phase::Trigger);
        }
        if fatal {
            self.fatal = true;
            self.start_patience();
        }
        self.must_hold();
        if !self.seeking {
            self.seeking = true;
            self.sought_since = self.now;
            self.effect(Effect::Seek);
        }
        if self.claimed == Claimed::Nothing {
            self.claimed = Claimed::Sought;
        }
        self.claim_now();
        if self.planned && matches!(self.claimed, Claimed::Accepted(_)) {
            self.set(Timer::Claim, self.deadlines.claim);
        }
        if let Claimed::Deferred(tuple) = self.claimed {
            if self.planned && self.follow.is_none() {
                // What waited for sends to end by themselves waits for them no more.
                self.consider(tuple, self.plan_cause());
            }
        }
    }

    /// The receives of this end are there, or about to be. Its own path may be as good as it was: that it answers ends nothing.
    pub(super) fn follow_group(&mut self, goal: Goal) {
        if self.is_at(goal) || self.peer_gone || (self.follow == Some(goal) && self.fault.is_some()) {
            return;
        }
        self.follow = Some(goal);
        if self.claimed.own().is_some_and(|own| own.target != goal.path) {
            self.give_up();
        }
        self.candidate = None;
        self.note_fault(Cause::Group, false);
    }

    pub(super) fn is_at(&self, goal: Goal) -> bool {
        self.path == goal.path && self.epoch > goal.above
    }

    /// The group came back, or goes nowhere. What is wrong with the own path remains so.
    pub(super) fn stay_with_group(&mut self) {
        if self.follow.take().is_some() && self.fault == Some(Cause::Group) && !self.fatal {
            self.clear_fault();
        }
    }

    pub(super) fn note_risk(&mut self, risk: bool) {
        self.risk = risk;
        self.claim_now();
    }

    /// A path answered while one is sought: it is the target, or nothing was wrong.
    pub(super) fn target(&mut self, path: PathId) {
        if self.is_healed_by(path) {
            self.clear_fault();
        } else if self.can_use(path) && self.follow.is_none_or(|goal| goal.path == path) && !self.is_second_choice(path)
        {
            self.candidate = Some(path);
            self.claim_now();
        }
    }

    /// A path that killed its queue pair and answers a probe may carry one kind of packet only: the others have the first chance,
    /// for as long as a probe may take.
    fn is_second_choice(&self, path: PathId) -> bool {
        path == self.path && self.follow.is_none() && self.now < self.sought_since + self.deadlines.probe
    }

    /// A path answered while a claim is out.
    pub(super) fn heal(&mut self, path: PathId) {
        if self.is_healed_by(path) {
            self.clear_fault();
        }
    }

    fn is_healed_by(&self, path: PathId) -> bool {
        !self.fatal && self.follow.is_none() && self.fault.is_some() && path == self.path
    }

    fn clear_fault(&mut self) {
        self.stop_seeking();
        match self.claimed {
            Claimed::Sent(tuple) | Claimed::Granted(tuple) => {
                self.send(Handshake::Cancel { tuple });
                self.fall_back();
            }
            Claimed::Nothing | Claimed::Sought | Claimed::Draining(_) => self.fall_back(),
            Claimed::Deferred(_) | Claimed::Taken(_) | Claimed::Accepted(_) => {}
        }
    }

    pub(super) fn stop_seeking(&mut self) {
        self.fault = None;
        self.candidate = None;
        if self.seeking {
            self.seeking = false;
            self.effect(Effect::StopSeek);
        }
    }

    /// Claims the path that answered, unless it is too early.
    pub(super) fn claim_now(&mut self) {
        let (Claimed::Sought, Some(target), Some(cause)) = (self.claimed, self.candidate, self.fault) else { return };
        if !self.can_use(target) {
            // It was disarmed since it answered: drained, or removed.
            self.candidate = None;
            return;
        }
        let earliest = if self.must_hold() {
            self.hold_until.map_or(self.pause_until, |until| until.max(self.pause_until))
        } else {
            self.pause_until
        };
        if earliest > self.now {
            self.timers.set(Timer::Pause, earliest);
            if self.follow.is_some() && self.stage == Stage::Running {
                // On a path that is good, what is outstanding ends by itself once nothing is added to it.
                self.exclude();
            }
            return;
        }
        self.timers.clear(Timer::Pause);
        self.candidate = None;
        self.send_claim(target, cause);
    }

    /// Unless the own QP is in ERR, an end waits with work that could end in an error, as long as its NIC may heal it: a
    /// link that flaps for 50 ms must not become an error. The time runs from the first call.
    pub(super) fn must_hold(&mut self) -> bool {
        let in_error = match self.stage {
            Stage::Running | Stage::Replaying => self.fatal,
            Stage::Fencing
            | Stage::Fenced
            | Stage::Settling
            | Stage::Reposting
            | Stage::Ready
            | Stage::Dead
            | Stage::Gone => true,
        };
        if in_error || !self.risk {
            return false;
        }
        let until = self.now + self.deadlines.hold;
        *self.hold_until.get_or_insert(until) > self.now
    }

    /// A claim of the peer's, with nothing of the own in its way.
    pub(super) fn consider(&mut self, tuple: Tuple, cause: Option<Cause>) {
        if cause == Some(Cause::Planned) && self.mustered {
            // What one alone would like is no reason to stop what all are about.
            return self.send(Handshake::Refuse { tuple });
        }
        let may = self.may_accept(tuple.target, cause);
        for timer in [Timer::Claim, Timer::Exclude, Timer::Plan] {
            self.timers.clear(timer);
        }
        self.planned = cause.is_some_and(Cause::is_planned);
        self.mustered &= self.planned;
        if !may {
            if !self.is_by_plan() && self.carries(tuple.target) {
                self.asked = Some((self.asked(self.now).unwrap_or(self.now), self.now));
            }
            self.send(Handshake::Refuse { tuple });
            self.fall_back();
        } else if self.must_wait() {
            self.defer(tuple);
        } else if self.exclusion == Exclusion::Done {
            self.accept(tuple);
        } else {
            self.claimed = Claimed::Taken(tuple);
            self.exclude();
            self.set(Timer::Exclude, self.deadlines.exclude);
        }
    }

    fn may_accept(&self, target: PathId, cause: Option<Cause>) -> bool {
        match cause {
            Some(Cause::Muster) if self.fault.is_none() => self.is_mustered_for(target),
            Some(Cause::Planned) if self.fault.is_none() => self.can_use(target) && self.can_move(target),
            _ => self.can_use(target),
        }
    }

    /// Of two claims the larger by epoch and owner stands, so there is no tie.
    pub(super) fn contest(&mut self, tuple: Tuple, cause: Option<Cause>) {
        let Some(own) = self.claimed.own() else { return };
        if (tuple.epoch, tuple.owner) > (own.epoch, own.owner) {
            self.consider(tuple, cause);
        } else if let (Claimed::Sent(_), Some(cause)) = (self.claimed, self.cause()) {
            self.send(Handshake::Claim { tuple: own, cause });
        }
    }

    /// Of two claims of the peer's the newer stands.
    pub(super) fn reconsider(&mut self, tuple: Tuple, cause: Option<Cause>) {
        match self.claimed {
            Claimed::Accepted(accepted) if accepted == tuple => self.send(Handshake::Accept { tuple }),
            Claimed::Deferred(known) if tuple >= known => self.consider(tuple, cause),
            Claimed::Taken(known) | Claimed::Accepted(known) if tuple > known => self.consider(tuple, cause),
            Claimed::Nothing
            | Claimed::Sought
            | Claimed::Draining(_)
            | Claimed::Sent(_)
            | Claimed::Granted(_)
            | Claimed::Deferred(_)
            | Claimed::Taken(_)
            | Claimed::Accepted(_) => {}
        }
    }

    /// WAIT: new posts are held, the NIC goes on retrying, the owner asks again.
    fn defer(&mut self, tuple: Tuple) {
        self.claimed = Claimed::Deferred(tuple);
        self.exclude();
        self.set(Timer::Claim, self.deadlines.claim);
        self.send(Handshake::Wait { tuple });
    }

    fn accept(&mut self, tuple: Tuple) {
        self.claimed = Claimed::Accepted(tuple);
        self.set(Timer::Claim, self.acceptance());
        self.send(Handshake::Accept { tuple });
        self.phase(Phase::Accepted);
    }

    pub(super) fn exclude(&mut self) {
        if self.exclusion == Exclusion::None {
            self.exclusion = Exclusion::Asked;
            self.effect(Effect::Exclude);
        }
    }

    /// The posters are out, so the ledger is still: what waited for that goes on. Somebody may have posted work since that
    /// could end in an error.
    pub(super) fn note_excluded(&mut self) {
        if self.exclusion != Exclusion::Asked {
            return;
        }
        self.exclusion = Exclusion::Done;
        self.timers.clear(Timer::Exclude);
        if self.stage == Stage::Fencing {
            self.ask_fence();
        }
        match self.claimed {
            Claimed::Granted(tuple) => self.commit(tuple),
            Claimed::Taken(tuple) => self.consider(tuple, self.plan_cause()),
            Claimed::Nothing
            | Claimed::Sought
            | Claimed::Draining(_)
            | Claimed::Sent(_)
            | Claimed::Deferred(_)
            | Claimed::Accepted(_) => {}
        }
    }

    pub(super) fn take_accept(&mut self, tuple: Tuple) {
        if self.claimed != Claimed::Sent(tuple) {
            return;
        }
        self.timers.clear(Timer::Claim);
        self.claimed = Claimed::Granted(tuple);
        self.phase(Phase::Accepted);
        if self.exclusion == Exclusion::Done {
            self.commit(tuple);
        } else {
            self.exclude();
            self.set(Timer::Exclude, self.deadlines.exclude);
        }
    }

    fn commit(&mut self, tuple: Tuple) {
        if self.must_hold() {
            self.give_up();
        } else {
            self.adopt(tuple);
        }
    }

    pub(super) fn take_refuse(&mut self, tuple: Tuple) {
        if self.claimed == Claimed::Sent(tuple) {
            self.fall_back();
        }
    }

    /// The peer holds: so does this end, and its claim does not lapse while the peer goes on answering.
    pub(super) fn take_wait(&mut self, tuple: Tuple) {
        if self.claimed == Claimed::Sent(tuple) {
            self.set(Timer::Claim, self.deadlines.claim);
            self.exclude();
        }
    }

    pub(super) fn take_cancel(&mut self, tuple: Tuple) {
        if self.claimed.theirs() == Some(tuple) {
            self.fall_back();
        }
    }

    pub(super) fn give_up(&mut self) {
        if let Some(tuple) = self.claimed.own() {
            self.send(Handshake::Cancel { tuple });
        }
        self.fall_back();
    }

    /// The posters did not leave in time: the owner is to ask again. They are asked on, and new posts are held.
    pub(super) fn put_off(&mut self) {
        self.timers.clear(Timer::Exclude);
        if let Some(tuple) = self.claimed.theirs() {
            self.defer(tuple);
        }
    }

    /// Back to where the attempt began: posting goes on where it was stopped for the attempt, and a fault that is still
    /// there is claimed again after a pause, when a path answers.
    pub(super) fn fall_back(&mut self) {
        for timer in [Timer::Claim, Timer::Exclude, Timer::Pause, Timer::Plan] {
            self.timers.clear(timer);
        }
        self.claimed = if self.fault.is_some() { Claimed::Sought } else { Claimed::Nothing };
        (self.planned, self.mustered) = (false, false);
        self.pause_until = self.now + self.deadlines.resend;
        if self.fault.is_none() {
            self.hold_until = None;
            self.pause_until = Micros(0);
        }
        match self.stage {
            Stage::Running | Stage::Replaying => self.release(),
            Stage::Ready => self.start_replay(),
            Stage::Fencing | Stage::Fenced | Stage::Settling | Stage::Reposting | Stage::Dead | Stage::Gone => {}
        }
    }

    pub(super) fn release(&mut self) {
        if self.exclusion != Exclusion::None {
            (self.exclusion, self.drained) = (Exclusion::None, false);
            self.effect(Effect::Release);
        }
    }

    /// Makes sure that the posters are out, for the fence.
    pub(super) fn exclude_then_fence(&mut self) {
        self.exclude();
        if self.exclusion == Exclusion::Done {
            self.ask_fence();
        }
    }
}
