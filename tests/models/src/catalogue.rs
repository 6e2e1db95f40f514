//! What is checked: each check by name, with what it claims, its bounds, and the control that has to find something with the same code. The
//! table of the README is made of these.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::ado::core::Core;
use crate::ado::{Condition, Quorums};
use crate::explorer::{Explorer, Extent, Liveness};
use crate::failover::checks::{breaches, cases, invalid_pushes, lists, search_all, Breach};
use crate::failover::{Proven, Setting};
use crate::groups;
use crate::theorems::aba::{right_verdicts, worlds, Looks};
use crate::theorems::atomics::{characterisation, repeat};
use crate::theorems::hierarchy::{agreement, Step};
use crate::theorems::memory::{Op, DATA};
use crate::theorems::overlay::{decided_by_count, undecidable, Sees, Table};
use crate::theorems::sliding::{run, Recovery};
use crate::theorems::trace::{Discipline, Runs};
use crate::theorems::two_nics::{Care, TwoNics};

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As every run of the tests does: seconds.
    Default,
    /// As far as is worth waiting for: minutes.
    Long,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Over what.
    pub bounds: String,
    /// States, moments or schedules that were looked at.
    pub states: u64,
    /// `complete within bounds`, or where it was cut.
    pub extent: String,
    /// What its control found.
    pub control: String,
    /// What is wrong.
    pub failure: Option<String>,
}

/// One check.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// By which it is asked for.
    pub name: &'static str,
    /// Where its model is.
    pub place: &'static str,
    /// What holds.
    pub claim: &'static str,
    /// Checks it.
    pub run: fn(Scale) -> Finding,
}

/// All of them.
#[must_use]
pub fn checks() -> Vec<Check> {
    let theorems = [
        (
            "theorem-1",
            "theorems/overlay.rs",
            "no decision by the sender's view is safe and live: polled WRITEs, notifications, atomics",
            theorem_1 as fn(Scale) -> Finding,
        ),
        (
            "theorem-1-count",
            "theorems/overlay.rs",
            "with the receiver's count WRITEs behind a notification are decided",
            theorem_1_count,
        ),
        (
            "theorem-2",
            "theorems/atomics.rs",
            "which operations may be repeated without a trace; atomics may not",
            theorem_2,
        ),
        (
            "sliding",
            "theorems/sliding.rs",
            "a SEND executed twice shifts every later message; with a count none is",
            sliding,
        ),
        (
            "theorem-3-reads",
            "theorems/aba.rs",
            "neither READs nor atomics over the other path tell whether a request was executed",
            theorem_3_reads,
        ),
        (
            "theorem-3-agreement",
            "theorems/hierarchy.rs",
            "registers decide for 1, FADD and queues for 2, CAS for any number of processes",
            theorem_3_agreement,
        ),
        ("two-nics", "theorems/two_nics.rs", "fenced and counted, a request writes once over two NICs", two_nics),
    ];
    let failover = [
        (
            "failover-lists",
            "failover/checks.rs",
            "the safety rule's seven points, and every run can end: one fault anywhere under every list of requests",
            failover_lists as fn(Scale) -> Finding,
        ),
        (
            "failover-faults",
            "failover/checks.rs",
            "the same under second faults, crossing claims, failing fences, planned moves, destroys, other MTUs, posters, cuts",
            failover_faults,
        ),
        (
            "failover-breaches",
            "failover/controls.rs",
            "what is broken on purpose is found by a shortest run; the same worlds without it hold",
            failover_breaches,
        ),
        (
            "object",
            "ado/core.rs",
            "an atomic distributed object has one history: commits on one branch, a leader for each term",
            object,
        ),
        (
            "failover-object",
            "failover/lockstep.rs",
            "each step of every run of the two above is a pull, an invoke, a push or none of them",
            failover_object,
        ),
        (
            "groups",
            "groups/world.rs",
            "of groups that share peers all move, or leave behind; receives are in one place; every run can end",
            groups,
        ),
    ];
    theorems.into_iter().chain(failover).map(|(name, place, claim, run)| Check { name, place, claim, run }).collect()
}

const LISTS: &str = "complete within bounds";

fn finding(bounds: &str, states: u64, control: &str, failure: Option<String>) -> Finding {
    Finding { bounds: bounds.to_string(), states, extent: LISTS.to_string(), control: control.to_string(), failure }
}

fn unless(holds: bool, words: &str) -> Option<String> {
    (!holds).then(|| words.to_string())
}

