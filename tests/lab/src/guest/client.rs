//! The runner's end of the agent's port.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::program::{Ended, Line, Program, Running};
use super::talk::{Ask, Fact, Question, Say, Stream};
use crate::clock::{monotonic_ns, until};
use crate::place::Host;
use crate::trouble::{Concerning, Result, Trouble};

/// Lines kept of one program; the oldest go first.
const LINES_KEPT: usize = 50_000;
/// Lines of each program in a transcript.
const TRANSCRIPT_LINES: usize = 200;
/// An agent that does not answer within this has no time for anything: the guest is lost. Long, since a guest under emulation on a
/// loaded machine may stand still for seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Questions to estimate the offset of the guest's clock with; the quickest answer counts.
const CLOCK_ROUNDS: usize = 8;

/// One guest that can be spoken to.
#[derive(Debug)]
pub struct Guest {
    channel: Arc<Channel>,
}

impl Guest {
    /// Connects to the agent and waits until it answers.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn connect(host: Host, socket: &Path, limit: Duration) -> Result<Guest> {
        let stream = until("the agent's port", Duration::from_secs(10), || Ok(UnixStream::connect(socket).ok()))?;
        let reader = stream.try_clone()?;
        let channel = Arc::new(Channel {
            host,
            port: Mutex::new(stream),
            known: Mutex::new(Known::default()),
            changed: Condvar::new(),
        });
        let listener = Arc::clone(&channel);
        thread::Builder::new().name(format!("agent-{}", host.name())).spawn(move || listener.listen(reader))?;
        channel.ask_within(Ask::Clock, limit)?;
        channel.measure_clock()?;
        Ok(Guest { channel })
    }

    /// Which host this is.
    pub fn host(&self) -> Host {
        self.channel.host
    }

    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started, or the guest is lost.
    pub fn spawn(&self, program: &Program) -> Result<Running> {
        let run = self.channel.lock().next_run(program.name());
        let fact = self.channel.ask(Ask::Start { run, program: program.clone() });
        let fact = fact.inspect_err(|_| self.channel.lock().forget(run))?;
        let Fact::Started(pid) = fact else {
            return Err(Trouble::setup(format!("agent: {fact:?}")));
        };
        Ok(Running { channel: Arc::clone(&self.channel), run, pid, name: program.name() })
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It does not end within `limit`, or the guest is lost.
    pub fn run(&self, program: &Program, limit: Duration) -> Result<Ended> {
        self.spawn(program)?.wait(limit)
    }

    /// Runs a line in the guest's shell and returns what it printed.
    ///
    /// # Errors
    /// It fails, or takes more than 30 s.
    pub fn shell(&self, line: &str) -> Result<String> {
        let ended = self.run(&Program::shell(line), Duration::from_secs(30))?;
        if ended.succeeded() {
            Ok(ended.out)
        } else {
            Err(Trouble::setup(format!("`{line}` on {}: {}", self.host().name(), ended.brief())))
        }
    }

    /// Reads a text file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str) -> Result<String> {
        let fact = self.channel.ask(Ask::Read { path: path.into() })?;
        let Fact::Text(text) = fact else {
            return Err(Trouble::setup(format!("agent: {fact:?}")));
        };
        Ok(text)
    }

    /// Writes a text file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        self.channel.ask(Ask::Write { path: path.into(), text: text.into(), mode }).map(drop)
    }

    /// Kills everything that is still running there.
    ///
    /// # Errors
    /// The guest is lost.
    pub fn kill_all(&self) -> Result<()> {
        self.channel.ask(Ask::KillAll).map(drop)
    }

    /// Waits until everything that was started has ended.
    ///
    /// # Errors
    /// Something is still there after `limit`, or the guest is lost.
    pub fn wait_quiet(&self, limit: Duration) -> Result<()> {
        let quiet = self.channel.wait_for(limit, || self.channel.lock().running.is_empty().then_some(()))?;
        quiet.ok_or_else(|| {
            Trouble::deadline(format!("an end of everything that runs on {}", self.host().name()), limit)
        })
    }

    /// What every program since the last [`Guest::forget_ended`] has said last, for a person who looks into a failure.
    pub fn transcript(&self) -> Vec<String> {
        let known = self.channel.lock();
        let mut transcript = Vec::new();
        for (run, name) in &known.names {
            let end = known.ends.get(run).map_or("still running".to_owned(), Ended::brief);
            transcript.push(format!("{}$ {name}   [{}]", self.host().name(), end.trim_end_matches([' ', ':'])));
            let lines = known.lines.get(run).map_or(&[][..], Vec::as_slice);
            let last = lines.get(lines.len().saturating_sub(TRANSCRIPT_LINES)..).unwrap_or(&[]);
            transcript.extend(last.iter().map(|line| format!("  {}", line.text)));
        }
        transcript
    }

    /// Forgets the programs that have ended; handles to them know nothing any more.
    pub fn forget_ended(&self) {
        let mut known = self.channel.lock();
        let ended: Vec<u64> = known.ends.drain().map(|(run, _)| run).collect();
        for run in ended {
            known.lines.remove(&run);
            known.names.remove(&run);
        }
    }

    /// Host-monotonic time of the guest's CLOCK_MONOTONIC `at_ns`, to about half a round trip.
    pub fn host_time(&self, at_ns: u64) -> u64 {
        self.channel.lock().host_time(at_ns)
    }

    /// Host-monotonic time of the guest's CLOCK_REALTIME `at_ns`.
    pub fn host_time_of_real(&self, at_ns: u64) -> u64 {
        let known = self.channel.lock();
        at_ns.wrapping_add_signed(known.real_offset_ns)
    }
}

