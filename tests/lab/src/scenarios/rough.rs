//! Programs that use their queues roughly: chains that the provider refuses in their midst, and two threads that poll one completion queue.

use serde_json::json;

use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::{report, Checker};
use super::survive::{require_fault, run};
use super::Scenario;

/// Every fifth chain is refused, on both rails: replays post one request at a time and are let through.
const REFUSES: &str = "post-refused=rxe0:5,post-refused=rxe1:5";
const CHAINS: &str =
    "--mode mixed --messages 3000 --depth 32 --chain 6 --signal-every 4 --inline 64 --retry-refused --direction both";
const POLLERS: &str = "--mode mixed --messages 2500 --depth 32 --qps 2 --two-pollers --direction both";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-refused-chains",
            "the provider refuses chains in their midst, without a fault and with a cut of either side: all is right",
            |lab: &mut Lab, seed| three_times(lab, CHAINS, 1, Some(REFUSES), seed),
        ),
        Scenario::guests(
            "shim-two-pollers",
            "two threads poll one CQ, without a fault and with a cut of either side: all is right",
            |lab: &mut Lab, seed| three_times(lab, POLLERS, 2, None, seed),
        ),
    ]
}

fn three_times(lab: &mut Lab, options: &str, qps: u64, fault: Option<&str>, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, host) in [("no cut", None), ("sender", Some(Host::A)), ("receiver", Some(Host::B))] {
        lab.reset()?;
        let trial = Checker::shimmed(format!("{options} --seed {seed}")).trial();
        let mut trial = match host {
            Some(host) => trial.fault(Fault::Cut(host, Rail::Zero), Moment::armed(qps, seed, 100, 1500)),
            None => trial,
        };
        if let Some(fault) = fault {
            (trial.client, trial.server) = (over(trial.client, fault), over(trial.server, fault));
        }
        let (story, evidence) = run(lab, &trial)?;
        for each in Host::ALL {
            let report = report(&story, each)?;
            require(report.get("pass") == Some(&json!(true)), || format!("{name}: {report}"))?;
        }
        story.require_success()?;
        let refused = story.said.iter().filter(|line| line.contains("a chain is refused")).count();
        require(fault.is_none() || refused > 10, || format!("{name}: only {refused} chains were refused"))?;
        if host.is_some() {
            require_fault(&story)?;
            require(evidence.migrations() > 0, || format!("{name}: nothing was migrated"))?;
        }
        figures.note(name, json!({ "refused": refused, "migrations": evidence.migrations() }));
    }
    Ok(figures)
}

fn over(program: Program, fault: &str) -> Program {
    program.with_shim_over(fault).env("PRELOAD_SAY", "1")
}
