//! How the two ends of a connection move to another path together: one state machine per end, driven by inputs, giving
//! effects.
//!
//! It owns the order of things: who claims, when nobody posts, when the old incarnation is fenced, when receives are
//! posted again, when the replay may start, when either end may forget. It refuses to own what is done at each of these
//! points: that is the data path's, and what is replayed is the ledger's.
//!
//! What must hold: both ends never replay in different epochs before the other is ready; after COMMIT nothing resumes on
//! the old path; every wait ends.

mod claims;
mod deadlines;
mod dispatch;
mod group;
mod message;
#[cfg(feature = "model")]
mod model;
mod muster;
mod passage;
mod plans;
mod table;
mod timers;

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;

pub use deadlines::{
    DeadlineError, DeadlineRow, Deadlines, GroupLimits, DEADLINES, MAX_HOLD_DOWN, MAX_RESEND_DOUBLINGS,
};
pub use group::{Goal, Group, Member, Order, Readiness, Scope, Sites};
pub use message::{Cause, Handshake, MAX_REPORTS};
pub use muster::{Call, Errand, Muster, Plan, Progress, Word};
pub use table::{rule, Attempt, Event, Row, Rule, Stage, StateName, ATTEMPTS, TRANSITIONS};
#[cfg(feature = "model")]
pub use timers::Timer as Deadline;

use crate::id::{EndpointId, Epoch, Micros, PathId, Tuple};
use crate::ledger::IncarnationReport;
use claims::{Claimed, Exclusion};
use passage::Passage;
use timers::{Timer, Timers};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A message of the peer's.
    Frame(Handshake),
    /// That path could carry the connection: both ends have it in RTS, keys are exchanged, a probe was answered.
    PathArmed(PathId),
    /// Not any more.
    PathDisarmed(PathId),
    /// The current path is suspect. `fatal`: a completion says that the current incarnation is in ERR.
    Fault {
        /// What was seen.
        cause: Cause,
        /// The QP of the current incarnation is in ERR; the error is kept from the application. From [`Effect::Fence`] to
        /// [`Input::Reposted`] such a fault is the fence's own doing and changes nothing; one that is not fatal then means the
        /// path that the connection moves to.
        fatal: bool,
    },
    /// A probe that was sent after [`Effect::Seek`] was answered. For the current path with its QP not in ERR: the fault is over.
    PathAnswered(PathId),
    /// Answer to [`Effect::Exclude`]: nobody posts or polls. If [`Input::Hold`] changed, that comes first.
    Excluded,
    /// Somebody is inside and will not leave soon: what the exclude deadline says too, only earlier. The caller goes on asking
    /// the data path until [`Effect::Release`].
    NotExcluded,
    /// The own ledger holds work that could end in an error, or does not any more. To be given whenever it changes.
    Hold(bool),
    /// Answer to [`Effect::Fence`]. If the fence deadline passes without it, the end counts as unable to fence, without any report.
    Fenced {
        /// One per incarnation since the last [`Effect::Forget`], newest last; never empty, at most [`MAX_REPORTS`].
        reports: Vec<IncarnationReport>,
        /// The provider's recipe completed.
        complete: bool,
    },
    /// Answer to [`Effect::Repost`]: the target is connected for the epoch, the receives are posted.
    Reposted,
    /// Answer to [`Effect::Repost`]: the provider refused.
    RepostFailed,
    /// All of the plan is posted, held posts follow. Not for a plan with a stop.
    Replayed,
    /// The provider refused, or the reports contradict the ledger. In [`Stage::Running`]: a post that waited for the new path was refused.
    ReplayFailed,
    /// A success came from the new incarnation: patience starts anew. Optional: [`Input::Retired`] says it too.
    Progress,
    /// Every entry that the plan completed or replayed is retired.
    Retired,
    /// The plan has a stop and every entry before it is retired.
    StopReached,
    /// The application put the QP into ERR or RESET, or an error came that is the application's. It has it already.
    ApplicationError,
    /// The application destroyed the QP.
    Destroyed,
    /// The group that this queue pair receives with has moved there, or is about to: it has to come along, however good its own path is.
    /// Given again and again until it is there.
    Follow(Goal),
    /// The group is where this queue pair is: it need not follow any more.
    Stay,
    /// The group goes on without this queue pair, which could not come along.
    LeftBehind,
    /// The connection is to go to that path by plan: nothing is wrong with the one that it is on. Taken up only in
    /// [`Stage::Running`] with nothing under way, both ends confirmed and the path armed; then [`Attempt::Draining`] follows.
    Move(PathId),
    /// All that receive together are to go to that path by plan: new sends are held, as for [`Input::Move`], and nothing is claimed before
    /// [`Input::Depart`]. Taken up where [`Machine::can_muster`] says so.
    Muster(PathId),
    /// All of them hold, and their sends are complete: the path is claimed.
    Depart,
    /// They do not go: posting goes on.
    Dismiss,
    /// All own sends that a NIC has are complete. To be given once [`Machine::wants_drain`] says that it is waited for; what
    /// [`Input::Hold`] has to say comes first.
    Drained,
    /// All networks to the peer are silent. A process that ended without a word is [`Handshake::Gone`].
    Unreachable,
    /// Time passed.
    Tick,
}

