//! The handshake's rules by name: one machine, its peer played by the test.

use shift_proto::id::{Epoch, Micros, PathId};
use shift_proto::ledger::MAX_INCARNATIONS;
use shift_proto::migrate::{Attempt, Cause, Deadlines, Effect, Handshake, Input, Phase, Stage, Surfaced};

use crate::bench::{phases, reports, running, sent, surfaced, Bench, BIGGER, FATAL, ME, SMALLER, SUSPECT};

fn deadlines() -> Deadlines {
    Deadlines::default()
}

const MS: Micros = Micros::from_millis(1);

#[test]
fn a_whole_migration_as_its_owner_gives_every_phase_once_and_in_order() {
    let mut bench = Bench::new(SMALLER);
    let mut effects = bench.give_all(FATAL);
    effects.extend(bench.give_all(Input::PathAnswered(PathId(1))));
    let tuple = shift_proto::id::Tuple { epoch: Epoch(1), owner: ME, attempt: 1, target: PathId(1) };
    let frame = |message| Input::Frame(message);
    for input in [
        frame(Handshake::Accept { tuple }),
        Input::Excluded,
        Input::Fenced { reports: reports(), complete: true },
        frame(Handshake::Report { tuple, fenced: true, reports: reports() }),
        Input::Reposted,
        frame(Handshake::Ready { tuple }),
        Input::Replayed,
        Input::Retired,
        frame(Handshake::Confirm { tuple, seen: false }),
        frame(Handshake::Confirm { tuple, seen: true }),
    ] {
        effects.extend(bench.give_all(input));
    }
    let expected = [
        Phase::Trigger,
        Phase::ClaimSent,
        Phase::Accepted,
        Phase::Committed,
        Phase::Fenced,
        Phase::ReportIn,
        Phase::Reposted,
        Phase::Ready,
        Phase::Replayed,
        Phase::Resumed,
        Phase::Confirmed,
    ];
    assert_eq!(phases(&effects), expected);
    assert_eq!((bench.machine.state(), bench.machine.epoch(), bench.machine.path()), (running(), Epoch(1), PathId(1)));
    assert_eq!(bench.machine.deadline(), None, "nothing is awaited any more");
    let order: Vec<_> = effects
        .iter()
        .filter(|effect| {
            matches!(
                effect,
                Effect::Exclude | Effect::Fence | Effect::Repost { .. } | Effect::Replay { .. } | Effect::Forget { .. }
            )
        })
        .collect();
    assert_eq!(order.len(), 5);
    assert!(
        matches!(order[0], Effect::Exclude)
            && matches!(order[1], Effect::Fence)
            && matches!(order[2], Effect::Repost { .. })
    );
    assert_eq!(order[3], &Effect::Replay { tuple, reports: reports() });
    assert_eq!(order[4], &Effect::Forget { below: Epoch(1) });
}

#[test]
fn nothing_is_claimed_before_a_target_answered() {
    for fault in [SUSPECT, FATAL] {
        let mut bench = Bench::new(SMALLER);
        assert_eq!(bench.give(fault), [Effect::Seek]);
        assert_eq!(sent(&bench.wait(Micros::from_millis(5000))), []);
        assert_eq!(bench.attempt(), Attempt::Seeking);
    }
}

#[test]
fn a_current_path_that_answers_ends_a_fault_unless_its_qp_is_in_error() {
    let mut bench = Bench::new(SMALLER);
    bench.give(SUSPECT);
    assert_eq!(bench.give(Input::PathAnswered(PathId(0))), [Effect::StopSeek]);
    assert_eq!(bench.machine.state(), running());

    bench.give(FATAL);
    let effects = bench.give(Input::PathAnswered(PathId(0)));
    assert!(
        matches!(sent(&effects)[..], [Handshake::Claim { tuple, .. }] if tuple.target == PathId(0)),
        "it is connected anew"
    );
}

#[test]
fn a_path_that_heals_while_the_claim_is_out_cancels_it() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    assert_eq!(
        bench.give(Input::PathAnswered(PathId(0))),
        [Effect::StopSeek, Effect::Send(Handshake::Cancel { tuple })]
    );
    assert_eq!(bench.machine.state(), running());
}

