//! Strangers at the ports of a job, with a job key and without one: nothing moves, stops or leaks, and the shim stays small.
//!
//! The stranger (`shift-stranger`) runs on A beside the job, and speaks to both hosts' well-known port and processes from an address
//! that was added after arming, so that nobody told it. With a key it speaks from A's own addresses too. It goes on, round
//! after round, while the checking application sends, and while rail 0 goes down in mid-stream.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::talk::Stream;
use crate::guest::{Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::all_protected;
use crate::trouble::{require, Result, Trouble};

use super::checker::Checker;
use super::Scenario;

const STRANGER: &str = "/shift/shift-stranger";
/// On the management network; nobody is told it.
const EXTRA: &str = "10.77.0.66";
/// `SHIFT_PORT` by default, and the one port of each process.
const PORTS: [u16; 2] = [shift_control::config::DEFAULT_PORT, 21_000];
const PORT_RANGE: &str = "21000-21000";
const KEY: &str = "/tmp/shift-job-key";
const GO_ON: &str = "/tmp/shift-strangers-go-on";
/// Connections that each round opens and leaves; more than the shim keeps of anybody.
const HALF_OPEN: u32 = 480;
/// What the shim keeps of strangers at most (`MAX_UNGREETED`), what it accepts in a turn before it closes others (64) and its own
/// two dozen descriptors fit into this; the kernel doubles the table.
const SLOTS: u64 = 256;
/// How often the attacked processes are looked at.
const PACE: Duration = Duration::from_millis(50);
/// Growth of an attacked process: 128 connections with their buffers, and what its heap does not give back.
const MEMORY_KIB: u64 = 16 << 10;
const LIMIT: Duration = Duration::from_secs(60);
/// A round of the stranger, on a loaded machine.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = |how| {
        format!("strangers at every port of a job {how} a job key, without a fault and in mid-migration: nothing moves, stops or leaks")
    };
    vec![
        Scenario::guests("strangers-open", about("without"), |lab: &mut Lab, seed| both(lab, false, seed)),
        Scenario::guests("strangers-keyed", about("with"), |lab: &mut Lab, seed| both(lab, true, seed)),
    ]
}

fn both(lab: &mut Lab, keyed: bool, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (name, cut) in [("no fault", false), ("rail 0 down", true)] {
        lab.reset()?;
        let ran = attacked(lab, keyed, cut, seed);
        // Whatever came of it: the next scenario finds the host as it was.
        lab.a().shell(&format!("/sbin/ip addr del {EXTRA}/24 dev eth0 2>/dev/null || true"))?;
        figures.note(name, json!(ran?));
    }
    Ok(figures)
}

