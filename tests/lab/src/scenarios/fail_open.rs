//! Where the shim cannot protect, the program sees what it would have seen without it, no later, and one clear line says why.

use std::time::Duration;

use serde_json::json;

use crate::figures::Figures;
use crate::guest::{Ended, Program};
use crate::lab::Lab;
use crate::perftest::{Perftest, Shim, Tool};
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment, Story};
use crate::trouble::{require, Result};

use super::survive::require_fault;
use super::Scenario;

/// How much later than without the shim the error may come: the runs differ by as much among themselves.
const SLACK: Duration = Duration::from_millis(1500);
/// An error comes at once on the side whose port goes down: who has not ended after this hangs in tearing down.
const STALL: Duration = Duration::from_secs(6);
/// RoCE packets on rail 0 before it dies.
const PACKETS: u64 = 4000;

/// What is wrong, and what the one line has to name.
struct Lack {
    name: &'static str,
    about: &'static str,
    /// Where the shim is loaded.
    shim: Shim,
    /// Variables of both sides.
    env: &'static [(&'static str, &'static str)],
    /// Of tests/preload.
    device_fault: Option<&'static str>,
    /// The line names one of these.
    names: &'static [&'static str],
    /// As an ordinary user with this limit on locked memory.
    memlock_kib: Option<u32>,
}

const PLAIN: Lack =
    Lack { name: "", about: "", shim: Shim::Both, env: &[], device_fault: None, names: &[], memlock_kib: None };

const LACKS: [Lack; 6] = [
    Lack {
        name: "no-peer-shim",
        about: "the shim on one side only",
        shim: Shim::Only(Host::A),
        names: &["no shim answers"],
        ..PLAIN
    },
    Lack {
        name: "no-such-standby",
        about: "a standby that does not exist",
        env: &[("SHIFT_STANDBY", "rxe0=rxe7")],
        names: &["SHIFT_STANDBY"],
        ..PLAIN
    },
    Lack {
        name: "standby-without-rc",
        about: "a standby that has no RC queue pairs",
        device_fault: Some("no-rc=rxe1"),
        names: &["rxe1 refused a queue pair"],
        ..PLAIN
    },
    Lack {
        name: "memlock",
        about: "memlock too small for the second registration",
        names: &["ulimit -l"],
        memlock_kib: Some(200),
        ..PLAIN
    },
    Lack {
        name: "registration-refused",
        about: "a standby that refuses registrations",
        device_fault: Some("no-mr=rxe1"),
        names: &["rxe1 refused a registration"],
        ..PLAIN
    },
    Lack { name: "disabled", about: "SHIFT_DISABLE=1: silent and inert", env: &[("SHIFT_DISABLE", "1")], ..PLAIN },
];

/// A value that no variable takes.
const BAD: &str = "!bad!";
/// A key file with the wrong permissions.
const OPEN_KEY: &str = "/tmp/shift-open-key";
/// Variables that take anything.
const ANYTHING: [&str; 1] = ["SHIFT_EVENT_FILE"];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = LACKS
        .iter()
        .map(|lack| {
            let about = format!("fail open: {}", lack.about);
            Scenario::guests(format!("open-{}", lack.name), about, move |lab: &mut Lab, _| run_lack(lab, lack))
        })
        .collect();
    scenarios.push(Scenario::guests("open-no-second-device", "fail open: a host with one device", one_device));
    scenarios.push(Scenario::guests("open-bad-values", "fail open: a bad value in each variable", bad_values));
    scenarios
}

/// The run as it is without the shim, and as it is with one that cannot protect: the same end, no later.
fn run_lack(lab: &mut Lab, lack: &Lack) -> Result<Figures> {
    let without = cut_run(lab, &dress(lack, Shim::Nowhere))?;
    let with = cut_run(lab, &dress(lack, lack.shim))?;
    compare(&without, &with)?;
    let lines = shim_lines(&with);
    if lack.names.is_empty() {
        require(lines.is_empty(), || format!("it is not silent: {lines:?}"))?;
    } else {
        let named = lines.iter().filter(|line| lack.names.iter().any(|name| line.contains(name))).count();
        require(named >= 1, || format!("no line names {:?}: {lines:?}", lack.names))?;
        require(named <= 2 && lines.len() == named, || format!("it says more than one line on each side: {lines:?}"))?;
    }
    Ok(Figures::new()
        .with("without", json!(without.figures()))
        .with("with", json!(with.figures()))
        .with("lines", lines))
}