#[test]
fn a_path_that_is_not_armed_is_neither_claimed_nor_accepted() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::PathDisarmed(PathId(1)));
    bench.give(SUSPECT);
    assert_eq!(bench.give(Input::PathAnswered(PathId(1))), []);
    let tuple = bench.theirs(1, 1);
    assert_eq!(sent(&bench.hear(bench.claim(1, 1))), [Handshake::Refuse { tuple }]);
}

#[test]
fn a_planned_claim_is_refused() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.theirs(1, 1);
    assert_eq!(sent(&bench.hear(Handshake::Claim { tuple, cause: Cause::Planned })), [Handshake::Refuse { tuple }]);
}

#[test]
fn posters_are_out_before_an_acceptance() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.theirs(1, 1);
    assert_eq!(bench.hear(bench.claim(1, 1)), [Effect::Exclude]);
    assert_eq!(bench.give(Input::Excluded), [Effect::Send(Handshake::Accept { tuple })]);
    assert_eq!(sent(&bench.hear(bench.claim(1, 1))), [Handshake::Accept { tuple }], "it may have been lost");
}

#[test]
fn an_acceptor_does_not_fence_before_commit() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_accepted();
    let effects = bench.wait(deadlines().claim);
    assert!(!effects.contains(&Effect::Fence), "{effects:?}");
}

#[test]
fn a_poster_that_stays_inside_turns_an_acceptance_into_wait_and_a_commit_into_cancel() {
    let mut bench = Bench::new(SMALLER);
    bench.hear(bench.claim(1, 1));
    let tuple = bench.theirs(1, 1);
    assert_eq!(bench.wait(deadlines().exclude), [Effect::Send(Handshake::Wait { tuple })]);
    assert_eq!(bench.attempt(), Attempt::Holding);
    assert_eq!(bench.give(Input::Excluded), [], "the owner asks again");
    assert_eq!(sent(&bench.hear(bench.claim(1, 1))), [Handshake::Accept { tuple }]);

    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    assert_eq!(bench.hear(Handshake::Accept { tuple }), [Effect::Exclude]);
    assert_eq!(bench.wait(deadlines().exclude), [Effect::Send(Handshake::Cancel { tuple }), Effect::Release]);
    assert_eq!(bench.attempt(), Attempt::Seeking);
}

#[test]
fn an_acceptance_ends_at_cancel_and_at_the_claim_deadline() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_accepted();
    assert_eq!(bench.hear(Handshake::Cancel { tuple }), [Effect::Release]);
    assert_eq!(bench.machine.state(), running());

    let mut bench = Bench::new(SMALLER);
    bench.reach_accepted();
    assert_eq!(bench.wait(deadlines().claim), [Effect::Release]);
    assert_eq!(bench.machine.state(), running());
    let tuple = bench.theirs(1, 2);
    bench.hear(bench.claim(1, 2));
    assert_eq!(
        sent(&bench.give(Input::Excluded)),
        [Handshake::Accept { tuple }],
        "the same epoch may be accepted again"
    );
}

#[test]
fn a_cancel_of_another_attempt_changes_nothing() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_accepted();
    let tuple = bench.theirs(1, 9);
    assert_eq!(bench.hear(Handshake::Cancel { tuple }), []);
    assert_eq!(bench.attempt(), Attempt::Accepted);
}

#[test]
fn a_late_commit_is_adopted_whatever_became_of_the_acceptance() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_accepted();
    bench.wait(deadlines().claim);
    assert_eq!(bench.hear(bench.commit(1, 1)), [Effect::Exclude], "posting had gone on");
    assert_eq!(bench.stage(), Stage::Fencing);
    assert_eq!(bench.give(Input::Excluded), [Effect::Fence]);

    let mut bench = Bench::new(BIGGER);
    bench.reach_claiming();
    bench.hear(bench.commit(1, 1));
    assert_eq!((bench.stage(), bench.attempt()), (Stage::Fencing, Attempt::Idle), "the own claim is dropped");
}

#[test]
fn nothing_resumes_after_a_commit() {
    for stage in [Stage::Fencing, Stage::Fenced, Stage::Settling, Stage::Reposting, Stage::Ready] {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(stage);
        let tuple = bench.tuple();
        assert_eq!(bench.hear(Handshake::Cancel { tuple }), [], "{stage:?}");
        let effects = bench.wait(Micros::from_millis(60_000));
        assert!(!effects.contains(&Effect::Release), "{stage:?}: {effects:?}");
        assert_eq!(bench.stage(), Stage::Dead, "{stage:?}");
    }
}

