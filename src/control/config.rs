//! The environment, parsed once into a valid [`Config`].
//!
//! Every variable stands in [`VARIABLES`], from which the pages for operators are made. A bad value never stops the
//! program: the caller logs each [`ConfigError`] once and leaves the shim inert, so that the program runs as without it.

use std::path::PathBuf;
use std::time::Duration;

use shift_proto::id::Micros;
use shift_proto::migrate::Deadlines;
use shift_proto::policy::{Policy, ProofCap};

use crate::variables::{self, VARIABLES};

/// The well-known port of the control connection.
pub const DEFAULT_PORT: u16 = 17_471;
/// Ports from here on belong to the kernel's ephemeral range; a well-known one is below.
const FIRST_EPHEMERAL_PORT: u16 = 32_768;
/// How often an armed path is probed again.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// No wait of the shim is longer: an hour.
const LONGEST_MS: u64 = 3_600_000;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The library does nothing at all.
    pub disabled: bool,
    /// Primary and standby device, by name; empty: the shim chooses.
    pub standby: Vec<(String, String)>,
    /// What the decision table leaves to the operator.
    pub policy: Policy,
    /// The best proof that is believed.
    pub proof: ProofCap,
    /// Filter for the log, in env_logger's words.
    pub log: String,
    /// Well-known port of the control connection.
    pub port: u16,
    /// Ports for the other listeners, both ends included; `None`: the kernel chooses.
    pub port_range: Option<(u16, u16)>,
    /// Every wait of the protocol.
    pub deadlines: Deadlines,
    /// How often an armed path is probed again.
    pub probe_interval: Duration,
    /// Where the record of each migration goes, one JSON object a line.
    pub event_file: Option<PathBuf>,
    /// Variables that look like ours and are not: most likely misspelt.
    pub unknown: Vec<String>,
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value}: {wanted}")]
pub struct ConfigError {
    /// Name of the variable.
    pub variable: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it, and what to write instead.
    pub wanted: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            disabled: false,
            standby: Vec::new(),
            policy: Policy::default(),
            proof: ProofCap::Psn,
            log: variables::DEFAULT_LOG.to_owned(),
            port: DEFAULT_PORT,
            port_range: None,
            deadlines: Deadlines::default(),
            probe_interval: DEFAULT_PROBE_INTERVAL,
            event_file: None,
            unknown: Vec::new(),
        }
    }
}

impl Config {
    /// Parses the shim's variables of an environment; others are not looked at. An empty value counts as unset.
    ///
    /// # Errors
    /// Every bad value, in the order of the environment.
    pub fn from_env(environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, Vec<ConfigError>> {
        let mut config = Self::default();
        let mut errors = Vec::new();
        for (name, value) in environment {
            if !name.starts_with("SHIFT_") || value.is_empty() {
                continue;
            }
            if !VARIABLES.iter().any(|v| v.name == name) {
                config.unknown.push(name);
            } else if let Err(wanted) = config.set(&name, &value) {
                errors.push(ConfigError { variable: name, value, wanted });
            }
        }
        if errors.is_empty() {
            if let Err(violation) = config.deadlines.check() {
                errors.push(ConfigError {
                    variable: "SHIFT_*_MS".to_owned(),
                    value: "as given".to_owned(),
                    wanted: violation.to_string(),
                });
            }
        }
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(errors)
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "SHIFT_DISABLE" => self.disabled = parse_switch(value)?,
            "SHIFT_STANDBY" => self.standby = parse_standby(value)?,
            "SHIFT_POLICY" => self.policy = Policy::parse(value).map_err(|e| e.to_string())?,
            "SHIFT_PROOF" => self.proof = ProofCap::parse(value).map_err(|e| e.to_string())?,
            "SHIFT_LOG" => self.log = parse_log(value)?,
            "SHIFT_PORT" => self.port = parse_port(value)?,
            "SHIFT_PORT_RANGE" => self.port_range = Some(parse_port_range(value)?),
            "SHIFT_EVENT_FILE" => self.event_file = Some(PathBuf::from(value)),
            "SHIFT_PROBE_INTERVAL_MS" => self.probe_interval = Duration::from_millis(parse_ms(value)?),
            deadline => {
                let ms = parse_ms(value)?;
                self.deadlines.set(deadline, Micros::from_millis(ms)).ok_or("no such variable")?;
            }
        }
        Ok(())
    }

    /// The event file of this process: `{pid}` in its name is replaced.
    pub fn event_file_of(&self, pid: u32) -> Option<PathBuf> {
        let path = self.event_file.as_ref()?;
        Some(PathBuf::from(path.to_string_lossy().replace("{pid}", &pid.to_string())))
    }
}

fn parse_switch(value: &str) -> Result<bool, String> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err("write 1 to switch the shim off, 0 to leave it on".to_owned()),
    }
}

fn parse_standby(value: &str) -> Result<Vec<(String, String)>, String> {
    const WANTED: &str = "write PRIMARY=STANDBY for each device, separated by commas, such as rxe0=rxe1,rxe2=rxe3";
    let mut pairs: Vec<(String, String)> = Vec::new();
    for item in value.split(',') {
        let (primary, standby) = item.split_once('=').ok_or(WANTED)?;
        let (primary, standby) = (primary.trim(), standby.trim());
        if !is_device_name(primary) || !is_device_name(standby) {
            return Err(WANTED.to_owned());
        }
        if primary == standby {
            return Err(format!("{primary} cannot stand by for itself; {WANTED}"));
        }
        if pairs.iter().any(|(p, _)| p == primary) {
            return Err(format!("{primary} has two standbys; give it one"));
        }
        pairs.push((primary.to_owned(), standby.to_owned()));
    }
    Ok(pairs)
}

fn is_device_name(name: &str) -> bool {
    !name.is_empty() && name.len() < 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

fn parse_log(value: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for item in value.split(',') {
        let level = item.rsplit_once('=').map_or(item, |(_, level)| level);
        if !LEVELS.contains(&level.trim().to_ascii_lowercase().as_str()) {
            return Err("write off, error, warn, info, debug or trace, or MODULE=LEVEL,LEVEL".to_owned());
        }
    }
    Ok(value.to_owned())
}

fn parse_port(value: &str) -> Result<u16, String> {
    let port = value.parse().ok().filter(|p| (1..FIRST_EPHEMERAL_PORT).contains(p));
    port.ok_or_else(|| format!("write a port from 1 to {}, the same in the whole job", FIRST_EPHEMERAL_PORT - 1))
}

fn parse_port_range(value: &str) -> Result<(u16, u16), String> {
    let range = value.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
        (first > 0 && first <= last).then_some((first, last))
    });
    range.ok_or_else(|| "write FIRST-LAST, such as 20000-20999".to_owned())
}

fn parse_ms(value: &str) -> Result<u64, String> {
    let ms = value.parse().ok().filter(|ms| (1..=LONGEST_MS).contains(ms));
    ms.ok_or_else(|| format!("write a whole number of milliseconds from 1 to {LONGEST_MS}"))
}
