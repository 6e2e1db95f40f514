//! Two real machines over a random network with virtual time: frames are delayed, reordered, repeated, dropped and cut off one
//! way; paths fail under them, claims cross, ends sleep, hold, fail to fence and are destroyed.
//!
//! Whatever happens: the ends never part into two migrations of one epoch, nobody replays before the other end fenced and
//! posted its receives, nothing resumes after COMMIT, and when the faults end, so does the handshake.
//!
//! A failing seed is named in the panic; `SHIFT_SEED=n cargo test -p shift-proto --test network` runs it alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(clippy::wildcard_enum_match_arm, clippy::too_many_lines, reason = "a test looks at the few cases it is about")]

mod failback;
mod profile;
mod schedule;
mod world;

use std::collections::BTreeMap;

use profile::Profile;
use schedule::{Item, Schedule};
use shift_proto::migrate::MAX_HOLD_DOWN;
use world::{Outcome, Trace, World};

const DEFAULT_SEEDS: u64 = 4000;

/// Of runs with many migrations in each.
const FEWER_SEEDS: usize = 1000;
/// Simulated hours.
const HOURS: usize = 20;
/// Of 10 s of patience, which begin when the NIC gives up.
const DARK_US: u64 = 5_000_000;

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SHIFT_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SHIFT_SEEDS").unwrap_or(DEFAULT_SEEDS)).collect(),
    }
}

/// So many by default; of more that are asked for the same share.
fn seeds_of(count: usize) -> Vec<u64> {
    let all = seeds();
    let share = count.saturating_mul(all.len()) / DEFAULT_SEEDS as usize;
    all.into_iter().take(share.max(1)).collect()
}

/// Runs all seeds and gives how often each outcome was seen.
fn explore(name: &str, profile: Profile) -> BTreeMap<String, u64> {
    explore_first(DEFAULT_SEEDS as usize, name, profile)
}

fn explore_first(count: usize, name: &str, profile: Profile) -> BTreeMap<String, u64> {
    explore_and_judge(count, name, profile, |_, _| {})
}

/// The same; `judge` panics where an outcome is not what its schedule allows.
fn explore_and_judge(
    count: usize,
    name: &str,
    profile: Profile,
    judge: impl Fn(&Schedule, &Outcome),
) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for seed in seeds_of(count) {
        let schedule = Schedule::of(seed, profile);
        let run = |schedule: &Schedule, trace: Option<&Trace>| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let outcome = World::new(schedule, trace).run();
                judge(schedule, &outcome);
                outcome
            }))
        };
        match run(&schedule, None) {
            Ok(outcome) => outcome.marks.into_iter().for_each(|mark| *seen.entry(mark).or_default() += 1),
            Err(cause) => {
                eprintln!("replay: SHIFT_SEED={seed} cargo test -p shift-proto --test network {name} -- --nocapture");
                let shorter = schedule.shrink(|shorter| run(shorter, None).is_err());
                eprintln!("what it takes:\n{}", shorter.words());
                let trace = Trace::default();
                let _ = run(&shorter, Some(&trace));
                eprintln!("the timeline of that:\n{}", trace.borrow().join("\n"));
                std::panic::resume_unwind(cause);
            }
        }
    }
    eprintln!("{name}: {seen:?}");
    seen
}

fn expect(seen: &BTreeMap<String, u64>, marks: &[&str]) {
    if std::env::var("SHIFT_SEED").is_ok() {
        return;
    }
    for mark in marks {
        assert!(seen.contains_key(*mark), "no run showed \"{mark}\": {seen:?}");
    }
}

#[test]
fn one_fault_on_a_good_network_always_ends_on_the_other_path() {
    let seen = explore("one_fault_on_a_good_network_always_ends_on_the_other_path", Profile::calm());
    expect(&seen, &["both running", "migrated", "crossing claims"]);
    assert!(!seen.contains_key("both ended"), "a healthy standby was there, and an error surfaced: {seen:?}");
}

