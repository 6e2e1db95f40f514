//! The environment, parsed once into a valid [`Config`].
//!
//! Every variable stands in [`VARIABLES`], from which the pages for operators are made. A bad value never stops the
//! program: the caller logs each [`ConfigError`] once and leaves the shim inert, so that the program runs as without it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shift_proto::frame::Versions;
use shift_proto::id::{Micros, MAX_STANDBYS};
use shift_proto::migrate::Deadlines;
use shift_proto::policy::{Policy, ProofCap};

use crate::job_key::JobKey;
use crate::release;
use crate::rendezvous::place::Place;
use crate::variables::{self, VARIABLES};

/// The well-known port of the control connection.
pub const DEFAULT_PORT: u16 = 17_471;
/// Standbys that are kept ready: one for each of two faults in turn.
const DEFAULT_STANDBYS: u8 = 2;
/// The most that there may be.
const MOST_STANDBYS: u8 = MAX_STANDBYS as u8;
/// Ports from here on belong to the kernel's ephemeral range; a well-known one is below.
const FIRST_EPHEMERAL_PORT: u16 = 32_768;
/// How often an armed path is probed again.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// A dozen of them make the minute in which a rail that fails is seen.
const DEFAULT_GRAY_WINDOW: Micros = Micros::from_millis(5_000);
/// No wait of the shim is longer: an hour.
const LONGEST_MS: u64 = 3_600_000;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The library does nothing at all.
    pub disabled: bool,
    /// Queue pairs that receive through a shared receive queue are protected, as one group that moves, or is lost, together.
    pub shared_receives: bool,
    /// A connection goes back to its first path when that is good again.
    pub failback: bool,
    /// What becomes of a rail that fails without an error.
    pub gray: GrayWish,
    /// A rail is judged by windows as long as this.
    pub gray_window: Micros,
    /// Each primary with its standbys, the best first, by name; empty: the shim chooses.
    pub standby: Vec<(String, Vec<String>)>,
    /// How many standbys of a device are kept ready where the shim chooses.
    pub standbys: u8,
    /// How long the NIC of a protected queue pair retries at most.
    pub caps: Caps,
    /// What the decision table leaves to the operator.
    pub policy: Policy,
    /// The best proof that is believed.
    pub proof: ProofCap,
    /// Filter for the log, in env_logger's words.
    pub log: String,
    /// Well-known port of the control connection.
    pub port: u16,
    /// Ports for the other listeners, both ends included, without [`Self::port`]; `None`: the kernel chooses.
    pub port_range: Option<(u16, u16)>,
    /// The secret that the processes of the job share; `None`: the job runs open.
    pub job_key: Option<JobKey>,
    /// The one before it, while keys are rotated.
    pub older_job_key: Option<JobKey>,
    /// Where they were read, and are read again when that changes.
    pub job_key_file: Option<PathBuf>,
    /// Where the processes of the job find one another besides; `None`: by their GIDs only.
    pub directory: Option<Place>,
    /// Wire versions that this process speaks; no variable changes them.
    pub versions: Versions,
    /// Every wait of the protocol.
    pub deadlines: Deadlines,
    /// How often an armed path is probed again.
    pub probe_interval: Duration,
    /// Where the record of each migration goes, one JSON object a line.
    pub event_file: Option<PathBuf>,
    /// Variables that look like ours and are not: most likely misspelt.
    pub unknown: Vec<String>,
}

/// What becomes of a rail that fails without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrayWish {
    /// Nobody looks.
    Off,
    /// It is told.
    Report,
    /// It is told, and connections leave it.
    Migrate,
}

