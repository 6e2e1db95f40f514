//! Moving a connection: the machine's effects become calls of the data path, and what those achieve becomes its inputs.
//!
//! Nothing here decides; the order of things is the machine's. What must hold: the fence's result is asked for in a later
//! round of the loop than the fence was begun in, so that every fault of the old incarnation that was on its way has been taken off
//! the channel before the new one exists.

use shift_proto::id::{Epoch, Micros, PathId, Tuple, WrSeq};
use shift_proto::ledger::{IncarnationReport, Plan};
use shift_proto::migrate::{Attempt, Cause, Effect, Handshake, Input, Machine, Phase, Stage, StateName, Surfaced};

use crate::clock;
use crate::datapath::{Errno, FenceProgress, RemoteKey, RemoteKeys, ReplayProgress};
use crate::mirror::Mirror;
use crate::musters::Said;
use crate::qp::{Job, Qp, Refusal};
use crate::record::{Outcome, Record};
use crate::sabotage;
use crate::verdicts::{self, Reported};
use crate::world::World;

/// Tries to bring the new path up: more than fit into the exchange deadline by default, which is what ends them. A port that is down for a while
/// (ENETUNREACH on soft-RoCE) is a fault like any other, and no reason to give up before that.
const REPOST_TRIES: u32 = 500;
/// Pause between those tries.
const REPOST_PAUSE_US: u64 = 20_000;
/// The same where the other queue pairs of its group are waited for.
const GROUP_PAUSE_US: u64 = 1_000;
/// `IBV_WC_REM_ACCESS_ERR`: what hardware says of a key that does not exist.
const WC_REM_ACCESS_ERR: u32 = 10;

impl Qp {
    /// Gives the machine an input and performs what follows from it, and from that, until nothing more does.
    pub fn feed(&mut self, world: &mut World, now: Micros, input: Input) {
        let Some(before) = self.machine.as_ref().map(Machine::state) else {
            return;
        };
        self.inputs.push_back(input);
        if std::mem::replace(&mut self.feeding, true) {
            // What an effect brings about has its turn after the effect.
            return;
        }
        while let Some(input) = self.inputs.pop_front() {
            log::trace!("qp {:#x}: {input:?}", self.facts.qpn);
            if let Some(machine) = &mut self.machine {
                machine.handle(now, input);
            }
            while let Some(effect) = self.machine.as_mut().and_then(Machine::poll_effect) {
                log::trace!("qp {:#x}: -> {effect:?}", self.facts.qpn);
                self.perform(world, now, effect);
            }
        }
        self.feeding = false;
        let after = self.machine.as_ref().map(Machine::state);
        if let Some(after) = after.filter(|after| *after != before) {
            log::debug!("qp {:#x}: {before} -> {after}", self.facts.qpn);
            self.handle_settled(world, after, now);
        }
    }

    /// The machine came to rest: a record of a fault that healed is no migration.
    fn handle_settled(&mut self, world: &mut World, state: StateName, now: Micros) {
        if state.stage != Stage::Fencing && matches!(self.job, Job::Fencing) {
            // The fence was given up; a late answer is none.
            self.job = Job::Idle;
        }
        if matches!(state.stage, Stage::Dead | Stage::Gone) {
            self.seek = None;
            self.mask(world, false);
        }
        self.unmask_if_alone(world);
        let healed = state.stage == Stage::Running && state.attempt == Attempt::Idle;
        let by_plan = healed && self.plans.take_heard();
        if healed && self.record.as_ref().is_some_and(|r| !r.has(Phase::Committed)) {
            self.record = None;
            self.first_error_ns = None;
            let name = self.path_name(world, self.current());
            if !by_plan && world.told.is_due(&format!("healed {}", name.device), now, 1_000_000) {
                log::info!("the path {} to {} is good again, nothing was moved", name.device, name.peer_gid);
            }
        }
    }

