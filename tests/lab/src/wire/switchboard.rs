//! The wire's one loop: reads frames, asks the rules, writes frames, keeps the log.
//!
//! One thread, level-triggered poll. It is the only owner of ports, rules, held frames and log, so a rule takes effect between two
//! frames and never within one. Bounds: [`port::QUEUE_BYTES`](super::port) per port towards a guest, [`KEPT_BYTES`] for all frames that
//! rules keep.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::control::{Answer, Conversation, Order, Ready};
use super::log::{Fate, LogWriter, Record};
use super::packet::{parse, Packet};
use super::port::{next_frame, Port};
use super::rule::{Action, RuleId, Rules};
use super::stats::Meter;
use super::trap::Traps;
use crate::clock::monotonic_ns;
use crate::place::{Host, Link};

/// Bytes that rules may keep (held, delayed, to be reordered); a frame beyond is dropped. Enough for a second of a full rail.
pub const KEPT_BYTES: usize = 64 << 20;

/// A frame that waits inside the wire.
#[derive(Debug)]
struct Kept {
    rule: RuleId,
    port: usize,
    release: Release,
    frame: Vec<u8>,
}

/// What lets a kept frame go on.
#[derive(Debug, PartialEq, Eq)]
enum Release {
    ByOrder,
    AtNs(u64),
    BehindFrames(u32),
}

/// The wire.
pub struct Switchboard {
    ports: Vec<Port>,
    rules: Rules,
    traps: Traps,
    kept: Vec<Kept>,
    kept_bytes: usize,
    log: LogWriter,
    meter: Meter,
    control: UnixListener,
    conversations: Vec<Conversation>,
}

impl Switchboard {
    /// Opens a port for each end of each cable, the control socket and the log.
    ///
    /// # Errors
    /// A port, socket or file cannot be had.
    pub fn open(control: &Path, log: &Path) -> io::Result<Switchboard> {
        let mut ports = Vec::new();
        for link in Link::CABLES {
            for host in Host::ALL {
                ports.push(Port::listen(link, host)?);
            }
        }
        let control = UnixListener::bind(control)?;
        control.set_nonblocking(true)?;
        Ok(Switchboard {
            ports,
            rules: Rules::default(),
            traps: Traps::default(),
            kept: Vec::new(),
            kept_bytes: 0,
            log: LogWriter::create(log)?,
            meter: Meter::default(),
            control,
            conversations: Vec::new(),
        })
    }

    /// Where the QEMUs are to connect.
    ///
    /// # Errors
    /// A socket has no address.
    pub fn ready(&self) -> io::Result<Ready> {
        let ports = self.ports.iter().map(|port| Ok((port.link, port.host, port.listener.local_addr()?.port())));
        Ok(Ready { ports: ports.collect::<io::Result<_>>()? })
    }

