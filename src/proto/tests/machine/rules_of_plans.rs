//! The rules of planned moves by name: one machine, its peer played by the test.

use shift_proto::id::{Micros, PathId};
use shift_proto::migrate::{Attempt, Cause, Deadlines, Effect, Handshake, Input, Scope, Stage, DEADLINES};

use crate::bench::{running, sent, surfaced, Bench, BIGGER, FATAL, SMALLER, SUSPECT};

fn planned(bench: &Bench) -> Handshake {
    Handshake::Claim { tuple: bench.theirs(1, 1), cause: Cause::Planned }
}

fn plan() -> Micros {
    Deadlines::default().plan
}

#[test]
fn a_planned_claim_goes_out_when_the_own_sends_are_complete_and_not_before() {
    let mut bench = Bench::new(SMALLER);
    assert_eq!(bench.give(Input::Move(PathId(1))), [Effect::Exclude]);
    assert!(!bench.machine.wants_drain(), "somebody may be posting still");
    assert_eq!(bench.give(Input::Excluded), []);
    assert!(bench.machine.wants_drain());
    let effects = bench.give(Input::Drained);
    assert!(
        matches!(sent(&effects)[..], [Handshake::Claim { tuple, cause: Cause::Planned }] if tuple.target == PathId(1))
    );
    let Handshake::Claim { tuple, .. } = sent(&effects)[0] else { panic!() };
    let effects = bench.hear(Handshake::Accept { tuple });
    assert_eq!(effects, [Effect::Send(Handshake::Commit { tuple }), Effect::Fence], "both ends have drained");
    assert!(bench.machine.is_planned());
}

#[test]
fn a_planned_claim_is_answered_with_wait_until_the_own_sends_are_complete() {
    let mut bench = Bench::new(BIGGER);
    let tuple = bench.theirs(1, 1);
    assert_eq!(bench.hear(planned(&bench)), [Effect::Exclude]);
    assert_eq!(sent(&bench.give(Input::Excluded)), [Handshake::Wait { tuple }]);
    assert_eq!(sent(&bench.hear(planned(&bench))), [Handshake::Wait { tuple }]);
    assert_eq!(sent(&bench.give(Input::Drained)), [Handshake::Accept { tuple }]);
    assert_eq!(bench.hear(Handshake::Commit { tuple }), [Effect::Fence]);
    assert!(bench.machine.is_planned());
}

#[test]
fn what_does_not_end_in_time_is_left_where_it_is_and_nothing_is_surfaced() {
    let row = DEADLINES.iter().find(|row| row.name == "plan").unwrap();
    assert_eq!(row.default, plan());
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Move(PathId(1)));
    bench.give(Input::Excluded);
    assert_eq!(bench.wait(Micros(plan().0 - 1)), []);
    assert_eq!(bench.wait(Micros(1)), [Effect::Release], "nothing was said, so nothing is taken back");
    assert_eq!((bench.machine.state(), bench.machine.path()), (running(), PathId(0)));
    assert_eq!(bench.machine.deadline(), None);

    // The same where the peer is the one that is not done.
    let tuple = bench.claim_by_plan();
    let until = bench.now + plan();
    let mut effects = Vec::new();
    while bench.now < until {
        bench.hear(Handshake::Wait { tuple });
        effects.extend(bench.wait(Micros::from_millis(100)));
    }
    assert!(sent(&effects).contains(&Handshake::Cancel { tuple }) && effects.contains(&Effect::Release));
    assert_eq!(surfaced(&effects), None);
    assert_eq!(bench.machine.state(), running());
}

#[test]
fn who_waits_for_its_own_sends_goes_on_at_cancel_and_when_nothing_is_heard() {
    for cancelled in [true, false] {
        let mut bench = Bench::new(BIGGER);
        let tuple = bench.theirs(1, 1);
        bench.hear(planned(&bench));
        bench.give(Input::Excluded);
        let effects =
            if cancelled { bench.hear(Handshake::Cancel { tuple }) } else { bench.wait(Deadlines::default().claim) };
        assert_eq!(effects, [Effect::Release]);
        assert_eq!(bench.machine.state(), running());
    }
}

#[test]
fn who_has_accepted_a_plan_waits_for_a_commit_that_was_sent_in_time() {
    let accepted = || {
        let mut bench = Bench::new(BIGGER);
        bench.hear(planned(&bench));
        bench.give(Input::Excluded);
        bench.give(Input::Drained);
        assert_eq!(bench.attempt(), Attempt::Accepted);
        bench
    };
    let (claim, mut bench) = (Deadlines::default().claim, accepted());
    assert_eq!(bench.wait(Micros(claim.0 + plan().0 - 1)), []);
    assert_eq!(bench.wait(Micros(1)), [Effect::Release]);
    // With a fault of its own it is in a hurry.
    let mut bench = accepted();
    bench.give(SUSPECT);
    assert_eq!(bench.wait(claim), [Effect::Release]);
    assert_eq!(bench.attempt(), Attempt::Seeking);
}

