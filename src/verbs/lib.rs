//! The libibverbs ABI: the types, constants and layouts that C programs and the library agree on.
//!
//! Owns: `repr(C)` mirrors of the structures of `infiniband/verbs.h` under C's own names, its constants, and bounded
//! views of what an application hands over by pointer ([`chain`]). Refuses to own: any call into libibverbs (this crate
//! links nothing), any state, any decision.
//!
//! What must hold: every size and offset equals the installed header's. It is stated once, beside each field, asserted
//! at compile time, and compared with a compiled C program by the test in `header_test.rs`.
//!
//! An integer that C may have written is never a Rust enum: an unknown opcode or status is a value like any other.

#![allow(unsafe_code, reason = "raw views of memory that C owns are this crate's whole purpose")]
#![allow(non_camel_case_types, reason = "C's own names, so that a reader can grep verbs.h")]
#![cfg_attr(test, allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail by panicking"))]

#[macro_use]
mod define;

pub mod attr;
pub mod chain;
pub mod constants;
pub mod context;
pub mod extended;
pub mod objects;
pub mod work;

#[cfg(test)]
mod header_test;

pub use attr::*;
pub use chain::{RecvChain, RecvWr, SendChain, SendWr, SgeList};
pub use constants::*;
pub use context::*;
pub use extended::*;
pub use objects::*;
pub use work::*;

/// `sizeof(pthread_mutex_t)`: the one size in this ABI that differs between the LP64 machines.
pub const MUTEX_SIZE: usize = core::mem::size_of::<libc::pthread_mutex_t>();

/// `sizeof(pthread_cond_t)`.
pub const COND_SIZE: usize = core::mem::size_of::<libc::pthread_cond_t>();

#[cfg(target_arch = "x86_64")]
const _: () = assert!(MUTEX_SIZE == 40 && COND_SIZE == 48);
#[cfg(target_arch = "aarch64")]
const _: () = assert!(MUTEX_SIZE == 48 && COND_SIZE == 48);
#[cfg(not(all(target_pointer_width = "64", target_os = "linux")))]
compile_error!("the layouts in this crate are those of LP64 Linux");
