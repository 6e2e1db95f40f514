//! What is known of all queue pairs together: those that are not recorded, and the sums of a process.
//!
//! Owns the counters behind `shiftctl status` and the last line of a process; decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use shift_proto::migrate::Stage;

use crate::datapath::{DataPath, DeviceId};
use crate::qp::Qp;
use crate::record::{Outcome, Record};
use crate::status::{QueuePair, Totals};

/// Queue pairs that are remembered one by one; of further ones only the number is known.
const MAX_UNRECORDED: usize = 4096;

/// The sums of a process: the agent adds, and whoever ends the process says them without waiting for it. Held for a copy or a few additions at a time.
#[derive(Clone, Debug, Default)]
pub struct Sums(Arc<Mutex<Totals>>);

impl Sums {
    /// As they stand.
    pub fn now(&self) -> Totals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to them.
    pub fn add(&self, change: impl FnOnce(&mut Totals)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Audit {
    /// Since the process began.
    pub sums: Sums,
    unrecorded: BTreeMap<(DeviceId, u32), String>,
}

impl Audit {
    /// A queue pair that is passed through.
    pub fn add(&mut self, device: DeviceId, qpn: u32, reason: String) {
        self.sums.add(|totals| totals.queue_pairs += 1);
        if self.unrecorded.len() < MAX_UNRECORDED {
            self.unrecorded.insert((device, qpn), reason);
        }
    }

    /// It is gone.
    pub fn remove(&mut self, device: DeviceId, qpn: u32) {
        self.unrecorded.remove(&(device, qpn));
    }

    /// A migration came to its end.
    pub fn count(&mut self, record: &Record) {
        self.sums.add(|totals| {
            totals.migrations += u64::from(record.outcome == Outcome::Confirmed);
            totals.proven += record.proven;
            totals.replayed += record.replayed;
            totals.surfaced += record.surfaced;
        });
    }

    /// Those that are not recorded.
    pub fn unrecorded<'a>(&'a self, data: &'a dyn DataPath) -> impl Iterator<Item = QueuePair> + 'a {
        self.unrecorded.iter().map(|((device, qpn), reason)| {
            let device = data.device_name(*device);
            let path = device.clone();
            QueuePair { qpn: *qpn, device, path, reason: Some(reason.clone()), ..QueuePair::default() }
        })
    }
}

/// The name of this process, as the kernel has it.
pub fn program() -> String {
    std::fs::read_to_string("/proc/self/comm").unwrap_or_default().trim_end().to_owned()
}

impl Qp {
    /// How it stands.
    pub fn status(&self, data: &dyn DataPath) -> QueuePair {
        let name = |path| self.path(path).and_then(|state| state.device).map(|device| data.device_name(device));
        let device = data.device_name(self.facts.device);
        QueuePair {
            qpn: self.facts.qpn,
            peer: Some((self.facts.peer_qpn, std::net::Ipv6Addr::from(self.facts.peer_gid.0).to_string())),
            protected: self.masked,
            path: name(self.current()).unwrap_or_else(|| device.clone()),
            device,
            standby: self.next_path().and_then(name),
            silent: self.silent_standbys(name),
            epoch: self.machine.as_ref().map_or(0, |machine| machine.epoch().0),
            moving: self
                .machine
                .as_ref()
                .is_some_and(|machine| !matches!(machine.state().stage, Stage::Running | Stage::Dead | Stage::Gone)),
            reason: (!self.masked).then(|| self.why_unprotected()),
        }
    }

    fn why_unprotected(&self) -> String {
        let stage = self.machine.as_ref().map(|machine| machine.state().stage);
        let ended = match stage {
            Some(Stage::Dead) => Some("an error was given to the application"),
            Some(Stage::Gone) => Some("the peer's queue pair is gone"),
            _ if self.peer_gone => Some("the peer's process has ended"),
            _ => None,
        };
        let told = self.refused.as_deref().or(ended).or(self.reason.as_deref());
        let reason = told.unwrap_or(match (&self.process, &self.machine) {
            (None, _) => "its peer is being sought",
            (Some(_), None) => "its peer was found and has not offered a standby yet",
            (Some(_), Some(_)) => "its standby is being tried",
        });
        reason.to_owned()
    }
}
