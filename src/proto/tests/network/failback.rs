//! One end's wish to go back to the first path, by the same hold-down as the agent's (`src/control/plans.rs`).

use shift_proto::health::HoldDown;
use shift_proto::id::{Micros, PathId};

#[derive(Debug)]
pub struct Failback {
    hold: HoldDown,
    at: PathId,
    /// A move that was put off is tried again after that.
    not_before: Micros,
    pub returns: u64,
}

/// First pause after a move was tried.
const PAUSE: Micros = Micros::from_millis(500);

impl Failback {
    pub fn new(least: Micros) -> Self {
        Self { hold: HoldDown::new(least), at: PathId::PRIMARY, not_before: Micros(0), returns: 0 }
    }

    pub fn pace(&self) -> Micros {
        self.hold.pace()
    }

    /// A probe of the first path was answered, or was not; whether it is to be gone back to now.
    pub fn look(&mut self, now: Micros, answers: bool) -> bool {
        if !answers {
            self.hold.note_bad();
            return false;
        }
        self.hold.note_answer(now);
        let wants = self.hold.is_over(now) && now >= self.not_before;
        if wants {
            self.not_before = now + PAUSE;
        }
        wants
    }

    pub fn note_down(&mut self, path: PathId) {
        if path == PathId::PRIMARY {
            self.hold.note_bad();
        }
    }

    /// The connection moves, past return.
    pub fn note_moved(&mut self, target: PathId, is_planned: bool, now: Micros) {
        let left = std::mem::replace(&mut self.at, target);
        match (left == PathId::PRIMARY, target == PathId::PRIMARY) {
            (true, false) if is_planned => self.hold.note_bad(),
            (true, false) => self.hold.note_fault(now),
            (false, true) => {
                self.hold.note_returned(now);
                self.returns += 1;
            }
            (true, true) | (false, false) => {}
        }
    }
}
