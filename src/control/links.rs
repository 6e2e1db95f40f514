//! Connections: frames in, frames out, and how each connection ended.
//!
//! Owns the poller, every socket and every buffer; knows nothing of peers or queue pairs. What must hold: no call blocks,
//! no buffer grows beyond its bound, and whatever a stranger sends costs at most one of [`MAX_UNGREETED`] connection slots
//! and little memory, for [`GREETING_DEADLINE_US`]. Where the slots are scarce, who has most of them loses one: a flood of
//! connections from one address keeps nobody else out.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use shift_proto::frame::{Frame, MAX_FRAME};
use shift_proto::id::Micros;

use crate::channel::{Channel, Mismatch, Terms};
use crate::clock;
use crate::job_key::KeyFile;
use crate::sockets::{Listener, Stream};
use crate::strangers::{Refusal, Strangers};

/// Connections of one process: 64 peers of 16 networks each.
pub const MAX_CONNECTIONS: usize = 1024;
/// Accepted connections that are not known to be a peer's: as many as processes of a few hosts start at once.
pub const MAX_UNGREETED: usize = 128;
/// How long an accepted connection may stay one of those.
pub const GREETING_DEADLINE_US: u64 = 5_000_000;
/// Longest frame, bytes that may wait, and bytes read in a turn of such a connection: what greets and offers is short.
const STRANGERS_FRAME: usize = 4 << 10;
const STRANGERS_QUEUE: usize = 64 << 10;
const STRANGERS_TURN: usize = 16 << 10;
/// Connections accepted before those that stand have their turn.
const ACCEPT_TURN: usize = 64;
/// Bytes that may wait for a peer that does not read; the key table of some 10,000 registrations fits.
const MAX_QUEUED: usize = 4 << 20;
/// Bytes read of one connection before the others have their turn.
const READ_TURN: usize = 256 << 10;

const WAKE: Token = Token(0);

/// Where random bytes come from. Without them there is no connection: what was recorded of another one could be said again on it.
pub type Draw = fn() -> io::Result<[u8; 16]>;

/// A connection; the number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(usize);

#[cfg(test)]
impl LinkId {
    /// One of that number, for tests of what is kept by connection.
    pub const fn of(number: usize) -> Self {
        Self(number)
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The other host answered that nobody listens there.
    Refused,
    /// The other end closed it, or its process ended.
    Ended,
    /// The network does not carry it.
    Unreachable,
    /// The other end broke the rules of the stream.
    Malformed,
    /// The other end did not read, or did not greet, in time.
    Slow,
    /// It called itself a process that is known, and is not that one.
    Posed,
    /// It is none of this job: another key, a key at one end only, another wire version.
    Mismatch(Mismatch),
}

/// What happened on the connections.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most events are frames; they live for one round of the loop")]
pub enum LinkEvent {
    /// A connection came in.
    Accepted(LinkId),
    /// A connection that was dialed stands, and its other end is of this job.
    Connected(LinkId),
    /// A frame arrived.
    Received(LinkId, Frame),
    /// The connection is gone; its id is dead.
    Closed(LinkId, Ending),
    /// A descriptor that is watched has something to do.
    Watched(Watched),
}

/// Whose a descriptor is that this module only watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The asynchronous events of a device.
    Device(u16),
    /// The local socket of `shiftctl`, or who is connected there.
    Admin,
    /// The kernel's word of network interfaces.
    Interfaces,
}

struct Link {
    stream: Stream,
    channel: Channel,
    standing: bool,
    dialed: bool,
    /// Something valid was said on it.
    spoke: bool,
    greeted: bool,
    opened: Micros,
    heard: Micros,
    remote: Option<SocketAddr>,
    input: Vec<u8>,
    output: VecDeque<u8>,
}

/// All sockets of the agent.
pub struct Links {
    terms: Terms,
    key_file: Option<KeyFile>,
    draw_nonce: Draw,
    /// Who was turned away.
    pub strangers: Strangers,
    poll: Poll,
    events: Events,
    links: BTreeMap<usize, Link>,
    listeners: BTreeMap<usize, Listener>,
    watched: BTreeMap<usize, Watched>,
    unread: Vec<usize>,
    failed: Vec<(LinkId, Ending)>,
    next: usize,
}

