//! Programs under the shim: nothing is lost, doubled or damaged when a rail dies, and without a fault the shim is not felt.

use serde_json::{json, Value};

use crate::clock::ms;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::perftest::{Perftest, Shim, Tool};
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment, Story, Trial};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::Scenario;

/// Modes of the checking application that are protected.
const MODES: [&str; 5] = ["write", "write_imm", "send", "read", "mixed"];
/// By itself, and with 4.3 s until a retransmission: where soft-RoCE retransmits a READ that a fenced request waits for, it stands still for ever, with
/// or without a shim, and a loaded machine may keep a guest from its processors for longer than a short time-out.
const RELAY: [&str; 1] = ["relay"];
const RELAY_TIMEOUT: &str = "--timeout 20";

/// Shapes of a run, its messages over all queue pairs, and how many packets they take at least on rail 0, so that a moment within it can be chosen.
const SHAPES: [(&str, u64, &str, u64); 4] = [
    ("one-outstanding", 1500, "--depth 1", 1500),
    ("many-outstanding", 4000, "--depth 64 --psn 16776960", 3000),
    (
        "unsignalled-inline-chains",
        4000,
        "--depth 32 --signal-every 8 --inline 64 --chain 5 --sges 3 --size 0..3000",
        2000,
    ),
    ("both-directions", 2000, "--depth 16 --direction both", 3000),
];
/// The sides of a rail that can be cut.
const SIDES: [(&str, Host); 2] = [("sender", Host::A), ("receiver", Host::B)];

/// Who has not ended after this hangs in tearing down: longer than the checking application takes to give up (2 s after an error).
pub(super) const TEARDOWN: std::time::Duration = std::time::Duration::from_secs(5);
/// RoCE packets on rail 0 in the first moments of perftest: some are under way at every size of message.
const PERFTEST_PACKETS: std::ops::Range<u64> = 1000..8000;

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "perftest under the shim without a fault: exit 0, all iterations";
    let mut scenarios = vec![Scenario::guests("shim-perftest", about, |lab: &mut Lab, _| perftest_all(lab))];
    for tool in Tool::MOVED {
        for (side, host) in [("sender", tool.sender()), ("receiver", tool.sender().peer())] {
            let name = format!("shim-perftest-cut-{}-{side}", tool.name());
            let about = format!("{} under the shim, rail 0 down on the {side}: all iterations", tool.program());
            scenarios
                .push(Scenario::guests(name, about, move |lab: &mut Lab, seed| perftest_cut(lab, tool, host, seed)));
        }
    }
    let about = "perftest under the shim, rail 0 silent for both and its retry count infinite: all iterations";
    scenarios.push(Scenario::guests("shim-perftest-silent", about, perftest_silent));
    scenarios.extend(of_modes("all", &MODES));
    scenarios.extend(of_modes("relay", &RELAY));
    scenarios.extend(MODES.iter().flat_map(|mode| of_modes(mode, std::slice::from_ref(mode))));
    scenarios
}

/// The checking application with a queue pair of each of these modes: without a fault, through a cut of either side, and without the shim.
fn of_modes(name: &str, modes: &'static [&'static str]) -> Vec<Scenario> {
    let who = if modes.len() == 1 { format!("mode {name}") } else { "a queue pair of each mode".to_owned() };
    let about = format!("the checking application, {who}, under the shim, no fault: all is right");
    let run = move |lab: &mut Lab, seed| checker(lab, modes, None, seed);
    let mut scenarios = vec![Scenario::guests(format!("shim-checker-{name}"), about, run)];
    for (side, host) in SIDES {
        let about = format!("the checking application, {who}, rail 0 down on the {side}: all is right");
        let run = move |lab: &mut Lab, seed| checker(lab, modes, Some(host), seed);
        scenarios.push(Scenario::guests(format!("shim-checker-{name}-cut-{side}"), about, run));
    }
    let about = format!("the checking application, {who}, without the shim dies of either cut");
    let run = move |lab: &mut Lab, seed| dies_without(lab, modes, "", seed);
    scenarios.push(Scenario::guests(format!("checker-plain-{name}-cut"), about, run));
    scenarios
}

fn perftest_all(lab: &mut Lab) -> Result<Figures> {
    let mut figures = Figures::new();
    for tool in Tool::MOVED {
        let test = Perftest::plain(tool).with_shim(Shim::Both);
        let (story, _) = run(lab, &test.trial())?;
        figures.note(tool.program(), json!(test.require_complete(&story)?));
    }
    Ok(figures)
}

fn perftest_cut(lab: &mut Lab, tool: Tool, host: Host, seed: u64) -> Result<Figures> {
    let test = Perftest::plain(tool).with_shim(Shim::Both);
    let moment = Moment::armed(1, seed, PERFTEST_PACKETS.start, PERFTEST_PACKETS.end);
    let (story, evidence) = run(lab, &test.trial().fault(Fault::Cut(host, Rail::Zero), moment))?;
    require_fault(&story)?;
    let figures = test.require_complete(&story)?;
    Ok(moved(figures, &story, &evidence))
}

/// No completion ever tells of this fault: perftest asks for 7 retries, which soft-RoCE takes for infinitely many.
fn perftest_silent(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for tool in Tool::MOVED {
        lab.reset()?;
        let test = Perftest::plain(tool).with_shim(Shim::Both);
        let moment = Moment::armed(1, seed, PERFTEST_PACKETS.start, PERFTEST_PACKETS.end);
        let (story, evidence) = run(lab, &test.trial().fault(Fault::Silence(Rail::Zero, None), moment))?;
        require_fault(&story)?;
        let told = test.require_complete(&story)?;
        figures.note(tool.program(), json!(moved(told, &story, &evidence)));
    }
    Ok(figures)
}

