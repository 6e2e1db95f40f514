//! One protected queue pair at this end: its connection, its paths, its protocol machine and its ledger.
//!
//! The state lives here; how it is armed stands in [`crate::arming`], how it is moved in [`crate::migration`]. What must hold:
//! faults are masked only from the moment both ends said that the standby path carries data.

use std::collections::VecDeque;

use shift_proto::frame::{Offer, PathOffer, QpAddress};
use shift_proto::id::{EndpointId, Epoch, Micros, PathId, ProcessId, Site, Tuple, WrSeq, MAX_SITES};
use shift_proto::ledger::{Ledger, Plan};
use shift_proto::migrate::{Attempt, Cause, Handshake, Input, Machine, Readiness, Sites, Stage};

use crate::choice::PeerStandby;
use crate::datapath::{ConnectionFacts, DeviceId, Gid, PathEnd, Prepared, QpLife, Round, Standby};
use crate::keys::place_of;
use crate::mirror::Mirror;
use crate::pairing::Pairing;
use crate::plans::Plans;
use crate::probes::ProbeKey;
use crate::record::{PathName, Record};
use crate::stall::Stall;
use crate::world::World;

/// Status of a completion: `IBV_WC_WR_FLUSH_ERR`.
pub const WC_WR_FLUSH_ERR: u32 = 5;

/// What is known of one path.
#[derive(Debug, Default)]
pub(crate) struct PathState {
    /// Both ends of it, own first; known once both ends offered.
    pub ends: Option<(PathEnd, PathEnd)>,
    /// Device at this end.
    pub device: Option<DeviceId>,
    /// This end's slot of it, and the peer's; of the first path nothing.
    pub slots: (u8, u8),
    /// How much this end would rather have another: see [`crate::datapath::Choice`].
    pub rank: u8,
    /// Memory that it may use is not there.
    pub is_lost: bool,
    /// Its ends are paired with others by now: nothing is tried there.
    pub is_given_up: bool,
    /// Since when it has not been armed, if it is not.
    pub idle_from: Micros,
    /// It was tried several times, and has not answered since.
    pub is_silent: bool,
    /// Its objects are to be connected when it answers.
    pub connects_ahead: bool,
    /// A probe of this end was answered.
    pub own_ready: bool,
    /// The peer said the same.
    pub peer_ready: bool,
    /// The machine knows that the connection may move there.
    pub armed: bool,
    /// Failed probes in a row.
    pub failures: u32,
    /// A probe is wanted and has not been answered yet.
    pub wanted: bool,
    /// When the next one is wanted.
    pub probe_due: Micros,
    /// When the own readiness is said again.
    pub confirm_due: Micros,
    /// When the peer last said its own.
    pub heard: Micros,
    /// When the last probe that was answered was sent.
    pub answered: Option<Micros>,
    /// When an incarnation on it was fenced last, here or, as far as it is known, there: packets of it may still be on their way.
    pub fenced: Option<Micros>,
}

impl PathState {
    /// A pair of standbys of which nothing is known yet. `lost`: own slots in which memory is missing.
    pub fn of(own: &Standby, peer: &PeerStandby, lost: &[u8], now: Micros) -> Self {
        Self {
            ends: Some((own.end, peer.end)),
            device: Some(own.choice.device),
            slots: (own.slot, peer.slot),
            rank: own.choice.rank,
            is_lost: lost.contains(&own.slot),
            probe_due: now,
            ..Self::default()
        }
    }
}

/// The other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    /// As the protocol names it.
    pub end: EndpointId,
    /// Its primary device, as its key frames name it.
    pub device: u16,
}

/// What is under way in the data path.
#[derive(Debug)]
pub(crate) enum Job {
    /// Nothing.
    Idle,
    /// Posters and pollers are to leave.
    Excluding,
    /// The recipe runs.
    Fencing,
    /// The target could not be connected, or the receives not be posted, so far.
    Reposting { tuple: Tuple, due: Micros, tries: u32 },
    /// The plan is being posted.
    Replaying { tuple: Tuple, plan: Plan },
    /// The plan is posted; its entries below that have to retire.
    Retiring { below: WrSeq, from: WrSeq },
    /// The entries before the stop have to retire.
    Stopping { below: WrSeq },
}

/// An entry that the path refuses: it ends in an error once everything before it has ended, as on hardware.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub seq: WrSeq,
    /// Its status, if it is not that of a path that failed.
    pub status: Option<u32>,
    pub why: String,
    /// Until then; what is before it may be unsignalled, and never heard of.
    pub due: Micros,
}

