//! Gray failure: when does a rail that works, and reports no error, work badly?
//!
//! Owns the judgement over a process's rails; refuses to own counters, clocks and what is done about it. Time is cut into windows. Of each one
//! the caller says what the port counted, and gives a few completions with the time that they took. A rail is *gray* if nearly all
//! windows of about a minute were bad, in one of two ways:
//!
//! * **It loses packets**: requesters had to repeat [`LOSS_PER_MILLE`] of a thousand. Single lost packets, and bursts of seconds, are no failure.
//! * **It is slow**: three of four completions took [`SLOWER`] times what those of their size, behind as many others, took in its own past; and it carries
//!   less than half of what it is known to carry, for a rail that is merely busy is slow too. Nothing is held against it if other rails are slower than in
//!   their past at the same time (it is the host, or the peer), or if receivers were not ready. Where it has no past, that of the other rails counts.
//!
//! How long a completion took is known between two polls of the program only, so the shortest that it can have taken is held against the longest of the past: a
//! program that polls seldom, or begins to, does not make a rail slow.
//!
//! What must hold: bad windows are never learned from, and what is not seen is not judged: a rail without traffic stays what it was.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::id::Micros;

/// So many of a thousand packets are repeated on a rail that loses some, at least. Go-back-N makes one repetition of all that is lost in one flight: with 5 %
/// lost and 150 packets in flight it is one of 170.
pub const LOSS_PER_MILLE: u64 = 5;
/// A rail is slow whose completions take so many times what they took.
pub const SLOWER: u64 = 5;
/// The same against the past of other rails: those may lead to other peers.
const SLOWER_THAN_OTHERS: u64 = 8;
/// Windows that are looked at, and how many of them have to be bad, or may be at most for all to be well again.
pub const WINDOWS: u32 = 12;
const BAD: u32 = 10;
const WELL: u32 = 2;
/// Packets of a window whose losses are judged, and repetitions without which there are none.
const LEAST_PACKETS: u64 = 100;
const LEAST_RESENT: u64 = 3;
/// Completions of a window that are judged; of a class, before it is a past.
const LEAST_SAMPLES: u32 = 12;
const LEAST_PAST: u32 = 48;
/// Completions of one window that are kept.
const MOST_SAMPLES: usize = 512;
/// Classes of one rail that are kept.
const MOST_CLASSES: usize = 96;
/// When a class has seen so many, each of them counts half.
const HALVED_AT: u32 = 8192;
/// The most that a rail carried is forgotten at that pace: half of it in a day of windows of 5 s.
const FADING: u64 = 25_000;
/// How long a rail that was found gray is not gone back to, at first and at most; it doubles each time.
const FIRST_HOLD: Micros = Micros::from_millis(300_000);
const LAST_HOLD: Micros = Micros::from_millis(3_600_000);
/// A rail that was well for so long begins with the first again.
const FORGIVEN: Micros = Micros::from_millis(86_400_000);

/// One completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Of the request.
    pub bytes: u32,
    /// Requests of the queue pair that were out when it was posted, itself included.
    pub behind: u32,
    /// It was out for so long at least: a poll found it incomplete then. This is what a rail is judged by.
    pub least_ns: u64,
    /// It was out for so long at most: a poll found it complete then. This is what is learned.
    pub most_ns: u64,
}

impl Sample {
    /// By octaves of both: within a class times differ by four at most.
    fn class(self) -> u16 {
        let octave = |number: u32| number.max(1).ilog2() as u16;
        octave(self.bytes.max(64)) << 8 | octave(self.behind)
    }
}

/// What a port counted in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent.
    pub packets: u64,
    /// Repetitions that its requesters began.
    pub resent: u64,
    /// Answers that said "receiver not ready".
    pub not_ready: u64,
    /// Bytes both ways; packets where nothing counts bytes.
    pub amount: u64,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// Of a thousand packets so many were repeated.
    Loss(u64),
    /// Completions take so many times what they took.
    Slow(u64),
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss(per_mille) => write!(f, "{}.{} % of its packets are sent again", per_mille / 10, per_mille % 10),
            Self::Slow(times) => write!(f, "completions take {times} times as long as they did"),
        }
    }
}

/// A rail became something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is gray.
    Gray(u16, Symptom),
    /// It has been well.
    Well(u16),
    /// Nothing has gone over it for so long that it may be tried again.
    Untried(u16),
}

/// Times on a logarithmic scale, four steps to an octave.
#[derive(Debug, Default)]
struct Past {
    counts: BTreeMap<u8, u32>,
    total: u32,
}

impl Past {
    fn step(ns: u64) -> u8 {
        let ns = ns.clamp(4, (1 << 48) - 1);
        let octave = ns.ilog2();
        (octave * 4) as u8 + ((ns >> (octave - 2)) & 3) as u8
    }

    const fn floor(step: u8) -> u64 {
        (4 + (step & 3) as u64) << (step / 4 - 2)
    }

