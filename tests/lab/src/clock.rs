//! The lab's time: nanoseconds of the host's CLOCK_MONOTONIC, shared by the wire and the runner, and deadlines.

use std::thread;
use std::time::{Duration, Instant};

use nix::time::{clock_gettime, ClockId};

use crate::trouble::{Result, Trouble};

/// Nanoseconds of CLOCK_MONOTONIC. On the build machine: host time; in a guest: that guest's time.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds of CLOCK_REALTIME.
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map(|at| (at.tv_sec() as u64) * 1_000_000_000 + at.tv_nsec() as u64).unwrap_or(0)
}

/// Nanoseconds as milliseconds, for figures.
pub fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e3).round() / 1e3
}

/// Asks `probe` every 5 ms until it gives a value; after `limit` the error says what was waited for.
///
/// # Errors
/// [`Trouble::Deadline`], or what `probe` returns.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            return Err(Trouble::deadline(what, limit));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
