//! The world around two machines: clock, network, paths, and a data path that only remembers what the protocol cares about.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;

use shift_proto::id::{EndpointId, Epoch, Micros, PathId, ProcessId, Tuple};
use shift_proto::ledger::{IncarnationReport, Proof};
use shift_proto::migrate::{Attempt, Cause, Deadlines, Effect, Handshake, Input, Machine, Stage};

mod judge;
mod operator;

use operator::{Event, Hands};

use crate::failback::Failback;
use crate::profile::{Dice, Profile};
use crate::schedule::{Item, Schedule};

/// What is left after the faults must settle by itself: patience, an exchange, and re-sends, with room.
const SETTLING: u64 = 40_000_000;
const PROBE_EVERY: u64 = 10_000;

#[derive(Clone, Debug)]
enum Happening {
    Deliver(usize, Handshake),
    /// An answer of the data path; void if the end was given a newer effect since.
    Answer(usize, u64, Input),
    /// What an end notices whatever it is doing.
    Notice(usize, Input),
    Tick(usize),
    Probe(usize, u64),
    PathDown(u8),
    PathUp(u8),
    /// The NIC's retries are over: the QP is in ERR if its path is still down.
    RetriesOver(usize, u64),
    /// The own sends are complete, if they are those that were held up at that exclusion.
    Drained(usize, u64),
    /// The first path is looked at by who may go back to it.
    Return(usize),
    Wake(usize),
    Sleep(usize),
    /// What is done to a machine, not to a path.
    Operator(Event),
}

impl Happening {
    /// The end that feels it, and misses it while it is asleep.
    fn felt_by(&self) -> Option<usize> {
        match self {
            Self::Deliver(side, _)
            | Self::Answer(side, ..)
            | Self::Notice(side, _)
            | Self::Tick(side)
            | Self::Probe(side, _)
            | Self::RetriesOver(side, _)
            | Self::Drained(side, _)
            | Self::Return(side) => Some(*side),
            Self::PathDown(_) | Self::PathUp(_) | Self::Wake(_) | Self::Sleep(_) | Self::Operator(_) => None,
        }
    }
}

#[derive(Debug)]
struct Scheduled(u64, u64, Happening);

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

#[derive(Debug)]
struct End {
    machine: Machine,
    /// Nobody posts, for certain.
    excluded: bool,
    /// Posting is not allowed (asked to be excluded, or excluded).
    stopped: bool,
    /// Since posting was stopped all own sends have ended.
    drained: bool,
    /// Until then sends do not end.
    drains_at: u64,
    fencing: bool,
    /// The incarnations up to that epoch are fenced, since then.
    fenced: BTreeMap<Epoch, u64>,
    fence_complete: bool,
    reposted: BTreeSet<Tuple>,
    /// Epochs of which it has an incarnation that may have sent.
    posted: BTreeSet<Epoch>,
    replaying: Option<Tuple>,
    replay_interrupted: bool,
    seek: bool,
    seek_generation: u64,
    answer_generation: u64,
    work_generation: u64,
    answered_since_seek: BTreeSet<PathId>,
    in_error: bool,
    accepted: BTreeSet<Tuple>,
    committed: BTreeSet<Tuple>,
    plans_said: BTreeSet<Tuple>,
    plans_heard: BTreeSet<Tuple>,
    /// It has a fault that it has not got rid of.
    faulted: bool,
    cancelled: BTreeSet<Tuple>,
    asleep: bool,
    missed: Vec<Happening>,
    surfaced: bool,
    application_error: bool,
    confirmed: Option<Epoch>,
    reports: BTreeMap<Tuple, Vec<Vec<IncarnationReport>>>,
    posting_epoch: Epoch,
    failback: Failback,
}

#[derive(Debug)]
pub struct Outcome {
    pub marks: BTreeSet<String>,
    /// Migrations, as each end counts them.
    pub epoch: u32,
    /// Returns to the first path, as each end counts them.
    pub returns: [u64; 2],
}

/// The timeline of a run: time, end, state, and what came in or went out.
pub type Trace = Rc<RefCell<Vec<String>>>;

