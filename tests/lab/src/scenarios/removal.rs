//! A device goes away under the programs that use it: its RDMA device is deleted, or its card torn out of the machine. They live on, their objects are
//! destroyed later, and what comes back under that name is a rail again.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::{Program, Running};
use crate::lab::{make_device, Lab};
use crate::place::{Host, Rail};
use crate::trial::protected;
use crate::trouble::{require, Result};

use super::failback::{confirmed, judge_ends, judge_plans};
use super::partners::{last_words, Partners, Plan, ARMING_LIMIT, GO_ON};
use super::{shiftctl, Scenario};

const SHAPE: &str =
    "--mode write,send,write_imm,mixed --qps 4 --depth 16 --signal-every 5 --direction both --settle-ms 1000";
const QPS: usize = 4;
const STEP: Duration = Duration::from_secs(25);
/// The shim lets go of a standby that was removed: it looks once a second, and gives threads that have it in hand ten seconds.
const LET_GO: Duration = Duration::from_secs(25);
/// Objects of a card that is gone are destroyed, and the device is closed: no wait of soft-RoCE's for packets (50 s) is in that.
const TEARDOWN: Duration = Duration::from_secs(8);

pub(super) fn scenarios() -> Vec<Scenario> {
    let deleted = "rdma link delete of the rail in use: left by plan, let go, and a rail again in the same processes once it is back";
    let torn =
        "the card of the rail in use is torn out: all goes on, ends in time, and a rail again once it is plugged in";
    let fatal = "a driver takes its device from under the program (EIO from everything, below the shim): this end cannot fence, the other one does, and it lives on";
    let unbound = "the driver of the standby, then of the rail in use, is unbound and bound: the same queue pairs are protected again, and survive a fault";
    let standby = "the card of the standby is torn out: nothing happens to the traffic, and it is told";
    vec![
        Scenario::guests("shim-removed-deleted", deleted, deleted_and_back),
        Scenario::guests("shim-removed-torn-out", torn, torn_out_and_back),
        Scenario::guests("shim-removed-standby", standby, standby_torn_out),
        Scenario::guests("shim-removed-unbound", unbound, unbound_and_bound),
        Scenario::guests("shim-removed-fatal", fatal, taken_away),
    ]
}

fn start(lab: &Lab, both: &str, client: &str, seed: u64) -> Result<Partners> {
    let env = vec![("SHIFT_FAILBACK".to_owned(), "0".to_owned())];
    let client = format!("{SHAPE} {both} {client} --seed {seed}");
    let pair = Partners::start(lab, &Plan { server: both.to_owned(), client, env, ..Plan::default() })?;
    wait_protected(&pair, QPS)?;
    Ok(pair)
}

/// Each side has said of so many queue pairs that they are protected on rail 0, since it began.
fn wait_protected(pair: &Partners, count: usize) -> Result<()> {
    until("all queue pairs are protected", ARMING_LIMIT, || {
        Ok(pair.sides().iter().all(|side| protected_here(side) >= count as u64).then_some(()))
    })
}

fn protected_here(side: &Running) -> u64 {
    let lines = side.lines().into_iter().map(|line| line.text);
    lines
        .filter(|line| line.contains("rxe0 -> rxe1") && !line.contains(" again"))
        .filter_map(|line| protected(&line))
        .sum()
}

/// Both ends of each queue pair came to rail 1 so many times.
fn wait_moved(lab: &Lab, count: usize) -> Result<()> {
    until("all has moved to rail 1", STEP, || {
        let evidence = Evidence::collect(lab)?;
        Ok(Host::ALL.into_iter().all(|host| confirmed(&evidence, host, 1) >= count).then_some(()))
    })
}

