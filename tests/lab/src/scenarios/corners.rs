//! The corners of a rail's death: who is idle, who only waits, many queue pairs on one completion queue, both rails gone for a while, and an end
//! that is no fault at all.

use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

use crate::figures::Figures;
use crate::lab::Lab;
use crate::perftest::{Perftest, Shim, Tool};
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::{report, Checker, GO_ON};
use super::survive::{moved, require_fault, run, survives};
use super::Scenario;

/// How long both rails are gone.
const DARK: Duration = Duration::from_secs(2);

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::guests("shim-idle", "a queue pair that is idle at the fault, and used after it", idle),
        Scenario::guests("shim-sixteen-qps", "16 queue pairs on one CQ of the application's exact size", sixteen),
        Scenario::guests("shim-receiver-waits", "a receiver that sits in a TCP read at the fault", waits),
        Scenario::guests(
            "shim-normal-end",
            "one side ends in an orderly way while the other polls: nothing happens",
            ends,
        ),
    ];
    let about =
        "a rail silent for good with atomics outstanding: moved once the hold deadline has passed, and not before";
    scenarios.push(Scenario::guests("shim-hold-passes", about, hold_passes));
    let about = "the receive count alone, on real packets: SHIFT_PROOF=count at a cut of either side";
    scenarios.push(Scenario::guests("shim-count-proof", about, by_count));
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        for back in [Rail::Zero, Rail::One] {
            let rail = if back == Rail::Zero { 0 } else { 1 };
            let about = format!("both rails of the {side} gone for 2 s, then rail {rail} back: nothing surfaces");
            let run = move |lab: &mut Lab, seed| dark(lab, host, back, seed);
            scenarios.push(Scenario::guests(format!("shim-dark-{side}-rail{rail}-back"), about, run));
        }
    }
    scenarios
}

