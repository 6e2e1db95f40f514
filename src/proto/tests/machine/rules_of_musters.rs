//! What a machine does for a planned move of its group, and when a group departs.

use shift_proto::id::{Epoch, Micros, PathId, ProcessId, Site, MAX_SITES};
use shift_proto::migrate::{
    Attempt, Call, Cause, Deadlines, Effect, Errand, Goal, Group, GroupLimits, Handshake, Input, Member, Muster, Order,
    Plan, Progress, Readiness, Word,
};

use crate::bench::{running, sent, surfaced, Bench, BIGGER, FATAL, SMALLER, SUSPECT};

const NOW: Micros = Micros(1_000_000);
const TARGET: PathId = PathId(1);
/// Where that path leads.
const SITE: Site = Site(1);

fn limits() -> GroupLimits {
    Deadlines::default().group_limits()
}

fn mustered(bench: &Bench) -> Handshake {
    Handshake::Claim { tuple: bench.theirs(1, 1), cause: Cause::Muster }
}

#[test]
fn what_is_held_for_a_group_is_claimed_when_the_group_says_so_and_not_before() {
    let mut bench = Bench::new(SMALLER);
    bench.machine.fix();
    assert_eq!(bench.give(Input::Muster(TARGET)), [Effect::Exclude]);
    assert_eq!(bench.give(Input::Excluded), []);
    assert!(bench.machine.wants_drain());
    assert_eq!(bench.give(Input::Depart), [], "something is outstanding");
    assert_eq!(bench.give(Input::Drained), []);
    assert_eq!(bench.machine.plan(), Some(Plan { target: TARGET, progress: Progress::Complete }));
    let effects = bench.give(Input::Depart);
    let [Handshake::Claim { tuple, cause: Cause::Muster }] = sent(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(tuple.target, TARGET);
    let effects = bench.hear(Handshake::Accept { tuple });
    assert_eq!(effects, [Effect::Send(Handshake::Commit { tuple }), Effect::Fence]);
    assert!(bench.machine.is_planned());
}

#[test]
fn a_claim_of_a_muster_is_accepted_by_who_holds_for_it_and_by_nobody_else() {
    let tuple = Bench::new(BIGGER).theirs(1, 1);
    for is_fixed in [true, false] {
        let mut bench = Bench::new(BIGGER);
        if is_fixed {
            bench.machine.fix();
        }
        assert_eq!(sent(&bench.hear(mustered(&bench))), [Handshake::Refuse { tuple }]);
        assert_eq!(bench.machine.state(), running());
        bench.hold();
        bench.give(Input::Drained);
        assert_eq!(sent(&bench.hear(mustered(&bench))), [Handshake::Accept { tuple }]);
        assert_eq!(bench.machine.plan(), Some(Plan { target: TARGET, progress: Progress::Leaving }));
        assert_eq!(bench.hear(Handshake::Commit { tuple }), [Effect::Fence]);
        assert!(bench.machine.is_planned());
    }
    let mut waiting = Bench::new(BIGGER);
    waiting.hold();
    assert_eq!(sent(&waiting.hear(mustered(&waiting))), [Handshake::Wait { tuple }], "it is not complete");
    assert_eq!(sent(&waiting.give(Input::Drained)), [Handshake::Accept { tuple }]);
}

#[test]
fn of_two_claims_of_one_muster_the_larger_stands() {
    let mut bench = Bench::new(BIGGER);
    assert!(bench.reach_mustered(Attempt::Claiming));
    assert_eq!(sent(&bench.hear(mustered(&bench))), [Handshake::Accept { tuple: bench.theirs(1, 1) }]);
    let mut bench = Bench::new(SMALLER);
    assert!(bench.reach_mustered(Attempt::Claiming));
    assert!(matches!(sent(&bench.hear(mustered(&bench)))[..], [Handshake::Claim { cause: Cause::Muster, .. }]));
}

#[test]
fn what_one_alone_would_like_does_not_end_what_is_held_for_all() {
    for attempt in [Attempt::Draining, Attempt::Claiming, Attempt::Holding, Attempt::Accepted] {
        let mut bench = Bench::new(BIGGER);
        bench.machine.fix();
        assert!(bench.reach_mustered(attempt));
        let tuple = bench.theirs(2, 7);
        let effects = bench.hear(Handshake::Claim { tuple, cause: Cause::Planned });
        assert!(!effects.contains(&Effect::Release), "{attempt:?}: {effects:?}");
        assert_eq!(bench.attempt(), attempt);
    }
}

#[test]
fn a_muster_that_is_dismissed_or_forgotten_leaves_everything_where_it_was() {
    let held = |is_complete: bool| {
        let mut bench = Bench::new(SMALLER);
        bench.hold();
        if is_complete {
            bench.give(Input::Drained);
        }
        bench
    };
    for is_complete in [true, false] {
        assert_eq!(held(is_complete).give(Input::Dismiss), [Effect::Release]);
        let mut forgotten = held(is_complete);
        let span = Deadlines::default().muster();
        assert_eq!(forgotten.wait(Micros(span.0 - 1)), [], "longer than whoever leads may take");
        let effects = forgotten.wait(Micros(1));
        assert_eq!((effects, forgotten.machine.state()), (vec![Effect::Release], running()));
        assert_eq!(forgotten.machine.deadline(), None);
    }
    let mut claiming = Bench::new(SMALLER);
    assert!(claiming.reach_mustered(Attempt::Claiming));
    let effects = claiming.give(Input::Dismiss);
    assert!(matches!(effects[..], [Effect::Send(Handshake::Cancel { .. }), Effect::Release]), "{effects:?}");
}

#[test]
fn a_fault_or_the_groups_need_ends_a_muster_of_the_own() {
    let goal = Goal { path: TARGET, above: Epoch(0) };
    for cause in [SUSPECT, FATAL, Input::Follow(goal)] {
        for attempt in [Attempt::Draining, Attempt::Claiming] {
            let mut bench = Bench::new(SMALLER);
            assert!(bench.reach_mustered(attempt));
            let effects = bench.give(cause.clone());
            assert!(effects.contains(&Effect::Release) && effects.contains(&Effect::Seek), "{effects:?}");
            assert_eq!((bench.attempt(), bench.machine.plan(), surfaced(&effects)), (Attempt::Seeking, None, None));
        }
    }
}

#[test]
fn a_fault_of_the_peers_does_not_wait_for_a_muster() {
    let mut bench = Bench::new(BIGGER);
    bench.hold();
    let claim = bench.claim(1, 1);
    assert_eq!(sent(&bench.hear(claim)), [Handshake::Accept { tuple: bench.theirs(1, 1) }]);
    assert_eq!(bench.machine.plan(), None);
    assert_eq!(bench.give(Input::Dismiss), [], "that is no muster any more");
    assert_eq!(bench.attempt(), Attempt::Accepted);
}

#[test]
fn what_is_held_for_a_group_waits_for_its_own_sends_although_the_group_has_to_follow() {
    let mut bench = Bench::new(BIGGER);
    assert!(bench.reach_mustered(Attempt::Holding));
    let effects = bench.give(Input::Follow(Goal { path: TARGET, above: Epoch(0) }));
    assert_eq!((effects, bench.attempt()), (vec![Effect::Seek], Attempt::Holding));
}

fn call(leader: u64) -> Call {
    Call { leader: ProcessId(leader), number: 1 }
}

fn able(key: u32) -> Member<u32> {
    Member { readiness: [Readiness::Ready; MAX_SITES], can_go: [true; MAX_SITES], ..Member::without_machine(key) }
}

fn holding(key: u32, progress: Progress) -> Member<u32> {
    Member { can_go: [false; MAX_SITES], plan: Some((SITE, progress)), ..able(key) }
}

fn complete(keys: std::ops::RangeInclusive<u32>) -> Vec<Member<u32>> {
    keys.map(|key| holding(key, Progress::Complete)).collect()
}

/// One of three members, of which all hold.
fn led() -> Muster<u32> {
    let mut muster = Muster::new(limits());
    muster.lead(NOW, call(5), SITE);
    let errands = muster.turn(NOW, &[able(1), able(2), able(3)]);
    let come = |key| Errand::Say(key, call(5), SITE, Word::Come);
    let hold = |key| Errand::Hold(key, SITE);
    assert_eq!(errands, [hold(1), hold(2), hold(3), come(1), come(2), come(3)]);
    muster
}

/// One that the peer of the first of three members has called; all hold.
fn called() -> Muster<u32> {
    let mut muster = Muster::new(limits());
    assert_eq!(muster.hear(NOW, 1, (call(5), SITE), Word::Come), []);
    let errands = muster.turn(NOW, &[able(1), able(2), able(3)]);
    assert!(!errands.contains(&Errand::Say(1, call(5), SITE, Word::Come)), "who called knows: {errands:?}");
    assert_eq!(errands.len(), 5);
    muster
}

#[test]
fn a_leader_departs_when_all_have_answered_and_all_its_own_are_complete() {
    let mut muster = led();
    for key in 1..=2 {
        muster.hear(NOW, key, (call(5), SITE), Word::Present);
    }
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [], "one has not answered");
    muster.hear(NOW, 3, (call(5), SITE), Word::Present);
    let mut members = complete(1..=3);
    members[1] = holding(2, Progress::Holding);
    assert_eq!(muster.turn(NOW, &members), [], "one is not complete");
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [1, 2, 3].map(Errand::Depart));
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [], "once");
    assert_eq!(muster.hear(NOW, 3, (call(5), SITE), Word::Dismissed), [], "nor is it taken back");
}

