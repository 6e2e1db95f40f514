//! Inputs become events, events become rules by the table, and each rule is one call.

use alloc::vec::Vec;

use super::claims::Claimed;
use super::table::{rule, Event, Rule, Stage};
use super::{Cause, Goal, Handshake, Input, Machine, Surfaced, Timer};
use crate::id::{PathId, Tuple};
use crate::ledger::IncarnationReport;

/// What an input carries, whichever it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Cue {
    tuple: Option<Tuple>,
    cause: Option<Cause>,
    path: Option<PathId>,
    goal: Option<Goal>,
    /// The input's yes or no: fatal, risk, complete, fenced, seen.
    holds: bool,
    reports: Vec<IncarnationReport>,
}

impl Machine {
    pub(super) fn dispatch(&mut self, input: Input) {
        let Some((event, cue)) = self.event(input) else { return self.tick() };
        self.perform(event, cue);
    }

    /// Every timer that is due fires once. One may clear another, so each is looked at when its turn comes.
    fn tick(&mut self) {
        for timer in Timer::ALL {
            if self.timers.take_due(timer, self.now) {
                self.perform(Self::event_of(timer), Cue::default());
            }
        }
    }

    const fn event_of(timer: Timer) -> Event {
        match timer {
            Timer::Claim => Event::ClaimOver,
            Timer::Exclude => Event::ExcludeOver,
            Timer::Pause => Event::PauseOver,
            Timer::Plan => Event::PlanOver,
            Timer::Fence => Event::FenceOver,
            Timer::Settle => Event::SettleOver,
            Timer::Exchange => Event::ExchangeOver,
            Timer::Patience => Event::PatienceOver,
            Timer::Resend => Event::ResendDue,
        }
    }

    /// `None`: a tick.
    fn event(&self, input: Input) -> Option<(Event, Cue)> {
        let plain = |event| Some((event, Cue::default()));
        match input {
            Input::Frame(message) => Some(self.event_of_message(message)),
            Input::PathArmed(path) => Some((Event::PathArmed, Cue { path: Some(path), ..Cue::default() })),
            Input::PathDisarmed(path) => Some((Event::PathDisarmed, Cue { path: Some(path), ..Cue::default() })),
            Input::Fault { cause, fatal } => {
                Some((Event::Fault, Cue { cause: Some(cause), holds: fatal, ..Cue::default() }))
            }
            Input::PathAnswered(path) => Some((Event::PathAnswered, Cue { path: Some(path), ..Cue::default() })),
            Input::Follow(goal) => Some((Event::Follow, Cue { goal: Some(goal), ..Cue::default() })),
            Input::Stay => plain(Event::Stay),
            Input::Move(path) => Some((Event::Move, Cue { path: Some(path), ..Cue::default() })),
            Input::Muster(path) => Some((Event::Muster, Cue { path: Some(path), ..Cue::default() })),
            Input::Depart => plain(Event::Depart),
            Input::Dismiss => plain(Event::Dismiss),
            Input::Drained => plain(Event::Drained),
            Input::LeftBehind => plain(Event::LeftBehind),
            Input::Hold(risk) => Some((Event::Hold, Cue { holds: risk, ..Cue::default() })),
            Input::Fenced { reports, complete } => {
                Some((Event::Fenced, Cue { reports, holds: complete, ..Cue::default() }))
            }
            Input::Excluded => plain(Event::Excluded),
            Input::NotExcluded => plain(Event::NotExcluded),
            Input::Reposted => plain(Event::Reposted),
            Input::RepostFailed => plain(Event::RepostFailed),
            Input::Replayed => plain(Event::Replayed),
            Input::ReplayFailed => plain(Event::ReplayFailed),
            Input::Progress => plain(Event::Progress),
            Input::Retired => plain(Event::Retired),
            Input::StopReached => plain(Event::StopReached),
            Input::ApplicationError => plain(Event::ApplicationError),
            Input::Destroyed => plain(Event::Destroyed),
            Input::Unreachable => plain(Event::Unreachable),
            Input::Tick => None,
        }
    }

