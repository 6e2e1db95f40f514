//! An operator drains a rail of one of two agents: the connection leaves it, does not go there, and comes back when it may.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use fabric::admin::{self, names};
use fabric::{all_arrived, are_on, config_of, connect, eventually, stays, talk, Fabric, Kind, Process};
use serial_test::serial;
use shift_control::status::{Answer, Request, Status};
use shift_control::Config;

fn config() -> Config {
    config_of(&[("SHIFT_HOLD_DOWN_MS", "300")])
}

fn ask(name: &str, request: &Request) -> Status {
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    match admin::ask(name, &line) {
        Some(Answer::Status(status)) => status,
        other => panic!("{other:?}"),
    }
}

/// Armed, and the name of the first one's socket.
fn armed_pair(net: u8) -> (Fabric, Process, Process, String) {
    let fabric = Fabric::new(net);
    let before = names();
    let a = fabric.process(1, config());
    let mut name = None;
    eventually("it listens", || {
        name = names().into_iter().find(|name| !before.contains(name));
        name.is_some()
    });
    let b = fabric.process(2, config());
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || a.is_armed(1) && b.is_armed(1));
    (fabric, a, b, name.unwrap())
}

fn drain(name: &str, device: &str, drained: bool) {
    let device = device.to_owned();
    ask(name, &if drained { Request::Drain { device } } else { Request::Undrain { device } });
}

#[test]
#[serial]
fn a_drained_rail_is_left_with_the_job_running_and_not_gone_back_to_before_it_may_be() {
    let (_fabric, a, b, name) = armed_pair(130);
    let mut next = 0;
    let mut talk = || {
        talk([&a, &b], next);
        next += 1;
    };
    talk();
    drain(&name, "fake0", true);
    eventually("it is left", || {
        talk();
        are_on(1, [&a, &b])
    });
    stays("off the drained rail", 1500, || {
        talk();
        are_on(1, [&a, &b])
    });
    let status = ask(&name, &Request::Status);
    assert_eq!(status.drained, ["fake0"]);
    assert!(status.queue_pairs.iter().all(|qp| qp.path == "fake1" && qp.standby.is_none()), "{status:?}");
    drain(&name, "fake0", false);
    eventually("it goes back", || {
        talk();
        are_on(0, [&a, &b])
    });
    all_arrived([&a, &b], 0..next);
}

#[test]
#[serial]
fn a_drained_rail_is_no_standby() {
    let (fabric, a, b, name) = armed_pair(131);
    drain(&name, "fake1", true);
    eventually("neither end is protected", || !a.is_armed(1) && !b.is_armed(1));
    stays("so it stays", 700, || !a.is_armed(1) && !b.is_armed(1));
    assert!(ask(&name, &Request::Status).queue_pairs[0].reason.as_deref().is_some_and(|why| why.contains("drained")));
    drain(&name, "fake1", false);
    eventually("both ends are armed again", || a.is_armed(1) && b.is_armed(1));
    fabric.set_rail(0, false);
    a.post(1, 0, Kind::Send);
    a.fail(1);
    eventually("and it is moved to", || are_on(1, [&a, &b]) && a.is_done(1));
}

#[test]
#[serial]
fn what_dies_beside_a_drained_rail_does_not_go_there() {
    let (fabric, a, b, name) = armed_pair(132);
    drain(&name, "fake0", true);
    eventually("it is left", || are_on(1, [&a, &b]));
    fabric.set_rail(1, false);
    a.post(1, 0, Kind::Send);
    a.fail(1);
    stays("off the drained rail", 1000, || a.qp(1, |q| q.path == 1) && b.qp(1, |q| q.path == 1));
    drain(&name, "fake0", false);
    eventually("undrained it is gone to", || are_on(0, [&a, &b]) && a.is_done(1));
}
