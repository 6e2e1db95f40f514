//! What may happen to a list of operations between a sender and a receiver, step by step, and what the sender sees of it.
//!
//! An operation goes `unposted -> posted -> lost | received -> executed -> acknowledged | acknowledgement lost -> completed | timed out`. The
//! connection is reliable: requests are received, executed and completed in posting order, and a time-out flushes all behind it. No event but
//! a completion carries anything from the receiver to the sender: that a receiver is silent is a property of the steps, not an assumption.

use std::collections::BTreeSet;

use super::memory::{execute, is_idempotent, Memory, Op, Outcome, CELLS, DATA, FLAG};
use crate::explorer::{Invariant, Model};

/// What the application puts where a consumed value lay.
pub const REUSED: u8 = 9;

/// When the receiving application looks at what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discipline {
    /// As soon as it is there (NCCL's LL).
    PollData,
    /// As soon as the flag is set, which it then clears (LL128).
    PollFlag,
    /// After a notification that was posted behind it (NCCL's Simple).
    Signalled,
}

/// Something that happened; the number is the operation's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// Posted.
    Send(u8),
    /// The request vanished.
    PacketLost(u8),
    /// The request arrived.
    Receive(u8),
    /// It took effect.
    Execute(u8, Outcome),
    /// The answer vanished.
    AckLost(u8),
    /// The sender was told.
    Completion(u8, Outcome),
    /// The sender gave up.
    Timeout(u8),
    /// The receiving application took what the operation wrote.
    Consume(u8, u8),
    /// It put something else there.
    Reuse(u8, u8),
}

impl Event {
    /// Whether the sender sees it.
    #[must_use]
    pub const fn is_seen(self) -> bool {
        matches!(self, Self::Send(_) | Self::Completion(..) | Self::Timeout(_))
    }
}

/// What the sender sees of a trace.
#[must_use]
pub fn view(trace: &[Event]) -> Vec<Event> {
    trace.iter().copied().filter(|event| event.is_seen()).collect()
}

/// How often an operation took effect.
#[must_use]
pub fn executions(trace: &[Event], op: u8) -> usize {
    trace.iter().filter(|event| matches!(event, Event::Execute(of, _) if *of == op)).count()
}

