//! Processes, their groups, the machines of their queue pairs, the messages on their way.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use shift_proto::id::{EndpointId, Micros, PathId, ProcessId, Site};
use shift_proto::ledger::{IncarnationReport, Proof};
use shift_proto::migrate::{
    Cause, Deadline, Deadlines, Effect, Goal, Group, Handshake, Input, Machine, Member, Order, Scope, Stage,
};

use super::{Control, Setting};
use crate::explorer::fingerprint;

/// Where the clocks stand.
const NOW: Micros = Micros(1_000_000_000);
/// Members and groups that have something to say to one another do so at once; more rounds than there are processes lead nowhere.
const ROUNDS: usize = 8;

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct End {
    /// The machine that ships.
    pub machine: Machine,
    /// Its queue pair is in ERR.
    pub in_error: bool,
    /// A path is sought.
    pub is_seeking: bool,
    /// The other path answered a probe that was sent since.
    pub is_answered: bool,
    /// The fence runs.
    pub is_fencing: bool,
    /// It is connected, and waits for receives there.
    pub wants_receives: bool,
    /// The round of its group by which the receives were posted that it takes.
    pub takes_on: Option<u64>,
    /// Claims so far.
    pub claims: u32,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Letter {
    print: u64,
    /// What.
    pub message: Arc<Handshake>,
}

impl PartialEq for Letter {
    fn eq(&self, other: &Self) -> bool {
        (self.print, &self.message) == (other.print, &other.message)
    }
}
impl Eq for Letter {}
impl Hash for Letter {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.print.hash(hasher);
    }
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Both ends of each pair, one behind the other.
    pub ends: Vec<Arc<End>>,
    /// By process.
    pub groups: Vec<Arc<Group<usize>>>,
    /// By whom they are for, in the order in which they arrive.
    pub letters: Vec<Vec<Letter>>,
    faults: u8,
    lates: u8,
    destroys: u8,
    /// What is broken already.
    pub wrong: Option<&'static str>,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next message to that end arrives.
    Deliver(usize),
    /// A queue pair goes into ERR.
    Fail(usize),
    /// The other path answers one that seeks.
    Answer(usize),
    /// It answers all of a process.
    Probe(usize),
    /// A fence is done.
    Fence(usize),
    /// Receives are posted.
    Post(usize),
    /// A deadline passes.
    Pass(usize, Deadline),
    /// A group waits no longer.
    Late(usize),
    /// A queue pair is destroyed.
    Destroy(usize),
}

impl World {
    pub(super) fn new(setting: &Setting) -> Self {
        let deadlines = Deadlines::default();
        let endpoint = |end: usize| {
            let process = ProcessId(10 + setting.process_of(end) as u64);
            EndpointId { process, life: 1 + end as u32, side: 0 }
        };
        let end = |nth: usize| {
            let mut machine = Machine::new(endpoint(nth), endpoint(nth ^ 1), deadlines);
            machine.fix();
            for path in [PathId::PRIMARY, PathId::STANDBY] {
                machine.handle(NOW, Input::PathArmed(path));
            }
            Arc::new(End {
                machine,
                in_error: false,
                is_seeking: false,
                is_answered: false,
                is_fencing: false,
                wants_receives: false,
                takes_on: Some(0),
                claims: 0,
            })
        };
        let mut world = Self {
            ends: (0..2 * setting.pairs.len()).map(end).collect(),
            groups: (0..setting.processes()).map(|_| Arc::new(Group::new(deadlines.group_limits()))).collect(),
            letters: vec![Vec::new(); 2 * setting.pairs.len()],
            faults: setting.faults,
            lates: setting.lates,
            destroys: setting.destroys,
            wrong: None,
        };
        (0..setting.processes()).for_each(|process| _ = world.tend(setting, process, NOW));
        world
    }

    fn of<'a>(&'a self, setting: &'a Setting, process: usize) -> impl Iterator<Item = usize> + 'a {
        (0..self.ends.len()).filter(move |end| setting.process_of(*end) == process)
    }

    fn end(&mut self, end: usize) -> &mut End {
        Arc::make_mut(&mut self.ends[end])
    }

