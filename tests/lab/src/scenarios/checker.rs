//! The checking application (tests/checker) without the shim and without a fault: every mode is right, and each error that it commits on
//! purpose is reported as what it is. What it says under the shim is worth as much as these two.

use serde_json::{json, Value};

use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::perftest::Shim;
use crate::place::{Host, Link};
use crate::trial::{Story, Trial};
use crate::trouble::{require, Result, Trouble};

use super::Scenario;

/// TCP port of its side channel.
pub(super) const PORT: u16 = 18600;
/// Where every guest has it.
pub(super) const PROGRAM: &str = "/shift/shift-checker";
/// The same, not linked to libibverbs but bound as NCCL is.
const PROGRAM_BY_DLVSYM: &str = "/shift/shift-checker-dlvsym";

/// The library below the shim.
const PRELOAD: &str = "/shift/libshift_preload.so";

/// Modes by their names on its command line; the atomics are last.
const MODES: [&str; 7] = ["write", "write_imm", "send", "read", "mixed", "fadd", "cas"];

/// Shapes of a run: name and options. Together they have few and many outstanding, sizes from nothing to several packets, signalled and
/// not, inline and not, chains, many queue pairs on one completion queue of the exact size, and packet numbers that wrap.
const SHAPES: [(&str, &str); 6] = [
    ("one-outstanding", "--messages 300 --depth 1"),
    ("many-outstanding", "--messages 2000 --depth 64 --psn 16776960"),
    (
        "unsignalled-inline-chains",
        "--messages 2000 --depth 32 --signal-every 8 --inline 64 --chain 5 --sges 3 --size 0..3000",
    ),
    ("many-queue-pairs", "--messages 100 --depth 4 --qps 16 --direction both"),
    ("receiver-waits", "--messages 500 --depth 16 --receiver-waits"),
    ("receiver-not-ready", "--messages 200 --depth 8 --scarce-receives --poll sleepy"),
];

/// Errors on purpose: the option, the mode, and the reports of which at least one must tell it, at the sender (client) or receiver.
const COMMITS: [(&str, &str, Host, &str); 17] = [
    ("loss", "write", Host::B, "loss"),
    ("loss", "write_imm", Host::B, "loss"),
    ("loss", "send", Host::B, "loss"),
    ("loss", "read", Host::A, "loss"),
    ("duplicate", "write_imm", Host::B, "duplicate"),
    ("duplicate", "send", Host::B, "duplicate"),
    ("reorder", "write_imm", Host::B, "reorder"),
    ("reorder", "send", Host::B, "reorder"),
    ("damage", "write", Host::B, "damage"),
    ("damage", "send", Host::B, "damage"),
    ("damage", "read", Host::A, "damage"),
    ("stale", "write", Host::B, "stale"),
    ("stale", "mixed", Host::B, "stale"),
    ("completion-twice", "mixed", Host::A, "completion_twice"),
    ("completion-twice", "read", Host::A, "completion_twice"),
    ("completion-never", "mixed", Host::A, "completion_never"),
    ("completion-never", "send", Host::A, "completion_never"),
];

/// What the library below the shim makes of a device: its item, options of the run, and what the verbs then say; nothing if it goes well.
const PRELOADS: [(&str, &str, &str); 8] = [
    ("no-rc=rxe0", "", "ibv_create_qp: Operation not supported"),
    ("inline=rxe0:16", "--inline 64", "ibv_create_qp: Invalid argument"),
    ("inline=rxe0:16", "--inline 16 --size 0..64", ""),
    ("sge=rxe0:2", "--sges 3", "ibv_create_qp: Invalid argument"),
    ("rd-atom=rxe0:2", "--mode read --depth 8", ""),
    ("no-mr=rxe0:2", "", "ibv_reg_mr: Cannot allocate memory"),
    ("no-mr=rxe0:3", "", ""),
    ("no-rc=rxe1,no-mr=rxe1", "", ""),
];

/// All counters of a report.
const KINDS: [&str; 9] = [
    "loss",
    "duplicate",
    "reorder",
    "damage",
    "stale",
    "completion_twice",
    "completion_never",
    "completion_reorder",
    "completion_wrong",
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = MODES
        .into_iter()
        .map(|mode| {
            let about = format!("the checking application in mode {mode}, no shim, no fault: all is right");
            let run = move |lab: &mut Lab, seed| run_mode(lab, mode, seed);
            Scenario::guests(format!("checker-plain-{mode}"), about, run)
        })
        .collect();
    scenarios.push(Scenario::guests(
        "checker-commits",
        "each error that the checking application commits on purpose is reported as what it is",
        run_commits,
    ));
    scenarios.push(Scenario::guests(
        "preload-faults",
        "the library below the shim makes lesser and failing devices, and leaves the others alone",
        run_preload,
    ));
    scenarios
}

/// A run of the checking application: the client is on A, the server on B.
#[derive(Debug, Clone)]
pub(super) struct Checker {
    /// Its program.
    program: &'static str,
    /// The client's options.
    pub(super) options: String,
    /// Under the shim?
    pub(super) shim: Shim,
    /// Who stays for a while after the other left, and polls on.
    pub(super) lingers: Option<Host>,
    /// Variables for both sides.
    pub(super) env: Vec<(&'static str, &'static str)>,
    /// The client is idle behind the first message of each queue pair, until it is told to go on.
    pub(super) gated: bool,
}

/// Where an idle run waits for its end of idleness.
pub(super) const GO_ON: &str = "/tmp/shift-go-on";

