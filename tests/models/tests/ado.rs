//! The atomic distributed object: what holds of it, and what each condition of its oracle is for.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use shift_models::ado::core::Core;
use shift_models::ado::{Condition, Quorums};
use shift_models::explorer::Explorer;

#[test]
fn whatever_the_oracle_chooses_there_is_one_history() {
    let report = Explorer::new(&Core::of_three(3, 7)).run();
    eprintln!("{report}");
    assert!(report.is_proof(), "{report}");
}

#[test]
fn without_any_one_condition_there_are_two_histories() {
    let without = |condition| Core { without: Some(condition), ..Core::of_three(3, 7) };
    let all = [
        (without(Condition::Newest), 6),
        (without(Condition::Beyond), 5),
        (without(Condition::NewTerm), 2),
        (Core { quorums: Quorums::Any(1), ..Core::of_three(3, 7) }, 2),
        (without(Condition::NotPreempted), 5),
        (without(Condition::Leads), 4),
    ];
    for (core, steps) in all {
        let report = Explorer::new(&core).run();
        assert_eq!(report.length(), Some(steps), "{:?}, {:?}: {report}", core.without, core.quorums);
    }
}