#[test]
fn who_is_called_answers_when_all_its_own_are_complete_and_all_others_have_answered() {
    let mut muster = called();
    muster.hear(NOW, 2, (call(5), SITE), Word::Present);
    assert_eq!(muster.turn(NOW, &complete(1..=3)), []);
    // The peer of the third was called by somebody else: that is an answer, and is answered.
    assert_eq!(muster.hear(NOW, 3, (call(5), SITE), Word::Come), [Errand::Say(3, call(5), SITE, Word::Present)]);
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [Errand::Say(1, call(5), SITE, Word::Present)]);
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [], "once");
    muster.hear(NOW, 1, (call(5), SITE), Word::Come);
    assert_eq!(
        muster.turn(NOW, &complete(1..=3)),
        [Errand::Say(1, call(5), SITE, Word::Present)],
        "or when asked again"
    );
}

#[test]
fn who_does_not_answer_is_called_again() {
    let mut muster = led();
    muster.hear(NOW, 1, (call(5), SITE), Word::Present);
    assert_eq!(muster.turn(NOW, &complete(1..=3)), []);
    let later = NOW + Muster::<u32>::pace();
    let again = [2, 3].map(|key| Errand::Say(key, call(5), SITE, Word::Come));
    assert_eq!(muster.turn(later, &complete(1..=3)), again);
}

