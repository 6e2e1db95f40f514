//! The control connection cut at a message of a migration, on every network and on real packets, and the processes killed at it: what can
//! be resumed is, everything else is surfaced, and nobody waits beyond a deadline.
//!
//! Rail 0 dies on host A, so A's end owns each migration and its messages have one order. RoCE packets go on over rail 1.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

use crate::clock::until;
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Running;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::seed::Seed;
use crate::trouble::{require, Result, Trouble};
use crate::wire::trap::{Edge, Step, Trap, TrapId};

use super::partners::{last_words, Partners, Plan, ARMING_LIMIT, GO_ON};
use super::Scenario;

/// The messages of a migration in their order.
const STEPS: [(Step, Host); 9] = [
    (Step::Claim, Host::A),
    (Step::Accept, Host::B),
    (Step::Commit, Host::A),
    (Step::Report, Host::A),
    (Step::Report, Host::B),
    (Step::Ready, Host::A),
    (Step::Ready, Host::B),
    (Step::Confirm, Host::A),
    (Step::Confirm, Host::B),
];
/// Migrations at a time: more would make the guests slow, not the run fast.
const AT_ONCE: usize = 6;
/// First port of the shims' own listeners; each pair has two, and no other pair of the scenario has the same: what the kernel of an ended
/// process still sends again is no message of the next.
const FIRST_PORT: u16 = 21_000;
/// Shorter than any deadline.
const FLAP: Duration = Duration::from_millis(300);
/// The step comes within this after the fault.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// A program ends within this after its shim gave out an error, or after the checking application saw no progress.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Deadlines of the runs in which one is to pass; the ones that are not named are the defaults.
const SHORT: [(&str, u64); 6] = [
    ("SHIFT_CLAIM_MS", 400),
    ("SHIFT_HOLD_MS", 400),
    ("SHIFT_FENCE_MS", 800),
    ("SHIFT_PACKET_LIFETIME_MS", 200),
    ("SHIFT_EXCHANGE_MS", 1500),
    ("SHIFT_PATIENCE_MS", 2500),
];
/// The longest of them, and what emulation may add.
const SURFACED_MS: f64 = 2500.0 + 2500.0;
/// Before the others, and after them.
const HEARTBEATS_MS: [u64; 2] = [800, 20_000];

/// What becomes of the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The network comes back at once.
    Flap,
    /// It does not before the owner's program has ended; with this heartbeat deadline.
    Lasts(u64),
    /// The process on that host is killed meanwhile.
    Kill(Host),
}

#[derive(Debug, Clone, Copy)]
struct Case {
    step: Step,
    sender: Host,
    edge: Edge,
    /// Only what this host sends is lost.
    from: Option<Host>,
    fate: Fate,
    /// Why the owner surfaces, where only one reason is possible.
    why: Option<&'static str>,
}

/// Cases of which it is known which deadline passes.
const BY_DEADLINE: [Case; 3] = [
    Case {
        step: Step::Claim,
        sender: Host::A,
        edge: Edge::Before,
        from: None,
        fate: Fate::Lasts(HEARTBEATS_MS[1]),
        why: Some("patience deadline"),
    },
    Case {
        step: Step::Commit,
        sender: Host::A,
        edge: Edge::After,
        from: Some(Host::B),
        fate: Fate::Lasts(HEARTBEATS_MS[1]),
        why: Some("exchange deadline"),
    },
    Case {
        step: Step::Commit,
        sender: Host::A,
        edge: Edge::Before,
        from: None,
        fate: Fate::Lasts(HEARTBEATS_MS[0]),
        why: Some("cannot be reached"),
    },
];

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests(
            "shim-control-cut",
            "the control connection cut, a process killed, at messages of a migration that the seed chooses",
            |lab: &mut Lab, seed| run(lab, &sample(seed), seed),
        ),
        Scenario::guests(
            "control-cut-all",
            "the same before and after every message, each way, for a moment and for good",
            |lab: &mut Lab, seed| run(lab, &all(), seed),
        ),
    ]
}

fn all() -> Vec<Case> {
    let mut cases = BY_DEADLINE.to_vec();
    for (step, sender) in STEPS {
        for edge in [Edge::Before, Edge::After] {
            for from in [None, Some(Host::A), Some(Host::B)] {
                for fate in [Fate::Flap, Fate::Lasts(HEARTBEATS_MS[0]), Fate::Lasts(HEARTBEATS_MS[1])] {
                    cases.push(Case { step, sender, edge, from, fate, why: None });
                }
            }
            let killed =
                Host::ALL.map(|host| Case { step, sender, edge, from: None, fate: Fate::Kill(host), why: None });
            cases.extend(killed);
        }
    }
    cases
}

