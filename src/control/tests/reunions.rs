//! Two honest processes that meet and part again and again, with pauses that are longer than the heartbeat: one of them may have
//! forgotten the other while it is still known there, and neither is ever taken for a stranger.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::time::Duration;

use fabric::{config, connect_with, eventually, lines, own_port, Fabric, Process};
use shift_control::Config;
use shift_proto::id::Micros;

/// Short, so that a pause takes little longer.
const HEARTBEAT: Micros = Micros(20_000);
/// How long an agent stands still: the other ends its connections meanwhile.
const STANDSTILL: Duration = Duration::from_millis(40);
const ROUNDS: u32 = 200;

/// Xorshift.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// What the two applications do meanwhile.
    fn pause(&mut self, up_to_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(up_to_ms)));
    }
}

/// One to three queue pairs live for a while; mostly until they are armed.
fn meet_and_part(a: &Process, b: &Process, lives: std::ops::Range<u32>, dice: &mut Dice) {
    for life in lives.clone() {
        let ends = [(a, 1, life), (b, 2, life)];
        let first = usize::from(dice.below(2) == 0);
        connect_with(ends[first], ends[1 - first], || dice.pause(6));
    }
    if dice.below(4) == 0 {
        dice.pause(8);
    } else {
        eventually("all are armed", || lives.clone().all(|life| a.is_armed(life) && b.is_armed(life)));
    }
    let stands_still = dice.below(3) == 0;
    if stands_still {
        let agent = [a, b][usize::from(dice.below(2) == 0)];
        agent.suspend(true);
        std::thread::sleep(STANDSTILL);
    }
    for life in lives {
        a.destroy(life);
        dice.pause(3);
        b.destroy(life);
    }
    if stands_still {
        a.suspend(false);
    }
}

#[test]
fn two_that_meet_and_part_again_and_again_are_never_strangers() {
    lines::keep();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let fabric = Fabric::new(1);
    let mut config = Config { port: own_port(), ..config() };
    config.deadlines.heartbeat = HEARTBEAT;
    let (a, b) = (fabric.process_on_two_networks(1, config.clone()), fabric.process_on_two_networks(2, config));
    for round in 0..ROUNDS {
        let first = 1 + 3 * round;
        let count = 1 + u32::try_from(dice.below(3)).unwrap();
        meet_and_part(&a, &b, first..first + count, &mut dice);
        dice.pause(3);
        assert_eq!(lines::with(&["refused, and counted"]), Vec::<String>::new(), "round {round}");
    }
}
