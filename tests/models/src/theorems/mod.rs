//! Why a sender alone cannot fail over, as programs: "A Formal Verification of Failover Impossibility" with each theorem as something that
//! is enumerated, over bounds that are stated, and that fails if an assumption is taken away.
//!
//! The published statements quantify over all lists of events, and some of those are empty of content because no such list exists. Here they
//! are about the runs of a transition system ([`trace`]), and operations have identity: two deliberate equal FADDs are no repetition.

pub mod aba;
pub mod atomics;
pub mod hierarchy;
pub mod linearizable;
pub mod memory;
pub mod overlay;
pub mod sliding;
pub mod trace;
pub mod two_nics;
