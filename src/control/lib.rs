//! The control side of shift-verbs: one background thread per process that arms connections, drives migrations and talks to the
//! peers' processes.
//!
//! It owns configuration, peers, probes, keys and the protocol machine of each queue pair. It touches no verbs object: all that
//! happens behind [`datapath::DataPath`]. What must hold: no application thread ever waits for it, and whatever goes wrong here
//! leaves the program as it would be without the shim.

mod acquaintance;
pub mod address;
mod admin;
pub mod agent;
mod arming;
mod arrivals;
pub mod atomics;
mod audit;
pub mod channel;
mod choice;
mod clock;
pub mod config;
mod core;
pub mod counters;
pub mod datapath;
mod directory;
mod discovery;
pub mod drains;
mod gray;
mod greeting;
mod groups;
pub mod inherited;
mod interfaces;
pub mod job_key;
mod keys;
mod links;
mod migration;
mod mirror;
mod musters;
mod nudge;
mod pairing;
mod peers;
mod plans;
mod probes;
mod qp;
pub mod record;
mod registry;
mod release;
mod removal;
mod rendezvous;
mod round_trip;
mod sabotage;
mod seeking;
mod sockets;
mod stall;
pub mod status;
mod strangers;
mod told;
pub mod variables;
pub mod verdicts;
mod world;

pub use agent::{Agent, EventSender};
pub use config::{Config, ConfigError};
