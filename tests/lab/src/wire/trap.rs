//! Traps: the wire reads the control connections of two shims, and at the message of a migration that a trap names it stops carrying
//! them, on every link and in the directions named. What else the links carry is not touched.
//!
//! Frames are read as [`shift_proto::frame`] writes them, without a job key, in segments of IPv4 in order. A segment that continues
//! nothing that was seen is taken for the beginning of a frame; what cannot be read is carried.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shift_proto::frame::{split_prefixed, Frame, Opening, MAX_FRAME, OPENING};
use shift_proto::migrate::Handshake;

use crate::place::{Host, Link};

/// Bytes of one frame that are waited for; a longer stream without a frame is none.
const MAX_HELD: usize = 128 << 10;

/// A message that marks a step of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// CLAIM.
    Claim,
    /// ACCEPT.
    Accept,
    /// COMMIT.
    Commit,
    /// REPORT.
    Report,
    /// READY.
    Ready,
    /// CONFIRM.
    Confirm,
}

/// Whether the message itself is still carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edge {
    /// It is lost.
    Before,
    /// Its first copy arrives.
    After,
}

/// What is lost once a trap has sprung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Every segment.
    Everything,
    /// What is said. Segments without a byte of it are carried, so that the other end's kernel hears that what *it* sends has come, and goes on sending.
    Words,
}

/// A trap on the control connections between two processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trap {
    /// The processes listen on ports of this range, ends included, and nobody else does.
    pub ports: (u16, u16),
    /// Springs at the first such message
    pub step: Step,
    /// of that migration of a queue pair, counted from 1, or of a later one,
    pub epoch: u32,
    /// that this host sends.
    pub sender: Host,
    /// What becomes of that message.
    pub edge: Edge,
    /// From then on nothing that this host sends is carried; none: what both send.
    pub from: Option<Host>,
    /// And of that
    pub loses: Loss,
    /// for so long; none: until it is taken away.
    pub lasts: Option<Duration>,
}

impl Trap {
    /// Loses nothing: it tells when the message was first sent. Set before any that may lose it.
    pub fn watch(ports: (u16, u16), step: Step, epoch: u32, sender: Host) -> Trap {
        let (edge, loses, lasts) = (Edge::After, Loss::Everything, Some(Duration::ZERO));
        Trap { ports, step, epoch, sender, edge, from: None, loses, lasts }
    }
}

/// Name of a trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrapId(pub u16);

/// A trap that is set.
#[derive(Debug)]
struct Set {
    id: TrapId,
    trap: Trap,
    sprung_ns: Option<u64>,
    streams: HashMap<(Link, Host, u16, u16), Stream>,
}

/// One direction of one connection.
#[derive(Debug, Default)]
struct Stream {
    next: u32,
    held: Vec<u8>,
}

/// All traps that are set.
#[derive(Debug, Default)]
pub struct Traps {
    set: Vec<Set>,
    last_id: u16,
}

impl Traps {
    /// Sets one.
    pub fn add(&mut self, trap: Trap) -> TrapId {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let id = TrapId(self.last_id);
        self.set.push(Set { id, trap, sprung_ns: None, streams: HashMap::new() });
        id
    }

    /// Takes one away: everything is carried again. False if there is none of that name.
    pub fn remove(&mut self, id: TrapId) -> bool {
        let before = self.set.len();
        self.set.retain(|each| each.id != id);
        self.set.len() != before
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        self.set.clear();
    }

    /// When it sprang, if it is set and has.
    pub fn sprung_ns(&self, id: TrapId) -> Option<u64> {
        self.set.iter().find(|each| each.id == id)?.sprung_ns
    }

    /// Whether a frame is caught.
    pub fn catches(&mut self, link: Link, from: Host, frame: &[u8], now_ns: u64) -> bool {
        if self.set.is_empty() {
            return false;
        }
        let Some(segment) = Segment::of(frame) else { return false };
        self.set.iter_mut().any(|each| each.catches(link, from, &segment, now_ns))
    }
}

