//! Two agents whose first rail dies and comes back: they go back to it by plan, and not before it has been good for the hold-down time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::time::{Duration, Instant};

use fabric::{are_on, config_of, connect, eventually, stays, talk, Fabric, Kind, Process, Watch};
use shift_control::Config;

const HOLD_DOWN: Duration = Duration::from_millis(600);

fn config(more: &[(&str, &str)]) -> Config {
    let hold_down = HOLD_DOWN.as_millis().to_string();
    let all: Vec<_> = [("SHIFT_HOLD_DOWN_MS", hold_down.as_str())].iter().chain(more).copied().collect();
    config_of(&all)
}

/// Armed, and moved to the standby by a fault; then the first rail is up again.
fn moved_pair(net: u8, more: &[(&str, &str)]) -> (Fabric, Process, Process) {
    let fabric = Fabric::new(net);
    let (a, b) = (fabric.process(1, config(more)), fabric.process(2, config(more)));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    fail_over(&fabric, &a, &b, 0);
    (fabric, a, b)
}

fn fail_over(fabric: &Fabric, a: &Process, b: &Process, message: u32) {
    fabric.set_rail(0, false);
    a.post(1, message, Kind::Send);
    a.fail(1);
    eventually("moved to the standby", || a.is_done(1) && are_on(1, [a, b]));
    fabric.set_rail(0, true);
}

#[test]
fn a_connection_goes_back_to_its_first_path_again_and_again_and_loses_nothing() {
    let (fabric, a, b) = moved_pair(120, &[]);
    let mut next = 1;
    for round in 0..3 {
        let began = Watch::start();
        while !are_on(0, [&a, &b]) {
            assert!(began.served() < Duration::from_secs(15), "round {round}: it does not go back");
            // Both ways, while it goes back.
            talk([&a, &b], next);
            next += 1;
            std::thread::sleep(Duration::from_millis(3));
        }
        // Twice as long each time, for it has failed so soon again.
        let least = HOLD_DOWN * (1 << round);
        assert!(began.elapsed() >= least, "round {round}: after {:?} already", began.elapsed());
        eventually("it is protected there", || a.is_armed(1) && b.is_armed(1));
        eventually("all is delivered", || a.is_done(1) && b.is_done(1));
        if round < 2 {
            fail_over(&fabric, &a, &b, next);
            b.post(1, next, Kind::Send);
            next += 1;
        }
    }
    eventually("all is delivered", || a.is_done(1) && b.is_done(1));
    assert_eq!(b.received(1), (0..next).collect::<Vec<u32>>());
    assert_eq!(a.received(1), (1..next).collect::<Vec<u32>>());
}

#[test]
fn a_connection_without_traffic_goes_back_too_and_is_protected_at_once() {
    let (_fabric, a, b) = moved_pair(121, &[]);
    let mut was_unprotected = false;
    eventually("both ends are on the first path", || {
        was_unprotected |= are_on(0, [&a, &b]) && !(a.is_armed(1) && b.is_armed(1));
        are_on(0, [&a, &b])
    });
    stays("protected", 300, || a.is_armed(1) && b.is_armed(1));
    assert!(!was_unprotected, "between the move and the next probe of the path that was left");
}

#[test]
fn who_does_not_want_it_stays() {
    let (_fabric, a, b) = moved_pair(122, &[("SHIFT_FAILBACK", "0")]);
    stays("the standby", 2000, || are_on(1, [&a, &b]));
}

#[test]
fn a_path_that_fails_in_the_hold_down_has_to_be_good_for_all_of_it_again() {
    let (fabric, a, b) = moved_pair(123, &[]);
    let until = Instant::now() + HOLD_DOWN * 3;
    while Instant::now() < until {
        fabric.set_rail(0, false);
        stays("the standby", 250, || are_on(1, [&a, &b]));
        fabric.set_rail(0, true);
        stays("the standby", 250, || are_on(1, [&a, &b]));
    }
    eventually("both ends are on the first path", || are_on(0, [&a, &b]));
}

#[test]
fn sends_that_do_not_end_put_the_move_off_and_nothing_else() {
    let (fabric, a, b) = moved_pair(124, &[]);
    fabric.lock().acks_lost[1] = true;
    b.post(1, 1, Kind::Send);
    stays("the standby", 2500, || [&a, &b].iter().all(|end| end.qp(1, |q| q.path == 1 && !q.surfaced)));
    a.post(1, 1, Kind::Send);
    stays("the standby", 500, || [&a, &b].iter().all(|end| end.qp(1, |q| q.path == 1 && !q.surfaced)));
    fabric.lock().acks_lost[1] = false;
    eventually("both ends are on the first path", || are_on(0, [&a, &b]));
    eventually("all is delivered", || a.is_done(1) && b.is_done(1));
    assert_eq!((a.received(1), b.received(1)), (vec![1], vec![0, 1]));
}

#[test]
fn while_a_dead_path_is_being_connected_everything_else_goes_on() {
    let (fabric, a, b) = moved_pair(125, &[]);
    fabric.set_rail(0, false);
    fabric.lock().connects_hang[0] = true;
    // The probe that dies in it is connected anew, which does not end.
    stays("the standby", 300, || are_on(1, [&a, &b]));
    fabric.set_rail(0, true);
    let mut next = 1;
    stays("the standby, which carries on", 1500, || {
        talk([&a, &b], next);
        next += 1;
        are_on(1, [&a, &b])
    });
    eventually("all is delivered", || a.is_done(1) && b.is_done(1));
    fabric.lock().connects_hang[0] = false;
    eventually("both ends are on the first path", || are_on(0, [&a, &b]));
}
