//! Programs under the shim: nothing is lost, doubled or damaged, with and without a fault. The first half of each pair of scenarios is the run without a
//! fault (the shim may not be felt), the second the death of a rail on either side.

use serde_json::{json, Value};

use crate::figures::Figures;
use crate::lab::Lab;
use crate::perftest::{Perftest, Shim, Tool};
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment, Story};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::Scenario;

/// Modes of the checking application that are protected.
const MODES: [&str; 5] = ["write", "write_imm", "send", "read", "mixed"];

/// Shapes of a run and roughly how many packets it takes on rail 0, so that a moment within it can be chosen.
const SHAPES: [(&str, &str, u64); 4] = [
    ("one-outstanding", "--messages 600 --depth 1", 1200),
    ("many-outstanding", "--messages 3000 --depth 64 --psn 16776960", 8000),
    (
        "unsignalled-inline-chains",
        "--messages 3000 --depth 32 --signal-every 8 --inline 64 --chain 5 --sges 3 --size 0..3000",
        5000,
    ),
    ("both-directions", "--messages 1500 --depth 16 --direction both", 6000),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![Scenario::guests(
        "shim-perftest",
        "perftest under the shim without a fault: exit 0, all iterations",
        |lab: &mut Lab, _| perftest_all(lab),
    )];
    for tool in Tool::MOVED {
        for (side, host) in [("sender", tool.sender()), ("receiver", tool.sender().peer())] {
            let name = format!("shim-perftest-cut-{}-{side}", tool.name());
            let about = format!("{} under the shim, rail 0 down on the {side}: all iterations", tool.program());
            scenarios
                .push(Scenario::guests(name, about, move |lab: &mut Lab, seed| perftest_cut(lab, tool, host, seed)));
        }
    }
    for mode in MODES {
        let about = format!("the checking application in mode {mode} under the shim, no fault: all is right");
        let run = move |lab: &mut Lab, seed| checker(lab, mode, None, seed);
        scenarios.push(Scenario::guests(format!("shim-checker-{mode}"), about, run));
        for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
            let about = format!("the checking application in mode {mode}, rail 0 down on the {side}: all is right");
            let run = move |lab: &mut Lab, seed| checker(lab, mode, Some(host), seed);
            scenarios.push(Scenario::guests(format!("shim-checker-{mode}-cut-{side}"), about, run));
        }
    }
    scenarios
}

fn perftest_all(lab: &mut Lab) -> Result<Figures> {
    let mut figures = Figures::new();
    for tool in Tool::MOVED {
        let test = Perftest::plain(tool).with_shim(Shim::Both);
        let story = test.trial().run(lab)?;
        figures.note(tool.program(), json!(test.require_complete(&story)?));
    }
    Ok(figures)
}

fn perftest_cut(lab: &mut Lab, tool: Tool, host: Host, seed: u64) -> Result<Figures> {
    let test = Perftest::plain(tool).with_shim(Shim::Both);
    let fault = Fault::Cut(host, Rail::Zero);
    let story = test.trial().fault(fault, Moment::from_seed(seed, 1000, 8000)).run(lab)?;
    require_fault(&story)?;
    let figures = test.require_complete(&story)?;
    Ok(moved(figures, &story))
}

/// One run of each shape; with a host, rail 0 goes down there at a moment of the seed.
fn checker(lab: &mut Lab, mode: &str, cut: Option<Host>, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, options, packets) in SHAPES {
        lab.reset()?;
        let mut checker = Checker::plain(format!("--mode {mode} --seed {seed} {options}"));
        checker.shim = Shim::Both;
        let mut trial = checker.trial();
        if let Some(host) = cut {
            trial = trial.fault(Fault::Cut(host, Rail::Zero), Moment::from_seed(seed, 50, packets / 2));
        }
        let story = trial.run(lab)?;
        let (client, server) = (report(&story, Host::A)?, report(&story, Host::B)?);
        for report in [&client, &server] {
            require(report["pass"] == true, || format!("{options}: {report}"))?;
        }
        story.require_success()?;
        if cut.is_some() {
            require_fault(&story)?;
        }
        figures.note(name, json!(moved(seen(&client, &server), &story)));
    }
    Ok(figures)
}

fn seen(client: &Value, server: &Value) -> Figures {
    let mut figures = Figures::new();
    figures.note("sent", client["sent"].clone());
    figures.note("received", server["received"].clone());
    figures.note("longest_gap_ms", client["longest_gap_ms"].clone());
    figures
}

fn require_fault(story: &Story) -> Result<()> {
    require(story.fault_ns.is_some(), || "the run was over before the rail could be cut".into())
}

/// Adds how long it took until the standby carried something.
fn moved(mut figures: Figures, story: &Story) -> Figures {
    if let (Some(fault), Some(standby)) = (story.fault_ns, story.standby_ns) {
        figures.note("fault_to_standby_ms", crate::clock::ms(standby.saturating_sub(fault)));
    }
    figures
}
