//! Both ends, the lines between them, the messages on their way: what may happen next, and what comes of it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use shift_proto::id::{Epoch, Mtu, PathId, Psn64, Tuple};
use shift_proto::ledger::{Op, Posting};
use shift_proto::migrate::{Attempt, Cause, Deadline, Effect, Handshake, Input, Machine, Stage, Surfaced};
use shift_proto::policy::could_end_in_error;

use super::controls::Control;
use super::end::End;
use super::line::{Line, Responder};
use super::{lockstep, Setting, GRAIN};
use crate::ado::Ado;
use crate::explorer::fingerprint;

/// A message that may arrive, now or later, once or often.
#[derive(Clone, Debug)]
pub struct Letter {
    print: u64,
    /// To whom.
    pub to: usize,
    /// What.
    pub message: Arc<Handshake>,
}

impl PartialEq for Letter {
    fn eq(&self, other: &Self) -> bool {
        (self.print, self.to, &self.message) == (other.print, other.to, &other.message)
    }
}
impl Eq for Letter {}
impl Hash for Letter {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.print.hash(hasher);
    }
}

/// What really became of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truth {
    /// How often all of it took effect.
    pub executions: u8,
    /// How often each grain of a WRITE was placed.
    pub grains: [u8; 4],
    /// A packet of it was executed.
    pub is_begun: bool,
    /// Its result is in memory.
    pub has_landed: bool,
    /// The application has its success, or would have if it had asked.
    pub is_complete: bool,
    /// What it wrote was taken by the consumer, whose memory it is since.
    pub is_consumed: bool,
}

/// What is left of what may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    faults: u8,
    suspects: u8,
    moves: u8,
    failing_fences: u8,
    lapses: u8,
    lost_completions: u8,
    destroys: u8,
    posters: u8,
    cuts: u8,
}

impl Budget {
    /// Nothing is left of the cuts.
    #[must_use]
    pub const fn has_cut(&self) -> bool {
        self.cuts == 0
    }
}

/// A state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The ends.
    pub ends: [Arc<End>; 2],
    /// Lines, by epoch and sender.
    pub lines: Vec<Arc<Line>>,
    /// What became of each end's requests.
    pub truth: [Arc<Vec<Truth>>; 2],
    /// Sorted.
    pub letters: Vec<Letter>,
    /// By sender: what its direction is as an object.
    pub objects: [Arc<Ado<usize>>; 2],
    /// Which migration each epoch is.
    pub adopted: Vec<Tuple>,
    /// Who hears nothing: what is said meanwhile is lost.
    pub deaf: [bool; 2],
    /// What is left.
    pub budget: Budget,
    /// What is broken already.
    pub wrong: Option<String>,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A message arrives.
    Deliver(usize),
    /// The receiver's NIC executes the next packet of that line.
    Execute(usize),
    /// The sender's NIC has the next result of that line.
    Land(usize),
    /// The sender's program sees the next completion of that line.
    Complete(usize),
    /// The completion of a receive vanishes.
    LoseCompletion(usize),
    /// An application takes a receive.
    Poll(usize),
    /// The consumer looks at what was written.
    Look(usize),
    /// An application posts.
    Post(usize),
    /// The queue pair of an end goes into ERR: its NIC has given up.
    Fail(usize),
    /// An end hears that its port is down.
    Suspect(usize),
    /// A path answers a probe.
    Answer(usize, PathId),
    /// A fence is done.
    Fence(usize),
    /// It cannot be done.
    FenceFails(usize),
    /// An operator wishes an end to be elsewhere.
    Move(usize, PathId),
    /// All own sends are complete.
    Drained(usize),
    /// A deadline passes.
    Pass(usize, Deadline),
    /// The NIC had its time to heal what could end in an error.
    PassHold(usize),
    /// An application destroys its queue pair.
    Destroy(usize),
    /// An end goes back although COMMIT was said.
    Resume(usize),
    /// A poster is inside.
    Enter(usize),
    /// It leaves.
    Leave(usize),
    /// Nothing reaches that end any more.
    Cut(usize),
    /// What is said from now on does.
    Heal(usize),
}

