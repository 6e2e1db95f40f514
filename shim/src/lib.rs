//! shift-verbs: an `LD_PRELOAD` shim over libibverbs that moves reliable connections to a standby NIC when their path dies.
//!
//! This crate owns everything that touches verbs: the exported symbols and the patched table ([`exports`]), the hooks of the dynamic linker (`loader`), what runs inside of the application's post and
//! poll calls ([`hot`]), and what control verbs and the agent do ([`cold`]). It decides nothing: the protocol is `shift-proto`, and who
//! drives it is `shift-control`.

#![allow(unsafe_code, reason = "this crate is the border to C; every block states what it relies on")]

mod atomics;
mod cold;
mod copies;
mod domain;
pub mod events;
pub mod exports;
mod hot;
mod lives;
mod loader;
mod process;
mod real;
mod sabotage;
mod shadow;
mod spin;
mod tables;
mod wait;
