//! A rail that loses packets without an error, between two agents: it is told, and left where the operator allows it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use fabric::{all_arrived, are_on, config_of, connect, eventually, stays, talk, Fabric, Process};
use serial_test::serial;
use shift_control::datapath::PortCounters;
use shift_control::Config;

/// Twelve windows take a second or two.
fn config(wish: &str) -> Config {
    config_of(&[("SHIFT_HOLD_DOWN_MS", "300"), ("SHIFT_GRAY_MS", "80"), ("SHIFT_GRAY", wish)])
}

fn armed_pair(net: u8, wish: &str) -> (Fabric, Process, Process) {
    armed_on(Fabric::new(net), wish)
}

fn armed_on(fabric: Fabric, wish: &str) -> (Fabric, Process, Process) {
    let (a, b) = (fabric.process(1, config(wish)), fabric.process(2, config(wish)));
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, a, b)
}

/// A few milliseconds of traffic on both rails of the first host, of which rail 0 repeats `resent` of a thousand packets.
fn carry(fabric: &Fabric, resent: u64) {
    let counters = &mut fabric.lock().counters;
    for rail in 0..3 {
        let count: &mut PortCounters = counters.entry((1, rail)).or_default();
        count.packets += 1000;
        count.amount += 1_000_000;
        count.resent += if rail == 0 { resent } else { 0 };
    }
}

#[test]
#[serial]
fn a_rail_that_loses_packets_is_left_by_plan_where_that_is_wished_and_neither_end_goes_back() {
    let (fabric, a, b) = armed_pair(140, "migrate");
    let mut next = 0;
    let mut talk = |resent| {
        carry(&fabric, resent);
        talk([&a, &b], next);
        next += 1;
    };
    eventually("it is left", || {
        talk(50);
        are_on(1, [&a, &b])
    });
    stays("on the other rail", 1500, || {
        talk(0);
        are_on(1, [&a, &b])
    });
    all_arrived([&a, &b], 0..next);
}

#[test]
#[serial]
fn a_healthy_rail_is_not_left_and_a_lossy_one_neither_where_that_is_not_wished() {
    for (net, wish, resent) in [(141, "migrate", 1), (142, "report", 50), (143, "0", 50)] {
        let (fabric, a, b) = armed_pair(net, wish);
        stays(wish, 2500, || {
            carry(&fabric, resent);
            are_on(0, [&a, &b])
        });
    }
}

/// The standby to which both went off a rail that only one end knows to be sick dies: they go to the next one, and the peer still does not go back.
#[test]
#[serial]
fn a_rail_that_was_left_is_not_returned_to_by_the_peer_when_the_standby_dies() {
    let fabric = Fabric::new(144);
    for host in 1..=2 {
        fabric.lock().standbys.insert(host, vec![1, 2]);
    }
    let (fabric, a, b) = armed_on(fabric, "migrate");
    let mut next = 0;
    let mut talk = |resent| {
        carry(&fabric, resent);
        talk([&a, &b], next);
        next += 1;
    };
    let rail = |of: &Process| of.qp(1, fabric::Qp::rail);
    eventually("it is left", || {
        talk(50);
        rail(&a) != 0 && rail(&a) == rail(&b) && a.qp(1, |q| q.is_running())
    });
    let second = rail(&a);
    fabric.set_rail(second, false);
    talk(0);
    a.fail(1);
    eventually("it goes on to the third", || a.is_done(1) && rail(&a) == 3 - second && rail(&b) == 3 - second);
    assert_eq!(a.qp(1, |q| q.reposts), 2, "straight to it");
    // Several times as long as a healthy first path would be waited for.
    stays("off the sick rail", 1500, || {
        talk(0);
        rail(&a) != 0 && rail(&b) != 0
    });
    all_arrived([&a, &b], 0..next);
}
