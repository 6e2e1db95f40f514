//! How long it takes from a fault to the first success on the standby, and what must not be taken for a fault.
//!
//! The application has the timeout and retries that NCCL has (20, 7): by itself it would stand still for half a minute, on soft-RoCE for ever. The
//! clock is the wire's: from the order that makes the fault to the first answer to the application on the other rail. What is
//! allowed is said in round trips of the control connection of the same boot, as the shims measured them under the same load, for the
//! guests are emulated and as slow as the machine is busy.

use serde_json::{json, Value};

use crate::clock::ms;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::{Fault, Moment, Story};
use crate::trouble::{require, Result, Trouble};
use crate::wire::log::Record;
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule};

use super::checker::{report, Checker};
use super::survive::{judge_survival, run};
use super::Scenario;

/// Cuts of each kind: enough for a median, and few enough for every day.
const CUTS: [(&str, usize); 2] = [("", 20), ("-short", 5)];
/// NCCL's, as the issue of long hangs has them.
const PATIENT: &str = "--timeout 20 --retry-cnt 7";
/// The checking application's options, and packets of rail 0 within which the fault comes. One that polls leaves little of its guest's only processor to
/// anybody else, so a round trip takes several times as long beside it as beside one that sleeps.
const LOADS: [Load; 3] = [
    ("1MBs", "--mode write_imm --size 1000 --depth 8 --messages 1500 --rate 1000000 --poll event", 200..800),
    ("1MBs-polling", "--mode write_imm --size 1000 --depth 8 --messages 1500 --rate 1000000", 200..800),
    ("saturated", "--mode write_imm --size 32768 --depth 32 --messages 1000", 2000..8000),
];
/// Round trips of the control connection that a migration may take, and what may be added to them.
const ROUND_TRIPS: f64 = 6.0;
const PORT_MS: f64 = 50.0;
/// All packets of a rail vanish: the shim has to wait for what does not come.
const SILENT_MS: f64 = 500.0;

/// What a record says of the requests that were out.
const DECIDED: [&str; 3] = ["proven", "replayed", "surfaced"];

/// A load: its name, the checking application's options, and packets of rail 0 within which the fault comes.
type Load = (&'static str, &'static str, std::ops::Range<u64>);

/// A kind of fault: its name, what it is, and what makes it.
type Kind = (&'static str, &'static str, fn() -> Fault);

const KINDS: [Kind; 3] = [
    ("port-local", "the sender's port goes down", || Fault::Carrier(Host::A, Rail::Zero)),
    ("port-remote", "the receiver's port goes down", || Fault::Carrier(Host::B, Rail::Zero)),
    ("silent", "all packets of a rail vanish", || Fault::Silence(Rail::Zero, None)),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (suffix, cuts) in CUTS {
        for kind in KINDS {
            for load in LOADS {
                let name = format!("detect-{}-{}{suffix}", kind.0, load.0);
                let about = format!("{cuts} times {}, {}: time to the first success", kind.1, load.0);
                let run = move |lab: &mut Lab, seed| measure(lab, kind, &load, cuts, seed);
                scenarios.push(Scenario::guests(name, about, run).once());
            }
        }
    }
    scenarios.push(Scenario::guests(
        "detect-not-dead",
        "a slow path that loses packets, a host and a process that stand still for 2 s: nothing is migrated",
        not_dead,
    ));
    scenarios.push(Scenario::guests(
        "detect-not-ready",
        "a receiver that is not ready for 10 s: the path is not taken for dead, and nothing is lost",
        not_ready,
    ));
    scenarios.push(Scenario::guests(
        "detect-caps",
        "answers to READs vanish and all else arrives, the application's retries are infinite: the operator's caps end them",
        caps,
    ));
    scenarios
}

/// What one cut came to, in milliseconds.
struct Cut {
    total: f64,
    round_trip: f64,
    drain: f64,
    /// Requests of both ends: proven executed, replayed, surfaced.
    decided: [u64; 3],
    /// Of the end that saw the fault, from its trigger on.
    phases: Value,
}

