//! The one clock of the control side: CLOCK_MONOTONIC.
//!
//! The protocol has no clock of its own; every time it sees comes from here, so that the records of two processes of one
//! host can be laid side by side.

use nix::time::{clock_gettime, ClockId};
use shift_proto::id::Micros;

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// The same clock in the protocol's unit.
pub fn now() -> Micros {
    Micros(now_ns() / 1_000)
}
