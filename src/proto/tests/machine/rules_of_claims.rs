//! The handshake's rules of claims by name: one machine, its peer played by the test.

use shift_proto::id::{Epoch, Micros, PathId, Tuple};
use shift_proto::migrate::{Attempt, Deadlines, Effect, Handshake, Input, Phase, Stage};

use crate::bench::{phases, reports, running, sent, Bench, BIGGER, FATAL, ME, SMALLER, SUSPECT};

fn deadlines() -> Deadlines {
    Deadlines::default()
}

const MS: Micros = Micros::from_millis(1);

#[test]
fn a_whole_migration_as_its_owner_gives_every_phase_once_and_in_order() {
    let mut bench = Bench::new(SMALLER);
    let mut effects = bench.give_all(FATAL);
    effects.extend(bench.give_all(Input::PathAnswered(PathId(1))));
    let tuple = Tuple { epoch: Epoch(1), owner: ME, attempt: 1, target: PathId(1) };
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
    assert_eq!(sent(&bench.give(Input::PathAnswered(PathId(0)))), [], "another path has the first chance");
    bench.wait(Deadlines::default().probe);
    let effects = bench.give(Input::PathAnswered(PathId(0)));
    assert!(
        matches!(sent(&effects)[..], [Handshake::Claim { tuple, .. }] if tuple.target == PathId(0)),
        "it is connected anew"
    );
}

#[test]
fn a_path_that_killed_its_queue_pair_is_claimed_only_if_no_other_answers() {
    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    bench.give(Input::PathAnswered(PathId(0)));
    let effects = bench.give(Input::PathAnswered(PathId(1)));
    assert!(matches!(sent(&effects)[..], [Handshake::Claim { tuple, .. }] if tuple.target == PathId(1)));
}

/// It was drained, or its device removed, while the claim had to wait.
#[test]
fn a_path_that_is_no_target_any_more_is_not_claimed_although_it_answered() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::PathArmed(PathId(2)));
    bench.give(Input::Hold(true));
    bench.give(SUSPECT);
    assert_eq!(sent(&bench.give(Input::PathAnswered(PathId(1)))), []);
    bench.give(Input::PathDisarmed(PathId(1)));
    assert_eq!(sent(&bench.wait(deadlines().hold)), []);
    let effects = bench.give(Input::PathAnswered(PathId(2)));
    assert!(matches!(sent(&effects)[..], [Handshake::Claim { tuple, .. }] if tuple.target == PathId(2)));
}

#[test]
fn a_claim_of_a_path_that_is_no_target_any_more_is_cancelled_until_it_is_committed_to() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    assert_eq!(sent(&bench.give(Input::PathDisarmed(PathId(1)))), [Handshake::Cancel { tuple }]);
    assert_eq!(sent(&bench.hear(Handshake::Accept { tuple })), []);

    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Accept { tuple });
    assert_eq!(sent(&bench.give(Input::PathDisarmed(PathId(1)))), [Handshake::Cancel { tuple }]);
    assert_eq!(sent(&bench.give(Input::Excluded)), []);

    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Accept { tuple });
    assert_eq!(sent(&bench.give(Input::Excluded)), [Handshake::Commit { tuple }]);
    assert_eq!(sent(&bench.give(Input::PathDisarmed(PathId(1)))), [], "COMMIT is the point of no return");
}

#[test]
fn the_hold_ends_with_the_retry_budget_of_the_queue_pair() {
    let hold_of = |budget_ms: u64| {
        let mut bench = Bench::new(SMALLER);
        bench.machine.set_hold(Micros::from_millis(budget_ms));
        bench.give(Input::Hold(true));
        bench.give(SUSPECT);
        assert_eq!(sent(&bench.give(Input::PathAnswered(PathId(1)))), []);
        let began = bench.now;
        while bench.attempt() == Attempt::Seeking {
            bench.wait(Micros::from_millis(1));
        }
        bench.now.since(began).as_millis()
    };
    assert_eq!((hold_of(50), hold_of(700)), (50, 700));
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

/// Else one after the other could keep posts held for ever.
#[test]
fn faults_of_the_own_do_not_make_an_acceptance_last_longer() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_accepted();
    bench.wait(Micros(deadlines().claim.0 / 2));
    bench.give(SUSPECT);
    assert_eq!(bench.wait(Micros(deadlines().claim.0 / 2 - 1)), []);
    assert_eq!(bench.wait(Micros(1)), [Effect::Release]);
}

#[test]
fn a_claim_that_is_said_again_gives_the_posters_no_more_time() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.theirs(1, 1);
    bench.hear(bench.claim(1, 1));
    bench.wait(Micros(deadlines().exclude.0 - 1));
    assert_eq!(bench.hear(bench.claim(1, 1)), []);
    assert_eq!(bench.wait(Micros(1)), [Effect::Send(Handshake::Wait { tuple })]);
}

#[test]
fn of_two_claims_of_the_same_owner_the_newer_stands() {
    let mut bench = Bench::new(SMALLER);
    let newer = |attempt| Handshake::Accept { tuple: Bench::new(SMALLER).theirs(1, attempt) };
    bench.hear(bench.claim(1, 1));
    assert_eq!(bench.hear(bench.claim(1, 2)), []);
    assert_eq!(sent(&bench.give(Input::Excluded)), [newer(2)]);
    assert_eq!(sent(&bench.hear(bench.claim(1, 3))), [newer(3)]);
}

/// The owner has given it up.
#[test]
fn an_older_claim_of_the_same_owner_is_not_considered() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Hold(true));
    let tuple = bench.theirs(1, 2);
    assert!(sent(&bench.hear(bench.claim(1, 2))).contains(&Handshake::Wait { tuple }));
    assert_eq!(bench.hear(bench.claim(1, 1)), []);
    let mut bench = Bench::new(SMALLER);
    bench.hear(bench.claim(1, 2));
    assert_eq!(bench.hear(bench.claim(1, 1)), []);
    assert_eq!(bench.give(Input::Excluded), [Effect::Send(Handshake::Accept { tuple })]);
    assert_eq!(bench.hear(bench.claim(1, 1)), []);
}

#[test]
fn a_claim_that_waits_for_the_nic_to_heal_is_not_accepted_because_of_a_fault() {
    for fault in [SUSPECT, FATAL] {
        let mut bench = Bench::new(SMALLER);
        bench.give(Input::Hold(true));
        bench.hear(bench.claim(1, 1));
        bench.give(Input::Excluded);
        assert_eq!(bench.give(fault), [Effect::Seek], "the owner asks again");
        assert_eq!(bench.attempt(), Attempt::Holding);
    }
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
    bench.hear(Handshake::Refuse { tuple: Tuple { attempt: tuple.attempt + 1, ..tuple } });
    assert_eq!(bench.attempt(), Attempt::Claiming, "that was not asked");
    bench.hear(Handshake::Refuse { tuple });
    assert_eq!(bench.attempt(), Attempt::Seeking);
    assert_eq!(sent(&bench.give(Input::PathAnswered(PathId(1)))), []);
    let again = sent(&bench.wait(deadlines().resend));
    assert!(matches!(again[..], [Handshake::Claim { tuple: again, .. }] if again.attempt > tuple.attempt), "{again:?}");
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
