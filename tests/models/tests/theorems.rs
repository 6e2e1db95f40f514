//! The theorems of failover, each over stated bounds and each with what has to be taken away for it to fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use shift_models::explorer::{runs, Explorer, Liveness, Model};
use shift_models::theorems::aba::{right_verdicts, worlds, Looks, REQUEST};
use shift_models::theorems::atomics::{cell, characterisation, repeat, Repeated};
use shift_models::theorems::hierarchy::{agreement, Step};
use shift_models::theorems::linearizable::{is_linearizable, Call};
use shift_models::theorems::memory::{execute, Op, Outcome, DATA, FLAG};
use shift_models::theorems::overlay::{decided_by_count, undecidable, Sees, Table};
use shift_models::theorems::sliding::{run, Recovery};
use shift_models::theorems::trace::{executions, lists, memory_after, view, Discipline, Event, Runs, REUSED};
use shift_models::theorems::two_nics::{Care, TwoNics};

const WRITE: Op = Op::Write(DATA, 1);
const ADD: Op = Op::FetchAdd(DATA, 1);
const SWAP: Op = Op::CompareSwap(DATA, 0, 1);
const READ: Op = Op::Read(DATA);

const fn system(ops: Vec<Op>, discipline: Discipline) -> Runs {
    Runs { ops, discipline, reuses: true, keeps_traces: false }
}

// ---- What a trace is.

#[test]
fn in_every_run_requests_arrive_execute_and_complete_in_order_and_at_most_once() {
    let mut count = 0;
    for ops in lists(&[WRITE, Op::Notify, ADD], 2) {
        let system = Runs { keeps_traces: true, ..system(ops.clone(), Discipline::Signalled) };
        count += runs::each(&system, |moment| {
            let trace = &moment.trace;
            let place = |event: fn(&Event) -> Option<u8>| trace.iter().filter_map(event).collect::<Vec<_>>();
            for order in [
                place(|event| if let Event::Send(op) = event { Some(*op) } else { None }),
                place(|event| if let Event::Receive(op) = event { Some(*op) } else { None }),
                place(|event| if let Event::Execute(op, _) = event { Some(*op) } else { None }),
                place(|event| if let Event::Completion(op, _) = event { Some(*op) } else { None }),
            ] {
                assert!(order.iter().copied().eq(0..order.len() as u8), "{trace:?}");
            }
            for op in 0..ops.len() as u8 {
                assert!(executions(trace, op) <= 1);
                let ends = trace
                    .iter()
                    .filter(|e| matches!(e, Event::Completion(of, _) | Event::Timeout(of) if *of == op))
                    .count();
                let sent = trace.contains(&Event::Send(op));
                assert_eq!(ends, usize::from(sent), "what is sent ends once: {trace:?}");
            }
            assert_eq!(memory_after(trace, &ops), moment.memory, "{trace:?}");
        });
    }
    assert!(count > 1000, "{count} runs");
}

// ---- Theorem 1.

#[test]
fn a_lost_request_and_a_lost_acknowledgement_look_the_same() {
    let ops = vec![WRITE];
    let mut by_view = std::collections::BTreeMap::<Vec<Event>, Vec<Vec<Event>>>::new();
    let traces = Runs { keeps_traces: true, ..system(ops.clone(), Discipline::PollData) };
    runs::each(&traces, |moment| by_view.entry(view(&moment.trace)).or_default().push(moment.trace.clone()));
    let views: Vec<_> = by_view.keys().cloned().collect();
    let [completed, timed_out] = views.as_slice() else { panic!("two views: {views:?}") };
    assert_eq!(completed, &[Event::Send(0), Event::Completion(0, Outcome::Acknowledged)]);
    assert_eq!(timed_out, &[Event::Send(0), Event::Timeout(0)]);
    let executed: Vec<usize> = by_view[timed_out].iter().map(|trace| executions(trace, 0)).collect();
    assert!(executed.contains(&0) && executed.contains(&1), "{executed:?}");
}

