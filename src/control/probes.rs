//! Probes: does a path carry data now?
//!
//! A probe is a zero-length WRITE on a queue pair of the shim's own, never on the application's. Each end owns the probes that it
//! starts, one pair of queue pairs per (peer process, own GID, remote GID), shared by every queue pair between the two; the other
//! end only answers. A probe that failed has killed its queue pair: it is connected anew under the next generation, which takes a
//! round trip on the control connection.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use shift_proto::frame::{Frame, Probe as ProbeFrame, ProbeStep};
use shift_proto::id::{Epoch, Micros, ProcessId, Psn};

use crate::datapath::{DataPath, DeviceId, Gid, PathEnd, ProbeId, ProbeState};
use crate::qp::{end_of, offer_of};
use crate::round_trip::RoundTrip;

/// How long an offer waits for its answer before it is sent again.
const RESEND_US: u64 = 100_000;
/// How long the other end may take to connect its queue pair: round trips on a slow control connection.
const OFFER_LIMIT_US: u64 = 1_000_000;
/// How often the completion of a probe in the air is asked for.
const POLL_US: u64 = 1_000;
/// How often at least it is looked whether a queue pair is connected; at first as often as above, then later and later.
const LONGEST_POLL_US: u64 = 50_000;
/// Probe queue pairs that one peer process may make this one open.
const MAX_ANSWERING: usize = 64;

/// The path that a probe tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    /// The process at the other end.
    pub peer: ProcessId,
    /// Device of this end: one that comes back under the same address is another one.
    pub device: DeviceId,
    /// GID of this end.
    pub own: Gid,
    /// GID of the other end.
    pub remote: Gid,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The path.
    pub key: ProbeKey,
    /// When the probe was posted; of one that could not be posted, when that was tried.
    pub started: Micros,
    /// When it ended.
    pub ended: Micros,
    /// The data round trip completed.
    pub answered: bool,
    /// It went out. If not, the queue pairs of the probe could not be connected in time, at whichever end: no word about a path that is only to be
    /// kept ready, but none for a path that is suspected either.
    pub was_tried: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Not connected; tried again then.
    Broken(Micros),
    /// The other end was asked to connect: first, and last.
    Offered { first: Micros, last: Micros },
    /// The other end is connected, this one is about to be: since when it was offered, and since when it is being connected.
    Connecting { first: Micros, since: Micros },
    /// Connected, nothing posted.
    Idle,
    /// Posted then.
    Flying(Micros),
}

/// An answer that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// To a probe started then or later.
    pub from: Micros,
    /// After a failure it is tried again at this pace.
    pub pace_us: u64,
    /// An answer that takes longer is none.
    pub limit_us: u64,
}

struct Probe {
    device: DeviceId,
    id: u64,
    generation: u32,
    local: Option<(ProbeId, PathEnd)>,
    state: State,
    /// What is wanted, until it is there.
    wanted: Option<Want>,
    round_trip: RoundTrip,
    /// This process slept while it was in the air: how long it took says nothing.
    slept: bool,
}

struct Answering {
    device: DeviceId,
    local: ProbeId,
    end: PathEnd,
    generation: u32,
    /// The offer for which it is being connected, and since when.
    connecting: Option<(ProbeFrame, Micros)>,
}

/// All probes of this process, its own and those that it answers.
pub struct Probes {
    own: BTreeMap<ProbeKey, Probe>,
    answering: BTreeMap<(ProcessId, u64), Answering>,
    next_id: u64,
    /// How long a NIC goes on trying, at least.
    patience: Micros,
    frames: Vec<(ProcessId, Frame)>,
}

impl Probes {
    /// None yet. `patience`: how long the NIC under a probe goes on trying, at least.
    pub fn new(patience: Micros) -> Self {
        Self { own: BTreeMap::new(), answering: BTreeMap::new(), next_id: 1, patience, frames: Vec::new() }
    }

    /// An answer is wanted. Of several wishes about one path the latest start, the quickest pace and the longest limit count.
    pub fn want(&mut self, key: ProbeKey, device: DeviceId, want: Want) {
        let next_id = &mut self.next_id;
        let probe = self.own.entry(key).or_insert_with(|| {
            let id = *next_id;
            *next_id = next_id.wrapping_add(1);
            Probe {
                device,
                id,
                generation: 0,
                local: None,
                state: State::Broken(want.from),
                wanted: None,
                round_trip: RoundTrip::default(),
                slept: false,
            }
        });
        let want = probe.wanted.map_or(want, |other| Want {
            from: want.from.max(other.from),
            pace_us: want.pace_us.min(other.pace_us),
            limit_us: want.limit_us.max(other.limit_us),
        });
        probe.wanted = Some(want);
        if let State::Broken(due) = &mut probe.state {
            *due = want.from.min(*due);
        }
    }

