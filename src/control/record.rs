//! The record of a migration: what happened when, what was proven, what was done about it.
//!
//! One line for people, one JSON object a line for tools (`SHIFT_EVENT_FILE`). Times are nanoseconds of CLOCK_MONOTONIC, so that
//! the records of two processes of one host, and a trace of the same host, can be laid side by side.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::libc::{O_NOCTTY, O_NONBLOCK};
use serde::Serialize;
use shift_proto::ledger::{Action, Basis, Plan, StopReason};
use shift_proto::migrate::{Cause, Phase};

use crate::verdicts::{Judged, Reported};

/// One end of one path, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathName {
    /// Number of the path: 0 is the application's own.
    pub path: u8,
    /// The device at this end.
    pub device: String,
    /// GID of this end.
    pub gid: String,
    /// GID of the other end.
    pub peer_gid: String,
    /// Path MTU that both ends agreed on, bytes; 0 if none yet.
    pub mtu: u32,
}

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Under way.
    Open,
    /// Both ends run on the new path.
    Confirmed,
    /// The application got an error.
    Surfaced,
    /// A further fault came first; the next record goes on.
    Overtaken,
    /// The queue pair was destroyed first.
    Destroyed,
}

/// How many entries were decided, by what they rest on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proofs {
    /// By the receiver's final PSN.
    pub psn: u64,
    /// By the receiver's final receive count.
    pub receive_count: u64,
    /// By receives that the other end drained without a complete fence.
    pub successes: u64,
    /// A later fenced request began, so this one's result was here.
    pub landed: u64,
    /// Never given to a NIC.
    pub never_posted: u64,
    /// Nothing proves anything: the policy decided.
    pub unproven: u64,
}

/// The record of one migration at one end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// Always "migration".
    pub event: &'static str,
    /// Process id.
    pub pid: u32,
    /// The application's QP number.
    pub qpn: u32,
    /// This end, as the protocol names it.
    pub endpoint: String,
    /// The epoch reached.
    pub epoch: u32,
    /// What made this end move; of an end that followed its peer, "peer".
    pub cause: String,
    /// The path left.
    pub from: PathName,
    /// The path taken.
    pub to: PathName,
    /// When each phase was reached at this end, ns.
    pub phases_ns: BTreeMap<&'static str, u64>,
    /// The mean round trip of the control connection, ns; none if no ping was answered.
    pub control_round_trip_ns: Option<u64>,
    /// Messages that this end sent to the other one, each once whatever connections there are.
    pub messages: u64,
    /// When the first error completion was seen, ns.
    pub first_error_ns: Option<u64>,
    /// When the first request completed on the new path, ns.
    pub first_success_ns: Option<u64>,
    /// Requests proven executed, completed without being posted again.
    pub proven: u64,
    /// Requests posted again, or for the first time after they were held.
    pub replayed: u64,
    /// WRITEs among them that went on behind a proven part.
    pub replayed_partly: u64,
    /// Requests that ended in an error.
    pub surfaced: u64,
    /// Receives posted on the new path.
    pub reposted: u64,
    /// What the decisions rest on.
    pub proofs: Proofs,
    /// What the other end reported.
    pub reported: Vec<Reported>,
    /// What was held proven of each request, and done about it.
    pub requests: Vec<Judged>,
    /// Requests beyond those.
    pub requests_not_listed: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Of an error: why.
    pub why: Option<String>,
    /// From the first phase to the last, ms.
    pub duration_ms: f64,
}

impl Record {
    /// A record that begins now.
    pub fn new(qpn: u32, endpoint: String, from: PathName) -> Self {
        Self {
            event: "migration",
            pid: std::process::id(),
            qpn,
            endpoint,
            epoch: 0,
            cause: "peer".to_owned(),
            from,
            to: PathName::default(),
            phases_ns: BTreeMap::new(),
            control_round_trip_ns: None,
            messages: 0,
            first_error_ns: None,
            first_success_ns: None,
            proven: 0,
            replayed: 0,
            replayed_partly: 0,
            surfaced: 0,
            reposted: 0,
            proofs: Proofs::default(),
            reported: Vec::new(),
            requests: Vec::new(),
            requests_not_listed: 0,
            outcome: Outcome::Open,
            why: None,
            duration_ms: 0.0,
        }
    }

    /// What was seen here first.
    pub fn set_cause(&mut self, cause: Cause) {
        self.cause = cause.to_string();
    }

    /// A phase was reached; the first time counts.
    pub fn stamp(&mut self, phase: Phase, now_ns: u64) {
        self.phases_ns.entry(phase_name(phase)).or_insert(now_ns);
    }

    /// Whether a phase was reached.
    pub fn has(&self, phase: Phase) -> bool {
        self.phases_ns.contains_key(phase_name(phase))
    }

    /// Counts what the plan decided; `last` is the number behind the last entry.
    pub fn count(&mut self, plan: &Plan, last: u64) {
        (self.proven, self.replayed, self.replayed_partly, self.proofs) = (0, 0, 0, Proofs::default());
        for step in &plan.steps {
            match step.action {
                Action::Complete => self.proven += 1,
                Action::Replay { offset } => {
                    self.replayed += 1;
                    self.replayed_partly += u64::from(offset > 0);
                }
            }
            *self.proofs.by(step.evidence.basis) += 1;
        }
        if let Some(stop) = plan.stop {
            self.surfaced = last.saturating_sub(stop.seq.0);
            self.why = Some(match stop.why {
                StopReason::Table(reason) => reason.to_string(),
                StopReason::Disagreement => "the two ends do not agree on what was executed".to_owned(),
            });
        }
    }

