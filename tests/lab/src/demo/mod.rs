//! `scripts/demo`: the same unmodified ib_write_bw through the same cut of rail 0, first without the shim and then with it.
//!
//! Every figure comes from the two runs: bandwidth from the wire's log, the migration from the shim's own records,
//! ends and iterations from the programs. [`traffic`] reads the log, [`migration`] the record, [`picture`] draws; here is what is done.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::clock::{monotonic_ns, ms};
use crate::evidence::Evidence;
use crate::lab::Lab;
use crate::pair::Setup;
use crate::perftest::{Perftest, Shim, Tool};
use crate::place::{Host, Rail};
use crate::runner::{boot, say};
use crate::trial::{Fault, Moment, Story};
use crate::trouble::{Result, Trouble};

mod migration;
mod picture;
mod traffic;

use migration::Migration;
use traffic::Traffic;

/// Without the shim nobody waits longer than this for progress: enough to see that there is none. The scenarios wait 20 s.
const STILL_LIMIT: Duration = Duration::from_secs(6);
/// Bytes that a run moves: two to three seconds on soft-RoCE under emulation.
const RUN_BYTES: u32 = 128 << 20;
/// The cut comes after so many hundredths of the packets: late enough to show the rail at work, early enough to leave work.
const CUT_AT_PERCENT: u64 = 40;
/// Bytes of a packet's payload on the lab's rails.
const PATH_MTU: u32 = 4096;

/// What can be chosen.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// On which side rail 0 goes down: the sender gets errors at once, the receiver leaves it in silence.
    #[arg(long, value_enum, default_value = "sender")]
    cut: Side,
    /// Bytes of each write, a multiple of 4.
    #[arg(long, default_value = "65536", value_parser = parse_size)]
    size: u32,
    /// One JSON object instead of the picture.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Sender,
    Receiver,
}

impl Side {
    /// ib_write_bw's client writes, and it is on A.
    fn host(self) -> Host {
        match self {
            Side::Sender => Host::A,
            Side::Receiver => Host::B,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Side::Sender => "sender",
            Side::Receiver => "receiver",
        }
    }
}

/// Padding of other sizes could not be told from data in the wire's log.
fn parse_size(text: &str) -> std::result::Result<u32, String> {
    let size: u32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if size.is_multiple_of(4) && (4..=4 << 20).contains(&size) {
        Ok(size)
    } else {
        Err("a multiple of 4 from 4 to 4194304, please".to_owned())
    }
}

/// One run, and what is known of it.
struct Run {
    test: Perftest,
    story: Story,
    traffic: Traffic,
    /// The shim's record at the sender and at the receiver.
    migrations: [Option<Migration>; 2],
    /// When both sides had ended, or were given up.
    over_ns: u64,
}

impl Run {
    /// Both sides ended well and the client reports every iteration.
    fn completed(&self) -> bool {
        self.test.require_complete(&self.story).is_ok()
    }

    /// When rail 0 fell silent. The command that takes it down may take its time in a busy guest; the wire knows.
    fn down_ns(&self) -> Option<u64> {
        self.story.fault_ns.and(self.traffic.span(Rail::Zero)).map(|(_, last)| last)
    }
}

/// Both runs.
struct Shown {
    options: Options,
    without: Run,
    with: Run,
}

impl Shown {
    /// The program died of the cut, and under the shim it lived through it by way of rail 1.
    fn holds(&self) -> bool {
        let cut = self.without.story.fault_ns.is_some() && self.with.story.fault_ns.is_some();
        cut && self.without.story.is_dead() && self.with.completed() && self.with.story.standby_ns.is_some()
    }
}

/// Makes both runs and shows what happened; true if it is as it should be.
///
/// # Errors
/// The lab cannot be set up, or a guest dies twice.
pub fn run(setup: &Setup, options: &Options) -> Result<bool> {
    let mut stage = Stage { setup, lab: None, boots: 0 };
    let without = stage.guarded(options, Shim::Nowhere)?;
    let with = stage.guarded(options, Shim::Both)?;
    let shown = Shown { options: options.clone(), without, with };
    let holds = shown.holds();
    if !holds {
        stage.lab.iter().flat_map(Lab::transcript).for_each(|line| say(&format!("      | {line}")));
    }
    drop(stage);
    let text = if options.json { in_json(&shown)? } else { picture::draw(&shown) };
    picture::print(&text)?;
    Ok(holds)
}

