//! A fabric of two rails or more in memory, and data paths on it that do what the shim does: enough to judge the control side by what
//! arrives, without a device.
//!
//! Every message is one packet. A rail that is down delivers nothing; a rail that loses acknowledgements delivers and does not say so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub mod admin;
pub mod cable;
mod connect;
mod held;
pub mod lines;
mod mesh;
mod network;
mod process;
mod receives;
pub mod speaker;
mod standbys;
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use shift_control::datapath::{
    Choice, ConnectionFacts, DataPath, DeviceId, Errno, Event, FenceProgress, Gid, PathEnd, PortCounters, Prepared,
    ProbeId, ProbeState, QpLife, RemoteKey, RemoteKeys, ReplayProgress, Round, Unprotected,
};
use shift_control::{Agent, Config, EventSender};
use shift_proto::id::{Epoch, Micros, Mtu, PathId, Psn, Psn64, WrSeq};
use shift_proto::ledger::{Action, Entry, IncarnationFacts, IncarnationReport, Ledger, Op, Plan, Posting, Proof};
use shift_proto::policy::OnUnknown;

pub use connect::{connect, connect_grouped, connect_hosts, connect_to, connect_unmet, connect_with};
pub use mesh::{Mesh, Talk, SRQ};
pub use network::own_port;
use network::{Reach, TestNetwork};
pub use process::{all_arrived, are_on, talk};
pub use standbys::on_first;
pub use wait::{config, config_of, eventually, exactly, stays, Watch};

/// The most rails that a test has.
pub const RAILS: usize = 4;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Send,
    Write { rkey: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    message: u32,
    kind: Kind,
    /// Incarnation it is posted on; none while it is held.
    posted: Option<(Epoch, u64)>,
    first: Option<(Epoch, u64)>,
    delivered: bool,
    done: bool,
}

#[derive(Default)]
struct Incarnation {
    path: u8,
    packets: u64,
    completed: u64,
    sends_posted: u64,
    sends_completed: u64,
    receives: u64,
    fenced: bool,
}

#[derive(Default)]
pub struct Qp {
    facts: Option<ConnectionFacts>,
    peer: Option<(usize, QpLife)>,
    sent: Vec<Sent>,
    pub received: Vec<u32>,
    pub written: Vec<(u32, u32)>,
    incarnations: BTreeMap<u32, Incarnation>,
    epoch: u32,
    pub path: u8,
    /// The devices of the paths of the shim's own.
    devices: Vec<usize>,
    excluded: bool,
    fenced: bool,
    /// The NIC gave up in that epoch.
    error_in: Option<u32>,
    pub armed: bool,
    pub surfaced: bool,
    /// How many sends had ended then, and the status of the next one.
    pub surfaced_at: (usize, Option<u32>),
    pub reposts: usize,
    /// When the last fence began, when it was done, and when the receives were posted after it.
    fence_begun: Option<Instant>,
    pub fenced_at: Option<Instant>,
    pub reposted_at: Option<Instant>,
    held_event: bool,
    /// The shared receive queue of its process that it receives through.
    pub group: Option<u32>,
    /// Connected when its group had left the first path: it has taken nothing there.
    pub late: bool,
}

struct Probe {
    host: usize,
    peer: (usize, usize),
    rail: usize,
    started: bool,
    failed: bool,
    connected: bool,
    since: Instant,
}