impl World {
    /// How it begins.
    #[must_use]
    pub fn new(setting: &Setting) -> Self {
        let truth = |side: usize| Arc::new(vec![Truth::default(); setting.wants[side].len()]);
        let mut world = Self {
            ends: [0, 1].map(|side| Arc::new(End::new(side, setting))),
            lines: Vec::new(),
            truth: [truth(0), truth(1)],
            letters: Vec::new(),
            objects: [0, 1].map(|_| Arc::new(lockstep::object(setting))),
            adopted: Vec::new(),
            budget: Budget {
                faults: setting.faults,
                suspects: setting.suspects,
                moves: setting.moves,
                failing_fences: setting.failing_fences,
                lapses: setting.lapses,
                lost_completions: setting.lost_completions,
                destroys: setting.destroys,
                posters: setting.posters,
                cuts: setting.cuts,
            },
            deaf: setting.deaf,
            wrong: None,
        };
        for side in 0..2 {
            world.connect(setting, side, Epoch::FIRST, PathId::PRIMARY);
        }
        for side in 0..2 {
            world.connect_responder(side, Epoch::FIRST, 0, 1);
            for want in 0..world.ends[side].posted {
                world.post(setting, side, want, 0);
            }
            world.note_risk(setting, side);
        }
        world
    }

    /// The machines and all else but what is told of them.
    pub fn end(&mut self, side: usize) -> &mut End {
        Arc::make_mut(&mut self.ends[side])
    }

    pub(super) fn fault(&mut self, words: impl Into<String>) {
        self.wrong.get_or_insert(words.into());
    }

    /// The number of a line.
    #[must_use]
    pub fn line(&self, sender: usize, epoch: Epoch) -> Option<usize> {
        self.lines.iter().position(|line| line.sender == sender && line.epoch == epoch)
    }

    pub(super) fn connect(&mut self, setting: &Setting, sender: usize, epoch: Epoch, path: PathId) -> usize {
        if let Some(known) = self.line(sender, epoch) {
            return known;
        }
        self.lines.push(Arc::new(Line {
            epoch,
            path,
            mtu: Mtu::new(setting.mtus[usize::from(path.0)] * GRAIN).expect("an MTU is a power of two of grains"),
            first_psn: Psn64(setting.first_psn),
            sender,
            postings: Vec::new(),
            packets: 0,
            landed: 0,
            completed: 0,
            is_stopped: false,
            is_silent: false,
            responder: None,
        }));
        self.lines.sort_by_key(|line| (line.epoch, line.sender));
        self.line(sender, epoch).unwrap_or(0)
    }

    /// The receiving half at `side` of the incarnation.
    pub(super) fn connect_responder(&mut self, side: usize, epoch: Epoch, first_buffer: u64, copies: u64) {
        let Some(line) = self.line(1 - side, epoch) else { return };
        let responder = Responder { first_buffer, copies, consumed: 0, lost: 0, is_fenced: false, runs_on: false };
        Arc::make_mut(&mut self.lines[line]).responder = Some(responder);
    }

    pub(super) fn post(&mut self, setting: &Setting, side: usize, want: usize, offset: u32) -> Option<Posting> {
        let line = self.line(side, self.ends[side].posting)?;
        let posting = Arc::make_mut(&mut self.lines[line]).post(want, offset, &setting.wants[side]);
        self.invoke(setting, side, posting.epoch, want);
        Some(posting)
    }

    /// What may happen in it.
    pub fn steps(&self, setting: &Setting, steps: &mut Vec<Step>) {
        if self.wrong.is_some() {
            return;
        }
        for (number, line) in self.lines.iter().enumerate() {
            let wants = &setting.wants[line.sender];
            if line.next(wants).is_some() {
                steps.push(Step::Execute(number));
            }
            if line.next_result(wants).is_some() {
                steps.push(Step::Land(number));
            }
            let is_over_read = setting.breaks(Control::CompletionOverRead) && line.completed < line.executed(wants);
            if self.ends[line.sender].posting == line.epoch
                && (line.next_completion(wants).is_some() || (is_over_read && !line.is_stopped))
            {
                steps.push(Step::Complete(number));
            }
            let is_waiting = self.received(1 - line.sender) > self.ends[1 - line.sender].polled;
            let may_lose = line.epoch == Epoch::FIRST && is_waiting && line.responder.is_some_and(|r| !r.is_fenced);
            if self.budget.lost_completions > 0 && may_lose {
                steps.push(Step::LoseCompletion(number));
            }
        }
        let hears = |nth: &usize| !self.deaf[self.letters[*nth].to];
        steps.extend((0..self.letters.len()).filter(hears).map(Step::Deliver));
        if setting.cuts > 0 {
            let cuts = (0..2).filter(|side| !self.deaf[*side] && self.budget.cuts > 0).map(Step::Cut);
            steps.extend(cuts.chain((0..2).filter(|side| self.deaf[*side]).map(Step::Heal)));
        }
        for side in 0..2 {
            self.steps_of(setting, side, steps);
        }
    }