/// The kernel's removal waits for everybody who has the device open: it ends only when the shim has let go of it too.
fn deleted_and_back(lab: &mut Lab, seed: u64) -> Result<Figures> {
    lab.spoil();
    Evidence::clear(lab)?;
    let pair = start(lab, "--rounds 2 --device-timeout 30", "--duration 6", seed)?;
    let interface = Rail::Zero.link().interface();
    let line = format!("rdma link delete rxe0 && {}", make_device("rxe0", &interface));
    let began = Instant::now();
    let away = lab.a().spawn(&Program::shell(&line))?;
    wait_moved(lab, QPS)?;
    let moved_ms = began.elapsed().as_millis() as u64;
    let evidence = Evidence::collect(lab)?;
    judge_plans(&evidence)?;
    let unplanned = evidence.all().find(|(_, record)| record["cause"] != "planned");
    require(unplanned.is_none(), || format!("a fault, and there was none: {unplanned:?}"))?;
    require(away.ended().is_none(), || "the device was gone while the program had it open: nothing is shown".into())?;
    for side in pair.sides() {
        side.wait_line(STEP, |line| line == "ROUND 0")?;
    }
    let closed = Instant::now();
    let ended = away.wait(TEARDOWN)?;
    require(ended.succeeded(), || ended.brief())?;
    let let_go_ms = closed.elapsed().as_millis() as u64;
    wait_protected(&pair, 2 * QPS)?;
    lab.cut(Host::A, Rail::Zero)?;
    wait_moved(lab, 2 * QPS)?;
    lab.mend(Host::A, Rail::Zero)?;
    judge_ends(&pair)?;
    Ok(Figures::new().with("deleted_to_moved_ms", moved_ms).with("closed_to_gone_ms", let_go_ms))
}

/// While nobody sends: the kernel lets nobody destroy a soft-RoCE queue pair of which a packet lies in a card that will never send it, for 50 s each, with
/// or without the shim. Then under traffic, of which only the end is not judged.
fn torn_out_and_back(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    for (side, host) in [("sender", Host::A), ("receiver", Host::B)] {
        let pair =
            tear_out(lab, host, &format!("--messages 800 --pause-before-message 300 --idle-until-file {GO_ON}"), seed)?;
        judge_ends(&pair)?;
        let took = pair.sides().map(teardown);
        require(took.iter().all(|took| *took < TEARDOWN), || format!("{took:?} from the last word to the end"))?;
        figures.note(side, json!({ "teardown_ms": took.map(|took| took.as_millis() as u64) }));
        lab.plug_in(host, Rail::Zero)?;
    }
    let host = if seed.is_multiple_of(2) { Host::A } else { Host::B };
    let pair = tear_out(lab, host, "--duration 5", seed)?;
    until("both reports", STEP, || Ok(pair.sides().iter().all(|side| last_words(side).is_some()).then_some(())))?;
    for words in pair.sides().into_iter().filter_map(last_words) {
        require(words.get("pass") == Some(&json!(true)), || words.to_string())?;
    }
    Ok(figures)
}

/// The queue pairs of a run are protected, and the card of their rail is torn out: they move, without a loss.
fn tear_out(lab: &mut Lab, host: Host, options: &str, seed: u64) -> Result<Partners> {
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let pair = start(lab, "", options, seed)?;
    if options.contains(GO_ON) {
        pair.wait_idle()?;
    }
    lab.tear_out(host, Rail::Zero)?;
    wait_moved(lab, QPS)?;
    lab.a().write(GO_ON, "", 0o644)?;
    let surfaced = Evidence::collect(lab)?.all().find(|(_, record)| record["surfaced"] != 0).is_some();
    require(!surfaced, || "an error was surfaced".into())?;
    Ok(pair)
}

/// From the report of a program to its end.
fn teardown(side: &Running) -> Duration {
    let said = side.lines().into_iter().rev().find(|line| line.text.starts_with('{')).map(|line| line.at_ns);
    let ended = side.ended().map(|ended| ended.at_ns);
    said.zip(ended).map_or(Duration::MAX, |(said, ended)| Duration::from_nanos(ended.saturating_sub(said)))
}

fn standby_torn_out(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    let pair = start(lab, "", "--duration 8", seed)?;
    lab.tear_out(Host::A, Rail::One)?;
    let told = pair.client.wait_line(STEP, |line| line.contains("rxe1 was removed"))?.text;
    judge_ends(&pair)?;
    let migrations = Evidence::collect(lab)?.migrations();
    require(migrations == 0, || format!("{migrations} migrations, and nothing was wrong"))?;
    lab.plug_in(Host::A, Rail::One)?;
    Ok(Figures::new().with("told", told))
}

