//! What was posted, where, and what is proven of it.
//!
//! One ledger per send queue. It owns, for every work request that is not retired, each incarnation it was posted on with
//! its first PSN and span, the verdict of each incarnation's report, and the byte offset already proven. It refuses to own
//! buffers, keys and completions: those are the data path's.
//!
//! What must hold: a verdict once written is never overwritten, neither by a second fault nor by a later report; a stop
//! once found can only move to an earlier entry; a proven offset never goes back; nothing is posted again on less than
//! what [`crate::policy::decide`] asks for.

mod evidence;
mod walk;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::id::{Epoch, Mtu, PathId, Psn, Psn64, WrSeq};
use crate::policy::{self, OnUnknown, Reason};
use evidence::{Incarnation, Record};

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
    pub const ALL: [Self; 7] =
        [Self::Write, Self::WriteImm, Self::Send, Self::SendImm, Self::Read, Self::FetchAdd, Self::CompareSwap];

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Evidence {
    /// The state.
    pub state: State,
    /// What proves it.
    pub basis: Basis,
}

/// What to do with one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stop {
    /// The first entry that ends in an error.
    pub seq: WrSeq,
    /// Why.
    pub why: StopReason,
}

/// What to do with every entry, in posting order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// The last of them.
    pub newest: Option<Posting>,
}

/// The ledger of one send queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// In posting order; at most [`MAX_ENTRIES`].
    records: BTreeMap<WrSeq, Record>,
    /// At most [`MAX_INCARNATIONS`].
    incarnations: BTreeMap<Epoch, Incarnation>,
    /// Found by a walk; only ever replaced by an earlier one.
    stop: Option<Stop>,
    /// Once the ends disagree, nothing is replayed any more.
    disagreed: bool,
}