    /// When [`Probes::tick`] has something to do.
    pub fn deadline(&self, now: Micros) -> Option<Micros> {
        let unsent = (!self.frames.is_empty()).then_some(now);
        let answering = self.answering.values().filter_map(|a| a.connecting).map(|(_, since)| connected_by(since, now));
        let own = self.own.values().filter(|p| p.wanted.is_some()).map(|p| p.due(now));
        own.chain(answering).chain(unsent).min()
    }

    /// How long answers on that path take.
    pub fn round_trip(&self, key: &ProbeKey) -> RoundTrip {
        self.own.get(key).map_or_else(RoundTrip::default, |probe| probe.round_trip)
    }

    /// This process slept: what is in the air was not slow.
    pub fn forgive_slowness(&mut self) {
        self.own.values_mut().for_each(|probe| probe.slept = matches!(probe.state, State::Flying(_)));
    }

    /// Nobody is in a hurry any more: what is still wanted of these paths is tried at this pace at most.
    pub fn slow_down(&mut self, pace_us: u64, is_concerned: impl Fn(&ProbeKey) -> bool) {
        let wanted = self.own.iter_mut().filter(|(key, _)| is_concerned(key)).filter_map(|(_, p)| p.wanted.as_mut());
        wanted.for_each(|want| want.pace_us = want.pace_us.max(pace_us));
    }

    /// Frames that are to go to peers since the last call.
    pub fn take_frames(&mut self) -> Vec<(ProcessId, Frame)> {
        std::mem::take(&mut self.frames)
    }