fn theorem_1(scale: Scale) -> Finding {
    let longest = if scale == Scale::Long { 4 } else { 3 };
    let bounds = format!("every list of up to {longest} operations of 5 kinds, 3 habits of the consumer");
    let write = |reuses| {
        let ops = vec![Op::Write(DATA, 1)];
        Runs { ops, discipline: Discipline::PollData, reuses, keeps_traces: false }
    };
    let oracle = Table::of(&write(true), Sees::Executions).conflicts() == 0;
    let calm = Table::of(&write(false), Sees::SenderView).conflicts() == 0;
    match undecidable(longest) {
        Ok(tally) => {
            let control = format!(
                "{} operations in conflict, {} overlays tried; none in conflict for an oracle, nor for a WRITE whose memory is not used again",
                tally.conflicts, tally.overlays
            );
            finding(&bounds, tally.moments, &control, unless(oracle && calm, "a conflict without its cause"))
        }
        Err(words) => finding(&bounds, 0, "", Some(words)),
    }
}

fn theorem_1_count(scale: Scale) -> Finding {
    let longest = if scale == Scale::Long { 5 } else { 3 };
    let bounds = format!("every list of up to {longest} of WRITE, notification, READ; consumed behind a notification");
    match decided_by_count(longest) {
        Ok(tally) => finding(&bounds, tally.moments, "by the sender's view each notification is in conflict", None),
        Err(words) => finding(&bounds, 0, "", Some(words)),
    }
}

fn theorem_2(_: Scale) -> Finding {
    let values = 6;
    let all: Vec<_> = characterisation(values).collect();
    let wrong = all.iter().find(|(_, is, claimed)| is != claimed).map(|(op, ..)| format!("{op:?}"));
    let swapped = repeat(0, Op::CompareSwap(DATA, 0, 1), Some(Op::CompareSwap(DATA, 1, 0)));
    let failure = wrong.or_else(|| unless(swapped.values == [1, 1], "a repeated CAS does no harm"));
    let bounds = format!("every operation over cells and operands below {values}");
    finding(
        &bounds,
        all.len() as u64,
        "a repeated FADD adds twice; a repeated CAS undoes another's, and no order explains it",
        failure,
    )
}

fn sliding(_: Scale) -> Finding {
    let mut runs = 0;
    let mut slid = 0;
    let mut failure = None;
    for messages in 1..=8 {
        for executed in 0..=messages {
            for acknowledged in 0..=executed {
                let blind = run(messages, messages + 2, executed, acknowledged, Recovery::Blind).are_aligned(messages);
                let counted =
                    run(messages, messages + 2, executed, acknowledged, Recovery::ByCount).are_aligned(messages);
                runs += 1;
                slid += u64::from(!blind);
                if blind != (executed == acknowledged) || !counted {
                    failure = Some(format!("{messages} messages, {executed} executed, {acknowledged} acknowledged"));
                }
            }
        }
    }
    finding(
        "up to 8 messages, one fault anywhere",
        runs,
        &format!("a blind retry misplaces messages in {slid} of them"),
        failure,
    )
}

fn theorem_3_reads(_: Scale) -> Finding {
    let mut tried = 0;
    let looks = [
        Looks::Reads(1),
        Looks::Reads(2),
        Looks::Reads(3),
        Looks::Acts(Op::FetchAdd(DATA, 1)),
        Looks::Acts(Op::CompareSwap(DATA, 1, 0)),
    ];
    let mut failure = None;
    for look in looks {
        let (right, of) = right_verdicts(&worlds(4, look));
        tried += of;
        if right > 0 {
            failure = Some(format!("{right} verdicts by {look:?} are right"));
        }
    }
    let failure = failure.or_else(|| unless(right_verdicts(&worlds(4, Looks::Log)).0 > 0, "a log does not help"));
    let bounds = "a CAS among up to 4 of others, 1 to 3 READs or an atomic";
    finding(bounds, tried, "with one bit that the receiver writes down a right verdict exists", failure)
}