pub struct World {
    profile: Profile,
    dice: Dice,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    ends: [End; 2],
    path_up: Vec<bool>,
    /// By direction: intervals in which nothing gets through.
    cuts: [Vec<(u64, u64)>; 2],
    hands: Hands,
    adopted: BTreeMap<Epoch, Tuple>,
    marks: BTreeSet<String>,
    trace: Option<Trace>,
    deadlines: Deadlines,
}

fn endpoint(side: usize) -> EndpointId {
    EndpointId { process: ProcessId(10 + side as u64), life: 1, side: 0 }
}

impl End {
    fn new(side: usize, deadlines: Deadlines) -> Self {
        Self {
            machine: Machine::new(endpoint(side), endpoint(1 - side), deadlines),
            excluded: false,
            stopped: false,
            drained: false,
            drains_at: 0,
            fencing: false,
            fenced: BTreeMap::new(),
            fence_complete: false,
            reposted: BTreeSet::new(),
            posted: BTreeSet::from([Epoch(0)]),
            replaying: None,
            replay_interrupted: false,
            seek: false,
            seek_generation: 0,
            answer_generation: 0,
            work_generation: 0,
            answered_since_seek: BTreeSet::new(),
            in_error: false,
            accepted: BTreeSet::new(),
            committed: BTreeSet::new(),
            plans_said: BTreeSet::new(),
            plans_heard: BTreeSet::new(),
            faulted: false,
            cancelled: BTreeSet::new(),
            asleep: false,
            missed: Vec::new(),
            surfaced: false,
            application_error: false,
            confirmed: None,
            reports: BTreeMap::new(),
            posting_epoch: Epoch(0),
            failback: Failback::new(deadlines.hold_down),
        }
    }
}

impl World {
    /// `trace`, if there is one, is kept by the caller: it is wanted when the run panics.
    pub fn new(schedule: &Schedule, trace: Option<&Trace>) -> Self {
        let (seed, profile) = (schedule.seed, schedule.profile);
        let deadlines = Deadlines::default();
        let mut world = Self {
            profile,
            dice: Dice(seed),
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            ends: [End::new(0, deadlines), End::new(1, deadlines)],
            path_up: vec![true; usize::from(profile.paths)],
            cuts: [Vec::new(), Vec::new()],
            hands: Hands::new(profile.paths),
            adopted: BTreeMap::new(),
            marks: BTreeSet::new(),
            trace: trace.cloned(),
            deadlines,
        };
        world.set_the_stage(&schedule.items);
        world
    }

    fn set_the_stage(&mut self, items: &[Item]) {
        for path in 0..self.profile.paths {
            (0..2).for_each(|side| self.notice(0, side, Input::PathArmed(PathId(path))));
        }
        for item in items.iter().cloned() {
            match item {
                Item::Notice { at, side, input } => self.notice(at, side, input),
                Item::Asleep { side, from, until } => {
                    self.schedule(from, Happening::Sleep(side));
                    self.schedule(until, Happening::Wake(side));
                }
                Item::Cut { side, from, until } => self.cuts[side].push((from, until)),
                Item::Outage { path, from, until } => {
                    self.schedule(from, Happening::PathDown(path));
                    self.schedule(until, Happening::PathUp(path));
                }
                Item::Drain { .. }
                | Item::Removal { .. }
                | Item::Silence { .. }
                | Item::Death { .. }
                | Item::Slow { .. } => self.take_in_hand(&item),
            }
        }
        if self.profile.flaps {
            (0..2).for_each(|side| self.schedule(PROBE_EVERY, Happening::Return(side)));
        }
    }

