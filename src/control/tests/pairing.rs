//! Standbys that come after the connection was made, and pairs that do not carry: protection comes back with the job running.

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

use fabric::admin::{ask, names};
use fabric::{all_arrived, connect, eventually, exactly, stays, talk, Fabric, Kind, Process, RAILS};
use serial_test::serial;
use shift_control::datapath::{DeviceId, Event, StandbyKeys};
use shift_control::status::Answer;
use shift_control::Config;

fn config() -> Config {
    exactly(&[("SHIFT_PROBE_MS", "50"), ("SHIFT_FAILBACK", "0"), ("SHIFT_PROBE_INTERVAL_MS", "100")])
}

/// Two processes with these standbys, connected.
fn pair(net: u8, standbys: [&[usize]; 2], wires: &[[usize; 2]]) -> (Fabric, Process, Process) {
    let fabric = Fabric::new(net);
    for (host, devices) in (1..).zip(standbys) {
        fabric.lock().standbys.insert(host, devices.to_vec());
    }
    fabric.lock().wires = wires.to_vec();
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    for end in [&a, &b] {
        // Whatever can be watched: devices are looked at from then on.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        end.events.send(Event::DeviceOpened { device: DeviceId(0), async_fd: ours.into_raw_fd() });
    }
    connect(&a, 1, &b, 1);
    (fabric, a, b)
}

fn are_armed(a: &Process, b: &Process) -> bool {
    a.is_armed(1) && b.is_armed(1)
}

/// The two agents that have come since `before` each have a path to move to, which the other end has said is good.
fn are_backed(before: &[String]) -> bool {
    let came: Vec<String> = names().into_iter().filter(|name| !before.contains(name)).collect();
    let is_backed = |name: &String| match ask(name, b"{\"request\":\"status\"}\n") {
        Some(Answer::Status(status)) => status.queue_pairs.iter().all(|qp| qp.standby.is_some()),
        other => panic!("{name}: {other:?}"),
    };
    came.len() == 2 && came.iter().all(is_backed)
}

fn remove(at: &Process, device: usize) {
    let device = DeviceId(u16::try_from(device).unwrap());
    let mut state = at.fabric.lock();
    state.gone.insert((at.host, device));
    state.removed.insert((at.host, device));
}

/// A device comes, for what was made on the first one before.
fn add(at: &Process, device: usize) {
    at.fabric.lock().standbys.get_mut(&at.host).unwrap().push(device);
    at.events.send(Event::StandbyCame { device: DeviceId(0) });
}

fn rail(of: &Process) -> usize {
    of.qp(1, fabric::Qp::rail)
}

/// The rail dies under traffic, and both go to the other one without a loss.
fn survives(fabric: &Fabric, [a, b]: [&Process; 2], from: usize, to: usize, next: &mut u32) {
    fabric.set_rail(from, false);
    talk([a, b], *next);
    *next += 1;
    a.fail(1);
    eventually("it has moved", || a.is_done(1) && b.is_done(1) && rail(a) == to && rail(b) == to);
    all_arrived([a, b], 0..*next);
    fabric.set_rail(from, true);
}

#[test]
#[serial]
fn a_standby_that_comes_back_protects_what_was_connected_before() {
    let (fabric, a, b) = pair(150, [&[1], &[1]], &[]);
    eventually("both ends are armed", || are_armed(&a, &b));
    // The one end leads, the other one follows.
    for end in [&a, &b] {
        remove(end, 1);
        eventually("nothing is armed", || !a.is_armed(1) && !b.is_armed(1));
        stays("without it", 300, || !a.is_armed(1) && !b.is_armed(1));
        add(end, 1 + RAILS);
        eventually("armed again", || are_armed(&a, &b));
    }
    survives(&fabric, [&a, &b], 0, 1, &mut 0);
}

/// The other end's queue pair on that rail is the application's own: it gets one more beside.
#[test]
#[serial]
fn a_first_device_that_comes_back_is_a_standby_of_what_has_left_it() {
    for (net, at_a) in [(151, true), (152, false)] {
        let before = names();
        let (fabric, a, b) = pair(net, [&[1], &[1]], &[]);
        eventually("both ends are armed", || are_armed(&a, &b));
        let (end, other) = if at_a { (&a, &b) } else { (&b, &a) };
        remove(end, 0);
        eventually("both are on the other rail", || rail(&a) == 1 && rail(&b) == 1);
        add(end, RAILS);
        eventually("the other end is asked", || fabric.lock().stood_in.contains(&other.host));
        add(other, RAILS);
        // Faults are masked all the time once it has moved; that there is somewhere to go is what counts.
        eventually("both ends know where to go", || are_backed(&before));
        let mut next = 0;
        let on_path = |end: &Process| end.qp(1, |q| (q.path, q.is_running()));
        assert_eq!([&a, &b].map(on_path), [(1, true); 2], "and stay where they are");
        survives(&fabric, [&a, &b], 1, 0, &mut next);
        assert_eq!((on_path(&a).0, on_path(&b).0), (2, 2), "a path of its own, not the application's");
        survives(&fabric, [&a, &b], 0, 1, &mut next);
    }
}

