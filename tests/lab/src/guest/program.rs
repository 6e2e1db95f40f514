//! A program in a guest: how it is to be started, and what it has said and come to.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::Channel;
use super::talk::{Ask, Stream};
use crate::place::Host;
use crate::trouble::{Result, Trouble};

/// Where the shim is in every guest.
pub const SHIM: &str = "/shift/libshift_verbs.so";
/// The library below the shim that makes lesser devices.
pub const PRELOAD: &str = "/shift/libshift_preload.so";
/// Where the shim's records of migrations are collected in every guest.
pub const RECORDS: &str = "/tmp/shift-events";

/// What to start, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, added to a plain one (PATH, HOME).
    pub env: Vec<(String, String)>,
    /// User and group; root if none.
    pub uid: Option<u32>,
    /// Working directory; / if none.
    pub cwd: Option<String>,
}

impl Program {
    /// A program with its arguments.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Program {
        Program { argv: argv.into_iter().map(Into::into).collect(), env: Vec::new(), uid: None, cwd: None }
    }

    /// A line for the guest's shell.
    pub fn shell(line: &str) -> Program {
        Program::new(["/bin/dash", "-c", line])
    }

    /// Words separated by blanks; no quoting.
    pub fn words(line: &str) -> Program {
        Program::new(line.split_whitespace())
    }

    /// With an argument more.
    pub fn arg(mut self, arg: impl Into<String>) -> Program {
        self.argv.push(arg.into());
        self
    }

    /// With a variable more.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Program {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Under the shim; with the log level of this process (`SHIFT_LOG`), if there is one.
    pub fn with_shim(self) -> Program {
        let shimmed = self.env("LD_PRELOAD", SHIM).env("SHIFT_EVENT_FILE", format!("{RECORDS}.{{pid}}"));
        match std::env::var("SHIFT_LOG") {
            Ok(level) => shimmed.env("SHIFT_LOG", level),
            Err(_) => shimmed,
        }
    }

    /// Under the shim, and below it devices that lack what `fault` says (tests/preload).
    pub fn with_shim_over(self, fault: &str) -> Program {
        let mut program = self.with_shim().env("PRELOAD_FAULT", fault);
        for (name, value) in &mut program.env {
            if name == "LD_PRELOAD" {
                *value = format!("{SHIM} {PRELOAD}");
            }
        }
        program
    }

    /// Under the shim of that file in place of the default one.
    pub fn with_shim_from(self, file: &str) -> Program {
        let mut program = self;
        let preloads = program.env.iter_mut().filter(|(name, _)| name == "LD_PRELOAD");
        preloads.for_each(|(_, value)| *value = value.replace(SHIM, file));
        program
    }

    /// As an ordinary user.
    pub fn as_user(self) -> Program {
        self.as_uid(1000)
    }

    /// As the user of that number; 0 is root.
    pub fn as_uid(mut self, uid: u32) -> Program {
        self.uid = Some(uid).filter(|uid| *uid != 0);
        self
    }

    /// With a limit on locked memory; only users without CAP_IPC_LOCK feel it.
    pub fn memlock_kib(mut self, kib: u32) -> Program {
        let limited = ["/bin/bash", "-c", &format!("ulimit -l {kib}; exec \"$@\""), "limited"];
        self.argv.splice(0..0, limited.map(str::to_owned));
        self
    }

    /// For messages.
    pub fn name(&self) -> String {
        self.argv.join(" ")
    }
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When, in host-monotonic nanoseconds (to about a millisecond).
    pub at_ns: u64,
    /// Where to.
    pub stream: Stream,
    /// The line.
    pub text: String,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// Exit code, if it ended by itself.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// When, in host-monotonic nanoseconds.
    pub at_ns: u64,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ended {
    /// It exited with 0.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// For messages: how it ended and its last words.
    pub fn brief(&self) -> String {
        let how = match (self.code, self.signal) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no status".to_owned(),
        };
        let said = if self.err.trim().is_empty() { &self.out } else { &self.err };
        let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
        format!("{how}: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "))
    }
}

/// A program that was started; dropping this does not end it.
#[derive(Debug, Clone)]
pub struct Running {
    pub(super) channel: Arc<Channel>,
    pub(super) run: u64,
    pub(super) pid: u32,
    pub(super) name: String,
}

impl Running {
    /// The host it runs on.
    pub fn host(&self) -> Host {
        self.channel.host()
    }

    /// Its process id in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it has said so far.
    pub fn lines(&self) -> Vec<Line> {
        self.channel.lines(self.run)
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.channel.ended(self.run)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Trouble::Deadline`] with its last words; [`Trouble::GuestLost`].
    pub fn wait(&self, limit: Duration) -> Result<Ended> {
        let ended = self.channel.wait_for(limit, || self.ended())?;
        ended.ok_or_else(|| {
            let last = self.lines().pop().map(|line| line.text).unwrap_or_default();
            Trouble::deadline(format!("end of `{}` on {} (last line: {last:?})", self.name, self.host().name()), limit)
        })
    }

    /// Waits for a line that `wanted` accepts; an end without one is an error at once.
    ///
    /// # Errors
    /// [`Trouble::Deadline`], [`Trouble::Judged`] if it ended first, [`Trouble::GuestLost`].
    pub fn wait_line(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<Line> {
        let seen = self.channel.wait_for(limit, || {
            let line = self.lines().into_iter().find(|line| wanted(&line.text));
            line.map(Ok).or_else(|| self.ended().map(Err))
        })?;
        match seen {
            Some(Ok(line)) => Ok(line),
            Some(Err(ended)) => {
                Err(Trouble::judged(format!("`{}` ended without the line: {}", self.name, ended.brief())))
            }
            None => Err(Trouble::deadline(format!("a line of `{}`", self.name), limit)),
        }
    }

    /// Sends it and its children a signal.
    ///
    /// # Errors
    /// The guest is lost.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.channel.ask(Ask::Signal { run: self.run, signal }).map(drop)
    }
}
