//! Queue pairs that receive through one shared receive queue, on the fabric in memory: they are protected and moved together, with as many peers as
//! they have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails should say where"
)]

mod fabric;

use std::time::Duration;

use fabric::{config, config_of, connect_grouped, connect_unmet, eventually, stays, Fabric, Kind, Mesh, Process, SRQ};
use shift_control::datapath::{DeviceId, Errno, Event, Unprotected};

#[test]
fn a_fault_of_one_connection_moves_all_that_receive_with_it() {
    let mut mesh = Mesh::of(130, 4);
    for peer in [1, 2, 3, 3] {
        mesh.connect((0, SRQ), (peer, None));
    }
    mesh.is_armed();
    mesh.post(0..5);
    mesh.fabric.lock().acks_lost[0] = true;
    mesh.post(5..8);
    mesh.fabric.set_rail(0, false);
    mesh.post(8..10);
    mesh.hosts[1].fail(1);
    mesh.has_moved_whole();
    mesh.post(10..15);
    mesh.has_everything(15);
}

#[test]
fn connections_whose_own_path_is_good_come_along() {
    let mut mesh = Mesh::of(131, 3);
    mesh.connect((0, SRQ), (1, None));
    mesh.connect((0, SRQ), (2, None));
    mesh.is_armed();
    mesh.post(0..5);
    // Only the port of host 1 is gone; the fabric's rail carries on for the others.
    mesh.hosts[1].fail(1);
    mesh.fabric.set_rail(0, false);
    eventually("the faulty one sought and found", || mesh.hosts[1].qp(1, |q| q.path == 1));
    mesh.fabric.set_rail(0, true);
    mesh.post(5..10);
    mesh.has_moved_whole();
    mesh.has_everything(10);
}

#[test]
fn groups_that_share_peers_all_move_and_none_waits_for_ever() {
    let mesh = Mesh::full(132, 4);
    mesh.is_armed();
    mesh.post(0..6);
    mesh.fabric.set_rail(0, false);
    mesh.post(6..9);
    mesh.hosts[2].fail(mesh.pairs.iter().find(|pair| pair[0].0 == 0 && pair[1].0 == 2).unwrap()[1].1);
    mesh.has_moved_whole();
    mesh.post(9..12);
    mesh.has_everything(12);
}

#[test]
fn faults_everywhere_at_once_move_everybody_once() {
    let mesh = Mesh::full(133, 3);
    mesh.is_armed();
    mesh.post(0..3);
    mesh.fabric.set_rail(0, false);
    mesh.post(3..6);
    for (host, life) in mesh.ends() {
        mesh.hosts[host].fail(life);
        mesh.hosts[host].events.send(Event::Port { device: DeviceId(0), up: false });
    }
    mesh.has_moved_whole();
    mesh.has_everything(6);
}

#[test]
fn one_peer_without_protection_leaves_the_whole_group_and_its_peers_unprotected() {
    let fabric = Fabric::new(134);
    let refuses = Err(Unprotected("the test has no standby".to_owned()));
    let hosts =
        [fabric.process(1, config()), fabric.process(2, config()), fabric.process_with(3, 3, config(), refuses)];
    connect_grouped((&hosts[0], 1, SRQ), (&hosts[1], 1, None));
    eventually("the first is armed alone", || hosts[0].is_armed(1) && hosts[1].is_armed(1));
    connect_grouped((&hosts[0], 2, SRQ), (&hosts[2], 2, None));
    eventually("the second disarms it, at both ends", || !hosts[0].is_armed(1) && !hosts[1].is_armed(1));
    stays("nobody is armed", 1000, || !hosts[0].is_armed(1) && !hosts[1].is_armed(1) && !hosts[0].is_armed(2));
    hosts[0].destroy(2);
    eventually("without the second the first is armed again", || hosts[0].is_armed(1) && hosts[1].is_armed(1));
}

#[test]
fn a_member_whose_peer_does_not_answer_is_left_behind_and_the_others_go_on() {
    let config = || config_of(&[("SHIFT_EXCHANGE_MS", "1600"), ("SHIFT_HEARTBEAT_MS", "5000")]);
    let fabric = Fabric::new(135);
    let hosts: Vec<Process> = (1..=3).map(|host| fabric.process(host, config())).collect();
    connect_grouped((&hosts[0], 1, SRQ), (&hosts[1], 1, None));
    connect_grouped((&hosts[0], 2, SRQ), (&hosts[2], 2, None));
    eventually("every end is armed", || {
        hosts.iter().zip([1, 1, 2]).all(|(host, life)| host.is_armed(life)) && hosts[0].is_armed(2)
    });
    hosts[2].suspend(true);
    std::thread::sleep(Duration::from_millis(100));
    hosts[1].post(1, 0, Kind::Send);
    fabric.set_rail(0, false);
    hosts[1].post(1, 1, Kind::Send);
    hosts[1].fail(1);
    eventually("the other one is left behind", || hosts[0].qp(2, |q| q.surfaced));
    eventually("the first one goes on", || hosts[1].is_done(1));
    assert_eq!(hosts[0].received(1), [0, 1]);
    hosts[2].suspend(false);
    eventually("who slept learns of it", || hosts[2].qp(2, |q| q.surfaced));
}