#[test]
fn of_crossing_claims_the_larger_by_epoch_then_owner_stands() {
    let mut bench = Bench::new(SMALLER);
    let own = bench.reach_claiming();
    assert!(matches!(sent(&bench.hear(bench.claim(1, 1)))[..], [Handshake::Claim { tuple, .. }] if tuple == own));
    assert_eq!(bench.attempt(), Attempt::Claiming);
    bench.hear(bench.claim(2, 1));
    assert_eq!(bench.attempt(), Attempt::Accepting, "a higher epoch is larger whoever owns it");

    let mut bench = Bench::new(BIGGER);
    bench.reach_claiming();
    bench.hear(bench.claim(1, 1));
    assert_eq!(bench.attempt(), Attempt::Accepting);
}

#[test]
fn commit_and_cancel_are_never_said_of_one_attempt() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    let cancelled = bench.wait(deadlines().claim);
    assert!(sent(&cancelled).contains(&Handshake::Cancel { tuple }));
    assert_eq!(bench.hear(Handshake::Accept { tuple }), [], "an attempt given up is never revived");
    bench.wait(deadlines().resend);
    let next = bench.give(Input::PathAnswered(PathId(1)));
    assert!(
        matches!(sent(&next)[..], [Handshake::Claim { tuple: next, .. }] if next.attempt > tuple.attempt && next.epoch == tuple.epoch)
    );
}

#[test]
fn a_claim_is_repeated_with_growing_pauses_until_its_deadline() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_claiming();
    let claims = sent(&bench.wait(deadlines().claim))
        .into_iter()
        .filter(|message| matches!(message, Handshake::Claim { .. }))
        .count();
    assert_eq!(claims, 4, "after 20, 60, 140 and 300 ms");
}

#[test]
fn a_refused_claim_is_made_again_after_a_pause() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Refuse { tuple });
    assert_eq!(sent(&bench.give(Input::PathAnswered(PathId(1)))), []);
    assert!(matches!(sent(&bench.wait(deadlines().resend))[..], [Handshake::Claim { .. }]));
}

#[test]
fn an_end_with_unprovable_work_waits_as_long_as_the_hold_deadline() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Hold(true));
    let (tuple, mut waited) = (bench.theirs(1, 1), Micros(0));
    assert_eq!(
        bench.hear(bench.claim(1, 1)),
        [Effect::Exclude, Effect::Send(Handshake::Wait { tuple })],
        "new posts are held"
    );
    bench.give(Input::Excluded);
    while sent(&bench.hear(bench.claim(1, 1))) == [Handshake::Wait { tuple }] {
        bench.wait(Micros(MS.0 * 100));
        waited = waited + Micros(MS.0 * 100);
    }
    assert_eq!((waited, bench.attempt()), (deadlines().hold, Attempt::Accepted));
}

#[test]
fn an_end_whose_qp_is_in_error_does_not_wait() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Hold(true));
    bench.give(FATAL);
    bench.hear(bench.claim(1, 1));
    assert!(matches!(sent(&bench.give(Input::Excluded))[..], [Handshake::Accept { .. }]));
}

#[test]
fn an_end_with_unprovable_work_does_not_claim_before_the_hold_deadline_or_a_fatal_completion() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Hold(true));
    bench.give(SUSPECT);
    bench.wait(MS);
    assert_eq!(bench.give(Input::PathAnswered(PathId(1))), []);
    let mut fatal = bench.clone();
    assert!(matches!(sent(&fatal.give(FATAL))[..], [Handshake::Claim { .. }]));
    let mut done = bench.clone();
    assert!(matches!(sent(&done.give(Input::Hold(false)))[..], [Handshake::Claim { .. }]));
    assert_eq!(bench.wait(Micros(deadlines().hold.0 - MS.0 - 1)), [], "from the fault on");
    assert!(matches!(sent(&bench.wait(MS))[..], [Handshake::Claim { .. }]));
}

