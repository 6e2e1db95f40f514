//! The handshake as one table: what each event does in each state. The code of [`super::Machine`] looks every event up here,
//! and has one function per rule.
//!
//! A state has two parts: the stage, which only a COMMIT moves out of [`Stage::Running`], and the attempt, the life of a
//! claim beside it.
//!
//! ```text
//!                COMMIT               REPORTs            Reposted          READYs             Retired
//!   Running ---------------> Fencing -> Fenced -> Reposting -----> Ready ----------> Replaying -------> Running
//!                                 ^       |                                                  (of the next epoch)
//!                                 +---Settling   one end could not fence: packet lifetime, drain again
//!   COMMIT of a higher epoch: any of them -> Fencing.    Any of them -> Dead (an error surfaced), -> Gone (destroyed).
//!
//!           Fault             PathAnswered            ACCEPT               Excluded
//!   Idle ----------> Seeking --------------> Claiming --------> Committing --------> COMMIT
//!           CLAIM                        Excluded
//!   Idle ----------------> Accepting -------------> Accepted          (with unprovable work out: Holding, WAIT)
//!   Claiming, Committing, Holding, Accepting, Accepted -> Idle or Seeking: CANCEL, REFUSE, claim deadline.
//! ```
//!
//! Readings that look right and are not, each of which a model found a bad run for: to ignore a COMMIT that comes after the
//! acceptance lapsed; to let the larger claim stand at an end that is fenced; to take an early fence for an acceptance; an
//! acceptance that never ends; to resume after a COMMIT; not to send again.

use core::fmt;

/// Where an end is in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// On its path.
    Running,
    /// COMMIT is said; the fence runs.
    Fencing,
    /// The fence is done; the peer's report is missing.
    Fenced,
    /// One end could not fence; the packet lifetime runs.
    Settling,
    /// The receives are being posted on the new path.
    Reposting,
    /// They are posted; the peer's READY is missing.
    Ready,
    /// The replay is being posted or has not retired.
    Replaying,
    /// An error was surfaced, or is the application's.
    Dead,
    /// The application destroyed the QP.
    Gone,
}

impl Stage {
    /// All of them, in the order of the table's columns.
    pub const ALL: [Self; 9] = [
        Self::Running,
        Self::Fencing,
        Self::Fenced,
        Self::Settling,
        Self::Reposting,
        Self::Ready,
        Self::Replaying,
        Self::Dead,
        Self::Gone,
    ];
}

/// What an end is about to do next to its stage: the life of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attempt {
    /// Nothing.
    Idle,
    /// A fault is known, no claim is out: a path is sought.
    Seeking,
    /// A planned move: new sends are held, and those that are out are waited for before the claim goes out.
    Draining,
    /// The own claim is out.
    Claiming,
    /// It was accepted; the posters are being excluded.
    Committing,
    /// The peer's claim was answered with WAIT.
    Holding,
    /// The posters are being excluded before the peer's claim is accepted.
    Accepting,
    /// The peer's claim is accepted.
    Accepted,
}

impl Attempt {
    /// All of them, in the order of the table's columns.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Seeking,
        Self::Draining,
        Self::Claiming,
        Self::Committing,
        Self::Holding,
        Self::Accepting,
        Self::Accepted,
    ];
}

