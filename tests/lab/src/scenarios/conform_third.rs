//! The theorems' tests with a third endpoint (V5, V8), which takes back what a compare-and-swap put there whose answer is lost: theorem 2 b, that a second
//! execution undoes what the third one did, and theorem 3, that the word then tells nobody whether it was executed.
//!
//! The third endpoint is a process of its own without the shim, with a queue pair of its own to the receiver; its packets are spared.

use serde_json::{json, Value};

use crate::clock::until;
use crate::conformance::judge::{alike, atomics, indistinguishable, third_survives, Verdict};
use crate::conformance::trace::{convert, Kind, Run, LONGEST};
use crate::figures::Figures;
use crate::guest::{Ended, Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link};
use crate::trial::{all_protected, Story};
use crate::trouble::{require, Result, Trouble};
use crate::wire::log::{Fate, Record};
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule};

use super::checker::{Checker, GO_ON, PORT, PROGRAM};
use super::conform::{found, leaves_out, right, spared, told, Case, Outcome, IMPATIENT, STEP};
use super::race::report;
use super::Scenario;

/// Where the third endpoint learns which one it is to take back.
const UNDO: &str = "/tmp/shift-undo";
/// Compare-and-swaps, one at a time. Number n has the packet number `FIRST + n`, so that what is lost is named, however often it is sent.
const SHAPE: &str = "--mode cas --depth 1 --messages 60 --psn 4096";
const FIRST: u32 = 4096;

pub(super) fn scenarios() -> Vec<Scenario> {
    let v5 = "CASes, answers lost, alone and with a third endpoint that takes the last one back: each at most once, an error, and what the third one wrote stays";
    let v8 = "CASes or their answers lost, and taken back, each level of proof: equal views end alike unless it is proven, nothing is read to decide";
    vec![Scenario::guests("conform-v5", v5, v5_third), Scenario::guests("conform-v8", v8, v8_third)]
}

/// A run in which the third endpoint takes back the compare-and-swap whose answer is the first that is lost.
fn taken_back(
    lab: &mut Lab,
    seed: u64,
    dice: u64,
    level: Option<&'static str>,
    without: Option<&str>,
) -> Result<Outcome> {
    lab.reset()?;
    let mut checker = Checker::gated(format!("{SHAPE} {IMPATIENT} --seed {seed}"));
    checker.env = level.map(|level| ("SHIFT_PROOF", level)).into_iter().collect();
    let mut trial = checker.trial();
    if let Some(part) = without {
        trial = leaves_out(trial, part, false);
    }
    let at = format!("{}:{}", Link::Management.address(Host::B), PORT + 1);
    trial.server = trial.server.arg("--third").arg(&at);
    lab.a().shell(&format!("rm -f {GO_ON} {UNDO}"))?;
    let since = lab.wire().position()?;
    let (server, client) = lab.start_pair(Host::B, PORT, &trial.server, &trial.client)?;
    let third = lab.a().spawn(&Program::words(&format!("{PROGRAM} third --dev rxe0 --connect {at} --undo {UNDO}")))?;
    let qpn = number_of(&third)?;
    until("the queue pair to be protected", STEP, || {
        Ok([&client, &server].iter().all(|side| all_protected(side) >= 1).then_some(()))
    })?;
    let (_, fault_ns) = lab.wire().add(results_lost(dice).sparing([qpn]))?;
    lab.a().write(GO_ON, "", 0o644)?;
    let undone = until("a result to be lost", STEP, || Ok(last_in_doubt(&lab.wire().records_since(since)?)))?;
    lab.a().shell(&format!("echo {undone} > {UNDO}.part && mv {UNDO}.part {UNDO}"))?;
    let said = report(&third.wait(STEP)?);
    require(said.get("swapped") == Some(&json!(true)), || {
        format!("the third endpoint did not take {undone} back: {said}")
    })?;
    let ends = [client.wait(STEP)?, server.wait(STEP)?];
    lab.forget_ended();
    outcome(lab.wire().records_since(since)?, fault_ns, undone, ends)
}

/// From the one of that number on; probes of the rail are answered.
fn results_lost(number: u64) -> Rule {
    from_number(Rule::on(Link::Rail0, Action::Drop).opcodes(&[opcode::ATOMIC_ACK]).from(Host::B), number)
}

fn from_number(rule: Rule, number: u64) -> Rule {
    rule.psn(FIRST + number as u32, FIRST + LONGEST as u32)
}

fn outcome(records: Vec<Record>, fault_ns: u64, undone: u8, [client, server]: [Ended; 2]) -> Result<Outcome> {
    let (sent, received) = (report(&client), report(&server));
    let run = Run { undone: Some(undone), ..Run::of(Kind::CompareSwap) };
    let trace = convert(&records, run, told(&sent)?)?;
    let (client, server) = (Some(client), Some(server));
    let story = Story { fault_ns: Some(fault_ns), client, server, records, ..Story::default() };
    Ok(Outcome { trace, story, sent, received })
}

