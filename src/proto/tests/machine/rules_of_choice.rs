//! Where a group goes that can go to more than one site, by name.

use shift_proto::id::{Epoch, Micros, Site};
use shift_proto::migrate::{Group, Member, Order, Readiness, Sites, Stage};

use crate::rules_of_groups::{by_site, follow, group, limits, ready_for, running, strangers, AWAY, HOME, NOW};

const FURTHER: Site = Site(2);

/// Those of which each could go to either of two standbys; the first one is in fault.
fn with_two_standbys(count: u32) -> (Group<u32>, Vec<Member<u32>>) {
    let mut members = running(1..=count);
    members.iter_mut().for_each(|member| member.readiness = ready_for(2));
    let group = group(&members);
    members[0].sought = Some(NOW);
    (group, members)
}

fn answers(members: &mut [Member<u32>], site: Site, at: Micros) {
    members.iter_mut().for_each(|member| member.answered[usize::from(site.0)] = Some(at));
}

#[test]
fn a_group_is_ready_where_one_site_is_ready_for_all_and_not_where_each_has_another() {
    let mut members = running(1..=2);
    let group = group(&members);
    let only =
        |site: usize, otherwise| core::array::from_fn(|at| if at == site { Readiness::Ready } else { otherwise });
    members[0].readiness = only(1, Readiness::Unable);
    members[1].readiness = only(2, Readiness::Unable);
    assert_eq!(group.readiness(&members), Readiness::Unable, "nobody could be moved without the other");
    members[1].readiness = by_site([Readiness::Unable, Readiness::Arming], Readiness::Unable);
    assert_eq!(group.readiness(&members), Readiness::Arming);
    members[1].readiness = ready_for(2);
    assert_eq!(group.readiness(&members), Readiness::Ready);
}

#[test]
fn all_claim_the_standby_that_answers_all_of_them() {
    let (mut group, mut members) = with_two_standbys(3);
    answers(&mut members, FURTHER, NOW);
    answers(&mut members[..2], AWAY, NOW);
    group.turn(NOW, &members);
    assert_eq!(group.scope(&members[0], Readiness::Ready), Sites::only(FURTHER), "the other one is dead for the third");
    assert_eq!(group.choice(), Some(FURTHER));
    // Those that would be left behind have a way, so they are not.
    group.turn(NOW + limits().ask, &members);
    assert_eq!(group.scope(&members[0], Readiness::Ready), Sites::only(FURTHER));
    members[2].readiness = by_site([Readiness::Ready; 2], Readiness::Unable);
    group.turn(NOW, &members);
    assert_eq!(group.scope(&members[0], Readiness::Ready), Sites::NONE, "it could not go there");
}

#[test]
fn the_standby_that_it_would_rather_have_is_waited_for_as_long_as_its_answers_may_take() {
    let order = [2, 1, 0, 3, 4, 5, 6, 7].map(Site);
    let (mut group, mut members) = with_two_standbys(2);
    group.prefer(order, Micros(5_000));
    assert_eq!(group.order(), order);
    answers(&mut members, AWAY, NOW);
    group.turn(NOW, &members);
    assert_eq!(group.choice(), None);
    let mut late = group.clone();
    late.turn(NOW + Micros(5_000), &members);
    assert_eq!(late.choice(), Some(AWAY));
    answers(&mut members, FURTHER, NOW);
    group.turn(NOW, &members);
    assert_eq!(group.choice(), Some(FURTHER));
    late.turn(NOW + Micros(5_000), &members);
    assert_eq!(late.choice(), Some(AWAY), "some may have claimed it");
}

#[test]
fn if_nobody_gets_anywhere_another_standby_has_its_turn() {
    let (mut group, mut members) = with_two_standbys(2);
    answers(&mut members, AWAY, NOW);
    answers(&mut members, FURTHER, NOW);
    group.turn(NOW, &members);
    assert_eq!(group.choice(), Some(AWAY));
    let (over, last) = (NOW + limits().ask, Micros(NOW.0 + limits().ask.0 - 1));
    group.turn(last, &members);
    assert_eq!(group.choice(), Some(AWAY));
    members[1].is_claiming = true;
    group.turn(over, &members);
    assert_eq!(group.choice(), Some(AWAY), "somebody does");
    members[1].is_claiming = false;
    for stranger in strangers() {
        let mut group = group.clone();
        group.turn(over, &[members[0], members[1], Member { is_claiming: true, ..stranger }]);
        assert_eq!(group.choice(), Some(FURTHER), "that is nobody's here: {stranger:?}");
    }
    group.turn(over, &members);
    assert_eq!(group.choice(), Some(FURTHER));
    group.turn(over + limits().ask, &members);
    assert_eq!(group.choice(), Some(AWAY));
}