#[test]
fn to_repeat_a_write_whose_buffer_was_used_again_brings_a_ghost() {
    let told = Outcome::Acknowledged;
    let lost_ack = [
        Event::Send(0),
        Event::Receive(0),
        Event::Execute(0, told),
        Event::Consume(0, 1),
        Event::Reuse(0, REUSED),
        Event::AckLost(0),
        Event::Timeout(0),
    ];
    assert_eq!(memory_after(&lost_ack, &[WRITE])[DATA], REUSED);
    let repeated = [&lost_ack[..], &[Event::Send(0), Event::Receive(0), Event::Execute(0, told)]].concat();
    assert_eq!(memory_after(&repeated, &[WRITE])[DATA], 1, "the old value is back");
    let lost_request = [Event::Send(0), Event::PacketLost(0), Event::Timeout(0)];
    assert_eq!(view(&lost_ack), view(&lost_request));
    assert_eq!(executions(&lost_request, 0), 0, "and not to repeat it loses this one");
}

#[test]
fn no_overlay_of_the_senders_view_is_safe_and_live_for_polled_writes_and_for_atomics() {
    let tally = undecidable(3).unwrap();
    assert!(tally.conflicts > 100 && tally.overlays > 1000, "{tally:?}");
}

#[test]
fn with_the_receivers_count_writes_behind_a_notification_are_decided() {
    let tally = decided_by_count(3).unwrap();
    assert!(tally.moments > 1000, "{tally:?}");
    for ops in lists(&[ADD, Op::Notify], 2).into_iter().filter(|ops| ops.last() == Some(&ADD)) {
        let table = Table::of(&system(ops.clone(), Discipline::Signalled), Sees::ReceiveCount);
        assert_ne!(table.conflicts(), 0, "a count says nothing of an atomic behind it: {ops:?}");
    }
}

#[test]
fn without_a_notification_to_repeat_a_signalled_write_brings_no_ghost() {
    for ops in lists(&[WRITE, READ], 3) {
        let table = Table::of(&system(ops.clone(), Discipline::Signalled), Sees::SenderView);
        assert!(table.demands.values().all(|demands| demands.skip == 0), "{ops:?}");
    }
}

#[test]
fn an_oracle_is_safe_and_live_and_not_transparent() {
    for ops in lists(&[WRITE, ADD, SWAP, Op::Notify], 3) {
        let table = Table::of(&system(ops.clone(), Discipline::PollData), Sees::Executions);
        assert_eq!(table.conflicts(), 0, "{ops:?}");
        let decides = |op: u8| table.demands.iter().filter(move |((view, _), _)| view.contains(&Event::Timeout(op)));
        let differs = decides(0)
            .any(|((one, executed), _)| decides(0).any(|((other, also), _)| one == other && executed & 1 != also & 1));
        assert!(differs, "it decides by something that the sender does not see: {ops:?}");
    }
}

#[test]
fn where_nobody_uses_memory_again_a_write_may_be_repeated_and_an_atomic_still_not() {
    let calm = |ops| Runs { reuses: false, ..system(ops, Discipline::PollData) };
    assert_eq!(Table::of(&calm(vec![WRITE]), Sees::SenderView).conflicts(), 0);
    assert_eq!(Table::of(&calm(vec![ADD]), Sees::SenderView).conflicts(), 1);
}

// ---- Theorem 2.

#[test]
fn a_repeated_fetch_and_add_adds_twice_and_returns_what_it_left() {
    for add in 0..4 {
        let Repeated { values, returned } = repeat(0, Op::FetchAdd(DATA, add), None);
        assert_eq!((values, returned), ([add, 2 * add], [Outcome::Value(0), Outcome::Value(add)]));
    }
}

#[test]
fn a_repeated_compare_and_swap_undoes_what_another_process_did() {
    let Repeated { values, returned } = repeat(0, SWAP, Some(Op::CompareSwap(DATA, 1, 0)));
    assert_eq!(values, [1, 1]);
    assert_eq!(returned, [Outcome::Swapped(true, 0); 2], "it succeeds twice, and the other's effect is gone");
}

#[test]
fn what_may_be_repeated_without_a_trace_is_what_the_characterisation_says() {
    let mut count = 0;
    for (op, is, claimed) in characterisation(6) {
        assert_eq!(is, claimed, "{op:?}");
        count += 1;
    }
    assert_eq!(count, 6 * (6 + 36 + 6 + 1));
}

