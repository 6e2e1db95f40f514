//! Standbys of the fabric: which rails there are beside the first one, in which order, and which path is on which.

use std::collections::BTreeMap;
use std::sync::Mutex;

use shift_control::datapath::{Choice, DeviceId, PathEnd, Prepared, QpLife, Standby, StandbyKeys};
use shift_proto::id::{Mtu, PathId, Psn};

use super::{gid, Incarnation, Path, Process, Qp, RAILS};

type Happening = Box<dyn FnOnce() + Send>;

/// What happens once a process has asked for the first time which standbys it has, by network and process.
static ONCE_ASKED: Mutex<BTreeMap<(u8, usize), Happening>> = Mutex::new(BTreeMap::new());

impl Process {
    /// Happens when its standbys were made for a queue pair, before the peer hears of them.
    pub fn when_prepared(&self, happens: impl FnOnce() + Send + 'static) {
        ONCE_ASKED.lock().unwrap().insert((self.fabric.net, self.host), Box::new(happens));
    }
}

/// The keys of memory that is on the first standby only.
pub fn on_first(rkey: u32) -> StandbyKeys {
    let mut rkeys = StandbyKeys::default();
    rkeys[0] = Some(rkey);
    rkeys
}

impl Path {
    /// The devices of its standbys, by slot, those that are gone too.
    fn standby_devices(&self) -> Vec<usize> {
        self.fabric.lock().standbys.get(&self.process).cloned().unwrap_or_else(|| vec![1])
    }

    /// Those that are there, with their slots.
    fn slots(&self) -> Vec<(u8, Choice)> {
        let choice = |device: usize| Choice { device: DeviceId(u16::try_from(device).unwrap()), rank: 0 };
        let all: Vec<(u8, Choice)> = (0..).zip(self.standby_devices().into_iter().map(choice)).collect();
        let state = self.fabric.lock();
        all.into_iter().filter(|(_, choice)| !state.gone.contains(&(self.process, choice.device))).collect()
    }

    pub(super) fn choices(&self) -> Vec<Choice> {
        self.slots().into_iter().map(|(_, choice)| choice).collect()
    }

    pub(super) fn prepared(&self, qp: QpLife) -> Prepared {
        let standby = |(slot, choice): (u8, Choice)| {
            let end = self.end(qp, usize::from(choice.device.0));
            Standby { slot, choice, end }
        };
        let standbys = self.slots().into_iter().map(standby).collect();
        let happens = ONCE_ASKED.lock().unwrap().remove(&(self.fabric.net, self.process));
        happens.into_iter().for_each(|happens| happens());
        Prepared { primary: self.end(qp, 0), standbys, lacking: Vec::new() }
    }

    pub(super) fn arranged(&self, qp: QpLife, slots: &[u8]) {
        let devices = self.standby_devices();
        self.with(qp, |q| q.devices = slots.iter().map(|slot| devices[usize::from(*slot)]).collect());
    }

    /// One of its ends.
    pub(super) fn end(&self, qp: QpLife, device: usize) -> PathEnd {
        let rail = device % RAILS;
        let (ip_host, standby) =
            (self.ip_host, if device == 0 { 0x100 } else { 0x9000 * u32::try_from(device).unwrap() });
        // Of the primary each end tells what it expects of the other; here both expect the same.
        let base = if device == 0 { 0x70_0000 } else { u32::try_from(ip_host * 0x1000).unwrap() + qp.0 };
        PathEnd { qpn: standby + qp.0, gid: gid(ip_host, rail), mtu: Mtu::new(1024).unwrap(), psn_base: Psn::new(base) }
    }

    pub(super) fn device_of(&self, qp: QpLife, path: PathId) -> usize {
        self.with(qp, |q| q.device_of(path.0))
    }
}

impl Qp {
    /// The rail that it is on.
    pub fn rail(&self) -> usize {
        self.device_of(self.path) % RAILS
    }

    /// The devices of its paths, but for the first.
    pub fn standbys(&self) -> Vec<usize> {
        self.devices.clone()
    }

    /// The device of a path.
    pub(super) fn device_of(&self, path: u8) -> usize {
        match usize::from(path).checked_sub(1) {
            None => 0,
            Some(at) => self.devices[at],
        }
    }
}

impl Qp {
    /// What was connected ahead is forgotten if the connection goes elsewhere after all.
    pub(super) fn connected(&mut self, path: u8, epoch: u32) {
        let known = self.incarnations.get(&epoch).map(|incarnation| incarnation.path);
        if known.is_none() || epoch > self.epoch && known != Some(path) {
            self.incarnations.insert(epoch, Incarnation { path, ..Incarnation::default() });
        }
    }

    /// The path that was connected first for the next epoch.
    pub fn ahead(&self) -> Option<u8> {
        self.incarnations.get(&(self.epoch + 1)).map(|incarnation| incarnation.path)
    }
}