    pub(super) fn event_of_message(&self, message: Handshake) -> (Event, Cue) {
        let tuple = message.tuple();
        let event = self.classify(&message, tuple);
        let cue = match message {
            Handshake::Claim { cause, .. } => Cue { tuple, cause: Some(cause), ..Cue::default() },
            // That they are about the current attempt is all that is asked of their tuple.
            Handshake::Report { fenced, reports, .. } => Cue { holds: fenced, reports, ..Cue::default() },
            Handshake::Confirm { seen, .. } => Cue { holds: seen, ..Cue::default() },
            Handshake::Accept { .. }
            | Handshake::Refuse { .. }
            | Handshake::Wait { .. }
            | Handshake::Commit { .. }
            | Handshake::Cancel { .. }
            | Handshake::Ready { .. }
            | Handshake::Surface { .. }
            | Handshake::Dead { .. }
            | Handshake::Gone
            | Handshake::Muster { .. } => Cue { tuple, ..Cue::default() },
        };
        (event, cue)
    }

    /// A message about an attempt of somebody who cannot own it is a stray.
    fn classify(&self, message: &Handshake, tuple: Option<Tuple>) -> Event {
        let new = tuple.is_some_and(|tuple| tuple.epoch > self.epoch);
        let current = tuple.is_some() && tuple == self.tuple();
        let owned_by = |owner| tuple.is_some_and(|tuple| tuple.owner == owner);
        match (message, new) {
            (Handshake::Dead { .. } | Handshake::Surface { .. }, _) => Event::Dead,
            (Handshake::Gone, _) => Event::Gone,
            (Handshake::Report { .. }, _) if current => Event::Report,
            (Handshake::Ready { .. }, _) if current => Event::Ready,
            (Handshake::Confirm { .. }, _) if current => Event::Confirm,
            (Handshake::Claim { .. }, true) if owned_by(self.peer) => Event::Claim,
            (Handshake::Claim { .. }, false) if owned_by(self.peer) => Event::OldClaim,
            (Handshake::Commit { .. }, true) if owned_by(self.peer) => Event::Commit,
            (Handshake::Commit { .. }, false) if owned_by(self.peer) => Event::OldCommit,
            (Handshake::Cancel { .. }, true) if owned_by(self.peer) => Event::Cancel,
            (Handshake::Cancel { .. }, false) if owned_by(self.peer) => Event::OldCancel,
            (Handshake::Accept { .. }, true) if owned_by(self.me) => Event::Accept,
            (Handshake::Accept { .. }, false) if owned_by(self.me) => Event::OldAccept,
            (Handshake::Refuse { .. }, _) if owned_by(self.me) => Event::Refuse,
            (Handshake::Wait { .. }, _) if owned_by(self.me) => Event::Wait,
            (
                Handshake::Report { .. }
                | Handshake::Ready { .. }
                | Handshake::Confirm { .. }
                | Handshake::Claim { .. }
                | Handshake::Commit { .. }
                | Handshake::Cancel { .. }
                | Handshake::Accept { .. }
                | Handshake::Refuse { .. }
                | Handshake::Wait { .. }
                | Handshake::Muster { .. },
                _,
            ) => Event::Stray,
        }
    }

