//! One connection at one end: a window of messages under way, every byte of which is checked where it is received.

use std::collections::VecDeque;
use std::io;

use crate::net::{End, Net, NetError, Part, Receiver, Region, Registration, Request, Sender};
use crate::plan::{Piece, Plan, GUARD, MAX_BYTES};

/// Messages under way on one connection.
const WINDOW: usize = 4;
/// Room for a message with all its guards.
pub const SLOT_BYTES: usize = MAX_BYTES + (1 << 12);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// NCCL said so.
    #[error(transparent)]
    Net(#[from] NetError),
    /// There was no memory for it.
    #[error(transparent)]
    Memory(#[from] io::Error),
    /// What was received is not what was sent.
    #[error("message {message}, part {part} of {parts}: byte {at} of {len} is wrong")]
    Damage {
        /// Which message.
        message: u64,
        /// Which part.
        part: usize,
        /// Of how many.
        parts: usize,
        /// First wrong byte.
        at: usize,
        /// Bytes of the part.
        len: usize,
    },
    /// NCCL gave another length.
    #[error("message {message}: lengths {found:?} and not {expected:?}")]
    Length {
        /// Which message.
        message: u64,
        /// As NCCL says.
        found: Vec<i32>,
        /// As they were sent.
        expected: Vec<usize>,
    },
}

/// What a connection did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Messages that are complete.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages of several parts.
    pub grouped: u64,
    /// Flushes that NCCL found necessary.
    pub flushes: u64,
}

/// The sending end.
#[derive(Debug)]
pub struct Sending {
    sender: Sender,
    plan: Plan,
    region: Region,
    registration: Registration,
    next: u64,
    under_way: VecDeque<Sent>,
    /// What it did so far.
    pub done: Done,
}

#[derive(Debug)]
struct Sent {
    message: u64,
    pieces: Vec<Piece>,
    /// One for each part that is posted, in the order of posting; none once it is done.
    requests: Vec<Option<Request>>,
}

impl Sending {
    /// Of a connected sender.
    ///
    /// # Errors
    /// There is no memory, or NCCL refuses it.
    pub fn new(net: &Net, sender: Sender, plan: Plan) -> Result<Sending, Broken> {
        let region = Region::new(WINDOW * SLOT_BYTES)?;
        let registration = net.register(End::Sends(&sender), &region)?;
        let under_way = VecDeque::new();
        Ok(Sending { sender, plan, region, registration, next: 0, under_way, done: Done::default() })
    }

    /// The first `goal` messages are sent.
    pub fn has_done(&self, goal: u64) -> bool {
        self.done.messages >= goal
    }

    /// Goes on as far as it can, up to the first `goal` messages; whether anything happened.
    ///
    /// # Errors
    /// NCCL gave up.
    pub fn step(&mut self, net: &Net, goal: u64) -> Result<bool, Broken> {
        let mut moved = self.start_next(goal);
        // In order: a part of a later message is not posted before all parts of the earlier ones are.
        for sent in &mut self.under_way {
            let slot = slot(sent.message);
            while sent.requests.len() < sent.pieces.len() {
                let first = self.plan.first_part(sent.message, sent.pieces.len());
                let index = (first + sent.requests.len()) % sent.pieces.len();
                let Some(piece) = sent.pieces.get(index) else { break };
                let memory = (&self.region, self.registration);
                let Some(request) = net.send(&self.sender, memory, (slot + piece.at, piece.len), piece.tag)? else {
                    break;
                };
                sent.requests.push(Some(request));
                moved = true;
            }
            if sent.requests.len() < sent.pieces.len() {
                break;
            }
        }
        Ok(self.finish(net)? || moved)
    }

    fn start_next(&mut self, goal: u64) -> bool {
        if self.under_way.len() >= WINDOW || self.next >= goal {
            return false;
        }
        let message = self.next;
        self.next += 1;
        let pieces = self.plan.pieces(message);
        for piece in &pieces {
            piece.fill(&self.region, slot(message));
        }
        self.under_way.push_back(Sent { message, pieces, requests: Vec::new() });
        true
    }

    fn finish(&mut self, net: &Net) -> Result<bool, Broken> {
        let mut moved = false;
        for request in self.under_way.iter_mut().flat_map(|sent| &mut sent.requests) {
            let over = match request {
                Some(open) => net.test(open)?.is_some(),
                None => false,
            };
            if over {
                *request = None;
                moved = true;
            }
        }
        while self.under_way.front().is_some_and(Sent::is_done) {
            let Some(sent) = self.under_way.pop_front() else { break };
            self.done.count(&sent.pieces);
        }
        Ok(moved)
    }

    /// Ends it.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn close(self, net: &Net) -> Result<(), NetError> {
        net.deregister(End::Sends(&self.sender), self.registration)?;
        net.close_sender(self.sender)
    }
}

impl Sent {
    fn is_done(&self) -> bool {
        self.requests.len() == self.pieces.len() && self.requests.iter().all(Option::is_none)
    }
}

