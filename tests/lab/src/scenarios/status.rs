//! What `shiftctl` says of the processes of a host: to their user, to root, and to nobody else; before a fault and after it.

use std::time::Duration;

use serde_json::{json, Value};

use crate::clock::{monotonic_ns, ms, until};
use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::{Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::trouble::{require, Result, Trouble};

use super::partners::{Partners, Plan, ARMING_LIMIT, GO_ON};
use super::{shiftctl, Scenario};

/// The user of the pair.
const USER: u32 = 1000;
/// Somebody else.
const STRANGER: u32 = 1001;
const QPS: u64 = 4;
/// Port of a program that sends datagrams.
const DATAGRAMS: u16 = 18700;
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn scenarios() -> Vec<Scenario> {
    let about = "shiftctl names the path of each protected queue pair and why others are not; rail 0 down: the path it moved to";
    vec![Scenario::guests("shim-status", about, run)]
}

fn run(lab: &mut Lab, seed: u64) -> Result<Figures> {
    Evidence::clear(lab)?;
    for host in Host::ALL {
        lab.guest(host).shell(&format!("rm -f {GO_ON}"))?;
    }
    let nobody = shiftctl::ask(lab, "status", 0)?;
    require(nobody.code == Some(1) && nobody.err.contains("no process"), || format!("nobody: {}", nobody.brief()))?;

    let flow = format!("--mode send,write --qps {QPS} --messages 200 --size 0..2000 --rate 200000 --seed {seed}");
    let client = format!("{flow} --pause-before-message 10 --idle-until-file {GO_ON}");
    let pair = Partners::start(lab, &Plan { user: USER, client, ..Plan::default() })?;
    let line = format!("ib_send_bw -c UD -d rxe0 -p {DATAGRAMS} -s 64 -D 60 -f 1");
    let server = Program::words(&line).with_shim();
    let client = Program::words(&format!("{line} {}", Link::Management.address(Host::B)));
    let (datagrams, other) = lab.start_pair(Host::B, DATAGRAMS, &server, &client)?;
    let judged = judge(lab, &pair, &datagrams);
    for side in [&datagrams, &other] {
        side.signal(9)?;
        side.wait(LIMIT)?;
    }
    judged
}

fn judge(lab: &mut Lab, pair: &Partners, datagrams: &Running) -> Result<Figures> {
    pair.wait_idle()?;
    let all_protected = |one: &Value| protected_on(one, "rxe0", "rxe1") == QPS;
    until("all queue pairs of the pair are shown as protected", ARMING_LIMIT, || {
        Ok(all_protected(&shiftctl::status(lab, Host::A, pair.client.pid())?).then_some(()))
    })?;
    let unprotected = until("the UD queue pair is shown", LIMIT, || {
        let status = shiftctl::status(lab, Host::B, datagrams.pid())?;
        Ok(status.pointer("/queue_pairs/0").cloned())
    })?;
    let reason = unprotected.get("reason").and_then(Value::as_str).unwrap_or_default().to_owned();
    require(unprotected.get("protected") == Some(&json!(false)) && reason.contains("only RC"), || {
        unprotected.to_string()
    })?;
    require(protected_on(&shiftctl::status(lab, Host::B, pair.server.pid())?, "rxe0", "rxe1") == QPS, || {
        "the server's".to_owned()
    })?;
    who_may_ask(lab, pair)?;

    let fault_ns = lab.cut(Host::A, Rail::Zero)?;
    until("shiftctl shows the path that all moved to", LIMIT, || {
        Ok((shiftctl::on_path(&shiftctl::status(lab, Host::A, pair.client.pid())?, "rxe1") == QPS).then_some(()))
    })?;
    let shown_ms = ms(monotonic_ns() - fault_ns);
    let words = shiftctl::ask(lab, &format!("status {}", pair.client.pid()), USER)?.out;
    require(words.contains("moved there from rxe0"), || words.clone())?;
    lab.a().write(GO_ON, "", 0o644)?;
    pair.wait_ended()?;
    lab.mend(Host::A, Rail::Zero)?;
    let last = last_line(&pair.client)?;
    require(last.contains("4 QPs, 4 protected; 4 migrations"), || last.clone())?;
    Ok(Figures::new().with("fault_to_shown_ms", shown_ms).with("unprotected", reason).with("last_line", last))
}

/// Its user and root hear of the pair, a stranger does not, and hears why.
fn who_may_ask(lab: &Lab, pair: &Partners) -> Result<()> {
    let question = format!("status {}", pair.client.pid());
    for uid in [0, USER] {
        let answer = shiftctl::ask(lab, &question, uid)?;
        require(answer.succeeded() && answer.out.contains("4 protected, 0 not"), || {
            format!("{uid}: {}", answer.brief())
        })?;
    }
    let answer = shiftctl::ask(lab, &question, STRANGER)?;
    require(answer.code == Some(1) && answer.out.is_empty(), || format!("a stranger is told: {}", answer.out))?;
    require(answer.err.contains("another user"), || answer.err.clone())
}

fn protected_on(status: &Value, path: &str, standby: &str) -> u64 {
    shiftctl::count(status, |qp| qp["protected"] == true && qp["path"] == path && qp["standby"] == standby)
}

/// The shim's last line of a process: what it all came to.
fn last_line(side: &Running) -> Result<String> {
    let lines = side.lines();
    let last = lines.iter().rev().find(|line| line.text.contains("shift-verbs["));
    last.map(|line| line.text.clone()).ok_or_else(|| Trouble::judged("the shim said nothing"))
}
