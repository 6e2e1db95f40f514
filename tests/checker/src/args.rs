//! The command line, parsed into valid values; the run's parameters, which the client chooses and the server is told.

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A verbs program that predicts every byte from a seed and reports every lie.
///
/// Exit status: 0 all is right, 1 something is wrong (see the JSON object on the last line), 2 usage, 3 no progress
/// within the deadline, 4 the verbs could not be set up.
#[derive(Debug, Parser)]
#[command(name = "shift-checker", version)]
pub struct Cli {
    /// Which end this is.
    #[command(subcommand)]
    pub role: Role,
}

/// Which end a process is.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Wait for one client and do what it says.
    Server {
        /// Where to wait for the client's side channel.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Where to wait, once the client is connected, for a third end.
        #[arg(long, value_name = "IP:PORT")]
        third: Option<SocketAddr>,
        /// What this end alone decides.
        #[command(flatten)]
        local: Local,
    },
    /// Connect to a server and run.
    Client {
        /// The server's side channel.
        #[arg(long, value_name = "IP:PORT")]
        connect: SocketAddr,
        /// What this end alone decides.
        #[command(flatten)]
        local: Local,
        /// What both ends do.
        #[command(flatten)]
        params: Box<Params>,
        /// Commit this error on purpose, at the sender.
        #[arg(long, value_enum)]
        commit: Option<Commit>,
        /// The first message at which the error may be committed (default: the middle of the run).
        #[arg(long, value_name = "K", requires = "commit")]
        commit_at: Option<u64>,
        /// Where the run stops to be idle, go on when this file appears (else: when a line arrives on stdin).
        #[arg(long, value_name = "PATH", requires = "pause_before_message")]
        idle_until_file: Option<PathBuf>,
    },
    /// Connect to a server that has a client, take back one COMPARE_AND_SWAP of the client's by one of its own, and say whether it swapped.
    Third {
        /// Where the server waits for it.
        #[arg(long, value_name = "IP:PORT")]
        connect: SocketAddr,
        /// Which one, when: the number of the message, which is in this file as soon as it is there.
        #[arg(long, value_name = "PATH")]
        undo: PathBuf,
        /// What this end alone decides.
        #[command(flatten)]
        local: Local,
    },
}

/// What each end decides for itself.
#[derive(Clone, Debug, Args)]
pub struct Local {
    /// RDMA device (default: the first).
    #[arg(long)]
    pub dev: Option<String>,
    /// Port of the device.
    #[arg(long, default_value_t = 1)]
    pub port: u8,
    /// Index into the GID table, or `auto`: the first RoCEv2 GID of an IPv4 address.
    #[arg(long, default_value = "auto", value_name = "auto|N")]
    pub gid_index: GidIndex,
    /// Once finished, keep the queue pairs open and poll for this long, in milliseconds, though the peer may be gone.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub linger_ms: u64,
    /// Fork a child, and what it does.
    #[arg(long, value_enum)]
    pub fork: Option<Fork>,
    /// Call ibv_fork_init before anything else.
    #[arg(long)]
    pub fork_init: bool,
    /// Once all is connected and this file appears, call exit at once, in the middle of whatever is going on.
    #[arg(long, value_name = "PATH")]
    pub exit_on_file: Option<PathBuf>,
    /// Do it all so many times, in one process: open the device, make the queue pairs, run, destroy them, close the device. Each round has the
    /// next seed, and a line ROUND once it is over.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: u64,
    /// Set each fence's packet number against memory, and print a line FENCES in the end; libshift_preload.so with
    /// `watch-fences` must be loaded.
    #[arg(long)]
    pub watch_fences: bool,
    /// Wait so many seconds for the device to be there, with a GID of the kind that is wanted.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub device_timeout: u64,
    /// That the peer's side channel closed is no end of it: go on until verbs tell.
    #[arg(long)]
    pub verbs_tell: bool,
    /// Give up waiting for the peer's side channel after this many seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub connect_timeout: u64,
}

