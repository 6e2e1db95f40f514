//! Accounting: what came, set against what had to come.
//!
//! Pure: no verbs, no clock, no memory but its own. Each kind of report ([`Kind`]) has a test here that provokes it and
//! a `--commit` switch that provokes it between two hosts.

use crate::predict::{Plan, Stream, POISON};
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use std::ops::{Range, RangeInclusive};

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message never came.
    Loss,
    /// A message came twice.
    Duplicate,
    /// A message came after its successor.
    Reorder,
    /// Bytes, length or immediate data are not those of the message.
    Damage,
    /// Memory was written after what was in it had been consumed, or an old message lies where a newer one must.
    Stale,
    /// A work request completed twice, or completed without having been signalled.
    CompletionTwice,
    /// A signalled work request or a receive never completed.
    CompletionNever,
    /// A completion came after that of a later work request.
    CompletionReorder,
    /// A completion of nothing that was ever posted, or with wrong fields.
    CompletionWrong,
}

/// How often each kind was seen, and the first of them in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Messages that never came.
    pub loss: u64,
    /// Messages that came twice.
    pub duplicate: u64,
    /// Messages that came late.
    pub reorder: u64,
    /// Messages that came damaged.
    pub damage: u64,
    /// Writes to consumed memory.
    pub stale: u64,
    /// Completions that came twice or unasked.
    pub completion_twice: u64,
    /// Completions that never came.
    pub completion_never: u64,
    /// Completions that came late.
    pub completion_reorder: u64,
    /// Completions of nothing, or with wrong fields.
    pub completion_wrong: u64,
    /// The first findings in words.
    pub findings: Vec<String>,
}

impl Tally {
    /// Findings told in words; more are counted only.
    const TOLD: usize = 20;

    /// Counts one finding.
    pub fn count(&mut self, kind: Kind, finding: impl FnOnce() -> String) {
        let counter = match kind {
            Kind::Loss => &mut self.loss,
            Kind::Duplicate => &mut self.duplicate,
            Kind::Reorder => &mut self.reorder,
            Kind::Damage => &mut self.damage,
            Kind::Stale => &mut self.stale,
            Kind::CompletionTwice => &mut self.completion_twice,
            Kind::CompletionNever => &mut self.completion_never,
            Kind::CompletionReorder => &mut self.completion_reorder,
            Kind::CompletionWrong => &mut self.completion_wrong,
        };
        *counter += 1;
        if self.findings.len() < Self::TOLD {
            self.findings.push(format!("{kind:?}: {}", finding()));
        }
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// The arrivals of one flow's receive-consuming messages.
#[derive(Debug, Default)]
pub struct Arrivals {
    next: u64,
    missing: BTreeSet<u64>,
}

impl Arrivals {
    /// Message `number` arrived; `expected` are the receive-consuming messages from the own [`next`](Self::next) on.
    pub fn arrived(&mut self, number: u64, expected: impl Iterator<Item = u64>) -> Result<(), Kind> {
        if number >= self.next {
            self.missing.extend(expected.take_while(|&skipped| skipped < number));
            self.next = number + 1;
            Ok(())
        } else if self.missing.remove(&number) {
            Err(Kind::Reorder)
        } else {
            Err(Kind::Duplicate)
        }
    }

    /// Every message below this one arrived or is missing.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// The messages that were overtaken and never came.
    pub fn missing(&self) -> impl Iterator<Item = u64> + '_ {
        self.missing.iter().copied()
    }
}

/// One posted work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The message that it moves; of a receive, its own number.
    pub message: u64,
    /// Whether it must complete.
    pub signalled: bool,
    /// The length that its completion may state, in bytes.
    pub len: u32,
}

/// The completions of one queue: exactly one per signalled work request, in posting order.
#[derive(Debug, Default)]
pub struct Completions {
    first: u64,
    outstanding: VecDeque<Posted>,
    overtaken: BTreeSet<u64>,
}

/// What a completion means.
#[derive(Debug, PartialEq, Eq)]
pub struct Retired {
    /// What is wrong with it, if anything.
    pub fault: Option<Kind>,
    /// The work requests that this completion retires, in posting order.
    pub posted: Vec<Posted>,
}

impl Completions {
    /// A work request was posted; its counter on this queue is returned.
    pub fn posted(&mut self, posted: Posted) -> u64 {
        self.outstanding.push_back(posted);
        self.first + self.outstanding.len() as u64 - 1
    }

    /// The counters of the work requests that are not retired.
    #[must_use]
    pub fn outstanding(&self) -> Range<u64> {
        self.first..self.first + self.outstanding.len() as u64
    }