    fn steps_of(&self, setting: &Setting, side: usize, steps: &mut Vec<Step>) {
        let end = &self.ends[side];
        let state = end.machine.state();
        let is_live = !matches!(state.stage, Stage::Dead | Stage::Gone);
        if end.polled < self.received(side) && !end.is_surfaced {
            steps.push(Step::Poll(side));
        }
        if setting.polls_data {
            let wants = &setting.wants[1 - side];
            let is_new = |(want, truth): &(usize, &Truth)| {
                wants[*want].op == Op::Write && truth.executions > 0 && !truth.is_consumed
            };
            steps.extend(self.truth[1 - side].iter().enumerate().filter(is_new).map(|(want, _)| Step::Look(want)));
        }
        if !is_live {
            let is_unheard =
                end.machine.running().any(|timer| timer == Deadline::Resend) && self.has_lost(setting, side);
            steps.extend(is_unheard.then_some(Step::Pass(side, Deadline::Resend)));
            return;
        }
        if end.posted < setting.wants[side].len() && !end.in_error && end.stop.is_none() {
            steps.push(Step::Post(side));
        }
        let runs = matches!(state.stage, Stage::Running | Stage::Replaying) && !end.in_error;
        let has_work = end.retired < end.posted;
        if self.budget.faults > 0 && runs && has_work {
            steps.push(Step::Fail(side));
        }
        if self.budget.suspects > 0 && runs && state.attempt == Attempt::Idle {
            steps.push(Step::Suspect(side));
        }
        if end.is_seeking && end.claims < setting.claims {
            let answers =
                (0..setting.mtus.len() as u8).map(PathId).filter(|path| *path != end.machine.path() || !end.in_error);
            steps.extend(answers.map(|path| Step::Answer(side, path)));
        }
        if end.is_fencing {
            steps.push(Step::Fence(side));
            if self.budget.failing_fences > 0 {
                steps.push(Step::FenceFails(side));
            }
        }
        if self.budget.moves > 0 && runs && state.attempt == Attempt::Idle && state.stage == Stage::Running {
            let others = (0..setting.mtus.len() as u8).map(PathId).filter(|path| *path != end.machine.path());
            steps.extend(others.map(|path| Step::Move(side, path)));
        }
        if end.machine.wants_drain() && !has_work {
            steps.push(Step::Drained(side));
        }
        for timer in end.machine.running() {
            let leads_on = match timer {
                Deadline::Settle | Deadline::Claim | Deadline::Plan => true,
                Deadline::Pause => end.claims < setting.claims,
                Deadline::Exchange | Deadline::Patience => self.budget.lapses > 0,
                Deadline::Fence => self.budget.failing_fences > 0,
                Deadline::Exclude => end.is_asked,
                Deadline::Resend => self.has_lost(setting, side),
            };
            if leads_on {
                steps.push(Step::Pass(side, timer));
            }
        }
        if end.machine.is_holding() && end.risk {
            steps.push(Step::PassHold(side));
        }
        if self.budget.destroys > 0 && !end.is_destroyed {
            steps.push(Step::Destroy(side));
        }
        if end.is_inside {
            steps.push(Step::Leave(side));
        } else if self.budget.posters > 0 && runs && !end.is_stopped {
            steps.push(Step::Enter(side));
        }
        if end.before.is_some() && end.is_fencing {
            steps.push(Step::Resume(side));
        }
    }

    /// Receives that completed at an end, over all incarnations.
    #[must_use]
    pub fn received(&self, side: usize) -> u64 {
        let responders = self.lines.iter().filter(|line| line.sender != side).filter_map(|line| line.responder);
        responders.map(|responder| responder.consumed - responder.lost).sum()
    }

