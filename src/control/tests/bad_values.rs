//! Bad values of each variable: every message names the variable, repeats the value, and says what to write instead.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where")]

use shift_control::config::Config;
use shift_control::variables::VARIABLES;

/// Values that a variable does not take, and what its message must say of each.
type Row = (&'static str, &'static [(&'static str, &'static str)]);

const MS: &[(&str, &str)] = &[
    ("0", "whole number of milliseconds from 1 to 3600000"),
    ("-5", "whole number of milliseconds"),
    ("1.5", "whole number of milliseconds"),
    ("10s", "whole number of milliseconds"),
    ("3600001", "from 1 to 3600000"),
    ("99999999999999999999999", "whole number of milliseconds"),
    ("0x10", "whole number of milliseconds"),
];

/// All that are no times.
const ROWS: &[Row] = &[
    ("SHIFT_DISABLE", &[("yes", "write 1"), ("2", "write 1"), ("true", "0 to leave it on"), (" 1", "write 1")]),
    ("SHIFT_SRQ", &[("yes", "write 1"), ("2", "0 not to")]),
    ("SHIFT_FAILBACK", &[("no", "write 1"), ("2", "0 not to")]),
    ("SHIFT_GRAY", &[("1", "write report, migrate"), ("leave", "or 0 for neither"), ("Migrate", "write report")]),
    (
        "SHIFT_STANDBY",
        &[
            ("rxe0", "PRIMARY=STANDBY"),
            ("rxe0=", "such as rxe0=rxe1"),
            ("=rxe1", "PRIMARY=STANDBY"),
            ("rxe0=rxe1,", "separated by commas"),
            ("rxe0=rxe1=rxe2", "PRIMARY=STANDBY"),
            ("rxe0=/dev/null", "PRIMARY=STANDBY"),
            ("rxe0=rxe0", "cannot stand by for itself"),
            ("rxe0=rxe1,rxe0=rxe2", "in one list"),
            ("rxe0=rxe1:", "PRIMARY=STANDBY"),
            ("rxe0=rxe1:rxe1", "twice"),
        ],
    ),
    ("SHIFT_STANDBYS", &[("0", "from 1 to 7"), ("8", "from 1 to 7"), ("two", "from 1 to 7")]),
    (
        "SHIFT_POLICY",
        &[
            ("write", "write it as write=replay"),
            ("write=maybe", "use replay or error"),
            ("write<=big=error", "give bytes"),
            ("write<=4294967296=error", "give bytes"),
            ("read<=64=error", "use read=replay or read=error"),
            ("send=replay", "exactly once"),
            ("send=error", "remove it"),
            ("write_imm=error", "follows the write item"),
            ("atomic=replay", "linearizability"),
            ("write=replay,atomic=error", "remove it"),
            ("flush=error", "flush"),
        ],
    ),
    (
        "SHIFT_PROOF",
        &[("best", "use psn, count or sender"), ("PSN", "use psn, count or sender"), ("psn,count", "use psn")],
    ),
    ("SHIFT_QP_TIMEOUT", &[("0", "a number from 1 to 31"), ("32", "from 1 to 31"), ("-1", "from 1"), ("4s", "from 1")]),
    ("SHIFT_RETRY_CNT", &[("7", "a number from 0 to 6"), ("-1", "from 0 to 6"), ("few", "from 0 to 6")]),
    (
        "SHIFT_DIRECTORY",
        &[
            ("head:6379", "write redis://HOST[:PORT][/DB] or file:///FOLDER"),
            ("file://folder", "named from the root"),
            ("redis://head:port", "write redis://HOST"),
            ("rediss://head", "speaks no TLS"),
        ],
    ),
    (
        "SHIFT_LOG",
        &[("loud", "write off, error, warn, info, debug or trace"), ("a=b", "MODULE=LEVEL"), ("info,", "write off")],
    ),
    (
        "SHIFT_PORT",
        &[
            ("0", "a port from 1 to 32767"),
            ("32768", "the same in the whole job"),
            ("70000", "a port from 1"),
            ("-1", "a port from 1"),
            ("rdma", "a port from 1"),
        ],
    ),
    (
        "SHIFT_PORT_RANGE",
        &[
            ("20000", "such as 20000-20999"),
            ("20999-20000", "FIRST-LAST"),
            ("0-9", "FIRST-LAST"),
            ("1-70000", "FIRST-LAST"),
            ("a-b", "FIRST-LAST"),
            ("17471-17471", "name a port beside it"),
        ],
    ),
    ("SHIFT_JOB_KEY_FILE", &[("/", "name the file"), ("/no/such/file", "cannot be opened")]),
];

/// Any text is the name of a file; whether it can be written is seen at the first record.
const FREE: &str = "SHIFT_EVENT_FILE";

fn message(name: &str, value: &str) -> String {
    match Config::from_env([(name.to_owned(), value.to_owned())]) {
        Ok(_) => panic!("{name}={value} is taken"),
        Err(errors) => {
            assert_eq!(errors.len(), 1, "{name}={value}");
            errors.iter().map(ToString::to_string).collect()
        }
    }
}

#[test]
fn each_bad_value_is_told_with_what_to_write_instead() {
    for variable in VARIABLES.iter().filter(|variable| variable.name != FREE) {
        let row = ROWS.iter().find(|(name, _)| *name == variable.name);
        let values = match row {
            Some((_, values)) => values,
            None => {
                assert_eq!(variable.unit, "ms", "{} has no bad values in this test", variable.name);
                &MS
            }
        };
        for (value, wanted) in *values {
            let line = message(variable.name, value);
            assert!(line.starts_with(&format!("{}={value}: ", variable.name)), "{line}");
            assert!(line.contains(wanted), "{line}: does not say {wanted:?}");
        }
    }
}

#[test]
fn all_bad_values_are_told_at_once() {
    let all = VARIABLES.iter().filter(|variable| variable.name != FREE);
    let environment: Vec<_> = all.map(|variable| (variable.name.to_owned(), "!".to_owned())).collect();
    let errors = Config::from_env(environment.clone()).unwrap_err();
    let named: Vec<_> = errors.iter().map(|error| error.variable.clone()).collect();
    assert_eq!(named, environment.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
}

#[test]
fn times_that_contradict_one_another_are_told_by_name() {
    for (name, value, other) in [
        ("SHIFT_CLAIM_MS", "150", "SHIFT_CONTROL_ROUND_TRIP_MS"),
        ("SHIFT_CLAIM_MS", "90", "SHIFT_CLAIM_MS"),
        ("SHIFT_EXCLUDE_MS", "600", "SHIFT_CLAIM_MS"),
        ("SHIFT_EXCHANGE_MS", "1400", "SHIFT_FENCE_MS"),
        ("SHIFT_CLAIM_MS", "2600", "SHIFT_EXCHANGE_MS"),
        ("SHIFT_PACKET_LIFETIME_MS", "2500", "SHIFT_EXCHANGE_MS"),
        ("SHIFT_HOLD_MS", "20000", "SHIFT_PATIENCE_MS"),
    ] {
        let errors = Config::from_env([(name.to_owned(), value.to_owned())]).unwrap_err();
        let told: String = errors.iter().map(ToString::to_string).collect();
        assert!(told.contains(name) && told.contains(other), "{name}={value}: {told}");
    }
}
