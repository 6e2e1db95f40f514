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

mod profile;
mod world;

use std::collections::BTreeMap;

use profile::Profile;
use world::World;

const DEFAULT_SEEDS: u64 = 4000;

/// Of runs with many migrations in each.
const FEWER_SEEDS: usize = 1000;

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SHIFT_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SHIFT_SEEDS").unwrap_or(DEFAULT_SEEDS)).collect(),
    }
}

/// Runs all seeds and gives how often each outcome was seen.
fn explore(name: &str, profile: Profile) -> BTreeMap<String, u64> {
    explore_first(usize::MAX, name, profile)
}

fn explore_first(count: usize, name: &str, profile: Profile) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for seed in seeds().into_iter().take(count) {
        let outcome = std::panic::catch_unwind(|| World::new(seed, profile).run());
        match outcome {
            Ok(outcome) => outcome.marks.into_iter().for_each(|mark| *seen.entry(mark).or_default() += 1),
            Err(cause) => {
                eprintln!("replay: SHIFT_SEED={seed} cargo test -p shift-proto --test network {name} -- --nocapture");
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

#[test]
fn links_that_flap_under_planned_moves_split_nothing() {
    let seen = explore_first(FEWER_SEEDS, "links_that_flap_under_planned_moves_split_nothing", Profile::flapping());
    expect(&seen, &["moved by plan", "went back", "migrated twice", "crossing claims"]);
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
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let trace = || World::new(seed, Profile::rough()).run().trace;
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}
