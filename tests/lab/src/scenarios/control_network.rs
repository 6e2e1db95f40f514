//! The network between the shims dies with all rails well, and heals; and a peer's process dies.

use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Running;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::trouble::{require, Result, Trouble};
use crate::wire::rule::{Action, Rule, RuleId};

use super::failback::{confirmed, judge_ends};
use super::partners::{last_words, Partners, Plan, ARMING_LIMIT};
use super::Scenario;

/// First port of the shims' own listeners, two for each pair.
const FIRST_PORT: u16 = 21_000;
/// Of both pairs.
const HEARTBEAT_MS: u64 = 800;
/// Silence of the control network: several heartbeats.
const SILENCE: Duration = Duration::from_secs(3);
/// What the pair that stays cut off has to end in an error.
const PATIENCE_MS: u64 = 2500;
/// What emulation may add to it.
const SLACK: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(30);
/// A peer is killed so many times without the shim and with it.
const KILLS: usize = 4;
/// The median of so many runs on emulated hosts differs by as much from itself.
const NO_LATER: Duration = Duration::from_millis(150);

pub(super) fn scenarios() -> Vec<Scenario> {
    let dead = "no shim hears another for 3 s, with the rails well: nothing happens, it heals; then rail 0 dies: moved, or, still cut off, an error in time";
    let killed = "a peer is killed: the error comes with the shim no later than without it, both in one boot";
    vec![
        Scenario::guests("shim-control-dead", dead, control_dead),
        Scenario::guests("shim-peer-killed", killed, peer_killed),
    ]
}

/// The ports of a pair.
pub(super) const fn ports(number: u16) -> [u16; 2] {
    [FIRST_PORT + 2 * number, FIRST_PORT + 2 * number + 1]
}

fn start(lab: &Lab, number: u16, seed: u64) -> Result<Partners> {
    let flow = "--mode mixed --size 0..3000 --depth 8 --rate 200000 --poll sleepy --deadline 8 --settle-ms 500";
    let client = format!("{flow} --duration 24 --seed {}", seed + u64::from(number));
    let [first, last] = ports(number);
    let env = [
        ("SHIFT_PORT_RANGE", format!("{first}-{last}")),
        ("SHIFT_HEARTBEAT_MS", HEARTBEAT_MS.to_string()),
        ("SHIFT_PATIENCE_MS", PATIENCE_MS.to_string()),
        ("SHIFT_HOLD_MS", "400".to_owned()),
        ("SHIFT_EXCHANGE_MS", "2000".to_owned()),
        ("SHIFT_FAILBACK", "0".to_owned()),
    ];
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Partners::start(lab, &Plan { number, client, env, ..Plan::default() })
}

/// Nothing of the control connections of a pair is carried any more, on any network. All else is.
pub(super) fn cut_control(lab: &Lab, number: u16) -> Result<RuleId> {
    let [first, last] = ports(number);
    let rule = Rule { link: None, tcp: Some((first, last)), ..Rule::on(Link::Management, Action::Drop) };
    lab.wire().add(rule).map(|(id, _)| id)
}

/// Connections of a pair that stand, as host A sees it.
pub(super) fn standing(lab: &Lab, number: u16) -> Result<usize> {
    let tables = lab.a().shell("cat /proc/net/tcp /proc/net/tcp6")?;
    let ends = ports(number).map(|port| format!(":{port:04X}"));
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let of_pair = |at: usize| fields.get(at).is_some_and(|end| ends.iter().any(|port| end.ends_with(port)));
        fields.get(3) == Some(&"01") && (of_pair(1) || of_pair(2))
    };
    Ok(tables.lines().filter(is_one).count())
}

fn control_dead(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    let pairs = [start(lab, 0, seed)?, start(lab, 1, seed)?];
    pairs.iter().try_for_each(Partners::wait_protected)?;
    let before = until("three connections of each pair", ARMING_LIMIT, || {
        let counts = [standing(lab, 0)?, standing(lab, 1)?];
        Ok(counts.iter().all(|count| *count >= Link::ALL.len()).then_some(counts))
    })?;
    let judged = judge_dead(lab, &pairs, before);
    lab.wire().clear()?;
    lab.mend(Host::A, Rail::Zero)?;
    judged
}

