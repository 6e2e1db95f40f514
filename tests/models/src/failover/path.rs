//! What the data path does with a world: packets, answers, the fence, receives posted again, the replay.
//!
//! The rule's points are judged here, where the thing happens: they are about what really became of a request, which no end knows.

use std::sync::Arc;

use shift_proto::id::{Epoch, Tuple, WrSeq};
use shift_proto::ledger::{
    Action, Entry, IncarnationFacts, IncarnationReport, Ledger, Op, Plan, Posting, Proof, State, Stop,
};
use shift_proto::migrate::Input;
use shift_proto::policy::OnUnknown;

use super::controls::Control;
use super::line::{Line, Next};
use super::world::World;
use super::{Proven, Setting, Want};

impl World {
    /// The receiver's NIC executes the next packet of a line.
    pub(super) fn execute(&mut self, setting: &Setting, number: usize) {
        let sender = self.lines[number].sender;
        let wants = &setting.wants[sender];
        let Some(next) = self.lines[number].next(wants) else { return };
        let epoch = self.lines[number].epoch;
        if self.lines.iter().any(|later| later.sender == sender && later.epoch > epoch && later.packets > 0) {
            self.fault("6: a packet of an old incarnation behind the first one that was posted again");
        }
        if next.is_first {
            self.judge_begin(wants, sender, next.want);
        }
        let line = Arc::make_mut(&mut self.lines[number]);
        line.packets += next.packets;
        let takes_receive = next.is_last && wants[next.want].op.consumes_receive();
        let buffer = line.responder.as_mut().filter(|_| takes_receive).map(|responder| {
            let buffer = responder.next_buffer();
            responder.consumed += 1;
            buffer
        });
        if let Some(responder) = line.responder.as_mut().filter(|responder| responder.runs_on) {
            (responder.is_fenced, responder.runs_on) = (true, false);
        }
        self.place(setting, sender, next);
        if next.is_last {
            self.judge_whole(wants, sender, next.want, buffer);
            self.commit(setting, sender, epoch, next.want);
        }
    }

    fn judge_begin(&mut self, wants: &[Want], sender: usize, want: usize) {
        let truth = self.truth[sender].clone();
        let is_done = |nth: usize| truth[nth].executions > 0 || wants[nth].op == Op::Read;
        if !(0..want).all(is_done) {
            self.fault("1: a request begins before an earlier one was executed");
        }
        if wants[want].op == Op::Read {
            let is_begun = |nth: usize| wants[nth].fenced && wants[nth].op != Op::Read && truth[nth].is_begun;
            if (want + 1..wants.len()).any(is_begun) {
                self.fault("4: a READ runs behind a fenced request that has begun");
            }
            if truth[want].is_complete {
                self.fault("4: a READ runs that is complete");
            }
        }
    }

    fn place(&mut self, setting: &Setting, sender: usize, next: Next) {
        let want = setting.wants[sender][next.want];
        let truth = &mut Arc::make_mut(&mut self.truth[sender])[next.want];
        truth.is_begun = true;
        if !matches!(want.op, Op::Write | Op::WriteImm) {
            return;
        }
        let placed = &mut truth.grains[next.grains.0 as usize..next.grains.1 as usize];
        placed.iter_mut().for_each(|count| *count += 1);
        let is_twice = placed.iter().any(|count| *count > 1);
        let is_exact = setting.proven == Proven::Psn && setting.failing_fences == 0;
        if truth.is_consumed {
            self.fault("3: a ghost: a WRITE lands in memory that the consumer uses for something else");
        } else if is_twice && want.unknown == OnUnknown::Error {
            self.fault("3: bytes under policy error were written twice");
        } else if is_twice && want.op == Op::Write && is_exact {
            self.fault("3: bytes were written twice although every proof was exact");
        }
    }

    fn judge_whole(&mut self, wants: &[Want], sender: usize, want: usize, buffer: Option<u64>) {
        let op = wants[want].op;
        let truth = &mut Arc::make_mut(&mut self.truth[sender])[want];
        truth.executions += 1;
        let is_twice = truth.executions > 1;
        if is_twice && op.consumes_receive() {
            self.fault("1: a request that consumes a receive took effect twice");
        }
        if is_twice && matches!(op, Op::FetchAdd | Op::CompareSwap) {
            self.fault("2: an atomic took effect twice");
        }
        let own = wants[..want].iter().filter(|want| want.op.consumes_receive()).count() as u64;
        if buffer.is_some_and(|buffer| buffer != own) {
            self.fault("1: a message lies in another receive than it would without the fault");
        }
    }

