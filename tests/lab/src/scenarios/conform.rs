//! The theorems' tests on the real stack (V1 to V10): each makes a fault by which the theorem's two worlds come about, and the theorem's own predicates judge
//! what the wire saw (`conformance`). Then the same with a library that leaves out what the promise rests on: the judge has to find it.
//!
//! One queue pair, since a trace is of one. What is left out is named in `TEST_SABOTAGE` (`shim/src/sabotage.rs`), which the released library does not know.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::until;
use crate::conformance::judge::{aligned, at_most_once, atomics, indistinguishable, no_ghosts, Verdict};
use crate::conformance::trace::{convert, Kind, Told, Trace};
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

use super::checker::{report, Checker, GO_ON, PORT};
use super::directory::SHIM_WITH_REDIS;
use super::failback::confirmed;
use super::race::report as report_of;
use super::survive::require_fault;
use super::Scenario;

/// An error after about a second of silence, none on a healthy path; and an end to what a library that leaves something out brings to a stand.
const IMPATIENT: &str = "--timeout 16 --retry-cnt 3 --may-fail --deadline 6";
/// What lies still for so long with a part left out stays so.
const STILL: Duration = Duration::from_secs(8);
/// Each step of a run with packets that are held.
const STEP: Duration = Duration::from_secs(40);
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
        of(5, "CASes, answers lost: each at most once, and an error where the result is lost", v5),
        of(6, "FADDs in flight, answers lost: an executed one is no success without its result", v6),
        of(7, "SENDs, acknowledgements lost: message i in receive i", v7),
        of(8, "CASes or their answers lost, each level of proof: equal views end alike unless it is proven, and nothing is read to decide", v8),
        of(9, "SENDs, acknowledgements lost: the standby's receiver is ready", v9),
        of(10, "requests held on rail 0 and let go after the migration: they change nothing", v10),
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
struct Case<'a> {
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
struct Outcome {
    trace: Trace,
    story: Story,
    sent: Value,
    received: Value,
}

