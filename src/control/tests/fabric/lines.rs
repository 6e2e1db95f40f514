//! What the agents of this process say in their logs.

use std::sync::{Mutex, Once};

static LINES: Mutex<Vec<(log::Level, String)>> = Mutex::new(Vec::new());

struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Info {
            LINES.lock().unwrap().push((record.level(), record.args().to_string()));
        }
    }
    fn flush(&self) {}
}

/// Keeps them from now on.
pub fn keep() {
    static START: Once = Once::new();
    START.call_once(|| {
        log::set_logger(&Keeper).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// Those that have all of these words.
pub fn with(words: &[&str]) -> Vec<String> {
    told(|_, line| words.iter().all(|each| line.contains(each)))
}

/// Those that somebody has to do something about.
pub fn alarms() -> Vec<String> {
    told(|level, _| level <= log::Level::Warn)
}

fn told(is_one: impl Fn(log::Level, &str) -> bool) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|(level, line)| is_one(*level, line)).map(|(_, line)| line.clone()).collect()
}
