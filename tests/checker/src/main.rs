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
mod nccl;
mod pollers;
mod pool;
mod predict;
mod receiver;
mod report;
mod sabotage;
mod sender;
mod session;
mod setup;
mod side;
mod sleeper;
mod third;
mod trigger;
mod verbs;
mod witness;

use args::{Cli, Fork, Local, Params, Pattern, Role};
use clap::Parser;
use report::{Ending, Report};
use sabotage::Sabotage;
use session::{say, Session};
use setup::{prepare, receive_params, End, SetupError};
use side::{Note, Side};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use trigger::Trigger;
use verbs::monotonic_ns;

fn main() -> ExitCode {
    let role = Cli::parse().role;
    let local = match &role {
        Role::Server { local, .. } | Role::Client { local, .. } | Role::Third { local, .. } => local,
    };
    match begin(local) {
        Ok(None) => {}
        Ok(Some(status)) => return ExitCode::from(status),
        Err(error) => {
            say(&serde_json::json!({"pass": false, "setup": error.to_string()}).to_string());
            return ExitCode::from(4);
        }
    }
    for round in 0..local.rounds {
        let status = play(&role, round);
        if status != 0 {
            return ExitCode::from(status);
        }
        if local.rounds > 1 {
            say(&format!("ROUND {round}"));
        }
    }
    ExitCode::SUCCESS
}

/// What is done before the device is opened. With a status, a child has done the work.
fn begin(local: &Local) -> std::io::Result<Option<u8>> {
    if local.fork_init {
        verbs::fork_init()?;
    }
    match local.fork {
        Some(Fork::Works) => verbs::work_in_child(),
        Some(Fork::Idles | Fork::Execs) | None => Ok(None),
    }
}

/// One run from the opening of the device to its closing; its exit status.
fn play(role: &Role, round: u64) -> u8 {
    let (name, status) = match role {
        Role::Server { listen, third, local } => {
            let limit = Duration::from_secs(local.connect_timeout);
            let side = Side::accept(*listen, limit).map_err(SetupError::from);
            ("server", side.and_then(|side| serve(side, *third, local)))
        }
        Role::Third { connect, undo, local } => ("third", third::run(*connect, undo, local)),
        Role::Client { connect, local, params, commit, commit_at, idle_until_file } => {
            let params = Params { seed: params.seed.wrapping_add(round), ..(**params).clone() };
            let from = commit_at.unwrap_or(params.messages / 2);
            let sabotage = commit.map(|commit| Sabotage { commit, from, committed: None });
            let trigger = params.pause_before_message.map(|_| Trigger::new(idle_until_file.clone()));
            let limit = Duration::from_secs(local.connect_timeout);
            let side = Side::connect(*connect, limit).map_err(SetupError::from);
            ("client", side.and_then(|side| ask(side, local, params, sabotage, trigger)))
        }
    };
    status.unwrap_or_else(|e| {
        say(&serde_json::json!({"checker": name, "pass": false, "setup": e.to_string()}).to_string());
        4
    })
}

fn serve(mut side: Side, third: Option<SocketAddr>, local: &Local) -> Result<u8, SetupError> {
    let params = receive_params(&mut side)?;
    run(End::Server, params, local, side, Company { third, ..Company::default() })
}

fn ask(
    mut side: Side,
    local: &Local,
    params: Params,
    sabotage: Option<Sabotage>,
    trigger: Option<Trigger>,
) -> Result<u8, SetupError> {
    params.check().map_err(SetupError::Params)?;
    side.send(&Note::Params(Box::new(params.clone())))?;
    run(End::Client, params, local, side, Company { sabotage, trigger, third: None })
}

/// What takes part in a run beside its two ends.
#[derive(Default)]
struct Company {
    sabotage: Option<Sabotage>,
    trigger: Option<Trigger>,
    /// Where a third end comes to.
    third: Option<SocketAddr>,
}

fn run(end: End, params: Params, local: &Local, side: Side, company: Company) -> Result<u8, SetupError> {
    let Company { sabotage, trigger, third } = company;
    let name = match end {
        End::Server => "server",
        End::Client => "client",
    };
    if params.pattern == Some(Pattern::Nccl) {
        return nccl::run(end, &params, local, side, trigger);
    }
    let mut parts = prepare(end, params.clone(), local, side, sabotage, trigger)?;
    if let Some(listen) = third {
        third::admit(&mut parts, listen, local)?;
    }
    if local.watch_fences {
        witness::start(&parts).map_err(SetupError::Params)?;
    }
    let mut session = Session::new(parts);
    match local.fork {
        Some(Fork::Idles) => say(&format!("CHILD pid={}", verbs::fork_idle_child()?)),
        Some(Fork::Execs) => verbs::fork_and_exec()?,
        Some(Fork::Works) | None => {}
    }
    if let Some(file) = local.exit_on_file.clone() {
        exit_on(file)?;
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
    Ok(report.exit_status())
}

/// A thread that ends this process by exit, as a program does that had enough, once the file is there.
fn exit_on(file: PathBuf) -> std::io::Result<()> {
    let watch = move || {
        while !file.exists() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::process::exit(0)
    };
    std::thread::Builder::new().name("exit".to_owned()).spawn(watch).map(drop)
}
