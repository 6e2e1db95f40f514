//! Theorem 3, second part: who can agree with what. For a fixed program of `n` processes every schedule of every set of participants is run;
//! what one process has seen when it is done, its own name included, is a vertex, and an execution joins those of its participants. A rule
//! by which all decide the same, and the name of one who takes part, exists exactly if every connected component leaves a name to decide.
//!
//! The processes tell each other all that they have seen, so a component that leaves none is a proof for every program of as many steps of
//! that kind (Herlihy, "Wait-free Synchronization", has it for any number of steps).

use std::collections::HashMap;

/// One step of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes all that it has seen into its own register.
    Tell,
    /// Reads the register of the process so many behind it, in a circle.
    Look(usize),
    /// Adds 4 to the power of its own number to the shared word and sees what was there.
    FetchAdd,
    /// Takes the next of the shared queue, in which one item is WIN and the others LOSE.
    Dequeue,
    /// Swaps its own number in, if nobody has.
    CompareSwap,
}

/// What all schedules together allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Schedules.
    pub executions: u64,
    /// Different things that a process may have seen at the end.
    pub views: usize,
    /// Connected components.
    pub components: usize,
    /// They form a path: two have one neighbour each, all others two.
    pub is_path: bool,
    /// A rule exists.
    pub is_possible: bool,
}

/// What a process knows: its number and, in order, what its steps returned.
type Known = Vec<u64>;

#[derive(Clone)]
struct Shared {
    registers: Vec<u64>,
    sum: u64,
    taken: u64,
    winner: u64,
}

#[derive(Default)]
struct Complex {
    names: HashMap<(usize, Known), usize>,
    parents: Vec<usize>,
    allowed: Vec<u32>,
    neighbours: Vec<Vec<usize>>,
    executions: u64,
}

/// Runs a program of `processes` in every way.
#[must_use]
pub fn agreement(processes: usize, program: &[Step]) -> Agreement {
    let mut complex = Complex::default();
    let mut words: HashMap<(usize, Known), u64> = HashMap::new();
    for participants in 1_u32..1 << processes {
        let shared = Shared { registers: vec![0; processes], sum: 0, taken: 0, winner: 0 };
        let known = vec![Known::new(); processes];
        schedule(&mut complex, &mut words, program, participants, &shared, &known);
    }
    complex.judge()
}

fn schedule(
    complex: &mut Complex,
    words: &mut HashMap<(usize, Known), u64>,
    program: &[Step],
    participants: u32,
    shared: &Shared,
    known: &[Known],
) {
    let mut is_over = true;
    for process in (0..known.len()).filter(|process| participants >> process & 1 == 1) {
        let Some(step) = program.get(known[process].len()) else { continue };
        is_over = false;
        let (mut shared, mut known) = (shared.clone(), known.to_vec());
        let seen = perform(*step, process, &mut shared, &known[process], words);
        known[process].push(seen);
        schedule(complex, words, program, participants, &shared, &known);
    }
    if is_over {
        complex.execution(participants, known);
    }
}

fn perform(step: Step, me: usize, shared: &mut Shared, known: &Known, words: &mut HashMap<(usize, Known), u64>) -> u64 {
    let count = shared.registers.len();
    match step {
        Step::Tell => {
            let next = words.len() as u64 + 1;
            shared.registers[me] = *words.entry((me, known.clone())).or_insert(next);
            0
        }
        Step::Look(behind) => shared.registers[(me + behind) % count],
        Step::FetchAdd => {
            let before = shared.sum;
            shared.sum += 4_u64.pow(me as u32);
            before
        }
        Step::Dequeue => {
            shared.taken += 1;
            u64::from(shared.taken == 1)
        }
        Step::CompareSwap => {
            let before = shared.winner;
            if before == 0 {
                shared.winner = me as u64 + 1;
            }
            before
        }
    }
}

impl Complex {
    fn execution(&mut self, participants: u32, known: &[Known]) {
        self.executions += 1;
        let vertices: Vec<usize> = (0..known.len())
            .filter(|process| participants >> process & 1 == 1)
            .map(|process| self.vertex(process, &known[process]))
            .collect();
        for pair in vertices.windows(2) {
            for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                if !self.neighbours[one].contains(&other) {
                    self.neighbours[one].push(other);
                }
            }
            let (one, other) = (self.root(pair[0]), self.root(pair[1]));
            self.parents[one] = other;
            self.allowed[other] &= self.allowed[one];
        }
        let root = self.root(vertices[0]);
        self.allowed[root] &= participants;
    }

    fn vertex(&mut self, process: usize, known: &Known) -> usize {
        let next = self.names.len();
        let vertex = *self.names.entry((process, known.clone())).or_insert(next);
        if vertex == next {
            self.parents.push(next);
            self.allowed.push(u32::MAX);
            self.neighbours.push(Vec::new());
        }
        vertex
    }

    fn root(&self, mut vertex: usize) -> usize {
        while self.parents[vertex] != vertex {
            vertex = self.parents[vertex];
        }
        vertex
    }

    fn judge(&self) -> Agreement {
        let roots: Vec<usize> = (0..self.parents.len()).filter(|vertex| self.parents[*vertex] == *vertex).collect();
        let ends = self.neighbours.iter().filter(|neighbours| neighbours.len() == 1).count();
        let inner = self.neighbours.iter().filter(|neighbours| neighbours.len() == 2).count();
        Agreement {
            executions: self.executions,
            views: self.names.len(),
            components: roots.len(),
            is_path: roots.len() == 1 && ends == 2 && inner + ends == self.parents.len(),
            is_possible: roots.iter().all(|root| self.allowed[*root] != 0),
        }
    }
}
