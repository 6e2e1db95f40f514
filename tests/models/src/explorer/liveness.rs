//! The graph of a search, and how runs in it end.

/// Steps between numbered states.
#[derive(Debug, Default)]
pub(super) struct Graph {
    edges: Vec<(u32, u32)>,
    ends: Vec<bool>,
}

impl Graph {
    pub(super) fn state(&mut self, is_end: bool) {
        self.ends.push(is_end);
    }

    pub(super) fn edge(&mut self, from: u32, to: u32) {
        if from != to {
            self.edges.push((from, to));
        }
    }

    /// The first state from which no end can be reached. The last `unexpanded` ones may lead anywhere, so they count as ends.
    pub(super) fn without_end(&self, unexpanded: usize) -> Option<u32> {
        let count = self.ends.len();
        let before = Neighbours::of(count, self.edges.iter().map(|(from, to)| (*to, *from)));
        let mut is_good = self.ends.clone();
        is_good[count - unexpanded..].fill(true);
        let mut open: Vec<u32> = (0..count as u32).filter(|state| is_good[*state as usize]).collect();
        while let Some(state) = open.pop() {
            for from in before.of_state(state) {
                if !std::mem::replace(&mut is_good[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        is_good.iter().position(|good| !good).map(|state| state as u32)
    }

    /// The first state, not an end, that is stuck or that lies on a cycle, or behind one, of such states.
    pub(super) fn on_a_cycle_or_stuck(&self, unexpanded: usize) -> Option<(u32, &'static str)> {
        let count = self.ends.len();
        let open_end = |state: u32| self.ends[state as usize] || state as usize >= count - unexpanded;
        let inner = || self.edges.iter().filter(|(from, to)| !open_end(*from) && !open_end(*to));
        let mut has_step = vec![false; count];
        self.edges.iter().for_each(|(from, _)| has_step[*from as usize] = true);
        if let Some(stuck) = (0..count as u32).find(|state| !open_end(*state) && !has_step[*state as usize]) {
            return Some((stuck, "it is stuck short of an end"));
        }
        let after = Neighbours::of(count, inner().copied());
        let mut arriving = vec![0_u32; count];
        inner().for_each(|(_, to)| arriving[*to as usize] += 1);
        let mut free: Vec<u32> = (0..count as u32).filter(|state| arriving[*state as usize] == 0).collect();
        while let Some(state) = free.pop() {
            for to in after.of_state(state) {
                arriving[*to as usize] -= 1;
                if arriving[*to as usize] == 0 {
                    free.push(*to);
                }
            }
        }
        arriving
            .iter()
            .position(|count| *count > 0)
            .map(|state| (state as u32, "a run may go in a circle here for ever"))
    }
}

/// Edges by where they begin.
struct Neighbours {
    first: Vec<u32>,
    to: Vec<u32>,
}

impl Neighbours {
    fn of(count: usize, edges: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut first = vec![0_u32; count + 1];
        edges.clone().for_each(|(from, _)| first[from as usize + 1] += 1);
        for state in 0..count {
            first[state + 1] += first[state];
        }
        let mut next = first.clone();
        let mut to = vec![0; *first.last().unwrap_or(&0) as usize];
        for (from, target) in edges {
            to[next[from as usize] as usize] = target;
            next[from as usize] += 1;
        }
        Self { first, to }
    }

    fn of_state(&self, state: u32) -> &[u32] {
        &self.to[self.first[state as usize] as usize..self.first[state as usize + 1] as usize]
    }
}