/// What a forked child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Fork {
    /// Once connected: it inherits everything, does nothing, and outlives this process; its number is printed.
    Idles,
    /// Once connected: it becomes another program.
    Execs,
    /// Before the device is opened: it does all the work, and this process waits for it.
    Works,
}

/// How the GID is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidIndex {
    /// The first RoCEv2 GID of an IPv4 address.
    Auto,
    /// This entry of the table.
    At(u8),
}

impl Mode {
    /// Whether a run in this mode posts receives at all.
    #[must_use]
    pub const fn takes_receives(self) -> bool {
        match self {
            Mode::WriteImm | Mode::Send | Mode::Mixed | Mode::MixedAtomic | Mode::Relay | Mode::FaddSend => true,
            Mode::Write | Mode::Read | Mode::Fadd | Mode::Cas => false,
        }
    }

    /// Whether it has atomics.
    #[must_use]
    pub const fn has_atomics(self) -> bool {
        match self {
            Mode::Fadd | Mode::Cas | Mode::MixedAtomic | Mode::FaddSend => true,
            Mode::Write | Mode::WriteImm | Mode::Send | Mode::Read | Mode::Mixed | Mode::Relay => false,
        }
    }
}

impl FromStr for GidIndex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(GidIndex::Auto),
            number => number.parse().map(GidIndex::At).map_err(|e| format!("{e}; expected `auto` or an index")),
        }
    }
}

/// Which operations move the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// RDMA WRITE; the receiver is told over the side channel what it may verify.
    Write,
    /// RDMA WRITE with immediate data.
    WriteImm,
    /// SEND, with and without immediate data.
    Send,
    /// RDMA READ.
    Read,
    /// WRITE, WRITE with immediate data, SEND and READ by the seed.
    Mixed,
    /// The same and FETCH_AND_ADD.
    MixedAtomic,
    /// READ, and a fenced SEND of what it brought, out of the memory where it landed.
    Relay,
    /// FETCH_AND_ADD, each result checked.
    Fadd,
    /// COMPARE_AND_SWAP, each result checked.
    Cas,
    /// FETCH_AND_ADD, and a SEND behind each: who got the SEND knows that the other one happened.
    FaddSend,
}

/// A shape of work that is another program's, in place of modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// NCCL's: clear-to-send by unsignalled WRITEs out of slots that are used again, a WRITE with an empty WRITE_WITH_IMM behind it, a READ on a
    /// queue pair that is connected to itself, a thread for events. Every second queue pair carries data from the server if both ends send.
    Nccl,
}

/// Which end sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ways {
    /// The client.
    One,
    /// Both.
    Both,
}

/// How an end polls when nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Polling {
    /// Poll again at once.
    Spin,
    /// Sleep for a millisecond between two polls.
    Sleepy,
    /// Poll only when a completion event came; a thread sleeps in ibv_get_cq_event.
    Event,
    /// The same with a channel that does not block, and epoll.
    Epoll,
}

/// By which functions a program posts and polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `ibv_post_send` and `ibv_poll_cq`.
    Plain,
    /// `ibv_wr_*` and `ibv_start_poll`, one completion a poll.
    Ext,
    /// The same with several completions a poll, and lists of elements: soft-RoCE before rdma-core 64 has mistakes there, which do not come through the shim.
    ExtFull,
}

/// What an end makes of asynchronous events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AsyncUse {
    /// Nobody takes them.
    Ignore,
    /// A thread takes them, and the report names them.
    Watch,
    /// The same, and the run ends at one that says that a device, a port, a queue pair or a completion queue is broken.
    Fatal,
}

/// An error that is committed on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Commit {
    /// A message is not posted.
    Loss,
    /// A message is posted twice.
    Duplicate,
    /// A message is posted after its successor.
    Reorder,
    /// A byte is changed.
    Damage,
    /// An old message is written again after the receiver consumed it.
    Stale,
    /// A completion is counted twice.
    CompletionTwice,
    /// A completion is thrown away.
    CompletionNever,
}

/// The lengths of messages, in bytes, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeRange {
    /// The shortest.
    pub min: u32,
    /// The longest.
    pub max: u32,
}

