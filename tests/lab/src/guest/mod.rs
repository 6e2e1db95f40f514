//! The runner's hold on a guest: programs started in it, their lines and their ends, files, and its clock.
//!
//! [`talk`] is what goes over the virtio-serial port; `src/bin/shift-guest.rs` is the other end. One reader thread per guest takes
//! everything that comes in; whoever waits sleeps on one condition variable with a deadline.

pub mod client;
pub mod program;
pub mod talk;

pub use client::Guest;
pub use program::{Ended, Line, Program, Running, RECORDS, SHIM};