/// The guests, fresh where the first run left them unusable.
struct Stage<'a> {
    setup: &'a Setup,
    lab: Option<Lab>,
    boots: u32,
}

impl Stage<'_> {
    /// A guest that dies under emulation says nothing about the shim: once more on a fresh pair.
    fn guarded(&mut self, options: &Options, shim: Shim) -> Result<Run> {
        let first = perform(self.lab()?, options, shim);
        let death = self.lab.as_mut().and_then(Lab::death);
        let lost = match (death, first) {
            (None, Err(lost @ Trouble::GuestLost { .. })) | (Some(lost), _) => lost,
            (None, first) => return first,
        };
        say(&format!("      {lost}; once more on a fresh pair"));
        self.lab = None;
        perform(self.lab()?, options, shim)
    }

    fn lab(&mut self) -> Result<&mut Lab> {
        if self.lab.as_mut().is_some_and(|lab| lab.reset().is_err()) {
            self.lab = None;
        }
        if self.lab.is_none() {
            self.lab = Some(boot(self.setup, 1, self.boots)?);
            self.boots += 1;
        }
        self.lab.as_mut().ok_or_else(|| Trouble::setup("no guests"))
    }
}

fn perform(lab: &mut Lab, options: &Options, shim: Shim) -> Result<Run> {
    let how = if shim == Shim::Both { "under the shim" } else { "without the shim" };
    say(&format!("      ib_write_bw {how}; rail 0 of the {} goes down under way", options.cut.name()));
    let (size, iterations) = (options.size, iterations(options.size));
    let test = Perftest { size, iterations, ..Perftest::plain(Tool::Write) }.with_shim(shim);
    let mut trial = test.trial().fault(Fault::Cut(options.cut.host(), Rail::Zero), moment(&test));
    if shim == Shim::Nowhere {
        trial.stall_limit = STILL_LIMIT;
    }
    Evidence::clear(lab)?;
    let story = trial.run(lab)?;
    let ends = [&story.client, &story.server].map(|side| side.as_ref().map(|ended| ended.at_ns));
    let over_ns = ends.into_iter().try_fold(0, |latest, end| end.map(|at| at.max(latest))).unwrap_or_else(monotonic_ns);
    let evidence = Evidence::collect(lab)?;
    let migrations = Host::ALL.map(|host| Migration::of(&evidence, lab.guest(host)));
    let traffic = Traffic::of(&story.records, Host::A);
    Ok(Run { test, story, traffic, migrations, over_ns })
}

fn iterations(size: u32) -> u32 {
    (RUN_BYTES / size).clamp(32, 10_000)
}

/// Data packets only: that the ACKs count too makes it a little earlier.
fn moment(test: &Perftest) -> Moment {
    let packets = u64::from(test.iterations) * u64::from(test.size.div_ceil(PATH_MTU));
    Moment::Packets(packets * CUT_AT_PERCENT / 100)
}

fn in_json(shown: &Shown) -> Result<String> {
    let run = |run: &Run| {
        json!({
            "completed": run.completed(),
            "figures": run.story.figures(),
            "iterations": run.test.iterations,
            "bytes": Rail::ALL.map(|rail| run.traffic.bytes(rail)),
            "first_sizes_on_rail_1": run.traffic.messages(Rail::One).into_iter().take(3).collect::<Vec<_>>(),
            "bytes_per_100_ms": Rail::ALL.map(|rail| run.traffic.series(rail, 100_000_000, run.over_ns)),
            "cut_after_ms": run.story.fault_ns.map(|at| ms(run.traffic.since_start(at))),
            "migrations": run.migrations,
        })
    };
    let object = json!({
        "demo": "ib_write_bw",
        "pass": shown.holds(),
        "cut": shown.options.cut.name(),
        "size": shown.options.size,
        "without_shim": run(&shown.without),
        "with_shim": run(&shown.with),
    });
    serde_json::to_string_pretty(&object).map_err(|error| Trouble::setup(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_whose_padding_would_count_as_data_are_refused() {
        assert_eq!(parse_size("65536"), Ok(65536));
        for wrong in ["0", "6", "8388608", "x", "-4"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_size_leaves_work_behind_the_cut() {
        for size in [4, 4096, 65536, 4 << 20] {
            let test = Perftest { size, iterations: iterations(size), ..Perftest::plain(Tool::Write) };
            let Moment::Packets(packets) = moment(&test) else { unreachable!() };
            assert!(packets > 100 && packets < u64::from(test.iterations) * u64::from(size.div_ceil(PATH_MTU)) / 2);
        }
    }
}
