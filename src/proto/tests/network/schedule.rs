//! What is going to happen in a run, as a list: a run that fails is made shorter by leaving items out of it.

use std::fmt;

use shift_proto::id::PathId;
use shift_proto::migrate::{Cause, Input};

use crate::profile::{Dice, Profile};

/// One thing that happens to an end, a path or the network, at a time or for a while, in microseconds.
#[derive(Clone, Debug)]
pub enum Item {
    /// An end notices this.
    Notice { at: u64, side: usize, input: Input },
    /// An end's process does not run.
    Asleep { side: usize, from: u64, until: u64 },
    /// Nothing that this end sends arrives.
    Cut { side: usize, from: u64, until: u64 },
    /// A path carries nothing.
    Outage { path: u8, from: u64, until: u64 },
    /// An operator drains the rail of that path at one end.
    Drain { side: usize, path: u8, from: u64, until: u64 },
    /// The device of that path at one end is removed for good; torn: with what was on it, and without a fence.
    Removal { side: usize, path: u8, at: u64, torn: bool },
    /// No network between the processes carries anything.
    Silence { from: u64, until: u64 },
    /// The process of an end dies.
    Death { side: usize, at: u64 },
    /// A path answers late.
    Slow { path: u8, from: u64, until: u64 },
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: &u64| *us as f64 / 1000.0;
        match self {
            Self::Notice { at, side, input } => write!(f, "{:.3} ms: end {side} notices {input:?}", ms(at)),
            Self::Asleep { side, from, until } => {
                write!(f, "{:.3} to {:.3} ms: end {side} sleeps", ms(from), ms(until))
            }
            Self::Cut { side, from, until } => {
                write!(f, "{:.3} to {:.3} ms: what end {side} sends is lost", ms(from), ms(until))
            }
            Self::Outage { path, from, until } => {
                write!(f, "{:.3} to {:.3} ms: path {path} is down", ms(from), ms(until))
            }
            Self::Drain { side, path, from, until } => {
                write!(f, "{:.3} to {:.3} ms: end {side} drains path {path}", ms(from), ms(until))
            }
            Self::Removal { side, path, at, torn } => {
                let how = if *torn { "torn out" } else { "removed" };
                write!(f, "{:.3} ms: the device of path {path} is {how} at end {side}", ms(at))
            }
            Self::Silence { from, until } => {
                write!(f, "{:.3} to {:.3} ms: the control network is dead", ms(from), ms(until))
            }
            Self::Death { side, at } => write!(f, "{:.3} ms: the process of end {side} dies", ms(at)),
            Self::Slow { path, from, until } => {
                write!(f, "{:.3} to {:.3} ms: path {path} answers late", ms(from), ms(until))
            }
        }
    }
}

/// A run: the seed of everything small (delays, losses, how long a fence takes) and the list of what is large.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub seed: u64,
    pub profile: Profile,
    pub items: Vec<Item>,
}

impl Schedule {
    /// What the profile allows, by the seed.
    pub fn of(seed: u64, profile: Profile) -> Self {
        let mut dice = Dice(seed ^ 0x5ced_u64 << 40);
        let mut items = Vec::new();
        for side in 0..2 {
            items_of_end(&mut items, &mut dice, &profile, side);
        }
        for _ in 0..dice.below(profile.cuts + 1) {
            let (from, length) = (dice.below(profile.span), dice.below(5_000_000));
            let which = dice.below(3) as usize;
            let sides = (0..2).filter(|side| which == *side || which == 2);
            items.extend(sides.map(|side| Item::Cut { side, from, until: from + length }));
        }
        if profile.in_turn {
            in_turn(&mut items, &mut dice, &profile);
        } else if profile.flaps {
            flapping(&mut items, &mut dice, &profile);
        } else {
            outages(&mut items, &mut dice, &profile);
        }
        operations(&mut items, &mut dice, &profile);
        Self { seed, profile, items }
    }

    /// As short as it can be made so that `fails` still says so: item after item is left out, until none can be.
    pub fn shrink(mut self, fails: impl Fn(&Self) -> bool) -> Self {
        loop {
            let before = self.items.len();
            let mut at = 0;
            while at < self.items.len() {
                let mut shorter = self.clone();
                shorter.items.remove(at);
                if fails(&shorter) {
                    self = shorter;
                } else {
                    at += 1;
                }
            }
            if self.items.len() == before {
                return self;
            }
        }
    }

    /// In words, one item a line.
    pub fn words(&self) -> String {
        self.items.iter().map(|item| format!("  {item}\n")).collect()
    }

