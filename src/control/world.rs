//! What every queue pair shares: the data path, the peers, the probes, the keys, the log.
//!
//! Owns no queue pair. The queue pairs act on it; it never calls back into them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shift_proto::frame::{Frame, Handshake};
use shift_proto::id::{EndpointId, Micros, ProcessId, Site};

use crate::address::Network;
use crate::audit::Audit;
use crate::config::Config;
use crate::datapath::{Choice, DataPath, DeviceId, Gid, GroupId, QpLife};
use crate::drains::Drains;
use crate::gray::Gray;
use crate::interfaces::Interfaces;
use crate::keys::{KeysOf, OwnKeys, PeerKeys};
use crate::links::Links;
use crate::musters::Said;
use crate::peers::Peers;
use crate::probes::Probes;
use crate::record::{Journal, Record};
use crate::removal::Removals;
use crate::told::Told;

/// How long news of one kind are gathered into one line.
const GATHER_US: u64 = 100_000;
/// How often the same reason is told again, with the number of queue pairs since.
const REPEAT_US: u64 = 10_000_000;

#[derive(Debug, Default)]
struct Tally {
    count: usize,
    due: Micros,
    warning: bool,
}

/// See the module.
pub struct World {
    /// The operator's wishes.
    pub config: Config,
    /// The shim.
    pub data: Arc<dyn DataPath>,
    /// The host's networks.
    pub network: Arc<dyn Network>,
    /// All sockets.
    pub links: Links,
    /// The interfaces behind the GIDs of this process.
    pub interfaces: Interfaces,
    /// The other processes.
    pub peers: Peers,
    /// All probes.
    pub probes: Probes,
    /// Registrations here.
    pub own_keys: OwnKeys,
    /// Registrations there.
    pub peer_keys: BTreeMap<ProcessId, PeerKeys>,
    /// Device of each GID that was offered to a peer.
    pub devices: BTreeMap<Gid, DeviceId>,
    /// This process.
    pub me: ProcessId,
    /// Messages of migrations that were sent, to whomever.
    messages: u64,
    /// Frames to this process itself.
    pub loopback: VecDeque<Frame>,
    /// What the operator knows.
    pub told: Told,
    /// Where the records go.
    pub journal: Journal,
    /// What `shiftctl` and the last line are told.
    pub audit: Audit,
    /// Rails that an operator drains.
    pub drains: Drains,
    /// Devices that were removed.
    pub removals: Removals,
    /// Rails that fail without an error.
    pub(crate) gray: Gray,
    /// Queue pairs that would go to that device first.
    pub loads: BTreeMap<DeviceId, usize>,
    /// Probes that no queue pair needs any more may be there.
    pub has_unused: bool,
    /// Where receives of groups have been posted.
    pub posted: Vec<(GroupId, Site)>,
    /// What peers have said of planned moves of those that receive together, and to which queue pair.
    pub musters: Vec<Said>,
    /// Lines in the making.
    tallies: BTreeMap<String, Tally>,
}

impl World {
    /// Puts it together; nothing happens yet.
    pub fn new(
        config: Config,
        data: Arc<dyn DataPath>,
        network: Arc<dyn Network>,
        links: Links,
        peers: Peers,
        me: ProcessId,
    ) -> Self {
        let journal = Journal::new(config.event_file_of(std::process::id()));
        let probes = Probes::new(config.deadlines.probe);
        Self {
            config,
            data,
            network,
            links,
            interfaces: Interfaces::default(),
            peers,
            probes,
            own_keys: OwnKeys::default(),
            peer_keys: BTreeMap::new(),
            devices: BTreeMap::new(),
            me,
            messages: 0,
            loopback: VecDeque::new(),
            told: Told::default(),
            journal,
            audit: Audit::default(),
            drains: Drains::default(),
            removals: Removals::default(),
            gray: Gray::default(),
            loads: BTreeMap::new(),
            has_unused: false,
            posted: Vec::new(),
            musters: Vec::new(),
            tallies: BTreeMap::new(),
        }
    }

    /// Sends to a process, which may be this one.
    pub fn send(&mut self, to: ProcessId, frame: Frame) {
        if to == self.me {
            self.loopback.push_back(frame);
        } else {
            self.peers.send(&mut self.links, to, &frame);
        }
    }

