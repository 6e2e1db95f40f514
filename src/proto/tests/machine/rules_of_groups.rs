//! What a machine does for the group that its queue pair receives with, and what a group asks of its members.

use shift_proto::id::{Micros, PathId};
use shift_proto::migrate::{Attempt, Cause, Effect, Group, Handshake, Input, Member, Order, Scope, Stage, Surfaced};

use crate::bench::{sent, surfaced, Bench, BIGGER, FATAL, SMALLER, SUSPECT};

const LIMIT: Micros = Micros(2_600_000);

fn member(key: u32, stage: Stage, path: u8) -> Member<u32> {
    Member { key, stage, path: PathId(path), is_armed: true, has_peer: true }
}

fn claimed(effects: &[Effect]) -> Option<(PathId, Cause)> {
    sent(effects).iter().find_map(|message| match message {
        Handshake::Claim { tuple, cause } => Some((tuple.target, *cause)),
        _ => None,
    })
}

#[test]
fn a_member_claims_the_path_of_its_group_however_good_its_own_is() {
    let mut bench = Bench::new(SMALLER);
    assert!(bench.give(Input::Follow(PathId(1))).contains(&Effect::Seek));
    assert!(bench.give(Input::PathAnswered(PathId(0))).is_empty(), "its own path is no reason to stay");
    assert_eq!(bench.attempt(), Attempt::Seeking);
    assert_eq!(claimed(&bench.give(Input::PathAnswered(PathId(1)))), Some((PathId(1), Cause::Group)));
    assert!(bench.give(Input::Follow(PathId(1))).is_empty(), "said again it changes nothing");
}

#[test]
fn a_claim_for_another_path_than_the_groups_is_cancelled() {
    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    bench.wait(Micros(300_000));
    assert_eq!(claimed(&bench.give(Input::PathAnswered(PathId(0)))), Some((PathId(0), Cause::RetryExceeded)));
    let effects = bench.give(Input::Follow(PathId(1)));
    assert!(matches!(sent(&effects)[..], [Handshake::Cancel { .. }]), "{effects:?}");
    bench.wait(Micros(50_000));
    bench.give(Input::PathAnswered(PathId(0)));
    assert_eq!(bench.attempt(), Attempt::Seeking);
    assert!(claimed(&bench.give(Input::PathAnswered(PathId(1)))).is_some());
}

#[test]
fn a_member_with_unprovable_work_holds_new_posts_so_that_the_old_ones_can_end() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Hold(true));
    bench.give(Input::Follow(PathId(1)));
    let effects = bench.give(Input::PathAnswered(PathId(1)));
    assert_eq!(effects, [Effect::Exclude], "nothing is claimed, and nothing more is posted");
    bench.give(Input::Excluded);
    assert!(claimed(&bench.give(Input::Hold(false))).is_some());
}

#[test]
fn what_the_group_does_not_allow_is_neither_claimed_nor_accepted() {
    let mut bench = Bench::new(BIGGER);
    bench.machine.confine(Scope::Nowhere);
    bench.give(SUSPECT);
    assert!(bench.give(Input::PathAnswered(PathId(1))).is_empty());
    let claim = bench.claim(1, 1);
    assert!(matches!(sent(&bench.hear(claim.clone()))[..], [Handshake::Refuse { .. }]));
    bench.machine.confine(Scope::Only(PathId(0)));
    assert!(matches!(sent(&bench.hear(claim.clone()))[..], [Handshake::Refuse { .. }]));
    bench.machine.confine(Scope::Only(PathId(1)));
    bench.hear(claim);
    assert_eq!(bench.attempt(), Attempt::Accepting);
}

#[test]
fn who_is_left_behind_surfaces_and_says_so() {
    for stage in [Stage::Running, Stage::Fencing, Stage::Ready] {
        let mut bench = Bench::new(SMALLER);
        if stage != Stage::Running {
            bench.reach_stage(stage);
        }
        let effects = bench.give(Input::LeftBehind);
        assert_eq!(surfaced(&effects), Some(Surfaced::LeftBehind), "{stage:?}");
        assert!(sent(&effects).iter().any(|message| matches!(message, Handshake::Dead { .. })));
    }
}

