//! The other processes, and every connection to each of them.
//!
//! A process is known by its random id. It is reached over every network that its host has (management and rails), each frame goes
//! out on all of them, and it is gone only when it said so or when the port on which it listened refuses: silence is not death.
//! The lower process id dials the further networks, so that two ends never dial each other for ever.
//!
//! A process is first met on a connection whose remote address follows from a queue pair's GID; there the two draw a token, and
//! every later connection has to show it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use shift_proto::frame::{Frame, Hello, WIRE_VERSION};
use shift_proto::id::{Micros, ProcessId};

use crate::address::{canonical, MAX_ADDRESSES};
use crate::discovery::describe;
use crate::links::{Ending, LinkId, Links};

/// Processes of one job that one process may meet; a queue pair to one more stays unprotected.
const MAX_PROCESSES: usize = 4096;
/// Connections to one process: one per network, and as many while they are being replaced.
const MAX_LINES: usize = 2 * MAX_ADDRESSES;
/// How often an address without a connection is dialed.
const REDIAL_US: u64 = 1_000_000;
/// The same where it is to be seen whether the process lives.
const REVERIFY_US: u64 = 10_000;
/// How long an attempt may take.
const DIAL_LIMIT_US: u64 = 2_000_000;
/// An address at which another process was found.
const WRONG_ADDRESS_US: u64 = 60_000_000;
/// A process whose port refuses has this long to say on another network that it lives.
const SUSPICION_US: u64 = 300_000;
/// Pings within one heartbeat deadline: one may be lost, one may be late.
const PINGS_PER_HEARTBEAT: u64 = 4;

type Token = [u8; 16];
const NO_TOKEN: Token = [0; 16];

/// What became known of other processes.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most events are frames; they live for one round of the loop")]
pub enum PeerEvent {
    /// Its connection stands; what it has to know of this process goes there now.
    Joined(ProcessId, LinkId),
    /// A connection that was dialed to find the owner of queue pairs led to this process.
    Located(SocketAddr, ProcessId),
    /// Nobody who speaks the protocol was met at an address.
    NotLocated(SocketAddr, String),
    /// It said something.
    Frame(ProcessId, Frame),
    /// It ended.
    Gone(ProcessId),
    /// Nothing is heard of it on any network: its host may have stopped.
    Silent(ProcessId),
}

struct Line {
    link: LinkId,
    dialed: bool,
    remote: Option<IpAddr>,
}

struct Reach {
    address: SocketAddr,
    due: Micros,
    dialing: bool,
    /// A connection to it ended, in whatever way: if nobody listens there any more, the process has ended too.
    verify: bool,
}

struct Process {
    /// Drawn here, and drawn there; either is shown by a later connection.
    tokens: (Option<Token>, Option<Token>),
    lines: Vec<Line>,
    reaches: Vec<Reach>,
    suspected: Option<Micros>,
    pinged: Micros,
    wanted: bool,
}

struct Dial {
    address: SocketAddr,
    expects: Option<ProcessId>,
    since: Micros,
    standing: bool,
}

/// All processes that this one met.
pub struct Peers {
    me: ProcessId,
    own_addresses: Vec<SocketAddr>,
    heartbeat: Micros,
    draw_token: fn() -> Token,
    processes: BTreeMap<ProcessId, Process>,
    dials: BTreeMap<LinkId, Dial>,
    lines: BTreeMap<LinkId, ProcessId>,
    located: BTreeMap<SocketAddr, ProcessId>,
    events: Vec<PeerEvent>,
}

