//! `shiftctl status` names each queue pair that is not protected, and why; and the program goes on as if nobody had asked.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use shift_nullverbs::{shiftctl, Run};

type Outcome = Result<(), String>;

/// A program that waits to be asked about.
struct Asked {
    child: std::process::Child,
    stdin: Option<ChildStdin>,
    /// What it said of each queue pair: its kind and number.
    pairs: Vec<(String, u64)>,
}

impl Asked {
    fn start(run: Run) -> Result<Self, String> {
        let mut command = run.preloaded()?.command();
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().map_err(|error| error.to_string())?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("no output")?;
        let mut pairs = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(|error| error.to_string())?;
            match line.split_once(' ') {
                Some((kind, number)) => pairs.push((kind.to_owned(), number.parse().map_err(|_| line.clone())?)),
                None => break,
            }
        }
        Ok(Self { child, stdin, pairs })
    }

    /// What shiftctl says of it.
    fn status(&self) -> Result<Value, String> {
        let output = Command::new(shiftctl()?).args(["status", "--json", &self.child.id().to_string()]).output();
        let output = output.map_err(|error| error.to_string())?;
        let all: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        all.get(0).cloned().ok_or(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Asks until `holds` is true of the queue pair of that kind; the agent comes to know of it by and by.
    fn eventually(&self, kind: &str, holds: impl Fn(&Value) -> bool) -> Outcome {
        let number = self.pairs.iter().find(|(each, _)| each == kind).map(|(_, number)| *number).ok_or(kind)?;
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let status = self.status()?;
            let all = status.get("queue_pairs").and_then(Value::as_array).cloned().unwrap_or_default();
            if all.iter().any(|pair| pair.get("qpn").and_then(Value::as_u64) == Some(number) && holds(pair)) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(format!("{kind}: {status}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It is not protected, for a reason with these words.
    fn is_named(&self, kind: &str, words: &str) -> Outcome {
        self.eventually(kind, |pair| {
            let reason = pair.get("reason").and_then(Value::as_str).unwrap_or_default();
            pair.get("protected") == Some(&Value::Bool(false)) && reason.contains(words)
        })
    }

    /// Ends it; what it said on standard error.
    fn end(mut self) -> Result<String, String> {
        drop(self.stdin.take());
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).map_err(|error| error.to_string())?;
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        status.success().then_some(said).ok_or(format!("{status}"))
    }
}

fn audit<'a>(kinds: impl IntoIterator<Item = &'a str>) -> Run {
    Run::of("audit").args(kinds).env("NULLVERBS_POSTS", "complete")
}

#[test]
fn each_queue_pair_is_protected_or_named_with_its_reason_and_the_last_line_adds_up() -> Outcome {
    let asked = Asked::start(audit(["rc", "ud", "uc"]))?;
    asked.eventually("rc", |pair| pair.get("protected") == Some(&Value::Bool(true)))?;
    asked.is_named("ud", "its type is IBV_QPT_UD")?;
    asked.is_named("uc", "its type is IBV_QPT_UC")?;
    let said = asked.end()?;
    assert!(said.trim_end().ends_with("3 QPs, 1 protected; 0 migrations, 0 requests replayed, 0 surfaced"), "{said}");
    Ok(())
}

/// Two programs on hosts of GIDs that are no IP addresses, each connected to the other.
fn apart(folder: Option<&Path>) -> Result<[Asked; 2], String> {
    let start = |(own, peer, port)| {
        let run = audit(["rc"]).env("NULLVERBS_HOST", own).env("NULLVERBS_PEER", peer).env("SHIFT_PORT", port);
        Asked::start(match folder {
            Some(folder) => run.env("SHIFT_DIRECTORY", format!("file://{}", folder.display())),
            None => run,
        })
    };
    Ok([start(("1", "2", "17541"))?, start(("2", "1", "17542"))?])
}

#[test]
fn gids_that_are_no_addresses_lead_to_the_peer_through_a_shared_folder_and_are_named_without_one() -> Outcome {
    let folder = std::env::temp_dir().join(format!("shift-gids-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let judged = apart(Some(&folder)).and_then(|both| {
        let is_protected = |pair: &Value| pair.get("protected") == Some(&Value::Bool(true));
        both.iter().try_for_each(|asked| asked.eventually("rc", is_protected))?;
        both.into_iter().try_for_each(|asked| asked.end().map(drop))
    });
    let left = std::fs::read_dir(&folder).map_err(|error| error.to_string())?.count();
    std::fs::remove_dir_all(&folder).map_err(|error| error.to_string())?;
    judged?;
    assert_eq!(left, 0, "entries of programs that ended");
    let both = apart(None)?;
    both.iter().try_for_each(|asked| asked.is_named("rc", "the remote GID is no IP address"))?;
    both.into_iter().try_for_each(|asked| asked.end().map(drop))
}

#[test]
fn memory_that_the_standby_refuses_is_the_reason_of_who_posts_it() -> Outcome {
    let asked = Asked::start(audit(["mr"]).env("NULLVERBS_REFUSE", "reg_mr:null1,reg_mr_iova2:null1"))?;
    asked.is_named("mr", "standby")?;
    asked.end().map(drop)
}

#[test]
fn a_device_without_a_partner_is_the_reason_of_all_its_queue_pairs() -> Outcome {
    let asked = Asked::start(audit(["rc"]).env("NULLVERBS_DEVICES", "1"))?;
    asked.is_named("rc", "no second RDMA device")?;
    asked.end().map(drop)
}

#[test]
fn what_is_shared_what_the_firmware_made_and_who_has_no_partner_are_named() -> Outcome {
    let asked = Asked::start(audit(["xrc", "devx", "alone"]))?;
    asked.is_named("xrc", "its type is IBV_QPT_XRC_SEND")?;
    asked.is_named("devx", "mlx5dv_devx_obj_create")?;
    asked.is_named("alone", "no shim answers for the peer at 127.0.0.1")?;
    asked.end().map(drop)
}