#[test]
fn laws_of_memory_hold() {
    for start in 0..4 {
        for value in 0..4 {
            let (after, _) = execute(cell(start), Op::Write(DATA, value));
            assert_eq!(execute(after, READ).1, Outcome::Value(value), "a read gives what was written");
            assert_eq!(execute(after, Op::Read(FLAG)).1, Outcome::Value(0), "and elsewhere what was there");
            let (twice, _) = execute(after, Op::Write(DATA, 3));
            assert_eq!(twice, execute(cell(start), Op::Write(DATA, 3)).0, "the later write to a cell stands");
            let one = execute(after, Op::Write(FLAG, 2)).0;
            let other = execute(execute(cell(start), Op::Write(FLAG, 2)).0, Op::Write(DATA, value)).0;
            assert_eq!(one, other, "writes to two cells commute");
        }
        let (after, outcome) = execute(cell(start), Op::CompareSwap(DATA, start + 1, 7));
        assert_eq!(
            (after, outcome),
            (cell(start), Outcome::Swapped(false, start)),
            "a swap that fails changes nothing"
        );
    }
}

/// The suffix lemma: if only writes touch memory, to repeat a suffix that begins at or before the first one missing gives what one run gives.
#[test]
fn writes_repeated_in_order_from_any_point_not_behind_the_first_missing_leave_the_same_memory() {
    let alphabet = [Op::Write(DATA, 1), Op::Write(DATA, 2), Op::Write(FLAG, 1), Op::Write(FLAG, 2)];
    for ops in lists(&alphabet, 5) {
        let run = |memory, ops: &[Op]| ops.iter().fold(memory, |memory, op| execute(memory, *op).0);
        let whole = run([0; 2], &ops);
        for executed in 0..=ops.len() {
            let there = run([0; 2], &ops[..executed]);
            for from in 0..=executed {
                assert_eq!(run(there, &ops[from..]), whole, "{ops:?} executed {executed}, repeated from {from}");
            }
        }
    }
}

#[test]
fn repeated_atomics_make_histories_that_no_order_explains() {
    let add = |told| Call::answered(ADD, 0, 1, Outcome::Value(told));
    let read = |value, at| Call::answered(READ, at, at + 1, Outcome::Value(value));
    assert!(!is_linearizable(cell(0), &[add(1)]), "it was told that one was there already");
    assert!(!is_linearizable(cell(0), &[add(0), read(2, 2)]), "it added one and two are there");
    assert!(is_linearizable(cell(0), &[add(0), read(1, 2)]));
    let swaps = [
        Call::answered(SWAP, 0, 9, Outcome::Swapped(true, 0)),
        Call::answered(Op::CompareSwap(DATA, 1, 0), 2, 3, Outcome::Swapped(true, 1)),
    ];
    assert!(is_linearizable(cell(0), &swaps), "without an observer there is an order");
    assert!(
        !is_linearizable(cell(0), &[swaps[0], swaps[1], read(1, 10)]),
        "who looks afterwards sees that there is none"
    );
}

// ---- Queue sliding.

/// Of `k` messages with one lost acknowledgement or request anywhere: blind, they slide exactly if something was executed that was not acknowledged.
#[test]
fn messages_slide_exactly_if_a_blind_retry_follows_an_execution_and_never_with_a_count() {
    let mut slid = 0;
    for messages in 1..=5 {
        for executed in 0..=messages {
            for acknowledged in 0..=executed {
                for spare in 0..=2 {
                    let blind = run(messages, messages + spare, executed, acknowledged, Recovery::Blind);
                    assert_eq!(
                        blind.are_aligned(messages),
                        executed == acknowledged,
                        "{messages} {executed} {acknowledged} {blind:?}"
                    );
                    slid += usize::from(!blind.are_aligned(messages));
                    assert!(run(messages, messages + spare, executed, acknowledged, Recovery::ByCount)
                        .are_aligned(messages));
                }
            }
        }
    }
    assert!(slid > 0);
    let slide = run(2, 3, 1, 0, Recovery::Blind);
    assert_eq!(slide.holds, [Some(0), Some(0), Some(1)], "the second message lies in the third buffer");
}

#[test]
fn an_answer_that_no_receive_is_there_does_not_tell_whether_one_was_consumed() {
    let consumed = run(2, 2, 2, 1, Recovery::Blind);
    assert!(consumed.not_ready, "all were consumed, and the retry finds none");
    let spare = run(2, 3, 2, 1, Recovery::Blind);
    let missing = run(2, 3, 1, 1, Recovery::Blind);
    assert_eq!([spare.not_ready, missing.not_ready], [false; 2], "and none is missed whether one was consumed or not");
    assert_ne!(spare.are_aligned(2), missing.are_aligned(2));
}

// ---- Theorem 3.