/// How long it polls on: longer than any deadline by which the shim could take an end for a fault.
const LINGER_MS: u32 = 4000;

impl Checker {
    /// Without the shim.
    pub(super) fn plain(options: impl Into<String>) -> Checker {
        Checker {
            program: PROGRAM,
            options: options.into(),
            shim: Shim::Nowhere,
            lingers: None,
            env: Vec::new(),
            gated: false,
        }
    }

    /// Under the shim on both hosts.
    pub(super) fn shimmed(options: impl Into<String>) -> Checker {
        Checker { shim: Shim::Both, ..Checker::plain(options) }
    }

    /// By a program that looks each verb up in a libibverbs that it opened itself.
    pub(super) fn by_dlvsym(mut self) -> Checker {
        self.program = PROGRAM_BY_DLVSYM;
        self
    }

    /// With one side that polls on after the other left.
    pub(super) fn lingering(mut self, host: Host) -> Checker {
        self.lingers = Some(host);
        self
    }

    /// Under the shim, idle until all its queue pairs are protected: for [`crate::trial::Moment::Idle`].
    pub(super) fn gated(options: impl Into<String>) -> Checker {
        Checker { gated: true, ..Checker::shimmed(options) }
    }

    fn linger(&self, host: Host) -> String {
        if self.lingers == Some(host) {
            format!("--linger-ms {LINGER_MS}")
        } else {
            String::new()
        }
    }

    /// The trial of this run, without a fault.
    pub(super) fn trial(&self) -> Trial {
        let server_at = format!("{}:{PORT}", Link::Management.address(Host::B));
        let server = Program::words(&format!(
            "{} server --dev rxe0 --listen {server_at} {}",
            self.program,
            self.linger(Host::B)
        ));
        let gate = format!("--pause-before-message 1 --idle-until-file {GO_ON}");
        let options = format!("{} {} {}", self.options, self.linger(Host::A), if self.gated { &gate } else { "" });
        let client = format!("{} client --dev rxe0 --connect {server_at} {options}", self.program);
        let dress = |host, program| {
            let add = |program: Program, (name, value): &(&str, &str)| program.env(*name, *value);
            self.env.iter().fold(self.shim.apply(host, program), add)
        };
        let trial = Trial::new(Host::B, PORT, dress(Host::B, server), dress(Host::A, Program::words(&client)));
        Trial { go_on: self.gated.then_some(GO_ON), ..trial }
    }
}

/// The JSON object with which the program on `host` ended.
pub(super) fn report(story: &Story, host: Host) -> Result<Value> {
    let ended = match host {
        Host::A => &story.client,
        Host::B => &story.server,
    };
    let ended = ended.as_ref().ok_or_else(|| Trouble::judged(format!("the checker on {} stood still", host.name())))?;
    let last = ended.out.lines().rev().find(|line| line.starts_with('{'));
    last.and_then(|line| serde_json::from_str(line).ok())
        .ok_or_else(|| Trouble::judged(format!("no report of {}: {}", host.name(), ended.brief())))
}

fn count(report: &Value, kind: &str) -> u64 {
    report.get(kind).and_then(Value::as_u64).unwrap_or(0)
}

fn run_mode(lab: &mut Lab, mode: &str, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, options) in SHAPES {
        let options = format!("--mode {mode} --seed {seed} {options}");
        let story = Checker::plain(&options).trial().run(lab)?;
        let (client, server) = (report(&story, Host::A)?, report(&story, Host::B)?);
        for report in [&client, &server] {
            require(report.get("pass") == Some(&json!(true)), || format!("{options}: {report}"))?;
        }
        story.require_success()?;
        let gap_ms = client.get("longest_gap_ms");
        let figure =
            json!({ "sent": client.get("sent"), "received": server.get("received"), "longest_gap_ms": gap_ms });
        figures.note(name, figure);
    }
    Ok(figures)
}

fn run_commits(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (commit, mode, host, told) in COMMITS {
        let options = format!("--mode {mode} --seed {seed} --messages 400 --commit {commit} --deadline 10");
        let story = Checker::plain(&options).trial().run(lab)?;
        let seen = report(&story, host)?;
        let kinds = KINDS.iter().map(|kind| (kind, count(&seen, kind)));
        let counted: Vec<String> =
            kinds.filter(|(_, count)| *count > 0).map(|(kind, count)| format!("{kind}: {count}")).collect();
        require(count(&seen, told) > 0, || format!("{options}: {} saw {counted:?}: {seen}", host.name()))?;
        require(story.is_dead(), || format!("{options}: exit 0 on both sides"))?;
        require(counted.len() == 1, || format!("{options}: also {counted:?}: {seen}"))?;
        figures.note(&format!("{commit} {mode}"), counted.join(", "));
    }
    Ok(figures)
}

fn run_preload(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (fault, options, told) in PRELOADS {
        let options = format!("--seed {seed} --messages 100 {options}");
        let mut trial = Checker::plain(&options).trial();
        trial.client = trial.client.env("LD_PRELOAD", PRELOAD).env("PRELOAD_FAULT", fault);
        let client = report(&trial.run(lab)?, Host::A)?;
        let right = match client.get("setup").and_then(Value::as_str) {
            Some(setup) => !told.is_empty() && setup.contains(told),
            None => told.is_empty() && client.get("pass") == Some(&json!(true)),
        };
        require(right, || format!("{fault} with {options}: {client}"))?;
        figures.note(fault, if told.is_empty() { "passes" } else { told });
    }
    Ok(figures)
}