/// As many of each fate.
fn sample(seed: u64) -> Vec<Case> {
    let mut dice = Seed::new(seed, "control cuts");
    let all = all();
    let mut draw = |of: fn(Fate) -> bool| {
        let such: Vec<&Case> = all.iter().filter(|case| of(case.fate)).collect();
        (0..3)
            .filter_map(|_| such.get(dice.within(0..such.len() as u64) as usize).map(|case| **case))
            .collect::<Vec<_>>()
    };
    let flaps = draw(|fate| fate == Fate::Flap);
    let lasting = draw(|fate| matches!(fate, Fate::Lasts(_)));
    let kills = draw(|fate| matches!(fate, Fate::Kill(_)));
    [BY_DEADLINE.to_vec(), flaps, lasting, kills].concat()
}

fn run(lab: &mut Lab, cases: &[Case], seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut told = Vec::new();
    let numbered: Vec<(u16, &Case)> = (0..).zip(cases).collect();
    for batch in numbered.chunks(AT_ONCE) {
        lab.reset()?;
        told.extend(run_batch(lab, batch, seed)?);
    }
    figures.note("cases", told);
    Ok(figures)
}

/// One case while it runs.
struct Live<'a> {
    case: &'a Case,
    partners: Partners,
    trap: Option<TrapId>,
    sprung: Option<Instant>,
}

fn run_batch(lab: &mut Lab, cases: &[(u16, &Case)], seed: u64) -> Result<Vec<Value>> {
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let mut live =
        cases.iter().map(|(number, case)| start(lab, *number, case, seed)).collect::<Result<Vec<Live<'_>>>>()?;
    for each in &live {
        each.partners.wait_protected()?;
        each.partners.wait_idle()?;
    }
    lab.a().write(GO_ON, "", 0o644)?;
    let first = cases.first().map_or(0, |(number, _)| u64::from(*number));
    let packets = Seed::new(seed.wrapping_add(first), "moment").within(20..200);
    lab.wait_traffic(Rail::Zero, packets, ARMING_LIMIT, || false)?;
    lab.cut(Host::A, Rail::Zero)?;
    let ended = drive(lab, &mut live);
    lab.mend(Host::A, Rail::Zero)?;
    let ended = ended.and_then(|()| live.iter().try_for_each(|each| each.partners.wait_ended()));
    let evidence = Evidence::collect(lab)?;
    for each in &live {
        each.partners.end_children(lab)?;
    }
    ended?;
    live.iter().map(|each| judge(each, &evidence)).collect()
}

fn start<'a>(lab: &Lab, number: u16, case: &'a Case, seed: u64) -> Result<Live<'a>> {
    let ports = (FIRST_PORT + 2 * number, FIRST_PORT + 2 * number + 1);
    let Case { step, sender, edge, from, .. } = *case;
    // The wire ends it by itself: what is done for the other cases takes time.
    let lasts = (case.fate == Fate::Flap).then_some(FLAP);
    let trap = lab.wire().trap(Trap { edge, from, lasts, ..Trap::watch(ports, step, 1, sender) })?;
    let mut env = vec![("SHIFT_PORT_RANGE".to_owned(), format!("{}-{}", ports.0, ports.1))];
    let heartbeat_ms = match case.fate {
        Fate::Flap => None,
        Fate::Lasts(heartbeat_ms) => Some(heartbeat_ms),
        Fate::Kill(_) => Some(HEARTBEATS_MS[0]),
    };
    if let Some(heartbeat_ms) = heartbeat_ms {
        let short = SHORT.into_iter().chain([("SHIFT_HEARTBEAT_MS", heartbeat_ms)]);
        env.extend(short.map(|(name, ms)| (name.to_owned(), ms.to_string())));
    }
    // A child that lives on keeps the side channel: what tells the survivor of the death is its shim.
    let forks = |host| if case.fate == Fate::Kill(host) { "--fork idles" } else { "" };
    let flow = "--mode mixed --messages 600 --size 0..3000 --depth 8 --rate 150000 --poll sleepy --deadline 6";
    let pause = format!("--pause-before-message 10 --idle-until-file {GO_ON}");
    let client = format!("{flow} {pause} --seed {} {}", seed.wrapping_mul(1000) + u64::from(number), forks(Host::A));
    let plan = Plan { number, client, server: forks(Host::B).to_owned(), env, ..Plan::default() };
    Ok(Live { case, partners: Partners::start(lab, &plan)?, trap: Some(trap), sprung: None })
}