    /// What comes of a step.
    pub fn take(&mut self, setting: &Setting, step: &Step) {
        match step {
            Step::Deliver(letter) => {
                let Letter { to, message, .. } = self.letters[*letter].clone();
                self.deliver(setting, to, &message);
            }
            Step::Execute(line) => self.execute(setting, *line),
            Step::Land(line) => {
                let wants = &setting.wants[self.lines[*line].sender];
                if let Some(nth) = self.lines[*line].next_result(wants) {
                    self.land(*line, nth);
                }
            }
            Step::Complete(line) => self.complete(setting, *line),
            Step::LoseCompletion(line) => {
                self.budget.lost_completions -= 1;
                Arc::make_mut(&mut self.lines[*line]).responder.iter_mut().for_each(|responder| responder.lost += 1);
            }
            Step::Poll(side) => self.poll(setting, *side),
            Step::Look(want) => Arc::make_mut(&mut self.truth[0])[*want].is_consumed = true,
            Step::Post(side) => {
                let want = self.ends[*side].posted;
                self.end(*side).posted += 1;
                let end = &self.ends[*side];
                if !end.is_stopped && (end.is_inside || !end.is_asked) {
                    self.post(setting, *side, want, 0);
                }
            }
            Step::Fail(side) => {
                self.budget.faults -= 1;
                let end = self.end(*side);
                (end.in_error, end.was_faulted) = (true, true);
                if let Some(line) = self.line(*side, self.ends[*side].posting) {
                    Arc::make_mut(&mut self.lines[line]).is_stopped = true;
                }
                self.give(setting, *side, Input::Fault { cause: Cause::RetryExceeded, fatal: true });
            }
            Step::Suspect(side) => {
                self.budget.suspects -= 1;
                self.end(*side).was_faulted = true;
                self.give(setting, *side, Input::Fault { cause: Cause::PortDown, fatal: false });
            }
            Step::Answer(side, path) => self.give(setting, *side, Input::PathAnswered(*path)),
            Step::Fence(side) => self.fence(setting, *side, true),
            Step::FenceFails(side) => {
                self.budget.failing_fences -= 1;
                self.fence(setting, *side, false);
            }
            Step::Move(side, path) => {
                self.budget.moves -= 1;
                self.give(setting, *side, Input::Move(*path));
            }
            Step::Drained(side) => self.give(setting, *side, Input::Drained),
            Step::Pass(side, timer) => self.pass(setting, *side, *timer),
            Step::PassHold(side) => {
                let end = self.end(*side);
                end.machine.pass_hold();
                end.has_waited = true;
            }
            Step::Destroy(side) => {
                self.budget.destroys -= 1;
                self.end(*side).is_destroyed = true;
                self.give(setting, *side, Input::Destroyed);
            }
            Step::Resume(side) => self.go_back(setting, *side),
            Step::Enter(side) => {
                self.budget.posters -= 1;
                self.end(*side).is_inside = true;
            }
            Step::Leave(side) => self.leave(setting, *side),
            Step::Cut(side) => {
                self.budget.cuts -= 1;
                self.deaf[*side] = true;
            }
            Step::Heal(side) => self.deaf[*side] = false,
        }
        for side in 0..2 {
            self.note_risk(setting, side);
            let end = &self.ends[side];
            let is_live = !matches!(end.machine.state().stage, Stage::Dead | Stage::Gone);
            if is_live && end.machine.epoch() < end.committed {
                self.fault("6: it goes on in an old epoch although COMMIT was said");
            }
        }
    }

    /// Whether an end would say something again that never reached the network.
    fn has_lost(&self, setting: &Setting, side: usize) -> bool {
        if setting.cuts == 0 || self.deaf[1 - side] || setting.breaks(Control::NothingSaidAgain) {
            return false;
        }
        let mut end = End::clone(&self.ends[side]);
        end.machine.pass(Deadline::Resend);
        let is_known = |message: &Handshake| self.place_of(1 - side, message).is_ok();
        end.effects().iter().any(|effect| matches!(effect, Effect::Send(message) if !is_known(message)))
    }

    fn leave(&mut self, setting: &Setting, side: usize) {
        let end = self.end(side);
        end.is_inside = false;
        if end.is_asked {
            (end.is_asked, end.is_stopped) = (false, true);
            self.give(setting, side, Input::Excluded);
        }
    }

    fn go_back(&mut self, setting: &Setting, side: usize) {
        let end = self.end(side);
        let before = end.before.take().expect("it is offered to who was somewhere");
        (end.machine, end.is_fencing) = (Machine::clone(&before), false);
        self.pass(setting, side, Deadline::Claim);
    }

