//! NCCL's own network code, out of NVIDIA's wheels, driven in host memory (tests/nccl): several connections in both directions, several queue
//! pairs of each, groups, flushes, every byte checked.

use std::time::Duration;

use serde_json::{json, Value};

use super::checker::Checker;
use super::survive::{moved, require_fault, run, survives};
use super::Scenario;
use crate::boot::nccl::{self, Release, PACKAGE, RELEASES};
use crate::figures::Figures;
use crate::guest::{Ended, Program};
use crate::lab::Lab;
use crate::perftest::Shim;
use crate::place::{Host, Link, Rail};
use crate::runner::say;
use crate::seed::Seed;
use crate::trial::{Fault, Moment, Story, Trial};
use crate::trouble::{require, Result, Trouble};

const PORT: u16 = 18600;
/// Half of them send from either host.
const CONNECTIONS: u64 = 4;
const MESSAGES: u64 = 60;
/// `NCCL_IB_QPS_PER_CONNECTION`.
const QPS_PER_CONNECTION: u64 = 2;
/// Queue pairs of each end: each receiver has one more, connected to itself, to flush with.
const QPS: u64 = CONNECTIONS * QPS_PER_CONNECTION + CONNECTIONS / 2;
/// Packets on rail 0 until the cut, at most: about half of what such a run sends.
const PACKETS: u64 = 12_000;
/// Without the shim nothing ever tells a sender that its peer's rail is down: soft-RoCE takes NCCL's retries for infinite.
const STALL: Duration = Duration::from_secs(6);
/// The file without which the client sends nothing.
const GO_ON: &str = "/tmp/nccl-go-on";
/// NCCL flushes only where it finds the module that lets a NIC into a GPU's memory; a file is enough.
const PEER_MEMORY: &str = "[ -e /sys/kernel/mm/memory_peers ] || {
    /bin/busybox mount -t tmpfs tmpfs /sys/kernel/mm && /bin/busybox mkdir -p /sys/kernel/mm/memory_peers/nv_mem &&
    echo 1 > /sys/kernel/mm/memory_peers/nv_mem/version; }";
const NO_PEER_MEMORY: &str = "/bin/busybox umount /sys/kernel/mm";

/// The checking application with the same shapes of work requests, so that they are tried without the wheel too: name, options, and about half of
/// the packets that such a run sends.
const SHAPES: [(&str, &str, u64); 2] = [
    ("many-small", "--messages 300 --depth 16 --size 0..9000", 3000),
    ("few-large", "--messages 60 --depth 4 --size 0..60000 --mtu 4096 --psn 16776960", 1000),
];
/// Its queue pairs: half of them carry data each way.
const LANES: u64 = 4;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = RELEASES.into_iter().flat_map(of_release).collect();
    let about = "the checking application with NCCL's work requests, under the shim, no fault: all is right";
    let whole = move |lab: &mut Lab, seed| checker(lab, None, seed);
    scenarios.push(Scenario::guests("shim-checker-nccl", about, whole));
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        let about =
            format!("the checking application with NCCL's work requests, rail 0 down at one {side}: all is right");
        let run = move |lab: &mut Lab, seed| checker(lab, Some(host), seed);
        scenarios.push(Scenario::guests(format!("shim-checker-nccl-cut-{side}"), about, run));
    }
    let about = "the checking application with NCCL's work requests: without the shim it runs, and dies of either cut";
    scenarios.push(Scenario::guests("checker-plain-nccl-cut", about, checker_dies));
    scenarios
}

fn pattern(shape: &str, seed: u64) -> String {
    format!("--pattern nccl --qps {LANES} --direction both --seed {seed} {shape}")
}

fn checker(lab: &mut Lab, cut: Option<Host>, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, shape, packets) in SHAPES {
        lab.reset()?;
        let options = pattern(shape, seed);
        let checker = if cut.is_some() { Checker::gated(options) } else { Checker::shimmed(options) };
        // Receivers have a queue pair more, to flush with.
        let qps = LANES + LANES / 2;
        let moment = Moment::Armed { qps, packets: Seed::new(seed, name).within(0..packets) };
        let fault = cut.map(|host| (Fault::Cut(host, Rail::Zero), moment));
        figures.note(name, json!(survives(lab, &checker, fault)?));
    }
    Ok(figures)
}

fn checker_dies(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let options = format!("{} --retry-cnt 3 --deadline 10", pattern("--messages 300 --depth 16", seed));
    let whole = Checker::plain(&options).trial().run(lab)?;
    whole.require_success()?;
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        lab.reset()?;
        let moment = Moment::from_seed(seed, 100, 1000);
        let mut trial = Checker::plain(&options).trial().fault(Fault::Cut(host, Rail::Zero), moment);
        trial.stall_limit = STALL;
        let story = trial.run(lab)?;
        require_fault(&story)?;
        require(story.is_dead(), || "it survived without a shim: the scenario with one proves nothing".into())?;
        figures.note(side, json!(story.figures()));
    }
    Ok(figures)
}

