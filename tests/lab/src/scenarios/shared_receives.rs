//! Queue pairs that receive through one shared receive queue (SRQ): they are one group, protected and moved together, and no receive is lost, taken twice,
//! or written to after it was given back.

use std::time::Duration;

use serde_json::json;

use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::{all_protected, Fault, Moment};
use crate::trouble::{require, Result};
use crate::wire::rule::{Action, Rule};

use super::checker::{Checker, GO_ON, PORT};
use super::survive::{require_fault, survives};
use super::Scenario;

/// Modes of the queue pairs, in turn: most take receives, each in its own rhythm.
const MODES: &str = "send,mixed,write_imm,send,mixed,read";
/// Each step of the run there and back.
const STEP: Duration = Duration::from_secs(40);
/// So many queue pairs share one SRQ at each end that receives.
const QPS: u64 = 8;
/// Shapes of a run, messages of each queue pair, and how many packets they take at least on rail 0.
const SHAPES: [(&str, &str, u64); 4] = [
    ("many-outstanding", "--messages 300 --depth 16", 2000),
    ("both-directions", "--api ext_full --messages 150 --depth 8 --direction both --signal-every 4 --chain 3", 2000),
    ("receives-are-scarce", "--messages 150 --depth 8 --scarce-receives --size 0..12000", 1500),
    ("two-queues-asleep", "--api ext --messages 150 --depth 8 --poll epoll --split-cqs", 1200),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "eight queue pairs on one SRQ under the shim, no fault: all is right";
    let mut scenarios = vec![Scenario::guests("shim-srq", about, |lab: &mut Lab, seed| run(lab, None, seed))];
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        let about = format!("eight queue pairs on one SRQ, rail 0 down on the {side}: all move, and all is right");
        let cut = move |lab: &mut Lab, seed| run(lab, Some(host), seed);
        scenarios.push(Scenario::guests(format!("shim-srq-cut-{side}"), about, cut));
    }
    let about = "eight queue pairs on one SRQ, rail 0 silent, then rail 1, back to rail 0 with what was left in its SRQ taken out";
    scenarios.push(Scenario::guests("shim-srq-second-fault", about, there_and_back));
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
        let checker = if cut.is_some() { Checker::gated(options) } else { Checker::shimmed(options) };
        let dice = seed.wrapping_mul(1000) + 100 * index;
        let fault = cut.map(|host| (Fault::Cut(host, Rail::Zero), Moment::armed(QPS, dice, 0, packets)));
        figures.note(name, json!(survives(lab, &checker, fault)?));
    }
    Ok(figures)
}

/// Each rail in turn carries nothing any more. The way back leads through an SRQ that still has what was left in it, for buffers that have been used again.
fn there_and_back(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let shape = "--messages 100000000 --duration 12 --depth 8 --size 64..4000 --rate 1000000 --direction both";
    let gate = format!("--timeout 16 --retry-cnt 3 --pause-before-message 1 --idle-until-file {GO_ON}");
    let checker = Checker::plain(format!("{} {gate}", options(seed, shape)));
    let trial = checker.trial();
    // What goes back by plan is not what this is about.
    let stays = |program: crate::guest::Program| program.with_shim().env("SHIFT_FAILBACK", "0");
    let (server, client) = (stays(trial.server), stays(trial.client));
    let (server, client) = lab.start_pair(Host::B, PORT, &server, &client)?;
    let protected = |times: u64| {
        until("all queue pairs to be protected", STEP, || {
            let ended = client.ended().or(server.ended());
            require(ended.is_none(), || format!("it ended before: {}", ended.map_or_else(String::new, |e| e.brief())))?;
            Ok([&client, &server].iter().all(|side| all_protected(side) >= times * QPS).then_some(()))
        })
    };
    protected(1)?;
    lab.a().write(GO_ON, "", 0o644)?;
    let mut dice = Seed::new(seed, "SRQ there and back");
    std::thread::sleep(Duration::from_millis(dice.within(200..1200)));
    let (first, _) = lab.wire().add(Rule::on(Link::Rail0, Action::Drop))?;
    until("all to have moved", STEP, || Ok((confirmed(lab, 1)? >= 2 * QPS).then_some(())))?;
    lab.wire().remove(first)?;
    protected(2)?;
    lab.wire().add(Rule::on(Link::Rail1, Action::Drop))?;
    let ends = [client.wait(STEP)?, server.wait(STEP)?];
    for ended in &ends {
        require(ended.succeeded(), || format!("{}: {}", ended.brief(), ended.out))?;
    }
    let back = confirmed(lab, 2)?;
    require(back >= 2 * QPS, || format!("{back} ends came back to rail 0"))?;
    let mut figures = Figures::new();
    Evidence::collect(lab)?.note(&mut figures);
    Ok(figures)
}

/// Ends that confirmed that migration.
fn confirmed(lab: &Lab, epoch: u64) -> Result<u64> {
    let evidence = Evidence::collect(lab)?;
    let records = Host::ALL.into_iter().flat_map(|host| evidence.of(host));
    Ok(records.filter(|record| record["outcome"] == "confirmed" && record["epoch"] == epoch).count() as u64)
}

fn dies_without(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = options(seed, "--messages 300 --depth 16 --retry-cnt 3 --deadline 10");
    let mut trial = Checker::plain(options).trial();
    trial = trial.fault(Fault::Cut(Host::A, Rail::Zero), Moment::from_seed(seed, 100, 1500));
    trial.stall_limit = Duration::from_secs(5);
    let story = trial.run(lab)?;
    require_fault(&story)?;
    let died = [&story.client, &story.server].into_iter().flatten().any(|ended| !ended.succeeded());
    require(died, || "it survived without a shim: the scenario with one proves nothing".into())?;
    Ok(story.figures())
}