#[test]
fn work_posted_between_claim_and_exclusion_is_seen_before_accept_and_commit() {
    let mut bench = Bench::new(SMALLER);
    bench.hear(bench.claim(1, 1));
    bench.give(Input::Hold(true));
    assert_eq!(bench.give(Input::Excluded), [Effect::Send(Handshake::Wait { tuple: bench.theirs(1, 1) })]);

    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Accept { tuple });
    bench.give(Input::Hold(true));
    assert_eq!(bench.give(Input::Excluded), [Effect::Send(Handshake::Cancel { tuple }), Effect::Release]);
}

#[test]
fn wait_suspends_the_claim_deadline_and_holds_new_posts() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    assert_eq!(bench.hear(Handshake::Wait { tuple }), [Effect::Exclude]);
    for _ in 0..10 {
        bench.wait(Micros(deadlines().claim.0 / 2));
        bench.hear(Handshake::Wait { tuple });
        assert_eq!(bench.attempt(), Attempt::Claiming);
    }
    let effects = bench.wait(deadlines().claim);
    assert!(effects.contains(&Effect::Release) && sent(&effects).contains(&Handshake::Cancel { tuple }));
}

#[test]
fn an_owner_answers_a_claim_of_its_own_epoch_with_its_commit() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Accept { tuple });
    assert_eq!(
        bench.give(Input::Excluded),
        [Effect::StopSeek, Effect::Send(Handshake::Commit { tuple }), Effect::Fence]
    );
    assert_eq!(sent(&bench.hear(bench.claim(1, 1))), [Handshake::Commit { tuple }]);
    assert_eq!(sent(&bench.hear(Handshake::Accept { tuple })), [Handshake::Commit { tuple }]);
    let theirs = Bench::new(SMALLER).claim(0, 1);
    assert_eq!(sent(&bench.hear(theirs)), [Handshake::Commit { tuple }]);
}

#[test]
fn an_end_that_adopted_ignores_claims_of_that_epoch() {
    let mut bench = Bench::new(BIGGER);
    bench.reach_stage(Stage::Fenced);
    assert_eq!(bench.hear(bench.claim(1, 1)), []);
    assert_eq!(
        sent(&bench.hear(bench.commit(1, 1))),
        [bench.peer_report(true)],
        "a repeated COMMIT asks for the report"
    );
}

#[test]
fn strangers_tuples_are_ignored() {
    let mut bench = Bench::new(SMALLER);
    let not_theirs = shift_proto::id::Tuple { owner: ME, ..bench.theirs(1, 1) };
    for message in [
        Handshake::Commit { tuple: not_theirs },
        Handshake::Claim { tuple: not_theirs, cause: Cause::Flushed },
        Handshake::Accept { tuple: bench.theirs(1, 1) },
        Handshake::Ready { tuple: bench.theirs(1, 1) },
    ] {
        assert_eq!(bench.hear(message), []);
    }
    assert_eq!(bench.machine.state(), running());
}

#[test]
fn a_ready_that_overtakes_the_report_is_remembered() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fenced);
    let (tuple, report) = (bench.tuple(), bench.peer_report(true));
    bench.hear(Handshake::Ready { tuple });
    bench.hear(report);
    let effects = bench.give(Input::Reposted);
    assert!(
        matches!(
            effects[..],
            [Effect::Send(Handshake::Report { .. }), Effect::Send(Handshake::Ready { .. }), Effect::Replay { .. }]
        ),
        "{effects:?}"
    );
}

#[test]
fn an_end_that_awaits_something_says_again_what_leads_to_it() {
    let repeated = |stage: Stage| {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(stage);
        bench.give(Input::Progress);
        let tuple = bench.tuple();
        let kinds = [
            bench.peer_report(true),
            Handshake::Ready { tuple },
            Handshake::Confirm { tuple, seen: false },
            Handshake::Dead { epoch: Epoch(1) },
        ];
        let said = sent(&bench.wait(deadlines().resend));
        assert!(said.iter().all(|message| kinds.contains(message)), "{stage:?}: {said:?}");
        kinds.map(|kind| said.contains(&kind))
    };
    assert_eq!(repeated(Stage::Fencing), [false; 4], "the owner asks");
    assert_eq!(repeated(Stage::Fenced), [true, false, false, false]);
    assert_eq!(repeated(Stage::Reposting), [true, false, false, false]);
    assert_eq!(repeated(Stage::Ready), [true, true, false, false]);
    assert_eq!(repeated(Stage::Replaying), [false, true, false, false]);
    assert_eq!(repeated(Stage::Running), [false, true, true, false]);
}