#[derive(Default)]
pub struct State {
    pub rail_up: [bool; RAILS],
    pub acks_lost: [bool; RAILS],
    /// The standbys of a process, the best first; the rail after the first where it is not here. A device is on the rail that remains of it modulo [`RAILS`].
    pub standbys: BTreeMap<usize, Vec<usize>>,
    /// Devices that were removed, by process.
    pub gone: BTreeSet<(usize, DeviceId)>,
    /// Processes that are to have a standby on their first device.
    pub stood_in: BTreeSet<usize>,
    /// The rails of hosts 1 and 2 that reach one another; if there are none here, those of one number.
    pub wires: Vec<[usize; 2]>,
    qps: BTreeMap<(usize, QpLife), Qp>,
    probes: BTreeMap<u32, Probe>,
    standby_keys: BTreeMap<(usize, u32), u32>,
    pub panic_in_sweep: Option<usize>,
    /// By host and rail.
    pub dead_ports: BTreeSet<(usize, usize)>,
    /// What its kernel counts, by host and rail.
    pub counters: BTreeMap<(usize, usize), PortCounters>,
    /// Receives cannot be posted at that host.
    pub refuses_receives: Option<(usize, Errno)>,
    /// A probe into a dead rail is not given up by its NIC.
    pub probes_never_fail: bool,
    /// Nobody there says where the other end is: connecting a probe does not end.
    pub connects_hang: [bool; RAILS],
    /// Fences of that host take so long.
    pub slow_fence: Option<(usize, Duration)>,
    /// Posting again takes so long at that end, for each queue pair.
    pub slow_replay: Option<(usize, Duration)>,
    /// Such replays since that end last did something else, and the most there were.
    pub in_a_row: (usize, usize),
    suspended: Option<usize>,
    /// Devices that are removed, by host, until that was asked; and those that were let go.
    pub removed: BTreeSet<(usize, DeviceId)>,
    pub let_go: BTreeSet<(usize, DeviceId)>,
    /// The device on which the receives of a process's groups are, once they moved.
    homes: BTreeMap<(usize, u32), (usize, Round)>,
}

/// The fabric of one test.
#[derive(Clone)]
pub struct Fabric {
    state: Arc<Mutex<State>>,
    net: u8,
    /// Of the test's own process; another process of the same test names it, so that both share their directories.
    owner: u32,
}

/// One process on a host of the fabric.
pub struct Process {
    pub fabric: Fabric,
    pub host: usize,
    pub events: EventSender,
}

struct Path {
    fabric: Fabric,
    process: usize,
    ip_host: usize,
    standby: Result<(), Unprotected>,
}

/// GID of a host on a rail.
pub fn gid(host: usize, rail: usize) -> Gid {
    let mut bytes = [0; 16];
    bytes[10] = 0xff;
    bytes[11] = 0xff;
    bytes[12] = 10;
    bytes[13] = u8::try_from(rail).unwrap();
    bytes[15] = u8::try_from(host).unwrap();
    Gid(bytes)
}

fn host_and_rail(gid: &Gid) -> (usize, usize) {
    (usize::from(gid.0[15]), usize::from(gid.0[13]))
}

impl Fabric {
    /// Both rails up; `net` makes the addresses of each test its own.
    pub fn new(net: u8) -> Self {
        Self::of(net, std::process::id())
    }

    /// The hosts of a test that runs in the process `owner`, seen by another process of that test.
    pub fn of(net: u8, owner: u32) -> Self {
        let _ = env_logger::builder().is_test(true).format_timestamp_micros().parse_env("SHIFT_TEST_LOG").try_init();
        let state = State { rail_up: [true; RAILS], ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), net, owner }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Name of the local socket of a host's directory.
    pub fn directory(&self, host: usize) -> String {
        format!("shift-test-{}-{}-{host}", self.owner, self.net)
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> Ipv4Addr {
        network::near_end(self.owner, self.net, u8::try_from(host).unwrap())
    }

    /// A process on a host, with its agent.
    pub fn process(&self, host: usize, config: Config) -> Process {
        self.process_with(host, host, config, Ok(()))
    }

    /// The same; `id` tells processes of one host apart.
    pub fn process_with(&self, id: usize, host: usize, config: Config, standby: Result<(), Unprotected>) -> Process {
        self.start(id, host, config, standby, self.network(host, Reach::Plain))
    }

    /// One to which no GID leads.
    pub fn process_hidden(&self, id: usize, host: usize, config: Config) -> Process {
        self.start(id, host, config, Ok(()), self.network(host, Reach::Hidden))
    }

    /// One that is reached over a cable.
    pub fn process_on_cable(&self, host: usize, config: Config) -> Process {
        self.start(host, host, config, Ok(()), self.network(host, Reach::Cabled))
    }

    /// One that is reached over two networks.
    pub fn process_on_two_networks(&self, host: usize, config: Config) -> Process {
        let directory = format!("shift-test-{}-{}", self.owner, self.net);
        let network = TestNetwork { directory, ..self.network(host, Reach::Twofold) };
        self.start(host, host, config, Ok(()), network)
    }

    fn start(
        &self,
        id: usize,
        host: usize,
        config: Config,
        standby: Result<(), Unprotected>,
        network: TestNetwork,
    ) -> Process {
        let path = Path { fabric: self.clone(), process: id, ip_host: host, standby };
        let events = Agent::start_on(config, Arc::new(path), Box::new(network)).unwrap();
        Process { fabric: self.clone(), host: id, events }
    }

    /// Cuts or mends a rail.
    pub fn set_rail(&self, rail: usize, up: bool) {
        self.lock().rail_up[rail] = up;
    }
}

impl Qp {
    /// It posts what the application posts, on a path that is not fenced.
    pub fn is_running(&self) -> bool {
        !self.excluded && !self.fenced
    }

