//! What a machine does for the group that its queue pair receives with, and what a group asks of its members.

use shift_proto::id::{Epoch, Micros, PathId, Site, MAX_SITES};
use shift_proto::migrate::{
    Attempt, Cause, Deadlines, Effect, Goal, Group, GroupLimits, Handshake, Input, Machine, Member, Order, Readiness,
    Scope, Sites, Stage, Surfaced,
};

use crate::bench::{sent, surfaced, Bench, BIGGER, FATAL, SMALLER, SUSPECT};

pub const NOW: Micros = Micros(1_000_000);
const OTHER: Goal = Goal { path: PathId(1), above: Epoch(0) };
const ANEW: Goal = Goal { path: PathId(0), above: Epoch(0) };
pub const HOME: Site = Site(0);
pub const AWAY: Site = Site(1);
const BOTH: Sites = Sites::only(HOME).with(AWAY);

pub fn limits() -> GroupLimits {
    Deadlines::default().group_limits()
}

pub fn follow(key: u32, site: Site) -> Order<u32> {
    Order::Follow(key, site, Epoch(0))
}

/// A machine as its group sees it where the numbers of paths and of sites are the same.
fn seen(machine: &Machine) -> Member<u32> {
    Member::of(1, machine, |path| Some(Site(path.0)))
}

/// What is said of the first device and of the first standbys, and of those that there are not.
pub fn by_site<T: Copy, const N: usize>(there: [T; N], otherwise: T) -> [T; MAX_SITES] {
    core::array::from_fn(|site| there.get(site).copied().unwrap_or(otherwise))
}

pub fn ready_for(standbys: usize) -> [Readiness; MAX_SITES] {
    core::array::from_fn(|site| if site <= standbys { Readiness::Ready } else { Readiness::Unable })
}

/// One that is armed, in the epoch that its site says: nobody moves twice here.
pub fn member(key: u32, stage: Stage, site: u8) -> Member<u32> {
    let is_fenced = !matches!(stage, Stage::Fencing | Stage::Fenced | Stage::Settling);
    Member {
        stage,
        site: Site(site),
        epoch: Epoch(u32::from(site)),
        is_fenced,
        readiness: ready_for(1),
        ..Member::without_machine(key)
    }
}

pub fn running(keys: std::ops::RangeInclusive<u32>) -> Vec<Member<u32>> {
    keys.map(|key| member(key, Stage::Running, 0)).collect()
}

/// A group at rest with these members.
pub fn group(members: &[Member<u32>]) -> Group<u32> {
    let mut group = Group::new(limits());
    assert!(group.turn(NOW, members).is_empty() && group.is_open(Site(0)));
    group
}

/// The same, moved to the other path.
fn moved(keys: std::ops::RangeInclusive<u32>) -> (Group<u32>, Vec<Member<u32>>) {
    let mut group = group(&running(keys.clone()));
    let members: Vec<_> = keys.map(|key| member(key, Stage::Reposting, 1)).collect();
    group.turn(NOW, &members);
    group.posted(Site(1));
    group.turn(NOW, &members);
    assert_eq!((group.home(), group.goal()), (Site(1), None));
    (group, members.into_iter().map(|m| Member { stage: Stage::Running, ..m }).collect())
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
    assert!(bench.give(Input::Follow(OTHER)).contains(&Effect::Seek));
    assert!(bench.give(Input::PathAnswered(PathId(0))).is_empty(), "its own path is no reason to stay");
    assert_eq!(bench.attempt(), Attempt::Seeking);
    assert_eq!(claimed(&bench.give(Input::PathAnswered(PathId(1)))), Some((PathId(1), Cause::Group)));
    assert!(bench.give(Input::Follow(OTHER)).is_empty(), "said again it changes nothing");
}

