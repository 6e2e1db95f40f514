//! What the shim itself wrote down of its migrations, on both hosts.
//!
//! The wire says when the standby carried something; only the shim knows when the application's first error came and which proof
//! decided each request.

use serde_json::{json, Value};

use crate::figures::Figures;
use crate::guest::RECORDS;
use crate::lab::Lab;
use crate::place::Host;
use crate::trouble::{Result, Trouble};

/// A record that is being written is whole when it is read again.
const READS: usize = 5;

/// The records of one run.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    records: Vec<(Host, Value)>,
}

impl Evidence {
    /// Removes what an earlier run left.
    ///
    /// # Errors
    /// A guest is lost.
    pub fn clear(lab: &Lab) -> Result<()> {
        for host in Host::ALL {
            lab.guest(host).shell(&format!("rm -f {RECORDS}*"))?;
        }
        Ok(())
    }

    /// Reads the records of the run that just ended.
    ///
    /// # Errors
    /// A guest is lost, or a record cannot be read: to go on without it would be to judge another run.
    pub fn collect(lab: &Lab) -> Result<Evidence> {
        let mut tries = (1..READS).map(|_| Self::read(lab)).skip_while(|read| matches!(read, Err(Trouble::Judged(_))));
        tries.next().unwrap_or_else(|| Self::read(lab))
    }

    fn read(lab: &Lab) -> Result<Evidence> {
        let mut records = Vec::new();
        for host in Host::ALL {
            let text = lab.guest(host).shell(&format!("cat {RECORDS}* 2>/dev/null || true"))?;
            for line in text.lines() {
                let record = serde_json::from_str(line).map_err(|error| {
                    Trouble::judged(format!(
                        "a record of {} bytes on {} is not whole: {error}",
                        line.len(),
                        host.name()
                    ))
                })?;
                records.push((host, record));
            }
        }
        Ok(Evidence { records })
    }

    /// The records of one host, in the order in which they were written.
    pub fn of(&self, host: Host) -> impl Iterator<Item = &Value> {
        self.records.iter().filter(move |(each, _)| *each == host).map(|(_, record)| record)
    }

    /// Those of one process.
    pub fn of_pid(&self, pid: u32) -> Evidence {
        Evidence { records: self.records.iter().filter(|(_, record)| record["pid"] == pid).cloned().collect() }
    }

    /// Records that were not read from a guest.
    #[cfg(test)]
    pub fn of_records(records: impl IntoIterator<Item = (Host, Value)>) -> Evidence {
        Evidence { records: records.into_iter().collect() }
    }

    /// All records with their hosts.
    pub fn all(&self) -> impl Iterator<Item = (Host, &Value)> {
        self.records.iter().map(|(host, record)| (*host, record))
    }

    /// How many migrations both hosts wrote down.
    pub fn migrations(&self) -> usize {
        self.records.len()
    }

    /// Adds them to the figures: one object per record, with the times of this end in milliseconds.
    pub fn note(&self, figures: &mut Figures) {
        let told: Vec<Value> = self.records.iter().map(|(host, record)| summary(*host, record)).collect();
        figures.note("migrations", told);
    }

    /// From the first error completion to the first success on the new path, at the end that saw an error; milliseconds.
    pub fn error_to_success_ms(&self) -> Option<f64> {
        let gaps = self.records.iter().filter_map(|(_, record)| {
            let (error, success) = (record["first_error_ns"].as_u64()?, record["first_success_ns"].as_u64()?);
            Some(success.saturating_sub(error) as f64 / 1e6)
        });
        gaps.reduce(f64::max)
    }
}

fn summary(host: Host, record: &Value) -> Value {
    json!({
        "host": host.name(),
        "way": format!("{} -> {}", text(record, "/from/device"), text(record, "/to/device")),
        "cause": record["cause"],
        "outcome": record["outcome"],
        "ms": record["duration_ms"],
        "proven": record["proven"],
        "replayed": record["replayed"],
        "replayed_partly": record["replayed_partly"],
        "surfaced": record["surfaced"],
        "reposted": record["reposted"],
        "proofs": record["proofs"],
    })
}

fn text<'a>(record: &'a Value, pointer: &str) -> &'a str {
    record.pointer(pointer).and_then(Value::as_str).unwrap_or("?")
}