    /// The answer to that posting, and to all before it, is at the sender's NIC.
    pub(super) fn land(&mut self, number: usize, nth: usize) {
        let line = Arc::make_mut(&mut self.lines[number]);
        line.landed = line.landed.max(nth + 1);
        let (sender, landed) = (line.sender, line.postings[..line.landed].to_vec());
        let truth = Arc::make_mut(&mut self.truth[sender]);
        landed.iter().for_each(|(want, _)| truth[*want].has_landed = true);
    }

    /// The sender's program sees a completion.
    pub(super) fn complete(&mut self, setting: &Setting, number: usize) {
        let line = &self.lines[number];
        let (sender, wants) = (line.sender, &setting.wants[line.sender]);
        match line.next_completion(wants) {
            Some(nth) => {
                self.land(number, nth);
                Arc::make_mut(&mut self.lines[number]).completed = nth + 1;
            }
            None => Arc::make_mut(&mut self.lines[number]).completed += 1,
        }
        self.retire(setting, sender);
    }

    /// What is complete, and has nothing before it that is not, goes to the application.
    pub(super) fn retire(&mut self, setting: &Setting, side: usize) {
        if self.ends[side].is_surfaced {
            return;
        }
        let before = self.ends[side].retired;
        let mut retired = before;
        let line = self.line(side, self.ends[side].posting).map(|line| self.lines[line].clone());
        let is_seen =
            |want: usize| line.iter().any(|line| line.postings[..line.completed].iter().any(|(of, _)| *of == want));
        while retired < self.ends[side].posted && (self.ends[side].decided >> retired & 1 == 1 || is_seen(retired)) {
            let want = setting.wants[side][retired];
            let truth = &mut Arc::make_mut(&mut self.truth[side])[retired];
            truth.is_complete = true;
            let is_true = if want.has_result() { truth.has_landed } else { truth.executions > 0 };
            if !is_true || !self.is_committed(setting, side, retired) {
                self.fault("5: a completion of a request that is not complete");
            }
            retired += 1;
        }
        if retired != before {
            self.end(side).retired = retired;
        }
        if let Some((_, is_stop)) = self.ends[side].awaited.filter(|(below, _)| retired >= *below) {
            self.end(side).awaited = None;
            if setting.breaks(Control::ReportsDroppedEarly) && !is_stop {
                let epoch = self.ends[side].machine.epoch();
                self.forget(side, epoch);
            }
            self.give(setting, side, if is_stop { Input::StopReached } else { Input::Retired });
        }
    }

    /// An application takes its next receive: what was written before the message is its own from here on.
    pub(super) fn poll(&mut self, setting: &Setting, side: usize) {
        let nth = self.ends[side].polled as usize;
        self.end(side).polled += 1;
        let wants = &setting.wants[1 - side];
        let messages = wants.iter().enumerate().filter(|(_, want)| want.op.consumes_receive());
        let Some((message, _)) = messages.clone().nth(nth) else {
            return self.fault("5: a receive completes that nobody sent to");
        };
        let truth = Arc::make_mut(&mut self.truth[1 - side]);
        let mut is_missing = false;
        for (want, truth) in truth[..=message].iter_mut().enumerate().filter(|(want, _)| wants[*want].op == Op::Write) {
            is_missing |= truth.grains[..wants[want].grains as usize].contains(&0);
            truth.is_consumed = true;
        }
        if is_missing {
            self.fault("1: a message came before what was written in front of it");
        }
    }

    /// The fence is asked for.
    pub(super) fn begin_fence(&mut self, setting: &Setting, side: usize) {
        let Some(tuple) = self.ends[side].machine.tuple() else { return };
        match self.adopted.iter().find(|known| known.epoch == tuple.epoch) {
            Some(known) if *known != tuple => self.fault("a split: two migrations of one epoch"),
            Some(_) => {}
            None => {
                self.adopted.push(tuple);
                self.adopted.sort();
            }
        }
        if !self.ends[side].is_stopped {
            self.fault("it fences with posters inside");
        }
        self.end(side).committed = tuple.epoch;
        let samples: Vec<_> =
            self.incoming(side).map(|(line, responder)| (line.epoch, line.packets, responder)).collect();
        let end = self.end(side);
        end.is_fencing = true;
        for (epoch, packets, receives) in samples {
            if !end.early.iter().any(|(known, ..)| *known == epoch) {
                end.early.push((epoch, packets, receives));
            }
        }
        if setting.samples_early() {
            self.elect(setting, side);
        }
    }