impl Links {
    /// An empty set, and the handle that wakes its poller from other threads.
    pub fn new(terms: Terms, draw_nonce: Draw) -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let links = Self {
            terms,
            key_file: None,
            draw_nonce,
            strangers: Strangers::default(),
            poll,
            events: Events::with_capacity(256),
            links: BTreeMap::new(),
            listeners: BTreeMap::new(),
            watched: BTreeMap::new(),
            unread: Vec::new(),
            failed: Vec::new(),
            next: 1,
        };
        Ok((links, waker))
    }

    /// The job's keys are read again when that file changes; connections that stand keep the key that they began with.
    pub fn follow(&mut self, file: KeyFile) {
        self.key_file = Some(file);
    }

    /// Takes a listener into the set.
    pub fn listen(&mut self, mut listener: Listener) -> io::Result<()> {
        let id = self.fresh_id();
        listener.register(self.poll.registry(), Token(id))?;
        self.listeners.insert(id, listener);
        Ok(())
    }

    /// Watches a descriptor of somebody else, who keeps it open. Returns what ends it.
    pub fn watch(&mut self, descriptor: RawFd, whose: Watched) -> io::Result<usize> {
        let id = self.fresh_id();
        let interest = match whose {
            Watched::Device(_) | Watched::Interfaces => Interest::READABLE,
            Watched::Admin => Interest::READABLE | Interest::WRITABLE,
        };
        self.poll.registry().register(&mut SourceFd(&descriptor), Token(id), interest)?;
        self.watched.insert(id, whose);
        Ok(id)
    }

    /// The descriptor is being closed, which ends the watch in the kernel.
    pub fn unwatch(&mut self, id: usize) {
        self.watched.remove(&id);
    }

    /// Starts a connection to `to`. That it stands, or failed, comes as an event.
    pub fn dial(&mut self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<LinkId> {
        if self.links.len() >= MAX_CONNECTIONS {
            return Err(io::Error::from(io::ErrorKind::QuotaExceeded));
        }
        let stream = match (Stream::dial(to, source), source) {
            // The source may be gone with its link; the route decides then.
            (Err(_), Some(_)) => Stream::dial(to, None)?,
            (stream, _) => stream?,
        };
        self.adopt(stream, Some(to), true)
    }

    /// Connects to the local socket `name`; stands at once.
    pub fn dial_local(&mut self, name: &str) -> io::Result<LinkId> {
        let stream = Stream::dial_local(name)?;
        let id = self.adopt(stream, None, true)?;
        if let Some(link) = self.links.get_mut(&id.0) {
            link.standing = true;
            link.channel.start(&mut link.output);
        }
        Ok(id)
    }

    /// Queues a frame; a peer that does not read loses the connection.
    pub fn send(&mut self, id: LinkId, frame: &Frame) {
        let Some(link) = self.links.get_mut(&id.0) else {
            return;
        };
        let mut bytes = Vec::with_capacity(256);
        if let Err(error) = frame.encode(&mut bytes) {
            log::error!("a frame was not sent, this is a mistake of the shim: {error}");
            return;
        }
        let bound = if link.greeted { MAX_QUEUED } else { STRANGERS_QUEUE };
        if link.output.len() + link.channel.waiting() + bytes.len() > bound {
            self.failed.push((id, Ending::Slow));
            return;
        }
        link.channel.send(&bytes, &mut link.output);
        self.push(id);
    }

    /// Closes without a further word; no event follows.
    pub fn close(&mut self, id: LinkId) {
        self.links.remove(&id.0);
    }

    /// The other end showed that it speaks the protocol.
    pub fn set_greeted(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id.0) {
            link.greeted = true;
        }
    }

    /// With a job key whoever is heard at all is of this job.
    pub fn is_keyed(&self) -> bool {
        self.terms.key.is_some()
    }

    /// Closes a connection whose other end is not who it says it is.
    pub fn turn_away(&mut self, id: LinkId, why: Refusal) {
        if let Some(link) = self.links.remove(&id.0) {
            self.strangers.note(why, link.remote);
        }
    }

    /// Whether the connection exists.
    pub fn is_open(&self, id: LinkId) -> bool {
        self.links.contains_key(&id.0)
    }

    /// The address of the other end, as dialed or as accepted.
    pub fn remote(&self, id: LinkId) -> Option<SocketAddr> {
        self.links.get(&id.0).and_then(|l| l.remote)
    }

    /// The user behind a local connection; `None` for any other.
    pub fn local_user(&self, id: LinkId) -> Option<u32> {
        self.links.get(&id.0).and_then(|l| l.stream.local_user())
    }

    /// When something last arrived on the connection.
    pub fn heard(&self, id: LinkId) -> Option<Micros> {
        self.links.get(&id.0).map(|l| l.heard)
    }

    /// The clock jumped: nobody was silent in between.
    pub fn forgive_silence(&mut self, now: Micros) {
        for link in self.links.values_mut() {
            link.heard = now;
        }
    }

    /// Waits for at most `timeout` (`None`: until something happens) and reports what happened.
    pub fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Vec<LinkEvent>> {
        let timeout = if self.unread.is_empty() && self.failed.is_empty() { timeout } else { Some(Duration::ZERO) };
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let mut out = Vec::new();
        let mut ready: Vec<(usize, bool, bool)> =
            self.events.iter().map(|e| (e.token().0, e.is_readable(), e.is_writable())).collect();
        ready.extend(std::mem::take(&mut self.unread).into_iter().map(|id| (id, true, false)));
        for (id, readable, writable) in ready {
            self.handle_ready(id, readable, writable, &mut out);
        }
        self.expire_ungreeted();
        for (id, ending) in std::mem::take(&mut self.failed) {
            if self.links.remove(&id.0).is_some() {
                out.push(LinkEvent::Closed(id, ending));
            }
        }
        Ok(out)
    }

    /// Whether some accepted connection has yet to greet (its deadline then needs the loop).
    pub fn has_ungreeted(&self) -> bool {
        self.links.values().any(|l| !l.greeted)
    }

    fn handle_ready(&mut self, id: usize, readable: bool, writable: bool, out: &mut Vec<LinkEvent>) {
        if let Some(whose) = self.watched.get(&id) {
            out.push(LinkEvent::Watched(*whose));
            return;
        }
        if self.listeners.contains_key(&id) {
            self.accept_all(id, out);
            return;
        }
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if !link.standing {
            match link.stream.connected() {
                Ok(true) => {
                    link.standing = true;
                    link.channel.start(&mut link.output);
                    self.push(LinkId(id));
                }
                Ok(false) => return,
                Err(error) => {
                    self.failed.push((LinkId(id), ending_of(&error)));
                    return;
                }
            }
        }
        if writable {
            self.push(LinkId(id));
        }
        if readable {
            self.pull(id, out);
        }
    }

    fn accept_all(&mut self, listener: usize, out: &mut Vec<LinkEvent>) {
        for _ in 0..ACCEPT_TURN {
            let Some(Ok(stream)) = self.listeners.get(&listener).map(Listener::accept) else {
                return;
            };
            if self.links.len() >= MAX_CONNECTIONS {
                self.strangers.note(Refusal::Crowded, stream.remote());
                continue;
            }
            self.make_room_for_greeting();
            let remote = stream.remote();
            if let Ok(id) = self.adopt(stream, remote, false) {
                if let Some(link) = self.links.get_mut(&id.0) {
                    link.standing = true;
                }
                out.push(LinkEvent::Accepted(id));
            }
        }
        self.unread.push(listener);
    }

    /// When there are too many strangers, the one with most connections loses its oldest; who spoke goes after who did not.
    fn make_room_for_greeting(&mut self) {
        let mut sites: BTreeMap<Site, Vec<(bool, usize)>> = BTreeMap::new();
        for (id, link) in self.links.iter().filter(|(_, l)| !l.greeted) {
            sites.entry(link.site()).or_default().push((link.spoke, *id));
        }
        if sites.values().map(Vec::len).sum::<usize>() < MAX_UNGREETED {
            return;
        }
        let victim = sites.into_values().max_by_key(Vec::len).and_then(|links| links.into_iter().min());
        if let Some((_, victim)) = victim {
            self.refuse(victim, Refusal::Crowded);
            self.failed.push((LinkId(victim), Ending::Slow));
            // Its slot is free at once, and it is not chosen again: its owner hears of it as of any other end.
            if let Some(link) = self.links.get_mut(&victim) {
                link.greeted = true;
            }
        }
    }

    fn expire_ungreeted(&mut self) {
        let now = clock::now();
        let late = |l: &Link| !l.greeted && now.since(l.opened).0 > GREETING_DEADLINE_US;
        let late: Vec<(usize, bool)> =
            self.links.iter().filter(|(_, l)| late(l)).map(|(id, l)| (*id, l.spoke)).collect();
        for (id, spoke) in late {
            // Who only asked, or whose queue pair is not connected here yet, comes again: no stranger.
            if !spoke {
                self.refuse(id, Refusal::Silent);
            }
            self.failed.push((LinkId(id), Ending::Slow));
        }
    }

    fn refuse(&mut self, id: usize, why: Refusal) {
        if let Some(link) = self.links.get(&id).filter(|l| !l.dialed && !l.greeted) {
            self.strangers.note(why, link.remote);
        }
    }

    fn adopt(&mut self, mut stream: Stream, remote: Option<SocketAddr>, dialed: bool) -> io::Result<LinkId> {
        let nonce = (self.draw_nonce)()?;
        if let Some((newest, older)) = self.key_file.as_mut().and_then(KeyFile::changed) {
            (self.terms.key, self.terms.older) = (Some(newest), older);
        }
        let id = self.fresh_id();
        stream.register(self.poll.registry(), Token(id))?;
        let now = clock::now();
        let link = Link {
            stream,
            channel: Channel::new(&self.terms, dialed, nonce),
            standing: false,
            dialed,
            spoke: false,
            greeted: dialed,
            opened: now,
            heard: now,
            remote,
            input: Vec::new(),
            output: VecDeque::new(),
        };
        self.links.insert(id, link);
        Ok(LinkId(id))
    }

    fn push(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id.0).filter(|l| l.standing) else {
            return;
        };
        while !link.output.is_empty() {
            let (first, _) = link.output.as_slices();
            match link.stream.write(first) {
                Ok(written) => drop(link.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.failed.push((id, ending_of(&error)));
                    return;
                }
            }
        }
    }

    fn pull(&mut self, id: usize, out: &mut Vec<LinkEvent>) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let (turn, bound) = if link.greeted { (READ_TURN, MAX_FRAME) } else { (STRANGERS_TURN, STRANGERS_FRAME) };
        let mut buffer = [0u8; 16 << 10];
        let mut taken = 0;
        let ending = loop {
            if taken >= turn {
                self.unread.push(id);
                break None;
            }
            match link.stream.read(&mut buffer) {
                Ok(0) => break Some(Ending::Ended),
                Ok(count) => {
                    taken += count;
                    link.input.extend_from_slice(buffer.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) => break Some(ending_of(&error)),
            }
        };
        if taken > 0 {
            link.heard = clock::now();
        }
        let mut frames = Vec::new();
        let was_open = link.channel.is_open();
        let received = link.channel.receive(&mut link.input, bound, &mut link.output, |frame| frames.push(frame));
        link.spoke |= link.channel.is_open();
        if link.dialed && !was_open && link.channel.is_open() && link.remote.is_some() {
            out.push(LinkEvent::Connected(LinkId(id)));
        }
        out.extend(frames.into_iter().map(|frame| LinkEvent::Received(LinkId(id), frame)));
        // An answer to the opening, which also tells the other end why the connection ends.
        self.push(LinkId(id));
        match (received, ending) {
            (Err(mismatch), _) => {
                self.refuse(id, Refusal::Mismatch(mismatch));
                self.failed.push((LinkId(id), mismatch_ending(mismatch)));
            }
            (Ok(()), Some(ending)) => self.failed.push((LinkId(id), ending)),
            (Ok(()), None) => {}
        }
    }

    fn fresh_id(&mut self) -> usize {
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        id
    }
}

