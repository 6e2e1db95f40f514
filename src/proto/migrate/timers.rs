//! The timers of one machine. All are points in time; when the process slept they move on together, a few times at most.

use super::{Machine, Stage, StateName, MAX_RESEND_DOUBLINGS};
use crate::id::Micros;

/// A tick that comes later than this may mean that the process slept; a shorter stall deadline says nothing about that.
const LEAST_SLEEP: Micros = Micros::from_millis(200);
/// A machine that waits for anything wants a tick that often, so that of a sleep not more is given back than it lasted and this.
const WATCH: Micros = Micros::from_millis(100);
/// So many sleeps are given back until the machine comes to rest. A process that is held up again and again would hide an error for ever.
const MOST_SLEEPS: u32 = 8;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The answer to a claim, or COMMIT after an acceptance.
    Claim,
    /// The posters' way out.
    Exclude,
    /// The moment from which the own claim may go out.
    Pause,
    /// The end of a planned move's patience.
    Plan,
    /// The own fence.
    Fence,
    /// The packet lifetime.
    Settle,
    /// The exchange of reports and receives.
    Exchange,
    /// A first success.
    Patience,
    /// An answer to what was said.
    Resend,
}

impl Timer {
    /// In the order in which they fire when several are due.
    pub(super) const ALL: [Self; 9] = [
        Self::Claim,
        Self::Exclude,
        Self::Pause,
        Self::Plan,
        Self::Fence,
        Self::Settle,
        Self::Exchange,
        Self::Patience,
        Self::Resend,
    ];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Timers {
    due: [Option<Micros>; Timer::ALL.len()],
    resend_doublings: u32,
    /// Sleeps that were given back since nothing was waited for.
    sleeps: u32,
}

impl Timers {
    pub(super) const fn new() -> Self {
        Self { due: [None; Timer::ALL.len()], resend_doublings: 0, sleeps: 0 }
    }

    pub(super) fn set(&mut self, timer: Timer, at: Micros) {
        self.write(timer, Some(at));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.write(timer, None);
    }

    pub(super) fn clear_all(&mut self) {
        self.due = [None; Timer::ALL.len()];
    }

    pub(super) fn earliest(&self) -> Option<Micros> {
        self.due.iter().flatten().min().copied()
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.due.get(timer as usize).is_some_and(Option::is_some)
    }

    /// Whether it is due; if so, it is cleared.
    pub(super) fn take_due(&mut self, timer: Timer, now: Micros) -> bool {
        let due = self.due.get(timer as usize).copied().flatten().is_some_and(|at| at <= now);
        if due {
            self.clear(timer);
        }
        due
    }

    fn write(&mut self, timer: Timer, at: Option<Micros>) {
        if let Some(slot) = self.due.get_mut(timer as usize) {
            *slot = at;
        }
    }
}

impl Machine {
    /// Notes the time. If this comes later than the stall deadline after a tick was due, this process slept: nobody else is
    /// late, so every timer has as long to go as it had when the last input came.
    pub(super) fn wake(&mut self, now: Micros) {
        let (due, slept) = (self.tick_due(), now.since(self.now));
        self.now = self.now.max(now);
        let late = due.is_some_and(|due| self.now.since(due) > self.deadlines.stall.max(LEAST_SLEEP));
        if !late || self.timers.sleeps >= MOST_SLEEPS {
            return;
        }
        self.timers.sleeps += 1;
        let points = self.timers.due.iter_mut().flatten();
        for point in points.chain(&mut self.hold_until).chain(&mut self.patience_until) {
            *point = *point + slept;
        }
    }

    /// When a tick is wanted: at the next timer, and before it often enough to notice a sleep.
    pub(super) fn tick_due(&self) -> Option<Micros> {
        self.timers.earliest().map(|due| due.min(self.now + WATCH))
    }

    /// Sets the timers that follow from the state alone.
    pub(super) fn rearm(&mut self, before: StateName) {
        match self.patience_until.filter(|_| self.is_patient()) {
            Some(until) => self.timers.set(Timer::Patience, until),
            None => self.timers.clear(Timer::Patience),
        }
        if !self.is_waiting_for_an_answer() {
            self.timers.clear(Timer::Resend);
        } else if before != self.state() || !self.timers.is_set(Timer::Resend) {
            self.timers.resend_doublings = 0;
            self.set(Timer::Resend, self.deadlines.resend);
        }
        if self.timers.earliest().is_none() {
            self.timers.sleeps = 0;
        }
    }

    /// The next repetition comes after twice the time, up to a bound.
    pub(super) fn back_off(&mut self) {
        self.timers.resend_doublings = MAX_RESEND_DOUBLINGS.min(self.timers.resend_doublings.saturating_add(1));
        let interval = self.deadlines.resend.0.saturating_mul(1 << self.timers.resend_doublings);
        self.set(Timer::Resend, Micros(interval));
    }

    /// Whether an error is masked or held posts wait for a first success.
    fn is_patient(&self) -> bool {
        match self.stage {
            Stage::Running => self.fatal,
            Stage::Fencing | Stage::Fenced | Stage::Settling | Stage::Reposting | Stage::Ready => true,
            Stage::Replaying => self.fatal || !self.passage.as_ref().is_some_and(|passage| passage.replayed),
            Stage::Dead | Stage::Gone => false,
        }
    }

    pub(super) fn start_patience(&mut self) {
        let until = self.now + self.deadlines.patience;
        self.patience_until.get_or_insert(until);
    }
}
