//! `shiftctl drain`: every queue pair of a host leaves a rail with the jobs running, later ones do not stay there, and undrain lets them back.

use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::Host;
use crate::trouble::{require, Result, Trouble};

use super::failback::{judge_ends, judge_plans};
use super::partners::{Partners, Plan};
use super::{shiftctl, Scenario};

/// The user of one pair; the other is root's.
const USER: u32 = 1000;
const QPS: u64 = 3;
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn scenarios() -> Vec<Scenario> {
    let about =
        "shiftctl drain: two jobs leave rail 0 without a fault, a third that starts then too; undrain lets them back";
    vec![Scenario::guests("shim-drain", about, |lab, seed| with_nothing_drained(lab, |lab| judge(lab, seed)))]
}

/// Before and after: guests are used again.
pub(super) fn with_nothing_drained(lab: &Lab, judge: impl FnOnce(&Lab) -> Result<Figures>) -> Result<Figures> {
    Evidence::clear(lab)?;
    let judged = judge(lab);
    lab.a().shell("rm -rf /run/shift-verbs")?;
    judged
}

fn judge(lab: &Lab, seed: u64) -> Result<Figures> {
    let pairs = [start(lab, 0, 0, seed)?, start(lab, 1, USER, seed)?];
    until("all queue pairs are protected", LIMIT, || {
        let all = pairs.iter().map(|pair| on(lab, pair, "rxe0", true)).collect::<Result<Vec<_>>>()?;
        Ok(all.iter().all(|count| *count == 2 * QPS).then_some(()))
    })?;
    let other = shiftctl::ask(lab, "drain nonsense0", 0)?;
    require(other.code == Some(1) && other.err.contains("no device"), || other.brief())?;

    let began = monotonic_ns();
    let drained = shiftctl::ask(lab, "drain --json --wait 40 rxe0", 0)?;
    let empty_ms = ms(monotonic_ns() - began);
    let rail = shiftctl::parse(&drained)?;
    let has = |name: &str, value: Value| rail.get(name) == Some(&value);
    let is_empty = has("empty", json!(true)) && has("lasting", json!(true)) && has("processes", json!(2));
    require(drained.succeeded() && is_empty, || format!("{} {rail}", drained.brief()))?;
    let late = start(lab, 2, 0, seed)?;
    let pairs = pairs.into_iter().chain([late]).collect::<Vec<_>>();
    until("all are on rail 1, the job that came later too", LIMIT, || {
        Ok((all_on(lab, &pairs, "rxe1", 2 * QPS)?).then_some(()))
    })?;
    let words = shiftctl::ask(lab, "status", 0)?.out;
    require(words.contains("drained: rxe0"), || words.clone())?;
    let again = shiftctl::ask(lab, "drain rxe0", USER)?;
    require(again.succeeded() && again.out.contains("this user"), || again.brief())?;

    undrain(lab)?;
    until("all are back on rail 0", LIMIT, || Ok((all_on(lab, &pairs, "rxe0", 2 * QPS)?).then_some(())))?;
    judge_drained(lab, &pairs, empty_ms)
}

/// Rail 0 may be used again.
pub(super) fn undrain(lab: &Lab) -> Result<()> {
    let undrained = shiftctl::ask(lab, "undrain rxe0", 0)?;
    require(undrained.succeeded(), || undrained.brief())
}

/// All ended well, and nothing but plans moved them.
pub(super) fn judge_drained(lab: &Lab, pairs: &[Partners], empty_ms: f64) -> Result<Figures> {
    for pair in pairs {
        judge_ends(pair)?;
    }
    let evidence = Evidence::collect(lab)?;
    judge_plans(&evidence)?;
    let unplanned =
        Host::ALL.into_iter().flat_map(|host| evidence.of(host)).find(|record| record["cause"] != "planned");
    require(unplanned.is_none(), || format!("a fault, and there was none: {unplanned:?}"))?;
    Ok(Figures::new().with("drain_to_empty_ms", empty_ms).with("migrations", evidence.migrations()))
}

fn start(lab: &Lab, number: u16, user: u32, seed: u64) -> Result<Partners> {
    let shape =
        format!("--mode write,send,mixed --qps {QPS} --depth 4 --signal-every 5 --direction both --size 0..3000");
    let client = format!("{shape} --duration 60 --settle-ms 1000 --seed {}", seed + u64::from(number));
    let env = vec![("SHIFT_HOLD_DOWN_MS".to_owned(), "1000".to_owned())];
    Partners::start(lab, &Plan { number, user, client, env, ..Plan::default() })
}

/// Whether the queue pairs of both ends of each pair, so many together, are on that device.
pub(super) fn all_on(lab: &Lab, pairs: &[Partners], device: &str, count: u64) -> Result<bool> {
    let counts = pairs.iter().map(|pair| on(lab, pair, device, false)).collect::<Result<Vec<_>>>()?;
    Ok(counts.iter().all(|found| *found == count))
}

/// Queue pairs of both ends of a pair that are on that device, protected if that is asked.
fn on(lab: &Lab, pair: &Partners, device: &str, protected: bool) -> Result<u64> {
    let mut count = 0;
    for side in pair.sides() {
        if let Some(ended) = side.ended() {
            return Err(Trouble::judged(format!("it ended too early: {}", ended.brief())));
        }
        let status = shiftctl::status(lab, side.host(), side.pid())?;
        count += if protected {
            shiftctl::count(&status, |qp| qp["path"] == device && qp["moving"] == false && qp["standby"] != json!(null))
        } else {
            shiftctl::on_path(&status, device)
        };
    }
    Ok(count)
}
