//! The rules of the ledger, one by one.

use shift_proto::id::{Epoch, Mtu, PathId, Psn, Psn64, WrSeq};
use shift_proto::ledger::{
    Action, Basis, Disagreement, Entry, IncarnationFacts, IncarnationReport, Ledger, LedgerError, Op, Posting, Proof,
    State, Stop, StopReason, MAX_ENTRIES, MAX_INCARNATIONS,
};
use shift_proto::policy::{OnUnknown, Reason};

use crate::queue::{actions, psn, report, stop_of, Queue, MTU, WHOLE};

#[test]
fn a_span_is_its_packets_and_never_less_than_one() {
    let mtu = Mtu::new(MTU).unwrap();
    let spans = |op: Op| [0, 1, 1024, 1025, 3072].map(|bytes| op.span(bytes, mtu));
    for op in [Op::Write, Op::WriteImm, Op::Send, Op::SendImm, Op::Read] {
        assert_eq!(spans(op), [1, 1, 1, 2, 3], "{op:?}");
    }
    assert_eq!(spans(Op::FetchAdd), [1; 5]);
    assert_eq!(spans(Op::CompareSwap), [1; 5]);
}

#[test]
fn an_exact_psn_splits_the_queue_into_executed_partial_and_untouched() {
    let mut queue = Queue::new();
    for op in [Op::Write, Op::Send, Op::Write, Op::Send] {
        queue.post(op, 3);
    }
    queue.ledger.apply(&[psn(&queue, 0, 3 + 3 + 2, 1)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [Action::Complete, Action::Complete, Action::Replay { offset: 2 * MTU }, WHOLE]);
    assert_eq!(plan.stop, None);
    let states: Vec<_> = plan.steps.iter().map(|step| step.evidence.state).collect();
    assert_eq!(states, [State::Executed, State::Executed, State::Partial, State::NotExecuted]);
    assert!(plan.steps.iter().all(|step| step.evidence.basis == Basis::Psn(Epoch(0))));
}

#[test]
fn a_psn_that_wrapped_on_the_wire_is_still_exact() {
    let mut queue = Queue::starting_at(Psn64(Psn::COUNT - 2));
    for _ in 0..4 {
        queue.post(Op::Send, 1);
    }
    let wire = psn(&queue, 0, 3, 3);
    assert_eq!(wire.proof, Proof::Psn(Psn::new(1)));
    queue.ledger.apply(&[wire]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete, Action::Complete, Action::Complete, WHOLE]);
}

#[test]
fn a_psn_outside_what_was_posted_is_void_and_the_receive_count_decides() {
    for outside in [-1_i64, 3] {
        let mut queue = Queue::new();
        queue.post(Op::Send, 1);
        queue.post(Op::Send, 1);
        let wire = Psn64(queue.first().0.saturating_add_signed(outside)).wire();
        queue.ledger.apply(&[report(0, Proof::Psn(wire), 1)]).unwrap();
        let plan = queue.ledger.decide();
        assert_eq!(actions(&plan), [Action::Complete, WHOLE], "{outside}");
        assert_eq!(plan.steps[0].evidence.basis, Basis::ReceiveCount(Epoch(0)));
    }
}

#[test]
fn a_window_of_all_psns_voids_the_proof() {
    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.facts[0].posted_psn = queue.facts[0].completed_psn + Psn::COUNT;
    queue.update();
    queue.ledger.apply(&[psn(&queue, 0, 0, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::AtomicUnknown));
}

#[test]
fn a_window_of_one_psn_less_does_not() {
    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.facts[0].posted_psn = queue.facts[0].completed_psn + (Psn::COUNT - 1);
    queue.update();
    queue.ledger.apply(&[psn(&queue, 0, 0, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [WHOLE]);
}

#[test]
fn what_lies_between_two_counted_requests_is_unknown() {
    let mut queue = Queue::new();
    for op in [Op::Write, Op::Send, Op::Write, Op::Send, Op::Write, Op::FetchAdd] {
        queue.post(op, 1);
    }
    queue.ledger.apply(&[report(0, Proof::Count, 1)]).unwrap();
    let states: Vec<_> = queue.ledger.entries().map(|view| view.evidence.state).collect();
    use State::{Executed, NotExecuted, Unknown};
    assert_eq!(states, [Executed, Executed, Unknown, NotExecuted, NotExecuted, NotExecuted]);
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete, Action::Complete, WHOLE, WHOLE, WHOLE, WHOLE]);
}

#[test]
fn behind_the_last_counted_request_everything_is_unknown() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.post(Op::CompareSwap, 1);
    queue.ledger.apply(&[report(0, Proof::Count, 1)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(1), Reason::AtomicUnknown));
}

