//! Theorem 2: an atomic that is repeated takes effect twice, and somebody sees it.

use super::memory::{execute, is_idempotent, Memory, Op, Outcome, DATA};

/// What came of an operation that was executed, whose answer was lost, and that was executed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// The cell after the first execution and after the second.
    pub values: [u8; 2],
    /// What each returned; the sender gets the second.
    pub returned: [Outcome; 2],
}

/// Repeats an operation, with another process's operation between the two executions if there is one.
#[must_use]
pub fn repeat(start: u8, op: Op, between: Option<Op>) -> Repeated {
    let (first, once) = execute(cell(start), op);
    let middle = between.map_or(first, |other| execute(first, other).0);
    let (second, twice) = execute(middle, op);
    Repeated { values: [first[DATA], second[DATA]], returned: [once, twice] }
}

/// All cells 0 but the first.
#[must_use]
pub const fn cell(value: u8) -> Memory {
    let mut memory = [0; super::memory::CELLS];
    memory[DATA] = value;
    memory
}

/// Atomics over a small domain, each with whether it may be repeated without a trace: as the code says it and as the characterisation does.
pub fn characterisation(values: u8) -> impl Iterator<Item = (Op, bool, bool)> {
    let starts = 0..values;
    starts.flat_map(move |start| {
        let adds = (0..values).map(move |add| (Op::FetchAdd(DATA, add), add == 0));
        let swaps = (0..values).flat_map(move |expected| {
            (0..values).map(move |new| (Op::CompareSwap(DATA, expected, new), start != expected || expected == new))
        });
        let plain = (0..values).map(|value| (Op::Write(DATA, value), true)).chain([(Op::Read(DATA), true)]);
        adds.chain(swaps).chain(plain).map(move |(op, claimed)| (op, is_idempotent(op, cell(start)), claimed))
    })
}
