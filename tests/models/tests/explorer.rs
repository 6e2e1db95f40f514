//! The explorer on models whose answers are known by counting.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use shift_models::explorer::draw::{tree, Branch, Drawn};
use shift_models::explorer::symmetry::{least, permutations};
use shift_models::explorer::{runs, Explorer, Extent, Invariant, Limits, Liveness, Model, Sometimes};

/// `count` counters that each go from 0 to `top`, in any order.
struct Counters {
    count: usize,
    top: u8,
    /// Names do not matter.
    is_symmetric: bool,
    /// No sum may be that.
    forbidden: u8,
}

impl Counters {
    const fn new(count: usize, top: u8) -> Self {
        Self { count, top, is_symmetric: false, forbidden: u8::MAX }
    }
}

impl Model for Counters {
    type State = Vec<u8>;
    type Action = usize;

    fn initial(&self) -> Vec<Vec<u8>> {
        vec![vec![0; self.count]]
    }

    fn actions(&self, state: &Vec<u8>, actions: &mut Vec<usize>) {
        actions.extend((0..self.count).filter(|nth| state[*nth] < self.top));
    }

    fn next(&self, state: &Vec<u8>, action: &usize) -> Option<Vec<u8>> {
        let mut next = state.clone();
        next[*action] += 1;
        Some(next)
    }

    fn canonical(&self, state: Vec<u8>) -> Vec<u8> {
        if !self.is_symmetric {
            return state;
        }
        least(&permutations(self.count), |names| names.iter().map(|name| state[*name]).collect::<Vec<_>>()).unwrap()
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        vec![Invariant {
            name: "the sum is allowed",
            broken: |model, state| {
                let sum: u8 = state.iter().sum();
                (sum == model.forbidden).then(|| format!("it is {sum}"))
            },
        }]
    }

    fn sometimes(&self) -> Vec<Sometimes<Self>> {
        vec![
            Sometimes {
                name: "all are at the top",
                seen: |model, state| state.iter().all(|value| *value == model.top),
            },
            Sometimes { name: "one is beyond", seen: |model, state| state.iter().any(|value| *value > model.top) },
        ]
    }

    fn is_end(&self, state: &Vec<u8>) -> bool {
        state.iter().all(|value| *value == self.top)
    }

    fn draw(&self, _: &Vec<u8>, action: &usize, _: &Vec<u8>) -> Vec<Drawn> {
        vec![Drawn::Line(format!("counter {action}"))]
    }
}

#[test]
fn every_state_is_found_once_and_every_step_is_counted() {
    let report = Explorer::new(&Counters::new(4, 9)).run();
    assert_eq!((report.states, report.transitions, report.depth), (10_usize.pow(4), 4 * 9 * 1000, 36));
    assert_eq!(report.extent, Extent::Complete);
    assert!(report.bytes_per_state <= 24, "{}", report.bytes_per_state);
}

#[test]
fn of_symmetric_states_one_is_looked_at() {
    let report = Explorer::new(&Counters { is_symmetric: true, ..Counters::new(4, 9) }).run();
    assert_eq!(report.states, 715, "multisets of 4 out of 10");
}

#[test]
fn a_violation_is_told_by_a_shortest_run_in_names_that_do_not_change() {
    for is_symmetric in [false, true] {
        let model = Counters { is_symmetric, forbidden: 7, ..Counters::new(3, 9) };
        let report = Explorer::new(&model).run();
        let violation = report.violation.clone().unwrap();
        assert_eq!((violation.actions.len(), report.extent), (7, Extent::Violated(7)));
        let end = violation.actions.iter().fold(vec![0; 3], |state, action| model.next(&state, action).unwrap());
        assert_eq!(end.iter().sum::<u8>(), 7, "the actions are a run of the model");
        assert_eq!(violation.drawing.lines().count(), 7, "{}", violation.drawing);
        assert!(report.to_string().contains("the sum is allowed (it is 7)"), "{report}");
    }
}

#[test]
fn what_was_never_seen_is_named_and_what_was_has_its_depth() {
    let report = Explorer::new(&Counters::new(2, 3)).run();
    assert_eq!(report.sights, [("all are at the top", Some(6)), ("one is beyond", None)]);
    assert!(!report.is_proof() && report.violation.is_none());
    assert_eq!(report.unseen(), ["one is beyond"]);
}

#[test]
fn what_was_cut_is_not_called_complete() {
    let deep = Explorer::new(&Counters::new(4, 9)).limits(Limits { depth: 5, states: usize::MAX }).run();
    assert_eq!((deep.states, deep.extent), (126, Extent::CutAtDepth(5)), "sums up to 5 over 4 counters");
    let many = Explorer::new(&Counters::new(4, 9)).limits(Limits { depth: u32::MAX, states: 1000 }).run();
    assert!(matches!(many.extent, Extent::CutAtDepth(_)) && !many.is_proof());
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let model = Counters { forbidden: 31, ..Counters::new(5, 8) };
    let told = |workers| {
        let report = Explorer::new(&model).workers(workers).run();
        (report.states, report.transitions, report.depth, report.violation.unwrap().actions)
    };
    assert_eq!(told(1), told(2));
    assert_eq!(told(1), told(5));
}