fn attacked(lab: &mut Lab, keyed: bool, cut: bool, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let mut env = vec![("SHIFT_PORT_RANGE", PORT_RANGE)];
    if keyed {
        let text = format!("the key of this job alone, and of seed {seed}");
        Host::ALL.into_iter().try_for_each(|host| lab.guest(host).write(KEY, &text, 0o600))?;
        env.push(("SHIFT_JOB_KEY_FILE", KEY));
    }
    let options = format!("--mode mixed --seed {seed} --messages 1500 --depth 16 --pause-before-message 200");
    let mut checker = Checker::shimmed(format!("{options} --idle-until-file {GO_ON}"));
    checker.env = env;
    let trial = checker.trial();
    let (server, client) = lab.start_pair(trial.server_host, trial.listens, &trial.server, &trial.client)?;
    let sides = [&client, &server];
    client.wait_line(LIMIT, |line| line.starts_with("IDLE"))?;
    until("both sides to be protected", LIMIT, || Ok(sides.iter().all(|side| all_protected(side) > 0).then_some(())))?;
    let before = [Size::of(lab, &client)?, Size::of(lab, &server)?];

    lab.a().shell(&format!("/sbin/ip addr add {EXTRA}/24 dev eth0"))?;
    let stranger = lab.a().spawn(&program(lab, keyed, seed)?)?;
    let mut largest = before;
    watch(lab, &sides, &mut largest, "a first round of the stranger", || rounds(&stranger) > 0)?;
    lab.a().write(GO_ON, "", 0o644)?;
    let mut fault_ns = None;
    if cut {
        let over = || sides.iter().any(|side| side.ended().is_some());
        let packets = Seed::new(seed, "strangers").within(50..800);
        require(lab.wait_traffic(Rail::Zero, packets, LIMIT, over)?, || "the run was over before the fault".into())?;
        fault_ns = Some(lab.cut(Host::A, Rail::Zero)?);
    }
    let ended = || sides.iter().filter(|side| side.ended().is_some()).count();
    let after = rounds(&stranger);
    watch(lab, &sides, &mut largest, "the end of one side", || ended() > 0)?;
    if cut {
        // Soft-RoCE may wait up to 50 s for packets that a down interface keeps when a queue pair is destroyed.
        lab.mend(Host::A, Rail::Zero)?;
    }
    watch(lab, &sides, &mut largest, "the end of both sides", || ended() == sides.len())?;
    require(stranger.ended().is_none(), || "the stranger ended before the job".into())?;
    stranger.signal(9)?;

    for side in sides {
        let ended = side.wait(LIMIT)?;
        require(ended.succeeded(), || format!("{}: {}", side.host().name(), ended.brief()))?;
    }
    let evidence = Evidence::collect(lab)?;
    let moved = evidence.migrations();
    require((moved > 0) == cut, || format!("{moved} migrations, the fault was made: {cut}"))?;
    let tally = tally(&stranger)?;
    judge_stranger(&tally, keyed)?;
    let said = sides.map(|side| judge_lines(side, keyed));
    let [said_a, said_b] = said;
    for (was, is) in before.iter().zip(&largest) {
        let kib = is.kib.saturating_sub(was.kib);
        require(kib <= MEMORY_KIB, || format!("an attacked process grew by {kib} KiB, from {was:?} to {is:?}"))?;
        require(is.slots <= SLOTS, || format!("an attacked process has too many descriptors: {is:?}"))?;
    }
    let grown = before
        .iter()
        .zip(&largest)
        .map(|(was, is)| json!({ "kib": [was.kib, is.kib], "descriptor_slots": [was.slots, is.slots] }));
    let mut figures = Figures::new().with("stranger", tally).with("grown", grown.collect::<Vec<_>>());
    figures.note("rounds_before_the_traffic", after);
    figures.note("refused", json!({ "a": said_a?, "b": said_b? }));
    if fault_ns.is_some() {
        evidence.note(&mut figures);
    }
    Ok(figures)
}

/// The stranger on A.
fn program(lab: &Lab, keyed: bool, seed: u64) -> Result<Program> {
    let at: Vec<String> = Host::ALL
        .into_iter()
        .flat_map(|host| PORTS.map(|port| format!("{}:{port}", Link::Management.address(host))))
        .collect();
    let mut from = vec![EXTRA.to_owned()];
    if keyed {
        from.push(Link::Management.address(Host::A));
    }
    let gids = Host::ALL.map(|host| Rail::Zero.link().address(host)).join(",");
    let mut qpns = [queue_pairs(lab, Host::A)?, queue_pairs(lab, Host::B)?].concat();
    qpns.sort_unstable();
    qpns.dedup();
    let qpns = qpns.join(",");
    let words = format!(
        "{STRANGER} --at {} --from {} --gids {gids} --qpns {qpns} --half-open {HALF_OPEN} --seed {seed}",
        at.join(","),
        from.join(",")
    );
    let program = Program::words(&words);
    Ok(if keyed { program.arg("--record-with").arg(KEY) } else { program })
}

/// Numbers of the queue pairs of rail 0.
fn queue_pairs(lab: &Lab, host: Host) -> Result<Vec<String>> {
    let text = lab.guest(host).shell("rdma res show qp link rxe0")?;
    let numbers: Vec<String> = text
        .lines()
        .filter(|line| line.contains("type RC"))
        .filter_map(|line| Some(line.split_once("lqpn ")?.1.split_whitespace().next()?.to_owned()))
        .collect();
    require(!numbers.is_empty(), || format!("no queue pair on {}: {text}", host.name()))?;
    Ok(numbers)
}

