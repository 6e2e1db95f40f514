//! What a test may have this library leave out, so that it is seen that the judges of its traces notice (tests/lab/src/conformance).
//!
//! Feature `sabotage`, which no release has: without it every question here is answered "no" by the compiler, and nothing of it is in the library.
//! What the agent can leave out, which owns the handshake, is in `src/control/sabotage.rs`.

use crate::hot::post::is_atomic;
use shift_abi::{ibv_wr_opcode, IBV_WR_RDMA_READ};
use shift_proto::ledger::Op;

/// A part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code, reason = "nobody says what to leave out"))]
pub enum Part {
    /// The old incarnation is not stopped; it is reported as if it was.
    Fence,
    /// What the other end says of its receives: all that is outstanding is posted again.
    Counts,
    /// An atomic is posted again, whatever became of it.
    AtomicsOnce,
    /// An atomic that was executed is a success, whatever became of its result.
    LostResults,
    /// `write=error`.
    Marks,
    /// Receives are posted on the new path.
    Receives,
    /// What was received is counted when nothing more can be: it is counted first, and the old incarnation is stopped when the time to drain is over.
    FenceFirst,
    /// An atomic in doubt is an error: its word is read on the new path, and that is the result.
    Doubt,
}

/// Whether that is left out.
#[cfg(not(feature = "sabotage"))]
pub const fn leaves_out(_: Part) -> bool {
    false
}

/// Whether that is left out: what `TEST_SABOTAGE` names.
#[cfg(feature = "sabotage")]
pub fn leaves_out(part: Part) -> bool {
    use std::sync::OnceLock;
    static LEFT_OUT: OnceLock<Option<Part>> = OnceLock::new();
    *LEFT_OUT.get_or_init(|| std::env::var("TEST_SABOTAGE").ok().and_then(|name| named(&name))) == Some(part)
}

#[cfg(feature = "sabotage")]
fn named(name: &str) -> Option<Part> {
    Some(match name {
        "fence" => Part::Fence,
        "counts" => Part::Counts,
        "atomics-once" => Part::AtomicsOnce,
        "lost-results" => Part::LostResults,
        "marks" => Part::Marks,
        "receives" => Part::Receives,
        "fence-first" => Part::FenceFirst,
        "doubt" => Part::Doubt,
        _ => return None,
    })
}

/// What the ledger takes a request for.
pub fn taken_for(op: Op) -> Op {
    match op {
        Op::FetchAdd | Op::CompareSwap if leaves_out(Part::AtomicsOnce) || leaves_out(Part::Doubt) => Op::Read,
        Op::FetchAdd | Op::CompareSwap if leaves_out(Part::LostResults) => Op::Write,
        Op::FetchAdd | Op::CompareSwap | Op::Read | Op::Send | Op::SendImm | Op::Write | Op::WriteImm => op,
    }
}

/// How a request is posted again.
pub fn posted_as(opcode: ibv_wr_opcode) -> ibv_wr_opcode {
    if leaves_out(Part::Doubt) && is_atomic(opcode) {
        IBV_WR_RDMA_READ
    } else {
        opcode
    }
}
