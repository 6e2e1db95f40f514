//! The extended interfaces: the checking application posts by `ibv_wr_*` and polls by `ibv_start_poll`, with a queue pair of each mode in one run.

use serde_json::json;

use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::survive::{require_fault, survives, TEARDOWN};
use super::Scenario;

/// Every opcode that is protected.
const ALL: &str = "--mode write,write_imm,send,read,mixed,fadd,cas,mixed_atomic --qps 8";
/// Those that come through a cut whatever was on its way: of an atomic the result may be lost.
const SURVIVORS: &str = "--mode write,write_imm,send,read,mixed --qps 5";
const SURVIVING: u64 = 5;

/// Requests that are collected in chains, unsignalled, inline and in several pieces; queues that two threads poll at once while one of them posts, and
/// queues on which a program sleeps.
const SHAPES: [(&str, &str, u64); 3] = [
    (
        "chains",
        "--api ext_full --messages 800 --depth 32 --signal-every 8 --inline 64 --chain 5 --sges 3 --size 0..3000",
        2000,
    ),
    ("two-pollers", "--api ext_full --messages 400 --depth 16 --inline 64 --two-pollers", 1500),
    ("asleep", "--api ext_full --messages 400 --depth 16 --inline 64 --poll epoll --split-cqs", 1500),
];
/// One completion a poll and one element a request: what soft-RoCE's own functions do right in every version.
const PLAIN: &str = "--api ext --messages 300 --depth 16 --inline 64 --chain 4 --size 0..3000";

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "the extended interfaces under the shim, every opcode, no fault: all is right";
    let mut scenarios = vec![Scenario::guests("shim-extended", about, without_fault)];
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        let about = format!("the extended interfaces under the shim, rail 0 down on the {side}: all is right");
        scenarios.push(Scenario::guests(format!("shim-extended-cut-{side}"), about, move |lab: &mut Lab, seed| {
            through_cut(lab, host, seed)
        }));
    }
    let about = "the extended interfaces without the shim: right without a fault, and dead of either cut";
    scenarios.push(Scenario::guests("plain-extended-cut", about, dies_without));
    scenarios
}

fn without_fault(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, options, _) in SHAPES.into_iter().chain([("one-by-one", PLAIN, 0)]) {
        lab.reset()?;
        let checker = Checker::shimmed(format!("{ALL} --seed {seed} {options}"));
        figures.note(name, json!(survives(lab, &checker, None)?));
    }
    Ok(figures)
}

fn through_cut(lab: &mut Lab, host: Host, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (index, (name, options, packets)) in (0..).zip(SHAPES) {
        lab.reset()?;
        let checker = Checker::gated(format!("{SURVIVORS} --seed {seed} {options}"));
        let moment = Moment::armed(SURVIVING, seed.wrapping_mul(1000) + index, 0, packets);
        figures.note(name, json!(survives(lab, &checker, Some((Fault::Cut(host, Rail::Zero), moment)))?));
    }
    Ok(figures)
}

/// The negative control, with few retries, as for the plain interfaces.
fn dies_without(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let story = Checker::plain(format!("{ALL} --seed {seed} {PLAIN}")).trial().run(lab)?;
    for host in Host::ALL {
        let report = report(&story, host)?;
        require(report.get("pass") == Some(&json!(true)), || format!("{PLAIN}: {report}"))?;
    }
    story.require_success()?;
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        lab.reset()?;
        let options = format!("{SURVIVORS} --seed {seed} {PLAIN} --retry-cnt 3 --deadline 10");
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
