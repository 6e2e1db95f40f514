//! The search itself: level by level, each level in rounds that workers expand and one thread enters, so that numbers and
//! counterexamples do not depend on who was faster.

use std::collections::HashSet;
use std::thread;
use std::time::Instant;

use super::draw;
use super::fingerprint;
use super::liveness::Graph;
use super::visited::{Visited, NONE};
use super::{Counterexample, Extent, Invariant, Limits, Liveness, Model, Report, Sometimes};

/// States that one worker expands in a round: enough to pay for a thread, few enough to keep what they lead to small.
const SHARE: usize = 2048;
/// Below that many states a round is not worth a thread.
const WORTH_A_THREAD: usize = 256;

/// A search, to be set up and run.
pub struct Explorer<'m, M: Model> {
    model: &'m M,
    invariants: Vec<Invariant<M>>,
    sometimes: Vec<Sometimes<M>>,
    limits: Limits,
    liveness: Liveness,
    workers: usize,
    progress: Option<&'m (dyn Fn(u32, usize) + Sync)>,
}

/// Where a step led.
struct Reached<S> {
    parent: u32,
    fingerprint: u64,
    to: To<S>,
}

enum To<S> {
    /// A state that was known before this round.
    Known(u32),
    /// One that may be new.
    Fresh(Fresh<S>),
}

struct Fresh<S> {
    state: S,
    sights: u64,
    is_end: bool,
    broken: Option<(usize, String)>,
}

/// What is known so far.
struct Progress<S> {
    visited: Visited,
    graph: Graph,
    transitions: u64,
    sights: Vec<Option<u32>>,
    next: Vec<S>,
    violation: Option<(u32, String, String)>,
}

impl<'m, M: Model> Explorer<'m, M> {
    /// One without limits, on two workers.
    pub fn new(model: &'m M) -> Self {
        let limits = Limits { depth: u32::MAX, states: usize::MAX };
        Self {
            model,
            invariants: model.invariants(),
            sometimes: model.sometimes(),
            limits,
            liveness: Liveness::Unchecked,
            workers: 2,
            progress: None,
        }
    }

    /// Stops there at the latest.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Looks at how runs end too. Keeps eight bytes for each transition.
    #[must_use]
    pub fn liveness(self, liveness: Liveness) -> Self {
        Self { liveness, ..self }
    }

    /// How many threads expand states.
    #[must_use]
    pub fn workers(self, workers: usize) -> Self {
        Self { workers: workers.max(1), ..self }
    }

    /// Is told depth and states after each level.
    #[must_use]
    pub fn progress(self, progress: &'m (dyn Fn(u32, usize) + Sync)) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// Searches.
    #[must_use]
    pub fn run(&self) -> Report<M::Action> {
        let begun = Instant::now();
        let mut progress = Progress {
            visited: Visited::new(),
            graph: Graph::default(),
            transitions: 0,
            sights: vec![None; self.sometimes.len()],
            next: Vec::new(),
            violation: None,
        };
        for state in self.model.initial() {
            let reached = self.look(NONE, state, None);
            self.enter(&mut progress, reached, 0);
        }
        let (depth, extent) = self.levels(&mut progress);
        self.judge_ends(&mut progress, extent);
        let extent = if let (Some((number, ..)), true) = (&progress.violation, extent == Extent::Complete) {
            Extent::Violated(progress.visited.way_to(*number).len() as u32 - 1)
        } else {
            extent
        };
        self.report(progress, depth, extent, begun)
    }

    fn levels(&self, progress: &mut Progress<M::State>) -> (u32, Extent) {
        let mut depth = 0;
        let mut base = 0;
        while !progress.next.is_empty() {
            if progress.violation.is_some() {
                return (depth, Extent::Violated(depth));
            }
            if depth >= self.limits.depth || progress.visited.len() >= self.limits.states {
                return (depth, Extent::CutAtDepth(depth));
            }
            let level = std::mem::take(&mut progress.next);
            self.level(progress, &level, base, depth + 1);
            base += level.len();
            depth += u32::from(!progress.next.is_empty());
            if let Some(tell) = self.progress {
                tell(depth, progress.visited.len());
            }
        }
        (depth, Extent::Complete)
    }

    /// Expands a level, whose first state has the number `base`.
    fn level(&self, progress: &mut Progress<M::State>, level: &[M::State], base: usize, depth: u32) {
        let share = if level.len() < WORTH_A_THREAD { level.len() } else { SHARE };
        let workers = if level.len() < WORTH_A_THREAD { 1 } else { self.workers };
        for (round, states) in level.chunks(share.max(1) * workers).enumerate() {
            let first = base + round * share * workers;
            for reached in self.expand(&progress.visited, states, first, share, workers) {
                self.enter(progress, reached, depth);
            }
            if progress.violation.is_some() {
                return;
            }
        }
    }

    fn expand(
        &self,
        visited: &Visited,
        states: &[M::State],
        first: usize,
        share: usize,
        workers: usize,
    ) -> Vec<Reached<M::State>> {
        if workers == 1 {
            return self.expand_share(visited, states, first);
        }
        thread::scope(|scope| {
            let shares = states.chunks(share).enumerate();
            let threads: Vec<_> = shares
                .map(|(nth, states)| scope.spawn(move || self.expand_share(visited, states, first + nth * share)))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("a worker that panics ends the search"))
                .collect()
        })
    }

