//! The epochs' test (V11): faults at both ends with control messages that come twice and late, and a second fault within the handshake, whose end hears replies
//! of the migration before. Both ends end in the same epoch, and nothing is sent on a path before the peer has its receives there; without the check of
//! epochs it is.
//!
//! The stale replies are real ones. An end that has accepted a second claim says REPORT and READY of the first migration again and again until it hears
//! COMMIT, and COMMIT comes late, on every network. What it says meanwhile comes to an owner that is in the second migration already. Each step waits for the
//! message that makes the next one possible, so that no order is left to chance; requests are lost, not answers, so that there is something to replay.

use serde_json::{json, Value};

use crate::clock::{ms, until};
use crate::conformance::judge::{aligned, Verdict};
use crate::conformance::trace::{convert, Kind, Run};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Running;
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::trial::all_protected;
use crate::trouble::{require, Result, Trouble};
use crate::wire::log::Fate;
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule, RuleId};
use crate::wire::trap::{Edge, Loss, Step, Trap, TrapId};

use super::checker::{Checker, GO_ON, PORT};
use super::conform::{found, leaves_out, requests_lost, right, spared, told, IMPATIENT, STEP};
use super::race::report;
use super::{shiftctl, Scenario};

/// Rounds of REPORT and READY of the first migration that come to an owner in the second. One is enough for a library that believes them.
const ROUNDS: usize = 3;
/// How late everything comes on one network, and a part of what another one carries: so many of a hundred segments. Microseconds.
const LATE_US: u64 = 150_000;
const DELAYED: (u64, u64) = (50, 30_000);
/// Ports of the shims' own listeners. Each run has its own: what the kernel of an ended process still sends again on a rail that was down is no message of
/// the next.
#[derive(Clone, Copy)]
struct Ports(&'static str, (u16, u16));
const OF_BOTH: Ports = Ports("21000-21001", (21_000, 21_001));
const OF_AGAIN: Ports = Ports("21002-21003", (21_002, 21_003));
const OF_BROKEN: Ports = Ports("21004-21005", (21_004, 21_005));
/// Deadlines that pass in none of these runs, though what is said is lost for a while.
const PATIENT: [(&str, &str); 5] = [
    ("SHIFT_FAILBACK", "0"),
    ("SHIFT_HEARTBEAT_MS", "30000"),
    ("SHIFT_CLAIM_MS", "15000"),
    ("SHIFT_EXCHANGE_MS", "20000"),
    ("SHIFT_PATIENCE_MS", "30000"),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "faults at both ends, control messages twice and late; a second fault within the handshake, replies of the first: one epoch in the end";
    vec![Scenario::guests("conform-v11", about, v11)]
}

fn v11(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let both = at_both_ends(lab, seed)?;
    let (run, told) = again(lab, seed, OF_AGAIN, None)?;
    right(run)?;
    let (broken, left_out) = again(lab, seed, OF_BROKEN, Some("epochs"))?;
    let figures = Figures::new().with("both ends", both).with("again", told).with("without", left_out);
    Ok(figures.with("found: epochs", found("epochs", broken)?))
}

/// A pair of one queue pair that stands before its second message.
struct Started {
    server: Running,
    client: Running,
    since: u64,
}

impl Started {
    fn new(lab: &Lab, seed: u64, ports: Ports, without: Option<&str>) -> Result<Started> {
        Evidence::clear(lab)?;
        // Slow enough that it is not over before its faults are.
        let shape = "--mode send --size 8..1000 --depth 8 --messages 80 --rate 20000 --deadline 20";
        let patient = IMPATIENT.replace("--deadline 6", "");
        let mut checker = Checker::gated(format!("{shape} {patient} --seed {seed}"));
        checker.env = [("SHIFT_PORT_RANGE", ports.0)].into_iter().chain(PATIENT).collect();
        let mut trial = checker.trial();
        if let Some(part) = without {
            trial = leaves_out(trial, part, false);
        }
        lab.a().shell(&format!("rm -f {GO_ON}"))?;
        let since = lab.wire().position()?;
        let (server, client) = lab.start_pair(Host::B, PORT, &trial.server, &trial.client)?;
        let started = Started { server, client, since };
        started.wait("the queue pair to be protected", || {
            Ok([&started.client, &started.server].iter().all(|side| all_protected(side) >= 1).then_some(()))
        })?;
        Ok(started)
    }

    fn wait<T>(&self, what: &str, mut met: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        until(what, STEP, || match self.client.ended().or(self.server.ended()) {
            Some(ended) => {
                Err(Trouble::judged(format!("it was over before {what}: {}; {}", ended.brief(), report(&ended))))
            }
            None => met(),
        })
    }

    fn wait_sprung(&self, lab: &Lab, what: &str, trap: TrapId) -> Result<u64> {
        self.wait(what, || lab.wire().sprung(trap))
    }

    fn wait_moved(&self, lab: &Lab, to: Rail) -> Result<()> {
        self.wait("both ends to have moved", || {
            let evidence = Evidence::collect(lab)?;
            let moved = Host::ALL.into_iter().all(|host| evidence.of(host).any(|record| has_moved_to(record, to)));
            Ok(moved.then_some(()))
        })
    }

    /// Every message in its receive, no error, and both ends in the same epoch on that rail; which epoch.
    fn judge(&self, lab: &Lab, standby: Rail) -> Result<u64> {
        let ends = [self.client.wait(STEP)?, self.server.wait(STEP)?];
        let [sent, received] = ends.each_ref().map(report);
        let is_right = |report: &Value| report["why"].is_null() && report.pointer("/fallen/0").is_none();
        let is_content = ends.iter().all(|ended| ended.succeeded()) && is_right(&sent) && is_right(&received);
        require(is_content, || format!("{} {sent}; {} {received}", ends[0].brief(), ends[1].brief()))?;
        let log = lab.wire().records_since(self.since)?;
        let run = Run { standby, ..Run::of(Kind::Notify) };
        right(aligned(&convert(&log, run, told(&sent)?)?))?;
        let evidence = Evidence::collect(lab)?;
        let last = |host: Host| evidence.of(host).last().filter(|record| has_moved_to(record, standby));
        let [a, b] = Host::ALL.map(|host| last(host).and_then(|record| record["epoch"].as_u64()));
        require(a.is_some() && a == b, || {
            format!("the ends are in {a:?} and {b:?}: {:?}", evidence.all().collect::<Vec<_>>())
        })?;
        lab.forget_ended();
        Ok(a.unwrap_or_default())
    }
}

/// This end has agreed that it is there.
fn has_moved_to(record: &Value, to: Rail) -> bool {
    record["outcome"] == "confirmed" && record.pointer("/to/device").is_some_and(|device| device == to.device())
}

/// Fboth: rail 0 goes down inside both hosts. What the shims say goes out on every network: on one it all comes late, as what was heard already, on the other
/// a part of it does.
fn at_both_ends(lab: &mut Lab, seed: u64) -> Result<Value> {
    lab.reset()?;
    let pair = Started::new(lab, seed, OF_BOTH, None)?;
    let tcp = |link, delay_us| Rule { tcp: Some(OF_BOTH.1), ..Rule::on(link, Action::Delay(delay_us)) };
    lab.wire().add(tcp(Link::Management, LATE_US))?;
    lab.wire().add(tcp(Link::Rail1, DELAYED.1).percent(DELAYED.0, seed))?;
    lab.a().write(GO_ON, "", 0o644)?;
    lab.wait_traffic(Rail::Zero, spared(seed, "v11"), STEP, || pair.client.ended().is_some())?;
    for host in Host::ALL {
        lab.cut(host, Rail::Zero)?;
    }
    pair.wait_moved(lab, Rail::One)?;
    for host in Host::ALL {
        lab.mend(host, Rail::Zero)?;
    }
    let epoch = pair.judge(lab, Rail::One)?;
    let log = lab.wire().records_since(pair.since)?;
    // The rules are about these segments alone; the log has no ports.
    let late = |link| log.iter().filter(|record| record.link == link && record.fate == Fate::Delayed).count();
    let (all, part) = (late(Link::Management), late(Link::Rail1));
    require(all > 0 && part > 0, || format!("{all} and {part} segments came late: it proves nothing"))?;
    Ok(json!({ "epoch": epoch, "late_on_one_network": all, "late_on_another": part }))
}

/// What is set on the wire for a second fault within the handshake.
struct Traps {
    /// A has fenced: nothing is lost.
    fenced: TrapId,
    /// From its first REPORT on B is not heard: A does not get past its own fence.
    deaf: TrapId,
    /// A's second claim: nothing is lost.
    claimed: TrapId,
    /// B has its receives on the third rail: nothing is lost.
    ready: TrapId,
    /// From its second COMMIT on A is not heard.
    mute: TrapId,
    lost: RuleId,
}

impl Traps {
    fn set(lab: &Lab, seed: u64, ports: Ports) -> Result<Traps> {
        let wire = lab.wire();
        let silence = |step, epoch, sender| Trap {
            edge: Edge::Before,
            from: Some(sender),
            lasts: None,
            // The other one's kernel is answered: it goes on sending.
            loses: Loss::Words,
            ..Trap::watch(ports.1, step, epoch, sender)
        };
        Ok(Traps {
            fenced: wire.trap(Trap::watch(ports.1, Step::Report, 1, Host::A))?,
            claimed: wire.trap(Trap::watch(ports.1, Step::Claim, 2, Host::A))?,
            ready: wire.trap(Trap::watch(ports.1, Step::Ready, 2, Host::B))?,
            deaf: wire.trap(silence(Step::Report, 1, Host::B))?,
            mute: wire.trap(silence(Step::Commit, 2, Host::A))?,
            lost: wire.add(requests_lost(spared(seed, "v11 again")))?.0,
        })
    }
}

/// Fagain: rail 0 loses requests; when both ends have fenced for the first migration its rail goes down at the owner, whose second COMMIT comes late. Whether it
/// sent anything on the third rail before the peer had its receives there, and what happened when.
fn again(lab: &mut Lab, seed: u64, ports: Ports, without: Option<&str>) -> Result<(Verdict, Value)> {
    lab.reset()?;
    lab.raise()?;
    let pair = Started::new(lab, seed, ports, without)?;
    for side in [&pair.client, &pair.server] {
        pair.wait("both standbys to be ready", || {
            let ready = |qp: &Value| qp["standby"] != json!(null) && qp["silent"] == json!([]);
            Ok(first_queue_pair(lab, side)?.as_ref().is_some_and(ready).then_some(()))
        })?;
    }
    let traps = Traps::set(lab, seed, ports)?;
    lab.a().write(GO_ON, "", 0o644)?;
    pair.wait_sprung(lab, "the peer's first report", traps.deaf)?;
    pair.wait_sprung(lab, "the owner's first report", traps.fenced)?;
    let on = first_queue_pair(lab, &pair.client)?.and_then(|qp| qp.get("path").cloned()).unwrap_or_default();
    let (second, third) = if on == Rail::Two.device() { (Rail::Two, Rail::One) } else { (Rail::One, Rail::Two) };
    let sends = Rule::on(third.link(), Action::Pass).opcodes(&opcode::SENDS).from(Host::A);
    let sends = lab.wire().add(sends)?.0;
    let fault_ns = lab.cut(Host::A, second)?;
    pair.wait_sprung(lab, "the second claim", traps.claimed)?;
    lab.wire().mend(traps.deaf)?;
    let committed_ns = pair.wait_sprung(lab, "the second commit", traps.mute)?;
    let stale_ns = hear_stale_replies(lab, &pair, ports)?;
    let mut given_up = nothing_given_up(lab)?;
    if without.is_some() {
        // Its agent may be slow. What becomes of it afterwards is not judged.
        pair.wait("what a library does that believes them", || {
            given_up = nothing_given_up(lab)?;
            Ok((given_up.is_err() || lab.wire().hits(sends)?.first_ns.is_some()).then_some(()))
        })?;
    }
    lab.wire().mend(traps.mute)?;
    lab.wire().remove(traps.lost)?;
    let told = |epoch: Option<u64>| {
        json!({ "from": on, "epoch": epoch, "fault_to_commit_ms": ms(committed_ns - fault_ns),
                "stale_replies": 2 * ROUNDS, "stale_for_ms": ms(stale_ns - committed_ns) })
    };
    let epoch = if without.is_none() {
        pair.wait_moved(lab, third)?;
        Some(pair.judge(lab, third)?)
    } else {
        None
    };
    let sent_ns = lab.wire().hits(sends)?.first_ns;
    let ready_ns = lab.wire().sprung(traps.ready)?;
    let verdict = given_up.and_then(|()| sent_once_ready(sent_ns, ready_ns));
    lab.mend(Host::A, second)?;
    Ok((verdict, told(epoch)))
}

/// B has not heard the second COMMIT: what it says now is of the first migration. When the last of it came.
fn hear_stale_replies(lab: &Lab, pair: &Started, ports: Ports) -> Result<u64> {
    let mut heard_ns = 0;
    for step in [Step::Report, Step::Ready].into_iter().cycle().take(2 * ROUNDS) {
        let stale = lab.wire().trap(Trap::watch(ports.1, step, 1, Host::B))?;
        heard_ns = pair.wait_sprung(lab, "a reply of the first migration", stale)?;
        lab.wire().mend(stale)?;
    }
    Ok(heard_ns)
}

/// As `shiftctl` shows it.
fn first_queue_pair(lab: &Lab, side: &Running) -> Result<Option<Value>> {
    let status = shiftctl::status(lab, side.host(), side.pid())?;
    Ok(status.pointer("/queue_pairs/0").cloned())
}

/// The safety rule's sixth point: nothing is sent on a path before the peer said that its receives are posted there.
fn sent_once_ready(first_sent_ns: Option<u64>, ready_ns: Option<u64>) -> Verdict {
    match (first_sent_ns, ready_ns) {
        (Some(sent), Some(ready)) if sent > ready => Ok(()),
        (None, _) => Err("nothing was sent on the third rail".into()),
        (Some(_), None) => Err("SENDs on the third rail, where the peer has no receives".into()),
        (Some(sent), Some(ready)) => {
            Err(format!("SENDs on the third rail {} ms before the peer had its receives there", ms(ready - sent)))
        }
    }
}

/// Its seventh: what is proven is no error. Nothing is lost for good here, and no deadline has passed.
fn nothing_given_up(lab: &Lab) -> Result<Verdict> {
    let evidence = Evidence::collect(lab)?;
    let fallen = evidence.of(Host::A).find(|record| record["outcome"] == "surfaced");
    Ok(fallen.map_or(Ok(()), |record| Err(format!("an error, before the peer heard COMMIT: {}", record["why"]))))
}
