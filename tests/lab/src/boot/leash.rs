//! A child that cannot outlive the lab: the kernel kills it when the process that started it ends, however that ends.
//!
//! Children run as `shift-lab leash -- program …`, which asks for the parent-death signal and becomes the program. The signal is bound
//! to the *thread* that forks, so all children are started by the runner's main thread.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::getppid;

use crate::trouble::{Concerning, Result};

/// A command that will run `program` on a leash.
///
/// # Errors
/// This program cannot find itself.
pub fn command(program: &str) -> Result<Command> {
    let this = std::env::current_exe().concerning("own executable")?;
    let mut command = Command::new(this);
    command.args(["leash", "--parent", &std::process::id().to_string(), "--", program]);
    command.process_group(0);
    Ok(command)
}

/// Asks for death with the parent, whose process id is `parent`.
///
/// # Errors
/// The parent is already gone.
pub fn die_with(parent: u32) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    SigSet::all().thread_unblock()?;
    if getppid().as_raw() as u32 == parent {
        Ok(())
    } else {
        Err(io::Error::other("the lab is gone"))
    }
}

/// What the `leash` subcommand does; returns only if it fails.
///
/// # Errors
/// The parent is gone, or the program cannot be run.
pub fn become_program(parent: u32, program: &[String]) -> io::Error {
    if let Err(error) = die_with(parent) {
        return error;
    }
    match program.split_first() {
        Some((name, args)) => Command::new(name).args(args).exec(),
        None => io::Error::other("leash: no program"),
    }
}
