//! Packets that are lost without anybody being told: which, is chosen by opcode on the wire, from a moment of the seed on.
//!
//! One run has a queue pair of every mode, all under the same fault. Whatever is lost, every message arrives once, in order and undamaged.

use serde_json::json;

use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};
use crate::wire::log::{Fate, Record};
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule};

use super::checker::Checker;
use super::survive::{judge_survival, run};
use super::Scenario;

/// A queue pair for each.
const MODES: [&str; 5] = ["write", "write_imm", "send", "read", "mixed"];
/// Long enough for some messages of several packets on each queue pair before and after the fault.
const MESSAGES: u64 = 120;
/// Packets of rail 0 that a fault lets pass first, at most: about a third of what such a run sends.
const SPARED: u64 = 400;
/// The time-out that soft-RoCE needs so as not to retransmit on a healthy path (0.27 s), four times: an error after about a second.
const IMPATIENT: &str = "--timeout 16 --retry-cnt 3";

/// A loss: its name, what the run needs beside, and the rule by how many packets it spares.
type Loss = (&'static str, &'static str, fn(u64) -> Rule);

const LOSSES: [Loss; 8] = [
    ("responses", IMPATIENT, |spared| lost(&opcode::RESPONSES).from(Host::B).after(spared / 2)),
    ("requests", IMPATIENT, |spared| lost(&opcode::REQUESTS).from(Host::A).after(spared)),
    ("read-responses", IMPATIENT, |spared| lost(&opcode::READ_RESPONSES).from(Host::B).after(spared / 8)),
    ("first-and-behind", IMPATIENT, |spared| lost(&opcode::FIRSTS).after(spared / 16).and_behind()),
    ("middle-and-behind", IMPATIENT, |spared| lost(&opcode::MIDDLES).after(spared / 16).and_behind()),
    ("last-and-behind", IMPATIENT, |spared| lost(&opcode::LASTS).after(spared / 16).and_behind()),
    ("responses-from-rnr", "--scarce-receives --timeout 16 --retry-cnt 3", |spared| {
        lost(&opcode::RESPONSES).from(Host::B).woken_by(not_ready(spared))
    }),
    ("requests-from-rnr", "--scarce-receives --timeout 16 --retry-cnt 3", |spared| {
        lost(&opcode::REQUESTS).from(Host::A).woken_by(not_ready(spared))
    }),
];

fn lost(opcodes: &[u8]) -> Rule {
    Rule::on(Link::Rail0, Action::Drop).opcodes(opcodes)
}

fn not_ready(spared: u64) -> Rule {
    Rule::on(Link::Rail0, Action::Pass).from(Host::B).receiver_not_ready().after(spared / 64)
}

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::guests(
        "shim-loss",
        "a queue pair of each mode; responses, requests, ends or middles of messages lost: all is right",
        losses,
    )]
}

fn losses(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, options, rule) in LOSSES {
        lab.reset()?;
        let (modes, qps) = (MODES.join(","), MODES.len());
        let options = format!("--mode {modes} --qps {qps} --seed {seed} --messages {MESSAGES} {options}");
        let checker = Checker::gated(options);
        let rule = rule(Seed::new(seed, name).within(0..SPARED));
        let trial = checker.trial().fault(Fault::Rule(rule), Moment::Idle { qps: qps as u64 });
        let (story, evidence) = run(lab, &trial)?;
        let mut told = judge_survival(&checker, &story, &evidence)?;
        let dropped = story.records.iter().filter(|record| was_dropped(record)).count();
        require(dropped > 0, || format!("{name}: nothing was lost: the run proves nothing"))?;
        told.note("dropped", dropped);
        figures.note(name, json!(told));
    }
    Ok(figures)
}

fn was_dropped(record: &Record) -> bool {
    record.link == Rail::Zero.link() && record.fate == Fate::Dropped
}