fn theorem_3_agreement(scale: Scale) -> Finding {
    let talk = |rounds| [Step::Tell, Step::Look(1)].repeat(rounds);
    let rounds = if scale == Scale::Long { 5 } else { 4 };
    let mut all: Vec<(usize, Vec<Step>, bool)> = (1..=rounds).map(|rounds| (2, talk(rounds), false)).collect();
    all.extend([
        (2, vec![Step::FetchAdd], true),
        (3, vec![Step::Tell, Step::FetchAdd, Step::Look(1), Step::Look(2)], false),
        (2, vec![Step::Dequeue], true),
        (3, vec![Step::Tell, Step::Dequeue, Step::Look(1), Step::Look(2)], false),
        (4, vec![Step::CompareSwap], true),
    ]);
    let mut executions = 0;
    let mut failure = None;
    for (processes, program, possible) in all {
        let found = agreement(processes, &program);
        executions += found.executions;
        if found.is_possible != possible {
            failure = Some(format!("{processes} processes, {program:?}: {found:?}"));
        }
    }
    let bounds =
        format!("every schedule of every set of participants: 2 to 4 processes, up to {} steps each", 2 * rounds);
    finding(&bounds, executions, "the same code finds a rule for FADD and queues with 2, and CAS with 4", failure)
}

fn two_nics(_: Scale) -> Finding {
    let explore = |fences, counts| {
        let model = TwoNics { requests: 4, care: Care { fences, counts } };
        Explorer::new(&model).liveness(Liveness::EndReachable).run()
    };
    let good = explore(true, true);
    let lengths = [explore(false, false), explore(false, true), explore(true, false)].map(|report| report.length());
    let failure = if !good.is_proof() {
        Some(good.to_string())
    } else {
        unless(lengths.iter().all(Option::is_some), "a control found nothing")
    };
    let words = lengths.map(|length| length.map_or("nothing".to_string(), |steps| format!("{steps} steps")));
    let control = format!(
        "written twice with neither in {}, counted without a fence in {}, fenced without a count in {}",
        words[0], words[1], words[2]
    );
    Finding {
        extent: good.extent.to_string(),
        ..finding("4 requests that each consume a receive, a fault anywhere", good.states as u64, &control, failure)
    }
}

fn object(scale: Scale) -> Finding {
    let nodes = if scale == Scale::Long { 8 } else { 7 };
    let core = Core::of_three(3, nodes);
    let good = Explorer::new(&core).run();
    let mut failure = unless(good.is_proof(), &good.to_string());
    let without = |condition| Core { without: Some(condition), ..core.clone() };
    let mut words = Vec::new();
    let conditions =
        [Condition::NewTerm, Condition::Newest, Condition::NotPreempted, Condition::Leads, Condition::Beyond];
    let all = conditions.map(|condition| (format!("{condition:?}"), without(condition)));
    let lone = Core { quorums: Quorums::Any(1), ..core.clone() };
    for (name, core) in all.into_iter().chain([("a quorum of more than one".to_string(), lone)]) {
        match Explorer::new(&core).run().length() {
            Some(steps) => words.push(format!("{name} {steps}")),
            None => failure = Some(format!("without {name} nothing is wrong")),
        }
    }
    let bounds = format!("3 replicas, 3 terms, majorities, {nodes} caches");
    let control = format!("steps to two histories without {}", words.join(", "));
    Finding { extent: good.extent.to_string(), ..finding(&bounds, good.states as u64, &control, failure) }
}

fn failover_object(_: Scale) -> Finding {
    let mut states = 0;
    let controls = found(invalid_pushes());
    let settings: Vec<_> =
        invalid_pushes().into_iter().map(|breach| Setting { control: None, ..breach.setting }).collect();
    let mut failure = None;
    for report in search_all(&settings) {
        states += report.states as u64;
        failure = failure.or(unless(report.is_proof(), &report.to_string()));
    }
    let bounds = "the worlds of failover-lists and failover-faults, and here those of its controls without the breach";
    match controls {
        Ok(words) => finding(bounds, states, &format!("steps to an invalid push: {words}"), failure),
        Err(words) => finding(bounds, states, "", Some(words)),
    }
}

fn groups(scale: Scale) -> Finding {
    let mut failure = None;
    let (mut states, mut names) = (0, Vec::new());
    for (name, setting) in groups::cases(scale == Scale::Long) {
        let report = setting.search();
        states += report.states as u64;
        names.push(format!("{name} ({})", report.states));
        failure = failure.or(unless(report.is_proof(), &format!("{name}: {report}")));
    }
    let mut words = Vec::new();
    for (setting, steps) in groups::breaches() {
        let (name, found) = (format!("{:?}", setting.control), setting.search().length());
        failure = failure.or(unless(found == Some(steps), &format!("{name} takes {found:?} steps, not {steps}")));
        words.push(format!("{} {steps}", name.trim_start_matches("Some(").trim_end_matches(')')));
    }
    let bounds = format!("one fault, two paths, two claims of each end: {}", names.join("; "));
    finding(&bounds, states, &format!("steps to each breach: {}", words.join(", ")), failure)
}