    pub(super) fn steps(&self, setting: &Setting, steps: &mut Vec<Step>) {
        if self.wrong.is_some() {
            return;
        }
        steps.extend((0..self.letters.len()).filter(|to| !self.letters[*to].is_empty()).map(Step::Deliver));
        for (nth, end) in self.ends.iter().enumerate() {
            let stage = end.machine.state().stage;
            if matches!(stage, Stage::Dead | Stage::Gone) {
                continue;
            }
            let may_fail = self.faults > 0 && stage == Stage::Running && !end.in_error && end.takes_on.is_some();
            steps.extend(may_fail.then_some(Step::Fail(nth)));
            steps.extend((end.is_seeking && end.claims < setting.claims).then_some(Step::Answer(nth)));
            steps.extend(end.is_fencing.then_some(Step::Fence(nth)));
            steps.extend((end.wants_receives && self.is_open(setting, nth)).then_some(Step::Post(nth)));
            steps.extend((self.destroys > 0).then_some(Step::Destroy(nth)));
            // What is on its way arrives before it is waited for in vain: start-up checks that a claim has two round trips.
            let is_silent = self.letters[nth].is_empty() && self.letters[nth ^ 1].is_empty();
            let leads_on = |timer: &Deadline| match timer {
                Deadline::Claim => is_silent,
                Deadline::Pause => end.claims < setting.claims,
                _ => false,
            };
            steps.extend(end.machine.running().filter(leads_on).map(|timer| Step::Pass(nth, timer)));
        }
        for (process, group) in self.groups.iter().enumerate() {
            let is_unanswered = |end: usize| !self.ends[end].is_answered;
            let is_asked = group.seeks(&self.members(setting, process)).is_some();
            steps.extend((is_asked && self.of(setting, process).any(is_unanswered)).then_some(Step::Probe(process)));
            steps.extend((self.lates > 0 && group.goal().is_some()).then_some(Step::Late(process)));
        }
    }

    fn is_open(&self, setting: &Setting, nth: usize) -> bool {
        let process = setting.process_of(nth);
        let is_open = self.groups[process].is_open(Site(self.ends[nth].machine.path().0));
        let is_posted = |end: usize| self.ends[end].takes_on.is_some_and(|round| round > 0);
        match setting.control {
            Some(Control::NoGate) => true,
            Some(Control::WaitsForPeers) => is_open && self.of(setting, process).all(|end| is_posted(end ^ 1)),
            None => is_open,
        }
    }

    pub(super) fn take(&mut self, setting: &Setting, step: Step) {
        match step {
            Step::Deliver(to) => {
                let Letter { message, .. } = self.letters[to].remove(0);
                self.input(setting, to, Input::Frame(Handshake::clone(&message)));
            }
            Step::Fail(nth) => {
                self.faults -= 1;
                self.end(nth).in_error = true;
                self.input(setting, nth, Input::Fault { cause: Cause::RetryExceeded, fatal: true });
            }
            Step::Answer(nth) => {
                self.end(nth).is_answered = true;
                self.settle(setting);
                let chosen = self.groups[setting.process_of(nth)].choice();
                if chosen == Some(Site(1)) {
                    self.input(setting, nth, Input::PathAnswered(PathId::STANDBY));
                }
            }
            Step::Probe(process) => {
                let ends: Vec<_> = self.of(setting, process).collect();
                ends.into_iter().for_each(|end| self.end(end).is_answered = true);
                self.settle(setting);
            }
            Step::Fence(nth) => {
                let end = self.end(nth);
                (end.is_fencing, end.takes_on) = (false, None);
                let (epoch, path) = (shift_proto::id::Epoch(0), PathId::PRIMARY);
                let report = IncarnationReport { epoch, path, proof: Proof::Count, receives: 0, fenced: true };
                self.input(setting, nth, Input::Fenced { reports: vec![report], complete: true });
            }
            Step::Post(nth) => self.post(setting, nth),
            Step::Pass(nth, timer) => {
                self.end(nth).machine.pass(timer);
                self.drain(nth);
                self.settle(setting);
            }
            Step::Late(process) => {
                self.lates -= 1;
                let limits = Deadlines::default().group_limits();
                self.tend(setting, process, NOW + limits.fence);
                self.settle(setting);
            }
            Step::Destroy(nth) => {
                self.destroys -= 1;
                let end = self.end(nth);
                (end.takes_on, end.wants_receives, end.is_fencing) = (None, false, false);
                self.input(setting, nth, Input::Destroyed);
            }
        }
    }