/// What has to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send that to the peer.
    Send(Handshake),
    /// Probe every path, the current one too, again and again, and give [`Input::PathAnswered`] for each answer.
    Seek,
    /// Stop that.
    StopSeek,
    /// Stop posting on the current path, also a replay that is under way; later posts are held. Answer when nobody is inside.
    Exclude,
    /// Posting goes on where it stopped: on the current path, held posts first; a replay that was interrupted goes on.
    Release,
    /// Fence every incarnation that is not fenced, drain, and report all of them. Also asked of an end whose fence failed,
    /// when the packet lifetime is over.
    Fence,
    /// Connect the target for the epoch if it is not, and post there the receives that were not consumed.
    Repost {
        /// The migration.
        tuple: Tuple,
    },
    /// Apply the peer's reports to the ledger, decide, and replay on the target; held posts follow.
    Replay {
        /// The migration.
        tuple: Tuple,
        /// The peer's reports.
        reports: Vec<IncarnationReport>,
    },
    /// The peer needs no report of an incarnation below that one any more: drop them.
    Forget {
        /// The first one to keep.
        below: Epoch,
    },
    /// Both ends confirmed: the migration is over.
    Confirmed {
        /// The epoch.
        epoch: Epoch,
    },
    /// Complete the first entry that is not retired with the error the NIC gave first, else RETRY_EXC_ERR, and flush it and
    /// all behind it. The connection is over.
    Surface {
        /// Why.
        why: Surfaced,
    },
    /// A point on the time line, for the log.
    Phase(Phase),
}

/// Why an error reaches the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surfaced {
    /// No path carried anything within the patience deadline.
    PatienceOver,
    /// The exchange deadline passed.
    ExchangeOver,
    /// Neither end could fence.
    NeitherFenced,
    /// The target could not be connected or the receives not be posted.
    RepostFailed,
    /// The provider refused the replay, or the reports contradict the ledger.
    ReplayFailed,
    /// The ledger holds an entry that must not be posted again and cannot be called complete.
    StopReached,
    /// The peer surfaced an error first.
    PeerSurfaced,
    /// The peer is gone, and this end cannot go on without it.
    PeerGone,
    /// The peer is silent on every network in mid-migration.
    Unreachable,
    /// More incarnations than a report can name.
    TooManyIncarnations,
    /// The application's own error came in mid-migration.
    ApplicationError,
    /// Its shared receive queue moved, and it could not come along.
    LeftBehind,
}

impl fmt::Display for Surfaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PatienceOver => "no path carried anything within the patience deadline",
            Self::ExchangeOver => "the exchange deadline passed",
            Self::NeitherFenced => "neither end could fence",
            Self::RepostFailed => "the receives could not be posted on the new path",
            Self::ReplayFailed => "the replay was refused or the two ends do not agree",
            Self::StopReached => "a request must not be posted again and cannot be called complete",
            Self::PeerSurfaced => "the peer surfaced an error",
            Self::PeerGone => "the peer is gone",
            Self::Unreachable => "the peer cannot be reached on any network",
            Self::TooManyIncarnations => "too many migrations without a confirmation",
            Self::ApplicationError => "the application put the queue pair into error",
            Self::LeftBehind => "its shared receive queue moved to another path, and the peer could not follow",
        })
    }
}

/// The points of a migration that the log stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// A fault was seen.
    Trigger,
    /// The own claim went out.
    ClaimSent,
    /// The peer's claim was accepted, or the peer accepted the own one.
    Accepted,
    /// COMMIT was sent or came in.
    Committed,
    /// The own fence is done.
    Fenced,
    /// The peer's report is in.
    ReportIn,
    /// The own receives are posted on the new path.
    Reposted,
    /// The peer's receives are posted: the replay starts.
    Ready,
    /// The plan is posted.
    Replayed,
    /// The replay has retired: the connection runs on the new path.
    Resumed,
    /// Both ends confirmed.
    Confirmed,
}