/// One run of each shape; with a host, rail 0 goes down there at a moment of the seed.
fn checker(lab: &mut Lab, modes: &[&str], cut: Option<Host>, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let qps = modes.len() as u64;
    for (index, (name, messages, options, packets)) in (0..).zip(SHAPES) {
        lab.reset()?;
        let options = format!("{} --messages {} {options}", named(modes, seed), messages / qps);
        // With a fault nothing is sent before all is protected: however fast the machine, the moment lies within the run.
        let checker = if cut.is_some() { Checker::gated(options) } else { Checker::shimmed(options) };
        // Another moment in each shape and mode, all of them the seed's.
        let dice = seed.wrapping_mul(1000) + 100 * index + modes.concat().len() as u64;
        let fault = cut.map(|host| (Fault::Cut(host, Rail::Zero), Moment::armed(qps, dice, 0, packets)));
        figures.note(name, json!(survives(lab, &checker, fault)?));
    }
    Ok(figures)
}

/// The options for a queue pair of each of these modes.
fn named(modes: &[&str], seed: u64) -> String {
    let timeout = if *modes == RELAY { RELAY_TIMEOUT } else { "" };
    format!("--mode {} --qps {} --seed {seed} {timeout}", modes.join(","), modes.len())
}

/// Runs the checking application through a fault: everything once, in order, right.
pub(super) fn survives(lab: &mut Lab, checker: &Checker, fault: Option<(Fault, Moment)>) -> Result<Figures> {
    survives_and_tells(lab, checker, fault).map(|(figures, _)| figures)
}

/// The same, and what both ends said.
pub(super) fn survives_and_tells(
    lab: &mut Lab,
    checker: &Checker,
    fault: Option<(Fault, Moment)>,
) -> Result<(Figures, Story)> {
    let faulted = fault.is_some();
    let trial = match fault {
        Some((fault, moment)) => checker.trial().fault(fault, moment),
        None => checker.trial(),
    };
    let (story, evidence) = run(lab, &trial)?;
    if faulted {
        return Ok((judge_survival(checker, &story, &evidence)?, story));
    }
    let figures = judge_run(checker, &story)?;
    require(evidence.migrations() == 0, || "there was a migration without a fault".into())?;
    Ok((moved(figures, &story, &evidence), story))
}

/// A run of the checking application through a fault: both sides are content, and something was migrated.
pub(super) fn judge_survival(checker: &Checker, story: &Story, evidence: &Evidence) -> Result<Figures> {
    let figures = judge_run(checker, story)?;
    require_fault(story)?;
    require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
    Ok(moved(figures, story, evidence))
}

fn judge_run(checker: &Checker, story: &Story) -> Result<Figures> {
    let (client, server) = (report(story, Host::A)?, report(story, Host::B)?);
    for report in [&client, &server] {
        require(report["pass"] == true, || format!("{}: {report}", checker.options))?;
    }
    story.require_success()?;
    Ok(seen(&client, &server))
}

/// The negative control: without the shim the same cut ends the run. With few retries, so that the sender of a receiver that is gone gets its error
/// within a second; that it stands still for ever with the default ones is shown on perftest.
pub(super) fn dies_without(lab: &mut Lab, modes: &[&str], more: &str, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (side, host) in SIDES {
        lab.reset()?;
        let messages = 1500 / modes.len();
        let named = named(modes, seed);
        let options = format!("{named} --messages {messages} --depth 16 --retry-cnt 3 --deadline 10 {more}");
        let fault = Fault::Cut(host, Rail::Zero);
        let mut trial = Checker::plain(options).trial().fault(fault, Moment::from_seed(seed, 100, 800));
        trial.stall_limit = TEARDOWN;
        let story = trial.run(lab)?;
        require_fault(&story)?;
        let died = [&story.client, &story.server].into_iter().flatten().any(|ended| !ended.succeeded());
        require(died, || "it survived without a shim: the scenario with one proves nothing".into())?;
        figures.note(side, json!(story.figures()));
    }
    Ok(figures)
}

/// Runs a trial and collects what the shims wrote down of it.
pub(super) fn run(lab: &mut Lab, trial: &Trial) -> Result<(Story, Evidence)> {
    Evidence::clear(lab)?;
    let story = trial.run(lab)?;
    let evidence = Evidence::collect(lab)?;
    Ok((story, evidence))
}

fn seen(client: &Value, server: &Value) -> Figures {
    let mut figures = Figures::new();
    figures.note("sent", client["sent"].clone());
    figures.note("received", server["received"].clone());
    figures.note("longest_gap_ms", client["longest_gap_ms"].clone());
    figures
}

pub(super) fn require_fault(story: &Story) -> Result<()> {
    require(story.fault_ns.is_some(), || "the run was over before the fault could be made".into())
}

/// Adds how long it took until the standby carried something, and what was decided on which proof.
pub(super) fn moved(mut figures: Figures, story: &Story, evidence: &Evidence) -> Figures {
    let Some(fault) = story.fault_ns else { return figures };
    if let Some(standby) = story.standby_ns {
        figures.note("fault_to_success_ms", ms(standby.saturating_sub(fault)));
    }
    if let Some(gap) = evidence.error_to_success_ms() {
        figures.note("first_error_to_success_ms", gap);
    }
    evidence.note(&mut figures);
    figures
}
