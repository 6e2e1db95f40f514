//! Many processes on each host, of two users, behind one well-known port: each finds its partner without a daemon, and whoever holds the
//! port may be killed at any moment.

use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::place::{Host, Rail};
use crate::seed::Seed;
use crate::trouble::{require, Result};

use super::partners::{Partners, Plan, ARMING_LIMIT, GO_ON};
use super::Scenario;

/// Pairs of processes, without the one that holds the ports first.
const PAIRS: u16 = 16;
/// Those that are armed when the holders are killed; the others are being armed just then.
const ARMED_FIRST: u16 = 8;
/// The users of the pairs, in turn.
const USERS: [u32; 2] = [1000, 1001];
/// The port of the directory.
const WELL_KNOWN: u16 = shift_control::config::DEFAULT_PORT;
/// A new holder has it within this.
const TAKEN_OVER: Duration = Duration::from_secs(1);

pub(super) fn scenarios() -> Vec<Scenario> {
    let about =
        "16 processes per host, of two users; the holders of both ports killed, then rail 0 down: all pairs survive";
    vec![Scenario::guests("shim-shared-port", about, sixteen_pairs)]
}

fn sixteen_pairs(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    for host in Host::ALL {
        lab.guest(host).shell(&format!("rm -f {GO_ON}"))?;
    }
    let mut dice = Seed::new(seed, "shared port");
    let holders = start_holders(lab)?;
    let pair = |number: u16| {
        let user = USERS.into_iter().cycle().nth(number.into()).unwrap_or_default();
        let flow = "--mode mixed --messages 300 --size 0..2000 --depth 4 --rate 100000 --poll sleepy --deadline 30";
        let pause = format!("--pause-before-message 10 --idle-until-file {GO_ON}");
        // Its own seed: bytes that come to another process are damage there.
        let client = format!("{flow} {pause} --seed {}", seed.wrapping_mul(100) + u64::from(number));
        Partners::start(lab, &Plan { number, user, client, ..Plan::default() })
    };
    let mut pairs = (0..ARMED_FIRST).map(pair).collect::<Result<Vec<Partners>>>()?;
    pairs.iter().try_for_each(Partners::wait_protected)?;
    pairs.extend((ARMED_FIRST..PAIRS).map(pair).collect::<Result<Vec<Partners>>>()?);
    // So many of the second half have got a device open when the holders die.
    let started = dice.within(1..u64::from(PAIRS - ARMED_FIRST)) as usize;
    for each in pairs.iter().skip(ARMED_FIRST.into()).take(started) {
        each.server.wait_line(ARMING_LIMIT, |line| line.starts_with("STARTED"))?;
    }
    let mut figures = Figures::new().with("started_at_the_kill", started as u64);
    let killed_ns = monotonic_ns();
    for host in Host::ALL {
        figures.note(&format!("taken_over_ms_{}", host.name()), kill_holder(lab, &holders, host)?);
    }
    pairs.iter().try_for_each(Partners::wait_protected)?;
    figures.note("kill_to_all_protected_ms", ms(monotonic_ns() - killed_ns));

    for each in &pairs {
        each.wait_idle()?;
    }
    lab.a().write(GO_ON, "", 0o644)?;
    lab.wait_traffic(Rail::Zero, dice.within(200..2000), ARMING_LIMIT, || false)?;
    let cut = dice.host();
    let fault_ns = lab.cut(cut, Rail::Zero)?;
    figures.note("cut", cut.name());
    let judged = judge(lab, &pairs, &mut figures);
    figures.note("fault_to_end_ms", ms(monotonic_ns() - fault_ns));
    lab.mend(cut, Rail::Zero)?;
    holders.end_children(lab)?;
    judged.map(|()| figures)
}

/// A pair of root's that is there before all others, so that its two processes hold the ports. Each has a child that lives on: what it
/// inherited must not keep the port.
fn start_holders(lab: &Lab) -> Result<Partners> {
    let flow = "--mode send --duration 600 --size 64 --rate 640 --poll sleepy --fork idles";
    let (client, server) = (flow.to_owned(), "--fork idles".to_owned());
    let holders = Partners::start(lab, &Plan { number: PAIRS, client, server, ..Plan::default() })?;
    holders.wait_protected()?;
    for side in holders.sides() {
        require(lab.is_listening(side.host(), WELL_KNOWN)?, || {
            format!("nobody holds the port on {}", side.host().name())
        })?;
    }
    Ok(holders)
}

/// Kills the holder, not its child, and waits for the next one; how long that took, in milliseconds.
fn kill_holder(lab: &Lab, holders: &Partners, host: Host) -> Result<Value> {
    holders.kill(lab, host)?;
    let killed_ns = monotonic_ns();
    holders.on(host).wait(ARMING_LIMIT)?;
    until("another holder of the port", ARMING_LIMIT, || Ok(lab.is_listening(host, WELL_KNOWN)?.then_some(())))?;
    let took = Duration::from_nanos(monotonic_ns() - killed_ns);
    require(took <= TAKEN_OVER, || format!("the port of {} was taken over after {took:?}", host.name()))?;
    Ok(json!(ms(took.as_nanos() as u64)))
}

fn judge(lab: &Lab, pairs: &[Partners], figures: &mut Figures) -> Result<()> {
    for (number, pair) in pairs.iter().enumerate() {
        for side in pair.sides() {
            let ended = side.wait(ARMING_LIMIT)?;
            require(ended.succeeded(), || format!("pair {number} on {}: {}", side.host().name(), ended.brief()))?;
        }
    }
    let evidence = Evidence::collect(lab)?;
    let mut told = 0;
    for host in Host::ALL {
        // A program that has done all its work may destroy its queue pair before the peer's last word is in.
        let moved = |record: &&Value| record["outcome"] == "confirmed" || record["outcome"] == "destroyed";
        let of_host: Vec<&Value> = evidence.of(host).filter(moved).collect();
        told += of_host.len();
        // Exactly one migration at each end of each pair: no claim of one pair reached another.
        require(of_host.len() == pairs.len(), || {
            format!("{}: {} migrations of {PAIRS} pairs", host.name(), of_host.len())
        })?;
    }
    figures.note("confirmed", told as u64);
    if let Some(gap) = evidence.error_to_success_ms() {
        figures.note("first_error_to_success_ms", gap);
    }
    Ok(())
}