/// The state as the log shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateName {
    /// Where the end is in a migration.
    pub stage: Stage,
    /// What it is about to do.
    pub attempt: Attempt,
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.stage)?;
        if self.attempt == Attempt::Idle {
            return Ok(());
        }
        write!(f, "+{:?}", self.attempt)
    }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// An input as the table names it. Handshake messages are told apart by whether they are of an epoch above the own one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Event {
            $($(#[$doc])* $name,)*
        }

        impl Event {
            /// All of them, in the order of the table's rows.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

events! {
    /// CLAIM of a higher epoch.
    Claim,
    /// CLAIM of the own epoch or below.
    OldClaim,
    /// ACCEPT of a higher epoch.
    Accept,
    /// ACCEPT of the own epoch or below.
    OldAccept,
    /// REFUSE.
    Refuse,
    /// WAIT.
    Wait,
    /// COMMIT of a higher epoch.
    Commit,
    /// COMMIT of the own epoch or below.
    OldCommit,
    /// CANCEL of a higher epoch.
    Cancel,
    /// CANCEL of the own epoch or below.
    OldCancel,
    /// REPORT of the own migration.
    Report,
    /// READY of the own migration.
    Ready,
    /// CONFIRM of the own migration.
    Confirm,
    /// REPORT, READY or CONFIRM of another migration.
    Stray,
    /// DEAD or SURFACE.
    Dead,
    /// GONE.
    Gone,
    /// A path was armed.
    PathArmed,
    /// A path was disarmed.
    PathDisarmed,
    /// The current path is suspect.
    Fault,
    /// A probe was answered.
    PathAnswered,
    /// The posters are out.
    Excluded,
    /// They cannot be got out.
    NotExcluded,
    /// The ledger's risk changed.
    Hold,
    /// The fence is done, or failed.
    Fenced,
    /// The receives are posted.
    Reposted,
    /// They cannot be.
    RepostFailed,
    /// The plan is posted.
    Replayed,
    /// It cannot be, or a post that was held cannot.
    ReplayFailed,
    /// A success came.
    Progress,
    /// The plan has retired.
    Retired,
    /// What is before the stop has retired.
    StopReached,
    /// The error is the application's.
    ApplicationError,
    /// The application destroyed the QP.
    Destroyed,
    /// The group moves to a path.
    Follow,
    /// The group is where it is.
    Stay,
    /// The group goes on without it.
    LeftBehind,
    /// The connection is to go to another path although nothing is wrong.
    Move,
    /// All that receive together are to go to another path although nothing is wrong.
    Muster,
    /// They go.
    Depart,
    /// They do not.
    Dismiss,
    /// All own sends are complete.
    Drained,
    /// The peer cannot be reached.
    Unreachable,
    /// The claim deadline passed.
    ClaimOver,
    /// The exclude deadline passed.
    ExcludeOver,
    /// The hold deadline passed, or the pause between two claims.
    PauseOver,
    /// The deadline of a planned move passed.
    PlanOver,
    /// The fence deadline passed.
    FenceOver,
    /// The packet lifetime is over.
    SettleOver,
    /// The exchange deadline passed.
    ExchangeOver,
    /// The patience deadline passed.
    PatienceOver,
    /// An answer is missing.
    ResendDue,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What an event does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule {
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

rules! {
    /// Nothing.
    Ignore,
    /// Look it up by the attempt.
    ByAttempt,
    /// Answer DEAD (SURFACE to a claim, if the error is the application's).
    AnswerDead,
    /// Answer GONE.
    AnswerGone,
    /// The owner of the own epoch answers an old claim with its COMMIT.
    RecallCommit,
    /// The owner sends its COMMIT again.
    RepeatCommit,
    /// Send the own REPORT again, if the peer's READY is not in.
    RepeatReport,
    /// Fence; the epoch and path become those of the tuple.
    Adopt,
    /// Keep the peer's report until the own fence is done.
    KeepReport,
    /// Take the peer's report; go on if there is enough.
    TakeReport,
    /// Keep READY until the own receives are posted.
    KeepReady,
    /// The replay may start.
    TakeReady,
    /// Both ends have retired their replays.
    TakeConfirm,
    /// The peer has; this end not yet.
    KeepConfirm,
    /// The peer surfaced an error: so does this end.
    FollowDead,
    /// The peer knows.
    HearDead,
    /// Nobody is left to tell.
    StopTelling,
    /// The peer destroyed its QP while both ran.
    LosePeer,
    /// The peer is gone in mid-migration.
    SurfacePeerGone,
    /// An error is due: the peer cannot be reached in mid-migration. It may live, so it is told when it can be.
    SurfaceUnreachable,
    /// The peer is out of reach while this end runs.
    LoseContact,
    /// Enter the path.
    Arm,
    /// Strike it out.
    Disarm,
    /// Seek a path.
    NoteFault,
    /// The posters are out: fence, commit or accept, whatever waited for it.
    NoteExcluded,
    /// Note the risk.
    NoteHold,
    /// Report.
    TakeFence,
    /// The fence is given up: say so.
    GiveUpFence,
    /// The packet lifetime is over.
    Settle,
    /// READY.
    TakeRepost,
    /// The plan is posted.
    NoteReplayed,
    /// A success came: patience starts anew.
    NoteProgress,
    /// CONFIRM; on the new path.
    Resume,
    /// An error is due: the receives cannot be posted.
    SurfaceRepost,
    /// An error is due: the replay failed.
    SurfaceReplay,
    /// An error is due: the walk ends here.
    SurfaceStop,
    /// An error is due: the exchange took too long.
    SurfaceExchange,
    /// An error is due: patience is at its end.
    SurfacePatience,
    /// The application's error: from now on nothing is masked.
    Withdraw,
    /// The same in mid-migration.
    SurfaceApplication,
    /// Claim the path of the group.
    FollowGroup,
    /// Follow no more.
    StayWithGroup,
    /// An error is due: the group has left.
    SurfaceLeftBehind,
    /// The QP is no more.
    Vanish,
    /// Send again what is not answered.
    Resend,
    /// Judge a claim: REFUSE, WAIT or accept.
    Consider,
    /// Judge a claim while the own one is out: the larger stands.
    Contest,
    /// Judge a claim while another is being accepted: the newer stands.
    Reconsider,
    /// The own claim was accepted.
    TakeAccept,
    /// The own claim was refused.
    TakeRefuse,
    /// The own claim has to wait.
    TakeWait,
    /// The peer's claim is cancelled.
    TakeCancel,
    /// Claim the path that answered, or see that the fault is over.
    Target,
    /// See whether the fault is over.
    Heal,
    /// Claim the path that answered before.
    ClaimNow,
    /// CANCEL the own claim.
    GiveUp,
    /// The posters are inside: WAIT for now.
    PutOff,
    /// The peer's claim is forgotten.
    Lapse,
    /// Hold new sends, and claim when those that are out are complete.
    Plan,
    /// Hold new sends for the group.
    Muster,
    /// Claim for the group.
    Depart,
    /// Hold no more for the group.
    Dismiss,
    /// The own sends are complete: claim or accept, whatever waited for it.
    NoteDrained,
}

/// One row of a table: an event, and a rule for each column.
#[derive(Clone, Copy, Debug)]
pub struct Row<const COLUMNS: usize> {
    /// The event.
    pub event: Event,
    /// What it does, by column.
    pub rules: [Rule; COLUMNS],
}

const fn row<const COLUMNS: usize>(event: Event, rules: [Rule; COLUMNS]) -> Row<COLUMNS> {
    Row { event, rules }
}

/// Seven live stages that do the same, then Dead and Gone.
const fn live(event: Event, rule: Rule, dead: Rule, gone: Rule) -> Row<9> {
    row(event, [rule, rule, rule, rule, rule, rule, rule, dead, gone])
}

use Rule::{
    Adopt, AnswerDead, AnswerGone, Arm, ByAttempt, ClaimNow, Consider, Contest, Depart, Disarm, Dismiss, FollowDead,
    FollowGroup, GiveUp, GiveUpFence, Heal, HearDead, Ignore, KeepConfirm, KeepReady, KeepReport, Lapse, LoseContact,
    LosePeer, Muster, NoteDrained, NoteExcluded, NoteFault, NoteHold, NoteProgress, NoteReplayed, Plan, PutOff,
    RecallCommit, Reconsider, RepeatCommit, RepeatReport, Resend, Resume, Settle, StayWithGroup, StopTelling,
    SurfaceApplication, SurfaceExchange, SurfaceLeftBehind, SurfacePatience, SurfacePeerGone, SurfaceReplay,
    SurfaceRepost, SurfaceStop, SurfaceUnreachable, TakeAccept, TakeCancel, TakeConfirm, TakeFence, TakeReady,
    TakeRefuse, TakeReport, TakeRepost, TakeWait, Target, Vanish, Withdraw,
};

/// What each event does in each stage.
///
/// Columns: Running, Fencing, Fenced, Settling, Reposting, Ready, Replaying, Dead, Gone.
#[rustfmt::skip]
pub static TRANSITIONS: [Row<9>; 51] = [
    live(Event::Claim, ByAttempt, AnswerDead, AnswerGone),
    live(Event::OldClaim, RecallCommit, AnswerDead, AnswerGone),
    live(Event::Accept, ByAttempt, AnswerDead, AnswerGone),
    row(Event::OldAccept, [Ignore, RepeatCommit, RepeatCommit, RepeatCommit, Ignore, Ignore, Ignore, AnswerDead, AnswerGone]),
    live(Event::Refuse, ByAttempt, AnswerDead, AnswerGone),
    live(Event::Wait, ByAttempt, AnswerDead, AnswerGone),
    live(Event::Commit, Adopt, AnswerDead, AnswerGone),
    row(Event::OldCommit, [Ignore, Ignore, RepeatReport, RepeatReport, RepeatReport, RepeatReport, Ignore, AnswerDead, AnswerGone]),
    live(Event::Cancel, ByAttempt, AnswerDead, AnswerGone),
    live(Event::OldCancel, Ignore, AnswerDead, AnswerGone),
    row(Event::Report, [Ignore, KeepReport, TakeReport, KeepReport, Ignore, Ignore, Ignore, AnswerDead, AnswerGone]),
    row(Event::Ready, [Ignore, KeepReady, KeepReady, KeepReady, KeepReady, TakeReady, Ignore, AnswerDead, AnswerGone]),
    row(Event::Confirm, [TakeConfirm, Ignore, Ignore, Ignore, Ignore, Ignore, KeepConfirm, AnswerDead, AnswerGone]),
    live(Event::Stray, Ignore, AnswerDead, AnswerGone),
    live(Event::Dead, FollowDead, HearDead, AnswerGone),
    row(Event::Gone, [LosePeer, SurfacePeerGone, SurfacePeerGone, SurfacePeerGone, SurfacePeerGone, SurfacePeerGone, SurfacePeerGone, StopTelling, Ignore]),
    live(Event::PathArmed, Arm, Ignore, Ignore),
    live(Event::PathDisarmed, Disarm, Ignore, Ignore),
    live(Event::Fault, NoteFault, Ignore, Ignore),
    live(Event::PathAnswered, ByAttempt, Ignore, Ignore),
    live(Event::Excluded, NoteExcluded, Ignore, Ignore),
    live(Event::NotExcluded, ByAttempt, Ignore, Ignore),
    live(Event::Hold, NoteHold, Ignore, Ignore),
    row(Event::Fenced, [Ignore, TakeFence, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Reposted, [Ignore, Ignore, Ignore, Ignore, TakeRepost, Ignore, Ignore, Ignore, Ignore]),
    row(Event::RepostFailed, [Ignore, Ignore, Ignore, Ignore, SurfaceRepost, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Replayed, [Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, NoteReplayed, Ignore, Ignore]),
    row(Event::ReplayFailed, [SurfaceReplay, Ignore, Ignore, Ignore, Ignore, Ignore, SurfaceReplay, Ignore, Ignore]),
    row(Event::Progress, [Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, NoteProgress, Ignore, Ignore]),
    row(Event::Retired, [Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Resume, Ignore, Ignore]),
    row(Event::StopReached, [Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, SurfaceStop, Ignore, Ignore]),
    row(Event::ApplicationError, [Withdraw, SurfaceApplication, SurfaceApplication, SurfaceApplication, SurfaceApplication, SurfaceApplication, SurfaceApplication, Ignore, Ignore]),
    live(Event::Destroyed, Vanish, Vanish, Ignore),
    live(Event::Follow, FollowGroup, Ignore, Ignore),
    live(Event::Stay, StayWithGroup, Ignore, Ignore),
    live(Event::LeftBehind, SurfaceLeftBehind, Ignore, Ignore),
    row(Event::Move, [ByAttempt, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Muster, [ByAttempt, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Depart, [ByAttempt, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Dismiss, [ByAttempt, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    live(Event::Drained, NoteDrained, Ignore, Ignore),
    row(Event::Unreachable, [LoseContact, SurfaceUnreachable, SurfaceUnreachable, SurfaceUnreachable, SurfaceUnreachable, SurfaceUnreachable, SurfaceUnreachable, Ignore, Ignore]),
    live(Event::ClaimOver, ByAttempt, Ignore, Ignore),
    live(Event::ExcludeOver, ByAttempt, Ignore, Ignore),
    live(Event::PauseOver, ByAttempt, Ignore, Ignore),
    live(Event::PlanOver, ByAttempt, Ignore, Ignore),
    row(Event::FenceOver, [Ignore, GiveUpFence, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::SettleOver, [Ignore, Ignore, Ignore, Settle, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::ExchangeOver, [Ignore, SurfaceExchange, SurfaceExchange, SurfaceExchange, SurfaceExchange, SurfaceExchange, SurfaceExchange, Ignore, Ignore]),
    live(Event::PatienceOver, SurfacePatience, Ignore, Ignore),
    live(Event::ResendDue, Resend, Resend, Ignore),
];

/// What the events do for which [`TRANSITIONS`] says [`Rule::ByAttempt`].
///
/// Columns: Idle, Seeking, Draining, Claiming, Committing, Holding, Accepting, Accepted.
#[rustfmt::skip]
pub static ATTEMPTS: [Row<8>; 15] = [
    row(Event::Claim, [Consider, Consider, Consider, Contest, Contest, Reconsider, Reconsider, Reconsider]),
    row(Event::Accept, [Ignore, Ignore, Ignore, TakeAccept, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Refuse, [Ignore, Ignore, Ignore, TakeRefuse, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Wait, [Ignore, Ignore, Ignore, TakeWait, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Cancel, [Ignore, Ignore, Ignore, Ignore, Ignore, TakeCancel, TakeCancel, TakeCancel]),
    row(Event::PathAnswered, [Ignore, Target, Ignore, Heal, Heal, Heal, Heal, Heal]),
    row(Event::NotExcluded, [Ignore, Ignore, GiveUp, Ignore, GiveUp, Ignore, PutOff, Ignore]),
    row(Event::Move, [Plan, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Muster, [Muster, Ignore, Muster, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Depart, [Ignore, Ignore, Depart, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::Dismiss, [Ignore, Ignore, Dismiss, Dismiss, Ignore, Ignore, Ignore, Ignore]),
    row(Event::ClaimOver, [Ignore, Ignore, Ignore, GiveUp, Ignore, Lapse, Ignore, Lapse]),
    row(Event::ExcludeOver, [Ignore, Ignore, GiveUp, Ignore, GiveUp, Ignore, PutOff, Ignore]),
    row(Event::PauseOver, [Ignore, ClaimNow, Ignore, Ignore, Ignore, Ignore, Ignore, Ignore]),
    row(Event::PlanOver, [Ignore, Ignore, GiveUp, GiveUp, GiveUp, Ignore, Ignore, Ignore]),
];

/// What an event does in a state.
#[must_use]
pub fn rule(state: StateName, event: Event) -> Rule {
    let by_stage = pick(&TRANSITIONS, event, state.stage as usize);
    if by_stage == Rule::ByAttempt {
        return pick(&ATTEMPTS, event, state.attempt as usize);
    }
    by_stage
}

/// A test walks all pairs, so a row that is missing here would have been seen.
fn pick<const COLUMNS: usize>(rows: &[Row<COLUMNS>], event: Event, column: usize) -> Rule {
    let row = rows.iter().find(|row| row.event == event);
    row.and_then(|row| row.rules.get(column)).copied().unwrap_or(Rule::Ignore)
}