/// One end of one connection.
///
/// The caller gives an input, then performs the effects in the order in which [`Machine::poll_effect`] gives them until
/// there is none, then gives the next input. Time only passes by [`Input::Tick`]: an input that comes late, but before the
/// tick, is still in time. If an input comes later than the stall deadline after a tick was due, this process slept; every
/// timer then has as long to go as it had at the input before. So it is for the first few sleeps; once there were more
/// before the machine came to rest, time counts as it passes.
///
/// An answer belongs to the newest effect of its kind: when [`Effect::Fence`], [`Effect::Repost`] or [`Effect::Replay`] is
/// given again, the answer to the earlier one must not be given any more. [`Effect::Exclude`] is to be asked of the data
/// path until it succeeds or [`Effect::Release`] comes; [`Input::Excluded`] is given once. After [`Effect::Fence`] the
/// exclusion stays until [`Effect::Replay`], which ends it: the replay is posted, then what was held. An
/// [`Effect::Exclude`] after that interrupts the replay, and an [`Effect::Release`] lets it go on.
///
/// [`Input::PathArmed`] of any path arms the connection; the current path then counts as armed too, because a QP in ERR may
/// be connected anew on it. A target has to be armed at both ends. [`Input::PathDisarmed`] of the last one disarms it.
///
/// Before [`Effect::Fence`] is answered and before [`Effect::Replay`] is performed the ledger has to hold everything
/// outstanding. With [`Input::Retired`] the ledger may forget what is below the epoch; with [`Effect::Forget`] the own
/// reports may go. What the peer says about a QP that this process does not know any more is answered with
/// [`Handshake::Gone`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    me: EndpointId,
    peer: EndpointId,
    deadlines: Deadlines,
    now: Micros,
    timers: Timers,
    /// Emptied by the caller after each input; one input adds a dozen at most.
    effects: VecDeque<Effect>,
    stage: Stage,
    epoch: Epoch,
    path: PathId,
    /// At most as many as there are path numbers.
    armed: BTreeSet<PathId>,
    /// What the migration to the current epoch came to; `None` in the first epoch.
    passage: Option<Passage>,
    /// The peer needs no report of an incarnation below that epoch.
    confirmed: Epoch,
    claimed: Claimed,
    /// The own claims so far.
    attempts: u32,
    exclusion: Exclusion,
    fault: Option<Cause>,
    /// The QP of the current incarnation is in ERR.
    fatal: bool,
    seeking: bool,
    /// Since then.
    sought_since: Micros,
    /// The path that answered a probe after the fault.
    candidate: Option<PathId>,
    /// No own claim before that.
    pause_until: Micros,
    /// The attempt was begun as a planned move.
    planned: bool,
    /// Nobody posts, and all own sends are complete.
    drained: bool,
    /// Planned moves are those of its group: one alone is refused.
    fixed: bool,
    /// The attempt is a planned move of the group.
    mustered: bool,
    /// The own ledger holds work that could end in an error.
    risk: bool,
    /// Until then that is a reason to wait; starts when it first is one.
    hold_until: Option<Micros>,
    patience_until: Option<Micros>,
    /// The targets that the group of this end allows.
    scope: Scope,
    /// Where the group is, until this end is there.
    follow: Option<Goal>,
    /// The peer claimed what only the group does not allow: first and last.
    asked: Option<(Micros, Micros)>,
    /// The peer's application destroyed its QP.
    peer_gone: bool,
    /// In [`Stage::Dead`]: the error is the application's, and the peer is told only if it asks.
    quiet: bool,
    /// In [`Stage::Dead`]: the peer knows.
    told: bool,
}

impl Machine {
    /// One end of a connection that runs on its primary path, not armed.
    #[must_use]
    pub const fn new(me: EndpointId, peer: EndpointId, deadlines: Deadlines) -> Self {
        Self {
            me,
            peer,
            deadlines,
            now: Micros(0),
            timers: Timers::new(),
            effects: VecDeque::new(),
            stage: Stage::Running,
            epoch: Epoch::FIRST,
            path: PathId::PRIMARY,
            armed: BTreeSet::new(),
            passage: None,
            confirmed: Epoch::FIRST,
            claimed: Claimed::Nothing,
            attempts: 0,
            exclusion: Exclusion::None,
            fault: None,
            fatal: false,
            seeking: false,
            sought_since: Micros(0),
            candidate: None,
            pause_until: Micros(0),
            planned: false,
            drained: false,
            fixed: false,
            mustered: false,
            risk: false,
            hold_until: None,
            patience_until: None,
            scope: Scope::ANY,
            follow: None,
            asked: None,
            peer_gone: false,
            quiet: false,
            told: false,
        }
    }