#[test]
fn unknown_atomics_are_never_posted_again() {
    for op in [Op::FetchAdd, Op::CompareSwap] {
        for (proof, fenced) in [(Proof::None, true), (Proof::Count, true), (Proof::Psn(Psn::new(1000)), false)] {
            let mut queue = Queue::new();
            queue.post(op, 0);
            queue.ledger.apply(&[IncarnationReport { fenced, ..report(0, proof, 0) }]).unwrap();
            assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::AtomicUnknown));
        }
    }
}

#[test]
fn an_executed_atomic_whose_result_is_lost_is_an_error() {
    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.ledger.apply(&[psn(&queue, 0, 1, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::AtomicResultLost));
}

#[test]
fn an_end_that_could_not_fence_proves_execution_and_nothing_else() {
    for proof in [Proof::Psn(Psn::new(1001)), Proof::Count, Proof::None] {
        let mut queue = Queue::new();
        queue.post(Op::Send, 1);
        queue.post(Op::Send, 1);
        queue.ledger.apply(&[IncarnationReport { fenced: false, ..report(0, proof, 1) }]).unwrap();
        let plan = queue.ledger.decide();
        assert_eq!(actions(&plan), [Action::Complete], "{proof:?}");
        assert_eq!(plan.steps[0].evidence.basis, Basis::Successes(Epoch(0)));
        assert_eq!(stop_of(&plan), (WrSeq(1), Reason::SendUnknown), "{proof:?}");
    }
}

#[test]
fn held_entries_are_proven_not_executed() {
    let mut queue = Queue::new();
    queue.hold(Op::FetchAdd, 8, false, OnUnknown::Error);
    queue.hold(Op::Send, 8, true, OnUnknown::Error);
    queue.ledger.apply(&[report(0, Proof::None, 0)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [WHOLE, WHOLE]);
    assert!(plan.steps.iter().all(|step| step.evidence.basis == Basis::NeverPosted));
}

#[test]
fn the_first_error_stops_the_walk_and_nothing_behind_it_is_in_the_plan() {
    let mut queue = Queue::new();
    for op in [Op::Send, Op::FetchAdd, Op::Send] {
        queue.post(op, 1);
    }
    queue.hold(Op::Send, 1, false, OnUnknown::Replay);
    queue.ledger.apply(&[psn(&queue, 0, 2, 1)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [Action::Complete]);
    assert_eq!(stop_of(&plan), (WrSeq(1), Reason::AtomicResultLost));
}

#[test]
fn no_unknown_write_is_replayed_in_front_of_a_stop() {
    let mut queue = Queue::new();
    for op in [Op::Send, Op::Write, Op::Write, Op::FetchAdd] {
        queue.post(op, 1);
    }
    queue.ledger.apply(&[report(0, Proof::Count, 1)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [Action::Complete]);
    assert_eq!(stop_of(&plan), (WrSeq(1), Reason::WriteBeforeStop));
}

#[test]
fn what_is_no_unknown_write_may_stand_in_front_of_a_stop() {
    let mut queue = Queue::new();
    for op in [Op::Write, Op::Read, Op::Send, Op::FetchAdd] {
        queue.post(op, 1);
    }
    queue.ledger.apply(&[psn(&queue, 0, 4, 1)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [Action::Complete, Action::Replay { offset: 0 }, Action::Complete]);
    assert_eq!(stop_of(&plan), (WrSeq(3), Reason::AtomicResultLost));
}

#[test]
fn a_write_that_a_second_path_made_unknown_becomes_the_error() {
    let mut queue = Queue::new();
    queue.post(Op::Write, 1);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0)]).unwrap();
    queue.connect(MTU, Psn64(5000));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    queue.post(Op::FetchAdd, 0);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0), report(1, Proof::Count, 0)]).unwrap();
    // On the second incarnation both are unknown, so now the WRITE is unknown too.
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::WriteBeforeStop));
}