/// Does to each what its case says when its step comes, and waits until all have closed their run.
fn drive(lab: &Lab, live: &mut [Live<'_>]) -> Result<()> {
    let begun = Instant::now();
    until("the end of all programs", STEP_LIMIT + END_LIMIT, || {
        for each in live.iter_mut() {
            each.go_on(lab)?;
            let late = each.sprung.is_none() && begun.elapsed() > STEP_LIMIT;
            require(!late, || format!("the step never came: {:?}", each.case))?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(live.iter().all(Live::is_over).then_some(()))
    })
    .map_err(|trouble| match live.iter().find(|each| !each.is_over()) {
        Some(waiting) => Trouble::judged(format!("{trouble}: {:?}", waiting.case)),
        None => trouble,
    })
}

impl Live<'_> {
    fn go_on(&mut self, lab: &Lab) -> Result<()> {
        let Some(trap) = self.trap else { return Ok(()) };
        let Some(sprung) = self.sprung else {
            if lab.wire().sprung(trap)?.is_some() {
                self.sprung = Some(Instant::now());
                if let Fate::Kill(host) = self.case.fate {
                    self.partners.kill(lab, host)?;
                }
            }
            return Ok(());
        };
        let mended = match self.case.fate {
            Fate::Flap => sprung.elapsed() >= FLAP,
            Fate::Lasts(_) => has_closed(&self.partners.client),
            // The kernel of the dead process says the rest, as soon as it gets through.
            Fate::Kill(host) => self.partners.on(host).ended().is_some(),
        };
        if mended {
            lab.wire().mend(trap)?;
            self.trap = None;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.trap.is_none() && self.partners.sides().into_iter().all(has_closed)
    }
}

fn has_closed(side: &Running) -> bool {
    side.ended().is_some() || last_words(side).is_some()
}

fn judge(live: &Live<'_>, evidence: &Evidence) -> Result<Value> {
    let Live { case, partners, .. } = live;
    let records = |host: Host| -> Vec<&Value> {
        let pid = partners.on(host).pid();
        evidence.of(host).filter(|record| record["pid"] == pid).collect()
    };
    let outcome = |host: Host| records(host).last().map_or(Value::Null, |record| record["outcome"].clone());
    let passed =
        |host: Host| last_words(partners.on(host)).is_some_and(|report| report.get("pass") == Some(&json!(true)));
    let (a, b) = (passed(Host::A), passed(Host::B));
    let told = json!({
        "case": format!("{case:?}"),
        "pass": [a, b],
        "outcome": [outcome(Host::A), outcome(Host::B)],
        "why": records(Host::A).iter().chain(&records(Host::B)).find_map(|record| record["why"].as_str()),
        "ms": records(Host::A).last().map(|record| record["duration_ms"].clone()),
    });
    match case.fate {
        Fate::Flap => require(a && b, || format!("it was not resumed: {told}"))?,
        Fate::Lasts(_) => require(a == b, || format!("only one end survived: {told}"))?,
        Fate::Kill(_) => require(!(a && b), || format!("a dead process passed: {told}"))?,
    }
    for record in records(Host::A).into_iter().chain(records(Host::B)) {
        let late = record["outcome"] == "surfaced"
            && record.get("duration_ms").and_then(Value::as_f64).is_none_or(|ms| ms > SURFACED_MS);
        require(!late, || format!("it was surfaced late: {record}"))?;
    }
    // The owner has an error that it keeps: unless it went on, it was given out, with its reason. With the peer's READY in it goes on; what the
    // peer does after that, dying or surfacing because it hears nothing, is no fault of a path, and its word of it may not arrive: the
    // owner's program ends by its own deadline.
    let ready_came = match case.fate {
        Fate::Flap | Fate::Kill(Host::A) => false,
        Fate::Kill(Host::B) => matches!(case.step, Step::Ready | Step::Confirm),
        Fate::Lasts(_) => {
            let only_own_are_lost = case.from == Some(Host::A) && case.step == Step::Report;
            only_own_are_lost || matches!(case.step, Step::Ready | Step::Confirm)
        }
    };
    let may_go_on = ready_came && outcome(Host::B) != json!("confirmed");
    // Whoever has a completion for everything keeps no error: the death of the peer came a moment later than it was to, behind its READY.
    let is_owed = last_words(partners.on(Host::A)).is_none_or(|report| report.get("sent") != report.get("acked"));
    let kept = !a && is_owed && case.fate != Fate::Kill(Host::A) && !may_go_on;
    require(!kept || outcome(Host::A) != Value::Null, || format!("the owner gave nothing out: {told}"))?;
    if let Some(why) = case.why {
        let said = records(Host::A).iter().any(|record| record["why"].as_str().is_some_and(|said| said.contains(why)));
        require(said, || format!("it did not end by the {why}: {told}"))?;
    }
    Ok(told)
}
