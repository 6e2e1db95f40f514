//! Breadth-first search through every state of a finite model: what a model is, what is asked of it, and what comes back.
//!
//! It owns the order of the search, the set of states seen, the way back to the start, and what may be said at the end:
//! complete within the model's bounds, or cut at a depth. It refuses to know any model.
//!
//! What must hold: the same model gives the same report whatever the number of workers; the first violation told is one
//! that no shorter run has; nothing is called complete that was cut.

pub mod draw;
pub mod fingerprint;
mod liveness;
pub mod runs;
mod search;
pub mod symmetry;
mod visited;

use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use draw::Drawn;
pub use search::Explorer;

/// A finite transition system and what is claimed of it. Bounds are the model's own: an action that leads out of them is not offered.
pub trait Model: Sync {
    /// All that the future depends on. Its `Hash` is what the search remembers of it: everything that `Eq` looks at has to go in.
    type State: Clone + Eq + Hash + Send + Sync;
    /// One step, told apart from the others that the same state offers.
    type Action: Clone + fmt::Debug + Send;

    /// Where runs begin.
    fn initial(&self) -> Vec<Self::State>;

    /// What may happen next, always in the same order.
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);

    /// What comes of it; `None`: it changes nothing worth following.
    fn next(&self, state: &Self::State, action: &Self::Action) -> Option<Self::State>;

    /// The one of all symmetric states that stands for them. Traces are told in names that do not change on the way.
    fn canonical(&self, state: Self::State) -> Self::State {
        state
    }

    /// What holds in every state.
    fn invariants(&self) -> Vec<Invariant<Self>>;

    /// What holds in at least one: who never sees these has checked nothing.
    fn sometimes(&self) -> Vec<Sometimes<Self>> {
        Vec::new()
    }

    /// Whether a run may end here.
    fn is_end(&self, _state: &Self::State) -> bool {
        true
    }

    /// The columns of a trace: one for each machine, none for models that are no conversation.
    fn lanes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How a step is drawn.
    fn draw(&self, _before: &Self::State, action: &Self::Action, _after: &Self::State) -> Vec<Drawn> {
        vec![Drawn::Line(format!("{action:?}"))]
    }

    /// A picture of a state below each step of a trace, as of a tree.
    fn figure(&self, _state: &Self::State) -> Option<String> {
        None
    }
}

/// Something that holds in every state.
pub struct Invariant<M: Model + ?Sized> {
    /// As a promise.
    pub name: &'static str,
    /// `Some`: what is wrong.
    pub broken: fn(&M, &M::State) -> Option<String>,
}

/// Something that holds in at least one state.
pub struct Sometimes<M: Model + ?Sized> {
    /// What is seen.
    pub name: &'static str,
    /// Whether this state shows it.
    pub seen: fn(&M, &M::State) -> bool,
}

/// Whether a run ends, as far as a graph says it. Neither assumes anything of how often what is offered happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Not looked at.
    Unchecked,
    /// From every state an end can be reached. With a scheduler that is fair to every step that is offered again and again, every run then ends.
    EndReachable,
    /// No state that is not an end lies on a cycle, and none is stuck: every run ends, whatever the scheduler does.
    EveryRunEnds,
}

/// Where the search stops at the latest.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps from the start.
    pub depth: u32,
    /// States kept; a level that is begun is finished.
    pub states: usize,
}

/// How far the search went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every state within the bounds of the model.
    Complete,
    /// Every state that takes no more steps than that.
    CutAtDepth(u32),
    /// It stopped at a violation, which takes so many steps.
    Violated(u32),
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete within bounds"),
            Self::CutAtDepth(depth) => write!(f, "cut at depth {depth}"),
            Self::Violated(depth) => write!(f, "violated in {depth} steps"),
        }
    }
}

/// A shortest run to something that should not be.
#[derive(Clone, Debug)]
pub struct Counterexample<A> {
    /// What does not hold.
    pub property: String,
    /// What is wrong with the last state.
    pub why: String,
    /// The steps.
    pub actions: Vec<A>,
    /// As a person would draw it.
    pub drawing: String,
}

impl<A> fmt::Display for Counterexample<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broken in {} steps: {} ({})", self.actions.len(), self.property, self.why)?;
        f.write_str(&self.drawing)
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Report<A> {
    /// Different states.
    pub states: usize,
    /// Steps between them that were taken, those to known states too.
    pub transitions: u64,
    /// Steps to the state that is furthest away.
    pub depth: u32,
    /// How far it went.
    pub extent: Extent,
    /// The first thing wrong.
    pub violation: Option<Counterexample<A>>,
    /// What was to be seen, and in how many steps it first was.
    pub sights: Vec<(&'static str, Option<u32>)>,
    /// Bytes kept for each state that is not on the frontier.
    pub bytes_per_state: usize,
    /// Wall clock.
    pub took: Duration,
}

impl<A> Report<A> {
    /// What should have been seen and was not.
    #[must_use]
    pub fn unseen(&self) -> Vec<&'static str> {
        self.sights.iter().filter(|(_, depth)| depth.is_none()).map(|(name, _)| *name).collect()
    }

    /// Whether every state within the bounds was looked at, nothing was wrong, and everything that was to be seen was.
    #[must_use]
    pub fn is_proof(&self) -> bool {
        self.extent == Extent::Complete && self.holds()
    }

    /// The same as far as the search went.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.violation.is_none() && self.unseen().is_empty()
    }

    /// Steps of the violation.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        self.violation.as_ref().map(|violation| violation.actions.len())
    }
}

impl<A> fmt::Display for Report<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        write!(f, "{} states, {} transitions, depth {}, ", self.states, self.transitions, self.depth)?;
        write!(f, "{}, {seconds:.1} s", self.extent)?;
        if !self.unseen().is_empty() && self.violation.is_none() {
            write!(f, ", never seen: {}", self.unseen().join("; "))?;
        }
        match &self.violation {
            Some(violation) => write!(f, "\n{violation}"),
            None => Ok(()),
        }
    }
}
