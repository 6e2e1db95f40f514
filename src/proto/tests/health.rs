//! The hold-down: a path that flaps is gone back to more and more seldom, one that was good for long as soon as ever.

use shift_proto::health::{HoldDown, LEAST_ANSWERS};
use shift_proto::id::Micros;
use shift_proto::migrate::MAX_HOLD_DOWN;

const LEAST: Micros = Micros::from_millis(5_000);
/// In the longest hold-down, at the slowest pace, are 300.
const MOST_PROBES: u32 = 1000;
const HOUR: Micros = Micros::from_millis(3_600_000);

/// Goes back as soon as it may, the path being good from `now` on; when that was.
fn go_back(hold: &mut HoldDown, mut now: Micros) -> Micros {
    hold.note_answer(now);
    for _ in 0..MOST_PROBES {
        if hold.is_over(now) {
            hold.note_returned(now);
            return now;
        }
        now = now + hold.pace();
        hold.note_answer(now);
    }
    unreachable!("it is never over: {hold:?}");
}

#[test]
fn a_path_has_to_answer_for_the_whole_time_and_several_times() {
    let mut hold = HoldDown::new(LEAST);
    hold.note_fault(Micros(0));
    assert!(!hold.is_over(HOUR), "nothing was answered");
    hold.note_answer(Micros(10));
    assert!(!hold.is_over(HOUR), "one answer is not enough, however old it is");
    (1..LEAST_ANSWERS).for_each(|_| hold.note_answer(Micros(20)));
    assert!(!hold.is_over(Micros(LEAST.0 + 9)) && hold.is_over(Micros(LEAST.0 + 10)));
    hold.note_bad();
    assert!(!hold.is_over(HOUR), "it begins anew");
}

#[test]
fn the_time_doubles_up_to_its_bound_and_falls_again_after_a_long_good_time() {
    let mut hold = HoldDown::new(LEAST);
    let mut now = Micros(0);
    let mut spans = Vec::new();
    for _ in 0..9 {
        hold.note_fault(now);
        spans.push(hold.span().as_millis() / 1000);
        now = go_back(&mut hold, now) + Micros(1);
    }
    assert_eq!(spans, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    hold.note_fault(now + MAX_HOLD_DOWN + MAX_HOLD_DOWN);
    assert_eq!(hold.span().as_millis(), 75_000, "twice as long, halved for each of two long times");
    now = go_back(&mut hold, now + HOUR);
    hold.note_fault(now + HOUR);
    assert_eq!(hold.span(), LEAST);
}

#[test]
fn a_value_above_the_bound_is_the_operators() {
    let long = MAX_HOLD_DOWN + MAX_HOLD_DOWN;
    let mut hold = HoldDown::new(long);
    for _ in 0..4 {
        hold.note_fault(Micros(0));
        hold.note_returned(Micros(1));
    }
    hold.note_fault(Micros(2));
    assert_eq!(hold.span(), long);
}

#[test]
fn a_hold_down_is_probed_ten_times_but_neither_in_a_storm_nor_seldom() {
    let pace = |least_ms| HoldDown::new(Micros::from_millis(least_ms)).pace().as_millis();
    assert_eq!([1, 500, 501, 5_000, 9_990, 10_000, 300_000].map(pace), [50, 50, 50, 500, 999, 1_000, 1_000]);
}

/// However the link flaps: the returns of an hour are the doublings up to the bound, and one in half of the bound at most.
#[test]
fn in_an_hour_of_any_flapping_the_returns_are_bounded() {
    let doublings = 6;
    let bound = doublings + HOUR.0 / (MAX_HOLD_DOWN.0 / 2) + 1;
    let mut most = 0;
    let longest = [100, 5_000, 60_000, 400_000].into_iter().cycle();
    for (seed, longest_ms) in (1..=2000_u64).zip(longest) {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |below: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % below
        };
        let mut hold = HoldDown::new(LEAST);
        let (mut now, mut returns) = (Micros(0), 0);
        while now < HOUR {
            hold.note_fault(now);
            now = go_back(&mut hold, now + Micros::from_millis(roll(2_000)));
            returns += u64::from(now < HOUR);
            now = now + Micros::from_millis(roll(longest_ms));
        }
        assert!(returns <= bound, "seed {seed}: {returns} returns");
        most = most.max(returns);
    }
    assert!(most > doublings, "the link hardly flapped: {most}");
}
