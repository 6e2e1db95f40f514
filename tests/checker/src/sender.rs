//! One queue pair's sender: posts the planned messages, accounts for their completions, and checks what lands here.

use crate::args::{Commit, Mode, Params};
use crate::ground::Ground;
use crate::judge::{content, first_unpoisoned, Completions, Content, Kind, Posted};
use crate::predict::{Message, Op, Plan, Queue};
use crate::report::{Fallen, Verdict};
use crate::sabotage::Sabotage;
use crate::verbs::{Qp, SendRequest};
use shift_abi::*;
use std::collections::VecDeque;

/// No more than so many bytes a second.
#[derive(Debug)]
pub struct Pacer {
    rate: u64,
    since_ns: u64,
    bytes: u64,
}

impl Pacer {
    /// A pacer that starts now; rate 0 lets everything through.
    #[must_use]
    pub const fn new(rate: u64, now_ns: u64) -> Self {
        Self { rate, since_ns: now_ns, bytes: 0 }
    }

    fn lets_through(&self, now_ns: u64) -> bool {
        let earned = u128::from(now_ns.saturating_sub(self.since_ns)) * u128::from(self.rate) / 1_000_000_000;
        self.rate == 0 || u128::from(self.bytes) <= earned
    }
}

/// What stands in [`Posted::message`] for a work request that is no message of the plan.
const NO_MESSAGE: u64 = u64::MAX;

/// A verb that failed while posting, in words.
pub type PostFailure = String;

/// The sender of one queue pair.
#[derive(Debug)]
pub struct Sender {
    qp: u16,
    plan: Plan,
    completions: Completions,
    /// The next message of the plan.
    next: u64,
    /// Messages taken from the plan and not yet posted.
    taken: VecDeque<u64>,
    /// The first message that will not be sent, once known.
    limit: Option<u64>,
    /// The first message before which to pause.
    pause_at: Option<u64>,
    /// Messages below have free ring slots again.
    released: u64,
    /// Messages below are complete.
    retired: u64,
    /// The peer was told of messages below.
    notified: u64,
    /// The peer was told how many there are.
    told_total: bool,
    /// All messages before this one completed, and it ended in an error.
    fell_at: Option<u64>,
    told_fall: bool,
    /// Messages below were posted.
    posted: u64,
    /// Requests that a post refused: they go before all others.
    refused: Vec<SendRequest>,
    sabotage: Option<Sabotage>,
    slot: Vec<u8>,
}

impl Sender {
    /// The sender of queue pair `qp`.
    #[must_use]
    pub fn new(params: &Params, qp: u16, plan: Plan, sabotage: Option<Sabotage>) -> Self {
        Self {
            qp,
            plan,
            completions: Completions::default(),
            next: 0,
            taken: VecDeque::new(),
            limit: if params.duration.is_some() { None } else { Some(params.messages) },
            pause_at: params.pause_before_message,
            released: 0,
            retired: 0,
            notified: 0,
            told_total: false,
            fell_at: None,
            told_fall: false,
            posted: 0,
            refused: Vec::new(),
            sabotage,
            slot: Vec::new(),
        }
    }

    /// Posts what may be posted now; whether anything was.
    pub fn post(
        &mut self,
        ground: &Ground,
        qp: &mut Qp,
        pacer: &mut Pacer,
        now_ns: u64,
        verdict: &mut Verdict,
    ) -> Result<bool, PostFailure> {
        let mut any = !self.refused.is_empty();
        if any {
            let chain = std::mem::take(&mut self.refused);
            self.hand_over(ground, qp, chain)?;
        }
        while self.refused.is_empty() && self.fell_at.is_none() && self.may_start_chain(&ground.params) {
            let mut chain = Vec::new();
            while chain.len() < ground.params.chain as usize && pacer.lets_through(now_ns) {
                let Some(number) = self.take(ground, verdict) else {
                    break;
                };
                let message = self.plan.message(number);
                chain.push(self.request(ground, qp, &message, verdict));
                pacer.bytes += u64::from(message.len);
                verdict.sent += 1;
                verdict.bytes += u64::from(message.len);
            }
            if chain.is_empty() {
                break;
            }
            self.hand_over(ground, qp, chain)?;
            any = true;
        }
        Ok(any)
    }