#[test]
fn a_member_is_connected_anew_where_it_is_if_its_group_is() {
    let mut bench = Bench::new(SMALLER);
    assert!(bench.give(Input::Follow(ANEW)).contains(&Effect::Seek));
    assert!(bench.give(Input::PathAnswered(PathId(1))).is_empty(), "the other path is not the group's");
    assert_eq!(claimed(&bench.give(Input::PathAnswered(PathId(0)))), Some((PathId(0), Cause::Group)));
    let mut there = Bench::new(SMALLER);
    there.reach_stage(Stage::Running);
    assert!(there.give(Input::Follow(Goal { path: PathId(1), above: Epoch(0) })).is_empty(), "it is there in epoch 1");
    assert!(there.give(Input::Follow(Goal { path: PathId(1), above: Epoch(1) })).contains(&Effect::Seek));
}

#[test]
fn a_claim_for_another_path_than_the_groups_is_cancelled() {
    let mut bench = Bench::new(SMALLER);
    bench.give(FATAL);
    bench.wait(Micros(300_000));
    assert_eq!(claimed(&bench.give(Input::PathAnswered(PathId(0)))), Some((PathId(0), Cause::RetryExceeded)));
    let effects = bench.give(Input::Follow(OTHER));
    assert!(matches!(sent(&effects)[..], [Handshake::Cancel { .. }]), "{effects:?}");
    bench.wait(Micros(50_000));
    bench.give(Input::PathAnswered(PathId(0)));
    assert_eq!(bench.attempt(), Attempt::Seeking);
    assert!(claimed(&bench.give(Input::PathAnswered(PathId(1)))).is_some());
}

#[test]
fn who_is_not_called_any_more_rests_and_takes_its_claim_back() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Follow(OTHER));
    assert_eq!(bench.give(Input::Stay), [Effect::StopSeek]);
    assert_eq!((bench.attempt(), bench.machine.follows()), (Attempt::Idle, None));
    bench.give(Input::Follow(OTHER));
    bench.wait(Micros(50_000));
    assert!(claimed(&bench.give(Input::PathAnswered(PathId(1)))).is_some());
    assert!(matches!(sent(&bench.give(Input::Stay))[..], [Handshake::Cancel { .. }]));
    assert_eq!(bench.attempt(), Attempt::Idle);
    bench.give(Input::Follow(OTHER));
    bench.give(FATAL);
    bench.give(Input::Stay);
    assert_eq!(bench.attempt(), Attempt::Seeking, "its queue pair is in error all the same");
}

#[test]
fn who_need_not_follow_any_more_is_in_fault_as_before() {
    for follows in [true, false] {
        let mut bench = Bench::new(SMALLER);
        bench.give(SUSPECT);
        if follows {
            bench.give(Input::Follow(OTHER));
        }
        assert_eq!(bench.give(Input::Stay), []);
        assert_eq!((bench.attempt(), bench.machine.follows()), (Attempt::Seeking, None));
    }
}

#[test]
fn a_member_with_unprovable_work_holds_new_posts_so_that_the_old_ones_can_end() {
    let mut bench = Bench::new(SMALLER);
    bench.give(Input::Hold(true));
    bench.give(Input::Follow(OTHER));
    let effects = bench.give(Input::PathAnswered(PathId(1)));
    assert_eq!(effects, [Effect::Exclude], "nothing is claimed, and nothing more is posted");
    bench.give(Input::Excluded);
    assert!(claimed(&bench.give(Input::Hold(false))).is_some());
    // In the middle of a replay they have to be posted first.
    let mut replaying = Bench::new(SMALLER);
    replaying.reach_stage(Stage::Replaying);
    replaying.give(Input::Hold(true));
    replaying.give(Input::Follow(Goal { path: PathId(0), above: Epoch(1) }));
    assert_eq!(replaying.give(Input::PathAnswered(PathId(0))), []);
}

#[test]
fn what_is_allowed_twice_is_allowed() {
    for path in [PathId(1), PathId(2)] {
        assert!(Scope::only(PathId(1)).with(PathId(2)).with(path).allows(path));
    }
    let sites: Sites = [HOME, AWAY, HOME].into_iter().collect();
    assert_eq!(sites, BOTH);
    assert!(BOTH.with(AWAY).has(AWAY) && BOTH.with(HOME).has(HOME));
}