/// ib_write_bw in these circumstances; the cut is on the sender, where an error comes at once.
fn dress(lack: &Lack, shim: Shim) -> Perftest {
    let mut test = Perftest::plain(Tool::Write).with_shim(shim);
    test.env = lack.env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    test.device_fault = lack.device_fault.filter(|_| shim != Shim::Nowhere).map(str::to_owned);
    test.memlock_kib = lack.memlock_kib;
    test
}

fn cut_run(lab: &mut Lab, test: &Perftest) -> Result<Story> {
    lab.reset()?;
    let mut trial = test.trial().fault(Fault::Cut(Host::A, Rail::Zero), Moment::Packets(PACKETS));
    trial.stall_limit = STALL;
    let story = trial.run(lab)?;
    require_fault(&story)?;
    Ok(story)
}

fn compare(without: &Story, with: &Story) -> Result<()> {
    require(with.is_dead(), || "it survived".into())?;
    // A side that hangs in tearing down (soft-RoCE, a card that is down) has no end to compare.
    if let (Some(without), Some(with)) = (&without.client, &with.client) {
        let end = |ended: &Ended| (ended.code, ended.signal);
        require(end(without) == end(with), || format!("{} became {}", without.brief(), with.brief()))?;
    }
    let took = |story: &Story| {
        let fault = story.fault_ns.unwrap_or(0);
        story.client.as_ref().map(|ended| Duration::from_nanos(ended.at_ns.saturating_sub(fault)))
    };
    if let (Some(without), Some(with)) = (took(without), took(with)) {
        require(with <= without + SLACK, || format!("the error came after {with:?} instead of {without:?}"))?;
    }
    Ok(())
}

/// What the shims said as warnings and errors, on both hosts.
fn shim_lines(story: &Story) -> Vec<String> {
    story
        .said
        .iter()
        .filter(|line| line.contains("shift-verbs[") && (line.contains(" warn: ") || line.contains(" error: ")))
        .cloned()
        .collect()
}

fn one_device(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    for host in Host::ALL {
        lab.guest(host).shell("rdma link delete rxe1")?;
    }
    let test = Perftest::plain(Tool::Write).with_shim(Shim::Both);
    let story = test.trial().fault(Fault::Cut(Host::A, Rail::Zero), Moment::Packets(PACKETS)).run(lab)?;
    require_fault(&story)?;
    require(story.is_dead(), || "it survived on one device".into())?;
    let lines = shim_lines(&story);
    require(lines.iter().any(|line| line.contains("no second RDMA device")), || format!("no line says so: {lines:?}"))?;
    Ok(story.figures().with("lines", lines))
}

/// Each variable in turn with a value that it does not take: the program runs, and one line names the variable.
fn bad_values(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    lab.a().write(OPEN_KEY, "a key that everybody can read", 0o644)?;
    let values = shift_control::variables::VARIABLES.iter().map(|each| (each.name, BAD));
    let values = values.filter(|(name, _)| !ANYTHING.contains(name));
    for (name, value) in values.chain(["/tmp", OPEN_KEY].map(|path| ("SHIFT_JOB_KEY_FILE", path))) {
        let program = Program::words("/usr/bin/ibv_devinfo -d rxe0").with_shim().env(name, value);
        let ended = lab.a().run(&program, Duration::from_secs(20))?;
        require(ended.succeeded(), || format!("{name}: {}", ended.brief()))?;
        let lines: Vec<&str> = ended.err.lines().filter(|line| line.contains("shift-verbs[")).collect();
        require(lines.len() == 1 && lines.iter().all(|line| line.contains(&format!("{name}={value}: "))), || {
            format!("{name}={value}: {lines:?}")
        })?;
        figures.note(&format!("{name}={value}"), lines.join(""));
    }
    Ok(figures)
}