#[test]
fn an_owner_repeats_its_commit_until_the_peers_report_is_in() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Accept { tuple });
    bench.give(Input::Excluded);
    assert_eq!(sent(&bench.wait(deadlines().resend)), [Handshake::Commit { tuple }]);
    bench.fenced(true);
    assert_eq!(sent(&bench.wait(deadlines().resend)), [Handshake::Commit { tuple }, bench.peer_report(true)]);
}

#[test]
fn a_repeated_commit_is_not_answered_once_the_peer_is_ready() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Reposting);
    assert_eq!(sent(&bench.hear(bench.commit(1, 1))), [bench.peer_report(true)]);
    bench.hear(Handshake::Ready { tuple: bench.tuple() });
    assert_eq!(bench.hear(bench.commit(1, 1)), []);
}

#[test]
fn a_peer_that_fenced_and_has_nothing_to_report_has_fenced() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fenced);
    let tuple = bench.tuple();
    assert_eq!(bench.hear(Handshake::Report { tuple, fenced: true, reports: Vec::new() }), [Effect::Repost { tuple }]);
}

#[test]
fn the_replay_waits_for_the_peers_receives() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Ready);
    let effects = bench.wait(Micros::from_millis(500));
    assert!(
        effects.iter().all(|effect| matches!(effect, Effect::Send(Handshake::Report { .. } | Handshake::Ready { .. }))),
        "{effects:?}"
    );
    assert!(!effects.is_empty());
}

#[test]
fn a_replay_does_not_start_while_the_posters_are_out_for_a_newer_claim() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Ready);
    let (ready, newer) = (Handshake::Ready { tuple: bench.tuple() }, bench.theirs(2, 2));
    assert_eq!(sent(&bench.hear(bench.claim(2, 2))), [Handshake::Accept { tuple: newer }]);
    assert_eq!(bench.hear(ready), []);
    let effects = bench.hear(Handshake::Cancel { tuple: newer });
    assert!(matches!(effects[..], [Effect::Replay { .. }]), "{effects:?}");
}

#[test]
fn a_replay_is_interrupted_for_a_newer_claim_and_goes_on_if_it_lapses() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Replaying);
    assert_eq!(bench.hear(bench.claim(2, 2)), [Effect::Exclude]);
    bench.give(Input::Excluded);
    let effects = bench.wait(deadlines().claim);
    assert!(effects.contains(&Effect::Release));
    assert_eq!(bench.stage(), Stage::Replaying);
}

#[test]
fn a_second_fault_in_mid_migration_is_a_claim_of_the_next_epoch() {
    for (stage, fault) in [(Stage::Fenced, SUSPECT), (Stage::Ready, FATAL), (Stage::Replaying, FATAL)] {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(stage);
        bench.give(fault);
        let effects = bench.give(Input::PathAnswered(PathId(0)));
        assert!(
            matches!(sent(&effects)[..], [Handshake::Claim { tuple, .. }] if tuple.epoch == Epoch(2) && tuple.target == PathId(0)),
            "{stage:?}"
        );
    }
}

#[test]
fn flushes_of_the_incarnation_that_is_fenced_are_no_second_fault() {
    for stage in [Stage::Fencing, Stage::Fenced, Stage::Settling, Stage::Reposting] {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(stage);
        assert_eq!(bench.give(FATAL), [], "{stage:?}");
    }
}

#[test]
fn an_end_that_cannot_fence_waits_out_the_packets_and_drains_again() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fencing);
    let tuple = bench.tuple();
    let word = Handshake::Report { tuple, fenced: false, reports: Vec::new() };
    assert_eq!(sent(&bench.fenced(false)), [word], "a report now would miss what still arrives");
    bench.hear(bench.peer_report(true));
    assert_eq!(bench.stage(), Stage::Settling);
    assert!(!bench.wait(Micros(deadlines().packet_lifetime.0 - 1)).contains(&Effect::Fence));
    assert!(bench.wait(MS).contains(&Effect::Fence));
    let effects = bench.fenced(false);
    let report = Handshake::Report { tuple, fenced: false, reports: reports() };
    assert_eq!(effects, [Effect::Send(report), Effect::Repost { tuple }]);
}