    fn perform(&mut self, world: &mut World, now: Micros, effect: Effect) {
        match effect {
            Effect::Send(msg) => self.send(world, msg),
            Effect::Seek => self.start_seek(world, now),
            Effect::StopSeek => self.stop_seek(world),
            Effect::Exclude => self.exclude(world),
            Effect::Release => self.release(world),
            Effect::Fence => {
                (self.paused, self.refusal) = (None, None);
                world.data.fence(self.life, world.config.deadlines.drain);
                self.job = Job::Fencing;
            }
            Effect::Repost { tuple } => {
                self.job = Job::Reposting { tuple, due: self.quiet_from(world, tuple.target, now), tries: 0 };
                let done = self.try_repost(world, now);
                self.inputs.extend(done);
            }
            Effect::Replay { tuple, reports } => {
                let done = self.start_replay(world, tuple, &reports);
                self.inputs.extend(done);
            }
            Effect::Forget { below } => world.data.forget(self.life, below),
            Effect::Confirmed { epoch } => self.handle_confirmed(world, epoch),
            Effect::Surface { why } => self.surface(world, why),
            Effect::Phase(phase) => self.stamp(world, phase, now),
        }
    }

    /// Says that to the peer.
    pub fn send(&mut self, world: &mut World, msg: Handshake) {
        if let Some(mirror) = &mut self.mirror {
            return mirror.tell(msg);
        }
        if let (Some(process), Some(remote)) = (self.process, self.remote) {
            self.record.iter_mut().for_each(|record| record.messages += 1);
            world.send_message(process, remote.end, self.me, msg);
        }
    }

    fn exclude(&mut self, world: &World) {
        self.excluded = true;
        let job = std::mem::replace(&mut self.job, Job::Excluding);
        if matches!(job, Job::Replaying { .. } | Job::Retiring { .. } | Job::Stopping { .. }) {
            self.paused = Some(job);
        }
        let done = self.try_exclude(world);
        self.inputs.extend(done);
    }

    fn try_exclude(&mut self, world: &World) -> Vec<Input> {
        if !world.data.exclude(self.life) {
            return Vec::new();
        }
        self.job = Job::Idle;
        let hold = world.data.could_end_in_error(self.life);
        let changed = std::mem::replace(&mut self.hold, hold) != hold;
        changed.then_some(Input::Hold(hold)).into_iter().chain([Input::Excluded]).collect()
    }

    /// A replay that was interrupted goes on where it was, with posters kept out as before: what is held comes after the rest of the plan, and
    /// never after a stop.
    fn release(&mut self, world: &World) {
        let in_replay = matches!(self.paused, Some(Job::Replaying { .. } | Job::Stopping { .. }));
        self.job = self.paused.take().unwrap_or(Job::Idle);
        if in_replay {
            return;
        }
        self.excluded = false;
        if !self.mirror.as_ref().is_some_and(Mirror::keeps_out) {
            world.data.release(self.life);
        }
        self.held = true;
    }

    /// When nothing of an earlier incarnation arrives on a path any more. The same QP object is connected again there, and after millions of packets
    /// the new numbers are not certain to lie outside the window of the old ones.
    fn quiet_from(&self, world: &World, path: PathId, now: Micros) -> Micros {
        let ids = self.path_ids().filter(|other| self.shares_an_end(path, *other));
        let fenced = ids.filter_map(|other| self.path(other)?.fenced).max();
        fenced.map_or(now, |fenced| now.max(fenced + world.config.deadlines.packet_lifetime))
    }

    fn try_repost(&mut self, world: &mut World, now: Micros) -> Option<Input> {
        let Job::Reposting { tuple, due, tries } = self.job else {
            return None;
        };
        if now < due || !self.may_receive_on(tuple.target) {
            return None;
        }
        match self.repost(world, tuple) {
            Ok(count) => {
                if let Some(record) = &mut self.record {
                    record.reposted = count as u64;
                }
                self.job = Job::Idle;
                self.at = tuple.target;
                world.posted.extend(self.facts.group.zip(self.site_of(tuple.target)));
                if let Some(mirror) = &mut self.mirror {
                    mirror.note_reposted(tuple.epoch);
                }
                Some(Input::Reposted)
            }
            // Somebody takes receives of the group still, or what is left of them is being taken back.
            Err(Errno(nix::libc::EBUSY | nix::libc::EAGAIN)) if self.facts.group.is_some() => {
                self.job = Job::Reposting { tuple, due: now + Micros(GROUP_PAUSE_US), tries };
                None
            }
            Err(error) if tries + 1 >= REPOST_TRIES => {
                log::warn!("qp {:#x}: {} cannot take over ({error})", self.facts.qpn, tuple.target);
                self.job = Job::Idle;
                Some(Input::RepostFailed)
            }
            Err(_) => {
                self.job = Job::Reposting { tuple, due: now + Micros(REPOST_PAUSE_US), tries: tries + 1 };
                None
            }
        }
    }

