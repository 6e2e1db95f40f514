//! The decision table row by row, and what operators write.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;

use shift_proto::id::{Epoch, PathId, Psn};
use shift_proto::ledger::{IncarnationReport, Op, Proof, State};
use shift_proto::policy::{could_end_in_error, decide, Facts, OnUnknown, Policy, ProofCap, Reason, Verdict, MAX_ITEMS};

const STATES: [State; 4] = [State::Executed, State::Partial, State::NotExecuted, State::Unknown];
const SENDS: [Op; 2] = [Op::Send, Op::SendImm];
const ATOMICS: [Op; 2] = [Op::FetchAdd, Op::CompareSwap];

/// An entry in that state, as it mostly is: what was not executed has not begun.
fn facts(state: State, unknown: OnUnknown) -> Facts {
    Facts {
        state,
        landed: false,
        unknown,
        possibly_begun: state != State::NotExecuted,
        later_fenced_possibly_begun: false,
    }
}

fn row(op: Op, unknown: OnUnknown) -> [Verdict; 4] {
    STATES.map(|state| decide(op, facts(state, unknown)))
}

use OnUnknown::{Error, Replay};

#[test]
fn a_send_is_completed_replayed_or_an_error_whatever_the_policy_says() {
    for op in SENDS {
        for policy in [Replay, Error] {
            let expected = [Verdict::Complete, Verdict::Replay, Verdict::Replay, Verdict::Error(Reason::SendUnknown)];
            assert_eq!(row(op, policy), expected, "{op:?} {policy:?}");
        }
    }
}

#[test]
fn a_write_with_immediate_is_replayed_whole() {
    let unknown = Verdict::Error(Reason::WriteImmUnknown);
    assert_eq!(row(Op::WriteImm, Replay), [Verdict::Complete, Verdict::Replay, Verdict::Replay, unknown]);
}

#[test]
fn a_write_with_immediate_under_error_is_not_replayed_once_it_may_have_begun() {
    let begun = Verdict::Error(Reason::WriteImmBegun);
    let unknown = Verdict::Error(Reason::WriteImmUnknown);
    assert_eq!(row(Op::WriteImm, Error), [Verdict::Complete, begun, Verdict::Replay, unknown]);
    let not_complete = Facts { possibly_begun: true, ..facts(State::NotExecuted, Error) };
    assert_eq!(decide(Op::WriteImm, not_complete), begun);
    assert_eq!(decide(Op::WriteImm, Facts { unknown: Replay, ..not_complete }), Verdict::Replay);
}

#[test]
fn a_write_is_replayed_from_its_proven_offset_and_the_policy_decides_what_is_unknown() {
    let again = Verdict::ReplayFromProven;
    assert_eq!(row(Op::Write, Replay), [Verdict::Complete, again, again, again]);
    assert_eq!(row(Op::Write, Error), [Verdict::Complete, again, again, Verdict::Error(Reason::WriteUnknown)]);
}

#[test]
fn a_read_is_decided_by_its_result_and_by_what_is_fenced_behind_it_not_by_its_execution() {
    for state in STATES {
        let open = facts(state, Replay);
        assert_eq!(decide(Op::Read, open), Verdict::Replay, "{state:?}");
        let fenced = Facts { later_fenced_possibly_begun: true, ..open };
        assert_eq!(decide(Op::Read, fenced), Verdict::Error(Reason::ReadFenced), "{state:?}");
        assert_eq!(decide(Op::Read, Facts { landed: true, ..fenced }), Verdict::Complete, "{state:?}");
    }
}

#[test]
fn a_read_under_error_runs_again_only_if_it_has_not_begun() {
    let begun = Verdict::Error(Reason::ReadBegun);
    assert_eq!(row(Op::Read, Error), [begun, begun, Verdict::Replay, begun]);
    assert_eq!(decide(Op::Read, Facts { landed: true, ..facts(State::Unknown, Error) }), Verdict::Complete);
}

#[test]
fn an_atomic_is_completed_by_its_result_and_posted_again_only_if_proven_unexecuted() {
    for op in ATOMICS {
        for policy in [Replay, Error] {
            let (lost, unknown) = (Verdict::Error(Reason::AtomicResultLost), Verdict::Error(Reason::AtomicUnknown));
            assert_eq!(row(op, policy), [lost, unknown, Verdict::Replay, unknown], "{op:?} {policy:?}");
            for state in STATES {
                let landed = Facts { landed: true, ..facts(state, policy) };
                assert_eq!(decide(op, landed), Verdict::Complete, "{op:?} {state:?}");
            }
        }
    }
}

#[test]
fn no_unknown_request_but_a_write_or_read_is_ever_posted_again() {
    for op in Op::ALL {
        for bits in 0..16_u8 {
            let bit = |bit: u8| bits & (1 << bit) != 0;
            let unknown = if bit(0) { Replay } else { Error };
            let facts = Facts {
                state: State::Unknown,
                landed: bit(1),
                unknown,
                possibly_begun: bit(2),
                later_fenced_possibly_begun: bit(3),
            };
            let posted = matches!(decide(op, facts), Verdict::Replay | Verdict::ReplayFromProven);
            assert!(!posted || matches!(op, Op::Write | Op::Read), "{op:?} {facts:?}");
        }
    }
}