fn of_release(release: Release) -> Vec<Scenario> {
    let name = format!("nccl-{}", release.version);
    let title = format!("NCCL {}'s network code", release.version);
    let plain = move |lab: &mut Lab, seed| plain(lab, release, seed);
    let whole = move |lab: &mut Lab, seed| shimmed(lab, release, None, seed);
    let mut scenarios = vec![
        Scenario::guests(format!("{name}-plain"), format!("{title} without the shim; a cut ends it"), plain),
        Scenario::guests(name.clone(), format!("{title} under the shim, no fault: every byte is right"), whole),
    ];
    for (end, host) in [("client", Host::A), ("server", Host::B)] {
        let about = format!("{title} under the shim, rail 0 down at the {end}: every byte is right");
        let run = move |lab: &mut Lab, seed| shimmed(lab, release, Some(host), seed);
        scenarios.push(Scenario::guests(format!("{name}-cut-{end}"), about, run));
    }
    scenarios
}

fn trial(release: Release, shim: Shim, seed: u64) -> Trial {
    let end = |host: Host, role: &str| {
        let program = format!("/shift/shift-nccl --library {} --device rxe0 {role}", release.in_guest());
        let program = Program::words(&program)
            .env("NCCL_IB_HCA", "=rxe0")
            .env("NCCL_SOCKET_IFNAME", "eth0")
            .env("NCCL_IB_GID_INDEX", "1")
            .env("NCCL_IB_QPS_PER_CONNECTION", QPS_PER_CONNECTION.to_string());
        shim.apply(host, program)
    };
    let address = Link::Management.address(Host::B);
    let server = end(Host::B, &format!("server --listen {address}:{PORT}"));
    let shape = format!("--connections {CONNECTIONS} --messages {MESSAGES} --seed {seed}");
    let client = end(Host::A, &format!("client --connect {address}:{PORT} --go-on-file {GO_ON} {shape}"));
    let moment = Moment::Armed { qps: QPS, packets: 0 };
    Trial { go_on: Some(GO_ON), moment, ..Trial::new(Host::B, PORT, server, client) }
}

/// The library is in the cache, and guests believe in peer memory.
fn prepare(lab: &Lab, release: Release) -> Result<()> {
    nccl::obtain(&lab.setup().cache, release, |line| say(&format!("      {line}")))?;
    Host::ALL.into_iter().try_for_each(|host| lab.guest(host).shell(PEER_MEMORY).map(drop))
}

fn tidy(lab: &Lab) -> Result<()> {
    Host::ALL.into_iter().try_for_each(|host| lab.guest(host).shell(NO_PEER_MEMORY).map(drop))
}

/// The JSON object that an end of it printed last.
fn report(ended: &Ended) -> Result<Value> {
    let line = ended.out.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|_| Trouble::judged(format!("no report: {}", ended.brief())))
}

fn described(release: Release) -> Figures {
    Figures::new().with("program", "NCCL's net_ib").with("package", format!("{PACKAGE} {}", release.version))
}

/// Both ends did all, and flushed.
fn judge(story: &Story, mut figures: Figures) -> Result<Figures> {
    let (client, server) = story.require_success()?;
    for (name, ended) in [("client", client), ("server", server)] {
        let report = report(ended)?;
        let whole = report.get("messages") == Some(&json!(CONNECTIONS * MESSAGES));
        require(report.get("pass") == Some(&json!(true)) && whole, || format!("{name}: {report}"))?;
        require(report.get("flushes").and_then(Value::as_u64) > Some(0), || {
            format!("{name} flushed nothing: {report}")
        })?;
        figures.note(name, report);
    }
    Ok(figures)
}

fn plain(lab: &mut Lab, release: Release, seed: u64) -> Result<Figures> {
    prepare(lab, release)?;
    let whole = without_gate(trial(release, Shim::Nowhere, seed)).fault(Fault::None, Moment::Before);
    let figures = judge(&whole.run(lab)?, described(release))?;
    lab.reset()?;
    let moment = Moment::Packets(Seed::new(seed, "nccl").within(0..PACKETS));
    let mut cut = whole.fault(Fault::Cut(Host::A, Rail::Zero), moment);
    cut.stall_limit = STALL;
    let story = cut.run(lab)?;
    require_fault(&story)?;
    require(story.is_dead(), || "it survived without a shim: the scenario with one proves nothing".into())?;
    tidy(lab)?;
    Ok(figures.with("cut", json!(story.figures())))
}

/// Nobody waits for protection.
fn without_gate(mut trial: Trial) -> Trial {
    trial.go_on = None;
    let gate = trial.client.argv.iter().position(|word| word == "--go-on-file");
    if let Some(at) = gate {
        trial.client.argv.drain(at..at + 2);
    }
    trial
}

fn shimmed(lab: &mut Lab, release: Release, cut: Option<Host>, seed: u64) -> Result<Figures> {
    prepare(lab, release)?;
    let gated = trial(release, Shim::Both, seed);
    let packets = Seed::new(seed, "nccl").within(0..PACKETS);
    let (story, evidence) = match cut {
        None => run(lab, &without_gate(gated).fault(Fault::None, Moment::Before))?,
        Some(host) => {
            let moment = Moment::Armed { qps: QPS, packets };
            run(lab, &gated.fault(Fault::Cut(host, Rail::Zero), moment))?
        }
    };
    let figures = judge(&story, described(release))?;
    if cut.is_some() {
        require_fault(&story)?;
        require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
    }
    tidy(lab)?;
    let result = if cut.is_some() { "comes through" } else { "the same" };
    Ok(moved(figures.with("result", result).with("packets", packets), &story, &evidence))
}