impl FromStr for SizeRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{text:?}: {e}"));
        let range = Self { min: number(min)?, max: number(max)? };
        if range.min > range.max || range.max > MAX_SIZE {
            return Err(format!("expected MIN..MAX with MIN <= MAX <= {MAX_SIZE}"));
        }
        Ok(range)
    }
}

/// The longest message: long enough for hundreds of packets, short enough for a guest's memory times the depth.
pub const MAX_SIZE: u32 = 4 << 20;

/// The most queue pairs of one run.
pub const MAX_QPS: u16 = 1024;

/// Bytes behind each slot that must stay untouched.
pub const GUARD_BYTES: u32 = 64;

/// What both ends do.
#[derive(Clone, Debug, PartialEq, Eq, Args, Serialize, Deserialize)]
pub struct Params {
    /// Which operations move the messages; of several modes the queue pairs take one each, in turn.
    #[arg(long = "mode", value_enum, value_delimiter = ',', default_value = "mixed", value_name = "MODE,…")]
    pub modes: Vec<Mode>,
    /// Instead of modes: the work requests of another program.
    #[arg(long, value_enum)]
    pub pattern: Option<Pattern>,
    /// Messages per queue pair and direction.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..1 << 40))]
    pub messages: u64,
    /// Lengths in bytes: one number, or MIN..MAX by the seed.
    #[arg(long, default_value = "0..9000", value_name = "MIN..MAX")]
    pub size: SizeRange,
    /// Work requests outstanding per queue pair, at most.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub depth: u32,
    /// Queue pairs, all on one completion queue.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QPS)))]
    pub qps: u16,
    /// Which end sends.
    #[arg(long, value_enum, default_value = "one")]
    pub direction: Ways,
    /// All randomness of the run.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Path MTU in bytes.
    #[arg(long, default_value_t = 1024, value_parser = mtu)]
    pub mtu: u32,
    /// Local ACK timeout exponent: 4.096 us * 2^N.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(0..=31))]
    pub timeout: u8,
    /// Retries before the NIC reports RETRY_EXC_ERR; soft-RoCE takes 7 as infinite.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(0..=7))]
    pub retry_cnt: u8,
    /// Retries where the receiver is not ready; 7 is infinite.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(0..=7))]
    pub rnr_retry: u8,
    /// First packet sequence number of every queue pair (default: by the seed).
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..1 << 24))]
    pub psn: Option<u32>,
    /// Signal every n-th work request, at least one per depth.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub signal_every: u32,
    /// Post up to this many work requests in one call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub chain: u32,
    /// Ask for this much inline room, and send three quarters of what fits in the granted room inline.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub inline: u32,
    /// Cut each message into up to this many scatter/gather elements.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub sges: u32,
    /// Fence every n-th work request; 0: none.
    #[arg(long, default_value_t = 0)]
    pub fence_every: u32,
    /// Send no more than this many bytes a second per end; 0: as fast as it goes.
    #[arg(long, default_value_t = 0, value_name = "BYTES/S")]
    pub rate: u64,
    /// Stop before this message, drain, print IDLE, and go on when told.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..))]
    pub pause_before_message: Option<u64>,
    /// The receiver posts all receives in advance, sits in a read of the side channel, and polls nothing until the
    /// sender is done.
    #[arg(long)]
    pub receiver_waits: bool,
    /// Post a quarter of the receives only, so that the receiver is often not ready.
    #[arg(long)]
    pub scarce_receives: bool,
    /// Once, when 50 messages have come, the receiver does nothing for so long: its receives run out, and it is not ready.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    #[serde(default)]
    pub receiver_naps: u64,
    /// All queue pairs of an end receive through one shared receive queue, which has the receives of all of them.
    #[arg(long)]
    #[serde(default)]
    pub srq: bool,
    /// The receiver overwrites a message as soon as it saw it (a WRITE by looking at the memory itself) and watches all
    /// that it overwrote to the end of the run.
    #[arg(long)]
    pub reuse: bool,
    /// Let a queue pair end in an error: RETRY_EXC_ERR (at the other end none), and nothing but flushes behind it. What
    /// came before is judged as ever; each message that was posted and did not complete may have happened once, in order.
    #[arg(long)]
    pub may_fail: bool,
    /// Where a post is refused for want of room, post again what was refused (else: give up).
    #[arg(long)]
    pub retry_refused: bool,
    /// A second thread polls the same completion queue. All work requests are signalled.
    #[arg(long)]
    pub two_pollers: bool,
    /// The queue pairs of an end send one after another, each all its messages: each has the wire for itself.
    #[arg(long)]
    pub turns: bool,
    /// With --poll event or epoll: a receiver asks for events of solicited messages only, and a sender solicits the last one of every few.
    #[arg(long)]
    pub solicited: bool,
    /// Two completion queues per end, for sends and for receives; with --poll event or epoll on one channel.
    #[arg(long)]
    pub split_cqs: bool,
    /// What both ends make of asynchronous events.
    #[arg(long, value_enum, default_value = "ignore")]
    pub async_events: AsyncUse,
    /// How both ends poll when nothing happens.
    #[arg(long, value_enum, default_value = "spin")]
    pub poll: Polling,
    /// By which functions both ends post and poll.
    #[arg(long, value_enum, default_value = "plain")]
    pub api: Api,
    /// Run for this many seconds instead of a number of messages.
    #[arg(long, value_name = "SECONDS")]
    pub duration: Option<u64>,
    /// Without progress for this many seconds, report what never came and exit 3.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub deadline: u64,
    /// Once all came, watch this long, in milliseconds, for what must not come.
    #[arg(long, default_value_t = 300, value_name = "MS")]
    pub settle_ms: u64,
    /// Print a PROGRESS line this often, in milliseconds; 0: never.
    #[arg(long, default_value_t = 500, value_name = "MS")]
    pub progress_ms: u64,
}