#[test]
fn reading_remote_memory_does_not_tell_whether_a_swap_was_executed() {
    for reads in 1..=3 {
        let seen = worlds(4, Looks::Reads(reads));
        let (right, tried) = right_verdicts(&seen);
        assert_eq!(right, 0, "of {tried} verdicts about {reads} reads");
        if reads == 1 {
            assert_eq!(tried, 4, "a word that is 0 or 1 has four verdicts");
        }
    }
}

#[test]
fn atomics_over_the_other_path_do_not_tell_either() {
    for op in [REQUEST, Op::CompareSwap(DATA, 1, 0), ADD] {
        assert_eq!(right_verdicts(&worlds(4, Looks::Acts(op))).0, 0, "{op:?}");
    }
}

#[test]
fn one_bit_that_the_receiver_writes_down_does() {
    assert!(right_verdicts(&worlds(4, Looks::Log)).0 > 0);
}

/// A verdict by the time-out alone would have to be both.
#[test]
fn no_verdict_by_a_time_out_is_right_in_the_past_and_in_the_future() {
    let rows = [("executed", true), ("lost", false)];
    let right = [true, false].into_iter().filter(|verdict| rows.iter().all(|(_, truth)| truth == verdict)).count();
    assert_eq!(right, 0);
}

#[test]
fn registers_leave_two_processes_undecided_however_long_they_talk() {
    for (rounds, executions, views) in [(1, 8, 4), (2, 72, 20), (3, 926, 142)] {
        let program = [Step::Tell, Step::Look(1)].repeat(rounds);
        let found = agreement(2, &program);
        assert_eq!((found.executions, found.views, found.components), (executions, views, 1), "{rounds} rounds");
        assert!(!found.is_possible && found.is_path == (rounds == 1), "{found:?}");
    }
    assert!(!agreement(2, &[Step::Look(1), Step::Look(1)]).is_possible, "reads alone");
    assert!(!agreement(2, &[Step::Tell, Step::Tell]).is_possible, "writes alone");
}

#[test]
fn fetch_and_add_lets_two_decide_and_not_three() {
    let two = agreement(2, &[Step::FetchAdd]);
    assert_eq!((two.components, two.is_possible), (2, true));
    for program in [
        vec![Step::Tell, Step::FetchAdd],
        vec![Step::Tell, Step::FetchAdd, Step::FetchAdd],
        vec![Step::Tell, Step::FetchAdd, Step::Look(1), Step::Look(2)],
    ] {
        let three = agreement(3, &program);
        assert_eq!((three.components, three.is_possible), (1, false), "{program:?}: {three:?}");
    }
}

#[test]
fn a_queue_lets_two_decide_and_not_three() {
    assert!(agreement(2, &[Step::Dequeue]).is_possible);
    assert!(!agreement(3, &[Step::Tell, Step::Dequeue, Step::Look(1), Step::Look(2)]).is_possible);
}

#[test]
fn compare_and_swap_lets_any_number_decide() {
    for processes in 2..=4 {
        let found = agreement(processes, &[Step::CompareSwap]);
        assert_eq!((found.components, found.is_possible), (processes, true));
    }
}

// ---- Two NICs.

#[test]
fn two_nics_write_a_request_twice_unless_the_first_is_fenced_and_counted() {
    let explore = |fences, counts| {
        let model = TwoNics { requests: 3, care: Care { fences, counts } };
        let report = Explorer::new(&model).liveness(Liveness::EndReachable).run();
        (report.length(), report.is_proof(), report.states, report.to_string())
    };
    let (length, _, _, told) = explore(false, false);
    assert_eq!(length, Some(4), "{told}");
    let (length, _, _, told) = explore(false, true);
    assert_eq!(length, Some(5), "counted and then executed by the old NIC all the same: {told}");
    let (length, _, _, told) = explore(true, false);
    assert_eq!(length, Some(4), "{told}");
    let (length, is_proof, _, told) = explore(true, true);
    assert!(length.is_none() && is_proof, "{told}");
}

#[test]
fn the_trace_of_two_nics_is_a_run_of_the_model() {
    let model = TwoNics { requests: 1, care: Care { fences: false, counts: false } };
    let violation = Explorer::new(&model).run().violation.unwrap();
    let mut state = model.initial().remove(0);
    for action in &violation.actions {
        state = model.next(&state, action).unwrap();
    }
    assert!(violation.drawing.contains("posts from request 0 on over NIC B"), "{}", violation.drawing);
}