/// What the application's own numbers are lowered to; `None`: they stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Of `ibv_qp_attr::timeout`, 1 to 31: a try takes 4.096 us * 2^timeout.
    pub timeout: Option<u8>,
    /// Of `ibv_qp_attr::retry_cnt`, 0 to 6.
    pub retries: Option<u8>,
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
            shared_receives: true,
            failback: true,
            gray: GrayWish::Report,
            gray_window: DEFAULT_GRAY_WINDOW,
            standby: Vec::new(),
            standbys: DEFAULT_STANDBYS,
            caps: Caps::default(),
            policy: Policy::default(),
            proof: ProofCap::Psn,
            log: variables::DEFAULT_LOG.to_owned(),
            port: DEFAULT_PORT,
            port_range: None,
            job_key: None,
            older_job_key: None,
            job_key_file: None,
            directory: None,
            versions: release::spoken(),
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
                let value = if name == "SHIFT_DIRECTORY" { Place::redacted(&value) } else { value };
                errors.push(ConfigError { variable: name, value, wanted });
            }
        }
        if let Some((first, _)) = config.port_range.filter(|range| *range == (config.port, config.port)) {
            errors.push(ConfigError {
                variable: "SHIFT_PORT_RANGE".to_owned(),
                value: format!("{first}-{first}"),
                wanted: format!("{first} is SHIFT_PORT, which is left out of the range; name a port beside it"),
            });
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
            "SHIFT_DISABLE" => self.disabled = parse_switch(value, "switch the shim off, 0 to leave it on")?,
            "SHIFT_SRQ" => {
                self.shared_receives = parse_switch(value, "protect queue pairs on shared receive queues, 0 not to")?
            }
            "SHIFT_FAILBACK" => self.failback = parse_switch(value, "go back to a path that is good again, 0 not to")?,
            "SHIFT_GRAY" => self.gray = parse_gray(value)?,
            "SHIFT_GRAY_MS" => self.gray_window = Micros::from_millis(parse_ms(value)?),
            "SHIFT_STANDBY" => self.standby = parse_standby(value)?,
            "SHIFT_STANDBYS" => self.standbys = parse_within(value, 1, MOST_STANDBYS)?,
            "SHIFT_QP_TIMEOUT" => self.caps.timeout = Some(parse_within(value, 1, 31)?),
            "SHIFT_RETRY_CNT" => self.caps.retries = Some(parse_within(value, 0, 6)?),
            "SHIFT_POLICY" => self.policy = Policy::parse(value).map_err(|e| e.to_string())?,
            "SHIFT_PROOF" => self.proof = ProofCap::parse(value).map_err(|e| e.to_string())?,
            "SHIFT_LOG" => self.log = parse_log(value)?,
            "SHIFT_PORT" => self.port = parse_port(value)?,
            "SHIFT_PORT_RANGE" => self.port_range = Some(parse_port_range(value)?),
            "SHIFT_JOB_KEY_FILE" => {
                let (newest, older) = JobKey::read_all(Path::new(value))?;
                (self.job_key, self.older_job_key) = (Some(newest), older);
                self.job_key_file = Some(PathBuf::from(value));
            }
            "SHIFT_DIRECTORY" => self.directory = Some(Place::parse(value)?),
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

fn parse_switch(value: &str, meaning: &str) -> Result<bool, String> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(format!("write 1 to {meaning}")),
    }
}

fn parse_gray(value: &str) -> Result<GrayWish, String> {
    match value {
        "0" => Ok(GrayWish::Off),
        "report" => Ok(GrayWish::Report),
        "migrate" => Ok(GrayWish::Migrate),
        _ => Err("write report, migrate, or 0 for neither".to_owned()),
    }
}