#[test]
fn the_other_end_waits_for_the_drained_report_and_the_packet_lifetime() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fenced);
    let tuple = bench.tuple();
    let (word, report) = (Handshake::Report { tuple, fenced: false, reports: Vec::new() }, bench.peer_report(false));
    assert_eq!(bench.hear(word.clone()), []);
    assert_eq!(bench.hear(report), []);
    assert_eq!(bench.stage(), Stage::Settling);
    assert_eq!(bench.hear(word), [], "the bare word comes late");
    assert!(bench.wait(deadlines().packet_lifetime).contains(&Effect::Repost { tuple }));
    assert_eq!(bench.stage(), Stage::Reposting);
}

#[test]
fn two_ends_that_cannot_fence_surface() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fencing);
    bench.fenced(false);
    let report = Handshake::Report { tuple: bench.tuple(), fenced: false, reports: Vec::new() };
    assert_eq!(surfaced(&bench.hear(report)), Some(Surfaced::NeitherFenced));
}

#[test]
fn a_fence_that_does_not_answer_counts_as_failed() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fencing);
    let effects = bench.wait(deadlines().fence);
    assert!(sent(&effects).contains(&Handshake::Report { tuple: bench.tuple(), fenced: false, reports: Vec::new() }));
    assert_eq!(bench.stage(), Stage::Fenced);
}

#[test]
fn an_exchange_that_does_not_end_is_surfaced_at_its_deadline() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Replaying);
    let effects = bench.wait(deadlines().exchange);
    assert_eq!(surfaced(&effects), Some(Surfaced::ExchangeOver));

    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Replaying);
    bench.give(Input::Replayed);
    assert_eq!(
        surfaced(&bench.wait(Micros::from_millis(60_000))),
        None,
        "what is posted retires in its own time, or faults"
    );
}

#[test]
fn patience_runs_from_the_first_masked_error_through_all_waits() {
    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    assert_eq!(surfaced(&bench.wait(Micros(deadlines().patience.0 - 1))), None);
    let effects = bench.wait(MS);
    assert_eq!(surfaced(&effects), Some(Surfaced::PatienceOver));
    assert_eq!(sent(&effects)[0], Handshake::Dead { epoch: Epoch(0) });

    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    bench.wait(Micros(deadlines().patience.0 - 1000));
    bench.hear(bench.commit(1, 1));
    assert_eq!(surfaced(&bench.wait(Micros(2000))), Some(Surfaced::PatienceOver), "a migration does not start it anew");
}

#[test]
fn a_success_starts_patience_anew() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Replaying);
    bench.give(Input::Replayed);
    bench.wait(Micros::from_millis(9_000));
    bench.give(Input::Progress);
    bench.give(FATAL);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(9_000))), None);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(1_000))), Some(Surfaced::PatienceOver));
}

#[test]
fn without_a_masked_error_patience_does_not_run() {
    let mut bench = Bench::new(SMALLER);
    bench.give(SUSPECT);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(60_000))), None);
}

#[test]
fn a_stop_surfaces_and_tells_the_peer_until_it_knows() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Replaying);
    let effects = bench.give(Input::StopReached);
    let dead = Handshake::Dead { epoch: Epoch(1) };
    assert_eq!(effects, [Effect::Surface { why: Surfaced::StopReached }, Effect::Send(dead.clone())]);
    assert!(sent(&bench.wait(Micros::from_millis(2000))).len() > 5);
    assert_eq!(sent(&bench.hear(dead)), [Handshake::Gone], "an answer that needs none");
    assert_eq!(bench.wait(Micros::from_millis(2000)), []);
}

#[test]
fn an_end_that_hears_dead_surfaces_too_whatever_it_does() {
    for stage in [Stage::Running, Stage::Fencing, Stage::Ready, Stage::Replaying] {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(stage);
        let effects = bench.hear(Handshake::Dead { epoch: Epoch(0) });
        assert_eq!(surfaced(&effects), Some(Surfaced::PeerSurfaced), "{stage:?}");
        assert!(matches!(sent(&effects)[..], [Handshake::Dead { .. }]));
        assert_eq!(bench.machine.deadline(), None);
    }
}

