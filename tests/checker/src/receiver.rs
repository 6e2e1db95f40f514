//! One queue pair's receiver: posts receives, finds out which message came, and checks every byte of it.

use crate::args::{Mode, Params};
use crate::ground::Ground;
use crate::judge::{begun, content, Arrivals, Completions, Content, Kind, Posted};
use crate::predict::{Message, Op, Plan, Queue};
use crate::report::{Fallen, Verdict};
use crate::verbs::{Qp, ReceiveRequest, Result};
use shift_abi::*;
use std::ops::{Range, RangeInclusive};

/// The receiver of one queue pair.
#[derive(Debug)]
pub struct Receiver {
    qp: u16,
    plan: Plan,
    receives: Completions,
    arrivals: Arrivals,
    /// Messages below are verified, or were overtaken.
    consumed: u64,
    /// The sender says that messages below are complete.
    noticed: u64,
    /// Messages below: their ring slots rested, stayed poisoned, and may be used again.
    released: u64,
    /// The sender was told that messages below are released.
    credited: u64,
    total: Option<u64>,
    /// The queue pair is in error: the first message that did not complete, and the first that was not posted.
    fell: Option<(u64, u64)>,
    /// A receive was flushed.
    flushing: bool,
    slot: Vec<u8>,
}

/// When it naps, if it is to.
const NAP_AT: u64 = 50;
/// How far to look for the next message that takes a receive: half of the messages of such modes do.
const REACH: u64 = 1000;

impl Receiver {
    /// The receiver of queue pair `qp`.
    #[must_use]
    pub fn new(qp: u16, plan: Plan) -> Self {
        Self {
            qp,
            plan,
            receives: Completions::default(),
            arrivals: Arrivals::default(),
            consumed: 0,
            noticed: 0,
            released: 0,
            credited: 0,
            total: None,
            fell: None,
            flushing: false,
            slot: Vec::new(),
        }
    }

