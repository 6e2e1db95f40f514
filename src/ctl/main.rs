//! shiftctl: asks the processes of this host how their RDMA connections are protected.
//!
//! Owns the command line and what is printed; the processes answer on local sockets ([`process`]). Exit status: 0, answered; 1,
//! no process answered; 2, the command line is wrong (clap's own).

mod process;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Asks the processes of this host how their RDMA connections are protected.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Which queue pairs of which process are protected by which path, and which are not and why: of all processes of this user
    /// in this network namespace, and as root of everybody's.
    Status {
        /// Only this process.
        pid: Option<u32>,
        /// One JSON array with an object for each process, as documented in the crate shift-control, module status.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Command::Status { pid, json } = Arguments::parse().command;
    match status(pid, json, &mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        // A reader that has seen enough is no failure of ours, but nothing was answered to the end either.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// `false`: there is nobody to ask, or nobody answered.
fn status(pid: Option<u32>, json: bool, out: &mut impl Write, err: &mut impl Write) -> io::Result<bool> {
    let sockets = process::sockets(&std::fs::read_to_string("/proc/net/unix")?);
    let mut answers = Vec::new();
    for socket in sockets.iter().filter(|socket| pid.is_none_or(|pid| pid == socket.pid)) {
        match process::status(socket) {
            Ok(status) => answers.push(status),
            Err(error) => writeln!(err, "shiftctl: process {}: {error}", socket.pid)?,
        }
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &answers)?;
        writeln!(out)?;
    } else if answers.is_empty() && sockets.is_empty() {
        writeln!(err, "shiftctl: no process of this network namespace runs under shift-verbs and has opened a device")?;
    } else {
        answers.iter().try_for_each(|answer| report::write(answer, out))?;
    }
    Ok(!answers.is_empty())
}
