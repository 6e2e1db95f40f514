//! A second fault, on the standby, before the first migration is confirmed, and back to the first path.
//!
//! On each rail in turn acknowledgements get lost, and a little later the requests too: of what is outstanding some was executed and some was not,
//! and to the sender it looks the same. Twice in doubt, then; in one run without a packet number that proves anything of the second rail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{json, Value};

use crate::agreement::{self, Agreement, Path};
use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::{Ended, Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link};
use crate::seed::Seed;
use crate::trial::all_protected;
use crate::trouble::{require, Result, Trouble};
use crate::wire::log::Fate;
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule, RuleId, Spread};

use super::checker::{Checker, GO_ON, PORT};
use super::race::report;
use super::Scenario;

/// Each step of a run: arming, the second fault, the end.
const STEP: Duration = Duration::from_secs(40);
/// Acknowledgements of the whole run that rail 0 carries, and requests behind the first one that is lost.
const FIRST: (std::ops::Range<u64>, std::ops::Range<u64>) = (30..120, 0..40);
/// Acknowledgements of a queue pair that rail 1 carries, and requests: few, so that its first migration is not confirmed when the second fault comes.
const SECOND: (std::ops::Range<u64>, std::ops::Range<u64>) = (0..6, 0..24);

/// Atomics of a queue pair that rail 0 carries: hardly one, so that some queue pairs replay theirs on rail 1, and do not end in an error before.
const ATOMICS: std::ops::Range<u64> = 0..2;

/// A run through both faults.
#[derive(Debug, Clone)]
pub(super) struct Twice<'a> {
    /// Of each turn a queue pair has one.
    pub(super) modes: &'a str,
    /// So many.
    pub(super) qps: u64,
    /// Further options of the checking application.
    pub(super) options: &'a str,
    /// What is wrong with a device, on both hosts.
    pub(super) fault: Option<&'a str>,
    /// The rails.
    pub(super) paths: [Path; 2],
}

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::guests(
        "shim-second-fault",
        "packets lost on rail 0, then on rail 1 in mid-replay, back to rail 0; also without a PSN proof of rail 1",
        |lab: &mut Lab, seed| {
            let mut figures = Figures::new();
            // The checking application asks for 1024, so the standby has no more although its port carries 4096.
            let asked = Path { mtu: 1024, is_exact: true };
            let void = Path { is_exact: false, ..asked };
            for (name, fault, second) in
                [("by packet numbers", None, asked), ("rail 1 by receive count", Some("void-psn=rxe1"), void)]
            {
                lab.reset()?;
                let run = Twice {
                    modes: "fadd,send,mixed,write,fadd,mixed_atomic,write_imm",
                    qps: 14,
                    options: "--messages 120 --size 8..6000",
                    fault,
                    paths: [asked, second],
                };
                let (told, _) = run.run(lab, seed).map_err(|why| Trouble::judged(format!("{name}: {why}")))?;
                figures.note(name, json!(told));
            }
            Ok(figures)
        },
    )]
}

/// Queue pairs of the sender that ended in an error.
fn surfaced(evidence: &Evidence) -> u64 {
    let ended = evidence.of(Host::A).filter(|record| record["outcome"] == "surfaced");
    ended.map(|record| record["qpn"].as_u64()).collect::<BTreeSet<_>>().len() as u64
}

