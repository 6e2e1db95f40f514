//! What an agent does for the group of its process, as `shift-control` does it.

use shift_proto::id::{Micros, PathId, Site, MAX_SITES};
use shift_proto::migrate::{Goal, Input, Member, Order, Readiness, Scope, Stage};

use crate::world::{End, Happening, World, ARMING, PROBE_EVERY};

impl World {
    pub(super) fn probe_for_group(&mut self, process: usize, since: Micros) {
        for end in 0..self.ends.len() {
            if self.ends[end].process != process || !self.ends[end].met {
                continue;
            }
            for path in self.paths() {
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
            let site_of = |path| self.site_of(end, path);
            let mut member = match end.met {
                true => Member::of(at, &end.machine, site_of),
                false => Member::without_machine(at),
            };
            if end.failed {
                member.stage = Stage::Dead;
            }
            if self.now >= connected + ARMING {
                let late = member.readiness.iter_mut().filter(|readiness| **readiness == Readiness::Arming);
                late.for_each(|readiness| *readiness = Readiness::Unable);
            }
            member.sought = end.sought.filter(|_| end.seek.is_some());
            member.asked = end.machine.asked(Micros(self.now)).filter(|_| end.met);
            member.answered = [None; MAX_SITES];
            for path in self.paths() {
                let site = self.site_of(end, PathId(path)).unwrap();
                member.answered[usize::from(site.0)] = end.answered[usize::from(path)];
            }
            Some(member)
        };
        self.ends.iter().enumerate().filter_map(of).collect()
    }

    /// The numbers of the paths that a pair has.
    pub fn paths(&self) -> std::ops::RangeInclusive<u8> {
        0..=self.profile.standbys as u8
    }

    /// Where a path leads at that end.
    pub fn site_of(&self, end: &End, path: PathId) -> Option<Site> {
        let site = match (path.0, end.is_crossed) {
            (1, true) => Site(2),
            (2, true) => Site(1),
            (path, _) => Site(path),
        };
        self.paths().contains(&path.0).then_some(site)
    }

    /// The path that leads there.
    pub fn path_to(&self, end: &End, site: Site) -> PathId {
        self.paths().map(PathId).find(|path| self.site_of(end, *path) == Some(site)).unwrap()
    }

    /// Whether the pair of that end has the path whole.
    pub fn is_up(&self, end: usize, path: u8) -> bool {
        let is_whole = |end: &usize| {
            let end = &self.ends[*end];
            self.ports[end.process][usize::from(self.site_of(end, PathId(path)).unwrap().0)]
        };
        [end, end ^ 1].iter().all(is_whole)
    }

    /// A path answered a member that is in fault: of others than its own it is to claim the one that the group has chosen.
    pub(super) fn hear_answer(&mut self, end: usize, path: PathId) {
        self.tend(self.ends[end].process);
        let chosen = self.groups[self.ends[end].process].choice();
        let site = self.site_of(&self.ends[end], path);
        if path == self.ends[end].machine.path() || site == chosen {
            self.input(end, Input::PathAnswered(path));
        }
    }

    /// Whether anybody was told anything.
    pub(super) fn tend(&mut self, process: usize) -> bool {
        let members = self.members(process);
        let before = self.groups[process].goal();
        let orders = self.groups[process].turn(Micros(self.now), &members);
        let goal = self.groups[process].goal();
        if before.is_some() && goal.is_some() && goal != before {
            self.marks.insert("turned aside");
        }
        let is_resting = self.groups[process].goal().is_none();
        let mut told = !orders.is_empty();
        for order in orders {
            match order {
                Order::Follow(end, site, above) => {
                    if is_resting {
                        self.marks.insert("called");
                    }
                    let path = self.path_to(&self.ends[end], site);
                    self.give(end, Input::Follow(Goal { path, above }));
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
            let sites = self.groups[process].scope(member, readiness);
            let is_allowed = |path: &PathId| self.site_of(&self.ends[member.key], *path).is_some_and(|s| sites.has(s));
            let scope = self.paths().map(PathId).filter(is_allowed).fold(Scope::NOWHERE, Scope::with);
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
            let is_open =
                |path: &PathId| self.site_of(&self.ends[end], *path).is_some_and(|s| self.groups[process].is_open(s));
            let wants = self.ends[end].wants_receives.filter(is_open);
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
        let site = self.site_of(&self.ends[end], path).unwrap();
        if !self.groups[process].is_open(site) || self.dice.chance(self.profile.refused) {
            self.ends[end].wants_receives = Some(path);
            let again = self.now + 1000 + self.dice.below(20_000);
            return self.schedule(again, Happening::TryRepost(end, generation));
        }
        self.ends[end].wants_receives = None;
        self.settle(process, site);
        self.groups[process].posted(site);
        self.take_answer(end, Input::Reposted);
    }

    pub(super) fn settle(&mut self, process: usize, site: Site) {
        let (from, round) = (self.receives[process].home, self.groups[process].round());
        if !self.receives[process].settle(site.0, round) {
            return;
        }
        self.marks.insert(match (from == site.0, site.0) {
            (true, _) => "connected anew",
            (false, 0) => "moved back",
            (false, 1) => "moved",
            (false, _) => "moved further",
        });
        for (at, end) in self.ends.iter_mut().enumerate().filter(|(_, end)| end.process == process) {
            if end.failed {
                // Its object is in error already, and is put to RESET.
                (end.takes_on, end.in_hand) = (None, None);
            }
            let is_out = end.takes_on.is_none_or(|on| on == site.0 && from != site.0);
            assert!(is_out, "end {at} takes receives on {:?}\n{}", end.takes_on, self.trace.join("\n"));
        }
    }
}
