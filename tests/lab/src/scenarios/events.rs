//! Programs that sleep until they are told: of completions by a channel, of the rest by asynchronous events.

use std::time::Duration;

use serde_json::{json, Value};

use crate::figures::Figures;
use crate::lab::Lab;
use crate::perftest::Shim;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::survive::{dies_without, require_fault, run, survives_and_tells};
use super::Scenario;

/// How an end sleeps, its messages over all queue pairs, and how many packets they take at least on rail 0. Each end polls only after an event, so one that is
/// lost is a run that stands still.
const SLEEPS: [(&str, &str, u64); 4] = [
    ("blocking-thread", "--poll event --messages 500 --depth 8", 600),
    ("epoll-two-queues", "--poll epoll --split-cqs --messages 500 --depth 16 --direction both", 1200),
    ("one-outstanding", "--poll event --split-cqs --messages 200 --depth 1", 300),
    ("unsignalled", "--poll epoll --messages 500 --depth 32 --signal-every 8 --chain 4", 600),
];
/// Modes of those runs, one queue pair each.
const MODES: [&str; 3] = ["write_imm", "send", "mixed"];
/// Where the receiver hears of solicited messages only.
const SOLICITED: [(&str, &str, u64); 2] = [
    ("solicited-thread", "--solicited --poll event --messages 600 --depth 16", 600),
    ("solicited-epoll", "--solicited --poll epoll --split-cqs --messages 600 --depth 64", 600),
];
/// Only messages that consume a receive can be solicited.
const SOLICITED_MODES: [&str; 2] = ["write_imm", "send"];

/// How long a rail is gone that comes back.
const GONE: Duration = Duration::from_secs(1);
/// Longer than the patience of that run.
const DARK: Duration = Duration::from_secs(5);

/// The sides of a rail that can be cut.
const SIDES: [(&str, Host); 2] = [("sender", Host::A), ("receiver", Host::B)];

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "ends that poll only after a completion event, under the shim, no fault: all is right";
    let mut scenarios = vec![Scenario::guests("shim-events", about, |lab: &mut Lab, seed| sleepers(lab, None, seed))];
    for (side, host) in SIDES {
        let about = format!("ends that poll only after a completion event, rail 0 down on the {side}: all is right");
        let run = move |lab: &mut Lab, seed| sleepers(lab, Some(host), seed);
        scenarios.push(Scenario::guests(format!("shim-events-cut-{side}"), about, run));
    }
    let about = "ends that poll only after a completion event die of either cut without the shim";
    let run = |lab: &mut Lab, seed| dies_without(lab, &MODES, "--poll event", seed);
    scenarios.push(Scenario::guests("checker-plain-events-cut", about, run));
    let about = "a fault that is masked is not told by an asynchronous event, one that is surfaced is, and one that hits unprotected queue pairs";
    scenarios.push(Scenario::guests("shim-async-events", about, asynchronous));
    scenarios
}

/// Runs in which a thread takes the asynchronous events, as NCCL's does.
fn asynchronous(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let options = format!("--mode send,write_imm --qps 2 --seed {seed} --messages 600 --depth 16");
    for (side, host) in SIDES {
        lab.reset()?;
        let checker = Checker::gated(format!("{options} --async-events fatal"));
        let fault = (Fault::Cut(host, Rail::Zero), Moment::armed(2, seed, 100, 500));
        let (_, story) = survives_and_tells(lab, &checker, Some(fault))?;
        let heard = [heard(&report(&story, Host::A)?), heard(&report(&story, Host::B)?)].concat();
        // Also no word of a port that is up again, of which nobody heard that it was down.
        require(!heard.iter().any(|name| is_of_fault(name)), || format!("masked, {side}: {heard:?}"))?;
        figures.note(&format!("masked, {side}"), heard.join(", "));
    }
    lab.reset()?;
    figures.note("unprotected", unprotected(lab, &options, seed)?);
    lab.reset()?;
    figures.note("surfaced", surfaced(lab, &options, seed)?);
    Ok(figures)
}

