//! The world around the machines: clock, network, ports, and of the data path only which path each queue pair takes receives on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use shift_proto::id::{EndpointId, Epoch, Micros, PathId, ProcessId, Site};
use shift_proto::ledger::{IncarnationReport, Proof};
use shift_proto::migrate::{
    Attempt, Cause, Deadlines, Effect, Group, Handshake, Input, Machine, Muster, Phase, Stage, Surfaced,
};

use crate::profile::Profile;
use crate::receives::{Posted, Receives};

/// The faults end then.
const FAULTS_END: u64 = 12_000_000;
const RUN_END: u64 = FAULTS_END + 40_000_000;
pub const PROBE_EVERY: u64 = 20_000;
const TRAFFIC_EVERY: u64 = 100_000;
/// After that time one that is not armed is in the way.
pub const ARMING: u64 = 3_000_000;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
pub struct Dice(u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    pub fn chance(&mut self, in_1000: u64) -> bool {
        self.below(1000) < in_1000
    }
}

#[derive(Clone, Debug)]
pub enum Happening {
    Deliver(usize, Handshake),
    /// An answer of the data path; void if the end was given a newer effect since.
    Answer(usize, u64, Input),
    Notice(usize, Input),
    Tick(usize),
    Probe(usize, u64),
    Connect(usize),
    Meet(usize),
    GroupProbe(usize, Micros),
    Traffic(usize),
    TryRepost(usize, u64),
    Port(usize, u8, bool),
    RetriesOver(usize, Epoch),
    /// Somebody wishes that process's queue pairs elsewhere.
    Wish(usize),
    /// What a NIC had of that end is complete, if it is waited for still.
    SendsOver(usize, u64),
    MusterPace(usize),
}

pub struct Scheduled(u64, u64, Happening);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// One end of a pair; ends 2n and 2n + 1 are connected.
pub struct End {
    pub process: usize,
    pub machine: Machine,
    /// Since then.
    pub connected: Option<u64>,
    /// The agent knows its peer.
    pub met: bool,
    /// Its application has an error of its own.
    pub failed: bool,
    /// Its NIC takes receives there.
    pub takes_on: Option<u8>,
    /// In that epoch.
    pub nic_epoch: u32,
    /// A receive that a message has taken in part.
    pub in_hand: Option<Posted>,
    /// The same at its last fence.
    pub fenced_hand: Option<Posted>,
    /// By path.
    pub answered: [Option<Micros>; 3],
    /// Its first path of the standbys leads to the second one.
    pub is_crossed: bool,
    pub sought: Option<Micros>,
    pub wants_receives: Option<PathId>,
    pub in_error: bool,
    pub seek: Option<u64>,
    pub generation: u64,
    pub surfaced: bool,
    pub replaying: bool,
    /// That its sends are complete is waited for.
    pub draining: Option<u64>,
}

pub struct World {
    pub profile: Profile,
    pub dice: Dice,
    pub now: u64,
    pub order: u64,
    pub queue: BinaryHeap<Reverse<Scheduled>>,
    pub ends: Vec<End>,
    pub groups: Vec<Group<usize>>,
    pub receives: Vec<Receives>,
    pub musters: Vec<Muster<usize>>,
    /// By process: the muster that it leads or takes part in, and when its pace was set.
    pub mustering: Vec<bool>,
    pub led: u64,
    /// By process: whom the members probe for.
    pub probing: Vec<Option<Micros>>,
    /// By process and site.
    pub ports: Vec<[bool; 3]>,
    /// Processes that hear and say nothing, until then.
    pub silent: Vec<u64>,
    pub marks: BTreeSet<&'static str>,
    pub trace: Vec<String>,
}

impl World {
    pub fn new(seed: u64, profile: Profile) -> Self {
        let mut world = Self {
            profile,
            dice: Dice(seed),
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            ends: Vec::new(),
            groups: Vec::new(),
            receives: (0..profile.processes).map(|_| Receives::new()).collect(),
            musters: vec![Muster::new(Deadlines::default().group_limits()); profile.processes],
            mustering: vec![false; profile.processes],
            led: 0,
            probing: vec![None; profile.processes],
            ports: vec![[true; 3]; profile.processes],
            silent: vec![0; profile.processes],
            marks: BTreeSet::new(),
            trace: Vec::new(),
        };
        world.set_the_stage();
        world
    }

