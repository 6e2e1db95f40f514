//! An overlay: what decides, after a time-out, whether to post an operation again. Theorem 1 says that none that knows only what the sender
//! saw is both safe and live.
//!
//! *Transparent* is what factors through the sender's view. Here an overlay **is** a function of an observation, so this holds by
//! construction, and the theorem becomes a question to a finite table: is there an observation under which one operation has to be posted
//! again in one run and must not be in another?

use std::collections::BTreeMap;

use super::memory::{execute, Op, CELLS, DATA, FLAG};
use super::trace::{lists, view, Discipline, Event, Moment, Runs};
use crate::explorer::runs;

/// What a decision may rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// The sender's own posts, completions and time-outs.
    SenderView,
    /// And how many notifications the receiver executed: what a count of receives tells after a fence.
    ReceiveCount,
    /// And which operations were executed: an oracle.
    Executions,
}

/// What is observed.
pub type Observation = (Vec<Event>, u8);

/// What has to be done under one observation, as bits of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// Post it again: in some run it was never executed.
    pub repeat: u8,
    /// Do not: in some run to repeat it does harm.
    pub skip: u8,
}

impl Demands {
    /// Operations about which no decision is right.
    #[must_use]
    pub const fn conflicts(self) -> u8 {
        self.repeat & self.skip
    }
}

/// Everything that is asked of an overlay for one list of operations.
#[derive(Debug)]
pub struct Table {
    /// By observation.
    pub demands: BTreeMap<Observation, Demands>,
    /// Moments looked at.
    pub moments: u64,
}

impl Table {
    /// Looks at every moment of every run.
    #[must_use]
    pub fn of(system: &Runs, sees: Sees) -> Self {
        let mut demands: BTreeMap<Observation, Demands> = BTreeMap::new();
        let moments = runs::each_state(system, |moment| {
            if moment.timed_out == 0 {
                return;
            }
            let entry = demands.entry((view(&moment.trace), hint(system, moment, sees))).or_default();
            entry.repeat |= moment.timed_out & !moment.executed;
            entry.skip |= moment.timed_out & moment.executed & harm(system, moment);
        });
        Self { demands, moments }
    }

    /// Operations about which some observation allows no right decision.
    #[must_use]
    pub fn conflicts(&self) -> u8 {
        self.demands.values().fold(0, |all, demands| all | demands.conflicts())
    }

    /// How many of all overlays for these observations are right everywhere, each one tried. `None`: too many to try.
    #[must_use]
    pub fn right_overlays(&self) -> Option<(u64, u64)> {
        let asked: Vec<(u8, u8)> = self
            .demands
            .values()
            .flat_map(|demands| (0..8).map(move |op| (demands.repeat >> op & 1, demands.skip >> op & 1)))
            .filter(|asked| *asked != (0, 0))
            .collect();
        let count = 1_u64.checked_shl(asked.len() as u32).filter(|_| asked.len() <= 16)?;
        let is_right = |overlay: u64| {
            asked.iter().enumerate().all(|(nth, (repeat, skip))| match overlay >> nth & 1 {
                1 => *skip == 0,
                _ => *repeat == 0,
            })
        };
        Some(((0..count).filter(|overlay| is_right(*overlay)).count() as u64, count))
    }
}

fn hint(system: &Runs, moment: &Moment, sees: Sees) -> u8 {
    match sees {
        Sees::SenderView => 0,
        Sees::ReceiveCount => {
            let notified = |op: &usize| system.ops[*op] == Op::Notify && moment.executed >> op & 1 == 1;
            (0..system.ops.len()).filter(notified).count() as u8
        }
        Sees::Executions => moment.executed,
    }
}

/// Operations whose repetition would be seen: atomics and notifications that took effect, and writes that were consumed and written over.
fn harm(system: &Runs, moment: &Moment) -> u8 {
    (0..system.ops.len()).fold(0, |harm, op| {
        let bit = match system.ops[op] {
            Op::Write(..) => moment.reused >> op & 1,
            Op::FetchAdd(..) | Op::CompareSwap(..) | Op::Notify => moment.harmful >> op & 1,
            Op::Read(_) => 0,
        };
        harm | bit << op
    })
}

