//! A rail that comes back: the traffic goes back to it by plan, with nothing outstanding unknown, and is as fast as before; and a rail that flaps.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Ended;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::all_protected;
use crate::trouble::{require, Result, Trouble};
use crate::wire::rule::{Action, Rule};

use super::partners::{Partners, Plan, ARMING_LIMIT};
use super::Scenario;

/// Queue pairs of every kind; those that signal seldom have to be drained by a signal of the shim's.
const SHAPE: &str =
    "--mode write,send,write_imm,mixed --qps 4 --depth 16 --signal-every 5 --direction both --settle-ms 1000";
const QPS: usize = 4;
/// Short enough for a scenario, with its ten probes.
const HOLD_DOWN_MS: u64 = 2000;
/// The same where the rail flaps.
const FLAP_HOLD_DOWN_MS: u64 = 1000;
/// Traffic is measured for so long, before the fault and after the return.
const WINDOW: Duration = Duration::from_secs(3);
/// Detection, handshake and hold-down under emulation.
const STEP: Duration = Duration::from_secs(25);
/// Of the bandwidth before the fault this much has to be there after the return. A guest's share of the machine varies by less.
const LEAST_SHARE: f64 = 0.5;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-failback",
            "rail 0 down on one side, then up: all goes back by plan, nothing in doubt, as fast as before",
            failback,
        ),
        Scenario::guests(
            "shim-flaps",
            "rail 0 flaps for 25 s: the run goes on, returns are bounded",
            |lab: &mut Lab, seed| flaps(lab, seed, Duration::from_secs(25)),
        ),
        Scenario::guests("shim-flap-long", "the same for 3 minutes", |lab: &mut Lab, seed| {
            flaps(lab, seed, Duration::from_secs(180))
        }),
    ]
}

fn start(lab: &Lab, options: &str, hold_down_ms: u64) -> Result<Partners> {
    let env = vec![("SHIFT_HOLD_DOWN_MS".to_owned(), hold_down_ms.to_string())];
    let pair = Partners::start(lab, &Plan { client: format!("{SHAPE} {options}"), env, ..Plan::default() })?;
    until("all queue pairs are protected", ARMING_LIMIT, || {
        Ok(pair.sides().iter().all(|side| all_protected(side) >= QPS as u64).then_some(()))
    })?;
    Ok(pair)
}

fn failback(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        lab.reset()?;
        Evidence::clear(lab)?;
        let pair = start(lab, &format!("--duration 28 --seed {seed}"), HOLD_DOWN_MS)?;
        let before = bytes_per_second(lab, Rail::Zero)?;
        lab.cut(host, Rail::Zero)?;
        until("all has moved to rail 1", STEP, || {
            let evidence = Evidence::collect(lab)?;
            Ok(Host::ALL.into_iter().all(|host| confirmed(&evidence, host, 1) >= QPS).then_some(()))
        })?;
        let mended = Instant::now();
        lab.mend(host, Rail::Zero)?;
        until("all has gone back to rail 0", STEP, || {
            let evidence = Evidence::collect(lab)?;
            Ok(Host::ALL.into_iter().all(|host| confirmed(&evidence, host, 0) >= QPS).then_some(()))
        })?;
        let took_ms = mended.elapsed().as_millis() as u64;
        require(took_ms >= HOLD_DOWN_MS, || format!("it went back after {took_ms} ms, within the hold-down"))?;
        let after = bytes_per_second(lab, Rail::Zero)?;
        require(pair.sides().iter().all(|side| side.ended().is_none()), || "it ended before it was measured".into())?;
        judge_ends(&pair)?;
        let evidence = Evidence::collect(lab)?;
        judge_plans(&evidence)?;
        require(after >= before * LEAST_SHARE, || format!("{after:.0} bytes/s after the return, {before:.0} before"))?;
        let told = Figures::new()
            .with("bytes_per_second_before", before.round())
            .with("bytes_per_second_after", after.round())
            .with("mended_to_all_back_ms", took_ms)
            .with("planned_ms", durations(&evidence));
        figures.note(side, json!(told));
    }
    Ok(figures)
}

/// Migrations to that path that both ends agreed on, at one host.
pub(super) fn confirmed(evidence: &Evidence, host: Host, path: u64) -> usize {
    let came = |record: &&Value| {
        record["outcome"] == "confirmed" && record.pointer("/to/path").and_then(Value::as_u64) == Some(path)
    };
    evidence.of(host).filter(came).count()
}

fn planned(evidence: &Evidence) -> impl Iterator<Item = &Value> {
    Host::ALL.into_iter().flat_map(|host| evidence.of(host)).filter(|record| record["cause"] == "planned")
}