    fn pass(&mut self, setting: &Setting, side: usize, timer: Deadline) {
        match timer {
            Deadline::Settle => self.silence(side),
            Deadline::Exchange | Deadline::Patience => self.budget.lapses -= 1,
            Deadline::Fence => {
                self.budget.failing_fences -= 1;
                self.end(side).is_fencing = false;
            }
            _ => {}
        }
        let end = self.end(side);
        end.has_waited |= timer == Deadline::Pause;
        end.machine.pass(timer);
        let effects = end.effects();
        self.perform(setting, side, effects);
    }

    /// The packet lifetime is over: what stopped senders sent to that end arrives no more.
    fn silence(&mut self, side: usize) {
        for line in &mut self.lines {
            if line.sender != side && line.is_stopped {
                Arc::make_mut(line).is_silent = true;
            }
        }
    }

    fn deliver(&mut self, setting: &Setting, to: usize, message: &Handshake) {
        let mut message = message.clone();
        let current = self.ends[to].machine.tuple();
        if setting.breaks(Control::RepliesOfAnyEpoch) {
            if let (Handshake::Report { tuple, .. } | Handshake::Ready { tuple }, Some(current)) =
                (&mut message, current)
            {
                *tuple = current;
            }
        }
        let commit = if let Handshake::Commit { tuple } = message { Some(tuple) } else { None };
        let is_late = self.ends[to].machine.state().attempt != Attempt::Accepted;
        if !(setting.breaks(Control::LateCommitIgnored) && commit.is_some() && is_late) {
            self.hear(setting, to, message, current);
        }
        let end = &self.ends[to];
        let is_live = !matches!(end.machine.state().stage, Stage::Dead | Stage::Gone);
        if commit.is_some_and(|tuple| is_live && end.machine.epoch() < tuple.epoch) {
            self.fault("it goes on in an old epoch although it heard COMMIT");
        }
    }

    fn hear(&mut self, setting: &Setting, to: usize, message: Handshake, current: Option<Tuple>) {
        let is_report = matches!(message, Handshake::Report { .. });
        let is_unchecked = match message {
            Handshake::Claim { .. } => setting.breaks(Control::ClaimsOfAnyEpoch),
            Handshake::Commit { .. } => setting.breaks(Control::NoticesOfAnyEpoch),
            _ => false,
        };
        if is_unchecked {
            let effects = self.end(to).give_unchecked(message);
            return self.perform(setting, to, effects);
        }
        if let (Handshake::Gone, true) = (&message, setting.breaks(Control::DestroyIsFault)) {
            return self.give(setting, to, Input::Fault { cause: Cause::Flushed, fatal: true });
        }
        self.give(setting, to, Input::Frame(message));
        if let (true, true, Some(tuple)) = (is_report, setting.breaks(Control::ReplayBeforeRepost), current) {
            self.give(setting, to, Input::Frame(Handshake::Ready { tuple }));
        }
    }

    /// One input and all that follows from it at once.
    pub fn give(&mut self, setting: &Setting, side: usize, input: Input) {
        let before = setting.breaks(Control::ResumeAfterCommit).then(|| self.ends[side].machine.clone());
        let effects = self.end(side).give(input);
        if let Some(before) = before.filter(|before| before.epoch() < self.ends[side].machine.epoch()) {
            self.end(side).before = Some(Arc::new(before));
        }
        self.perform(setting, side, effects);
    }

    fn perform(&mut self, setting: &Setting, side: usize, effects: Vec<Effect>) {
        let mut answers = Vec::new();
        for effect in effects {
            answers.extend(self.effect(setting, side, effect));
        }
        for answer in answers {
            self.give(setting, side, answer);
        }
        self.retire(setting, side);
    }