    /// How long the NIC is given to heal what could end in an error: the hold deadline, or the retry budget of the queue pair
    /// where that is shorter. A wait that has begun keeps its end.
    pub const fn set_hold(&mut self, hold: Micros) {
        self.deadlines.hold = hold;
    }

    /// Which paths may be claimed, here and by the peer, for the sake of the group that this queue pair receives with.
    pub const fn confine(&mut self, scope: Scope) {
        self.scope = scope;
    }

    /// Refuses planned moves of this queue pair alone: those that receive with it have to come along.
    pub const fn fix(&mut self) {
        self.fixed = true;
    }

    /// Takes an input. `now` must not go back. Then [`Machine::poll_effect`] until it is empty.
    pub fn handle(&mut self, now: Micros, input: Input) {
        self.wake(now);
        let before = self.state();
        self.dispatch(input);
        self.rearm(before);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is wanted at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Micros> {
        self.tick_due()
    }

    /// Where it is.
    #[must_use]
    pub const fn state(&self) -> StateName {
        StateName { stage: self.stage, attempt: self.claimed.attempt() }
    }

    /// The epoch in which it is.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The path that it is on, or moves to.
    #[must_use]
    pub const fn path(&self) -> PathId {
        self.path
    }

    /// The migration that made the current epoch.
    #[must_use]
    pub fn tuple(&self) -> Option<Tuple> {
        self.passage.as_ref().map(|passage| passage.tuple)
    }

    /// Nothing was wrong when the migration to the current epoch was agreed, as far as this end knows.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        self.passage.as_ref().is_some_and(|passage| passage.planned)
    }

    /// New sends are held for a planned move, and [`Input::Drained`] is waited for.
    #[must_use]
    pub const fn wants_drain(&self) -> bool {
        let waits = matches!(self.claimed, Claimed::Draining(_) | Claimed::Deferred(_));
        self.is_by_plan() && waits && !self.drained && matches!(self.exclusion, Exclusion::Done)
    }

    /// Whether it could go there by plan with its group: nothing is under way, at either end as far as is known.
    #[must_use]
    pub fn can_muster(&self, target: PathId) -> bool {
        self.claimed == Claimed::Nothing && !self.peer_gone && self.could_move(target)
    }

    /// The planned move that is under way before COMMIT, if one is.
    #[must_use]
    pub fn plan(&self) -> Option<Plan> {
        self.plan_under_way()
    }

    /// No incarnation before the current one takes anything any more, whatever the peer's fence came to.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        match self.stage {
            Stage::Fencing => false,
            Stage::Fenced | Stage::Settling => self.passage.as_ref().is_some_and(Passage::is_fenced_here),
            Stage::Running | Stage::Reposting | Stage::Ready | Stage::Replaying | Stage::Dead | Stage::Gone => true,
        }
    }

    /// The peer's application has its queue pair still, as far as it has said.
    #[must_use]
    pub const fn has_peer(&self) -> bool {
        !self.peer_gone
    }

    /// Where the group is, if this end has been told and is not there.
    #[must_use]
    pub const fn follows(&self) -> Option<Goal> {
        self.follow
    }

    /// Since when the peer has claimed paths that this end could go to if its group allowed it. It says it again, or has given up.
    #[must_use]
    pub fn asked(&self, now: Micros) -> Option<Micros> {
        self.asked.filter(|(_, last)| now < *last + self.deadlines.claim).map(|(first, _)| first)
    }

    /// Whether a fault of the current path would be migrated.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        !self.armed.is_empty()
    }

    /// Whether both ends said that this path carries the connection.
    #[must_use]
    pub fn is_armed_for(&self, path: PathId) -> bool {
        self.armed.contains(&path)
    }

    /// Whether that path may be the target of a migration.
    fn can_use(&self, path: PathId) -> bool {
        self.scope.allows(path) && self.carries(path)
    }

    fn carries(&self, path: PathId) -> bool {
        self.armed.contains(&path) || (path == self.path && self.is_armed())
    }

    fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    fn send(&mut self, message: Handshake) {
        self.effect(Effect::Send(message));
    }

    fn phase(&mut self, phase: Phase) {
        self.effect(Effect::Phase(phase));
    }

    fn set(&mut self, timer: Timer, span: Micros) {
        self.timers.set(timer, self.now + span);
    }
}
