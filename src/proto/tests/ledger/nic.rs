//! A reference NIC and the application's truth: what really happened to every work request.
//!
//! An incarnation executes a prefix of its packets. A READ or atomic that was executed has its result at the requester only
//! as long as no response was lost. A fenced request does not begin before the results of all earlier READs and atomics are
//! there. The acknowledged requests are a prefix of the executed ones.

use shift_proto::id::{Epoch, Mtu, PathId, Psn64, WrSeq};
use shift_proto::ledger::{
    Action, Entry, IncarnationFacts, IncarnationReport, Ledger, Op, Plan, Posting, Proof, StopReason,
};
use shift_proto::policy::{OnUnknown, Reason};

pub const CHUNK: u32 = 256;

/// One request as the application wants it.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub op: Op,
    pub bytes: u32,
    pub fenced: bool,
    pub unknown: OnUnknown,
}

/// What an end that received proves of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Psn,
    Count,
    None,
    /// Not fenced; so many successes were not drained when it first reported.
    Unfenced(u64),
}

/// One incarnation and how it fails.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    pub mtu: Mtu,
    pub first_psn: u64,
    /// New requests that are posted on it after the replay.
    pub new_posts: usize,
    /// Entries of the plan that get posted before the fault: all, if more than there are.
    pub replayed: usize,
    /// Packets that it executes.
    pub packets: usize,
    /// Responses that get through.
    pub responses: usize,
    /// Requests that are acknowledged, of those that could be.
    pub acknowledged: usize,
    pub kind: Kind,
    /// What a second report of it says.
    pub later_kind: Kind,
}

#[derive(Clone, Debug, Default)]
struct Truth {
    executions: u32,
    chunks: Vec<u32>,
    begun: bool,
    landed: bool,
    /// The application got a success.
    complete: bool,
}

#[derive(Clone, Debug)]
struct Incarnation {
    life: Life,
    postings: Vec<(usize, Posting)>,
    packets: u64,
    receives: u64,
    completed: usize,
    reported: bool,
}

pub struct Nic {
    wants: Vec<Want>,
    truth: Vec<Truth>,
    lives: Vec<Life>,
    incarnations: Vec<Incarnation>,
    pub ledger: Ledger,
    /// The first request that was never given to the ledger or a NIC.
    next: usize,
    stop: Option<WrSeq>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub disagreed: bool,
    pub stopped: Option<StopReason>,
    pub replays: usize,
}

impl Nic {
    pub fn new(wants: Vec<Want>, lives: Vec<Life>) -> Self {
        let truth = wants
            .iter()
            .map(|want| Truth { chunks: vec![0; want.bytes.div_ceil(CHUNK) as usize], ..Truth::default() })
            .collect();
        Self {
            wants,
            truth,
            lives,
            incarnations: Vec::new(),
            ledger: Ledger::new(),
            next: 0,
            stop: None,
            outcome: Outcome::default(),
        }
    }

    /// Lives through all faults; the last incarnation has none.
    pub fn run(mut self) -> Outcome {
        let mut plan = Plan::default();
        for index in 0..self.lives.len() {
            let last = index + 1 == self.lives.len();
            self.connect(index);
            let whole = self.replay(index, &plan, last);
            if whole && self.stop.is_none() {
                self.post_new(index, last);
            }
            self.execute(index, last);
            self.acknowledge(index, last);
            if last {
                break;
            }
            match self.fault(index) {
                Some(next) => plan = next,
                None => return self.outcome,
            }
        }
        self.judge();
        self.outcome
    }

    fn seq(index: usize) -> WrSeq {
        WrSeq(100 + index as u64)
    }

    fn entry(&self, index: usize) -> Entry {
        let Want { op, bytes, fenced, unknown } = self.wants[index];
        Entry { seq: Self::seq(index), op, bytes, fenced, unknown }
    }

    fn connect(&mut self, index: usize) {
        let life = self.lives[index];
        self.incarnations.push(Incarnation {
            life,
            postings: Vec::new(),
            packets: 0,
            receives: 0,
            completed: 0,
            reported: false,
        });
    }