/// What a check of many lists looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Moments of runs.
    pub moments: u64,
    /// Overlays that were tried, one by one.
    pub overlays: u64,
    /// Operations about which no overlay is right.
    pub conflicts: u64,
}

impl Tally {
    fn note(&mut self, table: &Table) -> bool {
        self.moments += table.moments;
        self.conflicts += u64::from(table.conflicts().count_ones());
        let Some((right, tried)) = table.right_overlays() else { return true };
        self.overlays += tried;
        (right == 0) == (table.conflicts() != 0)
    }
}

const WRITE: Op = Op::Write(DATA, 1);
const SET_FLAG: Op = Op::Write(FLAG, 1);
const ADD: Op = Op::FetchAdd(DATA, 1);
const SWAP: Op = Op::CompareSwap(DATA, 0, 1);
const READ: Op = Op::Read(DATA);

/// Theorem 1: of each list of up to `longest` operations, under each habit of the consumer, the operations about which the sender's view
/// allows no right decision are those that they have to be; and where there is one, every overlay is wrong somewhere.
///
/// # Errors
/// The first list of which that is not so.
pub fn undecidable(longest: usize) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for (discipline, alphabet) in [
        (Discipline::PollData, vec![WRITE, Op::Notify, ADD, SWAP, READ]),
        (Discipline::PollFlag, vec![WRITE, SET_FLAG, ADD, READ]),
        (Discipline::Signalled, vec![WRITE, Op::Notify, ADD, SWAP, READ]),
    ] {
        for ops in lists(&alphabet, longest) {
            let system = Runs { ops, discipline, reuses: true, keeps_traces: false };
            let table = Table::of(&system, Sees::SenderView);
            let expected =
                (0..system.ops.len()).filter(|nth| is_undecidable(&system, *nth)).fold(0, |bits, nth| bits | 1 << nth);
            if !tally.note(&table) || table.conflicts() != expected {
                return Err(format!("{:?} {:?}: {:#b}, not {expected:#b}", discipline, system.ops, table.conflicts()));
            }
        }
    }
    Ok(tally)
}

/// What makes an operation undecidable for its sender.
fn is_undecidable(system: &Runs, nth: usize) -> bool {
    let ops = &system.ops;
    match ops[nth] {
        Op::Notify | Op::FetchAdd(..) => true,
        Op::Write(DATA, _) => match system.discipline {
            Discipline::PollData => true,
            Discipline::PollFlag => ops.contains(&SET_FLAG),
            Discipline::Signalled => ops[nth + 1..].contains(&Op::Notify),
        },
        Op::Write(..) | Op::Read(_) => false,
        Op::CompareSwap(_, expected, _) => {
            let before = ops[..nth].iter().fold([0; CELLS], |memory, op| execute(memory, *op).0);
            before[DATA] == expected
        }
    }
}

/// Where the shim helps: WRITEs that are consumed behind a notification, and notifications, are decided by the receiver's count.
///
/// # Errors
/// The first list of which that is not so, or whose notifications the sender could decide alone.
pub fn decided_by_count(longest: usize) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for ops in lists(&[WRITE, Op::Notify, READ], longest) {
        let system = Runs { ops, discipline: Discipline::Signalled, reuses: true, keeps_traces: false };
        let table = Table::of(&system, Sees::ReceiveCount);
        let blind = Table::of(&system, Sees::SenderView);
        let notifies = |nth: &usize| system.ops[*nth] == Op::Notify;
        let needed = (0..system.ops.len()).filter(notifies).fold(0, |bits, nth| bits | 1 << nth);
        if !tally.note(&table) || table.conflicts() != 0 || blind.conflicts() & needed != needed {
            return Err(format!("{:?}: {:#b}, alone {:#b}", system.ops, table.conflicts(), blind.conflicts()));
        }
    }
    Ok(tally)
}
