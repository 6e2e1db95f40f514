//! Groups that share peers: what the search says of them, and what it has to find.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use shift_models::groups::{breaches, cases};

#[test]
fn groups_that_share_peers_move_all_or_leave_behind_and_do_not_lock() {
    for (name, setting) in cases(false) {
        let report = setting.search();
        assert!(report.is_proof(), "{name}: {report}");
    }
}

#[test]
fn without_a_gate_receives_are_in_two_places_and_groups_that_wait_for_their_peers_lock() {
    for (setting, steps) in breaches() {
        let report = setting.search();
        assert_eq!(report.length(), Some(steps), "{:?}: {report}", setting.control);
    }
}
