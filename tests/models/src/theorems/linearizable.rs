//! Whether a history of concurrent operations could have happened one after another (Wing and Gong, "Testing and Verifying Concurrent
//! Objects"): by trying every order that real time allows.

use super::memory::{execute, Memory, Op, Outcome};

/// One call of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it asked for.
    pub op: Op,
    /// When it began.
    pub from: u32,
    /// When it was answered, and what it was told; `None`: never.
    pub answer: Option<(u32, Outcome)>,
}

impl Call {
    /// One that was answered.
    #[must_use]
    pub const fn answered(op: Op, from: u32, to: u32, outcome: Outcome) -> Self {
        Self { op, from, answer: Some((to, outcome)) }
    }
}

/// Whether there is an order in which everybody was told the truth. A call without an answer may have happened or not.
#[must_use]
pub fn is_linearizable(start: Memory, calls: &[Call]) -> bool {
    place(start, &mut calls.to_vec())
}

fn place(memory: Memory, open: &mut Vec<Call>) -> bool {
    if open.iter().all(|call| call.answer.is_none()) {
        return true;
    }
    let deadline = open.iter().filter_map(|call| call.answer.map(|(to, _)| to)).min().unwrap_or(u32::MAX);
    for nth in 0..open.len() {
        let call = open[nth];
        let (after, outcome) = execute(memory, call.op);
        let is_true = call.answer.is_none_or(|(_, told)| told == outcome);
        if call.from > deadline || !is_true {
            continue;
        }
        open.remove(nth);
        let found = place(after, open);
        open.insert(nth, call);
        if found {
            return true;
        }
    }
    false
}
