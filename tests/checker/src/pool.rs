//! The receives of a shared receive queue. They belong to no queue pair until a message takes one, and they end in any order: which queue pair took one is
//! known from its completion, and in which order the messages of each queue pair came is judged by that one's receiver.

use crate::ground::Ground;
use crate::judge::Kind;
use crate::predict::{Queue, WrName};
use crate::receiver::Receiver;
use crate::report::Verdict;
use crate::verbs::{ReceiveRequest, Result, Srq};
use shift_abi::ibv_wc;
use std::collections::BTreeSet;

/// All receives of one end.
#[derive(Debug)]
pub struct Pool {
    srq: Srq,
    /// What was posted and has not completed: whose memory it is, and the how-manieth receive in that.
    posted: BTreeSet<(u16, u64)>,
}

impl Pool {
    /// Posts the receives that the queue pairs would have had each for itself.
    pub fn new(srq: Srq, ground: &Ground, receivers: &[Receiver]) -> Result<Self> {
        let mut pool = Self { srq, posted: BTreeSet::new() };
        let takes = (0..ground.params.qps).filter(|qp| ground.params.mode(*qp).takes_receives());
        for qp in takes.filter(|_| !receivers.is_empty()) {
            for counter in 0..ground.layout.receives() {
                pool.post(ground, qp, counter)?;
            }
        }
        Ok(pool)
    }

    /// Gives up the queue.
    pub fn into_srq(self) -> Srq {
        self.srq
    }

    fn post(&mut self, ground: &Ground, qp: u16, counter: u64) -> Result<()> {
        self.posted.insert((qp, counter));
        let at = ground.layout.receive_slot(qp, counter);
        let wr_id = ground.wr_id(Queue::Receive, qp, counter);
        let memory = Some((at, ground.layout.slot_bytes() as u32));
        self.srq.post_receive(&ground.shared, ReceiveRequest { wr_id, memory })
    }

    /// A success completion of the receive with this name, on the queue pair of this receiver.
    pub fn completed(
        &mut self,
        ground: &Ground,
        name: WrName,
        receiver: Option<&mut Receiver>,
        wc: &ibv_wc,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let (qp, counter) = (name.qp, name.counter);
        if !self.posted.remove(&(qp, counter)) {
            verdict.tally.count(Kind::CompletionTwice, || format!("shared receive {qp}/{counter}: {wc:?}"));
            return Ok(());
        }
        match receiver {
            Some(receiver) => receiver.took(ground, ground.layout.receive_slot(qp, counter), wc, verdict),
            None => verdict.tally.count(Kind::CompletionWrong, || format!("of no queue pair of this run: {wc:?}")),
        }
        self.post(ground, qp, counter + ground.layout.receives())
    }
}