#[test]
fn of_two_musters_the_larger_stands() {
    let mut muster = called();
    assert_eq!(muster.hear(NOW, 2, (call(4), SITE), Word::Come), []);
    assert_eq!(muster.call(), Some(call(5)), "the smaller one is not taken part in");
    muster.hear(NOW, 2, (call(6), SITE), Word::Come);
    assert_eq!(muster.call(), Some(call(6)));
    let errands = muster.turn(NOW, &complete(1..=3));
    assert_eq!(errands[..3], [1, 2, 3].map(|key| Errand::Hold(key, SITE)), "from now on");
    assert_eq!(errands[3..], [1, 3].map(|key| Errand::Say(key, call(6), SITE, Word::Come)));
    for key in [1, 3] {
        muster.hear(NOW, key, (call(5), SITE), Word::Present);
    }
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [], "answers to the smaller one are none to the larger");
    assert_eq!(muster.hear(NOW, 1, (call(5), SITE), Word::Dismissed), [], "nor is its end");
    assert_eq!((muster.call(), muster.target()), (Some(call(6)), Some(SITE)));
}

#[test]
fn musters_one_after_the_other_hold_nobody_for_ever() {
    let mut muster = called();
    let (last, over) = (NOW + Micros(limits().plan.0 - 1), NOW + limits().plan);
    muster.hear(last, 2, (call(6), SITE), Word::Come);
    assert_eq!(muster.call(), Some(call(6)));
    assert_eq!(muster.hear(over, 3, (call(7), SITE), Word::Come), [Errand::Say(3, call(7), SITE, Word::Dismissed)]);
    assert_eq!(muster.call(), Some(call(6)));
}