fn cuts() -> [(&'static str, Host); 2] {
    [("sender", Host::A), ("receiver", Host::B)]
}

/// The sender stops in mid-run; the rail dies; the sender goes on.
fn idle(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (side, host) in cuts() {
        lab.reset()?;
        crate::evidence::Evidence::clear(lab)?;
        lab.a().shell(&format!("rm -f {GO_ON}"))?;
        let options = format!("--mode mixed --seed {seed} --messages 400 --pause-before-message 200");
        let trial = Checker::shimmed(format!("{options} --idle-until-file {GO_ON}")).trial();
        let (server, client) = lab.start_pair(trial.server_host, trial.listens, &trial.server, &trial.client)?;
        client.wait_line(Duration::from_secs(30), |line| line.starts_with("IDLE"))?;
        let fault_ns = lab.cut(host, Rail::Zero)?;
        // As long as an idle program may take to come back; everything that must happen does so in the shim's own thread.
        thread::sleep(Duration::from_secs(1));
        lab.a().write(GO_ON, "", 0o644)?;
        let limit = Duration::from_secs(60);
        let (client, server) = (client.wait(limit)?, server.wait(limit)?);
        for ended in [&client, &server] {
            require(ended.succeeded(), || format!("{side}: {}", ended.brief()))?;
        }
        let evidence = crate::evidence::Evidence::collect(lab)?;
        require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
        let mut told = Figures::new().with("fault_to_client_end_ms", crate::clock::ms(client.at_ns - fault_ns));
        evidence.note(&mut told);
        figures.note(side, json!(told));
    }
    Ok(figures)
}

fn sixteen(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = format!("--mode mixed --seed {seed} --messages 250 --depth 8 --qps 16 --direction both");
    through_cuts(lab, &options, 16, seed)
}

fn waits(lab: &mut Lab, seed: u64) -> Result<Figures> {
    through_cuts(lab, &format!("--mode mixed --seed {seed} --messages 1500 --depth 16 --receiver-waits"), 1, seed)
}

fn through_cuts(lab: &mut Lab, options: &str, qps: u64, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (side, host) in cuts() {
        lab.reset()?;
        let fault = (Fault::Cut(host, Rail::Zero), Moment::armed(qps, seed, 100, 1000));
        figures.note(side, json!(survives(lab, &Checker::shimmed(options), Some(fault))?));
    }
    Ok(figures)
}

/// Where a NIC gives no final packet number, the receives that it completed decide: exactly, where every request consumes one.
fn by_count(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for mode in ["send", "write_imm"] {
        for (side, host) in cuts() {
            lab.reset()?;
            let mut checker = Checker::shimmed(format!("--mode {mode} --seed {seed} --messages 3000 --depth 32"));
            checker.env = vec![("SHIFT_PROOF", "count")];
            let fault = (Fault::Cut(host, Rail::Zero), Moment::armed(1, seed, 100, 2000));
            let told = json!(survives(lab, &checker, Some(fault))?);
            let by_psn =
                told.pointer("/migrations").and_then(Value::as_array).into_iter().flatten().any(decided_by_psn);
            require(!by_psn, || format!("{mode}: a packet number decided: {told}"))?;
            figures.note(&format!("{mode} {side}"), told);
        }
    }
    Ok(figures)
}

fn decided_by_psn(migration: &Value) -> bool {
    migration.pointer("/proofs/psn").and_then(Value::as_u64).is_none_or(|count| count > 0)
}

/// The hold deadline of that run.
const HOLD_MS: u64 = 1200;
/// The record stamps the fault a moment after the machine has noted it.
const STAMPED_MS: u64 = 100;

/// soft-RoCE retries for ever, so there is no error; what could end in one waits for the NIC, but no longer than that.
fn hold_passes(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut checker = Checker::gated(format!("--mode fadd --messages 200 --depth 8 --seed {seed}"));
    checker.env = vec![("SHIFT_HOLD_MS", "1200")];
    let fault = Fault::Silence(Rail::Zero, None);
    let (story, evidence) = run(lab, &checker.trial().fault(fault, Moment::Idle { qps: 1 }))?;
    require_fault(&story)?;
    story.require_success()?;
    let phase = |record: &Value, name: &str| record.pointer(&format!("/phases_ns/{name}")).and_then(Value::as_u64);
    let waits = evidence
        .of(Host::A)
        .filter_map(|record| Some(phase(record, "claim_sent")?.saturating_sub(phase(record, "trigger")?) / 1_000_000));
    let waits: Vec<u64> = waits.collect();
    require(!waits.is_empty(), || "the end with atomics outstanding did not claim: the run proves nothing".into())?;
    require(waits.iter().all(|ms| *ms + STAMPED_MS >= HOLD_MS), || format!("it claimed after {waits:?} ms"))?;
    Ok(moved(Figures::new().with("fault_to_claim_ms", waits), &story, &evidence))
}

/// Both rails of a host die and one comes back. On the receiver's side there is no fatal completion (the sender's retries last); on the
/// sender's the NIC flushes at once.
fn dark(lab: &mut Lab, host: Host, back: Rail, seed: u64) -> Result<Figures> {
    let fault = Fault::AllCut { host, gone: DARK, back };
    let test = Perftest::plain(Tool::Write).with_shim(Shim::Both);
    let (story, evidence) = run(lab, &test.trial().fault(fault, Moment::armed(1, seed, 1000, 8000)))?;
    require_fault(&story)?;
    let figures = test.require_complete(&story)?;
    Ok(moved(figures, &story, &evidence))
}

/// The server leaves when it has everything; the client's queue pairs stay and are polled on. Then the other way round.
fn ends(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, lingering) in [("client-polls-on", Host::A), ("server-polls-on", Host::B)] {
        lab.reset()?;
        let options = format!("--mode mixed --seed {seed} --messages 300 --direction both");
        let trial = Checker::shimmed(options).lingering(lingering).trial();
        let (story, evidence) = run(lab, &trial)?;
        for host in Host::ALL {
            let report = report(&story, host)?;
            require(report.get("pass") == Some(&json!(true)), || format!("{name}: {report}"))?;
        }
        story.require_success()?;
        require(evidence.migrations() == 0, || format!("{name}: an orderly end was taken for a fault"))?;
        figures.note(name, "no migration, no error");
    }
    Ok(figures)
}
