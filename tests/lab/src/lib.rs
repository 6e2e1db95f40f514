//! The lab: two real hosts with two rails each, on any machine.
//!
//! Two QEMU guests with soft-RoCE, three cables that are a process of the lab's own, and scenarios that run programs, make faults and
//! judge what came of it. `scripts/lab --help` is the way in; nothing here sends a packet anywhere but over loopback.
//!
//! [`boot`] makes machines, [`wire`] is the cables, [`guest`] holds on to a guest, [`pair`] is two of them booted, [`lab`] is what a
//! scenario works with, [`trial`] is a client and a server under a fault, [`runner`] runs scenarios and prints what came of them, [`conformance`] makes traces of runs and asks the theorems about them, [`scenarios`] is the list, [`demo`]
//! is the two runs that `scripts/demo` shows.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic"))]

pub mod agreement;
pub mod boot;
pub mod clock;
pub mod conformance;
pub mod demo;
pub mod evidence;
pub mod figures;
pub mod guest;
pub mod lab;
pub mod pair;
pub mod perftest;
pub mod place;
pub mod runner;
pub mod scenarios;
pub mod seed;
pub mod shell;
pub mod trial;
pub mod trouble;
pub mod wire;
