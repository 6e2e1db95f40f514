//! A network of two rails that is healthy and noisy, or sick, as the judge sees it: window by window.
//!
//! The model knows what makes healthy completions slow: load by day and by night, phases of an application with other sizes and depths, congestion by
//! others for seconds, a busy host for minutes, receivers that are not ready. It knows nothing of the judge's thresholds.

use std::collections::BTreeMap;

use shift_proto::gray::{Counts, News, Rails, Sample};
use shift_proto::id::Micros;

/// A window, as it is by default.
pub const WINDOW_S: u64 = 5;
pub const DAY: u64 = 86_400 / WINDOW_S;
/// Bytes that a rail carries in a second, and in a packet.
const CAPACITY: f64 = 25e9;
const PACKET: f64 = 4096.0;
/// Completions that are looked at in a window.
const SAMPLES: usize = 24;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn within(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

/// What is wrong with a rail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sickness {
    /// A share of all packets is lost.
    Loss(f64),
    /// So much of its bandwidth is left.
    Slow(f64),
}

/// Something that lasts for a while, and how strong it is.
#[derive(Clone, Copy, Default)]
struct Episode {
    windows: f64,
    strength: f64,
}

impl Episode {
    /// How much of this window it takes. A new one begins on average every `every` windows.
    fn step(&mut self, dice: &mut Dice, every: f64, longest: f64, strongest: f64) -> f64 {
        if self.windows <= 0.0 && dice.unit() < 1.0 / every {
            *self =
                Self { windows: dice.exponential(longest / 3.0).min(longest), strength: dice.within(1.0, strongest) };
        }
        let taken = self.windows.clamp(0.0, 1.0);
        self.windows -= 1.0;
        taken
    }
}

/// What the application does for some minutes: how much it sends at most, in which sizes, how many at once.
#[derive(Clone, Copy)]
struct Phase {
    windows: f64,
    load: f64,
    bytes: f64,
    depth: f64,
}

pub struct Network {
    dice: Dice,
    pub rails: Rails,
    /// The program polls at that pace, in seconds.
    polls: f64,
    pub window: u64,
    phase: Phase,
    congestion: [Episode; 2],
    host: Episode,
    not_ready: Episode,
    pub sick: [Option<Sickness>; 2],
    /// The application uses that rail only.
    pub only: Option<usize>,
}

