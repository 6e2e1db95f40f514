//! Packets that are lost without anybody being told: which, is chosen by opcode on the wire, from a moment of the seed on.
//!
//! One run has a queue pair of every mode, all under the same fault. Whatever is lost, every message arrives once, in order and undamaged;
//! only an atomic whose result is lost ends its queue pair, with an error and flushes, and is not done again.

use std::collections::BTreeSet;

use serde_json::{json, Value};

use crate::agreement::{self, Path};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::{Fault, Moment, Story};
use crate::trouble::{require, Result, Trouble};
use crate::wire::log::{Fate, Record};
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule, Spread};

use super::checker::{report, Checker};
use super::survive::{judge_survival, run};
use super::Scenario;

/// A queue pair for each; those with atomics are last.
const MODES: &str = "write,write_imm,send,read,mixed,fadd,cas,mixed_atomic";
/// So many.
const QPS: u64 = 8;
/// Long enough for some messages of several packets on each queue pair before and after the fault.
const MESSAGES: u64 = 120;
/// Packets of rail 0 that a fault lets pass first, at most: about a third of what such a run sends.
const SPARED: u64 = 400;
/// The time-out that soft-RoCE needs so as not to retransmit on a healthy path (0.27 s), four times: an error after about a second.
const IMPATIENT: &str = "--timeout 16 --retry-cnt 3";
/// The same without empty messages: where a READ is retried and answered, soft-RoCE refuses an empty one with "remote access error" (seen on
/// the wire: NAK 62 to the second copy), which is an error of its own, with or without a shim.
const RETRIED: &str = "--size 8..9000 --timeout 16 --retry-cnt 3";
/// The same where the receiver is often not ready.
const SCARCE: &str = "--scarce-receives --timeout 16 --retry-cnt 3";
/// perftest's and NCCL's retries, which soft-RoCE takes as infinite: no error ever comes.
const PATIENT: &str = "--timeout 16 --retry-cnt 7";
/// Some wait for READs and atomics before them. Not where only some packets are lost: soft-RoCE never ends the retries of what such a request
/// waits for, and the path answers probes, so that nothing is wrong as far as anybody can tell.
const FENCED: &str = "--fence-every 5 --timeout 16 --retry-cnt 3";

/// The checking application's path MTU, and what the standby's ports carry.
const PATHS: [Path; 2] = [Path { mtu: 1024, is_exact: true }, Path { mtu: 4096, is_exact: true }];

/// A loss: its name, what the run needs beside, and the rule by how many packets it spares.
type Loss = (&'static str, &'static str, fn(u64) -> Rule);

const LOSSES: [Loss; 9] = [
    ("responses", FENCED, |spared| lost(&opcode::RESPONSES).from(Host::B).after(spared / 2)),
    ("requests", FENCED, |spared| lost(&opcode::REQUESTS).from(Host::A).after(spared)),
    ("read-responses", RETRIED, |spared| lost(&opcode::READ_RESPONSES).from(Host::B).after(spared / 8)),
    ("first-and-behind", RETRIED, |spared| lost(&opcode::FIRSTS).after(spared / 16).and_behind()),
    ("middle-and-behind", RETRIED, |spared| lost(&opcode::MIDDLES).after(spared / 16).and_behind()),
    ("last-and-behind", RETRIED, |spared| lost(&opcode::LASTS).after(spared / 16).and_behind()),
    ("responses-from-rnr", SCARCE, |spared| lost(&opcode::RESPONSES).from(Host::B).woken_by(not_ready(spared))),
    ("requests-from-rnr", SCARCE, |spared| lost(&opcode::REQUESTS).from(Host::A).woken_by(not_ready(spared))),
    ("silence", PATIENT, |spared| Rule::on(Link::Rail0, Action::Drop).after(spared)),
];

fn lost(opcodes: &[u8]) -> Rule {
    Rule::on(Link::Rail0, Action::Drop).opcodes(opcodes)
}

fn not_ready(spared: u64) -> Rule {
    Rule::on(Link::Rail0, Action::Pass).from(Host::B).receiver_not_ready().after(spared / 64)
}

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-loss",
            "a queue pair of each mode; responses, requests, ends or middles of messages lost: all is right",
            losses,
        ),
        Scenario::guests(
            "shim-atomics",
            "acknowledgements of atomics, atomics, or both lost: done once, or an error and at most once",
            atomics,
        ),
        Scenario::guests(
            "shim-reuse",
            "memory overwritten by its consumer at once, acknowledgements lost, 50 queue pairs: no old value comes back",
            reuse,
        ),
        Scenario::guests("shim-flap", "a rail gone for 50 ms with atomics outstanding: no error", flap),
    ]
}

/// Queue pairs that ended in an error, at one host.
fn fallen(story: &Story, host: Host) -> Result<Vec<Value>> {
    let report = report(story, host)?;
    let fallen = report.get("fallen").and_then(Value::as_array).cloned();
    fallen.ok_or_else(|| Trouble::judged(format!("no list of the fallen: {report}")))
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value.get(name).and_then(Value::as_u64).ok_or_else(|| Trouble::judged(format!("no {name} in {value}")))
}