    /// Posts a chain; what is refused of it waits for the next attempt, if the run allows that.
    fn hand_over(&mut self, ground: &Ground, qp: &mut Qp, mut chain: Vec<SendRequest>) -> Result<(), PostFailure> {
        let posted = match qp.post_send(&ground.local, &chain) {
            Ok(()) => chain.len(),
            Err((Some(bad), e)) if ground.params.retry_refused && e.is_out_of_room() => bad,
            Err((bad, e)) => return Err(format!("qp {} wr {bad:?}: {e}", self.qp)),
        };
        self.refused = chain.split_off(posted);
        // An inline work request's memory is the program's again as soon as the call returns.
        for request in chain.iter().filter(|request| request.flags & IBV_SEND_INLINE != 0) {
            ground.poison(&ground.local, request.at);
        }
        Ok(())
    }

    /// Whether there is room for a whole chain, or nothing left to wait for that would make room.
    fn may_start_chain(&self, params: &Params) -> bool {
        let outstanding = self.outstanding();
        let room = u64::from(params.depth).saturating_sub(outstanding);
        room >= u64::from(params.chain.min(params.depth)) || (room > 0 && !self.completions.awaits_any())
    }

    fn outstanding(&self) -> u64 {
        let range = self.completions.outstanding();
        range.end - range.start
    }

    /// The next message to post, if one may be posted now.
    fn take(&mut self, ground: &Ground, verdict: &mut Verdict) -> Option<u64> {
        if self.outstanding() >= u64::from(ground.params.depth) {
            return None;
        }
        while self.taken.is_empty() {
            if self.is_blocked(ground) {
                return None;
            }
            self.take_from_plan(ground, verdict);
        }
        self.taken.pop_front()
    }

    /// Whether the next message must wait: for its slots, for the pause to end, or for ever.
    fn is_blocked(&self, ground: &Ground) -> bool {
        let depth = u64::from(ground.params.depth);
        let number = self.next;
        let ends = |at: Option<u64>| at.is_some_and(|at| number >= at);
        if ends(self.limit) || ends(self.pause_at) {
            return true;
        }
        // A reordering takes the next two at once.
        let two = self.sabotage.is_some_and(|s| s.commit == Commit::Reorder && s.committed.is_none());
        let last = if two && depth > 1 { number + 1 } else { number };
        let last = self.limit.map_or(last, |limit| last.min(limit - 1));
        let oldest = self.completions.oldest_message().unwrap_or(number);
        // Relaying, a landing slot is still in use when the message behind it is under way.
        let in_use = last + u64::from(depth > 1 && ground.params.mode(self.qp) == Mode::Relay);
        last >= self.released + ground.layout.ring() || in_use >= oldest + depth
    }

    /// Takes the next message from the plan, or what an error on purpose makes of it.
    fn take_from_plan(&mut self, ground: &Ground, verdict: &mut Verdict) {
        let number = self.next;
        self.next += 1;
        let ends = [self.limit, self.pause_at];
        let plan = &self.plan;
        let commit = self.sabotage.as_mut().and_then(|sabotage| sabotage.at_message(number, plan, ends));
        match commit {
            Some(Commit::Loss) => {
                let message = self.plan.message(number);
                if message.op.lands_here() {
                    self.check_landing(ground, &message, verdict);
                }
            }
            Some(Commit::Duplicate) => self.taken.extend([number, number]),
            Some(Commit::Reorder) => {
                self.next += 1;
                self.taken.extend([number + 1, number]);
            }
            Some(Commit::Damage | Commit::Stale | Commit::CompletionTwice | Commit::CompletionNever) | None => {
                self.taken.push_back(number);
            }
        }
    }

