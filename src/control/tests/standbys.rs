//! More than one standby: which one is taken, and what becomes of a connection whose rails die in turn.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::time::{Duration, Instant};

use fabric::{config, connect, eventually, gid, stays, Fabric, Kind, Process};
use shift_control::datapath::{DeviceId, Event, QpLife, StandbyKeys};

/// Two processes on a fabric whose ends have these standbys; those rails are dead from the beginning.
fn pair_with(net: u8, standbys: [&[usize]; 2], dead: &[usize]) -> (Fabric, Process, Process) {
    let fabric = Fabric::new(net);
    for (host, rails) in (1..).zip(standbys) {
        fabric.lock().standbys.insert(host, rails.to_vec());
    }
    dead.iter().for_each(|rail| fabric.set_rail(*rail, false));
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    (fabric, a, b)
}

fn armed(net: u8, standbys: [&[usize]; 2], dead: &[usize]) -> (Fabric, Process, Process) {
    let (fabric, a, b) = pair_with(net, standbys, dead);
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, a, b)
}

fn send(from: &Process, messages: std::ops::Range<u32>) {
    messages.for_each(|message| from.post(1, message, Kind::Send));
}

fn rail(of: &Process) -> usize {
    of.qp(1, fabric::Qp::rail)
}

#[test]
fn three_rails_die_in_turn_and_every_message_arrives_once_and_in_order() {
    let (fabric, a, b) = armed(90, [&[1, 2, 3], &[1, 2, 3]], &[]);
    send(&a, 0..4);
    let mut seen = vec![0];
    for fault in 1..=3 {
        let from = rail(&a);
        fabric.lock().acks_lost[from] = true;
        send(&a, 10 * fault..10 * fault + 2);
        fabric.set_rail(from, false);
        send(&a, 10 * fault + 2..10 * fault + 4);
        a.fail(1);
        eventually("it has moved on", || a.is_done(1) && rail(&a) == rail(&b) && rail(&a) != from);
        assert!(!seen.contains(&rail(&a)), "to a rail that is dead: {}", rail(&a));
        seen.push(rail(&a));
    }
    let expected: Vec<u32> = (0..4).chain(10..14).chain(20..24).chain(30..34).collect();
    assert_eq!(b.received(1), expected);
    assert!(a.qp(1, |q| !q.surfaced && q.reposts == 3) && b.qp(1, |q| !q.surfaced));
}

#[test]
fn a_standby_that_was_dead_all_along_is_found_and_another_one_is_taken() {
    let (fabric, a, b) = armed(91, [&[1, 2], &[1, 2]], &[1]);
    // A kernel would look for the other end of the dead one for a second, for each queue pair.
    assert!(
        [&a, &b].iter().all(|end| end.qp(1, |q| q.ahead() == Some(2))),
        "the one that lives is connected ahead, and it alone"
    );
    fabric.set_rail(0, false);
    send(&a, 0..4);
    a.fail(1);
    eventually("it goes to the one that lives", || a.is_done(1) && rail(&a) == 2 && rail(&b) == 2);
    assert_eq!(b.received(1), (0..4).collect::<Vec<u32>>());
}

#[test]
fn without_any_standby_that_answers_a_fault_is_the_applications() {
    let (fabric, a, b) = pair_with(92, [&[1, 2], &[1, 2]], &[1, 2]);
    connect(&a, 1, &b, 1);
    stays("not armed", 1_500, || !a.is_armed(1) && !b.is_armed(1));
    fabric.set_rail(2, true);
    eventually("one answers at last", || a.is_armed(1) && b.is_armed(1));
}

#[test]
fn a_standby_that_dies_later_is_no_target_any_more() {
    let (fabric, a, b) = armed(93, [&[1, 2], &[1, 2]], &[]);
    fabric.set_rail(1, false);
    for end in [&a, &b] {
        end.events.send(Event::Port { device: DeviceId(1), up: false });
    }
    std::thread::sleep(Duration::from_millis(50));
    fabric.set_rail(0, false);
    send(&a, 0..4);
    a.fail(1);
    eventually("it goes to the one that lives", || a.is_done(1) && rail(&a) == 2);
    assert_eq!(b.received(1), (0..4).collect::<Vec<u32>>());
}