    /// Lines to that end, and the completions of their receives.
    fn incoming(&self, side: usize) -> impl Iterator<Item = (&Arc<Line>, u64)> {
        let lines = self.lines.iter().filter(move |line| line.sender != side);
        lines.filter_map(|line| line.responder.map(|responder| (line, responder.consumed - responder.lost)))
    }

    /// Nothing of what is connected takes anything any more.
    pub(super) fn close(&mut self, setting: &Setting, side: usize) {
        for line in &mut self.lines {
            let line = Arc::make_mut(line);
            let runs_on = setting.breaks(Control::PsnAfterErr) && line.next(&setting.wants[line.sender]).is_some();
            if line.sender == side {
                line.is_stopped = true;
            } else if let Some(responder) = line.responder.as_mut().filter(|_| !setting.breaks(Control::NoFence)) {
                (responder.is_fenced, responder.runs_on) = (!runs_on, runs_on);
            }
        }
    }

    /// The fence is over, done or not.
    pub(super) fn fence(&mut self, setting: &Setting, side: usize, complete: bool) {
        self.end(side).is_fencing = false;
        let is_drained =
            self.lines.iter().all(|line| line.sender == side || line.is_silent || line.responder.is_none());
        if (complete || is_drained) && !setting.samples_early() {
            self.elect(setting, side);
        }
        if complete {
            self.close(setting, side);
        }
        for line in self.lines.iter_mut().filter(|line| line.sender == side) {
            Arc::make_mut(line).is_stopped = true;
        }
        let found: Vec<_> =
            self.incoming(side).map(|(line, receives)| self.report(setting, side, line, receives, complete)).collect();
        let end = self.end(side);
        for report in found {
            match end.reports.iter_mut().find(|known| known.epoch == report.epoch) {
                Some(known) => known.receives = known.receives.max(report.receives),
                None if report.epoch >= end.forgotten => end.reports.push(report),
                None => {}
            }
        }
        let reports = end.reports.clone();
        self.give(setting, side, Input::Fenced { reports, complete });
    }

    fn report(&self, setting: &Setting, side: usize, line: &Line, receives: u64, fenced: bool) -> IncarnationReport {
        let early = self.ends[side].early.iter().find(|(epoch, ..)| *epoch == line.epoch);
        let (mut packets, mut receives) = (line.packets, receives);
        if let (Some((_, before, _)), true) = (early, setting.breaks(Control::PsnBeforeFence)) {
            packets = *before;
        }
        if let (Some((_, before, counted)), true) = (early, setting.breaks(Control::CountBeforeFence)) {
            (packets, receives) = (*before, *counted);
        }
        if setting.breaks(Control::PolledCount) {
            let first = line.responder.map_or(0, |responder| responder.first_buffer);
            receives = self.ends[side].polled.saturating_sub(first).min(receives);
        }
        let proof = match setting.proven {
            Proven::Psn => Proof::Psn((line.first_psn + packets).wire()),
            Proven::Count => Proof::Count,
            Proven::Successes => Proof::None,
        };
        IncarnationReport { epoch: line.epoch, path: line.path, proof, receives, fenced }
    }

    /// No report of an incarnation below that one is given any more.
    pub(super) fn forget(&mut self, side: usize, below: Epoch) {
        let end = self.end(side);
        end.forgotten = end.forgotten.max(below);
        end.reports.retain(|report| report.epoch >= below);
    }

    /// The target is connected, and receives are posted there.
    pub(super) fn repost(&mut self, setting: &Setting, side: usize, tuple: Tuple) -> Input {
        let consumed: u64 = self
            .lines
            .iter()
            .filter(|line| line.sender != side)
            .filter_map(|line| line.responder)
            .map(|r| r.consumed)
            .sum();
        let first = if setting.breaks(Control::ReceivesFromHead) { 0 } else { consumed };
        let copies = if setting.breaks(Control::ReceivesTwice) { 2 } else { 1 };
        let path = self.ends[side].bound.unwrap_or(tuple.target);
        for sender in 0..2 {
            let line = self.connect(setting, sender, tuple.epoch, path);
            if self.lines[line].path != path {
                self.fault("a split: the ends connect one epoch on two paths");
            }
            if sender != side && self.lines[line].responder.is_some() {
                self.fault("1: the receives of an incarnation are posted again");
            }
        }
        self.connect_responder(side, tuple.epoch, first, copies);
        let end = self.end(side);
        (end.in_error, end.has_waited, end.reposted) = (false, false, Some(tuple));
        Input::Reposted
    }

