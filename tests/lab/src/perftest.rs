//! Debian's perftest, unmodified and with default flags but device, size and count; and how a run under a fault is judged.

use std::time::{Duration, Instant};

use crate::clock::ms;
use crate::figures::Figures;
use crate::guest::{Ended, Program, Running};
use crate::lab::Lab;
use crate::place::{Host, Link, Rail};
use crate::trouble::{require, Result, Trouble};

/// perftest's default TCP port.
pub const PORT: u16 = 18515;
/// Without progress for so long, a run counts as dead: soft-RoCE takes perftest's retry count of 7 as infinite, so no error may ever come.
pub const STALL_LIMIT: Duration = Duration::from_secs(20);
/// No run takes longer, fault or not.
pub const RUN_LIMIT: Duration = Duration::from_secs(180);

/// One of the bandwidth tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// ib_write_bw: the client writes.
    Write,
    /// ib_send_bw: the client sends.
    Send,
    /// ib_read_bw: the client reads.
    Read,
    /// ib_atomic_bw: the client adds.
    Atomic,
}

impl Tool {
    /// The three that a rail's death must not end.
    pub const MOVED: [Tool; 3] = [Tool::Write, Tool::Send, Tool::Read];

    /// Name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Tool::Write => "ib_write_bw",
            Tool::Send => "ib_send_bw",
            Tool::Read => "ib_read_bw",
            Tool::Atomic => "ib_atomic_bw",
        }
    }

    /// Name in scenarios.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Write => "write",
            Tool::Send => "send",
            Tool::Read => "read",
            Tool::Atomic => "atomic",
        }
    }

    /// Who sends the data: the fault "on the sender" is there.
    pub fn sender(self) -> Host {
        match self {
            Tool::Write | Tool::Send | Tool::Atomic => Host::A,
            Tool::Read => Host::B,
        }
    }
}

/// Whether the programs run under the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// LD_PRELOAD on both hosts.
    Both,
    /// Nowhere.
    Nowhere,
    /// Only on one host.
    Only(Host),
}

impl Shim {
    /// `program` as it runs on `host`.
    pub fn apply(self, host: Host, program: Program) -> Program {
        let preloaded = match self {
            Shim::Both => true,
            Shim::Nowhere => false,
            Shim::Only(only) => only == host,
        };
        if preloaded {
            program.with_shim()
        } else {
            program
        }
    }
}

/// A run of one tool; the client is on A, the server on B.
#[derive(Debug, Clone)]
pub struct Perftest {
    /// Which.
    pub tool: Tool,
    /// Bytes of a message.
    pub size: u32,
    /// Number of messages.
    pub iterations: u32,
    /// Under the shim?
    pub shim: Shim,
    /// Variables for both sides.
    pub env: Vec<(String, String)>,
}

impl Perftest {
    /// A run without the shim that lasts a few seconds here: about 130 MB.
    pub fn plain(tool: Tool) -> Perftest {
        let (size, iterations) = match tool {
            Tool::Write | Tool::Send | Tool::Read => (65_536, 2000),
            Tool::Atomic => (8, 5000),
        };
        Perftest {
            tool,
            size,
            iterations,
            shim: Shim::Nowhere,
            env: Vec::new(),
        }
    }

    /// The same under the shim.
    pub fn with_shim(mut self, shim: Shim) -> Perftest {
        self.shim = shim;
        self
    }

    /// How the program is started on `host`.
    pub fn program(&self, host: Host) -> Program {
        let mut program = Program::words(&format!(
            "/usr/bin/{} -d rxe0 -n {}",
            self.tool.program(),
            self.iterations
        ));
        if self.tool != Tool::Atomic {
            program = program.arg("-s").arg(self.size.to_string());
        }
        if host == Host::A {
            program = program.arg(Link::Management.address(Host::B));
        }
        program.env.extend(self.env.iter().cloned());
        self.shim.apply(host, program)
    }

    /// Starts server and client.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start(&self, lab: &Lab) -> Result<Both> {
        let (server, client) = lab.start_pair(
            Host::B,
            PORT,
            &self.program(Host::B),
            &self.program(Host::A),
        )?;
        Ok(Both { server, client })
    }

    /// Both ended with 0 and the client reports the full number of iterations.
    ///
    /// # Errors
    /// [`Trouble::Judged`] says what is wrong.
    pub fn require_complete(&self, story: &Story) -> Result<()> {
        for (name, ended) in [("client", &story.client), ("server", &story.server)] {
            let ended = ended.as_ref().ok_or_else(|| {
                Trouble::judged(format!("{name} made no progress for {STALL_LIMIT:?}"))
            })?;
            require(ended.succeeded(), || format!("{name}: {}", ended.brief()))?;
        }
        let report = story.client.as_ref().and_then(|ended| report(&ended.out));
        let (iterations, _) =
            report.ok_or_else(|| Trouble::judged("the client printed no result"))?;
        require(iterations == u64::from(self.iterations), || {
            format!("{iterations} of {} iterations", self.iterations)
        })
    }
}

