//! Errors that are committed on purpose: each shows that its report works.
//!
//! Pure: decides at which message or completion the error is committed; the sender commits it.

use crate::args::Commit;
use crate::predict::{Message, Plan};

/// The error to commit, and whether it was committed.
#[derive(Clone, Copy, Debug)]
pub struct Sabotage {
    /// Which.
    pub commit: Commit,
    /// The first message at which it may be.
    pub from: u64,
    /// The message, or the work request, at which it was.
    pub committed: Option<u64>,
}

impl Sabotage {
    /// The error to commit at message `number`, if it is the first that fits; `ends` are the messages before which the
    /// run stops or pauses.
    pub fn at_message(&mut self, number: u64, plan: &Plan, ends: [Option<u64>; 2]) -> Option<Commit> {
        if self.committed.is_some() || number < self.from {
            return None;
        }
        let last = ends.into_iter().flatten().any(|end| number + 1 >= end);
        if !self.fits(&plan.message(number), &plan.message(number + 1), last) {
            return None;
        }
        self.committed = Some(number);
        Some(self.commit)
    }

    /// Whether the error at message `here` would be seen, and told from every other.
    fn fits(&self, here: &Message, after: &Message, last: bool) -> bool {
        // Eight bytes or immediate data: a message that cannot be taken for another one.
        let telling = |message: &Message| message.len >= 8 || message.op.has_imm();
        let arrives = |message: &Message| message.op.consumes_receive() && telling(message);
        match self.commit {
            Commit::Loss => !last && (here.len >= 8 || arrives(here)),
            Commit::Duplicate => !last && arrives(here),
            Commit::Reorder => !last && arrives(here) && arrives(after),
            Commit::Damage | Commit::Stale => here.len >= 8,
            // Decided when a completion comes.
            Commit::CompletionTwice | Commit::CompletionNever => false,
        }
    }

    /// How often the completion of work request `counter` is to be counted: once, unless that is the error.
    pub fn times_counted(&mut self, counter: u64) -> u32 {
        let times = match self.commit {
            Commit::CompletionTwice => 2,
            Commit::CompletionNever => 0,
            Commit::Loss | Commit::Duplicate | Commit::Reorder | Commit::Damage | Commit::Stale => return 1,
        };
        if self.committed.is_some() || counter < self.from {
            return 1;
        }
        self.committed = Some(counter);
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Mode, Params};
    use crate::predict::Direction;

    fn sabotage(commit: Commit) -> Sabotage {
        Sabotage { commit, from: 100, committed: None }
    }

    fn plan(mode: Mode) -> Plan {
        let params = Params { modes: vec![mode], ..Params::for_tests() };
        Plan::new(&params, 0, Direction::ClientToServer)
    }

    fn committed(commit: Commit, mode: Mode, end: u64) -> Vec<u64> {
        let (mut sabotage, plan) = (sabotage(commit), plan(mode));
        (0..end).filter(|&number| sabotage.at_message(number, &plan, [Some(end), None]).is_some()).collect()
    }

    #[test]
    fn an_error_is_committed_once_and_not_too_early() {
        for commit in [Commit::Loss, Commit::Duplicate, Commit::Reorder, Commit::Damage, Commit::Stale] {
            let at = committed(commit, Mode::Mixed, 1000);
            assert!(at.len() == 1 && at[0] >= 100, "{commit:?}: {at:?}");
        }
    }

    #[test]
    fn what_could_not_be_seen_is_not_committed() {
        assert!(committed(Commit::Duplicate, Mode::Write, 1000).is_empty());
        assert!(committed(Commit::Reorder, Mode::Read, 1000).is_empty());
        assert!(committed(Commit::Reorder, Mode::WriteImm, 101).is_empty());
    }

    #[test]
    fn completions_are_counted_once_but_for_the_error() {
        let mut twice = sabotage(Commit::CompletionTwice);
        assert_eq!([99, 100, 101].map(|counter| twice.times_counted(counter)), [1, 2, 1]);
        let mut never = sabotage(Commit::CompletionNever);
        assert_eq!([99, 103, 104].map(|counter| never.times_counted(counter)), [1, 0, 1]);
        assert_eq!(sabotage(Commit::Loss).times_counted(100), 1);
    }
}