    /// Goes on with every probe that is wanted or in the air, and tells what became known.
    pub fn tick(&mut self, data: &dyn DataPath, now: Micros) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (key, probe) in &mut self.own {
            if let Some(outcome) = probe.poll(key, data, now) {
                outcomes.push(outcome);
            }
            if let Some(frame) = probe.go_on(key, data, now) {
                self.frames.push((key.peer, frame));
            }
        }
        for ((peer, _), answering) in &mut self.answering {
            if let Some(frame) = answering.accept(data) {
                self.frames.push((*peer, frame));
            }
        }
        outcomes
    }

    /// A peer's word about a probe. `device` finds the device behind a GID of this process.
    pub fn handle_frame(
        &mut self,
        data: &dyn DataPath,
        peer: ProcessId,
        frame: &ProbeFrame,
        device: impl Fn(&Gid) -> Option<DeviceId>,
        now: Micros,
    ) {
        match frame.step {
            ProbeStep::Offer => match device(&Gid(frame.peer_gid)) {
                Some(device) => self.handle_offer(data, peer, frame, device, now),
                None => self.frames.push((peer, Frame::Probe(ProbeFrame { step: ProbeStep::Refuse, ..*frame }))),
            },
            ProbeStep::Accept => self.handle_accept(data, peer, frame, now),
            ProbeStep::Refuse => self.handle_refuse(peer, frame, now),
            ProbeStep::Close => {
                if let Some(answering) = self.answering.remove(&(peer, frame.pair)) {
                    data.probe_close(answering.local);
                }
            }
        }
    }

    fn own_mut(&mut self, peer: ProcessId, frame: &ProbeFrame) -> Option<&mut Probe> {
        let found = self.own.iter_mut().find(|(key, probe)| key.peer == peer && probe.id == frame.pair);
        let probe = found.map(|(_, probe)| probe)?;
        (probe.generation == frame.generation && matches!(probe.state, State::Offered { .. })).then_some(probe)
    }

    fn handle_accept(&mut self, data: &dyn DataPath, peer: ProcessId, frame: &ProbeFrame, now: Micros) {
        let patience = self.patience;
        let Some(probe) = self.own_mut(peer, frame) else {
            return;
        };
        let (Some((local, own_end)), State::Offered { first, .. }) = (probe.local, probe.state) else {
            return;
        };
        let peer_end = end_of(&frame.own);
        let (own_psn, peer_psn) = psns(&own_end, &peer_end, frame.generation);
        if data.probe_connect(local, &peer_end, own_psn, peer_psn, patience).is_ok() {
            probe.state = State::Connecting { first, since: now };
        }
    }

    /// The other end has no such device yet; its queue pair may be about to come up.
    fn handle_refuse(&mut self, peer: ProcessId, frame: &ProbeFrame, now: Micros) {
        if let Some(probe) = self.own_mut(peer, frame) {
            probe.state = State::Broken(now + Micros(RESEND_US));
        }
    }

    fn handle_offer(
        &mut self,
        data: &dyn DataPath,
        peer: ProcessId,
        frame: &ProbeFrame,
        device: DeviceId,
        now: Micros,
    ) {
        let key = (peer, frame.pair);
        match self.answering.get(&key) {
            // Whatever it is connected for at the moment: who offers says it again.
            Some(answering) if answering.connecting.is_some() || answering.generation > frame.generation => {}
            Some(answering) if answering.generation == frame.generation => {
                self.frames.push((peer, answering.acceptance(frame)));
            }
            Some(_) | None => self.connect_answering(data, key, frame, device, now),
        }
    }

    /// Nothing remains of a peer that is gone.
    pub fn forget_peer(&mut self, data: &dyn DataPath, peer: ProcessId) {
        self.retain(data, |key| key.peer != peer);
        self.answering.retain(|(process, _), answering| {
            if *process == peer {
                data.probe_close(answering.local);
            }
            *process != peer
        });
    }

    /// Nothing remains on a device that is gone.
    pub fn forget_device(&mut self, data: &dyn DataPath, device: DeviceId) {
        let there = self.own.iter().filter(|(_, probe)| probe.device == device).map(|(key, _)| *key);
        let there = there.collect::<BTreeSet<_>>();
        self.retain(data, |key| !there.contains(key));
        self.answering.retain(|_, answering| {
            if answering.device == device {
                data.probe_close(answering.local);
            }
            answering.device != device
        });
    }

    /// Closes the probes of paths that no queue pair uses any more.
    pub fn keep_only(&mut self, data: &dyn DataPath, used: &BTreeSet<ProbeKey>) {
        self.retain(data, |key| used.contains(key));
    }

    fn retain(&mut self, data: &dyn DataPath, keep: impl Fn(&ProbeKey) -> bool) {
        let frames = &mut self.frames;
        self.own.retain(|key, probe| {
            let keep = keep(key);
            if let Some((local, end)) = probe.local.filter(|_| !keep) {
                data.probe_close(local);
                frames.push((key.peer, probe.frame(key, ProbeStep::Close, &end)));
            }
            keep
        });
    }

    fn connect_answering(
        &mut self,
        data: &dyn DataPath,
        key: (ProcessId, u64),
        frame: &ProbeFrame,
        device: DeviceId,
        now: Micros,
    ) {
        if let Some(old) = self.answering.get(&key).filter(|old| old.device != device).map(|old| old.local) {
            data.probe_close(old);
            self.answering.remove(&key);
        }
        let held = self.answering.range((key.0, 0)..=(key.0, u64::MAX)).count();
        let answering = match self.answering.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if held >= MAX_ANSWERING => return,
            Entry::Vacant(place) => match data.probe_open(device, Gid(frame.peer_gid)) {
                Ok((local, end)) => place.insert(Answering { device, local, end, generation: 0, connecting: None }),
                Err(_) => return,
            },
        };
        let peer_end = end_of(&frame.own);
        let (own_psn, peer_psn) = psns(&answering.end, &peer_end, frame.generation);
        answering.generation = 0;
        // If it cannot be connected now, the offer comes again.
        if data.probe_connect(answering.local, &peer_end, own_psn, peer_psn, self.patience).is_ok() {
            answering.connecting = Some((*frame, now));
        }
    }
}

impl Answering {
    fn acceptance(&self, offer: &ProbeFrame) -> Frame {
        Frame::Probe(ProbeFrame { step: ProbeStep::Accept, own: offer_of(&self.end), ..*offer })
    }

    /// The word that it is connected, once it is.
    fn accept(&mut self, data: &dyn DataPath) -> Option<Frame> {
        let (offer, _) = self.connecting?;
        let connected = data.probe_connected(self.local)?;
        self.connecting = None;
        connected.ok()?;
        self.generation = offer.generation;
        Some(self.acceptance(&offer))
    }
}

impl Probe {
    fn due(&self, now: Micros) -> Micros {
        match self.state {
            State::Broken(due) => due,
            State::Offered { last, .. } => last + Micros(RESEND_US),
            State::Connecting { since, .. } => connected_by(since, now),
            State::Idle => now,
            State::Flying(_) => now + Micros(POLL_US),
        }
    }

