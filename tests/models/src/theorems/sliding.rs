//! A SEND that is executed twice consumes two receives, and every later message slides into the wrong buffer.

/// How the sender goes on after a time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Sends again from the first that was not acknowledged.
    Blind,
    /// Sends again from the first that the receiver has not counted.
    ByCount,
}

/// What became of the messages of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// By buffer, which message it holds.
    pub holds: Vec<Option<usize>>,
    /// Receives left.
    pub left: usize,
    /// A message found no receive: the receiver answered RNR.
    pub not_ready: bool,
}

impl Buffers {
    /// Message `i` lies in buffer `i`, each once.
    #[must_use]
    pub fn are_aligned(&self, messages: usize) -> bool {
        !self.not_ready
            && (0..messages).all(|nth| self.holds.get(nth) == Some(&Some(nth)))
            && self.holds[messages..].iter().all(Option::is_none)
    }
}

/// `messages` are sent to `buffers` receives; of the first `executed` the acknowledgements stop after `acknowledged`; then the sender recovers.
#[must_use]
pub fn run(messages: usize, buffers: usize, executed: usize, acknowledged: usize, recovery: Recovery) -> Buffers {
    let mut receiver = Buffers { holds: vec![None; buffers], left: buffers, not_ready: false };
    (0..executed).for_each(|message| receiver.receive(message));
    let from = match recovery {
        Recovery::Blind => acknowledged,
        Recovery::ByCount => buffers - receiver.left,
    };
    (from..messages).for_each(|message| receiver.receive(message));
    receiver
}

impl Buffers {
    fn receive(&mut self, message: usize) {
        if self.left == 0 {
            self.not_ready = true;
            return;
        }
        let next = self.holds.len() - self.left;
        self.holds[next] = Some(message);
        self.left -= 1;
    }
}