    /// Whether the last one posted is not signalled and not retired.
    #[must_use]
    pub fn ends_unsignalled(&self) -> bool {
        self.outstanding.back().is_some_and(|posted| !posted.signalled)
    }

    /// The work request with this counter, if it is not retired.
    #[must_use]
    pub fn get(&self, counter: u64) -> Option<&Posted> {
        self.outstanding.get(usize::try_from(counter.checked_sub(self.first)?).ok()?)
    }

    /// The message of the oldest work request that is not retired.
    #[must_use]
    pub fn oldest_message(&self) -> Option<u64> {
        self.outstanding.front().map(|posted| posted.message)
    }

    /// The messages of all work requests that are not retired.
    pub fn messages(&self) -> impl Iterator<Item = u64> + '_ {
        self.outstanding.iter().map(|posted| posted.message)
    }

    /// Whether any completion is still to come.
    #[must_use]
    pub fn awaits_any(&self) -> bool {
        self.outstanding.iter().any(|posted| posted.signalled)
    }

    /// The signalled work requests whose completion was overtaken and has not come.
    pub fn overtaken(&self) -> impl Iterator<Item = u64> + '_ {
        self.overtaken.iter().copied()
    }

    /// A success completion of the work request with this counter.
    pub fn succeeded(&mut self, counter: u64) -> Retired {
        self.completed(counter, |posted| posted.signalled)
    }

    /// An error completion: work requests that are not signalled have them too.
    pub fn failed(&mut self, counter: u64) -> Retired {
        self.completed(counter, |_| true)
    }

    fn completed(&mut self, counter: u64, may: impl Fn(&Posted) -> bool) -> Retired {
        let nothing = |kind| Retired { fault: Some(kind), posted: Vec::new() };
        if counter < self.first {
            let late = self.overtaken.remove(&counter);
            return nothing(if late { Kind::CompletionReorder } else { Kind::CompletionTwice });
        }
        let place = (counter - self.first) as usize;
        match self.outstanding.get(place) {
            None => return nothing(Kind::CompletionWrong),
            Some(posted) if !may(posted) => return nothing(Kind::CompletionTwice),
            Some(_) => {}
        }
        let posted: Vec<Posted> = self.outstanding.drain(..=place).collect();
        let overtaken = (self.first..counter).zip(&posted).filter(|(_, posted)| posted.signalled);
        self.overtaken.extend(overtaken.map(|(counter, _)| counter));
        self.first = counter + 1;
        Retired { fault: None, posted }
    }

    /// The signalled work requests that did not complete, now that nothing more will come.
    pub fn never(&self) -> impl Iterator<Item = u64> + '_ {
        let waiting = (self.first..).zip(&self.outstanding).filter(|(_, posted)| posted.signalled);
        self.overtaken.iter().copied().chain(waiting.map(|(counter, _)| counter))
    }
}

/// What lies in a piece of memory that had to hold a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The message, and poison behind it.
    Right,
    /// Poison only: nothing was ever written.
    Untouched,
    /// Another message of the flow.
    Other(u64),
    /// Something else, first wrong at this byte.
    Wrong(usize),
}

/// Judges `seen`, a whole slot, that had to hold `len` bytes of a stream from a byte of it on, and poison behind them.
/// `others` are the messages that could lie there instead.
pub fn content(
    (expected, from): (Stream, u64),
    len: usize,
    seen: &[u8],
    plan: &Plan,
    others: impl Iterator<Item = u64>,
) -> Content {
    let (message, guard) = seen.split_at(len.min(seen.len()));
    let in_message = expected.first_difference(from, message);
    let Some(at) = in_message.or_else(|| first_unpoisoned(guard).map(|at| len + at)) else {
        return Content::Right;
    };
    if first_unpoisoned(seen).is_none() {
        return Content::Untouched;
    }
    // Eight bytes do not agree by chance.
    let word = seen.get(at..at + 8);
    let same = |other: &u64| word.is_some_and(|word| plan.payload(*other).first_difference(at as u64, word).is_none());
    let mut others = others;
    match others.find(same) {
        Some(other) => Content::Other(other),
        None => Content::Wrong(at),
    }
}