    fn set_the_stage(&mut self) {
        let deadlines = Deadlines::default();
        let count = self.profile.processes;
        self.groups = (0..count).map(|_| Group::new(deadlines.group_limits())).collect();
        for a in 0..count {
            for b in a + 1..count {
                if self.dice.chance(self.profile.sparse) {
                    continue;
                }
                for _ in 0..1 + self.dice.below(2) {
                    self.add_pair(a, b, deadlines);
                }
            }
        }
        self.plan_outages();
        for _ in 0..self.profile.wishes {
            let at = 100_000 + self.dice.below(FAULTS_END - 2_000_000);
            // Several at once, as when a path is good again.
            for _ in 0..1 + self.dice.below(3) {
                let process = self.dice.below(count as u64) as usize;
                let at = at + self.dice.below(30_000);
                self.schedule(at, Happening::Wish(process));
            }
        }
        for process in 0..count {
            if self.dice.chance(self.profile.silent) {
                self.silent[process] = self.dice.below(FAULTS_END);
            }
        }
    }

    /// With no more of them than there are standbys one port of each rail but the last dies in turn, soon after one another or not.
    fn plan_outages(&mut self) {
        let in_turn = self.profile.outages <= self.profile.standbys;
        let mut last = 0;
        for number in 0..self.profile.outages {
            let process = self.dice.below(self.profile.processes as u64) as usize;
            let site = if in_turn { number } else { self.dice.below(1 + self.profile.standbys) };
            let span = if in_turn && last != 0 && self.dice.chance(700) { 100_000 } else { FAULTS_END / 2 };
            let at = 1000 + if in_turn { last } else { 0 } + self.dice.below(span);
            let length = if in_turn { RUN_END } else { self.dice.below(FAULTS_END / 2) };
            last = at;
            self.schedule(at, Happening::Port(process, site as u8, false));
            self.schedule(at + length, Happening::Port(process, site as u8, true));
        }
    }

    fn add_pair(&mut self, a: usize, b: usize, deadlines: Deadlines) {
        let first = self.ends.len();
        let name = |process: usize, at: usize| EndpointId {
            process: ProcessId(10 + process as u64),
            life: at as u32 + 1,
            side: 0,
        };
        let names = [name(a, first), name(b, first + 1)];
        let is_crossed = self.profile.standbys > 1 && self.dice.chance(self.profile.crossed);
        let is_twisted = self.profile.standbys > 1 && self.dice.chance(self.profile.twisted);
        for (process, (me, peer)) in [a, b].into_iter().zip([(0, 1), (1, 0)]) {
            self.ends.push(End {
                process,
                machine: Machine::new(names[me], names[peer], deadlines),
                connected: None,
                met: false,
                failed: false,
                takes_on: None,
                nic_epoch: 0,
                in_hand: None,
                fenced_hand: None,
                answered: [None; 3],
                is_crossed: is_crossed != (is_twisted && process == a),
                sought: None,
                wants_receives: None,
                in_error: false,
                seek: None,
                generation: 0,
                surfaced: false,
                replaying: false,
                draining: None,
            });
        }
        let late = if self.dice.chance(self.profile.late) { self.dice.below(FAULTS_END / 2) } else { 0 };
        let met = late
            + match self.dice.chance(self.profile.unmet) {
                false => 1,
                true if self.dice.chance(500) => self.dice.below(8_000_000),
                true => RUN_END,
            };
        for end in [first, first + 1] {
            self.schedule(late, Happening::Connect(end));
            self.schedule(met, Happening::Meet(end));
            if self.dice.chance(self.profile.error) {
                let at = met + 2 + self.dice.below(FAULTS_END);
                self.schedule(at, Happening::Notice(end, Input::ApplicationError));
            }
            for path in self.paths() {
                self.schedule(met + 1, Happening::Notice(end, Input::PathArmed(PathId(path))));
            }
            if self.dice.chance(self.profile.destroy) {
                let at = met + 2 + self.dice.below(FAULTS_END);
                self.schedule(at, Happening::Notice(end, Input::Destroyed));
            }
            if self.dice.chance(self.profile.hold) {
                let at = late + 2 + self.dice.below(FAULTS_END / 2);
                self.schedule(at, Happening::Notice(end, Input::Hold(true)));
                let until = at + self.dice.below(3_000_000);
                self.schedule(until, Happening::Notice(end, Input::Hold(false)));
            }
        }
    }

