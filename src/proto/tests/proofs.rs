//! The tables that tests/proofs proves safe are those that this crate compiles: each answer is asked of the code, written
//! as Coq, and compared with the committed file byte for byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fmt::Write as _;

use shift_proto::id::{Epoch, Mtu, PathId, Psn64, WrSeq};
use shift_proto::ledger::{
    Action, Entry, IncarnationFacts, IncarnationReport, Ledger, Op, Plan, Posting, Proof, State, StopReason,
};
use shift_proto::policy::{decide, Facts, OnUnknown, Reason, Verdict};

const STATES: [State; 4] = [State::Executed, State::Partial, State::NotExecuted, State::Unknown];
const POLICIES: [OnUnknown; 2] = [OnUnknown::Replay, OnUnknown::Error];

/// Compares with the committed file, and leaves what it should be where cargo keeps what tests write.
fn compare(name: &str, committed: &str, now: &str) {
    if committed != now {
        let path = format!("{}/{name}", env!("CARGO_TARGET_TMPDIR"));
        std::fs::write(&path, now).unwrap();
        panic!("tests/proofs/{name} is not what the code answers. Copy {path} there, then see with ci/proofs whether what changed is still safe");
    }
}

#[test]
fn the_decision_table_that_is_proven_safe_is_the_one_that_is_compiled() {
    let mut table = String::from(
        "(** The decision table, as [policy::decide] of src/proto/policy.rs answers: opcode, state, landed, policy, possibly begun, a
    later fenced request possibly begun. Written by src/proto/tests/proofs.rs, which fails if it is another. *)

From Shift Require Import Terms.

Definition decide (o : opcode) (s : state) (landed : bool) (p : on_unknown) (begun behind : bool) : verdict :=
  match o, s, landed, p, begun, behind with
",
    );
    for op in Op::ALL {
        for state in STATES {
            for bits in 0..16_u8 {
                let bit = |bit: u8| bits & (8 >> bit) != 0;
                let facts = Facts {
                    state,
                    landed: bit(0),
                    unknown: POLICIES[usize::from(bit(1))],
                    possibly_begun: bit(2),
                    later_fenced_possibly_begun: bit(3),
                };
                let Facts { landed, unknown, possibly_begun, later_fenced_possibly_begun, .. } = facts;
                let answer = match decide(op, facts) {
                    Verdict::Error(reason) => format!("Error {reason:?}"),
                    verdict @ (Verdict::Complete | Verdict::Replay | Verdict::ReplayFromProven) => {
                        format!("{verdict:?}")
                    }
                };
                writeln!(
                    table,
                    "  | {op:?}, {state:?}, {landed}, Policy{unknown:?}, {possibly_begun}, {later_fenced_possibly_begun} => {answer}"
                )
                .unwrap();
            }
        }
    }
    table.push_str("  end.\n");
    compare("Table.v", include_str!("../../../tests/proofs/Table.v"), &table);
}

/// What one incarnation's report can prove of a posting of three packets.
#[derive(Clone, Copy, Debug)]
enum Finding {
    Executed,
    Partial,
    Untouched,
    Behind,
    Incomplete,
    Nothing,
}

const FINDINGS: [Finding; 6] =
    [Finding::Executed, Finding::Partial, Finding::Untouched, Finding::Behind, Finding::Incomplete, Finding::Nothing];
const SPAN: u64 = 3;
const FIRST: Psn64 = Psn64(1000);

impl Finding {
    fn report(self, op: Op, epoch: Epoch) -> IncarnationReport {
        let psn = |packets| Proof::Psn((FIRST + packets).wire());
        let (proof, receives) = match self {
            Self::Executed => (psn(SPAN), u64::from(op.consumes_receive())),
            Self::Partial => (psn(1), 0),
            Self::Untouched => (psn(0), 0),
            Self::Behind | Self::Incomplete => (Proof::Count, 0),
            Self::Nothing => (Proof::None, 0),
        };
        IncarnationReport { epoch, path: PathId(0), proof, receives, fenced: true }
    }

    /// Receive-consuming requests before it: what lies behind the first that did not complete is not that one.
    const fn ordinal(self) -> u64 {
        match self {
            Self::Behind => 1,
            Self::Executed | Self::Partial | Self::Untouched | Self::Incomplete | Self::Nothing => 0,
        }
    }

    const fn in_coq(self) -> &'static str {
        match self {
            Self::Executed => "FoundExecuted",
            Self::Partial => "FoundPartial 1",
            Self::Untouched => "FoundUntouched",
            Self::Behind => "FoundBehind",
            Self::Incomplete => "FoundIncomplete",
            Self::Nothing => "FoundNothing",
        }
    }
}

/// A request and what is found of each of its postings.
#[derive(Clone, Debug)]
struct Asked {
    op: Op,
    fenced: bool,
    findings: Vec<Finding>,
}

/// A ledger of these requests, each posting on an incarnation of its own, with the reports in it.
fn ledger_of(queue: &[Asked]) -> Ledger {
    let mtu = Mtu::new(1024).unwrap();
    let mut ledger = Ledger::new();
    let mut reports = Vec::new();
    for (seq, asked) in (0..).map(WrSeq).zip(queue) {
        let &Asked { op, fenced, .. } = asked;
        let entry = Entry { seq, op, bytes: 3 * mtu.bytes(), fenced, unknown: OnUnknown::Replay };
        ledger.admit(entry, None).unwrap();
        for finding in &asked.findings {
            let epoch = Epoch(u32::try_from(reports.len()).unwrap());
            let facts = IncarnationFacts {
                epoch,
                path: PathId(0),
                mtu,
                completed_psn: FIRST,
                posted_psn: FIRST + SPAN,
                completed_receives: 0,
            };
            ledger.incarnation(facts).unwrap();
            let posting = Posting { epoch, first_psn: FIRST, offset: 0, receive_ordinal: finding.ordinal() };
            ledger.posted(seq, posting).unwrap();
            reports.push(finding.report(op, epoch));
        }
    }
    ledger.apply(&reports).unwrap();
    ledger
}

