//! Running counts of what a link carried, cheap enough to be asked for a thousand times a second.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::log::{Fate, Record};
use crate::place::{Host, Link};

/// What one direction of one link carried.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flow {
    /// Frames that reached the wire.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that a rule dropped, or that came or waited for a port that is down.
    pub dropped: u64,
    /// RoCE packets that went on, by opcode.
    pub opcodes: BTreeMap<u8, u64>,
    /// Responses that went on and acknowledged something new: how often the PSN of a queue pair went forward. Retransmissions and
    /// their answers do not count, so this stands still when nothing progresses.
    pub advances: u64,
}

impl Flow {
    /// RoCE packets with one of `opcodes` that went on.
    pub fn packets(&self, opcodes: &[u8]) -> u64 {
        opcodes.iter().filter_map(|opcode| self.opcodes.get(opcode)).sum()
    }
}

/// All flows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    flows: Vec<(Link, Host, Flow)>,
}

impl Counts {
    /// What `from` sent over `link`.
    pub fn flow(&self, link: Link, from: Host) -> Flow {
        self.flows.iter().find(|(l, h, _)| (*l, *h) == (link, from)).map(|(.., flow)| flow.clone()).unwrap_or_default()
    }

    /// Sum of [`Flow::advances`] over all flows.
    pub fn progress(&self) -> u64 {
        self.flows.iter().map(|(.., flow)| flow.advances).sum()
    }

    fn flow_mut(&mut self, link: Link, from: Host) -> Option<&mut Flow> {
        if !self.flows.iter().any(|(l, h, _)| (*l, *h) == (link, from)) {
            self.flows.push((link, from, Flow::default()));
        }
        self.flows.iter_mut().find(|(l, h, _)| (*l, *h) == (link, from)).map(|(.., flow)| flow)
    }
}

/// Counts as the wire keeps them.
#[derive(Debug, Default)]
pub struct Meter {
    counts: Counts,
    highest: HashMap<(Link, Host, u32), u32>,
}

impl Meter {
    /// Takes one record of the log into account; true if it is progress, see [`Flow::advances`].
    pub fn count(&mut self, record: &Record) -> bool {
        let advanced = self.advanced(record);
        let Some(flow) = self.counts.flow_mut(record.link, record.from) else {
            return advanced;
        };
        if record.fate != Fate::Released && record.fate != Fate::Lost {
            flow.frames += 1;
            flow.bytes += u64::from(record.length);
        }
        flow.dropped += u64::from(matches!(record.fate, Fate::Dropped | Fate::Lost | Fate::Refused));
        flow.advances += u64::from(advanced);
        if let Some(bth) = record.delivered_roce() {
            *flow.opcodes.entry(bth.opcode).or_default() += 1;
        }
        advanced
    }

    /// The counts so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    fn advanced(&mut self, record: &Record) -> bool {
        let Some(bth) = record.delivered_roce().filter(|bth| bth.is_response() && bth.opcode < 0x20) else {
            return false;
        };
        match self.highest.get_mut(&(record.link, record.from, bth.qpn)) {
            Some(highest) => {
                let ahead = bth.psn.wrapping_sub(*highest) & 0x00ff_ffff;
                let forward = ahead != 0 && ahead < 0x0080_0000;
                if forward {
                    *highest = bth.psn;
                }
                forward
            }
            None => {
                self.highest.insert((record.link, record.from, bth.qpn), bth.psn);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{parse, sample};
    use super::*;

    fn ack(psn: u32, fate: Fate) -> Record {
        let packet = parse(&sample::roce4(0x11, 17, psn, &[0; 4]));
        Record { at_ns: 0, link: Link::Rail0, from: Host::B, packet, length: 62, fate, rule: None }
    }

    #[test]
    fn only_new_acknowledgements_that_went_on_are_progress() {
        let mut meter = Meter::default();
        for record in [
            ack(0xff_fffe, Fate::Passed),
            ack(0xff_fffe, Fate::Passed),
            ack(0xff_ffff, Fate::Dropped),
            ack(1, Fate::Passed),
            ack(0, Fate::Passed),
        ] {
            meter.count(&record);
        }
        let flow = meter.counts().flow(Link::Rail0, Host::B);
        assert_eq!((flow.advances, flow.frames, flow.dropped, flow.packets(&[0x11])), (2, 5, 1, 4));
        assert_eq!(meter.counts().progress(), 2);
    }
}
