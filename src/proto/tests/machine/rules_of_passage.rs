//! The handshake's rules from COMMIT on by name: one machine, its peer played by the test.

use shift_proto::id::{Epoch, Micros, PathId};
use shift_proto::ledger::MAX_INCARNATIONS;
use shift_proto::migrate::{Cause, Deadlines, Effect, Handshake, Input, Machine, Stage, Surfaced, MAX_REPORTS};

use crate::bench::{reports, running, sent, surfaced, Bench, BIGGER, FATAL, ME, SMALLER, SUSPECT};

fn deadlines() -> Deadlines {
    Deadlines::default()
}

const MS: Micros = Micros::from_millis(1);

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
    assert_eq!(bench.hear(bench.commit(1, 9)), [], "that of another attempt asks for nothing");
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
fn what_is_said_of_another_attempt_than_the_current_one_is_ignored() {
    let mut fenced = Bench::new(SMALLER);
    fenced.reach_stage(Stage::Fenced);
    let mut unconfirmed = Bench::new(SMALLER);
    unconfirmed.reach_stage(Stage::Running);
    for tuple in [fenced.theirs(1, 2), fenced.theirs(2, 1), fenced.theirs(0, 1)] {
        assert_eq!(fenced.hear(Handshake::Report { tuple, fenced: true, reports: reports() }), [], "{tuple:?}");
        assert_eq!(fenced.stage(), Stage::Fenced);
        for seen in [true, false] {
            assert_eq!(unconfirmed.hear(Handshake::Confirm { tuple, seen }), [], "{tuple:?}");
        }
    }
}

/// Each end says of an attempt what its part is, the owner or the other one.
#[test]
fn an_owner_is_not_told_by_others_to_repeat_what_it_said() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.reach_claiming();
    bench.hear(Handshake::Accept { tuple });
    bench.give(Input::Excluded);
    assert_eq!(bench.hear(Handshake::Claim { tuple, cause: Cause::PortDown }), []);
    bench.fenced(true);
    assert_eq!(bench.hear(Handshake::Commit { tuple }), []);
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
    bench.give(Input::Reposted);
    assert_eq!(bench.hear(Handshake::Ready { tuple }), [Effect::Replay { tuple, reports: reports() }]);
}

#[test]
fn a_drained_report_that_comes_when_the_packet_lifetime_is_over_is_not_waited_for() {
    let lifetime = deadlines().packet_lifetime;
    for (passed, stage) in [(Micros(lifetime.0 - 1), Stage::Settling), (lifetime, Stage::Reposting)] {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(Stage::Fenced);
        bench.wait(passed);
        let report = bench.peer_report(false);
        bench.hear(report);
        assert_eq!(bench.stage(), stage, "{passed} after the own fence");
    }
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

/// Held posts wait for it, however good the path is.
#[test]
fn what_is_not_replayed_yet_is_waited_for_with_patience_and_each_success_starts_it_anew() {
    let replaying = || {
        let mut bench = Bench::new(SMALLER);
        let hurried = Deadlines { patience: Micros::from_millis(2_500), ..deadlines() };
        bench.machine = Machine::new(ME, SMALLER, hurried);
        bench.give(Input::PathArmed(PathId(1)));
        bench.reach_stage(Stage::Replaying);
        bench
    };
    let mut bench = replaying();
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(2_499))), None);
    assert_eq!(surfaced(&bench.wait(MS)), Some(Surfaced::PatienceOver));
    let mut bench = replaying();
    bench.wait(Micros::from_millis(100));
    bench.give(Input::Progress);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(2_499))), None);
    assert_eq!(surfaced(&bench.wait(MS)), Some(Surfaced::PatienceOver));
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
    assert_eq!(bench.hear(bench.commit(1, 1)), [Effect::Send(Handshake::Dead { epoch: Epoch(0) })]);
    assert_eq!(bench.give(FATAL), [], "no fault is masked any more");
    let mut surfaced = Bench::new(SMALLER);
    surfaced.reach_stage(Stage::Dead);
    let epoch = surfaced.machine.epoch();
    assert_eq!(
        surfaced.hear(surfaced.claim(2, 1)),
        [Effect::Send(Handshake::Dead { epoch })],
        "that is for all to know"
    );

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
    assert_eq!(bench.give(Input::Unreachable), [Effect::Release]);
    bench.give(FATAL);
    assert_eq!(surfaced(&bench.give(Input::Unreachable)), None, "patience decides");
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fenced);
    assert_eq!(surfaced(&bench.give(Input::Unreachable)), Some(Surfaced::Unreachable));
    // The peer may live, accepted or resumed: it has to hear of it as soon as there is a network.
    let dead = Handshake::Dead { epoch: Epoch(1) };
    assert!(sent(&bench.wait(Micros::from_millis(60_000))).contains(&dead));
    assert_eq!(bench.give(Input::Unreachable), []);
    assert!(sent(&bench.wait(Micros::from_millis(1000))).contains(&dead));
    assert_eq!(bench.hear(Handshake::Gone), []);
    assert_eq!(bench.wait(Micros::from_millis(60_000)), [], "nobody is left to tell");
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
fn a_confirmation_that_comes_before_the_own_replay_is_over_is_answered_when_it_is() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Replaying);
    let tuple = bench.tuple();
    let confirm = |seen| Handshake::Confirm { tuple, seen };
    assert_eq!(bench.hear(confirm(false)), [Effect::Forget { below: Epoch(1) }]);
    assert_eq!(bench.hear(confirm(false)), [], "once");
    assert_eq!(sent(&bench.give(Input::Retired)), [confirm(false), confirm(true)]);
    let mut other = Bench::new(SMALLER);
    other.reach_stage(Stage::Replaying);
    assert_eq!(sent(&other.give(Input::Retired)), [confirm(false)]);
    // Either end may say something of it again: one that knows and is not known to know is not done.
    other.hear(confirm(false));
    assert!(!other.machine.can_muster(PathId(0)));
    other.hear(confirm(true));
    assert!(other.machine.can_muster(PathId(0)));
}