#[test]
fn a_proven_offset_never_goes_back_and_counts_in_its_own_mtu() {
    let mut queue = Queue::new();
    let write = queue.post(Op::Write, 8);
    queue.ledger.apply(&[psn(&queue, 0, 3, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Replay { offset: 3 * MTU }]);

    queue.connect(256, Psn64(77));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    queue.ledger.apply(&[psn(&queue, 0, 3, 0), psn(&queue, 1, 2, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Replay { offset: 3 * MTU + 2 * 256 }]);

    queue.connect(4096, Psn64(9));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    queue.ledger.apply(&[report(2, Proof::None, 0)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [Action::Replay { offset: 3 * MTU + 2 * 256 }], "unknown by now, and still from there");
    assert_eq!(plan.steps[0].evidence.state, State::Unknown);
    assert_eq!(queue.ledger.entries().next().unwrap().entry.seq, write);
}

#[test]
fn a_posting_that_began_before_the_proven_offset_does_not_take_it_back() {
    let mut queue = Queue::new();
    let write = queue.post(Op::Write, 8);
    queue.ledger.apply(&[psn(&queue, 0, 3, 0)]).unwrap();
    queue.connect(MTU, Psn64(77));
    queue.give_to_nic(write, 0);
    queue.ledger.apply(&[psn(&queue, 1, 1, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Replay { offset: 3 * MTU }]);
}

#[test]
fn the_remainder_of_a_write_has_a_span_of_its_own() {
    let mut queue = Queue::new();
    queue.post(Op::Write, 4);
    queue.ledger.apply(&[psn(&queue, 0, 3, 0)]).unwrap();
    queue.connect(MTU, Psn64(50));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    assert_eq!(queue.facts[1].posted_psn, Psn64(51));
    queue.ledger.apply(&[psn(&queue, 1, 1, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete]);
}

#[test]
fn one_incarnation_that_proves_execution_is_enough() {
    let mut queue = Queue::new();
    queue.post(Op::Write, 1);
    queue.ledger.apply(&[report(0, Proof::None, 0)]).unwrap();
    queue.connect(MTU, Psn64(1));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    queue.ledger.apply(&[psn(&queue, 1, 1, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete]);
}

#[test]
fn not_executed_takes_the_proof_of_every_incarnation() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0)]).unwrap();
    queue.connect(MTU, Psn64(1));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0), report(1, Proof::None, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::SendUnknown));
}

#[test]
fn partial_takes_a_psn_proof_of_every_incarnation() {
    let mut queue = Queue::new();
    queue.post_as(Op::WriteImm, 4 * MTU, false, OnUnknown::Replay);
    queue.ledger.apply(&[psn(&queue, 0, 2, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [WHOLE], "a WRITE_WITH_IMM is replayed whole");
    queue.connect(MTU, Psn64(1));
    let plan = queue.ledger.decide();
    queue.replay(&plan);
    queue.ledger.apply(&[report(1, Proof::Count, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::WriteImmUnknown));
}

#[test]
fn a_decision_once_written_stays_whatever_a_later_report_says() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 1, 1)]).unwrap();
    let before = queue.ledger.decide();
    queue.ledger.apply(&[report(0, Proof::None, 1)]).unwrap();
    assert_eq!(queue.ledger.decide(), before, "a weaker report");
    queue.ledger.apply(&[]).unwrap();
    assert_eq!(queue.ledger.decide(), before, "no report");
}

#[test]
fn a_stop_stays_when_a_second_fault_would_know_better() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[report(0, Proof::None, 1)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(1), Reason::SendUnknown));
    queue.ledger.apply(&[psn(&queue, 0, 1, 1)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(1), Reason::SendUnknown));

    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.ledger.apply(&[psn(&queue, 0, 1, 0)]).unwrap();
    queue.connect(MTU, Psn64(9));
    queue.post_as(Op::Write, MTU, true, OnUnknown::Replay);
    queue.ledger.apply(&[psn(&queue, 1, 1, 0)]).unwrap();
    assert!(queue.ledger.entries().next().unwrap().landed, "its result is there by now");
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::AtomicResultLost));
    assert_eq!(queue.ledger.decide().steps, [], "and nothing from it on is done");
}