    fn repost(&self, world: &World, tuple: Tuple) -> Result<usize, Errno> {
        let ends = self.path(tuple.target).and_then(|s| s.ends);
        let (own, peer) = ends.ok_or(Errno(nix::libc::EINVAL))?;
        let (own_psn, peer_psn) = (own.psn_base.in_epoch(tuple.epoch), peer.psn_base.in_epoch(tuple.epoch));
        world.data.connect(self.life, tuple.target, tuple.epoch, &peer, own_psn, peer_psn)?;
        world.data.repost(self.life, tuple.target, tuple.epoch, self.group.round)
    }

    fn start_replay(&mut self, world: &mut World, tuple: Tuple, reports: &[IncarnationReport]) -> Option<Input> {
        world.data.admit(self.life, &mut self.ledger);
        if let Err(disagreement) = self.ledger.apply(reports) {
            log::warn!("qp {:#x}: the two ends do not agree, {disagreement}", self.facts.qpn);
            self.note_why(&format!("the two ends do not agree: {disagreement}"));
            return Some(Input::ReplayFailed);
        }
        let plan = self.ledger.decide();
        self.log_plan(&plan);
        let last = world.data.next_seq(self.life).0;
        let qpns = |path| self.path(path).and_then(|s| s.ends).map_or((0, 0), |(own, peer)| (own.qpn, peer.qpn));
        let reported = reports.iter().map(|report| Reported::new(report, qpns(report.path))).collect();
        if let Some(record) = &mut self.record {
            record.count(&plan, last);
            record.reported = reported;
            (record.requests, record.requests_not_listed) = verdicts::list(self.ledger.entries(), &plan);
        }
        // It is driven in the queue pair's turn: many may be told to at once.
        self.job = Job::Replaying { tuple, plan };
        None
    }

