//! A verbs program of the project's own, as ordinary as any: it links libibverbs, posts and polls inline, and knows
//! nothing of what may be loaded beside it. It predicts every byte of every message from a seed, numbers them, and
//! reports loss, duplicates, reordering, damage, stale writes, and completions that come twice or never.
//!
//! Two ends, `server` and `client`, talk over a TCP side channel on another network. Each prints PROGRESS lines with
//! CLOCK_MONOTONIC times and in the end one JSON object; the exit status is 0 only if all was right.

#![cfg_attr(
    test,
    allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail by panicking")
)]

mod args;
mod ground;
mod judge;
mod layout;
mod pollers;
mod predict;
mod receiver;
mod report;
mod sabotage;
mod sender;
mod session;
mod setup;
mod side;
mod sleeper;
mod trigger;
mod verbs;
mod witness;

use args::{Cli, Local, Params, Role};
use clap::Parser;
use report::{Ending, Report};
use sabotage::Sabotage;
use session::{say, Session};
use setup::{prepare, receive_params, End, SetupError};
use side::{Note, Side};
use std::process::ExitCode;
use std::time::Duration;
use trigger::Trigger;
use verbs::monotonic_ns;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (name, status) = match cli.role {
        Role::Server { listen, local } => {
            let limit = Duration::from_secs(local.connect_timeout);
            ("server", Side::accept(listen, limit).map_err(SetupError::from).and_then(|side| serve(side, &local)))
        }
        Role::Client { connect, local, params, commit, commit_at, idle_until_file } => {
            let from = commit_at.unwrap_or(params.messages / 2);
            let sabotage = commit.map(|commit| Sabotage { commit, from, committed: None });
            let trigger = params.pause_before_message.map(|_| Trigger::new(idle_until_file));
            let limit = Duration::from_secs(local.connect_timeout);
            let side = Side::connect(connect, limit).map_err(SetupError::from);
            ("client", side.and_then(|side| ask(side, &local, *params, sabotage, trigger)))
        }
    };
    status.unwrap_or_else(|e| {
        say(&serde_json::json!({"checker": name, "pass": false, "setup": e.to_string()}).to_string());
        ExitCode::from(4)
    })
}

fn serve(mut side: Side, local: &Local) -> Result<ExitCode, SetupError> {
    let params = receive_params(&mut side)?;
    run(End::Server, params, local, side, None, None)
}

fn ask(
    mut side: Side,
    local: &Local,
    params: Params,
    sabotage: Option<Sabotage>,
    trigger: Option<Trigger>,
) -> Result<ExitCode, SetupError> {
    params.check().map_err(SetupError::Params)?;
    side.send(&Note::Params(Box::new(params.clone())))?;
    run(End::Client, params, local, side, sabotage, trigger)
}

fn run(
    end: End,
    params: Params,
    local: &Local,
    side: Side,
    sabotage: Option<Sabotage>,
    trigger: Option<Trigger>,
) -> Result<ExitCode, SetupError> {
    let name = match end {
        End::Server => "server",
        End::Client => "client",
    };
    let parts = prepare(end, params.clone(), local, side, sabotage, trigger)?;
    if local.watch_fences {
        witness::start(&parts).map_err(SetupError::Params)?;
    }
    let mut session = Session::new(parts);
    if local.fork_child {
        say(&format!("CHILD pid={}", verbs::fork_idle_child()?));
    }
    say(&format!("STARTED {name} t={}", session.started_ns()));
    let ending = session.run();
    let ended_ns = monotonic_ns();
    session.linger(Duration::from_millis(local.linger_ms));
    witness::tell();
    let times = (session.started_ns(), ended_ns);
    let report = Report::new(name, &params, session.take_verdict(), &ending, times);
    let json = serde_json::to_string(&report).map_err(std::io::Error::from)?;
    say(&json);
    // A failed run leaves its objects to the kernel: destroying a broken queue pair may block for a minute.
    if ending == Ending::Done {
        session.close()?;
    }
    Ok(ExitCode::from(report.exit_status()))
}