impl Peers {
    /// Nobody is known. `own_addresses`: where this process listens.
    pub fn new(me: ProcessId, own_addresses: Vec<SocketAddr>, heartbeat: Micros, draw_token: fn() -> Token) -> Self {
        Self {
            me,
            own_addresses,
            heartbeat,
            draw_token,
            processes: BTreeMap::new(),
            dials: BTreeMap::new(),
            lines: BTreeMap::new(),
            located: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// What became known since the last call.
    pub fn take_events(&mut self) -> Vec<PeerEvent> {
        std::mem::take(&mut self.events)
    }

    /// Sends to the process on all its connections.
    pub fn send(&self, links: &mut Links, to: ProcessId, frame: &Frame) {
        for line in self.processes.get(&to).into_iter().flat_map(|p| &p.lines) {
            links.send(line.link, frame);
        }
    }

    /// Sends to every process.
    pub fn broadcast(&self, links: &mut Links, frame: &Frame) {
        for link in self.lines.keys() {
            links.send(*link, frame);
        }
    }

    /// The processes that are connected.
    pub fn connected(&self) -> BTreeSet<ProcessId> {
        self.lines.values().copied().collect()
    }

    /// Whether a connection of the process comes from, or leads to, that address.
    pub fn is_met_at(&self, process: ProcessId, address: IpAddr) -> bool {
        self.processes.get(&process).is_some_and(|p| p.lines.iter().any(|l| l.remote == Some(address)))
    }

    /// Whether anything came from the process after `at`, over whatever network. This process hears itself.
    pub fn is_heard_since(&self, links: &Links, process: ProcessId, at: Micros) -> bool {
        let lines = self.processes.get(&process).into_iter().flat_map(|p| &p.lines);
        process == self.me || lines.filter_map(|l| links.heard(l.link)).any(|heard| heard > at)
    }

    /// The process, if it is the one that a connection belongs to.
    pub fn process_of(&self, link: LinkId) -> Option<ProcessId> {
        self.lines.get(&link).copied()
    }

    /// A queue pair needs the process: from now on lost connections are replaced.
    pub fn set_wanted(&mut self, process: ProcessId) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.wanted = true;
        }
    }

    /// Only these processes are needed; one that is neither needed nor connected is forgotten.
    pub fn keep_wanted(&mut self, links: &mut Links, wanted: &BTreeSet<ProcessId>) {
        let mut idle = Vec::new();
        for (id, process) in &mut self.processes {
            process.wanted = wanted.contains(id);
            if !process.wanted && process.lines.is_empty() {
                idle.push(*id);
            }
        }
        for id in idle {
            self.set_gone(links, id);
        }
    }

    /// Finds out which process listens at `address`.
    pub fn locate(&mut self, links: &mut Links, address: SocketAddr, source: Option<IpAddr>, now: Micros) {
        if let Some(process) = self.located.get(&address) {
            if self.processes.get(process).is_some_and(|p| !p.lines.is_empty()) {
                self.events.push(PeerEvent::Located(address, *process));
                return;
            }
        }
        if !self.dials.values().any(|d| d.address == address) {
            self.dial(links, address, source, None, now);
        }
    }

    /// A dialed connection stands.
    pub fn handle_connected(&mut self, links: &mut Links, link: LinkId) {
        let Some(dial) = self.dials.get_mut(&link) else {
            return;
        };
        dial.standing = true;
        if let Some(expected) = dial.expects.filter(|id| *id < self.me) {
            if self.processes.get(&expected).is_some_and(|p| !p.lines.is_empty()) {
                return self.note_alive(links, link, expected);
            }
        }
        let token = dial.expects.and_then(|p| self.processes.get(&p)).and_then(Process::token).unwrap_or(NO_TOKEN);
        links.send(link, &Frame::Hello(self.hello(token)));
    }

    /// It was to be seen whether a process still listens, and it does. It is connected, and to dial is up to it, who has the lower id:
    /// each end would close the other's connection for ever.
    fn note_alive(&mut self, links: &mut Links, link: LinkId, id: ProcessId) {
        links.close(link);
        let address = self.dials.remove(&link).map(|d| d.address);
        let reaches = self.processes.get_mut(&id).map(|p| &mut p.reaches);
        for reach in reaches.into_iter().flatten().filter(|r| Some(r.address) == address) {
            (reach.dialing, reach.verify) = (false, false);
        }
    }

    /// A frame of a connection that is not the directory's.
    pub fn handle_frame(&mut self, links: &mut Links, link: LinkId, frame: Frame, now: Micros) {
        if let Frame::Hello(hello) = frame {
            if !self.handle_hello(links, link, &hello, now) {
                links.close(link);
                self.handle_closed(links, link, Ending::Malformed, now);
            }
            return;
        }
        let Some(process) = self.process_of(link) else {
            return;
        };
        if let Some(known) = self.processes.get_mut(&process) {
            known.suspected = None;
        }
        if let Frame::Ping { stamp } = frame {
            links.send(link, &Frame::Pong { stamp });
        } else if frame == Frame::Goodbye {
            self.set_gone(links, process);
        } else {
            self.events.push(PeerEvent::Frame(process, frame));
        }
    }

