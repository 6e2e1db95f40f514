//! What passes through the queues of a device that breaks or refuses: which requests are outstanding, which completions
//! are made up, where a chain is cut. Pure but for the table of queue pairs; the hooks are in [`crate::datapath`].

use shift_abi::*;
use std::collections::{BTreeMap, VecDeque};

/// The send queue of one queue pair, as this library sees it.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Signalled requests that carry bytes and have not completed, oldest first.
    outstanding: VecDeque<u64>,
    /// How many of them succeeded.
    successes: u64,
    /// From here on nothing succeeds any more. Of the request that got the error no more is to be heard.
    broken: Option<u64>,
    /// It broke once: what its queue pair is connected to later is another incarnation.
    spent: bool,
    /// Chains of two and more requests so far.
    chains: u64,
}

/// What becomes of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on as it is.
    Pass,
    /// It goes on as the error.
    Break,
    /// It goes on as a flush.
    Flush,
    /// It was given out already.
    Drop,
}

impl Flow {
    pub(crate) fn posted(&mut self, wr_id: u64) {
        self.outstanding.push_back(wr_id);
    }

    /// A completion came; it is of this queue if its request is outstanding here. The first success behind `due` others
    /// is the one that breaks, unless [`Flow::breaks`] came before.
    pub(crate) fn completed(&mut self, wr_id: u64, success: bool, due: u64) -> Fate {
        let Some(at) = self.outstanding.iter().position(|&each| each == wr_id) else {
            return if self.broken == Some(wr_id) { Fate::Drop } else { Fate::Pass };
        };
        self.outstanding.remove(at);
        if self.broken.is_some() {
            return Fate::Flush;
        }
        if success && !self.spent && self.successes >= due {
            (self.broken, self.spent) = (Some(wr_id), true);
            return Fate::Break;
        }
        self.successes += u64::from(success);
        Fate::Pass
    }

    /// The request that gets the error, if `due` have succeeded and one is outstanding.
    pub(crate) fn breaks(&mut self, due: u64) -> Option<u64> {
        if self.spent || self.successes < due {
            return None;
        }
        self.broken = self.outstanding.pop_front();
        self.spent = self.broken.is_some();
        self.broken
    }

    /// The queue pair was moved to RESET: nothing of it is outstanding any more.
    pub(crate) fn reset(&mut self) {
        self.outstanding.clear();
        self.broken = None;
    }

    /// At which of `len` requests the next chain is refused, if it is.
    pub(crate) fn refuses(&mut self, every: u64, len: usize) -> Option<usize> {
        let behind_the_first = (len as u64).checked_sub(1).filter(|&count| count > 0)?;
        self.chains += 1;
        (self.chains.is_multiple_of(every)).then(|| 1 + (self.chains / every % behind_the_first) as usize)
    }
}

/// The flows of all queue pairs of the devices that break or refuse, by the address of the send CQ and the number.
pub(crate) type Flows = BTreeMap<(usize, u32), Flow>;

/// After how many successes a queue pair breaks: `least` to 2 `least` - 1, by its number. A hash without a key, so that a
/// run can be repeated.
pub(crate) const fn due(least: u64, qpn: u32) -> u64 {
    least + ((qpn as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % least
}

/// The completion of a broken queue pair's request.
pub(crate) fn failed(wr_id: u64, qp_num: u32, status: ibv_wc_status) -> ibv_wc {
    ibv_wc { wr_id, qp_num, status, ..ibv_wc::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(posted: u64) -> Flow {
        let mut flow = Flow::default();
        (0..posted).for_each(|wr_id| flow.posted(wr_id));
        flow
    }

    #[test]
    fn a_flow_breaks_once_at_its_oldest_request_and_nothing_succeeds_after_that() {
        let mut flow = flow(6);
        assert_eq!(flow.breaks(2), None);
        assert_eq!((flow.completed(0, true, 2), flow.completed(1, true, 2)), (Fate::Pass, Fate::Pass));
        assert_eq!(flow.breaks(2), Some(2));
        assert_eq!(flow.breaks(2), None);
        assert_eq!(flow.completed(2, true, 2), Fate::Drop);
        assert_eq!((flow.completed(3, true, 2), flow.completed(4, false, 2)), (Fate::Flush, Fate::Flush));
        assert_eq!(flow.completed(99, true, 2), Fate::Pass, "a receive, or a request without bytes");
        flow.reset();
        flow.posted(9);
        flow.posted(10);
        assert_eq!(flow.completed(9, true, 2), Fate::Pass, "connected anew it is whole again");
        assert_eq!(flow.breaks(2), None);
    }

    #[test]
    fn where_all_requests_complete_at_once_the_next_success_is_the_error() {
        let mut flow = flow(4);
        let fates: Vec<Fate> = (0..4).map(|wr_id| flow.completed(wr_id, true, 2)).collect();
        assert_eq!(fates, [Fate::Pass, Fate::Pass, Fate::Break, Fate::Flush]);
        assert_eq!(flow.breaks(2), None);
    }

    #[test]
    fn the_successes_due_are_spread() {
        let spread: Vec<u64> = (17..49).map(|qpn| due(4, qpn)).collect();
        assert!((4..8).all(|each| spread.contains(&each)), "{spread:?}");
    }

    #[test]
    fn every_nth_chain_is_refused_behind_its_first_request() {
        let mut flow = Flow::default();
        let refused: Vec<Option<usize>> = (0..8).map(|_| flow.refuses(2, 4)).collect();
        assert_eq!(refused, [None, Some(2), None, Some(3), None, Some(1), None, Some(2)]);
        assert_eq!((0..4).map(|_| flow.refuses(1, 1)).collect::<Vec<_>>(), [None; 4]);
    }
}
