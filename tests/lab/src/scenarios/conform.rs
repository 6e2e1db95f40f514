//! The theorems' tests on the real stack (V1 to V4, V6, V7, V9, V10): each makes a fault by which the theorem's two worlds come about, and the theorem's own
//! predicates judge what the wire saw (`conformance`). Then the same with a library that leaves out what the promise rests on: the judge has to find it.
//! Those with a third endpoint are in `conform_third.rs` (V5, V8), those of epochs in `conform_epochs.rs` (V11).
//!
//! One queue pair, since a trace is of one. What is left out is named in `TEST_SABOTAGE` (`shim/src/sabotage.rs`, `src/control/sabotage.rs`), which the
//! released library does not know.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{json, Value};
use shift_models::theorems::memory::Op;
use shift_models::theorems::trace::{executions, Event};

use crate::clock::until;
use crate::conformance::judge::{aligned, at_most_once, atomics, indistinguishable, no_ghosts, Verdict};
use crate::conformance::trace::{convert, Kind, Run, Told, Trace};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::pair::Setup;
use crate::place::{Host, Link};
use crate::seed::Seed;
use crate::trial::{all_protected, Fault, Moment, Story, Trial};
use crate::trouble::{require, Concerning, Result, Trouble};
use crate::wire::log::{Fate, Record};
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule};
use crate::wire::trap::{Step, Trap};

use super::checker::{report, Checker, GO_ON, PORT};
use super::directory::SHIM_WITH_REDIS;
use super::failback::confirmed;
use super::race::report as report_of;
use super::survive::require_fault;
use super::Scenario;

/// An error after about a second of silence, none on a healthy path; and an end to what a library that leaves something out brings to a stand.
pub(super) const IMPATIENT: &str = "--timeout 16 --retry-cnt 3 --may-fail --deadline 6";
/// What lies still for so long with a part left out stays so.
const STILL: Duration = Duration::from_secs(8);
/// Each step of a run with packets that are held.
pub(super) const STEP: Duration = Duration::from_secs(40);
/// Packets of the faulted direction that pass first, after the queue pair is protected.
const SPARED: std::ops::Range<u64> = 3..20;

pub(super) fn scenarios() -> Vec<Scenario> {
    let of = |number: u8, about: &str, run: fn(&mut Lab, u64) -> Result<Figures>| {
        Scenario::guests(format!("conform-v{number}"), about, run)
    };
    let about = "parts of the protocol can be left out in the library for tests, and not in the one that is released";
    vec![
        Scenario::no_boot("conform-released", about, |setup: &Setup, _| released(setup)),
        of(1, "without the shim: WRITEs or their acknowledgements lost look the same to the sender, and are not", v1),
        of(2, "WRITEs, consumer overwrites, acknowledgements lost, each level of proof: nothing old comes back, or an error does", v2),
        of(3, "WRITEs with immediate, acknowledgements, requests or ends lost: each once, in its receive, in order", v3),
        of(4, "FADDs, answers lost: each at most once, and an error where the result is lost", v4),
        of(6, "FADDs, a SEND behind each, answers lost: who is known to have been executed by the count is no success without its result", v6),
        of(7, "SENDs, acknowledgements lost: message i in receive i", v7),
        of(9, "SENDs, acknowledgements lost: the standby's receiver is ready; one that was not ready on rail 0 changes no decision", v9),
        of(10, "requests held on rail 0 and let go after the migration: they change nothing", v10),
        Scenario::guests("conform-v10-count", "the same let go when the migration is agreed on: nothing is executed that the receiver did not count", v10_count),
    ]
}

/// What asks for a part to be left out, as it stands in a library that knows it.
const ASKS: &[u8] = b"TEST_SABOTAGE";

fn released(setup: &Setup) -> Result<Figures> {
    let knows = |library: PathBuf| -> Result<bool> {
        let bytes = std::fs::read(&library).concerning(library.display())?;
        Ok(bytes.windows(ASKS.len()).any(|each| each == ASKS))
    };
    require(knows(setup.shim_with_redis())?, || "the library for tests leaves nothing out".into())?;
    require(!knows(setup.shim())?, || "the released library can be told to leave parts out".into())?;
    Ok(Figures::new())
}

/// A run of one queue pair.
#[derive(Debug, Clone)]
pub(super) struct Case<'a> {
    kind: Kind,
    /// Of the checking application.
    options: &'a str,
    env: Vec<(&'static str, &'static str)>,
    /// What is lost.
    lost: Rule,
    /// The part of the protocol that is left out, and at the receiver alone?
    without: Option<(&'static str, bool)>,
}

