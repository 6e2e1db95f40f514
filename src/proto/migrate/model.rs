//! What a model checker needs of a machine and nobody else: time that is no number. Its clock stands still, and a deadline passes when it is
//! told to, so that what holds there holds whatever the deadlines are and however fast the two clocks go.

use super::table::Event;
use super::timers::Timer;
use super::{Handshake, Machine};
use crate::id::Micros;

impl Machine {
    /// The deadlines that are running.
    pub fn running(&self) -> impl Iterator<Item = Timer> + '_ {
        Timer::ALL.into_iter().filter(|timer| self.timers.is_set(*timer))
    }

    /// That deadline passes now; the clock does not move. Then [`Machine::poll_effect`] until it is empty.
    pub fn pass(&mut self, timer: Timer) {
        if timer == Timer::Pause {
            self.pass_hold();
            self.pause_until = self.pause_until.min(self.now);
        }
        self.timers.set(timer, self.now);
        self.handle(self.now, super::Input::Tick);
    }

    /// Takes a message as if it was of a higher epoch, whatever it says: what the epoch check is there to keep out. Then
    /// [`Machine::poll_effect`] until it is empty.
    pub fn hear_as_new(&mut self, message: Handshake) {
        let before = self.state();
        let (event, cue) = self.event_of_message(message);
        let renamed = [(Event::OldClaim, Event::Claim), (Event::OldCommit, Event::Commit)];
        let event = renamed.into_iter().find(|(old, _)| *old == event).map_or(event, |(_, new)| new);
        self.perform(event, cue);
        self.rearm(before);
    }

    /// Whether the NIC still has time to heal what could end in an error.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.hold_until.is_some_and(|until| until > self.now)
    }

    /// That time is over.
    pub fn pass_hold(&mut self) {
        self.hold_until = self.hold_until.map(|until| until.min(self.now));
    }

    /// The path that killed its queue pair has no better rivals any more.
    pub fn pass_probe(&mut self) {
        self.sought_since = Micros(0);
    }
}
