//! Every environment variable of the shim, in one table; the pages for operators are made from it.

use std::sync::LazyLock;

use shift_proto::migrate::DEADLINES;

/// The log level without `SHIFT_LOG`: what an operator has to know, nothing else.
pub const DEFAULT_LOG: &str = "info";

/// One variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds if it is not set.
    pub default: String,
    /// The unit of its value, or its form.
    pub unit: &'static str,
    /// What it does.
    pub meaning: String,
}

/// All variables but the deadlines: name, default, unit, meaning.
static SETTINGS: &[(&str, &str, &str, &str)] = &[
    ("SHIFT_DISABLE", "0", "0 or 1", "1 makes the library inert: the program runs as without it."),
    (
        "SHIFT_SRQ",
        "0",
        "0 or 1",
        "1 protects queue pairs that receive through a shared receive queue (SRQ) too. It is an experiment with known faults: without it they are \
         passed through.",
    ),
    (
        "SHIFT_STANDBY",
        "the shim chooses among the usable devices",
        "PRIMARY=STANDBY[:STANDBY...][,...]",
        "The standbys of each device, the best first, by name: rxe0=rxe1:rxe2,mlx5_0=mlx5_1. All of them are kept ready.",
    ),
    (
        "SHIFT_STANDBYS",
        "2",
        "1 to 7",
        "How many standbys of a device are kept ready where SHIFT_STANDBY names none: each has a registration of all memory.",
    ),
    (
        "SHIFT_FAILBACK",
        "1",
        "0 or 1",
        "0 leaves a connection where it is: it does not go back to its first path when that has been good for SHIFT_HOLD_DOWN_MS. Either end may begin.",
    ),
    (
        "SHIFT_GRAY",
        "report",
        "report, migrate or 0",
        "What becomes of a rail that loses packets or became slow without any error: it is reported; or connections leave it too; 0: nobody looks.",
    ),
    ("SHIFT_GRAY_MS", "5000", "ms", "A rail is judged by windows as long as this; ten bad ones of twelve make it one that fails."),
    (
        "SHIFT_POLICY",
        "write=replay,read=replay",
        "ITEM[,...]",
        "What becomes of a request of which nobody knows whether it was executed: write=replay|error, \
         write<=BYTES=replay|error, read=replay|error; the first that matches wins.",
    ),
    (
        "SHIFT_PROOF",
        "psn",
        "psn, count or sender",
        "The best level of proof that is used, where the provider allows it.",
    ),
    (
        "SHIFT_QP_TIMEOUT",
        "the application's",
        "1 to 31",
        "The application's timeout (4.096 us * 2^N for a try) is lowered to this, also an infinite one (0), on queue pairs that may be protected.",
    ),
    (
        "SHIFT_RETRY_CNT",
        "the application's",
        "0 to 6",
        "The application's retry_cnt is lowered to this, also 7, which is infinite on soft-RoCE, on queue pairs that may be protected.",
    ),
    ("SHIFT_LOG", DEFAULT_LOG, "LEVEL or MODULE=LEVEL[,...]", "What is written to standard error."),
    (
        "SHIFT_PORT",
        "17471",
        "TCP port, 1 to 32767",
        "The well-known port on which the shims of a job find one another; the same in the whole job.",
    ),
    (
        "SHIFT_PORT_RANGE",
        "the kernel chooses",
        "FIRST-LAST",
        "Ports on which each process listens beside the well-known one, for firewalls; SHIFT_PORT, if it lies there, is left out.",
    ),
    (
        "SHIFT_JOB_KEY_FILE",
        "none: the job runs open",
        "path",
        "A file of 16 to 4096 random bytes, the same on every host of the job, that only its owner can read: the user of the \
         program, or root. What a process without it says is ignored.",
    ),
    (
        "SHIFT_DIRECTORY",
        "none: peers are found by their GIDs only",
        "redis://[USER:PASSWORD@]HOST[:PORT][/DB] or file:///FOLDER",
        "A directory that all processes of the job share, for peers to which the remote GID does not lead: a Redis server (if the \
         library was built with it), or a folder that all hosts see. It is asked beside the GID's host.",
    ),
    ("SHIFT_PROBE_INTERVAL_MS", "30000", "ms", "How often the path that a connection would move to is probed again."),
    (
        "SHIFT_EVENT_FILE",
        "none",
        "path",
        "The record of each migration is appended to this regular file, one JSON object a line; {pid} stands for the process id.",
    ),
];

/// The table of all variables.
pub static VARIABLES: LazyLock<Vec<Variable>> = LazyLock::new(|| {
    let settings = SETTINGS.iter().map(|(name, default, unit, meaning)| Variable {
        name,
        default: (*default).to_owned(),
        unit,
        meaning: (*meaning).to_owned(),
    });
    let deadlines = DEADLINES.iter().map(|row| Variable {
        name: row.variable,
        default: row.default.as_millis().to_string(),
        unit: "ms",
        meaning: format!("Bounds {}. When it passes: {}.", row.bounds, row.outcome),
    });
    settings.chain(deadlines).collect()
});