#[test]
fn a_commit_to_another_attempt_than_the_plan_is_no_plan() {
    let mut bench = Bench::new(BIGGER);
    bench.claim_by_plan();
    bench.hear(bench.commit(1, 1));
    assert!(!bench.machine.is_planned());
    let mut faulty = Bench::new(BIGGER);
    let tuple = faulty.reach_accepted();
    faulty.hear(Handshake::Commit { tuple });
    assert!(!faulty.machine.is_planned());
}

#[test]
fn a_fence_may_report_as_many_incarnations_as_a_message_holds() {
    for (count, why) in [(MAX_REPORTS, None), (MAX_REPORTS + 1, Some(Surfaced::TooManyIncarnations))] {
        let mut bench = Bench::new(SMALLER);
        bench.reach_stage(Stage::Fencing);
        let effects = bench.give(Input::Fenced { reports: reports().repeat(count), complete: true });
        assert_eq!(surfaced(&effects), why, "{count} reports");
    }
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

/// Not more: what passed before the process slept counts.
#[test]
fn of_a_wait_that_was_slept_through_only_the_sleep_is_given_back() {
    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(7_000))), None);
    bench.now = bench.now + Micros::from_millis(20_000);
    bench.give(Input::Tick);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(2_900))), None);
    assert_eq!(surfaced(&bench.wait(Micros::from_millis(200))), Some(Surfaced::PatienceOver));
}

#[test]
fn a_tick_that_is_a_little_late_was_no_sleep() {
    let (watch, least) = (Micros::from_millis(100), Micros::from_millis(200));
    for (late, given_back) in [(least, Micros(0)), (least + Micros(1), watch + least + Micros(1))] {
        let mut bench = Bench::new(SMALLER);
        bench.give(FATAL);
        let over = bench.now + deadlines().patience + given_back;
        bench.now = bench.now + watch + late;
        bench.give(Input::Tick);
        assert_eq!(surfaced(&bench.wait(Micros(over.since(bench.now).0 - 1))), None, "{late} late");
        assert_eq!(surfaced(&bench.wait(Micros(1))), Some(Surfaced::PatienceOver), "{late} late");
    }
}

#[test]
fn a_process_that_is_held_up_at_every_tick_hides_no_error_for_ever() {
    for late_ms in [150, 300, 1_000] {
        let mut bench = Bench::new(SMALLER);
        bench.give(FATAL);
        let (since, late) = (bench.now, Micros::from_millis(late_ms));
        let mut why = None;
        while let Some(due) = bench.machine.deadline().filter(|_| why.is_none()) {
            bench.now = due + late;
            why = surfaced(&bench.give(Input::Tick));
            assert!(bench.now.since(since) < Micros::from_millis(60_000), "{late_ms} ms late at each tick");
        }
        assert_eq!(why, Some(Surfaced::PatienceOver));
        let took_ms = bench.now.since(since).as_millis();
        let most_ms = deadlines().patience.as_millis() + 9 * (late_ms + 100);
        assert!((deadlines().patience.as_millis()..=most_ms).contains(&took_ms), "{took_ms} ms, {late_ms} late");
    }
}

#[test]
fn a_machine_that_came_to_rest_is_given_its_next_sleeps_back() {
    let mut bench = Bench::new(SMALLER);
    for _ in 0..3 {
        bench.give(FATAL);
        for _ in 0..8 {
            bench.now = bench.now + Micros::from_millis(20_000);
            assert_eq!(surfaced(&bench.give(Input::Tick)), None);
        }
        let mut later = bench.clone();
        later.now = later.now + Micros::from_millis(20_000);
        assert_eq!(surfaced(&later.give(Input::Tick)), Some(Surfaced::PatienceOver), "one sleep too many");
        bench.hear(bench.commit(bench.machine.epoch().0 + 1, 1));
        bench.give(Input::Excluded);
        bench.fenced(true);
        let report = bench.peer_report(true);
        bench.hear(report);
        bench.give(Input::Reposted);
        let tuple = bench.tuple();
        bench.hear(Handshake::Ready { tuple });
        bench.give(Input::Replayed);
        bench.give(Input::Retired);
        bench.hear(Handshake::Confirm { tuple, seen: true });
        assert_eq!(bench.machine.deadline(), None);
    }
}

#[test]
fn migrations_without_any_confirmation_end_at_a_bound() {
    let mut bench = Bench::new(SMALLER);
    bench.hear(bench.commit(MAX_INCARNATIONS as u32 - 1, 1));
    assert_eq!(bench.stage(), Stage::Fencing);
    let effects = bench.hear(bench.commit(MAX_INCARNATIONS as u32, 1));
    assert_eq!(surfaced(&effects), Some(Surfaced::TooManyIncarnations));
}