#[test]
fn only_atomics_and_what_is_under_error_make_an_end_wait() {
    for op in Op::ALL {
        assert_eq!(could_end_in_error(op, Replay), ATOMICS.contains(&op), "{op:?}");
        assert_eq!(could_end_in_error(op, Error), !SENDS.contains(&op), "{op:?}");
    }
}

#[test]
fn without_a_policy_everything_that_may_is_replayed() {
    for text in ["", "  "] {
        let policy = Policy::parse(text).unwrap();
        assert_eq!(policy, Policy::default());
        assert!(Op::ALL.iter().all(|op| policy.at_post(*op, 1 << 30) == Replay));
    }
}

#[test]
fn the_first_item_that_matches_decides() {
    let policy = Policy::parse(" write<=4096=error , write=replay,read=error,write=error").unwrap();
    for op in [Op::Write, Op::WriteImm] {
        assert_eq!(policy.at_post(op, 0), Error);
        assert_eq!(policy.at_post(op, 4096), Error);
        assert_eq!(policy.at_post(op, 4097), Replay);
    }
    assert_eq!(policy.at_post(Op::Read, 1), Error);
    assert_eq!(policy.at_post(Op::Send, 1), Replay);
    assert_eq!(policy.at_post(Op::FetchAdd, 8), Replay);
}

#[test]
fn what_no_policy_may_decide_is_refused_by_name_with_the_reason() {
    let message = |text: &str| Policy::parse(text).unwrap_err().to_string();
    assert!(message("send=replay").contains("exactly once"));
    assert!(message("write_imm=error").contains("follows the write item"));
    assert!(message("atomic=replay").contains("linearizability"));
    assert!(message("write=replay,atomic=error").contains("remove it"));
}

#[test]
fn a_policy_that_cannot_be_read_says_what_to_change() {
    let message = |text: &str| Policy::parse(text).unwrap_err().to_string();
    assert!(message("write").contains("write=replay"));
    assert!(message("write=maybe").contains("use replay or error"));
    assert!(message("write<=big=error").contains("give bytes"));
    assert!(message("write<=99999999999=error").contains("give bytes"));
    assert!(message("write<=4096").contains("is no"));
    assert!(message("read<=1=error").contains("no size limit"));
    assert!(message("fence=error").contains("use write"));
    assert!(message("write=error,").contains("no policy item"));
    let many = vec!["read=error"; MAX_ITEMS + 1].join(",");
    assert!(message(&many).contains("merge"));
    assert!(Policy::parse(&vec!["read=error"; MAX_ITEMS].join(",")).is_ok());
}

#[test]
fn the_cap_on_proofs_has_three_words() {
    assert_eq!(ProofCap::parse(" "), Ok(ProofCap::Psn));
    assert_eq!(ProofCap::parse("psn"), Ok(ProofCap::Psn));
    assert_eq!(ProofCap::parse("count"), Ok(ProofCap::Count));
    assert_eq!(ProofCap::parse("sender"), Ok(ProofCap::Sender));
    assert!(ProofCap::parse("none").unwrap_err().to_string().contains("psn, count or sender"));
}

#[test]
fn a_capped_report_claims_no_more_than_the_cap() {
    let report = |proof| IncarnationReport { epoch: Epoch(1), path: PathId(2), proof, receives: 3, fenced: true };
    let (psn, count, none) = (report(Proof::Psn(Psn::new(5))), report(Proof::Count), report(Proof::None));
    for (cap, limited) in [
        (ProofCap::Psn, [psn, count, none]),
        (ProofCap::Count, [count, count, none]),
        // Successes drained count at every level.
        (ProofCap::Sender, [none; 3]),
    ] {
        assert_eq!([psn, count, none].map(|exact| cap.limit(exact)), limited, "{cap:?}");
    }
}

#[test]
fn each_reason_names_the_operation_that_it_is_about() {
    let reasons = [
        (Reason::SendUnknown, "SEND"),
        (Reason::WriteImmUnknown, "WRITE_WITH_IMM"),
        (Reason::WriteImmBegun, "WRITE_WITH_IMM"),
        (Reason::WriteUnknown, "WRITE"),
        (Reason::WriteBeforeStop, "WRITE"),
        (Reason::ReadFenced, "READ"),
        (Reason::ReadBegun, "READ"),
        (Reason::AtomicResultLost, "atomic"),
        (Reason::AtomicUnknown, "atomic"),
    ];
    let told: BTreeSet<_> = reasons.iter().map(|(reason, _)| reason.to_string()).collect();
    assert_eq!(told.len(), reasons.len(), "two reasons are told alike");
    for (reason, operation) in reasons {
        assert!(reason.to_string().contains(operation), "{reason}");
    }
}