/// One queue pair.
pub(crate) struct Qp {
    pub life: QpLife,
    pub me: EndpointId,
    pub facts: ConnectionFacts,
    /// The process at the other end.
    pub process: Option<ProcessId>,
    /// It has ended: nothing is probed any more.
    pub peer_gone: bool,
    /// Its application has an error of it, or has been given one, whatever the machine knows.
    pub has_ended: bool,
    pub remote: Option<Remote>,
    /// The peer's last offer, as it came.
    pub heard: Option<Offer>,
    /// Its own ends as offered.
    pub own: Option<Prepared>,
    pub paths: Vec<PathState>,
    /// The paths in the order in which it would rather have them.
    pub order: Vec<PathId>,
    /// Slots in which memory that it may use is not.
    pub lost: Vec<u8>,
    /// What answered while a better path was waited for is taken then.
    pub answers_due: Option<Micros>,
    pub machine: Option<Machine>,
    /// The other side of one that is connected to itself.
    pub mirror: Option<Mirror>,
    /// Inputs for the machine that came up while it was being fed.
    pub inputs: VecDeque<Input>,
    pub feeding: bool,
    /// The path that the data path is on.
    pub at: PathId,
    pub ledger: Ledger,
    /// Why it is not protected, for good.
    pub refused: Option<String>,
    /// What was told last of why it is not protected.
    pub reason: Option<String>,
    /// It was protected at some time.
    pub was_protected: bool,
    /// Faults are masked.
    pub masked: bool,
    pub job: Job,
    /// A replay that an exclusion interrupted.
    pub paused: Option<Job>,
    /// Paths are being sought since then.
    pub seek: Option<Micros>,
    /// The send queue has work outstanding.
    pub stall: Option<Stall>,
    /// Posts are held for a key or for room.
    pub held: bool,
    /// An entry that the path refuses.
    pub refusal: Option<Refusal>,
    /// Posters are kept out, or asked to leave: from an exclusion until its release or the end of the replay.
    pub excluded: bool,
    /// The status with which the first error is surfaced, if it is not the NIC's own.
    pub status: Option<u32>,
    /// What the machine was told of the ledger.
    pub hold: bool,
    /// The peer has heard the own offer: it has said something to this end.
    pub heard_here: bool,
    pub offer_due: Micros,
    pub offer_wait_us: u64,
    /// When a repeated offer is acknowledged again.
    pub ack_due: Micros,
    pub record: Option<Record>,
    pub first_error_ns: Option<u64>,
    /// What this end saw last.
    pub cause: Option<Cause>,
    /// Where it would rather be.
    pub plans: Plans,
    /// Standbys that came later, and pairs that do not carry.
    pub pairing: Pairing,
    /// What the other queue pairs of its shared receive queue allow.
    pub group: Grouped,
}

/// What a queue pair may do for the sake of the others that receive with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouped {
    /// By site: all others could be moved there, as far as this end knows. The peer may be told that this one can.
    pub is_able: [bool; MAX_SITES],
    /// Whether faults may be masked.
    pub readiness: Readiness,
    /// Where it may be moved to.
    pub scope: Sites,
    /// Which of these it is to claim.
    pub choice: Option<Site>,
    /// One of them is in fault since then: whether the paths of all others answer is to be known.
    pub sought: Option<Micros>,
    /// The site in which receives may be posted, if they are not on their way.
    pub open: Option<Site>,
    /// The move that the receives are where they are by, or on their way by.
    pub round: Round,
}

impl Grouped {
    const ALONE: Self = Self {
        is_able: [true; MAX_SITES],
        readiness: Readiness::Ready,
        scope: Sites::NONE,
        choice: None,
        sought: None,
        open: None,
        round: Round(0),
    };
    const UNKNOWN: Self = Self { is_able: [false; MAX_SITES], readiness: Readiness::Arming, ..Self::ALONE };
}

impl Qp {
    /// A queue pair that the application has just connected.
    pub fn new(process: ProcessId, life: QpLife, facts: ConnectionFacts, hold_down: Micros) -> Self {
        let group = if facts.group.is_some() { Grouped::UNKNOWN } else { Grouped::ALONE };
        Self {
            life,
            me: EndpointId { process, life: life.0, side: 0 },
            facts,
            process: None,
            peer_gone: false,
            has_ended: false,
            remote: None,
            heard: None,
            own: None,
            paths: vec![PathState::default()],
            order: Vec::new(),
            lost: Vec::new(),
            answers_due: None,
            machine: None,
            mirror: None,
            inputs: VecDeque::new(),
            feeding: false,
            at: PathId::PRIMARY,
            ledger: Ledger::new(),
            refused: None,
            reason: None,
            was_protected: false,
            masked: false,
            job: Job::Idle,
            paused: None,
            seek: None,
            stall: None,
            held: false,
            refusal: None,
            excluded: false,
            status: None,
            hold: false,
            offer_due: Micros(0),
            offer_wait_us: 0,
            heard_here: false,
            ack_due: Micros(0),
            record: None,
            first_error_ns: None,
            cause: None,
            plans: Plans::new(hold_down),
            pairing: Pairing::default(),
            group,
        }
    }