/// What was decided of requests that a NIC had was nothing: there were none.
pub(super) fn judge_plans(evidence: &Evidence) -> Result<()> {
    let mut count = 0;
    for record in planned(evidence) {
        let rests = |name: &str| record.pointer(&format!("/proofs/{name}")).and_then(Value::as_u64);
        let in_doubt =
            ["psn", "receive_count", "successes", "landed", "unproven"].iter().any(|name| rests(name) != Some(0));
        require(!in_doubt && record["surfaced"] == 0, || format!("something was outstanding: {record}"))?;
        count += 1;
    }
    require(count > 0, || "nothing was moved by plan".into())
}

fn durations(evidence: &Evidence) -> Vec<Value> {
    planned(evidence).map(|record| record["duration_ms"].clone()).collect()
}

/// What both hosts sent over a rail.
pub(super) fn bytes_per_second(lab: &Lab, rail: Rail) -> Result<f64> {
    let sent = || -> Result<u64> {
        let counts = lab.wire().counts()?;
        Ok(Host::ALL.into_iter().map(|host| counts.flow(rail.link(), host).bytes).sum())
    };
    let (from, began) = (sent()?, Instant::now());
    // The length of a measurement, not a wait for anything.
    thread::sleep(WINDOW);
    Ok((sent()? - from) as f64 / began.elapsed().as_secs_f64())
}

pub(super) fn judge_ends(pair: &Partners) -> Result<[Ended; 2]> {
    let [client, server] = pair.sides();
    let ends = [client.wait(STEP * 3)?, server.wait(STEP * 3)?];
    for ended in &ends {
        let report = ended.out.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default().to_owned();
        let told: Value =
            serde_json::from_str(&report).map_err(|why| Trouble::judged(format!("{why}: {}", ended.brief())))?;
        require(ended.succeeded() && told.get("pass") == Some(&json!(true)), || {
            format!("{}: {report}", ended.brief())
        })?;
    }
    Ok(ends)
}

/// Rail 0 goes and comes at random, seen by one host, the other, or by none.
fn flaps(lab: &mut Lab, seed: u64, span: Duration) -> Result<Figures> {
    Evidence::clear(lab)?;
    let options = format!("--duration {} --rate 300000 --seed {seed}", span.as_secs() + 8);
    let pair = start(lab, &options, FLAP_HOLD_DOWN_MS)?;
    let mut dice = Seed::new(seed, "flaps");
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < span {
        let gone = Duration::from_millis(dice.within(50..2500));
        match dice.within(0..3) {
            0 => flap_wire(lab, gone)?,
            1 => flap_host(lab, Host::A, gone)?,
            _ => flap_host(lab, Host::B, gone)?,
        }
        count += 1;
        // The times between the faults are part of them.
        thread::sleep(Duration::from_millis(dice.within(200..3500)));
    }
    judge_ends(&pair)?;
    let evidence = Evidence::collect(lab)?;
    judge_plans(&evidence)?;
    let most = most_returns(&evidence);
    let run_ms = began.elapsed().as_millis() as u64;
    let bound = doublings_within(run_ms, FLAP_HOLD_DOWN_MS);
    require(most <= bound, || format!("a queue pair went back {most} times in {run_ms} ms, more than {bound}"))?;
    let told = Figures::new().with("flaps", count).with("migrations", evidence.migrations());
    Ok(told.with("most_returns_of_a_queue_pair", most).with("bound", bound))
}

fn flap_wire(lab: &Lab, gone: Duration) -> Result<()> {
    let (rule, _) = lab.wire().add(Rule::on(Link::Rail0, Action::Drop))?;
    // The length of the fault itself.
    thread::sleep(gone);
    lab.wire().remove(rule).map(drop)
}

fn flap_host(lab: &Lab, host: Host, gone: Duration) -> Result<()> {
    lab.cut(host, Rail::Zero)?;
    // The length of the fault itself.
    thread::sleep(gone);
    lab.mend(host, Rail::Zero).map(drop)
}

/// How often one queue pair went back to rail 0, as its own end counts.
fn most_returns(evidence: &Evidence) -> u64 {
    let mut returns = std::collections::BTreeMap::<String, u64>::new();
    for record in Host::ALL.into_iter().flat_map(|host| evidence.of(host)) {
        if record.pointer("/to/path") == Some(&json!(0)) && record["cause"] == "planned" {
            *returns.entry(format!("{} {}", record["pid"], record["endpoint"])).or_default() += 1;
        }
    }
    returns.into_values().max().unwrap_or_default()
}

/// Each hold-down is twice the one before: so many fit into that time, and one more.
fn doublings_within(span_ms: u64, first_ms: u64) -> u64 {
    let mut count = 0;
    let mut sum = 0;
    while sum <= span_ms {
        sum += first_ms << count;
        count += 1;
    }
    count
}
