//! Rails that fail without an error: some packets lost, or a tenth of the bandwidth left. They are seen, told, and left where the operator allows
//! it; a noisy rail is none of them.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::clock::{ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::seed::Seed;
use crate::trial::all_protected;
use crate::trouble::{require, Result};
use crate::wire::rule::{Action, Rule};

use super::failback::{bytes_per_second, judge_ends, judge_plans};
use super::partners::{Partners, Plan, ARMING_LIMIT};
use super::shiftctl::{on_path, status};
use super::Scenario;

/// A fifth of the window that is the default: the minute becomes twelve seconds.
const WINDOW_MS: u64 = 1000;
/// Windows that have to be bad, two more for the beginning and for one in doubt, and what a busy machine needs, on which some windows have too few completions to be judged.
const SEEN: Duration = Duration::from_millis(WINDOW_MS * 12 + 20_000);
const LEFT: Duration = Duration::from_secs(20);
const QPS: usize = 4;
/// The timeout is NCCL's: what is lost is found by what comes behind it.
const STEADY: &str = "--mode write_imm,send --qps 4 --size 1000 --depth 8 --rate 1000000 --timeout 18 --retry-cnt 7";
/// Few bytes at once: what waits on the slow rail must not look dead.
const SATURATED: &str = "--mode write_imm,write --qps 4 --size 2048 --depth 16 --timeout 20 --retry-cnt 7";
/// Traffic that is known as the rail's own past.
const LEARNING: Duration = Duration::from_secs(5);
/// A rail that is good is gone back to almost at once, so that one that fails is seen not to be; or not in this run.
const SHORT: &str = "1000";
const LONG: &str = "60000";
/// What the program may say of a rail.
const ALARM: &str = "is failing without an error";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-gray-loss",
            "rail 0 loses 5 % without an error: seen, shown by shiftctl, and left by plan",
            loss,
        ),
        Scenario::guests(
            "shim-gray-told",
            "the same where nobody wishes it to be left: seen, shown, and nothing is moved",
            told,
        ),
        Scenario::guests(
            "shim-gray-slow",
            "a tenth of the bandwidth of rail 0 is left: seen, shown by shiftctl, and left by plan",
            slow,
        ),
        Scenario::guests(
            "shim-gray-noise",
            "single packets lost, bursts of loss and of delay, a host that pauses: no alarm",
            noise,
        ),
    ]
}

fn start(lab: &Lab, wish: &str, hold_down_ms: &str, options: &str) -> Result<Partners> {
    Evidence::clear(lab)?;
    let env = [("SHIFT_GRAY", wish), ("SHIFT_GRAY_MS", "1000"), ("SHIFT_HOLD_DOWN_MS", hold_down_ms)];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let pair = Partners::start(lab, &Plan { client: options.to_owned(), env, ..Plan::default() })?;
    until("all queue pairs are protected", ARMING_LIMIT, || {
        Ok(pair.sides().iter().all(|side| all_protected(side) >= QPS as u64).then_some(()))
    })?;
    Ok(pair)
}

/// The symptom of rail 0 once it is shown, and how long that took.
fn wait_seen(lab: &Lab, pair: &Partners, since: Instant) -> Result<(String, f64)> {
    let symptom = until("rail 0 is shown as failing", SEEN, || {
        let status = status(lab, Host::A, pair.client.pid())?;
        let told = |name: &str| status.pointer(&format!("/gray/0/{name}")).and_then(Value::as_str).map(str::to_owned);
        Ok(told("symptom").filter(|_| told("device").is_some_and(|device| device == "rxe0")))
    })?;
    Ok((symptom, ms(since.elapsed().as_nanos() as u64)))
}

fn wait_left(lab: &Lab, pair: &Partners, since: Instant) -> Result<f64> {
    until("all has left rail 0", LEFT, || {
        let there = on_path(&status(lab, Host::A, pair.client.pid())?, "rxe1");
        Ok((there == QPS as u64).then_some(()))
    })?;
    Ok(ms(since.elapsed().as_nanos() as u64))
}

/// It ended well, was moved by plan, and did not go back. Of faults there may be so many: where much waits on a slow rail a probe may find no answer in time.
fn judge_left(lab: &Lab, pair: &Partners, most_faults: usize) -> Result<usize> {
    judge_ends(pair)?;
    let evidence = Evidence::collect(lab)?;
    judge_plans(&evidence)?;
    let others = evidence.all().filter(|(_, record)| record["cause"] != "planned").count();
    let back = evidence.all().filter(|(_, record)| record.pointer("/to/path") == Some(&json!(0))).count();
    require(others <= most_faults && back == 0, || {
        format!("{others} moves for a fault, {back} back to the rail that fails")
    })?;
    Ok(evidence.migrations())
}