impl Network {
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice(seed),
            rails: Rails::default(),
            polls: 1e-7,
            window: 0,
            phase: Phase { windows: 0.0, load: 0.0, bytes: 0.0, depth: 0.0 },
            congestion: [Episode::default(); 2],
            host: Episode::default(),
            not_ready: Episode::default(),
            sick: [None; 2],
            only: None,
        }
    }

    pub fn now(&self) -> Micros {
        Micros(self.window * WINDOW_S * 1_000_000)
    }

    /// Lets a window pass.
    pub fn step(&mut self) -> Vec<News> {
        self.window += 1;
        self.change_phase();
        let host = self.host.step(&mut self.dice, 1200.0, 60.0, 8.0);
        let host_factor = 1.0 + host * (self.host.strength - 1.0);
        let starved = self.not_ready.step(&mut self.dice, 2000.0, 100.0, 40.0);
        let counts = (0..2).filter_map(|rail| Some((rail as u16, self.carry(rail, host_factor, starved)?))).collect();
        // The agent is late at times.
        let span = Micros((WINDOW_S as f64 * 1e6 * self.dice.within(1.0, 1.05)) as u64);
        self.rails.close(self.now(), span, &counts)
    }

    fn change_phase(&mut self) {
        self.phase.windows -= 1.0;
        if self.phase.windows > 0.0 {
            return;
        }
        let hour = (self.window % DAY) as f64 * 24.0 / DAY as f64;
        let by_day = 0.55 - 0.45 * ((hour - 2.0) * std::f64::consts::TAU / 24.0).cos();
        let dice = &mut self.dice;
        let idle = dice.unit() < 0.1;
        // Some phases compute between two polls.
        self.polls = if dice.unit() < 0.25 { 10_f64.powf(dice.within(-6.0, -2.0)) } else { 1e-7 };
        self.phase = Phase {
            windows: dice.within(6.0, 120.0),
            load: if idle { 0.0 } else { by_day * dice.within(0.05, 0.9) },
            bytes: 2_f64.powf(dice.within(5.0, 22.0)),
            depth: 2_f64.powf(dice.within(0.0, 7.0)),
        };
    }

    /// What one rail does in this window. `None`: nothing at all.
    fn carry(&mut self, rail: usize, host_factor: f64, starved: f64) -> Option<Counts> {
        let phase = self.phase;
        let sick = self.sick[rail];
        let taken = self.congestion[rail].step(&mut self.dice, 120.0, 4.0, 8.0);
        let is_used = self.only.is_none_or(|only| only == rail) && phase.load > 0.0;
        let congested = 1.0 + taken * (self.congestion[rail].strength - 1.0);
        let left = match sick {
            Some(Sickness::Slow(left)) => left,
            // Each loss repeats what is in flight.
            Some(Sickness::Loss(share)) => 1.0 / (1.0 + share * 16.0),
            None => 1.0,
        };
        let available = CAPACITY * left / congested;
        let wanted = CAPACITY * phase.load * self.dice.within(0.6, 1.0) / host_factor;
        let wanted = if is_used { wanted } else { 0.0 };
        let starving = 1.0 + starved * (self.not_ready.strength - 1.0);
        let carried = (wanted / starving).min(available * 0.97);
        let use_of_it = (carried / available).min(0.97);
        if is_used {
            self.complete(rail, available, use_of_it, host_factor * starving);
        }
        let bytes = carried * WINDOW_S as f64;
        let packets = bytes / PACKET.min(phase.bytes).max(64.0);
        let lost = match sick {
            Some(Sickness::Loss(share)) => share,
            _ => self.dice.within(0.0, 2e-5) + if congested > 1.5 { self.dice.within(0.0, 4e-3) * taken } else { 0.0 },
        };
        let repeated = packets * lost / (1.0 + lost * 16.0) + f64::from(self.dice.unit() < 0.2);
        Some(Counts {
            packets: packets as u64,
            resent: repeated as u64,
            not_ready: if starved > 0.0 && is_used { (packets * 0.05) as u64 + 1 } else { 0 },
            amount: bytes as u64,
        })
    }

    fn complete(&mut self, rail: usize, available: f64, use_of_it: f64, factor: f64) {
        for _ in 0..SAMPLES {
            let (bytes, behind) = (self.phase.bytes * self.dice.within(0.5, 1.0), self.phase.depth.ceil());
            let queued = bytes * behind / available / (1.0 - use_of_it);
            let noise = 1.0 + self.dice.exponential(0.4);
            let took = (2e-6 + queued) * noise * factor;
            let (seen, after) = (took - self.polls * self.dice.unit(), took + self.polls * self.dice.unit());
            let (least_ns, most_ns) = ((seen.max(0.0) * 1e9) as u64, (after * 1e9) as u64);
            let sample = Sample { bytes: bytes as u32, behind: behind as u32, least_ns, most_ns };
            self.rails.note(rail as u16, sample);
        }
    }

    /// Lets windows pass; what was said, and in which one.
    pub fn run(&mut self, windows: u64) -> Vec<(u64, News)> {
        let mut said = Vec::new();
        for _ in 0..windows {
            let news = self.step();
            said.extend(news.into_iter().map(|news| (self.window, news)));
        }
        said
    }

    /// Whether all rails are told apart from one another.
    pub fn gray(&self) -> BTreeMap<u16, bool> {
        (0..2).map(|rail| (rail, self.rails.symptom(rail).is_some())).collect()
    }
}
