//! One direction of one incarnation: what the sender's NIC was given, how far the receiver's NIC got, and what came back.

use shift_proto::id::{Epoch, Mtu, PathId, Psn64};
use shift_proto::ledger::Posting;

use super::{Want, GRAIN};

/// The receiver's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Responder {
    /// The place of its first receive in the application's queue.
    pub first_buffer: u64,
    /// How often each receive was posted: once, if nothing is broken.
    pub copies: u64,
    /// Receives that it consumed.
    pub consumed: u64,
    /// Of these the completions that vanished.
    pub lost: u64,
    /// It executes nothing any more.
    pub is_fenced: bool,
    /// It will be when the packet that it is about is executed.
    pub runs_on: bool,
}

/// One direction of one incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The incarnation.
    pub epoch: Epoch,
    /// Its path.
    pub path: PathId,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its first packet.
    pub first_psn: Psn64,
    /// Who sends.
    pub sender: usize,
    /// What was posted.
    pub postings: Vec<(usize, Posting)>,
    /// Packets that the receiver's NIC executed.
    pub packets: u64,
    /// Requests whose answer the sender's NIC has.
    pub landed: usize,
    /// Requests that the sender's program knows to be complete.
    pub completed: usize,
    /// The sender's half is in ERR or fenced: no answer is taken any more.
    pub is_stopped: bool,
    /// Nothing of it is on its way any more.
    pub is_silent: bool,
    /// The receiver's half, once it is connected.
    pub responder: Option<Responder>,
}

/// The packet that would be executed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Of this request.
    pub want: usize,
    /// Its first packet.
    pub is_first: bool,
    /// Its last packet.
    pub is_last: bool,
    /// Packets that go at once: all of a READ's response.
    pub packets: u64,
    /// Grains of the request that it places: from, to.
    pub grains: (u32, u32),
}

impl Line {
    /// Packets of a posting.
    #[must_use]
    pub fn span(&self, posting: Posting, want: Want) -> u64 {
        want.op.span(want.grains * GRAIN - posting.offset, self.mtu)
    }

    /// The packet after the first `count` postings.
    #[must_use]
    pub fn end_of(&self, count: usize, wants: &[Want]) -> Psn64 {
        match self.postings[..count].last() {
            None => self.first_psn,
            Some((want, posting)) => posting.first_psn + self.span(*posting, wants[*want]),
        }
    }

    /// Gives the NIC a request.
    pub fn post(&mut self, want: usize, offset: u32, wants: &[Want]) -> Posting {
        let before = self.postings.iter().filter(|(want, _)| wants[*want].op.consumes_receive()).count();
        let first_psn = self.end_of(self.postings.len(), wants);
        let posting = Posting { epoch: self.epoch, first_psn, offset, receive_ordinal: before as u64 };
        self.postings.push((want, posting));
        posting
    }

    /// Postings that were executed whole.
    #[must_use]
    pub fn executed(&self, wants: &[Want]) -> usize {
        let end = self.first_psn + self.packets;
        let whole = |(want, posting): &(usize, Posting)| posting.first_psn + self.span(*posting, wants[*want]) <= end;
        self.postings.iter().take_while(|posting| whole(posting)).count()
    }

    /// What the receiver's NIC would execute next, if it gets there and may.
    #[must_use]
    pub fn next(&self, wants: &[Want]) -> Option<Next> {
        let responder = self.responder.filter(|responder| !responder.is_fenced && !self.is_silent)?;
        let done = self.executed(wants);
        let (want, posting) = *self.postings.get(done)?;
        let waits =
            |(earlier, (want, _)): (usize, &(usize, Posting))| earlier >= self.landed && wants[*want].has_result();
        if wants[want].fenced && self.postings[..done].iter().enumerate().any(waits) {
            return None;
        }
        let span = self.span(posting, wants[want]);
        let at = (self.first_psn + self.packets) - posting.first_psn;
        let packets = if wants[want].has_result() { span } else { 1 };
        let is_last = at + packets == span;
        let needs_receive = wants[want].op.consumes_receive() && is_last;
        if needs_receive && responder.buffers(wants) <= responder.consumed {
            return None;
        }
        let grains_of_a_packet = self.mtu.bytes() / GRAIN;
        let from = posting.offset / GRAIN + at as u32 * grains_of_a_packet;
        let to = (from + packets as u32 * grains_of_a_packet).min(wants[want].grains);
        Some(Next { want, is_first: at == 0, is_last, packets, grains: (from, to) })
    }

    /// The next request with a result whose answer may arrive.
    #[must_use]
    pub fn next_result(&self, wants: &[Want]) -> Option<usize> {
        let executed = self.executed(wants);
        let with_result = |nth: &usize| wants[self.postings[*nth].0].has_result();
        (!self.is_stopped).then(|| (self.landed..executed).find(with_result)).flatten()
    }

    /// The next request whose completion may be seen: those without a signal have none. Everything is signalled after the first incarnation.
    #[must_use]
    pub fn next_completion(&self, wants: &[Want]) -> Option<usize> {
        let is_seen = |nth: &usize| {
            let want = wants[self.postings[*nth].0];
            want.signalled || want.has_result() || self.epoch > Epoch::FIRST
        };
        let executed = self.executed(wants);
        let next = (self.completed..executed).find(is_seen)?;
        let waits = (self.landed..=next).any(|nth| wants[self.postings[nth].0].has_result());
        (!self.is_stopped && !waits).then_some(next)
    }
}

impl Responder {
    /// Receives that were posted: the application has as many as the peer may need, and two to spare.
    fn buffers(&self, wants: &[Want]) -> u64 {
        let needed = wants.iter().filter(|want| want.op.consumes_receive()).count() as u64 + 2;
        needed.saturating_sub(self.first_buffer) * self.copies
    }

    /// The place in the application's queue of the receive that is consumed next.
    #[must_use]
    pub const fn next_buffer(&self) -> u64 {
        self.first_buffer + self.consumed / self.copies
    }
}