    /// Sends a message of a migration to a queue pair of a process.
    pub fn send_message(&mut self, process: ProcessId, to: EndpointId, from: EndpointId, msg: Handshake) {
        self.messages += 1;
        self.send(process, Frame::Migration { number: self.messages, to, from, msg });
    }

    /// A device has this GID, by which a peer's frames may name it.
    pub fn know_device(&mut self, gid: Gid, device: DeviceId) {
        self.devices.insert(gid, device);
        self.interfaces.add(&mut self.links, device, gid);
    }

    /// The keys of a peer's device. Of this process itself they are looked up in the same way: it tells itself.
    pub fn keys_of(&self, peer: ProcessId, device: u16) -> KeysOf<'_> {
        KeysOf { keys: self.peer_keys.get(&peer), device }
    }

    /// The first queue pair of a device is connected: what is going to happen, and where to look.
    pub fn tell_first(&mut self, device: DeviceId, standbys: &[Choice], now: Micros) {
        let names: Vec<String> = standbys.iter().map(|choice| self.data.device_name(choice.device)).collect();
        let (from, to) = (self.data.device_name(device), names.join(", then "));
        if self.told.is_new(&format!("first on {from}"), now) {
            let (port, pid) = (self.config.port, std::process::id());
            log::info!("QPs of {from} are to fail over to {to}; peers are found on TCP port {port}; shiftctl status {pid} shows each QP");
        }
    }

    /// A device cannot stand by for another one, though others can.
    pub fn tell_lacking(&mut self, device: DeviceId, reason: &str, now: Micros) {
        let name = self.data.device_name(device);
        if self.told.is_new(&format!("lacking {name}: {reason}"), now) {
            log::warn!("a standby of {name} is not used: {reason}");
        }
    }

    /// A standby does not do, and another one is there.
    pub fn tell_instead(&mut self, words: &str, now: Micros) {
        if self.told.is_due(words, now, REPEAT_US) {
            log::warn!("{words}");
        }
    }

    /// A queue pair is protected.
    pub fn tell_protected(&mut self, words: String, now: Micros) {
        if !self.links.is_keyed() && self.told.is_new("open", now) {
            log::info!(
                "the job runs open: without SHIFT_JOB_KEY_FILE, who owns an address of a peer's host may pose as the peer"
            );
        }
        let tally = self.tallies.entry(words).or_default();
        tally.count += 1;
        if tally.count == 1 {
            tally.due = now + Micros(GATHER_US);
        }
    }

    /// A queue pair is not protected; the first of a reason is told at once.
    pub fn tell_unprotected(&mut self, qpn: u32, device: DeviceId, reason: &str, now: Micros) {
        let name = self.data.device_name(device);
        if self.told.is_new(reason, now) {
            log::warn!("qp {qpn:#x} on {name} is unprotected: {reason}");
            return;
        }
        let tally = self.tallies.entry(format!("unprotected on {name}: {reason}")).or_default();
        tally.count += 1;
        tally.warning = true;
        if tally.count == 1 {
            tally.due = now + Micros(REPEAT_US);
        }
    }

    /// Writes the lines that are due.
    pub fn flush_news(&mut self, now: Micros) {
        self.tallies.retain(|words, tally| {
            if now < tally.due {
                return true;
            }
            let noun = if tally.count == 1 { "QP" } else { "QPs" };
            if tally.warning {
                log::warn!("{} more {noun} {words}", tally.count);
            } else {
                log::info!("{} {noun} protected: {words}", tally.count);
            }
            false
        });
    }

    /// When [`World::flush_news`] is due.
    pub fn news_due(&self) -> Option<Micros> {
        self.tallies.values().map(|t| t.due).min()
    }

    /// Keeps a record that is complete.
    pub fn keep(&mut self, record: &Record) {
        self.audit.count(record);
        self.journal.append(record);
    }

    /// From now on faults of the queue pair are masked, or are the application's.
    pub fn set_armed(&self, qp: QpLife, armed: bool) {
        self.data.set_armed(qp, armed);
    }
}