    /// The peer's reports are applied and the plan is posted.
    pub(super) fn replay(
        &mut self,
        setting: &Setting,
        side: usize,
        tuple: Tuple,
        reports: &[IncarnationReport],
    ) -> Option<Input> {
        if self.ends[1 - side].reposted != Some(tuple) {
            self.fault("it replays before the peer has posted its receives");
        }
        let mut ledger = self.ends[side].ledger.clone();
        let forgets_stop = setting.breaks(Control::StopForgotten) && self.ends[side].stop.is_some();
        if setting.breaks(Control::FirstReportForgotten) || forgets_stop {
            ledger = Ledger::new();
        }
        self.admit(setting, side, tuple, &mut ledger, reports);
        let plan = self.decide(setting, &mut ledger, &self.bent(setting, side, reports));
        self.end(side).ledger = ledger;
        let Some(plan) = plan else { return Some(Input::ReplayFailed) };
        self.perform_plan(setting, side, tuple, &plan);
        if plan.stop.is_some() {
            return None;
        }
        Some(Input::Replayed)
    }

    fn admit(&self, setting: &Setting, side: usize, tuple: Tuple, ledger: &mut Ledger, reports: &[IncarnationReport]) {
        let wants = &setting.wants[side];
        let newest = self
            .lines
            .iter()
            .rev()
            .find(|line| line.sender == side && !line.postings.is_empty())
            .map(|line| line.epoch);
        for line in self.lines.iter().filter(|line| line.sender == side && line.epoch < tuple.epoch) {
            if setting.breaks(Control::FirstReportForgotten) && Some(line.epoch) != newest {
                continue;
            }
            let mtu = if setting.breaks(Control::NewMtu) { self.mtu_of(side, tuple.epoch) } else { line.mtu };
            let completed = &line.postings[..line.completed];
            let facts = IncarnationFacts {
                epoch: line.epoch,
                path: line.path,
                mtu,
                completed_psn: line.end_of(line.completed, wants),
                posted_psn: line.end_of(line.postings.len(), wants),
                completed_receives: completed.iter().filter(|(want, _)| wants[*want].op.consumes_receive()).count()
                    as u64,
            };
            ledger.incarnation(facts).expect("few incarnations");
        }
        if let Some(last) = self.ends[side].retired.checked_sub(1) {
            ledger.landed_through(WrSeq(last as u64));
        }
        for want in self.ends[side].retired..self.ends[side].posted {
            ledger.admit(self.entry(setting, side, want), None).expect("few entries");
            for posting in self.postings(setting, side, want, newest) {
                if self.is_left_out(setting, side, ledger, WrSeq(want as u64), posting, reports) {
                    continue;
                }
                let is_new = ledger.entries().all(|view| {
                    view.entry.seq.0 != want as u64 || view.newest.is_none_or(|known| known.epoch < posting.epoch)
                });
                if is_new {
                    ledger.posted(WrSeq(want as u64), posting).expect("in order");
                }
            }
        }
    }

    /// Postings that a broken ledger is not told of.
    fn is_left_out(
        &self,
        setting: &Setting,
        side: usize,
        ledger: &Ledger,
        seq: WrSeq,
        posting: Posting,
        reports: &[IncarnationReport],
    ) -> bool {
        if setting.breaks(Control::StopForgotten) {
            return self.ends[side].stop.is_some_and(|stop| seq.0 >= stop as u64);
        }
        let is_proof =
            |report: &IncarnationReport| report.epoch == posting.epoch && report.fenced && report.proof != Proof::None;
        let is_unexecuted = ledger
            .entries()
            .any(|view| view.entry.seq == seq && view.postings > 0 && view.evidence.state == State::NotExecuted);
        setting.breaks(Control::BestReportOfAny) && is_unexecuted && !reports.iter().any(is_proof)
    }

    fn entry(&self, setting: &Setting, side: usize, want: usize) -> Entry {
        let Want { op, grains, fenced, unknown, .. } = setting.wants[side][want];
        let is_atomic = matches!(op, Op::FetchAdd | Op::CompareSwap);
        let op = if is_atomic && setting.breaks(Control::AtomicsReplayed) { Op::Write } else { op };
        let is_executed = self.truth[side][want].executions > 0;
        let is_unknown = match setting.control {
            Some(Control::ReadsBehindExecutedReplayed) => is_executed,
            Some(Control::ReadsBehindBegunReplayed) => !is_executed,
            _ => false,
        };
        Entry { seq: WrSeq(want as u64), op, bytes: grains * super::GRAIN, fenced: fenced && !is_unknown, unknown }
    }

    fn mtu_of(&self, side: usize, epoch: Epoch) -> shift_proto::id::Mtu {
        self.line(side, epoch).map_or(shift_proto::id::Mtu::MIN, |line| self.lines[line].mtu)
    }