#[test]
fn a_later_fault_moves_a_stop_to_an_earlier_entry_and_never_to_a_later_one() {
    let mut queue = Queue::new();
    queue.entries = vec![queue_entry(Op::Send, 0), queue_entry(Op::FetchAdd, 1), queue_entry(Op::FetchAdd, 2)];
    let admit = |queue: &mut Queue, seq: u64| {
        queue.ledger.admit(queue.entries[seq as usize], None).unwrap();
        queue.give_to_nic(WrSeq(seq), 0);
    };
    admit(&mut queue, 1);
    queue.ledger.apply(&[psn(&queue, 0, 1, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(1), Reason::AtomicResultLost));
    queue.connect(MTU, Psn64(9));
    admit(&mut queue, 2);
    queue.ledger.apply(&[psn(&queue, 1, 1, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()).0, WrSeq(1));
    queue.connect(MTU, Psn64(9));
    admit(&mut queue, 0);
    queue.ledger.apply(&[report(2, Proof::None, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::SendUnknown));
}

const fn queue_entry(op: Op, seq: u64) -> Entry {
    Entry { seq: WrSeq(seq), op, bytes: 8, fenced: false, unknown: OnUnknown::Replay }
}

#[test]
fn fewer_receives_than_held_executed_surfaces_everything() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.post(Op::Send, 1);
    let found = queue.ledger.apply(&[psn(&queue, 0, 2, 1)]).unwrap_err();
    assert_eq!((found.executed, found.drained), (2, Some(1)));
    let plan = queue.ledger.decide();
    assert_eq!((plan.steps.len(), plan.stop), (0, Some(Stop { seq: WrSeq(0), why: StopReason::Disagreement })));
}

#[test]
fn more_receives_than_held_executed_surfaces_everything_before_a_replay() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.post(Op::Send, 1);
    let found = queue.ledger.apply(&[psn(&queue, 0, 1, 2)]).unwrap_err();
    assert_eq!((found.executed, found.drained), (1, Some(2)));
}

#[test]
fn more_receives_are_harmless_only_where_the_walk_ends_in_an_error_first() {
    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 1, 1)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::AtomicResultLost));

    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0)]).unwrap();
    queue.connect(MTU, Psn64(9));
    queue.post(Op::FetchAdd, 0);
    // The SEND would be replayed before the error: then one receive too many is one SEND done twice.
    let found = queue.ledger.apply(&[psn(&queue, 0, 0, 1), report(1, Proof::None, 0)]).unwrap_err();
    assert_eq!((found.epoch, found.executed, found.drained), (Epoch(0), 0, Some(1)));
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0)]).unwrap();
    queue.connect(MTU, Psn64(9));
    queue.post(Op::FetchAdd, 0);
    queue.ledger.apply(&[psn(&queue, 0, 0, 0), report(1, Proof::None, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(1), Reason::AtomicUnknown));
}

#[test]
fn once_the_ends_disagreed_nothing_is_replayed_any_more() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 0, 1)]).unwrap_err();
    let _ = queue.ledger.apply(&[psn(&queue, 0, 0, 0)]);
    assert_eq!(queue.ledger.decide().steps, []);
}

#[test]
fn an_incarnation_that_nobody_reports_is_a_disagreement() {
    let mut queue = Queue::new();
    queue.post(Op::Write, 1);
    assert_eq!(queue.ledger.apply(&[]).unwrap_err().drained, None);
    let mut queue = Queue::new();
    queue.post(Op::Write, 1);
    let other_path = IncarnationReport { path: PathId(1), ..psn(&queue, 0, 1, 0) };
    assert_eq!(queue.ledger.apply(&[other_path]).unwrap_err().drained, None);
}

#[test]
fn what_retired_long_ago_still_counts_until_it_is_forgotten() {
    let mut queue = Queue::new();
    queue.facts[0].completed_receives = 7;
    queue.receives[0] = 7;
    queue.update();
    queue.ledger.apply(&[report(0, Proof::Count, 8)]).unwrap_err();
    let mut queue = Queue::new();
    queue.facts[0].completed_receives = 7;
    queue.receives[0] = 7;
    queue.update();
    let send = queue.post(Op::Send, 1);
    queue.ledger.landed_through(send);
    queue.ledger.apply(&[report(0, Proof::Count, 8)]).unwrap();
    queue.ledger.forget(Epoch(1));
    queue.connect(MTU, Psn64(1));
    queue.ledger.apply(&[report(0, Proof::Count, 99), report(1, Proof::Count, 0)]).unwrap();
}

