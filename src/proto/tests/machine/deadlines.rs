//! The table of deadlines, its relations, and each deadline of the handshake as it passes, in virtual time. Those of the stall trigger, of
//! probes, of key lookups and of the heartbeat are the agent's: `src/control/tests/deadlines.rs`.

use std::collections::BTreeSet;

use shift_proto::id::{Micros, PathId};
use shift_proto::migrate::{Attempt, Deadlines, Effect, Handshake, Input, Stage, Surfaced, DEADLINES};

use crate::bench::{running, sent, surfaced, Bench, FATAL, SMALLER, SUSPECT};

#[test]
fn the_defaults_keep_all_relations() {
    assert_eq!(Deadlines::default().check(), Ok(()));
}

#[test]
fn every_deadline_has_a_variable_of_its_own_a_default_and_an_outcome() {
    let variables: BTreeSet<_> = DEADLINES.iter().map(|row| row.variable).collect();
    assert_eq!(variables.len(), DEADLINES.len());
    let defaults = Deadlines::default();
    for row in DEADLINES {
        assert!(row.variable.starts_with("SHIFT_") && row.variable.ends_with("_MS"), "{}", row.variable);
        assert_eq!(defaults.get(row.variable), Some(row.default), "{}", row.variable);
        assert!(![row.name, row.bounds, row.outcome, row.reason].contains(&""), "{}", row.variable);
        let mut changed = defaults;
        changed.set(row.variable, Micros(7)).unwrap();
        assert_eq!(changed.get(row.variable), Some(Micros(7)));
        assert_ne!(changed, defaults);
    }
    let names: BTreeSet<_> = DEADLINES.iter().map(|row| row.name).collect();
    for name in [
        "stall",
        "probe",
        "hold",
        "claim",
        "exclude",
        "fence",
        "exchange",
        "key_lookup",
        "packet_lifetime",
        "patience",
        "hold_down",
        "heartbeat",
    ] {
        assert!(names.contains(name), "{name}");
    }
    assert_eq!(Deadlines::default().set("SHIFT_NO_SUCH_MS", Micros(1)), None);
}

fn refusal(variable: &str, millis: u64) -> String {
    let mut deadlines = Deadlines::default();
    deadlines.set(variable, Micros::from_millis(millis)).unwrap();
    deadlines.check().unwrap_err().to_string()
}

#[test]
fn a_violated_relation_is_named_with_its_variables() {
    let defaults = Deadlines::default();
    let trips = refusal("SHIFT_CLAIM_MS", 2 * defaults.control_round_trip.as_millis());
    assert!(trips.contains("SHIFT_CLAIM_MS") && trips.contains("SHIFT_CONTROL_ROUND_TRIP_MS"), "{trips}");
    let exclude = refusal("SHIFT_EXCLUDE_MS", defaults.claim.as_millis());
    assert!(exclude.contains("SHIFT_EXCLUDE_MS"), "{exclude}");
    let exchange = refusal("SHIFT_EXCHANGE_MS", (defaults.fence + defaults.packet_lifetime).as_millis());
    assert!(exchange.contains("SHIFT_FENCE_MS + SHIFT_PACKET_LIFETIME_MS"), "{exchange}");
    let company = refusal("SHIFT_CLAIM_MS", defaults.exchange.as_millis() - 2 * defaults.drain.as_millis());
    assert!(company.contains("SHIFT_EXCHANGE_MS") && company.contains("2 * SHIFT_DRAIN_MS"), "{company}");
    let fence = refusal("SHIFT_FENCE_MS", defaults.drain.as_millis());
    assert!(fence.contains("SHIFT_FENCE_MS") && fence.contains("SHIFT_DRAIN_MS"), "{fence}");
    let hold = refusal("SHIFT_HOLD_MS", defaults.patience.as_millis());
    assert!(hold.contains("SHIFT_PATIENCE_MS") && hold.contains("SHIFT_HOLD_MS"), "{hold}");
    assert!(refusal("SHIFT_STALL_MS", 0).contains("SHIFT_STALL_MS is 0"));
}