    fn end_of(&self, index: usize, count: usize) -> Psn64 {
        let incarnation = &self.incarnations[index];
        match incarnation.postings[..count].last() {
            None => Psn64(incarnation.life.first_psn),
            Some((want, posting)) => {
                let Want { op, bytes, .. } = self.wants[*want];
                posting.first_psn + op.span(bytes - posting.offset, incarnation.life.mtu)
            }
        }
    }

    fn post(&mut self, index: usize, want: usize, offset: u32) {
        let postings = &self.incarnations[index].postings;
        let receives = postings.iter().filter(|(want, _)| self.wants[*want].op.consumes_receive()).count();
        let first_psn = self.end_of(index, postings.len());
        let posting = Posting { epoch: Epoch(index as u32), first_psn, offset, receive_ordinal: receives as u64 };
        self.incarnations[index].postings.push((want, posting));
        if self.ledger.entries().any(|view| view.entry.seq == Self::seq(want)) {
            self.ledger.posted(Self::seq(want), posting).unwrap();
        }
    }

    fn replay(&mut self, index: usize, plan: &Plan, last: bool) -> bool {
        let budget = if last { usize::MAX } else { self.lives[index].replayed };
        let mut posted = 0;
        for step in &plan.steps {
            let want = (step.seq.0 - 100) as usize;
            match step.action {
                Action::Complete => {
                    let Want { op, .. } = self.wants[want];
                    assert!(
                        self.truth[want].executions > 0 || op == Op::Read,
                        "{op:?} called complete and never executed"
                    );
                    let needs_result = matches!(op, Op::Read | Op::FetchAdd | Op::CompareSwap);
                    assert!(!needs_result || self.truth[want].landed, "{op:?} called complete without its result");
                    self.truth[want].complete = true;
                }
                Action::Replay { offset } => {
                    if posted == budget {
                        return false;
                    }
                    posted += 1;
                    self.outcome.replays += 1;
                    self.post(index, want, offset);
                }
            }
        }
        self.retire_head();
        true
    }

    /// Decided complete and nothing before it is open: the ledger may let go of it.
    fn retire_head(&mut self) {
        let open = self.truth.iter().position(|truth| !truth.complete).unwrap_or(self.truth.len());
        if open > 0 {
            self.ledger.landed_through(Self::seq(open - 1));
        }
    }

    fn post_new(&mut self, index: usize, last: bool) {
        let count = if last { usize::MAX } else { self.lives[index].new_posts };
        let until = self.next.saturating_add(count).min(self.wants.len());
        for want in self.next..until {
            self.post(index, want, 0);
        }
        self.next = until;
    }

