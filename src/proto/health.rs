//! When a path that was left is good enough to go back to: it has answered for the hold-down time, which doubles for a path that flaps.
//!
//! Owns the arithmetic of one path's hold-down; refuses to own the probes. What must hold: between two returns lies at least the hold-down of
//! that moment, and it stays between the operator's value and [`MAX_HOLD_DOWN`](crate::migrate::MAX_HOLD_DOWN), or the operator's where that is
//! longer. So in a time T there are at most as many returns as doublings to the bound, and T divided by half of it.

use crate::id::Micros;
use crate::migrate::MAX_HOLD_DOWN;

/// Probes in a row that have to be answered at least, however short the hold-down is.
pub const LEAST_ANSWERS: u32 = 3;
/// Probes in a hold-down.
const PROBES: u64 = 10;
/// Pace of those probes at most and at least.
const SLOWEST: Micros = Micros::from_millis(1_000);
const FASTEST: Micros = Micros::from_millis(50);

/// The hold-down of one path.
#[derive(Clone, Copy, Debug)]
pub struct HoldDown {
    least: Micros,
    span: Micros,
    /// The connection went back to it then.
    returned: Option<Micros>,
    /// The first of the probes in a row that were answered was sent then.
    good_since: Option<Micros>,
    answers: u32,
}

impl HoldDown {
    /// Of a path that has not been left yet; the shortest time that it has to be good.
    #[must_use]
    pub const fn new(least: Micros) -> Self {
        Self { least, span: least, returned: None, good_since: None, answers: 0 }
    }

    /// How long it has to be good now.
    #[must_use]
    pub const fn span(&self) -> Micros {
        self.span
    }

    /// How often it is to be probed meanwhile.
    #[must_use]
    pub fn pace(&self) -> Micros {
        Micros(self.span.0 / PROBES).clamp(FASTEST, SLOWEST)
    }

    /// It was left for a fault. If the connection had gone back to it the next time is twice as long, and half of that for each of the longest
    /// hold-downs that it was good in between.
    pub fn note_fault(&mut self, now: Micros) {
        if let Some(returned) = self.returned.take() {
            let most = MAX_HOLD_DOWN.max(self.least);
            let doubled = Micros(self.span.0.saturating_mul(2)).min(most);
            let halvings = (now.since(returned).0 / MAX_HOLD_DOWN.0).min(63);
            self.span = Micros(doubled.0 >> halvings).max(self.least);
        }
        self.note_bad();
    }

    /// The connection is on it again.
    pub fn note_returned(&mut self, now: Micros) {
        self.returned = Some(now);
        self.note_bad();
    }

    /// A probe that was sent then was answered.
    pub fn note_answer(&mut self, sent: Micros) {
        self.good_since.get_or_insert(sent);
        self.answers = self.answers.saturating_add(1);
    }

    /// A probe was not, or its port went down: the time begins anew.
    pub fn note_bad(&mut self) {
        (self.good_since, self.answers) = (None, 0);
    }

    /// It has been good for long enough.
    #[must_use]
    pub fn is_over(&self, now: Micros) -> bool {
        self.answers >= LEAST_ANSWERS && self.good_since.is_some_and(|since| now >= since + self.span)
    }
}
