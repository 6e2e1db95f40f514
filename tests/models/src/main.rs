//! The command line of the models; `scripts/models` builds it and passes everything on.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use shift_models::catalogue::{checks, run_timed, table, Scale};

/// Checks the models of tests/models: each prints a line, and what it found if it does not hold. The exit status is 0 only if all hold.
#[derive(Parser)]
#[command(name = "scripts/models")]
struct Arguments {
    /// As far as is worth waiting for.
    #[arg(long)]
    long: bool,
    /// The table of the README on standard output.
    #[arg(long)]
    table: bool,
    /// Which; all of them, if none is named. `list` names them.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let is_list = arguments.names == ["list"];
    let scale = if arguments.long { Scale::Long } else { Scale::Default };
    let mut rows = Vec::new();
    let wanted = |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|wanted| wanted == name);
    for check in checks().into_iter().filter(|check| is_list || wanted(check.name)) {
        if is_list {
            let _ = writeln!(out, "{:<24}{}", check.name, check.claim);
            continue;
        }
        eprint!("{:<24}", check.name);
        let (finding, took) = run_timed(&check, scale);
        let verdict = if finding.failure.is_none() { "holds" } else { "DOES NOT HOLD" };
        eprintln!(
            "{verdict}: {} states, {}, {:.1} s; {}",
            finding.states,
            finding.extent,
            took.as_secs_f64(),
            finding.control
        );
        finding.failure.iter().for_each(|words| eprintln!("{words}"));
        rows.push((check, finding, took));
    }
    if arguments.table {
        let _ = write!(out, "{}", table(&rows));
    }
    let failed = rows.iter().filter(|(_, finding, _)| finding.failure.is_some()).count();
    if !is_list {
        eprintln!("models: {} passed; {failed} failed", rows.len() - failed);
    }
    if !is_list && (rows.is_empty() || failed > 0) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