fn judge_dead(lab: &Lab, pairs: &[Partners; 2], before: [usize; 2]) -> Result<Figures> {
    let warnings =
        || pairs.iter().flat_map(Partners::sides).flat_map(Running::lines).filter(|line| is_alarm(&line.text)).count();
    let calm = warnings();
    let (cut, _) = (cut_control(lab, 0)?, cut_control(lab, 1)?);
    // The length of the fault itself.
    thread::sleep(SILENCE);
    let during = [standing(lab, 0)?, standing(lab, 1)?];
    lab.wait_traffic(Rail::Zero, 100, LIMIT, || false)?;
    let healed_at = monotonic_ns();
    lab.wire().remove(cut)?;
    until("the connections to stand again", LIMIT, || Ok((standing(lab, 0)? >= before[0]).then_some(())))?;
    let healed_ms = ms(monotonic_ns() - healed_at);
    let evidence = Evidence::collect(lab)?;
    require(evidence.migrations() == 0, || format!("something happened: {} records", evidence.migrations()))?;
    require(warnings() == calm, || format!("something was told: {:?}", lab.transcript()))?;
    let [healed, dead] = pairs;
    require(pairs.iter().flat_map(Partners::sides).all(|side| side.ended().is_none()), || "one ended".into())?;
    let fault = lab.cut(Host::A, Rail::Zero)?;
    until("the pair that is heard again to move", LIMIT, || {
        let evidence = Evidence::collect(lab)?;
        let of = |host: Host| evidence.of_pid(healed.on(host).pid());
        Ok(Host::ALL.into_iter().all(|host| confirmed(&of(host), host, 1) >= 1).then_some(()))
    })?;
    let surfaced_ms = judge_cut_off(lab, dead, fault)?;
    lab.mend(Host::A, Rail::Zero)?;
    judge_ends(healed)?;
    dead.wait_ended()?;
    Ok(Figures::new()
        .with("connections_before_and_during", json!([before, during]))
        .with("healed_ms", healed_ms)
        .with("cut_off_fault_to_error_ms", surfaced_ms))
}

fn is_alarm(line: &str) -> bool {
    line.contains("shift-verbs[") && (line.contains(" warn: ") || line.contains(" error: "))
}

/// The pair that is still cut off cannot move: A has its error by the deadline.
fn judge_cut_off(lab: &Lab, dead: &Partners, fault_ns: u64) -> Result<f64> {
    let words = until("the error of the pair that is cut off", LIMIT, || Ok(last_words(&dead.client)))?;
    let error_ns = first_error(lab, &dead.client, &words)?;
    let took = Duration::from_nanos(error_ns.saturating_sub(fault_ns));
    require(took < Duration::from_millis(PATIENCE_MS) + SLACK, || format!("the error came after {took:?}"))?;
    Ok(ms(error_ns.saturating_sub(fault_ns)))
}

/// When a program saw its first error, by the clock of this machine.
fn first_error(lab: &Lab, side: &Running, words: &Value) -> Result<u64> {
    let at = words.get("first_error_ns").and_then(Value::as_u64);
    let at = at.ok_or_else(|| Trouble::judged(format!("it has seen no error: {words}")))?;
    Ok(lab.guest(side.host()).host_time(at))
}

fn peer_killed(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..2 * KILLS {
        let with = round % 2;
        lab.reset()?;
        let error = kill_one(lab, with == 1, seed + round as u64)?;
        took.get_mut(with).into_iter().for_each(|all| all.push(error));
    }
    let [without, with] = took.map(|mut all| {
        all.sort_unstable();
        all
    });
    let median = |all: &[u64]| all.get(all.len() / 2).copied().unwrap_or_default();
    let (bound, is) = (median(&without) + NO_LATER.as_nanos() as u64, median(&with));
    require(is <= bound, || {
        format!("the error came {} ms after the death, without the shim {} ms", ms(is), ms(median(&without)))
    })?;
    let told = |all: &[u64]| json!(all.iter().map(|ns| ms(*ns)).collect::<Vec<_>>());
    Ok(Figures::new().with("without_ms", told(&without)).with("with_ms", told(&with)))
}

/// From the death of the server to the error of its client, in nanoseconds: nothing but verbs tells it. The client is slow, and free to send more than the
/// NIC of a process that is being killed takes for it: all that it takes is acknowledged.
fn kill_one(lab: &Lab, shimmed: bool, seed: u64) -> Result<u64> {
    let client =
        format!("--mode send --size 1000..2000 --depth 64 --rate 100000 --retry-cnt 3 --verbs-tell --deadline 12 --duration 60 --seed {seed}");
    let plan = Plan { client, bare: !shimmed, ..Plan::default() };
    let pair = Partners::start(lab, &plan)?;
    if shimmed {
        pair.wait_protected()?;
    }
    lab.wait_traffic(Rail::Zero, 100, ARMING_LIMIT, || pair.client.ended().is_some())?;
    let killed_ns = monotonic_ns();
    pair.kill(lab, Host::B)?;
    let words = until("the client's report", LIMIT, || Ok(last_words(&pair.client)))?;
    let error_ns = first_error(lab, &pair.client, &words)?;
    pair.wait_ended()?;
    Ok(error_ns.saturating_sub(killed_ns))
}