    /// The end; gives the line for people.
    pub fn finish(&mut self, outcome: Outcome, now_ns: u64) -> String {
        self.outcome = outcome;
        let first = self.phases_ns.values().min().copied().unwrap_or(now_ns);
        let resumed = self.phases_ns.get(phase_name(Phase::Resumed)).copied().unwrap_or(now_ns);
        self.duration_ms = resumed.saturating_sub(first) as f64 / 1e6;
        let way = if self.to.device.is_empty() {
            format!("no failover from {}", self.from.device)
        } else {
            let word = if self.cause == Cause::Planned.to_string() { "move" } else { "failover" };
            format!("{word} {} -> {}", self.from.device, self.to.device)
        };
        let mut line = format!(
            "{way} qp {:#x}: {:.1} ms ({}), {} proven executed, {} replayed, {} surfaced{}",
            self.qpn,
            self.duration_ms,
            self.cause,
            self.proven,
            self.replayed,
            self.surfaced,
            self.proofs.describe()
        );
        if let Some(why) = &self.why {
            line.push_str(": ");
            line.push_str(why);
        }
        line
    }
}

impl Proofs {
    fn by(&mut self, basis: Basis) -> &mut u64 {
        match basis {
            Basis::NeverPosted => &mut self.never_posted,
            Basis::Psn(_) => &mut self.psn,
            Basis::ReceiveCount(_) => &mut self.receive_count,
            Basis::Successes(_) => &mut self.successes,
            Basis::LandedBeforeFenced(_) => &mut self.landed,
            Basis::Nothing => &mut self.unproven,
        }
    }

    fn describe(&self) -> String {
        let named = [
            (self.psn, "psn"),
            (self.receive_count, "receive count"),
            (self.successes, "successes"),
            (self.landed, "later fenced"),
        ];
        let used: Vec<&str> = named.iter().filter(|(count, _)| *count > 0).map(|(_, name)| *name).collect();
        if used.is_empty() {
            String::new()
        } else {
            format!(" (by {})", used.join(", "))
        }
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Trigger => "trigger",
        Phase::ClaimSent => "claim_sent",
        Phase::Accepted => "accepted",
        Phase::Committed => "committed",
        Phase::Fenced => "fenced",
        Phase::ReportIn => "report_in",
        Phase::Reposted => "reposted",
        Phase::Ready => "ready",
        Phase::Replayed => "replayed",
        Phase::Resumed => "resumed",
        Phase::Confirmed => "confirmed",
    }
}

/// Where records go.
#[derive(Debug)]
pub struct Journal {
    file: Option<PathBuf>,
    /// There was no room: told once, and tried again with each record.
    full: bool,
    /// The last write stopped within a line.
    torn: bool,
}

impl Journal {
    /// Nothing is opened before the first record.
    pub fn new(file: Option<PathBuf>) -> Self {
        Self { file, full: false, torn: false }
    }

    /// Appends a record. A file that cannot be written is told once and not tried again; where the disk is full it is.
    pub fn append(&mut self, record: &Record) {
        let Some(path) = &self.file else {
            return;
        };
        match append_line(path, record, &mut self.torn) {
            Ok(()) => self.full = false,
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                if !std::mem::replace(&mut self.full, true) {
                    let path = path.display();
                    log::warn!("SHIFT_EVENT_FILE={path}: {error}; records are left out until there is room again");
                }
            }
            Err(error) => {
                let path = path.display();
                log::error!("SHIFT_EVENT_FILE={path}: {error}; name a regular file that this process may write");
                self.file = None;
            }
        }
    }
}

/// One write per record: lines of several processes in one file do not mix. Neither a pipe nor a device may keep the agent waiting.
fn append_line(path: &PathBuf, record: &Record, torn: &mut bool) -> std::io::Result<()> {
    let mut line = if *torn { vec![b'\n'] } else { Vec::new() };
    serde_json::to_writer(&mut line, record)?;
    line.push(b'\n');
    let mut file = OpenOptions::new().create(true).append(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let written = file.write(&line)?;
    *torn = written < line.len();
    match line.get(written..) {
        // What is missing says why by being refused.
        Some(rest) if *torn => file.write_all(rest).map(|()| *torn = false),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Appends once, in a thread of its own: whether the file is still used then.
    fn keeps_on(path: &Path) -> bool {
        let (done, wait) = mpsc::channel();
        let mut journal = Journal::new(Some(path.to_owned()));
        std::thread::spawn(move || {
            journal.append(&Record::new(7, "end".to_owned(), PathName::default()));
            done.send(journal.file.is_some()).unwrap();
        });
        wait.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn records_go_to_a_regular_file_and_nothing_else_is_waited_for() {
        let place = std::env::temp_dir().join(format!("shift-records-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let (file, pipe) = (place.join("file"), place.join("pipe"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(keeps_on(&file) && keeps_on(&file));
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
        assert!(!keeps_on(&pipe), "nobody reads it");
        // With a reader it could be written, until that one stops reading.
        let reader = fs::File::options().read(true).custom_flags(O_NONBLOCK).open(&pipe).unwrap();
        assert!(!keeps_on(&pipe) && !keeps_on(&place) && !keeps_on(Path::new("/dev/null")));
        drop(reader);
        fs::remove_dir_all(&place).unwrap();
    }
}