    /// Whether this message is the one at which that error was committed.
    fn committed(&self, commit: Commit, number: u64) -> bool {
        self.sabotage.is_some_and(|sabotage| sabotage.commit == commit && sabotage.committed == Some(number))
    }

    /// Writes a message's bytes to its slot and describes its work request.
    fn request(&mut self, ground: &Ground, qp: &Qp, message: &Message, verdict: &mut Verdict) -> SendRequest {
        let number = message.number;
        let relayed = self.plan.relayed(number);
        let at = if let Some(read) = relayed {
            ground.layout.landing_slot(self.qp, read.number)
        } else if message.op.lands_here() {
            self.expect_quiet_landing(ground, number, verdict);
            ground.layout.landing_slot(self.qp, number)
        } else {
            self.write_payload(ground, message);
            ground.layout.send_slot(self.qp, number)
        };
        let counter = self.completions.outstanding().end;
        let signalled = self.must_signal(&ground.params, counter);
        self.completions.posted(Posted { message: number, signalled, len: message.len });
        self.posted = self.posted.max(number + 1);
        let params = &ground.params;
        let is_here = relayed.is_none() && !message.op.lands_here();
        let inline = is_here && message.wants_inline && message.len <= qp.inline_room();
        let by_turns = params.fence_every != 0 && (counter + 1).is_multiple_of(u64::from(params.fence_every));
        let fence = relayed.is_some() || by_turns;
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        SendRequest {
            wr_id: ground.wr_id(Queue::Send, self.qp, counter),
            opcode: opcode(message.op),
            flags: flag(signalled, IBV_SEND_SIGNALED)
                | flag(inline && qp.inline_room() > 0, IBV_SEND_INLINE)
                | flag(fence, IBV_SEND_FENCE)
                | flag(self.must_solicit(params, counter), IBV_SEND_SOLICITED),
            at,
            len: message.len,
            sges: if matches!(message.op, Op::FetchAdd | Op::CompareSwap) { 1 } else { params.sges },
            imm: message.imm,
            remote_addr: ground.peer.addr + self.remote_at(ground, message),
            rkey: ground.peer.rkey,
            operands: self.operands(message),
        }
    }

    /// Often enough that a receiver that sleeps in between never runs out of receives.
    fn must_solicit(&self, params: &Params, counter: u64) -> bool {
        let every = u64::from(params.depth / 4).max(1);
        params.solicited && (self.is_last() || (counter + 1).is_multiple_of(every))
    }

    /// Whether the message that was taken is the last for now.
    fn is_last(&self) -> bool {
        let ends = self.limit == Some(self.next) || self.pause_at == Some(self.next);
        ends && self.taken.is_empty()
    }

    fn must_signal(&self, params: &Params, counter: u64) -> bool {
        self.is_last() || (counter + 1).is_multiple_of(params.signal_every())
    }

    fn write_payload(&mut self, ground: &Ground, message: &Message) {
        self.slot.resize(message.len as usize, 0);
        self.plan.payload(message.number).fill(0, &mut self.slot);
        if self.committed(Commit::Damage, message.number) {
            flip_last(&mut self.slot);
        }
        ground.local.write(ground.layout.send_slot(self.qp, message.number), &self.slot);
    }

    const fn remote_at(&self, ground: &Ground, message: &Message) -> u64 {
        match message.op {
            Op::Write | Op::WriteImm => ground.layout.ring_slot(self.qp, message.number),
            Op::Read => ground.layout.source_area(self.qp) + message.source_at as u64,
            Op::FetchAdd | Op::CompareSwap => ground.layout.counter(self.qp),
            Op::Send | Op::SendImm => 0,
        }
    }

    fn operands(&self, message: &Message) -> (u64, u64) {
        let number = message.number;
        match message.op {
            Op::FetchAdd => (self.plan.addend(), 0),
            Op::CompareSwap => (self.plan.counter_before(number), self.plan.counter_before(number + 1)),
            Op::Write | Op::WriteImm | Op::Send | Op::SendImm | Op::Read => (0, 0),
        }
    }

