//! The judge of gray failures against simulated weeks: a healthy network raises no alarm however noisy it is, a sick rail is seen within a minute of traffic.
//!
//! A failing seed is named; `SHIFT_SEED=n cargo test -p shift-proto --test gray` runs it alone, `SHIFT_SEEDS=n` more of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod network;

use std::collections::BTreeMap;

use network::{Network, Sickness, DAY, WINDOW_S};
use shift_proto::gray::{Counts, News, Rails, Sample, Symptom};
use shift_proto::id::Micros;

const WEEK: u64 = 7 * DAY;
/// Long enough to have seen a day's phases.
const LEARNED: u64 = DAY;

fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    number("SHIFT_SEED").map_or_else(|| (0..number("SHIFT_SEEDS").unwrap_or(default)).collect(), |seed| vec![seed])
}

#[test]
fn a_week_of_a_healthy_and_noisy_network_raises_no_alarm() {
    for seed in seeds(3) {
        let mut network = Network::new(seed);
        let said = network.run(WEEK);
        assert!(said.is_empty(), "SHIFT_SEED={seed}: {said:?}");
    }
}

/// Windows with traffic until the rail is gray; how many passed in all.
fn seen_after(seed: u64, sickness: Sickness) -> (u64, News) {
    let mut network = Network::new(seed);
    assert!(network.run(LEARNED).is_empty(), "SHIFT_SEED={seed}");
    network.sick[0] = Some(sickness);
    let fell_ill = network.window;
    for _ in 0..DAY {
        let news = network.step();
        assert!(!network.gray()[&1], "SHIFT_SEED={seed}: the healthy one is suspected");
        if let Some(news) = news.first() {
            return (network.window - fell_ill, *news);
        }
    }
    panic!("SHIFT_SEED={seed}: {sickness:?} is not seen in a day");
}

#[test]
fn a_rail_that_loses_some_packets_is_seen_within_a_minute_of_traffic() {
    for seed in seeds(12) {
        let (windows, news) = seen_after(seed, Sickness::Loss(0.05));
        assert!(matches!(news, News::Gray(0, Symptom::Loss(20..=60))), "SHIFT_SEED={seed}: {news:?}");
        // It may have fallen ill in a pause.
        assert!(windows * WINDOW_S <= 60 + 600, "SHIFT_SEED={seed}: after {} s", windows * WINDOW_S);
    }
}

#[test]
fn a_rail_with_a_tenth_of_its_bandwidth_is_seen_within_minutes() {
    let mut times: Vec<u64> = seeds(12)
        .into_iter()
        .map(|seed| {
            let (windows, news) = seen_after(seed, Sickness::Slow(0.1));
            assert!(matches!(news, News::Gray(0, Symptom::Slow(5..))), "SHIFT_SEED={seed}: {news:?}");
            windows * WINDOW_S
        })
        .collect();
    times.sort_unstable();
    eprintln!("seen after {times:?} s");
    // Not in phases in which the program hardly polls, or hardly sends.
    assert!(times[times.len() / 2] <= 300, "{times:?} s");
}

fn took(least_us: u64, most_us: u64) -> Sample {
    Sample { bytes: 65_536, behind: 8, least_ns: least_us * 1000, most_ns: most_us * 1000 }
}

/// Every window alike: so much traffic that there is no excuse.
fn steady(rails: &mut Rails, window: u64, took_us: [u64; 2], counts: Counts) -> Vec<News> {
    for (rail, took_us) in took_us.into_iter().enumerate() {
        for _ in 0..20 {
            rails.note(rail as u16, took(took_us, took_us));
        }
    }
    rails.close(at(window), Micros(5_000_000), &BTreeMap::from([(0, counts), (1, counts)]))
}

fn at(window: u64) -> Micros {
    Micros(window * 5_000_000)
}

const BUSY: Counts = Counts { packets: 1_000_000, resent: 10, not_ready: 0, amount: 4_000_000_000 };
const SLOWED: Counts = Counts { packets: 100_000, amount: 400_000_000, ..BUSY };

fn learned() -> Rails {
    let mut rails = Rails::default();
    for window in 0..20 {
        assert!(steady(&mut rails, window, [100, 100], BUSY).is_empty());
    }
    rails
}

#[test]
fn a_rail_that_is_slower_than_it_was_and_carries_less_is_gray_after_ten_windows() {
    let mut rails = learned();
    for window in 20..29 {
        assert!(steady(&mut rails, window, [1000, 100], SLOWED).is_empty(), "{window}");
    }
    assert_eq!(steady(&mut rails, 29, [1000, 100], SLOWED), [News::Gray(0, Symptom::Slow(10))]);
    assert!(rails.is_avoided(0, at(30)) && !rails.is_avoided(1, at(30)));
}

