//! The command line of the lab; `scripts/lab` builds it and passes everything on.

use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use shift_lab::boot::leash;
use shift_lab::clock::ms;
use shift_lab::pair::Setup;
use shift_lab::place::Host;
use shift_lab::runner::{boot, say, Runner};
use shift_lab::trouble::Result;
use shift_lab::{demo, scenarios, shell, wire};

/// Two guests with two RDMA rails each, the wires between them, and scenarios.
///
/// Each scenario prints one JSON object on standard output; progress goes to standard error. The exit status is 0 only if all passed.
/// Variables: SHIFT_LAB_CACHE (where kernel and image are kept), SHIFT_LAB_ACCEL (tcg or kvm; default: kvm where it works),
/// SHIFT_LAB_KEEP (a directory in which the logs of this run are kept: serial consoles, wire.log, what the programs of each scenario said).
#[derive(Parser)]
#[command(name = "scripts/lab", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Names all scenarios.
    List,
    /// Runs scenarios; `*` stands for any letters, `all` for all of them.
    Run {
        /// Which.
        #[arg(required = true)]
        scenarios: Vec<String>,
        /// What random choices come from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Runs each so many times, with a seed one higher each time; those that make their fault many times by themselves once.
        #[arg(long, default_value_t = 1)]
        times: u64,
        /// Processors of each guest, whatever the scenario asks for: races show with 2.
        #[arg(long)]
        smp: Option<u8>,
        /// Runs a scenario that failed once more, on a fresh pair, for shared machines on which emulated guests starve. Its object
        /// keeps why the first run failed, and the summary names it: such a scenario is to be looked at, not forgotten.
        #[arg(long)]
        twice: bool,
    },
    /// Runs ib_write_bw through a cut of rail 0, without the shim and with it, and shows what happened.
    Demo(demo::Options),
    /// Prints a wire log, a line for each packet.
    Trace {
        /// A wire.log of a kept run.
        log: PathBuf,
    },
    /// Boots the pair and makes this terminal the console of a guest.
    Shell {
        /// Which guest.
        #[arg(value_enum, default_value = "a")]
        host: Name,
        /// Processors of each guest.
        #[arg(long, default_value_t = 1)]
        smp: u8,
    },
    /// The wire, a process of its own.
    #[command(hide = true)]
    Wire {
        #[arg(long)]
        control: PathBuf,
        #[arg(long)]
        log: PathBuf,
    },
    /// Becomes another program that dies with its parent.
    #[command(hide = true)]
    Leash {
        #[arg(long)]
        parent: u32,
        #[arg(last = true)]
        program: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    A,
    B,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::List => list(),
        Command::Run { scenarios, seed, times, smp, twice } => with_setup(|setup| {
            let mut runner = Runner::new(setup.clone(), smp, std::io::stdout());
            runner.twice = twice;
            run(runner, &scenarios, seed..=seed + times.saturating_sub(1))
        }),
        Command::Demo(options) => with_setup(|setup| demo::run(setup, &options)),
        Command::Trace { log } => trace(&log),
        Command::Shell { host, smp } => with_setup(|setup| interact(setup, host, smp)),
        Command::Wire { control, log } => {
            wire::control::serve(&control, &log, std::io::stdout()).map(|()| true).map_err(Into::into)
        }
        Command::Leash { parent, program } => Err(leash::become_program(parent, &program).into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&error.to_string());
            ExitCode::from(2)
        }
    }
}

fn list() -> Result<bool> {
    let mut out = std::io::stdout().lock();
    for scenario in scenarios::all() {
        writeln!(out, "{:36} {}", scenario.name, scenario.about)?;
    }
    Ok(true)
}

fn run<W: Write>(mut runner: Runner<W>, patterns: &[String], seeds: RangeInclusive<u64>) -> Result<bool> {
    let all = scenarios::all();
    match scenarios::select(&all, patterns) {
        Ok(selected) => runner.run_all(&selected, seeds),
        Err(why) => {
            say(&why);
            Ok(false)
        }
    }
}

fn trace(log: &Path) -> Result<bool> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let records = wire::log::read(log, 0, u64::MAX)?;
    let start = records.first().map_or(0, |record| record.at_ns);
    for record in records {
        writeln!(out, "{:12.3} ms  {}", ms(record.at_ns - start), record.in_words())?;
    }
    Ok(true)
}

fn interact(setup: &Setup, host: Name, smp: u8) -> Result<bool> {
    let host = match host {
        Name::A => Host::A,
        Name::B => Host::B,
    };
    let mut lab = boot(setup, smp, 0)?;
    shell::attach(&mut lab, host).map(|()| true)
}

/// The directory of the run goes away however the run ends, but for SIGKILL.
fn with_setup(work: impl FnOnce(&Setup) -> Result<bool>) -> Result<bool> {
    let setup = Setup::new()?;
    let cleaner = setup.clone();
    end_on_signal(move || cleaner.clean())?;
    let result = work(&setup);
    setup.clean();
    result
}

/// Guests are on a leash: when this process ends, they do.
fn end_on_signal(clean: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(std::io::Error::from)?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Ok(signal) = signals.wait() {
            say(&format!("{signal}: ending the guests"));
            clean();
            std::process::exit(128 + signal as i32);
        }
    })?;
    Ok(())
}
