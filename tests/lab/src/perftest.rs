//! Debian's perftest, unmodified and with default flags but device, size and count; and how a run is judged.

use crate::figures::Figures;
use crate::guest::Program;
use crate::place::{Host, Link};
use crate::trial::{Story, Trial};
use crate::trouble::{require, Result, Trouble};

/// perftest's default TCP port.
pub const PORT: u16 = 18515;
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
    /// What the devices below the shim lack (tests/preload).
    pub device_fault: Option<String>,
    /// As an ordinary user with this limit on locked memory.
    pub memlock_kib: Option<u32>,
}

impl Perftest {
    /// A run without the shim that lasts a few seconds here: about 130 MB.
    pub fn plain(tool: Tool) -> Perftest {
        let (size, iterations) = match tool {
            Tool::Write | Tool::Send | Tool::Read => (65_536, 2000),
            Tool::Atomic => (8, 5000),
        };
        Perftest { tool, size, iterations, shim: Shim::Nowhere, env: Vec::new(), device_fault: None, memlock_kib: None }
    }

    /// The same under the shim.
    pub fn with_shim(mut self, shim: Shim) -> Perftest {
        self.shim = shim;
        self
    }

    /// How the program is started on `host`.
    pub fn program(&self, host: Host) -> Program {
        let mut program = Program::words(&format!("/usr/bin/{} -d rxe0 -n {}", self.tool.program(), self.iterations));
        if self.tool != Tool::Atomic {
            program = program.arg("-s").arg(self.size.to_string());
        }
        if host == Host::A {
            program = program.arg(Link::Management.address(Host::B));
        }
        program.env.extend(self.env.iter().cloned());
        if let Some(kib) = self.memlock_kib {
            program = program.as_user().memlock_kib(kib);
        }
        match &self.device_fault {
            Some(fault) => program.with_shim_over(fault),
            None => self.shim.apply(host, program),
        }
    }

    /// The trial of this run, without a fault.
    pub fn trial(&self) -> Trial {
        Trial::new(Host::B, PORT, self.program(Host::B), self.program(Host::A))
    }

    /// Both ended with 0 and the client reports the full number of iterations; then its figures.
    ///
    /// # Errors
    /// [`Trouble::Judged`] says what is wrong.
    pub fn require_complete(&self, story: &Story) -> Result<Figures> {
        let (client, _) = story.require_success()?;
        let (iterations, average) =
            report(&client.out).ok_or_else(|| Trouble::judged("the client printed no result"))?;
        require(iterations == u64::from(self.iterations), || {
            format!("{iterations} of {} iterations", self.iterations)
        })?;
        Ok(story.figures().with("iterations", iterations).with("mb_per_s", average))
    }
}

/// Iterations and average bandwidth from perftest's table.
fn report(out: &str) -> Option<(u64, f64)> {
    let mut lines = out.lines().skip_while(|line| !line.trim_start().starts_with("#bytes"));
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