#[test]
fn a_rail_is_not_gray_for_being_busy_or_for_what_slows_the_others_too_or_for_receivers() {
    for (name, took_us, counts) in [
        ("busy", [1000, 100], BUSY),
        ("all of them", [1000, 1000], SLOWED),
        ("receivers", [1000, 100], Counts { not_ready: 1000, ..SLOWED }),
        ("four times", [400, 100], SLOWED),
    ] {
        let mut rails = learned();
        for window in 20..60 {
            assert!(steady(&mut rails, window, took_us, counts).is_empty(), "{name}");
        }
    }
}

#[test]
fn where_there_is_no_past_the_other_rails_are_the_measure() {
    let mut rails = learned();
    let mut news = Vec::new();
    for window in 20..40 {
        for _ in 0..20 {
            rails.note(2, took(1000, 1000));
        }
        news.extend(rails.close(at(window), Micros(5_000_000), &BTreeMap::from([(2, SLOWED)])));
    }
    assert_eq!(news, [News::Gray(2, Symptom::Slow(10))]);
}

#[test]
fn a_program_that_begins_to_poll_seldom_or_stops_to_makes_no_rail_slow() {
    let mut rails = learned();
    let mut poll = |windows: std::ops::Range<u64>, least_us, most_us| {
        for window in windows {
            (0..20).for_each(|_| rails.note(0, took(least_us, most_us)));
            let news = rails.close(at(window), Micros(5_000_000), &BTreeMap::from([(0, SLOWED)]));
            assert!(news.is_empty(), "{window}: {news:?}");
        }
    };
    poll(20..60, 10, 5000);
    poll(60..100, 900, 1000);
}

#[test]
fn bursts_of_loss_are_no_failure_and_a_steady_loss_is() {
    let lossy = Counts { resent: 20_000, ..BUSY };
    let mut rails = learned();
    for window in 20..200 {
        let counts = if window % 3 == 0 { lossy } else { BUSY };
        assert!(steady(&mut rails, window, [100, 100], counts).is_empty(), "{window}");
    }
    let news: Vec<News> = (200..220).flat_map(|w| steady(&mut rails, w, [100, 100], lossy)).collect();
    assert_eq!(news, [News::Gray(0, Symptom::Loss(20)), News::Gray(1, Symptom::Loss(20))]);
}

#[test]
fn what_few_packets_say_is_not_judged() {
    let mut rails = learned();
    for window in 20..60 {
        let few = Counts { packets: 60, resent: 30, not_ready: 0, amount: 3000 };
        assert!(steady(&mut rails, window, [100, 100], few).is_empty());
    }
}

#[test]
fn a_rail_is_well_again_when_it_was_for_a_minute_and_avoided_for_twice_as_long_the_next_time() {
    let mut rails = learned();
    let lossy = Counts { resent: 20_000, ..BUSY };
    let mut window = 20;
    let mut holds = Vec::new();
    for _ in 0..3 {
        let mut turn = |rails: &mut Rails, counts| {
            let mut seen = Vec::new();
            while seen.is_empty() {
                window += 1;
                seen = steady(rails, window, [100, 100], counts);
            }
            (seen, window)
        };
        let (seen, since) = turn(&mut rails, lossy);
        assert!(matches!(seen[0], News::Gray(0, _)));
        let (seen, _) = turn(&mut rails, BUSY);
        assert_eq!(seen[0], News::Well(0));
        let hold = (0..).find(|more| !rails.is_avoided(0, at(since + more))).unwrap();
        holds.push(hold * 5);
        window = since + hold;
    }
    assert_eq!(holds, [300, 600, 1200]);
}

#[test]
fn a_rail_that_was_left_may_be_tried_again_after_a_while() {
    let mut rails = learned();
    let lossy = Counts { resent: 20_000, ..BUSY };
    let found = (20..40).find(|window| !steady(&mut rails, *window, [100, 100], lossy).is_empty()).unwrap();
    // Nothing goes over it any more.
    let idle = BTreeMap::from([(0, Counts::default()), (1, Counts::default())]);
    let mut news = Vec::new();
    let tried = (found + 1..found + 1000).find(|window| {
        news = rails.close(at(*window), Micros(5_000_000), &idle);
        !news.is_empty()
    });
    assert_eq!(news, [News::Untried(0), News::Untried(1)]);
    assert_eq!((tried.unwrap() - found) * 5, 300);
    assert!(!rails.is_avoided(0, at(tried.unwrap())));
}
