//! Programs that sleep until they are told: of completions by a channel, of the rest by asynchronous events.

use serde_json::{json, Value};

use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::survive::{dies_without, survives_and_tells};
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
    scenarios
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
