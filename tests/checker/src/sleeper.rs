//! When an end that sleeps may poll: after an event, and once after it asked for the next. Not otherwise: an event that never comes is a run that
//! stands still.

/// The order in which a program that sleeps does things.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sleeper {
    /// Something may be there: poll until nothing is, then arm.
    #[default]
    Awake,
    /// Armed, and to look once more: what came before that makes no event.
    Armed,
    /// Nothing was there: the next poll is after an event.
    Asleep,
}

impl Sleeper {
    /// What follows a poll that gave so many completions; whether the queues are to be armed now.
    #[must_use]
    pub const fn polled(self, count: usize) -> (Self, bool) {
        match self {
            _ if count > 0 => (Self::Awake, false),
            Self::Awake => (Self::Armed, true),
            Self::Armed | Self::Asleep => (Self::Asleep, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_once_more_after_arming_and_then_sleeps() {
        let awake = Sleeper::default();
        assert_eq!(awake.polled(3), (Sleeper::Awake, false));
        assert_eq!(awake.polled(0), (Sleeper::Armed, true));
        assert_eq!(Sleeper::Armed.polled(1), (Sleeper::Awake, false));
        assert_eq!(Sleeper::Armed.polled(0), (Sleeper::Asleep, false));
    }
}