    /// A success completion of this queue's `counter`-th work request.
    pub fn completed(&mut self, ground: &Ground, qp: &Qp, counter: u64, wc: &ibv_wc, verdict: &mut Verdict) {
        if self.fell_at.is_some() {
            verdict
                .tally
                .count(Kind::CompletionWrong, || format!("qp {} wr {counter}: success after an error", self.qp));
        }
        let times = self.sabotage.as_mut().map_or(1, |sabotage| sabotage.times_counted(counter));
        for _ in 0..times {
            self.check_fields(qp, counter, wc, verdict);
            let retired = self.completions.succeeded(counter);
            if let Some(kind) = retired.fault {
                verdict.tally.count(kind, || format!("qp {} send wr {counter}", self.qp));
            }
            self.retire(ground, &retired.posted, verdict);
        }
    }

    fn retire(&mut self, ground: &Ground, posted: &[Posted], verdict: &mut Verdict) {
        for posted in posted.iter().filter(|posted| posted.message != NO_MESSAGE) {
            self.retired = self.retired.max(posted.message + 1);
            verdict.acked += 1;
            let message = self.plan.message(posted.message);
            if let Some(read) = self.plan.relayed(posted.message) {
                self.check_landing(ground, &read, verdict);
            } else if message.op.lands_here() && ground.params.mode(self.qp) != Mode::Relay {
                self.check_landing(ground, &message, verdict);
            }
        }
    }

    /// An error completion where the queue pair may end in one: the first says that retries were exceeded, and that
    /// everything before it is complete; behind it each work request is flushed, signalled or not.
    pub fn fell(&mut self, ground: &Ground, counter: u64, wc: &ibv_wc, verdict: &mut Verdict) {
        let retired = self.completions.failed(counter);
        if let Some(kind) = retired.fault {
            verdict.tally.count(kind, || format!("qp {} send wr {counter} (an error)", self.qp));
        }
        let Some((failed, before)) = retired.posted.split_last() else {
            return;
        };
        let due = if self.fell_at.is_none() { IBV_WC_RETRY_EXC_ERR } else { IBV_WC_WR_FLUSH_ERR };
        if wc.status != due {
            verdict.tally.count(Kind::CompletionWrong, || format!("qp {} wr {counter}: {:?}", self.qp, wc.status));
        }
        if self.fell_at.is_none() {
            self.fell_at = Some(failed.message);
            self.retire(ground, before, verdict);
        } else if !before.is_empty() {
            verdict.tally.count(Kind::CompletionNever, || format!("qp {} before send wr {counter}", self.qp));
        }
    }

    /// What the peer is to be told of a queue pair in error, once, when all of it is flushed: the first message that did
    /// not complete, and the first that was not posted.
    pub fn fall_due(&mut self, params: &Params, verdict: &mut Verdict) -> Option<(u64, u64)> {
        let acked = self.fell_at.filter(|_| !self.told_fall && self.outstanding() == 0)?;
        self.told_fall = true;
        let (mode, posted) = (params.mode(self.qp), self.posted);
        verdict.fallen.push(Fallen { qp: self.qp, mode, acked, posted, counted: None });
        Some((acked, posted))
    }

    /// An error completion of this queue's `counter`-th work request.
    pub fn failed(&mut self, counter: u64, verdict: &mut Verdict) {
        if let Some(kind) = self.completions.failed(counter).fault {
            verdict.tally.count(kind, || format!("qp {} send wr {counter} (an error)", self.qp));
        }
    }

