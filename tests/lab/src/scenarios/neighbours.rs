//! Other preloads before and behind the shim, and a tracer around the program: it comes through a cut as without them.

use serde_json::json;

use crate::figures::Figures;
use crate::guest::{Program, SHIM};
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::Result;

use super::checker::Checker;
use super::survive::{judge_survival, run};
use super::Scenario;

/// A queue pair of each protected mode, and how many packets the run takes at least on rail 0.
const QPS: u64 = 5;
const OPTIONS: &str = "--mode write,write_imm,send,read,mixed --qps 5 --messages 300 --depth 64";
const PACKETS: u64 = 1000;

/// What is preloaded before and behind the shim at both ends, and what the sender is started by. Debian's own, each.
const NEIGHBOURS: [(&str, &str, &str, &str); 4] = [
    ("jemalloc before", "libjemalloc.so.2", "", ""),
    ("tcmalloc behind", "", "libtcmalloc_minimal.so.4", ""),
    ("libfaketime before", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "", ""),
    ("strace", "", "", "/usr/bin/strace -f -o /dev/null"),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "the checking application beside jemalloc, tcmalloc and libfaketime, and under strace; rail 0 down at the sender: all is right";
    vec![Scenario::guests("shim-neighbours", about, beside_all)]
}

fn beside_all(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (index, (name, before, behind, by)) in (0..).zip(NEIGHBOURS) {
        lab.reset()?;
        let checker = Checker::gated(format!("{OPTIONS} --seed {seed}"));
        let moment = Moment::armed(QPS, seed.wrapping_mul(1000) + index, 0, PACKETS);
        let mut trial = checker.trial().fault(Fault::Cut(Host::A, Rail::Zero), moment);
        trial.server = beside(trial.server, before, behind);
        trial.client = beside(trial.client, before, behind);
        trial.client.argv.splice(0..0, by.split_whitespace().map(str::to_owned));
        let (story, evidence) = run(lab, &trial)?;
        figures.note(name, json!(judge_survival(&checker, &story, &evidence)?));
    }
    Ok(figures)
}

/// With other preloads around the shim, and a clock that is two days ahead for whoever listens to FAKETIME.
fn beside(mut program: Program, before: &str, behind: &str) -> Program {
    for (_, value) in program.env.iter_mut().filter(|(name, _)| name == "LD_PRELOAD") {
        *value = format!("{before} {SHIM} {behind}").trim().to_owned();
    }
    program.env("FAKETIME", "+2d")
}
