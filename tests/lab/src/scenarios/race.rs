//! The fence race: with two processors per guest, queue pairs that are fenced while their responder executes.
//!
//! Nothing is cut: the library below the shim (tests/preload, `break`) makes the error of a queue pair up, so that the rail goes on and hundreds of
//! fresh pairs migrate in one boot, each in mid-stream. The checking application sets the packet number of each fence against memory
//! (`--watch-fences`) before anything is replayed. With the number that was there right after ERR (`early-psn`) the same is seen to be wrong.

use std::ops::ControlFlow;
use std::time::Duration;

use serde_json::{json, Value};

use crate::evidence::Evidence;
use crate::figures::Figures;
use crate::guest::Ended;
use crate::lab::Lab;
use crate::place::Host;
use crate::seed::Seed;
use crate::trial::all_protected;
use crate::trouble::{require, Result, Trouble};

use super::checker::{Checker, GO_ON, PORT};
use super::{Body, Scenario};

/// Fences in mid-stream whose number must be right.
const FENCES: u64 = 300;
/// Rounds in which so many must come together.
const ROUNDS: u64 = 18;
/// Fences within which the early number must be seen to be wrong.
const TRIES: u64 = 2000;
/// Fresh queue pairs of a round: one sends at a time.
const QPS: u64 = 24;
/// Until all are protected.
const ARMED: Duration = Duration::from_secs(40);
/// Until a round is over.
const OVER: Duration = Duration::from_secs(60);

/// Streams, by turns: what is executed is seen in memory packet by packet. The client sends, and its queue pairs break; what is outstanding when its
/// posting stops takes longer than the peer's fence takes to come. Of the atomics one whose result is lost ends its queue pair.
const STREAMS: [(&str, &str, u64); 3] = [
    ("fadd", "--mode fadd --size 8 --messages 1200 --depth 512 --may-fail", 64),
    ("send", "--mode send --size 8000..24000 --messages 60 --depth 48", 5),
    ("write", "--mode write --size 8000..24000 --messages 60 --depth 48", 5),
];

pub(super) fn scenarios() -> Vec<Scenario> {
    let race = |name: &str, about: &str, run: fn(&mut Lab, u64) -> Result<Figures>| Scenario {
        name: name.into(),
        about: about.into(),
        body: Body::Guests { cpus: 2, run: Box::new(run) },
        once: false,
    };
    vec![
        race("fence-race", "300 fences in mid-stream, two processors: each packet number is what memory shows", exact),
        race("fence-race-early", "the same with the number right after ERR: it is seen to be wrong", early),
    ]
}

/// What the fences of the receiver came to.
#[derive(Default, Clone, Copy)]
struct Tally {
    seen: u64,
    right: u64,
    wrong: u64,
    executing: u64,
    early_wrong: u64,
    /// Fences behind which the sender had requests that were proven not or not wholly executed: the stream was cut.
    mid_stream: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.seen += other.seen;
        self.right += other.right;
        self.wrong += other.wrong;
        self.executing += other.executing;
        self.early_wrong += other.early_wrong;
        self.mid_stream += other.mid_stream;
    }

    fn note(&self) -> Value {
        json!({ "fences": self.seen, "right": self.right, "wrong": self.wrong, "mid_stream": self.mid_stream,
                "executing": self.executing, "early_wrong": self.early_wrong })
    }
}

