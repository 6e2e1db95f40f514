//! What one incarnation's report proves of one posting, and what all postings of an entry prove together.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{
    Basis, Entry, EntryView, Evidence, IncarnationFacts, IncarnationReport, LedgerError, Op, Posting, Proof, State,
    MAX_INCARNATIONS,
};
use crate::id::{Epoch, Psn, Psn64, WrSeq};
use crate::policy::Facts;

/// The level of proof that a report came to, after its numbers were checked against the sender's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Level {
    /// Every packet before this one was executed, none from it on.
    Exact(Psn64),
    /// Exactly so many receives were consumed.
    Count(u64),
    /// At least so many receives were consumed.
    Successes(u64),
}

/// One incarnation, as the sender knows it and as the receiver reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Incarnation {
    facts: IncarnationFacts,
    level: Option<Level>,
    drained: Option<u64>,
}

impl Incarnation {
    pub(super) const fn new(facts: IncarnationFacts) -> Self {
        Self { facts, level: None, drained: None }
    }

    pub(super) fn update(&mut self, facts: IncarnationFacts) {
        self.facts.completed_psn = self.facts.completed_psn.max(facts.completed_psn);
        self.facts.posted_psn = self.facts.posted_psn.max(facts.posted_psn);
        self.facts.completed_receives = self.facts.completed_receives.max(facts.completed_receives);
    }

    /// An entry that took effect here leaves the ledger.
    pub(super) fn retire(&mut self, entry: &Entry, posting: Posting) {
        let end = posting.first_psn + span(entry, posting, &self.facts);
        let receives = posting.receive_ordinal + u64::from(entry.op.consumes_receive());
        self.update(IncarnationFacts {
            completed_psn: end,
            posted_psn: end,
            completed_receives: receives,
            ..self.facts
        });
    }

    /// Receive-consuming requests that are retired and took effect here.
    pub(super) const fn receives_landed(&self) -> u64 {
        self.facts.completed_receives
    }

    /// What the receiver says it drained; `None`: it never reported this incarnation.
    pub(super) const fn drained(&self) -> Option<u64> {
        self.drained
    }

    /// Takes a report. `posted` is the end of the last posting that the ledger holds.
    pub(super) fn report(&mut self, report: &IncarnationReport, posted: Option<Psn64>) {
        if report.path != self.facts.path {
            return;
        }
        self.facts.posted_psn = posted.map_or(self.facts.posted_psn, |posted| posted.max(self.facts.posted_psn));
        self.drained = Some(report.receives);
        if self.level.is_none() {
            self.level = Some(self.level_of(report));
        }
    }

    fn level_of(&self, report: &IncarnationReport) -> Level {
        match (report.fenced, report.proof) {
            (true, Proof::Psn(psn)) => self.unwrap(psn).map_or(Level::Count(report.receives), Level::Exact),
            (true, Proof::Count) => Level::Count(report.receives),
            (true, Proof::None) | (false, Proof::Psn(_) | Proof::Count | Proof::None) => {
                Level::Successes(report.receives)
            }
        }
    }

    /// The one number between the last completed and the last posted packet that looks like `psn` on the wire. Outside
    /// there is none, and in a window of 2^24 packets or more there may be two.
    fn unwrap(&self, psn: Psn) -> Option<Psn64> {
        let (from, to) = (self.facts.completed_psn, self.facts.posted_psn);
        let end = from.first_at_or_after(psn);
        (to - from < Psn::COUNT && end <= to).then_some(end)
    }

    fn find(&self, entry: &Entry, posting: Posting) -> Option<Finding> {
        let epoch = self.facts.epoch;
        Some(match self.level? {
            Level::Exact(end) => exact(end, posting.first_psn, span(entry, posting, &self.facts), epoch),
            Level::Count(count) => counted(entry.op, posting.receive_ordinal, count, epoch),
            Level::Successes(count) => drained(posting.receive_ordinal, count, epoch),
        })
    }
}

/// Packets that a posting takes on its incarnation: a remainder has a span of its own.
fn span(entry: &Entry, posting: Posting, facts: &IncarnationFacts) -> u64 {
    entry.op.span(entry.bytes.saturating_sub(posting.offset), facts.mtu)
}