#[test]
fn who_holds_for_another_muster_holds_as_long_for_it() {
    let mut bench = Bench::new(SMALLER);
    bench.hold();
    bench.give(Input::Drained);
    let span = Deadlines::default().muster();
    bench.wait(Micros(span.0 - 1));
    assert_eq!(bench.give(Input::Muster(TARGET)), []);
    bench.wait(Micros(span.0 - 1));
    assert_eq!(bench.give(Input::Muster(PathId(2))), [], "that is elsewhere");
    assert_eq!(bench.wait(Micros(1)), [Effect::Release]);
}

#[test]
fn one_that_cannot_go_ends_it_at_once_and_all_who_were_called_hear_of_it() {
    let unable = [
        Member { can_go: core::array::from_fn(|site| site != 1), ..able(2) },
        Member { has_peer: false, ..able(2) },
        Member {
            readiness: core::array::from_fn(|site| if site == 1 { Readiness::Arming } else { Readiness::Ready }),
            ..able(2)
        },
        Member { is_movable: false, ..holding(2, Progress::Complete) },
        // It held, and gave up.
        able(2),
    ];
    for unable in unable {
        let mut muster = led();
        let errands = muster.turn(NOW, &[holding(1, Progress::Complete), unable, holding(3, Progress::Holding)]);
        let say = |key| Errand::Say(key, call(5), SITE, Word::Dismissed);
        assert_eq!(errands, [say(1), say(2), say(3), Errand::Dismiss(1), Errand::Dismiss(2), Errand::Dismiss(3)]);
        assert_eq!(muster.call(), None);
    }
    // Nobody is told to hold if one cannot.
    for unable in [
        Member { can_go: core::array::from_fn(|site| site != 1), ..able(2) },
        Member { plan: Some((Site(2), Progress::Complete)), ..able(2) },
        Member { plan: Some((Site(2), Progress::Holding)), ..able(2) },
    ] {
        let mut muster = Muster::new(limits());
        muster.lead(NOW, call(5), SITE);
        assert_eq!(muster.turn(NOW, &[able(1), unable]), [], "{unable:?}");
        assert_eq!((muster.call(), muster.target()), (None, None));
    }
    let mut late = Muster::new(limits());
    late.hear(NOW, 1, (call(5), SITE), Word::Come);
    let errands = late.turn(NOW, &[able(1), Member { has_peer: false, ..able(2) }]);
    assert_eq!(errands, [Errand::Say(1, call(5), SITE, Word::Dismissed)], "nobody was told to hold");
}

#[test]
fn what_is_not_complete_in_time_is_off() {
    let mut muster = led();
    assert!(!muster.turn(NOW + Micros(limits().plan.0 - 1), &complete(1..=3)).is_empty());
    let errands = muster.turn(NOW + limits().plan, &complete(1..=3));
    assert_eq!(errands.iter().filter(|errand| matches!(errand, Errand::Dismiss(_))).count(), 3);
    // Who is called holds on for longer: the leader may have decided at the last moment.
    let mut muster = called();
    muster.turn(NOW + limits().plan, &complete(1..=3));
    assert!(muster.call().is_some());
    muster.turn(NOW + limits().muster, &complete(1..=3));
    assert_eq!(muster.call(), None);
}

#[test]
fn who_has_answered_holds_until_who_called_it_says_otherwise() {
    let mut muster = called();
    for key in 2..=3 {
        muster.hear(NOW, key, (call(5), SITE), Word::Present);
    }
    assert_eq!(muster.turn(NOW, &complete(1..=3)), [Errand::Say(1, call(5), SITE, Word::Present)]);
    assert_eq!(muster.hear(NOW, 2, (call(5), SITE), Word::Dismissed), [Errand::Say(1, call(5), SITE, Word::Dismissed)]);
    assert!(muster.call().is_some(), "the leader may have departed");
    let errands = muster.hear(NOW, 1, (call(5), SITE), Word::Dismissed);
    assert!(errands.contains(&Errand::Dismiss(3)) && muster.call().is_none());
    let mut waiting = called();
    assert!(
        waiting.hear(NOW, 2, (call(5), SITE), Word::Dismissed).contains(&Errand::Dismiss(1)),
        "nobody counts on it"
    );
}