/// Memory after a trace.
#[must_use]
pub fn memory_after(trace: &[Event], ops: &[Op]) -> Memory {
    trace.iter().fold([0; CELLS], |memory, event| match event {
        Event::Execute(op, _) => execute(memory, ops[usize::from(*op)]).0,
        Event::Reuse(op, value) => {
            let mut after = memory;
            if let Op::Write(at, _) = ops[usize::from(*op)] {
                after[at] = *value;
            }
            after
        }
        _ => memory,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Unposted,
    Posted,
    Lost,
    Received,
    Executed(Outcome),
    Acknowledged(Outcome),
    AckLost,
    Completed,
    TimedOut,
}

/// A moment of a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Moment {
    phases: Vec<Phase>,
    /// Memory of the receiver.
    pub memory: Memory,
    /// Operations that took effect, as bits.
    pub executed: u8,
    /// Of those: to repeat them would change memory, a result, or the queue of receives.
    pub harmful: u8,
    /// What they wrote was consumed.
    pub consumed: u8,
    /// And the application put something else there.
    pub reused: u8,
    /// Operations that timed out.
    pub timed_out: u8,
    /// What the sender saw, or everything that happened where whole traces are wanted.
    pub trace: Vec<Event>,
}

/// The transition system of one list of operations.
#[derive(Clone, Debug)]
pub struct Runs {
    /// The operations, in posting order.
    pub ops: Vec<Op>,
    /// The receiving application's habit.
    pub discipline: Discipline,
    /// It puts other values where it consumed some.
    pub reuses: bool,
    /// States keep the whole trace and not only the sender's view.
    pub keeps_traces: bool,
}

impl Runs {
    fn step(&self, moment: &Moment, op: usize, phase: Phase, event: Option<Event>) -> Moment {
        let mut next = moment.clone();
        next.phases[op] = phase;
        next.trace.extend(event.filter(|event| self.keeps_traces || event.is_seen()));
        next
    }

    fn execute(&self, moment: &Moment, op: usize) -> Moment {
        let (memory, outcome) = execute(moment.memory, self.ops[op]);
        let mut next = self.step(moment, op, Phase::Executed(outcome), Some(Event::Execute(op as u8, outcome)));
        next.executed |= 1 << op;
        if !is_idempotent(self.ops[op], moment.memory) {
            next.harmful |= 1 << op;
        }
        next.memory = memory;
        next
    }

    fn time_out(&self, moment: &Moment, op: usize) -> Moment {
        let mut next = moment.clone();
        for later in op..self.ops.len() {
            if !matches!(next.phases[later], Phase::Unposted | Phase::Completed | Phase::TimedOut) {
                next = self.step(&next, later, Phase::TimedOut, Some(Event::Timeout(later as u8)));
                next.timed_out |= 1 << later;
            }
        }
        next
    }

    fn may_consume(&self, moment: &Moment, op: usize) -> bool {
        let Op::Write(DATA, _) = self.ops[op] else { return false };
        let is_there = moment.executed >> op & 1 == 1 && moment.consumed >> op & 1 == 0;
        is_there
            && match self.discipline {
                Discipline::PollData => true,
                Discipline::PollFlag => moment.memory[FLAG] == 1,
                Discipline::Signalled => (op + 1..self.ops.len())
                    .any(|later| self.ops[later] == Op::Notify && moment.executed >> later & 1 == 1),
            }
    }

    fn application(&self, moment: &Moment, op: usize) -> Option<Moment> {
        let mut next = moment.clone();
        if self.may_consume(moment, op) {
            next.consumed |= 1 << op;
            if self.keeps_traces {
                next.trace.push(Event::Consume(op as u8, moment.memory[DATA]));
            }
            return Some(next);
        }
        if self.reuses && moment.consumed >> op & 1 == 1 && moment.reused >> op & 1 == 0 {
            next.reused |= 1 << op;
            next.memory[DATA] = REUSED;
            if self.discipline == Discipline::PollFlag {
                next.memory[FLAG] = 0;
            }
            if self.keeps_traces {
                next.trace.push(Event::Reuse(op as u8, REUSED));
            }
            return Some(next);
        }
        None
    }

    /// What may become of one operation next, by who does it.
    fn choices(&self, moment: &Moment, op: usize) -> Vec<Moment> {
        let before = |phase: fn(&Phase) -> bool| moment.phases[..op].iter().all(phase);
        let number = op as u8;
        let mut choices: Vec<_> = match moment.phases[op] {
            Phase::Unposted if moment.timed_out == 0 && before(|phase| *phase != Phase::Unposted) => {
                vec![self.step(moment, op, Phase::Posted, Some(Event::Send(number)))]
            }
            Phase::Posted => {
                let lost = self.step(moment, op, Phase::Lost, Some(Event::PacketLost(number)));
                let is_next = before(|phase| !matches!(phase, Phase::Unposted | Phase::Posted | Phase::Lost));
                let received = || self.step(moment, op, Phase::Received, Some(Event::Receive(number)));
                std::iter::once(lost).chain(is_next.then(received)).collect()
            }
            Phase::Received if before(|phase| *phase != Phase::Received) => vec![self.execute(moment, op)],
            Phase::Executed(outcome) => vec![
                self.step(moment, op, Phase::AckLost, Some(Event::AckLost(number))),
                self.step(moment, op, Phase::Acknowledged(outcome), None),
            ],
            Phase::Acknowledged(outcome) if before(|phase| *phase == Phase::Completed) => {
                vec![self.step(moment, op, Phase::Completed, Some(Event::Completion(number, outcome)))]
            }
            Phase::Lost | Phase::AckLost if before(|phase| *phase == Phase::Completed) => {
                vec![self.time_out(moment, op)]
            }
            _ => Vec::new(),
        };
        choices.extend(self.application(moment, op));
        choices
    }
}

impl Model for Runs {
    type State = Moment;
    /// The nth of what may happen.
    type Action = u8;

    fn initial(&self) -> Vec<Moment> {
        vec![Moment {
            phases: vec![Phase::Unposted; self.ops.len()],
            memory: [0; CELLS],
            executed: 0,
            harmful: 0,
            consumed: 0,
            reused: 0,
            timed_out: 0,
            trace: Vec::new(),
        }]
    }

    fn actions(&self, moment: &Moment, actions: &mut Vec<u8>) {
        let count: usize = (0..self.ops.len()).map(|op| self.choices(moment, op).len()).sum();
        actions.extend(0..count as u8);
    }

    fn next(&self, moment: &Moment, action: &u8) -> Option<Moment> {
        (0..self.ops.len()).flat_map(|op| self.choices(moment, op)).nth(usize::from(*action))
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        Vec::new()
    }
}

/// Every list of one to `longest` operations over an alphabet.
#[must_use]
pub fn lists(alphabet: &[Op], longest: usize) -> Vec<Vec<Op>> {
    let mut all = BTreeSet::new();
    let mut last = vec![Vec::new()];
    for _ in 0..longest {
        last = last.iter().flat_map(|list| alphabet.iter().map(move |op| [list.as_slice(), &[*op]].concat())).collect();
        all.extend(last.iter().cloned());
    }
    all.into_iter().collect()
}
