//! Three rails: they die in turn, one of them is dead all along or dies before it is needed, faults follow one another in mid-migration, and the two ends would
//! rather have different ones.
//!
//! The wires of the lab are a rail-only fabric: what leaves one rail reaches the same rail of the other host, and nothing else.

use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::{Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::all_protected;
use crate::trouble::{require, Result, Trouble};
use crate::wire::rule::{Action, Rule};

use super::checker::{PORT, PROGRAM};
use super::failback::judge_ends;
use super::partners::{last_words, Partners, ARMING_LIMIT};
use super::{shiftctl, Scenario};

/// Queue pairs of several kinds, none of which may end in an error.
const SHAPE: &str = "--mode write,send,write_imm,mixed --qps 4 --depth 16 --signal-every 4 --direction both \
    --size 0..4000 --rate 300000 --settle-ms 1000";
const QPS: u64 = 4;
/// Detection, handshake, and a rail's proving itself anew, under emulation.
const STEP: Duration = Duration::from_secs(30);
/// How long a run lasts: its end is what ends it, not the last fault.
const SPAN_S: u64 = 26;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-three-rails",
            "three rails die in turn, at either end, and the first is back by then: all goes on, spread over what there is",
            three_rails,
        ),
        Scenario::guests(
            "shim-srq-three-rails",
            "queue pairs that share their receives, three rails die in turn, at either end: all of them go from one to the next together",
            shared_three_rails,
        ),
        Scenario::guests(
            "shim-dead-standby",
            "a standby that was dead all along, and one that dies later: said before any fault, and another is taken",
            dead_standby,
        ),
        Scenario::guests(
            "shim-fault-upon-fault",
            "faults while arming, in mid-migration, at both ends at once and while going back: all ends on the third rail",
            fault_upon_fault,
        ),
        Scenario::guests(
            "shim-rail-only",
            "rails that do not reach one another, each end with an order of its own: ends of one rail are paired",
            rail_only,
        ),
    ]
}

/// Both ends, each with variables of its own.
fn start(lab: &Lab, seed: u64, common: &[(&str, &str)], own: [&[(&str, &str)]; 2]) -> Result<Partners> {
    start_as(lab, SHAPE, seed, common, own)
}

fn start_as(lab: &Lab, shape: &str, seed: u64, common: &[(&str, &str)], own: [&[(&str, &str)]; 2]) -> Result<Partners> {
    let at = format!("{}:{PORT}", Link::Management.address(Host::B));
    let dress = |line: String, own: &[(&str, &str)]| {
        let program = Program::words(&line).with_shim();
        common.iter().chain(own).fold(program, |program, (name, value)| program.env(*name, *value))
    };
    let [client_env, server_env] = own;
    let server = dress(format!("{PROGRAM} server --dev rxe0 --listen {at}"), server_env);
    let client = format!("{PROGRAM} client --dev rxe0 --connect {at} {shape} --duration {SPAN_S} --seed {seed}");
    let client = dress(client, client_env);
    Ok(Partners { server: lab.b().spawn(&server)?, client: lab.a().spawn(&client)? })
}

fn wait_protected(pair: &Partners) -> Result<()> {
    until("all queue pairs are protected", ARMING_LIMIT, || {
        not_over(pair)?;
        Ok(pair.sides().iter().all(|side| all_protected(side) >= QPS).then_some(()))
    })
}

fn not_over(pair: &Partners) -> Result<()> {
    match pair.sides().into_iter().find_map(Running::ended) {
        Some(ended) => Err(Trouble::judged(format!("it ended too early: {}", ended.brief()))),
        None => Ok(()),
    }
}

/// The queue pairs of one side, as shiftctl shows them.
fn shown(lab: &Lab, side: &Running) -> Result<Vec<Value>> {
    let status = shiftctl::status(lab, side.host(), side.pid())?;
    Ok(status.pointer("/queue_pairs").and_then(Value::as_array).cloned().unwrap_or_default())
}

/// Waits until all queue pairs of both sides are as `wanted` says; how many of the client's are on which device.
pub(super) fn wait_shown(
    lab: &Lab,
    pair: &Partners,
    qps: u64,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    until(what, STEP, || {
        not_over(pair)?;
        let mut on = serde_json::Map::new();
        for side in pair.sides() {
            let queue_pairs = shown(lab, side)?;
            if queue_pairs.len() as u64 != qps || !queue_pairs.iter().all(&wanted) {
                return Ok(None);
            }
            on.insert(side.host().name().to_owned(), json!(devices(&queue_pairs)));
        }
        Ok(Some(Value::Object(on)))
    })
}

pub(super) fn is_on(qp: &Value, devices: &[&str]) -> bool {
    qp["moving"] == false && devices.iter().any(|device| qp["path"] == *device)
}

