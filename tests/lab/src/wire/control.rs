//! Orders to the wire and its answers: JSON lines over a unix socket, one answer for each order, in order.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::log::{self, Record};
use super::rule::{Hits, Rule, RuleId};
use super::stats::Counts;
use super::trap::{Trap, TrapId};
use crate::place::{Host, Link};
use crate::trouble::{Concerning, Result, Trouble};

/// First line that the wire prints: where the QEMUs are to connect on loopback.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Port of each end of each link.
    pub ports: Vec<(Link, Host, u16)>,
}

/// What a scenario asks of the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Installs a rule.
    Add(Rule),
    /// Takes a rule away; what it holds is dropped.
    Remove(RuleId),
    /// Lets go what a rule has held so far; the rule stays.
    Release(RuleId),
    /// Takes all rules away and drops all they hold.
    Clear,
    /// What a rule has done.
    Hits(RuleId),
    /// Sets a trap for the control connections of two processes.
    Trap(Trap),
    /// Takes a trap away.
    Mend(TrapId),
    /// Whether a trap has sprung.
    Sprung(TrapId),
    /// What the links carried.
    Counts,
    /// Makes the log readable.
    Sync,
}

/// What the wire answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The rule holds from `at_ns` (host-monotonic) on.
    Added {
        /// Its name.
        id: RuleId,
        /// Since when.
        at_ns: u64,
    },
    /// Done at that time.
    Done {
        /// When.
        at_ns: u64,
    },
    /// To [`Order::Hits`].
    Hits(Hits),
    /// To [`Order::Trap`].
    Trapped(TrapId),
    /// To [`Order::Sprung`]: when, host-monotonic.
    Sprung(Option<u64>),
    /// To [`Order::Counts`].
    Counts(Counts),
    /// To [`Order::Sync`]: records in the log.
    Records(u64),
    /// It could not be done.
    Refused(String),
}

/// The wire's end of one control connection.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    received: Vec<u8>,
    open: bool,
}

impl Conversation {
    /// Takes a connection; none if it is already gone.
    pub fn new(stream: UnixStream) -> Option<Conversation> {
        stream.set_nonblocking(true).ok()?;
        Some(Conversation { stream, received: Vec::new(), open: true })
    }

    /// False once the other side has hung up.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// For poll.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// All whole orders that have arrived.
    pub fn receive(&mut self) -> Vec<std::result::Result<Order, String>> {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.open = false,
                Ok(count) => {
                    self.received.extend(bytes.iter().take(count));
                    continue;
                }
                Err(error) => self.open = error.kind() == ErrorKind::WouldBlock,
            }
            break;
        }
        let Some(end) = self.received.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let whole: Vec<u8> = self.received.drain(..=end).collect();
        let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(|error| error.to_string())).collect()
    }

    /// Answers; answers are short, so the socket's buffer takes them.
    pub fn send(&mut self, answer: &Answer) {
        let mut line = serde_json::to_vec(answer).unwrap_or_default();
        line.push(b'\n');
        self.open &= self.stream.write_all(&line).is_ok();
    }
}

/// A scenario's end.
#[derive(Debug)]
pub struct Control {
    socket: Mutex<BufReader<UnixStream>>,
    log: PathBuf,
}