/// How many bytes of a message that may have been begun lie in its slot, with poison behind them, at least and at most: a byte of the message
/// may be what poison is. Else the first wrong one.
pub fn begun(expected: Stream, len: usize, seen: &[u8]) -> Result<RangeInclusive<usize>, usize> {
    let (message, _) = seen.split_at(len.min(seen.len()));
    let most = expected.first_difference(0, message).unwrap_or(message.len());
    let (placed, behind) = seen.split_at(most);
    let least = placed.iter().rposition(|&byte| byte != POISON).map_or(0, |last| last + 1);
    first_unpoisoned(behind).map_or(Ok(least..=most), |at| Err(most + at))
}

/// Where memory that had to be poison is not, if anywhere.
#[must_use]
pub fn first_unpoisoned(seen: &[u8]) -> Option<usize> {
    const CLEAN: [u8; 256] = [POISON; 256];
    for (block, chunk) in seen.chunks(CLEAN.len()).enumerate() {
        if CLEAN.get(..chunk.len()) != Some(chunk) {
            return chunk.iter().position(|&byte| byte != POISON).map(|at| block * CLEAN.len() + at);
        }
    }
    None
}

/// The longest time between two successes, of a clock in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Gap {
    last: Option<u64>,
    longest: Option<Range<u64>>,
}

impl Gap {
    /// A work request succeeded.
    pub fn success(&mut self, now_ns: u64) {
        if let Some(last) = self.last {
            let longest = self.longest.as_ref().map_or(0, |gap| gap.end - gap.start);
            if now_ns.saturating_sub(last) > longest {
                self.longest = Some(last..now_ns);
            }
        }
        self.last = Some(now_ns);
    }

    /// An intended pause ends: the time before it counts for nothing.
    pub fn restart(&mut self, now_ns: u64) {
        self.last = Some(now_ns);
    }

    /// From the last success before the longest gap to the first one after it.
    #[must_use]
    pub fn longest(&self) -> Option<Range<u64>> {
        self.longest.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Mode, Params};
    use crate::predict::Direction;

    fn arrive(numbers: &[u64]) -> (Tally, Vec<u64>) {
        let (mut arrivals, mut tally) = (Arrivals::default(), Tally::default());
        for &number in numbers {
            if let Err(kind) = arrivals.arrived(number, arrivals.next()..) {
                tally.count(kind, || format!("message {number}"));
            }
        }
        (tally, arrivals.missing().collect())
    }

    fn queue(signalled: &[bool]) -> Completions {
        let mut queue = Completions::default();
        for (message, &signalled) in (0..).zip(signalled) {
            assert_eq!(queue.posted(Posted { message, signalled, len: 0 }), message);
        }
        queue
    }

    #[test]
    fn messages_in_order_are_right() {
        let (tally, missing) = arrive(&[0, 1, 2, 3]);
        assert!(tally.is_clean() && missing.is_empty());
    }

    #[test]
    fn a_message_that_never_comes_is_a_loss() {
        let (tally, missing) = arrive(&[0, 1, 3, 4]);
        assert!(tally.is_clean());
        assert_eq!(missing, [2]);
    }

    #[test]
    fn a_message_that_comes_twice_is_a_duplicate() {
        let (tally, missing) = arrive(&[0, 1, 1, 2]);
        assert_eq!((tally.duplicate, tally.reorder, missing.len()), (1, 0, 0));
    }

    #[test]
    fn a_message_that_is_overtaken_is_a_reordering_and_no_loss() {
        let (tally, missing) = arrive(&[0, 2, 1, 3]);
        assert_eq!((tally.duplicate, tally.reorder, missing.len()), (0, 1, 0));
    }