/// Deadlines for tests in which one passes.
const SHORT: &[(&str, &str)] =
    &[("SHIFT_HOLD_MS", "300"), ("SHIFT_EXCHANGE_MS", "1600"), ("SHIFT_PATIENCE_MS", "2000")];

#[test]
fn who_is_connected_after_the_move_is_called_to_where_the_receives_are_also_while_the_old_rail_is_dead() {
    let mut mesh = Mesh::of(136, 3);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.post(0..3);
    mesh.moves();
    mesh.connect((0, SRQ), (2, SRQ));
    mesh.has_moved_whole();
    mesh.post(3..6);
    eventually("all is delivered", || mesh.all(Process::is_done));
    assert_eq!(mesh.hosts[0].received(2), [3, 4, 5]);
}

#[test]
fn who_cannot_be_called_to_where_the_receives_are_gets_an_error_and_not_silence() {
    let mut mesh = Mesh::with(138, 2, SHORT);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.moves();
    connect_unmet(&mesh.hosts[0], 50, 900, 9);
    stays("it is waited for", 1000, || mesh.hosts[0].qp(50, |q| !q.surfaced));
    eventually("it is given up", || mesh.hosts[0].qp(50, |q| q.surfaced));
    mesh.post(0..3);
    eventually("the others go on", || mesh.all(Process::is_done));
    let refuses = Err(Unprotected("the test has no standby".to_owned()));
    let stranger = mesh.fabric.process_with(3, 3, config(), refuses);
    connect_grouped((&mesh.hosts[0], 51, SRQ), (&stranger, 51, None));
    eventually("whose peer says that it cannot is given up", || mesh.hosts[0].qp(51, |q| q.surfaced));
    assert!(mesh.all(|host, life| host.qp(life, |q| !q.surfaced)));
}

#[test]
fn who_is_connected_in_the_middle_of_a_move_is_waited_for_though_nothing_is_known_of_its_peer() {
    let mut mesh = Mesh::with(139, 2, SHORT);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.post(0..3);
    mesh.fabric.lock().slow_fence = Some((1, Duration::from_millis(300)));
    mesh.fabric.set_rail(0, false);
    mesh.post(3..5);
    mesh.hosts[1].fail(1);
    eventually("the migration is under way", || !mesh.hosts[0].qp(1, fabric::Qp::is_running));
    connect_unmet(&mesh.hosts[0], 50, 900, 9);
    // The fabric asserts that nobody takes receives on the old path when they are posted on the new one.
    mesh.has_moved_whole();
    assert!(mesh.hosts[0].qp(50, |q| q.surfaced), "it was left behind first");
    mesh.has_everything(5);
}

#[test]
fn the_receives_are_where_they_were_if_they_could_not_be_posted() {
    let mut mesh = Mesh::with(140, 3, SHORT);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.fabric.lock().refuses_receives = Some((1, Errno(nix::libc::ENETUNREACH)));
    mesh.fabric.set_rail(0, false);
    mesh.hosts[1].fail(1);
    eventually("the move fails", || mesh.hosts[0].qp(1, |q| q.surfaced));
    mesh.fabric.lock().refuses_receives = None;
    mesh.fabric.set_rail(0, true);
    mesh.pairs.clear();
    for (life, peer) in [(60, 1), (61, 2)] {
        connect_grouped((&mesh.hosts[0], life, SRQ), (&mesh.hosts[peer], life, None));
        mesh.pairs.push([(0, life), (peer, life)]);
    }
    mesh.is_armed();
    mesh.post(0..4);
    eventually("all is delivered", || mesh.all(Process::is_done));
    assert!(mesh.all(|host, life| host.qp(life, |q| q.path == 0 && q.reposts == 0)), "nobody is called elsewhere");
}

#[test]
fn one_that_takes_receives_still_is_waited_for() {
    let mut mesh = Mesh::of(141, 2);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.fabric.lock().refuses_receives = Some((1, Errno(nix::libc::EBUSY)));
    mesh.fabric.set_rail(0, false);
    mesh.post(0..3);
    mesh.hosts[1].fail(1);
    eventually("the migration is under way", || !mesh.hosts[0].qp(1, fabric::Qp::is_running));
    stays("nothing is posted", 500, || mesh.hosts[0].qp(1, |q| q.reposts == 0 && !q.surfaced));
    mesh.fabric.lock().refuses_receives = None;
    mesh.has_moved_whole();
    mesh.has_everything(3);
}