#[test]
fn an_entry_proven_executed_and_retired_counts_where_it_was_executed() {
    let mut queue = Queue::new();
    let send = queue.post(Op::Send, 1);
    queue.post(Op::Send, 1);
    let reports = [psn(&queue, 0, 1, 1)];
    queue.ledger.apply(&reports).unwrap();
    let plan = queue.ledger.decide();
    queue.connect(MTU, Psn64(70));
    queue.replay(&plan);
    queue.ledger.landed_through(send);
    queue.ledger.apply(&[reports[0], psn(&queue, 1, 1, 1)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete]);
}

#[test]
fn forgetting_keeps_the_evidence_of_what_is_still_out() {
    let mut queue = Queue::new();
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 1, 1)]).unwrap();
    queue.ledger.forget(Epoch(1));
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete]);
    queue.ledger.apply(&[psn(&queue, 0, 1, 1)]).unwrap();
    queue.ledger.apply(&[psn(&queue, 0, 1, 2)]).unwrap_err();
}

#[test]
fn a_read_runs_again_unless_a_later_fenced_request_may_have_begun() {
    let plan = |later: Op, fenced: bool, proof: Proof, receives: u64| {
        let mut queue = Queue::new();
        queue.post(Op::Read, 2);
        queue.post_as(later, MTU, fenced, OnUnknown::Replay);
        queue.ledger.apply(&[report(0, proof, receives)]).unwrap();
        queue.ledger.decide()
    };
    assert_eq!(actions(&plan(Op::Write, false, Proof::None, 0)), [WHOLE, WHOLE], "nothing is fenced");
    assert_eq!(stop_of(&plan(Op::Write, true, Proof::None, 0)), (WrSeq(0), Reason::ReadFenced));
    assert_eq!(actions(&plan(Op::Read, true, Proof::None, 0)), [WHOLE, WHOLE], "a READ changes nothing");
    assert_eq!(actions(&plan(Op::Send, true, Proof::Count, 0)), [WHOLE, WHOLE], "the SEND did not complete");
    assert_eq!(
        stop_of(&plan(Op::WriteImm, true, Proof::Count, 0)),
        (WrSeq(0), Reason::ReadFenced),
        "its data may be placed"
    );
    assert_eq!(
        actions(&plan(Op::Send, true, Proof::Count, 1)),
        [Action::Complete, Action::Complete],
        "it began, so the READ landed"
    );
    let untouched = Proof::Psn(Psn::new(1002));
    assert_eq!(actions(&plan(Op::Write, true, untouched, 0)), [WHOLE, WHOLE], "the WRITE is proven untouched");
}

#[test]
fn a_later_fenced_request_that_began_proves_that_results_have_landed() {
    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.post(Op::Read, 1);
    queue.post_as(Op::Write, 2 * MTU, true, OnUnknown::Error);
    queue.ledger.apply(&[psn(&queue, 0, 3, 0)]).unwrap();
    let plan = queue.ledger.decide();
    assert_eq!(actions(&plan), [Action::Complete, Action::Complete, Action::Replay { offset: MTU }]);
    assert_eq!(plan.steps[0].evidence.basis, Basis::LandedBeforeFenced(WrSeq(2)));
}

#[test]
fn an_atomic_in_front_of_a_request_that_is_not_fenced_has_not_landed() {
    let mut queue = Queue::new();
    queue.post(Op::FetchAdd, 0);
    queue.post(Op::Send, 1);
    queue.ledger.apply(&[psn(&queue, 0, 2, 1)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::AtomicResultLost));
}

#[test]
fn the_ledger_is_bounded_and_says_so() {
    let mut ledger = Ledger::new();
    let entry = |seq| Entry { seq: WrSeq(seq), op: Op::Write, bytes: 1, fenced: false, unknown: OnUnknown::Replay };
    for seq in 0..MAX_ENTRIES as u64 {
        ledger.admit(entry(seq), None).unwrap();
    }
    assert_eq!(ledger.admit(entry(u64::MAX), None), Err(LedgerError::Full));
    assert_eq!(ledger.admit(entry(0), None), Ok(()), "it is there already");
    let facts = |epoch| IncarnationFacts {
        epoch: Epoch(epoch),
        path: PathId(0),
        mtu: Mtu::MIN,
        completed_psn: Psn64(0),
        posted_psn: Psn64(0),
        completed_receives: 0,
    };
    for epoch in 0..MAX_INCARNATIONS as u32 {
        ledger.incarnation(facts(epoch)).unwrap();
    }
    assert_eq!(ledger.incarnation(facts(99)), Err(LedgerError::TooManyIncarnations));
    assert_eq!(ledger.incarnation(facts(3)), Ok(()));
}

