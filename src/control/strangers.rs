//! Who was turned away at the ports of this process: counted by reason, and said once for each.
//!
//! A stranger must not be able to fill a disk with lines, so the first of a reason is told with its address, the others are
//! a number in the line that is written when the process ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::channel::Mismatch;

/// Why a connection, or a word on it, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What came is none of this job's.
    Mismatch(Mismatch),
    /// Nothing valid was said in time.
    Silent,
    /// There were too many at once.
    Crowded,
    /// It calls itself a known process, and does not know what that one knows.
    Token,
    /// It comes from an address that the process had not told.
    Address,
    /// A frame that only the peer of a queue pair may send.
    Frame,
}

impl Refusal {
    fn words(self) -> &'static str {
        match self {
            Self::Mismatch(Mismatch::Malformed) => "did not speak the protocol",
            Self::Mismatch(Mismatch::Forged) => "sent frames that are not of their connection",
            Self::Mismatch(Mismatch::OtherKey) => "had another job key",
            Self::Mismatch(Mismatch::PeerHasNoKey) => "had no job key",
            Self::Mismatch(Mismatch::PeerHasKey) => "had a job key, and this process has none",
            Self::Mismatch(Mismatch::OtherVersions { .. }) => "spoke another wire version",
            Self::Silent => "connected and said nothing valid",
            Self::Crowded => "were too many at once",
            Self::Token => "posed as a known process without its token",
            Self::Address => "posed as a known process from an address that it had not told",
            Self::Frame => "spoke for a queue pair that is not theirs",
        }
    }

    fn advice(self) -> String {
        match self {
            Self::Mismatch(Mismatch::OtherKey) => {
                "; a process of this job needs the same SHIFT_JOB_KEY_FILE, another job its own SHIFT_PORT".to_owned()
            }
            Self::Mismatch(Mismatch::PeerHasNoKey) => {
                "; a process of this job needs the SHIFT_JOB_KEY_FILE that this one has".to_owned()
            }
            Self::Mismatch(Mismatch::PeerHasKey) => {
                "; set SHIFT_JOB_KEY_FILE here too if both are of one job".to_owned()
            }
            Self::Mismatch(Mismatch::OtherVersions { theirs, own }) => {
                format!(": {theirs}, this process {own}; its connections are unprotected")
            }
            Self::Mismatch(Mismatch::Malformed | Mismatch::Forged)
            | Self::Silent
            | Self::Crowded
            | Self::Token
            | Self::Address
            | Self::Frame => String::new(),
        }
    }
}

/// The count of each reason.
#[derive(Debug, Default)]
pub struct Strangers {
    counts: BTreeMap<&'static str, u64>,
}

impl Strangers {
    /// Counts one; the first of its kind is told.
    pub fn note(&mut self, why: Refusal, from: Option<SocketAddr>) {
        let count = self.counts.entry(why.words()).or_default();
        *count = count.saturating_add(1);
        let site = from.map_or_else(|| "a process of this host".to_owned(), |at| at.ip().to_canonical().to_string());
        let line =
            format!("refused, and counted from now on: {site}, one of those who {}{}", why.words(), why.advice());
        if *count == 1 {
            log::warn!("{line}");
        } else {
            log::trace!("{line}");
        }
    }

    /// What is to be said at the end; `None`: nobody was turned away.
    pub fn summary(&self) -> Option<String> {
        let parts: Vec<String> = self.counts.iter().map(|(words, count)| format!("{count} {words}")).collect();
        (!parts.is_empty()).then(|| format!("refused in all, connections or frames of those who: {}", parts.join(", ")))
    }

    /// How often it was refused for that.
    #[cfg(test)]
    pub fn count(&self, why: Refusal) -> u64 {
        self.counts.get(why.words()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted() {
        let mut strangers = Strangers::default();
        assert_eq!(strangers.summary(), None);
        for _ in 0..3 {
            strangers.note(Refusal::Silent, None);
        }
        strangers.note(Refusal::Mismatch(Mismatch::OtherKey), Some(SocketAddr::from(([10, 0, 0, 9], 1))));
        let summary = strangers.summary().unwrap_or_default();
        assert!(summary.contains("3 connected and said nothing valid") && summary.contains("1 had another job key"));
        assert_eq!(strangers.count(Refusal::Silent), 3);
    }
}
