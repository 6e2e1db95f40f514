//! The failover protocol under the explorer: two of `shift-proto`'s machines, each with its ledger, between them paths, NICs and a network.
//!
//! Nothing of the protocol is written a second time here: what an end claims, fences, reports, decides and replays comes out of
//! [`shift_proto::migrate::Machine`], [`shift_proto::ledger::Ledger`] and [`shift_proto::policy`]. This module owns what they run in:
//! [`line`] is one direction of one incarnation, from the sender's NIC to the receiver's; [`end`] is the data path of one end; [`world`]
//! has both, the messages on their way, and everything that may happen next; [`rules`] judges, and so does [`lockstep`], which holds every step against an
//! atomic distributed object.
//!
//! **Time** is no number: a deadline that runs may pass at any moment, so nothing here rests on how long a deadline is. The one exception is
//! the packet lifetime, which is what it says: when it passes, nothing of an incarnation that its sender has stopped arrives any more.
//!
//! **Messages** are never taken from the network: each may be delivered at any time, again and again, or never. That is delay, loss,
//! repetition and reordering together, and makes a message said twice no other state than said once.

pub mod checks;
pub mod controls;
pub mod end;
pub mod line;
mod lockstep;
mod path;
pub mod rules;
pub mod world;

use shift_proto::ledger::Op;
use shift_proto::policy::OnUnknown;

pub use controls::Control;
pub use world::{Step, World};

/// Bytes of a packet on a path with the smallest MTU: the grain in which executions are counted.
pub const GRAIN: u32 = 256;

/// One request of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    /// What it does.
    pub op: Op,
    /// How much, in grains.
    pub grains: u32,
    /// It waits for earlier READs and atomics.
    pub fenced: bool,
    /// The application wants a completion.
    pub signalled: bool,
    /// The policy in force.
    pub unknown: OnUnknown,
}

impl Want {
    /// One packet, signalled, not fenced, to be replayed where nothing is known.
    #[must_use]
    pub const fn of(op: Op) -> Self {
        Self { op, grains: 1, fenced: false, signalled: true, unknown: OnUnknown::Replay }
    }

    /// It waits for earlier results.
    #[must_use]
    pub const fn fenced(self) -> Self {
        Self { fenced: true, ..self }
    }

    /// Nobody asked for its completion.
    #[must_use]
    pub const fn unsignalled(self) -> Self {
        Self { signalled: false, ..self }
    }

    /// An error where nothing is known.
    #[must_use]
    pub const fn or_error(self) -> Self {
        Self { unknown: OnUnknown::Error, ..self }
    }

    /// So long.
    #[must_use]
    pub const fn long(self, grains: u32) -> Self {
        Self { grains, ..self }
    }

    /// Its result comes back to the requester.
    #[must_use]
    pub const fn has_result(self) -> bool {
        matches!(self.op, Op::Read | Op::FetchAdd | Op::CompareSwap)
    }

    /// Nothing is wrong if it is executed once more before anything behind it.
    #[must_use]
    pub const fn may_repeat(self) -> bool {
        matches!(self.op, Op::Write | Op::Read)
    }
}

/// What a fenced end's NIC says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proven {
    /// Its packet number.
    Psn,
    /// How many receives succeeded.
    Count,
    /// Nothing but the successes.
    Successes,
}

/// What may happen in a world, and how often. The bounds of a search.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What each end's application posts.
    pub wants: [Vec<Want>; 2],
    /// How many of the first end's it posts at the beginning; the rest at any time.
    pub posted: usize,
    /// MTU of each path, in grains.
    pub mtus: Vec<u32>,
    /// The first packet number on each path.
    pub first_psn: u64,
    /// What fences prove.
    pub proven: Proven,
    /// Queue pairs that go into ERR under their work.
    pub faults: u8,
    /// Ports that go down with nothing lost.
    pub suspects: u8,
    /// Wishes to go to another path with nothing wrong.
    pub moves: u8,
    /// Fences that do not complete.
    pub failing_fences: u8,
    /// Deadlines that pass, but for those that lead on.
    pub lapses: u8,
    /// Receives whose completion vanishes in an overrun queue.
    pub lost_completions: u8,
    /// Applications that destroy their queue pair.
    pub destroys: u8,
    /// Posters that are inside when they are to be out, and leave when they like.
    pub posters: u8,
    /// Times that what is said to one end is lost, from one moment to another.
    pub cuts: u8,
    /// To whom everything is lost, from the beginning and for good.
    pub deaf: [bool; 2],
    /// Claims that each end makes at most.
    pub claims: u32,
    /// The consumer looks at written data without waiting for a notification.
    pub polls_data: bool,
    /// Every step is held against an atomic distributed object.
    pub refines: bool,
    /// What is broken on purpose.
    pub control: Option<Control>,
}

impl Setting {
    /// One fault on the first of two paths, everything posted at the beginning, exact proofs.
    #[must_use]
    pub fn one_fault(wants: &[Want]) -> Self {
        Self {
            wants: [wants.to_vec(), Vec::new()],
            posted: wants.len(),
            mtus: vec![1, 1],
            first_psn: 0x00ff_ffff,
            proven: Proven::Psn,
            faults: 1,
            suspects: 0,
            moves: 0,
            failing_fences: 0,
            lapses: 0,
            lost_completions: 0,
            destroys: 0,
            posters: 0,
            cuts: 0,
            deaf: [false; 2],
            claims: 1,
            polls_data: false,
            refines: true,
            control: None,
        }
    }

    /// The same with that broken.
    #[must_use]
    pub fn with(self, control: Control) -> Self {
        Self { control: Some(control), ..self }
    }

    /// Whether that is broken.
    #[must_use]
    pub fn breaks(&self, control: Control) -> bool {
        self.control == Some(control)
    }

    /// What is reported was found before the fence was done.
    pub(super) fn samples_early(&self) -> bool {
        self.breaks(Control::CountBeforeFence) || self.breaks(Control::PsnBeforeFence)
    }
}
