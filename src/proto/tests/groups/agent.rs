//! What an agent does for the group of its process, as `shift-control` does it.

use shift_proto::id::Micros;
use shift_proto::migrate::{Input, Member, Order, Readiness, Stage};

use crate::world::{End, Happening, World, ARMING, PROBE_EVERY};

impl World {
    pub(super) fn probe_for_group(&mut self, process: usize, since: Micros) {
        for end in 0..self.ends.len() {
            if self.ends[end].process != process || !self.ends[end].met {
                continue;
            }
            for path in 0..2 {
                if self.is_up(end, path) {
                    self.ends[end].answered[usize::from(path)] = Some(Micros(self.now));
                }
            }
        }
        self.tend(process);
        if since != Micros(0) && self.probing[process] == Some(since) {
            let delay = PROBE_EVERY + self.dice.below(PROBE_EVERY);
            self.schedule(self.now + delay, Happening::GroupProbe(process, since));
        }
    }

    pub(super) fn members(&self, process: usize) -> Vec<Member<usize>> {
        let of = |(at, end): (usize, &End)| {
            let connected = end.connected.filter(|_| end.process == process)?;
            let mut member = if end.met { Member::of(at, &end.machine) } else { Member::without_machine(at) };
            if end.failed {
                member.stage = Stage::Dead;
            }
            if member.readiness == Readiness::Arming && self.now >= connected + ARMING {
                member.readiness = Readiness::Unable;
            }
            member.sought = end.sought.filter(|_| end.seek.is_some());
            member.asked = end.machine.asked(Micros(self.now)).filter(|_| end.met);
            member.answered = end.answered;
            Some(member)
        };
        self.ends.iter().enumerate().filter_map(of).collect()
    }

    /// Whether anybody was told anything.
    pub(super) fn tend(&mut self, process: usize) -> bool {
        let members = self.members(process);
        let orders = self.groups[process].turn(Micros(self.now), &members);
        let is_resting = self.groups[process].goal().is_none();
        let mut told = !orders.is_empty();
        for order in orders {
            match order {
                Order::Follow(end, goal) => {
                    if is_resting {
                        self.marks.insert("called");
                    }
                    self.give(end, Input::Follow(goal));
                }
                Order::Depart(end) => self.give(end, Input::Depart),
                Order::Stay(end) => {
                    self.marks.insert("stayed");
                    self.give(end, Input::Stay);
                }
                Order::LeaveBehind(end) => {
                    self.marks.insert(if is_resting { "called in vain" } else { "left behind" });
                    self.give(end, Input::LeftBehind);
                }
            }
        }
        told |= self.muster(process);
        let members = self.members(process);
        let readiness = self.groups[process].readiness(&members);
        for member in &members {
            let scope = self.groups[process].scope(member, readiness);
            self.ends[member.key].machine.confine(scope);
        }
        let sought = self.groups[process].seeks(&members);
        if sought != self.probing[process] {
            self.probing[process] = sought;
            if let Some(since) = sought {
                let delay = self.dice.below(PROBE_EVERY);
                self.schedule(self.now + delay, Happening::GroupProbe(process, since));
            }
        }
        for end in 0..self.ends.len() {
            let wants = self.ends[end].wants_receives.filter(|path| self.groups[process].is_open(*path));
            if wants.is_some() && self.ends[end].process == process {
                self.ends[end].wants_receives = None;
                let (delay, generation) = (self.dice.below(3000), self.ends[end].generation);
                self.schedule(self.now + delay, Happening::TryRepost(end, generation));
            }
        }
        told
    }

    /// The receives of the process are posted, unless something has come in between.
    pub(super) fn try_repost(&mut self, end: usize, generation: u64) {
        let (process, path) = (self.ends[end].process, self.ends[end].machine.path());
        if generation != self.ends[end].generation || self.ends[end].machine.state().stage != Stage::Reposting {
            return;
        }
        self.tend(process);
        if !self.groups[process].is_open(path) || self.dice.chance(self.profile.refused) {
            self.ends[end].wants_receives = Some(path);
            let again = self.now + 1000 + self.dice.below(20_000);
            return self.schedule(again, Happening::TryRepost(end, generation));
        }
        self.ends[end].wants_receives = None;
        self.settle(process, path.0);
        self.groups[process].posted(path);
        self.take_answer(end, Input::Reposted);
    }

    pub(super) fn settle(&mut self, process: usize, path: u8) {
        let (from, round) = (self.receives[process].home, self.groups[process].round());
        if !self.receives[process].settle(path, round) {
            return;
        }
        self.marks.insert(match (from == path, path) {
            (true, _) => "connected anew",
            (false, 0) => "moved back",
            (false, _) => "moved",
        });
        for (at, end) in self.ends.iter_mut().enumerate().filter(|(_, end)| end.process == process) {
            if end.failed {
                // Its object is in error already, and is put to RESET.
                (end.takes_on, end.in_hand) = (None, None);
            }
            let is_out = end.takes_on.is_none_or(|on| on == path && from != path);
            assert!(is_out, "end {at} takes receives on {:?}\n{}", end.takes_on, self.trace.join("\n"));
        }
    }
}