#[test]
fn a_bad_network_never_splits_a_connection_and_every_run_ends() {
    let seen = explore("a_bad_network_never_splits_a_connection_and_every_run_ends", Profile::rough());
    let marks = [
        "both running",
        "migrated",
        "migrated twice",
        "both ended",
        "crossing claims",
        "cancelled",
        "waited",
        "lapsed",
    ];
    expect(&seen, &marks);
}

/// A fault on the standby, in mid-migration too, at one end or both, and claims that cross: each is one more epoch.
#[test]
fn three_paths_that_die_in_turn_surface_nothing_and_split_nothing() {
    let name = "three_paths_that_die_in_turn_surface_nothing_and_split_nothing";
    let seen = explore(name, Profile::three_in_turn());
    expect(&seen, &["both running", "migrated", "migrated twice", "crossing claims"]);
    assert!(!seen.contains_key("both ended"), "a path was there all the time, and an error surfaced: {seen:?}");
}

#[test]
fn a_bad_network_of_three_paths_never_splits_a_connection_and_every_run_ends() {
    let name = "a_bad_network_of_three_paths_never_splits_a_connection_and_every_run_ends";
    let seen = explore_first(FEWER_SEEDS, name, Profile::rough_on_three());
    expect(&seen, &["both running", "migrated twice", "both ended", "crossing claims", "cancelled", "waited"]);
}

#[test]
fn planned_moves_never_surface_anything_and_never_leave_posts_held() {
    let seen = explore_first(
        FEWER_SEEDS,
        "planned_moves_never_surface_anything_and_never_leave_posts_held",
        Profile::planned(),
    );
    expect(&seen, &["moved by plan", "went back", "cancelled", "waited"]);
    assert!(!seen.contains_key("both ended"), "nothing was wrong, and an error surfaced: {seen:?}");
}

/// A NIC gives up when its path is down; then there is the patience deadline. So an error is right only where no path carried anything for that long, or nearly: what
/// the first path still answered may be what the claim came too late for.
#[test]
fn links_that_flap_under_planned_moves_split_nothing_and_end_in_errors_only_in_the_dark() {
    let name = "links_that_flap_under_planned_moves_split_nothing_and_end_in_errors_only_in_the_dark";
    let seen = explore_and_judge(FEWER_SEEDS, name, Profile::flapping(), |schedule, outcome| {
        let is_ended = outcome.marks.contains("both ended");
        assert!(!is_ended || schedule.is_dark_for(DARK_US), "an error, and a path was there: {:?}", outcome.marks);
    });
    expect(&seen, &["moved by plan", "went back", "migrated twice", "crossing claims"]);
}

/// Two whole machines on a link that flaps for an hour: nothing surfaces, and the hold-down bounds how often they move.
#[test]
fn in_an_hour_of_flapping_two_machines_move_no_more_often_than_the_hold_down_lets_them() {
    let name = "in_an_hour_of_flapping_two_machines_move_no_more_often_than_the_hold_down_lets_them";
    let profile = Profile::flapping_for_an_hour();
    let returns = 6 + profile.span / (MAX_HOLD_DOWN.0 / 2) + 1;
    let seen = explore_and_judge(HOURS, name, profile, |_, outcome| {
        assert!(outcome.returns.iter().all(|count| *count <= returns), "{:?} returns", outcome.returns);
        assert!(u64::from(outcome.epoch) <= 2 * returns + 1, "{} migrations", outcome.epoch);
        assert!(outcome.epoch > 6, "it hardly flapped: {} migrations", outcome.epoch);
        assert!(!outcome.marks.contains("both ended"), "an error, and the second path was there all the time");
    });
    expect(&seen, &["moved by plan", "went back", "migrated twice", "both running"]);
}

