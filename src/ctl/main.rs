//! shiftctl: asks the processes of this host how their RDMA connections are protected, and takes rails out of use.
//!
//! Owns the command line and what is printed; the processes answer on local sockets ([`process`]). Exit status: 0, answered, or the rail is
//! empty; 1, no process answered, or the rail is not empty; 2, the command line is wrong (clap's own).

mod drain;
mod process;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use drain::Order;
use shift_control::status::Request;

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
    /// Moves every queue pair off a device with the jobs running, for work on its cable, switch or firmware, and says when it is empty. No connection
    /// goes there until undrain. As root it holds for all processes of this network namespace, later ones too, until the host boots;
    /// otherwise for those of this user that run now.
    Drain {
        /// The device, such as mlx5_0.
        device: String,
        /// Wait so many seconds for it to be empty.
        #[arg(long, default_value_t = 30)]
        wait: u64,
        /// One JSON object at the end: empty, lasting, processes, and what is still on it.
        #[arg(long)]
        json: bool,
    },
    /// Lets connections use a device again; those that were made on it go back when it has been good for SHIFT_HOLD_DOWN_MS.
    Undrain {
        /// The device.
        device: String,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let (out, err) = (&mut io::stdout().lock(), &mut io::stderr().lock());
    let answered = match Arguments::parse().command {
        Command::Status { pid, json } => status(pid, json, out, err),
        Command::Drain { device, wait, json } => {
            drain::run(&Order { device, drained: true, wait: Duration::from_secs(wait), json }, out, err)
        }
        Command::Undrain { device, json } => {
            drain::run(&Order { device, drained: false, wait: Duration::ZERO, json }, out, err)
        }
    };
    match answered {
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
        match process::ask(socket, &Request::Status) {
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