/// Something was lost; both sides are content; what ended in an error did so at both ends alike, and has atomics.
fn judge(checker: &Checker, story: &Story, evidence: &Evidence) -> Result<Figures> {
    let mut told = judge_survival(checker, story, evidence)?;
    let dropped = story.records.iter().filter(|record| was_dropped(record)).count();
    require(dropped > 0, || "nothing was lost: the run proves nothing".into())?;
    told.note("dropped", dropped);
    let agreement = agreement::judge(&story.records, evidence, PATHS)?;
    let left = reported_to(evidence, Host::A);
    let not_all = || format!("of {left} senders' records not all were compared with the wire: {agreement:?}");
    require(left > 0 && agreement.queue_pairs >= left, not_all)?;
    told.note("agreement", agreement.in_words());
    let (sent, received) = (fallen(story, Host::A)?, fallen(story, Host::B)?);
    for fallen in sent.iter().chain(&received) {
        let mode = fallen.get("mode").and_then(Value::as_str).unwrap_or("?");
        require(["fadd", "cas", "mixed_atomic"].contains(&mode), || format!("an error without an atomic: {fallen}"))?;
        let alike = |other: &&Value| ["qp", "acked", "posted"].iter().all(|name| other.get(name) == fallen.get(name));
        let both = sent.iter().any(|each| alike(&each)) && received.iter().any(|each| alike(&each));
        require(both, || format!("not alike at both ends: {fallen}"))?;
    }
    told.note("fallen", received);
    Ok(told)
}

/// Queue pairs of the sender to which the other end reported: all that moved.
fn reported_to(evidence: &Evidence, host: Host) -> u64 {
    let heard = |record: &&Value| record["reported"].as_array().is_some_and(|reports| !reports.is_empty());
    let left: BTreeSet<Option<u64>> = evidence.of(host).filter(heard).map(|record| record["qpn"].as_u64()).collect();
    left.len() as u64
}

fn was_dropped(record: &Record) -> bool {
    record.link == Rail::Zero.link() && record.fate == Fate::Dropped
}

fn losses(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, options, rule) in LOSSES {
        lab.reset()?;
        let options = format!("--mode {MODES} --qps {QPS} --seed {seed} --messages {MESSAGES} --may-fail {options}");
        let checker = Checker::gated(options);
        let rule = rule(Seed::new(seed, name).within(0..SPARED));
        let trial = checker.trial().fault(Fault::Rule(rule), Moment::Idle { qps: QPS });
        let (story, evidence) = run(lab, &trial)?;
        figures.note(name, json!(judge(&checker, &story, &evidence)?));
    }
    Ok(figures)
}

/// Modes of queue pairs that have atomics, several of each, so that the loss comes at different points of each.
const ATOMIC_MODES: &str = "fadd,cas,fadd,mixed_atomic";
/// So many.
const ATOMIC_QPS: u64 = 8;
/// Atomics of each queue pair that pass first.
const ATOMICS_SPARED: std::ops::Range<u64> = 2..40;

/// What of an atomic is lost, the best level of proof, and how deep the queues are.
const ATOMIC_LOSSES: [(&str, &[u8], &str, u32); 5] = [
    ("acknowledgements", &[opcode::ATOMIC_ACK], "psn", 1),
    ("requests", &[opcode::FETCH_ADD, opcode::COMPARE_SWAP], "psn", 16),
    ("both", &[opcode::ATOMIC_ACK, opcode::FETCH_ADD, opcode::COMPARE_SWAP], "psn", 16),
    ("acknowledgements-unproven", &[opcode::ATOMIC_ACK], "sender", 16),
    ("requests-unproven", &[opcode::FETCH_ADD, opcode::COMPARE_SWAP], "sender", 1),
];

fn atomics(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, opcodes, proof, depth) in ATOMIC_LOSSES {
        lab.reset()?;
        let shape = format!("--mode {ATOMIC_MODES} --qps {ATOMIC_QPS} --depth {depth} --messages 80 {IMPATIENT}");
        let mut checker = Checker::gated(format!("{shape} --may-fail --seed {seed}"));
        checker.env = vec![("SHIFT_PROOF", proof)];
        let spread =
            Spread { seed: Seed::new(seed, name).next_u64(), low: ATOMICS_SPARED.start, high: ATOMICS_SPARED.end };
        let fault = Fault::Rule(lost(opcodes).after_each(spread));
        let (story, evidence) = run(lab, &checker.trial().fault(fault, Moment::Idle { qps: ATOMIC_QPS }))?;
        let told = judge(&checker, &story, &evidence).map_err(|why| Trouble::judged(format!("{name}: {why}")))?;
        judge_atomics(name, depth, &fallen(&story, Host::B)?)?;
        figures.note(name, json!(told));
    }
    Ok(figures)
}

