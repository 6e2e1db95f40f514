//! What was posted, where, and what is proven of it.
//!
//! One ledger per send queue. It owns, for every work request that is not retired, each incarnation it was posted on with
//! its first PSN and span, the verdict of each incarnation's report, and the byte offset already proven. It refuses to own
//! buffers, keys and completions: those are the data path's.
//!
//! What must hold: a verdict once written is never overwritten, neither by a second fault nor by a later report; a stop
//! once found can only move to an earlier entry; a proven offset never goes back; nothing is posted again on less than
//! what [`crate::policy::decide`] asks for.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::id::{Epoch, Mtu, PathId, Psn, Psn64, WrSeq};
use crate::policy::{OnUnknown, Reason};

/// Entries that one ledger holds: twice the deepest send queue known (mlx5: 32768), for what is held beside it.
pub const MAX_ENTRIES: usize = 65_536;

/// Incarnations between two migrations that both ends confirmed. A migration takes at least a control round trip and the
/// patience deadline bounds them together, so more means that something flaps without end.
pub const MAX_INCARNATIONS: usize = 32;

/// The operations that are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// RDMA WRITE.
    Write,
    /// RDMA WRITE with immediate.
    WriteImm,
    /// SEND.
    Send,
    /// SEND with immediate.
    SendImm,
    /// RDMA READ.
    Read,
    /// Atomic fetch-and-add.
    FetchAdd,
    /// Atomic compare-and-swap.
    CompareSwap,
}

impl Op {
    /// All of them, for tables and tests.
    pub const ALL: [Self; 7] = [Self::Write, Self::WriteImm, Self::Send, Self::SendImm, Self::Read, Self::FetchAdd, Self::CompareSwap];

    /// Whether it consumes a receive at the other end.
    #[must_use]
    pub const fn consumes_receive(self) -> bool {
        matches!(self, Self::Send | Self::SendImm | Self::WriteImm)
    }

    /// Packets of PSN space that `bytes` of it take: of a READ those of its response, one for an atomic, one for a message
    /// without payload (InfiniBand Architecture Specification, "Generating PSNs").
    #[must_use]
    pub const fn span(self, bytes: u32, mtu: Mtu) -> u64 {
        match self {
            Self::FetchAdd | Self::CompareSwap => 1,
            Self::Write | Self::WriteImm | Self::Send | Self::SendImm | Self::Read => mtu.packets(bytes),
        }
    }
}

/// A work request as the application posted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the queue.
    pub seq: WrSeq,
    /// What it does.
    pub op: Op,
    /// Its length.
    pub bytes: u32,
    /// It waits for earlier READs and atomics (`IBV_SEND_FENCE`).
    pub fenced: bool,
    /// The policy that held when it was posted.
    pub unknown: OnUnknown,
}

/// One posting of an entry on one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// The incarnation.
    pub epoch: Epoch,
    /// Its first packet there.
    pub first_psn: Psn64,
    /// The byte of the entry at which this posting began: 0, or of a WRITE the offset proven before.
    pub offset: u32,
    /// Receive-consuming requests posted before it on that incarnation.
    pub receive_ordinal: u64,
}

/// The sender's own numbers of one incarnation. All but `posted_psn` and the `completed_` pair are fixed at connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncarnationFacts {
    /// The incarnation.
    pub epoch: Epoch,
    /// The path it ran on.
    pub path: PathId,
    /// Its path MTU.
    pub mtu: Mtu,
    /// The PSN after the last request that its NIC completed with success.
    pub completed_psn: Psn64,
    /// The PSN after the last request posted on it.
    pub posted_psn: Psn64,
    /// Receive-consuming requests that its NIC completed with success, from its connect on.
    pub completed_receives: u64,
}

/// How much the receiving end proves of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Every packet before this one was executed, none from it on. Says too what [`Proof::Count`] says.
    Psn(Psn),
    /// Every outstanding receive came back after the fence, so `receives` is exactly what was consumed.
    Count,
    /// Nothing beyond that `receives` receives were consumed, perhaps more.
    None,
}

/// What one end says, after its fence, of one incarnation that it received on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncarnationReport {
    /// The incarnation.
    pub epoch: Epoch,
    /// The path it ran on.
    pub path: PathId,
    /// The level of proof.
    pub proof: Proof,
    /// Successful receives drained, from its connect on.
    pub receives: u64,
    /// The provider's recipe for a fence completed. If not, whatever `proof` says counts as [`Proof::None`].
    pub fenced: bool,
}

/// What all reports together prove of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// One incarnation proves that all of it took effect.
    Executed,
    /// Every incarnation it was posted on has a PSN proof, and one proves some of its packets.
    Partial,
    /// Every incarnation it was posted on proves that it did not take effect.
    NotExecuted,
    /// Anything else.
    Unknown,
}

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    /// It was never given to a NIC.
    NeverPosted,
    /// The receiver's final PSN of that incarnation.
    Psn(Epoch),
    /// The receiver's final receive count of that incarnation.
    ReceiveCount(Epoch),
    /// Successes that the receiver drained of that incarnation without a complete fence.
    Successes(Epoch),
    /// The result is here: a later fenced request began, which the NIC lets happen only then.
    LandedBeforeFenced(WrSeq),
    /// No report proves anything.
    Nothing,
}

/// Why a step is as it is; for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The state.
    pub state: State,
    /// What proves it.
    pub basis: Basis,
}

/// What to do with one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It took effect. Its completion is due when every entry before it is complete.
    Complete,
    /// Post it again from this byte on.
    Replay {
        /// 0 for all but WRITEs.
        offset: u32,
    },
}

