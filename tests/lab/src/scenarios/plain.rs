//! Programs without the shim: they run when nothing is done to them, and a dead rail ends them. The second half is the negative control
//! of every scenario that shows survival.

use crate::figures::Figures;
use crate::lab::Lab;
use crate::perftest::{Perftest, Tool};
use crate::place::{Host, Rail};
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
        for (side, host) in [
            ("sender", tool.sender()),
            ("receiver", tool.sender().peer()),
        ] {
            let name = format!("perftest-plain-cut-{}-{side}", tool.name());
            let about = format!(
                "{} without shim, rail 0 down on the {side}: it dies or stands still",
                tool.program()
            );
            scenarios.push(Scenario::guests(name, about, move |lab: &mut Lab, _| {
                run_cut(lab, tool, host)
            }));
        }
    }
    scenarios
}

fn run_all_tools(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for tool in [Tool::Write, Tool::Send, Tool::Read, Tool::Atomic] {
        let test = Perftest::plain(tool);
        let story = test.start(lab)?.finish(lab, None)?;
        test.require_complete(&story)?;
        figures.note(tool.program(), serde_json::json!(story.figures()));
    }
    Ok(figures)
}

fn run_cut(lab: &mut Lab, tool: Tool, host: Host) -> Result<Figures> {
    let both = Perftest::plain(tool).start(lab)?;
    let fault = both.fault_after(lab, PACKETS_BEFORE_CUT, |lab| lab.cut(host, Rail::Zero))?;
    require(fault.is_some(), || {
        "the run was over before the rail could be cut".into()
    })?;
    let story = both.finish(lab, fault)?;
    require(story.is_dead(), || {
        "it survived without a shim: this scenario proves nothing here".into()
    })?;
    Ok(story.figures())
}