#[derive(Debug, Clone, Copy)]
struct Size {
    kib: u64,
    /// Room in its table of descriptors: it grows by doubling, and never shrinks.
    slots: u64,
}

impl Size {
    fn of(lab: &Lab, side: &Running) -> Result<Size> {
        let text = lab.guest(side.host()).read(&format!("/proc/{}/status", side.pid()))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let size = field("VmRSS:").zip(field("FDSize:")).map(|(kib, slots)| Size { kib, slots });
        size.ok_or_else(|| Trouble::setup(format!("no size: {text}")))
    }
}

/// Notes how large the attacked processes become until `done`.
fn watch(lab: &Lab, sides: &[&Running; 2], largest: &mut [Size; 2], what: &str, done: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !done() {
        require(begun.elapsed() < ROUND_LIMIT, || format!("{what} did not come within {ROUND_LIMIT:?}"))?;
        for (side, size) in sides.iter().zip(largest.iter_mut()) {
            // One that has just ended has no size.
            if let Ok(now) = Size::of(lab, side) {
                *size = Size { kib: size.kib.max(now.kib), slots: size.slots.max(now.slots) };
            }
        }
        // The pace of the samples.
        thread::sleep(PACE);
    }
    Ok(())
}

fn rounds(stranger: &Running) -> usize {
    stranger.lines().iter().filter(|line| line.stream == Stream::Out).count()
}

/// What the stranger did, by its last line.
fn tally(stranger: &Running) -> Result<Value> {
    let lines = stranger.lines();
    let last = lines.iter().rev().find(|line| line.stream == Stream::Out);
    last.and_then(|line| serde_json::from_str(&line.text).ok())
        .ok_or_else(|| Trouble::judged(format!("the stranger said nothing: {lines:?}")))
}

fn judge_stranger(tally: &Value, keyed: bool) -> Result<()> {
    let count = |name: &str| tally[name].as_u64().unwrap_or(0);
    require(count("leaked") == 0, || format!("a stranger was told what only peers are: {tally}"))?;
    require(count("connections") > u64::from(HALF_OPEN), || format!("hardly anything was tried: {tally}"))?;
    if keyed {
        // The one connection of the recording has the key.
        require(count("greeted") == 1 && count("owners") == 0, || format!("a stranger was answered: {tally}"))
    } else {
        require(count("greeted") > 1 && count("frames") > 100, || format!("it did not get to speak: {tally}"))
    }
}

/// Each reason once, the counts at most once; and whether the job runs open is said as it is.
fn judge_lines(side: &Running, keyed: bool) -> Result<Vec<String>> {
    let lines: Vec<String> = side.lines().into_iter().filter(|l| l.stream == Stream::Err).map(|l| l.text).collect();
    let all = |words: &str| lines.iter().filter(|line| line.contains(words)).cloned().collect::<Vec<_>>();
    let open = all("the job runs open").len();
    require(open == usize::from(!keyed), || format!("it is said {open} times that the job runs open: {lines:?}"))?;
    let mut first: Vec<String> = all("refused, and counted from now on");
    let reasons: Vec<&str> = first.iter().filter_map(|line| Some(line.split_once("one of those who ")?.1)).collect();
    let distinct: std::collections::BTreeSet<&&str> = reasons.iter().collect();
    require(!reasons.is_empty() && distinct.len() == reasons.len(), || format!("not each reason once: {first:?}"))?;
    let totals = all("refused in all");
    // A program that ends gives its agent a few milliseconds: on a starved guest the counts may remain unsaid.
    require(totals.len() <= 1, || format!("the counts are said more than once: {lines:?}"))?;
    require(!lines.iter().any(|line| line.contains("mistake") || line.contains("panick")), || format!("{lines:?}"))?;
    first.extend(totals);
    Ok(first)
}