#[test]
fn admitting_is_idempotent_and_contradictions_are_refused() {
    let mut queue = Queue::new();
    let seq = queue.post(Op::Send, 1);
    let entry = queue.entries[0];
    let posting = Posting { epoch: Epoch(0), first_psn: Psn64(1000), offset: 0, receive_ordinal: 0 };
    assert_eq!(queue.ledger.admit(entry, Some(posting)), Ok(()));
    assert_eq!(queue.ledger.admit(Entry { bytes: 9, ..entry }, None), Err(LedgerError::Conflict(seq)));
    assert_eq!(queue.ledger.posted(seq, Posting { first_psn: Psn64(1), ..posting }), Err(LedgerError::Conflict(seq)));
    assert_eq!(queue.ledger.posted(WrSeq(9), posting), Err(LedgerError::NoEntry(WrSeq(9))));
    assert_eq!((queue.ledger.len(), queue.epoch()), (1, 0));
}

#[test]
fn atomics_and_work_under_policy_error_could_end_in_an_error() {
    let risk = |op, unknown| {
        let mut queue = Queue::new();
        queue.post_as(op, 8, false, unknown);
        queue.ledger.could_end_in_error()
    };
    assert!(risk(Op::FetchAdd, OnUnknown::Replay) && risk(Op::Write, OnUnknown::Error));
    assert!(
        !risk(Op::Write, OnUnknown::Replay) && !risk(Op::Send, OnUnknown::Error) && !Ledger::new().could_end_in_error()
    );
}

