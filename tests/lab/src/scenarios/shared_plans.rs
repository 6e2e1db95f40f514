//! Planned moves of queue pairs that receive through one shared receive queue (SRQ): back to rail 0 when it is good again, and off a rail that is drained.

use std::time::{Duration, Instant};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::all_protected;
use crate::trouble::{require, Result};

use super::drain::{all_on, judge_drained, undrain, with_nothing_drained};
use super::failback::{confirmed, judge_ends, judge_plans};
use super::partners::{Partners, Plan, ARMING_LIMIT};
use super::{shiftctl, Scenario};

/// Most take receives, each in its own rhythm; some that signal seldom have to be drained by a signal of the shim's.
const SHAPE: &str = "--srq --mode send,mixed,write_imm,send,read --depth 8 --signal-every 4 --direction both --size 0..4000 --settle-ms 1000";
/// So many queue pairs share one SRQ at each end.
const QPS: u64 = 5;
const HOLD_DOWN_MS: u64 = 1000;
/// Detection, handshake and hold-down under emulation.
const STEP: Duration = Duration::from_secs(30);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-srq-back",
            "five queue pairs on one SRQ at each end, rail 0 down on one side, then up: all go back by plan, nothing in doubt",
            back,
        ),
        Scenario::guests(
            "shim-srq-drain",
            "five queue pairs on one SRQ at each end: shiftctl drain moves all of them, undrain lets them back, nothing in doubt",
            |lab, seed| with_nothing_drained(lab, |lab| drain(lab, seed)),
        ),
    ]
}

fn start(lab: &Lab, seconds: u64, seed: u64) -> Result<Partners> {
    let env = vec![("SHIFT_HOLD_DOWN_MS".to_owned(), HOLD_DOWN_MS.to_string())];
    let client = format!("{SHAPE} --qps {QPS} --duration {seconds} --seed {seed}");
    let pair = Partners::start(lab, &Plan { client, env, ..Plan::default() })?;
    until("all queue pairs are protected", ARMING_LIMIT, || {
        Ok(pair.sides().iter().all(|side| all_protected(side) >= QPS).then_some(()))
    })?;
    Ok(pair)
}

fn back(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    let pair = start(lab, 25, seed)?;
    lab.cut(Host::A, Rail::Zero)?;
    have_all_gone(lab, 1)?;
    let mended = Instant::now();
    lab.mend(Host::A, Rail::Zero)?;
    have_all_gone(lab, 0)?;
    let took_ms = mended.elapsed().as_millis() as u64;
    require(took_ms >= HOLD_DOWN_MS, || format!("they went back after {took_ms} ms, within the hold-down"))?;
    judge_ends(&pair)?;
    let evidence = Evidence::collect(lab)?;
    judge_plans(&evidence)?;
    Ok(Figures::new().with("mended_to_all_back_ms", took_ms).with("migrations", evidence.migrations()))
}

fn have_all_gone(lab: &Lab, path: u64) -> Result<()> {
    until(&format!("all have gone to rail {path}"), STEP, || {
        let evidence = Evidence::collect(lab)?;
        let all = Host::ALL.into_iter().all(|host| confirmed(&evidence, host, path) as u64 >= QPS);
        Ok(all.then_some(()))
    })
}

fn drain(lab: &Lab, seed: u64) -> Result<Figures> {
    let pairs = [start(lab, 16, seed)?];
    let began = monotonic_ns();
    let drained = shiftctl::ask(lab, "drain --json --wait 20 rxe0", 0)?;
    let empty_ms = ms(monotonic_ns() - began);
    require(drained.succeeded(), || format!("{} {}", drained.brief(), drained.out))?;
    let are_on = |device: &str| {
        let all = || all_on(lab, &pairs, device, 2 * QPS);
        until(&format!("all are on {device}"), STEP, || Ok(all()?.then_some(())))
    };
    are_on("rxe1")?;
    undrain(lab)?;
    are_on("rxe0")?;
    judge_drained(lab, &pairs, empty_ms)
}