    fn post_entry(&mut self, at: usize) {
        let epoch = self.epoch;
        let incarnation = self.incarnations.get_mut(&epoch).unwrap();
        let entry = &mut self.sent[at];
        entry.posted = Some((Epoch(epoch), incarnation.packets));
        entry.delivered = false;
        incarnation.packets += 1;
        if entry.kind == Kind::Send {
            incarnation.sends_posted += 1;
        }
    }

    fn ordinal(&self, at: usize, epoch: Epoch) -> u64 {
        let before = |s: &&Sent| s.kind == Kind::Send && s.posted.is_some_and(|(e, _)| e == epoch);
        let shown = self.sent[..at].iter().filter(before).count() as u64;
        let first = self.sent.iter().position(|s| s.posted.is_some_and(|(e, _)| e == epoch)).unwrap_or(at);
        let _ = first;
        shown
    }
}

impl State {
    /// Carries what the rails carry.
    fn pump(&mut self) {
        let keys: Vec<(usize, QpLife)> = self.qps.keys().copied().collect();
        for key in keys {
            self.pump_queue(key);
        }
    }

    fn pump_queue(&mut self, key: (usize, QpLife)) {
        let (epoch, path, rail, peer, count) = {
            let qp = &self.qps[&key];
            if qp.fenced || qp.surfaced || qp.error_in == Some(qp.epoch) {
                return;
            }
            (qp.epoch, qp.path, qp.rail(), qp.peer, qp.sent.len())
        };
        let Some(peer) = peer else { return };
        for at in 0..count {
            let entry = self.qps[&key].sent[at];
            if entry.done || entry.posted.map(|(e, _)| e.0) != Some(epoch) {
                continue;
            }
            let is_open = |p: &&Qp| p.epoch == epoch && p.path == path && !p.fenced && !p.surfaced;
            let peer_rail = self.qps.get(&peer).filter(is_open).map(Qp::rail);
            if !peer_rail.is_some_and(|peer_rail| self.carries([(key.0, rail), (peer.0, peer_rail)])) {
                break;
            }
            if !entry.delivered {
                self.deliver(key, at, peer, entry);
            }
            if self.acks_lost[rail] {
                continue;
            }
            let qp = self.qps.get_mut(&key).unwrap();
            qp.sent[at].done = true;
            let incarnation = qp.incarnations.get_mut(&epoch).unwrap();
            incarnation.completed = entry.posted.unwrap().1 + 1;
            if entry.kind == Kind::Send {
                incarnation.sends_completed += 1;
            }
        }
    }

    fn deliver(&mut self, key: (usize, QpLife), at: usize, peer: (usize, QpLife), entry: Sent) {
        let target = self.qps.get_mut(&peer).unwrap();
        match entry.kind {
            Kind::Send => {
                target.received.push(entry.message);
                let epoch = target.epoch;
                target.incarnations.get_mut(&epoch).unwrap().receives += 1;
            }
            Kind::Write { rkey } => target.written.push((entry.message, rkey)),
        }
        self.qps.get_mut(&key).unwrap().sent[at].delivered = true;
    }
}

impl Path {
    fn with<T>(&self, qp: QpLife, act: impl FnOnce(&mut Qp) -> T) -> T {
        let mut state = self.fabric.lock();
        state.pump();
        let done = act(state.qps.get_mut(&(self.process, qp)).unwrap());
        state.pump();
        done
    }
}

impl DataPath for Path {
    fn standbys_of(&self, _primary: DeviceId) -> Result<Vec<Choice>, Unprotected> {
        self.standby.clone().map(|()| self.choices())
    }