fn number_of(third: &Running) -> Result<u32> {
    let line = third.wait_line(STEP, |line| line.starts_with("THIRD qpn="))?;
    let number = line.text.trim_start_matches("THIRD qpn=").trim().parse();
    number.map_err(|why| Trouble::judged(format!("{why}: {}", line.text)))
}

/// The number of the compare-and-swap whose result is lost: they go one at a time, so it is the last that was sent.
fn last_in_doubt(records: &[Record]) -> Option<u8> {
    let on_rail = || records.iter().filter(|record| record.link == Link::Rail0);
    let is_lost = |record: &Record| record.fate == Fate::Dropped && is(record, opcode::ATOMIC_ACK);
    on_rail().find(|record| is_lost(record))?;
    let mut sent: Vec<u32> = on_rail()
        .filter(|record| is(record, opcode::COMPARE_SWAP))
        .filter_map(|record| Some(record.packet.roce?.psn))
        .collect();
    sent.sort_unstable();
    sent.dedup();
    u8::try_from(sent.len()).ok()?.checked_sub(1)
}

fn is(record: &Record, code: u8) -> bool {
    record.packet.roce.is_some_and(|bth| bth.opcode == code)
}

fn v5_third(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = super::conform::one_atomic(lab, seed, Kind::CompareSwap, "cas")?;
    let dice = spared(seed, "v5");
    let run = taken_back(lab, seed, dice, None, None)?;
    right(atomics(&run.trace).and_then(|()| third_survives(&run.trace)))?;
    run.require_right(Some(true))?;
    // The memory itself: as it was before the one whose result is lost.
    let end = |report: &Value, name: &str| report.pointer(&format!("/fallen/0/{name}")).and_then(Value::as_u64);
    let (counted, acked) = (end(&run.received, "counted"), end(&run.sent, "acked"));
    require(counted.is_some() && counted == acked && acked == run.trace.undone.map(u64::from), || {
        format!("the word counts {counted:?}, {acked:?} were answered, {:?} was taken back", run.trace.undone)
    })?;
    let broken = taken_back(lab, seed, dice, None, Some("atomics-once"))?;
    figures.note("taken back", run.note());
    Ok(figures.with("found: what the third endpoint wrote", found("atomics-once", third_survives(&broken.trace))?))
}

fn v8_third(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let dice = spared(seed, "v8");
    let swaps = from_number(Rule::on(Link::Rail0, Action::Drop).opcodes(&[opcode::COMPARE_SWAP]).from(Host::A), dice);
    let case = |lost| Case::new(Kind::CompareSwap, SHAPE, lost);
    let mut figures = Figures::new();
    for level in ["psn", "count", "sender"] {
        let is_proven = level == "psn";
        let executed = case(results_lost(dice)).at_level(level).run(lab, seed)?;
        let unexecuted = case(swaps.clone()).at_level(level).run(lab, seed)?;
        let back = taken_back(lab, seed, dice, Some(level), None)?;
        for (run, falls) in [(&executed, true), (&unexecuted, !is_proven), (&back, true)] {
            right(atomics(&run.trace))?;
            run.require_right(Some(falls))?;
            right(nothing_asked(run).map_err(|why| format!("{level}: {why}")))?;
        }
        right(third_survives(&back.trace))?;
        if !is_proven {
            // The same view with another word, and with the same one.
            right(indistinguishable(&executed.trace, &unexecuted.trace))?;
            right(alike(&back.trace, &unexecuted.trace))?;
        }
        figures.note(level, json!([executed.note(), unexecuted.note(), back.note()]));
    }
    let broken = case(results_lost(dice)).at_level("count").without("doubt").run(lab, seed)?;
    Ok(figures.with("found: doubt", found("doubt", nothing_asked(&broken))?))
}

/// The tap: nothing was read on the standby, and where there was an error no atomic went there either.
fn nothing_asked(run: &Outcome) -> Verdict {
    let since_ns = run.story.fault_ns.unwrap_or_default();
    let standby = || run.story.records.iter().filter(|record| record.link == Link::Rail1 && record.at_ns >= since_ns);
    let reads = standby().filter(|record| is(record, opcode::READ_REQUEST)).count();
    let swaps = standby().filter(|record| is(record, opcode::COMPARE_SWAP) || is(record, opcode::FETCH_ADD)).count();
    if reads > 0 || (run.fell() && swaps > 0) {
        return Err(format!("{reads} READs and {swaps} atomics on the standby"));
    }
    Ok(())
}