/// Of an exchange of 3 s two round trips and two drains are left to others, and half of what remains is for those who hold by plan.
#[test]
fn what_a_group_waits_for_fits_into_the_exchange() {
    let limits = Deadlines::default().group_limits();
    let (come, fence, ask, depart) = (limits.come, limits.fence, limits.ask, limits.depart);
    assert_eq!([fence, come, depart, ask].map(|limit| limit.as_millis()), [2800, 2400, 1200, 600]);
    assert_eq!([limits.call, limits.plan, limits.muster].map(|limit| limit.as_millis()), [10_000, 1000, 2000]);
}

/// A deadline, what it waits in, and what is to come at its end and not before.
type Passing = (&'static str, fn() -> Bench, fn(&Bench, &[Effect]) -> bool);

fn claiming() -> Bench {
    let mut bench = Bench::new(SMALLER);
    bench.reach_claiming();
    bench
}

fn at(stage: Stage) -> Bench {
    let mut bench = Bench::new(SMALLER);
    bench.reach_stage(stage);
    bench
}

fn is_surfaced_by(effects: &[Effect], why: Surfaced) -> bool {
    surfaced(effects) == Some(why) && matches!(sent(effects)[..], [Handshake::Dead { .. }, ..])
}

/// Every deadline of the handshake's own, in each of the waits that it ends.
const PASSINGS: [Passing; 12] = [
    ("claim", claiming, |bench, effects| {
        matches!(sent(effects)[..], [.., Handshake::Cancel { .. }]) && bench.attempt() == Attempt::Seeking
    }),
    (
        "claim",
        || {
            let mut bench = Bench::new(SMALLER);
            bench.reach_accepted();
            bench
        },
        |bench, effects| effects == [Effect::Release] && bench.machine.state() == running(),
    ),
    (
        "exclude",
        || {
            let mut bench = Bench::new(SMALLER);
            bench.hear(bench.claim(1, 1));
            bench
        },
        |_, effects| matches!(sent(effects)[..], [Handshake::Wait { .. }]),
    ),
    (
        "exclude",
        || {
            let mut bench = Bench::new(SMALLER);
            let tuple = bench.reach_claiming();
            bench.hear(Handshake::Accept { tuple });
            bench
        },
        |_, effects| matches!(sent(effects)[..], [Handshake::Cancel { .. }]) && effects.contains(&Effect::Release),
    ),
    (
        "hold",
        || {
            let mut bench = Bench::new(SMALLER);
            bench.give(Input::Hold(true));
            bench.give(SUSPECT);
            bench.give(Input::PathAnswered(PathId(1)));
            bench
        },
        |_, effects| matches!(sent(effects)[..], [Handshake::Claim { .. }]),
    ),
    (
        "fence",
        || at(Stage::Fencing),
        |_, effects| matches!(&sent(effects)[..], [Handshake::Report { fenced: false, reports, .. }] if reports.is_empty()),
    ),
    ("packet_lifetime", || at(Stage::Settling), |_, effects| effects.contains(&Effect::Fence)),
    ("exchange", || at(Stage::Fenced), |_, effects| is_surfaced_by(effects, Surfaced::ExchangeOver)),
    ("exchange", || at(Stage::Ready), |_, effects| is_surfaced_by(effects, Surfaced::ExchangeOver)),
    ("exchange", || at(Stage::Replaying), |_, effects| is_surfaced_by(effects, Surfaced::ExchangeOver)),
    (
        "patience",
        || {
            let mut bench = Bench::new(SMALLER);
            bench.give(FATAL);
            bench
        },
        |_, effects| is_surfaced_by(effects, Surfaced::PatienceOver),
    ),
    (
        "resend",
        || at(Stage::Running),
        |bench, effects| {
            let tuple = bench.tuple();
            sent(effects) == [Handshake::Ready { tuple }, Handshake::Confirm { tuple, seen: false }]
        },
    ),
];

#[test]
fn each_deadline_of_the_handshake_ends_its_wait_as_its_row_says_and_not_before() {
    for (name, wait, came) in PASSINGS {
        let row = DEADLINES.iter().find(|row| row.name == name).unwrap();
        let mut bench = wait();
        let early = bench.wait(Micros(row.default.0 - 1));
        assert!(!came(&bench, &early), "{name} passed too early: {early:?}");
        let effects = bench.wait(Micros(1));
        assert!(came(&bench, &effects), "{name}: {} is to happen, not {effects:?}", row.outcome);
    }
}