/// Where a connection comes from, as far as somebody else cannot take it: a network of IPv6, which one host may have whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    Address(IpAddr),
    User(Option<u32>),
}

impl Link {
    fn site(&self) -> Site {
        match self.remote.map(|r| r.ip().to_canonical()) {
            Some(IpAddr::V6(ip)) => Site::Address(IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64))),
            Some(ip) => Site::Address(ip),
            None => Site::User(self.stream.local_user()),
        }
    }
}

fn mismatch_ending(mismatch: Mismatch) -> Ending {
    match mismatch {
        Mismatch::Malformed | Mismatch::Forged => Ending::Malformed,
        Mismatch::OtherKey | Mismatch::PeerHasNoKey | Mismatch::PeerHasKey | Mismatch::OtherVersions { .. } => {
            Ending::Mismatch(mismatch)
        }
    }
}

fn ending_of(error: &io::Error) -> Ending {
    const ENDED: [io::ErrorKind; 3] =
        [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof];
    if error.kind() == io::ErrorKind::ConnectionRefused {
        Ending::Refused
    } else if ENDED.contains(&error.kind()) {
        Ending::Ended
    } else {
        Ending::Unreachable
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use super::*;

    #[test]
    fn without_random_bytes_there_is_no_connection() {
        let name = format!("shift-links-{}", std::process::id());
        let (mut heard, _waker) = Links::new(Terms::default(), || Err(io::Error::other("none"))).unwrap();
        heard.listen(Listener::bind_local(&name).unwrap()).unwrap();
        assert!(heard.dial_local(&name).is_err());
        let mut other = Stream::dial_local(&name).unwrap();
        let poll = |links: &mut Links| links.poll(Some(Duration::from_secs(5))).unwrap();
        // Both attempts wait in the listener.
        assert!(poll(&mut heard).is_empty() && heard.links.is_empty());
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "it is closed without a word");
    }
}
