//! Atomic distributed objects (Honoré, "Automated and Protocol-Generic Verification of Distributed Systems", ADVERT): a tree of caches, and
//! the three operations that every protocol of the kind comes down to. A leader is elected on a cache (*pull*), adds methods below it
//! (*invoke*), and has a prefix of them committed (*push*).
//!
//! It owns the tree, what each replica has promised, and when an operation is one. It refuses to know networks, objects and schedulers: who asks
//! an operation of it says what the oracle chose, and is told whether the oracle could have. Models of more (reconfiguration, timeouts) are to
//! add caches and conditions here.

pub mod core;
mod tree;

use std::fmt;

use crate::explorer::draw;
pub use tree::{Node, Tree};

/// Who elects, invokes and commits.
pub type Replica = usize;
/// Logical time: a leader's term.
pub type Time = u64;

/// What a node of the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cache<M> {
    /// All methods above it are committed.
    Commit {
        /// The leader.
        by: Replica,
        /// Its term.
        time: Time,
    },
    /// A leader begins here.
    Election {
        /// The leader.
        by: Replica,
        /// Its term.
        time: Time,
    },
    /// A method, committed or not.
    Method {
        /// The leader.
        by: Replica,
        /// Its term.
        time: Time,
        /// What.
        method: M,
    },
}

impl<M> Cache<M> {
    /// The term it is of.
    #[must_use]
    pub const fn time(&self) -> Time {
        let (Self::Commit { time, .. } | Self::Election { time, .. } | Self::Method { time, .. }) = self;
        *time
    }

    /// Its leader.
    #[must_use]
    pub const fn by(&self) -> Replica {
        let (Self::Commit { by, .. } | Self::Election { by, .. } | Self::Method { by, .. }) = self;
        *by
    }
}

/// Which sets of replicas decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quorums {
    /// More than half of so many.
    Majority(usize),
    /// Every set with that one in it.
    With(Replica),
    /// Any that many. Two of them need not meet.
    Any(usize),
}

impl Quorums {
    /// Whether these decide.
    #[must_use]
    pub fn decide(self, voters: &[Replica]) -> bool {
        match self {
            Self::Majority(replicas) => 2 * voters.len() > replicas,
            Self::With(replica) => voters.contains(&replica),
            Self::Any(count) => voters.len() >= count,
        }
    }
}

/// What the oracle has to keep to, each to be left out to see what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// pull: no voter has seen that term or a later one.
    NewTerm,
    /// pull: the cache that is chosen is at least as new as each voter's.
    Newest,
    /// push: no voter has promised a later term.
    NotPreempted,
    /// invoke, push: the caller leads, in the term of the cache.
    Leads,
    /// push: the method is beyond what the caller has committed.
    Beyond,
}

/// An operation that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `pull`, `invoke` or `push`.
    pub operation: &'static str,
    /// What does not hold.
    pub condition: Condition,
    /// Of whom.
    pub replica: Replica,
    /// What that one has promised.
    pub has: Time,
    /// The term that was asked for.
    pub asked: Time,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, condition, replica, has, asked } = self;
        write!(f, "an invalid {operation}: {condition:?}, times[{replica}] = {has}, time(cache) = {asked}")
    }
}

/// The state: what the replicas and the oracle know together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ado<M> {
    tree: Tree<Cache<M>>,
    times: Vec<Time>,
    active: Vec<Node>,
    quorums: Quorums,
    without: Option<Condition>,
}

impl<M: Ord + Clone> Ado<M> {
    /// So many replicas that have seen nothing.
    #[must_use]
    pub fn new(replicas: usize, quorums: Quorums) -> Self {
        let tree = Tree::new(Cache::Commit { by: 0, time: 0 });
        Self { tree, times: vec![0; replicas], active: vec![Node::ROOT; replicas], quorums, without: None }
    }

    /// The same that does not ask for that.
    #[must_use]
    pub fn without(self, condition: Option<Condition>) -> Self {
        Self { without: condition, ..self }
    }

    /// Sees to it that there are replicas up to that one.
    pub fn admit(&mut self, replica: Replica) {
        let count = self.times.len().max(replica + 1);
        self.times.resize(count, 0);
        self.active.resize(count, Node::ROOT);
    }

    /// The tree.
    #[must_use]
    pub const fn tree(&self) -> &Tree<Cache<M>> {
        &self.tree
    }

    /// Where a replica is.
    #[must_use]
    pub fn active(&self, replica: Replica) -> Node {
        self.active[replica]
    }

    /// The term that a replica has promised.
    #[must_use]
    pub fn time(&self, replica: Replica) -> Time {
        self.times[replica]
    }

    /// Of two caches the newer: that of a later term, else the one that descends from the other.
    #[must_use]
    pub fn is_newer(&self, one: Node, other: Node) -> bool {
        self.tree.get(one).time() > self.tree.get(other).time() || self.tree.is_above(other, one)
    }

    fn demand(&self, condition: Condition, holds: bool, refused: Refused) -> Result<(), Refused> {
        if holds || self.without == Some(condition) {
            Ok(())
        } else {
            Err(Refused { condition, ..refused })
        }
    }

    /// `by` is elected for `time` on `chosen`, if the voters decide; if not, they have promised the term all the same.
    ///
    /// # Errors
    /// No oracle chooses that.
    pub fn pull(&mut self, by: Replica, voters: &[Replica], chosen: Node, time: Time) -> Result<Option<Node>, Refused> {
        let is_decided = self.quorums.decide(voters);
        for voter in voters {
            let has = self.times[*voter];
            let refused =
                Refused { operation: "pull", condition: Condition::NewTerm, replica: *voter, has, asked: time };
            self.demand(Condition::NewTerm, has < time, refused)?;
            let active = self.active[*voter];
            let is_newest = !is_decided || chosen == active || self.is_newer(chosen, active);
            self.demand(Condition::Newest, is_newest, refused)?;
        }
        voters.iter().for_each(|voter| self.times[*voter] = time);
        Ok(is_decided.then(|| {
            self.active[by] = self.tree.add_leaf(chosen, Cache::Election { by, time });
            self.active[by]
        }))
    }