    #[test]
    fn what_is_not_expected_to_arrive_is_not_missed() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.arrived(6, [0, 2, 4, 6].into_iter()), Ok(()));
        assert_eq!(arrivals.missing().collect::<Vec<_>>(), [0, 2, 4]);
    }

    #[test]
    fn completions_in_order_retire_the_unsignalled_before_them() {
        let mut queue = queue(&[false, false, true, true]);
        let retired = queue.succeeded(2);
        assert_eq!(retired.fault, None);
        assert_eq!(retired.posted.iter().map(|posted| posted.message).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(queue.outstanding(), 3..4);
        assert_eq!(queue.succeeded(3).posted.len(), 1);
        assert_eq!(queue.never().count(), 0);
    }

    #[test]
    fn a_second_completion_is_told() {
        let mut queue = queue(&[true, true]);
        assert_eq!(queue.succeeded(0).fault, None);
        assert_eq!(queue.succeeded(0).fault, Some(Kind::CompletionTwice));
    }

    #[test]
    fn a_success_of_what_was_not_signalled_is_told_and_an_error_is_not() {
        let mut queue = queue(&[false, true]);
        assert_eq!(queue.succeeded(0).fault, Some(Kind::CompletionTwice));
        assert_eq!(queue.failed(0).fault, None);
    }

    #[test]
    fn a_completion_that_never_comes_is_told() {
        let mut queue = queue(&[true, true, true, true]);
        assert_eq!(queue.succeeded(0).fault, None);
        assert_eq!(queue.succeeded(2).fault, None);
        assert_eq!(queue.never().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_late_completion_is_a_reordering_and_came_after_all() {
        let mut queue = queue(&[true, true]);
        assert_eq!(queue.succeeded(1).fault, None);
        assert_eq!(queue.succeeded(0).fault, Some(Kind::CompletionReorder));
        assert_eq!(queue.never().count(), 0);
    }

    #[test]
    fn a_completion_of_nothing_is_told() {
        assert_eq!(queue(&[true]).succeeded(1).fault, Some(Kind::CompletionWrong));
    }

    fn slot(number: u64, len: usize) -> (Plan, Vec<u8>) {
        let params = Params { modes: vec![Mode::Write], ..Params::for_tests() };
        let plan = Plan::new(&params, 0, Direction::ClientToServer);
        let mut slot = vec![POISON; 600];
        plan.payload(number).fill(0, &mut slot[..len]);
        (plan, slot)
    }

    fn judged(plan: &Plan, slot: &[u8], number: u64, len: usize) -> Content {
        content((plan.payload(number), 0), len, slot, plan, [number.wrapping_sub(32), number + 32].into_iter())
    }

    #[test]
    fn the_right_bytes_and_clean_poison_are_right() {
        for len in [0, 1, 8, 511, 600] {
            let (plan, slot) = slot(40, len);
            assert_eq!(judged(&plan, &slot, 40, len), Content::Right);
        }
    }

    #[test]
    fn an_untouched_slot_is_told_from_a_damaged_one() {
        let (plan, clean) = slot(40, 0);
        assert_eq!(judged(&plan, &clean, 40, 300), Content::Untouched);
        let (plan, mut hit) = slot(40, 300);
        hit[299] ^= 1;
        assert_eq!(judged(&plan, &hit, 40, 300), Content::Wrong(299));
    }

    #[test]
    fn a_message_may_be_begun_but_not_damaged() {
        let (plan, slot) = slot(40, 300);
        let begun = |slot: &[u8]| begun(plan.payload(40), 300, slot);
        assert_eq!(begun(&slot).map(|placed| *placed.end()), Ok(300));
        let mut part = slot.clone();
        part[256..].fill(POISON);
        let placed = begun(&part);
        // The first byte that is missing may be the poison's own value.
        assert!(placed.is_ok_and(|placed| placed.contains(&256)));
        assert_eq!(begun(&[POISON; 600]).map(|placed| *placed.start()), Ok(0));
        part[299] = slot[299] ^ 1;
        assert!(begun(&part).is_err());
    }

    #[test]
    fn a_message_that_begins_like_poison_is_not_taken_for_begun_and_one_that_ends_like_it_not_for_cut_off() {
        let (plan, _) = slot(0, 0);
        let of = |wanted: usize| {
            let byte = |number: u64| {
                let mut bytes = [0; 300];
                plan.payload(number).fill(0, &mut bytes);
                bytes[wanted]
            };
            (0..100_000).find(|number| byte(*number) == POISON).expect("one in 256")
        };
        assert_eq!(begun(plan.payload(of(0)), 300, &[POISON; 600]).map(|placed| *placed.start()), Ok(0));
        let number = of(299);
        let (plan, whole) = slot(number, 300);
        assert_eq!(begun(plan.payload(number), 300, &whole).map(|placed| *placed.end()), Ok(300));
    }

    #[test]
    fn bytes_behind_the_message_are_damage() {
        let (plan, mut slot) = slot(40, 300);
        slot[300] = 0;
        assert_eq!(judged(&plan, &slot, 40, 300), Content::Wrong(300));
    }

    #[test]
    fn an_old_message_in_the_slot_is_named() {
        let (plan, slot) = slot(8, 300);
        assert_eq!(judged(&plan, &slot, 40, 300), Content::Other(8));
        assert_eq!(judged(&plan, &slot, 40, 200), Content::Other(8));
    }

    #[test]
    fn the_longest_gap_is_between_the_successes_around_it() {
        let mut gap = Gap::default();
        assert_eq!(gap.longest(), None);
        for now in [10, 20, 500, 510] {
            gap.success(now);
        }
        gap.restart(9000);
        gap.success(9100);
        assert_eq!(gap.longest(), Some(20..500));
    }
}