/// Both directions lose 5 % from now on; the symptom, and how long it took to be shown.
fn lose_some(lab: &Lab, pair: &Partners, seed: u64) -> Result<(Instant, Figures)> {
    // Some traffic before.
    thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    for host in Host::ALL {
        lab.wire().add(Rule::on(Link::Rail0, Action::Drop).from(host).percent(5, seed))?;
    }
    let (symptom, seen_ms) = wait_seen(lab, pair, began)?;
    require(symptom.contains('%'), || symptom.clone())?;
    Ok((began, Figures::new().with("symptom", symptom).with("seen_ms", seen_ms)))
}

fn loss(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let pair = start(lab, "migrate", SHORT, &format!("{STEADY} --duration 26 --seed {seed}"))?;
    let (began, mut told) = lose_some(lab, &pair, seed)?;
    told.note("left_ms", wait_left(lab, &pair, began)?);
    told.note("migrations", judge_left(lab, &pair, 0)?);
    require(alarms(&pair) == 1, || format!("said {} times", alarms(&pair)))?;
    Ok(told)
}

fn told(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let pair = start(lab, "report", SHORT, &format!("{STEADY} --duration 26 --seed {seed}"))?;
    let (_, told) = lose_some(lab, &pair, seed)?;
    lab.wire().clear()?;
    judge_ends(&pair)?;
    require(Evidence::collect(lab)?.migrations() == 0, || "it was only to be told".to_owned())?;
    require(alarms(&pair) == 1, || format!("said {} times", alarms(&pair)))?;
    Ok(told)
}

fn alarms(pair: &Partners) -> usize {
    let lines = pair.sides().into_iter().flat_map(|side| side.lines());
    lines.filter(|line| line.text.contains(ALARM)).count()
}

fn slow(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let judged = judge_slow(lab, seed);
    for host in Host::ALL {
        lab.guest(host).shell("/sbin/tc qdisc del dev eth1 root 2>/dev/null; true")?;
    }
    judged
}

fn judge_slow(lab: &Lab, seed: u64) -> Result<Figures> {
    let pair = start(lab, "migrate", LONG, &format!("{SATURATED} --duration 56 --seed {seed}"))?;
    // The length of a past.
    thread::sleep(LEARNING);
    let before = bytes_per_second(lab, Rail::Zero)?;
    let began = Instant::now();
    for host in Host::ALL {
        // A queue that never overflows: what is dropped on the way out is told to soft-RoCE.
        let bits = (before * 0.8) as u64;
        lab.guest(host).shell(&format!("/sbin/tc qdisc add dev eth1 root tbf rate {bits}bit burst 16kb limit 8mb"))?;
    }
    let (symptom, seen_ms) = wait_seen(lab, &pair, began)?;
    require(symptom.contains("times as long"), || symptom.clone())?;
    let left_ms = wait_left(lab, &pair, began)?;
    let after = bytes_per_second(lab, Rail::One)?;
    let migrations = judge_left(lab, &pair, 2 * (QPS - 1))?;
    require(alarms(&pair) == 1, || format!("said {} times", alarms(&pair)))?;
    let told = Figures::new().with("symptom", symptom).with("seen_ms", seen_ms).with("left_ms", left_ms);
    let told = told.with("bytes_per_second_before", before.round()).with("bytes_per_second_after", after.round());
    Ok(told.with("migrations", migrations))
}

fn noise(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let pair = start(lab, "migrate", SHORT, &format!("{STEADY} --duration 26 --seed {seed}"))?;
    let mut dice = Seed::new(seed, "noise");
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_secs(22) {
        let host = if dice.within(0..2) == 0 { Host::A } else { Host::B };
        let rule = Rule::on(Link::Rail0, Action::Drop).from(host);
        let lasts = Duration::from_millis(dice.within(100..900));
        let rule = match dice.within(0..4) {
            0 => rule.times(dice.within(1..4)),
            1 => rule.percent(10, dice.next_u64()),
            2 => Rule::on(Link::Rail0, Action::Delay(dice.within(5_000..60_000))).from(host),
            _ => rule.percent(2, dice.next_u64()),
        };
        let (rule, _) = lab.wire().add(rule)?;
        // The length of the noise, and of the quiet behind it.
        thread::sleep(lasts);
        lab.wire().remove(rule)?;
        thread::sleep(Duration::from_millis(dice.within(700..1800)));
        count += 1;
    }
    judge_ends(&pair)?;
    require(alarms(&pair) == 0, || format!("{} false alarms", alarms(&pair)))?;
    let evidence = Evidence::collect(lab)?;
    require(evidence.migrations() == 0, || "it was moved".to_owned())?;
    Ok(Figures::new().with("noises", count).with("alarms", 0))
}
