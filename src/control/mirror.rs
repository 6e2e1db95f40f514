//! A queue pair that is connected to itself: both sides of its handshake live here.
//!
//! Side 0 is the queue pair as any other, with its ledger. Side 1 is only the receiving half: it shares the fence, the receives and
//! the exclusion with side 0, has nothing to replay, and never claims. Messages cross in memory, one round of the loop later.

use std::collections::VecDeque;

use shift_proto::id::{EndpointId, Epoch, Micros};
use shift_proto::ledger::IncarnationReport;
use shift_proto::migrate::{Deadlines, Effect, Handshake, Input, Machine};

use crate::qp::Qp;
use crate::world::World;

/// The second side, and what is on its way between the two.
pub(crate) struct Mirror {
    pub machine: Machine,
    to_mirror: VecDeque<Handshake>,
    to_self: VecDeque<Handshake>,
    excluding: bool,
    excluded: bool,
    fencing: bool,
    reposting: Option<Epoch>,
    /// What the shared fence found, and in which epoch it was left.
    fenced: Option<(Epoch, Vec<IncarnationReport>, bool)>,
    /// The epoch for which the shared receives are posted.
    reposted: Option<Epoch>,
}

impl Mirror {
    /// The other side of `me`.
    pub fn new(me: EndpointId, deadlines: Deadlines) -> Self {
        Self {
            machine: Machine::new(Self::end_of(me), me, deadlines),
            to_mirror: VecDeque::new(),
            to_self: VecDeque::new(),
            excluding: false,
            excluded: false,
            fencing: false,
            reposting: None,
            fenced: None,
            reposted: None,
        }
    }

    /// How the protocol names the other side of `me`.
    pub fn end_of(me: EndpointId) -> EndpointId {
        EndpointId { side: 1, ..me }
    }

    /// A message of side 0.
    pub fn tell(&mut self, msg: Handshake) {
        self.to_mirror.push_back(msg);
    }

    /// The shared fence is done.
    pub fn note_fenced(&mut self, epoch: Epoch, reports: &[IncarnationReport], complete: bool) {
        self.fenced = Some((epoch, reports.to_vec(), complete));
    }

    /// The shared receives are posted.
    pub fn note_reposted(&mut self, epoch: Epoch) {
        self.reposted = Some(epoch);
    }

    /// It needs the posters to stay out.
    pub fn keeps_out(&self) -> bool {
        self.excluded || self.excluding
    }

    /// Nothing is under way between the sides.
    pub fn is_quiet(&self) -> bool {
        let waits = self.excluding || self.fencing || self.reposting.is_some();
        self.to_mirror.is_empty() && self.to_self.is_empty() && !waits
    }

    /// What side 1 can be told now.
    fn due(&mut self, now: Micros) -> Option<Input> {
        if let Some(msg) = self.to_mirror.pop_front() {
            return Some(Input::Frame(msg));
        }
        let epoch = self.machine.epoch();
        if self.fencing {
            if let Some((_, reports, complete)) = self.fenced.take_if(|(of, _, _)| *of == epoch) {
                self.fencing = false;
                return Some(Input::Fenced { reports, complete });
            }
        }
        if self.reposting.is_some() && self.reposting == self.reposted {
            self.reposting = None;
            return Some(Input::Reposted);
        }
        self.machine.deadline().is_some_and(|due| now >= due).then_some(Input::Tick)
    }
}

impl Qp {
    /// Whether the application connected it to itself.
    pub fn is_own_peer(&self) -> bool {
        self.own_address() == self.peer_address()
    }

    /// Gives side 1 an input.
    pub fn feed_mirror(&mut self, world: &World, now: Micros, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(mirror) = &mut self.mirror else {
                return;
            };
            log::trace!("qp {:#x} side 1: {input:?}", self.facts.qpn);
            mirror.machine.handle(now, input);
            while let Some(effect) = self.mirror.as_mut().and_then(|m| m.machine.poll_effect()) {
                log::trace!("qp {:#x} side 1: -> {effect:?}", self.facts.qpn);
                self.perform_mirror(world, effect, &mut inputs);
            }
        }
    }

    fn perform_mirror(&mut self, world: &World, effect: Effect, inputs: &mut VecDeque<Input>) {
        let Some(mirror) = &mut self.mirror else {
            return;
        };
        match effect {
            Effect::Send(msg) => mirror.to_self.push_back(msg),
            Effect::Exclude => mirror.excluding = true,
            Effect::Release => {
                (mirror.excluding, mirror.excluded) = (false, false);
                if !self.excluded {
                    world.data.release(self.life);
                    self.held = true;
                }
            }
            Effect::Fence => mirror.fencing = true,
            Effect::Repost { tuple } => mirror.reposting = Some(tuple.epoch),
            Effect::Replay { .. } => {
                (mirror.excluding, mirror.excluded) = (false, false);
                inputs.extend([Input::Replayed, Input::Retired]);
            }
            // Side 0 does these for both; it hears of an error by the message.
            Effect::Seek
            | Effect::StopSeek
            | Effect::Forget { .. }
            | Effect::Confirmed { .. }
            | Effect::Surface { .. }
            | Effect::Phase(_) => {}
        }
    }

    /// Carries messages across and goes on with what side 1 waits for.
    pub fn tick_mirror(&mut self, world: &mut World, now: Micros) {
        while let Some(input) = self.mirror.as_mut().and_then(|m| m.due(now)) {
            self.feed_mirror(world, now, input);
        }
        if self.mirror.as_ref().is_some_and(|m| m.excluding) && world.data.exclude(self.life) {
            if let Some(mirror) = &mut self.mirror {
                (mirror.excluding, mirror.excluded) = (false, true);
            }
            self.feed_mirror(world, now, Input::Excluded);
        }
        if self.mirror.as_ref().is_some_and(|m| m.machine.wants_drain()) && self.is_drained(world) {
            self.feed_mirror(world, now, Input::Drained);
        }
        let heard = self.mirror.as_mut().map(|m| std::mem::take(&mut m.to_self)).unwrap_or_default();
        for msg in heard {
            self.feed(world, now, Input::Frame(msg));
        }
    }
}