/// A client and its server.
#[derive(Debug, Clone)]
pub struct Both {
    /// On B.
    pub server: Running,
    /// On A.
    pub client: Running,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Story {
    /// When the fault was made, host-monotonic, if the run lived to see it.
    pub fault_ns: Option<u64>,
    /// How the client ended; none if it made no progress.
    pub client: Option<Ended>,
    /// How the server ended; none if it made no progress.
    pub server: Option<Ended>,
    /// Longest time without progress on the wire, nanoseconds.
    pub longest_pause_ns: u64,
}

impl Story {
    /// A side ended with an error, or stood still for 20 s.
    pub fn is_dead(&self) -> bool {
        [&self.client, &self.server]
            .into_iter()
            .any(|side| side.as_ref().is_none_or(|ended| !ended.succeeded()))
    }

    /// Figures that every run has.
    pub fn figures(&self) -> Figures {
        let side = |ended: &Option<Ended>| {
            ended.as_ref().map_or("no progress".to_owned(), |ended| {
                if ended.succeeded() {
                    "exit 0".to_owned()
                } else {
                    ended.brief()
                }
            })
        };
        let mut figures = Figures::new()
            .with("client", side(&self.client))
            .with("server", side(&self.server));
        if let Some((iterations, average)) =
            self.client.as_ref().and_then(|ended| report(&ended.out))
        {
            figures.note("iterations", iterations);
            figures.note("mb_per_s", average);
        }
        figures.note("longest_pause_ms", ms(self.longest_pause_ns));
        if let (Some(fault), Some(client)) = (self.fault_ns, &self.client) {
            figures.note(
                "fault_to_client_end_ms",
                ms(client.at_ns.saturating_sub(fault)),
            );
        }
        figures
    }
}

impl Both {
    /// Waits until both have ended, or nothing has moved for [`STALL_LIMIT`]; then the rest is killed.
    ///
    /// # Errors
    /// A guest or the wire is lost, or the run is not over within [`RUN_LIMIT`].
    pub fn finish(&self, lab: &Lab, fault_ns: Option<u64>) -> Result<Story> {
        let begun = Instant::now();
        let (mut seen, mut moved_at, mut longest) = (None, Instant::now(), Duration::ZERO);
        loop {
            let state = (
                lab.wire().counts()?.progress(),
                self.client.lines().len(),
                self.server.lines().len(),
            );
            if seen != Some(state) {
                seen = Some(state);
                moved_at = Instant::now();
            }
            longest = longest.max(moved_at.elapsed());
            let (client, server) = (self.client.ended(), self.server.ended());
            let over = client.is_some() && server.is_some();
            if over || moved_at.elapsed() > STALL_LIMIT {
                self.kill();
                return Ok(Story {
                    fault_ns,
                    client,
                    server,
                    longest_pause_ns: longest.as_nanos() as u64,
                });
            }
            if begun.elapsed() > RUN_LIMIT {
                self.kill();
                return Err(Trouble::deadline("end of both sides", RUN_LIMIT));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for `packets` RoCE packets on rail 0, then makes the fault; none if the run was over before.
    ///
    /// # Errors
    /// Nothing moves, or the fault cannot be made.
    pub fn fault_after(
        &self,
        lab: &mut Lab,
        packets: u64,
        fault: impl FnOnce(&mut Lab) -> Result<u64>,
    ) -> Result<Option<u64>> {
        let over = || self.client.ended().is_some();
        if lab.wait_traffic(Rail::Zero, packets, Duration::from_secs(60), over)? {
            fault(lab).map(Some)
        } else {
            Ok(None)
        }
    }

    fn kill(&self) {
        for side in [&self.client, &self.server] {
            if side.ended().is_none() {
                // It may end at this very moment; then there is nothing to kill.
                let _ = side.signal(9);
            }
        }
    }
}

/// Iterations and average bandwidth from perftest's table.
fn report(out: &str) -> Option<(u64, f64)> {
    let mut lines = out
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let fields: Vec<&str> = lines.nth(1)?.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_perftest_is_read() {
        let out = " local address: LID 0000\n #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n\
                    Conflicting CPU frequency values\n";
        assert_eq!(report(out), None);
        let out = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n 65536      2000             51.53              48.34    0.000773\n---\n";
        assert_eq!(report(out), Some((2000, 48.34)));
    }
}