/// What is shared between a guest's handle, its programs' handles, and the listening thread.
#[derive(Debug)]
pub struct Channel {
    host: Host,
    port: Mutex<UnixStream>,
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    last_id: u64,
    answers: HashMap<u64, std::result::Result<Fact, String>>,
    names: BTreeMap<u64, String>,
    lines: HashMap<u64, Vec<Line>>,
    ends: HashMap<u64, Ended>,
    running: HashSet<u64>,
    offset_ns: i64,
    real_offset_ns: i64,
    hung_up: bool,
}

impl Known {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn next_run(&mut self, name: String) -> u64 {
        let run = self.next_id();
        self.running.insert(run);
        self.names.insert(run, name);
        run
    }

    fn forget(&mut self, run: u64) {
        self.running.remove(&run);
        self.names.remove(&run);
    }

    fn host_time(&self, at_ns: u64) -> u64 {
        at_ns.wrapping_add_signed(self.offset_ns)
    }
}

impl Channel {
    pub(super) fn host(&self) -> Host {
        self.host
    }

    pub(super) fn lines(&self, run: u64) -> Vec<Line> {
        self.lock().lines.get(&run).cloned().unwrap_or_default()
    }

    pub(super) fn ended(&self, run: u64) -> Option<Ended> {
        let known = self.lock();
        let mut ended = known.ends.get(&run)?.clone();
        for line in known.lines.get(&run).into_iter().flatten() {
            let text = match line.stream {
                Stream::Out => &mut ended.out,
                Stream::Err => &mut ended.err,
            };
            text.push_str(&line.text);
            text.push('\n');
        }
        Some(ended)
    }

    /// Asks `probe` whenever something came in, until it gives a value or `limit` is over.
    pub(super) fn wait_for<T>(&self, limit: Duration, probe: impl Fn() -> Option<T>) -> Result<Option<T>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(value) = probe() {
                return Ok(Some(value));
            }
            let now = Instant::now();
            if now >= end {
                return Ok(None);
            }
            let known = self.lock();
            if known.hung_up {
                return Err(self.lost("its port is closed"));
            }
            // A change between the probe and this lock is missed by the signal, hence the short step.
            let step = (end - now).min(Duration::from_millis(20));
            drop(self.changed.wait_timeout(known, step));
        }
    }

    pub(super) fn ask(&self, ask: Ask) -> Result<Fact> {
        self.ask_within(ask, ANSWER_LIMIT)
    }

    fn ask_within(&self, ask: Ask, limit: Duration) -> Result<Fact> {
        let id = self.lock().next_id();
        let mut line = serde_json::to_vec(&Question { id, ask }).concerning("agent")?;
        line.push(b'\n');
        let sent = self.port.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        sent.map_err(|error| self.lost(&error.to_string()))?;
        match self.wait_for(limit, || self.lock().answers.remove(&id))? {
            Some(answer) => answer.map_err(|why| Trouble::setup(format!("guest {}: {why}", self.host.name()))),
            None => Err(self.lost("its agent does not answer")),
        }
    }

    fn lost(&self, why: &str) -> Trouble {
        Trouble::GuestLost { host: self.host, why: why.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn measure_clock(&self) -> Result<()> {
        let mut best = u64::MAX;
        for _ in 0..CLOCK_ROUNDS {
            let before = monotonic_ns();
            let Fact::Clock { monotonic, realtime } = self.ask(Ask::Clock)? else {
                continue;
            };
            let took = monotonic_ns() - before;
            if took < best {
                best = took;
                let middle = (before + took / 2) as i64;
                let mut known = self.lock();
                known.offset_ns = middle - monotonic as i64;
                known.real_offset_ns = middle - realtime as i64;
            }
        }
        Ok(())
    }

    fn listen(&self, port: UnixStream) {
        for line in BufReader::new(port).lines() {
            let Ok(line) = line else { break };
            if let Ok(say) = serde_json::from_str(&line) {
                self.hear(say);
            }
        }
        self.lock().hung_up = true;
        self.changed.notify_all();
    }

    fn hear(&self, say: Say) {
        let mut known = self.lock();
        match say {
            Say::Answer { id, result } => drop(known.answers.insert(id, result)),
            Say::Line { run, stream, at_ns, text } => {
                let at_ns = known.host_time(at_ns);
                let lines = known.lines.entry(run).or_default();
                if lines.len() >= LINES_KEPT {
                    lines.remove(0);
                }
                lines.push(Line { at_ns, stream, text });
            }
            Say::End { run, at_ns, code, signal } => {
                let at_ns = known.host_time(at_ns);
                known.running.remove(&run);
                known.ends.insert(run, Ended { code, signal, at_ns, ..Ended::default() });
            }
        }
        drop(known);
        self.changed.notify_all();
    }
}
