//! The shim's own record of a migration at one end: the last that its process wrote (`SHIFT_EVENT_FILE`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::evidence::Evidence;
use crate::guest::Guest;

/// What the demo shows of a record; times on this machine's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Migration {
    pub(super) cause: String,
    pub(super) phases_ns: BTreeMap<String, u64>,
    pub(super) proven: u64,
    pub(super) replayed: u64,
    pub(super) replayed_partly: u64,
    pub(super) surfaced: u64,
    pub(super) proofs: Proofs,
    pub(super) outcome: String,
    /// How many records there were; more than one if a further fault overtook the first.
    #[serde(default)]
    pub(super) records: usize,
}

/// How many requests were decided by what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proofs {
    pub(super) psn: u64,
    pub(super) receive_count: u64,
    pub(super) successes: u64,
    pub(super) landed: u64,
    pub(super) never_posted: u64,
    pub(super) unproven: u64,
}

impl Migration {
    /// The last record of the host of `guest`; none if the shim left none.
    pub(super) fn of(evidence: &Evidence, guest: &Guest) -> Option<Migration> {
        let mut migration = Migration::last(evidence.of(guest.host()))?;
        for at_ns in migration.phases_ns.values_mut() {
            *at_ns = guest.host_time(*at_ns);
        }
        Some(migration)
    }

    fn last<'a>(records: impl Iterator<Item = &'a Value>) -> Option<Migration> {
        let records: Vec<Migration> = records.filter_map(|record| Migration::deserialize(record).ok()).collect();
        let count = records.len();
        records.into_iter().next_back().map(|last| Migration { records: count, ..last })
    }

    /// When a phase was reached.
    pub(super) fn at(&self, phase: &str) -> Option<u64> {
        self.phases_ns.get(phase).copied()
    }

    /// Requests that had been on the old path and were sent again; the other replayed ones had been held.
    pub(super) fn sent_again(&self) -> u64 {
        self.replayed.saturating_sub(self.proofs.never_posted)
    }
}

impl Proofs {
    /// What the decisions rest on, in words.
    pub(super) fn in_words(self) -> String {
        let named = [
            (self.psn, "the receiver's final PSN"),
            (self.receive_count, "the receiver's count of receives"),
            (self.successes, "what the receiver drained"),
            (self.landed, "a later fenced request"),
            (self.unproven, "nothing: the policy decided"),
        ];
        let used: Vec<&str> = named.into_iter().filter(|(count, _)| *count > 0).map(|(_, name)| name).collect();
        used.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_record_is_read_and_the_rest_counted() {
        let record = |proven: u64| {
            let proofs =
                json!({ "psn": 9, "receive_count": 0, "successes": 0, "landed": 0, "never_posted": 2, "unproven": 0 });
            json!({
                "event": "migration", "pid": 9, "cause": "port down", "phases_ns": { "trigger": 5, "resumed": 9 }, "proven": proven,
                "replayed": 7, "replayed_partly": 1, "surfaced": 0, "proofs": proofs, "outcome": "confirmed", "why": null,
            })
        };
        let migration = Migration::last([record(1), json!({ "event": "another" }), record(4)].iter()).unwrap();
        assert_eq!((migration.records, migration.proven, migration.sent_again()), (2, 4, 5));
        assert_eq!(migration.at("resumed"), Some(9));
        assert_eq!(migration.proofs.in_words(), "the receiver's final PSN");
    }
}