fn exact(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut sums = [Tally::default(); STREAMS.len()];
    rounds(lab, seed, ROUNDS, "", |stream, round| {
        require(round.tally.wrong == 0, || format!("a packet number is not what memory shows: {}", round.findings))?;
        round.require_right()?;
        if let Some(sum) = sums.get_mut(stream) {
            sum.add(&round.tally);
        }
        let enough = sums.iter().map(|sum| sum.mid_stream).sum::<u64>() >= FENCES;
        Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    for ((name, ..), sum) in STREAMS.iter().zip(&sums) {
        figures.note(name, sum.note());
    }
    let mid_stream: u64 = sums.iter().map(|sum| sum.mid_stream).sum();
    require(mid_stream >= FENCES, || format!("only {mid_stream} fences were in mid-stream"))?;
    Ok(figures.with("mid_stream", mid_stream))
}

fn early(lab: &mut Lab, seed: u64) -> Result<Figures> {
    let mut sum = Tally::default();
    let mut findings = Value::Null;
    rounds(lab, seed, TRIES / QPS, ",early-psn=rxe0", |_, round| {
        sum.add(&round.tally);
        if round.tally.wrong == 0 {
            round.require_right()?;
            return Ok(ControlFlow::Continue(()));
        }
        findings = round.findings;
        Ok(ControlFlow::Break(()))
    })?;
    require(sum.wrong > 0, || format!("the early number was right in all of {} fences", sum.seen))?;
    Ok(Figures::new().with("tally", sum.note()).with("wrong", findings))
}

/// One run of the checking application.
struct Round {
    tally: Tally,
    findings: Value,
    ends: [Ended; 2],
}

fn rounds(
    lab: &mut Lab,
    seed: u64,
    most: u64,
    fault: &str,
    mut judge: impl FnMut(usize, Round) -> Result<ControlFlow<()>>,
) -> Result<()> {
    for round in 0..most {
        let stream = (round as usize) % STREAMS.len();
        let dice = Seed::new(seed, "fence-race").within(0..1 << 32) + round;
        if judge(stream, run(lab, stream, dice, fault)?)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn run(lab: &mut Lab, stream: usize, dice: u64, fault: &str) -> Result<Round> {
    let Some((_, options, break_after)) = STREAMS.get(stream) else { return Err(Trouble::setup("no such stream")) };
    Evidence::clear(lab)?;
    lab.a().shell(&format!("rm -f {GO_ON}"))?;
    let shape = format!("--seed {dice} --qps {QPS} --turns --timeout 19 --poll sleepy --progress-ms 0");
    let waits = format!("--pause-before-message 2 --idle-until-file {GO_ON}");
    let trial = Checker::plain(format!("{options} {shape} {waits}")).trial();
    let client = trial.client.with_shim_over(&format!("break=rxe0:{break_after}"));
    let server = trial.server.arg("--watch-fences").with_shim_over(&format!("watch-fences=rxe0{fault}"));
    let (server, client) = lab.start_pair(Host::B, PORT, &server, &client)?;
    crate::clock::until("all queue pairs to be protected", ARMED, || {
        if let Some(ended) = client.ended().or(server.ended()) {
            return Err(Trouble::judged(format!("it ended before it was protected: {}", ended.brief())));
        }
        Ok([&client, &server].iter().all(|side| all_protected(side) >= QPS).then_some(()))
    })?;
    lab.a().write(GO_ON, "", 0o644)?;
    let ends = [client.wait(OVER)?, server.wait(OVER)?];
    lab.forget_ended();
    for (ended, name) in ends.iter().zip(["client", "server"]) {
        let path = lab.setup().run.join(format!("fence-race-{name}.txt"));
        std::fs::write(path, format!("{}\n{}", ended.out, ended.err))?;
    }
    Round::tell(ends, Evidence::collect(lab)?)
}

impl Round {
    fn tell(ends: [Ended; 2], evidence: Evidence) -> Result<Round> {
        let mut tally = Tally::default();
        let [_, server] = &ends;
        let line = server.out.lines().find_map(|line| line.strip_prefix("FENCES "));
        let fences: Value = line
            .and_then(|line| serde_json::from_str(line).ok())
            .ok_or_else(|| Trouble::judged(format!("no line FENCES: {}", server.brief())))?;
        let count = |name: &str| fences.get(name).and_then(Value::as_u64).unwrap_or(0);
        tally.seen = count("seen");
        tally.right = count("right") + count("idle");
        tally.wrong = count("too_low") + count("too_high") + count("torn");
        tally.executing = count("executing");
        tally.early_wrong = count("early_wrong");
        let fallen = report(server).pointer("/fallen").and_then(Value::as_array).cloned().unwrap_or_default();
        let cut = evidence.of(Host::A).filter(|record| is_cut(record)).count()
            + fallen.iter().filter(|each| fell_in_stream(each)).count();
        tally.mid_stream = cut as u64;
        let findings = fences.get("findings").cloned().unwrap_or_default();
        Ok(Round { tally, findings, ends })
    }

    /// Both ends are content, and each queue pair migrated.
    fn require_right(&self) -> Result<()> {
        for ended in &self.ends {
            require(ended.succeeded(), || format!("{}: {}", ended.brief(), report(ended)))?;
        }
        require(self.tally.seen == QPS, || format!("{} fences of {QPS} queue pairs", self.tally.seen))
    }
}

/// The peer's number proved that a request of this end was not, or not wholly, executed, though a NIC had it.
fn is_cut(record: &Value) -> bool {
    let count = |pointer: &str| record.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    count("/proofs/psn") > count("/proven")
}

/// An atomic ended this queue pair, and of those that a NIC had not all were executed.
fn fell_in_stream(fallen: &Value) -> bool {
    let count = |pointer: &str| fallen.pointer(pointer).and_then(Value::as_u64);
    count("/counted") < count("/posted")
}

/// The JSON object with which a program ended.
pub(super) fn report(ended: &Ended) -> Value {
    let line = ended.out.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).unwrap_or_default()
}
