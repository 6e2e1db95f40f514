//! The other processes, and every connection to each of them.
//!
//! A process is known by its random id. It is reached over every network that its host has (management and rails), each frame goes
//! out on all of them, and it is gone only when it said so or when the port on which it listened refuses: silence is not death.
//! The lower process id dials the further networks, so that two ends never dial each other for ever.
//!
//! With a job key whoever is heard at all belongs to the job. Without one, a process is met only on a connection between the
//! addresses that two queue pairs' GIDs are: dialed to the remote GID, or accepted from it with an offer for that queue pair
//! ([`Peers::admit`]). There the two exchange a token and their other addresses; later connections count only from those and
//! with that token. Until then whoever greets is a *candidate*: it may offer, and nothing else of it is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use shift_proto::frame::{Frame, Offer};
use shift_proto::id::{Micros, ProcessId};

use crate::acquaintance::{Acquaintance, Parted};
use crate::address::{canonical, Network};
use crate::arrivals::Arrivals;
use crate::discovery::describe;
use crate::greeting::Candidate;
use crate::links::{Draw, Ending, LinkId, Links};
use crate::round_trip::RoundTrip;
use crate::strangers::Refusal;

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

pub(crate) type Token = [u8; 16];
pub(crate) const NO_TOKEN: Token = [0; 16];

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
    /// A candidate offers; if it does so from the address of the queue pair's GID, it is to be admitted.
    Candidate(LinkId, Offer),
    /// It ended.
    Gone(ProcessId),
    /// Nothing is heard of it on any network: its host may have stopped.
    Silent(ProcessId),
}

pub(crate) struct Line {
    pub link: LinkId,
    pub dialed: bool,
    pub remote: Option<IpAddr>,
    /// Something came over it that is said to peers only: at the other end too it is a peer's, and no candidate's.
    pub heard: bool,
}

pub(crate) struct Reach {
    pub address: SocketAddr,
    pub due: Micros,
    pub dialing: bool,
    /// A connection to it ended, in whatever way: if nobody listens there any more, the process has ended too.
    pub verify: bool,
}

pub(crate) struct Process {
    pub acquaintance: Acquaintance,
    pub lines: Vec<Line>,
    pub reaches: Vec<Reach>,
    pub suspected: Option<Micros>,
    pub pinged: Micros,
    pub wanted: bool,
    /// Its messages that came.
    pub arrivals: Arrivals,
    /// Of a ping, over whichever of its connections.
    pub round_trip: RoundTrip,
}

pub(crate) struct Dial {
    pub address: SocketAddr,
    pub expects: Option<ProcessId>,
    /// Who is there if the directory is right; nobody else is met.
    pub listed: Option<ProcessId>,
    pub since: Micros,
    pub standing: bool,
}

/// All processes that this one met.
pub struct Peers {
    pub(crate) me: ProcessId,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) own_addresses: Vec<SocketAddr>,
    pub(crate) heartbeat: Micros,
    pub(crate) draw_token: Draw,
    pub(crate) processes: BTreeMap<ProcessId, Process>,
    pub(crate) parted: Parted,
    pub(crate) candidates: BTreeMap<LinkId, Candidate>,
    pub(crate) dials: BTreeMap<LinkId, Dial>,
    pub(crate) lines: BTreeMap<LinkId, ProcessId>,
    pub(crate) located: BTreeMap<SocketAddr, ProcessId>,
    pub(crate) events: Vec<PeerEvent>,
}

