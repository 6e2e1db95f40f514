//! Programs without the shim: they run when nothing is done to them, and a dead rail ends them. The second half is the negative control
//! of every scenario that shows survival.

use serde_json::json;

use crate::figures::Figures;
use crate::lab::Lab;
use crate::perftest::{Perftest, Tool};
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::Scenario;

/// RoCE packets on rail 0 before it dies: some are under way at every size of message.
const PACKETS_BEFORE_CUT: u64 = 4000;

pub(super) fn scenarios() -> Vec<Scenario> {
    let undisturbed = Scenario::guests(
        "perftest-plain",
        "perftest without shim and without fault: exit 0, all iterations",
        run_all_tools,
    );
    let mut scenarios = vec![undisturbed];
    for tool in Tool::MOVED {
        for (side, host) in [("sender", tool.sender()), ("receiver", tool.sender().peer())] {
            let name = format!("perftest-plain-cut-{}-{side}", tool.name());
            let about = format!("{} without shim, rail 0 down on the {side}: it dies or stands still", tool.program());
            scenarios.push(Scenario::guests(name, about, move |lab: &mut Lab, _| run_cut(lab, tool, host)));
        }
    }
    scenarios
}

fn run_all_tools(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for tool in [Tool::Write, Tool::Send, Tool::Read, Tool::Atomic] {
        let test = Perftest::plain(tool);
        let story = test.trial().run(lab)?;
        figures.note(tool.program(), json!(test.require_complete(&story)?));
    }
    Ok(figures)
}

fn run_cut(lab: &mut Lab, tool: Tool, host: Host) -> Result<Figures> {
    let trial = Perftest::plain(tool).trial();
    let story = trial.fault(Fault::Cut(host, Rail::Zero), Moment::Packets(PACKETS_BEFORE_CUT)).run(lab)?;
    require(story.fault_ns.is_some(), || "the run was over before the rail could be cut".into())?;
    require(story.is_dead(), || "it survived without a shim: this scenario proves nothing here".into())?;
    Ok(story.figures())
}
