//! Everything that the README claims.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use shift_models::catalogue::{checks, run_timed, table, Scale};

/// Searched by tests of their own: tests/failover.rs, tests/ado.rs, tests/groups.rs.
const ELSEWHERE: [&str; 4] = ["failover-breaches", "failover-object", "object", "groups"];

#[test]
fn every_check_of_the_catalogue_holds_and_stands_in_the_readme() {
    let readme = include_str!("../README.md");
    let mut rows = Vec::new();
    for check in checks() {
        assert!(readme.contains(&format!("| {} |", check.name)), "scripts/models --table: {} is missing", check.name);
        if ELSEWHERE.contains(&check.name) {
            continue;
        }
        let (finding, took) = run_timed(&check, Scale::Default);
        assert!(finding.failure.is_none(), "{}: {}", check.name, finding.failure.unwrap_or_default());
        assert!(finding.states > 0 && !finding.control.is_empty(), "{}", check.name);
        rows.push((check, finding, took));
    }
    eprintln!("{}", table(&rows));
}
