//! What becomes of a machine in an operator's hands: a disk that is full under the record and under the log, and a program that has ten thousand
//! descriptors open before it opens a device.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::trial::{Fault, Moment};
use crate::trouble::{require, Result};

use super::checker::Checker;
use super::directory::cut_after;
use super::survive::{judge_survival, require_fault};
use super::Scenario;

/// A file system without room.
const FULL: &str = "/full";
/// Higher than any number that select(2) can name, and than a small limit.
const OPEN: &str = "import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
for number in range(3, 10003):
    os.dup2(0, number)
os.execv(sys.argv[1], sys.argv[1:])";

/// The default.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Longer than the heartbeat deadline, and than any deadline of a migration but patience.
const ASLEEP: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-full-disk",
            "no room for the record on one host and for the log on the other: told once, and rail 0 cut",
            full_disk,
        ),
        Scenario::guests(
            "shim-many-descriptors",
            "10,000 descriptors open before the first device: protected, and rail 0 cut",
            many_descriptors,
        ),
        Scenario::guests(
            "shim-clocks",
            "the clock of one host jumps by hours, forth and then back behind the other's, with the job running: nothing happens, and rail 0 cut",
            clocks,
        ),
        Scenario::guests(
            "shim-suspended",
            "a host stands still for longer than the heartbeat, idle and under traffic: nothing happens",
            suspended,
        ),
    ]
}

fn full_disk(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let fill = format!("mkdir -p {FULL} && /bin/busybox mount -t tmpfs -o size=16k,mode=1777 full {FULL}");
    for host in Host::ALL {
        lab.guest(host)
            .shell(&format!("{fill}; /bin/busybox dd if=/dev/zero of={FULL}/all bs=1k 2>/dev/null || true"))?;
    }
    let judged = run_on_full_disk(lab, seed);
    for host in Host::ALL {
        lab.guest(host).shell(&format!("/bin/busybox umount -l {FULL}"))?;
    }
    judged
}

/// The record of A and the log of B have no room; what happened is told by the log of A and the record of B.
fn run_on_full_disk(lab: &Lab, seed: u64) -> Result<Figures> {
    let mut trial = Checker::gated(format!("--mode mixed --seed {seed} --messages 4000 --depth 16")).trial();
    let events = format!("{FULL}/events");
    trial.client = trial.client.env("SHIFT_EVENT_FILE", &events);
    let redirected = format!("exec \"$@\" 2>{FULL}/log");
    trial.server.argv.splice(0..0, ["/bin/dash", "-c", &redirected, "redirected"].map(str::to_owned));
    let mut figures = Figures::new();
    let said = cut_after(lab, &trial, &[Host::A], seed, |_, _| Ok(()), &mut figures)?;
    let told: Vec<&String> =
        said.iter().filter(|line| line.contains(&format!("SHIFT_EVENT_FILE={events}: "))).collect();
    let is_right = told.len() == 1 && told.iter().all(|line| line.contains("until there is room"));
    require(is_right, || format!("{told:?} say that the disk is full"))?;
    Ok(figures.with("told", json!(told)))
}

/// Nothing compares the clocks of two hosts, and nothing here waits by a clock that can be set.
fn clocks(lab: &mut Lab, seed: u64) -> Result<Figures> {
    // Its clock stays wrong.
    lab.spoil();
    let trial = Checker::gated(format!("--mode mixed --seed {seed} --messages 4000 --depth 16")).trial();
    let mut figures = Figures::new();
    let jump = |lab: &Lab, _: &mut Figures| {
        for (jump, heartbeats) in [("+ 18000", 3), ("- 36000", 3)] {
            lab.b().shell(&format!("/bin/busybox date -s @$(( $(/bin/busybox date +%s) {jump} ))"))?;
            // Whatever is due by that clock is due now.
            thread::sleep(heartbeats * HEARTBEAT);
        }
        let count = Evidence::collect(lab)?.migrations();
        require(count == 0, || format!("{count} migrations, and only a clock was set"))
    };
    let said = cut_after(lab, &trial, &Host::ALL, seed, jump, &mut figures)?;
    judge_calm(&said)?;
    Ok(figures)
}

fn suspended(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let shape = format!("--mode mixed --seed {seed} --messages 3000 --depth 16 --deadline 20");
    let idle = Checker::gated(&shape).trial();
    Evidence::clear(lab)?;
    for (name, moment) in [("idle", Moment::Idle { qps: 1 }), ("traffic", Moment::armed(1, seed, 50, 300))] {
        lab.reset()?;
        let host = if seed.is_multiple_of(2) { Host::A } else { Host::B };
        let trial = idle.clone().fault(Fault::Asleep { host, whole: true, gone: ASLEEP }, moment);
        Evidence::clear(lab)?;
        let story = trial.run(lab)?;
        require_fault(&story)?;
        story.require_success()?;
        judge_calm(&story.said)?;
        let count = Evidence::collect(lab)?.migrations();
        require(count == 0, || format!("{name}: {count} migrations, and nothing was wrong"))?;
        figures.note(name, json!(story.figures()));
    }
    Ok(figures)
}

/// Nothing was told as a warning.
pub(super) fn judge_calm(said: &[String]) -> Result<()> {
    let alarm = said
        .iter()
        .find(|line| line.contains("shift-verbs[") && (line.contains(" warn: ") || line.contains(" error: ")));
    require(alarm.is_none(), || format!("{alarm:?}"))
}

fn many_descriptors(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let checker = Checker::gated(format!("--mode mixed --seed {seed} --messages 4000 --depth 16"));
    let moment = Moment::armed(1, seed, 100, 1000);
    let mut trial = checker.trial().fault(Fault::Cut(Host::A, Rail::Zero), moment);
    let crowd = |mut program: Program| {
        program.argv.splice(0..0, ["/usr/bin/python3", "-c", OPEN].map(str::to_owned));
        program
    };
    (trial.client, trial.server) = (crowd(trial.client), crowd(trial.server));
    Evidence::clear(lab)?;
    let story = trial.run(lab)?;
    require_fault(&story)?;
    judge_survival(&checker, &story, &Evidence::collect(lab)?)
}