    fn add(&mut self, ns: u64) {
        *self.counts.entry(Self::step(ns)).or_default() += 1;
        self.total += 1;
        if self.total >= HALVED_AT {
            self.counts.values_mut().for_each(|count| *count /= 2);
            self.counts.retain(|_, count| *count > 0);
            self.total = self.counts.values().sum();
        }
    }

    /// The middle one; `None`: it is no past yet.
    fn median(&self) -> Option<u64> {
        let mut seen = 0;
        let mut steps = self.counts.iter();
        let middle = steps.find(|(_, count)| {
            seen += *count;
            seen * 2 >= self.total
        });
        middle.filter(|_| self.total >= LEAST_PAST).map(|(step, _)| Self::floor(*step))
    }
}

/// Verdicts of the windows that could be judged, the newest in the lowest bit.
#[derive(Clone, Copy, Debug, Default)]
struct Verdicts {
    bits: u32,
    judged: u32,
    idle: u32,
}

impl Verdicts {
    fn note(&mut self, verdict: Option<bool>) {
        let Some(is_bad) = verdict else {
            self.idle = self.idle.saturating_add(1);
            if self.idle >= WINDOWS {
                (self.bits, self.judged) = (0, 0);
            }
            return;
        };
        self.bits = (self.bits << 1 | u32::from(is_bad)) & ((1 << WINDOWS) - 1);
        (self.judged, self.idle) = ((self.judged + 1).min(WINDOWS), 0);
    }

    fn is_bad(self) -> bool {
        self.bits.count_ones() >= BAD && self.bits & 1 == 1
    }

    fn is_well(self) -> bool {
        self.judged == WINDOWS && self.bits.count_ones() <= WELL
    }
}

/// What is known of one rail.
#[derive(Debug)]
struct Rail {
    open: Vec<Sample>,
    past: BTreeMap<u16, Past>,
    /// The most that it carried in a second.
    most: u64,
    loss: Verdicts,
    slow: Verdicts,
    gray: Option<Symptom>,
    hold: Micros,
    held_until: Micros,
    /// It became well, or may be tried again, then.
    since: Micros,
}

/// How the completions of a window compare.
#[derive(Clone, Copy, Debug, Default)]
struct Comparison {
    known: u32,
    slower: u32,
    /// At least half as much as to be called slow.
    slowish: u32,
    times: u64,
}

impl Comparison {
    fn add(&mut self, took_ns: u64, usual_ns: u64, limit: u64) {
        self.known += 1;
        let usual_ns = usual_ns.max(1);
        self.slower += u32::from(took_ns >= usual_ns.saturating_mul(limit));
        self.slowish += u32::from(took_ns >= usual_ns.saturating_mul(limit.div_ceil(2)));
        self.times = self.times.saturating_add((took_ns / usual_ns).min(1000));
    }

    fn is_slow(self) -> bool {
        self.known >= LEAST_SAMPLES && u64::from(self.slower) * 4 >= u64::from(self.known) * 3
    }

    fn is_slowish(self) -> bool {
        self.known >= LEAST_SAMPLES && self.slowish * 2 >= self.known
    }
}

impl Rail {
    const fn new() -> Self {
        Self {
            open: Vec::new(),
            past: BTreeMap::new(),
            most: 0,
            loss: Verdicts { bits: 0, judged: 0, idle: 0 },
            slow: Verdicts { bits: 0, judged: 0, idle: 0 },
            gray: None,
            hold: FIRST_HOLD,
            held_until: Micros(0),
            since: Micros(0),
        }
    }

    /// What such a request took. Where a rail becomes slow more are out at once than ever: then what fewer took, in proportion, which is the most that a
    /// healthy one needs for them.
    fn usual(&self, sample: Sample) -> Option<u64> {
        let class = sample.class();
        let octaves = class & 0xff;
        let known = |fewer: u16| Some(self.past.get(&(class - fewer))?.median()?.saturating_mul(1 << fewer));
        (0..=octaves).find_map(known)
    }

    fn against_own_past(&self) -> Comparison {
        let mut found = Comparison::default();
        for sample in &self.open {
            if let Some(usual) = self.usual(*sample) {
                found.add(sample.least_ns, usual, SLOWER);
            }
        }
        found
    }

    fn learn(&mut self, rate: u64) {
        self.most = (self.most - self.most / FADING).max(rate);
        for sample in core::mem::take(&mut self.open) {
            let class = sample.class();
            if self.past.len() < MOST_CLASSES || self.past.contains_key(&class) {
                self.past.entry(class).or_default().add(sample.most_ns);
            }
        }
    }

    fn judge_loss(counts: Counts) -> Option<bool> {
        let is_bad = counts.resent >= LEAST_RESENT && counts.resent * 1000 >= counts.packets * LOSS_PER_MILLE;
        (counts.packets >= LEAST_PACKETS).then_some(is_bad)
    }