/// A walk on numbers: from each to the numbers that are listed.
struct Walk {
    steps: &'static [&'static [usize]],
    ends: &'static [usize],
}

impl Model for Walk {
    type State = usize;
    type Action = usize;

    fn initial(&self) -> Vec<usize> {
        vec![0]
    }

    fn actions(&self, state: &usize, actions: &mut Vec<usize>) {
        actions.extend(self.steps[*state]);
    }

    fn next(&self, _: &usize, action: &usize) -> Option<usize> {
        Some(*action)
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        Vec::new()
    }

    fn is_end(&self, state: &usize) -> bool {
        self.ends.contains(state)
    }
}

fn verdict(steps: &'static [&'static [usize]], ends: &'static [usize], liveness: Liveness) -> Option<Vec<usize>> {
    Explorer::new(&Walk { steps, ends }).liveness(liveness).run().violation.map(|violation| violation.actions)
}

#[test]
fn a_state_without_a_way_to_an_end_is_found() {
    const TRAP: &[&[usize]] = &[&[1, 2], &[3], &[4], &[], &[2]];
    assert_eq!(verdict(TRAP, &[3], Liveness::EndReachable), Some(vec![2]), "2 and 4 lead only to each other");
    const LOOP: &[&[usize]] = &[&[1], &[0, 2], &[]];
    assert_eq!(verdict(LOOP, &[2], Liveness::EndReachable), None);
    assert_eq!(verdict(LOOP, &[2], Liveness::EveryRunEnds), Some(vec![]), "an unfair scheduler goes round");
}

#[test]
fn a_state_that_is_stuck_short_of_an_end_is_found() {
    const STUCK: &[&[usize]] = &[&[1, 2], &[], &[]];
    for liveness in [Liveness::EndReachable, Liveness::EveryRunEnds] {
        assert_eq!(verdict(STUCK, &[1], liveness), Some(vec![2]));
        assert_eq!(verdict(STUCK, &[1, 2], liveness), None);
    }
}

#[test]
fn every_maximal_run_is_visited() {
    let mut ends = 0;
    let count = runs::each(&Counters::new(3, 2), |state| ends += usize::from(state == &[2, 2, 2]));
    assert_eq!((count, ends), (90, 90), "6! / 2!^3 orders");
    assert_eq!(runs::each_state(&Counters::new(3, 2), |_| {}), 27);
}

/// Two machines, one message.
struct Letter;

impl Model for Letter {
    type State = u8;
    type Action = &'static str;

    fn initial(&self) -> Vec<u8> {
        vec![0]
    }

    fn actions(&self, state: &u8, actions: &mut Vec<&'static str>) {
        actions.extend(["writes", "LETTER", "answers"].get(usize::from(*state)));
    }

    fn next(&self, state: &u8, _: &&'static str) -> Option<u8> {
        Some(state + 1)
    }

    fn invariants(&self) -> Vec<Invariant<Self>> {
        vec![Invariant { name: "nobody answers", broken: |_, state| (*state == 3).then(String::new) }]
    }

    fn lanes(&self) -> Vec<String> {
        vec!["A".to_string(), "B".to_string()]
    }

    fn draw(&self, _: &u8, action: &&'static str, after: &u8) -> Vec<Drawn> {
        vec![match after {
            1 => Drawn::At(0, (*action).to_string()),
            2 => Drawn::Across(0, 1, (*action).to_string()),
            _ => Drawn::At(1, (*action).to_string()),
        }]
    }
}

#[test]
fn a_conversation_is_drawn_in_two_columns_with_arrows() {
    let drawing = Explorer::new(&Letter).run().violation.unwrap().drawing;
    let lines: Vec<&str> = drawing.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["A", "B"]);
    assert!(lines[1].ends_with("1  writes"));
    assert!(lines[2].contains("2  LETTER ---") && lines[2].ends_with('>'));
    assert_eq!(lines[3].find("answers"), lines[0].find('B'));
}

#[test]
fn a_tree_is_drawn_with_its_branches() {
    let leaf = |label: &str| Branch { label: label.to_string(), children: Vec::new() };
    let root = Branch {
        label: "root".into(),
        children: vec![Branch { label: "a".into(), children: vec![leaf("b")] }, leaf("c")],
    };
    assert_eq!(tree(&root), "root\n├─ a\n│  └─ b\n└─ c\n");
}
