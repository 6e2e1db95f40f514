//! `shiftctl` in the guests: what it says of a host's processes.

use std::time::Duration;

use serde_json::{json, Value};

use crate::guest::{Ended, Program};
use crate::lab::Lab;
use crate::place::Host;
use crate::trouble::{Result, Trouble};

const SHIFTCTL: &str = "/shift/shiftctl";
/// A drain that is asked to wait takes longer than any other question.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks on the first host, as this user.
pub(super) fn ask(lab: &Lab, question: &str, uid: u32) -> Result<Ended> {
    ask_on(lab, Host::A, question, uid)
}

fn ask_on(lab: &Lab, host: Host, question: &str, uid: u32) -> Result<Ended> {
    lab.guest(host).run(&Program::words(&format!("{SHIFTCTL} {question}")).as_uid(uid), LIMIT)
}

/// What was printed with `--json`.
pub(super) fn parse(answer: &Ended) -> Result<Value> {
    serde_json::from_str(&answer.out).map_err(|error| Trouble::judged(format!("{error}: {}", answer.out)))
}

/// The status of one process, asked by root; null while it has none.
pub(super) fn status(lab: &Lab, host: Host, pid: u32) -> Result<Value> {
    let all = parse(&ask_on(lab, host, &format!("status --json {pid}"), 0)?)?;
    Ok(all.get(0).cloned().unwrap_or(json!(null)))
}

/// How many queue pairs of a process's status are so.
pub(super) fn count(status: &Value, is_so: impl Fn(&Value) -> bool) -> u64 {
    status["queue_pairs"].as_array().map_or(0, |all| all.iter().filter(|qp| is_so(qp)).count() as u64)
}

/// How many have their traffic on that device, and rest there.
pub(super) fn on_path(status: &Value, path: &str) -> u64 {
    count(status, |qp| qp["path"] == path && qp["moving"] == false)
}