/// First of the standby, under queue pairs that stay: they are protected again when it is back. Then of the rail in use: they leave it, end in time, and the
/// kernel has waited for the program, not for the shim.
fn unbound_and_bound(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let host = if seed.is_multiple_of(2) { Host::A } else { Host::B };
    let pair = idle_pair(lab, seed)?;
    let away = lab.unbind(host, Rail::One)?;
    wait_shown(lab, &pair, "nothing stands by", |qp| is_on(qp, "rxe0") && qp["standby"] == json!(null))?;
    let began = Instant::now();
    let ended = away.wait(LET_GO)?;
    require(ended.succeeded(), || ended.brief())?;
    let let_go_ms = began.elapsed().as_millis() as u64;
    lab.bind(host, Rail::One)?;
    let began = Instant::now();
    wait_shown(lab, &pair, "protected again", |qp| qp["protected"] == true && qp["standby"] == "rxe1")?;
    let protected_ms = began.elapsed().as_millis() as u64;
    lab.a().write(GO_ON, "", 0o644)?;
    lab.cut(host.peer(), Rail::Zero)?;
    wait_shown(lab, &pair, "on the rail that came back", |qp| is_on(qp, "rxe1"))?;
    until("both reports", STEP, || Ok(pair.sides().iter().all(|side| last_words(side).is_some()).then_some(())))?;
    // A queue pair whose packets lie in a card that is down is let go only when it is up.
    lab.mend(host.peer(), Rail::Zero)?;
    judge_ends(&pair)?;
    lab.wait_ready()?;
    let pair = idle_pair(lab, seed)?;
    let away = lab.unbind(host, Rail::Zero)?;
    wait_shown(lab, &pair, "on the other rail", |qp| is_on(qp, "rxe1"))?;
    lab.a().write(GO_ON, "", 0o644)?;
    judge_ends(&pair)?;
    let ended = away.wait(TEARDOWN)?;
    require(ended.succeeded(), || ended.brief())?;
    let surfaced = Evidence::collect(lab)?.all().find(|(_, record)| record["surfaced"] != 0).is_some();
    require(!surfaced, || "an error was surfaced".into())?;
    lab.bind(host, Rail::Zero)?;
    lab.wait_ready()?;
    judge_ends(&start(lab, "", "--duration 1", seed)?)?;
    Ok(Figures::new().with("let_go_ms", let_go_ms).with("bound_to_protected_ms", protected_ms))
}

/// What such a driver does is made by tests/preload, for soft-RoCE cannot: the cable of its card is cut as well, for what is below goes on working. What the
/// other end has received is proven by its fence; of what this one has received nothing could be, so it only sends.
fn taken_away(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    let client =
        format!("--mode write,send,write_imm,mixed --qps {QPS} --depth 16 --duration 5 --settle-ms 1000 --seed {seed}");
    let pair = Partners::start(lab, &Plan { client, fault: Some("fatal=rxe0"), ..Plan::default() })?;
    wait_protected(&pair, QPS)?;
    lab.cut(Host::A, Rail::Zero)?;
    wait_moved(lab, QPS)?;
    until("both reports", STEP, || Ok(pair.sides().iter().all(|side| last_words(side).is_some()).then_some(())))?;
    lab.mend(Host::A, Rail::Zero)?;
    judge_ends(&pair)?;
    let said = |words: &str| pair.client.lines().iter().filter(|line| line.text.contains(words)).count();
    let refused = said("a modification of a device that is gone");
    require(refused >= QPS, || format!("{refused} refusals: nothing is shown"))?;
    let evidence = Evidence::collect(lab)?;
    let surfaced = evidence.all().find(|(_, record)| record["surfaced"] != 0);
    require(surfaced.is_none(), || format!("an error was surfaced: {surfaced:?}"))?;
    Ok(Figures::new().with("refused", refused))
}

/// Protected, and idle after its first messages until it is to go on.
fn idle_pair(lab: &Lab, seed: u64) -> Result<Partners> {
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let pair = start(lab, "", &format!("--messages 900 --pause-before-message 300 --idle-until-file {GO_ON}"), seed)?;
    pair.wait_idle()?;
    Ok(pair)
}

fn is_on(qp: &Value, device: &str) -> bool {
    qp["moving"] == false && qp["path"] == device
}

/// Waits until all queue pairs of both sides are as `wanted` says.
fn wait_shown(lab: &Lab, pair: &Partners, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    until(what, STEP, || {
        for side in pair.sides() {
            let status = shiftctl::status(lab, side.host(), side.pid())?;
            let shown = status.pointer("/queue_pairs").and_then(Value::as_array).cloned().unwrap_or_default();
            if shown.len() != QPS || !shown.iter().all(&wanted) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}
