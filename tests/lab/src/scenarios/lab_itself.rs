//! The lab judges others, so it is judged first: faults do what they say, and a guest that dies is seen to be dead.

use std::time::Duration;

use crate::clock::until;
use crate::figures::Figures;
use crate::guest::Program;
use crate::lab::Lab;
use crate::perftest::{Perftest, Tool, PORT};
use crate::place::{Host, Link, Rail};
use crate::trial::{Fault, Moment, Trial};
use crate::trouble::{require, Result};
use crate::wire::packet::opcode;
use crate::wire::rule::{Action, Rule};

use super::Scenario;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::guests("lab-faults", "each fault takes the rail away, and mending or a reset brings it back", faults),
        Scenario::guests(
            "lab-wire-rules",
            "RDMA recovers by itself from a few dropped, doubled and damaged packets",
            rules,
        ),
        Scenario::guests("lab-memlock", "an ordinary user runs RDMA, but not beyond the memory it may lock", memlock),
        Scenario::guests("lab-torn-out", "a card torn out of a guest is gone from it", torn_out),
        Scenario::guests("lab-guest-panic", "a kernel panic of a guest is recognised", panic),
    ]
}

const SECOND: Duration = Duration::from_secs(1);

fn reaches(lab: &Lab, from: Host, link: Link) -> Result<bool> {
    let ping = Program::words("/bin/busybox ping -c 1 -W 1").arg(link.address(from.peer()));
    Ok(lab.guest(from).run(&ping, 30 * SECOND)?.succeeded())
}

fn faults(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let rail = Rail::Zero;
    let both_ways = [
        Fault::Cut(Host::A, rail),
        Fault::Carrier(Host::B, rail),
        Fault::Silence(rail, None),
        Fault::Silence(rail, Some(Host::A)),
    ];
    for fault in &both_ways {
        fault.make(lab)?;
        until("an end of rail 0", 10 * SECOND, || Ok((!reaches(lab, Host::A, rail.link())?).then_some(())))?;
        require(reaches(lab, Host::A, Link::Rail1)?, || format!("{fault:?}: rail 1 is gone as well"))?;
        lab.reset()?;
    }
    Ok(Figures::new().with("faults", both_ways.len()))
}

fn rules(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let rail0 = |action| Rule::on(Link::Rail0, action);
    let wanted = [
        rail0(Action::Drop).opcodes(&[opcode::ACK]).times(2),
        rail0(Action::Drop).opcodes(&opcode::REQUESTS).after(100).times(1),
        rail0(Action::Duplicate).opcodes(&opcode::REQUESTS).after(500).times(3),
        rail0(Action::Corrupt).opcodes(&opcode::REQUESTS).after(1000).times(1),
        rail0(Action::Reorder(2)).opcodes(&opcode::REQUESTS).after(1500).times(1),
        rail0(Action::Delay(20_000)).opcodes(&[opcode::ACK]).after(60).times(1),
    ];
    let mut ids = Vec::new();
    for rule in &wanted {
        ids.push(lab.wire().add(rule.clone())?.0);
    }
    let test = Perftest::plain(Tool::Write);
    let figures = test.require_complete(&test.trial().run(lab)?)?;
    for (id, rule) in ids.into_iter().zip(&wanted) {
        let acted = lab.wire().hits(id)?.acted;
        require(Some(acted) == rule.count, || format!("{rule:?} acted {acted} times"))?;
    }
    Ok(figures)
}

fn memlock(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let test = Perftest::plain(Tool::Write);
    let with_limit = |host, kib| test.program(host).as_user().memlock_kib(kib);
    let (client, server) = (with_limit(Host::A, 65_536), with_limit(Host::B, 65_536));
    let enough = Trial::new(Host::B, PORT, server.clone(), client).run(lab)?;
    let figures = test.require_complete(&enough)?;
    let little = Trial::new(Host::B, PORT, server, with_limit(Host::A, 64)).run(lab)?;
    require(little.client.as_ref().is_some_and(|client| client.code == Some(1)), || "64 KiB were enough".into())?;
    Ok(figures.with("with_little", little.figures().into_members()))
}

fn torn_out(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    let trial = Perftest::plain(Tool::Write).trial();
    let story = trial.fault(Fault::TornOut(Host::A, Rail::Zero), Moment::Packets(4000)).run(lab)?;
    until("the card to be gone", 20 * SECOND, || {
        let left = lab.a().shell("ls /sys/class/net /sys/class/infiniband")?;
        Ok((!left.contains("eth1") && !left.contains("rxe0") && left.contains("rxe1")).then_some(()))
    })?;
    require(story.is_dead(), || "the run survived".into())?;
    Ok(story.figures())
}

fn panic(lab: &mut Lab, _seed: u64) -> Result<Figures> {
    lab.expect_death();
    lab.b().spawn(&Program::shell("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"))?;
    let why = until("the panic to be seen", 20 * SECOND, || Ok(lab.death()))?.to_string();
    require(why.contains("guest b: kernel panic"), || format!("seen as: {why}"))?;
    Ok(Figures::new().with("seen", why))
}