impl Set {
    fn catches(&mut self, link: Link, from: Host, segment: &Segment<'_>, now_ns: u64) -> bool {
        let (first, last) = self.trap.ports;
        if ![segment.source, segment.target].iter().any(|port| (first..=last).contains(port)) {
            return false;
        }
        let lost = self.trap.from.is_none_or(|host| host == from);
        if let Some(sprung_ns) = self.sprung_ns {
            let is_over = |lasts: Duration| u128::from(now_ns.saturating_sub(sprung_ns)) >= lasts.as_nanos();
            let spared = self.trap.loses == Loss::Words && segment.payload.is_empty();
            return lost && !spared && !self.trap.lasts.is_some_and(is_over);
        }
        let stream = self.streams.entry((link, from, segment.source, segment.target)).or_default();
        let Trap { step, epoch, sender, .. } = self.trap;
        // All frames are read, also those behind the one that is sought.
        let said = stream.take(segment).into_iter().filter(|_| from == sender);
        if said.into_iter().any(|(each, of)| each == step && of >= epoch) {
            self.sprung_ns = Some(now_ns);
            return lost && self.trap.edge == Edge::Before;
        }
        false
    }
}

impl Stream {
    /// The steps that the frames which this segment completes mark, each with its epoch.
    fn take(&mut self, segment: &Segment<'_>) -> Vec<(Step, u32)> {
        if segment.opens {
            *self = Stream { next: segment.sequence.wrapping_add(1), held: Vec::new() };
            return Vec::new();
        }
        if segment.payload.is_empty() {
            return Vec::new();
        }
        let behind = self.next.wrapping_sub(segment.sequence) as usize;
        let new = match segment.payload.get(behind..) {
            Some(new) => new,
            // Sent again as a whole, or a gap before it.
            None if behind < usize::from(u16::MAX) => return Vec::new(),
            None => {
                self.held.clear();
                segment.payload
            }
        };
        self.next = segment.sequence.wrapping_add(segment.payload.len() as u32);
        self.held.extend_from_slice(new);
        self.steps()
    }

    fn steps(&mut self) -> Vec<(Step, u32)> {
        let (mut steps, mut used) = (Vec::new(), 0);
        loop {
            let rest = self.held.get(used..).unwrap_or(&[]);
            match Opening::decode(rest) {
                Ok(Some(_)) => used += OPENING,
                // So short a piece may still become one; the first byte of a frame's length is hardly ever the same.
                Ok(None) => break,
                Err(_) => {}
            }
            match split_prefixed(self.held.get(used..).unwrap_or(&[]), MAX_FRAME) {
                Ok(Some((body, taken))) => {
                    steps.extend(Frame::decode(body).ok().as_ref().and_then(step_of));
                    used += taken;
                }
                Ok(None) => break,
                Err(_) => used = self.held.len(),
            }
            if used >= self.held.len() {
                break;
            }
        }
        self.held.drain(..used.min(self.held.len()));
        if self.held.len() > MAX_HELD {
            self.held.clear();
        }
        steps
    }
}

fn step_of(frame: &Frame) -> Option<(Step, u32)> {
    let Frame::Migration { msg, .. } = frame else { return None };
    let step = match msg {
        Handshake::Claim { .. } => Some(Step::Claim),
        Handshake::Accept { .. } => Some(Step::Accept),
        Handshake::Commit { .. } => Some(Step::Commit),
        Handshake::Report { .. } => Some(Step::Report),
        Handshake::Ready { .. } => Some(Step::Ready),
        Handshake::Confirm { .. } => Some(Step::Confirm),
        Handshake::Refuse { .. }
        | Handshake::Wait { .. }
        | Handshake::Cancel { .. }
        | Handshake::Dead { .. }
        | Handshake::Surface { .. }
        | Handshake::Gone
        | Handshake::Muster { .. } => None,
    };
    step.zip(msg.tuple().map(|tuple| tuple.epoch.0))
}

/// A TCP segment over IPv4 (RFC 791, RFC 9293).
struct Segment<'a> {
    source: u16,
    target: u16,
    sequence: u32,
    opens: bool,
    payload: &'a [u8],
}

