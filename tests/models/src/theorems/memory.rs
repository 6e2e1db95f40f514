//! Remote memory, the operations on it, and what they return.

/// Cells that a history may touch.
pub const CELLS: usize = 2;
/// Where data goes.
pub const DATA: usize = 0;
/// Where the flag is that a consumer may poll.
pub const FLAG: usize = 1;

/// All cells; 0 at first.
pub type Memory = [u8; CELLS];

/// One operation of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Sets a cell.
    Write(usize, u8),
    /// Gives a cell's value.
    Read(usize),
    /// Adds to a cell and gives what was there.
    FetchAdd(usize, u8),
    /// Sets a cell to the second value if it holds the first, and gives what was there.
    CompareSwap(usize, u8, u8),
    /// Consumes a receive and touches no cell: a SEND, or the immediate of a WRITE.
    Notify,
}

/// What the sender is told if the answer arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It happened.
    Acknowledged,
    /// What the cell held.
    Value(u8),
    /// Whether it swapped, and what the cell held.
    Swapped(bool, u8),
}

/// What an operation does to memory.
#[must_use]
pub fn execute(memory: Memory, op: Op) -> (Memory, Outcome) {
    let mut after = memory;
    let outcome = match op {
        Op::Write(at, value) => {
            after[at] = value;
            Outcome::Acknowledged
        }
        Op::Read(at) => Outcome::Value(memory[at]),
        Op::FetchAdd(at, add) => {
            after[at] = memory[at].wrapping_add(add);
            Outcome::Value(memory[at])
        }
        Op::CompareSwap(at, expected, new) => {
            let swaps = memory[at] == expected;
            if swaps {
                after[at] = new;
            }
            Outcome::Swapped(swaps, memory[at])
        }
        Op::Notify => Outcome::Acknowledged,
    };
    (after, outcome)
}

/// Whether a second execution right after the first changes nothing and returns the same. A receive that is consumed twice is gone twice.
#[must_use]
pub fn is_idempotent(op: Op, memory: Memory) -> bool {
    let (once, first) = execute(memory, op);
    let (twice, second) = execute(once, op);
    op != Op::Notify && once == twice && first == second
}