/// The peer has no shim: nothing is protected, and the port's error is told as without one.
fn unprotected(lab: &mut Lab, options: &str, seed: u64) -> Result<String> {
    let mut checker = Checker::plain(format!("{options} --async-events watch --retry-cnt 3 --deadline 10"));
    checker.shim = Shim::Only(Host::A);
    // It comes back, so that the end of the program does not wait for the packets of its queue pairs.
    let fault = Fault::Flap { host: Some(Host::A), rail: Rail::Zero, gone: GONE };
    let story = checker.trial().fault(fault, Moment::from_seed(seed, 100, 400)).run(lab)?;
    require_fault(&story)?;
    let heard = heard(&report(&story, Host::A)?);
    let told = heard.iter().filter(|name| name.ends_with("PORT_ERR")).count();
    require(told == 1, || format!("unprotected: {heard:?}"))?;
    Ok(heard.join(", "))
}

/// Both rails are gone for longer than anybody waits: the error is surfaced, and told once for each queue pair that had one. Who had nothing
/// outstanding in the dark has none.
fn surfaced(lab: &mut Lab, options: &str, seed: u64) -> Result<String> {
    let mut checker = Checker::gated(format!("{options} --async-events watch --may-fail --settle-ms 1000"));
    checker.env = vec![("SHIFT_PATIENCE_MS", "2500")];
    let fault = Fault::AllCut { host: Host::A, gone: DARK, back: Rail::One };
    let (story, evidence) = run(lab, &checker.trial().fault(fault, Moment::armed(2, seed, 100, 500)))?;
    require_fault(&story)?;
    let heard = heard(&report(&story, Host::A)?);
    let count = |what: &str| heard.iter().filter(|name| name.ends_with(what)).count();
    let ended =
        evidence.of(Host::A).filter(|record| record.get("outcome").is_some_and(|how| how == "surfaced")).count();
    require(ended > 0, || "nothing was surfaced".into())?;
    require(count("QP_FATAL") == ended, || format!("surfaced, {ended} queue pairs: {heard:?}"))?;
    require(count("PORT_ERR") == 1, || format!("surfaced: {heard:?}"))?;
    Ok(heard.join(", "))
}

fn heard(report: &Value) -> Vec<String> {
    let names = report.get("async_events").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn is_of_fault(name: &str) -> bool {
    ["PORT_ERR", "PORT_ACTIVE", "QP_FATAL", "DEVICE_FATAL"].iter().any(|fault| name.ends_with(fault))
        || name.contains("came back")
}

fn sleepers(lab: &mut Lab, cut: Option<Host>, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let runs = SLEEPS.map(|run| (run, &MODES[..])).into_iter().chain(SOLICITED.map(|run| (run, &SOLICITED_MODES[..])));
    for (index, ((name, options, packets), modes)) in (0..).zip(runs) {
        lab.reset()?;
        let qps = modes.len();
        let options = format!("--mode {} --qps {qps} --seed {seed} {options}", modes.join(","));
        let checker = if cut.is_some() { Checker::gated(&options) } else { Checker::shimmed(&options) };
        let dice = seed.wrapping_mul(1000) + 100 * index;
        let fault = cut.map(|host| (Fault::Cut(host, Rail::Zero), Moment::armed(qps as u64, dice, 0, packets)));
        let (mut told, story) = survives_and_tells(lab, &checker, fault)?;
        let events = events_of(&report(&story, Host::A)?) + events_of(&report(&story, Host::B)?);
        require(events > 0, || "nobody slept: the run proves nothing".into())?;
        told.note("events", events);
        figures.note(name, json!(told));
    }
    Ok(figures)
}

fn events_of(report: &Value) -> u64 {
    report.get("events").and_then(Value::as_u64).unwrap_or(0)
}