    fn device_name(&self, device: DeviceId) -> String {
        format!("fake{}", device.0)
    }

    fn prepare_standbys(&self, qp: QpLife) -> Result<Prepared, Unprotected> {
        Ok(self.prepared(qp))
    }

    fn arrange(&self, qp: QpLife, slots: &[u8]) {
        self.arranged(qp, slots);
    }

    fn atomics_hold(&self, _qp: QpLife) -> bool {
        true
    }

    fn forbid_atomics(&self, _qp: QpLife) {}

    fn connect(
        &self,
        qp: QpLife,
        path: PathId,
        epoch: Epoch,
        peer: &PathEnd,
        own: Psn,
        peer_psn: Psn,
    ) -> Result<(), Errno> {
        let device = self.device_of(qp, path);
        let are_crossed = !self.fabric.lock().wires.is_empty();
        let is_one_rail = host_and_rail(&peer.gid).1 == device % RAILS;
        assert!(is_one_rail || are_crossed, "a path connects the same rail at both ends");
        assert_eq!(own, self.end(qp, device).psn_base.in_epoch(epoch));
        assert_eq!(peer_psn, peer.psn_base.in_epoch(epoch));
        self.with(qp, |q| q.connected(path.0, epoch.0));
        Ok(())
    }

    fn set_armed(&self, qp: QpLife, armed: bool) {
        self.with(qp, |q| q.armed = armed);
    }

    fn exclude(&self, qp: QpLife) -> bool {
        self.with(qp, |q| q.excluded = true);
        true
    }

    fn drain(&self, qp: QpLife, _keys: &dyn RemoteKeys) -> bool {
        self.with(qp, |q| q.excluded && q.sent.iter().all(|s| s.done || s.posted.is_none()))
    }

    fn release(&self, qp: QpLife) {
        self.with(qp, |q| {
            q.excluded = false;
            for at in 0..q.sent.len() {
                if q.sent[at].posted.is_none() && !q.sent[at].done {
                    q.post_entry(at);
                }
            }
        });
    }

    fn fence(&self, qp: QpLife, _drain: Micros) {
        self.with(qp, |q| {
            assert!(q.excluded, "nobody is fenced who was not excluded");
            q.fenced = true;
            q.fence_begun = Some(Instant::now());
            let epoch = q.epoch;
            q.incarnations.get_mut(&epoch).unwrap().fenced = true;
        });
    }

    fn poll_fence(&self, qp: QpLife) -> FenceProgress {
        let takes = self.fabric.lock().slow_fence.filter(|(host, _)| *host == self.process).map(|(_, takes)| takes);
        if self.with(qp, |q| q.fence_begun.unwrap().elapsed() < takes.unwrap_or_default()) {
            return FenceProgress::Pending;
        }
        FenceProgress::Fenced(self.with(qp, |q| {
            q.fenced_at = Some(Instant::now());
            let fenced = q.incarnations.iter().filter(|(_, i)| i.fenced);
            fenced
                .map(|(epoch, i)| IncarnationReport {
                    epoch: Epoch(*epoch),
                    path: PathId(i.path),
                    proof: Proof::Count,
                    receives: i.receives,
                    fenced: true,
                })
                .collect()
        }))
    }

    fn admit(&self, qp: QpLife, ledger: &mut Ledger) {
        self.with(qp, |q| {
            for (epoch, i) in q.incarnations.iter().filter(|(epoch, _)| **epoch <= q.epoch) {
                ledger
                    .incarnation(IncarnationFacts {
                        epoch: Epoch(*epoch),
                        path: PathId(i.path),
                        mtu: Mtu::new(1024).unwrap(),
                        completed_psn: Psn64(i.completed),
                        posted_psn: Psn64(i.packets),
                        completed_receives: i.sends_completed,
                    })
                    .unwrap();
            }
            if let Some(last) = q.sent.iter().rposition(|s| s.done) {
                ledger.landed_through(WrSeq(last as u64));
            }
            for (at, sent) in q.sent.iter().enumerate().filter(|(_, s)| !s.done) {
                let op = if sent.kind == Kind::Send { Op::Send } else { Op::Write };
                let seq = WrSeq(at as u64);
                let entry = Entry { seq, op, bytes: 64, fenced: false, unknown: OnUnknown::Replay };
                let posting = sent.posted.map(|(epoch, psn)| Posting {
                    epoch,
                    first_psn: Psn64(psn),
                    offset: 0,
                    receive_ordinal: q.ordinal(at, epoch),
                });
                ledger.admit(entry, posting).unwrap();
            }
        });
    }