impl Twice<'_> {
    /// Both faults; what the checking application says of it, and whether the wire and the shims agree.
    pub(super) fn run(&self, lab: &mut Lab, seed: u64) -> Result<(Figures, Agreement)> {
        Evidence::clear(lab)?;
        lab.a().shell(&format!("rm -f {GO_ON}"))?;
        let since = lab.wire().position()?;
        let (server, client) = self.start(lab, seed)?;
        let mut dice = Seed::new(seed, "second fault");
        let first = lose_on(lab, &mut dice)?;
        let second = lose_on_each(lab, since, &mut dice)?;
        lab.a().write(GO_ON, "", 0o644)?;
        // Those with atomics come last: their NICs may retry first. Requests are sent again until the last of them is lost, but for queue pairs
        // that the first fault ended.
        until("the second fault of every queue pair", STEP, || {
            not_over(&client, &server, "the second fault")?;
            let records = lab.wire().records_since(since)?.into_iter();
            let lost = records.filter(|record| record.from == Host::A && record.fate == Fate::Dropped);
            let lost = lost.filter(|record| record.rule.is_some_and(|rule| second.contains(&rule)));
            let hit: BTreeSet<_> = lost.filter_map(|record| Some(record.packet.roce?.qpn)).collect();
            Ok((hit.len() as u64 + surfaced(&Evidence::collect(lab)?) >= self.qps).then_some(()))
        })?;
        // Rail 1 carries nothing any more, so that nobody goes back to it; rail 0 is whole again.
        lab.wire().add(Rule::on(Link::Rail1, Action::Drop))?;
        for rule in first {
            lab.wire().remove(rule)?;
        }
        let ends = [client.wait(STEP)?, server.wait(STEP)?];
        for ended in &ends {
            require(ended.succeeded(), || format!("{}: {}", ended.brief(), report(ended)))?;
        }
        let evidence = Evidence::collect(lab)?;
        let agreement = agreement::judge(&lab.wire().records_since(since)?, &evidence, self.paths)?;
        let told = self.judge_records(&evidence)?.with("agreement", agreement.in_words());
        require(agreement.later > 0, || "no packet number of a later incarnation was compared".into())?;
        Ok((told.with("fallen", self.judge_fallen(&ends, &evidence)?), agreement))
    }

    fn start(&self, lab: &mut Lab, seed: u64) -> Result<(Running, Running)> {
        let shape = format!("--mode {} --qps {} --depth 16 {}", self.modes, self.qps, self.options);
        let gate = format!("--pause-before-message 1 --idle-until-file {GO_ON}");
        let limits = "--timeout 16 --retry-cnt 3 --may-fail";
        let trial = Checker::plain(format!("{shape} {limits} --seed {seed} {gate}")).trial();
        let dress = |program: Program| match self.fault {
            Some(fault) => program.with_shim_over(fault),
            None => program.with_shim(),
        };
        let (server, client) = lab.start_pair(Host::B, PORT, &dress(trial.server), &dress(trial.client))?;
        until("all queue pairs to be protected", STEP, || {
            not_over(&client, &server, "it was protected")?;
            Ok([&client, &server].iter().all(|side| all_protected(side) >= self.qps).then_some(()))
        })?;
        Ok((server, client))
    }

    /// The second fault came before the first migration was confirmed, at both ends, and all came back; the records name the MTU of each path.
    fn judge_records(&self, evidence: &Evidence) -> Result<Figures> {
        let mut told = Figures::new();
        for (host, name) in Host::ALL.into_iter().zip(["overtaken_at_sender", "overtaken_at_receiver"]) {
            let overtaken = evidence.of(host).filter(|record| record["outcome"] == "overtaken").count();
            require(overtaken > 0, || format!("every first migration was confirmed at {host:?}: {}", brief(evidence)))?;
            told.note(name, overtaken);
        }
        let back = evidence
            .of(Host::A)
            .filter(|record| record["epoch"].as_u64() >= Some(2) && record.pointer("/to/path") == Some(&json!(0)));
        let back = back.count() as u64;
        require(back > 0, || format!("nothing came back to rail 0: {}", brief(evidence)))?;
        for record in Host::ALL.into_iter().flat_map(|host| evidence.of(host)) {
            for end in ["/from", "/to"] {
                let number = |name: &str| record.pointer(&format!("{end}/{name}")).and_then(Value::as_u64);
                let mtu = number("path").and_then(|path| self.paths.get(path as usize)).map(|path| u64::from(path.mtu));
                require(number("mtu") == mtu, || format!("due was {mtu:?} in {}", record["from"]))?;
            }
        }
        let twice =
            evidence.of(Host::A).filter(|record| record["reported"].as_array().is_some_and(|all| all.len() > 1));
        Ok(told.with("back_on_rail_0", back).with("with_two_reports", twice.count()))
    }

    /// Only atomics end a queue pair, at both ends alike. Without a proof of rail 1 those of which nothing is known do, and a SEND that was cut
    /// off on rail 0: by packet number there and by receive count here it is unknown.
    fn judge_fallen(&self, ends: &[Ended; 2], evidence: &Evidence) -> Result<Value> {
        let [sent, received] = ends.each_ref().map(|ended| {
            let fallen = report(ended).get("fallen").and_then(Value::as_array).cloned().unwrap_or_default();
            fallen.into_iter().map(|each| (each.get("qp").and_then(Value::as_u64), each)).collect::<BTreeMap<_, _>>()
        });
        require(sent.keys().eq(received.keys()), || format!("not alike at both ends: {sent:?}, {received:?}"))?;
        let mut others = Vec::new();
        for (qp, each) in &received {
            let at_sender = sent.get(qp).unwrap_or(&Value::Null);
            let alike = ["acked", "posted"].iter().all(|name| at_sender.get(name) == each.get(name));
            require(alike, || format!("not alike at both ends: {at_sender}, {each}"))?;
            let mode = each.get("mode").and_then(Value::as_str).unwrap_or("?");
            others.extend((!["fadd", "mixed_atomic"].contains(&mode)).then_some(each));
        }
        let has_proof = self.paths.iter().all(|path| path.is_exact);
        let in_doubt = evidence.of(Host::A).filter(|record| ends_in_doubt(record)).count();
        require(others.is_empty() || (!has_proof && others.len() == in_doubt), || {
            format!("an error without an atomic, or a SEND of which nothing is known ({in_doubt}): {others:?}")
        })?;
        let requests = evidence.of(Host::A).filter_map(|record| record["requests"].as_array()).flatten();
        let unknown = requests.filter(|request| request["op"] == "fetch_add" && request["state"] == "unknown");
        let unknown: Vec<&Value> = unknown.collect();
        let guessed = unknown.iter().find(|request| request["action"] != "error");
        require(guessed.is_none(), || format!("nothing is known of it, and it is no error: {guessed:?}"))?;
        require(has_proof == unknown.is_empty(), || format!("atomics of which nothing is known: {unknown:?}"))?;
        Ok(json!({ "unknown_atomics": unknown.len(), "queue_pairs": received.into_values().collect::<Vec<_>>() }))
    }
}