#[test]
fn a_standby_that_would_leave_more_behind_has_no_turn() {
    let (mut group, mut members) = with_two_standbys(3);
    answers(&mut members, AWAY, NOW);
    answers(&mut members[..1], FURTHER, NOW);
    for now in [NOW, NOW + limits().ask] {
        group.turn(now, &members);
        assert_eq!(group.choice(), Some(AWAY));
    }
}

#[test]
fn of_those_in_fault_as_many_as_can_be_are_saved() {
    let (mut group, mut members) = with_two_standbys(3);
    group.prefer([2, 1, 0, 3, 4, 5, 6, 7].map(Site), Micros(0));
    members[1].sought = Some(NOW);
    answers(&mut members, AWAY, NOW);
    answers(&mut members, FURTHER, NOW);
    members[1].answered[2] = None;
    group.turn(NOW, &members);
    assert_eq!(group.choice(), Some(AWAY), "the other one is dead for the second");
}

/// Two of three have left for the first standby, which is dead for the third.
fn astray() -> (Group<u32>, Vec<Member<u32>>, Micros) {
    let (mut group, mut members) = with_two_standbys(3);
    for member in &mut members[..2] {
        *member = Member { site: AWAY, epoch: Epoch(1), stage: Stage::Reposting, ..*member };
    }
    assert_eq!(group.turn(NOW, &members), [follow(3, AWAY)]);
    assert_eq!(group.seeks(&members), None, "they are asked for no other site as long as all may come");
    let asked = NOW + Micros(limits().ask.0 / 2);
    group.turn(asked, &members);
    assert_eq!(group.seeks(&members), Some(asked));
    (group, members, asked)
}

#[test]
fn a_move_whose_standby_is_dead_for_one_goes_to_another_before_receives_are_posted() {
    let (mut group, mut members, asked) = astray();
    let over = NOW + limits().ask;
    answers(&mut members, FURTHER, asked);
    let mut others = group.clone();
    let all_again = [Order::Follow(1, FURTHER, Epoch(0)), Order::Follow(2, FURTHER, Epoch(0)), follow(3, FURTHER)];
    assert_eq!(group.turn(over, &members), all_again);
    assert_eq!((group.goal(), group.round(), group.home()), (Some(FURTHER), 2, HOME));
    assert!(!group.is_open(AWAY) && !group.is_open(FURTHER));
    // With nobody there yet it is a move all the same, and each has its time anew.
    assert_eq!(group.turn(over + Micros(1), &members).len(), 3);
    assert_eq!(group.turn(over + limits().come, &members), [1, 2, 3].map(Order::LeaveBehind));
    // Who is dead, or whose peer is, is neither missed nor asked.
    for stranger in &strangers()[..2] {
        let mut group = others.clone();
        group.turn(over, &[members[0], members[1], members[2], *stranger]);
        assert_eq!(group.goal(), Some(FURTHER), "{stranger:?}");
    }
    // An answer to who is missing is a reason to wait for it, unless its peer has gone elsewhere.
    members[2].answered[1] = Some(asked);
    others.turn(over, &members);
    assert_eq!(others.goal(), Some(AWAY));
    members[2].asked = Some(over);
    others.turn(over, &members);
    assert_eq!(others.goal(), Some(FURTHER));
}

#[test]
fn a_move_goes_nowhere_else_where_that_would_leave_somebody_behind() {
    let (mut group, mut members, asked) = astray();
    answers(&mut members[1..], FURTHER, asked);
    group.turn(NOW + limits().ask, &members);
    assert_eq!(group.goal(), Some(AWAY));
    assert_eq!(group.turn(NOW + limits().come, &members), [Order::LeaveBehind(3)]);
}

#[test]
fn a_move_goes_elsewhere_a_few_times_only() {
    let (mut group, mut members, _) = astray();
    let mut now = NOW;
    let mut goals = vec![group.goal()];
    for _ in 0..8 {
        now = now + limits().ask;
        group.turn(now, &members);
        let dead = group.goal();
        Site::all().take(3).filter(|site| Some(*site) != dead).for_each(|site| answers(&mut members, site, now));
        dead.into_iter().for_each(|site| answers(&mut members, site, Micros(0)));
        group.turn(now, &members);
        if goals.last() != Some(&group.goal()) {
            goals.push(group.goal());
        }
    }
    assert_eq!(goals.len(), 4, "{goals:?}");
}