    /// One call per rule; the rules that are about an attempt have its tuple by the kind of their event.
    pub(super) fn perform(&mut self, event: Event, cue: Cue) {
        let Cue { tuple, cause, path, goal, holds, reports } = cue;
        match rule(self.state(), event) {
            Rule::Ignore | Rule::ByAttempt => {}
            Rule::AnswerDead => self.answer_dead(event, tuple),
            Rule::AnswerGone => self.send(Handshake::Gone),
            Rule::HearDead => self.hear_dead(),
            Rule::StopTelling => self.told = true,
            Rule::FollowDead => self.surface_untold(Surfaced::PeerSurfaced),
            Rule::LosePeer => self.lose_peer(),
            Rule::LoseContact => self.lose_contact(),
            Rule::Withdraw => self.withdraw(),
            Rule::Vanish => self.vanish(),
            Rule::RecallCommit => self.recall_commit(),
            Rule::RepeatCommit => tuple.into_iter().for_each(|tuple| self.repeat_commit(tuple)),
            Rule::RepeatReport => tuple.into_iter().for_each(|tuple| self.repeat_report(tuple)),
            Rule::Adopt => tuple.into_iter().for_each(|tuple| self.adopt(tuple)),
            Rule::KeepReport => self.keep_report(holds, reports),
            Rule::TakeReport => self.take_report(holds, reports),
            Rule::KeepReady => self.keep_ready(),
            Rule::TakeReady => self.take_ready(),
            Rule::KeepConfirm => self.keep_confirm(),
            Rule::TakeConfirm => self.take_confirm(holds),
            Rule::TakeFence => self.take_fence(reports, holds),
            Rule::GiveUpFence => self.give_up_fence(),
            Rule::Settle => self.settle(),
            Rule::TakeRepost => self.take_repost(),
            Rule::NoteReplayed => self.note_replayed(),
            Rule::NoteProgress => self.note_progress(),
            Rule::Resume => self.resume(),
            Rule::Resend => self.resend(),
            Rule::SurfacePeerGone => self.surface_untold(Surfaced::PeerGone),
            Rule::SurfaceUnreachable => self.surface(Surfaced::Unreachable),
            Rule::SurfaceRepost => self.surface(Surfaced::RepostFailed),
            Rule::SurfaceReplay => self.surface(Surfaced::ReplayFailed),
            Rule::SurfaceStop => self.surface(Surfaced::StopReached),
            Rule::SurfaceExchange => self.surface(Surfaced::ExchangeOver),
            Rule::SurfacePatience => self.surface(Surfaced::PatienceOver),
            Rule::SurfaceApplication => self.surface(Surfaced::ApplicationError),
            Rule::FollowGroup => goal.into_iter().for_each(|goal| self.follow_group(goal)),
            Rule::StayWithGroup => self.stay_with_group(),
            Rule::SurfaceLeftBehind => self.surface(Surfaced::LeftBehind),
            Rule::Arm => self.armed.extend(path),
            Rule::Disarm => path.into_iter().for_each(|path| self.disarm(path)),
            Rule::NoteFault => cause.into_iter().for_each(|cause| self.note_fault(cause, holds)),
            Rule::NoteExcluded => self.note_excluded(),
            Rule::NoteHold => self.note_risk(holds),
            Rule::Consider => tuple.into_iter().for_each(|tuple| self.consider(tuple, cause)),
            Rule::Contest => tuple.into_iter().for_each(|tuple| self.contest(tuple, cause)),
            Rule::Reconsider => tuple.into_iter().for_each(|tuple| self.reconsider(tuple, cause)),
            Rule::TakeAccept => tuple.into_iter().for_each(|tuple| self.take_accept(tuple)),
            Rule::TakeRefuse => tuple.into_iter().for_each(|tuple| self.take_refuse(tuple)),
            Rule::TakeWait => tuple.into_iter().for_each(|tuple| self.take_wait(tuple)),
            Rule::TakeCancel => tuple.into_iter().for_each(|tuple| self.take_cancel(tuple)),
            Rule::Target => path.into_iter().for_each(|path| self.target(path)),
            Rule::Heal => path.into_iter().for_each(|path| self.heal(path)),
            Rule::ClaimNow => self.claim_now(),
            Rule::GiveUp => self.give_up(),
            Rule::PutOff => self.put_off(),
            Rule::Lapse => self.fall_back(),
            Rule::Plan => path.into_iter().for_each(|path| self.begin_plan(path)),
            Rule::Muster => path.into_iter().for_each(|path| self.muster(path)),
            Rule::Depart => self.depart(),
            Rule::Dismiss => self.dismiss(),
            Rule::NoteDrained => self.note_drained(),
        }
    }

    fn answer_dead(&mut self, event: Event, tuple: Option<Tuple>) {
        match tuple.filter(|_| self.quiet && matches!(event, Event::Claim | Event::OldClaim)) {
            Some(tuple) => self.send(Handshake::Surface { tuple }),
            None => self.send(Handshake::Dead { epoch: self.epoch }),
        }
    }

    /// Two ends that both said DEAD would answer each other for ever, so the answer to it is GONE, which needs none.
    fn hear_dead(&mut self) {
        self.told = true;
        self.send(Handshake::Gone);
    }

    /// The peer's orderly end is no fault of the path. With an error masked there is nobody left to migrate with.
    fn lose_peer(&mut self) {
        if self.fatal {
            return self.surface_untold(Surfaced::PeerGone);
        }
        self.peer_gone = true;
        self.stop_seeking();
        self.fall_back();
    }

    /// All networks are silent: what is on its way with the peer has failed, but it may come back until patience ends.
    fn lose_contact(&mut self) {
        if !matches!(self.claimed, Claimed::Nothing | Claimed::Sought) {
            self.give_up();
        }
    }

    /// The application has its error; the peer's hardware will tell the peer. Only what was masked has to be given out.
    fn withdraw(&mut self) {
        if self.fatal {
            return self.surface(Surfaced::ApplicationError);
        }
        if let Some(tuple) = self.claimed.own() {
            self.send(Handshake::Cancel { tuple });
        }
        self.end(Stage::Dead);
        self.release();
        self.quiet = true;
        self.told = true;
    }

    fn vanish(&mut self) {
        self.end(Stage::Gone);
        self.send(Handshake::Gone);
    }
}
