//! Programs as Debian ships them: without the shim, under it, and under it through the death of rail 0 at either end.
//!
//! Each scenario notes the program, its package and what came of it; `ci/programs` makes the table of README.md out of that.

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use self::outline::outline;
use self::table::{Connects, Expected, Row, Unusual};
use super::survive::{moved, require_fault, run};
use super::Scenario;
use crate::boot::run_tool;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::{Ended, Program};
use crate::lab::Lab;
use crate::perftest::Shim;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::{protected, Fault, Moment, ServerEnd, Story, Trial};
use crate::trouble::{require, Result, Trouble};

mod mpi;
mod outline;
mod table;

/// The ends at which rail 0 is cut, by the name that the scenarios have for them.
const ENDS: [(&str, Host); 2] = [("client", Host::A), ("server", Host::B)];
/// Packets on rail 0 before the cut where nothing is protected.
const UNPROTECTED_PACKETS: u64 = 400;
/// An error comes at once at the end whose port goes down: who has not ended after this stands still, at least with the retries that
/// soft-RoCE takes for infinite.
const STALL: Duration = Duration::from_secs(6);

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = table::rows().into_iter().flat_map(of_row).collect();
    for (name, silent) in [("acks", Host::B), ("requests", Host::A)] {
        let about = format!("ib_atomic_bw under the shim, {name} lost: an error where results are, else none");
        let run = move |lab: &mut Lab, seed| atomics_lost(lab, silent, seed);
        scenarios.push(Scenario::guests(format!("program-ib_atomic_bw-lost-{name}"), about, run));
    }
    scenarios
}

fn of_row(row: Row) -> Vec<Scenario> {
    let whole = row.clone();
    let about = format!("{} with the shim and without, no fault: the same output and exit status", row.title);
    let compare = move |lab: &mut Lab, _| without_fault(lab, &whole);
    let mut scenarios = vec![Scenario::guests(format!("program-{}", row.slug), about, compare)];
    for (end, host) in ENDS {
        let what = match row.expected {
            Expected::Comes => "under the shim: as without a fault",
            Expected::Atomics => "under the shim: an error where the shim says so, else none",
            Expected::Unprotected(_) => "ends as without the shim, and the shim said why",
        };
        let about = format!("{}, rail 0 down at the {end}, {what}", row.title);
        let name = format!("program-{}-cut-{end}", row.slug);
        let row = row.clone();
        let run = move |lab: &mut Lab, seed| cut(lab, &row, host, seed);
        scenarios.push(Scenario::guests(name, about, run));
    }
    scenarios
}

/// Who it is, for the table.
fn described(row: &Row) -> Result<Figures> {
    let version = run_tool(Command::new("dpkg-query").args(["-W", "-f", "${Version}", row.package]))?;
    let mut figures = Figures::new();
    figures.note("program", row.title.as_str());
    figures.note("package", format!("{} {version}", row.package));
    if let Some(switches) = row.switches() {
        figures.note("switches", switches);
    }
    Ok(figures)
}

fn trial(row: &Row, shim: Shim) -> Trial {
    let apply = |program: &Program, host| shim.apply(host, program.clone());
    let trial = Trial::new(Host::B, row.listens, apply(&row.server, Host::B), apply(&row.client, Host::A));
    let stall_limit = match row.unusual {
        Unusual::Nothing | Unusual::Tcp(_) => trial.stall_limit,
        Unusual::Mpi => mpi::STALL,
    };
    Trial { server_end: row.server_end, stall_limit, ..trial }
}

/// What has to be there before a run. A cut in an earlier scenario may have left it without a connection manager.
fn prepare(lab: &Lab, row: &Row) -> Result<()> {
    if row.connects == Connects::Rdmacm {
        lab.renew(Rail::Zero)?;
    }
    match row.unusual {
        Unusual::Nothing => Ok(()),
        Unusual::Mpi => mpi::prepare(lab),
        Unusual::Tcp(port) => over_management(lab, port),
    }
}

/// TCP from the client to that port of the server goes over the management network, whatever address of the server's it is for. A host answers at
/// an address whose interface is down, as long as somebody brings it the packets.
fn over_management(lab: &Lab, port: u16) -> Result<()> {
    let (to, via, table) = (Rail::Zero.link().address(Host::B), Link::Management.address(Host::B), port);
    let rule = format!("to {to} ipproto 6 dport {port} lookup {table}");
    let route = format!("ip route replace {to} via {via} dev eth0 table {table}");
    let command = format!("{route} && {{ ip rule del {rule} 2>/dev/null; ip rule add {rule}; }}");
    lab.guest(Host::A).shell(&command).map(drop)
}