#[test]
fn what_the_group_does_not_allow_is_neither_claimed_nor_accepted() {
    let mut bench = Bench::new(BIGGER);
    bench.machine.confine(Scope::NOWHERE);
    bench.give(SUSPECT);
    assert!(bench.give(Input::PathAnswered(PathId(1))).is_empty());
    let claim = bench.claim(1, 1);
    assert!(matches!(sent(&bench.hear(claim.clone()))[..], [Handshake::Refuse { .. }]));
    bench.machine.confine(Scope::only(PathId(0)));
    assert!(matches!(sent(&bench.hear(claim.clone()))[..], [Handshake::Refuse { .. }]));
    bench.machine.confine(Scope::only(PathId(1)));
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
fn an_own_fence_that_is_complete_counts_without_the_peers_word() {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(Stage::Fencing);
    assert!(!seen(&bench.machine).is_fenced);
    bench.fenced(true);
    assert_eq!(bench.stage(), Stage::Fenced);
    assert!(seen(&bench.machine).is_fenced);
    let mut failed = Bench::new(SMALLER);
    failed.reach_stage(Stage::Fencing);
    failed.fenced(false);
    assert!(!seen(&failed.machine).is_fenced);
}

#[test]
fn a_peer_that_destroyed_its_queue_pair_is_none() {
    let mut bench = Bench::new(SMALLER);
    assert!(seen(&bench.machine).has_peer);
    bench.hear(Handshake::Gone);
    assert!(!seen(&bench.machine).has_peer);
}

#[test]
fn receives_wait_until_every_member_is_fenced() {
    let mut group = group(&running(1..=3));
    let one_left = [member(1, Stage::Running, 0), member(2, Stage::Reposting, 1), member(3, Stage::Running, 0)];
    assert_eq!(group.turn(NOW, &one_left), [follow(1, AWAY), follow(3, AWAY)], "in order");
    assert!(!group.is_open(Site(1)) && !group.is_open(Site(0)));
    assert_eq!(group.scope(&one_left[0], Readiness::Ready), Sites::only(Site(1)));
    for stage in [Stage::Fencing, Stage::Fenced, Stage::Settling] {
        let waiting = [member(1, stage, 1), member(2, Stage::Reposting, 1), member(3, Stage::Dead, 0)];
        assert!(group.turn(NOW, &waiting).is_empty());
        assert!(!group.is_open(Site(1)), "{stage:?}");
    }
    let all = [member(1, Stage::Reposting, 1), member(2, Stage::Reposting, 1), member(3, Stage::Dead, 0)];
    assert!(group.turn(NOW, &all).is_empty());
    assert!(group.is_open(Site(1)));
}

#[test]
fn the_receives_are_where_they_were_posted_and_not_where_they_may_be() {
    let mut group = group(&running(1..=2));
    let all = [member(1, Stage::Reposting, 1), member(2, Stage::Reposting, 1)];
    group.turn(NOW, &all);
    assert!(group.is_open(Site(1)));
    assert_eq!((group.home(), group.goal()), (Site(0), Some(Site(1))), "nobody has posted them");
    // Before that somebody is connected, and takes receives where they are.
    let newcomer = Member::without_machine(3);
    assert_eq!(group.turn(NOW, &[all[0], all[1], newcomer]), [follow(3, AWAY)]);
    assert!(!group.is_open(Site(1)), "it takes receives of the path that is being left");
    assert_eq!(group.turn(NOW, &all), []);
    group.posted(Site(1));
    assert_eq!((group.home(), group.goal(), group.round()), (Site(1), None, 1));
    assert!(group.is_open(Site(1)) && !group.is_open(Site(0)));
}

#[test]
fn if_all_who_moved_end_before_they_posted_the_receives_are_where_they_were() {
    let mut group = group(&running(1..=2));
    group.turn(NOW, &[member(1, Stage::Reposting, 1), member(2, Stage::Reposting, 1)]);
    let ended = [member(1, Stage::Dead, 1), member(2, Stage::Dead, 1)];
    assert!(group.turn(NOW, &ended).is_empty());
    assert_eq!((group.home(), group.goal(), group.round()), (Site(0), None, 0), "nor is there a new round");
    let [first, second] = [member(7, Stage::Running, 0), member(8, Stage::Running, 0)];
    assert!(group.turn(NOW, &[ended[0], ended[1], first, second]).is_empty(), "who comes then is where they are");
    assert!(group.is_open(Site(0)) && !group.is_open(Site(1)));
}

#[test]
fn if_the_first_ends_before_anybody_follows_nobody_has_to() {
    let mut group = group(&running(1..=3));
    let mut members = [member(1, Stage::Fencing, 1), member(2, Stage::Running, 0), member(3, Stage::Running, 0)];
    assert_eq!(group.turn(NOW, &members).len(), 2);
    members[0].stage = Stage::Dead;
    members[1].follows = true;
    assert_eq!(group.turn(NOW, &members), [Order::Stay(2)]);
    assert_eq!((group.home(), group.goal()), (Site(0), None));
}

#[test]
fn one_that_was_connected_where_the_others_go_does_not_keep_a_move_alive() {
    let (mut group, mut members) = moved(1..=1);
    let newcomer = member(7, Stage::Running, 0);
    members[0] = Member { site: HOME, epoch: Epoch(2), ..members[0] };
    group.turn(NOW, &[members[0], newcomer]);
    assert_eq!(group.goal(), Some(Site(0)));
    members[0].stage = Stage::Dead;
    assert_eq!(group.turn(NOW, &[members[0], newcomer]), [follow(7, AWAY)]);
    assert_eq!((group.home(), group.goal()), (Site(1), None));
}

#[test]
fn who_is_connected_anew_where_it_was_makes_all_others_do_the_same() {
    let mut group = group(&running(1..=2));
    let anew = |key, stage| Member { site: HOME, epoch: Epoch(1), ..member(key, stage, 0) };
    let one = [member(1, Stage::Running, 0), anew(2, Stage::Fencing)];
    assert_eq!(group.turn(NOW, &one), [follow(1, HOME)], "a receive that it had taken in part is lost else");
    assert!(!group.is_open(Site(0)));
    let newcomer = Member::without_machine(3);
    let both = [anew(1, Stage::Reposting), anew(2, Stage::Reposting), newcomer];
    assert_eq!(group.turn(NOW, &both), [follow(3, HOME)], "it takes what is about to be posted again");
    assert!(!group.is_open(Site(0)));
    group.turn(NOW, &both[..2]);
    assert!(group.is_open(Site(0)));
    group.posted(Site(0));
    assert!(group.turn(NOW, &both[..2]).is_empty());
    assert_eq!((group.home(), group.goal(), group.round()), (Site(0), None, 1));
}

#[test]
fn who_is_fenced_for_the_path_that_the_group_leaves_is_not_there_yet() {
    let mut group = group(&running(1..=2));
    let anew = Member { site: HOME, epoch: Epoch(1), ..member(2, Stage::Ready, 0) };
    let both = [member(1, Stage::Reposting, 1), anew];
    assert_eq!(group.turn(NOW, &both), [follow(2, AWAY)]);
    assert!(!group.is_open(Site(1)));
}

#[test]
fn who_cannot_come_along_is_left_behind_at_the_limit_and_at_once_where_it_never_can() {
    let mut members = running(1..=2);
    let mut waiting = group(&members);
    members[0] = member(1, Stage::Reposting, 1);
    assert_eq!(waiting.turn(NOW, &members), [follow(2, AWAY)]);
    assert_eq!(waiting.turn(NOW + limits().come, &members), [Order::LeaveBehind(2)]);
    for unable in [
        Member { has_peer: false, ..member(2, Stage::Running, 0) },
        Member { is_movable: false, ..member(2, Stage::Running, 0) },
    ] {
        let mut group = group(&running(1..=2));
        assert_eq!(group.turn(NOW, &[members[0], unable]), [Order::LeaveBehind(2)]);
    }
    // One that has said COMMIT has until the end of its fence.
    let fencing = [member(1, Stage::Reposting, 1), member(2, Stage::Fencing, 1)];
    let mut group = group(&running(1..=2));
    group.turn(NOW, &fencing);
    assert!(group.turn(NOW + limits().come, &fencing).is_empty());
    assert_eq!(group.turn(NOW + limits().fence, &fencing), [Order::LeaveBehind(2)]);
}

#[test]
fn what_a_group_waits_for_ends_before_the_exchange_does() {
    let deadlines = Deadlines::default();
    let limits = deadlines.group_limits();
    assert!(limits.come > deadlines.hold, "one with unprovable work can come along");
    assert!(limits.come + deadlines.drain < limits.fence && limits.fence < deadlines.exchange);
}

#[test]
fn one_of_whose_peer_nothing_is_known_is_a_member_like_any_other() {
    let unknown = Member::without_machine(2);
    let mut group = group(&[member(1, Stage::Running, 0), unknown]);
    assert_eq!(group.readiness(&[member(1, Stage::Running, 0), unknown]), Readiness::Arming);
    let members = [member(1, Stage::Reposting, 1), unknown];
    assert_eq!(group.turn(NOW, &members), [follow(2, AWAY)]);
    assert!(!group.is_open(Site(1)), "its NIC takes receives");
    assert_eq!(group.turn(NOW + limits().come, &members), [Order::LeaveBehind(2)]);
    assert!(group.turn(NOW, &[members[0], Member { stage: Stage::Dead, ..unknown }]).is_empty());
    assert!(group.is_open(Site(1)));
}

#[test]
fn who_is_connected_on_a_path_that_the_group_has_left_is_called_to_it_and_left_at_the_limit() {
    let (mut group, mut members) = moved(1..=1);
    let newcomer = member(7, Stage::Running, 0);
    members.push(newcomer);
    assert_eq!(group.turn(NOW, &members), [follow(7, AWAY)]);
    assert_eq!(group.scope(&newcomer, Readiness::Ready), Sites::only(Site(1)));
    assert_eq!((group.home(), group.goal()), (Site(1), None), "it does not draw the others back");
    assert!(group.is_open(Site(1)), "it may post its receives where the others have theirs");
    assert_eq!(group.due(), Some(NOW + limits().call));
    assert_eq!(group.turn(NOW + limits().call, &members), [Order::LeaveBehind(7)], "there it gets none");
    members[1].is_movable = false;
    assert_eq!(group.turn(NOW, &members), [Order::LeaveBehind(7)]);
}

#[test]
fn nobody_is_waited_for_who_has_no_peer_any_more_or_is_not_there() {
    let (mut group, mut members) = moved(1..=2);
    members.push(member(7, Stage::Running, 0));
    group.turn(NOW, &members);
    assert!(group.due().is_some(), "it is called");
    members[2].has_peer = false;
    group.turn(NOW, &members);
    assert_eq!(group.due(), None, "it will not come, and harms nobody");
    members[2].has_peer = true;
    members[0] = Member { epoch: Epoch(2), ..member(1, Stage::Fencing, 0) };
    group.turn(NOW, &members);
    assert!(group.goal().is_some());
    group.turn(NOW, &[]);
    assert_eq!((group.goal(), group.due(), group.home()), (None, None, Site(1)), "the last one is gone");
}

#[test]
fn who_was_called_stays_when_the_group_comes_to_where_it_is() {
    let (mut group, mut members) = moved(1..=2);
    members.push(Member { follows: true, ..member(7, Stage::Running, 0) });
    members[0] = Member { site: HOME, epoch: Epoch(2), ..members[0] };
    let orders = group.turn(NOW, &members);
    assert!(orders.contains(&Order::Stay(7)), "{orders:?}");
    assert!(!orders.iter().any(|order| matches!(order, Order::Follow(7, ..))), "{orders:?}");
}

#[test]
fn one_member_that_is_not_armed_keeps_the_whole_group_where_it_is() {
    let mut members = running(1..=2);
    let group = group(&members);
    assert_eq!(group.readiness(&members), Readiness::Ready);
    for readiness in [Readiness::Arming, Readiness::Unable] {
        members[1].readiness = by_site([readiness; 2], Readiness::Unable);
        assert_eq!(group.readiness(&members), readiness);
        assert_eq!(group.scope(&members[0], readiness), Sites::NONE);
    }
    members[1].has_peer = false;
    assert_eq!(group.readiness(&members), Readiness::Ready, "whose peer has ended takes nothing any more");
}

#[test]
fn who_is_where_the_receives_are_is_no_obstacle_for_who_is_called_there() {
    let (group, mut members) = moved(1..=2);
    members.iter_mut().for_each(|member| member.readiness = [Readiness::Unable; MAX_SITES]);
    let newcomer = member(7, Stage::Running, 0);
    assert_eq!(group.scope(&newcomer, group.readiness(&members)), Sites::only(Site(1)));
    members.iter_mut().for_each(|member| member.readiness = ready_for(1));
    members.push(Member { readiness: [Readiness::Unable; MAX_SITES], ..newcomer });
    assert_eq!(group.readiness(&members), Readiness::Ready, "nor is who could not be called for the others");
}

#[test]
fn nobody_claims_before_the_path_has_answered_everyone() {
    let mut members = running(1..=3);
    let mut group = group(&members);
    let later = |us| Some(Micros(NOW.0 + us));
    members.iter_mut().for_each(|member| member.answered = by_site([Some(Micros(5)); 2], None));
    members[0].sought = later(0);
    assert!(group.turn(NOW, &members).is_empty());
    assert_eq!(group.seeks(&members), later(0), "the others are to probe");
    assert_eq!(group.scope(&members[0], Readiness::Ready), Sites::NONE, "what answered before the fault is no answer");
    members[0].answered[1] = later(10);
    members[1].answered = by_site([later(10); 2], None);
    members[2].answered[0] = later(10);
    group.turn(NOW, &members);
    assert_eq!(group.scope(&members[0], Readiness::Ready), Sites::only(Site(0)));
    members[2].answered[1] = later(20);
    group.turn(NOW, &members);
    for (readiness, scope) in
        [(Readiness::Ready, BOTH), (Readiness::Arming, Sites::NONE), (Readiness::Unable, Sites::NONE)]
    {
        assert_eq!(group.scope(&members[0], readiness), scope);
    }
}

/// Who is dead, whose peer is, and who is elsewhere.
pub fn strangers() -> [Member<u32>; 3] {
    let stranger = |key, stage, site| Member { readiness: ready_for(2), epoch: Epoch(0), ..member(key, stage, site) };
    [
        stranger(7, Stage::Dead, 0),
        Member { has_peer: false, ..stranger(8, Stage::Running, 0) },
        stranger(9, Stage::Running, 2),
    ]
}

#[test]
fn who_is_dead_or_alone_or_elsewhere_is_not_asked_before_a_claim() {
    for stranger in strangers() {
        let mut members = running(1..=2);
        let mut group = group(&members);
        members[0].sought = Some(NOW);
        members.iter_mut().for_each(|member| member.answered = by_site([Some(NOW); 2], None));
        members.push(stranger);
        group.turn(NOW, &members);
        assert_eq!(group.scope(&members[0], Readiness::Ready), BOTH, "{stranger:?}");
    }
}

#[test]
fn who_is_dead_or_elsewhere_makes_nobody_probe() {
    let mut members = running(1..=1);
    let group = group(&members);
    for stranger in [strangers()[0], strangers()[2]] {
        members.truncate(1);
        members.push(Member { sought: Some(NOW), ..stranger });
        assert_eq!(group.seeks(&members), None, "{stranger:?}");
    }
}

/// One who is in fault itself, and has no answer yet, is not the reason why others are left behind.
#[test]
fn the_time_for_answers_runs_from_the_first_answer_to_one_in_fault() {
    let mut members = running(1..=2);
    let mut group = group(&members);
    members[0].sought = Some(NOW);
    group.turn(NOW, &members);
    let answered = NOW + limits().ask;
    members[0].answered[1] = Some(answered);
    for (now, scope) in [(answered, Sites::NONE), (answered + limits().ask, BOTH)] {
        group.turn(now, &members);
        assert_eq!(group.scope(&members[0], Readiness::Ready), scope);
    }
}

#[test]
fn a_peer_that_claims_is_refused_until_the_path_has_answered_everyone() {
    let mut bench = Bench::new(SMALLER);
    assert_eq!(bench.machine.asked(bench.now), None);
    bench.machine.confine(Scope::NOWHERE);
    let first = bench.now;
    for _ in 0..3 {
        let claim = bench.claim(1, 1);
        assert!(matches!(sent(&bench.hear(claim))[..], [Handshake::Refuse { .. }]));
        assert_eq!(bench.machine.asked(bench.now), Some(first), "its group is to look around since then");
        bench.wait(Micros(300_000));
    }
    bench.wait(Deadlines::default().claim);
    assert_eq!(bench.machine.asked(bench.now), None, "the peer has given up");
    bench.machine.confine(Scope::ANY);
    let claim = bench.claim(1, 2);
    bench.hear(claim);
    assert_eq!(bench.attempt(), Attempt::Accepting);
    let mut unarmed = Bench::new(SMALLER);
    (0..2).for_each(|path| drop(unarmed.give(Input::PathDisarmed(PathId(path)))));
    let claim = unarmed.claim(1, 1);
    unarmed.hear(claim);
    assert_eq!(unarmed.machine.asked(unarmed.now), None, "the group could not help it");
}

#[test]
fn who_is_driven_around_refuses_claims_for_a_while_unless_it_is_in_fault_itself() {
    let mut group = group(&running(1..=1));
    let mut now = NOW;
    let at = |epoch: u32| Member { epoch: Epoch(epoch), ..member(1, Stage::Running, (epoch % 2) as u8) };
    for epoch in 1..=4 {
        let asked = Member { asked: Some(now), answered: by_site([Some(now); 2], None), ..at(epoch - 1) };
        group.turn(now, &[asked]);
        assert_eq!(group.scope(&asked, Readiness::Ready), BOTH, "before move {epoch}");
        group.turn(now, &[at(epoch)]);
        group.posted(Site((epoch % 2) as u8));
        now = now + Micros(100_000);
    }
    let asked = Member { asked: Some(now), answered: by_site([Some(now); 2], None), ..at(4) };
    group.turn(now, &[asked]);
    assert_eq!(group.scope(&asked, Readiness::Ready), Sites::NONE);
    let in_fault = Member { sought: Some(now), ..asked };
    group.turn(now, &[in_fault]);
    assert_eq!(group.scope(&in_fault, Readiness::Ready), BOTH);
    group.turn(NOW + limits().call, &[asked]);
    assert_eq!(group.scope(&asked, Readiness::Ready), BOTH);
}

#[test]
fn as_many_are_left_behind_as_are_saved_and_not_more() {
    let mut members = running(1..=3);
    let mut group = group(&members);
    let later = Some(Micros(NOW.0 + 10));
    members[0].sought = Some(NOW);
    members[0].answered[1] = later;
    members[1].answered[1] = later;
    members[2].answered[0] = later;
    for (waited, scope) in [(Micros(0), Sites::NONE), (limits().ask, BOTH)] {
        group.turn(NOW + waited, &members);
        assert_eq!(group.scope(&members[0], Readiness::Ready), scope, "one is saved, one does not answer");
    }
    members[1].answered[1] = None;
    group.turn(NOW + limits().ask, &members);
    assert_eq!(group.scope(&members[0], Readiness::Ready), Sites::only(Site(0)), "one is saved, two do not answer");
}
