//! A ledger that is filled as a send queue is, for rules that are told one by one.

use shift_proto::id::{Epoch, Mtu, PathId, Psn64, WrSeq};
use shift_proto::ledger::{
    Action, Entry, IncarnationFacts, IncarnationReport, Ledger, Op, Plan, Posting, Proof, Stop, StopReason,
};
use shift_proto::policy::{OnUnknown, Reason};

pub const MTU: u32 = 1024;

/// A ledger that is filled as a queue is: each post takes the next PSNs of its incarnation.
pub struct Queue {
    pub ledger: Ledger,
    pub facts: Vec<IncarnationFacts>,
    pub receives: Vec<u64>,
    pub entries: Vec<Entry>,
}

impl Queue {
    pub fn new() -> Self {
        Self::starting_at(Psn64(1000))
    }

    pub fn starting_at(psn: Psn64) -> Self {
        let mut queue = Self { ledger: Ledger::new(), facts: Vec::new(), receives: Vec::new(), entries: Vec::new() };
        queue.connect(MTU, psn);
        queue
    }

    pub fn connect(&mut self, mtu: u32, psn: Psn64) {
        let epoch = Epoch(self.facts.len() as u32);
        let mtu = Mtu::new(mtu).unwrap();
        self.facts.push(IncarnationFacts {
            epoch,
            path: PathId(0),
            mtu,
            completed_psn: psn,
            posted_psn: psn,
            completed_receives: 0,
        });
        self.receives.push(0);
        self.update();
    }

    pub fn update(&mut self) {
        self.ledger.incarnation(*self.facts.last().unwrap()).unwrap();
    }

    pub fn hold(&mut self, op: Op, bytes: u32, fenced: bool, unknown: OnUnknown) -> WrSeq {
        let seq = WrSeq(self.entries.len() as u64);
        let entry = Entry { seq, op, bytes, fenced, unknown };
        self.entries.push(entry);
        self.ledger.admit(entry, None).unwrap();
        seq
    }

    pub fn give_to_nic(&mut self, seq: WrSeq, offset: u32) {
        let entry = self.entries[seq.0 as usize];
        let facts = self.facts.last_mut().unwrap();
        let receives = self.receives.last_mut().unwrap();
        let posting = Posting { epoch: facts.epoch, first_psn: facts.posted_psn, offset, receive_ordinal: *receives };
        facts.posted_psn = facts.posted_psn + entry.op.span(entry.bytes - offset, facts.mtu);
        *receives += u64::from(entry.op.consumes_receive());
        self.ledger.posted(seq, posting).unwrap();
        self.update();
    }

    pub fn post(&mut self, op: Op, packets: u32) -> WrSeq {
        self.post_as(op, packets * MTU, false, OnUnknown::Replay)
    }

    pub fn post_as(&mut self, op: Op, bytes: u32, fenced: bool, unknown: OnUnknown) -> WrSeq {
        let seq = self.hold(op, bytes, fenced, unknown);
        self.give_to_nic(seq, 0);
        seq
    }

    pub fn replay(&mut self, plan: &Plan) {
        for step in &plan.steps {
            if let Action::Replay { offset } = step.action {
                self.give_to_nic(step.seq, offset);
            }
        }
    }

    pub fn epoch(&self) -> u32 {
        self.facts.len() as u32 - 1
    }

    pub fn first(&self) -> Psn64 {
        self.facts[0].completed_psn
    }
}

pub fn report(epoch: u32, proof: Proof, receives: u64) -> IncarnationReport {
    IncarnationReport { epoch: Epoch(epoch), path: PathId(0), proof, receives, fenced: true }
}

pub fn psn(queue: &Queue, epoch: u32, packets: u64, receives: u64) -> IncarnationReport {
    report(epoch, Proof::Psn((queue.facts[epoch as usize].completed_psn + packets).wire()), receives)
}

pub fn actions(plan: &Plan) -> Vec<Action> {
    plan.steps.iter().map(|step| step.action).collect()
}

pub fn stop_of(plan: &Plan) -> (WrSeq, Reason) {
    match plan.stop {
        Some(Stop { seq, why: StopReason::Table(reason) }) => (seq, reason),
        other => panic!("no stop by the table: {other:?}"),
    }
}

pub const WHOLE: Action = Action::Replay { offset: 0 };
