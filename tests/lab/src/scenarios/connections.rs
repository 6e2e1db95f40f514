//! Programs that connect by librdmacm: their disconnect goes by the rail on which they met, whatever became of it.

use std::time::Duration;

use serde_json::json;

use crate::figures::Figures;
use crate::guest::{Ended, Program};
use crate::lab::{Lab, Listens};
use crate::perftest::Shim;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment, Story, Trial};
use crate::trouble::{require, Result};

use super::survive::{moved, require_fault, run};
use super::Scenario;

/// Name, server and client. Each runs for about ten seconds in the lab.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("rping", "/usr/bin/rping -s -a 10.77.1.2 -C 400 -S 1000 -V", "/usr/bin/rping -c -a 10.77.1.2 -C 400 -S 1000 -V"),
    ("rstream", "/usr/bin/rstream -b 10.77.1.2 -S 65536 -C 700", "/usr/bin/rstream -s 10.77.1.2 -S 65536 -C 700"),
];
/// A rail that comes back is gone for so long: long enough to be left.
const GONE: Duration = Duration::from_millis(1500);
/// No end may take longer than this beyond a run without a fault.
const LATER: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    let of = |(name, server, client): (&'static str, &'static str, &'static str)| {
        [("back", true), ("dead", false)].map(|(word, back)| {
            let what = if back { "back before the end" } else { "dead to the end" };
            let about = format!("{name} under the shim, rail 0 gone and {what}: both ends go as without a fault");
            let run = move |lab: &mut Lab, seed| comes_to_its_end(lab, server, client, back, seed);
            Scenario::guests(format!("shim-cm-{name}-{word}"), about, run)
        })
    };
    PROGRAMS.into_iter().flat_map(of).collect()
}

fn comes_to_its_end(lab: &mut Lab, server: &str, client: &str, back: bool, seed: u64) -> Result<Figures> {
    let trial = || {
        let apply = |host, words: &str| Shim::Both.apply(host, Program::words(words));
        Trial::new(Host::B, Listens::Cm, apply(Host::B, server), apply(Host::A, client))
    };
    let started_ns = crate::clock::monotonic_ns();
    let (story, _) = run(lab, &trial())?;
    let unfaulted = lasted(&story, started_ns)?;
    lab.reset()?;
    let fault = if back {
        Fault::Flap { host: Some(Host::A), rail: Rail::Zero, gone: GONE }
    } else {
        Fault::Silence(Rail::Zero, None)
    };
    let started_ns = crate::clock::monotonic_ns();
    let (story, evidence) = run(lab, &trial().fault(fault, Moment::armed(1, seed, 50, 500)))?;
    require_fault(&story)?;
    require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
    let with_fault = lasted(&story, started_ns)?;
    let mut figures = Figures::new();
    for ((name, without), with) in ["client", "server"].into_iter().zip(unfaulted).zip(with_fault) {
        figures.note(name, json!({ "unfaulted_ms": without.as_millis(), "with_fault_ms": with.as_millis() }));
        require(with <= without + LATER, || format!("the {name} took {with:?}, and {without:?} without a fault"))?;
    }
    Ok(moved(figures, &story, &evidence))
}

/// How long client and server ran, both to their good end.
fn lasted(story: &Story, started_ns: u64) -> Result<[Duration; 2]> {
    let (client, server) = story.require_success()?;
    Ok([client, server].map(|ended: &Ended| Duration::from_nanos(ended.at_ns.saturating_sub(started_ns))))
}