    pub fn schedule(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled(at, self.order, happening)));
    }

    pub fn answer(&mut self, delay: u64, end: usize, input: Input) {
        let generation = self.ends[end].generation;
        self.schedule(self.now + delay, Happening::Answer(end, generation, input));
    }

    pub fn run(mut self) -> BTreeSet<&'static str> {
        while let Some(Reverse(Scheduled(at, _, happening))) = self.queue.pop() {
            if at > RUN_END {
                break;
            }
            self.now = at;
            self.happen(happening);
        }
        self.judge_the_end();
        self.marks
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Port(process, path, up) => self.port(process, path, up),
            Happening::Connect(end) => {
                self.ends[end].connected = Some(self.now);
                self.ends[end].takes_on = Some(0);
                self.receives[self.ends[end].process].make_safe();
                self.tend(self.ends[end].process);
                self.schedule(self.now + TRAFFIC_EVERY, Happening::Traffic(end));
                // What keeps its group waiting may end without a word.
                self.schedule(self.now + ARMING + 10_000_000, Happening::GroupProbe(self.ends[end].process, Micros(0)));
            }
            Happening::Meet(end) => self.ends[end].met = true,
            Happening::GroupProbe(process, since) => self.probe_for_group(process, since),
            Happening::Traffic(end) => self.traffic(end),
            Happening::Wish(process) => self.wish(process),
            Happening::SendsOver(end, wait) => self.sends_over(end, wait),
            Happening::MusterPace(process) => self.keep_pace(process),
            Happening::Deliver(end, Handshake::Muster { call, target, word }) => self.hear(end, call, target, word),
            Happening::TryRepost(end, generation) => self.try_repost(end, generation),
            Happening::Deliver(end, message) => self.input(end, Input::Frame(message)),
            // Nobody posts what could end in an error while posts are held.
            Happening::Notice(end, Input::Hold(true)) if self.ends[end].is_complete() => {}
            Happening::Notice(end, input) => {
                if input == Input::Destroyed {
                    self.stop(end);
                    self.marks.insert("destroyed");
                } else if input == Input::ApplicationError && self.ends[end].machine.state().stage != Stage::Gone {
                    // Its NIC goes on taking receives until somebody resets it.
                    self.ends[end].failed = true;
                    self.marks.insert("application's error");
                }
                self.input(end, input);
            }
            Happening::Answer(end, generation, input) => {
                if generation == self.ends[end].generation {
                    self.take_answer(end, input);
                }
            }
            Happening::Tick(end) => {
                if self.ends[end].machine.deadline().is_some_and(|due| due.0 <= self.now) {
                    self.input(end, Input::Tick);
                }
            }
            Happening::Probe(end, generation) => self.probe(end, generation),
            Happening::RetriesOver(end, epoch) => self.retries_over(end, epoch),
        }
    }

    pub fn take_answer(&mut self, end: usize, input: Input) {
        match &input {
            Input::Fenced { .. } => {
                let end = &mut self.ends[end];
                (end.takes_on, end.fenced_hand) = (None, end.in_hand.take().or(end.fenced_hand));
            }
            Input::Reposted => {
                let site = self.site_of(&self.ends[end], self.ends[end].machine.path()).unwrap();
                self.ends[end].takes_on = Some(site.0);
                self.ends[end].nic_epoch = self.ends[end].machine.epoch().0;
                self.ends[end].in_error = false;
            }
            Input::Retired => self.ends[end].replaying = false,
            _ => {}
        }
        self.input(end, input);
    }

    fn port(&mut self, process: usize, site: u8, up: bool) {
        self.ports[process][usize::from(site)] = up;
        for end in 0..self.ends.len() {
            if up || (self.ends[end].process != process && self.ends[end ^ 1].process != process) {
                continue;
            }
            let own = if self.ends[end].process == process { end } else { end ^ 1 };
            let path = self.path_to(&self.ends[own], Site(site));
            if self.ends[end].machine.path() == path && self.ends[end].met {
                let epoch = self.ends[end].machine.epoch();
                let retries = self.dice.below(1_500_000);
                self.schedule(self.now + retries, Happening::RetriesOver(end, epoch));
                if self.ends[end].process == process && self.dice.chance(500) {
                    self.schedule(
                        self.now + retries / 2,
                        Happening::Notice(end, Input::Fault { cause: Cause::PortDown, fatal: false }),
                    );
                }
            }
        }
    }

    fn retries_over(&mut self, end: usize, epoch: Epoch) {
        let stage = self.ends[end].machine.state().stage;
        let path = self.ends[end].machine.path().0;
        let busy = matches!(stage, Stage::Running | Stage::Replaying) && epoch == self.ends[end].machine.epoch();
        if !busy || self.ends[end].in_error {
            return;
        }
        if !self.is_up(end, path) {
            self.ends[end].in_error = true;
            self.input(end, Input::Fault { cause: Cause::RetryExceeded, fatal: true });
        } else if self.ends[end].replaying {
            self.answer(1, end, Input::Retired);
        }
    }

    fn probe(&mut self, end: usize, generation: u64) {
        if self.ends[end].seek != Some(generation) {
            return;
        }
        for path in self.paths() {
            if self.is_up(end, path) && self.ends[end].seek.is_some() {
                self.ends[end].answered[usize::from(path)] = Some(Micros(self.now));
                self.hear_answer(end, PathId(path));
            }
        }
        let delay = PROBE_EVERY + self.dice.below(PROBE_EVERY);
        self.schedule(self.now + delay, Happening::Probe(end, generation));
    }

    pub fn input(&mut self, end: usize, input: Input) {
        self.give(end, input);
        // The group of that end, and whoever is told something by it, until nobody has anything to say.
        for _ in 0..4 {
            if !self.tend(self.ends[end].process) {
                break;
            }
        }
    }

    /// A message of the peer's arrives, whole or in part.
    fn traffic(&mut self, end: usize) {
        let again = self.now + self.dice.below(TRAFFIC_EVERY);
        if again < FAULTS_END {
            self.schedule(again, Happening::Traffic(end));
        }
        let (own, peer) = (&self.ends[end], &self.ends[end ^ 1]);
        let path_of = |end: &End| end.takes_on.map(|site| self.path_to(end, Site(site)));
        let Some(path) = path_of(own).filter(|path| path_of(peer) == Some(*path) && own.nic_epoch == peer.nic_epoch)
        else {
            return;
        };
        let site = own.takes_on.unwrap();
        if !self.is_up(end, path.0) || own.in_error || peer.in_error || own.surfaced || peer.surfaced || peer.failed {
            return;
        }
        let receives = &mut self.receives[own.process];
        if let Some(taken) = self.ends[end].in_hand.take() {
            return receives.give(taken);
        }
        let Some(taken) = receives.take(site) else { return };
        if self.dice.chance(self.profile.partial) {
            self.ends[end].in_hand = Some(taken);
        } else {
            receives.give(taken);
        }
    }

    /// It takes no receives any more, and what it had in hand goes with it.
    fn stop(&mut self, end: usize) {
        let state = &mut self.ends[end];
        (state.takes_on, state.wants_receives) = (None, None);
        state.generation += 1;
        for taken in state.in_hand.take().into_iter().chain(state.fenced_hand.take()) {
            self.receives[state.process].lose(taken);
        }
    }

    pub fn give(&mut self, end: usize, input: Input) {
        if !self.ends[end].met {
            // Without a machine only what the application does is noticed.
            if input == Input::LeftBehind {
                self.ends[end].failed = true;
                self.surface(end, Surfaced::LeftBehind);
            }
            return;
        }
        self.trace.push(format!("{} {end} {} <- {input:?}", self.now, self.ends[end].machine.state()));
        self.ends[end].machine.handle(Micros(self.now), input);
        while let Some(effect) = self.ends[end].machine.poll_effect() {
            self.effect(end, effect);
        }
        self.watch_sends(end);
        if let Some(due) = self.ends[end].machine.deadline() {
            let at = due.0.max(self.now) + self.dice.below(500);
            self.schedule(at, Happening::Tick(end));
        }
    }

    fn effect(&mut self, end: usize, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(end, message),
            Effect::Seek => {
                self.order += 1;
                let generation = self.order;
                self.ends[end].seek = Some(generation);
                self.ends[end].sought = Some(Micros(self.now));
                let delay = self.dice.below(PROBE_EVERY);
                self.schedule(self.now + delay, Happening::Probe(end, generation));
            }
            Effect::StopSeek => self.ends[end].seek = None,
            Effect::Exclude => {
                let delay = self.dice.below(1000);
                self.answer(delay, end, Input::Excluded);
            }
            Effect::Release => {
                self.ends[end].generation += 1;
                if self.ends[end].replaying {
                    self.replay(end);
                }
            }
            Effect::Fence => self.fence(end),
            Effect::Repost { tuple } => self.ends[end].wants_receives = Some(tuple.target),
            Effect::Replay { .. } => {
                self.ends[end].replaying = true;
                self.replay(end);
            }
            Effect::Surface { why } => self.surface(end, why),
            Effect::Phase(Phase::Committed) if self.ends[end].machine.is_planned() => self.judge_plan(end),
            Effect::Forget { .. } | Effect::Phase(_) | Effect::Confirmed { .. } => {}
        }
    }

    fn fence(&mut self, end: usize) {
        let reports = vec![IncarnationReport {
            epoch: Epoch(0),
            path: PathId(0),
            proof: Proof::Count,
            receives: 1,
            fenced: true,
        }];
        let limit = if self.dice.chance(self.profile.slow_fence) { 900_000 } else { 200_000 };
        let delay = self.dice.below(limit);
        self.ends[end].generation += 1;
        (self.ends[end].wants_receives, self.ends[end].replaying) = (None, false);
        self.answer(delay, end, Input::Fenced { reports, complete: true });
    }

    fn replay(&mut self, end: usize) {
        let path = self.ends[end].machine.path().0;
        let delay = self.dice.below(5000);
        self.answer(delay, end, Input::Replayed);
        if self.is_up(end, path) {
            let retired = delay + 1 + self.dice.below(20_000);
            self.answer(retired, end, Input::Retired);
        } else {
            let (epoch, retries) = (self.ends[end].machine.epoch(), self.dice.below(1_000_000));
            self.schedule(self.now + retries, Happening::RetriesOver(end, epoch));
        }
    }

    fn surface(&mut self, end: usize, why: Surfaced) {
        self.marks.insert(if why == Surfaced::LeftBehind { "left" } else { "surfaced" });
        self.ends[end].surfaced = true;
        self.stop(end);
    }

    pub fn send(&mut self, end: usize, message: Handshake) {
        let peer = end ^ 1;
        let mute = [end, peer].iter().any(|end| self.silent[self.ends[*end].process] > self.now);
        let clean = self.now >= FAULTS_END;
        if !clean && (mute || self.dice.chance(self.profile.drop)) {
            return;
        }
        let delay = 50 + self.dice.below(self.profile.max_delay_us);
        self.schedule(self.now + delay, Happening::Deliver(peer, message));
    }

    fn judge_the_end(&mut self) {
        let picture = || {
            let states: Vec<String> = (0..self.ends.len())
                .map(|at| {
                    let end = &self.ends[at];
                    let name = (end.machine.state().to_string(), end.machine.path(), end.machine.epoch());
                    format!("{at} of {}: {name:?}, takes on {:?}", end.process, end.takes_on)
                })
                .collect();
            format!("{}\n{:?}\n{}", states.join("\n"), self.groups, self.trace.join("\n"))
        };
        let mut moved = BTreeMap::<bool, u64>::new();
        for (at, end) in self.ends.iter().enumerate() {
            let state = end.machine.state();
            if !end.met || end.failed {
                let is_home = end.failed || end.connected.is_none() || self.groups[end.process].home() == Site(0);
                assert!(is_home, "end {at} waits for receives where there are none: {}", picture());
                continue;
            }
            if !matches!(state.stage, Stage::Running) {
                let ended = matches!(state.stage, Stage::Dead | Stage::Gone);
                assert!(ended, "end {at} waits for ever: {}", picture());
                continue;
            }
            let peer = self.ends[at ^ 1].machine.state().stage;
            if peer != Stage::Running || self.ends[at ^ 1].failed {
                continue;
            }
            assert_eq!(state.attempt, Attempt::Idle, "end {at} never comes to rest: {}", picture());
            assert!(!end.in_error, "end {at} masks an error for ever: {}", picture());
            let home = self.groups[end.process].home();
            assert_eq!(
                self.site_of(end, end.machine.path()),
                Some(home),
                "end {at} is not where its receives are: {}",
                picture()
            );
            assert_eq!(end.takes_on, Some(home.0), "end {at} takes no receives: {}", picture());
            *moved.entry(home != Site(0)).or_default() += 1;
            if home == Site(2) {
                self.marks.insert("on the third rail");
            }
        }
        assert!(self.groups.iter().all(|group| group.goal().is_none()), "a group moves for ever: {}", picture());
        for (process, receives) in self.receives.iter().enumerate() {
            assert_eq!(Site(receives.home), self.groups[process].home(), "of {process}: {}", picture());
            let of = self.ends.iter().filter(|end| end.process == process);
            receives.judge(&of.filter_map(|end| end.in_hand).collect::<Vec<_>>());
        }
        if moved.get(&true).is_some_and(|count| *count > 0) && !moved.contains_key(&false) {
            self.marks.insert("all moved");
        }
        if self.ends.iter().any(|end| end.surfaced) {
            self.marks.insert("surfaced");
        }
    }
}
