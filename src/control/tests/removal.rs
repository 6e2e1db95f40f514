//! A device is removed under one of two agents: what is protected leaves it by plan, nothing goes there, and it is let go of once nothing is left.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;

use fabric::{are_on, config_of, connect, eventually, stays, talk, Fabric, Kind, Process};
use serial_test::serial;
use shift_control::datapath::{DeviceId, Event};

/// The host of the removed device.
const HOST: usize = 1;

fn armed_pair(net: u8) -> (Fabric, Process, Process) {
    let config = config_of(&[("SHIFT_HOLD_DOWN_MS", "300"), ("SHIFT_PROBE_INTERVAL_MS", "200")]);
    let fabric = Fabric::new(net);
    let (a, b) = (fabric.process(1, config.clone()), fabric.process(2, config));
    for device in [0, 1] {
        // Whatever can be watched.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let async_fd = ours.into_raw_fd();
        a.events.send(Event::DeviceOpened { device: DeviceId(device), async_fd });
    }
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, a, b)
}

#[test]
#[serial]
fn a_removed_device_is_left_by_plan_and_let_go_of_and_not_gone_back_to() {
    let (fabric, a, b) = armed_pair(140);
    fabric.lock().removed.insert((HOST, DeviceId(0)));
    let mut next = 0;
    let mut talk = || {
        talk([&a, &b], next);
        next += 1;
    };
    eventually("both are on the other rail", || {
        talk();
        are_on(1, [&a, &b])
    });
    eventually("the device is let go of", || fabric.lock().let_go.contains(&(HOST, DeviceId(0))));
    // Longer than the hold-down, with probes that the peer would answer.
    stays("nobody goes back", 1500, || are_on(1, [&a, &b]));
    for end in [&a, &b] {
        let expected: Vec<u32> = (0..next).collect();
        eventually("everything arrived once, in order", || end.qp(1, |q| q.received == expected));
    }
}

#[test]
#[serial]
fn a_standby_that_is_removed_protects_nothing_and_nothing_moves() {
    let (fabric, a, b) = armed_pair(141);
    fabric.lock().removed.insert((HOST, DeviceId(1)));
    eventually("both ends know", || !a.is_armed(1) && !b.is_armed(1));
    eventually("the device is let go of", || fabric.lock().let_go.contains(&(HOST, DeviceId(1))));
    stays("it is no standby again", 600, || !a.is_armed(1) && are_on(0, [&a, &b]));
}

#[test]
#[serial]
fn what_cannot_leave_yet_keeps_the_device() {
    let (fabric, a, b) = armed_pair(142);
    // It has nowhere to go: the other rail is dead.
    fabric.lock().rail_up[1] = false;
    eventually("nothing is armed", || !a.is_armed(1) && !b.is_armed(1));
    fabric.lock().removed.insert((HOST, DeviceId(0)));
    a.post(1, 0, Kind::Send);
    eventually("it goes on where it is", || b.qp(1, |q| q.received == [0]));
    assert!(are_on(0, [&a, &b]));
}
