//! Planned moves of whole groups: what an agent does for them, as `shift-control` does it, and what is judged of them.

use std::collections::BTreeSet;

use shift_proto::id::{Micros, PathId, ProcessId, Site};
use shift_proto::migrate::{Call, Errand, Handshake, Input, Muster, Progress, Stage, Word};

use crate::world::{End, Happening, World};

/// Sends that take no time to speak of end within that.
const QUICK_US: u64 = 20_000;
/// The others.
const SLOW_US: u64 = 3_000_000;

impl End {
    /// It holds for a planned move, and nothing is outstanding.
    pub fn is_complete(&self) -> bool {
        let plan = self.machine.plan();
        plan.is_some_and(|plan| matches!(plan.progress, Progress::Complete | Progress::Leaving))
    }
}

impl World {
    /// The process would rather be on its other path.
    pub(super) fn wish(&mut self, process: usize) {
        let home = self.groups[process].home();
        let away = Site(1 + self.dice.below(self.profile.standbys) as u8);
        let target = if home == Site::PRIMARY { away } else { Site::PRIMARY };
        let members = self.members(process);
        let mut live = members.iter().filter(|member| member.is_live()).peekable();
        let may = self.groups[process].goal().is_none() && self.musters[process].call().is_none();
        if !may || live.peek().is_none() || !live.all(|member| target.of(&member.can_go) == Some(&true)) {
            return;
        }
        self.led += 1;
        let call = Call { leader: ProcessId(10 + process as u64), number: self.led };
        self.musters[process].lead(Micros(self.now), call, target);
        self.muster(process);
    }

    pub(super) fn hear(&mut self, end: usize, call: Call, target: PathId, word: Word) {
        let process = self.ends[end].process;
        self.trace.push(format!("{} {end} hears {word:?} of {call:?}", self.now));
        let known = self.musters[process].call();
        if !self.ends[end].met {
            return;
        }
        let target = self.site_of(&self.ends[end], target).unwrap();
        let errands = self.musters[process].hear(Micros(self.now), end, (call, target), word);
        if known.is_some_and(|known| self.musters[process].call().is_some_and(|call| call != known)) {
            self.marks.insert("another one stood");
        }
        self.perform(errands);
        self.settle_groups(process);
    }

    fn settle_groups(&mut self, process: usize) {
        for _ in 0..4 {
            if !self.tend(process) {
                break;
            }
        }
    }

    /// Goes on with the muster of a process; whether anybody was told anything.
    pub(super) fn muster(&mut self, process: usize) -> bool {
        let before = self.musters[process].target();
        let members = self.members(process);
        let errands = self.musters[process].turn(Micros(self.now), &members);
        let is_told = errands.iter().any(|errand| !matches!(errand, Errand::Say(..)));
        self.perform(errands);
        if let (Some(target), None) = (before, self.musters[process].call()) {
            let has_moved = members.iter().any(|member| member.is_live() && member.site == target);
            self.marks.insert(if has_moved { "moved by plan" } else { "put off" });
        }
        if self.musters[process].call().is_some() && !std::mem::replace(&mut self.mustering[process], true) {
            self.schedule(self.now + Muster::<usize>::pace().0, Happening::MusterPace(process));
        }
        is_told
    }

    pub(super) fn keep_pace(&mut self, process: usize) {
        self.mustering[process] = false;
        self.settle_groups(process);
    }

    fn perform(&mut self, errands: Vec<Errand<usize>>) {
        for errand in errands {
            match errand {
                Errand::Say(end, call, target, word) => {
                    let target = self.path_to(&self.ends[end], target);
                    self.send(end, Handshake::Muster { call, target, word });
                }
                Errand::Hold(end, target) => self.give(end, Input::Muster(self.path_to(&self.ends[end], target))),
                Errand::Depart(end) => self.give(end, Input::Depart),
                Errand::Dismiss(end) => self.give(end, Input::Dismiss),
            }
        }
    }

    /// Whether the sends of an end are complete is asked for.
    pub(super) fn watch_sends(&mut self, end: usize) {
        if !self.ends[end].machine.wants_drain() {
            self.ends[end].draining = None;
        } else if self.ends[end].draining.is_none() {
            self.order += 1;
            let wait = self.order;
            self.ends[end].draining = Some(wait);
            let limit = if self.dice.chance(self.profile.slow_sends) { SLOW_US } else { QUICK_US };
            let delay = self.dice.below(limit);
            self.schedule(self.now + delay, Happening::SendsOver(end, wait));
        }
    }

    pub(super) fn sends_over(&mut self, end: usize, wait: u64) {
        if self.ends[end].draining != Some(wait) {
            return;
        }
        let path = self.ends[end].machine.path().0;
        if !self.is_up(end, path) || self.ends[end].in_error {
            return self.schedule(self.now + QUICK_US, Happening::SendsOver(end, wait));
        }
        self.ends[end].draining = None;
        self.input(end, Input::Hold(false));
        self.input(end, Input::Drained);
    }

    /// Everybody who has to follow holds and is complete.
    pub(super) fn judge_plan(&mut self, end: usize) {
        let site_of = |end: &End| self.site_of(end, end.machine.path());
        let target = site_of(&self.ends[end]);
        let mut reached = BTreeSet::from([self.ends[end].process]);
        while let Some(next) = self.beyond(&reached) {
            reached.insert(next);
        }
        let has_come = |other: &End| site_of(other) == target || other.is_complete();
        let takes_part =
            |other: &&End| reached.contains(&other.process) && other.connected.is_some() && other.is_live();
        if !self.ends.iter().filter(takes_part).all(has_come) {
            self.marks.insert("committed too early");
        }
    }

    /// A process that is connected with those, and is not one of them.
    fn beyond(&self, reached: &BTreeSet<usize>) -> Option<usize> {
        let is_in = |at: usize| reached.contains(&self.ends[at].process);
        let mut links = (0..self.ends.len()).filter(|at| self.ends[*at].is_live() && self.ends[at ^ 1].is_live());
        links.find(|at| is_in(*at) && !is_in(at ^ 1)).map(|at| self.ends[at ^ 1].process)
    }
}

impl End {
    fn is_live(&self) -> bool {
        !self.failed && !matches!(self.machine.state().stage, Stage::Dead | Stage::Gone)
    }
}
