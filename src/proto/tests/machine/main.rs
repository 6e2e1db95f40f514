//! One machine: every state with every event, the handshake's rules by name, and the table of deadlines.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(clippy::wildcard_enum_match_arm, clippy::too_many_lines, reason = "a test looks at the few cases it is about")]

mod answers;
mod bench;
mod deadlines;
mod log;
mod pairs;
mod rules_of_choice;
mod rules_of_claims;
mod rules_of_groups;
mod rules_of_musters;
mod rules_of_passage;
mod rules_of_plans;