    /// Runs until the process is ended.
    ///
    /// # Errors
    /// Polling fails, or the log cannot be written.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            self.turn(None)?;
        }
    }

    /// Waits for something to do, at most until `limit`, and does it.
    fn turn(&mut self, limit: Option<Instant>) -> io::Result<()> {
        let events = self.wait(limit)?;
        let ports = self.ports.len();
        for (index, (listener, stream)) in events.ports.into_iter().enumerate() {
            self.serve_port(index, listener, stream)?;
        }
        if events.control {
            if let Ok((stream, _)) = self.control.accept() {
                self.conversations.extend(Conversation::new(stream));
            }
        }
        self.serve_conversations(&events.conversations)?;
        self.release_due()?;
        let now = Instant::now();
        for index in 0..ports {
            if self.ports.get_mut(index).is_some_and(|port| port.check_down(now)) {
                self.lose_queue(index)?;
            }
        }
        Ok(())
    }

    fn wait(&self, limit: Option<Instant>) -> io::Result<Events> {
        let mut fds = Vec::new();
        for (index, port) in self.ports.iter().enumerate() {
            fds.push(PollFd::new(port.listener.as_fd(), PollFlags::POLLIN));
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::POLLIN, self.ports.get(index ^ 1).is_none_or(|peer| !peer.is_full()));
            interest.set(PollFlags::POLLOUT, port.wants_write());
            if let Some(stream) = &port.stream {
                fds.push(PollFd::new(stream.as_fd(), interest));
            }
        }
        fds.push(PollFd::new(self.control.as_fd(), PollFlags::POLLIN));
        fds.extend(self.conversations.iter().map(|each| PollFd::new(each.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, self.timeout(limit)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut seen = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let mut next = || seen.next().unwrap_or(PollFlags::empty());
        let ports = self.ports.iter().map(|port| {
            let listener = next().contains(PollFlags::POLLIN);
            (listener, if port.stream.is_some() { next() } else { PollFlags::empty() })
        });
        Ok(Events {
            ports: ports.collect(),
            control: next().contains(PollFlags::POLLIN),
            conversations: self.conversations.iter().map(|_| !next().is_empty()).collect(),
        })
    }

    fn timeout(&self, limit: Option<Instant>) -> PollTimeout {
        let now = Instant::now();
        let down = self.ports.iter().filter_map(Port::down_at).chain(limit).min();
        let down_ms = down.map(|at| at.saturating_duration_since(now).as_millis() as u64 + 1);
        let now_ns = monotonic_ns();
        let due_ms = self.kept.iter().filter_map(|kept| match kept.release {
            Release::AtNs(at) => Some(at.saturating_sub(now_ns).div_ceil(1_000_000)),
            Release::ByOrder | Release::BehindFrames(_) => None,
        });
        match due_ms.chain(down_ms).min() {
            Some(ms) => PollTimeout::try_from(ms.min(60_000) as i32).unwrap_or(PollTimeout::NONE),
            None => PollTimeout::NONE,
        }
    }

    fn serve_port(&mut self, index: usize, listener: bool, stream: PollFlags) -> io::Result<()> {
        let Some(port) = self.ports.get_mut(index) else {
            return Ok(());
        };
        if listener {
            port.accept()?;
        }
        if stream.contains(PollFlags::POLLOUT) {
            port.handle_writable();
            port.flush();
        }
        if stream.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) && port.fill() {
            self.forward_all(index)?;
        }
        Ok(())
    }

    fn forward_all(&mut self, index: usize) -> io::Result<()> {
        let Some(port) = self.ports.get_mut(index) else {
            return Ok(());
        };
        let (link, from) = (port.link, port.host);
        let (inbox, used) = port.take_inbox();
        let bytes = inbox.get(..used).unwrap_or(&[]);
        let mut at = 0;
        while let Some((frame, next)) = next_frame(bytes, at)? {
            self.forward(link, from, index ^ 1, frame)?;
            at = next;
        }
        if let Some(port) = self.ports.get_mut(index) {
            port.put_back(inbox, at, used);
        }
        if let Some(peer) = self.ports.get_mut(index ^ 1) {
            peer.flush();
        }
        Ok(())
    }

    fn forward(&mut self, link: Link, from: Host, to: usize, frame: &[u8]) -> io::Result<()> {
        let at_ns = monotonic_ns();
        let packet = parse(frame);
        let decided = self.rules.decide(link, from, &packet, at_ns);
        let mut record = Record {
            at_ns,
            link,
            from,
            packet,
            length: frame.len() as u32,
            fate: Fate::Passed,
            rule: decided.map(|(rule, _)| rule),
        };
        record.fate = match decided {
            _ if self.traps.catches(link, from, frame, at_ns) => Fate::Dropped,
            None | Some((_, Action::Pass)) => self.deliver(to, frame, Fate::Passed, Fate::Refused),
            Some((_, Action::Drop)) => Fate::Dropped,
            Some((rule, Action::Hold)) => self.keep(rule, to, Release::ByOrder, frame, Fate::Held),
            Some((rule, Action::Delay(us))) => {
                self.keep(rule, to, Release::AtNs(at_ns + us * 1000), frame, Fate::Delayed)
            }
            Some((rule, Action::Reorder(behind))) => {
                // This very frame is counted below, so one more is needed.
                self.keep(rule, to, Release::BehindFrames(behind + 1), frame, Fate::Reordered)
            }
            Some((_, Action::Duplicate)) => {
                self.deliver(to, frame, Fate::Passed, Fate::Refused);
                self.deliver(to, frame, Fate::Duplicated, Fate::Refused)
            }
            Some((_, Action::Corrupt)) => self.deliver(to, &damaged(frame, &packet), Fate::Corrupted, Fate::Refused),
        };
        self.note(record)?;
        self.count_behind(to)
    }

    fn deliver(&mut self, to: usize, frame: &[u8], taken: Fate, refused: Fate) -> Fate {
        match self.ports.get_mut(to).filter(|port| !port.is_down()) {
            Some(port) => {
                port.outbox.push(frame);
                taken
            }
            None => refused,
        }
    }

    fn keep(&mut self, rule: RuleId, port: usize, release: Release, frame: &[u8], fate: Fate) -> Fate {
        if self.kept_bytes + frame.len() > KEPT_BYTES {
            return Fate::Dropped;
        }
        self.kept_bytes += frame.len();
        self.kept.push(Kept { rule, port, release, frame: frame.to_vec() });
        fate
    }

    fn count_behind(&mut self, to: usize) -> io::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        for kept in self.kept.iter_mut().filter(|kept| kept.port == to) {
            if let Release::BehindFrames(left) = &mut kept.release {
                *left = left.saturating_sub(1);
            }
        }
        self.release_where(|kept| kept.release == Release::BehindFrames(0))
    }

    fn release_due(&mut self) -> io::Result<()> {
        if self.kept.is_empty() {
            return Ok(());
        }
        let now_ns = monotonic_ns();
        self.release_where(|kept| matches!(kept.release, Release::AtNs(at) if at <= now_ns))
    }

    fn release_where(&mut self, goes: impl Fn(&Kept) -> bool) -> io::Result<()> {
        let (go, stay) = std::mem::take(&mut self.kept).into_iter().partition(goes);
        self.kept = stay;
        let go: Vec<Kept> = go;
        for kept in &go {
            self.kept_bytes -= kept.frame.len();
            let fate = self.deliver(kept.port, &kept.frame, Fate::Released, Fate::Lost);
            self.note_again(kept.port, &kept.frame, fate, Some(kept.rule))?;
        }
        for port in go.iter().map(|kept| kept.port).collect::<BTreeSet<_>>() {
            if let Some(port) = self.ports.get_mut(port) {
                port.flush();
            }
        }
        Ok(())
    }

    fn forget_kept(&mut self, rule: Option<RuleId>) {
        self.kept.retain(|kept| rule.is_some_and(|rule| kept.rule != rule));
        self.kept_bytes = self.kept.iter().map(|kept| kept.frame.len()).sum();
    }

    fn lose_queue(&mut self, index: usize) -> io::Result<()> {
        let mut lost = Vec::new();
        if let Some(port) = self.ports.get_mut(index) {
            port.outbox.drop_waiting(|frame| lost.push(frame.to_vec()));
        }
        lost.iter().try_for_each(|frame| self.note_again(index, frame, Fate::Lost, None))
    }

    fn note_again(&mut self, to: usize, frame: &[u8], fate: Fate, rule: Option<RuleId>) -> io::Result<()> {
        let Some(port) = self.ports.get(to) else {
            return Ok(());
        };
        let (link, from) = (port.link, port.host.peer());
        self.note(Record {
            at_ns: monotonic_ns(),
            link,
            from,
            packet: parse(frame),
            length: frame.len() as u32,
            fate,
            rule,
        })
    }

    fn note(&mut self, record: Record) -> io::Result<()> {
        self.meter.count(&record);
        self.log.append(record)
    }

    fn serve_conversations(&mut self, readable: &[bool]) -> io::Result<()> {
        let mut conversations = std::mem::take(&mut self.conversations);
        for (conversation, _) in conversations.iter_mut().zip(readable).filter(|(_, readable)| **readable) {
            for order in conversation.receive() {
                let answer = match order {
                    Ok(order) => self.obey(order)?,
                    Err(why) => Answer::Refused(why),
                };
                conversation.send(&answer);
            }
        }
        conversations.retain(Conversation::is_open);
        self.conversations.append(&mut conversations);
        Ok(())
    }

    fn obey(&mut self, order: Order) -> io::Result<Answer> {
        Ok(match order {
            Order::Add(rule) => Answer::Added { id: self.rules.add(rule), at_ns: monotonic_ns() },
            Order::Remove(id) => {
                self.forget_kept(Some(id));
                match self.rules.remove(id) {
                    true => Answer::Done { at_ns: monotonic_ns() },
                    false => Answer::Refused(format!("no rule {}", id.0)),
                }
            }
            Order::Release(id) => {
                let at_ns = monotonic_ns();
                self.release_where(|kept| kept.rule == id)?;
                Answer::Done { at_ns }
            }
            Order::Clear => {
                self.forget_kept(None);
                self.rules.clear();
                self.traps.clear();
                Answer::Done { at_ns: monotonic_ns() }
            }
            Order::Hits(id) => match self.rules.hits(id) {
                Some(hits) => Answer::Hits(hits),
                None => Answer::Refused(format!("no rule {}", id.0)),
            },
            Order::Trap(trap) => Answer::Trapped(self.traps.add(trap)),
            Order::Mend(id) => match self.traps.remove(id) {
                true => Answer::Done { at_ns: monotonic_ns() },
                false => Answer::Refused(format!("no trap {}", id.0)),
            },
            Order::Sprung(id) => Answer::Sprung(self.traps.sprung_ns(id)),
            Order::Counts => Answer::Counts(self.meter.counts().clone()),
            Order::Sync => Answer::Records(self.log.flush()?),
        })
    }
}

/// What poll found.
struct Events {
    ports: Vec<(bool, PollFlags)>,
    control: bool,
    conversations: Vec<bool>,
}

fn damaged(frame: &[u8], packet: &Packet) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let at =
        if (1..frame.len()).contains(&packet.payload_at) { packet.payload_at } else { frame.len().saturating_sub(1) };
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x5a;
    }
    bytes
}

#[cfg(test)]
#[path = "switchboard_tests.rs"]
mod tests;
