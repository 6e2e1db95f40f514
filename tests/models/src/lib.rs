//! Finite models, and one explorer for all of them.
//!
//! [`explorer`] searches breadth first and draws what it finds; [`theorems`] has the impossibility of failover as programs;
//! [`failover`] has the machines of `shift-proto` themselves in a world of paths, NICs and messages, step by step those of the object in [`ado`]; [`catalogue`] is the list of what is checked, from which the table in this crate's README is made.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a model that is wrong ends the check, and what it offers no step for is everything else"
)]

pub mod ado;
#[cfg(feature = "failover")]
pub mod catalogue;
pub mod explorer;
#[cfg(feature = "failover")]
pub mod failover;
#[cfg(feature = "failover")]
pub mod groups;
pub mod theorems;