fn measure(lab: &mut Lab, (kind, _, fault): Kind, load: &Load, cuts: usize, seed: u64) -> Result<Figures> {
    let (load, options, packets) = load;
    let mut dice = Seed::new(seed, &format!("{kind} {load}"));
    let mut seen = Vec::new();
    for _ in 0..cuts {
        lab.reset()?;
        let checker = Checker::gated(format!("{options} {PATIENT} --seed {seed}"));
        let moment = Moment::Armed { qps: 1, packets: dice.within(packets.clone()) };
        let (story, evidence) = run(lab, &checker.trial().fault(fault(), moment))?;
        judge_survival(&checker, &story, &evidence)?;
        seen.push(cut(&story, &evidence)?);
    }
    let (told, is_met) = judge(kind == "silent", load, &seen);
    require(is_met, || told.to_string())?;
    Ok(Figures::new().with(&format!("{kind} {load}"), told))
}

fn cut(story: &Story, evidence: &Evidence) -> Result<Cut> {
    let (Some(fault), Some(standby)) = (story.fault_ns, story.standby_ns) else {
        return Err(Trouble::judged("nothing was answered on the standby"));
    };
    let phase = |record: &Value, name: &str| record["phases_ns"].get(name).and_then(Value::as_u64);
    let drains =
        evidence.all().filter_map(|(_, record)| phase(record, "fenced")?.checked_sub(phase(record, "committed")?));
    let round_trips: Vec<f64> =
        evidence.all().filter_map(|(_, record)| Some(record["control_round_trip_ns"].as_u64()? as f64 / 1e6)).collect();
    let told = evidence.all().map(|(host, record)| {
        let begin = record["phases_ns"].as_object().into_iter().flat_map(|phases| phases.values());
        let begin = begin.filter_map(Value::as_u64).min().unwrap_or_default();
        let phases = record["phases_ns"].as_object().into_iter().flatten();
        let phases: serde_json::Map<String, Value> = phases
            .filter_map(|(name, at)| Some((name.clone(), json!(ms(at.as_u64()?.saturating_sub(begin))))))
            .collect();
        json!({ "host": host.name(), "cause": record["cause"], "phases_ms": phases })
    });
    Ok(Cut {
        total: ms(standby.saturating_sub(fault)),
        round_trip: middle(round_trips),
        drain: ms(drains.max().unwrap_or_default()),
        decided: DECIDED.map(|name| evidence.all().filter_map(|(_, record)| record.get(name)?.as_u64()).sum()),
        phases: told.collect(),
    })
}