fn mtu(text: &str) -> Result<u32, String> {
    let bytes = text.parse().map_err(|e| format!("{e}"))?;
    match shift_abi::ibv_mtu::from_bytes(bytes) {
        Some(_) => Ok(bytes),
        None => Err("expected 256, 512, 1024, 2048 or 4096".to_owned()),
    }
}

impl Params {
    /// What no single option can check.
    pub fn check(&self) -> Result<(), String> {
        if self.receiver_waits && self.direction == Ways::Both {
            return Err("--receiver-waits needs --direction one: who sends must poll".to_owned());
        }
        if self.receiver_waits && self.duration.is_some() {
            return Err("--receiver-waits needs --messages: its receives are posted in advance".to_owned());
        }
        if self.receiver_waits && self.messages > MAX_WAITING {
            return Err(format!("--receiver-waits takes at most {MAX_WAITING} messages"));
        }
        if self.reuse && (self.size.min < 8 || self.duration.is_some() || self.scarce_receives) {
            return Err("--reuse needs messages of 8 bytes and more, --messages, and all receives".to_owned());
        }
        if self.two_pollers && (self.signal_every != 1 || self.receiver_waits || self.may_fail) {
            return Err(
                "--two-pollers needs all work requests signalled, and ends that poll and do not fail".to_owned()
            );
        }
        let sleeps = matches!(self.poll, Polling::Event | Polling::Epoll);
        if self.two_pollers && (sleeps || self.split_cqs) {
            return Err("--two-pollers needs one completion queue, and ends that do not sleep".to_owned());
        }
        if self.solicited && (!sleeps || self.direction == Ways::Both || self.receiver_waits) {
            return Err(
                "--solicited needs --poll event or epoll, --direction one, and a receiver that polls".to_owned()
            );
        }
        if self.srq && (self.receiver_waits || self.reuse || self.two_pollers) {
            return Err("--srq needs one poller, and a receiver that polls and leaves alone what came".to_owned());
        }
        if self.retry_refused && self.may_fail {
            return Err("--retry-refused and --may-fail do not go together".to_owned());
        }
        if self.may_fail && (self.receiver_waits || self.direction == Ways::Both) {
            return Err("--may-fail needs --direction one and a receiver that polls".to_owned());
        }
        if self.pause_before_message.is_some_and(|k| k >= self.messages) && self.duration.is_none() {
            return Err("--pause-before-message lies behind the last message".to_owned());
        }
        let bytes = crate::layout::Layout::new(self).total_bytes();
        if bytes > MAX_MEMORY {
            return Err(format!("this would take {} MiB of memory; at most {}", bytes >> 20, MAX_MEMORY >> 20));
        }
        Ok(())
    }