#[test]
fn a_stop_keeps_the_reason_for_which_it_was_found() {
    let mut queue = Queue::new();
    queue.post_as(Op::Read, MTU, false, OnUnknown::Error);
    queue.ledger.apply(&[report(0, Proof::None, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::ReadBegun));
    queue.connect(MTU, Psn64(9));
    queue.post_as(Op::Write, MTU, true, OnUnknown::Replay);
    queue.ledger.apply(&[report(0, Proof::None, 0), report(1, Proof::None, 0)]).unwrap();
    assert_eq!(stop_of(&queue.ledger.decide()), (WrSeq(0), Reason::ReadBegun), "not ReadFenced, which it is by now");
}

#[test]
fn a_request_that_needs_no_result_is_not_said_to_have_landed() {
    let mut queue = Queue::new();
    queue.post(Op::Write, 1);
    queue.post(Op::Read, 1);
    let first = queue.post_as(Op::Write, MTU, true, OnUnknown::Replay);
    queue.post_as(Op::Write, MTU, true, OnUnknown::Replay);
    queue.ledger.apply(&[psn(&queue, 0, 4, 0)]).unwrap();
    let views: Vec<_> = queue.ledger.entries().collect();
    assert_eq!(views.iter().map(|view| view.landed).collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(views[0].evidence.basis, Basis::Psn(Epoch(0)));
    assert_eq!(views[1].evidence.basis, Basis::LandedBeforeFenced(first), "the next fenced request says so");
}

#[test]
fn what_proved_that_a_result_has_landed_is_not_replaced() {
    let mut queue = Queue::new();
    let read = queue.hold(Op::Read, MTU, false, OnUnknown::Replay);
    let between = queue.hold(Op::Write, MTU, true, OnUnknown::Replay);
    let last = queue.hold(Op::Write, MTU, true, OnUnknown::Replay);
    queue.give_to_nic(read, 0);
    queue.give_to_nic(last, 0);
    queue.ledger.apply(&[psn(&queue, 0, 2, 0)]).unwrap();
    queue.connect(MTU, Psn64(9));
    queue.give_to_nic(between, 0);
    queue.ledger.apply(&[psn(&queue, 1, 1, 0)]).unwrap();
    let basis = queue.ledger.entries().next().unwrap().evidence.basis;
    assert_eq!(basis, Basis::LandedBeforeFenced(last));
}

#[test]
fn a_request_is_posted_on_no_more_incarnations_than_there_may_be() {
    let mut queue = Queue::new();
    let seq = queue.hold(Op::Write, 1, false, OnUnknown::Replay);
    let posting = |epoch| Posting { epoch: Epoch(epoch), first_psn: Psn64(0), offset: 0, receive_ordinal: 0 };
    for epoch in 0..MAX_INCARNATIONS as u32 {
        queue.ledger.posted(seq, posting(epoch)).unwrap();
    }
    assert_eq!(queue.ledger.posted(seq, posting(MAX_INCARNATIONS as u32)), Err(LedgerError::TooManyIncarnations));
    assert_eq!(queue.ledger.posted(seq, posting(MAX_INCARNATIONS as u32 - 1)), Ok(()), "it is there already");
    assert_eq!(queue.ledger.posted(seq, posting(0)), Err(LedgerError::Conflict(seq)), "an earlier one than the last");
    let view = queue.ledger.entries().next().unwrap();
    assert_eq!((view.postings, view.newest), (MAX_INCARNATIONS, Some(posting(MAX_INCARNATIONS as u32 - 1))));
}

#[test]
fn how_far_an_incarnation_was_posted_follows_from_what_the_ledger_holds() {
    let mut queue = Queue::new();
    let seq = queue.hold(Op::Write, 4 * MTU, false, OnUnknown::Replay);
    let posting = Posting { epoch: Epoch(0), first_psn: queue.first(), offset: MTU, receive_ordinal: 0 };
    queue.ledger.posted(seq, posting).unwrap();
    queue.ledger.apply(&[psn(&queue, 0, 3, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [Action::Complete]);
}

#[test]
fn what_is_retired_leaves_the_window_of_psns() {
    const LONGEST: u32 = 1 << 31;
    let mut queue = Queue::new();
    let packets = u64::from(LONGEST / MTU);
    let count = Psn::COUNT / packets;
    let last = (0..count).map(|_| queue.post_as(Op::Write, LONGEST, false, OnUnknown::Replay)).last().unwrap();
    queue.ledger.landed_through(last);
    queue.post(Op::FetchAdd, 0);
    queue.ledger.apply(&[psn(&queue, 0, count * packets, 0)]).unwrap();
    assert_eq!(actions(&queue.ledger.decide()), [WHOLE], "proven unexecuted, 2^24 packets after the first");
}

#[test]
fn a_posting_on_an_incarnation_that_nobody_entered_is_a_disagreement() {
    let mut queue = Queue::new();
    let seq = queue.post(Op::Write, 1);
    let elsewhere = Posting { epoch: Epoch(5), first_psn: Psn64(0), offset: 0, receive_ordinal: 0 };
    queue.ledger.posted(seq, elsewhere).unwrap();
    let found = queue.ledger.apply(&[psn(&queue, 0, 1, 0), report(5, Proof::Count, 0)]).unwrap_err();
    assert_eq!((found.epoch, found.executed, found.drained), (Epoch(5), 0, None));
}

#[test]
fn a_ledger_counts_what_it_holds() {
    let mut queue = Queue::new();
    let held = |queue: &Queue| (queue.ledger.len(), queue.ledger.is_empty());
    assert_eq!(held(&queue), (0, true));
    queue.post(Op::Write, 1);
    let second = queue.post(Op::Write, 1);
    assert_eq!(held(&queue), (2, false));
    queue.ledger.landed_through(second);
    assert_eq!(held(&queue), (0, true));
}

#[test]
fn what_a_ledger_refuses_and_what_the_ends_disagree_on_is_said_with_its_numbers() {
    let found = |drained| Disagreement { epoch: Epoch(3), executed: 7, drained }.to_string();
    assert!(found(Some(5)).contains("7 receives held executed, 5 drained"), "{}", found(Some(5)));
    assert!(found(None).contains("7 receives held executed, no report"), "{}", found(None));
    assert!(LedgerError::Full.to_string().contains(&MAX_ENTRIES.to_string()));
    assert!(LedgerError::TooManyIncarnations.to_string().contains(&MAX_INCARNATIONS.to_string()));
    assert!(LedgerError::NoEntry(WrSeq(12)).to_string().contains("12 is not in the ledger"));
    assert!(LedgerError::Conflict(WrSeq(12)).to_string().contains("12 is in the ledger with other facts"));
}