    /// This end, as the peer names it.
    pub fn own_address(&self) -> QpAddress {
        QpAddress { gid: self.facts.gid.0, qpn: self.facts.qpn }
    }

    /// The other end, as the application named it.
    pub fn peer_address(&self) -> QpAddress {
        QpAddress { gid: self.facts.peer_gid.0, qpn: self.facts.peer_qpn }
    }

    /// The state of a path; a number beyond the known ones has none.
    pub fn path(&self, path: PathId) -> Option<&PathState> {
        self.paths.get(usize::from(path.0))
    }

    /// The same, to change it.
    pub fn path_mut(&mut self, path: PathId) -> Option<&mut PathState> {
        self.paths.get_mut(usize::from(path.0))
    }

    /// When one of its machines wants a tick.
    pub fn machine_due(&self) -> Option<Micros> {
        let mirror = self.mirror.as_ref().and_then(|m| m.machine.deadline());
        self.machine.as_ref().and_then(Machine::deadline).into_iter().chain(mirror).min()
    }

    /// The path that it is on, or moves to.
    pub fn current(&self) -> PathId {
        self.machine.as_ref().map_or(PathId::PRIMARY, Machine::path)
    }

    /// By which process, and by what name there, the peer's memory is known on a path.
    pub fn place(&self, path: PathId) -> Option<(ProcessId, u16)> {
        let (remote, process) = self.remote.zip(self.process)?;
        let (_, slot) = self.path(path)?.slots;
        Some((process, place_of(remote.device, slot)))
    }

    /// What has to be probed to try a path.
    pub fn probe_key(&self, path: PathId) -> Option<(ProbeKey, DeviceId)> {
        let state = self.path(path).filter(|state| !state.is_given_up)?;
        let ((own, peer), device) = (state.ends?, state.device?);
        Some((ProbeKey { peer: self.process?, device, own: own.gid, remote: peer.gid }, device))
    }

    /// The names of a path.
    pub fn path_name(&self, world: &World, path: PathId) -> PathName {
        let Some(state) = self.path(path) else {
            return PathName { path: path.0, ..PathName::default() };
        };
        let show = |gid: Gid| std::net::Ipv6Addr::from(gid.0).to_string();
        PathName {
            path: path.0,
            device: state.device.map(|d| world.data.device_name(d)).unwrap_or_default(),
            gid: state.ends.map(|(own, _)| show(own.gid)).unwrap_or_default(),
            peer_gid: state.ends.map(|(_, peer)| show(peer.gid)).unwrap_or_default(),
            mtu: state.ends.map_or(0, |(own, peer)| own.mtu.min(peer.mtu).bytes()),
        }
    }

    /// Nothing is under way: the loop may sleep.
    pub fn is_quiet(&self) -> bool {
        if self.mirror.as_ref().is_some_and(|m| !m.is_quiet()) {
            return false;
        }
        let attempt = self.machine.as_ref().map(|m| m.state().attempt);
        matches!(self.job, Job::Idle)
            && !self.held
            && self.seek.is_none()
            && matches!(attempt, None | Some(Attempt::Idle))
    }

    /// Entries wait for their completions on a new path.
    pub fn is_retiring(&self) -> bool {
        matches!(self.job, Job::Retiring { .. } | Job::Stopping { .. }) || self.refusal.is_some()
    }

    /// A completion says that the incarnation is in ERR.
    ///
    /// The fence flushes an incarnation, and the last of that may be told only when the next one runs already.
    pub fn handle_fatal(&mut self, world: &mut World, epoch: Epoch, status: u32, now: Micros, now_ns: u64) {
        let stage = self.machine.as_ref().map(|m| m.state().stage);
        let is_of_the_past = self.machine.as_ref().is_some_and(|m| epoch < m.epoch());
        if is_of_the_past || matches!(stage, Some(Stage::Dead | Stage::Gone)) {
            return;
        }
        if stage.is_none() || !self.masked {
            // It was kept from the application while the queue pair was being disarmed.
            self.has_ended = true;
            world.data.surface(self.life, None);
            return;
        }
        self.first_error_ns.get_or_insert(now_ns);
        let cause = if status == WC_WR_FLUSH_ERR { Cause::Flushed } else { Cause::RetryExceeded };
        self.cause = Some(cause);
        self.update_hold(world, now);
        self.feed(world, now, Input::Fault { cause, fatal: true });
    }