/// What one incarnation proves of one posting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Finding {
    /// All of it took effect.
    Executed(Basis),
    /// So many of its packets were executed, by PSN, and at least one was not.
    Partial(u64, Epoch),
    /// By PSN: none of it was executed.
    Untouched(Epoch),
    /// By receive count: it lies behind the first request that did not complete.
    Behind(Epoch),
    /// By receive count: it is the first request that did not complete; its data may be placed.
    Incomplete(Epoch),
    /// Nothing.
    Unknown,
}

fn exact(end: Psn64, first: Psn64, span: u64, epoch: Epoch) -> Finding {
    match end - first {
        0 => Finding::Untouched(epoch),
        packets if packets < span => Finding::Partial(packets, epoch),
        _ => Finding::Executed(Basis::Psn(epoch)),
    }
}

/// The `count`-th receive-consuming request and all before it were executed; the next one did not complete, and nothing
/// behind that was executed. What lies between the two is unknown.
fn counted(op: Op, ordinal: u64, count: u64, epoch: Epoch) -> Finding {
    if ordinal < count {
        Finding::Executed(Basis::ReceiveCount(epoch))
    } else if ordinal > count {
        Finding::Behind(epoch)
    } else if op.consumes_receive() {
        Finding::Incomplete(epoch)
    } else {
        Finding::Unknown
    }
}

