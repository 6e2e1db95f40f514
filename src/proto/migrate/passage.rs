//! From COMMIT to CONFIRM: fence, exchange, receives, replay. Nothing here leads back to the old path.

use alloc::vec::Vec;

use super::claims::{Claimed, Exclusion};
use super::{Effect, Handshake, Machine, Phase, Stage, Surfaced, Timer, MAX_REPORTS};
use crate::id::{Micros, Tuple};
use crate::ledger::{IncarnationReport, MAX_INCARNATIONS};

/// How the own fence went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum OwnFence {
    /// It runs.
    Running,
    /// It could not be completed; the peer's word decides whether there is another way.
    Failed,
    /// The packet lifetime is over since the peer fenced, and what came has been drained.
    Drained,
    /// The provider's recipe completed.
    Complete,
}

/// What the peer says of its own fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PeerFence {
    /// It could not be completed.
    Failed,
    /// The packet lifetime is over since this end fenced, and what came has been drained.
    Drained,
    /// The provider's recipe completed.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PeerReport {
    fence: PeerFence,
    reports: Vec<IncarnationReport>,
}

/// The migration to the current epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Passage {
    pub(super) tuple: Tuple,
    fence: OwnFence,
    fenced_at: Micros,
    /// Nothing was wrong when it was agreed.
    pub(super) planned: bool,
    /// The fence was asked for again because the packet lifetime is over.
    settled: bool,
    /// At most [`MAX_REPORTS`].
    reports: Vec<IncarnationReport>,
    peer: Option<PeerReport>,
    peer_ready: bool,
    /// The plan is posted.
    pub(super) replayed: bool,
    /// The peer's CONFIRM is in.
    peer_confirmed: bool,
    /// The peer has the own CONFIRM.
    acknowledged: bool,
}

/// A message that is repeated until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Claim,
    Commit,
    Report,
    Ready,
    Confirm,
    Dead,
}

impl Machine {
    /// The point of no return, for the owner when it sends COMMIT and for the peer when it receives it, whatever either had
    /// claimed or accepted.
    pub(super) fn adopt(&mut self, tuple: Tuple) {
        let agreed = [self.claimed.own(), self.claimed.theirs()].contains(&Some(tuple));
        let planned = self.is_by_plan() && agreed;
        self.stop_seeking();
        (self.claimed, self.planned, self.mustered) = (Claimed::Nothing, false, false);
        self.timers.clear_all();
        self.epoch = tuple.epoch;
        self.path = tuple.target;
        self.follow = self.follow.filter(|goal| !self.is_at(*goal));
        self.asked = None;
        self.fatal = false;
        self.hold_until = None;
        self.pause_until = Micros(0);
        self.passage = Some(Passage { planned, ..Passage::new(tuple) });
        self.stage = Stage::Fencing;
        self.start_patience();
        if tuple.owner == self.me {
            self.send(Handshake::Commit { tuple });
        }
        self.phase(Phase::Committed);
        if (self.epoch.0.saturating_sub(self.confirmed.0)) as usize >= MAX_INCARNATIONS {
            return self.surface(Surfaced::TooManyIncarnations);
        }
        self.set(Timer::Fence, self.deadlines.fence);
        self.set(Timer::Exchange, self.deadlines.exchange);
        self.exclude_then_fence();
    }

    pub(super) fn ask_fence(&mut self) {
        self.effect(Effect::Fence);
    }

    pub(super) fn take_fence(&mut self, reports: Vec<IncarnationReport>, complete: bool) {
        if reports.len() > MAX_REPORTS {
            return self.surface(Surfaced::TooManyIncarnations);
        }
        self.timers.clear(Timer::Fence);
        let now = self.now;
        let Some(passage) = &mut self.passage else { return };
        passage.fenced_at = now;
        (passage.fence, passage.reports) = match (complete, passage.settled) {
            (true, _) => (OwnFence::Complete, reports),
            (false, true) => (OwnFence::Drained, reports),
            // What is drained now is not all: packets may still arrive until the peer has fenced.
            (false, false) => (OwnFence::Failed, Vec::new()),
        };
        self.stage = Stage::Fenced;
        self.phase(Phase::Fenced);
        self.send_pending(Pending::Report);
        self.compare_fences();
    }

    pub(super) fn give_up_fence(&mut self) {
        self.take_fence(Vec::new(), false);
    }

    /// A report says more than the bare word that the fence failed, which may come after it.
    pub(super) fn keep_report(&mut self, fenced: bool, reports: Vec<IncarnationReport>) {
        let fence = match (fenced, reports.is_empty()) {
            (true, _) => PeerFence::Complete,
            (false, false) => PeerFence::Drained,
            (false, true) => PeerFence::Failed,
        };
        let Some(passage) = &mut self.passage else { return };
        match &passage.peer {
            Some(known) if known.fence != PeerFence::Failed => return,
            Some(_) => {}
            None => self.effects.push_back(Effect::Phase(Phase::ReportIn)),
        }
        passage.peer = Some(PeerReport { fence, reports });
    }

