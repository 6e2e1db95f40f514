//! The tap: one fixed-size record for every frame that reached the wire, and one more when a held frame moves on or a queue is lost.
//!
//! Record, little-endian, 40 bytes: time u64, psn u32, qpn u32, length u32, aeth u32, ethertype u16, rule u16, link u8, from u8,
//! opcode u8, protocol u8, fate u8, flags u8 (1: RoCE, 2: ACK requested), 6 unused.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;

use super::packet::{Bth, Packet};
use super::rule::RuleId;
use crate::place::{Host, Link};

const RECORD_BYTES: usize = 40;

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Went on at once.
    Passed,
    /// Dropped by a rule.
    Dropped,
    /// Kept by a rule.
    Held,
    /// Was held, delayed or put back in order and goes on now.
    Released,
    /// Goes on later.
    Delayed,
    /// Went on twice.
    Duplicated,
    /// Went on with one byte changed.
    Corrupted,
    /// Waits for later frames to overtake it.
    Reordered,
    /// Was queued or kept, and its port takes no frames any more.
    Lost,
    /// Came when its port took no frames.
    Refused,
}

impl Fate {
    const ALL: [Fate; 10] = [
        Fate::Passed,
        Fate::Dropped,
        Fate::Held,
        Fate::Released,
        Fate::Delayed,
        Fate::Duplicated,
        Fate::Corrupted,
        Fate::Reordered,
        Fate::Lost,
        Fate::Refused,
    ];

    /// The frame went towards the other host at this moment, undamaged.
    pub fn went_on(self) -> bool {
        matches!(self, Fate::Passed | Fate::Released | Fate::Duplicated)
    }
}

/// One record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Host-monotonic nanoseconds.
    pub at_ns: u64,
    /// Which cable.
    pub link: Link,
    /// Who sent it.
    pub from: Host,
    /// What it is.
    pub packet: Packet,
    /// Bytes of the Ethernet frame.
    pub length: u32,
    /// What became of it.
    pub fate: Fate,
    /// The rule that decided.
    pub rule: Option<RuleId>,
}

impl Record {
    /// The RoCE header, if the frame went towards the other host.
    pub fn delivered_roce(&self) -> Option<Bth> {
        self.packet.roce.filter(|_| self.fate.went_on())
    }

    /// For a person who reads a trace.
    pub fn in_words(&self) -> String {
        let to = self.from.peer();
        let place = format!("{:10} {}->{}", format!("{:?}", self.link), self.from.name(), to.name());
        let what = match self.packet.roce {
            Some(bth) => {
                format!("opcode {:02x} qpn {:06x} psn {:06x} aeth {:08x}", bth.opcode, bth.qpn, bth.psn, bth.aeth)
            }
            None => format!("ethertype {:04x} protocol {}", self.packet.ethertype, self.packet.protocol),
        };
        let rule = self.rule.map_or(String::new(), |rule| format!(" (rule {})", rule.0));
        format!("{place}  {what}  {} bytes  {:?}{rule}", self.length, self.fate)
    }

    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let bth = self.packet.roce.unwrap_or_default();
        let flags = u8::from(self.packet.roce.is_some()) | (u8::from(bth.ack_requested) << 1);
        let small = [self.link.number(), self.from.octet(), bth.opcode, self.packet.protocol, self.fate as u8, flags];
        let rule = self.rule.map_or(0, |rule| rule.0);
        let mut bytes = [0; RECORD_BYTES];
        let fields = [
            &self.at_ns.to_le_bytes()[..],
            &bth.psn.to_le_bytes(),
            &bth.qpn.to_le_bytes(),
            &self.length.to_le_bytes(),
            &bth.aeth.to_le_bytes(),
            &self.packet.ethertype.to_le_bytes(),
            &rule.to_le_bytes(),
            &small,
        ];
        for (place, byte) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let u32_at = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let u16_at = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
        let [.., link, from, opcode, protocol, fate, flags, _, _, _, _, _, _] = *bytes;
        let bth = Bth { opcode, qpn: u32_at(12)?, psn: u32_at(8)?, ack_requested: flags & 2 != 0, aeth: u32_at(20)? };
        Some(Record {
            at_ns: bytes.get(..8)?.try_into().ok().map(u64::from_le_bytes)?,
            link: Link::from_number(link)?,
            from: Host::ALL.into_iter().find(|host| host.octet() == from)?,
            packet: Packet {
                ethertype: u16_at(24)?,
                protocol,
                roce: (flags & 1 != 0).then_some(bth),
                tcp: None,
                payload_at: 0,
            },
            length: u32_at(16)?,
            fate: Fate::ALL.into_iter().find(|each| *each as u8 == fate)?,
            rule: u16_at(26).filter(|rule| *rule != 0).map(RuleId),
        })
    }
}

/// Where the wire writes its records.
#[derive(Debug)]
pub struct LogWriter {
    file: BufWriter<File>,
    written: u64,
}

impl LogWriter {
    /// Starts a new log at `path`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: &Path) -> io::Result<LogWriter> {
        Ok(LogWriter { file: BufWriter::with_capacity(1 << 18, File::create(path)?), written: 0 })
    }

    /// Appends one record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, record: Record) -> io::Result<()> {
        self.written += 1;
        self.file.write_all(&record.to_bytes())
    }

    /// Makes everything readable; returns the number of records so far.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> io::Result<u64> {
        self.file.flush()?;
        Ok(self.written)
    }
}

/// Reads records `first..end` of the log at `path`.
///
/// # Errors
/// The file cannot be read, or holds something that is not a record.
pub fn read(path: &Path, first: u64, end: u64) -> io::Result<Vec<Record>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(first * RECORD_BYTES as u64))?;
    let mut bytes = Vec::new();
    file.take(end.saturating_sub(first) * RECORD_BYTES as u64).read_to_end(&mut bytes)?;
    bytes
        .chunks_exact(RECORD_BYTES)
        .map(|chunk| {
            chunk.try_into().ok().and_then(Record::from_bytes).ok_or_else(|| io::Error::other("wire log: not a record"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::packet::{parse, sample};
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let path = std::env::temp_dir().join(format!("shift-lab-log-{}", std::process::id()));
        let record = Record {
            at_ns: 0x1234_5678_9abc,
            link: Link::Rail1,
            from: Host::B,
            packet: Packet { payload_at: 0, ..parse(&sample::roce4(0x11, 17, 0xff_ffff, &[0x1f, 0, 0, 3])) },
            length: 62,
            fate: Fate::Held,
            rule: Some(RuleId(7)),
        };
        let arp = Record {
            packet: Packet { ethertype: 0x0806, ..Packet::default() },
            rule: None,
            fate: Fate::Passed,
            ..record
        };
        let mut log = LogWriter::create(&path).unwrap();
        for each in [record, arp, record] {
            log.append(each).unwrap();
        }
        assert_eq!(log.flush().unwrap(), 3);
        assert_eq!(read(&path, 0, 3).unwrap(), [record, arp, record]);
        assert_eq!(read(&path, 1, 2).unwrap(), [arp]);
        std::fs::remove_file(path).unwrap();
    }
}
