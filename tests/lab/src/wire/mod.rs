//! The wire: a process of its own that is the three cables between the guests.
//!
//! It owns every frame between the two QEMUs and makes the silent faults. [`switchboard`] moves frames, [`rule`] decides their fate,
//! [`log`] is the tap, [`control`] is how a scenario speaks to it. Without a rule nothing is lost or reordered, but for a port that
//! takes no frames: what is queued for it is dropped after 100 ms.

pub mod control;
pub mod log;
mod outbox;
pub mod packet;
mod port;
pub mod rule;
pub mod stats;
pub mod switchboard;
pub mod trap;
