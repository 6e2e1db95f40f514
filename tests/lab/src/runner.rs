//! Runs scenarios: one boot for as many as possible, a fresh pair where one was spoiled, one JSON object for each.
//!
//! A guest that dies (a kernel panic of soft-RoCE under emulation was seen) says nothing about the thing under test: the scenario runs
//! once more on a fresh pair, and fails if that dies as well. It never passes because of it.

use std::io::Write;
use std::ops::RangeInclusive;
use std::time::Instant;

use serde_json::{json, Map, Value};

use crate::figures::Figures;
use crate::lab::Lab;
use crate::pair::{Pair, Setup};
use crate::scenarios::{Body, Scenario};
use crate::trouble::{Result, Trouble};

/// Runs scenarios one after the other.
pub struct Runner<W: Write> {
    setup: Setup,
    lab: Option<Lab>,
    cpus: Option<u8>,
    boots: u32,
    out: W,
    /// A scenario that failed is run once more, on a fresh pair, and that is said.
    pub twice: bool,
}

impl<W: Write> Runner<W> {
    /// A runner that prints its objects to `out`; `cpus` overrides what scenarios ask for.
    pub fn new(setup: Setup, cpus: Option<u8>, out: W) -> Runner<W> {
        Runner { setup, lab: None, cpus, boots: 0, out, twice: false }
    }

    /// Runs all of them, each with all the seeds; true if all passed.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn run_all(&mut self, scenarios: &[&Scenario], seeds: RangeInclusive<u64>) -> Result<bool> {
        let seeds_of = |each: &Scenario| seeds.clone().take(if each.once { 1 } else { usize::MAX });
        let runs: Vec<_> = scenarios.iter().flat_map(|each| seeds_of(each).map(move |seed| (*each, seed))).collect();
        let mut failed = Vec::new();
        for (index, (scenario, seed)) in runs.iter().copied().enumerate() {
            say(&format!("[{}/{}] {}: {}", index + 1, runs.len(), scenario.name, scenario.about));
            let begun = Instant::now();
            let (mut result, mut again) = self.run_guarded(scenario, seed);
            self.keep_transcript(scenario, seed);
            if let (true, Err(why)) = (self.twice, &result) {
                let why = why.to_string();
                self.say_failed(&why);
                say("      once more, on a fresh pair");
                self.lab = None;
                result = self.run_guarded(scenario, seed).0;
                again = Some(why);
            }
            if let Err(why) = &result {
                self.say_failed(&why.to_string());
                failed.push(scenario.name.as_str());
            }
            let mut object = object(scenario, seed, result);
            object.insert("took_ms".into(), json!(begun.elapsed().as_millis() as u64));
            if let Some(why) = again {
                object.insert("ran_again_because".into(), json!(why));
            }
            writeln!(self.out, "{}", Value::Object(object))?;
            self.out.flush()?;
        }
        say(&format!("{} of {} passed", runs.len() - failed.len(), runs.len()));
        Ok(failed.is_empty())
    }

    fn say_failed(&self, why: &str) {
        say(&format!("      FAILED: {why}"));
        self.lab.iter().flat_map(Lab::transcript).for_each(|line| say(&format!("      | {line}")));
    }

    /// What the programs said last, into the directory of this run: of use where it is kept.
    fn keep_transcript(&self, scenario: &Scenario, seed: u64) {
        let lines: Vec<String> = self.lab.iter().flat_map(Lab::transcript).collect();
        let path = self.setup.run.join(format!("{}-{seed}.txt", scenario.name));
        if let Err(error) = std::fs::write(&path, lines.join("\n")) {
            say(&format!("      {} cannot be written: {error}", path.display()));
        }
    }

    /// Second: why it was run once more, if it was.
    fn run_guarded(&mut self, scenario: &Scenario, seed: u64) -> (Result<Figures>, Option<String>) {
        let first = self.run_once(scenario, seed);
        match self.guest_lost(&first) {
            Some(lost) => {
                say(&format!("      {lost}; once more on a fresh pair"));
                self.lab = None;
                let second = self.run_once(scenario, seed);
                let second = match self.guest_lost(&second) {
                    Some(lost) => {
                        self.lab = None;
                        Err(lost)
                    }
                    None => second,
                };
                (second, Some(lost.to_string()))
            }
            None => (first, None),
        }
    }

    fn guest_lost(&mut self, result: &Result<Figures>) -> Option<Trouble> {
        if let Some(death) = self.lab.as_mut().filter(|lab| !lab.is_death_expected()).and_then(Lab::death) {
            return Some(death);
        }
        match result {
            Err(Trouble::GuestLost { host, why }) => Some(Trouble::GuestLost { host: *host, why: why.clone() }),
            _ => None,
        }
    }

    fn run_once(&mut self, scenario: &Scenario, seed: u64) -> Result<Figures> {
        match &scenario.body {
            Body::NoBoot(run) => run(&self.setup, seed),
            Body::Guests { cpus, run } => {
                let lab = self.lab_with(self.cpus.unwrap_or(*cpus))?;
                run(lab, seed)
            }
        }
    }

    /// The pair of the last scenario, cleaned, if it will do; else a fresh one.
    fn lab_with(&mut self, cpus: u8) -> Result<&mut Lab> {
        let usable = match self.lab.as_mut() {
            Some(lab) if lab.is_spoiled() || lab.pair().cpus != cpus => false,
            Some(lab) => lab.reset().inspect_err(|why| say(&format!("      fresh guests: {why}"))).is_ok(),
            None => false,
        };
        if !usable {
            self.lab = None;
            self.lab = Some(boot(&self.setup, cpus, self.boots)?);
            self.boots += 1;
        }
        self.lab.as_mut().ok_or_else(|| Trouble::setup("no guests"))
    }
}

/// Boots a pair and waits until its rails are up.
///
/// # Errors
/// It does not come up.
pub fn boot(setup: &Setup, cpus: u8, number: u32) -> Result<Lab> {
    say("      booting two guests");
    let pair = Pair::boot(setup, cpus, number, |line| say(&format!("      {line}")))?;
    let took = pair.boot;
    let lab = Lab::new(setup.clone(), pair);
    lab.wait_ready()?;
    lab.forget_ended();
    say(&format!("      booted in {:.1} s", took.as_secs_f64()));
    Ok(lab)
}

fn object(scenario: &Scenario, seed: u64, result: Result<Figures>) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("scenario".into(), json!(scenario.name));
    object.insert("seed".into(), json!(seed));
    object.insert("pass".into(), json!(result.is_ok()));
    match result {
        Ok(figures) => object.extend(figures.into_members()),
        Err(why) => {
            object.insert("why".into(), json!(why.to_string()));
        }
    }
    object.insert("repeat".into(), json!(format!("scripts/lab run {} --seed {seed}", scenario.name)));
    object
}

/// A line of progress.
pub fn say(line: &str) {
    eprintln!("{line}");
}
