//! Conformance: what really happened between two hosts, as a trace of the events that the theorems of `shift-models` speak of, and the
//! predicates of that crate on it.
//!
//! [`trace`] makes the trace, of the wire's log and of what the application was told; nothing of it is the shim's word. [`judge`] asks the theorems'
//! own functions whether it may be so. What is run, and with which part of the protocol left out, is `scenarios/conform.rs`.

pub mod judge;
pub mod trace;
