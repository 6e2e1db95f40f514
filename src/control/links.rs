//! Connections: frames in, frames out, and how each connection ended.
//!
//! Owns the poller, every socket and every buffer; knows nothing of peers or queue pairs. What must hold: no call blocks,
//! no buffer grows beyond its bound, and whatever a stranger sends costs at most one connection slot for
//! [`GREETING_DEADLINE_US`].

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use shift_proto::frame::{split_prefixed, Frame};
use shift_proto::id::Micros;

use crate::clock;
use crate::sockets::{Listener, Stream};

/// Connections of one process: 64 peers of 16 networks each.
pub const MAX_CONNECTIONS: usize = 1024;
/// Accepted connections that said nothing valid yet: as many as processes of one host start at once.
pub const MAX_UNGREETED: usize = 64;
/// How long an accepted connection may stay without a greeting.
pub const GREETING_DEADLINE_US: u64 = 5_000_000;
/// Bytes that may wait for a peer that does not read; the key table of some 10,000 registrations fits.
const MAX_QUEUED: usize = 4 << 20;
/// Bytes read of one connection before the others have their turn.
const READ_TURN: usize = 256 << 10;

const WAKE: Token = Token(0);

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
}

/// What happened on the connections.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "most events are frames; they live for one round of the loop")]
pub enum LinkEvent {
    /// A connection came in.
    Accepted(LinkId),
    /// A connection that was dialed stands.
    Connected(LinkId),
    /// A frame arrived.
    Received(LinkId, Frame),
    /// The connection is gone; its id is dead.
    Closed(LinkId, Ending),
    /// The descriptor that is watched under this number has something to read.
    Watched(u16),
}

struct Link {
    stream: Stream,
    standing: bool,
    greeted: bool,
    opened: Micros,
    heard: Micros,
    remote: Option<SocketAddr>,
    input: Vec<u8>,
    output: VecDeque<u8>,
}

/// All sockets of the agent.
pub struct Links {
    poll: Poll,
    events: Events,
    links: BTreeMap<usize, Link>,
    listeners: BTreeMap<usize, Listener>,
    watched: BTreeMap<usize, u16>,
    unread: Vec<usize>,
    failed: Vec<(LinkId, Ending)>,
    next: usize,
}

impl Links {
    /// An empty set, and the handle that wakes its poller from other threads.
    pub fn new() -> io::Result<(Self, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let links = Self {
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

    /// Takes a listener into the set.
    pub fn listen(&mut self, mut listener: Listener) -> io::Result<()> {
        let id = self.fresh_id();
        listener.register(self.poll.registry(), Token(id))?;
        self.listeners.insert(id, listener);
        Ok(())
    }

    /// Watches a descriptor of somebody else, who keeps it open, and reports it under `number`.
    pub fn watch(&mut self, descriptor: RawFd, number: u16) -> io::Result<()> {
        let id = self.fresh_id();
        self.poll.registry().register(&mut SourceFd(&descriptor), Token(id), Interest::READABLE)?;
        self.watched.insert(id, number);
        Ok(())
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
        }
        Ok(id)
    }

    /// Queues a frame; a peer that does not read loses the connection.
    pub fn send(&mut self, id: LinkId, frame: &Frame) {
        let Some(link) = self.links.get_mut(&id.0) else {
            return;
        };
        let mut bytes = Vec::with_capacity(256);
        if let Err(error) = frame.encode_prefixed(&mut bytes) {
            log::error!("a frame was not sent, this is a mistake of the shim: {error}");
            return;
        }
        if link.output.len() + bytes.len() > MAX_QUEUED {
            self.failed.push((id, Ending::Slow));
            return;
        }
        link.output.extend(bytes);
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
        if let Some(number) = self.watched.get(&id) {
            out.push(LinkEvent::Watched(*number));
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
                    out.push(LinkEvent::Connected(LinkId(id)));
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
        loop {
            let Some(Ok(stream)) = self.listeners.get(&listener).map(Listener::accept) else {
                return;
            };
            if self.links.len() >= MAX_CONNECTIONS {
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
    }

    /// The oldest stranger goes when there are too many: who speaks the protocol greets at once.
    fn make_room_for_greeting(&mut self) {
        let mut ungreeted = self.links.iter().filter(|(_, l)| !l.greeted).map(|(id, _)| *id);
        let oldest = ungreeted.next();
        if ungreeted.count() + 1 >= MAX_UNGREETED {
            if let Some(oldest) = oldest {
                self.failed.push((LinkId(oldest), Ending::Slow));
            }
        }
    }

    fn expire_ungreeted(&mut self) {
        let now = clock::now();
        for (id, link) in &self.links {
            if !link.greeted && now.since(link.opened).0 > GREETING_DEADLINE_US {
                self.failed.push((LinkId(*id), Ending::Slow));
            }
        }
    }

    fn adopt(&mut self, mut stream: Stream, remote: Option<SocketAddr>, dialed: bool) -> io::Result<LinkId> {
        let id = self.fresh_id();
        stream.register(self.poll.registry(), Token(id))?;
        let now = clock::now();
        let link = Link {
            stream,
            standing: false,
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
        let mut buffer = [0u8; 16 << 10];
        let mut taken = 0;
        let ending = loop {
            if taken >= READ_TURN {
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
        let well_formed = take_frames(&mut link.input, |frame| out.push(LinkEvent::Received(LinkId(id), frame)));
        match (well_formed, ending) {
            (false, _) => self.failed.push((LinkId(id), Ending::Malformed)),
            (true, Some(ending)) => self.failed.push((LinkId(id), ending)),
            (true, None) => {}
        }
    }

    fn fresh_id(&mut self) -> usize {
        let id = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        id
    }
}

/// Cuts all whole frames from the front of `input`; `false` if it can never become one.
fn take_frames(input: &mut Vec<u8>, mut each: impl FnMut(Frame)) -> bool {
    let mut used = 0;
    let well_formed = loop {
        match split_prefixed(input.get(used..).unwrap_or_default()) {
            Ok(Some((body, taken))) => {
                match Frame::decode(body) {
                    Ok(frame) => each(frame),
                    Err(error) => {
                        log::debug!("a connection is closed: {error}");
                        break false;
                    }
                }
                used += taken;
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    input.drain(..used.min(input.len()));
    well_formed
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
