//! Queue pairs that receive through one shared receive queue (SRQ): they are one group, protected and moved together, and no receive is lost, taken twice,
//! or written to after it was given back.

use serde_json::json;

use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::Checker;
use super::survive::{require_fault, survives};
use super::Scenario;

/// Modes of the queue pairs, in turn: most take receives, each in its own rhythm.
const MODES: &str = "send,mixed,write_imm,send,mixed,read";
/// So many queue pairs share one SRQ at each end that receives.
const QPS: u64 = 8;
/// Shapes of a run, messages of each queue pair, and how many packets they take at least on rail 0.
const SHAPES: [(&str, &str, u64); 3] = [
    ("many-outstanding", "--messages 300 --depth 16", 2000),
    ("both-directions", "--messages 150 --depth 8 --direction both --signal-every 4 --chain 3", 2000),
    ("receives-are-scarce", "--messages 150 --depth 8 --scarce-receives --size 0..12000", 1500),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "eight queue pairs on one SRQ under the shim, no fault: all is right";
    let mut scenarios = vec![Scenario::guests("shim-srq", about, |lab: &mut Lab, seed| run(lab, None, seed))];
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        let about = format!("eight queue pairs on one SRQ, rail 0 down on the {side}: all move, and all is right");
        let cut = move |lab: &mut Lab, seed| run(lab, Some(host), seed);
        scenarios.push(Scenario::guests(format!("shim-srq-cut-{side}"), about, cut));
    }
    let about = "eight queue pairs on one SRQ without the shim die of the cut";
    scenarios.push(Scenario::guests("checker-plain-srq-cut", about, dies_without));
    scenarios
}

fn options(seed: u64, shape: &str) -> String {
    format!("--srq --mode {MODES} --qps {QPS} --seed {seed} {shape}")
}

fn run(lab: &mut Lab, cut: Option<Host>, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (index, (name, shape, packets)) in (0..).zip(SHAPES) {
        lab.reset()?;
        let options = options(seed, shape);
        let mut checker = if cut.is_some() { Checker::gated(options) } else { Checker::shimmed(options) };
        checker.env.push(("SHIFT_SRQ", "1"));
        let dice = seed.wrapping_mul(1000) + 100 * index;
        let fault = cut.map(|host| (Fault::Cut(host, Rail::Zero), Moment::armed(QPS, dice, 0, packets)));
        figures.note(name, json!(survives(lab, &checker, fault)?));
    }
    Ok(figures)
}

fn dies_without(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = options(seed, "--messages 300 --depth 16 --retry-cnt 3 --deadline 10");
    let mut trial = Checker::plain(options).trial();
    trial = trial.fault(Fault::Cut(Host::A, Rail::Zero), Moment::from_seed(seed, 100, 1500));
    trial.stall_limit = std::time::Duration::from_secs(5);
    let story = trial.run(lab)?;
    require_fault(&story)?;
    let died = [&story.client, &story.server].into_iter().flatten().any(|ended| !ended.succeeded());
    require(died, || "it survived without a shim: the scenario with one proves nothing".into())?;
    Ok(story.figures())
}