/// Of rail 0, all answers behind so many, and all requests behind so many that were not answered; and atomics.
fn lose_on(lab: &Lab, dice: &mut Seed) -> Result<[RuleId; 3]> {
    let lost = || Rule::on(Link::Rail0, Action::Drop);
    let answers = dice.within(FIRST.0);
    let responses = || lost().opcodes(&opcode::RESPONSES).from(Host::B).after(answers);
    let unanswered = lost().opcodes(&opcode::REQUESTS).from(Host::A).after(dice.within(FIRST.1));
    let spread = Spread { seed: dice.next_u64(), low: ATOMICS.start, high: ATOMICS.end };
    let rules =
        [responses(), unanswered.woken_by(responses()), lost().opcodes(&[opcode::FETCH_ADD]).after_each(spread)];
    let [first, behind, atomics] = rules.map(|rule| lab.wire().add(rule).map(|(id, _)| id));
    Ok([first?, behind?, atomics?])
}

/// The same on rail 1, each queue pair at another point. What was there before any fault are probes; they go on.
fn lose_on_each(lab: &Lab, since: u64, dice: &mut Seed) -> Result<[RuleId; 2]> {
    let seen = lab.wire().records_since(since)?;
    let mut add = |opcodes: &[u8], from, sent: std::ops::Range<u64>| {
        let probes = seen.iter().filter(|record| record.link == Link::Rail1 && record.from == from);
        let probes: BTreeSet<u32> = probes.filter_map(|record| Some(record.packet.roce?.qpn)).collect();
        let spread = Spread { seed: dice.next_u64(), low: sent.start, high: sent.end };
        let rule = Rule::on(Link::Rail1, Action::Drop).opcodes(opcodes).from(from).sparing(probes).after_each(spread);
        lab.wire().add(rule).map(|(id, _)| id)
    };
    Ok([add(&opcode::RESPONSES, Host::B, SECOND.0)?, add(&opcode::REQUESTS, Host::A, SECOND.1)?])
}

fn not_over(client: &Running, server: &Running, what: &str) -> Result<()> {
    match client.ended().or(server.ended()) {
        Some(ended) => Err(Trouble::judged(format!("it ended before {what}: {}; {}", ended.brief(), report(&ended)))),
        None => Ok(()),
    }
}

/// What ended the queue pair is a SEND of which nothing is known.
fn ends_in_doubt(record: &Value) -> bool {
    let mut requests = record["requests"].as_array().into_iter().flatten();
    let first = requests.find(|request| request["action"] == "error");
    let is_send = |request: &Value| request["op"] == "send" || request["op"] == "send_imm";
    record["outcome"] == "surfaced" && first.is_some_and(|first| is_send(first) && first["state"] == "unknown")
}

/// How each migration ended.
fn brief(evidence: &Evidence) -> Value {
    let all = Host::ALL.into_iter().flat_map(|host| evidence.of(host).map(move |record| (host, record)));
    all.map(|(host, record)| {
        json!([
            host.name(),
            record["qpn"],
            record["epoch"],
            record.pointer("/from/path"),
            record.pointer("/to/path"),
            record["outcome"],
            record["replayed"],
            record["proven"],
            record["surfaced"]
        ])
    })
    .collect()
}