    pub(super) fn take_report(&mut self, fenced: bool, reports: Vec<IncarnationReport>) {
        self.keep_report(fenced, reports);
        self.compare_fences();
    }

    /// One fence is enough to keep old packets out, if the other end waits until none is under way any more. None is not.
    fn compare_fences(&mut self) {
        let Some((own, since, peer)) = self.passage.as_ref().and_then(Passage::fences) else { return };
        let lifetime_over = since + self.deadlines.packet_lifetime;
        match (own, peer) {
            (OwnFence::Running, _) | (OwnFence::Complete, PeerFence::Failed) => {}
            (OwnFence::Failed | OwnFence::Drained, PeerFence::Failed | PeerFence::Drained) => {
                self.surface(Surfaced::NeitherFenced)
            }
            (OwnFence::Failed, PeerFence::Complete) => self.settle_until(self.now + self.deadlines.packet_lifetime),
            (OwnFence::Complete, PeerFence::Drained) if lifetime_over > self.now => self.settle_until(lifetime_over),
            (OwnFence::Complete, PeerFence::Drained | PeerFence::Complete)
            | (OwnFence::Drained, PeerFence::Complete) => self.repost(),
        }
    }

    fn settle_until(&mut self, until: Micros) {
        self.stage = Stage::Settling;
        self.timers.set(Timer::Settle, until);
    }

    /// The packet lifetime is over: the end that could not fence drains what came meanwhile, the other one goes on.
    pub(super) fn settle(&mut self) {
        let Some(passage) = &mut self.passage else { return };
        if passage.fence == OwnFence::Complete {
            return self.repost();
        }
        passage.settled = true;
        passage.fence = OwnFence::Running;
        self.stage = Stage::Fencing;
        self.set(Timer::Fence, self.deadlines.fence);
        self.exclude_then_fence();
    }

    fn repost(&mut self) {
        let Some(tuple) = self.tuple() else { return };
        self.stage = Stage::Reposting;
        self.effect(Effect::Repost { tuple });
    }

    pub(super) fn take_repost(&mut self) {
        self.stage = Stage::Ready;
        self.phase(Phase::Reposted);
        self.send_pending(Pending::Report);
        self.send_pending(Pending::Ready);
        self.start_replay();
    }

    pub(super) fn keep_ready(&mut self) {
        if let Some(passage) = &mut self.passage {
            passage.peer_ready = true;
        }
    }

    pub(super) fn take_ready(&mut self) {
        self.keep_ready();
        self.start_replay();
    }

    /// The peer's receives are posted: the replay may start, unless the posters are out for a newer migration.
    pub(super) fn start_replay(&mut self) {
        let waiting = match self.claimed {
            Claimed::Granted(_) | Claimed::Taken(_) | Claimed::Accepted(_) => true,
            Claimed::Nothing | Claimed::Sought | Claimed::Draining(_) | Claimed::Sent(_) | Claimed::Deferred(_) => {
                false
            }
        };
        let Some(passage) = self.passage.as_ref().filter(|passage| passage.peer_ready && !waiting) else { return };
        let tuple = passage.tuple;
        let reports = passage.peer.as_ref().map_or_else(Vec::new, |peer| peer.reports.clone());
        self.stage = Stage::Replaying;
        (self.exclusion, self.drained) = (Exclusion::None, false);
        self.phase(Phase::Ready);
        self.effect(Effect::Replay { tuple, reports });
    }

    pub(super) fn note_replayed(&mut self) {
        self.timers.clear(Timer::Exchange);
        if let Some(passage) = self.passage.as_mut().filter(|passage| !passage.replayed) {
            passage.replayed = true;
            self.phase(Phase::Replayed);
        }
    }

    /// A success ends the wait; a masked error of the new path begins another one.
    pub(super) fn note_progress(&mut self) {
        self.patience_until = None;
        if !self.passage.as_ref().is_some_and(|passage| passage.replayed) || self.fatal {
            self.start_patience();
        }
    }

    pub(super) fn resume(&mut self) {
        self.note_replayed();
        self.note_progress();
        self.stage = Stage::Running;
        self.phase(Phase::Resumed);
        self.send_pending(Pending::Confirm);
        if let Some(tuple) = self.passage.as_ref().filter(|passage| passage.peer_confirmed).map(|passage| passage.tuple)
        {
            self.send(Handshake::Confirm { tuple, seen: true });
        }
    }

    /// The peer has retired what it replayed, so it needs no report of an older incarnation any more.
    pub(super) fn keep_confirm(&mut self) {
        let Some(passage) = self.passage.as_mut().filter(|passage| !passage.peer_confirmed) else { return };
        passage.peer_confirmed = true;
        self.confirmed = self.epoch;
        self.effect(Effect::Forget { below: self.epoch });
    }

    pub(super) fn take_confirm(&mut self, seen: bool) {
        let over = |machine: &Self| machine.passage.as_ref().is_some_and(Passage::is_over);
        let was_over = over(self);
        self.keep_confirm();
        if let Some(passage) = &mut self.passage {
            passage.acknowledged |= seen;
            let tuple = passage.tuple;
            if !seen {
                self.send(Handshake::Confirm { tuple, seen: true });
            }
        }
        if !was_over && over(self) {
            self.phase(Phase::Confirmed);
            self.effect(Effect::Confirmed { epoch: self.epoch });
        }
    }