/// The trial of a cut.
fn cut_trial(row: &Row, fault: Fault, packets: u64) -> Trial {
    let trial = trial(row, Shim::Both);
    match row.unusual {
        Unusual::Nothing | Unusual::Tcp(_) => trial.fault(fault, Moment::Armed { qps: row.qps, packets }),
        Unusual::Mpi => {
            let client = mpi::gated(trial.client.clone());
            let trial = Trial { client, go_on: Some(mpi::GATE), ..trial };
            trial.fault(fault, Moment::Together { qps: row.qps, packets })
        }
    }
}

/// What two runs must have in common: how each end ended, and what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    ends: Vec<(Option<i32>, Option<i32>)>,
    lines: Vec<String>,
}

fn told(row: &Row, story: &Story) -> Result<Told> {
    let still = |name: &str| Trouble::judged(format!("{}: the {name} stood still", row.title));
    let mut ends = vec![story.client.as_ref().ok_or_else(|| still("client"))?];
    if row.server_end == ServerEnd::Itself {
        ends.push(story.server.as_ref().ok_or_else(|| still("server"))?);
    }
    let of = |ended: &&Ended| [outline(&ended.out, row.compared), outline(&ended.err, row.compared)].concat();
    let all = ends.iter().flat_map(of).filter(|line| !row.varies.iter().any(|words| line.contains(words)));
    let lines = all.collect();
    Ok(Told { ends: ends.iter().map(|ended| (ended.code, ended.signal)).collect(), lines })
}

/// A run without the shim, once in a run of the lab.
fn without_shim(lab: &mut Lab, row: &Row) -> Result<Told> {
    static KNOWN: Mutex<Option<HashMap<String, Told>>> = Mutex::new(None);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(told) = known().get_or_insert_with(HashMap::new).get(&row.slug) {
        return Ok(told.clone());
    }
    prepare(lab, row)?;
    let story = trial(row, Shim::Nowhere).run(lab)?;
    let plain = told(row, &story)?;
    require(plain.ends.iter().all(|(code, _)| *code == Some(0)), || {
        format!("without the shim: {:?}", story.figures())
    })?;
    require(!plain.lines.is_empty(), || format!("{} printed nothing: there is nothing to compare", row.title))?;
    known().get_or_insert_with(HashMap::new).insert(row.slug.clone(), plain.clone());
    lab.reset()?;
    Ok(plain)
}

fn require_alike(plain: &Told, with: &Told) -> Result<()> {
    require(plain.ends == with.ends, || {
        format!("it ends with {:?} and not with {:?}: {:?}", with.ends, plain.ends, with.lines)
    })?;
    let differing = plain.lines.iter().zip(&with.lines).find(|(plain, with)| plain != with);
    require(plain.lines.len() == with.lines.len() && differing.is_none(), || {
        format!("it prints something else: {differing:?}, {} lines and not {}", with.lines.len(), plain.lines.len())
    })
}

fn without_fault(lab: &mut Lab, row: &Row) -> Result<Figures> {
    let plain = without_shim(lab, row)?;
    prepare(lab, row)?;
    let (story, evidence) = run(lab, &trial(row, Shim::Both))?;
    require_alike(&plain, &told(row, &story)?)?;
    require(evidence.migrations() == 0, || "there was a migration without a fault".into())?;
    let mut figures = described(row)?.with("result", "the same").with("lines_compared", plain.lines.len());
    figures.note("protected", story.said.iter().filter_map(|line| protected(line)).sum::<u64>());
    if let Expected::Unprotected(words) = row.expected {
        figures.note("reason", reason(&story, words)?);
    }
    Ok(figures)
}

/// The line of a shim that says why something is unprotected.
fn reason(story: &Story, words: &str) -> Result<String> {
    let lines = story.said.iter().filter(|line| line.contains("shift-verbs["));
    let why = lines.clone().find(|line| line.contains("protected: ") && line.contains(words));
    let why = why.ok_or_else(|| Trouble::judged(format!("no line says {words:?}: {:?}", lines.collect::<Vec<_>>())))?;
    Ok(why.split_once("protected: ").map_or(why.as_str(), |(_, reason)| reason).to_owned())
}

