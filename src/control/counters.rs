//! What the kernel counts of a port: `/sys/class/infiniband/DEVICE/ports/1`, `hw_counters` and `counters`.
//!
//! Owns the names of the drivers' counters. Only events at the requester's end are taken for losses, one for each time that it began to send again: what a
//! responder counts (`out_of_sequence`, `duplicate_request`) is one for each packet behind a lost one, and so says how much was in flight.
//! A reading costs a few files, and on hardware a question to the firmware: it is for every few seconds.

use std::fs;
use std::path::Path;

use crate::datapath::PortCounters;

/// Where the kernel shows its RDMA devices.
pub const DEVICES: &str = "/sys/class/infiniband";

/// Names of what was sent: soft-RoCE's, and those of the InfiniBand architecture's port counters, in which hardware counts RoCE too.
const PACKETS: [&str; 3] = ["hw_counters/sent_pkts", "counters/port_xmit_packets", "hw_counters/tx_pkts"];
/// Repetitions that a requester began: soft-RoCE; mlx5, and bnxt_re of late (a NAK, one that a READ response implies, a time-out); bnxt_re before.
const RESENT: [&str; 6] = [
    "hw_counters/completer_retry_err",
    "hw_counters/packet_seq_err",
    "hw_counters/implied_nak_seq_err",
    "hw_counters/local_ack_timeout_err",
    "hw_counters/to_retransmits",
    "hw_counters/seq_err_naks_rcvd",
];
/// Answers that said "receiver not ready", of the same drivers.
const NOT_READY: [&str; 3] = ["hw_counters/rcvd_rnr_err", "hw_counters/rnr_nak_retry_err", "hw_counters/rnr_naks_rcvd"];
/// In words of four bytes.
const WORDS: [&str; 2] = ["counters/port_xmit_data", "counters/port_rcv_data"];
/// Where the port counts no bytes: packets both ways, taken for as many bytes.
const BOTH_WAYS: [&str; 4] =
    ["hw_counters/sent_pkts", "hw_counters/rcvd_pkts", "hw_counters/tx_pkts", "hw_counters/rx_pkts"];

/// What a device's port has counted so far; `None` where it does not count what was sent or what was repeated.
pub fn read(devices: &Path, name: &str) -> Option<PortCounters> {
    let port = devices.join(name).join("ports/1");
    let number = |file: &&str| fs::read_to_string(port.join(file)).ok()?.trim().parse::<u64>().ok();
    let sum = |files: &[&str]| files.iter().filter_map(number).reduce(u64::wrapping_add);
    let packets = PACKETS.iter().find_map(number)?;
    let amount = sum(&WORDS).map(|words| words.wrapping_mul(4)).or_else(|| sum(&BOTH_WAYS)).unwrap_or(packets);
    Some(PortCounters { packets, resent: sum(&RESENT)?, not_ready: sum(&NOT_READY).unwrap_or_default(), amount })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails should say where")]
mod tests {
    use super::*;
    use shift_proto::gray::Counts;

    fn device(name: &str, files: &[(&str, &str)]) -> Option<PortCounters> {
        let root = std::env::temp_dir().join(format!("shift-counters-{}-{name}", std::process::id()));
        let port = root.join(name).join("ports/1");
        fs::create_dir_all(port.join("hw_counters")).unwrap();
        fs::create_dir_all(port.join("counters")).unwrap();
        files.iter().for_each(|(file, text)| fs::write(port.join(file), text).unwrap());
        let counters = read(&root, name);
        fs::remove_dir_all(root).unwrap();
        counters
    }

    #[test]
    fn soft_roce_and_mlx5_are_read_by_their_own_names() {
        let rxe = [
            ("hw_counters/sent_pkts", "1000\n"),
            ("hw_counters/rcvd_pkts", "500\n"),
            ("hw_counters/completer_retry_err", "7\n"),
            ("hw_counters/rcvd_rnr_err", "3\n"),
            ("hw_counters/duplicate_request", "99\n"),
        ];
        assert_eq!(device("rxe0", &rxe), Some(PortCounters { packets: 1000, resent: 7, not_ready: 3, amount: 1500 }));
        let mlx5 = [
            ("counters/port_xmit_packets", "2000\n"),
            ("counters/port_xmit_data", "100\n"),
            ("counters/port_rcv_data", "50\n"),
            ("hw_counters/packet_seq_err", "4\n"),
            ("hw_counters/local_ack_timeout_err", "2\n"),
            ("hw_counters/rnr_nak_retry_err", "1\n"),
            ("hw_counters/out_of_sequence", "99\n"),
        ];
        assert_eq!(device("mlx5_0", &mlx5), Some(PortCounters { packets: 2000, resent: 6, not_ready: 1, amount: 600 }));
    }

    #[test]
    fn a_device_that_counts_nothing_is_not_judged() {
        assert_eq!(device("empty", &[]), None);
        assert_eq!(device("half", &[("hw_counters/sent_pkts", "1\n")]), None);
        assert_eq!(
            device("bad", &[("hw_counters/sent_pkts", "N/A\n"), ("hw_counters/completer_retry_err", "1\n")]),
            None
        );
    }

    #[test]
    fn what_was_counted_meanwhile_is_the_difference_and_a_counter_that_begins_anew_says_nothing() {
        let of = |packets, resent| PortCounters { packets, resent, not_ready: 0, amount: packets };
        let counts = Counts { packets: 10, resent: 2, not_ready: 0, amount: 10 };
        assert_eq!(of(15, 3).since(&of(5, 1)), Some(counts));
        assert_eq!(of(3, 0).since(&of(5, 0)), None);
    }
}