#[test]
fn it_is_off_if_who_was_called_by_its_peer_is_no_more() {
    let mut muster = called();
    let errands = muster.turn(NOW, &complete(2..=3));
    assert!(errands.contains(&Errand::Dismiss(2)) && errands.contains(&Errand::Dismiss(3)), "{errands:?}");
    assert_eq!(muster.call(), None);
}

#[test]
fn as_many_that_are_over_are_remembered_as_may_be_heard_of_late() {
    let mut muster = Muster::new(limits());
    let numbered = |number| Call { leader: ProcessId(5), number };
    for number in 0..17 {
        muster.lead(NOW, numbered(number), SITE);
        muster.turn(NOW, &[Member { has_peer: false, ..able(1) }]);
        assert_eq!(muster.call(), None);
    }
    for number in 1..17 {
        let off = Errand::Say(1, numbered(number), SITE, Word::Dismissed);
        assert_eq!(muster.hear(NOW, 1, (numbered(number), SITE), Word::Come), [off]);
    }
    assert_eq!(muster.hear(NOW, 1, (numbered(0), SITE), Word::Come), [], "forgotten");
    assert_eq!(muster.call(), Some(numbered(0)));
}

#[test]
fn one_that_is_over_is_not_taken_part_in_again() {
    let mut muster = led();
    muster.turn(NOW + limits().plan, &complete(1..=3));
    assert_eq!(muster.hear(NOW, 2, (call(5), SITE), Word::Come), [Errand::Say(2, call(5), SITE, Word::Dismissed)]);
    assert_eq!(muster.call(), None);
    let mut moved = led();
    let gone = Member { site: SITE, epoch: Epoch(1), plan: None, ..able(1) };
    assert_eq!(moved.turn(NOW, &[gone, holding(2, Progress::Complete), holding(3, Progress::Complete)]), []);
    assert_eq!(moved.call(), None);
    assert_eq!(moved.hear(NOW, 2, (call(5), SITE), Word::Come), [], "nothing is wrong with it");
    assert_eq!(moved.call(), None);
}

#[test]
fn who_holds_departs_with_its_group_and_is_told_to_follow_only_if_that_takes_too_long() {
    let running = |key| Member { readiness: [Readiness::Ready; MAX_SITES], ..Member::without_machine(key) };
    let mut group = Group::new(limits());
    assert!(group.turn(NOW, &[running(1), running(2), running(3)]).is_empty());
    let left = Member { site: SITE, epoch: Epoch(1), is_fenced: false, ..running(1) };
    let members = [left, holding(2, Progress::Complete), holding(3, Progress::Leaving)];
    assert_eq!(group.turn(NOW, &members), [Order::Depart(2)]);
    let both = [2, 3].map(|key| Order::Follow(key, SITE, Epoch(0)));
    assert_eq!(group.turn(NOW + limits().depart, &members), both);
    assert!(limits().depart < limits().come);
    let alone = [left, holding(2, Progress::Alone), running(3)];
    assert_eq!(group.turn(NOW, &alone), both, "and at once who does not hold");
    let elsewhere = [left, Member { plan: Some((Site(2), Progress::Complete)), ..running(2) }, running(3)];
    assert_eq!(group.turn(NOW, &elsewhere), both, "or holds for another one");
}

#[test]
fn a_muster_that_leads_elsewhere_for_one_of_them_is_off() {
    let mut muster = led();
    let other = Site(2);
    let errands = muster.hear(NOW, 2, (call(5), other), Word::Come);
    assert_eq!(errands.last(), Some(&Errand::Say(2, call(5), other, Word::Dismissed)));
    assert!([1, 2, 3].iter().all(|key| errands.contains(&Errand::Dismiss(*key))), "{errands:?}");
    assert_eq!(muster.call(), None);
    // Who has answered holds until it hears from who called it: the leader may have departed.
    let mut answered = called();
    for key in 2..=3 {
        answered.hear(NOW, key, (call(5), SITE), Word::Present);
    }
    answered.turn(NOW, &complete(1..=3));
    let errands = answered.hear(NOW, 2, (call(5), other), Word::Come);
    assert_eq!(errands[0], Errand::Say(1, call(5), SITE, Word::Dismissed));
    assert!(answered.call().is_some() && !errands.contains(&Errand::Dismiss(1)));
}