#[test]
#[serial]
fn a_pair_that_does_not_carry_is_given_up_for_one_that_does() {
    let (fabric, a, b) = pair(153, [&[1, 2], &[1, 2]], &[[0, 0], [1, 2], [2, 1]]);
    eventually("both ends are armed", || are_armed(&a, &b));
    fabric.set_rail(0, false);
    a.post(1, 0, Kind::Send);
    a.fail(1);
    eventually("it has moved", || a.is_done(1) && rail(&a) != 0 && rail(&a) + rail(&b) == 3);
    assert_eq!(b.received(1), [0]);
}

/// What was given up for others that did not carry either is tried again.
#[test]
#[serial]
fn a_pair_that_was_given_up_is_tried_again_and_known_by_its_number() {
    let (fabric, a, b) = pair(154, [&[1, 2], &[1, 2]], &[]);
    for rail in [1, 2] {
        fabric.set_rail(rail, false);
    }
    stays("not armed", 3_500, || !a.is_armed(1) && !b.is_armed(1));
    for rail in [1, 2] {
        fabric.set_rail(rail, true);
    }
    eventually("armed", || are_armed(&a, &b));
    fabric.set_rail(0, false);
    a.post(1, 0, Kind::Send);
    a.fail(1);
    eventually("it has moved", || a.is_done(1) && rail(&a) != 0 && rail(&a) == rail(&b));
    assert_eq!(b.received(1), [0]);
}

/// A third standby of one end takes the place of one that is gone, with the keys of its own slot.
#[test]
#[serial]
fn another_standby_takes_the_place_of_one_that_is_gone() {
    let (fabric, a, b) = pair(155, [&[1], &[1]], &[[0, 0], [1, 1], [2, 1]]);
    eventually("both ends are armed", || are_armed(&a, &b));
    let mut standby_rkeys = StandbyKeys::default();
    standby_rkeys[0] = Some(71);
    a.events.send(Event::KeyAdded { device: DeviceId(0), rkey: 7, standby_rkeys });
    remove(&a, 1);
    eventually("nothing is armed", || !a.is_armed(1) && !b.is_armed(1));
    a.events.send(Event::KeyExtended { device: DeviceId(0), rkey: 7, slot: 1, standby_rkey: 72 });
    add(&a, 2);
    eventually("armed again", || are_armed(&a, &b));
    fabric.set_rail(0, false);
    b.post(1, 0, Kind::Write { rkey: 7 });
    b.fail(1);
    eventually("it has moved", || b.is_done(1) && rail(&a) == 2 && rail(&b) == 1);
    assert_eq!(a.qp(1, |q| q.written.clone()), [(0, 72)]);
}

/// It is not in the offer by which the peer pairs.
#[test]
#[serial]
fn a_standby_that_comes_between_the_two_first_offers_changes_none_of_the_first_pairs() {
    let fabric = Fabric::new(156);
    fabric.lock().standbys.extend([(1, vec![1]), (2, vec![2])]);
    fabric.lock().wires = vec![[0, 0], [1, 1], [1, 2], [2, 1], [2, 2]];
    let (a, b) = (fabric.process(1, config()), fabric.process(2, config()));
    for (end, device) in [(&a, 2), (&b, 1)] {
        let (fabric, events, host) = (end.fabric.clone(), end.events.clone(), end.host);
        end.when_prepared(move || {
            fabric.lock().standbys.get_mut(&host).unwrap().push(device);
            events.send(Event::StandbyCame { device: DeviceId(0) });
        });
    }
    connect(&a, 1, &b, 1);
    eventually("both ends are armed", || are_armed(&a, &b));
    let standbys = |end: &Process| end.qp(1, fabric::Qp::standbys);
    assert_eq!([standbys(&a)[0], standbys(&b)[0]], [1, 2], "both by what was offered first");
    eventually("what came is paired too", || [standbys(&a), standbys(&b)] == [[1, 2], [2, 1]]);
}
