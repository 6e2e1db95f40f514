//! The table of deadlines and its relations.

use std::collections::BTreeSet;

use shift_proto::id::Micros;
use shift_proto::migrate::{Deadlines, DEADLINES};

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
    let hold = refusal("SHIFT_HOLD_MS", defaults.patience.as_millis());
    assert!(hold.contains("SHIFT_PATIENCE_MS") && hold.contains("SHIFT_HOLD_MS"), "{hold}");
    assert!(refusal("SHIFT_STALL_MS", 0).contains("SHIFT_STALL_MS is 0"));
}
