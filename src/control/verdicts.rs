//! What a migration held proven of each request, in a form that a tool can lay beside a trace of the wire.
//!
//! Part of a migration's record. Plain copies of what the ledger and the reports said when the plan was made; nothing is decided here.

use serde::Serialize;
use shift_proto::id::PathId;
use shift_proto::ledger::{Action, EntryView, IncarnationReport, Op, Plan, Proof, State};

/// Requests that one record lists; more are counted. As many as a lab's queues hold, and no burden for the agent with the deepest ones.
pub const LISTED: usize = 256;

/// What the other end said of one incarnation that it received on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reported {
    /// The incarnation.
    pub epoch: u32,
    /// Its path.
    pub path: u8,
    /// The QP number of this end there: what the other end's packets are addressed to.
    pub own_qpn: u32,
    /// The QP number of the other end there: what this end's packets are addressed to.
    pub peer_qpn: u32,
    /// `psn`, `count` or `none`.
    pub proof: &'static str,
    /// The PSN that it expected next, of a proof by PSN.
    pub rq_psn: Option<u32>,
    /// Receives that it drained.
    pub receives: u64,
    /// Its fence completed.
    pub fenced: bool,
}

impl Reported {
    /// A report, and the QP numbers of this end and of the one that it is of.
    pub fn new(report: &IncarnationReport, (own_qpn, peer_qpn): (u32, u32)) -> Self {
        let (proof, rq_psn) = match report.proof {
            Proof::Psn(psn) => ("psn", Some(psn.value())),
            Proof::Count => ("count", None),
            Proof::None => ("none", None),
        };
        let PathId(path) = report.path;
        let (epoch, receives, fenced) = (report.epoch.0, report.receives, report.fenced);
        Self { epoch, path, own_qpn, peer_qpn, proof, rq_psn, receives, fenced }
    }
}

/// What was held proven of one request, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// Its place in the queue.
    pub seq: u64,
    /// What it does.
    pub op: &'static str,
    /// Its length.
    pub bytes: u32,
    /// It waits for earlier READs and atomics.
    pub fenced: bool,
    /// The incarnation that it was last posted on, and its first PSN there; none if it was never given to a NIC.
    pub posted: Option<(u32, u32)>,
    /// The byte from which it was posted there.
    pub posted_from: u32,
    /// `executed`, `partial`, `not_executed` or `unknown`.
    pub state: &'static str,
    /// Of a READ or atomic: its result is in memory.
    pub landed: bool,
    /// Of a WRITE: the byte up to which it is proven.
    pub proven_offset: u32,
    /// `complete`, `replay` or `error`.
    pub action: &'static str,
    /// From which byte on it is posted again.
    pub offset: u32,
}

/// The entries of a ledger with the plan made of them, and how many there are beyond [`LISTED`].
pub fn list<'a>(entries: impl Iterator<Item = EntryView> + 'a, plan: &'a Plan) -> (Vec<Judged>, u64) {
    let mut steps = plan.steps.iter().peekable();
    let mut all = entries.map(|view| {
        let action = steps.next_if(|step| step.seq == view.entry.seq).map(|step| step.action);
        judged(&view, action)
    });
    let listed = all.by_ref().take(LISTED).collect();
    (listed, all.count() as u64)
}

fn judged(view: &EntryView, action: Option<Action>) -> Judged {
    let (action, offset) = match action {
        Some(Action::Complete) => ("complete", 0),
        Some(Action::Replay { offset }) => ("replay", offset),
        None => ("error", 0),
    };
    Judged {
        seq: view.entry.seq.0,
        op: op_name(view.entry.op),
        bytes: view.entry.bytes,
        fenced: view.entry.fenced,
        posted: view.newest.map(|posting| (posting.epoch.0, posting.first_psn.wire().value())),
        posted_from: view.newest.map_or(0, |posting| posting.offset),
        state: match view.evidence.state {
            State::Executed => "executed",
            State::Partial => "partial",
            State::NotExecuted => "not_executed",
            State::Unknown => "unknown",
        },
        landed: view.landed,
        proven_offset: view.proven_offset,
        action,
        offset,
    }
}

const fn op_name(op: Op) -> &'static str {
    match op {
        Op::Write => "write",
        Op::WriteImm => "write_imm",
        Op::Send => "send",
        Op::SendImm => "send_imm",
        Op::Read => "read",
        Op::FetchAdd => "fetch_add",
        Op::CompareSwap => "compare_swap",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shift_proto::id::{Epoch, Mtu, Psn, Psn64, WrSeq};
    use shift_proto::ledger::{Entry, IncarnationFacts, Ledger, Posting};
    use shift_proto::policy::OnUnknown;

    #[test]
    fn each_request_is_listed_with_what_the_reports_proved() {
        let (epoch, path, mtu) = (Epoch(0), PathId::PRIMARY, Mtu::MIN);
        let mut ledger = Ledger::new();
        let (completed_psn, posted_psn) = (Psn64(100), Psn64(100 + LISTED as u64 + 5));
        let facts = IncarnationFacts { epoch, path, mtu, completed_psn, posted_psn, completed_receives: 0 };
        assert_eq!(ledger.incarnation(facts), Ok(()));
        for seq in 0..LISTED as u64 + 5 {
            let seq_no = WrSeq(seq);
            let op = if seq == 2 { Op::FetchAdd } else { Op::Write };
            let entry = Entry { seq: seq_no, op, bytes: 8, fenced: false, unknown: OnUnknown::Replay };
            let posting = Posting { epoch, first_psn: Psn64(100 + seq), offset: 0, receive_ordinal: 0 };
            assert_eq!(ledger.admit(entry, Some(posting)), Ok(()));
        }
        let report = IncarnationReport { epoch, path, proof: Proof::Psn(Psn::new(103)), receives: 0, fenced: true };
        assert_eq!(ledger.apply(&[report]), Ok(()));
        let (listed, more) = list(ledger.entries(), &ledger.decide());
        let brief: Vec<_> = listed.iter().take(4).map(|each| (each.posted, each.state, each.action)).collect();
        assert_eq!(
            brief,
            [
                (Some((0, 100)), "executed", "complete"),
                (Some((0, 101)), "executed", "complete"),
                (Some((0, 102)), "executed", "error"),
                (Some((0, 103)), "not_executed", "error"),
            ]
        );
        assert_eq!((listed.len(), more), (LISTED, 5));
        let said = Reported::new(&report, (5, 17));
        assert_eq!((said.proof, said.rq_psn, said.own_qpn, said.peer_qpn), ("psn", Some(103), 5, 17));
    }
}
