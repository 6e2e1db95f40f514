//! The ledger: its rules one by one, and all of them against a reference NIC.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(clippy::wildcard_enum_match_arm, clippy::too_many_lines, reason = "a test looks at the few cases it is about")]

mod nic;
mod properties;
mod queue;
mod rules;