/// What came of one.
pub(super) struct Outcome {
    pub(super) trace: Trace,
    pub(super) story: Story,
    pub(super) sent: Value,
    pub(super) received: Value,
}

impl<'a> Case<'a> {
    pub(super) fn new(kind: Kind, options: &'a str, lost: Rule) -> Case<'a> {
        Case { kind, options, env: Vec::new(), lost, without: None }
    }

    pub(super) fn at_level(mut self, level: &'static str) -> Case<'a> {
        self.env.push(("SHIFT_PROOF", level));
        self
    }

    pub(super) fn without(mut self, part: &'static str) -> Case<'a> {
        self.without = Some((part, false));
        self
    }

    pub(super) fn run(&self, lab: &mut Lab, seed: u64) -> Result<Outcome> {
        lab.reset()?;
        let mut checker = Checker::gated(format!("{} {IMPATIENT} --seed {seed}", self.options));
        checker.env = self.env.clone();
        let mut trial = checker.trial().fault(Fault::Rule(self.lost.clone()), Moment::Idle { qps: 1 });
        if let Some((part, receiver_alone)) = self.without {
            trial = leaves_out(trial, part, receiver_alone);
        }
        let story = trial.run(lab)?;
        require_fault(&story)?;
        let (sent, received) = (report(&story, Host::A)?, report(&story, Host::B)?);
        let trace = convert(&story.records, Run::of(self.kind), told(&sent)?)?;
        let dropped = story.records.iter().any(|record| record.fate == Fate::Dropped);
        require(dropped, || "nothing was lost: the run proves nothing".into())?;
        Ok(Outcome { trace, story, sent, received })
    }
}

pub(super) fn leaves_out(mut trial: Trial, part: &str, receiver_alone: bool) -> Trial {
    let without = |program: &Program| program.clone().with_shim_from(SHIM_WITH_REDIS).env("TEST_SABOTAGE", part);
    trial.server = without(&trial.server);
    if !receiver_alone {
        trial.client = without(&trial.client);
    }
    trial.stall_limit = STILL;
    trial
}

/// What the sender's report says of its one queue pair.
pub(super) fn told(report: &Value) -> Result<Told> {
    let fallen = report.pointer("/fallen/0");
    let number = |value: &Value, name: &str| {
        value[name].as_u64().ok_or_else(|| Trouble::judged(format!("no {name} in {report}")))
    };
    Ok(match fallen {
        Some(fallen) => Told { posted: number(fallen, "posted")?, fell_at: Some(number(fallen, "acked")?) },
        None => Told { posted: number(report, "sent")?, fell_at: None },
    })
}

impl Outcome {
    pub(super) fn fell(&self) -> bool {
        self.sent.pointer("/fallen/0").is_some()
    }

    /// The application saw nothing wrong either, and its end was the one that is due.
    pub(super) fn require_right(&self, falls: Option<bool>) -> Result<()> {
        let right = |report: &Value| report["why"].is_null() && !report["deadline"].as_bool().unwrap_or(true);
        require(right(&self.sent) && right(&self.received), || format!("{} {}", self.sent, self.received))?;
        self.story.require_success()?;
        require(falls.is_none_or(|falls| falls == self.fell()), || format!("an error: {}; {}", self.fell(), self.sent))
    }

    pub(super) fn note(&self) -> Value {
        json!({ "operations": self.trace.ops.len(), "events": self.trace.events.len(),
                "on_standby": self.trace.on_standby, "error": self.fell() })
    }
}

pub(super) fn right(verdict: Verdict) -> Result<()> {
    verdict.map_err(Trouble::judged)
}

/// The judge found it; what it said.
pub(super) fn found(part: &str, verdict: Verdict) -> Result<String> {
    verdict.err().ok_or_else(|| Trouble::judged(format!("{part} left out, and the judge finds nothing")))
}

pub(super) fn spared(seed: u64, what: &str) -> u64 {
    Seed::new(seed, what).within(SPARED)
}

/// Fack: answers are lost from the one of that number on.
pub(super) fn answers_lost(spared: u64) -> Rule {
    Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::RESPONSES).from(Host::B).after(spared)
}

/// Freq.
pub(super) fn requests_lost(spared: u64) -> Rule {
    Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::REQUESTS).from(Host::A).after(spared)
}

/// Fpart.
fn ends_lost(spared: u64) -> Rule {
    Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::LASTS).from(Host::A).after(spared / 4).and_behind()
}

