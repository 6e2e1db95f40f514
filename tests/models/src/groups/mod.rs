//! Groups of queue pairs that share their receives, and share peers, under the explorer: the machines and the groups of `shift-proto`.
//!
//! It owns what a group is for: receives are posted in a new place only when nobody takes them in the old one, nobody waits for somebody who waits
//! for it, and all that are connected move together. It refuses to know requests, proofs and second deliveries: those are [`crate::failover`]'s. So here
//! the messages of an end arrive once and in their order, as late as they like, and every fence is complete.

mod world;

use shift_proto::migrate::{Attempt, Stage};

use crate::explorer::draw::Drawn;
use crate::explorer::{Explorer, Invariant, Liveness, Model, Report, Sometimes};
pub use world::{Step, World};

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Receives are posted when the own queue pair is fenced, whatever the others do.
    NoGate,
    /// Receives wait until every peer has posted its own.
    WaitsForPeers,
}

/// Processes of one group each, and what may happen to them. The bounds of a search.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Which processes each pair of queue pairs connects.
    pub pairs: Vec<(usize, usize)>,
    /// Queue pairs that go into ERR.
    pub faults: u8,
    /// Groups whose patience with those who have not come ends.
    pub lates: u8,
    /// Applications that destroy a queue pair.
    pub destroys: u8,
    /// Claims that each end makes at most.
    pub claims: u32,
    /// What is broken.
    pub control: Option<Control>,
}

/// The searches that are run, by name.
#[must_use]
pub fn cases(is_long: bool) -> Vec<(&'static str, Setting)> {
    let shared = || Setting::one_fault(vec![(0, 1), (2, 1)]);
    let twice = || Setting::one_fault(vec![(0, 1), (0, 1)]);
    let mut cases = vec![("two groups that share a peer process", shared()), ("two groups connected twice", twice())];
    if is_long {
        cases.extend([
            ("two groups connected twice, one of which waits no longer", Setting { lates: 1, ..twice() }),
            ("two groups that share a peer process, a queue pair is destroyed", Setting { destroys: 1, ..shared() }),
            ("two groups connected twice, a queue pair is destroyed", Setting { destroys: 1, ..twice() }),
        ]);
    }
    cases
}

/// What is broken on purpose, and the steps of the shortest run that shows it.
#[must_use]
pub fn breaches() -> Vec<(Setting, usize)> {
    let of = |control| Setting { control: Some(control), ..Setting::one_fault(vec![(0, 1), (0, 1)]) };
    vec![(of(Control::NoGate), 15), (of(Control::WaitsForPeers), 10)]
}

impl Setting {
    /// One fault, nothing broken.
    #[must_use]
    pub const fn one_fault(pairs: Vec<(usize, usize)>) -> Self {
        Self { pairs, faults: 1, lates: 0, destroys: 0, claims: 2, control: None }
    }

    /// Searches it to its end.
    #[must_use]
    pub fn search(&self) -> Report<Step> {
        Explorer::new(self).liveness(Liveness::EndReachable).run()
    }

    /// Processes that there are.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.pairs.iter().map(|(one, other)| one.max(other) + 1).max().unwrap_or(0)
    }

    fn process_of(&self, end: usize) -> usize {
        let (one, other) = self.pairs[end / 2];
        [one, other][end % 2]
    }
}

impl Model for Setting {
    type State = World;
    type Action = Step;

    fn initial(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Step>) {
        world.steps(self, actions);
    }

    fn next(&self, world: &World, action: &Step) -> Option<World> {
        let mut next = world.clone();
        next.take(self, *action);
        Some(next)
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        vec![Invariant { name: "receives are in one place", broken: |_, world| world.wrong.map(str::to_string) }]
    }

    fn sometimes(&self) -> Vec<Sometimes<Self>> {
        let mut sights: Vec<Sometimes<Self>> = vec![Sometimes {
            name: "all have moved and nobody was left behind",
            seen: |setting, world| world.is_at_rest(setting) && world.has_moved() && world.is_whole(),
        }];
        if self.lates > 0 {
            sights.push(Sometimes {
                name: "one was left behind and the others moved",
                seen: |setting, world| world.is_at_rest(setting) && world.has_moved() && !world.is_whole(),
            });
        }
        sights
    }

    fn is_end(&self, world: &World) -> bool {
        let is_bound = |end: &world::End| end.is_seeking && end.claims >= self.claims;
        world.is_at_rest(self) || world.ends.iter().any(|end| is_bound(end)) || world.wrong.is_some()
    }

    fn lanes(&self) -> Vec<String> {
        (0..2 * self.pairs.len()).map(|end| format!("pair {} of process {}", end / 2, self.process_of(end))).collect()
    }

    fn draw(&self, before: &World, action: &Step, after: &World) -> Vec<Drawn> {
        let mut drawn = vec![match action {
            Step::Deliver(to) => {
                let message = format!("{:?}", before.letters[*to][0].message);
                let name = message.split([' ', '{']).next().unwrap_or_default().to_string();
                Drawn::Across(to ^ 1, *to, name)
            }
            Step::Probe(process) => Drawn::Line(format!("the other path answers all of process {process}")),
            Step::Late(process) => Drawn::Line(format!("process {process} waits for nobody any more")),
            Step::Fail(end) => Drawn::At(*end, "retries exceeded".to_string()),
            Step::Answer(end) => Drawn::At(*end, "path 1 answers".to_string()),
            Step::Fence(end) => Drawn::At(*end, "fenced".to_string()),
            Step::Post(end) => Drawn::At(*end, "posts the receives".to_string()),
            Step::Pass(end, timer) => Drawn::At(*end, format!("{timer:?} passes")),
            Step::Destroy(end) => Drawn::At(*end, "is destroyed".to_string()),
        }];
        for (nth, (before, after)) in before.ends.iter().zip(&after.ends).enumerate() {
            let states = [before, after].map(|end| end.machine.state().to_string());
            if states[0] != states[1] {
                drawn.push(Drawn::At(nth, format!("  now {}", states[1])));
            }
        }
        drawn
    }
}

impl World {
    /// Nothing is under way: who is not at an end is where its receives are, with its peer.
    fn is_at_rest(&self, setting: &Setting) -> bool {
        let is_over = |end: usize| matches!(self.ends[end].machine.state().stage, Stage::Dead | Stage::Gone);
        let runs = |nth: usize| {
            let (end, peer) = (&self.ends[nth], &self.ends[nth ^ 1]);
            let state = end.machine.state();
            let home = self.groups[setting.process_of(nth)].home();
            let is_calm = (state.stage, state.attempt) == (Stage::Running, Attempt::Idle) && !end.in_error;
            let is_placed = end.machine.path().0 == home.0 && end.takes_on.is_some();
            is_calm && is_placed && (is_over(nth ^ 1) || end.machine.tuple() == peer.machine.tuple())
        };
        self.groups.iter().all(|group| group.goal().is_none())
            && (0..self.ends.len()).all(|end| is_over(end) || runs(end))
    }

    fn has_moved(&self) -> bool {
        self.groups.iter().any(|group| group.home().0 == 1)
    }

    fn is_whole(&self) -> bool {
        self.ends.iter().all(|end| end.machine.state().stage == Stage::Running)
    }
}
