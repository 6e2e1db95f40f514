//! A thousand migrations on real packets: two rails die in turn, seen by one host, by the other or by none, under queue pairs of every kind.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::seed::Seed;
use crate::trouble::{require, Result};
use crate::wire::rule::{Action, Rule, RuleId};

use super::failback::judge_ends;
use super::partners::{Partners, Plan};
use super::standbys::{is_on, wait_shown};
use super::Scenario;

const MIGRATIONS: usize = 1000;
const QPS: u64 = 16;
const SHAPE: &str = "--mode write,send,write_imm,mixed,read --qps 16 --depth 8 --signal-every 4 --direction both \
    --size 0..4000 --settle-ms 1000";
/// A pair of programs runs for so long; then its memory is judged, and the next pair has queue pairs of its own.
const SPAN: Duration = Duration::from_secs(60);
/// No fault begins later: what was moved is to be used before the end.
const LAST_FAULT: Duration = Duration::from_secs(50);
/// Programs that are needed for so many migrations, with room: each makes a hundred at least.
const MOST_PAIRS: u16 = 10;

pub(super) fn scenarios() -> Vec<Scenario> {
    let about =
        "two rails die in turn until there were a thousand migrations: nothing lost, doubled, damaged or surfaced";
    vec![Scenario::guests("shim-thousand", about, thousand).once()]
}

fn thousand(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut dice = Seed::new(seed, "a thousand migrations");
    let (mut migrations, mut faults, mut requests) = (0, 0, [0; 2]);
    for number in 0..MOST_PAIRS {
        lab.reset()?;
        let (made, evidence) = one_pair(lab, number, seed + u64::from(number), &mut dice)?;
        faults += made;
        migrations += evidence.of(Host::A).count();
        for (sum, name) in requests.iter_mut().zip(["proven", "replayed"]) {
            *sum += evidence.all().filter_map(|(_, record)| record[name].as_u64()).sum::<u64>();
        }
        if migrations >= MIGRATIONS {
            break;
        }
    }
    require(migrations >= MIGRATIONS, || format!("{migrations} migrations by {faults} faults"))?;
    let [proven, replayed] = requests;
    Ok(Figures::new()
        .with("faults", faults)
        .with("moved", migrations)
        .with("proven", proven)
        .with("replayed", replayed))
}

/// How many faults there were, and what the shims wrote of them.
fn one_pair(lab: &mut Lab, number: u16, seed: u64, dice: &mut Seed) -> Result<(usize, Evidence)> {
    Evidence::clear(lab)?;
    let env = [("SHIFT_FAILBACK", "0"), ("SHIFT_PROBE_INTERVAL_MS", "1000")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let client = format!("{SHAPE} --duration {} --seed {seed}", SPAN.as_secs());
    let pair = Partners::start(lab, &Plan { number, client, env, ..Plan::default() })?;
    let began = Instant::now();
    let mut faults = 0;
    let mut rails = [(Rail::Zero, "rxe0"), (Rail::One, "rxe1")];
    while began.elapsed() < LAST_FAULT {
        let [(dies, here), (_, there)] = rails;
        wait_shown(lab, &pair, QPS, &format!("all on {here}, {there} ready"), |qp| {
            is_on(qp, &[here]) && qp["standby"] == there && qp["silent"] == json!([])
        })?;
        let death = Death::of(lab, dies, dice)?;
        wait_shown(lab, &pair, QPS, &format!("all on {there}"), |qp| is_on(qp, &[there]))?;
        death.mend(lab)?;
        faults += 1;
        rails.reverse();
    }
    judge_ends(&pair)?;
    let evidence = Evidence::collect(lab)?;
    let wrong = evidence.all().find(|(_, record)| record["outcome"] != "confirmed" || record["surfaced"] != 0);
    require(wrong.is_none(), || format!("not a migration that nobody notices: {wrong:?}"))?;
    Ok((faults, evidence))
}

/// How a rail died.
enum Death {
    /// By a rule of the wire.
    OnTheWire(RuleId),
    At(Host, Rail),
}

impl Death {
    fn of(lab: &Lab, rail: Rail, dice: &mut Seed) -> Result<Death> {
        if dice.within(0..3) == 0 {
            return Ok(Death::OnTheWire(lab.wire().add(Rule::on(rail.link(), Action::Drop))?.0));
        }
        let host = dice.host();
        lab.cut(host, rail)?;
        Ok(Death::At(host, rail))
    }

    fn mend(self, lab: &Lab) -> Result<()> {
        match self {
            Death::OnTheWire(rule) => lab.wire().remove(rule).map(drop),
            Death::At(host, rail) => lab.mend(host, rail).map(drop),
        }
    }
}