/// One entry's part of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The entry.
    pub seq: WrSeq,
    /// What to do.
    pub action: Action,
    /// Why.
    pub evidence: Evidence,
}

/// Why the walk stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The decision table says so.
    Table(Reason),
    /// The two ends do not agree on what was executed.
    Disagreement,
}

/// Where the walk stops: this entry and all behind it are surfaced, after the steps before it are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The first entry that ends in an error.
    pub seq: WrSeq,
    /// Why.
    pub why: StopReason,
}

/// What to do with every entry, in posting order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The entries before the stop.
    pub steps: Vec<Step>,
    /// Where it ends in an error, if it does.
    pub stop: Option<Stop>,
}

/// Sender and receiver do not agree on what one incarnation executed: everything that is not complete has to be surfaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The incarnation.
    pub epoch: Epoch,
    /// Receive-consuming requests that the sender holds executed there.
    pub executed: u64,
    /// Successes that the receiver drained there; `None`: it did not report that incarnation.
    pub drained: Option<u64>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.drained {
            Some(drained) => write!(f, "{}: {} receives held executed, {drained} drained", self.epoch, self.executed),
            None => write!(f, "{}: {} receives held executed, no report", self.epoch, self.executed),
        }
    }
}

impl core::error::Error for Disagreement {}

/// Why the ledger did not take something: a mistake of the caller, or a bound reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LedgerError {
    /// [`MAX_ENTRIES`] are held.
    Full,
    /// [`MAX_INCARNATIONS`] are held.
    TooManyIncarnations,
    /// The entry is not in the ledger.
    NoEntry(WrSeq),
    /// It is there with other facts.
    Conflict(WrSeq),
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the ledger holds {MAX_ENTRIES} entries"),
            Self::TooManyIncarnations => write!(f, "the ledger holds {MAX_INCARNATIONS} incarnations"),
            Self::NoEntry(seq) => write!(f, "{seq} is not in the ledger"),
            Self::Conflict(seq) => write!(f, "{seq} is in the ledger with other facts"),
        }
    }
}

impl core::error::Error for LedgerError {}

/// One entry as the log shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView {
    /// The entry.
    pub entry: Entry,
    /// Its state and what proves it, by the reports applied so far.
    pub evidence: Evidence,
    /// Its result is in memory, as far as is known (READs and atomics).
    pub landed: bool,
    /// Of a WRITE: the byte up to which its execution is proven.
    pub proven_offset: u32,
    /// How many incarnations it was posted on.
    pub postings: usize,
}

/// The ledger of one send queue.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    records: BTreeMap<WrSeq, ()>,
}

impl Ledger {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { records: BTreeMap::new() }
    }

    /// Enters an incarnation, or what changed of it: `completed_` and `posted_` numbers only grow.
    ///
    /// # Errors
    /// [`LedgerError::TooManyIncarnations`].
    pub fn incarnation(&mut self, facts: IncarnationFacts) -> Result<(), LedgerError> {
        let _ = facts;
        todo!()
    }

    /// Enters a work request; `None`: it is held and was never given to a NIC. Idempotent: an entry that is there already
    /// only gets the posting.
    ///
    /// # Errors
    /// [`LedgerError::Full`], [`LedgerError::Conflict`], [`LedgerError::TooManyIncarnations`].
    pub fn admit(&mut self, entry: Entry, posting: Option<Posting>) -> Result<(), LedgerError> {
        let _ = (entry, posting);
        todo!()
    }

    /// Enters a posting of an entry, before or right after the provider took it. Idempotent per incarnation.
    ///
    /// # Errors
    /// [`LedgerError::NoEntry`], [`LedgerError::Conflict`], [`LedgerError::TooManyIncarnations`].
    pub fn posted(&mut self, seq: WrSeq, posting: Posting) -> Result<(), LedgerError> {
        let _ = (seq, posting);
        todo!()
    }

    /// The entry and all before it are complete: the NIC gave a success of its own for it on its newest incarnation, or it
    /// was decided [`Action::Complete`] and everything before it is. They leave the ledger.
    ///
    /// A flush proves nothing, and neither does a completion that the shim made out of thin air.
    pub fn landed_through(&mut self, seq: WrSeq) {
        let _ = seq;
        todo!()
    }

    /// Writes into the entries what the peer's reports prove, and checks that both ends agree.
    ///
    /// Every incarnation on which the ledger holds an entry has to be reported. Of an incarnation that was applied before,
    /// only the receive count is looked at.
    ///
    /// # Errors
    /// The ends do not agree: nothing may be replayed. [`Ledger::decide`] then gives a plan that stops at the first entry.
    pub fn apply(&mut self, reports: &[IncarnationReport]) -> Result<(), Disagreement> {
        let _ = reports;
        todo!()
    }

    /// The plan, by what was applied. Entries admitted since then count as never executed if they were never posted and as
    /// unknown otherwise.
    #[must_use]
    pub fn decide(&self) -> Plan {
        todo!()
    }

    /// Both ends may forget the incarnations below `below`. Those on which an entry was posted that is still here are kept.
    pub fn forget(&mut self, below: Epoch) {
        let _ = below;
        todo!()
    }

    /// Every entry as the log shows it, in posting order.
    pub fn entries(&self) -> impl Iterator<Item = EntryView> + '_ {
        self.records.values().filter_map(|_| None)
    }

    /// How many entries are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no entry is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether something in it could end in an error if its path died now: what makes an end wait for its NIC's retries.
    #[must_use]
    pub fn could_end_in_error(&self) -> bool {
        todo!()
    }
}