impl Control {
    /// Connects to a wire that is ready.
    ///
    /// # Errors
    /// There is none at `socket`.
    pub fn connect(socket: &Path, log: &Path) -> Result<Control> {
        let stream = UnixStream::connect(socket).concerning(socket.display())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Control { socket: Mutex::new(BufReader::new(stream)), log: log.to_path_buf() })
    }

    /// Installs `rule`; returns its name and the time from which on it holds.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn add(&self, rule: Rule) -> Result<(RuleId, u64)> {
        let answer = self.ask(&Order::Add(rule))?;
        let Answer::Added { id, at_ns } = answer else {
            return Err(unexpected(&answer));
        };
        Ok((id, at_ns))
    }

    /// Takes a rule away and drops what it holds.
    ///
    /// # Errors
    /// There is no such rule, or the wire is gone.
    pub fn remove(&self, id: RuleId) -> Result<u64> {
        self.done(&Order::Remove(id))
    }

    /// Lets go what a rule holds.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn release(&self, id: RuleId) -> Result<u64> {
        self.done(&Order::Release(id))
    }

    /// Takes all rules away.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn clear(&self) -> Result<u64> {
        self.done(&Order::Clear)
    }

    /// What a rule has done so far.
    ///
    /// # Errors
    /// There is no such rule, or the wire is gone.
    pub fn hits(&self, id: RuleId) -> Result<Hits> {
        let answer = self.ask(&Order::Hits(id))?;
        let Answer::Hits(hits) = answer else {
            return Err(unexpected(&answer));
        };
        Ok(hits)
    }

    /// Sets a trap.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn trap(&self, trap: Trap) -> Result<TrapId> {
        let answer = self.ask(&Order::Trap(trap))?;
        let Answer::Trapped(id) = answer else {
            return Err(unexpected(&answer));
        };
        Ok(id)
    }

    /// Takes a trap away; what it caught stays lost, as in a network.
    ///
    /// # Errors
    /// There is no such trap, or the wire is gone.
    pub fn mend(&self, id: TrapId) -> Result<u64> {
        self.done(&Order::Mend(id))
    }

    /// When the trap sprang, if it has.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn sprung(&self, id: TrapId) -> Result<Option<u64>> {
        let answer = self.ask(&Order::Sprung(id))?;
        let Answer::Sprung(at_ns) = answer else {
            return Err(unexpected(&answer));
        };
        Ok(at_ns)
    }

    /// What the links carried since the boot.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn counts(&self) -> Result<Counts> {
        let answer = self.ask(&Order::Counts)?;
        let Answer::Counts(counts) = answer else {
            return Err(unexpected(&answer));
        };
        Ok(counts)
    }

    /// Number of records in the log by now.
    ///
    /// # Errors
    /// The wire is gone.
    pub fn position(&self) -> Result<u64> {
        let answer = self.ask(&Order::Sync)?;
        let Answer::Records(records) = answer else {
            return Err(unexpected(&answer));
        };
        Ok(records)
    }

    /// The log from `position` until now.
    ///
    /// # Errors
    /// The wire is gone, or its log cannot be read.
    pub fn records_since(&self, position: u64) -> Result<Vec<Record>> {
        let end = self.position()?;
        log::read(&self.log, position, end).concerning("wire log")
    }

    fn done(&self, order: &Order) -> Result<u64> {
        let answer = self.ask(order)?;
        let Answer::Done { at_ns } = answer else {
            return Err(unexpected(&answer));
        };
        Ok(at_ns)
    }

    fn ask(&self, order: &Order) -> Result<Answer> {
        let mut line = serde_json::to_vec(order).concerning("wire order")?;
        line.push(b'\n');
        let mut socket = self.socket.lock().map_err(|_| Trouble::setup("wire control: poisoned"))?;
        socket.get_mut().write_all(&line).concerning("wire control")?;
        let mut reply = String::new();
        socket.read_line(&mut reply).concerning("wire control")?;
        serde_json::from_str(&reply).concerning(format!("wire control: {reply:?}"))
    }
}

fn unexpected(answer: &Answer) -> Trouble {
    Trouble::setup(format!("wire: {answer:?}"))
}

/// What the `wire` subcommand does: open, say where, run.
///
/// # Errors
/// See [`super::switchboard::Switchboard`].
pub fn serve(control: &Path, log: &Path, mut say: impl Write) -> io::Result<()> {
    let mut switchboard = super::switchboard::Switchboard::open(control, log)?;
    serde_json::to_writer(&mut say, &switchboard.ready()?)?;
    say.write_all(b"\n")?;
    say.flush()?;
    switchboard.run()
}
