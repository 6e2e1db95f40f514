//! Reduction by symmetry: where names of processes do not matter, one of all renamings stands for the rest.

/// Every permutation of `0..count`, the identity first.
#[must_use]
pub fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        all = all
            .into_iter()
            .flat_map(|prefix: Vec<usize>| {
                let rest: Vec<usize> = (0..count).filter(|item| !prefix.contains(item)).collect();
                rest.into_iter().map(move |item| [prefix.clone(), vec![item]].concat())
            })
            .collect();
    }
    all
}

/// The least of the renamings of a state. `rename` has to be a group's action, or two classes become one.
pub fn least<S: Ord>(permutations: &[Vec<usize>], rename: impl Fn(&[usize]) -> S) -> Option<S> {
    permutations.iter().map(|permutation| rename(permutation)).min()
}