/// The figures of one kind of fault under one load, and whether the goal is met.
fn judge(is_silent: bool, load: &str, seen: &[Cut]) -> (Value, bool) {
    let mut totals: Vec<f64> = seen.iter().map(|cut| cut.total).collect();
    totals.sort_by(f64::total_cmp);
    let quartile = |quarter: usize| totals.get(totals.len() * quarter / 4).copied().unwrap_or_default();
    let round_trip = middle(seen.iter().map(|cut| cut.round_trip).collect());
    let drain = middle(seen.iter().map(|cut| cut.drain).collect());
    let in_trips = ROUND_TRIPS * round_trip + drain;
    let goal = match (is_silent, load) {
        (true, _) => SILENT_MS + in_trips,
        (false, "saturated") => in_trips,
        (false, _) => in_trips.max(PORT_MS),
    };
    let median = middle(totals.clone());
    let middling = seen.iter().min_by(|a, b| (a.total - median).abs().total_cmp(&(b.total - median).abs()));
    let [proven, replayed, surfaced] =
        [0, 1, 2].map(|at| seen.iter().filter_map(|cut| cut.decided.get(at)).sum::<u64>());
    let told = json!({
        "proven": proven, "replayed": replayed, "surfaced": surfaced, "cuts": seen.len(), "median_ms": median, "quartiles_ms": [quartile(1), quartile(3)], "all_ms": totals,
        "control_round_trip_ms": round_trip, "drain_ms": drain, "goal_ms": goal,
        "middling": middling.map(|cut| cut.phases.clone()),
    });
    (told, median < goal)
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// One request at a time: where several are out, soft-RoCE's retransmission of one may number the others anew.
const SLOW: &str = "--mode write --size 8..3000 --depth 1 --messages 30 --timeout 18 --retry-cnt 7";
const STEADY: &str = "--mode write_imm --size 1000 --depth 8 --messages 3000 --rate 1000000 --timeout 20 --retry-cnt 7";
const ASLEEP: std::time::Duration = std::time::Duration::from_secs(2);

fn not_dead(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let loss = |from| Rule::on(Link::Rail0, Action::Drop).from(from).percent(5, seed);
    let slow = Rule::on(Link::Rail0, Action::Delay(200_000)).from(Host::A);
    let asleep = |host, whole| Fault::Asleep { host, whole, gone: ASLEEP };
    let cases = [
        ("slow-and-lossy", SLOW, Fault::Rules(vec![loss(Host::A), loss(Host::B), slow]), Moment::Idle { qps: 1 }),
        ("peer-host-stopped", STEADY, asleep(Host::B, true), Moment::armed(1, seed, 100, 600)),
        ("own-host-stopped", STEADY, asleep(Host::A, true), Moment::armed(1, seed, 100, 600)),
        ("own-process-stopped", STEADY, asleep(Host::A, false), Moment::armed(1, seed, 100, 600)),
        ("peer-process-stopped", STEADY, asleep(Host::B, false), Moment::armed(1, seed, 100, 600)),
    ];
    let mut figures = Figures::new();
    for (name, options, fault, moment) in cases {
        lab.reset()?;
        let checker = Checker::gated(format!("{options} --seed {seed}"));
        let (story, evidence) = run(lab, &checker.trial().fault(fault, moment))?;
        for host in Host::ALL {
            let report = report(&story, host)?;
            require(report.get("pass") == Some(&json!(true)), || format!("{name}: {report}"))?;
        }
        story.require_success()?;
        require(story.fault_ns.is_some(), || format!("{name}: the run was over before"))?;
        let mut told = story.figures();
        evidence.note(&mut told);
        require(evidence.migrations() == 0, || format!("{name}: it was taken for dead: {told:?}"))?;
        figures.note(name, json!(told));
    }
    Ok(figures)
}

/// The receiver's nap, and how often its NIC has to have said that it is not ready for that to have been one.
const NAP_MS: u64 = 10_000;
const LEAST_REFUSALS: usize = 20;

/// Only the probe tells such a receiver from a dead path: nothing of the application's moves.
fn not_ready(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let options = "--mode send --size 1000 --depth 8 --messages 200 --scarce-receives --timeout 18 --retry-cnt 7";
    let checker = Checker::gated(format!("{options} --receiver-naps {NAP_MS} --seed {seed}"));
    let nothing = Rule::on(Link::Rail0, Action::Pass).receiver_not_ready();
    let (story, evidence) = run(lab, &checker.trial().fault(Fault::Rule(nothing), Moment::Idle { qps: 1 }))?;
    for host in Host::ALL {
        let report = report(&story, host)?;
        require(report.get("pass") == Some(&json!(true)), || report.to_string())?;
    }
    story.require_success()?;
    let refusals: Vec<u64> = story.records.iter().filter(|each| refuses(each)).map(|record| record.at_ns).collect();
    let span_ms = refusals.first().zip(refusals.last()).map_or(0.0, |(first, last)| ms(last - first));
    let was_long = refusals.len() >= LEAST_REFUSALS && span_ms >= NAP_MS as f64 * 0.9;
    require(was_long, || format!("{} refusals within {span_ms} ms", refusals.len()))?;
    require(evidence.migrations() == 0, || "it was taken for dead".to_owned())?;
    Ok(Figures::new().with("refusals", refusals.len()).with("not_ready_ms", span_ms))
}

fn refuses(record: &Record) -> bool {
    record.packet.roce.is_some_and(|bth| bth.is_receiver_not_ready())
}

/// Probes are answered, so only the NIC can say that something is wrong, and soft-RoCE retries for ever at retry_cnt 7.
fn caps(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let lost = Rule::on(Link::Rail0, Action::Drop).opcodes(&opcode::READ_RESPONSES).from(Host::B);
    let lost = lost.after(Seed::new(seed, "caps").within(10..60));
    let options = format!("--mode read --size 8..9000 --depth 4 --messages 150 {PATIENT} --seed {seed}");
    let mut checker = Checker::gated(options);
    checker.env = vec![("SHIFT_QP_TIMEOUT", "16"), ("SHIFT_RETRY_CNT", "3")];
    let (story, evidence) = run(lab, &checker.trial().fault(Fault::Rule(lost), Moment::Idle { qps: 1 }))?;
    let told = judge_survival(&checker, &story, &evidence)?;
    let by_retries = evidence.all().any(|(_, record)| record["cause"] == "retries exceeded");
    require(by_retries, || format!("the NIC did not give up: {told:?}"))?;
    Ok(told)
}