#[test]
fn ends_with_other_orders_pair_the_same_rails() {
    let (fabric, a, b) = armed(94, [&[2, 1], &[1, 2, 3]], &[]);
    for fault in 0..2 {
        let from = rail(&a);
        fabric.set_rail(from, false);
        send(&a, fault..fault + 1);
        a.fail(1);
        eventually("it has moved", || a.is_done(1) && rail(&a) == rail(&b) && rail(&a) != from);
    }
    assert_eq!(b.received(1), [0, 1]);
}

#[test]
fn the_queue_pairs_of_a_process_are_spread_over_equal_standbys() {
    let (fabric, a, b) = pair_with(95, [&[1, 2], &[1, 2]], &[]);
    for life in 1..=6 {
        connect(&a, life, &b, life);
    }
    eventually("all are armed", || (1..=6).all(|life| a.is_armed(life) && b.is_armed(life)));
    // All probes of both rails have been answered several times.
    std::thread::sleep(Duration::from_millis(500));
    fabric.set_rail(0, false);
    for end in [&a, &b] {
        end.events.send(Event::Port { device: DeviceId(0), up: false });
    }
    let on = |rail: usize| (1..=6).filter(|life| a.qp(*life, |q| q.rail() == rail)).count();
    eventually("all have moved", || on(0) == 0);
    assert!(on(1) >= 2 && on(2) >= 2, "{} and {}", on(1), on(2));
}

/// Each standby knows memory by a number of its own.
#[test]
fn on_each_standby_the_keys_of_that_standby_are_used() {
    let (fabric, a, b) = armed(96, [&[1, 2], &[1, 2]], &[]);
    let mut standby_rkeys = StandbyKeys::default();
    (standby_rkeys[0], standby_rkeys[1]) = (Some(71), Some(72));
    b.events.send(Event::KeyAdded { device: DeviceId(0), rkey: 7, standby_rkeys });
    for message in 0..2 {
        let from = rail(&a);
        fabric.set_rail(from, false);
        a.post(1, message, Kind::Write { rkey: 7 });
        a.fail(1);
        eventually("it is written", || a.is_done(1) && rail(&a) != from);
        let last = b.qp(1, |q| q.written.last().copied());
        assert_eq!(last, Some((message, if rail(&a) == 1 { 71 } else { 72 })));
    }
}

/// A registration that one standby refuses makes it none, and the others stay.
#[test]
fn a_standby_that_lacks_memory_is_not_gone_to() {
    let (fabric, a, b) = armed(97, [&[1, 2], &[1, 2]], &[]);
    b.events.send(Event::SlotLost { qp: QpLife(1), slot: 0 });
    std::thread::sleep(Duration::from_millis(100));
    fabric.set_rail(0, false);
    send(&a, 0..3);
    a.fail(1);
    eventually("it goes to the other one", || a.is_done(1) && rail(&a) == 2);
    let _ = gid(1, 0);
}

/// A fault of the standby while the replay is on its way there, at both ends at once.
#[test]
fn a_fault_on_the_standby_in_mid_replay_goes_on_to_the_next() {
    let (fabric, a, b) = armed(98, [&[1, 2], &[1, 2]], &[]);
    fabric.lock().slow_replay = Some((1, Duration::from_millis(300)));
    fabric.set_rail(0, false);
    send(&a, 0..4);
    a.fail(1);
    b.fail(1);
    eventually("it moves", || rail(&a) != 0);
    let second = rail(&a);
    fabric.set_rail(second, false);
    a.fail(1);
    b.fail(1);
    eventually("it has moved on", || a.is_done(1) && ![0, second].contains(&rail(&a)));
    assert_eq!(b.received(1), (0..4).collect::<Vec<u32>>());
}

/// A fault with every path dead ends in the application's error, by the patience deadline, and not later.
#[test]
fn when_the_last_rail_dies_the_error_is_the_applications_by_its_deadline() {
    let fabric = Fabric::new(99);
    for host in 1..=2 {
        fabric.lock().standbys.insert(host, vec![1, 2]);
    }
    let mut quick = config();
    quick.deadlines.set("SHIFT_PATIENCE_MS", shift_proto::id::Micros(3_000_000)).unwrap();
    let (a, b) = (fabric.process(1, quick.clone()), fabric.process(2, quick));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (0..3).for_each(|rail| fabric.set_rail(rail, false));
    send(&a, 0..2);
    a.fail(1);
    let began = Instant::now();
    eventually("it is surfaced", || a.qp(1, |q| q.surfaced));
    assert!(began.elapsed() >= Duration::from_millis(2_900), "{:?}", began.elapsed());
    assert!(b.received(1).is_empty());
}
