//! Two NICs that each know their own packet numbers only: what one executed the other executes again. And the same with what this project adds,
//! a fence and a count, where it does not happen.

use crate::explorer::draw::Drawn;
use crate::explorer::{Invariant, Model, Sometimes};

/// What the two ends do about the first NIC before the second one is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Care {
    /// The receiver stops the first NIC before it counts.
    pub fences: bool,
    /// The sender asks how many were executed.
    pub counts: bool,
}

/// Requests that consume a receive, over NIC A until it fails and then over NIC B.
#[derive(Clone, Copy, Debug)]
pub struct TwoNics {
    /// How many requests there are.
    pub requests: u8,
    /// What is done on the way.
    pub care: Care,
}

/// Both NICs and the sender.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The next request that each NIC of the receiver expects. It is theirs alone.
    expected: [u8; 2],
    /// Requests that were given to each NIC of the sender: from, to.
    posted: [(u8, u8); 2],
    acknowledged: u8,
    /// The sender's first NIC answers.
    answers: bool,
    /// The receiver's first NIC still executes what arrives.
    listens: bool,
    count: Option<u8>,
    /// How often each was written.
    written: Vec<u8>,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// The receiver's NIC executes the next request that it was sent.
    Execute(usize),
    /// The sender hears of it.
    Acknowledge,
    /// No acknowledgement comes any more.
    Fail,
    /// The receiver stops its first NIC.
    Fence,
    /// It says how many were executed.
    Count,
    /// The sender posts what is left on the second NIC.
    PostAgain,
}

impl Model for TwoNics {
    type State = State;
    type Action = Move;

    fn initial(&self) -> Vec<State> {
        vec![State {
            expected: [0, 0],
            posted: [(0, self.requests), (0, 0)],
            acknowledged: 0,
            answers: true,
            listens: true,
            count: None,
            written: vec![0; usize::from(self.requests)],
        }]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Move>) {
        actions.extend([
            Move::Execute(0),
            Move::Execute(1),
            Move::Acknowledge,
            Move::Fail,
            Move::Fence,
            Move::Count,
            Move::PostAgain,
        ]);
    }

    fn next(&self, state: &State, action: &Move) -> Option<State> {
        let mut next = state.clone();
        match action {
            Move::Execute(nic) => {
                let at = state.expected[*nic];
                let is_sent = at < state.posted[*nic].1 && (*nic == 1 || state.listens);
                next.expected[*nic] += 1;
                *next.written.get_mut(usize::from(at)).filter(|_| is_sent)? += 1;
            }
            Move::Acknowledge if state.answers && state.acknowledged < state.expected[0] => next.acknowledged += 1,
            Move::Fail if state.answers => next.answers = false,
            Move::Fence if self.care.fences && !state.answers && state.listens => next.listens = false,
            Move::Count
                if self.care.counts
                    && !state.answers
                    && state.count.is_none()
                    && (!state.listens || !self.care.fences) =>
            {
                next.count = Some(state.expected[0]);
            }
            Move::PostAgain if !state.answers && state.posted[1].1 == 0 => {
                let from = if self.care.counts { state.count? } else { state.acknowledged };
                next.expected[1] = from;
                next.posted[1] = (from, self.requests);
            }
            _ => return None,
        }
        Some(next)
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        vec![Invariant {
            name: "each request writes at most once",
            broken: |_, state| {
                let twice = state.written.iter().position(|count| *count > 1)?;
                Some(format!("request {twice} wrote twice"))
            },
        }]
    }

    fn sometimes(&self) -> Vec<Sometimes<Self>> {
        vec![
            Sometimes {
                name: "the second NIC wrote",
                seen: |model, state| state.expected[1] == model.requests && state.posted[1].1 > 0,
            },
            Sometimes {
                name: "an acknowledgement was lost",
                seen: |_, state| !state.answers && state.acknowledged < state.expected[0],
            },
        ]
    }

    fn is_end(&self, state: &State) -> bool {
        state.written.iter().all(|count| *count > 0)
    }

    fn draw(&self, _: &State, action: &Move, after: &State) -> Vec<Drawn> {
        let at = |nic: usize| after.expected[nic] - 1;
        vec![Drawn::Line(match action {
            Move::Execute(nic) => format!("NIC {} of the receiver executes request {}", ["A", "B"][*nic], at(*nic)),
            Move::Acknowledge => format!("the sender hears of request {}", after.acknowledged - 1),
            Move::Fail => "NIC A fails at the sender".to_string(),
            Move::Fence => "the receiver stops NIC A".to_string(),
            Move::Count => format!("the receiver counts {}", after.count.unwrap_or(0)),
            Move::PostAgain => format!("the sender posts from request {} on over NIC B", after.posted[1].0),
        })]
    }
}
