//! What the two ends say to each other about a migration.

use alloc::vec::Vec;
use core::fmt;

use super::muster::{Call, Word};
use crate::id::{Epoch, PathId, Tuple};
use crate::ledger::IncarnationReport;

macro_rules! causes {
    ($($(#[$about:meta])* $name:ident = $number:literal, $told:literal;)*) => {
        /// What made an end claim. Each has its number on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Cause {
            $($(#[$about])* $name = $number,)*
        }

        impl Cause {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }

        impl fmt::Display for Cause {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $told,)*
                })
            }
        }
    };
}

causes! {
    /// A completion with IBV_WC_RETRY_EXC_ERR.
    RetryExceeded = 1, "retries exceeded";
    /// Flushes with no error before them that the application did not cause.
    Flushed = 2, "flushed without an error";
    /// Outstanding work made no progress and a probe of the path got no answer.
    Stalled = 3, "stalled";
    /// The port or the link went down, or a path attribute it needs is gone.
    PortDown = 4, "port down";
    /// The device is gone or in an internal error.
    DeviceLost = 5, "device lost";
    /// The peer said that the path is dead.
    PeerNotice = 6, "peer notice";
    /// An operator asked.
    Operator = 7, "operator";
    /// A planned move of a healthy connection: WAIT means that the own sends are not complete, ACCEPT that they are.
    Planned = 8, "planned";
    /// Another queue pair of the same shared receive queue has moved there.
    Group = 9, "group";
    /// A planned move of all queue pairs that share their receives: both ends hold their sends, and those that were out are complete.
    Muster = 10, "muster";
}

impl Cause {
    /// Nothing is wrong with the path that is left.
    #[must_use]
    pub const fn is_planned(self) -> bool {
        matches!(self, Self::Planned | Self::Muster)
    }
}

/// One message of the handshake. All may be lost, delayed, repeated and reordered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Handshake {
    /// The sender wants the connection on `tuple.target` in `tuple.epoch`.
    Claim {
        /// The attempt.
        tuple: Tuple,
        /// Why.
        cause: Cause,
    },
    /// The sender posts nothing any more and waits for COMMIT or CANCEL.
    Accept {
        /// The attempt.
        tuple: Tuple,
    },
    /// The sender is not armed for that.
    Refuse {
        /// The attempt.
        tuple: Tuple,
    },
    /// The sender holds new posts and lets its NIC retry: ask again.
    Wait {
        /// The attempt.
        tuple: Tuple,
    },
    /// The point of no return.
    Commit {
        /// The attempt.
        tuple: Tuple,
    },
    /// The owner gave the attempt up.
    Cancel {
        /// The attempt.
        tuple: Tuple,
    },
    /// What the sender's fence found.
    Report {
        /// The attempt.
        tuple: Tuple,
        /// The fence completed. An end that could not fence says so at once with no reports, and again with its reports
        /// when the packet lifetime is over.
        fenced: bool,
        /// One per incarnation since the last confirmed epoch, newest last. At most [`MAX_REPORTS`].
        reports: Vec<IncarnationReport>,
    },
    /// The sender's receives are posted on the new path.
    Ready {
        /// The attempt.
        tuple: Tuple,
    },
    /// What the sender replayed has retired.
    Confirm {
        /// The attempt.
        tuple: Tuple,
        /// The sender has the receiver's CONFIRM; no answer is wanted.
        seen: bool,
    },
    /// The sender surfaced an error: the connection is over.
    Dead {
        /// The epoch in which it did.
        epoch: Epoch,
    },
    /// The sender's application holds an error of its own; answer to a claim.
    Surface {
        /// The attempt.
        tuple: Tuple,
    },
    /// The sender's application destroyed the QP, or its process ended in an orderly way.
    Gone,
    /// What the groups of the two ends say to each other before a planned move; no machine hears it.
    Muster {
        /// Which one.
        call: Call,
        /// Where the connection is to go with it.
        target: PathId,
        /// What is said of it.
        word: Word,
    },
}

/// Reports in one message: one for each incarnation that the sender keeps.
pub const MAX_REPORTS: usize = crate::ledger::MAX_INCARNATIONS;

impl Handshake {
    /// The attempt it belongs to.
    #[must_use]
    pub const fn tuple(&self) -> Option<Tuple> {
        match self {
            Self::Claim { tuple, .. }
            | Self::Accept { tuple }
            | Self::Refuse { tuple }
            | Self::Wait { tuple }
            | Self::Commit { tuple }
            | Self::Cancel { tuple }
            | Self::Report { tuple, .. }
            | Self::Ready { tuple }
            | Self::Confirm { tuple, .. }
            | Self::Surface { tuple } => Some(*tuple),
            Self::Dead { .. } | Self::Gone | Self::Muster { .. } => None,
        }
    }
}