/// What was drained of an incarnation that is not fenced proves execution, and nothing proves the contrary.
fn drained(ordinal: u64, count: u64, epoch: Epoch) -> Finding {
    if ordinal < count {
        Finding::Executed(Basis::Successes(epoch))
    } else {
        Finding::Unknown
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Posted {
    posting: Posting,
    finding: Option<Finding>,
}

/// One entry with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) entry: Entry,
    /// Oldest first; at most [`MAX_INCARNATIONS`].
    posted: Vec<Posted>,
    /// The later fenced request that proves that the result is here.
    landed_before: Option<WrSeq>,
    /// Of a WRITE: never goes back.
    proven_offset: u32,
}

impl Record {
    pub(super) const fn new(entry: Entry) -> Self {
        Self { entry, posted: Vec::new(), landed_before: None, proven_offset: 0 }
    }

    pub(super) fn post(&mut self, posting: Posting) -> Result<(), LedgerError> {
        let last = self.posted.last().map(|posted| posted.posting);
        match last {
            Some(last) if last == posting => Ok(()),
            Some(last) if last.epoch >= posting.epoch => Err(LedgerError::Conflict(self.entry.seq)),
            _ if self.posted.len() >= MAX_INCARNATIONS => Err(LedgerError::TooManyIncarnations),
            _ => {
                self.posted.push(Posted { posting, finding: None });
                Ok(())
            }
        }
    }

    pub(super) fn posting_on(&self, epoch: Epoch) -> Option<Posting> {
        self.posted.iter().map(|posted| posted.posting).find(|posting| posting.epoch == epoch)
    }

    pub(super) fn epochs(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.posted.iter().map(|posted| posted.posting.epoch)
    }

    /// The packet after its posting on that incarnation.
    pub(super) fn end_on(&self, epoch: Epoch, incarnations: &BTreeMap<Epoch, Incarnation>) -> Option<Psn64> {
        let posting = self.posting_on(epoch)?;
        let incarnation = incarnations.get(&epoch)?;
        Some(posting.first_psn + span(&self.entry, posting, &incarnation.facts))
    }

    /// Writes what each reported incarnation proves, once.
    pub(super) fn find(&mut self, incarnations: &BTreeMap<Epoch, Incarnation>) {
        for posted in &mut self.posted {
            let Some(incarnation) = incarnations.get(&posted.posting.epoch) else { continue };
            if posted.finding.is_none() {
                posted.finding = incarnation.find(&self.entry, posted.posting);
            }
            if let (Op::Write, Some(Finding::Partial(packets, _))) = (self.entry.op, posted.finding) {
                let bytes = packets.saturating_mul(u64::from(incarnation.facts.mtu.bytes()));
                let offset = u64::from(posted.posting.offset).saturating_add(bytes).min(u64::from(self.entry.bytes));
                self.proven_offset = self.proven_offset.max(u32::try_from(offset).unwrap_or(self.entry.bytes));
            }
        }
    }

    fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        self.posted.iter().map(|posted| posted.finding.unwrap_or(Finding::Unknown))
    }

    /// The postings that it leaves behind as complete: those proven executed, and the newest one if its incarnation was never
    /// reported, for then a success of its own retired it.
    pub(super) fn completed_on(&self) -> impl Iterator<Item = Posting> + '_ {
        let complete = self.posted.iter().filter(|posted| matches!(posted.finding, Some(Finding::Executed(_)) | None));
        complete.map(|posted| posted.posting)
    }

    /// A later fenced request began, so the result is here.
    pub(super) fn land_before(&mut self, fenced: WrSeq) {
        if matches!(self.entry.op, Op::Read | Op::FetchAdd | Op::CompareSwap) && self.landed_before.is_none() {
            self.landed_before = Some(fenced);
        }
    }

    /// One packet of it is proven executed.
    pub(super) fn begun(&self) -> bool {
        self.findings().any(|finding| matches!(finding, Finding::Executed(_) | Finding::Partial(..)))
    }

    /// Not every incarnation it was posted on proves that none of it was executed (of a SEND: that it did not complete).
    pub(super) fn possibly_begun(&self) -> bool {
        let send = matches!(self.entry.op, Op::Send | Op::SendImm);
        self.findings().any(|finding| match finding {
            Finding::Executed(_) | Finding::Unknown => true,
            Finding::Partial(..) | Finding::Incomplete(_) => !send,
            Finding::Untouched(_) | Finding::Behind(_) => false,
        })
    }

    /// Receive-consuming requests of that posting's incarnation that were executed if this entry's evidence is right: those
    /// before it, if it was reached, and itself.
    pub(super) fn receives_executed(&self, posting: Posting) -> u64 {
        let finding = self.posted.iter().find(|posted| posted.posting == posting).and_then(|posted| posted.finding);
        match finding {
            Some(Finding::Executed(_)) => posting.receive_ordinal + u64::from(self.entry.op.consumes_receive()),
            Some(Finding::Partial(..) | Finding::Incomplete(_)) => posting.receive_ordinal,
            Some(Finding::Untouched(_) | Finding::Behind(_) | Finding::Unknown) | None => 0,
        }
    }

    pub(super) const fn proven_offset(&self) -> u32 {
        self.proven_offset
    }

    /// What the decision table wants to know, but for the entries behind it.
    pub(super) fn facts(&self, later_fenced_possibly_begun: bool) -> Facts {
        Facts {
            state: self.state().state,
            landed: self.landed_before.is_some(),
            unknown: self.entry.unknown,
            possibly_begun: self.possibly_begun(),
            later_fenced_possibly_begun,
        }
    }

    /// The evidence for the log.
    pub(super) fn evidence(&self) -> Evidence {
        let evidence = self.state();
        self.landed_before.map_or(evidence, |fenced| Evidence { basis: Basis::LandedBeforeFenced(fenced), ..evidence })
    }

    pub(super) fn view(&self) -> EntryView {
        EntryView {
            entry: self.entry,
            evidence: self.evidence(),
            landed: self.landed_before.is_some(),
            proven_offset: self.proven_offset,
            postings: self.posted.len(),
            newest: self.posted.last().map(|posted| posted.posting),
        }
    }

    /// Executed if one incarnation proves it, not executed if every one does, partial if every one has a PSN proof and one
    /// proves some packets. (The best report of any is not enough: not executed on the first path, executed with a lost
    /// acknowledgement on the second that proves nothing, it would be done twice on the third.)
    fn state(&self) -> Evidence {
        let mut together = Evidence { state: State::NotExecuted, basis: Basis::NeverPosted };
        let mut all_exact = true;
        for finding in self.findings() {
            let (state, basis) = match finding {
                Finding::Executed(basis) => return Evidence { state: State::Executed, basis },
                Finding::Partial(_, epoch) => (State::Partial, Basis::Psn(epoch)),
                Finding::Untouched(epoch) => (State::NotExecuted, Basis::Psn(epoch)),
                Finding::Behind(epoch) | Finding::Incomplete(epoch) => (State::NotExecuted, Basis::ReceiveCount(epoch)),
                Finding::Unknown => (State::Unknown, Basis::Nothing),
            };
            all_exact &= matches!(finding, Finding::Partial(..) | Finding::Untouched(_));
            together = match (together.state, state) {
                (State::Unknown, _) | (State::Partial, State::NotExecuted) => together,
                (State::Partial, State::Executed | State::Partial | State::Unknown)
                | (State::NotExecuted | State::Executed, _) => Evidence { state, basis },
            };
        }
        if together.state == State::Partial && !all_exact {
            return Evidence { state: State::Unknown, basis: Basis::Nothing };
        }
        together
    }
}