    /// The peer has fenced too: until then it may have sent on the path that is left.
    pub fn note_report(&mut self, msg: &Handshake, now: Micros) {
        let (Handshake::Report { tuple, .. }, Some(machine)) = (msg, &self.machine) else {
            return;
        };
        let leaves = matches!(machine.state().stage, Stage::Fencing | Stage::Fenced | Stage::Settling);
        if leaves || tuple.epoch > machine.epoch() {
            if let Some(left) = self.path_mut(self.at) {
                left.fenced = left.fenced.max(Some(now));
            }
        }
    }

    /// The port of a device went down or came up.
    pub fn handle_port(&mut self, world: &mut World, device: DeviceId, up: bool, now: Micros) {
        if self.peer_gone {
            return;
        }
        for path in self.path_ids() {
            if let Some(state) = self.path_mut(path).filter(|s| s.device == Some(device)) {
                (state.probe_due, state.wanted) = (now, false);
                if !up && path == PathId::PRIMARY {
                    self.plans.hold_down.note_bad();
                }
            }
        }
        let current = self.path(self.current()).and_then(|s| s.device);
        if !up && self.masked && current == Some(device) {
            self.cause = Some(Cause::PortDown);
            self.update_hold(world, now);
            self.feed(world, now, Input::Fault { cause: Cause::PortDown, fatal: false });
        }
    }

    /// An error that the application holds itself.
    pub fn handle_application_error(&mut self, world: &mut World, now: Micros) {
        self.has_ended = true;
        self.feed(world, now, Input::ApplicationError);
        self.mask(world, false);
    }

    /// The peer's process ended.
    pub fn handle_peer_gone(&mut self, world: &mut World, now: Micros) {
        // What a process that ended would have said had it had the time.
        self.feed(world, now, Input::Frame(Handshake::Gone));
        for path in &mut self.paths {
            (path.own_ready, path.peer_ready, path.armed, path.wanted) = (false, false, false, false);
            path.probe_due = Micros::MAX;
        }
        (self.seek, self.stall, self.answers_due) = (None, None, None);
        (self.peer_gone, self.heard_here) = (true, true);
    }

    /// The first epoch to which the connection may move.
    pub fn next_epoch(&self) -> Epoch {
        self.machine.as_ref().map_or(Epoch::FIRST, Machine::epoch).next()
    }

    /// Receives may be posted on that path: those of a shared receive queue only when no queue pair takes one on another path any more.
    pub fn may_receive_on(&self, path: PathId) -> bool {
        self.facts.group.is_none() || (self.group.open.is_some() && self.group.open == self.site_of(path))
    }

    /// Where the receives of its group lie when it is on that path.
    pub fn site_of(&self, path: PathId) -> Option<Site> {
        let state = self.path(path)?;
        match path {
            PathId::PRIMARY => Some(Site::PRIMARY),
            _ => state.ends.map(|_| Site::of_slot(state.slots.0)),
        }
    }

    /// The path by which it is there, or would be.
    pub fn path_to(&self, site: Site) -> Option<PathId> {
        let current = self.current();
        let leads_there = |path: &PathId| self.site_of(*path) == Some(site);
        let is_kept = |path: &PathId| self.path(*path).is_some_and(|state| !state.is_given_up);
        let kept = self.path_ids().filter(leads_there).find(is_kept);
        Some(current).filter(leads_there).or(kept)
    }

    /// Faults are masked from now on, or are the application's.
    pub fn mask(&mut self, world: &World, masked: bool) {
        let masked = masked && (self.group.readiness == Readiness::Ready || self.masked);
        if self.masked != masked {
            self.masked = masked;
            world.set_armed(self.life, masked);
        }
    }
}

/// A path end as it goes over the wire.
pub(crate) fn offer_of(end: &PathEnd) -> PathOffer {
    PathOffer { address: QpAddress { gid: end.gid.0, qpn: end.qpn }, mtu: end.mtu, psn_base: end.psn_base }
}

/// A path end as it came over the wire.
pub(crate) fn end_of(offer: &PathOffer) -> PathEnd {
    PathEnd { qpn: offer.address.qpn, gid: Gid(offer.address.gid), mtu: offer.mtu, psn_base: offer.psn_base }
}