fn v1(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let spared = spared(seed, "v1");
    let mut runs = Vec::new();
    for lost in [requests_lost(spared), answers_lost(spared)] {
        lab.reset()?;
        let options = format!("--mode write --size 8..1000 --depth 1 --messages 60 {IMPATIENT} --seed {seed}");
        let story = Checker::plain(options).trial().fault(Fault::Rule(lost), Moment::Before).run(lab)?;
        let sent = report(&story, Host::A)?;
        // Judged by the checking application: one RETRY_EXC_ERR, and flushes behind it.
        require(sent.get("pass") == Some(&json!(true)), || format!("another error than is due: {sent}"))?;
        runs.push((
            convert(&story.records, Run::of(Kind::Write), told(&sent)?)?,
            sent.get("fallen").cloned().unwrap_or_default(),
        ));
    }
    let [(requests, first), (answers, second)] = runs.as_slice() else { return Err(Trouble::setup("two runs")) };
    let is_fallen = first.as_array().is_some_and(|fallen| !fallen.is_empty());
    require(first == second && is_fallen, || format!("the errors tell: {first}, {second}"))?;
    right(indistinguishable(requests, answers))?;
    Ok(Figures::new().with("operations", requests.ops.len()).with("fallen", first.clone()))
}

fn v2(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode write --reuse --size 8..200 --depth 8 --messages 80";
    let lost = answers_lost(spared(seed, "v2"));
    let mut figures = Figures::new();
    let proven = Case::new(Kind::Write, options, lost.clone()).at_level("psn").run(lab, seed)?;
    right(no_ghosts(&proven.trace))?;
    proven.require_right(Some(false))?;
    figures.note("psn", proven.note());
    for level in ["count", "sender"] {
        let mut marked = Case::new(Kind::Write, options, lost.clone()).at_level(level);
        let unmarked = marked.clone();
        marked.env.push(("SHIFT_POLICY", "write=error"));
        let kept = marked.run(lab, seed)?;
        right(no_ghosts(&kept.trace))?;
        kept.require_right(Some(true))?;
        figures.note(level, kept.note());
        if level == "sender" {
            // The documented limit, and the mark ignored: the same.
            for (name, case) in [("default policy", unmarked), ("marks", marked.without("marks"))] {
                figures.note(&format!("found: {name}"), found(name, no_ghosts(&case.run(lab, seed)?.trace))?);
            }
        }
    }
    Ok(figures)
}

fn v3(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode write_imm --reuse --size 8..3000 --depth 8 --messages 80";
    let spared = spared(seed, "v3");
    let mut figures = Figures::new();
    for (name, lost) in
        [("answers", answers_lost(spared)), ("requests", requests_lost(spared)), ("ends", ends_lost(spared))]
    {
        let run = Case::new(Kind::Notify, options, lost).run(lab, seed)?;
        right(at_most_once(&run.trace).and_then(|()| aligned(&run.trace)))?;
        run.require_right(Some(false))?;
        figures.note(name, run.note());
    }
    let broken = Case::new(Kind::Notify, options, answers_lost(spared)).without("counts").run(lab, seed)?;
    Ok(figures.with("found: counts", found("counts", aligned(&broken.trace))?))
}

pub(super) fn one_atomic(lab: &mut Lab, seed: u64, kind: Kind, mode: &str) -> Result<Figures> {
    let options = format!("--mode {mode} --depth 1 --messages 60");
    let lost = answers_lost(spared(seed, mode));
    let run = Case::new(kind, &options, lost.clone()).run(lab, seed)?;
    right(atomics(&run.trace))?;
    run.require_right(Some(true))?;
    let counted = run.received.pointer("/fallen/0/counted").and_then(Value::as_u64);
    let acked = run.sent.pointer("/fallen/0/acked").and_then(Value::as_u64);
    require(counted.is_some() && counted == acked.map(|acked| acked + 1), || {
        format!("the word counts {counted:?}, answered were {acked:?}")
    })?;
    let broken = Case::new(kind, &options, lost).without("atomics-once").run(lab, seed)?;
    let said = found("atomics-once", atomics(&broken.trace))?;
    Ok(Figures::new().with("run", run.note()).with("found: atomics-once", said))
}

fn v4(lab: &mut Lab, seed: u64) -> Result<Figures> {
    one_atomic(lab, seed, Kind::FetchAdd, "fadd")
}

fn v6(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode fadd_send --size 8..200 --depth 8 --messages 80";
    let case = Case::new(Kind::AddThenSend, options, answers_lost(spared(seed, "v6")));
    let mut figures = Figures::new();
    for level in ["psn", "count"] {
        let run = case.clone().at_level(level).run(lab, seed)?;
        right(atomics(&run.trace))?;
        run.require_right(Some(true))?;
        let counted = counted_behind_error(&run.trace);
        require(counted > 0, || format!("{level}: no SEND behind the lost result was counted: it proves nothing"))?;
        figures.note(level, run.note());
        figures.note(&format!("{level}: counted behind the error"), counted);
    }
    let broken = case.at_level("count").without("lost-results").run(lab, seed)?;
    Ok(figures.with("found: lost-results", found("lost-results", atomics(&broken.trace))?))
}

