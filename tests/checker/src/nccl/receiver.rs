//! The end of a lane that gets the data: clears the peer to send, is notified, flushes, and checks.

use super::memory::{Lane, Place, ENTRY_BYTES};
use crate::judge::{first_unpoisoned, Kind};
use crate::predict::{Queue, WrName, POISON};
use crate::report::Verdict;
use crate::verbs::{Qp, ReceiveRequest, SendRequest, VerbError};
use shift_abi::*;
use std::collections::VecDeque;

/// The receiving end of a lane.
#[derive(Debug)]
pub struct LaneReceiver {
    lane: Lane,
    /// Messages below are allowed.
    cleared: u64,
    /// Receives below are posted.
    posted: u64,
    /// Messages below were notified.
    notified: u64,
    /// Messages below are visible and checked.
    done: u64,
    /// Counters of signalled entries that have not completed; the others are retired with the next of these.
    awaited: VecDeque<u64>,
    /// Messages that are being flushed.
    flushing: VecDeque<u64>,
}

impl LaneReceiver {
    /// Of a lane.
    #[must_use]
    pub fn new(lane: Lane) -> Self {
        let (awaited, flushing) = (VecDeque::new(), VecDeque::new());
        Self { lane, cleared: 0, posted: 0, notified: 0, done: 0, awaited, flushing }
    }