    /// `by` adds a method where it is.
    ///
    /// # Errors
    /// It does not lead.
    pub fn invoke(&mut self, by: Replica, method: M) -> Result<Node, Refused> {
        let above = self.active[by];
        let time = self.tree.get(above).time();
        self.demand(Condition::Leads, self.leads(by, above), self.refusal("invoke", by, time))?;
        self.active[by] = self.tree.add_leaf(above, Cache::Method { by, time, method });
        Ok(self.active[by])
    }

    /// `by` has its methods up to `chosen` committed, if the voters decide; if not, they have promised its term all the same.
    ///
    /// # Errors
    /// No oracle chooses that.
    pub fn push(&mut self, by: Replica, voters: &[Replica], chosen: Node) -> Result<Option<Node>, Refused> {
        let time = self.tree.get(chosen).time();
        for voter in voters {
            let holds = self.times[*voter] <= time;
            self.demand(Condition::NotPreempted, holds, self.refusal("push", *voter, time))?;
        }
        let is_own = matches!(self.tree.get(chosen), Cache::Method { .. }) && self.leads(by, chosen);
        self.demand(Condition::Leads, is_own, self.refusal("push", by, time))?;
        let is_beyond = self.is_newer(chosen, self.last_commit_of(by));
        self.demand(Condition::Beyond, is_beyond, self.refusal("push", by, time))?;
        voters.iter().for_each(|voter| self.times[*voter] = time);
        Ok(self.quorums.decide(voters).then(|| {
            let commit = self.tree.insert_below(chosen, Cache::Commit { by, time });
            voters.iter().for_each(|voter| self.active[*voter] = commit);
            commit
        }))
    }

    fn refusal(&self, operation: &'static str, replica: Replica, asked: Time) -> Refused {
        Refused { operation, condition: Condition::Leads, replica, has: self.times[replica], asked }
    }

    fn leads(&self, by: Replica, node: Node) -> bool {
        let cache = self.tree.get(node);
        node != Node::ROOT && cache.by() == by && cache.time() == self.times[by]
    }

    fn commits(&self) -> impl Iterator<Item = Node> + '_ {
        self.tree.nodes().filter(|(_, cache)| matches!(cache, Cache::Commit { .. })).map(|(node, _)| node)
    }

    fn newest(&self, nodes: impl Iterator<Item = Node>) -> Node {
        nodes.fold(Node::ROOT, |newest, node| if self.is_newer(node, newest) { node } else { newest })
    }

    fn last_commit_of(&self, by: Replica) -> Node {
        self.newest(self.commits().filter(|node| self.tree.get(*node).by() == by))
    }

    /// What is committed, oldest first.
    #[must_use]
    pub fn committed(&self) -> Vec<M> {
        let branch = self.tree.branch(self.newest(self.commits()));
        let methods = branch.into_iter().filter_map(|node| match self.tree.get(node) {
            Cache::Method { method, .. } => Some(method.clone()),
            Cache::Commit { .. } | Cache::Election { .. } => None,
        });
        methods.collect()
    }

    /// What is wrong with the tree: commits that exclude one another, a child that is older than its parent, two elections of one term.
    #[must_use]
    pub fn broken(&self) -> Option<&'static str> {
        let newest = self.newest(self.commits());
        if self.commits().any(|node| node != newest && !self.tree.is_above(node, newest)) {
            return Some("two commits are on different branches");
        }
        let is_older = |node: Node| {
            self.tree.parent(node).is_some_and(|parent| self.tree.get(node).time() < self.tree.get(parent).time())
        };
        if self.tree.nodes().any(|(node, _)| is_older(node)) {
            return Some("a cache is older than the one it hangs from");
        }
        let terms = self.tree.nodes().filter(|(_, cache)| matches!(cache, Cache::Election { .. }));
        let mut terms: Vec<_> = terms.map(|(_, cache)| cache.time()).collect();
        terms.sort_unstable();
        terms.windows(2).any(|pair| pair[0] == pair[1]).then_some("a term has two leaders")
    }

    /// The same with its nodes in the one order that stands for all.
    #[must_use]
    pub fn canonical(&self) -> Self {
        let (tree, places) = self.tree.canonical();
        let place = |node: &Node| places[node.place()];
        Self { tree, active: self.active.iter().map(place).collect(), times: self.times.clone(), ..*self }
    }
}

impl<M: Ord + Clone + fmt::Debug> Ado<M> {
    /// The tree as a person would draw it, with who is where.
    #[must_use]
    pub fn figure(&self) -> String {
        let label = |node: Node, cache: &Cache<M>| {
            let kind = match cache {
                Cache::Commit { .. } => "C".to_string(),
                Cache::Election { .. } => "E".to_string(),
                Cache::Method { method, .. } => format!("M {method:?}"),
            };
            let here = (0..self.times.len()).filter(|replica| self.active[*replica] == node);
            let here: Vec<_> = here.map(|replica| format!("{replica} (time {})", self.times[replica])).collect();
            let here = if here.is_empty() { String::new() } else { format!("   <- {}", here.join(", ")) };
            format!("{kind} by {}, time {}{here}", cache.by(), cache.time())
        };
        draw::tree(&self.tree.drawn(Node::ROOT, &label))
    }
}
