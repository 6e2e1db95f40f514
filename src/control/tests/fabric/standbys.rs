//! Standbys of the fabric: which rails there are beside the first one, in which order, and which path is on which.

use shift_control::datapath::{Choice, DeviceId, Prepared, QpLife, Standby, StandbyKeys};
use shift_proto::id::PathId;

use super::{Path, Qp};

/// The keys of memory that is on the first standby only.
pub fn on_first(rkey: u32) -> StandbyKeys {
    let mut rkeys = StandbyKeys::default();
    rkeys[0] = Some(rkey);
    rkeys
}

impl Path {
    /// The rails of its standbys, by slot.
    fn standby_rails(&self) -> Vec<usize> {
        self.fabric.lock().standbys.get(&self.process).cloned().unwrap_or_else(|| vec![1])
    }

    pub(super) fn choices(&self) -> Vec<Choice> {
        let choice = |rail: usize| Choice { device: DeviceId(u16::try_from(rail).unwrap()), rank: 0 };
        self.standby_rails().into_iter().map(choice).collect()
    }

    pub(super) fn prepared(&self, qp: QpLife) -> Prepared {
        let standby = |(slot, choice): (u8, Choice)| {
            let end = self.end(qp, usize::from(choice.device.0));
            Standby { slot, choice, end }
        };
        let standbys = (0..).zip(self.choices()).map(standby).collect();
        Prepared { primary: self.end(qp, 0), standbys, lacking: Vec::new() }
    }

    pub(super) fn arranged(&self, qp: QpLife, slots: &[u8]) {
        let rails = self.standby_rails();
        self.with(qp, |q| q.rails = slots.iter().map(|slot| rails[usize::from(*slot)]).collect());
    }

    pub(super) fn rail_of(&self, qp: QpLife, path: PathId) -> usize {
        self.with(qp, |q| q.rail_of(path.0))
    }
}

impl Qp {
    /// The rail that it is on.
    pub fn rail(&self) -> usize {
        self.rail_of(self.path)
    }

    fn rail_of(&self, path: u8) -> usize {
        match usize::from(path).checked_sub(1) {
            None => 0,
            Some(at) => self.rails[at],
        }
    }
}