    /// Whether no path carried anything for so long at a stretch.
    pub fn is_dark_for(&self, least: u64) -> bool {
        let down = |path: u8| {
            self.items.iter().filter_map(move |item| match item {
                Item::Outage { path: which, from, until } if *which == path => Some((*from, *until)),
                _ => None,
            })
        };
        down(0).any(|(from, until)| down(1).any(|(begin, end)| end.min(until).saturating_sub(begin.max(from)) >= least))
    }
}

fn items_of_end(items: &mut Vec<Item>, dice: &mut Dice, profile: &Profile, side: usize) {
    let mut notice = |at, input| items.push(Item::Notice { at, side, input });
    if dice.chance(profile.hold) {
        let at = dice.below(profile.span / 2);
        notice(at, Input::Hold(true));
        notice(at + dice.below(8_000_000), Input::Hold(false));
    }
    for _ in 0..dice.below(profile.plans + 1) {
        let at = dice.below(profile.span);
        notice(at, Input::Move(PathId(dice.below(profile.paths.into()) as u8)));
    }
    if dice.chance(profile.destroy) {
        notice(dice.below(4_000_000), Input::Destroyed);
    }
    if dice.chance(profile.application_error) {
        notice(dice.below(profile.span), Input::ApplicationError);
    }
    if dice.chance(profile.sleep) {
        let from = dice.below(profile.span);
        items.push(Item::Asleep { side, from, until: from + dice.below(profile.longest_sleep) });
    }
}

fn outages(items: &mut Vec<Item>, dice: &mut Dice, profile: &Profile) {
    let only = profile.outages == 1;
    let count = if only { 1 } else { dice.below(profile.outages + 1) };
    for _ in 0..count {
        let path = if only { 0 } else { dice.below(profile.paths.into()) as u8 };
        let from = 1000 + dice.below(if only { 1_000_000 } else { 12_000_000 });
        let length = if dice.chance(300) { dice.below(400_000) } else { dice.below(12_000_000) };
        items.push(Item::Outage { path, from, until: (from + length).min(profile.span) });
    }
}

/// What is done by operators and machines, at any moment.
fn operations(items: &mut Vec<Item>, dice: &mut Dice, profile: &Profile) {
    let (span, paths) = (profile.span, u64::from(profile.paths));
    for side in 0..2 {
        for _ in 0..dice.below(profile.drains + 1) {
            let (path, from) = (dice.below(paths) as u8, dice.below(span));
            items.push(Item::Drain { side, path, from, until: from + dice.below(span / 2) });
        }
        if dice.chance(profile.removals) {
            let (path, at) = (dice.below(paths) as u8, dice.below(span / 2));
            items.push(Item::Removal { side, path, at, torn: dice.chance(profile.torn) });
        }
        if dice.chance(profile.deaths) {
            items.push(Item::Death { side, at: dice.below(span) });
        }
    }
    for _ in 0..dice.below(profile.silences + 1) {
        let from = dice.below(span);
        items.push(Item::Silence { from, until: (from + dice.below(12_000_000)).min(span) });
    }
    for _ in 0..dice.below(profile.slow + 1) {
        let (path, from) = (dice.below(paths) as u8, dice.below(span));
        let until = (from + dice.below(10_000_000)).min(span);
        items.push(Item::Slow { path, from, until });
        for _ in 0..dice.below(4) {
            let (at, side) = (from + dice.below(until - from), dice.below(2) as usize);
            items.push(Item::Notice { at, side, input: Input::Fault { cause: Cause::Stalled, fatal: false } });
        }
    }
}

/// Each path dies, in an order of chance but the first one first, often in the middle of the migration that the one before began. Only the first comes back.
fn in_turn(items: &mut Vec<Item>, dice: &mut Dice, profile: &Profile) {
    let first = 1000 + dice.below(1_000_000);
    let back = first + 200_000 + dice.below(4_000_000);
    let second = if dice.chance(500) { 1 } else { 2 };
    let mut soon = |often| if dice.chance(often) { dice.below(400_000) } else { dice.below(3_000_000) };
    let next = first + soon(700);
    let last = next.max(back) + soon(500);
    items.push(Item::Outage { path: 0, from: first, until: back });
    items.push(Item::Outage { path: second, from: next, until: profile.span });
    items.push(Item::Outage { path: 3 - second, from: last, until: profile.span });
}

/// The first path goes and comes all the time: for moments, seconds or minutes, by phases.
fn flapping(items: &mut Vec<Item>, dice: &mut Dice, profile: &Profile) {
    let mut at = 1_000_000;
    while at < profile.span {
        let longest = [200_000, 3_000_000, 20_000_000, 400_000_000][dice.below(4) as usize];
        for _ in 0..1 + dice.below(20) {
            let length = dice.below(3_000_000);
            items.push(Item::Outage { path: 0, from: at, until: at + length });
            at += length + dice.below(longest);
            if at >= profile.span {
                break;
            }
        }
    }
}
