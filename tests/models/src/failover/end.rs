//! The data path of one end: it does what its machine asks for, as the shim does, and feeds the answers back.

use std::sync::Arc;

use shift_proto::id::{EndpointId, Epoch, Micros, PathId, ProcessId, Tuple};
use shift_proto::ledger::{IncarnationReport, Ledger};
use shift_proto::migrate::{Deadlines, Effect, Handshake, Input, Machine};

use super::Setting;

/// Where the clocks stand. Far from 0, so that what is long past is before it.
pub const NOW: Micros = Micros(1_000_000_000);

/// One end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// The machine that ships.
    pub machine: Machine,
    /// The ledger that ships.
    pub ledger: Ledger,
    /// Its queue pair is in ERR.
    pub in_error: bool,
    /// Nobody posts.
    pub is_stopped: bool,
    /// Somebody is inside.
    pub is_inside: bool,
    /// Who is inside is asked to leave, and nobody else is let in.
    pub is_asked: bool,
    /// The fence runs.
    pub is_fencing: bool,
    /// What was found when the fence began, by epoch, for those who take that for a result: packets, receives.
    pub early: Vec<(Epoch, u64, u64)>,
    /// The highest epoch for which COMMIT was said here.
    pub committed: Epoch,
    /// Before that, for those who go back.
    pub before: Option<Arc<Machine>>,
    /// The path that it has to go to, for those who bind themselves.
    pub bound: Option<PathId>,
    /// Paths are sought.
    pub is_seeking: bool,
    /// Sends go to this incarnation.
    pub posting: Epoch,
    /// Receives were posted for that.
    pub reposted: Option<Tuple>,
    /// Requests that the application has posted.
    pub posted: usize,
    /// Requests that are complete, from the first on.
    pub retired: usize,
    /// Decided complete, as bits.
    pub decided: u32,
    /// When those before that are retired the machine is told; and whether that is a stop.
    pub awaited: Option<(usize, bool)>,
    /// The machine knows that something could end in an error.
    pub risk: bool,
    /// Own reports.
    pub reports: Vec<IncarnationReport>,
    /// No incarnation below that one is reported any more.
    pub forgotten: Epoch,
    /// The NIC had its time to heal what could end in an error, since the last migration.
    pub has_waited: bool,
    /// Receives that the application has taken.
    pub polled: u64,
    /// The application has an error.
    pub is_surfaced: bool,
    /// Where the first plan stopped.
    pub stop: Option<usize>,
    /// Claims sent.
    pub claims: u32,
    /// Something was wrong with its path.
    pub was_faulted: bool,
    /// The application destroyed its queue pair.
    pub is_destroyed: bool,
}

/// The name of an end. The second one's claims are the larger.
#[must_use]
pub const fn endpoint(side: usize) -> EndpointId {
    EndpointId { process: ProcessId(10 + side as u64), life: 1, side: 0 }
}

impl End {
    /// Armed on every path.
    #[must_use]
    pub fn new(side: usize, setting: &Setting) -> Self {
        let mut machine = Machine::new(endpoint(side), endpoint(1 - side), Deadlines::default());
        for path in 0..setting.mtus.len() {
            machine.handle(NOW, Input::PathArmed(PathId(path as u8)));
        }
        Self {
            machine,
            ledger: Ledger::new(),
            in_error: false,
            is_stopped: false,
            is_inside: false,
            is_asked: false,
            is_fencing: false,
            early: Vec::new(),
            committed: Epoch::FIRST,
            before: None,
            bound: None,
            is_seeking: false,
            posting: Epoch::FIRST,
            reposted: None,
            posted: if side == 0 { setting.posted } else { setting.wants[1].len() },
            retired: 0,
            decided: 0,
            awaited: None,
            risk: false,
            reports: Vec::new(),
            forgotten: Epoch::FIRST,
            has_waited: false,
            polled: 0,
            is_surfaced: false,
            stop: None,
            claims: 0,
            was_faulted: false,
            is_destroyed: false,
        }
    }

    /// Gives the machine an input and takes its effects, but for those that are only for the log.
    pub fn give(&mut self, input: Input) -> Vec<Effect> {
        self.machine.handle(NOW, input);
        self.effects()
    }

    /// The same with a message of which it is not asked whether it is of a higher epoch.
    pub fn give_unchecked(&mut self, message: Handshake) -> Vec<Effect> {
        self.machine.hear_as_new(message);
        self.effects()
    }

    /// What it wants done.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.machine.poll_effect()).filter(|effect| !matches!(effect, Effect::Phase(_))).collect()
    }
}