    fn schedule(&mut self, at: u64, happening: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled(at, self.order, happening)));
    }

    fn notice(&mut self, at: u64, side: usize, input: Input) {
        self.schedule(at, Happening::Notice(side, input));
    }

    fn answer(&mut self, delay: u64, side: usize, input: Input) {
        let generation = self.ends[side].answer_generation;
        self.schedule(self.now + delay, Happening::Answer(side, generation, input));
    }

    fn tell(&self, side: usize, way: &str, what: &dyn std::fmt::Debug) {
        let Some(trace) = &self.trace else { return };
        let (at, state) = (self.now as f64 / 1000.0, self.ends[side].machine.state());
        trace.borrow_mut().push(format!("{at:>12.3} ms  end {side}  {state:<24} {way} {what:?}"));
    }

    fn mark(&mut self, mark: &str) {
        self.marks.insert(mark.to_string());
    }

    pub fn run(mut self) -> Outcome {
        while let Some(Reverse(Scheduled(at, _, happening))) = self.queue.pop() {
            if at > self.profile.span + SETTLING {
                break;
            }
            self.now = at;
            self.happen(happening);
        }
        self.judge_the_end();
        let epoch = self.ends[0].machine.epoch().0;
        Outcome { marks: self.marks, epoch, returns: [0, 1].map(|side| self.ends[side].failback.returns) }
    }

    fn happen(&mut self, happening: Happening) {
        if self.is_lost(&happening) {
            return;
        }
        if let Some(side) = happening.felt_by().filter(|side| self.ends[*side].asleep) {
            if !matches!(happening, Happening::Tick(_)) {
                self.ends[side].missed.push(happening);
            }
            return;
        }
        match happening {
            Happening::Operator(event) => self.operate(event),
            Happening::PathDown(path) => self.path_down(path),
            Happening::PathUp(path) => self.path_up[path as usize] = !self.hands.is_torn(path),
            Happening::Sleep(side) => self.ends[side].asleep = true,
            Happening::Wake(side) => {
                self.ends[side].asleep = false;
                let missed = std::mem::take(&mut self.ends[side].missed);
                missed.into_iter().for_each(|happening| self.happen(happening));
                self.tick_later(side);
            }
            Happening::Deliver(side, message) => self.input(side, Input::Frame(message)),
            Happening::Notice(side, input) => self.take_notice(side, input),
            Happening::Answer(side, generation, input) => {
                if generation == self.ends[side].answer_generation {
                    self.take_answer(side, input);
                }
            }
            Happening::Tick(side) => {
                if self.ends[side].machine.deadline().is_some_and(|due| due.0 <= self.now) {
                    self.input(side, Input::Tick);
                }
            }
            Happening::Probe(side, generation) => self.probe(side, generation),
            Happening::RetriesOver(side, generation) => self.retries_over(side, generation),
            Happening::Drained(side, generation) => self.drain(side, generation),
            Happening::Return(side) => self.consider_return(side),
        }
    }

    fn take_notice(&mut self, side: usize, input: Input) {
        match input {
            Input::Destroyed => {
                self.ends[side].seek = false;
                self.ends[side].answer_generation += 1;
            }
            Input::ApplicationError => self.ends[side].application_error = true,
            _ => {}
        }
        self.input(side, input);
    }

    fn take_answer(&mut self, side: usize, input: Input) {
        let end = &mut self.ends[side];
        match &input {
            Input::Excluded => end.excluded = true,
            Input::Fenced { complete, reports } => {
                end.fencing = false;
                end.fence_complete = *complete;
                if *complete {
                    let newest = reports.last().map_or(Epoch(0), |report| report.epoch);
                    end.fenced.entry(newest).or_insert(self.now);
                }
            }
            Input::Reposted => {
                let tuple = end.machine.tuple().unwrap();
                assert!(end.reposted.insert(tuple), "receives posted twice for {tuple}");
                end.posting_epoch = tuple.epoch;
                end.posted.insert(tuple.epoch);
                self.hands.posts_on[side] = tuple.target.0;
                end.in_error = false;
                end.work_generation += 1;
            }
            Input::Replayed if end.replay_interrupted => return,
            Input::Retired if end.replay_interrupted => return,
            _ => {}
        }
        self.input(side, input);
    }

    /// As the agent does it: the first path is probed while the connection is on another one.
    fn consider_return(&mut self, side: usize) {
        let (now, answers) = (Micros(self.now), self.path_up[0]);
        let end = &mut self.ends[side];
        let state = end.machine.state();
        let is_at_rest = (state.stage, state.attempt) == (Stage::Running, Attempt::Idle) && !end.in_error;
        let wants = end.failback.look(now, answers && end.machine.path() != PathId::PRIMARY) && is_at_rest;
        let pace = end.failback.pace();
        if wants {
            self.input(side, Input::Move(PathId::PRIMARY));
        }
        if self.now < self.profile.span {
            self.schedule(self.now + pace.0, Happening::Return(side));
        }
    }

    fn path_down(&mut self, path: u8) {
        self.path_up[path as usize] = false;
        for side in 0..2 {
            self.ends[side].failback.note_down(PathId(path));
            let end = &self.ends[side];
            if end.machine.path() != PathId(path) || end.in_error {
                continue;
            }
            let generation = end.work_generation;
            let retries = self.dice.below(3_000_000);
            self.schedule(self.now + retries, Happening::RetriesOver(side, generation));
            if self.dice.chance(600) {
                let delay = self.dice.below(300_000);
                self.notice(self.now + delay, side, Input::Fault { cause: Cause::Stalled, fatal: false });
            }
        }
    }

    fn retries_over(&mut self, side: usize, generation: u64) {
        let end = &self.ends[side];
        let stage = end.machine.state().stage;
        let busy = matches!(stage, Stage::Running | Stage::Replaying);
        let down = !self.carries(side, end.machine.path().0);
        if generation != end.work_generation || !busy || end.in_error {
            return;
        }
        if down {
            self.ends[side].in_error = true;
            self.input(side, Input::Fault { cause: Cause::RetryExceeded, fatal: true });
        } else if stage == Stage::Replaying {
            self.answer(1, side, Input::Retired);
        }
    }

    fn probe(&mut self, side: usize, generation: u64) {
        if !self.ends[side].seek || generation != self.ends[side].seek_generation {
            return;
        }
        for path in 0..self.profile.paths {
            if self.carries(side, path) && self.ends[side].seek {
                self.answer_probe(side, path, generation);
            }
        }
        let delay = PROBE_EVERY + self.dice.below(PROBE_EVERY);
        self.schedule(self.now + delay, Happening::Probe(side, generation));
    }

    /// What is outstanding ends only on a path that is up, and never in ERR.
    fn drain(&mut self, side: usize, generation: u64) {
        let end = &self.ends[side];
        if generation != end.answer_generation || !end.excluded || !end.machine.wants_drain() {
            return;
        }
        let carries = self.carries(side, end.machine.path().0) && !end.in_error;
        if carries && self.now >= end.drains_at {
            self.ends[side].drained = true;
            return self.input(side, Input::Drained);
        }
        self.schedule(self.now + 1000, Happening::Drained(side, generation));
    }

    fn input(&mut self, side: usize, input: Input) {
        self.tell(side, "<-", &input);
        let crossing = matches!(&input, Input::Frame(Handshake::Claim { .. }))
            && self.ends[side].machine.state().attempt == Attempt::Claiming;
        let lapse = matches!(input, Input::Tick) && self.ends[side].machine.state().attempt == Attempt::Accepted;
        match &input {
            Input::Frame(Handshake::Claim { tuple, cause: Cause::Planned }) => {
                self.ends[side].plans_heard.insert(*tuple);
            }
            Input::Fault { .. } => self.ends[side].faulted = true,
            _ => {}
        }
        self.ends[side].machine.handle(Micros(self.now), input);
        if crossing {
            self.mark("crossing claims");
        }
        if lapse && self.ends[side].machine.state().attempt != Attempt::Accepted {
            self.mark("lapsed");
        }
        if self.ends[side].machine.state().stage == Stage::Settling {
            self.mark("settled");
        }
        while let Some(effect) = self.ends[side].machine.poll_effect() {
            self.tell(side, "->", &effect);
            self.effect(side, effect);
        }
        if self.ends[side].machine.wants_drain() && self.ends[side].excluded {
            let generation = self.ends[side].answer_generation;
            let delay = self.dice.below(3000);
            self.schedule(self.now + delay, Happening::Drained(side, generation));
        }
        self.tick_later(side);
    }

    fn tick_later(&mut self, side: usize) {
        if let Some(due) = self.ends[side].machine.deadline() {
            let at = due.0.max(self.now) + self.dice.below(500);
            self.schedule(at, Happening::Tick(side));
        }
    }

    fn effect(&mut self, side: usize, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(side, message),
            Effect::Seek => {
                let end = &mut self.ends[side];
                assert!(!end.seek, "seeks twice");
                end.seek = true;
                end.seek_generation += 1;
                end.answered_since_seek.clear();
                let generation = end.seek_generation;
                let delay = self.dice.below(PROBE_EVERY);
                self.schedule(self.now + delay, Happening::Probe(side, generation));
            }
            Effect::StopSeek => (self.ends[side].seek, self.ends[side].faulted) = (false, false),
            Effect::Exclude => self.exclude(side),
            Effect::Release => self.release(side),
            Effect::Fence => self.fence(side),
            Effect::Repost { tuple } => self.repost(side, tuple),
            Effect::Replay { tuple, reports } => self.replay(side, tuple, &reports),
            Effect::Forget { .. } | Effect::Phase(_) => {}
            Effect::Confirmed { epoch } => {
                self.ends[side].confirmed = Some(epoch);
                if self.ends[side].machine.is_planned() {
                    self.mark("moved by plan");
                    if self.ends[side].machine.path() == PathId(0) {
                        self.mark("went back");
                    }
                }
                self.mark("migrated");
                if epoch > Epoch(1) {
                    self.mark("migrated twice");
                }
            }
            Effect::Surface { why } => {
                self.mark(&format!("surfaced: {why}"));
                let end = &mut self.ends[side];
                assert!(!end.surfaced, "surfaced twice");
                end.surfaced = true;
                end.replaying = None;
                end.answer_generation += 1;
            }
        }
    }

    fn exclude(&mut self, side: usize) {
        let end = &mut self.ends[side];
        assert!(!end.stopped, "excluded twice");
        end.stopped = true;
        if end.replaying.is_some() {
            end.replay_interrupted = true;
        }
        if self.dice.chance(self.profile.slow_drain) {
            self.ends[side].drains_at = self.now + self.dice.below(3_000_000);
        }
        let delay =
            if self.dice.chance(self.profile.stuck_poster) { self.dice.below(400_000) } else { self.dice.below(2000) };
        self.answer(delay, side, Input::Excluded);
    }

    fn release(&mut self, side: usize) {
        let now_gone = self.ends[side].machine.state().stage == Stage::Dead;
        let end = &mut self.ends[side];
        assert!(end.stopped, "released without an exclusion");
        assert_eq!(end.posting_epoch, end.machine.epoch(), "resumes on the old path after COMMIT");
        end.stopped = false;
        end.excluded = false;
        end.drained = false;
        end.answer_generation += 1;
        end.replay_interrupted = false;
        if let (Some(_), false) = (end.replaying, now_gone) {
            self.go_on_replaying(side);
        }
    }

    fn fence(&mut self, side: usize) {
        let weak = self.dice.chance(self.profile.weak_fence) || self.hands.cannot_fence(side);
        let stuck = self.dice.chance(self.profile.stuck_fence);
        let end = &mut self.ends[side];
        assert!(end.excluded, "fences with posters inside");
        end.fencing = true;
        end.replaying = None;
        end.replay_interrupted = false;
        end.answer_generation += 1;
        let tuple = end.machine.tuple().unwrap();
        end.failback.note_moved(tuple.target, end.machine.is_planned(), Micros(self.now));
        let newest = end.posting_epoch;
        let known = self.adopted.entry(tuple.epoch).or_insert(tuple);
        assert_eq!(*known, tuple, "a split: two migrations of one epoch");
        if stuck {
            return;
        }
        let complete = !weak || end.fenced.contains_key(&newest);
        let reports = vec![IncarnationReport {
            epoch: newest,
            path: PathId(0),
            proof: if complete { Proof::Count } else { Proof::None },
            receives: self.now,
            fenced: complete,
        }];
        let delay = self.dice.below(200_000);
        let end = &mut self.ends[side];
        end.reports.entry(tuple).or_default().push(reports.clone());
        self.answer(delay, side, Input::Fenced { reports, complete });
    }

    fn repost(&mut self, side: usize, tuple: Tuple) {
        let end = &self.ends[side];
        assert!(end.excluded && end.machine.tuple() == Some(tuple));
        let peer = &self.ends[1 - side];
        // Who never posted in an epoch has sent nothing to the incarnation that could not be fenced.
        if !end.fence_complete && peer.posted.contains(&end.posting_epoch) {
            let fenced = peer.fenced.range(end.posting_epoch..).map(|(_, at)| *at).min();
            let since = fenced.expect("neither end is fenced and receives are posted again");
            assert!(self.now >= since + self.deadlines.packet_lifetime.0, "an old packet may still arrive");
        }
        let is_refused = self.dice.chance(self.profile.refusal) || self.hands.lacks(side, tuple.target);
        let input = if is_refused { Input::RepostFailed } else { Input::Reposted };
        let delay = self.dice.below(5000);
        self.answer(delay, side, input);
    }

    fn replay(&mut self, side: usize, tuple: Tuple, reports: &[IncarnationReport]) {
        let peer = &self.ends[1 - side];
        assert!(peer.reposted.contains(&tuple), "replays before the peer has posted its receives");
        assert!(self.ends[side].reposted.contains(&tuple), "replays before its own receives are posted");
        let given = peer.reports.get(&tuple).expect("the peer reported");
        assert!(given.iter().any(|given| given == reports), "the reports are not the peer's");
        let end = &mut self.ends[side];
        end.replaying = Some(tuple);
        end.stopped = false;
        end.excluded = false;
        end.drained = false;
        self.go_on_replaying(side);
    }

    fn go_on_replaying(&mut self, side: usize) {
        let down = !self.carries(side, self.ends[side].machine.path().0);
        let delay = self.dice.below(20_000);
        if self.dice.chance(self.profile.stop) {
            return self.answer(delay, side, Input::StopReached);
        }
        self.answer(delay, side, Input::Replayed);
        if down {
            let generation = self.ends[side].work_generation;
            let retries = self.dice.below(2_000_000);
            self.schedule(self.now + retries, Happening::RetriesOver(side, generation));
        } else {
            let retired = delay + 1 + self.dice.below(50_000);
            self.answer(retired, side, Input::Retired);
        }
    }

    fn is_cut(&self, side: usize) -> bool {
        self.cuts[side].iter().any(|(from, to)| (*from..*to).contains(&self.now))
    }

    fn send(&mut self, side: usize, message: Handshake) {
        self.check_message(side, &message);
        let cut = self.is_cut(side);
        let clean = self.now >= self.profile.span;
        let copies = if self.dice.chance(self.profile.repeat) { 2 } else { 1 };
        for _ in 0..copies {
            if cut || (!clean && self.dice.chance(self.profile.drop)) {
                continue;
            }
            let delay = 50 + self.dice.below(self.profile.max_delay_us);
            self.schedule(self.now + delay, Happening::Deliver(1 - side, message.clone()));
        }
    }

    fn check_message(&mut self, side: usize, message: &Handshake) {
        self.check_target(side, message);
        let end = &mut self.ends[side];
        match message {
            Handshake::Accept { tuple } => {
                assert!(end.excluded, "accepts with posters inside");
                let by_plan = end.plans_heard.contains(tuple) && !end.faulted;
                let first = !end.accepted.contains(tuple);
                assert!(!first || !by_plan || end.drained, "accepts a plan with sends outstanding");
                end.accepted.insert(*tuple);
            }
            Handshake::Commit { tuple } => {
                assert!(end.excluded || end.machine.tuple() == Some(*tuple), "commits with posters inside");
                assert!(!end.cancelled.contains(tuple), "COMMIT after CANCEL");
                let first = !end.committed.contains(tuple);
                assert!(!first || !end.plans_said.contains(tuple) || end.drained, "commits to a plan undrained");
                end.committed.insert(*tuple);
            }
            Handshake::Cancel { tuple } => {
                assert!(!end.committed.contains(tuple), "CANCEL after COMMIT");
                end.cancelled.insert(*tuple);
                self.mark("cancelled");
            }
            Handshake::Claim { tuple, cause: Cause::Planned } => {
                assert!(end.drained, "claims by plan with sends outstanding");
                end.plans_said.insert(*tuple);
            }
            Handshake::Claim { tuple, .. } => {
                let answered = end.answered_since_seek.contains(&tuple.target);
                assert!(answered, "claims a path that has not answered since the fault");
            }
            Handshake::Wait { .. } => self.mark("waited"),
            Handshake::Report { reports, .. } => assert!(reports.len() <= 1),
            _ => {}
        }
    }
}
