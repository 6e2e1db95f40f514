//! Every wait of the protocol has a deadline and a stated outcome. This is the table: the documentation is generated from it.

use alloc::format;
use alloc::string::String;
use core::fmt;

use crate::id::Micros;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadlineRow {
    /// Which one.
    pub name: &'static str,
    /// The environment variable that sets it, in milliseconds.
    pub variable: &'static str,
    /// The default.
    pub default: Micros,
    /// What it bounds.
    pub bounds: &'static str,
    /// What happens when it passes.
    pub outcome: &'static str,
    /// Why the default is what it is.
    pub reason: &'static str,
}

macro_rules! deadlines {
    ($($field:ident, $variable:literal, $millis:literal, $bounds:literal, $outcome:literal, $reason:literal;)*) => {
        /// All deadlines. Made by [`Deadlines::default`] and [`Deadlines::set`], to be checked by [`Deadlines::check`] before use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct Deadlines {
            $(#[doc = $bounds] #[doc = ""] #[doc = concat!("When it passes: ", $outcome, ". `", $variable, "`.")] pub $field: Micros,)*
        }

        impl Default for Deadlines {
            fn default() -> Self {
                Self { $($field: Micros::from_millis($millis),)* }
            }
        }

        /// The table of deadlines.
        pub static DEADLINES: &[DeadlineRow] = &[$(DeadlineRow {
            name: stringify!($field),
            variable: $variable,
            default: Micros::from_millis($millis),
            bounds: $bounds,
            outcome: $outcome,
            reason: $reason,
        },)*];

        impl Deadlines {
            /// Sets the deadline of that variable. `None`: no deadline has that variable.
            pub fn set(&mut self, variable: &str, value: Micros) -> Option<()> {
                match variable {
                    $($variable => self.$field = value,)*
                    _ => return None,
                }
                Some(())
            }

            /// The deadline of that variable.
            #[must_use]
            pub fn get(&self, variable: &str) -> Option<Micros> {
                match variable {
                    $($variable => Some(self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

deadlines! {
    stall, "SHIFT_STALL_MS", 50,
        "outstanding work without progress, on a path that takes no longer than that to answer",
        "probe the path",
        "well above the tail of a loaded fabric's round trips, well below the first NIC time-out of common settings; a probe costs a packet";
    probe, "SHIFT_PROBE_MS", 200,
        "one probe of a path; of the current path, while it stands still, at least 300 ms more than its answers take",
        "the path counts as dead: trigger",
        "three retries of a NIC fit in, and a slow path is no dead one";
    hold, "SHIFT_HOLD_MS", 2000,
        "waiting for the NIC's own retries while something outstanding could end in an error",
        "claim, or accept instead of waiting",
        "a link that flaps for a second heals by retransmission; the agent lowers it to the QP's retry budget where that is shorter";
    claim, "SHIFT_CLAIM_MS", 500,
        "the answer to a claim; COMMIT after an acceptance",
        "before COMMIT: CANCEL or lapse, and claim again until patience ends",
        "several control round trips, with room for one lost frame";
    exclude, "SHIFT_EXCLUDE_MS", 100,
        "a poster or poller inside an open wr_start or start_poll",
        "before ACCEPT: WAIT; before COMMIT: CANCEL",
        "an open post takes microseconds; a thread that lost its CPU comes back within a few time slices";
    plan, "SHIFT_PLAN_MS", 1000,
        "a planned move, from the hold of the own sends until the peer has accepted",
        "CANCEL; posting goes on on the old path, and the move is tried again later",
        "what is outstanding ends within milliseconds; sends to a peer that is not ready for them may take any time";
    fence, "SHIFT_FENCE_MS", 1000,
        "the provider's recipe for a fence",
        "the other end fences, both wait the packet lifetime, no PSN proof from the end that could not; neither can: surface",
        "flushing a full queue takes milliseconds; a firmware that is busy takes some hundred";
    drain, "SHIFT_DRAIN_MS", 200,
        "work that is still out after ERR, within the fence",
        "RESET without it: of a send the peer's report decides, one missing receive voids both proofs of this end",
        "flushing a full queue takes milliseconds; some completions never come (soft-RoCE, a fenced atomic whose ACK was lost)";
    packet_lifetime, "SHIFT_PACKET_LIFETIME_MS", 500,
        "how long a packet of an incarnation that is not fenced may still arrive",
        "the end that could not fence drains once more and reports",
        "switch buffers hold milliseconds; pause storms some hundred";
    exchange, "SHIFT_EXCHANGE_MS", 3000,
        "reports, receives reposted, replay posted",
        "surface",
        "a fence and a packet lifetime at each end, and lost frames besides";
    key_lookup, "SHIFT_KEY_LOOKUP_MS", 1000,
        "an unknown remote key asked of the peer",
        "the request ends with RETRY_EXC_ERR and the QP flushes behind it",
        "one control round trip, with room for lost frames";
    patience, "SHIFT_PATIENCE_MS", 10000,
        "from the first masked error or the fence, whichever is first, to the first success, all waits together",
        "surface",
        "well below the watchdogs of collective libraries, well above the reboot of a switch port";
    hold_down, "SHIFT_HOLD_DOWN_MS", 5000,
        "how long a path must be good before the connection goes back to it; doubles for a flapping link up to a bound",
        "probe again",
        "longer than link training and route convergence";
    heartbeat, "SHIFT_HEARTBEAT_MS", 1000,
        "silence on a control connection",
        "try the next network; none: the peer counts as unreachable",
        "several intervals of keep-alive frames";
    resend, "SHIFT_RESEND_MS", 20,
        "an answer to a handshake message; doubles with each repetition up to a bound",
        "send again",
        "a few control round trips";
    control_round_trip, "SHIFT_CONTROL_ROUND_TRIP_MS", 100,
        "the longest round trip that the control connection is trusted to have; the checks of the others rest on it",
        "nothing by itself",
        "a management network under load";
}

/// The longest hold-down of a path that keeps flapping.
pub const MAX_HOLD_DOWN: Micros = Micros::from_millis(300_000);

/// How often the interval of re-sends doubles: 20 ms becomes 320 ms, still several tries within a claim deadline.
pub const MAX_RESEND_DOUBLINGS: u32 = 4;

/// How long a group of queue pairs that share their receives waits for its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupLimits {
    /// From the first COMMIT until all have said COMMIT; whoever has not is left behind. A COMMIT at the end of it still leaves time for the drain.
    pub come: Micros,
    /// From the first COMMIT until all are fenced; whoever is not is left behind. What is left of the exchange is for READY.
    pub fence: Micros,
    /// Before the first COMMIT, for the answers to probes of those who are not in fault.
    pub ask: Micros,
    /// For one who is connected where the receives are not, to get to where they are.
    pub call: Micros,
    /// From the first COMMIT, for those who hold by plan to be claimed; who is not is told to follow, as after a fault.
    pub depart: Micros,
    /// For a muster to be complete.
    pub plan: Micros,
    /// For those who take part in one that others lead.
    pub muster: Micros,
}

/// A relation between two deadlines does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadlineError(String);

impl fmt::Display for DeadlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for DeadlineError {}

impl Deadlines {
    /// How long sends are held for a planned move of a group that others lead: the leader decides within the plan's deadline, and the claims reach
    /// every group, one after the other, in the time of two.
    #[must_use]
    pub const fn muster(&self) -> Micros {
        Micros(self.plan.0.saturating_add(self.claim.0.saturating_mul(2)))
    }

    /// What follows from them for groups.
    #[must_use]
    pub const fn group_limits(&self) -> GroupLimits {
        let fence = self.exchange.since(Micros(self.control_round_trip.0.saturating_mul(2)));
        let come = fence.since(Micros(self.drain.0.saturating_mul(2)));
        let ask = Micros(self.probe.0.saturating_mul(3));
        let depart = Micros(come.0 / 2);
        GroupLimits { come, fence, ask, call: self.patience, depart, plan: self.plan, muster: self.muster() }
    }

    /// Checks the relations between the deadlines.
    ///
    /// # Errors
    /// One does not hold; the text names it and the variables.
    pub fn check(&self) -> Result<(), DeadlineError> {
        if let Some(row) = DEADLINES.iter().find(|row| self.get(row.variable) == Some(Micros(0))) {
            return Err(DeadlineError(format!("{} is 0: a wait without time always fails", row.variable)));
        }
        let two_trips = Micros(self.control_round_trip.0.saturating_mul(2));
        longer("SHIFT_CLAIM_MS", self.claim, "two round trips (2 * SHIFT_CONTROL_ROUND_TRIP_MS)", two_trips)?;
        longer("SHIFT_CLAIM_MS", self.claim, "SHIFT_EXCLUDE_MS", self.exclude)?;
        longer("SHIFT_FENCE_MS", self.fence, "SHIFT_DRAIN_MS", self.drain)?;
        let fence_and_lifetime = self.fence + self.packet_lifetime;
        longer("SHIFT_EXCHANGE_MS", self.exchange, "SHIFT_FENCE_MS + SHIFT_PACKET_LIFETIME_MS", fence_and_lifetime)?;
        // What members of a group need to come along, see [`GroupLimits`].
        let company = self.claim + Micros(self.drain.0.saturating_mul(2)) + two_trips;
        let words = "SHIFT_CLAIM_MS + 2 * SHIFT_DRAIN_MS + 2 * SHIFT_CONTROL_ROUND_TRIP_MS";
        longer("SHIFT_EXCHANGE_MS", self.exchange, words, company)?;
        longer("SHIFT_PATIENCE_MS", self.patience, "SHIFT_HOLD_MS", self.hold)
    }
}

fn longer(name: &str, value: Micros, than: &str, bound: Micros) -> Result<(), DeadlineError> {
    if value > bound {
        return Ok(());
    }
    Err(DeadlineError(format!(
        "{name} ({value}) has to be longer than {than} ({bound}): raise {name} or lower the other"
    )))
}