    fn poll(&mut self, key: &ProbeKey, data: &dyn DataPath, now: Micros) -> Option<Outcome> {
        let started = match self.state {
            State::Flying(started) => started,
            State::Offered { first, .. } => return self.give_up_offer(key, data, first, now),
            State::Connecting { first, .. } => return self.finish_connecting(key, data, first, now),
            State::Broken(_) | State::Idle => return None,
        };
        let (local, _) = self.local?;
        let answered = match data.probe_poll(local) {
            ProbeState::Answered => true,
            ProbeState::Failed(_) => false,
            ProbeState::Pending if self.wanted.is_some_and(|want| now.since(started).0 > want.limit_us) => false,
            ProbeState::Pending => return None,
        };
        if answered {
            self.state = State::Idle;
            if !std::mem::take(&mut self.slept) {
                self.round_trip.note(now.since(started));
            }
            if self.wanted.is_some_and(|want| started >= want.from) {
                self.wanted = None;
            }
        } else {
            self.break_off(data, now);
        }
        Some(Outcome { key: *key, started, ended: now, answered, was_tried: true })
    }

    fn finish_connecting(
        &mut self,
        key: &ProbeKey,
        data: &dyn DataPath,
        first: Micros,
        now: Micros,
    ) -> Option<Outcome> {
        let (local, _) = self.local?;
        match data.probe_connected(local) {
            Some(Ok(())) => self.state = State::Idle,
            Some(Err(_)) => self.state = State::Offered { first, last: now },
            None => return self.give_up_offer(key, data, first, now),
        }
        None
    }

    /// The other end does not connect, or this one cannot: the probe begins anew.
    fn give_up_offer(&mut self, key: &ProbeKey, data: &dyn DataPath, first: Micros, now: Micros) -> Option<Outcome> {
        (self.wanted.is_some() && now.since(first).0 > OFFER_LIMIT_US).then(|| {
            self.break_off(data, now);
            Outcome { key: *key, started: first, ended: now, answered: false, was_tried: false }
        })
    }

    /// Does what is next for an answer that is wanted; a frame if the other end is needed.
    fn go_on(&mut self, key: &ProbeKey, data: &dyn DataPath, now: Micros) -> Option<Frame> {
        self.wanted?;
        match self.state {
            State::Broken(due) if now >= due => self.offer(key, data, now),
            State::Offered { last, .. } if now.since(last).0 >= RESEND_US => self.offer(key, data, now),
            State::Idle => {
                let (local, _) = self.local?;
                match data.probe_start(local) {
                    Ok(()) => (self.state, self.slept) = (State::Flying(now), false),
                    Err(_) => self.break_off(data, now),
                }
                None
            }
            State::Broken(_) | State::Offered { .. } | State::Connecting { .. } | State::Flying(_) => None,
        }
    }

    fn offer(&mut self, key: &ProbeKey, data: &dyn DataPath, now: Micros) -> Option<Frame> {
        if self.local.is_none() {
            self.local = data.probe_open(self.device, key.own).ok();
        }
        let Some((_, end)) = self.local else {
            self.state = State::Broken(now + Micros(RESEND_US));
            return None;
        };
        let first = match self.state {
            State::Offered { first, .. } => first,
            State::Broken(_) | State::Connecting { .. } | State::Idle | State::Flying(_) => {
                self.generation = self.generation.wrapping_add(1);
                now
            }
        };
        self.state = State::Offered { first, last: now };
        Some(self.frame(key, ProbeStep::Offer, &end))
    }

    fn frame(&self, key: &ProbeKey, step: ProbeStep, end: &PathEnd) -> Frame {
        let (pair, generation) = (self.id, self.generation);
        Frame::Probe(ProbeFrame { pair, generation, step, own: offer_of(end), peer_gid: key.remote.0 })
    }

    fn break_off(&mut self, data: &dyn DataPath, now: Micros) {
        if let Some((local, _)) = self.local {
            data.probe_abandon(local);
        }
        let pace_us = self.wanted.map_or(0, |want| want.pace_us);
        self.state = State::Broken(now + Micros(pace_us));
    }
}

/// When it is looked again whether a queue pair is connected.
fn connected_by(since: Micros, now: Micros) -> Micros {
    now + Micros((now.since(since).0 / 4).clamp(POLL_US, LONGEST_POLL_US))
}

/// First PSNs, own and peer's: a generation of a probe is to its queue pair what an epoch is to a path.
fn psns(own: &PathEnd, peer: &PathEnd, generation: u32) -> (Psn, Psn) {
    (own.psn_base.in_epoch(Epoch(generation)), peer.psn_base.in_epoch(Epoch(generation)))
}
