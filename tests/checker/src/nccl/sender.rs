//! The end of a lane that has the data: looks for a clear-to-send entry in its memory, and writes what it allows.

use super::memory::{words, Lane, Place, ENTRY_BYTES};
use super::TORN;
use crate::judge::Kind;
use crate::predict::{Queue, WrName};
use crate::report::Verdict;
use crate::verbs::{monotonic_ns, Qp, SendRequest};
use shift_abi::*;
use std::collections::VecDeque;

/// The sending end of a lane.
#[derive(Debug)]
pub struct LaneSender {
    lane: Lane,
    /// The next message.
    next: u64,
    /// Requests posted so far.
    counter: u64,
    /// Counters of signalled requests that have not completed.
    awaited: VecDeque<u64>,
    /// Since when the entry of the next message looks torn.
    torn_since: Option<u64>,
}

impl LaneSender {
    /// Of a lane.
    #[must_use]
    pub const fn new(lane: Lane) -> Self {
        Self { lane, next: 0, counter: 0, awaited: VecDeque::new(), torn_since: None }
    }

    /// Which lane.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.lane.number
    }

    /// Whether everything is sent and complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.next == self.lane.params.messages && self.awaited.is_empty()
    }

    /// Sends what is allowed; whether anything was. Nothing from message `gate` on.
    ///
    /// # Errors
    /// A post was refused.
    pub fn step(
        &mut self,
        place: &Place,
        qp: &mut Qp,
        gate: Option<u64>,
        verdict: &mut Verdict,
    ) -> Result<bool, String> {
        let mut moved = false;
        while self.next < self.lane.params.messages
            && gate.is_none_or(|gate| self.next < gate)
            && self.awaited.len() < self.lane.params.depth as usize
        {
            let Some((addr, rkey)) = self.cleared(place, verdict) else { break };
            self.send(place, qp, (addr, rkey))?;
            verdict.sent += 1;
            verdict.bytes += u64::from(self.lane.len(self.next));
            self.next += 1;
            moved = true;
        }
        Ok(moved)
    }

    /// Where the next message may be written, if its entry has come whole.
    fn cleared(&mut self, place: &Place, verdict: &mut Verdict) -> Option<(u64, u32)> {
        let mut entry = [0; ENTRY_BYTES as usize];
        place.shared.read(place.entry(self.lane.number, self.next), &mut entry);
        let [addr, rkey, .., last] = words(&entry);
        if last != self.next + 1 {
            return None;
        }
        if entry == self.lane.entry(self.next, addr, rkey as u32) {
            self.torn_since = None;
            return Some((addr, rkey as u32));
        }
        let now = monotonic_ns();
        let since = *self.torn_since.get_or_insert(now);
        if u128::from(now - since) > TORN.as_nanos() {
            self.torn_since = Some(u64::MAX);
            let which = || format!("lane {}: the entry of message {}: {entry:02x?}", self.lane.number, self.next);
            verdict.tally.count(Kind::Damage, which);
        }
        None
    }

    fn send(&mut self, place: &Place, qp: &mut Qp, (addr, rkey): (u64, u32)) -> Result<(), String> {
        let (lane, message) = (&self.lane, self.next);
        let (at, len) = (place.data(lane.number, message), lane.len(message));
        let mut bytes = vec![0; len as usize];
        lane.payload(message).fill(0, &mut bytes);
        place.local.write(at, &bytes);
        let whole = SendRequest {
            wr_id: 0,
            opcode: IBV_WR_RDMA_WRITE_WITH_IMM,
            flags: IBV_SEND_SIGNALED,
            at,
            len,
            sges: 1,
            imm: lane.imm(message),
            remote_addr: addr,
            rkey,
            operands: (0, 0),
        };
        let mut chain = if lane.is_split(message) {
            let data = SendRequest { opcode: IBV_WR_RDMA_WRITE, flags: 0, ..whole };
            vec![data, SendRequest { len: 0, ..whole }]
        } else {
            vec![whole]
        };
        for request in &mut chain {
            let name = WrName { queue: Queue::Send, qp: lane.number, counter: self.counter };
            request.wr_id = name.wr_id(lane.params.seed);
            self.counter += 1;
        }
        self.awaited.push_back(self.counter - 1);
        qp.post_send(&place.local, &chain).map_err(|(bad, e)| format!("lane {} wr {bad:?}: {e}", lane.number))
    }

    /// A success completion.
    pub fn completed(&mut self, wc: &ibv_wc, verdict: &mut Verdict) {
        let name = WrName::from_wr_id(wc.wr_id, self.lane.params.seed);
        let told = || format!("lane {}: {name:?}, awaited {:?}", self.lane.number, self.awaited.front());
        if name.queue != Queue::Send || name.qp != self.lane.number || wc.opcode != IBV_WC_RDMA_WRITE {
            verdict.tally.count(Kind::CompletionWrong, told);
            return;
        }
        match self.awaited.front().copied() {
            Some(due) if due == name.counter => {
                self.awaited.pop_front();
                verdict.acked += 1;
            }
            Some(due) if name.counter > due => {
                verdict.tally.count(Kind::CompletionReorder, told);
                self.awaited.retain(|each| *each != name.counter);
            }
            Some(_) | None => verdict.tally.count(Kind::CompletionTwice, told),
        }
    }

    /// Says what never came.
    pub fn missing(&self, verdict: &mut Verdict) {
        for counter in &self.awaited {
            verdict.tally.count(Kind::CompletionNever, || format!("lane {} wr {counter}", self.lane.number));
        }
    }
}
