//! What a process says of itself to `shiftctl`: which queue pairs are protected by which path, which are not, and why.
//!
//! Plain data, shared by the agent, which fills it, and `shiftctl`, which reads it. The fields are a documented interface for
//! scripts (`shiftctl status --json`): none is renamed or removed, new ones may come.

use serde::{Deserialize, Serialize};

/// The local socket of a process's agent: the prefix of its abstract name. The process id and the id of the agent follow.
pub const SOCKET_PREFIX: &str = "shift-verbs.admin.";

/// What is asked, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// [`Status`] is the answer.
    Status,
    /// No connection is to be on that device, or to go to it, from now on; [`Status`] is the answer, from before the first of them moves.
    Drain {
        /// Its name.
        device: String,
    },
    /// It may be used again; [`Status`] is the answer.
    Undrain {
        /// Its name.
        device: String,
    },
}

impl Request {
    /// The request that a line is.
    ///
    /// # Errors
    /// It is none; what is wrong with it.
    pub fn read(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| error.to_string())
    }
}

/// What is answered, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To every request that is understood.
    Status(Status),
    /// The request was not understood.
    Error(String),
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the library in that process.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub program: String,
    /// The agent, as the peers name it.
    pub process: String,
    /// It runs with a job key.
    pub keyed: bool,
    /// Queue pairs that exist now, connected ones and those that are not recorded, by device and number.
    pub queue_pairs: Vec<QueuePair>,
    /// Since the process began.
    pub totals: Totals,
    /// Devices that are drained, as this process was told.
    #[serde(default)]
    pub drained: Vec<String>,
    /// Rails that are failing without an error.
    #[serde(default)]
    pub gray: Vec<Rail>,
}

/// A rail that is failing without an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rail {
    /// Its device.
    pub device: String,
    /// What is wrong, in words.
    pub symptom: String,
}

/// One queue pair of the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePair {
    /// Its number, as the application knows it.
    pub qpn: u32,
    /// The device that the application made it on.
    pub device: String,
    /// The peer's queue pair number and GID, where it has one peer that is known.
    pub peer: Option<(u32, String)>,
    /// A fault of its path will be migrated.
    pub protected: bool,
    /// The device that it works on now.
    pub path: String,
    /// The device that it would move to.
    pub standby: Option<String>,
    /// Devices that stand by for it and do not answer.
    #[serde(default)]
    pub silent: Vec<String>,
    /// Migrations that both ends have agreed on, the last one included.
    pub epoch: u32,
    /// A migration is under way.
    pub moving: bool,
    /// Why it is not protected.
    pub reason: Option<String>,
}

/// Sums over all queue pairs, those that are gone included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Queue pairs that were connected, or made without being recorded.
    pub queue_pairs: u64,
    /// Those of them that were protected at some time.
    pub protected: u64,
    /// Migrations that were confirmed.
    pub migrations: u64,
    /// Requests proven executed, and so not posted again.
    pub proven: u64,
    /// Requests posted again.
    pub replayed: u64,
    /// Requests that ended in an error in spite of the protection.
    pub surfaced: u64,
}

impl Totals {
    /// The line for people at the end of a process.
    pub fn line(&self) -> String {
        let noun = |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        format!(
            "{}, {} protected; {}, {} replayed, {} surfaced",
            noun(self.queue_pairs, "QP", "QPs"),
            self.protected,
            noun(self.migrations, "migration", "migrations"),
            noun(self.replayed, "request", "requests"),
            self.surfaced
        )
    }
}
