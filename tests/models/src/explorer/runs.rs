//! Every state, or every maximal run, of a model, one after another: for models whose states or runs are counted or put into a table and not
//! judged one by one.

use std::collections::HashSet;

use super::{fingerprint, Model};

/// Calls `visit` with each state that can be reached, once. Says how many there are.
pub fn each_state<M: Model>(model: &M, mut visit: impl FnMut(&M::State)) -> u64 {
    let mut known = HashSet::new();
    let mut open = model.initial();
    let mut actions = Vec::new();
    while let Some(state) = open.pop() {
        if !known.insert(fingerprint::of(&state)) {
            continue;
        }
        visit(&state);
        actions.clear();
        model.actions(&state, &mut actions);
        open.extend(actions.iter().filter_map(|action| model.next(&state, action)));
    }
    known.len() as u64
}

/// Calls `visit` with the last state of each run that goes on until nothing is offered any more. Says how many there were.
///
/// The model has to have no cycles: runs that go on for ever are not found, they are waited for.
pub fn each<M: Model>(model: &M, mut visit: impl FnMut(&M::State)) -> u64 {
    let mut count = 0;
    let mut open = model.initial();
    let mut actions = Vec::new();
    while let Some(state) = open.pop() {
        actions.clear();
        model.actions(&state, &mut actions);
        let before = open.len();
        open.extend(actions.iter().filter_map(|action| model.next(&state, action)));
        if open.len() == before {
            count += 1;
            visit(&state);
        }
    }
    count
}