    fn expand_share(&self, visited: &Visited, states: &[M::State], first: usize) -> Vec<Reached<M::State>> {
        let mut reached = Vec::new();
        let mut actions = Vec::new();
        for (nth, state) in states.iter().enumerate() {
            actions.clear();
            self.model.actions(state, &mut actions);
            for action in &actions {
                if let Some(next) = self.model.next(state, action) {
                    reached.push(self.look((first + nth) as u32, next, Some(visited)));
                }
            }
        }
        reached
    }

    fn look(&self, parent: u32, state: M::State, visited: Option<&Visited>) -> Reached<M::State> {
        let state = self.model.canonical(state);
        let fingerprint = fingerprint::of(&state);
        if let Some(number) = visited.and_then(|visited| visited.find(fingerprint)) {
            return Reached { parent, fingerprint, to: To::Known(number) };
        }
        let broken = self
            .invariants
            .iter()
            .enumerate()
            .find_map(|(nth, invariant)| (invariant.broken)(self.model, &state).map(|why| (nth, why)));
        let sights = self
            .sometimes
            .iter()
            .enumerate()
            .fold(0, |seen, (nth, sometimes)| seen | (u64::from((sometimes.seen)(self.model, &state)) << nth));
        let is_end = self.model.is_end(&state);
        Reached { parent, fingerprint, to: To::Fresh(Fresh { state, sights, is_end, broken }) }
    }

    fn enter(&self, progress: &mut Progress<M::State>, reached: Reached<M::State>, depth: u32) {
        progress.transitions += u64::from(reached.parent != NONE);
        let number = match reached.to {
            To::Known(number) => number,
            To::Fresh(fresh) => self.enter_fresh(progress, reached.fingerprint, reached.parent, fresh, depth),
        };
        if self.liveness != Liveness::Unchecked && reached.parent != NONE {
            progress.graph.edge(reached.parent, number);
        }
    }

    fn enter_fresh(
        &self,
        progress: &mut Progress<M::State>,
        fingerprint: u64,
        parent: u32,
        fresh: Fresh<M::State>,
        depth: u32,
    ) -> u32 {
        if let Some(number) = progress.visited.find(fingerprint) {
            return number;
        }
        let number = progress.visited.insert(fingerprint, parent);
        for (nth, first) in progress.sights.iter_mut().enumerate() {
            if fresh.sights >> nth & 1 == 1 {
                first.get_or_insert(depth);
            }
        }
        if let (Some((nth, why)), None) = (fresh.broken, &progress.violation) {
            progress.violation = Some((number, self.invariants[nth].name.to_string(), why));
        }
        if self.liveness != Liveness::Unchecked {
            progress.graph.state(fresh.is_end);
        }
        progress.next.push(fresh.state);
        number
    }

    fn judge_ends(&self, progress: &mut Progress<M::State>, extent: Extent) {
        if progress.violation.is_some() {
            return;
        }
        let unexpanded = if extent == Extent::Complete { 0 } else { progress.next.len() };
        let found = match self.liveness {
            Liveness::Unchecked => None,
            Liveness::EndReachable => {
                progress.graph.without_end(unexpanded).map(|state| (state, "no end can be reached"))
            }
            Liveness::EveryRunEnds => progress.graph.on_a_cycle_or_stuck(unexpanded),
        };
        if let Some((number, why)) = found {
            progress.violation = Some((number, "every run ends".to_string(), why.to_string()));
        }
    }

    fn report(&self, progress: Progress<M::State>, depth: u32, extent: Extent, begun: Instant) -> Report<M::Action> {
        let violation = progress.violation.as_ref().map(|(number, property, why)| {
            let (states, actions) = self.retrace(&progress.visited.way_to(*number));
            let drawing = draw::run(self.model, &states, &actions);
            Counterexample { property: property.clone(), why: why.clone(), actions, drawing }
        });
        Report {
            states: progress.visited.len(),
            transitions: progress.transitions,
            depth,
            extent,
            violation,
            sights: self.sometimes.iter().map(|sometimes| sometimes.name).zip(progress.sights).collect(),
            bytes_per_state: progress.visited.bytes() / progress.visited.len().max(1),
            took: begun.elapsed(),
        }
    }

    /// A run of the model itself, in names that stay the same, through the states with those fingerprints.
    fn retrace(&self, way: &[u64]) -> (Vec<M::State>, Vec<M::Action>) {
        let known: HashSet<u64> = way.iter().copied().collect();
        debug_assert_eq!(known.len(), way.len(), "a shortest run sees no state twice");
        let is_at = |state: &M::State, nth: usize| fingerprint::of(&self.model.canonical(state.clone())) == way[nth];
        let start = self.model.initial().into_iter().find(|state| is_at(state, 0));
        let mut states: Vec<_> = start.into_iter().collect();
        let mut taken = Vec::new();
        for nth in 1..way.len() {
            let Some(state) = states.last() else { break };
            let mut actions = Vec::new();
            self.model.actions(state, &mut actions);
            let step = actions.into_iter().find_map(|action| {
                let next = self.model.next(state, &action)?;
                is_at(&next, nth).then_some((action, next))
            });
            let (action, next) = step.expect("a model whose symmetry is one offers symmetric states the same steps");
            taken.push(action);
            states.push(next);
        }
        (states, taken)
    }
}
