//! What the wire's log says of one queue pair that moves: how much new data arrived when, by which rail.

use std::collections::HashMap;

use crate::place::{Host, Rail};
use crate::wire::log::Record;
use crate::wire::packet::Bth;

/// Headers of a packet without the IP header: Ethernet 14, UDP 8, BTH 12, ICRC 4.
const HEADERS: u32 = 14 + 8 + 12 + 4;
/// RDMA header of the first packet of a WRITE.
const RETH: u32 = 16;
/// Immediate data.
const IMMEDIATE: u32 = 4;

/// A packet that brought new data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arrival {
    at_ns: u64,
    rail: Rail,
    qpn: u32,
    bytes: u64,
    last: bool,
}

/// Everything new that the application's queue pair was sent, repetitions left out.
#[derive(Debug, Clone, Default)]
pub(super) struct Traffic {
    arrivals: Vec<Arrival>,
}

impl Traffic {
    /// What `sender` got across. Of each rail only the queue pair with the most data is the application's: the others are probes.
    pub(super) fn of(records: &[Record], sender: Host) -> Traffic {
        let mut highest = HashMap::new();
        let mut arrivals: Vec<Arrival> = Vec::new();
        for record in records.iter().filter(|record| record.from == sender) {
            let rail = Rail::ALL.into_iter().find(|rail| rail.link() == record.link);
            let request = record.delivered_roce().filter(|bth| bth.opcode <= 0x0b);
            let Some((rail, bth)) = rail.zip(request) else { continue };
            if is_new(highest.entry((rail, bth.qpn)).or_insert(None), bth.psn) {
                let last = matches!(bth.opcode, 0x02..=0x05 | 0x08..=0x0b);
                arrivals.push(Arrival { at_ns: record.at_ns, rail, qpn: bth.qpn, bytes: payload(record, &bth), last });
            }
        }
        let mut sums: HashMap<(Rail, u32), u64> = HashMap::new();
        for each in &arrivals {
            *sums.entry((each.rail, each.qpn)).or_default() += each.bytes;
        }
        let main =
            |rail| sums.iter().filter(|(key, _)| key.0 == rail).max_by_key(|(_, bytes)| **bytes).map(|(key, _)| key.1);
        let [zero, one] = Rail::ALL.map(main);
        arrivals.retain(|each| Some(each.qpn) == if each.rail == Rail::Zero { zero } else { one });
        Traffic { arrivals }
    }

    fn on(&self, rail: Rail) -> impl DoubleEndedIterator<Item = &Arrival> {
        self.arrivals.iter().filter(move |each| each.rail == rail)
    }

    /// When the first data arrived.
    pub(super) fn start_ns(&self) -> u64 {
        self.arrivals.first().map_or(0, |each| each.at_ns)
    }

    /// From the first data to `at_ns`.
    pub(super) fn since_start(&self, at_ns: u64) -> u64 {
        at_ns.saturating_sub(self.start_ns())
    }

    /// When the first and the last data of `rail` arrived.
    pub(super) fn span(&self, rail: Rail) -> Option<(u64, u64)> {
        Some((self.on(rail).next()?.at_ns, self.on(rail).next_back()?.at_ns))
    }

    /// New data by `rail`.
    pub(super) fn bytes(&self, rail: Rail) -> u64 {
        self.on(rail).map(|each| each.bytes).sum()
    }

    /// New data by `rail` in each `step_ns` from the start to `end_ns`.
    pub(super) fn series(&self, rail: Rail, step_ns: u64, end_ns: u64) -> Vec<u64> {
        let steps = self.since_start(end_ns).div_ceil(step_ns);
        let mut series = vec![0; usize::try_from(steps).unwrap_or(0)];
        for each in self.on(rail) {
            let step = usize::try_from(self.since_start(each.at_ns) / step_ns).unwrap_or(usize::MAX);
            if let Some(sum) = series.get_mut(step) {
                *sum += each.bytes;
            }
        }
        series
    }

    /// Sizes of the messages that arrived whole by `rail`, in order.
    pub(super) fn messages(&self, rail: Rail) -> Vec<u64> {
        let mut sizes = Vec::new();
        let mut size = 0;
        for each in self.on(rail) {
            size += each.bytes;
            if each.last {
                sizes.push(std::mem::take(&mut size));
            }
        }
        sizes
    }
}

/// Whether `psn` is ahead of all before it; half of the 24 bits is ahead.
fn is_new(highest: &mut Option<u32>, psn: u32) -> bool {
    let new = highest.is_none_or(|highest| (1..0x0080_0000).contains(&(psn.wrapping_sub(highest) & 0x00ff_ffff)));
    if new {
        *highest = Some(psn);
    }
    new
}

/// Bytes of data in a packet of a SEND or WRITE, if it has no padding.
fn payload(record: &Record, bth: &Bth) -> u64 {
    let ip = if record.packet.ethertype == 0x86dd { 40 } else { 20 };
    let extended = match bth.opcode {
        0x06 | 0x0a => RETH,
        0x0b => RETH + IMMEDIATE,
        0x03 | 0x05 | 0x09 => IMMEDIATE,
        _ => 0,
    };
    u64::from(record.length.saturating_sub(HEADERS + ip + extended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::log::Fate;
    use crate::wire::packet::Packet;

    fn packet(at_ms: u64, rail: Rail, qpn: u32, psn: u32, opcode: u8, bytes: u32) -> Record {
        let extended = if matches!(opcode, 0x06 | 0x0a) { RETH } else { 0 };
        let roce = Some(Bth { opcode, qpn, psn, ..Bth::default() });
        Record {
            at_ns: at_ms * 1_000_000,
            link: rail.link(),
            from: Host::A,
            packet: Packet { ethertype: 0x0800, protocol: 17, roce, tcp: None, payload_at: 54 },
            length: HEADERS + 20 + extended + bytes,
            fate: Fate::Passed,
            rule: None,
        }
    }

    #[test]
    fn only_new_data_of_the_applications_queue_pair_counts() {
        let mut records = vec![
            packet(1000, Rail::Zero, 17, 0xff_ffff, 0x06, 4096),
            packet(1010, Rail::Zero, 17, 0, 0x08, 1000),
            packet(1020, Rail::Zero, 17, 0xff_ffff, 0x06, 4096),
            packet(1150, Rail::One, 5, 7, 0x0a, 8),
            packet(1160, Rail::One, 33, 100, 0x06, 4096),
            packet(1170, Rail::One, 33, 101, 0x08, 404),
            packet(1180, Rail::One, 33, 102, 0x0a, 64),
        ];
        records.push(Record { fate: Fate::Dropped, ..packet(1190, Rail::One, 33, 103, 0x0a, 64) });
        let traffic = Traffic::of(&records, Host::A);
        assert_eq!(Rail::ALL.map(|rail| traffic.bytes(rail)), [5096, 4564]);
        assert_eq!(traffic.messages(Rail::One), [4500, 64]);
        assert_eq!(traffic.series(Rail::Zero, 100_000_000, 1_200_000_000), [5096, 0]);
        assert_eq!(traffic.series(Rail::One, 100_000_000, 1_200_000_000), [0, 4564]);
        assert_eq!(traffic.span(Rail::One), Some((1_160_000_000, 1_180_000_000)));
        assert_eq!(Traffic::of(&records, Host::B).span(Rail::Zero), None);
    }
}