    fn check_fields(&self, qp: &Qp, counter: u64, wc: &ibv_wc, verdict: &mut Verdict) {
        let Some(posted) = self.completions.get(counter) else {
            return;
        };
        if wc.qp_num != qp.number() {
            let qp_num = wc.qp_num;
            verdict.tally.count(Kind::CompletionWrong, || format!("qp {} wr {counter}: qp_num {qp_num}", self.qp));
        }
        if posted.message == NO_MESSAGE {
            return;
        }
        let op = self.plan.message(posted.message).op;
        let wrong_len = op.lands_here() && wc.byte_len != posted.len;
        if wc.opcode != wc_opcode(op) || wrong_len {
            verdict.tally.count(Kind::CompletionWrong, || {
                format!(
                    "qp {} wr {counter}: {:?} of {} bytes for {op:?} of {}",
                    self.qp, wc.opcode, wc.byte_len, posted.len
                )
            });
        }
    }

    /// Checks what a READ or an atomic brought, and poisons its slot.
    fn check_landing(&mut self, ground: &Ground, message: &Message, verdict: &mut Verdict) {
        let at = ground.layout.landing_slot(self.qp, message.number);
        let mut slot = std::mem::take(&mut self.slot);
        ground.read_slot(&ground.local, at, &mut slot);
        if self.committed(Commit::Damage, message.number) {
            flip_last(slot.get_mut(..message.len as usize).unwrap_or(&mut []));
        }
        let found = match message.op {
            Op::FetchAdd | Op::CompareSwap => self.judge_atomic(message.number, &slot),
            Op::Read | Op::Write | Op::WriteImm | Op::Send | Op::SendImm => self.judge_read(message, &slot),
        };
        ground.poison(&ground.local, at);
        self.slot = slot;
        let kind = match found {
            Content::Right => {
                verdict.received += 1;
                return;
            }
            Content::Untouched => Kind::Loss,
            Content::Other(_) => Kind::Stale,
            Content::Wrong(_) => Kind::Damage,
        };
        verdict.tally.count(kind, || format!("qp {} {message:?}: {found:?}", self.qp));
    }

    fn judge_read(&self, message: &Message, slot: &[u8]) -> Content {
        let expected = (self.plan.source(), message.source_at.into());
        content(expected, message.len as usize, slot, &self.plan, std::iter::empty())
    }

    fn judge_atomic(&self, number: u64, slot: &[u8]) -> Content {
        let Some((landed, guard)) = slot.split_first_chunk::<8>() else {
            return Content::Untouched;
        };
        if first_unpoisoned(slot).is_none() {
            return Content::Untouched;
        }
        match first_unpoisoned(guard) {
            Some(at) => Content::Wrong(8 + at),
            None if u64::from_ne_bytes(*landed) == self.plan.counter_before(number) => Content::Right,
            None => Content::Wrong(0),
        }
    }

    /// A landing slot that is about to be used again must be as it was left.
    fn expect_quiet_landing(&mut self, ground: &Ground, number: u64, verdict: &mut Verdict) {
        let at = ground.layout.landing_slot(self.qp, number);
        if let Some(byte) = ground.unpoisoned(&ground.local, at, &mut self.slot) {
            verdict
                .tally
                .count(Kind::Stale, || format!("qp {} landing slot of message {number}, byte {byte}", self.qp));
            ground.poison(&ground.local, at);
        }
    }

    /// Writes an old message once more, over memory that the receiver has consumed.
    pub fn post_stale(&mut self, ground: &Ground, qp: &mut Qp) -> Result<(), PostFailure> {
        let Some(Sabotage { commit: Commit::Stale, committed: Some(number), .. }) = self.sabotage else {
            return Ok(());
        };
        let message = Message { op: Op::Write, ..self.plan.message(number) };
        self.write_payload(ground, &message);
        let posted = Posted { message: NO_MESSAGE, signalled: true, len: message.len };
        let request = SendRequest {
            wr_id: ground.wr_id(Queue::Send, self.qp, self.completions.posted(posted)),
            opcode: IBV_WR_RDMA_WRITE,
            flags: IBV_SEND_SIGNALED,
            at: ground.layout.send_slot(self.qp, number),
            len: message.len,
            sges: 1,
            imm: 0,
            remote_addr: ground.peer.addr + self.remote_at(ground, &message),
            rkey: ground.peer.rkey,
            operands: (0, 0),
        };
        qp.post_send(&ground.local, &[request]).map_err(|(_, e)| e.to_string())
    }

