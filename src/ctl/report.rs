//! A status in words: one line for the process, then one for each path and each reason, with the number of queue pairs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use shift_control::status::{QueuePair, Status};

/// Numbers that are listed of the queue pairs of one line.
const LISTED: usize = 8;

/// Writes what a person wants to know of a process.
pub fn write(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let count = status.queue_pairs.len();
    let protected = status.queue_pairs.iter().filter(|qp| qp.protected).count();
    let drained = match status.drained.as_slice() {
        [] => String::new(),
        names => format!("; drained: {}", names.join(", ")),
    };
    let key = if status.keyed { "with a job key" } else { "open" };
    writeln!(
        out,
        "{} {}: {count} {}, {protected} protected, {} not ({key}, shift-verbs {}){drained}",
        status.pid,
        status.program,
        noun(count),
        count - protected,
        status.version
    )?;
    for rail in &status.gray {
        writeln!(out, "        {} is failing without an error: {}", rail.device, rail.symptom)?;
    }
    for (words, qpns) in grouped(&status.queue_pairs) {
        writeln!(out, "  {:>5} {words}{}", qpns.len(), list(&qpns))?;
    }
    writeln!(out, "        so far: {}", status.totals.line())
}

fn noun(count: usize) -> &'static str {
    if count == 1 {
        "QP"
    } else {
        "QPs"
    }
}

/// Queue pairs of which the same is to be said.
fn grouped(queue_pairs: &[QueuePair]) -> BTreeMap<String, Vec<u32>> {
    let mut groups: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for qp in queue_pairs {
        groups.entry(words_of(qp)).or_default().push(qp.qpn);
    }
    groups
}

fn words_of(qp: &QueuePair) -> String {
    let moved = if qp.path == qp.device { String::new() } else { format!(", moved there from {}", qp.device) };
    let way = match &qp.standby {
        Some(standby) if qp.protected => format!("protected: on {}{moved}, would move to {standby}", qp.path),
        _ if qp.protected => format!("protected: on {}{moved}, no other path at this moment", qp.path),
        _ => format!("not protected: on {}{moved}: {}", qp.path, qp.reason.as_deref().unwrap_or("no reason known")),
    };
    let way = if qp.silent.is_empty() { way } else { format!("{way}; no answer on {}", qp.silent.join(", ")) };
    if qp.moving {
        format!("{way} (a migration is under way)")
    } else {
        way
    }
}

fn list(qpns: &[u32]) -> String {
    let shown: Vec<String> = qpns.iter().take(LISTED).map(|qpn| format!("{qpn:#x}")).collect();
    let more = if qpns.len() > LISTED { ", ..." } else { "" };
    format!(" [{}{more}]", shown.join(", "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use super::*;

    fn qp(qpn: u32, standby: Option<&str>, reason: Option<&str>) -> QueuePair {
        QueuePair {
            qpn,
            device: "rxe0".to_owned(),
            path: "rxe0".to_owned(),
            standby: standby.map(str::to_owned),
            protected: reason.is_none(),
            reason: reason.map(str::to_owned),
            ..QueuePair::default()
        }
    }

    #[test]
    fn what_is_protected_by_what_and_what_is_not_and_why_is_one_line_each() {
        let queue_pairs = vec![
            qp(0x11, Some("rxe1"), None),
            qp(0x12, Some("rxe1"), None),
            qp(0x13, None, Some("its type is UD; only RC is")),
            QueuePair { path: "rxe1".to_owned(), ..qp(0x14, None, None) },
            QueuePair { silent: vec!["rxe1".to_owned()], ..qp(0x15, Some("rxe2"), None) },
        ];
        let status = Status { pid: 9, program: "job".to_owned(), queue_pairs, ..Status::default() };
        let mut text = Vec::new();
        write(&status, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let expected = [
            "9 job: 5 QPs, 4 protected, 1 not (open, shift-verbs )",
            "      1 not protected: on rxe0: its type is UD; only RC is [0x13]",
            "      2 protected: on rxe0, would move to rxe1 [0x11, 0x12]",
            "      1 protected: on rxe0, would move to rxe2; no answer on rxe1 [0x15]",
            "      1 protected: on rxe1, moved there from rxe0, no other path at this moment [0x14]",
            "        so far: 0 QPs, 0 protected; 0 migrations, 0 requests replayed, 0 surfaced",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