#[test]
fn a_fault_in_the_middle_of_a_plan_makes_it_an_ordinary_one() {
    for fault in [SUSPECT, FATAL] {
        let mut draining = Bench::new(SMALLER);
        draining.give(Input::Move(PathId(1)));
        draining.give(Input::Excluded);
        assert_eq!(draining.give(fault.clone()), [Effect::Release, Effect::Seek]);
        assert_eq!(draining.attempt(), Attempt::Seeking);

        let mut claiming = Bench::new(SMALLER);
        let tuple = claiming.claim_by_plan();
        let effects = claiming.give(fault.clone());
        assert_eq!(effects, [Effect::Send(Handshake::Cancel { tuple }), Effect::Release, Effect::Seek]);
        claiming.wait(Deadlines::default().resend);
        let again = claiming.give(Input::PathAnswered(PathId(1)));
        assert!(matches!(sent(&again)[..], [Handshake::Claim { cause, .. }] if cause != Cause::Planned));

        // The peer has drained already: what this end has outstanding is decided by the reports, as after any fault.
        let mut holding = Bench::new(BIGGER);
        let tuple = holding.theirs(1, 1);
        holding.hear(planned(&holding));
        holding.give(Input::Excluded);
        assert!(sent(&holding.give(fault)).contains(&Handshake::Accept { tuple }));
        holding.hear(Handshake::Commit { tuple });
        assert!(!holding.machine.is_planned());
    }
}

#[test]
fn a_fault_of_the_peers_does_not_wait_for_a_plan_of_the_own() {
    let mut bench = Bench::new(BIGGER);
    bench.give(Input::Move(PathId(1)));
    bench.give(Input::Excluded);
    let claim = bench.claim(1, 1);
    assert_eq!(sent(&bench.hear(claim)), [Handshake::Accept { tuple: bench.theirs(1, 1) }]);
}

#[test]
fn of_two_plans_that_cross_the_larger_stands() {
    let mut bench = Bench::new(BIGGER);
    bench.claim_by_plan();
    let tuple = bench.theirs(1, 1);
    assert_eq!(sent(&bench.hear(planned(&bench))), [Handshake::Accept { tuple }], "this end has drained already");

    let mut bench = Bench::new(SMALLER);
    let own = bench.claim_by_plan();
    let again = Handshake::Claim { tuple: own, cause: Cause::Planned };
    assert_eq!(sent(&bench.hear(planned(&bench))), [again]);
}

#[test]
fn a_plan_is_refused_where_it_could_do_harm() {
    let refuses = |prepare: fn(&mut Bench)| {
        let mut bench = Bench::new(BIGGER);
        prepare(&mut bench);
        let epoch = bench.machine.epoch().0 + 1;
        let tuple = bench.theirs(epoch, 1);
        let effects = bench.hear(Handshake::Claim { tuple, cause: Cause::Planned });
        let refused = sent(&effects).contains(&Handshake::Refuse { tuple });
        let before = bench.machine.state();
        bench.give(Input::Move(PathId(1)));
        refused && bench.machine.state() == before
    };
    assert!(refuses(|bench| drop(bench.give(Input::PathDisarmed(PathId(1))))), "not armed");
    assert!(refuses(|bench| bench.machine.fix()), "others would have to come along");
    assert!(refuses(|bench| bench.reach_stage(Stage::Replaying)), "in the middle of another");
    assert!(refuses(|bench| bench.reach_stage(Stage::Running)), "not confirmed, and on that path already");
    assert!(!refuses(|_| {}));
}

#[test]
fn a_plan_of_the_own_is_none_of_the_groups() {
    let mut bench = Bench::new(BIGGER);
    bench.give(Input::Move(PathId(1)));
    bench.give(Input::Excluded);
    let mut called = bench.clone();
    called.wait(Micros(plan().0 - 1));
    assert_eq!(called.give(Input::Muster(PathId(1))), []);
    assert_eq!(called.wait(Micros(1)), [Effect::Release], "it holds no longer for that");
    let tuple = bench.theirs(1, 1);
    let effects = bench.hear(Handshake::Claim { tuple, cause: Cause::Muster });
    assert_eq!(sent(&effects), [Handshake::Refuse { tuple }]);
}

/// Its group looks around for a peer in fault, not for one that would rather be elsewhere.
#[test]
fn a_planned_claim_that_is_refused_asks_nothing_of_the_group() {
    for (cause, asks) in [(Cause::Planned, false), (Cause::Muster, false), (Cause::PortDown, true)] {
        let mut bench = Bench::new(BIGGER);
        bench.machine.confine(Scope::NOWHERE);
        let tuple = bench.theirs(1, 1);
        assert_eq!(sent(&bench.hear(Handshake::Claim { tuple, cause })), [Handshake::Refuse { tuple }]);
        assert_eq!(bench.machine.asked(bench.now).is_some(), asks, "{cause}");
    }
}

#[test]
fn an_answer_of_the_current_path_ends_no_plan() {
    let mut bench = Bench::new(SMALLER);
    bench.claim_by_plan();
    assert_eq!(bench.give(Input::PathAnswered(PathId(0))), []);
    assert_eq!(bench.attempt(), Attempt::Claiming);
}

#[test]
fn a_plan_ends_when_its_target_carries_nothing_any_more() {
    let mut bench = Bench::new(SMALLER);
    let tuple = bench.claim_by_plan();
    let effects = bench.give(Input::PathDisarmed(PathId(1)));
    assert_eq!(effects, [Effect::Send(Handshake::Cancel { tuple }), Effect::Release]);
    assert_eq!(bench.machine.state(), running());
}
