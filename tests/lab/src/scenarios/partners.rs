//! Two processes of the checking application that belong together, where a scenario runs many such pairs at once.

use std::time::Duration;

use serde_json::Value;

use crate::guest::{Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link};
use crate::trial::protected;
use crate::trouble::Result;

use super::checker::{PORT, PROGRAM};

/// Arming under emulation, with some thirty programs starting.
pub(super) const ARMING_LIMIT: Duration = Duration::from_secs(60);
/// Pairs that pause go on when this file is there.
pub(super) const GO_ON: &str = "/tmp/shift-go-on";

/// How to start a pair.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// Tells the pairs of a scenario apart: their side channels have ports of their own.
    pub(super) number: u16,
    /// Both run as this user.
    pub(super) user: u32,
    /// Further options of the server.
    pub(super) server: String,
    /// Further options of the client.
    pub(super) client: String,
    /// Without the shim.
    pub(super) bare: bool,
    /// Variables for both.
    pub(super) env: Vec<(String, String)>,
    /// What is wrong with the devices of the client (tests/preload).
    pub(super) fault: Option<&'static str>,
}

/// A pair that was started: the client on A, the server on B.
#[derive(Debug)]
pub(super) struct Partners {
    /// On B.
    pub(super) server: Running,
    /// On A.
    pub(super) client: Running,
}

impl Partners {
    /// Starts both; the client waits for its server by itself.
    pub(super) fn start(lab: &Lab, plan: &Plan) -> Result<Partners> {
        let at = format!("{}:{}", Link::Management.address(Host::B), PORT + plan.number);
        let dress = |line: String, fault: Option<&str>| {
            let program = Program::words(&line);
            let program = match fault {
                _ if plan.bare => program,
                Some(fault) => program.with_shim_over(fault).env("PRELOAD_SAY", "1"),
                None => program.with_shim(),
            };
            let program = program.as_uid(plan.user);
            plan.env.iter().fold(program, |program, (name, value)| program.env(name, value))
        };
        let server = dress(format!("{PROGRAM} server --dev rxe0 --listen {at} {}", plan.server), None);
        let client = dress(format!("{PROGRAM} client --dev rxe0 --connect {at} {}", plan.client), plan.fault);
        Ok(Partners { server: lab.b().spawn(&server)?, client: lab.a().spawn(&client)? })
    }

    /// Client and server.
    pub(super) fn sides(&self) -> [&Running; 2] {
        [&self.client, &self.server]
    }

    /// The one on that host.
    pub(super) fn on(&self, host: Host) -> &Running {
        match host {
            Host::A => &self.client,
            Host::B => &self.server,
        }
    }

    /// Waits until both shims say that the queue pair is protected.
    pub(super) fn wait_protected(&self) -> Result<()> {
        for side in self.sides() {
            side.wait_line(ARMING_LIMIT, |line| protected(line).is_some())?;
        }
        Ok(())
    }

    /// Waits until the pair pauses.
    pub(super) fn wait_idle(&self) -> Result<()> {
        self.client.wait_line(ARMING_LIMIT, |line| line.starts_with("IDLE")).map(drop)
    }

    /// Waits until both programs have ended.
    pub(super) fn wait_ended(&self) -> Result<()> {
        self.sides().into_iter().try_for_each(|side| side.wait(ARMING_LIMIT).map(drop))
    }

    /// Kills the process on `host`, not the child that it forked.
    pub(super) fn kill(&self, lab: &Lab, host: Host) -> Result<()> {
        lab.guest(host).shell(&format!("kill -9 {}", self.on(host).pid())).map(drop)
    }

    /// Ends the children that its processes forked, if they did.
    pub(super) fn end_children(&self, lab: &Lab) -> Result<()> {
        for side in self.sides() {
            let child =
                side.lines().into_iter().find_map(|line| Some(line.text.strip_prefix("CHILD pid=")?.to_owned()));
            if let Some(child) = child {
                lab.guest(side.host()).shell(&format!("kill -9 {child}"))?;
            }
        }
        Ok(())
    }
}

/// The object with which a program of the checking application closes its run. Its end may come later: on soft-RoCE, to tear down a
/// queue pair of a dead rail may take until the rail is back.
pub(super) fn last_words(side: &Running) -> Option<Value> {
    side.lines()
        .iter()
        .rev()
        .find(|line| line.text.starts_with('{'))
        .and_then(|line| serde_json::from_str(&line.text).ok())
}