    /// A connection ended.
    pub fn handle_closed(&mut self, links: &mut Links, link: LinkId, ending: Ending, now: Micros) {
        if let Some(dial) = self.dials.remove(&link) {
            self.handle_dial_failed(links, &dial, ending, now);
            return;
        }
        let Some(id) = self.lines.remove(&link) else {
            return;
        };
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let line = process.lines.iter().position(|l| l.link == link).map(|at| process.lines.swap_remove(at));
        let Some(ip) = line.and_then(|l| l.remote) else {
            return;
        };
        for reach in process.reaches.iter_mut().filter(|r| r.address.ip() == ip) {
            reach.verify = true;
            // At once, but never in a storm: what ends as soon as it stands is tried at the pace of any other.
            let at_once = ending == Ending::Ended && now >= reach.due;
            reach.due = if at_once { now } else { now + Micros(REDIAL_US) };
        }
        if process.lines.is_empty() && !process.wanted {
            // Nothing here needs it: a passing stranger leaves no trace.
            self.set_gone(links, id);
        } else {
            self.tick(links, now);
        }
    }

    /// Dials, pings and gives up what is due.
    pub fn tick(&mut self, links: &mut Links, now: Micros) {
        self.expire_dials(links, now);
        let ids: Vec<ProcessId> = self.processes.keys().copied().collect();
        for id in ids {
            self.redial(links, id, now);
            self.beat(links, id, now);
            let suspected = self.processes.get(&id).and_then(|p| p.suspected);
            if suspected.is_some_and(|since| now.since(since).0 > SUSPICION_US) {
                self.set_gone(links, id);
            }
        }
    }

    /// When [`Peers::tick`] is due.
    pub fn deadline(&self) -> Option<Micros> {
        let live = || self.processes.values();
        let dials = self.dials.values().map(|d| d.since + Micros(DIAL_LIMIT_US));
        let beats = live().filter(|p| p.wanted && !p.lines.is_empty()).map(|p| p.pinged + self.ping_interval());
        let redials = live().filter(|p| p.wanted).flat_map(Process::missing).filter(|r| !r.dialing).map(|r| r.due);
        let suspicions = live().filter_map(|p| p.suspected).map(|since| since + Micros(SUSPICION_US + 1));
        dials.chain(beats).chain(redials).chain(suspicions).min()
    }

    /// The clock jumped: it was this process that slept, nobody else was silent.
    pub fn forgive_silence(&mut self, now: Micros) {
        for process in self.processes.values_mut() {
            process.pinged = now;
            process.suspected = process.suspected.map(|_| now);
        }
    }

    /// Says goodbye to everybody.
    pub fn goodbye(&self, links: &mut Links) {
        self.broadcast(links, &Frame::Goodbye);
    }