    fn repost(&self, qp: QpLife, path: PathId, epoch: Epoch, round: Round) -> Result<usize, Errno> {
        if let Some((_, error)) = self.fabric.lock().refuses_receives.filter(|(host, _)| *host == self.process) {
            return Err(error);
        }
        self.fabric.lock().post_shared_receives(self.process, qp, path.0, round);
        self.with(qp, |q| {
            assert!(q.fenced, "receives move only after the fence");
            q.reposts += 1;
            q.reposted_at = Some(Instant::now());
            (q.epoch, q.path, q.fenced) = (epoch.0, path.0, false);
        });
        Ok(3)
    }

    fn replay(
        &self,
        qp: QpLife,
        path: PathId,
        epoch: Epoch,
        plan: &Plan,
        ledger: &mut Ledger,
        keys: &dyn RemoteKeys,
    ) -> ReplayProgress {
        let takes = self.fabric.lock().slow_replay.filter(|(host, _)| *host == self.process).map(|(_, takes)| takes);
        if let Some(takes) = takes {
            std::thread::sleep(takes);
            let in_a_row = &mut self.fabric.lock().in_a_row;
            in_a_row.0 += 1;
            in_a_row.1 = in_a_row.1.max(in_a_row.0);
        }
        self.with(qp, |q| {
            assert_eq!((q.path, q.epoch), (path.0, epoch.0));
            for step in &plan.steps {
                let at = usize::try_from(step.seq.0).unwrap();
                match step.action {
                    Action::Complete => q.sent[at].done = true,
                    Action::Replay { offset } => {
                        if q.sent[at].posted.is_some_and(|(e, _)| e == epoch) {
                            continue;
                        }
                        if let Some(progress) = q.translate(at, path, keys) {
                            return progress;
                        }
                        q.post_entry(at);
                        let (_, psn) = q.sent[at].posted.unwrap();
                        let receive_ordinal = q.ordinal(at, epoch);
                        ledger
                            .posted(step.seq, Posting { epoch, first_psn: Psn64(psn), offset, receive_ordinal })
                            .unwrap();
                    }
                }
            }
            if plan.stop.is_some() {
                return ReplayProgress::Done;
            }
            q.excluded = false;
            q.post_all_held(path, keys).unwrap_or(ReplayProgress::Done)
        })
    }

    fn post_held(&self, qp: QpLife, keys: &dyn RemoteKeys) -> ReplayProgress {
        self.with(qp, |q| {
            assert!(!q.excluded, "held posts stay held while posters are kept out");
            let path = PathId(q.path);
            q.post_all_held(path, keys).unwrap_or(ReplayProgress::Done)
        })
    }

    fn surface(&self, qp: QpLife, status: Option<u32>) {
        let ended = self.retired_below(qp).0 as usize;
        self.with(qp, |q| (q.surfaced, q.surfaced_at) = (true, (ended, status)));
    }

    fn retired_below(&self, qp: QpLife) -> WrSeq {
        self.with(qp, |q| WrSeq(q.sent.iter().position(|s| !s.done).unwrap_or(q.sent.len()) as u64))
    }

    fn next_seq(&self, qp: QpLife) -> WrSeq {
        self.with(qp, |q| WrSeq(q.sent.len() as u64))
    }

    fn could_end_in_error(&self, _qp: QpLife) -> bool {
        false
    }

    fn port_counters(&self, device: DeviceId) -> Option<PortCounters> {
        self.fabric.lock().counters.get(&(self.ip_host, usize::from(device.0))).copied()
    }

