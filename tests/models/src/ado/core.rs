//! The object under the explorer: every tree that so many replicas can grow, and what each condition of the oracle is for.

use super::{Ado, Cache, Condition, Node, Quorums, Replica, Time};
use crate::explorer::draw::Drawn;
use crate::explorer::{Invariant, Model, Sometimes};

/// Replicas without a network between them, and how far their tree may grow.
#[derive(Clone, Debug)]
pub struct Core {
    /// How many.
    pub replicas: usize,
    /// Who decides.
    pub quorums: Quorums,
    /// The last term.
    pub terms: Time,
    /// Nodes of the tree, the root with them.
    pub nodes: usize,
    /// What the oracle does not keep to.
    pub without: Option<Condition>,
}

/// An operation, and what the oracle chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// An election.
    Pull(Replica, Vec<Replica>, Node, Time),
    /// A method.
    Invoke(Replica),
    /// A commit.
    Push(Replica, Vec<Replica>, Node),
}

impl Core {
    /// Majorities of three.
    #[must_use]
    pub const fn of_three(terms: Time, nodes: usize) -> Self {
        Self { replicas: 3, quorums: Quorums::Majority(3), terms, nodes, without: None }
    }

    fn sets(&self) -> impl Iterator<Item = Vec<Replica>> + '_ {
        (1..1_u32 << self.replicas).map(|set| (0..self.replicas).filter(|nth| set >> nth & 1 == 1).collect())
    }
}

impl Core {
    fn operations_of(&self, ado: &Ado<()>, by: Replica, voters: &[Replica], actions: &mut Vec<Operation>) {
        for (node, cache) in ado.tree().nodes() {
            if self.quorums.decide(voters) {
                actions.extend((1..=self.terms).map(|time| Operation::Pull(by, voters.to_vec(), node, time)));
            }
            if matches!(cache, Cache::Method { .. }) {
                actions.push(Operation::Push(by, voters.to_vec(), node));
            }
        }
    }
}

impl Model for Core {
    type State = Ado<()>;
    type Action = Operation;

    fn initial(&self) -> Vec<Ado<()>> {
        vec![Ado::new(self.replicas, self.quorums).without(self.without)]
    }

    fn actions(&self, ado: &Ado<()>, actions: &mut Vec<Operation>) {
        let has_room = ado.tree().count() < self.nodes;
        for voters in self.sets() {
            if !self.quorums.decide(&voters) {
                // Whoever asks, and wherever it would begin, all that comes of it is a promise.
                actions.extend((1..=self.terms).map(|time| Operation::Pull(0, voters.clone(), Node::ROOT, time)));
            } else if !has_room {
                continue;
            }
            for by in 0..self.replicas {
                self.operations_of(ado, by, &voters, actions);
            }
        }
        if has_room {
            actions.extend((0..self.replicas).map(Operation::Invoke));
        }
    }

    fn next(&self, ado: &Ado<()>, action: &Operation) -> Option<Ado<()>> {
        let mut next = ado.clone();
        match action {
            Operation::Pull(by, voters, chosen, time) => _ = next.pull(*by, voters, *chosen, *time).ok()?,
            Operation::Invoke(by) => _ = next.invoke(*by, ()).ok()?,
            Operation::Push(by, voters, chosen) => _ = next.push(*by, voters, *chosen).ok()?,
        }
        Some(next)
    }

    fn canonical(&self, ado: Ado<()>) -> Ado<()> {
        ado.canonical()
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        vec![Invariant { name: "one history", broken: |_, ado| ado.broken().map(str::to_string) }]
    }

    fn sometimes(&self) -> Vec<Sometimes<Self>> {
        let seen: fn(&Self, &Ado<()>) -> bool = |_, ado| ado.committed().len() > 1;
        vec![Sometimes { name: "two methods are committed", seen }]
    }

    fn draw(&self, _: &Ado<()>, action: &Operation, _: &Ado<()>) -> Vec<Drawn> {
        vec![Drawn::Line(match action {
            Operation::Pull(by, voters, _, time) => format!("{by} is elected for {time} by {voters:?}"),
            Operation::Invoke(by) => format!("{by} invokes"),
            Operation::Push(by, voters, _) => format!("{by} has it committed by {voters:?}"),
        })]
    }

    fn figure(&self, ado: &Ado<()>) -> Option<String> {
        Some(ado.figure())
    }
}
