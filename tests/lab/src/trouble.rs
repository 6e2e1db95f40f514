//! What can go wrong, sorted by who is at fault: the machine the lab runs on, a guest, or the thing under test.

use std::io;
use std::time::Duration;

use crate::place::Host;

/// Result of everything in the lab.
pub type Result<T> = std::result::Result<T, Trouble>;

/// An error that says who is at fault.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The lab could not be set up on this machine.
    #[error("lab: {0}")]
    Setup(String),
    /// A guest died or stopped answering: the scenario's judgement is worth nothing.
    #[error("guest {}: {why}", host.name())]
    GuestLost {
        /// Which guest.
        host: Host,
        /// What was seen (kernel panic, silence).
        why: String,
    },
    /// Something that was waited for did not come.
    #[error("{what}: not within {} ms", limit.as_millis())]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The thing under test did wrong.
    #[error("{0}")]
    Judged(String),
    /// A file, socket or process of the lab failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Trouble {
    /// The machine or the lab's own setting up is at fault.
    pub fn setup(why: impl Into<String>) -> Trouble {
        Trouble::Setup(why.into())
    }

    /// The thing under test is at fault.
    pub fn judged(why: impl Into<String>) -> Trouble {
        Trouble::Judged(why.into())
    }

    /// `what` did not happen within `limit`.
    pub fn deadline(what: impl Into<String>, limit: Duration) -> Trouble {
        Trouble::Deadline { what: what.into(), limit }
    }
}

/// An I/O error with the path or command it concerns.
pub trait Concerning<T> {
    /// Names what failed.
    ///
    /// # Errors
    /// [`Trouble::Setup`] if `self` is an error.
    fn concerning(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: std::fmt::Display> Concerning<T> for std::result::Result<T, E> {
    fn concerning(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Trouble::Setup(format!("{what}: {error}")))
    }
}

/// Judges: an error with `why` unless `holds`.
///
/// # Errors
/// [`Trouble::Judged`].
pub fn require(holds: bool, why: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Trouble::Judged(why()))
    }
}