    /// The receiver has consumed all messages below this one.
    pub fn released(&mut self, released: u64) {
        self.released = self.released.max(released);
    }

    /// The time is up: send no more than what makes the last work request a signalled one.
    pub fn stop(&mut self) {
        if self.limit.is_none() {
            self.limit = Some(self.next + u64::from(self.completions.ends_unsignalled()));
        }
    }

    /// The pause is over.
    pub fn resume(&mut self) {
        self.pause_at = None;
    }

    /// Whether this sender stands before the pause with nothing outstanding.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pause_at.is_some_and(|pause| self.next >= pause) && self.outstanding() == 0
    }

    /// Whether all was sent and completed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let over = self.limit.is_some_and(|limit| self.next >= limit) && self.taken.is_empty();
        (over || self.fell_at.is_some()) && self.outstanding() == 0
    }

    /// How many messages there were in all: once, when all are complete.
    pub fn total_due(&mut self) -> Option<u64> {
        if self.told_total || self.fell_at.is_some() || !self.is_done() {
            return None;
        }
        self.told_total = true;
        self.limit
    }

    /// What the peer is to be told of completed messages: every quarter of the depth, and before this end falls silent.
    pub fn notice(&mut self, params: &Params) -> Option<u64> {
        let due = self.retired - self.notified >= u64::from((params.depth / 4).max(1));
        if self.retired > self.notified && (due || self.outstanding() == 0) {
            self.notified = self.retired;
            return Some(self.retired);
        }
        None
    }

    /// The last look, once nothing more may come.
    pub fn close(&mut self, ground: &Ground, verdict: &mut Verdict) {
        let depth = u64::from(ground.params.depth);
        for counter in self.completions.never() {
            verdict.tally.count(Kind::CompletionNever, || format!("qp {} send wr {counter}", self.qp));
        }
        if ground.params.mode(self.qp) == Mode::Relay && self.retired % 2 == 1 {
            // The last one, which nothing was to follow, or nothing did.
            let read = self.plan.message(self.retired - 1);
            self.check_landing(ground, &read, verdict);
        }
        // What is still under way may land at any time.
        let unknown = self.fell_at.map_or(0..0, |fell| fell..self.posted);
        let under_way: Vec<u64> = self.completions.messages().chain(unknown).map(|message| message % depth).collect();
        for slot in (0..depth).filter(|slot| !under_way.contains(slot)) {
            self.expect_quiet_landing(ground, slot, verdict);
        }
    }
}

fn flip_last(bytes: &mut [u8]) {
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 0x40;
    }
}

const fn opcode(op: Op) -> ibv_wr_opcode {
    match op {
        Op::Write => IBV_WR_RDMA_WRITE,
        Op::WriteImm => IBV_WR_RDMA_WRITE_WITH_IMM,
        Op::Send => IBV_WR_SEND,
        Op::SendImm => IBV_WR_SEND_WITH_IMM,
        Op::Read => IBV_WR_RDMA_READ,
        Op::FetchAdd => IBV_WR_ATOMIC_FETCH_AND_ADD,
        Op::CompareSwap => IBV_WR_ATOMIC_CMP_AND_SWP,
    }
}

const fn wc_opcode(op: Op) -> ibv_wc_opcode {
    match op {
        Op::Write | Op::WriteImm => IBV_WC_RDMA_WRITE,
        Op::Send | Op::SendImm => IBV_WC_SEND,
        Op::Read => IBV_WC_RDMA_READ,
        Op::FetchAdd => IBV_WC_FETCH_ADD,
        Op::CompareSwap => IBV_WC_COMP_SWAP,
    }
}
