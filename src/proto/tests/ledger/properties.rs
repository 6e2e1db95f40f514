//! The safety rule against the reference NIC, over one to four incarnations.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use shift_proto::id::{Epoch, Mtu, PathId, Psn, Psn64, WrSeq};
use shift_proto::ledger::{Entry, IncarnationFacts, IncarnationReport, Ledger, Op, Posting, Proof};
use shift_proto::policy::OnUnknown;

use crate::nic::{Kind, Life, Nic, Want};

fn op() -> impl Strategy<Value = Op> {
    prop::sample::select(Op::ALL.to_vec())
}

fn unknown() -> impl Strategy<Value = OnUnknown> {
    prop_oneof![3 => Just(OnUnknown::Replay), 1 => Just(OnUnknown::Error)]
}

fn want() -> impl Strategy<Value = Want> {
    let bytes = prop_oneof![Just(0_u32), Just(1), 1..3000_u32, Just(256), Just(1024)];
    (op(), bytes, prop::bool::weighted(0.2), unknown()).prop_map(|(op, bytes, fenced, unknown)| {
        let bytes = if matches!(op, Op::FetchAdd | Op::CompareSwap) { 8 } else { bytes };
        Want { op, bytes, fenced, unknown }
    })
}

fn mtu() -> impl Strategy<Value = Mtu> {
    prop::sample::select(vec![256, 512, 1024, 2048, 4096]).prop_map(|bytes| Mtu::new(bytes).unwrap())
}

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![3 => Just(Kind::Psn), 3 => Just(Kind::Count), 1 => Just(Kind::None), 1 => (0..3_u64).prop_map(Kind::Unfenced)]
}

/// PSNs close to the wrap, seen from both sides, and far beyond it.
fn first_psn() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..64_u64,
        (1 << 24) - 20..(1 << 24) + 20_u64,
        (5 << 24) - 9..(5 << 24) + 9_u64,
        any::<u32>().prop_map(u64::from)
    ]
}

fn life(kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Life> {
    let counts = (0..8_usize, 0..10_usize, 0..24_usize, 0..4_usize, 0..6_usize);
    (mtu(), first_psn(), counts, kind, any_kind()).prop_map(|(mtu, first_psn, counts, kind, later_kind)| {
        let (new_posts, replayed, packets, responses, acknowledged) = counts;
        Life { mtu, first_psn, new_posts, replayed, packets, responses, acknowledged, kind, later_kind }
    })
}

fn lives(kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Vec<Life>> {
    vec(life(kind), 2..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_exact_proofs_everything_is_done_once_and_nothing_ends_in_an_avoidable_error(
        wants in vec(want(), 1..14), lives in lives(Just(Kind::Psn)),
    ) {
        let outcome = Nic::new(wants, lives).run();
        prop_assert!(!outcome.disagreed);
    }

    #[test]
    fn with_receive_counts_messages_arrive_once_and_atomics_at_most_once(
        wants in vec(want(), 1..14), lives in lives(Just(Kind::Count)),
    ) {
        let outcome = Nic::new(wants, lives).run();
        prop_assert!(!outcome.disagreed);
    }

    #[test]
    fn with_what_the_sender_saw_messages_arrive_once_and_atomics_at_most_once(
        wants in vec(want(), 1..14), lives in lives(Just(Kind::None)),
    ) {
        let outcome = Nic::new(wants, lives).run();
        prop_assert!(!outcome.disagreed);
    }

    #[test]
    fn with_proofs_of_any_mixture_the_safety_rule_holds(wants in vec(want(), 1..14), lives in lives(any_kind())) {
        Nic::new(wants, lives).run();
    }

    #[test]
    fn a_psn_is_unwrapped_to_the_number_it_came_from(from in first_psn(), ahead in 0..(1_u64 << 24)) {
        let number = Psn64(from) + ahead;
        prop_assert_eq!(Psn64(from).first_at_or_after(number.wire()), number);
    }

    #[test]
    fn reports_that_make_no_sense_never_move_a_stop_back_or_replay_behind_it(
        entries in vec((want(), 0..3_u32, any::<u32>()), 1..10),
        rounds in vec(vec((0..4_u32, 0..5_u8, any::<u32>(), 0..12_u64, any::<bool>()), 0..5), 1..4),
    ) {
        let mut ledger = senseless(&entries);
        let mut stop: Option<WrSeq> = None;
        for round in rounds {
            let reports: Vec<_> = round.into_iter().map(|(epoch, proof, psn, receives, fenced)| {
                let proof = match proof { 0 => Proof::None, 1 => Proof::Count, _ => Proof::Psn(Psn::new(psn)) };
                IncarnationReport { epoch: Epoch(epoch), path: PathId(0), proof, receives, fenced }
            }).collect();
            let agreed = ledger.apply(&reports);
            let plan = ledger.decide();
            prop_assert!(agreed.is_ok() || plan.steps.is_empty());
            if let Some(before) = stop {
                prop_assert!(plan.stop.is_some_and(|stop| stop.seq <= before));
            }
            stop = plan.stop.map(|stop| stop.seq);
            prop_assert!(plan.steps.iter().all(|step| plan.stop.is_none_or(|stop| step.seq < stop.seq)));
        }
    }
}

/// The runs above would prove nothing if they never came to the hard places.
#[test]
fn the_runs_reach_every_reason_for_a_stop_and_many_replays() {
    let mut runner = TestRunner::deterministic();
    let (mut reasons, mut replays, mut disagreements) = (BTreeSet::new(), 0, 0);
    for _ in 0..12_000 {
        let scenario = (vec(want(), 1..14), lives(any_kind())).new_tree(&mut runner).unwrap();
        let (wants, lives) = scenario.current();
        let outcome = Nic::new(wants, lives).run();
        replays += usize::from(outcome.replays > 2);
        disagreements += usize::from(outcome.disagreed);
        reasons.extend(outcome.stopped.map(|why| format!("{why:?}")));
    }
    assert_eq!(reasons.len(), 9, "{reasons:?}");
    assert!(replays > 1000 && disagreements > 10, "{replays} {disagreements}");
}

fn senseless(entries: &[(Want, u32, u32)]) -> Ledger {
    let mut ledger = Ledger::new();
    for epoch in 0..3 {
        let (completed_psn, posted_psn) = (Psn64(0), Psn64(40));
        let mtu = Mtu::MIN;
        let facts = IncarnationFacts {
            epoch: Epoch(epoch),
            path: PathId(0),
            mtu,
            completed_psn,
            posted_psn,
            completed_receives: 0,
        };
        ledger.incarnation(facts).unwrap();
    }
    for (index, (want, epoch, psn)) in entries.iter().enumerate() {
        let Want { op, bytes, fenced, unknown } = *want;
        let entry = Entry { seq: WrSeq(index as u64), op, bytes, fenced, unknown };
        let posting = Posting {
            epoch: Epoch(*epoch),
            first_psn: Psn64(u64::from(*psn % 64)),
            offset: 0,
            receive_ordinal: u64::from(*psn % 5),
        };
        ledger.admit(entry, (psn % 3 > 0).then_some(posting)).unwrap();
    }
    ledger
}