/// The state of a fenced request, and what it makes of a READ before it that no NIC was given.
fn ask(op: Op, findings: &[Finding]) -> (State, &'static str) {
    let read = Asked { op: Op::Read, fenced: false, findings: vec![] };
    let ledger = ledger_of(&[read, Asked { op, fenced: true, findings: findings.to_vec() }]);
    let state = ledger.entries().last().unwrap().evidence.state;
    (state, fate_of_the_read(&ledger.decide()))
}

fn fate_of_the_read(plan: &Plan) -> &'static str {
    match (plan.steps.first().map(|step| step.action), plan.stop) {
        (Some(Action::Complete), _) => "Complete",
        (Some(Action::Replay { .. }), _) => "Replay",
        (None, Some(stop)) => {
            assert_eq!((stop.seq, stop.why), (WrSeq(0), StopReason::Table(Reason::ReadFenced)));
            "Error ReadFenced"
        }
        (None, None) => panic!("the READ has no fate: {plan:?}"),
    }
}

#[test]
fn what_incarnations_prove_together_is_proven_as_it_is_compiled() {
    let mut lists: Vec<Vec<Finding>> = vec![vec![]];
    for length in 0..3 {
        let shorter: Vec<_> = lists.iter().filter(|list| list.len() == length).cloned().collect();
        lists.extend(shorter.iter().flat_map(|list| FINDINGS.map(|finding| [list.as_slice(), &[finding]].concat())));
    }
    let mut table = String::from(
        "(** What up to three incarnations prove together, as the ledger of src/proto/ledger/evidence.rs answers: the findings, the
    state, and what becomes of a READ before it, if it is a fenced SEND and if it is a fenced WRITE_WITH_IMM. Written by
    src/proto/tests/proofs.rs, which fails if it is another. *)

From Coq Require Import List.
Import ListNotations.
From Shift Require Import Terms.

Definition states : list (list finding * state * verdict * verdict) := [
",
    );
    for (index, findings) in lists.iter().enumerate() {
        let (state, before_send) = ask(Op::Send, findings);
        let (same, before_write) = ask(Op::WriteImm, findings);
        assert_eq!(state, same, "{findings:?}");
        let words = findings.iter().map(|finding| finding.in_coq()).collect::<Vec<_>>().join("; ");
        let end = if index + 1 == lists.len() { "" } else { ";" };
        writeln!(table, "  ([{words}], {state:?}, {before_send}, {before_write}){end}").unwrap();
    }
    table.push_str("].\n");
    compare("States.v", include_str!("../../../tests/proofs/States.v"), &table);
}

/// The requests of which queues are made, by their numbers in Compiled.v: what differs for the walk is there at least once.
fn kinds() -> [Asked; 10] {
    let asked = |op, fenced, findings: &[Finding]| Asked { op, fenced, findings: findings.to_vec() };
    [
        asked(Op::Send, false, &[Finding::Executed]),
        asked(Op::Send, false, &[Finding::Untouched]),
        asked(Op::Send, false, &[Finding::Nothing]),
        asked(Op::Write, false, &[Finding::Partial]),
        asked(Op::Write, false, &[Finding::Nothing]),
        asked(Op::Read, false, &[Finding::Nothing]),
        asked(Op::Read, true, &[Finding::Nothing]),
        asked(Op::FetchAdd, false, &[Finding::Executed]),
        asked(Op::WriteImm, true, &[Finding::Partial]),
        asked(Op::Write, true, &[Finding::Nothing]),
    ]
}

/// Each step before the stop as the packet from which it is posted again, `None` if it is complete; then the stop.
fn plan_in_coq(plan: &Plan) -> String {
    let packets = |offset: u32| offset / 1024;
    let steps = plan.steps.iter().map(|step| match step.action {
        Action::Complete => String::from("None"),
        Action::Replay { offset } => format!("Some {}", packets(offset)),
    });
    let stop = plan.stop.map_or_else(|| String::from("None"), |stop| format!("Some {}", stop.seq.0));
    format!("[{}], {stop}", steps.collect::<Vec<_>>().join("; "))
}

#[test]
fn the_walk_that_is_proven_is_the_one_that_is_compiled() {
    let kinds = kinds();
    let mut rows = Vec::new();
    for number in 0..1000_usize {
        let queue = [number / 100, number / 10 % 10, number % 10];
        let plan = ledger_of(&queue.map(|kind| kinds[kind].clone())).decide();
        let [first, second, third] = queue;
        rows.push(format!("([{first}; {second}; {third}], {})", plan_in_coq(&plan)));
    }
    let mut table = String::from(
        "(** The plans for all queues of three requests of the ten kinds in Compiled.v, as the ledger of src/proto/ledger answers: of each
    request before the stop the packet from which it is posted again, [None] if it is complete; and the stop. Written by
    src/proto/tests/proofs.rs, which fails if it is another. *)

From Coq Require Import List.
Import ListNotations.

Definition plans : list (list nat * list (option nat) * option nat) := [
",
    );
    let lines: Vec<String> = rows.chunks(2).map(|pair| format!("  {}", pair.join("; "))).collect();
    table.push_str(&lines.join(";\n"));
    table.push_str("\n].\n");
    compare("Plans.v", include_str!("../../../tests/proofs/Plans.v"), &table);
}
