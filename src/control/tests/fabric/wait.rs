//! The deadlines of a test, and how it waits.

use std::time::{Duration, Instant};

use shift_control::Config;

/// Fast deadlines, as a test on loopback can have them.
pub fn config() -> Config {
    config_of(&[])
}

/// Those, and these variables.
pub fn config_of(variables: &[(&str, &str)]) -> Config {
    exactly(&[&[("SHIFT_PROBE_MS", "50")], variables].concat())
}

/// These variables alone.
pub fn exactly(variables: &[(&str, &str)]) -> Config {
    Config::from_env(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).unwrap()
}

/// Waits until `done`; panics with `what` after twenty seconds: what is promised is that it comes true, on a busy machine too.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "this did not come true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Checks for a while that `holds` stays true.
pub fn stays(what: &str, for_ms: u64, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(for_ms) {
        assert!(holds(), "this did not stay true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
