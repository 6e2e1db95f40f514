//! What is broken on purpose, so that the search has to find it. All of it is around the machines, in what they are told and in what is done
//! with what they say; the machines are the ones that ship.

/// One breach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// The peer's report is not looked at: what is not acknowledged counts as never executed.
    NoCountExchange,
    /// Count and packet number are taken when the fence begins, not when it is done.
    CountBeforeFence,
    /// The packet number alone is.
    PsnBeforeFence,
    /// The packet number is read right after ERR, while the NIC is still executing the packet that it says is next.
    PsnAfterErr,
    /// The NIC goes on after the fence.
    NoFence,
    /// Receives that the application has polled are counted, not those that completed.
    PolledCount,
    /// The ledger takes atomics for WRITEs.
    AtomicsReplayed,
    /// A report or READY of another migration is taken for one of this.
    RepliesOfAnyEpoch,
    /// COMMIT of an epoch in which the end is counts as one of the next.
    NoticesOfAnyEpoch,
    /// A claim of an epoch in which the end is counts as one of the next.
    ClaimsOfAnyEpoch,
    /// All receives are posted again, consumed or not.
    ReceivesFromHead,
    /// Those that are not consumed, twice.
    ReceivesTwice,
    /// The replay does not wait for the peer's receives.
    ReplayBeforeRepost,
    /// The second decision begins with an empty ledger.
    FirstReportForgotten,
    /// One incarnation that proves that nothing was executed is enough; what another cannot prove is not entered.
    BestReportOfAny,
    /// What a decision stopped at, and so did not post again, counts at the next one as never posted.
    StopForgotten,
    /// A fenced request behind a READ without a completion counts as never begun.
    FencedTakenAsUnexecuted,
    /// The ledger does not know of requests that were executed that they were fenced.
    ReadsBehindExecutedReplayed,
    /// It does not know it of those that have begun only.
    ReadsBehindBegunReplayed,
    /// The walk replays WRITEs of unknown execution in front of a stop.
    UnknownWriteBeforeStop,
    /// A completion goes out when the request was executed.
    CompletionOverRead,
    /// Reports that contradict the ledger are bent until they do not.
    Disagreement,
    /// Offsets are reckoned with the MTU of the new path.
    NewMtu,
    /// A packet number beyond what the sender's NIC holds acknowledged, as its `sq_psn` does after a retry, proves nothing.
    WindowBySqPsn,
    /// An acceptor fences when it accepts.
    FenceAtAccept,
    /// COMMIT after the acceptance has lapsed is thrown away.
    LateCommitIgnored,
    /// A claim deadline that passes after COMMIT still ends the attempt.
    ResumeAfterCommit,
    /// An end whose queue pair is in ERR, and so fenced already, moves to the path that it claimed, whichever claim stands.
    EarlyFenceBinds,
    /// An end drops its own reports when its own replay has retired.
    ReportsDroppedEarly,
    /// What got lost is not said again.
    NothingSaidAgain,
    /// The peer's destroy is told as a fault.
    DestroyIsFault,
    /// The ledger's risk is never told.
    HoldSkipped,
}