/// Messages that took a receive behind the first request that ended in an error.
fn counted_behind_error(trace: &Trace) -> usize {
    let first = trace.events.iter().find_map(|event| if let Event::Timeout(op) = event { Some(*op) } else { None });
    let behind =
        |op: &u8| first.is_some_and(|first| *op > first) && trace.ops.get(usize::from(*op)) == Some(&Op::Notify);
    (0..trace.ops.len() as u8).filter(behind).map(|op| executions(&trace.events, op)).sum()
}

fn v7(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode send --size 8..3000 --depth 8 --messages 80";
    let lost = answers_lost(spared(seed, "v7"));
    let run = Case::new(Kind::Notify, options, lost.clone()).run(lab, seed)?;
    right(aligned(&run.trace))?;
    run.require_right(Some(false))?;
    let broken = Case::new(Kind::Notify, options, lost).without("counts").run(lab, seed)?;
    let said = found("counts", aligned(&broken.trace))?;
    Ok(Figures::new().with("run", run.note()).with("found: counts", said))
}

fn v9(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode send --size 8..2000 --depth 8 --messages 80";
    let lost = answers_lost(spared(seed, "v9"));
    let run = Case::new(Kind::Notify, options, lost.clone()).run(lab, seed)?;
    right(aligned(&run.trace))?;
    run.require_right(Some(false))?;
    require(unready(&run, Link::Rail1) == 0, || "the standby's receiver was not ready".into())?;
    let broken = Case::new(Kind::Notify, options, lost).without("receives").run(lab, seed)?;
    let refused = unready(&broken, Link::Rail1);
    require(refused > 0, || "receives left out, and nobody was not ready".into())?;
    let figures = Figures::new().with("run", run.note()).with("found: receives", refused);
    Ok(figures.with("not ready before", not_ready_before(lab, seed)?))
}

/// How often the receiver was not ready on that rail.
fn unready(run: &Outcome, link: Link) -> usize {
    let there = run.story.records.iter().filter(|record| record.link == link);
    there.filter(|record| record.packet.roce.is_some_and(|bth| bth.is_receiver_not_ready())).count()
}

/// Queue sliding's remark: "not ready" says that a request arrived and took no receive, and nothing of those behind it. The requests are lost from
/// such an answer on, or without one: the decision is the same, at each level of proof.
fn not_ready_before(lab: &mut Lab, seed: u64) -> Result<Value> {
    let dice = spared(seed, "not ready");
    let refused = Rule::on(Link::Rail0, Action::Pass).from(Host::B).receiver_not_ready().after(dice / 4);
    let lost = Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::REQUESTS).from(Host::A);
    let scarce = "--mode send --size 8..2000 --depth 8 --messages 80 --scarce-receives";
    let plenty = "--mode send --size 8..2000 --depth 8 --messages 80";
    let mut told = serde_json::Map::new();
    for level in ["psn", "count", "sender"] {
        let falls = level == "sender";
        let mut refusals = Vec::new();
        for (options, lost) in [(scarce, lost.clone().woken_by(refused.clone())), (plenty, lost.clone().after(dice))] {
            let run = Case::new(Kind::Notify, options, lost).at_level(level).run(lab, seed)?;
            right(at_most_once(&run.trace))?;
            run.require_right(Some(falls))?;
            if !falls {
                right(aligned(&run.trace))?;
            }
            refusals.push(unready(&run, Link::Rail0));
        }
        require(refusals.first().is_some_and(|refused| *refused > 0) && refusals.get(1) == Some(&0), || {
            format!("{level}: not ready {refusals:?} times: the two runs are the same")
        })?;
        told.insert(level.to_owned(), json!({ "error": falls, "not_ready": refusals }));
    }
    Ok(Value::Object(told))
}

/// When what was held is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LetGo {
    /// Both ends have moved.
    Moved,
    /// COMMIT is on its way, and the receiver has said that it counted, if it leaves out to be fenced first.
    Agreed,
}

fn v10(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let (run, answers) = held(lab, seed, LetGo::Moved, None)?;
    right(aligned(&run))?;
    require(answers == 0, || format!("rail 0 answered {answers} requests that came after the migration"))?;
    let (broken, late) = held(lab, seed, LetGo::Moved, Some("fence"))?;
    let said = found("fence", at_most_once(&broken))?;
    Ok(Figures::new().with("operations", run.ops.len()).with("found: fence", said).with("answered_late", late))
}

