//! What the application of a test does to its process, and what may be done to it.

use shift_control::datapath::{Event, QpLife};
use shift_proto::id::Epoch;

use super::{eventually, Kind, Process, Qp, Sent};

/// Both ends of the first queue pair are well there.
pub fn are_on(path: u8, ends: [&Process; 2]) -> bool {
    ends.iter().all(|end| end.qp(1, |q| q.path == path && q.is_running() && !q.surfaced))
}

/// Both send the message.
pub fn talk(ends: [&Process; 2], message: u32) {
    for end in ends {
        end.post(1, message, Kind::Send);
    }
}

/// Waits until each has what the other one sent, once and in order.
pub fn all_arrived(ends: [&Process; 2], messages: std::ops::Range<u32>) {
    eventually("all is delivered", || ends.iter().all(|end| end.is_done(1)));
    let all: Vec<u32> = messages.collect();
    assert_eq!(ends.map(|end| end.received(1)), [all.clone(), all]);
}

impl Process {
    /// Looks at a queue pair.
    pub fn qp<T>(&self, life: u32, look: impl FnOnce(&Qp) -> T) -> T {
        let mut state = self.fabric.lock();
        state.pump();
        look(state.qps.get(&(self.host, QpLife(life))).unwrap())
    }

    pub fn is_armed(&self, life: u32) -> bool {
        self.qp(life, |q| q.armed)
    }

    /// Posts a message as the application does.
    pub fn post(&self, life: u32, message: u32, kind: Kind) {
        let mut state = self.fabric.lock();
        let qp = state.qps.get_mut(&(self.host, QpLife(life))).unwrap();
        let held = qp.excluded || qp.sent.last().is_some_and(|s| s.posted.is_none() && !s.done);
        qp.sent.push(Sent { message, kind, posted: None, first: None, delivered: false, done: false });
        if !held {
            let last = qp.sent.len() - 1;
            qp.post_entry(last);
        }
        state.pump();
    }

    /// The NIC gives up: the error is kept from the application.
    pub fn fail(&self, life: u32) {
        let mut state = self.fabric.lock();
        let qp = state.qps.get_mut(&(self.host, QpLife(life))).unwrap();
        qp.error_in = Some(qp.epoch);
        self.events.send(Event::Fatal { qp: QpLife(life), epoch: Epoch(qp.epoch), status: 12 });
    }

    /// Stops its agent, as a stopped host would be, or lets it go on.
    pub fn suspend(&self, suspended: bool) {
        self.fabric.lock().suspended = suspended.then_some(self.host);
    }

    /// Its process is killed: the agent falls silent with its ports closed, the queue pairs are no more.
    pub fn kill(&self) {
        let mut state = self.fabric.lock();
        state.panic_in_sweep = Some(self.host);
        for (_, qp) in state.qps.iter_mut().filter(|((host, _), _)| *host == self.host) {
            qp.surfaced = true;
        }
    }

    /// The application destroys a queue pair.
    pub fn destroy(&self, life: u32) {
        self.fabric.lock().qps.get_mut(&(self.host, QpLife(life))).unwrap().surfaced = true;
        self.events.send(Event::Destroyed { qp: QpLife(life) });
    }

    /// All that was posted so far is complete.
    pub fn is_done(&self, life: u32) -> bool {
        self.qp(life, |q| q.sent.iter().all(|s| s.done))
    }

    pub fn received(&self, life: u32) -> Vec<u32> {
        self.qp(life, |q| q.received.clone())
    }
}
