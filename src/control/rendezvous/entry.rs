//! What the directory holds of one queue pair: which process has it, and where that one listens.
//!
//! Whoever can write there can write anything: what is read is checked for its form and its size, and believed in nothing but as a place
//! to ask.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shift_proto::id::ProcessId;

use crate::address::{is_link_local, MAX_ADDRESSES};
use crate::registry::Owned;

/// The form that is written here; another one is read by nobody.
const FORM: u32 = 1;
/// No entry is longer.
pub(super) const MAX_ENTRY: usize = 4096;

/// Where the process of a queue pair listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its random id: who else is met at these addresses is not the one.
    pub process: ProcessId,
    /// Its addresses, those of the management network and of its rails.
    pub addresses: Vec<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    form: u32,
    process: String,
    addresses: Vec<SocketAddr>,
}

impl Entry {
    /// Of a process that listens there; an address that means something on its own link only is no help elsewhere.
    pub fn new(process: ProcessId, addresses: &[SocketAddr]) -> Self {
        let addresses = addresses.iter().copied().filter(|a| !is_link_local(a.ip())).take(MAX_ADDRESSES).collect();
        Self { process, addresses }
    }

    /// As it is stored.
    pub(super) fn text(&self) -> String {
        let process = format!("{:016x}", self.process.0);
        let written = Written { form: FORM, process, addresses: self.addresses.clone() };
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// As it was stored; `None`: nothing that a process of this library wrote.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_ENTRY {
            return None;
        }
        let written: Written = serde_json::from_slice(bytes).ok()?;
        let is_ours = written.form == FORM && (1..=MAX_ADDRESSES).contains(&written.addresses.len());
        let process = ProcessId(parse_hex(&written.process).filter(|_| is_ours)?);
        Some(Self { process, addresses: written.addresses })
    }
}

/// `from_str_radix` would take a sign.
fn parse_hex(text: &str) -> Option<u64> {
    let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// The name of a queue pair in the directory.
pub(super) fn name_of((gid, qpn): Owned) -> String {
    format!("{:032x}-{qpn:06x}", u128::from_be_bytes(gid.0))
}

/// Whether a file is called like a queue pair.
pub(super) fn is_name(name: &str) -> bool {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    name.split_once('-').is_some_and(|(gid, qpn)| hex(gid, 32) && hex(qpn, 6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Gid;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let addresses = ["10.0.0.7:20000", "[fe80::7]:20000", "[fd00::7]:20000"].map(|a| a.parse::<SocketAddr>());
        let addresses: Vec<SocketAddr> = addresses.into_iter().flatten().collect();
        let entry = Entry::new(ProcessId(0xfeed_0000_0000_0007), &addresses);
        assert_eq!(entry.addresses.len(), 2, "the link-local one leads nowhere from elsewhere");
        let text = entry.text();
        assert_eq!(Entry::read(text.as_bytes()), Some(entry));
        let spoilt = [
            text.replace("\"form\":1", "\"form\":2"),
            text.replace("10.0.0.7:20000", "head:20000"),
            text.replace("feed", "+eed"),
            text.replace('{', ""),
            format!("{text}{}", " ".repeat(MAX_ENTRY)),
            String::new(),
        ];
        for other in spoilt {
            assert_ne!(other, text);
            assert_eq!(Entry::read(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn names_are_of_one_shape() {
        let name = name_of((Gid([0xab; 16]), 0x17));
        assert_eq!(name, format!("{}-000017", "ab".repeat(16)));
        assert!(is_name(&name) && !is_name("notes.txt") && !is_name(&name[1..]));
    }
}
