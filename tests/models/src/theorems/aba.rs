//! Theorem 3, first part: to look at memory does not tell whether a request was executed, because somebody else may have put back what it
//! changed. With one bit that the receiver writes down it does: that is what the two ends' reports add.

use std::collections::BTreeMap;

use super::memory::{execute, Op, Outcome, DATA};

/// The request of which nobody knows: swaps 0 for 1.
pub const REQUEST: Op = Op::CompareSwap(DATA, 0, 1);
/// What others may do to the same word.
pub const OTHERS: [Op; 2] = [Op::CompareSwap(DATA, 1, 0), Op::CompareSwap(DATA, 0, 1)];

/// How a solver looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// So many READs of the word, at any moments after the request was posted.
    Reads(usize),
    /// It executes that atomic on the other path, and looks at what it returns and at what is there then.
    Acts(Op),
    /// One READ of the word and of a bit that the receiver sets with the request.
    Log,
}

/// What was seen, and in which of the two worlds (not executed, executed) it can be.
pub type Worlds = BTreeMap<Vec<u8>, [bool; 2]>;

/// Every history of at most `longest` operations of others, with and without the request at any place in it, as it looks.
#[must_use]
pub fn worlds(longest: usize, looks: Looks) -> Worlds {
    let mut worlds = Worlds::new();
    for length in 0..=longest {
        for others in 0..OTHERS.len().pow(length as u32) {
            let others: Vec<Op> =
                (0..length).map(|nth| OTHERS[others / OTHERS.len().pow(nth as u32) % OTHERS.len()]).collect();
            note(&mut worlds, &others, false, looks);
            for place in 0..=length {
                let mut all = others.clone();
                all.insert(place, REQUEST);
                if takes_effect(&all, place) {
                    note(&mut worlds, &all, true, looks);
                }
            }
        }
    }
    worlds
}

/// How many of all functions from what is seen to a verdict are right, and of how many; each is tried.
#[must_use]
pub fn right_verdicts(worlds: &Worlds) -> (u64, u64) {
    let seen: Vec<[bool; 2]> = worlds.values().copied().collect();
    assert!(seen.len() <= 20, "too many observations to try every verdict");
    let is_right = |verdict: u64| {
        seen.iter()
            .enumerate()
            .all(|(nth, [unexecuted, executed])| if verdict >> nth & 1 == 1 { !unexecuted } else { !executed })
    };
    let count = 1 << seen.len();
    ((0..count).filter(|verdict| is_right(*verdict)).count() as u64, count)
}

fn takes_effect(ops: &[Op], place: usize) -> bool {
    let memory = ops[..place].iter().fold([0; super::memory::CELLS], |memory, op| execute(memory, *op).0);
    matches!(execute(memory, ops[place]).1, Outcome::Swapped(true, _))
}

fn note(worlds: &mut Worlds, ops: &[Op], executed: bool, looks: Looks) {
    let mut values = vec![0];
    let mut memory = [0; super::memory::CELLS];
    for op in ops {
        memory = execute(memory, *op).0;
        values.push(memory[DATA]);
    }
    let observations: Vec<Vec<u8>> = match looks {
        Looks::Reads(count) => later_or_same(values.len(), count)
            .into_iter()
            .map(|moments| moments.iter().map(|moment| values[*moment]).collect())
            .collect(),
        Looks::Acts(op) => {
            let (after, outcome) = execute(memory, op);
            let told = match outcome {
                Outcome::Acknowledged => 0,
                Outcome::Value(value) => value,
                Outcome::Swapped(swapped, value) => value * 2 + u8::from(swapped),
            };
            vec![vec![told, after[DATA]]]
        }
        Looks::Log => vec![vec![memory[DATA], u8::from(executed)]],
    };
    for observation in observations {
        worlds.entry(observation).or_default()[usize::from(executed)] = true;
    }
}

/// Every choice of `count` moments that do not go back, the last of them the end.
fn later_or_same(moments: usize, count: usize) -> Vec<Vec<usize>> {
    let mut choices = vec![vec![moments - 1]];
    for _ in 1..count {
        choices = choices
            .into_iter()
            .flat_map(|choice| (0..=choice[0]).map(move |earlier| [vec![earlier], choice.clone()].concat()))
            .collect();
    }
    choices
}
