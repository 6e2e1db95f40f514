//! What runs inside of the application's post and poll calls: no allocation, no system call, no log, no lock that sleeps.
//!
//! The paths that a fault opens (a first error completion, a full ring, an unknown key) leave through functions marked
//! `#[cold]`; those may allocate and may wake the agent.

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::expect_used, reason = "a test that fails should say where")]
mod extended_tests;
pub mod keys;
#[cfg(all(test, loom))]
#[allow(clippy::expect_used, reason = "a test that fails should say where")]
mod models;
pub mod poll;
pub mod poll_ex;
#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::expect_used, reason = "a test that fails should say where")]
mod poll_tests;
pub mod post;
pub mod ring;
pub mod srq;
pub mod tag;
#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that fails should say where")]
pub(crate) mod tests;
#[cfg_attr(test, allow(clippy::expect_used, reason = "a test that fails should say where"))]
pub mod timed;
pub mod whole;
pub mod wr;