/// The run came to a good end, and each migration was agreed on.
fn judge(lab: &Lab, pair: &Partners, figures: Figures) -> Result<Figures> {
    until("both sides to have done their work", STEP * 2, || {
        Ok(pair.sides().into_iter().all(|side| last_words(side).is_some()).then_some(()))
    })?;
    // A queue pair whose packets lie in a card that is down is let go only when it is up.
    for host in Host::ALL {
        Rail::THREE.into_iter().try_for_each(|rail| lab.mend(host, rail).map(drop))?;
    }
    judge_ends(pair)?;
    let evidence = Evidence::collect(lab)?;
    let surfaced = evidence.all().find(|(_, record)| record["surfaced"] != 0);
    require(surfaced.is_none(), || format!("an error: {surfaced:?}"))?;
    Ok(figures.with("migrations", evidence.migrations()))
}

fn three_rails(lab: &mut Lab, seed: u64) -> Result<Figures> {
    lab.raise()?;
    Evidence::clear(lab)?;
    let mut dice = Seed::new(seed, "three rails");
    let pair = start(lab, seed, &[("SHIFT_FAILBACK", "0"), ("SHIFT_PROBE_INTERVAL_MS", "1000")], [&[], &[]])?;
    wait_protected(&pair)?;
    wait_shown(lab, &pair, QPS, "both standbys are ready", |qp| {
        qp["standby"] != json!(null) && qp["silent"] == json!([])
    })?;
    let first = dice.host();
    let began = monotonic_ns();
    lab.cut(first, Rail::Zero)?;
    let spread = wait_shown(lab, &pair, QPS, "all have left rail 0", |qp| is_on(qp, &["rxe1", "rxe2"]))?;
    let mut figures = Figures::new().with("first_ms", ms(monotonic_ns() - began)).with("spread", spread);

    let second = dice.host();
    let began = monotonic_ns();
    lab.cut(second, Rail::One)?;
    wait_shown(lab, &pair, QPS, "all are on rail 2", |qp| is_on(qp, &["rxe2"]))?;
    figures.note("second_ms", ms(monotonic_ns() - began));

    lab.mend(first, Rail::Zero)?;
    wait_shown(lab, &pair, QPS, "rail 0 stands by", |qp| is_on(qp, &["rxe2"]) && qp["standby"] == "rxe0")?;
    let began = monotonic_ns();
    lab.cut(dice.host(), Rail::Two)?;
    wait_shown(lab, &pair, QPS, "all are back on rail 0", |qp| is_on(qp, &["rxe0"]))?;
    figures.note("third_ms", ms(monotonic_ns() - began));
    judge(lab, &pair, figures)
}

fn shared_three_rails(lab: &mut Lab, seed: u64) -> Result<Figures> {
    lab.raise()?;
    Evidence::clear(lab)?;
    let mut dice = Seed::new(seed, "three rails of an SRQ");
    let shape = format!("--srq {SHAPE}");
    let common = [("SHIFT_FAILBACK", "0"), ("SHIFT_PROBE_INTERVAL_MS", "1000")];
    let pair = start_as(lab, &shape, seed, &common, [&[], &[]])?;
    wait_protected(&pair)?;
    wait_shown(lab, &pair, QPS, "both standbys are ready", |qp| {
        qp["standby"] != json!(null) && qp["silent"] == json!([])
    })?;
    let first = dice.host();
    let began = monotonic_ns();
    lab.cut(first, Rail::Zero)?;
    let on = wait_shown(lab, &pair, QPS, "all have left rail 0", |qp| is_on(qp, &["rxe1", "rxe2"]))?;
    let mut figures = Figures::new().with("first_ms", ms(monotonic_ns() - began)).with("on", on);

    let queue_pairs = shown(lab, &pair.client)?;
    let are_all_on = |device: &&str| queue_pairs.iter().all(|qp| is_on(qp, &[*device]));
    let second = ["rxe1", "rxe2"].into_iter().find(are_all_on);
    let second = second.ok_or_else(|| Trouble::judged(format!("they are not on one rail: {queue_pairs:?}")))?;
    let (second_rail, third, third_rail) = match second {
        "rxe1" => (Rail::One, "rxe2", Rail::Two),
        _ => (Rail::Two, "rxe1", Rail::One),
    };
    let began = monotonic_ns();
    lab.cut(dice.host(), second_rail)?;
    wait_shown(lab, &pair, QPS, "all are on the last rail", |qp| is_on(qp, &[third]))?;
    figures.note("second_ms", ms(monotonic_ns() - began));

    lab.mend(first, Rail::Zero)?;
    wait_shown(lab, &pair, QPS, "rail 0 stands by", |qp| is_on(qp, &[third]) && qp["standby"] == "rxe0")?;
    let began = monotonic_ns();
    lab.cut(dice.host(), third_rail)?;
    wait_shown(lab, &pair, QPS, "all are back on rail 0", |qp| is_on(qp, &["rxe0"]))?;
    figures.note("third_ms", ms(monotonic_ns() - began));
    judge(lab, &pair, figures)
}