    fn turn(&mut self, name: u16, now: Micros, found: Option<Symptom>) -> Option<News> {
        if let Some(symptom) = found {
            let was_gray = self.gray.replace(symptom).is_some();
            if was_gray {
                return None;
            }
            self.hold = if now.since(self.since) > FORGIVEN { FIRST_HOLD } else { self.hold };
            self.held_until = now + self.hold;
            self.hold = Micros(self.hold.0 * 2).min(LAST_HOLD);
            return Some(News::Gray(name, symptom));
        }
        let verdicts = match self.gray? {
            Symptom::Loss(_) => self.loss,
            Symptom::Slow(_) => self.slow,
        };
        let is_untried = verdicts.judged == 0 && now >= self.held_until;
        if !verdicts.is_well() && !is_untried {
            return None;
        }
        (self.gray, self.since) = (None, now);
        Some(if is_untried { News::Untried(name) } else { News::Well(name) })
    }
}

/// The rails of a process.
#[derive(Debug, Default)]
pub struct Rails {
    rails: BTreeMap<u16, Rail>,
}

impl Rails {
    /// A completion on that rail, in the window that is open.
    pub fn note(&mut self, rail: u16, sample: Sample) {
        let rail = self.rails.entry(rail).or_insert_with(Rail::new);
        if rail.open.len() < MOST_SAMPLES {
            rail.open.push(sample);
        }
    }

    /// Ends the window, which was as long as `span`, with what the ports counted. A rail of which nothing is given is not judged.
    pub fn close(&mut self, now: Micros, span: Micros, counts: &BTreeMap<u16, Counts>) -> Vec<News> {
        for name in counts.keys() {
            self.rails.entry(*name).or_insert_with(Rail::new);
        }
        let compared: BTreeMap<u16, Comparison> =
            self.rails.iter().map(|(name, rail)| (*name, rail.against_own_past())).collect();
        let verdicts: Vec<(u16, u64, Option<u64>)> =
            counts.iter().map(|(name, counts)| self.judge_slow(*name, *counts, span, &compared)).collect();
        let mut news = Vec::new();
        for (name, rate, slow) in verdicts {
            let (Some(rail), Some(counts)) = (self.rails.get_mut(&name), counts.get(&name)) else { continue };
            let loss = Rail::judge_loss(*counts);
            let is_judged = rail.open.len() as u32 >= LEAST_SAMPLES && counts.not_ready * 1000 <= counts.packets;
            rail.loss.note(loss);
            rail.slow.note(is_judged.then_some(slow.is_some()));
            let lost = || Symptom::Loss(counts.resent * 1000 / counts.packets.max(1));
            let found = match slow {
                _ if rail.loss.is_bad() => Some(lost()),
                Some(times) if rail.slow.is_bad() => Some(Symptom::Slow(times)),
                Some(_) | None => None,
            };
            if slow.is_none() && loss != Some(true) && is_judged {
                rail.learn(rate);
            }
            news.extend(rail.turn(name, now, found));
        }
        self.rails.values_mut().for_each(|rail| rail.open.clear());
        news
    }

    /// How many times slower than it should be a rail is, and what it carried in a second.
    fn judge_slow(
        &self,
        name: u16,
        counts: Counts,
        span: Micros,
        compared: &BTreeMap<u16, Comparison>,
    ) -> (u16, u64, Option<u64>) {
        let rate = counts.amount.saturating_mul(1_000_000) / span.0.max(1);
        let Some(rail) = self.rails.get(&name) else { return (name, rate, None) };
        let own = compared.get(&name).copied().unwrap_or_default();
        let others = || self.rails.iter().filter(|(other, _)| **other != name);
        let has_common_cause = compared.iter().any(|(other, found)| *other != name && found.is_slowish());
        let found = if own.known >= LEAST_SAMPLES {
            (own.is_slow() && rate < rail.most / 2 && !has_common_cause).then_some(own)
        } else {
            let most = others().map(|(_, other)| other.most).max().unwrap_or_default();
            let mut found = Comparison::default();
            for sample in &rail.open {
                if let Some(usual) = others().filter_map(|(_, other)| other.usual(*sample)).min() {
                    found.add(sample.least_ns, usual, SLOWER_THAN_OTHERS);
                }
            }
            (found.is_slow() && rate < most / 2).then_some(found)
        };
        let found = found.filter(|_| counts.not_ready * 1000 <= counts.packets);
        (name, rate, found.map(|found| found.times / u64::from(found.known.max(1))))
    }

    /// What is wrong with a rail.
    #[must_use]
    pub fn symptom(&self, rail: u16) -> Option<Symptom> {
        self.rails.get(&rail)?.gray
    }

    /// A rail that is not to be gone back to: it is gray, or was found to be not long ago.
    #[must_use]
    pub fn is_avoided(&self, rail: u16, now: Micros) -> bool {
        self.rails.get(&rail).is_some_and(|rail| rail.gray.is_some() || now < rail.held_until)
    }
}