    /// Which lane.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.lane.number
    }

    /// Whether everything came and is checked.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == self.lane.params.messages && self.awaited.is_empty()
    }

    /// Posts the first receives, before the peer may send.
    ///
    /// # Errors
    /// A post was refused.
    pub fn prepare(&mut self, place: &Place, qps: &mut [Qp]) -> Result<(), VerbError> {
        let Some(qp) = qps.get_mut(usize::from(self.lane.number)) else { return Ok(()) };
        while self.posted < self.window() {
            self.post_receive(place, qp)?;
        }
        Ok(())
    }

    fn window(&self) -> u64 {
        (self.done + u64::from(self.lane.params.depth)).min(self.lane.params.messages)
    }

    fn post_receive(&mut self, place: &Place, qp: &Qp) -> Result<(), VerbError> {
        let name = WrName { queue: Queue::Receive, qp: self.lane.number, counter: self.posted };
        self.posted += 1;
        qp.post_receive(&place.local, ReceiveRequest { wr_id: name.wr_id(self.lane.params.seed), memory: None })
    }

    /// Clears the peer to send what there is room for; whether anything was posted.
    ///
    /// # Errors
    /// A post was refused.
    pub fn step(&mut self, place: &Place, qp: &mut Qp) -> Result<bool, String> {
        let mut moved = false;
        // An entry that is neither signalled nor retired stays in the queue until a later one completes.
        while self.cleared < self.window() && self.awaited.len() < 2 {
            if self.posted <= self.cleared {
                self.post_receive(place, qp).map_err(|e| e.to_string())?;
            }
            self.clear(place, qp)?;
            moved = true;
        }
        Ok(moved)
    }

    /// The entry's slot is used again though the NIC may not have told that it is done with it: that the message came proves it.
    fn clear(&mut self, place: &Place, qp: &mut Qp) -> Result<(), String> {
        let (lane, message) = (&self.lane, self.cleared);
        let addr = place.shared.addr(place.data(lane.number, message));
        let at = place.entry(lane.number, message);
        place.local.write(at, &lane.entry(message, addr, place.shared.rkey()));
        let depth = u64::from(lane.params.depth);
        let signalled = message % depth == depth - 1 || message + 1 == lane.params.messages;
        let name = WrName { queue: Queue::Send, qp: lane.number, counter: message };
        let request = SendRequest {
            wr_id: name.wr_id(lane.params.seed),
            opcode: IBV_WR_RDMA_WRITE,
            flags: if signalled { IBV_SEND_SIGNALED } else { 0 },
            at,
            len: ENTRY_BYTES,
            sges: 1,
            imm: 0,
            remote_addr: lane.peer.addr + at,
            rkey: lane.peer.rkey,
            operands: (0, 0),
        };
        qp.post_send(&place.local, &[request]).map_err(|(_, e)| format!("lane {}: {e}", lane.number))?;
        if signalled {
            self.awaited.push_back(message);
        }
        self.cleared += 1;
        Ok(())
    }

    /// A success completion of the lane's queue pair.
    ///
    /// # Errors
    /// The flush was refused.
    pub fn completed(
        &mut self,
        wc: &ibv_wc,
        place: &Place,
        flush_qp: &mut Qp,
        verdict: &mut Verdict,
    ) -> Result<(), String> {
        let name = WrName::from_wr_id(wc.wr_id, self.lane.params.seed);
        match name.queue {
            Queue::Send => {
                let due = self.awaited.pop_front();
                if due != Some(name.counter) || wc.opcode != IBV_WC_RDMA_WRITE {
                    let told = || format!("lane {}: entry {}, awaited {due:?}", self.lane.number, name.counter);
                    verdict.tally.count(Kind::CompletionWrong, told);
                }
                Ok(())
            }
            Queue::Receive => self.notified_by(wc, name, place, flush_qp, verdict),
        }
    }

    fn notified_by(
        &mut self,
        wc: &ibv_wc,
        name: WrName,
        place: &Place,
        flush_qp: &mut Qp,
        verdict: &mut Verdict,
    ) -> Result<(), String> {
        let (lane, message) = (&self.lane, self.notified);
        if name.counter != message || name.qp != lane.number || wc.opcode != IBV_WC_RECV_RDMA_WITH_IMM {
            let told = || format!("lane {}: receive {name:?} and not {message}", lane.number);
            verdict.tally.count(Kind::CompletionWrong, told);
        }
        let len = if lane.is_split(message) { 0 } else { lane.len(message) };
        let imm = u32::from_be(wc.imm.raw());
        if imm != lane.imm(message) || wc.byte_len != len {
            let near = message.saturating_sub(64)..message + 64;
            let kind = match near.clone().find(|other| lane.imm(*other) == imm) {
                Some(other) if other < message => Kind::Duplicate,
                Some(other) if other > message => Kind::Loss,
                Some(_) | None => Kind::Damage,
            };
            verdict.tally.count(kind, || format!("lane {} message {message}: imm {imm:#x}", lane.number));
        }
        self.notified += 1;
        self.flush(message, place, flush_qp)
    }

    /// One byte, by a queue pair that is connected to itself.
    fn flush(&mut self, message: u64, place: &Place, flush_qp: &mut Qp) -> Result<(), String> {
        let lane = &self.lane;
        let name = WrName { queue: Queue::Send, qp: lane.number, counter: message };
        let request = SendRequest {
            wr_id: name.wr_id(lane.params.seed),
            opcode: IBV_WR_RDMA_READ,
            flags: IBV_SEND_SIGNALED,
            at: place.landing(lane.number),
            len: 1,
            sges: 1,
            imm: 0,
            remote_addr: place.shared.addr(place.data(lane.number, message)),
            rkey: place.shared.rkey(),
            operands: (0, 0),
        };
        self.flushing.push_back(message);
        flush_qp.post_send(&place.local, &[request]).map_err(|(_, e)| format!("lane {}: flush: {e}", lane.number))
    }

    /// A success completion of the queue pair that flushes.
    pub fn flushed(&mut self, wc: &ibv_wc, place: &Place, verdict: &mut Verdict) {
        let name = WrName::from_wr_id(wc.wr_id, self.lane.params.seed);
        let due = self.flushing.pop_front();
        if due != Some(name.counter) || wc.opcode != IBV_WC_RDMA_READ {
            let told = || format!("lane {}: flush {}, awaited {due:?}", self.lane.number, name.counter);
            verdict.tally.count(Kind::CompletionWrong, told);
        }
        let Some(message) = due else { return };
        self.check(message, place, verdict);
        place.shared.fill(place.data(self.lane.number, message), place.slot_bytes(), POISON);
        verdict.received += 1;
        verdict.bytes += u64::from(self.lane.len(message));
        self.done = message + 1;
    }

    fn check(&self, message: u64, place: &Place, verdict: &mut Verdict) {
        let lane = &self.lane;
        let mut slot = vec![0; place.slot_bytes() as usize];
        place.shared.read(place.data(lane.number, message), &mut slot);
        let (data, behind) = slot.split_at(lane.len(message) as usize);
        let wrong = lane.payload(message).first_difference(0, data);
        let wrong = wrong.or_else(|| first_unpoisoned(behind).map(|at| data.len() + at));
        let Some(at) = wrong else { return };
        let kind = if first_unpoisoned(&slot).is_none() { Kind::Loss } else { Kind::Damage };
        verdict.tally.count(kind, || format!("lane {} message {message}: wrong at byte {at}", lane.number));
    }

    /// At the end everything is consumed: memory that is no poison was written again.
    pub fn settled(&self, place: &Place, verdict: &mut Verdict) {
        let mut slot = vec![0; place.slot_bytes() as usize];
        for message in 0..u64::from(self.lane.params.depth) {
            place.shared.read(place.data(self.lane.number, message), &mut slot);
            if let Some(at) = first_unpoisoned(&slot) {
                let told = || format!("lane {} slot {message}: written again at byte {at}", self.lane.number);
                verdict.tally.count(Kind::Stale, told);
            }
        }
    }

    /// Says what never came.
    pub fn missing(&self, verdict: &mut Verdict) {
        for message in self.done..self.lane.params.messages {
            verdict.tally.count(Kind::Loss, || format!("lane {} message {message}", self.lane.number));
        }
        for entry in &self.awaited {
            verdict.tally.count(Kind::CompletionNever, || format!("lane {} entry {entry}", self.lane.number));
        }
    }
}