#[test]
fn who_is_connected_anew_where_it_was_takes_all_others_along() {
    let mut mesh = Mesh::of(142, 3);
    mesh.connect((0, SRQ), (1, None));
    mesh.connect((0, SRQ), (2, None));
    mesh.is_armed();
    mesh.post(0..4);
    eventually("all is delivered", || mesh.all(Process::is_done));
    mesh.fabric.set_rail(1, false);
    mesh.hosts[1].fail(1);
    mesh.post(4..7);
    eventually("every end is there anew", || mesh.all(|host, life| host.qp(life, |q| q.reposts == 1)));
    mesh.has_everything(7);
    assert!(mesh.all(|host, life| host.qp(life, |q| q.path == 0)));
}

#[test]
fn who_is_just_being_armed_leaves_the_others_protected() {
    let mut mesh = Mesh::of(143, 3);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.connect((0, SRQ), (2, None));
    let first_is_armed = |mesh: &Mesh| mesh.hosts[0].is_armed(1) && mesh.hosts[1].is_armed(1);
    eventually("the second is armed, and the first all the time", || {
        assert!(first_is_armed(&mesh));
        mesh.all(Process::is_armed)
    });
    connect_unmet(&mesh.hosts[0], 50, 900, 9);
    stays("one that is not met yet changes nothing", 2000, || first_is_armed(&mesh));
    eventually("one that is not met in time does", || !first_is_armed(&mesh));
    mesh.hosts[0].destroy(50);
    mesh.is_armed();
}

#[test]
fn a_fault_is_held_until_the_newest_is_armed() {
    let mut mesh = Mesh::of(144, 3);
    mesh.connect((0, SRQ), (1, None));
    mesh.is_armed();
    mesh.post(0..3);
    mesh.connect((0, SRQ), (2, None));
    mesh.fabric.set_rail(0, false);
    mesh.hosts[1].fail(1);
    mesh.has_moved_whole();
    mesh.post(3..5);
    eventually("all is delivered", || mesh.all(Process::is_done));
    assert!(mesh.all(|host, life| host.qp(life, |q| !q.surfaced)));
}

#[test]
fn what_a_group_cannot_do_is_heard_of_two_groups_away() {
    let mut mesh = Mesh::of(145, 3);
    mesh.connect((0, SRQ), (1, SRQ));
    mesh.connect((1, SRQ), (2, None));
    mesh.is_armed();
    let refuses = Err(Unprotected("the test has no standby".to_owned()));
    let stranger = mesh.fabric.process_with(4, 4, config(), refuses);
    connect_grouped((&mesh.hosts[0], 70, SRQ), (&stranger, 70, None));
    eventually("nobody is armed", || mesh.ends().all(|(host, life)| !mesh.hosts[host].is_armed(life)));
    stays("nobody is armed again", 1000, || mesh.ends().all(|(host, life)| !mesh.hosts[host].is_armed(life)));
    mesh.hosts[0].destroy(70);
    mesh.is_armed();
}

#[test]
fn more_are_not_left_behind_than_are_saved() {
    let mut mesh = Mesh::with(146, 4, SHORT);
    for peer in [1, 2, 3] {
        mesh.connect((0, SRQ), (peer, None));
    }
    mesh.is_armed();
    mesh.post(0..2);
    eventually("all is delivered", || mesh.all(Process::is_done));
    // Hosts are numbered from 1 on.
    mesh.fabric.lock().dead_ports.extend([(2, 0), (3, 1), (4, 1)]);
    mesh.hosts[1].fail(1);
    eventually("the one without another way ends", || mesh.hosts[1].qp(1, |q| q.surfaced));
    mesh.pairs.remove(0);
    mesh.post(2..4);
    eventually("the others go on", || mesh.all(Process::is_done));
    assert!(mesh.all(|host, life| host.qp(life, |q| q.path == 0 && q.reposts == 0 && !q.surfaced)));
}

#[test]
fn a_member_that_is_destroyed_in_the_middle_holds_nobody_up() {
    let mesh = Mesh::full(137, 3);
    mesh.is_armed();
    mesh.post(0..3);
    mesh.fabric.set_rail(0, false);
    mesh.fabric.lock().slow_fence = Some((1, Duration::from_millis(200)));
    mesh.hosts[0].fail(1);
    eventually("the migration is under way", || !mesh.hosts[1].qp(1, fabric::Qp::is_running));
    let victim = mesh.pairs.iter().find(|pair| pair[0].0 == 0 && pair[1].0 == 2).unwrap()[0].1;
    mesh.hosts[0].destroy(victim);
    let others = || mesh.ends().filter(|(_, life)| *life != victim);
    eventually("the others have moved", || others().all(|(host, life)| mesh.hosts[host].qp(life, |q| q.path == 1)));
    let is_whole = |(host, life): (usize, u32)| mesh.hosts[host].is_done(life);
    eventually("and all of theirs is delivered", || others().all(is_whole));
    assert!(others().all(|(host, life)| mesh.hosts[host].received(life) == [0, 1, 2]));
}