#[test]
fn receives_wait_until_every_member_is_fenced() {
    let mut group = Group::new(LIMIT);
    let now = Micros(1_000_000);
    let rest = [member(1, Stage::Running, 0), member(2, Stage::Running, 0), member(3, Stage::Running, 0)];
    assert!(group.turn(now, &rest).is_empty() && group.is_open(PathId(0)));
    let one_left = [member(1, Stage::Running, 0), member(2, Stage::Reposting, 1), member(3, Stage::Running, 0)];
    assert_eq!(group.turn(now, &one_left), [Order::Follow(1, PathId(1)), Order::Follow(3, PathId(1))], "in order");
    assert!(!group.is_open(PathId(1)) && !group.is_open(PathId(0)));
    assert_eq!(group.scope(&one_left[0], true), Scope::Only(PathId(1)));
    for stage in [Stage::Fencing, Stage::Fenced, Stage::Settling] {
        let waiting = [member(1, stage, 1), member(2, Stage::Reposting, 1), member(3, Stage::Dead, 0)];
        assert!(group.turn(now, &waiting).is_empty());
        assert!(!group.is_open(PathId(1)), "{stage:?}");
    }
    let all = [member(1, Stage::Reposting, 1), member(2, Stage::Reposting, 1), member(3, Stage::Dead, 0)];
    assert!(group.turn(now, &all).is_empty());
    assert!(group.is_open(PathId(1)) && group.home() == PathId(1));
}

#[test]
fn who_is_fenced_for_the_path_that_the_group_leaves_is_not_there_yet() {
    let mut group = Group::new(LIMIT);
    let now = Micros(1_000_000);
    group.turn(now, &[member(1, Stage::Running, 0), member(2, Stage::Fencing, 0)]);
    assert!(group.is_open(PathId(0)), "connected anew where it was, it leaves nobody behind");
    let moved = [member(1, Stage::Reposting, 1), member(2, Stage::Ready, 0)];
    assert_eq!(group.turn(now, &moved), [Order::Follow(2, PathId(1))]);
}

#[test]
fn who_cannot_come_along_is_left_behind_at_the_limit_and_at_once_without_a_peer() {
    let mut group = Group::new(LIMIT);
    let now = Micros(1_000_000);
    let mut members = [member(1, Stage::Running, 0), member(2, Stage::Running, 0)];
    group.turn(now, &members);
    members[0] = member(1, Stage::Reposting, 1);
    assert_eq!(group.turn(now, &members), [Order::Follow(2, PathId(1))]);
    assert_eq!(group.turn(now + LIMIT, &members), [Order::LeaveBehind(2)]);
    members[1].has_peer = false;
    let mut group = Group::new(LIMIT);
    group.turn(now, &[member(1, Stage::Running, 0), members[1]]);
    assert_eq!(group.turn(now, &members), [Order::LeaveBehind(2)]);
}

#[test]
fn who_is_connected_on_a_path_that_the_group_has_left_is_called_to_it() {
    let mut group = Group::new(LIMIT);
    let now = Micros(1_000_000);
    group.turn(now, &[member(1, Stage::Running, 0)]);
    group.turn(now, &[member(1, Stage::Reposting, 1)]);
    group.turn(now, &[member(1, Stage::Reposting, 1)]);
    assert_eq!(group.home(), PathId(1));
    let newcomer = member(7, Stage::Running, 0);
    let members = [member(1, Stage::Running, 1), newcomer];
    assert_eq!(group.turn(now, &members), [Order::Follow(7, PathId(1))]);
    assert_eq!(group.scope(&newcomer, true), Scope::Only(PathId(1)));
    assert_eq!(group.home(), PathId(1), "it does not draw the others back");
    assert!(group.is_open(PathId(1)), "it may post its receives where the others have theirs");
}

#[test]
fn one_member_that_is_not_armed_keeps_the_whole_group_where_it_is() {
    let mut members = [member(1, Stage::Running, 0), member(2, Stage::Running, 0)];
    let group = Group::<u32>::new(LIMIT);
    assert!(Group::is_ready(&members));
    assert_eq!(group.scope(&members[0], true), Scope::Any);
    members[1].is_armed = false;
    assert!(!Group::is_ready(&members));
    assert_eq!(group.scope(&members[0], false), Scope::Nowhere);
    members[1].has_peer = false;
    assert!(Group::is_ready(&members), "whose peer has ended takes nothing any more");
}