fn dead_standby(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for all_along in [true, false] {
        lab.reset()?;
        lab.raise()?;
        Evidence::clear(lab)?;
        let silence = || lab.wire().add(Rule::on(Link::Rail1, Action::Drop));
        if all_along {
            silence()?;
        }
        let began = monotonic_ns();
        let pair = start(lab, seed, &[("SHIFT_PROBE_INTERVAL_MS", "1000")], [&[], &[]])?;
        wait_protected(&pair)?;
        let began = if all_along { began } else { silence()?.1 };
        wait_shown(lab, &pair, QPS, "the dead standby is shown, and the other one", |qp| {
            is_on(qp, &["rxe0"]) && qp["standby"] == "rxe2" && qp["silent"] == json!(["rxe1"])
        })?;
        let shown_ms = ms(monotonic_ns() - began);
        for side in pair.sides() {
            let is_said = |line: &str| line.contains("no answer on the path rxe1") && line.contains("rxe2 stands by");
            let lines = side.lines();
            require(lines.iter().any(|line| is_said(&line.text)), || format!("nothing was said on {:?}", side.host()))?;
        }
        lab.cut(Host::A, Rail::Zero)?;
        wait_shown(lab, &pair, QPS, "all are on rail 2", |qp| is_on(qp, &["rxe2"]))?;
        let told = judge(lab, &pair, Figures::new().with("shown_ms", shown_ms))?;
        figures.note(if all_along { "all along" } else { "later" }, json!(told));
    }
    Ok(figures)
}

fn fault_upon_fault(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut dice = Seed::new(seed, "fault upon fault");
    for name in ["while arming", "in mid-migration", "at both ends at once", "while going back"] {
        lab.reset()?;
        lab.raise()?;
        Evidence::clear(lab)?;
        let common = [("SHIFT_PROBE_INTERVAL_MS", "1000"), ("SHIFT_HOLD_DOWN_MS", "1500")];
        let pair = start(lab, seed, &common, [&[], &[]])?;
        let pause = |low: u64, high: u64, dice: &mut Seed| {
            // The moment of the fault itself, not a wait for anything.
            thread::sleep(Duration::from_millis(dice.within(low..high)));
        };
        if name == "while arming" {
            pause(200, 2500, &mut dice);
            lab.cut(Host::B, Rail::One)?;
        }
        wait_protected(&pair)?;
        wait_shown(lab, &pair, QPS, "rail 2 is ready", |qp| qp["standby"] != json!(null))?;
        lab.cut(Host::A, Rail::Zero)?;
        match name {
            "while arming" => {}
            "in mid-migration" => {
                pause(0, 400, &mut dice);
                lab.cut(Host::B, Rail::One)?;
            }
            "at both ends at once" => {
                lab.cut(Host::B, Rail::Zero)?;
                pause(0, 200, &mut dice);
                lab.cut(Host::A, Rail::One)?;
                lab.cut(Host::B, Rail::One)?;
            }
            _ => {
                wait_shown(lab, &pair, QPS, "all have left rail 0", |qp| is_on(qp, &["rxe1", "rxe2"]))?;
                lab.mend(Host::A, Rail::Zero)?;
                pause(1500, 3000, &mut dice);
                lab.cut(Host::B, Rail::Zero)?;
                lab.cut(Host::A, Rail::One)?;
            }
        }
        let on = wait_shown(lab, &pair, QPS, "all are on rail 2", |qp| is_on(qp, &["rxe2"]))?;
        let told = judge(lab, &pair, Figures::new().with("on", on))?;
        figures.note(name, json!(told));
    }
    Ok(figures)
}

fn rail_only(lab: &mut Lab, seed: u64) -> Result<Figures> {
    lab.raise()?;
    Evidence::clear(lab)?;
    let orders: [&[(&str, &str)]; 2] = [&[("SHIFT_STANDBY", "rxe0=rxe2:rxe1")], &[("SHIFT_STANDBY", "rxe0=rxe1:rxe2")]];
    let pair = start(lab, seed, &[("SHIFT_FAILBACK", "0"), ("SHIFT_PROBE_INTERVAL_MS", "1000")], orders)?;
    wait_protected(&pair)?;
    wait_shown(lab, &pair, QPS, "both standbys are ready", |qp| {
        qp["standby"] != json!(null) && qp["silent"] == json!([])
    })?;
    lab.cut(Host::A, Rail::Zero)?;
    wait_shown(lab, &pair, QPS, "all have left rail 0", |qp| is_on(qp, &["rxe1", "rxe2"]))?;
    let rails = [shown(lab, &pair.client)?, shown(lab, &pair.server)?];
    let [own, peer] = rails.map(|queue_pairs| devices(&queue_pairs));
    require(own == peer, || format!("the ends are on different rails: {own:?}, {peer:?}"))?;
    lab.cut(Host::B, Rail::One)?;
    wait_shown(lab, &pair, QPS, "all are on rail 2", |qp| is_on(qp, &["rxe2"]))?;
    judge(lab, &pair, Figures::new().with("first", json!(own)))
}

/// How many queue pairs are on each device.
fn devices(queue_pairs: &[Value]) -> std::collections::BTreeMap<String, u64> {
    let mut on = std::collections::BTreeMap::new();
    for device in queue_pairs.iter().filter_map(|qp| qp["path"].as_str()) {
        *on.entry(device.to_owned()).or_default() += 1;
    }
    on
}