impl Peers {
    /// Nobody is known. `port`: where this process listens.
    pub fn new(me: ProcessId, network: Arc<dyn Network>, port: u16, heartbeat: Micros, draw_token: Draw) -> Self {
        let own_addresses = network.own_addresses().into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        Self {
            me,
            network,
            own_addresses,
            heartbeat,
            draw_token,
            processes: BTreeMap::new(),
            parted: Parted::default(),
            candidates: BTreeMap::new(),
            dials: BTreeMap::new(),
            lines: BTreeMap::new(),
            located: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Where this process listens.
    pub fn own_addresses(&self) -> &[SocketAddr] {
        &self.own_addresses
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

    /// Whether that message of the process is no copy of one that came before, over whatever connection.
    pub fn is_new(&mut self, process: ProcessId, number: u64) -> bool {
        self.processes.get_mut(&process).is_none_or(|known| known.arrivals.is_new(number))
    }

    /// By what a process is known, or was before it was forgotten.
    pub(crate) fn acquaintance(&self, id: ProcessId) -> Option<&Acquaintance> {
        self.processes.get(&id).map(|p| &p.acquaintance).or_else(|| self.parted.get(id))
    }

    /// Whether the process was met, and is not gone.
    pub fn knows(&self, process: ProcessId) -> bool {
        self.processes.contains_key(&process)
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
            self.part_with(links, id);
        }
    }

    /// Finds out which process listens at `address`; where the directory leads there, whether it is the one that is `listed`.
    pub fn locate(
        &mut self,
        links: &mut Links,
        address: SocketAddr,
        source: Option<IpAddr>,
        listed: Option<ProcessId>,
        now: Micros,
    ) {
        if let Some(process) = self.located.get(&address) {
            if self.processes.get(process).is_some_and(|p| !p.lines.is_empty()) {
                self.events.push(PeerEvent::Located(address, *process));
                return;
            }
        }
        if !self.dials.values().any(|d| d.address == address) {
            self.dial(links, address, source, (None, listed), now);
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
        let (address, expects) = (dial.address, dial.expects);
        let told = |p: &&Process| p.reaches.iter().any(|r| r.address == address);
        let known = match expects {
            Some(id) => self.acquaintance(id),
            None => self.processes.values().find(told).map(|p| &p.acquaintance),
        };
        let token = known.map_or(NO_TOKEN, Acquaintance::token);
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
            if let Err(refusal) = self.handle_hello(links, link, hello, now) {
                match refusal {
                    Some(refusal) => links.turn_away(link, refusal),
                    None => links.close(link),
                }
                let posed = matches!(refusal, Some(Refusal::Token | Refusal::Address));
                self.handle_closed(links, link, if posed { Ending::Posed } else { Ending::Malformed }, now);
            }
            return;
        }
        let Some(process) = self.process_of(link) else {
            return self.handle_candidate(links, link, frame);
        };
        if let Some(known) = self.processes.get_mut(&process) {
            known.suspected = None;
            let line = known.lines.iter_mut().find(|l| l.link == link && !l.heard);
            if let Some(line) = line.filter(|_| !matches!(frame, Frame::Pong { .. })) {
                line.heard = true;
                self.drop_spare(links, process);
            }
        }
        if let Frame::Ping { stamp } = frame {
            links.send(link, &Frame::Pong { stamp });
        } else if let Frame::Pong { stamp } = frame {
            self.note_pong(process, Micros(stamp), now);
        } else if frame == Frame::Goodbye {
            self.set_gone(links, process);
        } else {
            self.events.push(PeerEvent::Frame(process, frame));
        }
    }

    /// The stamp is this process's own time of the ping; a ping that asks for nothing else than an answer has none.
    fn note_pong(&mut self, id: ProcessId, stamp: Micros, now: Micros) {
        let took = now.since(stamp);
        let is_credible = stamp != Micros(0) && stamp <= now && took <= self.heartbeat;
        if let Some(process) = self.processes.get_mut(&id).filter(|_| is_credible) {
            process.round_trip.note(took);
        }
    }

    /// The mean round trip of the control connection to a process; `None`: no ping was answered yet.
    pub fn round_trip(&self, process: ProcessId) -> Option<Micros> {
        self.processes.get(&process).and_then(|p| p.round_trip.mean())
    }

    /// A connection ended.
    pub fn handle_closed(&mut self, links: &mut Links, link: LinkId, ending: Ending, now: Micros) {
        self.candidates.remove(&link);
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
            // Nothing here needs it.
            self.part_with(links, id);
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
        for link in self.lines.keys() {
            links.send(*link, &Frame::Goodbye);
        }
    }

    pub(crate) fn join(
        &mut self,
        links: &mut Links,
        link: LinkId,
        id: ProcessId,
        dialed: Option<SocketAddr>,
        now: Micros,
    ) {
        let remote = dialed.or_else(|| links.remote(link)).map(|a| canonical(a.ip()));
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        links.set_greeted(link);
        process.suspected = None;
        process.lines.push(Line { link, dialed: dialed.is_some(), remote, heard: false });
        if let Some(address) = dialed {
            self.located.insert(address, id);
            if !process.reaches.iter().any(|r| r.address == address) {
                process.reaches.push(Reach::new(address, now));
            }
            for reach in process.reaches.iter_mut().filter(|r| r.address == address) {
                (reach.dialing, reach.verify) = (false, false);
            }
        }
        self.lines.insert(link, id);
        if let Some(address) = dialed {
            self.events.push(PeerEvent::Located(address, id));
        }
        self.events.push(PeerEvent::Joined(id, link));
        self.drop_spare(links, id);
    }

    /// One connection per network is enough; the lower id decides which, so that not each end closes another one.
    fn drop_spare(&mut self, links: &mut Links, id: ProcessId) {
        let spare = self.processes.get_mut(&id).filter(|_| self.me < id).and_then(Process::spare_line);
        if let Some(spare) = spare {
            self.lines.remove(&spare);
            links.close(spare);
        }
    }

    pub(crate) fn handle_wrong_process(
        &mut self,
        links: &mut Links,
        expected: ProcessId,
        at: Option<SocketAddr>,
        now: Micros,
    ) {
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

    /// Nothing here needs it, and it may still need this process.
    fn part_with(&mut self, links: &mut Links, id: ProcessId) {
        if let Some(process) = self.processes.get(&id) {
            self.parted.add(id, process.acquaintance.clone());
        }
        self.set_gone(links, id);
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
            self.dial(links, address, None, (Some(id), None), now);
        }
    }

    fn dial(
        &mut self,
        links: &mut Links,
        address: SocketAddr,
        source: Option<IpAddr>,
        (expects, listed): (Option<ProcessId>, Option<ProcessId>),
        now: Micros,
    ) {
        let dial = Dial { address, expects, listed, since: now, standing: false };
        let source = source.or_else(|| self.network.source_to(address.ip()));
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
    /// An accepted connection on a network for which there is a dialed one that is a peer's at both ends.
    fn spare_line(&mut self) -> Option<LinkId> {
        let spare = self.lines.iter().position(|accepted| {
            !accepted.dialed
                && self.lines.iter().any(|other| other.dialed && other.heard && other.remote == accepted.remote)
        })?;
        Some(self.lines.swap_remove(spare).link)
    }

    fn missing(&self) -> impl Iterator<Item = &Reach> {
        self.reaches.iter().filter(|r| !self.lines.iter().any(|l| l.remote == Some(r.address.ip())))
    }
}

impl Reach {
    pub fn new(address: SocketAddr, now: Micros) -> Self {
        Self { address, due: now, dialing: false, verify: false }
    }
}