    /// Where a request was posted, oldest first, as the ledger is told.
    fn postings(&self, setting: &Setting, side: usize, want: usize, newest: Option<Epoch>) -> Vec<Posting> {
        let wants = &setting.wants[side];
        let mut postings = Vec::new();
        for line in self.lines.iter().filter(|line| line.sender == side) {
            let Some(nth) = line.postings.iter().position(|(of, _)| *of == want) else { continue };
            if setting.breaks(Control::FirstReportForgotten) && Some(line.epoch) != newest {
                continue;
            }
            let is_behind = (line.completed..nth).any(|earlier| wants[line.postings[earlier].0].has_result());
            if setting.breaks(Control::FencedTakenAsUnexecuted) && wants[want].fenced && is_behind {
                continue;
            }
            postings.push(line.postings[nth].1);
        }
        postings
    }

    /// The reports as a broken end would see them.
    fn bent(&self, setting: &Setting, side: usize, reports: &[IncarnationReport]) -> Vec<IncarnationReport> {
        let mut reports = reports.to_vec();
        let (is_blind, is_narrow) = (setting.breaks(Control::NoCountExchange), setting.breaks(Control::WindowBySqPsn));
        let wants = &setting.wants[side];
        for report in reports.iter_mut().filter(|_| is_blind || is_narrow) {
            let Some(line) = self.line(side, report.epoch).map(|line| &self.lines[line]) else { continue };
            let acknowledged = Proof::Psn(line.end_of(line.completed, wants).wire());
            if is_narrow {
                report.proof = if report.proof == acknowledged { acknowledged } else { Proof::Count };
                continue;
            }
            report.proof = acknowledged;
            let completed = line.postings[..line.completed].iter();
            report.receives = completed.filter(|(want, _)| wants[*want].op.consumes_receive()).count() as u64;
        }
        reports
    }

    /// `None`: the ends do not agree.
    fn decide(&self, setting: &Setting, ledger: &mut Ledger, reports: &[IncarnationReport]) -> Option<Plan> {
        let before = ledger.clone();
        let mut agreed = ledger.apply(reports).is_ok();
        if setting.breaks(Control::Disagreement) {
            for receives in 0..8 {
                if agreed {
                    break;
                }
                *ledger = before.clone();
                let bent: Vec<_> = reports.iter().map(|report| IncarnationReport { receives, ..*report }).collect();
                agreed = ledger.apply(&bent).is_ok();
            }
        }
        let mut plan = agreed.then(|| ledger.decide())?;
        if setting.breaks(Control::UnknownWriteBeforeStop) {
            replay_unknown_writes(ledger, &mut plan);
        }
        Some(plan)
    }

    fn perform_plan(&mut self, setting: &Setting, side: usize, tuple: Tuple, plan: &Plan) {
        let end = self.end(side);
        (end.posting, end.is_stopped) = (tuple.epoch, false);
        for step in &plan.steps {
            let want = step.seq.0 as usize;
            match step.action {
                Action::Complete => self.end(side).decided |= 1 << want,
                Action::Replay { offset } => {
                    if plan.stop.is_some()
                        && setting.wants[side][want].op == Op::Write
                        && self.truth[side][want].executions > 0
                    {
                        self.fault("3: a WRITE that was executed is posted again in front of an error");
                    }
                    let posting = self.post(setting, side, want, offset);
                    if let Some(posting) = posting.filter(|_| !setting.breaks(Control::BestReportOfAny)) {
                        self.end(side).ledger.posted(step.seq, posting).expect("in order");
                    }
                }
            }
        }
        let end = self.end(side);
        let stop = plan.stop.map(|stop| stop.seq.0 as usize);
        if let (Some(before), None) = (end.stop, stop) {
            self.wrong.get_or_insert(format!("7: the stop at request {before} is forgotten"));
        }
        let end = self.end(side);
        end.stop = stop;
        end.awaited = Some((stop.unwrap_or(end.posted), stop.is_some()));
    }
}

/// From the stop on, as long as there are only WRITEs of which nothing is known.
fn replay_unknown_writes(ledger: &Ledger, plan: &mut Plan) {
    let Some(Stop { seq, why }) = plan.stop else { return };
    for view in ledger.entries().filter(|view| view.entry.seq >= seq) {
        plan.stop = Some(Stop { seq: view.entry.seq, why });
        if view.entry.op != Op::Write || view.evidence.state != State::Unknown || view.entry.unknown == OnUnknown::Error
        {
            return;
        }
        let action = Action::Replay { offset: view.proven_offset };
        plan.steps.push(shift_proto::ledger::Step { seq: view.entry.seq, action, evidence: view.evidence });
    }
}