/// With a judge that takes each migration for a failure: of all that happens one fault or one wish is left, which is what it takes.
#[test]
fn a_schedule_that_fails_shrinks_to_what_it_takes_and_tells_its_timeline() {
    let mut shrunk = 0;
    for seed in 0..40 {
        let fails = |schedule: &Schedule| World::new(schedule, None).run().marks.contains("migrated");
        let schedule = Schedule::of(seed, Profile::rough());
        if schedule.items.len() < 4 || !fails(&schedule) {
            continue;
        }
        let shorter = schedule.clone().shrink(fails);
        assert!(fails(&shorter) && shorter.items.len() <= 2, "seed {seed}:\n{}", shorter.words());
        let causes = |item: &Item| matches!(item, Item::Outage { .. } | Item::Notice { .. });
        assert!(shorter.items.iter().any(causes), "seed {seed}:\n{}", shorter.words());
        let trace = Trace::default();
        World::new(&shorter, Some(&trace)).run();
        assert!(trace.borrow().iter().any(|line| line.contains("-> Confirmed")), "seed {seed}");
        shrunk += 1;
    }
    assert!(shrunk > 10, "{shrunk}");
}

#[test]
fn fences_that_fail_are_waited_out_or_surfaced() {
    let seen = explore("fences_that_fail_are_waited_out_or_surfaced", Profile::weak_fences());
    expect(&seen, &["both running", "migrated", "settled", "both ended"]);
}

#[test]
fn destroying_a_queue_pair_at_any_moment_leaves_nobody_waiting() {
    let seen = explore("destroying_a_queue_pair_at_any_moment_leaves_nobody_waiting", Profile::destroyed());
    expect(&seen, &["one gone, one running", "both ended"]);
}

#[test]
fn drained_rails_and_removed_devices_with_nothing_broken_surface_nothing() {
    let name = "drained_rails_and_removed_devices_with_nothing_broken_surface_nothing";
    let seen = explore_first(FEWER_SEEDS, name, Profile::operated());
    expect(&seen, &["led away or back", "moved by plan", "went back", "removed", "cancelled"]);
    assert!(!seen.contains_key("both ended"), "nothing was broken, and an error surfaced: {seen:?}");
}

#[test]
fn a_silent_control_network_and_ends_that_stand_still_move_nothing_and_surface_nothing() {
    let name = "a_silent_control_network_and_ends_that_stand_still_move_nothing_and_surface_nothing";
    let seen = explore_and_judge(FEWER_SEEDS, name, Profile::silent(), |_, outcome| {
        assert!(outcome.epoch == 0 && outcome.marks.contains("both running"), "{:?}", outcome.marks);
    });
    expect(&seen, &["silence"]);
}

#[test]
fn a_peer_that_dies_at_any_moment_leaves_nothing_masked_and_nothing_held() {
    let name = "a_peer_that_dies_at_any_moment_leaves_nothing_masked_and_nothing_held";
    let seen = explore_first(FEWER_SEEDS, name, Profile::mortal());
    expect(&seen, &["heard of a death", "survivor ended", "survivor runs", "both died", "migrated"]);
}

#[test]
fn operators_removals_silence_and_deaths_beside_all_faults_split_nothing_and_every_run_ends() {
    let name = "operators_removals_silence_and_deaths_beside_all_faults_split_nothing_and_every_run_ends";
    let seen = explore_first(FEWER_SEEDS, name, Profile::everything());
    let marks = ["led away or back", "removed", "torn out", "silence", "survivor ended", "survivor runs", "settled"];
    expect(&seen, &marks);
    expect(&seen, &["both running", "migrated twice", "both ended", "moved by plan", "crossing claims"]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for (seed, profile) in (0..20).flat_map(|seed| [Profile::rough(), Profile::everything()].map(|p| (seed, p))) {
        let told = || {
            let trace = Trace::default();
            World::new(&Schedule::of(seed, profile), Some(&trace)).run();
            trace.take()
        };
        assert_eq!(told(), told(), "seed {seed}");
    }
}