    fn effect(&mut self, setting: &Setting, side: usize, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Send(message) => self.send(setting, side, message),
            Effect::Seek => self.end(side).is_seeking = true,
            Effect::StopSeek => self.end(side).is_seeking = false,
            Effect::Exclude => {
                let end = self.end(side);
                (end.is_asked, end.is_stopped) = (end.is_inside, !end.is_inside);
                return (!end.is_inside).then_some(Input::Excluded);
            }
            Effect::Release => self.release(setting, side),
            Effect::Fence => self.begin_fence(setting, side),
            Effect::Repost { tuple } => return Some(self.repost(setting, side, tuple)),
            Effect::Replay { tuple, reports } => return self.replay(setting, side, tuple, &reports),
            Effect::Forget { below } => self.forget(side, below),
            Effect::Confirmed { .. } | Effect::Phase(_) => {}
            Effect::Surface { why } => self.surface(setting, side, why),
        }
        None
    }

    fn send(&mut self, setting: &Setting, side: usize, message: Handshake) {
        if let Handshake::Claim { cause, .. } = message {
            self.judge_claim(setting, side, cause);
        }
        if setting.breaks(Control::FenceAtAccept) && matches!(message, Handshake::Accept { .. }) {
            self.close(setting, side);
        }
        if let (Handshake::Claim { tuple, .. }, true) = (&message, setting.breaks(Control::EarlyFenceBinds)) {
            let end = self.end(side);
            end.bound = end.in_error.then_some(tuple.target);
        }
        if let Handshake::Claim { tuple, .. } = message {
            self.end(side).claims = tuple.attempt;
        }
        let to = 1 - side;
        if let (Err((place, print)), false) = (self.place_of(to, &message), self.deaf[to]) {
            self.letters.insert(place, Letter { print, to, message: Arc::new(message) });
        }
    }

    /// Where a message is on the network, or would be.
    fn place_of(&self, to: usize, message: &Handshake) -> Result<usize, (usize, u64)> {
        let print = fingerprint::of(&(to, message));
        self.letters.binary_search_by_key(&print, |letter| letter.print).map_err(|place| (place, print))
    }

    fn judge_claim(&mut self, setting: &Setting, side: usize, cause: Cause) {
        let end = &self.ends[side];
        if cause != Cause::Planned && !end.was_faulted {
            return self.fault("7: it claims although nothing was wrong with its path");
        }
        let end = &self.ends[side];
        if cause == Cause::Planned || end.in_error {
            return;
        }
        let could_err = could_err(setting, side, end);
        let is_hasty = could_err && !end.has_waited && end.machine.state().stage == Stage::Running;
        if is_hasty {
            self.fault("7: it claims before the NIC had its time to heal what could end in an error");
        }
    }

    fn release(&mut self, setting: &Setting, side: usize) {
        let end = self.end(side);
        (end.is_stopped, end.is_asked) = (false, false);
        let Some(line) = self.line(side, self.ends[side].posting) else { return };
        if self.lines[line].is_stopped && !self.ends[side].in_error {
            self.fault("7: posting goes on on an incarnation that is fenced");
        }
        let unposted: Vec<usize> = (self.ends[side].retired..self.ends[side].posted)
            .filter(|want| self.last_posting(side, *want).is_none())
            .collect();
        for want in unposted {
            self.post(setting, side, want, 0);
        }
    }

    fn surface(&mut self, setting: &Setting, side: usize, why: Surfaced) {
        if why == Surfaced::ReplayFailed && setting.lost_completions == 0 && setting.failing_fences == 0 {
            self.fault("7: an error although both ends have told all that they know");
        }
        if setting.deaf.contains(&true) && setting.faults == 0 {
            self.fault("7: who hears nothing from before the claim on ends a healthy queue pair");
        }
        let was_touched = self.ends.iter().any(|end| end.was_faulted || end.is_destroyed);
        if !was_touched {
            self.fault("7: an error on a connection that nothing was wrong with");
        }
        let end = self.end(side);
        end.is_surfaced = true;
        end.awaited = None;
        end.is_fencing = false;
        for line in &mut self.lines {
            let line = Arc::make_mut(line);
            if line.sender == side {
                line.is_stopped = true;
            }
        }
    }

    pub(super) fn last_posting(&self, side: usize, want: usize) -> Option<Posting> {
        let lines = self.lines.iter().rev().filter(|line| line.sender == side);
        lines.flat_map(|line| line.postings.iter().filter(|(of, _)| *of == want)).map(|(_, posting)| *posting).next()
    }

    fn note_risk(&mut self, setting: &Setting, side: usize) {
        let end = &self.ends[side];
        let risk = could_err(setting, side, end) && !setting.breaks(Control::HoldSkipped);
        if risk != end.risk {
            self.end(side).risk = risk;
            self.give(setting, side, Input::Hold(risk));
        }
    }
}

fn could_err(setting: &Setting, side: usize, end: &End) -> bool {
    let wants = &setting.wants[side][end.retired..end.posted];
    wants.iter().any(|want| could_end_in_error(want.op, want.unknown))
}