fn parse_standby(value: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    const WANTED: &str =
        "write PRIMARY=STANDBY[:STANDBY...] for each device, separated by commas, such as rxe0=rxe1:rxe2,rxe3=rxe4";
    let mut lists: Vec<(String, Vec<String>)> = Vec::new();
    for item in value.split(',') {
        let (primary, standbys) = item.split_once('=').ok_or(WANTED)?;
        let primary = primary.trim();
        let standbys: Vec<String> = standbys.split(':').map(|name| name.trim().to_owned()).collect();
        if !is_device_name(primary) || !standbys.iter().all(|name| is_device_name(name)) {
            return Err(WANTED.to_owned());
        }
        if standbys.iter().any(|name| name == primary) {
            return Err(format!("{primary} cannot stand by for itself; {WANTED}"));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = standbys.iter().find(|name| !seen.insert(*name)) {
            return Err(format!("{twice} stands by for {primary} twice; {WANTED}"));
        }
        if standbys.len() > MAX_STANDBYS {
            return Err(format!("{primary} has more than {MAX_STANDBYS} standbys; {WANTED}"));
        }
        if lists.iter().any(|(other, _)| other == primary) {
            return Err(format!("{primary} comes twice; write its standbys in one list; {WANTED}"));
        }
        lists.push((primary.to_owned(), standbys));
    }
    Ok(lists)
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

fn parse_within(value: &str, low: u8, high: u8) -> Result<u8, String> {
    let number = value.parse().ok().filter(|number| (low..=high).contains(number));
    number.ok_or_else(|| format!("write a number from {low} to {high}"))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails should say where")]
mod tests {
    use shift_proto::ledger::Op;
    use shift_proto::policy::OnUnknown;

    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
        Config::from_env(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn good(name: &str, value: &str) -> Config {
        from(&[(name, value)]).unwrap()
    }

    fn bad(name: &str, value: &str) -> String {
        let errors = from(&[(name, value)]).unwrap_err();
        assert_eq!(errors.len(), 1);
        let line = errors[0].to_string();
        assert!(line.starts_with(&format!("{name}={value}: ")), "{line}");
        line
    }

    #[test]
    fn an_empty_environment_is_the_default() {
        let config = from(&[("PATH", "/bin"), ("SHIFT_STANDBY", "")]).unwrap();
        assert!(!config.disabled && config.standby.is_empty() && config.event_file.is_none());
        assert_eq!((config.port, config.port_range), (DEFAULT_PORT, None));
        assert_eq!(config.deadlines, Deadlines::default());
        assert!(config.unknown.is_empty());
    }

    #[test]
    fn disable_is_a_switch() {
        assert!(good("SHIFT_DISABLE", "1").disabled);
        assert!(!good("SHIFT_DISABLE", "0").disabled);
        bad("SHIFT_DISABLE", "yes");
        assert!(good("SHIFT_FAILBACK", "1").failback && !good("SHIFT_FAILBACK", "0").failback);
        bad("SHIFT_FAILBACK", "no");
        assert!(good("SHIFT_SRQ", "1").shared_receives && !good("SHIFT_SRQ", "0").shared_receives);
    }

    #[test]
    fn a_rail_that_fails_without_an_error_is_told_left_or_not_looked_for() {
        assert_eq!(from(&[]).unwrap().gray, GrayWish::Report);
        for (value, wish) in [("0", GrayWish::Off), ("report", GrayWish::Report), ("migrate", GrayWish::Migrate)] {
            assert_eq!(good("SHIFT_GRAY", value).gray, wish);
        }
        bad("SHIFT_GRAY", "1");
        assert_eq!(good("SHIFT_GRAY_MS", "500").gray_window, Micros::from_millis(500));
    }

    #[test]
    fn standby_is_a_list_of_pairs() {
        let pairs = good("SHIFT_STANDBY", "rxe0=rxe1, mlx5_0=mlx5_1").standby;
        let expected = [("rxe0", "rxe1"), ("mlx5_0", "mlx5_1")];
        assert!(pairs.iter().map(|(a, b)| (a.as_str(), b[0].as_str())).eq(expected));
        let lists = good("SHIFT_STANDBY", "rxe0=rxe2:rxe1,rxe1=rxe2").standby;
        assert_eq!(lists[0].1, ["rxe2", "rxe1"]);
        assert!(bad("SHIFT_STANDBY", "a=b:c:b").contains("b stands by for a twice"));
        assert!(bad("SHIFT_STANDBY", "a=b:c:d:e:f:g:h:i").contains("more than 7"));
        assert_eq!((good("SHIFT_STANDBYS", "3").standbys, from(&[]).unwrap().standbys), (3, DEFAULT_STANDBYS));
        assert!(bad("SHIFT_STANDBYS", "8").contains("from 1 to 7"));
        for wrong in ["rxe0", "rxe0=", "=rxe1", "rxe0=rxe1,", "rxe 0=rxe1", "rxe0=rxe1=rxe2"] {
            assert!(bad("SHIFT_STANDBY", wrong).contains("PRIMARY=STANDBY"), "{wrong}");
        }
        assert!(bad("SHIFT_STANDBY", "rxe0=rxe0").contains("stand by for itself"));
        assert!(bad("SHIFT_STANDBY", "a=b,a=c").contains("comes twice"));
    }

    #[test]
    fn caps_are_numbers_of_their_fields() {
        assert_eq!(from(&[]).unwrap().caps, Caps { timeout: None, retries: None });
        assert_eq!(good("SHIFT_QP_TIMEOUT", "16").caps, Caps { timeout: Some(16), retries: None });
        assert_eq!(good("SHIFT_RETRY_CNT", "0").caps, Caps { timeout: None, retries: Some(0) });
        for wrong in ["0", "32", "-1", "long"] {
            bad("SHIFT_QP_TIMEOUT", wrong);
        }
        for wrong in ["7", "-1", "many"] {
            bad("SHIFT_RETRY_CNT", wrong);
        }
    }

    #[test]
    fn policy_is_read_by_the_protocol() {
        let policy = good("SHIFT_POLICY", "write<=4096=error").policy;
        assert_eq!(policy.at_post(Op::Write, 4096), OnUnknown::Error);
        assert_eq!(policy.at_post(Op::Write, 4097), OnUnknown::Replay);
        assert!(bad("SHIFT_POLICY", "send=replay").contains("exactly once"));
    }

    #[test]
    fn proof_is_one_of_three() {
        assert_eq!(good("SHIFT_PROOF", "count").proof, ProofCap::Count);
        assert_eq!(good("SHIFT_PROOF", "sender").proof, ProofCap::Sender);
        bad("SHIFT_PROOF", "best");
    }

    #[test]
    fn log_is_a_filter() {
        assert_eq!(good("SHIFT_LOG", "warn,shift_control=debug").log, "warn,shift_control=debug");
        bad("SHIFT_LOG", "loud");
        bad("SHIFT_LOG", "shift_control=loud");
    }

    #[test]
    fn port_is_below_the_ephemeral_ones() {
        assert_eq!(good("SHIFT_PORT", "20000").port, 20_000);
        for wrong in ["0", "32768", "65536", "-1", "http"] {
            bad("SHIFT_PORT", wrong);
        }
    }

    #[test]
    fn port_range_has_two_ends() {
        assert_eq!(good("SHIFT_PORT_RANGE", "20000-20999").port_range, Some((20_000, 20_999)));
        for wrong in ["20000", "20999-20000", "0-5", "1-70000"] {
            bad("SHIFT_PORT_RANGE", wrong);
        }
    }

    #[test]
    fn port_range_may_hold_the_well_known_port_and_has_another_one() {
        assert_eq!(good("SHIFT_PORT_RANGE", "17471-17472").port_range, Some((17_471, 17_472)));
        assert_eq!(good("SHIFT_PORT_RANGE", "21000-21000").port_range, Some((21_000, 21_000)));
        assert!(bad("SHIFT_PORT_RANGE", "17471-17471").contains("17471 is SHIFT_PORT"));
        assert!(from(&[("SHIFT_PORT_RANGE", "17471-17471"), ("SHIFT_PORT", "17470")]).is_ok());
        let errors = from(&[("SHIFT_PORT_RANGE", "17470-17470"), ("SHIFT_PORT", "17470")]).unwrap_err();
        assert!(errors[0].to_string().starts_with("SHIFT_PORT_RANGE=17470-17470: "), "{}", errors[0]);
    }

    #[test]
    fn times_are_milliseconds_and_fit_together() {
        assert_eq!(good("SHIFT_PROBE_INTERVAL_MS", "1000").probe_interval, Duration::from_secs(1));
        assert_eq!(good("SHIFT_PATIENCE_MS", "20000").deadlines.patience, Micros::from_millis(20_000));
        for wrong in ["0", "1.5", "3600001", "10s"] {
            bad("SHIFT_PATIENCE_MS", wrong);
        }
        let errors = from(&[("SHIFT_HOLD_MS", "20000")]).unwrap_err();
        assert!(errors[0].to_string().contains("SHIFT_HOLD_MS"), "{}", errors[0]);
    }

    #[test]
    fn a_job_key_file_that_cannot_be_used_is_named_and_the_key_is_not_shown() {
        assert!(bad("SHIFT_JOB_KEY_FILE", "/").contains("it is a directory; name the file"));
        assert!(bad("SHIFT_JOB_KEY_FILE", "/no/such/file").contains("cannot be opened"));
        let path = std::env::temp_dir().join(format!("shift-config-key-{}", std::process::id()));
        std::fs::write(&path, "a key that must not be seen").unwrap();
        let of_mode = |mode| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
            from(&[("SHIFT_JOB_KEY_FILE", &path.to_string_lossy())])
        };
        assert!(of_mode(0o644).unwrap_err()[0].to_string().ends_with("chmod it to 0600"));
        let config = of_mode(0o600).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(config.job_key.is_some() && !format!("{config:?}").contains("must not be seen"));
    }

    #[test]
    fn a_directory_is_a_server_or_a_folder_and_its_password_is_not_shown() {
        let config = good("SHIFT_DIRECTORY", "redis://job:hush@head/2");
        assert!(format!("{config:?}").contains("redis://head:6379/2") && !format!("{config:?}").contains("hush"));
        let errors = from(&[("SHIFT_DIRECTORY", "redis://job:hush@head:0")]).unwrap_err();
        let line = errors[0].to_string();
        assert!(line.starts_with("SHIFT_DIRECTORY=redis://***@head:0: write redis://HOST[:PORT]"), "{line}");
    }

    #[test]
    fn the_event_file_knows_the_process() {
        let config = good("SHIFT_EVENT_FILE", "/tmp/shift-{pid}.jsonl");
        assert_eq!(config.event_file_of(7), Some(PathBuf::from("/tmp/shift-7.jsonl")));
    }

    #[test]
    fn every_error_is_told_and_a_misspelt_name_is_noticed() {
        let errors = from(&[("SHIFT_PORT", "x"), ("SHIFT_PROOF", "y")]).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert_eq!(from(&[("SHIFT_STANBY", "a=b")]).unwrap().unknown, ["SHIFT_STANBY"]);
    }

    #[test]
    fn every_variable_of_the_table_is_read() {
        for variable in VARIABLES.iter() {
            assert!(!variable.meaning.is_empty() && !variable.unit.is_empty());
            // No variable takes this, but for those that are free text.
            let free = variable.name == "SHIFT_EVENT_FILE";
            assert_eq!(from(&[(variable.name, "\u{1}")]).is_ok(), free, "{}", variable.name);
        }
    }
}