    fn execute(&mut self, index: usize, last: bool) {
        let life = self.lives[index];
        let mut packets = if last { usize::MAX } else { life.packets };
        let mut responses = if last { usize::MAX } else { life.responses };
        let postings = self.incarnations[index].postings.clone();
        'all: for (place, (want, posting)) in postings.iter().enumerate() {
            let Want { op, bytes, fenced, .. } = self.wants[*want];
            let waits = postings[..place].iter().any(|(earlier, _)| self.is_result_missing(*earlier));
            if fenced && waits {
                break;
            }
            let span = op.span(bytes - posting.offset, life.mtu);
            for packet in 0..span {
                if packets == 0 {
                    break 'all;
                }
                packets -= 1;
                self.incarnations[index].packets += 1;
                self.execute_packet(*want, posting.offset, packet, life.mtu);
            }
            self.finish(index, *want, &mut responses);
        }
    }

    fn is_result_missing(&self, want: usize) -> bool {
        matches!(self.wants[want].op, Op::Read | Op::FetchAdd | Op::CompareSwap) && !self.truth[want].landed
    }

    fn execute_packet(&mut self, want: usize, offset: u32, packet: u64, mtu: Mtu) {
        let Want { op, bytes, .. } = self.wants[want];
        if packet == 0 {
            self.check_begin(want);
        }
        self.truth[want].begun = true;
        if matches!(op, Op::Write | Op::WriteImm) {
            let from = offset + packet as u32 * mtu.bytes();
            let to = bytes.min(from + mtu.bytes());
            for chunk in from / CHUNK..to.div_ceil(CHUNK) {
                self.truth[want].chunks[chunk as usize] += 1;
                self.check_chunk(want, chunk as usize);
            }
        }
    }

    /// In posting order; a READ not behind a fenced request that changed something; no ghost of an old WRITE.
    fn check_begin(&self, want: usize) {
        let op = self.wants[want].op;
        for earlier in 0..want {
            let done = self.truth[earlier].executions > 0 || self.wants[earlier].op == Op::Read;
            assert!(done, "{op:?} {want} begins before {:?} {earlier} was executed", self.wants[earlier].op);
        }
        let rest = want + 1..self.wants.len();
        if op == Op::Read {
            for later in rest {
                let Want { op, fenced, .. } = self.wants[later];
                let took_effect = if op.consumes_receive() && op != Op::WriteImm {
                    self.truth[later].executions > 0
                } else {
                    self.truth[later].begun
                };
                assert!(!(fenced && op != Op::Read && took_effect), "a READ runs behind the fenced {op:?} {later}");
            }
        } else if self.truth[want].executions > 0 {
            let notified = rest
                .into_iter()
                .any(|later| self.wants[later].op.consumes_receive() && self.truth[later].executions > 0);
            assert!(!notified, "a ghost of {op:?} {want} behind a message that the peer has");
        }
    }

    fn check_chunk(&self, want: usize, chunk: usize) {
        let Want { op, unknown, .. } = self.wants[want];
        let count = self.truth[want].chunks[chunk];
        assert!(count == 1 || unknown == OnUnknown::Replay, "{op:?} {want} under policy error wrote twice");
        let exact = self.incarnations.iter().rev().skip(1).all(|incarnation| incarnation.life.kind == Kind::Psn);
        assert!(
            count == 1 || !exact || op == Op::WriteImm,
            "WRITE {want} wrote a byte twice although every proof was exact"
        );
    }

    fn finish(&mut self, index: usize, want: usize, responses: &mut usize) {
        let op = self.wants[want].op;
        self.truth[want].executions += 1;
        if op.consumes_receive() {
            self.incarnations[index].receives += 1;
        }
        if matches!(op, Op::Read | Op::FetchAdd | Op::CompareSwap) && *responses > 0 {
            *responses -= 1;
            self.truth[want].landed = true;
        }
        let once = op.consumes_receive() || matches!(op, Op::FetchAdd | Op::CompareSwap);
        assert!(!once || self.truth[want].executions == 1, "{op:?} {want} took effect twice");
    }

    fn acknowledge(&mut self, index: usize, last: bool) {
        let postings = &self.incarnations[index].postings;
        let mut left = self.incarnations[index].packets;
        let mut possible = 0;
        for (want, posting) in postings {
            let Want { op, bytes, .. } = self.wants[*want];
            let span = op.span(bytes - posting.offset, self.lives[index].mtu);
            if left < span || self.is_result_missing(*want) {
                break;
            }
            left -= span;
            possible += 1;
        }
        let count = if last { possible } else { self.lives[index].acknowledged.min(possible) };
        assert!(!last || possible == postings.len(), "the last incarnation has no fault and executes everything");
        self.incarnations[index].completed = count;
        if let Some((newest, _)) = self.incarnations[index].postings[..count].last().copied() {
            for want in 0..=newest {
                self.truth[want].complete = true;
            }
            self.retire_head();
        }
    }

    /// The data path gives the ledger what is out; the peer reports; the ledger decides. `None`: everything is surfaced.
    fn fault(&mut self, index: usize) -> Option<Plan> {
        self.fill_ledger(index);
        let reports: Vec<_> = (0..=index).map(|epoch| self.report(epoch)).collect();
        let honest = self.incarnations.iter().all(|incarnation| !matches!(incarnation.life.kind, Kind::Unfenced(_)));
        if let Err(disagreement) = self.ledger.apply(&reports) {
            assert!(!honest, "true reports, and a disagreement: {disagreement}");
            self.outcome.disagreed = true;
            return None;
        }
        let plan = self.ledger.decide();
        self.check_plan(&plan);
        Some(plan)
    }

    fn fill_ledger(&mut self, index: usize) {
        let incarnation = &self.incarnations[index];
        let completed = &incarnation.postings[..incarnation.completed];
        let facts = IncarnationFacts {
            epoch: Epoch(index as u32),
            path: PathId((index % 2) as u8),
            mtu: incarnation.life.mtu,
            completed_psn: self.end_of(index, incarnation.completed),
            posted_psn: self.end_of(index, incarnation.postings.len()),
            completed_receives: completed.iter().filter(|(want, _)| self.wants[*want].op.consumes_receive()).count()
                as u64,
        };
        self.ledger.incarnation(facts).unwrap();
        for (want, posting) in incarnation.postings.clone() {
            if !self.truth[want].complete {
                self.ledger.admit(self.entry(want), Some(posting)).unwrap();
            }
        }
        // The application goes on posting; that is held.
        if let (true, None) = (self.next < self.wants.len(), self.stop) {
            self.ledger.admit(self.entry(self.next), None).unwrap();
            self.next += 1;
        }
    }

    fn report(&mut self, epoch: usize) -> IncarnationReport {
        let incarnation = &mut self.incarnations[epoch];
        let kind = if incarnation.reported { incarnation.life.later_kind } else { incarnation.life.kind };
        let again = std::mem::replace(&mut incarnation.reported, true);
        let end = Psn64(incarnation.life.first_psn) + incarnation.packets;
        let missing = if let (Kind::Unfenced(missing), false) = (kind, again) { missing } else { 0 };
        IncarnationReport {
            epoch: Epoch(epoch as u32),
            path: PathId((epoch % 2) as u8),
            proof: match kind {
                Kind::Psn | Kind::Unfenced(_) => Proof::Psn(end.wire()),
                Kind::Count => Proof::Count,
                Kind::None => Proof::None,
            },
            receives: incarnation.receives.saturating_sub(missing),
            fenced: !matches!(kind, Kind::Unfenced(_)),
        }
    }

    fn check_plan(&mut self, plan: &Plan) {
        let seqs: Vec<_> = plan.steps.iter().map(|step| step.seq).collect();
        assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]), "out of order");
        if let Some(before) = self.stop {
            assert!(plan.stop.is_some_and(|stop| stop.seq <= before), "a stop went away or moved back");
        }
        if let Some(stop) = plan.stop {
            assert!(seqs.iter().all(|seq| *seq < stop.seq), "a step behind the stop");
            self.stop = Some(stop.seq);
            self.outcome.stopped = Some(stop.why);
            let exact = self.incarnations.iter().all(|incarnation| incarnation.life.kind == Kind::Psn);
            let needed = matches!(
                stop.why,
                StopReason::Table(
                    Reason::AtomicResultLost | Reason::ReadFenced | Reason::WriteImmBegun | Reason::ReadBegun
                )
            );
            assert!(!exact || needed, "an error although every proof was exact: {stop:?}");
        }
    }

    /// At the end everything before the stop is complete and was done as often as it must.
    fn judge(&self) {
        let until = self.stop.map_or(self.wants.len(), |stop| (stop.0 - 100) as usize);
        for want in 0..until {
            let (truth, Want { op, .. }) = (&self.truth[want], self.wants[want]);
            assert!(truth.complete, "{op:?} {want} never completed");
            assert!(truth.executions > 0, "{op:?} {want} lost");
            assert!(
                op == Op::Read
                    || truth.chunks.iter().all(|count| *count > 0)
                    || !matches!(op, Op::Write | Op::WriteImm),
                "bytes of {want} lost"
            );
            assert!(truth.landed || !matches!(op, Op::Read | Op::FetchAdd | Op::CompareSwap), "result of {want} lost");
        }
    }
}