impl Done {
    fn count(&mut self, pieces: &[Piece]) {
        self.messages += 1;
        self.bytes += pieces.iter().map(|piece| piece.len as u64).sum::<u64>();
        self.grouped += u64::from(pieces.len() > 1);
    }
}

fn slot(message: u64) -> usize {
    (message % WINDOW as u64) as usize * SLOT_BYTES
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiving {
    receiver: Receiver,
    plan: Plan,
    region: Region,
    registration: Registration,
    next: u64,
    under_way: VecDeque<Awaited>,
    /// What it did so far.
    pub done: Done,
}

#[derive(Debug)]
struct Awaited {
    message: u64,
    pieces: Vec<Piece>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Receiving(Request),
    Flushing(Request),
    Visible,
}

impl Receiving {
    /// Of an accepted receiver.
    ///
    /// # Errors
    /// There is no memory, or NCCL refuses it.
    pub fn new(net: &Net, receiver: Receiver, plan: Plan) -> Result<Receiving, Broken> {
        let region = Region::new(WINDOW * SLOT_BYTES)?;
        let registration = net.register(End::Receives(&receiver), &region)?;
        let under_way = VecDeque::new();
        Ok(Receiving { receiver, plan, region, registration, next: 0, under_way, done: Done::default() })
    }

    /// The first `goal` messages are received and checked.
    pub fn has_done(&self, goal: u64) -> bool {
        self.done.messages >= goal
    }

    /// Goes on as far as it can, up to the first `goal` messages; whether anything happened.
    ///
    /// # Errors
    /// NCCL gave up, or something else was received than was sent.
    pub fn step(&mut self, net: &Net, goal: u64) -> Result<bool, Broken> {
        let mut moved = self.start_next(net, goal)?;
        for awaited in &mut self.under_way {
            let memory = (&self.region, self.registration);
            let (next, flushed) = match &awaited.step {
                Step::Receiving(request) => match net.test(request)? {
                    Some(lengths) => awaited.received(net, &self.receiver, memory, &lengths)?,
                    None => continue,
                },
                Step::Flushing(request) if net.test(request)?.is_some() => (Step::Visible, 0),
                Step::Flushing(_) | Step::Visible => continue,
            };
            awaited.step = next;
            self.done.flushes += flushed;
            moved = true;
        }
        while self.under_way.front().is_some_and(|awaited| matches!(awaited.step, Step::Visible)) {
            let Some(awaited) = self.under_way.pop_front() else { break };
            awaited.verify(&self.region)?;
            self.done.count(&awaited.pieces);
        }
        Ok(moved)
    }

    fn start_next(&mut self, net: &Net, goal: u64) -> Result<bool, Broken> {
        if self.under_way.len() >= WINDOW || self.next >= goal {
            return Ok(false);
        }
        let message = self.next;
        let pieces = self.plan.pieces(message);
        for piece in &pieces {
            piece.poison(&self.region, slot(message));
        }
        let parts = parts(message, &pieces);
        let request = net.receive(&self.receiver, (&self.region, self.registration), &parts)?;
        let Some(request) = request else { return Ok(false) };
        self.under_way.push_back(Awaited { message, pieces, step: Step::Receiving(request) });
        self.next += 1;
        Ok(true)
    }

    /// Ends it.
    ///
    /// # Errors
    /// NCCL refuses.
    pub fn close(self, net: &Net) -> Result<(), NetError> {
        net.deregister(End::Receives(&self.receiver), self.registration)?;
        net.close_receiver(self.receiver)
    }
}

/// Some of them with more room than is needed.
fn parts(message: u64, pieces: &[Piece]) -> Vec<Part> {
    let spare = if message.is_multiple_of(3) { GUARD / 2 } else { 0 };
    let part = |piece: &Piece| Part { at: slot(message) + piece.at, room: piece.len + spare, tag: piece.tag };
    pieces.iter().map(part).collect()
}

impl Awaited {
    /// Checks the lengths, and asks for a flush.
    fn received(
        &self,
        net: &Net,
        receiver: &Receiver,
        memory: (&Region, Registration),
        lengths: &[i32],
    ) -> Result<(Step, u64), Broken> {
        let found = lengths.get(..self.pieces.len()).unwrap_or(lengths);
        let right = self.pieces.iter().zip(found).all(|(piece, found)| piece.len == *found as usize);
        if !right {
            let expected = self.pieces.iter().map(|piece| piece.len).collect();
            return Err(Broken::Length { message: self.message, found: found.to_vec(), expected });
        }
        let flush = net.flush(receiver, memory, &parts(self.message, &self.pieces), found)?;
        Ok(flush.map_or((Step::Visible, 0), |request| (Step::Flushing(request), 1)))
    }

    fn verify(&self, region: &Region) -> Result<(), Broken> {
        for (part, piece) in self.pieces.iter().enumerate() {
            let parts = self.pieces.len();
            let damage = |at| Broken::Damage { message: self.message, part, parts, at, len: piece.len };
            piece.verify(region, slot(self.message)).map_err(damage)?;
        }
        Ok(())
    }
}