    /// What moves the messages of a queue pair.
    pub fn mode(&self, qp: u16) -> Mode {
        let turn = usize::from(qp) % self.modes.len().max(1);
        self.modes.get(turn).copied().unwrap_or(Mode::Mixed)
    }

    /// Each message has memory of its own at the receiver.
    pub const fn has_memory_for_all(&self) -> bool {
        self.receiver_waits || self.reuse
    }

    /// Signalled work requests come this often, however long the queue is.
    pub fn signal_every(&self) -> u64 {
        u64::from(self.signal_every.min(self.depth))
    }

    /// The area that READs read, in bytes.
    pub fn source_bytes(&self) -> u32 {
        2 * (self.size.max + GUARD_BYTES)
    }
}

/// Messages of a run in which the receiver waits: as many receives are outstanding at once (rxe allows 1 << 14).
const MAX_WAITING: u64 = 8192;

/// Memory that one end registers, at most: a lab guest has about 1 GiB.
const MAX_MEMORY: u64 = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    impl Params {
        /// The defaults of the command line.
        pub fn for_tests() -> Self {
            let cli = Cli::parse_from(["shift-checker", "client", "--connect", "127.0.0.1:1"]);
            match cli.role {
                Role::Client { params, .. } => *params,
                Role::Server { .. } | Role::Third { .. } => panic!("a client was asked for"),
            }
        }
    }

    #[test]
    fn sizes_are_a_number_or_a_range() {
        assert_eq!("64".parse(), Ok(SizeRange { min: 64, max: 64 }));
        assert_eq!("0..9000".parse(), Ok(SizeRange { min: 0, max: 9000 }));
        for bad in ["9..1", "x", "1..", "", "0..4294967295"] {
            assert!(bad.parse::<SizeRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_defaults_are_a_valid_run_and_survive_the_side_channel() {
        let params = Params::for_tests();
        assert_eq!(params.check(), Ok(()));
        let text = serde_json::to_string(&params).expect("parameters are plain data");
        assert_eq!(serde_json::from_str::<Params>(&text).expect("they come back"), params);
    }

    #[test]
    fn contradictions_are_refused() {
        let waits = Params { receiver_waits: true, ..Params::for_tests() };
        assert!(waits.check().is_ok());
        assert!(Params { direction: Ways::Both, ..waits.clone() }.check().is_err());
        assert!(Params { duration: Some(1), ..waits.clone() }.check().is_err());
        assert!(Params { may_fail: true, ..waits.clone() }.check().is_err());
        assert!(Params { reuse: true, ..Params::for_tests() }.check().is_err());
        assert!(Params { two_pollers: true, ..waits.clone() }.check().is_err());
        assert!(Params { srq: true, ..waits.clone() }.check().is_err());
        assert!(Params { two_pollers: true, signal_every: 2, ..Params::for_tests() }.check().is_err());
        assert!(Params { retry_refused: true, may_fail: true, ..Params::for_tests() }.check().is_err());
        assert!(Params { solicited: true, ..Params::for_tests() }.check().is_err());
        assert!(Params { solicited: true, poll: Polling::Event, ..Params::for_tests() }.check().is_ok());
        assert!(Params { two_pollers: true, split_cqs: true, ..Params::for_tests() }.check().is_err());
        assert!(Params { messages: 1 << 20, ..waits }.check().is_err());
        assert!(Params { pause_before_message: Some(1000), ..Params::for_tests() }.check().is_err());
    }
}