impl Ledger {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { records: BTreeMap::new(), incarnations: BTreeMap::new(), stop: None, disagreed: false }
    }

    /// Enters an incarnation, or what changed of it: `completed_` and `posted_` numbers only grow.
    ///
    /// # Errors
    /// [`LedgerError::TooManyIncarnations`].
    pub fn incarnation(&mut self, facts: IncarnationFacts) -> Result<(), LedgerError> {
        if let Some(known) = self.incarnations.get_mut(&facts.epoch) {
            known.update(facts);
            return Ok(());
        }
        if self.incarnations.len() >= MAX_INCARNATIONS {
            return Err(LedgerError::TooManyIncarnations);
        }
        self.incarnations.insert(facts.epoch, Incarnation::new(facts));
        Ok(())
    }

    /// Enters a work request; `None`: it is held and was never given to a NIC. Idempotent: an entry that is there already
    /// only gets the posting.
    ///
    /// # Errors
    /// [`LedgerError::Full`], [`LedgerError::Conflict`], [`LedgerError::TooManyIncarnations`].
    pub fn admit(&mut self, entry: Entry, posting: Option<Posting>) -> Result<(), LedgerError> {
        match self.records.get(&entry.seq) {
            Some(known) if known.entry != entry => return Err(LedgerError::Conflict(entry.seq)),
            Some(_) => {}
            None if self.records.len() >= MAX_ENTRIES => return Err(LedgerError::Full),
            None => {
                self.records.insert(entry.seq, Record::new(entry));
            }
        }
        posting.map_or(Ok(()), |posting| self.posted(entry.seq, posting))
    }

    /// Enters a posting of an entry, before or right after the provider took it. Idempotent per incarnation; a later
    /// posting is on a later incarnation.
    ///
    /// # Errors
    /// [`LedgerError::NoEntry`], [`LedgerError::Conflict`], [`LedgerError::TooManyIncarnations`].
    pub fn posted(&mut self, seq: WrSeq, posting: Posting) -> Result<(), LedgerError> {
        self.records.get_mut(&seq).ok_or(LedgerError::NoEntry(seq))?.post(posting)
    }

    /// The entry and all before it are complete: the NIC gave a success of its own for it on its newest incarnation, or it
    /// was decided [`Action::Complete`] and everything before it is. They leave the ledger.
    ///
    /// A flush proves nothing, and neither does a completion that the shim made.
    pub fn landed_through(&mut self, seq: WrSeq) {
        while let Some(first) = self.records.first_entry() {
            if *first.key() > seq {
                return;
            }
            let record = first.remove();
            for posting in record.completed_on() {
                if let Some(incarnation) = self.incarnations.get_mut(&posting.epoch) {
                    incarnation.retire(&record.entry, posting);
                }
            }
        }
    }

    /// Writes into the entries what the peer's reports prove, and checks that both ends agree.
    ///
    /// Every incarnation on which the ledger holds an entry has to be reported, now or before. What an incarnation's first
    /// report proved stays; of a later one only the receive count is looked at.
    ///
    /// # Errors
    /// The ends do not agree: nothing may be replayed. [`Ledger::decide`] then gives a plan that stops at the first entry.
    pub fn apply(&mut self, reports: &[IncarnationReport]) -> Result<(), Disagreement> {
        self.write_reports(reports);
        self.write_findings();
        self.write_landed();
        self.stop = walk::stop(&self.records, self.stop);
        let agreement = self.check_agreement();
        self.disagreed |= agreement.is_err();
        agreement
    }

    /// The plan, by what was applied. Entries admitted since then count as never executed if they were never posted and as
    /// unknown otherwise.
    #[must_use]
    pub fn decide(&self) -> Plan {
        let first = self.records.keys().next().copied();
        let disagreement = first.filter(|_| self.disagreed).map(|seq| Stop { seq, why: StopReason::Disagreement });
        let stop = disagreement.or_else(|| walk::stop(&self.records, self.stop));
        Plan { steps: walk::steps_before(&self.records, stop), stop }
    }

    /// Drops what is kept of the incarnations below `below`, when every entry that was posted on one of them is retired
    /// (that is when [`crate::migrate::Input::Retired`] is given). Those on which an entry was posted that is still here stay.
    pub fn forget(&mut self, below: Epoch) {
        let records = &self.records;
        let in_use = |epoch| records.values().any(|record| record.posting_on(epoch).is_some());
        self.incarnations.retain(|epoch, _| *epoch >= below || in_use(*epoch));
    }

    /// Every entry as the log shows it, in posting order.
    pub fn entries(&self) -> impl Iterator<Item = EntryView> + '_ {
        self.records.values().map(Record::view)
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
        self.records.values().any(|record| policy::could_end_in_error(record.entry.op, record.entry.unknown))
    }

    /// An incarnation's first report is kept; a later one only tells its receive count.
    fn write_reports(&mut self, reports: &[IncarnationReport]) {
        for report in reports {
            let posted =
                self.records.values().filter_map(|record| record.end_on(report.epoch, &self.incarnations)).max();
            if let Some(incarnation) = self.incarnations.get_mut(&report.epoch) {
                incarnation.report(report, posted);
            }
        }
    }

    fn write_findings(&mut self) {
        for record in self.records.values_mut() {
            record.find(&self.incarnations);
        }
    }

    /// A NIC starts a fenced request only when the results of all earlier READs and atomics are in memory (InfiniBand
    /// Architecture Specification, "Fence indicator"), so one that began proves that they are.
    fn write_landed(&mut self) {
        let mut begun_fenced = None;
        for (seq, record) in self.records.iter_mut().rev() {
            if let Some(fenced) = begun_fenced {
                record.land_before(fenced);
            }
            if record.entry.fenced && record.begun() {
                begun_fenced = Some(*seq);
            }
        }
    }

    /// The successes drained of every incarnation must be as many as the receive-consuming requests held executed there;
    /// more is harmless only where the walk ends in an error and replays no receive-consuming request before it.
    fn check_agreement(&self) -> Result<(), Disagreement> {
        let may_be_more = self.stop.is_some() && !self.replays_a_receive();
        for (epoch, incarnation) in &self.incarnations {
            let postings = || {
                self.records.values().filter_map(|record| record.posting_on(*epoch).map(|posting| (record, posting)))
            };
            let executed = postings()
                .map(|(record, posting)| record.receives_executed(posting))
                .fold(incarnation.receives_landed(), u64::max);
            let drained = incarnation.drained();
            let agree = match drained {
                Some(drained) => drained == executed || (drained > executed && may_be_more),
                None => postings().next().is_none(),
            };
            if !agree {
                return Err(Disagreement { epoch: *epoch, executed, drained });
            }
        }
        self.check_incarnations_known()
    }

    /// A posting on an incarnation of which nothing is known can be proven by nobody.
    fn check_incarnations_known(&self) -> Result<(), Disagreement> {
        let mut epochs = self.records.values().flat_map(Record::epochs);
        match epochs.find(|epoch| !self.incarnations.contains_key(epoch)) {
            Some(epoch) => Err(Disagreement { epoch, executed: 0, drained: None }),
            None => Ok(()),
        }
    }

    fn replays_a_receive(&self) -> bool {
        let steps = walk::steps_before(&self.records, self.stop);
        let mut replayed = steps.iter().filter(|step| matches!(step.action, Action::Replay { .. }));
        replayed.any(|step| self.records.get(&step.seq).is_some_and(|record| record.entry.op.consumes_receive()))
    }
}
