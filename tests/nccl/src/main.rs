//! Drives the network code of an unmodified libnccl.so.2 in host memory between two hosts, and checks every byte.
//!
//! NCCL's own code opens libibverbs, makes the queue pairs and posts to them; this program is only what NCCL's proxy thread is to it: it
//! connects, registers memory, sends, receives groups, flushes, and tests. One end is started as `server`, the other as `client`; half of the
//! connections send from either. The last line is a JSON object; the exit status is 0 only if every byte was right.

#![cfg_attr(test, allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test may fail by panicking"))]

mod connection;
mod net;
mod plan;
mod side;

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use connection::{Broken, Done, Receiving, Sending};
use net::{Address, Listener, Net, Receiver, Sender};
use plan::Plan;
use serde::{Deserialize, Serialize};
use serde_json::json;
use side::Side;

/// Nothing has moved for so long: the run is dead.
const STALL: Duration = Duration::from_secs(60);
/// Messages of each connection before it is told to go on: NCCL makes some queue pairs only when they are first needed, as 2.32 does with those that
/// it flushes through, and whoever waits until all are protected would wait for ever.
const GREETINGS: u64 = 1;
/// A line of progress after so many messages.
const PROGRESS: u64 = 20;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
    /// NVIDIA's libnccl.so.2.
    #[arg(long, global = true, default_value = "libnccl.so.2")]
    library: PathBuf,
    /// RDMA device.
    #[arg(long, global = true, default_value = "rxe0")]
    device: String,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Wait for one client and do what it says.
    Server {
        /// Where.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
    },
    /// Connect to a server and run.
    Client {
        /// Where it waits.
        #[arg(long, value_name = "IP:PORT")]
        connect: SocketAddr,
        /// Send nothing but a first message on each connection before this file is there.
        #[arg(long, value_name = "PATH")]
        go_on_file: Option<PathBuf>,
        #[command(flatten)]
        run: Run,
    },
}

/// What both ends do.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
struct Run {
    /// Connections; every second one sends from the server.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Messages of each.
    #[arg(long, default_value_t = 100)]
    messages: u64,
    /// Parts of a message, at most.
    #[arg(long, default_value_t = 4)]
    group: usize,
    /// All sizes and bytes come from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Server,
    Client,
}

impl Place {
    const fn sends_on(self, connection: usize) -> bool {
        matches!((self, connection % 2), (Place::Client, 0) | (Place::Server, 1))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (place, ended) = match &cli.role {
        Role::Server { listen } => (Place::Server, serve(&cli, *listen)),
        Role::Client { connect, go_on_file, run } => (Place::Client, ask(&cli, *connect, go_on_file.as_deref(), run)),
    };
    let name = match place {
        Place::Server => "server",
        Place::Client => "client",
    };
    match ended {
        Ok(done) => {
            let Done { messages, bytes, grouped, flushes } = done;
            say(&json!({"nccl": name, "pass": true, "messages": messages, "bytes": bytes, "grouped": grouped, "flushes": flushes}).to_string());
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&json!({"nccl": name, "pass": false, "why": error.to_string()}).to_string());
            ExitCode::FAILURE
        }
    }
}

fn serve(cli: &Cli, listen: SocketAddr) -> Result<Done, Box<dyn Error>> {
    let net = Net::open(&cli.library, &cli.device)?;
    let mut side = Side::accept(listen)?;
    let run: Run = side.hear()?;
    drive(net, side, Place::Server, &run, None)
}

fn ask(cli: &Cli, connect: SocketAddr, go_on: Option<&Path>, run: &Run) -> Result<Done, Box<dyn Error>> {
    let net = Net::open(&cli.library, &cli.device)?;
    let mut side = Side::connect(connect)?;
    side.say(run)?;
    drive(net, side, Place::Client, run, go_on)
}

