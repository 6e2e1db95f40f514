//! The ledger: its rules one by one, and all of them against a reference NIC.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod nic;
mod properties;
mod rules;
