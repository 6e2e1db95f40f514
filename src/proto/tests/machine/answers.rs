//! What a machine says of itself to those who ask: its agent and its group.

use shift_proto::id::{Epoch, Micros, PathId, Site, MAX_SITES};
use shift_proto::migrate::{Deadlines, Goal, Handshake, Input, Machine, Member, Progress, Readiness, Scope, Stage};

use crate::bench::{sent, Bench, BIGGER, FATAL, ME, SMALLER, SUSPECT};

const OTHER: PathId = PathId(1);

fn fresh() -> Bench {
    let mut bench = Bench::new(SMALLER);
    bench.machine = Machine::new(ME, SMALLER, Deadlines::default());
    bench
}

#[test]
fn one_path_arms_the_connection_and_the_last_one_that_goes_disarms_it() {
    let mut bench = fresh();
    assert!(!bench.machine.is_armed());
    bench.give(Input::PathArmed(OTHER));
    bench.give(Input::PathArmed(PathId(2)));
    assert!(bench.machine.is_armed());
    assert_eq!([0, 1, 2, 3].map(|path| bench.machine.is_armed_for(PathId(path))), [false, true, true, false]);
    bench.give(Input::PathDisarmed(OTHER));
    assert!(bench.machine.is_armed() && !bench.machine.is_armed_for(OTHER));
    bench.give(Input::PathDisarmed(PathId(2)));
    assert!(!bench.machine.is_armed());
}

/// Both ends can connect anew on the path that they are on, whoever armed another one.
#[test]
fn the_current_path_can_be_claimed_as_soon_as_any_other_is_armed() {
    for armed in [true, false] {
        let mut bench = fresh();
        if armed {
            bench.give(Input::PathArmed(OTHER));
        }
        bench.give(FATAL);
        bench.wait(Deadlines::default().probe);
        let said = sent(&bench.give(Input::PathAnswered(PathId(0))));
        let is_claimed = matches!(said[..], [Handshake::Claim { tuple, .. }] if tuple.target == PathId(0));
        assert_eq!(is_claimed, armed, "{said:?}");
    }
}

#[test]
fn who_is_at_rest_with_its_peer_there_can_be_mustered_and_nobody_else() {
    let can = |prepare: fn(&mut Bench), target| {
        let mut bench = Bench::new(BIGGER);
        prepare(&mut bench);
        bench.machine.can_muster(target)
    };
    assert!(can(|_| {}, OTHER));
    assert!(can(|bench| bench.machine.fix(), OTHER), "its group moves it");
    assert!(can(|bench| bench.machine.confine(Scope::NOWHERE), OTHER), "it is not to be moved for a fault");
    assert!(!can(|_| {}, PathId(0)), "it is there");
    assert!(!can(|_| {}, PathId(2)), "not armed");
    assert!(!can(|bench| drop(bench.hear(Handshake::Gone)), OTHER), "there is nobody to move with");
    assert!(!can(|bench| drop(bench.hear(bench.claim(1, 1))), OTHER), "a claim is under way");
    assert!(!can(|bench| drop(bench.give(Input::Move(OTHER))), OTHER), "so is a planned move");
    assert!(!can(|bench| drop(bench.give(SUSPECT)), OTHER), "in fault");
    assert!(!can(|bench| bench.reach_stage(Stage::Replaying), PathId(0)), "in the middle of a migration");
    assert!(!can(|bench| bench.reach_stage(Stage::Running), PathId(0)), "the peer has not confirmed");
}

#[test]
fn it_follows_from_when_it_is_told_until_it_is_there_or_need_not() {
    let goal = Goal { path: OTHER, above: Epoch(0) };
    let mut bench = Bench::new(SMALLER);
    assert_eq!(bench.machine.follows(), None);
    bench.give(Input::Follow(goal));
    assert_eq!(bench.machine.follows(), Some(goal));
    assert!(Member::of(1, &bench.machine, |_| None).follows);
    let mut there = bench.clone();
    there.reach_stage(Stage::Fencing);
    assert_eq!(there.machine.follows(), None);
    bench.give(Input::Stay);
    assert_eq!(bench.machine.follows(), None);
}

#[test]
fn a_machine_is_a_member_as_it_says_itself() {
    let sites = |path: PathId| [Some(Site(3)), Some(Site(5)), Some(Site(4))].get(usize::from(path.0)).copied()?;
    let of = |bench: &Bench| Member::of(1, &bench.machine, sites);
    let mut bench = Bench::new(SMALLER);
    let rest = of(&bench);
    assert_eq!((rest.stage, rest.site, rest.epoch), (Stage::Running, Site(3), Epoch(0)));
    assert_eq!((rest.is_claiming, rest.plan, rest.follows), (false, None, false));
    let (ready, arming) = (Readiness::Ready, Readiness::Arming);
    let unable = Readiness::Unable;
    assert_eq!(rest.readiness, [unable, unable, unable, ready, arming, ready, unable, unable]);
    assert_eq!(rest.can_go, core::array::from_fn(|site| site == 5));
    bench.hold();
    bench.give(Input::Drained);
    assert_eq!((of(&bench).plan, of(&bench).is_claiming), (Some((Site(5), Progress::Complete)), false));
    bench.give(Input::Depart);
    assert_eq!((of(&bench).plan, of(&bench).is_claiming), (Some((Site(5), Progress::Leaving)), true));
    bench.give(SUSPECT);
    assert!(!of(&bench).is_claiming, "it seeks");
    let mut moving = Bench::new(SMALLER);
    moving.reach_stage(Stage::Fenced);
    let moving = of(&moving);
    assert_eq!((moving.stage, moving.site, moving.epoch), (Stage::Fenced, Site(5), Epoch(1)));
    assert_eq!(moving.can_go, [false; MAX_SITES]);
}

#[test]
fn who_has_no_peer_any_more_follows_nobody() {
    let mut bench = Bench::new(SMALLER);
    bench.hear(Handshake::Gone);
    assert_eq!(bench.give(Input::Follow(Goal { path: OTHER, above: Epoch(0) })), []);
    assert_eq!(bench.machine.follows(), None);
}

#[test]
fn a_peer_asks_until_its_last_claim_is_as_old_as_a_claim_lasts() {
    let mut bench = Bench::new(SMALLER);
    bench.machine.confine(Scope::NOWHERE);
    let (first, claim) = (bench.now, bench.claim(1, 1));
    bench.hear(claim.clone());
    bench.wait(Micros::from_millis(400));
    bench.hear(claim);
    bench.wait(Micros(Deadlines::default().claim.0 - 1));
    assert_eq!(bench.machine.asked(bench.now), Some(first));
    bench.wait(Micros(1));
    assert_eq!(bench.machine.asked(bench.now), None);
}