    fn log_plan(&self, plan: &Plan) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let qpn = self.facts.qpn;
        for (view, step) in self.ledger.entries().zip(plan.steps.iter().map(Some).chain(std::iter::repeat(None))) {
            let action = step.map(|s| (s.action, s.evidence));
            log::debug!(
                "qp {qpn:#x} {}: {:?} of {} bytes, proven to byte {}, {action:?}",
                view.entry.seq,
                view.entry.op,
                view.entry.bytes,
                view.proven_offset
            );
        }
        if let Some(stop) = plan.stop {
            log::debug!("qp {qpn:#x} {}: ends here, {:?}", stop.seq, stop.why);
        }
    }

    fn drive_replay(&mut self, world: &mut World, now: Micros) -> Option<Input> {
        let Job::Replaying { tuple, plan } = &self.job else {
            return None;
        };
        if self.refusal.is_some() {
            return self.poll_refusal(world, now);
        }
        let (process, place) = self.place(tuple.target)?;
        let keys = world.keys_of(process, place);
        let progress = world.data.replay(self.life, tuple.target, tuple.epoch, plan, &mut self.ledger, &keys);
        match progress {
            ReplayProgress::Done => self.finish_replay(world),
            ReplayProgress::Full | ReplayProgress::More => None,
            ReplayProgress::NeedsKey { seq, rkey } => self.ask_key_for(world, seq, rkey, now),
            ReplayProgress::Refused { seq, error } => {
                log::warn!("qp {:#x}: the new path refuses the replay ({error})", self.facts.qpn);
                self.end_at(world, seq, status_of(error), "the new path refused the replay".to_owned(), now)
            }
        }
    }

    fn ask_key_for(&mut self, world: &mut World, seq: WrSeq, rkey: u32, now: Micros) -> Option<Input> {
        match self.ask_key(world, rkey, now) {
            Ok(()) => None,
            Err(status) => {
                let why = format!("the peer does not name a standby key for rkey {rkey:#x}");
                self.end_at(world, seq, status, why, now)
            }
        }
    }

    fn end_at(&mut self, world: &World, seq: WrSeq, status: Option<u32>, why: String, now: Micros) -> Option<Input> {
        self.refusal = Some(Refusal { seq, status, why, due: now + world.config.deadlines.exchange });
        self.poll_refusal(world, now)
    }

    /// The entry that the path refuses is the oldest: its time has come.
    fn poll_refusal(&mut self, world: &World, now: Micros) -> Option<Input> {
        let retired = world.data.retired_below(self.life);
        let refusal = self.refusal.take_if(|refusal| retired >= refusal.seq || now >= refusal.due)?;
        self.status = refusal.status;
        self.note_why(&refusal.why);
        Some(Input::ReplayFailed)
    }

    fn finish_replay(&mut self, world: &World) -> Option<Input> {
        let job = std::mem::replace(&mut self.job, Job::Idle);
        let Job::Replaying { plan, .. } = job else {
            return None;
        };
        let from = world.data.retired_below(self.life);
        if let Some(stop) = plan.stop {
            self.job = Job::Stopping { below: stop.seq };
            return None;
        }
        self.excluded = false;
        let below = plan.steps.last().map_or(WrSeq(0), |s| WrSeq(s.seq.0 + 1));
        self.job = Job::Retiring { below, from };
        Some(Input::Replayed)
    }

    /// `Err`: the status with which the request that needs the key ends.
    fn ask_key(&self, world: &mut World, rkey: u32, now: Micros) -> Result<(), Option<u32>> {
        let Some((process, place)) = self.place(self.at) else {
            return Err(None);
        };
        if world.keys_of(process, place).remote(rkey) == RemoteKey::Absent {
            return Err(Some(WC_REM_ACCESS_ERR));
        }
        let limit = world.config.deadlines.key_lookup;
        let question = world.peer_keys.entry(process).or_default().ask(place, rkey, now, limit);
        match question {
            Ok(Some(frame)) => {
                world.send(process, frame);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(()) => Err(None),
        }
    }

    /// Goes on with what is under way.
    pub fn tick(&mut self, world: &mut World, now: Micros) {
        self.tick_paths(world, now);
        self.tick_mirror(world, now);
        self.tend_plans(world, now);
        self.tend_pairs(world, now);
        let inputs = match &self.job {
            Job::Idle => Vec::new(),
            Job::Excluding => self.try_exclude(world),
            Job::Fencing => self.poll_fence(world, now).into_iter().collect(),
            Job::Reposting { .. } => self.try_repost(world, now).into_iter().collect(),
            Job::Replaying { .. } => self.drive_replay(world, now).into_iter().collect(),
            Job::Retiring { below, from } => self.poll_retiring(world, *below, *from),
            Job::Stopping { below } => {
                let reached = world.data.retired_below(self.life) >= *below;
                if reached {
                    self.job = Job::Idle;
                }
                reached.then_some(Input::StopReached).into_iter().collect()
            }
        };
        for input in inputs {
            self.feed(world, now, input);
        }
        self.poll_drain(world, now);
        if !self.is_quiet() {
            self.update_hold(world, now);
        }
        if self.machine.as_ref().and_then(Machine::deadline).is_some_and(|due| now >= due) {
            self.feed(world, now, Input::Tick);
        }
        self.post_held(world, now);
    }

    fn poll_fence(&mut self, world: &World, now: Micros) -> Option<Input> {
        let (reports, complete) = match world.data.poll_fence(self.life) {
            FenceProgress::Pending => return None,
            FenceProgress::Fenced(reports) => (reports, true),
            FenceProgress::Failed(reports) => (reports, false),
        };
        self.job = Job::Idle;
        if let Some(left) = self.path_mut(self.at) {
            left.fenced = Some(now);
        }
        world.data.admit(self.life, &mut self.ledger);
        let reports: Vec<IncarnationReport> = reports.into_iter().map(|r| world.config.proof.limit(r)).collect();
        for report in &reports {
            log::debug!("qp {:#x}: fenced {complete}, {report:?}", self.facts.qpn);
        }
        if let Some((mirror, machine)) = self.mirror.as_mut().zip(self.machine.as_ref()) {
            mirror.note_fenced(machine.epoch(), &reports, complete);
        }
        Some(Input::Fenced { reports, complete })
    }

    fn poll_retiring(&mut self, world: &World, below: WrSeq, from: WrSeq) -> Vec<Input> {
        let retired = world.data.retired_below(self.life);
        let mut inputs = Vec::new();
        if retired > from {
            inputs.push(Input::Progress);
            if let Some(record) = &mut self.record {
                record.first_success_ns.get_or_insert_with(clock::now_ns);
            }
            self.job = Job::Retiring { below, from: retired };
        }
        if retired >= below {
            self.job = Job::Idle;
            inputs.push(Input::Retired);
        }
        inputs
    }

    /// Posts that wait for a key or for room go on, unless posters are kept out or a replay is in front of them.
    fn post_held(&mut self, world: &mut World, now: Micros) {
        if !self.held || self.excluded || !matches!(self.job, Job::Idle | Job::Retiring { .. }) {
            return;
        }
        let Some((process, place)) = self.place(self.at) else {
            self.held = false;
            return;
        };
        let keys = world.keys_of(process, place);
        let failure = if self.refusal.is_some() {
            self.poll_refusal(world, now)
        } else {
            match world.data.post_held(self.life, &keys) {
                ReplayProgress::Done => {
                    self.held = false;
                    None
                }
                ReplayProgress::Full | ReplayProgress::More => None,
                ReplayProgress::NeedsKey { seq, rkey } => self.ask_key_for(world, seq, rkey, now),
                ReplayProgress::Refused { seq, error } => {
                    log::warn!("qp {:#x}: a held post is refused ({error})", self.facts.qpn);
                    let why = "a post that waited for the new path was refused".to_owned();
                    self.end_at(world, seq, status_of(error), why, now)
                }
            }
        };
        if let Some(failure) = failure {
            self.held = false;
            self.feed(world, now, failure);
        }
    }

    /// Tells the machine whether the queue holds work that could end in an error.
    pub fn update_hold(&mut self, world: &mut World, now: Micros) {
        if self.machine.is_none() {
            return;
        }
        if let Some(machine) = &mut self.machine {
            let budget = world.data.retry_budget(self.life).unwrap_or(Micros::MAX);
            machine.set_hold(world.config.deadlines.hold.min(budget));
        }
        let hold = world.data.could_end_in_error(self.life);
        if self.hold != hold {
            self.hold = hold;
            self.feed(world, now, Input::Hold(hold));
        }
    }

    /// A message of the peer's.
    pub fn handle_message(&mut self, world: &mut World, msg: Handshake, now: Micros) {
        if let Handshake::Muster { call, target, word } = msg {
            world.musters.push(Said { from: self.life, call, target, word });
            return;
        }
        if let Handshake::Claim { tuple, cause } = &msg {
            if cause.is_planned() {
                self.plans.note_heard(tuple.target, *cause);
            }
        }
        if matches!(msg, Handshake::Claim { .. }) {
            self.update_hold(world, now);
        }
        let msg = sabotage::heard(msg, self.machine.as_ref().and_then(Machine::tuple));
        self.feed(world, now, Input::Frame(msg));
    }

    fn stamp(&mut self, world: &mut World, phase: Phase, now: Micros) {
        // An end that follows its peer sees no fault of its own before the next migration.
        let begins = matches!(phase, Phase::Trigger | Phase::Committed);
        if begins && self.record.as_ref().is_some_and(|r| r.has(Phase::Committed)) {
            self.finish_record(world, Outcome::Overtaken);
        }
        // What comes later of a migration whose record is closed belongs to no record: a fault that healed closed it.
        if self.record.is_some() || begins || matches!(phase, Phase::ClaimSent | Phase::Accepted) {
            let first_error_ns = self.first_error_ns;
            let cause = self.cause.filter(|_| phase == Phase::Trigger);
            let record = self.open_record(world);
            record.stamp(phase, clock::now_ns());
            record.first_error_ns = record.first_error_ns.or(first_error_ns);
            if let Some(cause) = cause {
                record.set_cause(cause);
            }
        }
        match phase {
            Phase::Committed => self.handle_committed(world, now),
            Phase::Resumed => self.forget_retired(world),
            Phase::Trigger
            | Phase::ClaimSent
            | Phase::Accepted
            | Phase::Fenced
            | Phase::ReportIn
            | Phase::Reposted
            | Phase::Ready
            | Phase::Replayed
            | Phase::Confirmed => {}
        }
    }

    /// What was replayed has retired: the ledger needs no incarnation below this one.
    fn forget_retired(&mut self, world: &World) {
        if let Some(epoch) = self.machine.as_ref().map(Machine::epoch) {
            self.ledger.forget(epoch);
            world.data.forget_incarnations(self.life, epoch);
        }
    }

    fn open_record(&mut self, world: &World) -> &mut Record {
        let from = self.path_name(world, self.at);
        let (qpn, me) = (self.facts.qpn, self.me);
        self.record.get_or_insert_with(|| Record::new(qpn, me.to_string(), from))
    }

    /// The point of no return: the path that is left has to prove itself anew.
    fn handle_committed(&mut self, world: &mut World, now: Micros) {
        let target = self.current();
        let to = self.path_name(world, target);
        let epoch = self.machine.as_ref().map_or(0, |m| m.epoch().0);
        let is_planned = self.machine.as_ref().is_some_and(Machine::is_planned);
        if let Some(record) = &mut self.record {
            (record.epoch, record.to) = (epoch, to);
            if is_planned {
                record.set_cause(Cause::Planned);
            }
        }
        self.take_up(target);
        if self.at != target {
            self.note_moved(world, self.at, target, now);
        }
    }

    fn handle_confirmed(&mut self, world: &mut World, epoch: Epoch) {
        log::debug!("qp {:#x}: {epoch} confirmed", self.facts.qpn);
        if self.record.as_ref().is_some_and(|record| record.has(Phase::Committed)) {
            self.finish_record(world, Outcome::Confirmed);
        }
    }

    fn surface(&mut self, world: &mut World, why: Surfaced) {
        (self.job, self.paused, self.seek, self.held, self.refusal) = (Job::Idle, None, None, false, None);
        // Where the peer's application got the error, this one sees what its own hardware would show: flushes.
        let followed = (why == Surfaced::PeerSurfaced).then_some(crate::qp::WC_WR_FLUSH_ERR);
        world.data.surface(self.life, self.status.or(followed));
        let (first, next) = (world.data.retired_below(self.life).0, world.data.next_seq(self.life).0);
        self.note_why(&why.to_string());
        let record = self.open_record(world);
        record.surfaced = record.surfaced.max(next.saturating_sub(first));
        record.why.get_or_insert_with(|| why.to_string());
        self.finish_record(world, Outcome::Surfaced);
    }

    /// The first reason counts: it is the most exact.
    fn note_why(&mut self, why: &str) {
        if let Some(record) = &mut self.record {
            record.why.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Closes the record and tells it.
    pub fn finish_record(&mut self, world: &mut World, outcome: Outcome) {
        self.first_error_ns = None;
        let Some(mut record) = self.record.take() else {
            return;
        };
        record.control_round_trip_ns = self.process.and_then(|p| world.peers.round_trip(p)).map(|took| took.0 * 1000);
        let line = record.finish(outcome, clock::now_ns());
        if outcome == Outcome::Surfaced {
            log::warn!("{line}");
        } else {
            log::info!("{line}");
        }
        world.keep(&record);
    }
}

/// A key that the peer does not have is refused with EACCES; hardware has a status of its own for it.
fn status_of(error: Errno) -> Option<u32> {
    (error == Errno(nix::libc::EACCES)).then_some(WC_REM_ACCESS_ERR)
}