impl Segment<'_> {
    fn of(frame: &[u8]) -> Option<Segment<'_>> {
        let word = |at: usize| frame.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
        if word(12)? != 0x0800 || *frame.get(23)? != 6 {
            return None;
        }
        let tcp = 14 + usize::from(frame.get(14)? & 0x0f) * 4;
        let end = 14 + usize::from(word(16)?);
        let payload_at = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
        // A segment that is cut by its card carries no length of its own.
        let end = if end <= 14 { frame.len() } else { end };
        Some(Segment {
            source: word(tcp)?,
            target: word(tcp + 2)?,
            sequence: frame.get(tcp + 4..tcp + 8)?.try_into().ok().map(u32::from_be_bytes)?,
            opens: frame.get(tcp + 13)? & 0x02 != 0,
            payload: frame.get(payload_at..end.min(frame.len()))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use shift_proto::id::{EndpointId, Epoch, PathId, ProcessId, Tuple};
    use shift_proto::migrate::Cause;

    use super::*;

    const PORTS: (u16, u16) = (21_000, 21_001);

    fn tcp(source: u16, target: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(((40 + payload.len()) as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2]);
        frame.extend(source.to_be_bytes());
        frame.extend(target.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        // Ethernet's shortest frame is longer than some of these.
        frame.resize(frame.len().max(60), 0);
        frame
    }

    fn message(msg: Handshake) -> Vec<u8> {
        let end = EndpointId { process: ProcessId(1), life: 1, side: 0 };
        let mut bytes = Vec::new();
        Frame::Migration { number: 1, to: end, from: end, msg }.encode_prefixed(&mut bytes).unwrap();
        bytes
    }

    fn tuple() -> Tuple {
        of_epoch(1)
    }

    fn of_epoch(epoch: u32) -> Tuple {
        let owner = EndpointId { process: ProcessId(1), life: 1, side: 0 };
        Tuple { epoch: Epoch(epoch), owner, attempt: 1, target: PathId::STANDBY }
    }

    fn claim() -> Vec<u8> {
        message(Handshake::Claim { tuple: tuple(), cause: Cause::PortDown })
    }

    fn set(step: Step, edge: Edge, from: Option<Host>) -> (Traps, TrapId) {
        let mut traps = Traps::default();
        let loses = Loss::Everything;
        let id = traps.add(Trap { ports: PORTS, step, epoch: 0, sender: Host::A, edge, from, loses, lasts: None });
        (traps, id)
    }

    #[test]
    fn a_trap_springs_at_its_message_and_catches_all_behind_it_on_every_link() {
        let (mut traps, id) = set(Step::Commit, Edge::Before, None);
        let mut catch = |link, from, frame: &[u8]| traps.catches(link, from, frame, 7);
        let claim = claim();
        assert!(!catch(Link::Management, Host::A, &tcp(40_000, 21_000, 1, 0x10, &claim)));
        let commit = message(Handshake::Commit { tuple: tuple() });
        assert!(!catch(Link::Management, Host::B, &tcp(21_000, 40_000, 1, 0x10, &commit)), "of the other host");
        let at = 1 + claim.len() as u32;
        assert!(catch(Link::Management, Host::A, &tcp(40_000, 21_000, at, 0x10, &commit)));
        assert!(catch(Link::Rail1, Host::B, &tcp(21_001, 40_001, 9, 0x10, &[])));
        assert!(!catch(Link::Management, Host::A, &tcp(40_000, 18_600, 1, 0x10, b"another program's")));
        assert_eq!(traps.sprung_ns(id), Some(7));
        assert!(traps.remove(id) && !traps.catches(Link::Rail1, Host::B, &tcp(21_001, 40_001, 9, 0x10, &[]), 8));
    }

    #[test]
    fn after_a_message_means_that_one_copy_of_it_arrives() {
        let (mut traps, _) = set(Step::Claim, Edge::After, Some(Host::A));
        let frame = tcp(40_000, 21_000, 1, 0x10, &claim());
        assert!(!traps.catches(Link::Management, Host::A, &frame, 1));
        assert!(traps.catches(Link::Rail1, Host::A, &frame, 2), "its copy on the other network");
        assert!(!traps.catches(Link::Rail1, Host::B, &tcp(21_000, 40_000, 1, 0x10, &[1]), 3), "one way only");
    }

    #[test]
    fn a_trap_that_lasts_for_a_while_lets_everything_through_after_it() {
        let mut traps = Traps::default();
        let lasts = Some(Duration::from_millis(300));
        let (step, edge) = (Step::Claim, Edge::Before);
        let trap = Trap { edge, lasts, ..Trap::watch(PORTS, step, 0, Host::A) };
        traps.add(trap);
        let frame = tcp(40_000, PORTS.0, 1, 0, &claim());
        let at = |ms: u64| ms * 1_000_000;
        let caught: Vec<bool> =
            [5, 200, 304, 305, 900].map(|ms| traps.catches(Link::Rail1, Host::A, &frame, at(ms))).to_vec();
        assert_eq!(caught, [true, true, true, false, false]);
    }

    #[test]
    fn a_trap_for_words_carries_what_only_acknowledges() {
        let mut traps = Traps::default();
        let loses = Loss::Words;
        let (edge, from, lasts) = (Edge::Before, Some(Host::A), None);
        traps.add(Trap { edge, from, loses, lasts, ..Trap::watch(PORTS, Step::Claim, 0, Host::A) });
        let mut catch = |from, frame: &[u8]| traps.catches(Link::Rail1, from, frame, 1);
        let said = tcp(40_000, PORTS.0, 1, 0x18, &claim());
        assert!(catch(Host::A, &said) && catch(Host::A, &said));
        assert!(!catch(Host::A, &tcp(40_000, PORTS.0, 9, 0x10, &[])), "an acknowledgement");
        assert!(!catch(Host::B, &tcp(PORTS.0, 40_000, 1, 0x18, &claim())), "the other way");
    }

    #[test]
    fn a_watch_tells_of_the_migration_that_it_was_set_for_and_loses_nothing() {
        let mut traps = Traps::default();
        let id = traps.add(Trap::watch(PORTS, Step::Commit, 2, Host::A));
        let mut at = 1;
        for (epoch, told) in [(1, None), (2, Some(2)), (3, Some(2))] {
            let commit = message(Handshake::Commit { tuple: of_epoch(epoch) });
            assert!(!traps.catches(Link::Rail1, Host::A, &tcp(40_000, PORTS.0, at, 0x10, &commit), epoch.into()));
            assert_eq!(traps.sprung_ns(id), told);
            at += commit.len() as u32;
        }
    }

    #[test]
    fn a_message_is_found_in_pieces_behind_others_and_when_sent_again() {
        let (mut traps, id) = set(Step::Claim, Edge::Before, None);
        let mut stream = Vec::new();
        Frame::Ping { stamp: 3 }.encode_prefixed(&mut stream).unwrap();
        stream.extend(claim());
        let (first, second) = stream.split_at(stream.len() - 5);
        let mut catch = |sequence, flags, payload: &[u8]| {
            traps.catches(Link::Management, Host::A, &tcp(40_000, 21_000, sequence, flags, payload), 1)
        };
        assert!(!catch(u32::MAX - 10, 0x02, &[]));
        let begin = u32::MAX - 9;
        assert!(!catch(begin, 0x18, first));
        assert!(!catch(begin, 0x18, first), "sent again");
        assert!(catch(begin.wrapping_add(first.len() as u32), 0x18, second));
        assert_eq!(traps.sprung_ns(id), Some(1));
    }

    #[test]
    fn whatever_it_is_that_is_no_control_frame_is_carried() {
        let (mut traps, _) = set(Step::Claim, Edge::Before, None);
        for length in 0..80 {
            let noise: Vec<u8> = (0..length).map(|at: u32| (at.wrapping_mul(97) >> 3) as u8).collect();
            assert!(!traps.catches(Link::Rail1, Host::A, &noise, 1));
            assert!(!traps.catches(Link::Rail1, Host::A, &tcp(21_000, 5, length, 0x10, &noise), 1));
        }
    }
}