/// What is broken on purpose, and in how many steps each is found.
fn found(all: Vec<Breach>) -> Result<String, String> {
    let mut words = Vec::new();
    let settings: Vec<_> = all.iter().map(|breach| breach.setting.clone()).collect();
    for (Breach { setting, steps, .. }, report) in all.into_iter().zip(search_all(&settings)) {
        let name = setting.control.map_or("UnsignalledConsumer".to_string(), |control| format!("{control:?}"));
        match report.length() {
            Some(found) if found == steps => words.push(format!("{name} {found}")),
            found => return Err(format!("{name} takes {found:?} steps, not {steps}")),
        }
    }
    Ok(words.join(", "))
}

fn failover_lists(scale: Scale) -> Finding {
    let longest = if scale == Scale::Long { 3 } else { 2 };
    let (mut states, mut worlds, mut completed) = (0, 0, 0);
    let mut failure = None;
    let settings: Vec<_> = lists(longest).collect();
    for (setting, report) in settings.iter().zip(search_all(&settings)) {
        states += report.states as u64;
        worlds += 1;
        // By counts alone some lists can only end in an error; by packet numbers each can come through.
        let holds = if setting.proven == Proven::Psn { report.is_proof() } else { report.violation.is_none() };
        completed += u64::from(report.holds());
        if !(holds && report.extent == Extent::Complete) && failure.is_none() {
            failure = Some(format!("{:?} {:?}: {report}", setting.wants[0], setting.proven));
        }
    }
    let bounds = format!(
        "{worlds} worlds: lists of up to {longest} of WRITE, WRITE_WITH_IMM, SEND, READ, FADD, CAS, each plain, fenced or{} unsignalled; proof by PSN, by count; in {completed} of them everything may complete on the other path",
        if longest > 2 { ", up to 2," } else { "" }
    );
    finding(&bounds, states, "failover-breaches: the same worlds with a breach", failure)
}

fn failover_breaches(_: Scale) -> Finding {
    let (bounds, worlds) = ("each breach in one world", breaches());
    let without = worlds.iter().filter(|breach| breach.setting.control.is_some());
    let without: Vec<_> = without.map(|breach| Setting { control: None, ..breach.setting.clone() }).collect();
    let (mut states, mut failure) = (0, None);
    for report in search_all(&without) {
        states += report.states as u64;
        failure = failure.or(unless(report.violation.is_none(), &report.to_string()));
    }
    match found(worlds) {
        Ok(words) => finding(bounds, states, &format!("steps to each breach: {words}"), failure),
        Err(words) => finding(bounds, states, "", Some(words)),
    }
}

fn failover_faults(scale: Scale) -> Finding {
    let all = cases(scale == Scale::Long);
    let mut states = 0;
    let mut failure = None;
    let settings: Vec<_> = all.iter().map(|case| case.setting.clone()).collect();
    for (case, report) in all.iter().zip(search_all(&settings)) {
        states += report.states as u64;
        if !report.is_proof() && failure.is_none() {
            failure = Some(format!("{}: {report}", case.name));
        }
    }
    let bounds = all.iter().map(|case| case.name).collect::<Vec<_>>().join("; ");
    finding(&bounds, states, "failover-breaches: the same worlds with a breach", failure)
}

/// Runs a check and says how long it took.
#[must_use]
pub fn run_timed(check: &Check, scale: Scale) -> (Finding, Duration) {
    let begun = Instant::now();
    let finding = (check.run)(scale);
    (finding, begun.elapsed())
}

/// The table, in Markdown.
#[must_use]
pub fn table(rows: &[(Check, Finding, Duration)]) -> String {
    let mut table =
        "| check | where | holds | bounds | states | time | what its control found |\n|---|---|---|---|---|---|---|\n"
            .to_string();
    for (check, finding, took) in rows {
        let holds =
            finding.failure.as_ref().map_or(check.claim.to_string(), |words| format!("**does not hold**: {words}"));
        let _ = writeln!(
            table,
            "| {} | `{}` | {holds} | {}; {} | {} | {:.1} s | {} |",
            check.name,
            check.place,
            finding.bounds,
            finding.extent,
            grouped(finding.states),
            took.as_secs_f64(),
            finding.control
        );
    }
    table
}

/// `1234567` as `1 234 567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}