fn cut(lab: &mut Lab, row: &Row, host: Host, seed: u64) -> Result<Figures> {
    let fault = Fault::Cut(host, Rail::Zero);
    if let Expected::Unprotected(words) = row.expected {
        return ends_alike(lab, row, fault, words);
    }
    let plain = without_shim(lab, row)?;
    prepare(lab, row)?;
    let packets = Seed::new(seed, &row.slug).within(0..row.packets);
    let (story, evidence) = run(lab, &cut_trial(row, fault, packets))?;
    require_fault(&story)?;
    require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
    let result = if row.expected == Expected::Atomics && surfaced(&story, &evidence) {
        require_error(&story)?;
        "an error, as the shim said: a result was lost"
    } else {
        require_alike(&plain, &told(row, &story)?)?;
        "comes through"
    };
    Ok(moved(described(row)?.with("result", result).with("packets", packets), &story, &evidence))
}

/// By a shim's record, or by its word: a program that ends at the error may be gone before the record is written.
fn surfaced(story: &Story, evidence: &Evidence) -> bool {
    let recorded = |record: &serde_json::Value| record["surfaced"].as_u64() > Some(0);
    let said = |line: &String| {
        let before = line.split_once("failover ").and_then(|(_, rest)| rest.split_once(" surfaced"));
        let count = before.and_then(|(before, _)| before.rsplit(' ').next()?.parse::<u64>().ok());
        count > Some(0)
    };
    Host::ALL.iter().flat_map(|host| evidence.of(*host)).any(recorded) || story.said.iter().any(said)
}

fn require_error(story: &Story) -> Result<()> {
    let end = story.client.as_ref();
    require(end.is_some_and(|ended| ended.code.is_some_and(|code| code != 0)), || {
        format!("the shim says that a result was lost, and the client: {:?}", end.map(Ended::brief))
    })
}

/// With the shim the same end as without it, and the shim has said why. A sender that is told of no loss may well end with 0.
fn ends_alike(lab: &mut Lab, row: &Row, fault: Fault, words: &str) -> Result<Figures> {
    let mut ends = Vec::new();
    let mut figures = described(row)?;
    for shim in [Shim::Nowhere, Shim::Both] {
        lab.reset()?;
        prepare(lab, row)?;
        let mut trial = trial(row, shim).fault(fault.clone(), Moment::Packets(UNPROTECTED_PACKETS));
        trial.stall_limit = STALL;
        let story = trial.run(lab)?;
        require_fault(&story)?;
        let end = story.client.as_ref().map(|ended| (ended.code, ended.signal));
        if shim == Shim::Both {
            figures.note("reason", reason(&story, words)?);
        }
        ends.push(end);
    }
    // Who stands still in tearing down, and who not, is a matter of milliseconds.
    let differ = matches!(ends.as_slice(), [Some(without), Some(with)] if without != with);
    require(!differ, || format!("it ends otherwise under the shim: {ends:?}"))?;
    Ok(figures.with("result", "unprotected: ends as without the shim").with("ends", json!(ends)))
}

/// From some moment on nothing that one end sends arrives: atomics are executed and their results lost, or they are not executed.
fn atomics_lost(lab: &mut Lab, silent: Host, seed: u64) -> Result<Figures> {
    let rows = table::rows();
    let row = rows.iter().find(|row| row.title == "ib_atomic_bw").ok_or_else(|| Trouble::setup("no such row"))?;
    let packets = Seed::new(seed, silent.name()).within(0..row.packets);
    let fault = Fault::Silence(Rail::Zero, Some(silent));
    let moment = Moment::Armed { qps: row.qps, packets };
    let (story, evidence) = run(lab, &trial(row, Shim::Both).fault(fault, moment))?;
    require_fault(&story)?;
    require(evidence.migrations() > 0, || "nothing was migrated: the run proves nothing".into())?;
    let lost = silent == Host::B;
    require(surfaced(&story, &evidence) == lost, || format!("surfaced: {}", surfaced(&story, &evidence)))?;
    if lost {
        require_error(&story)?;
    } else {
        story.require_success()?;
    }
    Ok(moved(described(row)?.with("packets", packets), &story, &evidence))
}