    fn retry_budget(&self, _qp: QpLife) -> Option<Micros> {
        None
    }

    fn in_error(&self, _qp: QpLife) -> bool {
        false
    }

    fn void_remote_keys(&self) {}

    fn withdrawal_confirmed(&self, _device: DeviceId, _rkey: u32) {}

    fn forget_incarnations(&self, _qp: QpLife, _below: Epoch) {}

    fn forget(&self, qp: QpLife, below: Epoch) {
        self.with(qp, |q| q.incarnations.retain(|epoch, _| *epoch >= below.0));
    }

    fn sweep(&self) {
        let dies = self.fabric.lock().panic_in_sweep == Some(self.process);
        assert!(!dies, "the test asked for this panic");
        if self.fabric.lock().slow_replay.is_some_and(|(host, _)| host == self.process) {
            self.fabric.lock().in_a_row.0 = 0;
        }
        while self.fabric.lock().suspended == Some(self.process) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn read_async(&self, _device: DeviceId) {}

    fn removed(&self) -> Vec<DeviceId> {
        let mut state = self.fabric.lock();
        let mine: Vec<_> = state.removed.iter().filter(|(host, _)| *host == self.process).copied().collect();
        mine.into_iter().filter(|found| state.removed.remove(found)).map(|(_, device)| device).collect()
    }

    fn stand_in(&self, _device: DeviceId) {
        self.fabric.lock().stood_in.insert(self.process);
    }

    fn let_go(&self, device: DeviceId) {
        self.fabric.lock().let_go.insert((self.process, device));
    }

    fn probe_open(&self, device: DeviceId, like: Gid) -> Result<(ProbeId, PathEnd), Errno> {
        let mut state = self.fabric.lock();
        let id = u32::try_from(state.probes.len()).unwrap() + 1;
        let rail = usize::from(device.0) % RAILS;
        assert_eq!(host_and_rail(&like), (self.ip_host, rail));
        let probe = Probe {
            host: self.process,
            peer: (0, rail),
            rail,
            started: false,
            failed: false,
            connected: false,
            since: Instant::now(),
        };
        state.probes.insert(id, probe);
        let end = PathEnd { qpn: 0x5000 + id, gid: like, mtu: Mtu::new(1024).unwrap(), psn_base: Psn::new(id) };
        Ok((ProbeId(id), end))
    }

    fn probe_connect(
        &self,
        probe: ProbeId,
        peer: &PathEnd,
        _own: Psn,
        _peer_psn: Psn,
        _patience: Micros,
    ) -> Result<(), Errno> {
        let mut state = self.fabric.lock();
        let probe = state.probes.get_mut(&probe.0).unwrap();
        (probe.connected, probe.failed, probe.started) = (true, false, false);
        probe.peer = host_and_rail(&peer.gid);
        Ok(())
    }

    fn probe_start(&self, probe: ProbeId) -> Result<(), Errno> {
        let mut state = self.fabric.lock();
        let probe = state.probes.get_mut(&probe.0).unwrap();
        assert!(probe.connected && !probe.failed && probe.host == self.process);
        (probe.started, probe.since) = (true, Instant::now());
        Ok(())
    }

    fn probe_connected(&self, probe: ProbeId) -> Option<Result<(), Errno>> {
        let state = self.fabric.lock();
        (!state.connects_hang[state.probes[&probe.0].rail]).then_some(Ok(()))
    }

    fn probe_poll(&self, probe: ProbeId) -> ProbeState {
        let mut state = self.fabric.lock();
        let never_fail = state.probes_never_fail;
        let carries = |probe: &Probe| state.carries([(probe.host, probe.rail), probe.peer]);
        let up = state.probes.get(&probe.0).is_some_and(carries);
        let probe = state.probes.get_mut(&probe.0).unwrap();
        if up {
            ProbeState::Answered
        } else if !never_fail && probe.since.elapsed() > Duration::from_millis(20) {
            probe.failed = true;
            ProbeState::Failed(12)
        } else {
            ProbeState::Pending
        }
    }

    fn probe_close(&self, probe: ProbeId) {
        self.fabric.lock().probes.get_mut(&probe.0).unwrap().connected = false;
    }
}