    /// What it expects.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan.clone()
    }

    /// Messages below are verified, and their slots poisoned.
    #[must_use]
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Lays out what the peer's READs and atomics touch, and posts the receives.
    pub fn prepare(&mut self, ground: &Ground, qp: &Qp) -> Result<()> {
        ground.fill_source(self.qp, self.plan.source());
        if ground.params.mode(self.qp).takes_receives() && !ground.params.srq {
            for _ in 0..ground.layout.receives() {
                self.post_receive(ground, qp)?;
            }
        }
        Ok(())
    }

    fn post_receive(&mut self, ground: &Ground, qp: &Qp) -> Result<()> {
        let message = self.receives.outstanding().end;
        let counter = self.receives.posted(Posted { message, signalled: true, len: 0 });
        let at = ground.layout.receive_slot(self.qp, counter);
        // As NCCL does: where only WRITEs with immediate data come, a receive has no memory.
        let bytes = ground.layout.slot_bytes() as u32;
        let memory = if ground.params.mode(self.qp) == Mode::WriteImm { None } else { Some((at, bytes)) };
        qp.post_receive(
            &ground.shared,
            ReceiveRequest { wr_id: ground.wr_id(Queue::Receive, self.qp, counter), memory },
        )
    }

    /// A success completion of this queue's `counter`-th receive.
    pub fn completed(
        &mut self,
        ground: &Ground,
        qp: &Qp,
        counter: u64,
        wc: &ibv_wc,
        verdict: &mut Verdict,
    ) -> Result<()> {
        if wc.qp_num != qp.number() || self.flushing {
            verdict.tally.count(Kind::CompletionWrong, || format!("qp {} receive {counter}: {wc:?}", self.qp));
        }
        if let Some(kind) = self.receives.succeeded(counter).fault {
            verdict.tally.count(kind, || format!("qp {} receive {counter}", self.qp));
            if kind != Kind::CompletionReorder {
                return Ok(());
            }
        }
        self.took(ground, ground.layout.receive_slot(self.qp, counter), wc, verdict);
        if self.fell.is_some() {
            return Ok(());
        }
        if counter == NAP_AT && ground.params.receiver_naps > 0 {
            // The length of the nap is what is tried.
            std::thread::sleep(std::time::Duration::from_millis(ground.params.receiver_naps));
        }
        self.post_receive(ground, qp)
    }

    /// A message came into the receive whose buffer lies there, of this queue or of the one that it shares.
    pub fn took(&mut self, ground: &Ground, receive_at: u64, wc: &ibv_wc, verdict: &mut Verdict) {
        let number = self.identify(ground, receive_at, wc);
        self.arrived(ground, receive_at, number, wc, verdict);
        ground.poison(&ground.shared, receive_at);
        self.advance_to_notice(ground, verdict);
    }

    /// The receive-consuming messages of a range, which is bounded: a mode may have none.
    fn receiving(&self, numbers: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        numbers.filter(|&number| self.plan.message(number).op.consumes_receive())
    }

    /// Looks whether WRITEs that nobody tells of are there, and overwrites them at once; whether any was.
    pub fn look(&mut self, ground: &Ground, verdict: &mut Verdict) -> bool {
        let before = self.consumed;
        while self.consumed < ground.layout.ring() {
            let message = self.plan.message(self.consumed);
            ground.read_slot(&ground.shared, ground.layout.ring_slot(self.qp, message.number), &mut self.slot);
            let expected = (self.plan.payload(message.number), 0);
            let found = content(expected, message.len as usize, &self.slot, &self.plan, std::iter::empty());
            if message.op != Op::Write || found != Content::Right {
                break;
            }
            self.verify_writes_below(ground, message.number + 1, verdict);
        }
        self.consumed > before
    }

    /// Which message a completion is of: by its immediate data; else the expected one if it fits; else the nearest one
    /// whose length and bytes are those that came; else the expected one, damaged.
    fn identify(&mut self, ground: &Ground, receive_at: u64, wc: &ibv_wc) -> u64 {
        let reach = 2 * ground.layout.ring();
        let next = self.arrivals.next();
        let expected = self.receiving(next..next + REACH).next().unwrap_or(next);
        if wc.wc_flags & IBV_WC_WITH_IMM != 0 {
            let number = self.plan.number_of_imm(u32::from_be(wc.imm.raw()), expected);
            let op = self.plan.message(number).op;
            let near = number.abs_diff(expected) <= reach;
            return if near && op.has_imm() && receive_opcode(op) == wc.opcode { number } else { expected };
        }
        let len = (wc.byte_len as usize).min(ground.layout.slot_bytes() as usize);
        ground.read_slot(&ground.shared, receive_at, &mut self.slot);
        let bytes = self.slot.get(..len).unwrap_or(&[]);
        let fits = |&number: &u64| {
            let message = self.plan.message(number);
            let same_shape = message.op == Op::Send && message.len == wc.byte_len;
            same_shape && self.plan.payload(number).first_difference(0, bytes).is_none()
        };
        let nearby = (1..=reach).flat_map(|away| [expected.checked_sub(away), expected.checked_add(away)]);
        std::iter::once(expected).chain(nearby.flatten()).find(fits).unwrap_or(expected)
    }

    /// Message `number` came with this completion.
    fn arrived(&mut self, ground: &Ground, receive_at: u64, number: u64, wc: &ibv_wc, verdict: &mut Verdict) {
        let message = self.plan.message(number);
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let order = arrivals.arrived(number, self.receiving(arrivals.next()..number));
        self.arrivals = arrivals;
        if let Err(kind) = order {
            verdict.tally.count(kind, || format!("qp {} message {number}", self.qp));
        }
        if order == Err(Kind::Duplicate) {
            self.forget(ground, &message);
            return;
        }
        self.verify_writes_below(ground, number, verdict);
        if wc.opcode != receive_opcode(message.op) || wc.byte_len != message.len || !self.imm_is_right(&message, wc) {
            verdict.tally.count(Kind::Damage, || format!("qp {} {message:?}: {wc:?}", self.qp));
        }
        self.verify(ground, receive_at, &message, verdict);
        self.advance(ground, number + 1, verdict);
    }

    fn imm_is_right(&self, message: &Message, wc: &ibv_wc) -> bool {
        let has_imm = wc.wc_flags & IBV_WC_WITH_IMM != 0;
        has_imm == message.op.has_imm() && (!has_imm || u32::from_be(wc.imm.raw()) == message.imm)
    }

    /// A second copy of a message was counted; its bytes are not to be counted again as stale.
    fn forget(&self, ground: &Ground, message: &Message) {
        if message.op.fills_ring() {
            ground.poison(&ground.shared, ground.layout.ring_slot(self.qp, message.number));
        }
    }

    /// Checks a message's memory and poisons it.
    fn verify(&mut self, ground: &Ground, receive_at: u64, message: &Message, verdict: &mut Verdict) {
        let at = if message.op.fills_ring() {
            let is_shared = ground.params.srq;
            if is_shared {
                ground.poison(&ground.shared, receive_at);
            } else if let Some(byte) = ground.unpoisoned(&ground.shared, receive_at, &mut self.slot) {
                verdict.tally.count(Kind::Stale, || format!("qp {} {message:?}: receive byte {byte}", self.qp));
            }
            ground.layout.ring_slot(self.qp, message.number)
        } else {
            receive_at
        };
        self.verify_at(ground, at, message, verdict);
    }

    fn verify_at(&mut self, ground: &Ground, at: u64, message: &Message, verdict: &mut Verdict) {
        let number = message.number;
        let ring = ground.layout.ring();
        let others = [number.checked_sub(ring), number.checked_add(ring), number.checked_sub(1), number.checked_add(1)];
        ground.read_slot(&ground.shared, at, &mut self.slot);
        let expected = (self.plan.payload(number), 0);
        let len = message.len as usize;
        // A shared receive that a message had taken in part is another one's later, which may be shorter.
        let is_shared = ground.params.srq && !message.op.fills_ring();
        let seen = if is_shared { self.slot.get(..len).unwrap_or_default() } else { &self.slot };
        let found = content(expected, len, seen, &self.plan, others.into_iter().flatten());
        ground.poison(&ground.shared, at);
        let kind = match found {
            Content::Right => {
                verdict.received += 1;
                verdict.bytes += u64::from(message.len);
                return;
            }
            Content::Untouched => Kind::Loss,
            Content::Other(_) => Kind::Stale,
            Content::Wrong(_) => Kind::Damage,
        };
        verdict.tally.count(kind, || format!("qp {} {message:?}: {found:?}", self.qp));
    }

    /// Verifies the WRITEs without notice before message `end`: whoever sees that message, or hears that it is
    /// complete, may rely on them.
    fn verify_writes_below(&mut self, ground: &Ground, end: u64, verdict: &mut Verdict) {
        for number in self.consumed..end {
            let message = self.plan.message(number);
            if message.op == Op::Write {
                self.verify_at(ground, ground.layout.ring_slot(self.qp, number), &message, verdict);
            }
        }
        self.consumed = self.consumed.max(end);
    }

    fn advance(&mut self, ground: &Ground, end: u64, verdict: &mut Verdict) {
        self.consumed = self.consumed.max(end);
        // A slot rests poisoned for a depth of messages: whatever writes it meanwhile is stale.
        let resting = ground.layout.ring().saturating_sub(u64::from(ground.params.depth));
        while !ground.params.has_memory_for_all() && self.released + resting < self.consumed {
            self.expect_quiet(ground, self.released, verdict);
            self.released += 1;
        }
    }

    fn expect_quiet(&mut self, ground: &Ground, number: u64, verdict: &mut Verdict) {
        let at = ground.layout.ring_slot(self.qp, number);
        if let Some(byte) = ground.unpoisoned(&ground.shared, at, &mut self.slot) {
            verdict.tally.count(Kind::Stale, || format!("qp {} ring slot of message {number}, byte {byte}", self.qp));
            ground.poison(&ground.shared, at);
        }
    }

    /// The sender says that all messages below `upto` are complete.
    pub fn noticed(&mut self, ground: &Ground, upto: u64, verdict: &mut Verdict) {
        self.noticed = self.noticed.max(upto);
        self.advance_to_notice(ground, verdict);
    }

    /// Consumes what needs no receive, up to the notice.
    fn advance_to_notice(&mut self, ground: &Ground, verdict: &mut Verdict) {
        let waiting_for = self.receiving(self.consumed..self.noticed).next();
        let end = waiting_for.unwrap_or(self.noticed);
        if end > self.consumed {
            self.verify_writes_below(ground, end, verdict);
            self.advance(ground, end, verdict);
        }
    }

    /// The sender says how many messages there are.
    pub fn ends_at(&mut self, ground: &Ground, total: u64, verdict: &mut Verdict) {
        self.total = Some(total);
        self.noticed(ground, total, verdict);
    }

    /// The sender says that the queue pair is in error.
    pub fn ends_in_error(&mut self, ground: &Ground, acked: u64, posted: u64, verdict: &mut Verdict) {
        self.fell = Some((acked, posted));
        self.noticed(ground, acked, verdict);
    }

    /// An error completion where the queue pair may end in one: each receive is flushed.
    pub fn fell(&mut self, counter: u64, wc: &ibv_wc, verdict: &mut Verdict) {
        self.flushing = true;
        let retired = self.receives.failed(counter);
        if wc.status != IBV_WC_WR_FLUSH_ERR || retired.posted.len() != 1 {
            let kind = retired.fault.unwrap_or(Kind::CompletionWrong);
            verdict.tally.count(kind, || format!("qp {} receive {counter}: {:?}", self.qp, wc.status));
        }
    }

    /// Whether the sender said that it is done.
    #[must_use]
    pub const fn knows_total(&self) -> bool {
        self.total.is_some()
    }

    /// Whether all messages were consumed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        // Of a shared receive queue nothing is flushed: what completed at the sender has to have come.
        let has_all = |(acked, _)| self.receives.outstanding().is_empty() && self.consumed >= acked;
        let flushed = self.fell.is_some_and(has_all);
        flushed || self.total.is_some_and(|total| self.consumed >= total)
    }

    /// What the sender is to be told of free slots: every quarter of the depth.
    pub fn credit(&mut self, params: &Params) -> Option<u64> {
        if self.released - self.credited < u64::from((params.depth / 4).max(1)) {
            return None;
        }
        self.credited = self.released;
        Some(self.released)
    }

    /// The last look, once nothing more may come.
    pub fn close(&mut self, ground: &Ground, verdict: &mut Verdict) {
        for counter in self.receives.overtaken() {
            verdict.tally.count(Kind::CompletionNever, || format!("qp {} receive {counter}", self.qp));
        }
        for number in self.arrivals.missing() {
            verdict.tally.count(Kind::Loss, || format!("qp {} message {number}", self.qp));
        }
        let end = self.fell.map(|(acked, _)| acked).or(self.total).unwrap_or(0).max(self.consumed);
        for number in self.consumed..end {
            verdict.tally.count(Kind::Loss, || format!("qp {} message {number} never came", self.qp));
        }
        if !self.is_done() {
            return;
        }
        let posted = self.fell.map_or(end, |(_, posted)| posted);
        if end > posted {
            verdict.tally.count(Kind::CompletionWrong, || format!("qp {} message {posted} was never posted", self.qp));
        }
        self.check_unknown(ground, end..posted, verdict);
        for slot in 0..ground.layout.ring() {
            self.expect_quiet(ground, slot, verdict);
        }
        let counted = self.check_counter(ground, end..=posted, verdict);
        if let Some((acked, posted)) = self.fell {
            verdict.fallen.push(Fallen { qp: self.qp, mode: ground.params.mode(self.qp), acked, posted, counted });
        }
    }

    /// Of messages that were posted and did not complete, WRITEs happened in order: some, one in part, and no more.
    fn check_unknown(&mut self, ground: &Ground, numbers: Range<u64>, verdict: &mut Verdict) {
        let mut ended_at = None;
        for message in numbers.map(|number| self.plan.message(number)).filter(|message| message.op.fills_ring()) {
            let at = ground.layout.ring_slot(self.qp, message.number);
            ground.read_slot(&ground.shared, at, &mut self.slot);
            ground.poison(&ground.shared, at);
            let expected = self.plan.payload(message.number);
            let placed = match begun(expected, message.len as usize, &self.slot) {
                Ok(placed) => placed,
                Err(byte) => {
                    verdict.tally.count(Kind::Damage, || format!("qp {} {message:?} (unknown): {byte}", self.qp));
                    return;
                }
            };
            if let Some(before) = ended_at.filter(|_| *placed.start() > 0) {
                verdict.tally.count(Kind::Reorder, || {
                    format!("qp {} {message:?} (unknown) was begun, {before} before it was not done", self.qp)
                });
            }
            if *placed.end() < message.len as usize {
                ended_at = ended_at.or(Some(message.number));
            }
        }
    }

    /// The counter is what the atomics below one of these messages make of it; below which.
    fn check_counter(&self, ground: &Ground, ends: RangeInclusive<u64>, verdict: &mut Verdict) -> Option<u64> {
        if !ground.params.mode(self.qp).has_atomics() {
            return None;
        }
        let mut bytes = [0; 8];
        ground.shared.read(ground.layout.counter(self.qp), &mut bytes);
        let seen = u64::from_ne_bytes(bytes);
        let counted = ends.clone().find(|end| self.plan.counter_before(*end) == seen);
        if counted.is_none() {
            verdict
                .tally
                .count(Kind::Damage, || format!("qp {} counter is {seen:#x}, after none of {ends:?}", self.qp));
        }
        counted
    }

    /// An error completion of this queue's `counter`-th receive.
    pub fn failed(&mut self, counter: u64, verdict: &mut Verdict) {
        if let Some(kind) = self.receives.failed(counter).fault {
            verdict.tally.count(kind, || format!("qp {} receive {counter} (an error)", self.qp));
        }
    }
}

const fn receive_opcode(op: Op) -> ibv_wc_opcode {
    match op {
        Op::WriteImm => IBV_WC_RECV_RDMA_WITH_IMM,
        Op::Send | Op::SendImm | Op::Write | Op::Read | Op::FetchAdd | Op::CompareSwap => IBV_WC_RECV,
    }
}
