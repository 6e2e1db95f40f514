//! The deadlines of a test, and how it waits.

use std::sync::{Mutex, Once};
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
    let start = Watch::start();
    while !done() {
        assert!(start.served() < Duration::from_secs(20), "this did not come true: {what}");
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

/// How often the machine is asked whether it runs what wants to run.
const TICK: Duration = Duration::from_millis(5);
/// How much later than asked for a thread of this test ran, summed up, and when it ran last.
static LATE: Mutex<(Duration, Option<Instant>)> = Mutex::new((Duration::ZERO, None));

/// What a limit is held against: the time that passed, and how much of it this machine had for the test. One that stands still for a second because others
/// use it says nothing about what is under test.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    began: Instant,
    late: Duration,
}

impl Watch {
    pub fn start() -> Self {
        Self { began: Instant::now(), late: late() }
    }

    /// All of it.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Without what a thread that only wants to run now and then had to wait for it.
    pub fn served(&self) -> Duration {
        self.began.elapsed().saturating_sub(late() - self.late)
    }
}

fn late() -> Duration {
    static METER: Once = Once::new();
    METER.call_once(|| drop(std::thread::spawn(measure)));
    let (sum, last) = *LATE.lock().unwrap();
    sum + last.map_or(Duration::ZERO, |last| last.elapsed().saturating_sub(TICK))
}

fn measure() {
    loop {
        LATE.lock().unwrap().1 = Some(Instant::now());
        std::thread::sleep(TICK);
        let (sum, last) = &mut *LATE.lock().unwrap();
        *sum += last.take().map_or(Duration::ZERO, |last| last.elapsed().saturating_sub(TICK));
    }
}
