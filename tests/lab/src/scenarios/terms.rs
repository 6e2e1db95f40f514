//! What the processes of a job have to have in common, and what becomes of it with the job running: a key that is rotated, and two releases.

use std::time::Duration;

use serde_json::json;

use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Running;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::trial::{Fault, Moment, Trial};
use crate::trouble::{require, Result};

use super::checker::Checker;
use super::control_network::{cut_control, ports, standing};
use super::directory::SHIM_WITH_REDIS;
use super::failback::{confirmed, judge_ends};
use super::operator::judge_calm;
use super::partners::{Partners, Plan, ARMING_LIMIT};
use super::survive::{judge_survival, require_fault};
use super::Scenario;

/// The job key of a host; beside it lies the one before, for a while.
const KEY: &str = "/tmp/shift-rotated-key";
/// Of both ends: a cut of the control network that is longer ends all connections.
const HEARTBEAT_MS: &str = "800";
const LIMIT: Duration = Duration::from_secs(30);
/// Versions of a release that knows one more, and of one that gave up the only one that there is.
const NEXT: &str = "1-2";
const LATER: &str = "2-2";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-keys-rotated",
            "the job key is rotated host by host under traffic, all connections made anew each time: nothing happens, nothing is told; then rail 0 cut",
            keys_rotated,
        ),
        Scenario::guests(
            "shim-two-versions",
            "one host has another release: with a wire version in common rail 0 is survived, without one both run on and say why",
            two_versions,
        ),
    ]
}

fn write_key(lab: &Lab, host: Host, name: &str, seed: u64) -> Result<()> {
    lab.guest(host).write(name, &format!("a key of this job alone, of seed {seed}: {name}"), 0o600)
}

/// As an operator does it.
fn rotate(lab: &Lab, host: Host, seed: u64) -> Result<()> {
    let new = format!("{KEY}.new");
    write_key(lab, host, &new, seed)?;
    lab.guest(host).shell(&format!("/bin/busybox cp -p {KEY} {KEY}.old && /bin/busybox mv {new} {KEY}")).map(drop)
}

fn start(lab: &Lab, seed: u64) -> Result<Partners> {
    let [first, last] = ports(0);
    let env = [
        ("SHIFT_JOB_KEY_FILE", KEY.to_owned()),
        ("SHIFT_PORT_RANGE", format!("{first}-{last}")),
        ("SHIFT_HEARTBEAT_MS", HEARTBEAT_MS.to_owned()),
        ("SHIFT_FAILBACK", "0".to_owned()),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let flow = "--mode mixed --size 0..3000 --depth 8 --rate 200000 --poll sleepy --settle-ms 500 --duration 26";
    Partners::start(lab, &Plan { client: format!("{flow} --seed {seed}"), env, ..Plan::default() })
}

/// All connections of the shims die; then others stand, which know the keys as they are now.
fn made_anew(lab: &Lab, before: usize) -> Result<()> {
    let rule = cut_control(lab, 0)?;
    until("all connections to end", LIMIT, || Ok((standing(lab, 0)? == 0).then_some(())))?;
    lab.wire().remove(rule)?;
    until("as many to stand again", LIMIT, || Ok((standing(lab, 0)? >= before).then_some(())))?;
    lab.wait_traffic(Rail::Zero, 50, LIMIT, || false).map(drop)
}

fn keys_rotated(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    for host in Host::ALL {
        lab.guest(host).shell(&format!("/bin/busybox rm -f {KEY} {KEY}.old"))?;
        write_key(lab, host, KEY, seed)?;
    }
    let pair = start(lab, seed)?;
    let judged = rotate_under(lab, &pair, seed);
    lab.wire().clear()?;
    lab.mend(Host::A, Rail::Zero)?;
    for host in Host::ALL {
        lab.guest(host).shell(&format!("/bin/busybox rm -f {KEY} {KEY}.old"))?;
    }
    judged
}

fn rotate_under(lab: &Lab, pair: &Partners, seed: u64) -> Result<Figures> {
    pair.wait_protected()?;
    let before = until("a connection on each network", ARMING_LIMIT, || {
        Ok(Some(standing(lab, 0)?).filter(|count| *count >= Link::ALL.len()))
    })?;
    let first = if seed.is_multiple_of(2) { Host::A } else { Host::B };
    for host in [first, first.peer()] {
        rotate(lab, host, seed)?;
        made_anew(lab, before)?;
    }
    for host in Host::ALL {
        lab.guest(host).shell(&format!("/bin/busybox rm {KEY}.old"))?;
    }
    made_anew(lab, before)?;
    let count = Evidence::collect(lab)?.migrations();
    require(count == 0, || format!("{count} migrations, and only the key was changed"))?;
    for side in pair.sides() {
        judge_calm(&lines(side))?;
        let told = |words: &str| lines(side).iter().filter(|line| line.contains(words)).count();
        let read = [told("two keys are valid"), told("one key is valid")];
        require(read == [1, 1], || format!("{} has read its keys {read:?} times", side.host().name()))?;
        require(side.ended().is_none(), || format!("{} has ended", side.host().name()))?;
    }
    lab.cut(Host::A, Rail::Zero)?;
    until("both to move", LIMIT, || {
        let evidence = Evidence::collect(lab)?;
        Ok(Host::ALL.into_iter().all(|host| confirmed(&evidence, host, 1) >= 1).then_some(()))
    })?;
    lab.mend(Host::A, Rail::Zero)?;
    judge_ends(pair)?;
    Ok(Figures::new().with("connections", before).with("first", first.name()))
}

fn lines(side: &Running) -> Vec<String> {
    side.lines().into_iter().map(|line| line.text).collect()
}

fn two_versions(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let newer = if seed.is_multiple_of(2) { Host::A } else { Host::B };
    let checker = Checker::gated(format!("--mode mixed --seed {seed} --messages 4000 --depth 16"));
    let fault = Fault::Cut(Host::A, Rail::Zero);
    let trial = of_releases(checker.trial(), newer, NEXT).fault(fault, Moment::armed(1, seed, 100, 1000));
    Evidence::clear(lab)?;
    let story = trial.run(lab)?;
    require_fault(&story)?;
    figures.note("in_common", json!(judge_survival(&checker, &story, &Evidence::collect(lab)?)?));

    lab.reset()?;
    // Slow enough that both have looked for one another for as long as it takes to be told.
    let checker = Checker::shimmed(format!("--mode mixed --seed {seed} --duration 4 --rate 200000"));
    let story = of_releases(checker.trial(), newer, LATER).run(lab)?;
    story.require_success()?;
    let protected = story.said.iter().find(|line| line.contains(" protected: "));
    require(protected.is_none(), || format!("{protected:?}"))?;
    for (theirs, own) in [(1, 2), (2, 1)] {
        let words = format!("it speaks wire version {theirs}, this process wire version {own}; run the same release");
        let told: Vec<&String> = story.said.iter().filter(|line| line.contains(&words)).collect();
        require(told.len() == 1, || format!("{} lines say {words:?}: {:?}", told.len(), story.said))?;
        figures.note(&format!("version_{own}"), json!(told));
    }
    Ok(figures)
}

/// One host has a library that says it speaks these versions.
fn of_releases(mut trial: Trial, newer: Host, versions: &str) -> Trial {
    let program = if newer == trial.server_host { &mut trial.server } else { &mut trial.client };
    *program = program.clone().with_shim_from(SHIM_WITH_REDIS).env("TEST_WIRE_VERSIONS", versions);
    trial
}