impl<'a> Case<'a> {
    fn new(kind: Kind, options: &'a str, lost: Rule) -> Case<'a> {
        Case { kind, options, env: Vec::new(), lost, without: None }
    }

    fn at_level(mut self, level: &'static str) -> Case<'a> {
        self.env.push(("SHIFT_PROOF", level));
        self
    }

    fn without(mut self, part: &'static str) -> Case<'a> {
        self.without = Some((part, false));
        self
    }

    fn run(&self, lab: &mut Lab, seed: u64) -> Result<Outcome> {
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
        let trace = convert(&story.records, self.kind, told(&sent)?)?;
        let dropped = story.records.iter().any(|record| record.fate == Fate::Dropped);
        require(dropped, || "nothing was lost: the run proves nothing".into())?;
        Ok(Outcome { trace, story, sent, received })
    }
}

fn leaves_out(mut trial: Trial, part: &str, receiver_alone: bool) -> Trial {
    let without = |program: &Program| program.clone().with_shim_from(SHIM_WITH_REDIS).env("TEST_SABOTAGE", part);
    trial.server = without(&trial.server);
    if !receiver_alone {
        trial.client = without(&trial.client);
    }
    trial.stall_limit = STILL;
    trial
}

/// What the sender's report says of its one queue pair.
fn told(report: &Value) -> Result<Told> {
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
    fn fell(&self) -> bool {
        self.sent.pointer("/fallen/0").is_some()
    }

    /// The application saw nothing wrong either, and its end was the one that is due.
    fn require_right(&self, falls: Option<bool>) -> Result<()> {
        let right = |report: &Value| report["why"].is_null() && !report["deadline"].as_bool().unwrap_or(true);
        require(right(&self.sent) && right(&self.received), || format!("{} {}", self.sent, self.received))?;
        self.story.require_success()?;
        require(falls.is_none_or(|falls| falls == self.fell()), || format!("an error: {}; {}", self.fell(), self.sent))
    }

    fn note(&self) -> Value {
        json!({ "operations": self.trace.ops.len(), "events": self.trace.events.len(),
                "on_standby": self.trace.on_standby, "error": self.fell() })
    }
}

fn right(verdict: Verdict) -> Result<()> {
    verdict.map_err(Trouble::judged)
}

/// The judge found it; what it said.
fn found(part: &str, verdict: Verdict) -> Result<String> {
    verdict.err().ok_or_else(|| Trouble::judged(format!("{part} left out, and the judge finds nothing")))
}

fn spared(seed: u64, what: &str) -> u64 {
    Seed::new(seed, what).within(SPARED)
}

/// Fack: answers are lost from the one of that number on.
fn answers_lost(spared: u64) -> Rule {
    Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::RESPONSES).from(Host::B).after(spared)
}

/// Freq.
fn requests_lost(spared: u64) -> Rule {
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
            convert(&story.records, Kind::Write, told(&sent)?)?,
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

fn one_atomic(lab: &mut Lab, seed: u64, kind: Kind, mode: &str) -> Result<Figures> {
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

fn v5(lab: &mut Lab, seed: u64) -> Result<Figures> {
    one_atomic(lab, seed, Kind::CompareSwap, "cas")
}

fn v6(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode fadd --depth 8 --messages 80";
    let lost = answers_lost(spared(seed, "v6"));
    let run = Case::new(Kind::FetchAdd, options, lost.clone()).run(lab, seed)?;
    right(atomics(&run.trace))?;
    run.require_right(Some(true))?;
    let broken = Case::new(Kind::FetchAdd, options, lost).without("lost-results").run(lab, seed)?;
    let said = found("lost-results", atomics(&broken.trace))?;
    Ok(Figures::new().with("run", run.note()).with("found: lost-results", said))
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

fn v8(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode cas --depth 1 --messages 60";
    let spared = spared(seed, "v8");
    let swaps = Rule::on(Link::Rail0, Action::Drop).opcodes(&[opcode::COMPARE_SWAP]).from(Host::A).after(spared);
    let answers = Rule::on(Link::Rail0, Action::Drop).opcodes(&[opcode::ATOMIC_ACK]).from(Host::B).after(spared);
    let mut figures = Figures::new();
    for level in ["psn", "count", "sender"] {
        // The same word in both worlds, to the sender.
        let executed = Case::new(Kind::CompareSwap, options, answers.clone()).at_level(level).run(lab, seed)?;
        let unexecuted = Case::new(Kind::CompareSwap, options, swaps.clone()).at_level(level).run(lab, seed)?;
        for (run, falls) in [(&executed, true), (&unexecuted, level != "psn")] {
            right(atomics(&run.trace))?;
            run.require_right(Some(falls))?;
            let peeked = peeks(&run.story.records, run.story.fault_ns.unwrap_or_default());
            require(peeked == 0, || format!("{level}: {peeked} READs on the standby"))?;
        }
        if level != "psn" {
            right(indistinguishable(&executed.trace, &unexecuted.trace))?;
        }
        figures.note(level, json!([executed.note(), unexecuted.note()]));
    }
    Ok(figures)
}

/// READs on the standby.
fn peeks(records: &[Record], since_ns: u64) -> usize {
    let standby = records.iter().filter(|record| record.link == Link::Rail1 && record.at_ns >= since_ns);
    standby.filter(|record| record.packet.roce.is_some_and(|bth| bth.opcode == opcode::READ_REQUEST)).count()
}

fn v9(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode send --size 8..2000 --depth 8 --messages 80";
    let lost = answers_lost(spared(seed, "v9"));
    let unready = |run: &Outcome| {
        let standby = run.story.records.iter().filter(|record| record.link == Link::Rail1);
        standby.filter(|record| record.packet.roce.is_some_and(|bth| bth.is_receiver_not_ready())).count()
    };
    let run = Case::new(Kind::Notify, options, lost.clone()).run(lab, seed)?;
    right(aligned(&run.trace))?;
    run.require_right(Some(false))?;
    require(unready(&run) == 0, || format!("{} times the standby's receiver was not ready", unready(&run)))?;
    let broken = Case::new(Kind::Notify, options, lost).without("receives").run(lab, seed)?;
    require(unready(&broken) > 0, || "receives left out, and nobody was not ready".into())?;
    Ok(Figures::new().with("run", run.note()).with("found: receives", unready(&broken)))
}

fn v10(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let (run, answers) = held(lab, seed, None)?;
    right(aligned(&run))?;
    require(answers == 0, || format!("rail 0 answered {answers} requests that came after the migration"))?;
    let (broken, late) = held(lab, seed, Some("fence"))?;
    let said = found("fence", at_most_once(&broken))?;
    Ok(Figures::new().with("operations", run.ops.len()).with("found: fence", said).with("answered_late", late))
}

/// Fhold: requests are held, both ends move, the requests are let go. The trace, and how many of them rail 0 answered then.
fn held(lab: &mut Lab, seed: u64, without: Option<&str>) -> Result<(Trace, usize)> {
    lab.reset()?;
    Evidence::clear(lab)?;
    let since = lab.wire().position()?;
    // Slow enough that it is not over when the held ones are let go.
    let shape = "--mode send --size 8..2000 --depth 8 --messages 80 --rate 20000";
    let mut trial = Checker::gated(format!("{shape} {IMPATIENT} --seed {seed}")).trial();
    if let Some(part) = without {
        trial = leaves_out(trial, part, true);
    }
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
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
    until("both ends to have moved", STEP, || {
        not_over()?;
        let evidence = Evidence::collect(lab)?;
        Ok(Host::ALL.into_iter().all(|host| confirmed(&evidence, host, 1) >= 1).then_some(()))
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
    let trace = convert(&records, Kind::Notify, told(&report_of(sender))?)?;
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