/// Where one is outstanding at a time, the counter says which of the two it was.
fn judge_atomics(name: &str, depth: u32, fallen: &[Value]) -> Result<()> {
    // Of `mixed_atomic` the last ones may lie behind the last message that was spared.
    let all = fallen.iter().filter(|each| each.get("mode") != Some(&json!("mixed_atomic"))).count();
    match name {
        "requests" => require(fallen.is_empty(), || format!("one that was not executed is an error: {fallen:?}"))?,
        "both" => {}
        _ => require(all == 6, || {
            format!("{name}: results are lost and the application was told otherwise: {fallen:?}")
        })?,
    }
    for each in fallen.iter().filter(|_| depth == 1) {
        let (acked, counted) = (number(each, "acked")?, number(each, "counted")?);
        let executed = u64::from(name.starts_with("acknowledgements"));
        require(counted == acked + executed, || format!("{name}: {each}"))?;
    }
    Ok(())
}

/// Queue pairs whose consumer overwrites what it saw, and messages of each; twice, so 10,000 messages in all.
const REUSE_QPS: u64 = 25;
const REUSE_MESSAGES: u64 = 200;
/// Queue pairs of the control.
const GHOST_QPS: u64 = 8;
/// Acknowledgements of each queue pair that pass first.
const REUSE_SPARED: std::ops::Range<u64> = 1..120;

/// Theorem 1's second trace: the message is executed, its acknowledgement lost, and the consumer has used the memory again when the sender
/// learns of a fault. Then the same where no receiver is asked: a WRITE is done again, and the old value is back.
fn reuse(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let both = "write,write_imm";
    let runs = [
        ("first", both, REUSE_QPS, "psn"),
        ("second", both, REUSE_QPS, "psn"),
        ("unproven", "write", GHOST_QPS, "sender"),
    ];
    for (name, modes, qps, proof) in runs {
        lab.reset()?;
        let seed = Seed::new(seed, name).next_u64();
        let shape = format!("--mode {modes} --qps {qps} --messages {REUSE_MESSAGES} --size 8..200 --depth 16");
        let mut checker = Checker::gated(format!("{shape} {IMPATIENT} --reuse --seed {seed}"));
        checker.env = vec![("SHIFT_PROOF", proof)];
        let acks = || lost(&[opcode::ACK]).from(Host::B);
        let spread = Spread { seed, low: REUSE_SPARED.start, high: REUSE_SPARED.end };
        // When that many have passed in all, the rest is lost too, with the answers to probes: the path is dead.
        let all = acks().after(qps * REUSE_SPARED.end / 3);
        let fault = Fault::Rules(vec![all, acks().after_each(spread)]);
        let (story, evidence) = run(lab, &checker.trial().fault(fault, Moment::Idle { qps }))?;
        let told = if proof == "psn" {
            judge_survival(&checker, &story, &evidence)?
        } else {
            let server = report(&story, Host::B)?;
            let ghosts = number(&server, "stale")?;
            require(ghosts > 0, || format!("no old value came back: the other runs prove nothing: {server}"))?;
            Figures::new().with("ghost_writes", ghosts).with("received", number(&server, "received")?)
        };
        let agreement = agreement::judge(&story.records, &evidence, PATHS)?;
        let in_doubt =
            || format!("a queue pair without a message that was executed and not acknowledged: {agreement:?}");
        require(proof != "psn" || agreement.with_executed == qps, in_doubt)?;
        figures.note(name, json!(told.with("agreement", agreement.in_words())));
    }
    Ok(figures)
}

/// As long as a link takes to train again.
const FLAP: std::time::Duration = std::time::Duration::from_millis(50);
/// Atomics alone: where a WRITE or SEND is retransmitted too, soft-RoCE acknowledges it with the number of the last packet that it executed, and
/// the requester takes that for the result of an atomic of this number: it completes without one, with or without a shim.
const FLAP_MODES: &str = "fadd,cas";

/// The NIC's own retries heal it, so an end with atomics outstanding waits.
fn flap(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, host) in [("wire", None), ("receiver", Some(Host::B))] {
        lab.reset()?;
        let shape = format!("--mode {FLAP_MODES} --qps {ATOMIC_QPS} --messages 1500 {PATIENT}");
        let checker = Checker::shimmed(format!("{shape} --seed {seed}"));
        let fault = Fault::Flap { host, rail: Rail::Zero, gone: FLAP };
        let moment = Moment::armed(ATOMIC_QPS, seed, 100, 1000);
        let (story, evidence) = run(lab, &checker.trial().fault(fault, moment))?;
        require(story.fault_ns.is_some(), || "the run was over before the flap".into())?;
        for host in Host::ALL {
            let report = report(&story, host)?;
            require(report.get("pass") == Some(&json!(true)), || format!("{name}: {report}"))?;
        }
        story.require_success()?;
        let mut told = story.figures();
        evidence.note(&mut told);
        figures.note(name, json!(told));
    }
    Ok(figures)
}