    /// The receives are where that end is now.
    fn post(&mut self, setting: &Setting, nth: usize) {
        let process = setting.process_of(nth);
        let round = self.groups[process].round();
        let is_elsewhere = |end: usize| self.ends[end].takes_on.is_some_and(|other| other != round);
        if self.of(setting, process).any(is_elsewhere) {
            self.wrong = Some("receives are posted while a queue pair of the group takes those posted before");
        }
        let site = Site(self.ends[nth].machine.path().0);
        Arc::make_mut(&mut self.groups[process]).posted(site);
        let end = self.end(nth);
        (end.takes_on, end.wants_receives, end.in_error) = (Some(round), false, false);
        self.input(setting, nth, Input::Reposted);
    }

    fn input(&mut self, setting: &Setting, nth: usize, input: Input) {
        self.give(nth, input);
        self.settle(setting);
    }

    /// Every group looks around until none has anything to say.
    fn settle(&mut self, setting: &Setting) {
        for _ in 0..ROUNDS {
            let told = (0..self.groups.len()).filter(|process| self.tend(setting, *process, NOW)).count();
            if told == 0 {
                return;
            }
        }
    }

    fn give(&mut self, nth: usize, input: Input) {
        self.end(nth).machine.handle(NOW, input);
        self.drain(nth);
    }

    fn drain(&mut self, nth: usize) {
        while let Some(effect) = self.end(nth).machine.poll_effect() {
            self.effect(nth, effect);
        }
    }

    fn effect(&mut self, nth: usize, effect: Effect) {
        let end = self.end(nth);
        match effect {
            Effect::Send(message) => self.send(nth ^ 1, message),
            Effect::Seek => (end.is_seeking, end.is_answered) = (true, false),
            Effect::StopSeek => end.is_seeking = false,
            Effect::Exclude => end.machine.handle(NOW, Input::Excluded),
            Effect::Fence => (end.is_fencing, end.wants_receives) = (true, false),
            Effect::Repost { .. } => end.wants_receives = true,
            Effect::Replay { .. } => {
                end.machine.handle(NOW, Input::Replayed);
                end.machine.handle(NOW, Input::Retired);
            }
            Effect::Surface { .. } => {
                (end.takes_on, end.is_fencing, end.wants_receives) = (None, false, false);
            }
            Effect::Release | Effect::Forget { .. } | Effect::Confirmed { .. } | Effect::Phase(_) => {}
        }
    }

    fn send(&mut self, to: usize, message: Handshake) {
        if let Handshake::Claim { tuple, .. } = message {
            self.end(to ^ 1).claims = tuple.attempt;
        }
        self.letters[to].push(Letter { print: fingerprint::of(&message), message: Arc::new(message) });
    }

    fn members(&self, setting: &Setting, process: usize) -> Vec<Member<usize>> {
        let site_of = |path: PathId| (path.0 < 2).then_some(Site(path.0));
        let member = |nth: usize| {
            let end = &self.ends[nth];
            let mut member = Member::of(nth, &end.machine, site_of);
            member.sought = end.is_seeking.then_some(NOW);
            member.asked = end.machine.asked(NOW);
            member.answered[1] = end.is_answered.then_some(NOW);
            member
        };
        self.of(setting, process).map(member).collect()
    }

    /// Whether anybody was told anything new.
    fn tend(&mut self, setting: &Setting, process: usize, now: Micros) -> bool {
        let members = self.members(setting, process);
        let before = self.clone();
        let orders = Arc::make_mut(&mut self.groups[process]).turn(now, &members);
        for order in orders {
            match order {
                Order::Follow(end, site, above) => {
                    self.give(end, Input::Follow(Goal { path: PathId(site.0), above }));
                }
                Order::Depart(end) => self.give(end, Input::Depart),
                Order::Stay(end) => self.give(end, Input::Stay),
                Order::LeaveBehind(end) => self.give(end, Input::LeftBehind),
            }
        }
        let members = self.members(setting, process);
        let group = self.groups[process].clone();
        let readiness = group.readiness(&members);
        for member in &members {
            let sites = group.scope(member, readiness);
            let paths = [PathId::PRIMARY, PathId::STANDBY].into_iter().filter(|path| sites.has(Site(path.0)));
            self.end(member.key).machine.confine(paths.fold(Scope::NOWHERE, Scope::with));
        }
        *self != before
    }
}