fn v10_count(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let (run, _) = held(lab, seed, LetGo::Agreed, None)?;
    right(aligned(&run))?;
    let (broken, behind) = held(lab, seed, LetGo::Agreed, Some("fence-first"))?;
    let said = found("fence-first", at_most_once(&broken))?;
    Ok(Figures::new()
        .with("operations", run.ops.len())
        .with("found: fence-first", said)
        .with("answered_behind_the_count", behind))
}

/// Ports of the shims' own listeners.
const PORTS: (u16, u16) = (21_000, 21_001);
/// What a receiver says that leaves out to be fenced before it counts.
const COUNTED: &str = "counted before it is stopped";

/// Fhold: requests are held, both ends agree to move or have moved, the requests are let go. The trace, and how many of them rail 0 answered then.
fn held(lab: &mut Lab, seed: u64, moment: LetGo, without: Option<&str>) -> Result<(Trace, usize)> {
    lab.reset()?;
    Evidence::clear(lab)?;
    let since = lab.wire().position()?;
    // Slow enough that it is not over when the held ones are let go.
    let shape = "--mode send --size 8..2000 --depth 8 --messages 80 --rate 20000 --settle-ms 2000";
    let mut checker = Checker::gated(format!("{shape} {IMPATIENT} --seed {seed}"));
    // What is let go at a receiver that counted first comes within the drain.
    let deadlines = [("SHIFT_DRAIN_MS", "600"), ("SHIFT_FENCE_MS", "2000")];
    checker.env = [("SHIFT_PORT_RANGE", "21000-21001")].into_iter().chain(deadlines).collect();
    let mut trial = checker.trial();
    if let Some(part) = without {
        trial = leaves_out(trial, part, true);
    }
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let agreed = lab.wire().trap(Trap::watch(PORTS, Step::Commit, 1, Host::A))?;
    let (server, client) = lab.start_pair(Host::B, PORT, &trial.server, &trial.client)?;
    let not_over = || match client.ended().or(server.ended()) {
        Some(ended) => Err(Trouble::judged(format!("it was over too early: {}", ended.brief()))),
        None => Ok(()),
    };
    until("the queue pair to be protected", STEP, || {
        not_over()?;
        Ok([&client, &server].iter().all(|side| all_protected(side) >= 1).then_some(()))
    })?;
    let hold = Rule::on(Link::Rail0, Action::Hold).opcodes(&opcode::REQUESTS).from(Host::A);
    let (rule, _) = lab.wire().add(hold.after(spared(seed, "v10")))?;
    lab.a().write(GO_ON, "", 0o644)?;
    until("the moment at which what is held is let go", STEP, || {
        not_over()?;
        let is_it = match moment {
            LetGo::Moved => {
                let evidence = Evidence::collect(lab)?;
                Host::ALL.into_iter().all(|host| confirmed(&evidence, host, 1) >= 1)
            }
            LetGo::Agreed => {
                let counted = server.lines().iter().any(|line| line.text.contains(COUNTED));
                lab.wire().sprung(agreed)?.is_some() && (without.is_none() || counted)
            }
        };
        Ok(is_it.then_some(()))
    })?;
    lab.wire().release(rule)?;
    let ends = [client.wait(STEP)?, server.wait(STEP)?];
    lab.forget_ended();
    for ended in ends.iter().filter(|_| without.is_none()) {
        require(ended.succeeded(), || format!("{}: {}", ended.brief(), report_of(ended)))?;
    }
    let records = lab.wire().records_since(since)?;
    let let_go = records.iter().position(|record| record.fate == Fate::Released);
    let let_go = let_go.ok_or_else(|| Trouble::judged("nothing was held: the run proves nothing"))?;
    let [sender, _] = &ends;
    let trace = convert(&records, Run::of(Kind::Notify), told(&report_of(sender))?)?;
    let numbers: Vec<u32> = held_numbers(&records);
    let answered = records.iter().skip(let_go).filter(|record| record.link == Link::Rail0 && record.from == Host::B);
    let answered = answered.filter_map(|record| record.packet.roce);
    Ok((trace, answered.filter(|bth| bth.is_response() && numbers.contains(&bth.psn)).count()))
}

/// Packet numbers of the SENDs that were held.
fn held_numbers(records: &[Record]) -> Vec<u32> {
    let held = records.iter().filter(|record| record.fate == Fate::Held).filter_map(|record| record.packet.roce);
    held.filter(|bth| bth.opcode <= 0x05).map(|bth| bth.psn).collect()
}