    fn hello(&self, token: Token) -> Hello {
        Hello {
            wire_min: WIRE_VERSION,
            wire_max: WIRE_VERSION,
            process: self.me,
            token,
            addresses: self.own_addresses.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// `false`: not one of ours, to be closed.
    fn handle_hello(&mut self, links: &mut Links, link: LinkId, hello: &Hello, now: Micros) -> bool {
        if self.lines.contains_key(&link) {
            return true;
        }
        let dial = self.dials.get(&link).map(|d| (d.address, d.expects));
        if hello.process == self.me {
            return false;
        }
        if hello.wire_min > WIRE_VERSION || hello.wire_max < WIRE_VERSION {
            log::warn!(
                "a shim {} speaks wire version {} to {}, this one speaks {WIRE_VERSION}: its connections are unprotected",
                hello.version, hello.wire_min, hello.wire_max
            );
            return false;
        }
        let Some(token) = self.admit(hello, dial.is_some(), now) else {
            return false;
        };
        if dial.is_none() {
            links.send(link, &Frame::Hello(self.hello(token)));
        }
        links.set_greeted(link);
        self.dials.remove(&link);
        self.join(links, link, hello, dial.map(|d| d.0), now);
        if let Some((_, Some(expected))) = dial.filter(|(_, e)| e.is_some_and(|e| e != hello.process)) {
            self.handle_wrong_process(links, expected, dial.map(|d| d.0), now);
        }
        true
    }

    /// Checks the token; the one to answer with. `None`: an impostor, or one too many.
    fn admit(&mut self, hello: &Hello, dialed: bool, now: Micros) -> Option<Token> {
        let shown = (hello.token != NO_TOKEN).then_some(hello.token);
        if let Some(known) = self.processes.get_mut(&hello.process) {
            if known.lines.len() >= MAX_LINES {
                return None;
            }
            return match shown {
                Some(token) if known.tokens.0 == Some(token) || known.tokens.1 == Some(token) => Some(token),
                Some(token) if dialed && known.tokens.1.is_none() => {
                    known.tokens.1 = Some(token);
                    Some(token)
                }
                Some(_) | None => None,
            };
        }
        // Who is met for the first time has no token yet, or one from a time that is forgotten here; who was dialed has drawn one.
        if (dialed && shown.is_none()) || self.processes.len() >= MAX_PROCESSES {
            return None;
        }
        let drawn = if shown.is_some() { None } else { Some((self.draw_token)()) };
        let reaches = hello.addresses.iter().take(MAX_ADDRESSES).map(|a| Reach::new(*a, now)).collect();
        let process =
            Process { tokens: (drawn, shown), lines: Vec::new(), reaches, suspected: None, pinged: now, wanted: false };
        self.processes.insert(hello.process, process);
        drawn.or(shown)
    }

    fn join(&mut self, links: &mut Links, link: LinkId, hello: &Hello, dialed: Option<SocketAddr>, now: Micros) {
        let remote = dialed.or_else(|| links.remote(link)).map(|a| canonical(a.ip()));
        let Some(process) = self.processes.get_mut(&hello.process) else {
            return;
        };
        process.suspected = None;
        process.lines.push(Line { link, dialed: dialed.is_some(), remote });
        if let Some(address) = dialed {
            self.located.insert(address, hello.process);
            if !process.reaches.iter().any(|r| r.address == address) {
                process.reaches.push(Reach::new(address, now));
            }
            for reach in process.reaches.iter_mut().filter(|r| r.address == address) {
                (reach.dialing, reach.verify) = (false, false);
            }
        }
        // One connection per network is enough; the lower id decides which, so that not each end closes another one.
        let spare = if self.me < hello.process { process.spare_line() } else { None };
        self.lines.insert(link, hello.process);
        if let Some(address) = dialed {
            self.events.push(PeerEvent::Located(address, hello.process));
        }
        self.events.push(PeerEvent::Joined(hello.process, link));
        if let Some(spare) = spare {
            self.lines.remove(&spare);
            links.close(spare);
        }
    }

    fn handle_wrong_process(&mut self, links: &mut Links, expected: ProcessId, at: Option<SocketAddr>, now: Micros) {
        let Some(process) = self.processes.get_mut(&expected) else {
            return;
        };
        for reach in process.reaches.iter_mut().filter(|r| Some(r.address) == at) {
            let listened_before = std::mem::take(&mut reach.verify);
            reach.dialing = false;
            reach.due = now + Micros(WRONG_ADDRESS_US);
            if listened_before {
                process.suspected = process.suspected.or(Some(now));
            }
        }
        self.settle_suspicion(links, expected);
    }

    fn handle_dial_failed(&mut self, links: &mut Links, dial: &Dial, ending: Ending, now: Micros) {
        let Some(expected) = dial.expects else {
            let reason = format!("{} at {}", describe(ending), dial.address);
            self.events.push(PeerEvent::NotLocated(dial.address, reason));
            return;
        };
        let Some(process) = self.processes.get_mut(&expected) else {
            return;
        };
        for reach in process.reaches.iter_mut().filter(|r| r.address == dial.address) {
            reach.dialing = false;
            // A process that is just ending may still have taken the connection: it refuses the next one.
            reach.due = now + Micros(if reach.verify && ending == Ending::Ended { REVERIFY_US } else { REDIAL_US });
            if ending == Ending::Refused && std::mem::take(&mut reach.verify) {
                process.suspected = process.suspected.or(Some(now));
            }
        }
        self.settle_suspicion(links, expected);
    }

    /// Without any connection a refusing port is proof; with one, the process may still speak up there.
    fn settle_suspicion(&mut self, links: &mut Links, id: ProcessId) {
        let Some(process) = self.processes.get(&id).filter(|p| p.suspected.is_some()) else {
            return;
        };
        if process.lines.is_empty() {
            self.set_gone(links, id);
        } else {
            self.send(links, id, &Frame::Ping { stamp: 0 });
        }
    }

    fn set_gone(&mut self, links: &mut Links, id: ProcessId) {
        let Some(process) = self.processes.remove(&id) else {
            return;
        };
        for line in process.lines {
            self.lines.remove(&line.link);
            links.close(line.link);
        }
        self.located.retain(|_, process| *process != id);
        self.events.push(PeerEvent::Gone(id));
    }

    fn redial(&mut self, links: &mut Links, id: ProcessId, now: Micros) {
        let Some(process) = self.processes.get_mut(&id).filter(|p| p.wanted) else {
            return;
        };
        let leads = self.me < id || process.lines.is_empty();
        let connected: Vec<IpAddr> = process.lines.iter().filter_map(|l| l.remote).collect();
        let mut due = Vec::new();
        for reach in &mut process.reaches {
            let missing = !reach.dialing && now >= reach.due && !connected.contains(&reach.address.ip());
            if missing && (leads || reach.verify) {
                (reach.dialing, reach.due) = (true, now + Micros(REDIAL_US));
                due.push(reach.address);
            } else if missing {
                reach.due = now + Micros(REDIAL_US);
            }
        }
        for address in due {
            self.dial(links, address, None, Some(id), now);
        }
    }

    fn dial(
        &mut self,
        links: &mut Links,
        address: SocketAddr,
        source: Option<IpAddr>,
        expects: Option<ProcessId>,
        now: Micros,
    ) {
        let dial = Dial { address, expects, since: now, standing: false };
        match links.dial(address, source) {
            Ok(link) => drop(self.dials.insert(link, dial)),
            Err(_) => self.handle_dial_failed(links, &dial, Ending::Unreachable, now),
        }
    }

    fn expire_dials(&mut self, links: &mut Links, now: Micros) {
        let late = |d: &Dial| now.since(d.since).0 >= DIAL_LIMIT_US;
        let expired: Vec<LinkId> = self.dials.iter().filter(|(_, d)| late(d)).map(|(link, _)| *link).collect();
        for link in expired {
            links.close(link);
            self.handle_closed(links, link, Ending::Slow, now);
        }
    }

    fn beat(&mut self, links: &mut Links, id: ProcessId, now: Micros) {
        let interval = self.ping_interval();
        let Some(process) = self.processes.get_mut(&id).filter(|p| p.wanted && now.since(p.pinged) >= interval) else {
            return;
        };
        process.pinged = now;
        let heartbeat = self.heartbeat;
        let silent = |l: &&Line| links.heard(l.link).is_none_or(|heard| now.since(heard) > heartbeat);
        let dead: Vec<LinkId> = process.lines.iter().filter(silent).map(|l| l.link).collect();
        let silenced = !dead.is_empty() && dead.len() == process.lines.len();
        for link in dead {
            links.close(link);
            self.handle_closed(links, link, Ending::Slow, now);
        }
        if silenced {
            self.events.push(PeerEvent::Silent(id));
        }
        self.send(links, id, &Frame::Ping { stamp: now.0 });
    }

    fn ping_interval(&self) -> Micros {
        Micros(self.heartbeat.0 / PINGS_PER_HEARTBEAT)
    }
}

impl Process {
    fn token(&self) -> Option<Token> {
        self.tokens.0.or(self.tokens.1)
    }

    /// An accepted connection on a network for which there is a dialed one.
    fn spare_line(&mut self) -> Option<LinkId> {
        let spare = self.lines.iter().position(|accepted| {
            !accepted.dialed && self.lines.iter().any(|other| other.dialed && other.remote == accepted.remote)
        })?;
        Some(self.lines.swap_remove(spare).link)
    }

    fn missing(&self) -> impl Iterator<Item = &Reach> {
        self.reaches.iter().filter(|r| !self.lines.iter().any(|l| l.remote == Some(r.address.ip())))
    }
}

impl Reach {
    fn new(address: SocketAddr, now: Micros) -> Self {
        Self { address, due: now, dialing: false, verify: false }
    }
}