    /// An owner whose COMMIT got lost is asked for the same or a lower epoch again.
    pub(super) fn recall_commit(&mut self) {
        if let Some(tuple) = self.tuple().filter(|tuple| tuple.owner == self.me) {
            self.send(Handshake::Commit { tuple });
        }
    }

    pub(super) fn repeat_commit(&mut self, tuple: Tuple) {
        if self.tuple() == Some(tuple) {
            self.recall_commit();
        }
    }

    pub(super) fn repeat_report(&mut self, tuple: Tuple) {
        let missing = self.passage.as_ref().is_some_and(|passage| passage.tuple == tuple && !passage.peer_ready);
        if missing {
            self.send_pending(Pending::Report);
        }
    }

    /// The application gets what the hardware would have given it, and no fault of this connection is masked again.
    pub(super) fn surface(&mut self, why: Surfaced) {
        self.end(Stage::Dead);
        self.effect(Effect::Surface { why });
        self.send_pending(Pending::Dead);
    }

    /// As [`Machine::surface`], where the peer knows or is no more.
    pub(super) fn surface_untold(&mut self, why: Surfaced) {
        self.surface(why);
        self.told = true;
    }

    pub(super) fn end(&mut self, stage: Stage) {
        self.stop_seeking();
        (self.claimed, self.planned, self.mustered) = (Claimed::Nothing, false, false);
        self.timers.clear_all();
        self.patience_until = None;
        self.stage = stage;
    }

    pub(super) fn resend(&mut self) {
        for pending in self.pending() {
            self.send_pending(pending);
        }
        self.back_off();
    }

    pub(super) fn is_waiting_for_an_answer(&self) -> bool {
        !self.pending().is_empty()
    }

    /// What is said and not answered, by state.
    fn pending(&self) -> Vec<Pending> {
        let passage = self.passage.as_ref();
        let mut pending: Vec<Pending> = match self.stage {
            Stage::Running => match passage {
                Some(passage) => [
                    (!passage.peer_confirmed).then_some(Pending::Ready),
                    (!passage.acknowledged).then_some(Pending::Confirm),
                ]
                .into_iter()
                .flatten()
                .collect(),
                None => Vec::new(),
            },
            Stage::Fencing => self.owned(&[Pending::Commit]),
            Stage::Fenced | Stage::Settling => [self.owned(&[Pending::Commit]), [Pending::Report].into()].concat(),
            Stage::Reposting => [Pending::Report].into(),
            Stage::Ready => [Pending::Report, Pending::Ready].into(),
            Stage::Replaying => [Pending::Ready].into(),
            Stage::Dead if !self.told => [Pending::Dead].into(),
            Stage::Dead | Stage::Gone => Vec::new(),
        };
        if let Claimed::Sent(_) = self.claimed {
            pending.push(Pending::Claim);
        }
        pending
    }

    fn owned(&self, pending: &[Pending]) -> Vec<Pending> {
        let owner = self.tuple().is_some_and(|tuple| tuple.owner == self.me);
        pending.iter().filter(|_| owner).copied().collect()
    }

    fn send_pending(&mut self, pending: Pending) {
        if let Some(message) = self.message(pending) {
            self.send(message);
        }
    }

    fn message(&self, pending: Pending) -> Option<Handshake> {
        let passage = self.passage.as_ref();
        Some(match pending {
            Pending::Claim => Handshake::Claim { tuple: self.claimed.own()?, cause: self.cause()? },
            Pending::Commit => Handshake::Commit { tuple: passage?.tuple },
            Pending::Report => passage?.report(),
            Pending::Ready => Handshake::Ready { tuple: passage?.tuple },
            Pending::Confirm => Handshake::Confirm { tuple: passage?.tuple, seen: false },
            Pending::Dead => Handshake::Dead { epoch: self.epoch },
        })
    }
}

impl Passage {
    const fn new(tuple: Tuple) -> Self {
        Self {
            tuple,
            fence: OwnFence::Running,
            fenced_at: Micros(0),
            planned: false,
            settled: false,
            reports: Vec::new(),
            peer: None,
            peer_ready: false,
            replayed: false,
            peer_confirmed: false,
            acknowledged: false,
        }
    }

    /// Both ends are done with it.
    pub(super) const fn is_over(&self) -> bool {
        self.peer_confirmed && self.acknowledged
    }

    pub(super) fn is_fenced_here(&self) -> bool {
        self.fence == OwnFence::Complete
    }

    /// The two ends' words on their fences, and when the own one was done.
    fn fences(&self) -> Option<(OwnFence, Micros, PeerFence)> {
        Some((self.fence, self.fenced_at, self.peer.as_ref()?.fence))
    }

    fn report(&self) -> Handshake {
        Handshake::Report { tuple: self.tuple, fenced: self.fence == OwnFence::Complete, reports: self.reports.clone() }
    }
}