fn drive(net: Net, mut side: Side, place: Place, run: &Run, go_on: Option<&Path>) -> Result<Done, Box<dyn Error>> {
    let (mut ends, listeners) = connect(&net, &mut side, place, run)?;
    ends.run(&net, GREETINGS.min(run.messages))?;
    barrier(&mut side)?;
    say("CONNECTED");
    if let Some(file) = go_on {
        while !file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    barrier(&mut side)?;
    ends.run(&net, run.messages)?;
    say("FINISHED");
    barrier(&mut side)?;
    let done = ends.done();
    ends.close(&net)?;
    listeners.into_iter().try_for_each(|listener| net.close_listener(listener))?;
    net.close()?;
    Ok(done)
}

/// Both ends are here.
fn barrier(side: &mut Side) -> std::io::Result<()> {
    side.say(&())?;
    side.hear()
}

/// All connections at this end.
struct Ends {
    sending: Vec<Sending>,
    receiving: Vec<Receiving>,
}

impl Ends {
    /// Up to the first `goal` messages of each connection.
    fn run(&mut self, net: &Net, goal: u64) -> Result<(), Box<dyn Error>> {
        let (mut moved_at, mut told) = (Instant::now(), 0);
        loop {
            let mut moved = false;
            for each in self.sending.iter_mut().filter(|each| !each.has_done(goal)) {
                moved |= each.step(net, goal)?;
            }
            for each in self.receiving.iter_mut().filter(|each| !each.has_done(goal)) {
                moved |= each.step(net, goal)?;
            }
            if self.have_done(goal) {
                return Ok(());
            }
            let messages = self.done().messages;
            if messages / PROGRESS > told {
                told = messages / PROGRESS;
                say(&format!("PROGRESS {messages}"));
            }
            if moved {
                moved_at = Instant::now();
            } else if moved_at.elapsed() > STALL {
                return Err(format!("nothing has moved for {STALL:?} after {messages} messages").into());
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn have_done(&self, goal: u64) -> bool {
        self.sending.iter().all(|each| each.has_done(goal)) && self.receiving.iter().all(|each| each.has_done(goal))
    }

    fn done(&self) -> Done {
        let each = self.sending.iter().map(|each| each.done).chain(self.receiving.iter().map(|each| each.done));
        each.fold(Done::default(), |sum, each| Done {
            messages: sum.messages + each.messages,
            bytes: sum.bytes + each.bytes,
            grouped: sum.grouped + each.grouped,
            flushes: sum.flushes + each.flushes,
        })
    }

    fn close(self, net: &Net) -> Result<(), Box<dyn Error>> {
        for each in self.sending {
            each.close(net)?;
        }
        for each in self.receiving {
            each.close(net)?;
        }
        Ok(())
    }
}

/// What an end has while it connects.
enum Half {
    Connecting(Address),
    Connected(Sender),
    Listening(Listener),
    Accepted(Listener, Receiver),
}

/// Connects all at once, since NCCL's steps at the two ends depend on each other.
fn connect(net: &Net, side: &mut Side, place: Place, run: &Run) -> Result<(Ends, Vec<Listener>), Box<dyn Error>> {
    let mut own = Vec::new();
    let mut listeners = Vec::new();
    for _ in (0..run.connections).filter(|connection| !place.sends_on(*connection)) {
        let (listener, address) = net.listen()?;
        own.push(address.to_vec());
        listeners.push(listener);
    }
    side.say(&own)?;
    let theirs: Vec<Vec<u8>> = side.hear()?;
    let (mut listeners, mut theirs) = (listeners.into_iter(), theirs.into_iter());
    let mut halves = Vec::new();
    for connection in 0..run.connections {
        halves.push(if place.sends_on(connection) {
            Half::Connecting(Address::new(&theirs.next().ok_or("too few addresses")?))
        } else {
            Half::Listening(listeners.next().ok_or("too few listeners")?)
        });
    }
    let begun = Instant::now();
    while halves.iter().any(|half| matches!(half, Half::Connecting(_) | Half::Listening(_))) {
        halves = halves.into_iter().map(|half| half.step(net)).collect::<Result<_, _>>()?;
        if begun.elapsed() > STALL {
            return Err("the connections were not made".into());
        }
    }
    Ok(assemble(net, halves, run)?)
}

impl Half {
    fn step(self, net: &Net) -> Result<Half, net::NetError> {
        Ok(match self {
            Half::Connecting(mut address) => match net.connect(&mut address)? {
                Some(sender) => Half::Connected(sender),
                None => Half::Connecting(address),
            },
            Half::Listening(listener) => match net.accept(&listener)? {
                Some(receiver) => Half::Accepted(listener, receiver),
                None => Half::Listening(listener),
            },
            done @ (Half::Connected(_) | Half::Accepted(..)) => done,
        })
    }
}

fn assemble(net: &Net, halves: Vec<Half>, run: &Run) -> Result<(Ends, Vec<Listener>), Broken> {
    let mut ends = Ends { sending: Vec::new(), receiving: Vec::new() };
    let mut listeners = Vec::new();
    for (connection, half) in halves.into_iter().enumerate() {
        let plan = Plan::new(run.seed, connection, run.group);
        match half {
            Half::Connected(sender) => ends.sending.push(Sending::new(net, sender, plan)?),
            Half::Accepted(listener, receiver) => {
                ends.receiving.push(Receiving::new(net, receiver, plan)?);
                listeners.push(listener);
            }
            Half::Connecting(_) => {}
            Half::Listening(listener) => listeners.push(listener),
        }
    }
    Ok((ends, listeners))
}

/// Prints a line at once. Whoever reads may be gone: that is no reason to stop.
fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