#[test]
fn an_application_error_is_told_only_to_a_peer_that_claims() {
    let mut bench = Bench::new(SMALLER);
    assert_eq!(bench.give(Input::ApplicationError), []);
    assert_eq!(bench.machine.deadline(), None);
    let tuple = bench.theirs(1, 1);
    assert_eq!(sent(&bench.hear(bench.claim(1, 1))), [Handshake::Surface { tuple }]);
    assert_eq!(bench.give(FATAL), [], "no fault is masked any more");

    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Wait { tuple });
    assert_eq!(
        bench.give(Input::ApplicationError),
        [Effect::Send(Handshake::Cancel { tuple }), Effect::StopSeek, Effect::Release]
    );
}

#[test]
fn an_application_error_behind_a_masked_fault_surfaces_what_was_masked() {
    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    assert_eq!(surfaced(&bench.give(Input::ApplicationError)), Some(Surfaced::ApplicationError));
}

#[test]
fn a_peer_that_destroys_its_qp_is_no_fault_and_is_not_claimed_from() {
    let mut bench = Bench::new(SMALLER);
    assert_eq!(bench.hear(Handshake::Gone), []);
    assert_eq!(bench.give(SUSPECT), []);
    assert_eq!(surfaced(&bench.give(FATAL)), Some(Surfaced::PeerGone));

    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Ready);
    assert_eq!(surfaced(&bench.hear(Handshake::Gone)), Some(Surfaced::PeerGone));
}

#[test]
fn silence_of_all_networks_surfaces_only_in_mid_migration() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_accepted();
    assert_eq!(bench.give(Input::PeerGone), [Effect::Release]);
    bench.give(FATAL);
    assert_eq!(surfaced(&bench.give(Input::PeerGone)), None, "patience decides");
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fenced);
    assert_eq!(surfaced(&bench.give(Input::PeerGone)), Some(Surfaced::PeerGone));
}

#[test]
fn a_destroyed_qp_answers_everything_with_gone() {
    let mut bench = Bench::new(SMALLER);
    assert_eq!(bench.give(Input::Destroyed), [Effect::Send(Handshake::Gone)]);
    for message in [bench.claim(1, 1), bench.commit(1, 1), Handshake::Dead { epoch: Epoch(0) }] {
        assert_eq!(bench.hear(message), [Effect::Send(Handshake::Gone)]);
    }
    assert_eq!(bench.hear(Handshake::Gone), []);
}

#[test]
fn a_missing_confirmation_is_sent_again_and_surfaces_nothing() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Running);
    let tuple = bench.tuple();
    let effects = bench.wait(Micros::from_millis(60_000));
    assert_eq!(bench.machine.state(), running());
    assert!(
        sent(&effects).contains(&Handshake::Ready { tuple })
            && sent(&effects).contains(&Handshake::Confirm { tuple, seen: false })
    );
    let effects = bench.hear(Handshake::Confirm { tuple, seen: false });
    assert_eq!(effects, [Effect::Forget { below: Epoch(1) }, Effect::Send(Handshake::Confirm { tuple, seen: true })]);
    assert_eq!(bench.hear(Handshake::Confirm { tuple, seen: true }), [Effect::Confirmed { epoch: Epoch(1) }]);
    assert_eq!(bench.hear(Handshake::Confirm { tuple, seen: true }), [], "an answer is not answered");
    assert_eq!(bench.machine.deadline(), None);
}

#[test]
fn a_process_that_slept_gives_the_others_the_time_it_slept() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fenced);
    bench.now = bench.now + Micros::from_millis(30_000);
    assert_eq!(surfaced(&bench.give(Input::Tick)), None);
    let left = Micros(deadlines().exchange.0 - 1);
    assert_eq!(surfaced(&bench.wait(left)), None);
    assert_eq!(surfaced(&bench.wait(MS)), Some(Surfaced::ExchangeOver));
}

#[test]
fn migrations_without_any_confirmation_end_at_a_bound() {
    let mut bench = Bench::new(SMALLER);
    bench.hear(bench.commit(MAX_INCARNATIONS as u32 - 1, 1));
    assert_eq!(bench.stage(), Stage::Fencing);
    let effects = bench.hear(bench.commit(MAX_INCARNATIONS as u32, 1));
    assert_eq!(surfaced(&effects), Some(Surfaced::TooManyIncarnations));
}
